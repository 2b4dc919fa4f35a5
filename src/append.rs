//! The append loop: over a WebSocket, in the original's dialect and in the resumable subprotocol (protocol sections 3 and
//! 4), or from the body of a request (section 5).

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, header};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::budget::Share;
use crate::control;
use crate::error::{Error, ErrorKind, Result};
use crate::hub::{Hub, Lease};
use crate::socket::{Beat, Pulse, Times, closing, expired, expiry};
use crate::storage::erased::BoxFuture;
use crate::storage::{End, Stat};
use crate::wire::frame::{Kind, Role};
use crate::wire::pieces::Pieces;
use crate::wire::{Conn, Inbound, Message, Streamed};

/// At most about as many bytes are read into one append: one write, one wake.
const BATCH: usize = 256 * 1024;

/// As much of a stream may be read ahead while the storage still has what came before, and is appended in one go after that:
/// the storage waits for a disk then, and a call in the pool of threads that block costs more than what it writes.
const AHEAD: usize = 4 * BATCH;
/// As much memory all appenders together may take for that; who finds none reads on when the storage is done.
pub(crate) const AHEAD_OF_ALL: usize = 64 * 2 * AHEAD;

/// How long what a sender has sent by the time of a shutdown may take to be stored.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A peer that takes no acknowledgements is not listened to once so many bytes of them wait.
const MAX_UNTOLD: usize = 4 * 1024;

/// What an appender may do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) times: Times,
    pub(crate) max_message: u64,
    pub(crate) max_resource: u64,
    pub(crate) until: Option<Instant>,
}

impl Terms {
    /// How much may be added to a resource of this length.
    fn room(self, len: u64) -> u64 {
        self.max_resource.saturating_sub(len)
    }
}

/// How an appender speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// Without a subprotocol. `bare`: it is like the original's client, see [`is_bare`].
    Original { bare: bool },
    /// `resumed` is what it is told first.
    V1 { resumed: bool },
}

/// Whether the peer is like the original's client, which can't close a WebSocket and can't answer pings: its handshake
/// has neither `User-Agent` nor `Origin`.
pub(crate) fn is_bare(headers: &HeaderMap) -> bool {
    !headers.contains_key(header::USER_AGENT) && !headers.contains_key(header::ORIGIN)
}

/// How an appender ended.
pub(crate) enum Ended {
    /// The appender says that this was all.
    Finished(End),
    /// The appender says that more will come in another request.
    Parked,
    /// Answer its close with the same code.
    Left(u16),
    /// It broke the protocol.
    Breach(u16, String),
    /// It can't go on.
    Failed(Error),
    /// The server stops.
    Stopping,
    /// There is nobody to tell.
    Gone,
}

/// Where an appender's bytes come from.
pub(crate) trait Source {
    /// What it says next; as much of it at once as has arrived, but not much more than `most` bytes.
    ///
    /// Cancel safe.
    async fn input(&mut self, most: usize) -> Input;

    /// Whether what it gives is a stream of bytes, of which more can be asked for while the storage still has what it gave
    /// before.
    fn is_stream(&self) -> bool;

    /// Cancelled when nobody waits for its answer any more, if anybody ever does.
    fn left(&self) -> Option<CancellationToken> {
        None
    }

    /// Counts its signs of life.
    fn heard(&self) -> u64;

    /// Whether it can be asked for a sign of life.
    fn answers_pings(&self) -> bool;

    /// Asks for one, if it can be asked.
    fn ping(&mut self);

    /// Where acknowledgements go, if it takes any.
    fn acks(&mut self) -> Option<&mut Pieces>;

    /// Sends acknowledgements that wait. (They go by themselves with the next input, but not without bound.)
    async fn send_acks(&mut self, limit: Duration) -> std::io::Result<()>;
}

