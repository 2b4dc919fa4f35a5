//! Tests of the append loop over a WebSocket, with a storage that is blocked.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use tokio::io::{DuplexStream, duplex};
use tokio::task::JoinHandle;

use super::read_ahead::MAX_READ_AHEAD;
use super::websocket::{AppendDialect, run};
use super::*;
use crate::hub::{AttachRequest, Attached, Durability, READ_AHEAD};
use crate::key::Key;
use crate::storage::{FsStorage, MemoryStorage, Open};
use crate::streams::Streams;
use crate::websocket::frame::{Kind, Role};
use crate::websocket::{Conn, Inbound, Streamed};

const V1: AppendDialect = AppendDialect::V1 { resumed: false };

fn limits(max_resource: u64) -> AppendLimits {
    AppendLimits { timeouts: Timeouts::default(), max_message: 1 << 30, max_resource, until: None }
}

async fn open(streams: &Streams) -> Lease {
    let attached = streams.hub.attach(&Key::new("a").unwrap(), AttachRequest::new(Open::Create)).await.unwrap();
    let Attached::Open { lease, .. } = attached else { panic!("the resource is closed") };
    lease
}

/// How many bytes the pipe between peer and server holds.
const PIPE: usize = 64 * 1024;

/// An appender whose storage is blocked, because the only thread of the runtime's blocking pool is taken.
struct BlockedAppender {
    streams: Streams,
    conn: Conn<DuplexStream>,
    served: JoinHandle<()>,
    /// Each blocks the pool until it is dropped.
    blocks: Vec<mpsc::Sender<()>>,
    _dir: tempfile::TempDir,
}

impl BlockedAppender {
    async fn new(max_resource: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let streams = Streams::builder(FsStorage::open(dir.path()).unwrap()).durability(Durability::Process).build();
        let lease = open(&streams).await;
        let (ours, theirs) = duplex(PIPE);
        let served = run(Arc::clone(&streams.hub), ours, lease, limits(max_resource), V1);
        let conn = Conn::new(theirs, Role::Client, 1 << 30);
        let mut appender = Self { streams, conn, served: tokio::spawn(served), blocks: Vec::new(), _dir: dir };
        appender.block();
        appender
    }

