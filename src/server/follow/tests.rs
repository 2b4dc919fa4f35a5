//! Tests of the follow loop over a WebSocket.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::dialect::{FollowDialect, SharedFraming};
use super::websocket::{FollowLimits, run};
use crate::buffer::ByteQueue;
use crate::hub::{Cursor, Found};
use crate::key::Key;
use crate::server::config::Timeouts;
use crate::storage::MemoryStorage;
use crate::streams::Streams;
use crate::websocket::frame::{Decoder, Event, Role, header_len};
use crate::websocket::text::Text;

const DIALECTS: [FollowDialect; 3] =
    [FollowDialect::V1, FollowDialect::Original { by_header: false }, FollowDialect::Original { by_header: true }];

#[test]
fn a_small_message_is_framed_in_one_allocation() {
    let text = [Text::WhileValid, Text::Always, Text::No].map(SharedFraming::Original);
    for framing in [SharedFraming::V1].into_iter().chain(text) {
        for len in [1, 125, 126, 8191] {
            let mut pieces = ByteQueue::default();
            pieces.push_shared(vec![b'x'; len].into());
            let mut frame = None;
            let counted = allocation_counter::measure(|| {
                frame = framing.encode(pieces).map(|mut pieces| pieces.take_all());
            });
            let frame = frame.unwrap();
            assert_eq!((frame.len(), frame[0].len()), (1, header_len(len) + len));
            assert_eq!(counted.count_total, 1, "{framing:?}, {len}");
        }
    }
}

#[tokio::test]
async fn an_idle_follower_takes_little_memory() {
    let streams = Streams::new(MemoryStorage::new(1 << 20));
    let _appender = streams.open_append("a").await.unwrap();
    let limits = FollowLimits { timeouts: Timeouts::default(), until: None, dialect: FollowDialect::V1 };
    let following = run(Arc::clone(&streams.hub), duplex(1).0, cursor(&streams).await, limits);
    assert!(size_of_val(&following) < 1600, "{}", size_of_val(&following));
}

async fn follow<IO>(streams: &Streams, io: IO, dialect: FollowDialect) -> JoinHandle<()>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = FollowLimits { timeouts: Timeouts::default(), until: None, dialect };
    tokio::spawn(run(Arc::clone(&streams.hub), io, cursor(streams).await, limits))
}

/// A cursor over the resource `a`, which must be open.
pub(super) async fn cursor(streams: &Streams) -> Cursor {
    match streams.hub.follow(&Key::new("a").unwrap()).await.unwrap() {
        Some(Found::Open(cursor)) => cursor,
        _ => panic!("the resource is closed"),
    }
}

/// The peer of a follow: reads frames and collects their data.
struct Reader {
    io: DuplexStream,
    dialect: FollowDialect,
    buf: BytesMut,
    decoder: Decoder,
    data: Vec<u8>,
    closed: Option<u16>,
}

impl Reader {
    fn new(io: DuplexStream, dialect: FollowDialect) -> Self {
        let decoder = Decoder::new(Role::Client, 1 << 30);
        Self { io, dialect, buf: BytesMut::new(), decoder, data: Vec::new(), closed: None }
    }

    /// Reads until this many bytes of data have arrived, or the close frame.
    async fn read_upto(&mut self, len: usize) {
        while self.data.len() < len && self.closed.is_none() {
            match self.decoder.decode(&mut self.buf, false).unwrap() {
                // Control messages.
                Some(Event::Data { text: true, .. }) if self.dialect == FollowDialect::V1 => {}
                Some(Event::Data { payload, .. }) => self.data.extend_from_slice(&payload),
                Some(Event::Close(code)) => self.closed = code,
                Some(_) => {}
                None => {
                    // Shorter than the time to the first ping, which would wake a stuck follower.
                    let read = timeout(Duration::from_secs(20), self.io.read_buf(&mut self.buf)).await;
                    assert!(read.expect("no data arrives").unwrap() > 0, "an end without a close");
                }
            }
        }
    }
}