/// A WebSocket.
struct Socket<IO> {
    conn: Conn<IO>,
    dialect: Dialect,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Source for Socket<IO> {
    async fn input(&mut self, most: usize) -> Input {
        input(&mut self.conn, most, self.dialect).await
    }

    fn is_stream(&self) -> bool {
        // Whole messages may be large, and are counted for as long as no more is asked for.
        matches!(self.dialect, Dialect::V1 { .. })
    }

    fn heard(&self) -> u64 {
        self.conn.heard()
    }

    fn answers_pings(&self) -> bool {
        // Pinging a peer that never reads would make its close a reset, which destroys what it sent last.
        self.dialect != Dialect::Original { bare: true }
    }

    fn ping(&mut self) {
        if self.answers_pings() {
            self.conn.put(Kind::Ping, b"");
        }
    }

    fn acks(&mut self) -> Option<&mut Pieces> {
        matches!(self.dialect, Dialect::V1 { .. }).then(|| self.conn.out())
    }

    async fn send_acks(&mut self, limit: Duration) -> std::io::Result<()> {
        self.conn.flush(limit).await
    }
}

/// Appends what arrives over a WebSocket until the appender ends or is lost.
pub(crate) async fn run<IO>(hub: Arc<Hub>, io: IO, mut lease: Lease, terms: Terms, dialect: Dialect)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let conn = Conn::new(io, Role::Server, terms.max_message).sharing(&hub.incomplete);
    let mut socket = Socket { conn, dialect };
    if let Dialect::V1 { resumed } = dialect {
        lease.acknowledge();
        let resource = lease.resource();
        control::put(socket.conn.out(), &control::appending(resource.len(), resource.life, resumed));
    }
    let ended = match appending(&hub, &mut socket, &mut lease, terms).await {
        // The original's client has nothing to append; or it never got the 101, and has gone. What is there is left as it was.
        Ended::Finished(_) if socket.heard() == 0 && lease.resource().len() > 0 => Ended::Gone,
        ended => ended,
    };
    let v1 = matches!(dialect, Dialect::V1 { .. });
    let last = match ended {
        Ended::Finished(end) => match lease.finish(end).await {
            Ok(stat) => {
                if v1 {
                    control::put(socket.conn.out(), &control::finished(stat.len));
                }
                Some((1000, String::new()))
            }
            Err(error) => Some((error.kind().close_code(), error.to_string())),
        },
        Ended::Left(code) => {
            drop(lease);
            Some((code, String::new()))
        }
        Ended::Breach(code, reason) => {
            drop(lease);
            Some((code, reason))
        }
        Ended::Failed(error) => {
            drop(lease);
            Some((error.kind().close_code(), error.to_string()))
        }
        Ended::Stopping => {
            if v1 && let Ok(len) = lease.sync().await {
                control::put(socket.conn.out(), &control::ack(len));
            }
            lease.stop().await;
            Some((1001, Error::from(ErrorKind::ShuttingDown).to_string()))
        }
        // A WebSocket doesn't park.
        Ended::Gone | Ended::Parked => {
            drop(lease);
            None
        }
    };
    if let Some((code, reason)) = last {
        socket.conn.close(code, &reason, closing(&hub)).await;
    }
}

/// Tells an appender that came back for it that its finish had been done.
pub(crate) async fn finished<IO>(hub: Arc<Hub>, io: IO, stat: Stat)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut conn = Conn::new(io, Role::Server, 0);
    control::put(conn.out(), &control::finished(stat.len));
    conn.close(1000, "", closing(&hub)).await;
}

/// What has been made durable, and what the appender knows of it.
struct Acks {
    told: u64,
    syncing: Option<BoxFuture<'static, Result<u64>>>,
}

impl Acks {
    /// Begins a sync if there is something to sync and none runs.
    fn begin(&mut self, lease: &Lease) {
        if self.syncing.is_none() && self.told < lease.resource().len() {
            self.syncing = Some(lease.sync());
        }
    }

    /// The length up to which everything is durable, once the sync that runs is done.
    ///
    /// Cancel safe.
    async fn next(acks: &mut Option<Self>) -> Result<u64> {
        let Some(acks) = acks else { return std::future::pending().await };
        let Some(syncing) = &mut acks.syncing else { return std::future::pending().await };
        let synced = syncing.await;
        acks.syncing = None;
        synced
    }
}

