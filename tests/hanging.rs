//! A storage that hangs or panics: what it holds up is one resource, and nobody gets that before it answers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::{Answer, Frame, Raw, Server, pattern, serve, soon};
use futures_util::StreamExt;
use httpfstream::{Durability, ErrorKind, HttpFStreamLayer, Key, Result, Streams};
use httpfstream::{
    Life, Stat, State,
    storage::{Append, ByteStream, End, EntryStream, MemoryStorage, Open, Storage},
};
use tokio::sync::watch;

/// What the storage is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Call {
    Open,
    Stat,
    Read,
    Delete,
    Append,
    Sync,
    Finish,
    /// What an appender tells of itself.
    Told,
    Claim,
    List,
    /// The second entry of a list.
    Listed,
}

/// What becomes of calls that concern `bad`.
#[derive(Debug, Default)]
struct Faults {
    hang: HashSet<Call>,
    panic: HashSet<Call>,
    /// How many calls have hung.
    hanging: usize,
}

/// Memory whose calls hang until they are let go, or panic.
#[derive(Clone)]
struct Bad {
    inner: MemoryStorage,
    faults: Arc<watch::Sender<Faults>>,
}

impl Bad {
    fn hang(&self, calls: &[Call]) {
        self.faults.send_modify(|faults| faults.hang = calls.iter().copied().collect());
    }

    fn panic(&self, calls: &[Call]) {
        self.faults.send_modify(|faults| faults.panic = calls.iter().copied().collect());
    }

    fn recover(&self) {
        self.faults.send_modify(|faults| *faults = Faults::default());
    }

    async fn hanging(&self, calls: usize) {
        soon("calls that hang", self.faults.subscribe().wait_for(|faults| faults.hanging >= calls)).await.unwrap();
    }
}

fn pass_at_once(faults: &watch::Sender<Faults>, key: &Key, call: Call) {
    let panics = key.as_str() == "bad" && faults.borrow().panic.contains(&call);
    assert!(!panics, "a panic in {call:?}, as ordered");
}

async fn pass(faults: &watch::Sender<Faults>, key: &Key, call: Call) {
    pass_at_once(faults, key, call);
    if key.as_str() != "bad" {
        return;
    }
    if faults.borrow().hang.contains(&call) {
        faults.send_modify(|faults| faults.hanging += 1);
        faults.subscribe().wait_for(|faults| !faults.hang.contains(&call)).await.unwrap();
    }
}

impl Storage for Bad {
    type Appender = BadAppend;

    async fn open(&self, key: &Key, how: Open) -> Result<BadAppend> {
        pass(&self.faults, key, Call::Open).await;
        let inner = self.inner.open(key, how).await?;
        Ok(BadAppend { inner, key: key.clone(), faults: Arc::clone(&self.faults) })
    }

    async fn stat(&self, key: &Key) -> Result<Option<Stat>> {
        pass(&self.faults, key, Call::Stat).await;
        self.inner.stat(key).await
    }

    async fn read(&self, key: &Key, life: Life, range: Range<u64>) -> Result<ByteStream> {
        pass(&self.faults, key, Call::Read).await;
        self.inner.read(key, life, range).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        pass(&self.faults, key, Call::Delete).await;
        self.inner.delete(key).await
    }

    async fn file(&self, key: &Key, life: Life) -> Result<Option<File>> {
        self.inner.file(key, life).await
    }

    fn lost(&self) -> EntryStream {
        self.list("")
    }

    fn list(&self, prefix: &str) -> EntryStream {
        let bad = Key::new("bad").unwrap();
        pass_at_once(&self.faults, &bad, Call::List);
        let faults = Arc::clone(&self.faults);
        let entries = self.inner.list(prefix).enumerate().map(move |(at, entry)| {
            if at == 1 {
                pass_at_once(&faults, &bad, Call::Listed);
            }
            entry
        });
        Box::pin(entries)
    }
}

struct BadAppend {
    inner: <MemoryStorage as Storage>::Appender,
    key: Key,
    faults: Arc<watch::Sender<Faults>>,
}

