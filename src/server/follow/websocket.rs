//! The follow loop over a WebSocket, in the original's dialect and in the resumable subprotocol (protocol sections 3
//! and 4).

use std::sync::Arc;

use http::{Response, request};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::dialect::{FollowDialect, FrameEncoder};
use super::find;
use super::group::{Connection, IdleFollower, Wakeup};
use crate::access::{Allowed, Verb};
use crate::body::OwnBody;
use crate::error::{ErrorKind, Result};
use crate::hub::{Cursor, Found, Hub, Step};
use crate::key::Key;
use crate::protocol::messages;
use crate::server::checks::{authorize, closing, expiry};
use crate::server::config::{Options, Times};
use crate::server::handshake::AcceptedUpgrade;
use crate::server::intent::Upgrade;
use crate::server::parameters::Parameters;
use crate::server::read::serve;
use crate::server::response::{describe, problem_with_stat};
use crate::state::Stat;
use crate::websocket::frame::{Kind, Role};
use crate::websocket::keepalive::{Keepalive, KeepaliveAction};
use crate::websocket::{Conn, Inbound};

pub(crate) async fn follow(
    hub: &Arc<Hub>,
    options: &Options,
    key: Key,
    upgrade: Upgrade,
    by_header: bool,
    head: &mut request::Parts,
) -> Result<Response<OwnBody>> {
    options.origins.check(head)?;
    let parameters = Parameters::of(head, Verb::Follow)?;
    let granted = AcceptedUpgrade::check(upgrade, head)?;
    let Allowed { key, left, .. } = authorize(options, Verb::Follow, key, head).await?;
    let (mut cursor, modified) = match find(hub, options, &key, parameters.wait).await? {
        Found::Open(cursor) => (cursor, None),
        // As the original: no upgrade, the data as a plain body. A browser can't read that, and over HTTP/2 a body is
        // impossible.
        Found::Closed(_, stat) if upgrade == Upgrade::Http1 && !parameters.v1 => {
            return serve(hub, &key, head, &stat, &options.content_type).await;
        }
        Found::Closed(cursor, stat) => (cursor, stat.modified),
    };
    let stat = Stat::new(cursor.life(), cursor.len(), cursor.state()).modified(modified);
    let begun = match parameters.life.is_some_and(|life| life != stat.life) {
        true => Err(ErrorKind::Life.into()),
        false => cursor.start(parameters.begin).await,
    };
    if let Err(error) = begun {
        return Ok(problem_with_stat(&error, Some(stat)));
    }
    let granted = if parameters.v1 { granted.speak_v1() } else { granted };
    let (mut response, pending) = granted.split()?;
    describe(response.headers_mut(), &stat);
    let dialect = if parameters.v1 { FollowDialect::V1 } else { FollowDialect::Original { by_header } };
    let limits = FollowLimits { times: options.times, until: left.map(|left| Instant::now() + left), dialect };
    let task_hub = Arc::clone(hub);
    hub.tasks.spawn(async move {
        if let Some(io) = pending.wait().await {
            run(task_hub, io, cursor, limits).await;
        }
    });
    Ok(response)
}

/// A follower has nothing to say, so this bounds only what is refused.
const MAX_MESSAGE: u64 = 64 * 1024;

/// What a following connection may do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FollowLimits {
    pub(crate) times: Times,
    pub(crate) until: Option<Instant>,
    pub(crate) dialect: FollowDialect,
}

/// Sends what the cursor finds until the resource ends or the follower goes.
pub(crate) async fn run<IO>(hub: Arc<Hub>, io: IO, cursor: Cursor, limits: FollowLimits)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let conn = Conn::new(io, Role::Server, MAX_MESSAGE);
    let line = Box::new(Connection { conn, encoder: FrameEncoder::new(limits.dialect) });
    let ended = tokio::select! {
        // First what it has to be told, as far as that can be done at once.
        biased;
        ended = following(line, cursor, limits) => ended,
        () = hub.aborting.cancelled() => None,
    };
    if let Some((line, code, reason)) = ended {
        line.conn.close(code, reason, closing(&hub)).await;
    }
}