pub(crate) async fn appending<S: Source>(hub: &Hub, source: &mut S, lease: &mut Lease, terms: Terms) -> Ended {
    // Polled again and again: who waits for each of them is known but once.
    let (lost, left) = (lease.over().clone(), source.left());
    let left = async {
        match &left {
            Some(left) => left.cancelled().await,
            None => std::future::pending().await,
        }
    };
    let (mut over, mut stops, mut left) = (pin!(lost.cancelled()), pin!(hub.soft.cancelled()), pin!(left));
    let mut pulse = match source.answers_pings() {
        false => Pulse::new(terms.times.silence, terms.times.silence),
        true => Pulse::new(terms.times.ping, terms.times.ping * 2),
    };
    let told = lease.resource().len();
    let mut acks = source.acks().map(|_| Acks { told, syncing: None });
    let mut ahead = Ahead::new(hub);
    loop {
        if let Some(acks) = &mut acks {
            acks.begin(lease);
        }
        let most = batch(terms.room(lease.resource().len()));
        let input = tokio::select! {
            biased;
            () = &mut over => return failed(lease.over_as().into()),
            () = &mut stops => break,
            () = &mut left => break,
            () = expiry(terms.until) => return failed(expired()),
            synced = Acks::next(&mut acks) => match (synced, &mut acks) {
                (Ok(len), Some(acks)) => {
                    let Some(out) = source.acks() else { continue };
                    if len > acks.told {
                        acks.told = len;
                        control::put(out, &control::ack(len));
                    }
                    if out.len() > MAX_UNTOLD && source.send_acks(terms.times.stall).await.is_err() {
                        return failed(ErrorKind::TimedOut.into());
                    }
                    continue;
                }
                (Err(error), _) => return failed(error),
                (Ok(_), None) => continue,
            },
            input = ahead.input(source, most) => input,
            () = pulse.tick() => match pulse.beat(source.heard()) {
                Beat::Dead => return failed(ErrorKind::TimedOut.into()),
                Beat::Ping => {
                    source.ping();
                    continue;
                }
            },
        };
        lease.give_way().await;
        let appended = match input {
            Input::Data(data) => {
                let data = data.into_all();
                let upto = lease.resource().len().saturating_add(len(&data));
                // Followers find a batch in the tail, more than that they would read from the file.
                let limit = if lease.resource().is_followed() { BATCH } else { AHEAD };
                let mut appending = pin!(append(lease, &terms, &data));
                let appended = match poll_fn(|cx| Poll::Ready(appending.as_mut().poll(cx))).await {
                    Poll::Ready(appended) => appended,
                    // In a box: most have no use for the room.
                    Poll::Pending => Box::pin(ahead.read_on(source, appending, upto, limit, &terms)).await,
                };
                ahead.settle();
                appended
            }
            Input::Ended(ended) => return ended,
            Input::Nothing => Ok(()),
        };
        if let Err(error) = appended {
            return failed(error);
        }
    }
    // The server stops, or nobody waits for an answer any more. What has arrived by now still counts, a finish above all;
    // but a sender that doesn't pause must not hold the server up.
    let stopped = Instant::now();
    loop {
        let late = stopped.elapsed() >= LAST_WORDS && ahead.is_empty();
        let most = batch(terms.room(lease.resource().len()));
        let arrived = tokio::select! {
            biased;
            input = ahead.input(source, most) => Some(input),
            // Once around the runtime, for it may not have looked at the socket yet.
            () = tokio::task::yield_now() => None,
        };
        match arrived {
            // An end may have waited behind an append that took all the time.
            Some(Input::Data(_) | Input::Nothing) if late => break,
            None => break,
            Some(Input::Data(data)) => {
                if let Err(error) = append(lease, &terms, &data.into_all()).await {
                    return failed(error);
                }
            }
            Some(Input::Ended(ended)) => return ended,
            Some(Input::Nothing) => {}
        }
    }
    if hub.soft.is_cancelled() { Ended::Stopping } else { Ended::Gone }
}

/// What an appender did.
pub(crate) enum Input {
    Data(Pieces),
    Ended(Ended),
    Nothing,
}

/// What a stream gave while the storage still had what it gave before.
struct Ahead {
    data: Pieces,
    /// What came behind that.
    then: Option<Input>,
    /// The memory for it and for what is being appended, in a budget that all appenders share.
    share: Share,
}

impl Ahead {
    fn new(hub: &Hub) -> Self {
        Self { data: Pieces::default(), then: None, share: hub.ahead.share() }
    }

    fn is_empty(&self) -> bool {
        self.data.is_empty() && self.then.is_none()
    }

    /// What comes next. Cancel safe.
    async fn input<S: Source>(&mut self, source: &mut S, most: usize) -> Input {
        if !self.data.is_empty() {
            return Input::Data(std::mem::take(&mut self.data));
        }
        match self.then.take() {
            Some(input) => input,
            None => source.input(most).await,
        }
    }