impl Append for BadAppend {
    type Sync = Pin<Box<dyn Future<Output = Result<u64>> + Send>>;

    fn stat(&self) -> Stat {
        pass_at_once(&self.faults, &self.key, Call::Told);
        self.inner.stat()
    }

    fn claim(&mut self, owner: Option<httpfstream::Owner>) {
        pass_at_once(&self.faults, &self.key, Call::Claim);
        self.inner.claim(owner);
    }

    async fn append(&mut self, data: &[Bytes]) -> Result<u64> {
        pass(&self.faults, &self.key, Call::Append).await;
        self.inner.append(data).await
    }

    fn sync(&self) -> Self::Sync {
        let (sync, key, faults) = (self.inner.sync(), self.key.clone(), Arc::clone(&self.faults));
        Box::pin(async move {
            pass(&faults, &key, Call::Sync).await;
            sync.await
        })
    }

    async fn finish(self, end: End) -> Result<Stat> {
        pass(&self.faults, &self.key, Call::Finish).await;
        self.inner.finish(end).await
    }
}

async fn start(durability: Durability) -> (Server, Bad) {
    let bad = Bad { inner: MemoryStorage::new(1 << 30), faults: Arc::default() };
    let streams = Streams::builder(bad.clone())
        .storage_timeout(Duration::from_millis(100))
        .durability(durability)
        .tail_cache(0)
        .build();
    (serve(HttpFStreamLayer::from_streams(streams).plain_http(true)).await, bad)
}

/// Everything else goes on.
async fn others_are_well(server: &Server) {
    let mut appender = server.append("/good").await;
    let mut follower = server.follow("/good").await;
    let data = pattern(0, 5000);
    appender.send_frame(0x82, &data).await;
    appender.send_close(1000).await;
    assert_eq!(appender.to_end().await, (vec![], Some(1000)));
    assert!(follower.to_end().await == (data, Some(1000)));
    assert_eq!(server.request("DELETE", "/good", &[]).await.status, 204);
}

fn assert_hangs(answer: &Answer) {
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.text().contains("the storage does not answer"), "{answer:?}");
}

/// An appender, as soon as one is let in.
async fn let_in(server: &Server) -> Raw {
    soon("an appender to be let in", async {
        loop {
            let (answer, raw) = server.upgrade("/bad?verb=APPEND", &[]).await;
            match answer.status {
                101 => return raw,
                409 | 503 => {}
                status => panic!("{status}"),
            }
        }
    })
    .await
}

async fn append_and_finish(mut appender: Raw, data: &[u8]) {
    appender.send_frame(0x82, data).await;
    appender.send_close(1000).await;
    assert_eq!(appender.to_end().await, (vec![], Some(1000)));
}

#[tokio::test]
async fn fault_34_an_open_that_hangs_is_answered_and_nobody_else_is_let_in() {
    let (server, bad) = start(Durability::default()).await;
    bad.hang(&[Call::Open]);
    let (answer, _) = server.upgrade("/bad?verb=APPEND", &[]).await;
    assert_hangs(&answer);
    // The call still runs: not "somebody appends", and not a second call either.
    for _ in 0..2 {
        assert_hangs(&server.upgrade("/bad?verb=APPEND", &[]).await.0);
        assert_hangs(&server.upgrade("/bad?verb=FOLLOW", &[]).await.0);
    }
    assert_eq!(bad.faults.borrow().hanging, 1);
    others_are_well(&server).await;

    bad.recover();
    append_and_finish(let_in(&server).await, b"abc").await;
    assert_eq!(server.get("/bad").await.text(), "abc");
}