/// Appends of all sizes, of text and of other bytes, cut inside characters too.
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
async fn followers_of_every_dialect_get_all_bytes_whenever_they_join() {
    let streams = Streams::new(MemoryStorage::new(1 << 30));
    let mut appender = streams.open_append("a").await.unwrap();
    let (mut all, mut readers) = (Vec::new(), Vec::new());
    for (i, data) in appends().into_iter().enumerate() {
        all.extend_from_slice(&data);
        appender.append(data).await.unwrap();
        if i % 3 == 0 {
            let dialect = DIALECTS[readers.len() % 3];
            // Some have a pipe smaller than an append.
            let (ours, theirs) = duplex([1 << 20, 100, 5000][readers.len() / 3 % 3]);
            follow(&streams, ours, dialect).await;
            let mut reader = Reader::new(theirs, dialect);
            readers.push(tokio::spawn(async move {
                reader.read_upto(usize::MAX).await;
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
        assert!(reader.data == all, "{} of {} bytes, {:?}", reader.data.len(), all.len(), reader.dialect);
    }
}

/// A connection whose writes panic once the flag is set.
struct Panicking(DuplexStream, Arc<AtomicBool>);

impl AsyncRead for Panicking {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Panicking {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        assert!(!self.1.load(Ordering::Relaxed), "a write panics, as the test asked for");
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
async fn a_connection_that_panics_ends_its_own_follower_only() {
    let streams = Streams::new(MemoryStorage::new(1 << 20));
    let mut appender = streams.open_append("a").await.unwrap();
    let panics = Arc::<AtomicBool>::default();
    let (mut readers, mut ended) = (Vec::new(), Vec::new());
    for i in 0..5 {
        let (ours, theirs) = duplex(1 << 20);
        if i == 2 {
            ended.push(follow(&streams, Panicking(ours, Arc::clone(&panics)), FollowDialect::V1).await);
        } else {
            follow(&streams, ours, FollowDialect::V1).await;
        }
        readers.push(Reader::new(theirs, FollowDialect::V1));
    }
    appender.append("one").await.unwrap();
    for reader in &mut readers {
        reader.read_upto(3).await;
    }
    panics.store(true, Ordering::Relaxed);
    for len in [6, 9] {
        appender.append("two").await.unwrap();
        for (i, reader) in readers.iter_mut().enumerate().filter(|(i, _)| *i != 2) {
            reader.read_upto(len).await;
            assert_eq!(reader.data.len(), len, "{i}");
        }
    }
    ended.pop().unwrap().await.unwrap();
    let mut rest = Vec::new();
    assert_eq!(readers[2].io.read_to_end(&mut rest).await.unwrap(), 0, "its connection is gone");
}

#[tokio::test]
async fn bytes_that_change_the_framing_are_sent_at_once() {
    let streams = Streams::new(MemoryStorage::new(1 << 20));
    let mut appender = streams.open_append("a").await.unwrap();
    let (ours, theirs) = duplex(1 << 20);
    follow(&streams, ours, FollowDialect::Original { by_header: false }).await;
    let mut reader = Reader::new(theirs, FollowDialect::Original { by_header: false });
    for (data, upto) in [("a".as_bytes(), 1), (b"b\xf0\x9f", 2), (b"\xa6\x80", 6), (b"\xff", 7), (b"c", 8)] {
        appender.append(data).await.unwrap();
        reader.read_upto(upto).await;
    }
    assert_eq!(reader.data, b"ab\xf0\x9f\xa6\x80\xffc");
}

fn runtime(threads: usize) -> Runtime {
    let mut runtime = match threads {
        0 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    runtime.worker_threads(threads.max(1)).enable_all().build().unwrap()
}

#[test]
fn a_runtime_that_stands_still_delays_no_follower_in_another() {
    let (here, there) = (runtime(0), runtime(0));
    let streams = here.block_on(async { Streams::new(MemoryStorage::new(1 << 30)) });
    let mut appender = here.block_on(async { streams.open_append("a").await.unwrap() });
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
                reader.read_upto(len).await;
                assert_eq!(reader.data.len(), len);
            }
        }
    };
    let [first, second, third, fourth] = &mut readers[..] else { panic!("there are four") };
    // All of them have joined a group.
    there.block_on(async {
        append(1..2, &mut []).await;
        first.read_upto(100_000).await;
        third.read_upto(100_000).await;
    });
    here.block_on(append(2..10, &mut [second, fourth]));
    there.block_on(async {
        first.read_upto(900_000).await;
        third.read_upto(900_000).await;
    });
    drop(there);
    here.block_on(append(10..20, &mut [second, fourth]));
}

#[test]
fn a_runtime_that_shuts_down_takes_its_followers_with_it() {
    let here = runtime(1);
    let streams = here.block_on(async { Streams::new(MemoryStorage::new(1 << 30)) });
    let mut appender = here.block_on(async { streams.open_append("a").await.unwrap() });
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
        // Their connections are dropped, so that these reads end.
        here.block_on(async {
            for end in &mut ends {
                end.read_to_end(&mut Vec::new()).await.unwrap();
            }
        });
    }
}

#[tokio::test]
async fn a_follower_that_reads_nothing_delays_no_other_and_gets_everything_later() {
    let streams = Streams::new(MemoryStorage::new(1 << 30));
    let mut appender = streams.open_append("a").await.unwrap();
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
            reader.read_upto(len).await;
            assert_eq!(reader.data.len(), len);
        }
    }
    readers[7].read_upto(len).await;
    appender.append("more").await.unwrap();
    for reader in &mut readers {
        reader.read_upto(len + 4).await;
        assert!(reader.data.ends_with(b"xmore") && reader.data.len() == len + 4);
    }
}