    /// Reads on until what came before that, up to this length of the resource, is appended.
    async fn read_on<S: Source>(
        &mut self,
        source: &mut S,
        mut appending: Pin<&mut impl Future<Output = Result<()>>>,
        upto: u64,
        limit: usize,
        terms: &Terms,
    ) -> Result<()> {
        loop {
            let room = terms.room(upto.saturating_add(self.data.len() as u64));
            if !source.is_stream()
                || self.then.is_some()
                || self.data.len() > limit / 4 * 3
                || !self.share.grow_to(2 * limit)
            {
                return appending.await;
            }
            let input = tokio::select! {
                biased;
                appended = &mut appending => return appended,
                input = source.input(batch(room).min(limit - self.data.len())) => input,
            };
            match input {
                // What is too much for the resource is refused by itself.
                Input::Data(mut pieces) if pieces.len() as u64 <= room => self.data.append(&mut pieces),
                Input::Nothing => {}
                other => self.then = Some(other),
            }
        }
    }

    /// Gives memory back if nothing is in it.
    fn settle(&mut self) {
        if self.data.is_empty() {
            self.share.clear();
        }
    }
}

/// Cancel safe.
async fn input<IO>(conn: &mut Conn<IO>, most: usize, dialect: Dialect) -> Input
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    match dialect {
        Dialect::V1 { .. } => match conn.streamed(most).await {
            Streamed::Data(pieces) => Input::Data(pieces),
            Streamed::Text(message) => Input::Ended(match control::finish(&message) {
                Some(end) => Ended::Finished(end),
                None => Ended::Breach(1002, "a control message that is not known".to_owned()),
            }),
            Streamed::Other(Inbound::Close(Some(1000))) => Input::Ended(match conn.between_messages() {
                true => Ended::Finished(End::Finished),
                false => Ended::Breach(1002, "closed inside a message".to_owned()),
            }),
            // Not 1000, which would say that all is stored.
            Streamed::Other(Inbound::Close(code)) => Input::Ended(Ended::Left(code.unwrap_or(1001))),
            Streamed::Other(other) => ended(other),
        },
        Dialect::Original { bare } => match conn.message(most).await {
            Message::Data(pieces) => Input::Data(pieces),
            Message::Other(Inbound::Close(code)) => Input::Ended(match code {
                // A close without a code is what `socket.close()` in a browser sends.
                Some(1000) | None if conn.between_messages() => Ended::Finished(End::Finished),
                Some(1000) | None => Ended::Breach(1002, "closed inside a message".to_owned()),
                Some(code) => Ended::Left(code),
            }),
            Message::Other(Inbound::Eof { between_messages: true }) if bare => {
                Input::Ended(Ended::Finished(End::Finished))
            }
            Message::Other(other) => ended(other),
        },
    }
}

/// What means the same in all dialects.
fn ended(inbound: Inbound) -> Input {
    match inbound {
        Inbound::Eof { .. } | Inbound::Broken(_) => Input::Ended(Ended::Gone),
        Inbound::Breach { code, reason } => Input::Ended(Ended::Breach(code, reason.into_owned())),
        Inbound::Close(code) => Input::Ended(Ended::Left(code.unwrap_or(1000))),
        Inbound::Pong | Inbound::Data { .. } => Input::Nothing,
    }
}

/// How much may be gathered where there is so much room: a batch ends before the message that is too much for the resource.
fn batch(room: u64) -> usize {
    usize::try_from(room).unwrap_or(usize::MAX).min(BATCH)
}

async fn append(lease: &mut Lease, terms: &Terms, data: &[Bytes]) -> Result<()> {
    if len(data) > terms.room(lease.resource().len()) {
        return Err(ErrorKind::TooLarge.into());
    }
    lease.append(data).await.map(drop)
}

fn len(data: &[Bytes]) -> u64 {
    data.iter().map(|data| data.len() as u64).sum()
}

fn failed(error: Error) -> Ended {
    if matches!(error.kind(), ErrorKind::Storage | ErrorKind::Full | ErrorKind::Overloaded) {
        tracing::error!(error = &error as &dyn std::error::Error, "appending failed");
    }
    Ended::Failed(error)
}