#[tokio::test]
async fn fault_34_an_append_that_hangs_ends_its_resource_only() {
    let (server, bad) = start(Durability::default()).await;
    let mut appender = server.append("/bad").await;
    let mut follower = server.follow("/bad").await;
    appender.send_frame(0x82, b"before").await;
    assert_eq!(follower.data(6).await, b"before");
    // Whoever opens it after that has to wait, too: the write may still come through.
    bad.hang(&[Call::Append, Call::Open]);
    appender.send_frame(0x82, b"hangs").await;
    let ended = appender.frame().await;
    assert!(matches!(&ended, Frame::Close(Some(1011), text) if text.contains("does not answer")), "{ended:?}");
    assert_eq!(follower.to_end().await, (vec![], Some(1011)));
    assert_hangs(&server.upgrade("/bad?verb=APPEND", &[]).await.0);
    assert_hangs(&server.upgrade("/bad?verb=FOLLOW", &[]).await.0);
    others_are_well(&server).await;

    bad.recover();
    append_and_finish(let_in(&server).await, b", after").await;
    assert_eq!(server.get("/bad").await.text(), "before, after");
}

#[tokio::test]
async fn fault_34_a_finish_that_hangs_is_no_finish_until_it_is_done() {
    let (server, bad) = start(Durability::default()).await;
    let mut appender = server.append("/bad").await;
    let mut follower = server.follow("/bad").await;
    appender.send_frame(0x82, b"all").await;
    assert_eq!(follower.data(3).await, b"all");
    bad.hang(&[Call::Finish]);
    appender.send_close(1000).await;
    assert_eq!(appender.to_end().await, (vec![], Some(1011)));
    assert_eq!(follower.to_end().await, (vec![], Some(1011)));
    assert_hangs(&server.upgrade("/bad?verb=APPEND", &[]).await.0);
    others_are_well(&server).await;

    bad.recover();
    let found = soon("the end", async {
        loop {
            let answer = server.get("/bad?verb=FOLLOW").await;
            if answer.status == 200 {
                return answer;
            }
        }
    });
    let found = found.await;
    assert_eq!((found.header("stream-state"), &*found.text()), (Some("finished"), "all"));
}

#[tokio::test]
async fn fault_34_a_sync_that_hangs_acknowledges_nothing_and_its_appender_comes_back() {
    let (server, bad) = start(Durability::Acked).await;
    let id = "an-appender-of-at-least-22-characters";
    let headers = [("Sec-WebSocket-Protocol", "httpfstream.v1"), ("Appender-Id", id)];
    let (answer, mut appender) = server.upgrade("/bad?verb=APPEND", &headers).await;
    assert_eq!(answer.status, 101);
    assert!(matches!(appender.frame().await, Frame::Text(_)));
    let mut follower = server.follow("/bad").await;
    bad.hang(&[Call::Sync]);
    appender.send_frame(0x82, b"unsynced").await;
    assert_eq!(follower.data(8).await, b"unsynced");
    // Without an acknowledgement.
    assert!(matches!(appender.frame().await, Frame::Close(Some(1011), _)));
    assert_eq!(follower.to_end().await, (vec![], Some(1011)));
    // Being told its place would be an acknowledgement.
    assert_hangs(&server.upgrade("/bad?verb=APPEND", &headers).await.0);
    others_are_well(&server).await;

    bad.recover();
    let (mut appender, told) = soon("the appender to come back", async {
        loop {
            let (answer, mut appender) = server.upgrade("/bad?verb=APPEND", &headers).await;
            if answer.status == 101 {
                let Frame::Text(told) = appender.frame().await else { panic!("no state") };
                return (appender, String::from_utf8(told).unwrap());
            }
        }
    })
    .await;
    assert!(told.contains("\"offset\":8"), "{told}");
    appender.send_frame(0x82, b", synced").await;
    assert!(matches!(appender.frame().await, Frame::Text(ack) if ack.ends_with(b"16}")));
    appender.send_close(1000).await;
    appender.to_end().await;
    assert_eq!(server.get("/bad").await.text(), "unsynced, synced");
}

