//! Frames sent to the append loop.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use super::peer::{PeerEvent, Script, ScriptedPeer, decode};
use super::{Input, run};
use crate::error::Result;
use crate::hub::{AttachRequest, Attached};
use crate::key::Key;
use crate::server::append::AppendLimits;
use crate::server::append::websocket::{self, AppendDialect};
use crate::state::{End, Life, Stat, State};
use crate::storage::{Append, ByteStream, MemoryStorage, Open, Storage, stream};
use crate::streams::Streams;

/// A peer sends any bytes to the append loop, in either dialect, in steps of any size. The stored data, the final state
/// and the messages to the peer are those that a simple decoder of all its bytes expects.
pub fn frames(data: &[u8]) -> bool {
    let mut input = Input(data);
    let (kind, sizes, step) = (input.byte(), input.byte(), input.byte());
    let dialect = match kind % 4 {
        0 => AppendDialect::Original { bare: true },
        1 => AppendDialect::Original { bare: false },
        _ => AppendDialect::V1 { resumed: false },
    };
    let limits = AppendLimits {
        timeouts: Default::default(),
        max_message: [16, 1000, 70_000, u64::MAX][usize::from(sizes % 4)],
        max_resource: [20, 3000, 300_000, u64::MAX][usize::from(sizes / 4 % 4)],
        until: None,
    };
    let script = Script::parse(&mut input, true);
    let events = decode(&script.bytes, true, limits.max_message);
    let expected = Expected::of(&events, dialect, limits.max_resource);
    // How often the storage yields in each append, while the loop reads on.
    let yields = sizes / 16 % 4;
    let got = run(append_all(ScriptedPeer::new(script, None, step), limits, dialect, yields));
    if expected.overflows {
        // How much of the stream is stored depends on how it was split.
        assert!(dialect == AppendDialect::V1 { resumed: false }, "messages are stored whole");
        assert!(expected.stored.starts_with(&got.stored) && got.stored.len() as u64 <= limits.max_resource);
    } else {
        assert!(got.stored == expected.stored, "stored {} bytes, expected {}", got.stored.len(), expected.stored.len());
    }
    let finished = matches!(got.state, Some(State::Finished | State::Sealed));
    assert_eq!(finished, expected.finished, "{:?}", got.state);
    assert!(finished || got.stored.is_empty() == got.state.is_none(), "{:?}", got.state);
    check_sent(&got, &expected, dialect, &events);
    finished && !got.stored.is_empty()
}

struct Expected {
    stored: Vec<u8>,
    finished: bool,
    /// The resource has no room for all of it.
    overflows: bool,
    /// The number of pings before the end.
    pings: usize,
    /// The close code, if the peer is still there to get one.
    code: Option<u16>,
}

impl Expected {
    fn of(events: &[PeerEvent], dialect: AppendDialect, max: u64) -> Self {
        let mut expected = Self { stored: Vec::new(), finished: false, overflows: false, pings: 0, code: None };
        let v1 = matches!(dialect, AppendDialect::V1 { .. });
        let mut message = Vec::new();
        for event in events {
            match event {
                PeerEvent::Part { text: true, payload, end } if v1 => {
                    message.extend_from_slice(payload);
                    if message.len() > 16 * 1024 {
                        expected.code = Some(1009);
                        return expected;
                    }
                    if *end {
                        expected.finished = is_finish(&message);
                        expected.code = Some(if expected.finished { 1000 } else { 1002 });
                        return expected;
                    }
                }
                PeerEvent::Part { payload, end, .. } => {
                    message.extend_from_slice(payload);
                    if *end || v1 {
                        let too_much = (expected.stored.len() + message.len()) as u64 > max;
                        if too_much && !v1 {
                            expected.code = Some(1009);
                            return expected;
                        }
                        expected.stored.append(&mut message);
                        if too_much {
                            expected.overflows = true;
                            expected.code = Some(1009);
                            return expected;
                        }
                    }
                }
                PeerEvent::Ping(_) => expected.pings += 1,
                PeerEvent::Pong(_) => {}
                PeerEvent::Close { code: Some(1000), between: false } => expected.code = Some(1002),
                PeerEvent::Close { code: None, between: false } if !v1 => expected.code = Some(1002),
                PeerEvent::Close { code: None, .. } if v1 => expected.code = Some(1001),
                PeerEvent::Close { code: None | Some(1000), .. } => {
                    expected.finished = true;
                    expected.code = Some(1000);
                }
                PeerEvent::Close { code, .. } => expected.code = *code,
                PeerEvent::ProtocolError(code) => expected.code = Some(*code),
                PeerEvent::Eof { between } => {
                    expected.finished = *between && dialect == AppendDialect::Original { bare: true };
                    expected.code = expected.finished.then_some(1000);
                }
            }
        }
        expected
    }
}