    /// Blocks what the storage does from here on.
    fn block(&mut self) {
        let (block, released) = mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || released.recv());
        self.blocks.push(block);
    }

    /// Sends what is queued, until the server takes no more of it.
    async fn flush(&mut self) {
        let mut idle_rounds = 0;
        while idle_rounds < 1000 {
            let before = self.conn.out().len();
            tokio::select! {
                biased;
                flushed = self.conn.flush(Duration::from_secs(20)) => flushed.unwrap(),
                () = std::future::ready(()) => {}
            }
            tokio::task::yield_now().await;
            idle_rounds = if self.conn.out().len() < before { 0 } else { idle_rounds + 1 };
        }
    }

    async fn send(&mut self, data: &[u8]) {
        self.conn.queue(Kind::Binary, data);
        // The server has read all but what the pipe holds.
        self.conn.flush(Duration::from_secs(20)).await.expect("the server reads no more");
    }

    /// Unblocks the storage. Returns the acknowledgements in turn, the close code, and what is stored.
    async fn release(mut self) -> (Vec<u64>, Option<u16>, Bytes) {
        self.blocks.clear();
        let mut acks = Vec::new();
        let code = loop {
            match self.conn.streamed(1 << 20).await {
                Streamed::Text(text) => {
                    let message: serde_json::Value = serde_json::from_slice(&text).unwrap();
                    acks.extend(message.get("ack").and_then(serde_json::Value::as_u64));
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
            stored.extend_from_slice(&chunk.bytes);
        }
        (acks, code, stored.into())
    }
}

fn numbered(len: usize) -> Vec<u8> {
    (0u32..).flat_map(u32::to_be_bytes).take(len).collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap()
}

#[test]
fn a_stream_is_read_ahead_while_the_storage_is_busy_up_to_a_bound() {
    for followed in [false, true] {
        runtime().block_on(async {
            let mut appender = BlockedAppender::new(u64::MAX).await;
            let _follower = if followed { Some(appender.streams.follow("a").await.unwrap()) } else { None };
            let limit = if followed { BATCH } else { MAX_READ_AHEAD };
            let data = numbered(6 << 20);
            // At least this much is read ahead.
            let (first, rest) = data.split_at(limit / 4 * 3);
            appender.send(first).await;
            for message in rest.chunks(BATCH) {
                appender.conn.queue(Kind::Binary, message);
            }
            appender.conn.queue(Kind::Text, br#"{"finish":true}"#);
            appender.flush().await;
            assert!(appender.conn.out().len() > data.len() / 2, "reading ahead is bounded");
            let (acks, code, stored) = appender.release().await;
            assert_eq!(code, Some(1000));
            assert!(stored == data);
            assert!(acks[1] as usize + PIPE > first.len(), "what was read ahead is appended in one go: {acks:?}");
            let sizes = acks.windows(2).map(|acks| acks[1] - acks[0]);
            assert!(sizes.max().unwrap() as usize <= limit + PIPE, "{acks:?}");
        });
    }
}

#[test]
fn nothing_is_read_ahead_without_memory_for_it() {
    runtime().block_on(async {
        let mut appender = BlockedAppender::new(u64::MAX).await;
        let mut all = appender.streams.hub.read_ahead_budget.reservation();
        assert!(all.grow(READ_AHEAD));
        let data = numbered(2 << 20);
        appender.conn.queue(Kind::Binary, &data);
        appender.conn.queue(Kind::Text, br#"{"finish":true}"#);
        appender.flush().await;
        assert!(appender.conn.out().len() > data.len() - BATCH - 3 * PIPE, "{}", appender.conn.out().len());
        let (_, code, stored) = appender.release().await;
        assert!(code == Some(1000) && stored == data);
    });
}

#[test]
fn memory_for_reading_ahead_is_released_once_the_storage_keeps_up() {
    runtime().block_on(async {
        let mut appender = BlockedAppender::new(u64::MAX).await;
        let data = numbered(BATCH);
        appender.send(&data[..1000]).await;
        appender.flush().await;
        appender.send(&data[1000..]).await;
        appender.flush().await;
        let mut all = appender.streams.hub.read_ahead_budget.reservation();
        assert!(!all.grow(READ_AHEAD), "some of it is in use");
        appender.blocks.clear();
        while !all.grow(READ_AHEAD) {
            tokio::task::yield_now().await;
        }
        assert!(!appender.served.is_finished());
        appender.conn.queue(Kind::Text, br#"{"finish":true}"#);
        appender.flush().await;
        let (_, code, stored) = appender.release().await;
        assert!(code == Some(1000) && stored == data);
    });
}

#[test]
fn fault_44_a_finish_behind_what_was_read_ahead_counts_however_long_that_takes() {
    runtime().block_on(async {
        let mut appender = BlockedAppender::new(u64::MAX).await;
        let data = numbered(3 * BATCH);
        appender.send(&data[..1000]).await;
        appender.send(&data[1000..]).await;
        appender.conn.queue(Kind::Text, br#"{"finish":true}"#);
        appender.flush().await;
        appender.block();
        appender.streams.hub.shutting_down.cancel();
        appender.blocks.remove(0);
        // What was read ahead is now blocked as well, for longer than the drain time.
        while appender.streams.hub.stat(&Key::new("a").unwrap()).await.unwrap().is_none_or(|stat| stat.len == 0) {
            tokio::task::yield_now().await;
        }
        appender.flush().await;
        tokio::time::pause();
        tokio::time::advance(2 * DRAIN_TIME).await;
        tokio::time::resume();
        let (_, code, stored) = appender.release().await;
        assert_eq!(code, Some(1000));
        assert!(stored == data);
    });
}

#[tokio::test]
async fn an_idle_appender_takes_little_memory() {
    let streams = Streams::new(MemoryStorage::new(1 << 20));
    let appending = run(Arc::clone(&streams.hub), duplex(1).0, open(&streams).await, limits(1), V1);
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
    run(Arc::clone(&streams.hub), io, lease, limits(u64::MAX), V1).await;
    assert_eq!(streams.stat("a").await.unwrap().unwrap().len, 16 << 20);
    assert!(turns.load(Ordering::Relaxed) > 50, "{turns:?}");
}

#[test]
fn a_message_too_large_for_the_resource_leaves_those_before_it_stored() {
    runtime().block_on(async {
        let mut appender = BlockedAppender::new(400_000).await;
        let data = numbered(401_000);
        for message in [&data[..1000], &data[1000..101_000], &data[101_000..301_000], &data[301_000..]] {
            appender.send(message).await;
        }
        let (_, code, stored) = appender.release().await;
        assert_eq!(code, Some(1009));
        assert!((301_000..=400_000).contains(&stored.len()), "{}", stored.len());
        assert!(data.starts_with(&stored));
    });
}
