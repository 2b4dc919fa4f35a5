//! Tests of the append loop over a WebSocket and a storage that is held up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use tokio::io::{DuplexStream, duplex};
use tokio::task::JoinHandle;

use super::ahead::AHEAD;
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
    AppendLimits { times: Times::default(), max_message: 1 << 30, max_resource, until: None }
}

async fn open(streams: &Streams) -> Lease {
    let attached = streams.hub.attach(&Key::new("a").unwrap(), AttachRequest::new(Open::Create)).await.unwrap();
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
        let streams = Streams::builder(FsStorage::open(dir.path()).unwrap()).durability(Durability::Process).build();
        let lease = open(&streams).await;
        let (ours, theirs) = duplex(PIPE);
        let served = run(Arc::clone(&streams.hub), ours, lease, limits(max_resource), V1);
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
        self.conn.queue(Kind::Binary, data);
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
                held.conn.queue(Kind::Binary, message);
            }
            held.conn.queue(Kind::Text, br#"{"finish":true}"#);
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
        let mut all = held.streams.hub.read_ahead_budget.reservation();
        assert!(all.grow(READ_AHEAD));
        let data = numbered(2 << 20);
        held.conn.queue(Kind::Binary, &data);
        held.conn.queue(Kind::Text, br#"{"finish":true}"#);
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
        let mut all = held.streams.hub.read_ahead_budget.reservation();
        assert!(!all.grow(READ_AHEAD), "it takes some of it");
        held.holds.clear();
        while !all.grow(READ_AHEAD) {
            tokio::task::yield_now().await;
        }
        assert!(!held.served.is_finished());
        held.conn.queue(Kind::Text, br#"{"finish":true}"#);
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
        held.conn.queue(Kind::Text, br#"{"finish":true}"#);
        held.flush().await;
        held.hold();
        held.streams.hub.shutting_down.cancel();
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