#[tokio::test]
async fn fault_34_looks_and_reads_that_hang_are_answered() {
    let (server, bad) = start(Durability::default()).await;
    append_and_finish(server.append("/bad").await, b"stored").await;
    bad.hang(&[Call::Stat]);
    assert_hangs(&server.get("/bad").await);
    assert_hangs(&server.get("/bad?verb=FOLLOW").await);
    assert_hangs(&server.upgrade("/bad?verb=APPEND", &[]).await.0);
    assert_eq!(server.streams.stat("bad").await.unwrap_err().kind(), ErrorKind::Overloaded);
    others_are_well(&server).await;
    bad.recover();
    bad.hang(&[Call::Delete]);
    assert_hangs(&server.request("DELETE", "/bad", &[]).await);
    // It may still be deleted.
    assert_hangs(&server.upgrade("/bad?verb=APPEND", &[]).await.0);
    bad.recover();
    let mut appender = let_in(&server).await;
    appender.send_frame(0x82, b"anew").await;

    bad.hang(&[Call::Read]);
    let mut follower = server.follow("/bad").await;
    assert_eq!(follower.to_end().await, (vec![], Some(1011)));
    bad.hanging(1).await;
    bad.recover();
    // The appender never noticed.
    appender.send_close(1000).await;
    assert_eq!(appender.to_end().await, (vec![], Some(1000)));
    assert_eq!(server.get("/bad").await.text(), "anew");
}

#[tokio::test]
async fn fault_34_a_panic_is_an_error_of_its_resource_only() {
    let (server, bad) = start(Durability::Acked).await;
    bad.panic(&[Call::Open]);
    assert_eq!(server.upgrade("/bad?verb=APPEND", &[]).await.0.status, 500);
    bad.panic(&[Call::Told]);
    assert_eq!(server.upgrade("/bad?verb=APPEND", &[]).await.0.status, 500);
    bad.panic(&[Call::Stat]);
    assert_eq!(server.get("/bad").await.status, 500);
    bad.panic(&[Call::Claim]);
    let mut appender = let_in(&server).await;
    appender.send_frame(0x82, b"in whose name?").await;
    assert_eq!(appender.to_end().await, (vec![], Some(1011)));
    bad.recover();
    let mut written = b"w".to_vec();
    append_and_finish(let_in(&server).await, &written).await;
    bad.panic(&[Call::Delete]);
    assert_eq!(server.request("DELETE", "/bad", &[]).await.status, 500);
    bad.recover();

    for call in [Call::Append, Call::Sync, Call::Finish] {
        let mut appender = let_in(&server).await;
        let mut follower = server.follow("/bad").await;
        appender.send_frame(0x82, b"x").await;
        written.push(b'x');
        assert_eq!(follower.data(written.len()).await, written, "{call:?}");
        bad.panic(&[call]);
        match call {
            Call::Finish => appender.send_close(1000).await,
            _ => appender.send_frame(0x82, b"x").await,
        }
        assert_eq!(appender.to_end().await, (vec![], Some(1011)), "{call:?}");
        let (rest, code) = follower.to_end().await;
        assert_eq!(code, Some(1011), "{call:?}");
        written.extend(rest);
        others_are_well(&server).await;
        bad.recover();
    }
    bad.panic(&[Call::Read]);
    let mut appender = let_in(&server).await;
    assert_eq!(server.follow("/bad").await.to_end().await, (vec![], Some(1011)));
    bad.recover();
    appender.send_frame(0x82, b"y").await;
    appender.send_close(1000).await;
    assert_eq!(appender.to_end().await, (vec![], Some(1000)));
    written.push(b'y');
    assert_eq!(server.get("/bad").await.body, written);
    let stat = server.streams.stat("bad").await.unwrap().unwrap();
    assert_eq!(stat.state, State::Finished);

    // What lists ends with the error.
    append_and_finish(server.append("/good").await, b"g").await;
    for (call, before) in [(Call::List, 0), (Call::Listed, 1)] {
        bad.panic(&[call]);
        let listed: Vec<_> = server.streams.list("").collect().await;
        assert_eq!(listed.iter().map(Result::is_ok).collect::<Vec<_>>(), [vec![true; before], vec![false]].concat());
        bad.recover();
    }
    assert_eq!(server.streams.list("").count().await, 2);
}

#[tokio::test]
async fn fault_34_a_panic_while_what_is_lost_is_looked_for_is_an_error() {
    let bad = Bad { inner: MemoryStorage::new(1 << 20), faults: Arc::default() };
    bad.panic(&[Call::List]);
    let streams = Streams::builder(bad.clone()).build();
    assert!(streams.recover().await.is_ok(), "the others must not wait for that");
}