#[cfg(all(test, unix))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use tokio::io::{DuplexStream, duplex};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::hub::{Attach, Attached};
    use crate::key::Key;
    use crate::storage::{FsStorage, MemoryStorage, Open};
    use crate::streams::{Durability, Streams};

    const V1: Dialect = Dialect::V1 { resumed: false };

    fn terms(max_resource: u64) -> Terms {
        Terms { times: Times::default(), max_message: 1 << 30, max_resource, until: None }
    }

    async fn open(streams: &Streams) -> Lease {
        let attached = streams.hub.attach(&Key::new("a").unwrap(), Attach::new(Open::Create)).await.unwrap();
        let Attached::Open { lease, .. } = attached else { panic!("it is finished") };
        lease
    }

    /// What the pipe between the two takes.
    const PIPE: usize = 64 * 1024;

    /// An appender whose storage is held up: it has the one thread of the runtime's pool to wait for.
    struct Held {
        streams: Streams,
        conn: Conn<DuplexStream>,
        served: JoinHandle<()>,
        holds: Vec<mpsc::Sender<()>>,
        _dir: tempfile::TempDir,
    }

    impl Held {
        async fn new(max_resource: u64) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let streams =
                Streams::builder(FsStorage::open(dir.path()).unwrap()).durability(Durability::Process).build();
            let lease = open(&streams).await;
            let (ours, theirs) = duplex(PIPE);
            let served = run(Arc::clone(&streams.hub), ours, lease, terms(max_resource), V1);
            let conn = Conn::new(theirs, Role::Client, 1 << 30);
            let mut held = Self { streams, conn, served: tokio::spawn(served), holds: Vec::new(), _dir: dir };
            held.hold();
            held
        }

        /// Holds up what the storage does from here on.
        fn hold(&mut self) {
            let (hold, held) = mpsc::channel::<()>();
            tokio::task::spawn_blocking(move || held.recv());
            self.holds.push(hold);
        }

        /// Until no more is taken.
        async fn flush(&mut self) {
            let mut waits = 0;
            while waits < 1000 {
                let before = self.conn.out().len();
                tokio::select! {
                    biased;
                    flushed = self.conn.flush(Duration::from_secs(20)) => flushed.unwrap(),
                    () = std::future::ready(()) => {}
                }
                tokio::task::yield_now().await;
                waits = if self.conn.out().len() < before { 0 } else { waits + 1 };
            }
        }

        async fn send(&mut self, data: &[u8]) {
            self.conn.put(Kind::Binary, data);
            // It is taken but for what the pipe holds.
            self.conn.flush(Duration::from_secs(20)).await.expect("nobody reads");
        }

        /// Lets the storage go on; what was acknowledged in turn, the code of the close, and what is stored.
        async fn release(mut self) -> (Vec<u64>, Option<u16>, Bytes) {
            self.holds.clear();
            let mut acks = Vec::new();
            let code = loop {
                match self.conn.streamed(1 << 20).await {
                    Streamed::Text(text) => {
                        let told: serde_json::Value = serde_json::from_slice(&text).unwrap();
                        acks.extend(told.get("ack").and_then(serde_json::Value::as_u64));
                    }
                    Streamed::Other(Inbound::Close(code)) => break code,
                    other => panic!("{other:?}"),
                }
            };
            drop(self.conn);
            self.served.await.unwrap();
            let mut stored = Vec::new();
            let mut follower = self.streams.follow("a").await.unwrap();
            while let Ok(Some(chunk)) = follower.next_chunk().await {
                stored.extend_from_slice(&chunk);
            }
            (acks, code, stored.into())
        }
    }

    fn numbered(len: usize) -> Vec<u8> {
        (0u32..).flat_map(u32::to_be_bytes).take(len).collect()
    }

    fn alone() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap()
    }

    #[test]
    fn a_stream_is_read_on_while_the_storage_is_busy_but_not_without_bound() {
        for followed in [false, true] {
            alone().block_on(async {
                let mut held = Held::new(u64::MAX).await;
                let _follower = if followed { Some(held.streams.follow("a").await.unwrap()) } else { None };
                let limit = if followed { BATCH } else { AHEAD };
                let data = numbered(6 << 20);
                // So much is read on at least.
                let (first, rest) = data.split_at(limit / 4 * 3);
                held.send(first).await;
                for message in rest.chunks(BATCH) {
                    held.conn.put(Kind::Binary, message);
                }
                held.conn.put(Kind::Text, br#"{"finish":true}"#);
                held.flush().await;
                assert!(held.conn.out().len() > data.len() / 2, "as much as there is of it is taken");
                let (acks, code, stored) = held.release().await;
                assert_eq!(code, Some(1000));
                assert!(stored == data);
                assert!(acks[1] as usize + PIPE > first.len(), "what was read on is appended in one go: {acks:?}");
                let sizes = acks.windows(2).map(|acks| acks[1] - acks[0]);
                assert!(sizes.max().unwrap() as usize <= limit + PIPE, "{acks:?}");
            });
        }
    }

    #[test]
    fn who_finds_no_memory_for_it_does_not_read_on() {
        alone().block_on(async {
            let mut held = Held::new(u64::MAX).await;
            let mut all = held.streams.hub.ahead.share();
            assert!(all.grow(AHEAD_OF_ALL));
            let data = numbered(2 << 20);
            held.conn.put(Kind::Binary, &data);
            held.conn.put(Kind::Text, br#"{"finish":true}"#);
            held.flush().await;
            assert!(held.conn.out().len() > data.len() - BATCH - 3 * PIPE, "{}", held.conn.out().len());
            let (_, code, stored) = held.release().await;
            assert!(code == Some(1000) && stored == data);
        });
    }

    #[test]
    fn memory_is_given_back_once_the_storage_keeps_up() {
        alone().block_on(async {
            let mut held = Held::new(u64::MAX).await;
            let data = numbered(BATCH);
            held.send(&data[..1000]).await;
            held.flush().await;
            held.send(&data[1000..]).await;
            held.flush().await;
            let mut all = held.streams.hub.ahead.share();
            assert!(!all.grow(AHEAD_OF_ALL), "it takes some of it");
            held.holds.clear();
            while !all.grow(AHEAD_OF_ALL) {
                tokio::task::yield_now().await;
            }
            assert!(!held.served.is_finished());
            held.conn.put(Kind::Text, br#"{"finish":true}"#);
            held.flush().await;
            let (_, code, stored) = held.release().await;
            assert!(code == Some(1000) && stored == data);
        });
    }

    #[test]
    fn fault_44_a_finish_behind_what_was_read_ahead_counts_however_long_that_takes() {
        alone().block_on(async {
            let mut held = Held::new(u64::MAX).await;
            let data = numbered(3 * BATCH);
            held.send(&data[..1000]).await;
            held.send(&data[1000..]).await;
            held.conn.put(Kind::Text, br#"{"finish":true}"#);
            held.flush().await;
            held.hold();
            held.streams.hub.soft.cancel();
            held.holds.remove(0);
            // What was read ahead is now held up as well, for longer than last words are waited for.
            while held.streams.hub.stat(&Key::new("a").unwrap()).await.unwrap().is_none_or(|stat| stat.len == 0) {
                tokio::task::yield_now().await;
            }
            held.flush().await;
            tokio::time::pause();
            tokio::time::advance(2 * LAST_WORDS).await;
            tokio::time::resume();
            let (_, code, stored) = held.release().await;
            assert_eq!(code, Some(1000));
            assert!(stored == data);
        });
    }

    #[tokio::test]
    async fn an_appender_that_waits_takes_little_memory() {
        let streams = Streams::new(MemoryStorage::new(1 << 20));
        let appending = run(Arc::clone(&streams.hub), duplex(1).0, open(&streams).await, terms(1), V1);
        assert!(size_of_val(&appending) < 2700, "{}", size_of_val(&appending));
    }

    #[tokio::test]
    async fn a_sender_that_never_pauses_leaves_followers_their_turn() {
        let streams = Streams::builder(MemoryStorage::new(1 << 26)).durability(Durability::Process).build();
        let lease = open(&streams).await;
        let _follower = streams.follow("a").await.unwrap();
        let turns = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&turns);
        tokio::spawn(async move {
            loop {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        let mut frame = b"\x82\xff\0\0\0\0\0\x01\0\0\0\0\0\0".to_vec();
        frame.resize(frame.len() + 64 * 1024, b'x');
        let sent = frame.repeat(16 * 16);
        let io = tokio::io::join(&sent[..], tokio::io::sink());
        run(Arc::clone(&streams.hub), io, lease, terms(u64::MAX), V1).await;
        assert_eq!(streams.stat("a").await.unwrap().unwrap().len, 16 << 20);
        assert!(turns.load(Ordering::Relaxed) > 50, "{turns:?}");
    }

    #[test]
    fn what_is_too_much_for_the_resource_takes_nothing_with_it_that_came_before() {
        alone().block_on(async {
            let mut held = Held::new(400_000).await;
            let data = numbered(401_000);
            for message in [&data[..1000], &data[1000..101_000], &data[101_000..301_000], &data[301_000..]] {
                held.send(message).await;
            }
            let (_, code, stored) = held.release().await;
            assert_eq!(code, Some(1009));
            assert!((301_000..=400_000).contains(&stored.len()), "{}", stored.len());
            assert!(data.starts_with(&stored));
        });
    }
}