/// The close code and reason, or `None` if there is nobody to tell.
async fn following<IO>(
    mut line: Box<Connection<IO>>,
    mut cursor: Cursor,
    limits: FollowLimits,
) -> Option<(Box<Connection<IO>>, u16, &'static str)>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    line.encoder.begin(&cursor, line.conn.out());
    let mut keepalive = Keepalive::new(limits.times.ping, limits.times.silence);
    let mut waiting = None;
    loop {
        let turn = match cursor.resource().filter(|_| cursor.is_idle()).cloned() {
            Some(resource) => {
                let waiting = waiting.get_or_insert_with(|| IdleFollower::new(&resource));
                let turn = waiting.wait(line, &mut cursor, &resource, limits.until, &mut keepalive).await;
                line = waiting.leave(&mut cursor)?;
                turn
            }
            None => {
                tokio::select! {
                    step = cursor.next() => Wakeup::Step(step),
                    inbound = line.conn.inbound() => Wakeup::Inbound(inbound),
                    () = expiry(limits.until) => Wakeup::Expired,
                    () = keepalive.tick() => Wakeup::Tick,
                }
            }
        };
        let step = match turn {
            Wakeup::Step(step) => Some(step),
            Wakeup::Look => None,
            Wakeup::Inbound(Inbound::Pong) => continue,
            Wakeup::Inbound(Inbound::Data { .. }) => return Some((line, 1008, "a follower can't send data")),
            Wakeup::Inbound(Inbound::Close(code)) => return Some((line, code.unwrap_or(1000), "")),
            Wakeup::Inbound(Inbound::ProtocolError { code, .. }) => return Some((line, code, "protocol error")),
            Wakeup::Inbound(Inbound::Eof { .. } | Inbound::Broken(_)) => return None,
            Wakeup::Expired => return Some((line, 4003, "no longer authorized")),
            Wakeup::Tick => match keepalive.on_tick(line.conn.activity()) {
                KeepaliveAction::GiveUp => return Some((line, 4002, "no answer to pings")),
                KeepaliveAction::Ping => {
                    line.conn.queue(Kind::Ping, b"");
                    continue;
                }
            },
        };
        let Connection { conn, encoder } = &mut *line;
        let end = match step {
            None => None,
            Some(Ok(Step::Data(pieces))) => {
                encoder.data(pieces, conn.out());
                None
            }
            Some(Ok(Step::State(state))) => {
                if let FrameEncoder::V1 = encoder {
                    messages::queue(conn.out(), &messages::state(state));
                }
                None
            }
            Some(step) => Some(encoder.end(&step, &cursor, conn.out())),
        };
        match conn.flush(limits.times.stall).await {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => return Some((line, 4002, "stalled")),
            Err(_) => return None,
        }
        if let Some((code, reason)) = end {
            return Some((line, code, reason));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::pin::Pin;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Poll};
    use std::time::Duration;

    use bytes::{Bytes, BytesMut};
    use tokio::io::{AsyncReadExt, DuplexStream, ReadBuf, duplex};
    use tokio::runtime::{Builder, Runtime};
    use tokio::task::JoinHandle;
    use tokio::time::timeout;

    use super::*;
    use crate::buffer::ByteQueue;
    use crate::hub::Found;
    use crate::key::Key;
    use crate::server::follow::dialect::encode;
    use crate::storage::MemoryStorage;
    use crate::streams::Streams;
    use crate::websocket::frame::header_len;
    use crate::websocket::frame::{Decoder, Event};
    use crate::websocket::text::Text;

    const VOICES: [FollowDialect; 3] =
        [FollowDialect::V1, FollowDialect::Original { by_header: false }, FollowDialect::Original { by_header: true }];

    #[test]
    fn what_is_little_is_framed_in_one_allocation() {
        for text in [None, Some(Text::WhileValid), Some(Text::Always), Some(Text::No)] {
            for len in [1, 125, 126, 8191] {
                let mut pieces = ByteQueue::default();
                pieces.push_shared(vec![b'x'; len].into());
                let mut frame = None;
                let counted = allocation_counter::measure(|| {
                    frame = encode(text, pieces).map(|mut pieces| pieces.take_all());
                });
                let frame = frame.unwrap();
                assert_eq!((frame.len(), frame[0].len()), (1, header_len(len) + len));
                assert_eq!(counted.count_total, 1, "{text:?}, {len}");
            }
        }
    }

    #[tokio::test]
    async fn a_follower_that_waits_takes_little_memory() {
        let streams = Streams::new(MemoryStorage::new(1 << 20));
        let _appender = streams.append("a").await.unwrap();
        let Some(Found::Open(cursor)) = streams.hub.follow(&Key::new("a").unwrap()).await.unwrap() else {
            panic!("it is at rest")
        };
        let limits = FollowLimits { times: Times::default(), until: None, dialect: FollowDialect::V1 };
        let following = run(Arc::clone(&streams.hub), tokio::io::duplex(1).0, cursor, limits);
        assert!(size_of_val(&following) < 1600, "{}", size_of_val(&following));
    }

    async fn follow<IO>(streams: &Streams, io: IO, dialect: FollowDialect) -> JoinHandle<()>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let hub = Arc::clone(&streams.hub);
        let Some(Found::Open(cursor)) = hub.follow(&Key::new("a").unwrap()).await.unwrap() else {
            panic!("it is at rest")
        };
        let limits = FollowLimits { times: Times::default(), until: None, dialect };
        tokio::spawn(run(hub, io, cursor, limits))
    }

    /// Reads frames until so many bytes of data have come, or to the close frame.
    struct Reader {
        io: DuplexStream,
        dialect: FollowDialect,
        buf: BytesMut,
        decoder: Decoder,
        got: Vec<u8>,
        closed: Option<u16>,
    }

    impl Reader {
        fn new(io: DuplexStream, dialect: FollowDialect) -> Self {
            let decoder = Decoder::new(Role::Client, 1 << 30);
            Self { io, dialect, buf: BytesMut::new(), decoder, got: Vec::new(), closed: None }
        }

        async fn upto(&mut self, len: usize) {
            while self.got.len() < len && self.closed.is_none() {
                match self.decoder.decode(&mut self.buf, false).unwrap() {
                    // What it is told beside the data is text.
                    Some(Event::Data { text: true, .. }) if self.dialect == FollowDialect::V1 => {}
                    Some(Event::Data { payload, .. }) => self.got.extend_from_slice(&payload),
                    Some(Event::Close(code)) => self.closed = code,
                    Some(_) => {}
                    None => {
                        // Less than a ping takes to come, which would wake whoever sleeps.
                        let read = timeout(Duration::from_secs(20), self.io.read_buf(&mut self.buf)).await;
                        assert!(read.expect("nothing comes").unwrap() > 0, "an end without a close");
                    }
                }
            }
        }
    }

    /// Text and other bytes, in appends of all sizes; characters are cut.
    fn appends() -> Vec<Bytes> {
        let text: Vec<u8> = "a line of text, ein Stück Text, 一段文字 🦀\n".bytes().cycle().take(900_000).collect();
        let mut appends = Vec::new();
        let mut rest = Bytes::from(text);
        for size in (1..120).chain([1000, 16 * 1024, 16 * 1024 + 1, 40_000, 300_000]).chain(1..50) {
            appends.push(rest.split_to(size));
        }
        appends.push(Bytes::from_static(b"\xff\xfe no text any more \xf0\x9f"));
        appends.extend((1..60).map(|size| rest.split_to(size * 7)));
        appends
    }

    #[tokio::test]
    async fn many_of_every_voice_are_told_the_same_wherever_they_come_in() {
        let streams = Streams::new(MemoryStorage::new(1 << 30));
        let mut appender = streams.append("a").await.unwrap();
        let (mut all, mut readers) = (Vec::new(), Vec::new());
        for (i, data) in appends().into_iter().enumerate() {
            all.extend_from_slice(&data);
            appender.append(data).await.unwrap();
            if i % 3 == 0 {
                let dialect = VOICES[readers.len() % 3];
                // Some take less at once than is sent.
                let (ours, theirs) = duplex([1 << 20, 100, 5000][readers.len() / 3 % 3]);
                follow(&streams, ours, dialect).await;
                let mut reader = Reader::new(theirs, dialect);
                readers.push(tokio::spawn(async move {
                    reader.upto(usize::MAX).await;
                    reader
                }));
            }
            if i % 5 > 0 {
                tokio::task::yield_now().await;
            }
        }
        assert!(readers.len() > 64, "more than one group");
        appender.finish().await.unwrap();
        for reader in readers {
            let reader = reader.await.unwrap();
            assert_eq!(reader.closed, Some(1000));
            assert!(reader.got == all, "{} of {} bytes, {:?}", reader.got.len(), all.len(), reader.dialect);
        }
    }

    /// Panics when it is told to.
    struct Bad(DuplexStream, Arc<AtomicBool>);

    impl AsyncRead for Bad {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Bad {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            assert!(!self.1.load(Ordering::Relaxed), "as it was told");
            Pin::new(&mut self.0).poll_write(cx, buf)
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_connection_that_panics_ends_one_follower_and_nobody_else() {
        let streams = Streams::new(MemoryStorage::new(1 << 20));
        let mut appender = streams.append("a").await.unwrap();
        let bad = Arc::<AtomicBool>::default();
        let (mut readers, mut ended) = (Vec::new(), Vec::new());
        for i in 0..5 {
            let (ours, theirs) = duplex(1 << 20);
            if i == 2 {
                ended.push(follow(&streams, Bad(ours, Arc::clone(&bad)), FollowDialect::V1).await);
            } else {
                follow(&streams, ours, FollowDialect::V1).await;
            }
            readers.push(Reader::new(theirs, FollowDialect::V1));
        }
        appender.append("one").await.unwrap();
        for reader in &mut readers {
            reader.upto(3).await;
        }
        bad.store(true, Ordering::Relaxed);
        for len in [6, 9] {
            appender.append("two").await.unwrap();
            for (i, reader) in readers.iter_mut().enumerate().filter(|(i, _)| *i != 2) {
                reader.upto(len).await;
                assert_eq!(reader.got.len(), len, "{i}");
            }
        }
        ended.pop().unwrap().await.unwrap();
        let mut rest = Vec::new();
        assert_eq!(readers[2].io.read_to_end(&mut rest).await.unwrap(), 0, "its connection is gone");
    }

    #[tokio::test]
    async fn what_is_not_the_same_for_all_is_told_at_once() {
        let streams = Streams::new(MemoryStorage::new(1 << 20));
        let mut appender = streams.append("a").await.unwrap();
        let (ours, theirs) = duplex(1 << 20);
        follow(&streams, ours, FollowDialect::Original { by_header: false }).await;
        let mut reader = Reader::new(theirs, FollowDialect::Original { by_header: false });
        for (data, upto) in [("a".as_bytes(), 1), (b"b\xf0\x9f", 2), (b"\xa6\x80", 6), (b"\xff", 7), (b"c", 8)] {
            appender.append(data).await.unwrap();
            reader.upto(upto).await;
        }
        assert_eq!(reader.got, b"ab\xf0\x9f\xa6\x80\xffc");
    }

    fn runtime(threads: usize) -> Runtime {
        let mut runtime = match threads {
            0 => Builder::new_current_thread(),
            _ => Builder::new_multi_thread(),
        };
        runtime.worker_threads(threads.max(1)).enable_all().build().unwrap()
    }

    #[test]
    fn a_runtime_that_stands_still_holds_up_nobody_in_another() {
        let (here, there) = (runtime(0), runtime(0));
        let streams = here.block_on(async { Streams::new(MemoryStorage::new(1 << 30)) });
        let mut appender = here.block_on(async { streams.append("a").await.unwrap() });
        let mut readers = Vec::new();
        for runtime in [&there, &here, &there, &here] {
            let (ours, theirs) = duplex(1 << 20);
            runtime.block_on(follow(&streams, ours, FollowDialect::V1));
            readers.push(Reader::new(theirs, FollowDialect::V1));
        }
        let mut append = async |times: std::ops::Range<usize>, readers: &mut [&mut Reader]| {
            for len in times.map(|n| n * 100_000) {
                appender.append(vec![b'x'; 100_000]).await.unwrap();
                for reader in &mut *readers {
                    reader.upto(len).await;
                    assert_eq!(reader.got.len(), len);
                }
            }
        };
        let [first, second, third, fourth] = &mut readers[..] else { panic!("there are four") };
        // All of them sit.
        there.block_on(async {
            append(1..2, &mut []).await;
            first.upto(100_000).await;
            third.upto(100_000).await;
        });
        here.block_on(append(2..10, &mut [second, fourth]));
        there.block_on(async {
            first.upto(900_000).await;
            third.upto(900_000).await;
        });
        drop(there);
        here.block_on(append(10..20, &mut [second, fourth]));
    }

    #[test]
    fn a_runtime_goes_down_with_its_followers() {
        let here = runtime(1);
        let streams = here.block_on(async { Streams::new(MemoryStorage::new(1 << 30)) });
        let mut appender = here.block_on(async { streams.append("a").await.unwrap() });
        for _ in 0..20 {
            let there = runtime(3);
            let mut ends = Vec::new();
            for _ in 0..100 {
                let (ours, theirs) = duplex(1 << 20);
                there.block_on(follow(&streams, ours, FollowDialect::V1));
                ends.push(theirs);
            }
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    here.block_on(async {
                        for size in [1, 100_000].repeat(10) {
                            appender.append(vec![b'x'; size]).await.unwrap();
                        }
                    });
                });
                drop(there);
            });
            // Nobody holds their connections any more.
            here.block_on(async {
                for end in &mut ends {
                    end.read_to_end(&mut Vec::new()).await.unwrap();
                }
            });
        }
    }

    #[tokio::test]
    async fn whoever_reads_nothing_holds_up_nobody_and_gets_all_in_the_end() {
        let streams = Streams::new(MemoryStorage::new(1 << 30));
        let mut appender = streams.append("a").await.unwrap();
        let mut readers = Vec::new();
        for i in 0..80 {
            let (ours, theirs) = duplex(if i == 7 { 1000 } else { 1 << 20 });
            follow(&streams, ours, FollowDialect::V1).await;
            readers.push(Reader::new(theirs, FollowDialect::V1));
        }
        let mut len = 0;
        for size in [10, 10_000, 100_000, 700_000, 10, 10, 200_000, 5] {
            appender.append(vec![b'x'; size]).await.unwrap();
            len += size;
            for (_, reader) in readers.iter_mut().enumerate().filter(|(i, _)| *i != 7) {
                reader.upto(len).await;
                assert_eq!(reader.got.len(), len);
            }
        }
        readers[7].upto(len).await;
        appender.append("more").await.unwrap();
        for reader in &mut readers {
            reader.upto(len + 4).await;
            assert!(reader.got.ends_with(b"xmore") && reader.got.len() == len + 4);
        }
    }
}