fn is_finish(message: &[u8]) -> bool {
    let Ok(message) = serde_json::from_slice::<Value>(message) else { return false };
    message["finish"] == Value::Bool(true) && message.get("seal").is_none_or(Value::is_boolean)
}

struct Got {
    stored: Vec<u8>,
    state: Option<State>,
    /// What the peer received.
    sent: Vec<u8>,
}

/// A storage whose appends yield several times.
#[derive(Clone)]
struct Slow {
    inner: MemoryStorage,
    yields: u8,
}

struct SlowAppend {
    inner: <MemoryStorage as Storage>::Appender,
    yields: u8,
}

impl Storage for Slow {
    type Appender = SlowAppend;

    async fn open(&self, key: &Key, how: Open) -> Result<SlowAppend> {
        Ok(SlowAppend { inner: self.inner.open(key, how).await?, yields: self.yields })
    }

    async fn stat(&self, key: &Key) -> Result<Option<Stat>> {
        self.inner.stat(key).await
    }

    async fn read(&self, key: &Key, life: Life, range: Range<u64>) -> Result<ByteStream> {
        self.inner.read(key, life, range).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.inner.delete(key).await
    }
}

impl Append for SlowAppend {
    type Sync = <<MemoryStorage as Storage>::Appender as Append>::Sync;

    fn stat(&self) -> Stat {
        self.inner.stat()
    }

    async fn append(&mut self, data: &[Bytes]) -> Result<u64> {
        for _ in 0..self.yields {
            tokio::task::yield_now().await;
        }
        self.inner.append(data).await
    }

    fn sync(&self) -> Self::Sync {
        self.inner.sync()
    }

    async fn finish(self, end: End) -> Result<Stat> {
        self.inner.finish(end).await
    }
}

async fn append_all(io: ScriptedPeer, limits: AppendLimits, dialect: AppendDialect, yields: u8) -> Got {
    let streams = Streams::new(Slow { inner: MemoryStorage::new(u64::MAX), yields });
    let (hub, key) = (&streams.hub, Key::new("a").expect("a key"));
    let Ok(Attached::Open { lease, .. }) = hub.attach(&key, AttachRequest::new(Open::Continue)).await else {
        panic!("attach was refused")
    };
    let received = Arc::clone(&io.received);
    websocket::run(Arc::clone(hub), io, lease, limits, dialect).await;
    hub.tasks.close();
    hub.tasks.wait().await;
    let mut got = Got { stored: Vec::new(), state: None, sent: std::mem::take(&mut received.lock().unwrap()) };
    if let Some(stat) = hub.storage.stat(&key).await.expect("a stat") {
        got.state = Some(stat.state);
        let mut pieces = hub.storage.read(&key, stat.life, 0..stat.len).await.expect("a read");
        while let Some(piece) = stream::next(&mut pieces).await {
            got.stored.extend_from_slice(&piece.expect("a read"));
        }
        assert_eq!(got.stored.len() as u64, stat.len);
    }
    got
}

/// The peer was sent valid frames: answers to its pings, acknowledgements of stored bytes only, and a close frame.
fn check_sent(got: &Got, expected: &Expected, dialect: AppendDialect, received: &[PeerEvent]) {
    let v1 = matches!(dialect, AppendDialect::V1 { .. });
    let (mut pongs, mut acked, mut closed, mut finished) = (Vec::new(), None, None, false);
    for event in decode(&got.sent, false, u64::MAX) {
        match event {
            PeerEvent::Pong(payload) => pongs.push(payload),
            PeerEvent::Part { text: true, payload, end: true } if v1 => {
                let message: Value = serde_json::from_slice(&payload).expect("JSON");
                let offset = message[if acked.is_none() { "offset" } else { "ack" }].as_u64().expect("an offset");
                assert!(acked <= Some(offset) && offset <= got.stored.len() as u64, "acknowledged {offset}");
                acked = Some(offset);
                finished |= message["finished"] == Value::Bool(true);
            }
            PeerEvent::Close { code, between: true } => closed = code,
            PeerEvent::Eof { between: true } => {}
            // A keepalive, since the peer was silent for a while.
            PeerEvent::Ping(payload) if payload.is_empty() && dialect != (AppendDialect::Original { bare: true }) => {}
            other => panic!("the server sent {other:?}"),
        }
    }
    assert_eq!(closed, expected.code);
    assert_eq!(finished, v1 && expected.finished);
    assert!(!finished || acked == Some(got.stored.len() as u64));
    // Pings may be answered even after a failure. Without a close frame the last pings may stay unanswered.
    let pings =
        received.iter().filter_map(|event| if let PeerEvent::Ping(payload) = event { Some(payload) } else { None });
    assert!(pings.take(pongs.len()).eq(&pongs));
    assert!(closed.is_none() || expected.overflows || pongs.len() >= expected.pings);
}
