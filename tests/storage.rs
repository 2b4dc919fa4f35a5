//! The storage contract (`httpfstream::storage`, clauses 1 to 7), on both storages of the crate.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::HashSet;
use std::path::Path;

use bytes::Bytes;
use common::{pattern, soon, tree};
use futures_util::{StreamExt, TryStreamExt};
use httpfstream::storage::{Append, End, FsStorage, Life, MemoryStorage, Open, Stat, State, Storage};
use httpfstream::{ErrorKind, Key, Owner, Result};

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

fn bytes(data: impl AsRef<[u8]>) -> [Bytes; 1] {
    [Bytes::copy_from_slice(data.as_ref())]
}

/// The kind of an error; panics on success.
fn kind<T>(result: Result<T>) -> ErrorKind {
    match result {
        Ok(_) => panic!("it should have failed"),
        Err(error) => error.kind(),
    }
}

async fn read<S: Storage>(storage: &S, key: &Key, life: Life, range: std::ops::Range<u64>) -> Result<Vec<u8>> {
    let chunks: Vec<Bytes> = storage.read(key, life, range).await?.try_collect().await?;
    Ok(chunks.concat())
}

/// All there is, and the stat that tells it.
async fn all<S: Storage>(storage: &S, key: &Key) -> (Vec<u8>, Stat) {
    let stat = storage.stat(key).await.unwrap().unwrap();
    (read(storage, key, stat.life, 0..stat.len).await.unwrap(), stat)
}

async fn write<S: Storage>(storage: &S, key: &Key, data: &str, end: End) -> Stat {
    let mut appender = open(storage, key, Open::Continue).await;
    if !data.is_empty() {
        appender.append(&bytes(data)).await.unwrap();
    }
    appender.finish(end).await.unwrap()
}

/// Opens as soon as whoever was dropped before has let go.
async fn open<S: Storage>(storage: &S, key: &Key, how: Open) -> S::Appender {
    soon("an open", async {
        loop {
            match storage.open(key, how).await {
                Err(error) if error.kind() == ErrorKind::Busy => tokio::task::yield_now().await,
                opened => return opened.unwrap(),
            }
        }
    })
    .await
}

/// One test for each storage and clause: `one` and `two` are two handles on the same store.
macro_rules! contract {
    ($($name:ident)*) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let one = super::MemoryStorage::new(1 << 30);
                super::$name(one.clone(), one).await;
            })*
        }
        mod files {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let dir = tempfile::tempdir().unwrap();
                let one = super::FsStorage::open(dir.path()).unwrap();
                super::$name(one.clone(), one).await;
                // Whatever was opened is released, and nothing waits for its first byte.
                super::soon("the releases", async {
                    while !super::tree(&dir.path().join(".httpfstream/new")).is_empty() {
                        tokio::task::yield_now().await;
                    }
                })
                .await;
            })*
        }
    };
}

contract! {
    clause_1_of_many_opens_one_succeeds
    clause_1_create_continue_and_takeover
    clause_2_a_takeover_fences
    clause_2_a_takeover_waits_for_what_is_in_flight
    clause_2_a_delete_fences
    clause_2_the_fenced_can_do_no_harm_after_the_end
    clause_3_committed_is_visible_on_every_handle
    clause_4_ranges_are_exact
    clause_4_another_life_is_not_found
    clause_4_a_life_never_repeats
    clause_5_a_cancelled_append_leaves_a_prefix
    clause_5_slices_are_appended_in_order_and_large_ones_too
    clause_6_dropped_is_interrupted
    clause_6_untouched_is_as_it_was
    clause_6_claimed_and_dropped_is_lost_with_its_owner
    clause_6_an_untouched_release_leaves_the_lost_lost
    clause_6_the_owner_is_whoever_appended_last
    clause_7_a_lost_one_ends_as_it_is_told
    lost_lists_exactly_the_lost
    clause_7_ends_and_reopens
    clause_7_a_finish_that_is_dropped_is_one_or_the_other
    follow_tells_of_growth_and_of_the_end
    list_has_the_prefix
    names_are_told_apart
}

async fn clause_1_of_many_opens_one_succeeds<S: Storage>(one: S, two: S) {
    for round in 0..30 {
        // Fresh, finished and interrupted ones.
        let key = key(&format!("d/{}", round % 3));
        for how in [Open::Continue, Open::Create] {
            let mut opens = tokio::task::JoinSet::new();
            for at in 0..16 {
                let (storage, key) = (if at % 2 == 0 { one.clone() } else { two.clone() }, key.clone());
                opens.spawn(async move { storage.open(&key, how).await });
            }
            let (mut opened, mut refused) = (Vec::new(), Vec::new());
            for open in opens.join_all().await {
                match open {
                    Ok(appender) => opened.push(appender),
                    Err(error) => refused.push(error.kind()),
                }
            }
            let exists = how == Open::Create;
            // While somebody has it, or while nobody had it before (a new one), it is busy for all others.
            assert!(
                refused.iter().all(|kind| *kind == ErrorKind::Busy || exists && *kind == ErrorKind::Exists),
                "{refused:?}"
            );
            let expected =
                usize::from(!exists || one.stat(&key).await.unwrap().is_some_and(|s| s.state == State::Live));
            assert_eq!(opened.len(), expected, "{round} {how:?}");
            for mut appender in opened {
                appender.append(&bytes("x")).await.unwrap();
                match round % 2 {
                    0 => drop(appender.finish(End::Finished).await.unwrap()),
                    _ => drop(appender),
                }
            }
        }
    }
}

async fn clause_1_create_continue_and_takeover<S: Storage>(one: S, two: S) {
    let key = key("a");
    let appender = one.open(&key, Open::Create).await.unwrap();
    assert_eq!((appender.stat().len, appender.stat().state), (0, State::Live));
    assert_eq!(kind(two.open(&key, Open::Continue).await), ErrorKind::Busy);
    assert_eq!(kind(two.open(&key, Open::Create).await), ErrorKind::Busy);
    appender.finish(End::Finished).await.unwrap();
    assert_eq!(kind(two.open(&key, Open::Create).await), ErrorKind::Exists);
    let appender = two.open(&key, Open::Takeover).await.unwrap();
    assert_eq!(appender.stat().len, 0);
    drop(appender);
    assert_eq!(two.stat(&key).await.unwrap().unwrap().state, State::Finished);
}

async fn clause_2_a_takeover_fences<S: Storage>(one: S, two: S) {
    for written in [false, true] {
        let key = key(if written { "written" } else { "untouched" });
        let mut older = one.open(&key, Open::Continue).await.unwrap();
        let mut expected = String::new();
        if written {
            older.append(&bytes("old ")).await.unwrap();
            expected += "old ";
        }
        let mut newer = two.open(&key, Open::Takeover).await.unwrap();
        assert_eq!(newer.stat().len, expected.len() as u64, "it begins where the older one ended");
        assert_eq!(kind(older.append(&bytes("never")).await), ErrorKind::Fenced);
        assert_eq!(kind(older.sync().await), ErrorKind::Fenced);
        assert_eq!(newer.append(&bytes("new")).await.unwrap(), expected.len() as u64 + 3);
        expected += "new";
        assert_eq!(kind(older.append(&bytes("never")).await), ErrorKind::Fenced);
        assert_eq!(kind(older.finish(End::Sealed).await), ErrorKind::Fenced);
        // Three in a row.
        let mut newest = one.open(&key, Open::Takeover).await.unwrap();
        drop(newer);
        assert_eq!(one.stat(&key).await.unwrap().unwrap().state, State::Live, "a dropped one ends nothing of the next");
        assert_eq!(kind(two.open(&key, Open::Continue).await), ErrorKind::Busy);
        newest.append(&bytes("est")).await.unwrap();
        expected += "est";
        assert_eq!(newest.finish(End::Finished).await.unwrap().state, State::Finished);
        let (data, stat) = all(&two, &key).await;
        assert_eq!((String::from_utf8(data).unwrap(), stat.state), (expected, State::Finished));
    }
}

async fn clause_2_a_takeover_waits_for_what_is_in_flight<S: Storage>(one: S, two: S) {
    let large = pattern(0, 4 << 20);
    for round in 0..10 {
        let key = key(&format!("{round}"));
        let mut older = one.open(&key, Open::Continue).await.unwrap();
        older.append(&bytes("x")).await.unwrap();
        let large = [Bytes::from(large.clone())];
        let appending = tokio::spawn(async move { (older.append(&large).await, older) });
        if round % 2 == 0 {
            tokio::task::yield_now().await;
        }
        let newer = two.open(&key, Open::Takeover).await.unwrap();
        let len = newer.stat().len;
        let (appended, older) = appending.await.unwrap();
        match appended {
            Ok(appended) => assert_eq!(len, appended, "it was in flight, and counts"),
            Err(error) => assert_eq!((error.kind(), len), (ErrorKind::Fenced, 1), "it came too late"),
        }
        assert_eq!(two.stat(&key).await.unwrap().unwrap().len, len);
        drop(older);
        assert_eq!(newer.finish(End::Finished).await.unwrap().len, len);
    }
}

async fn clause_2_a_delete_fences<S: Storage>(one: S, two: S) {
    let key = key("d/a");
    assert_eq!(kind(one.delete(&key).await), ErrorKind::NotFound);
    let mut older = one.open(&key, Open::Continue).await.unwrap();
    older.append(&bytes("old")).await.unwrap();
    two.delete(&key).await.unwrap();
    assert_eq!(one.stat(&key).await.unwrap(), None);
    assert_eq!(kind(older.append(&bytes("never")).await), ErrorKind::Fenced);
    assert_eq!(kind(older.sync().await), ErrorKind::Fenced);
    assert_eq!(one.stat(&key).await.unwrap(), None);
    let mut newer = two.open(&key, Open::Create).await.unwrap();
    newer.append(&bytes("new")).await.unwrap();
    assert_eq!(kind(older.append(&bytes("never")).await), ErrorKind::Fenced);
    assert_eq!(kind(older.finish(End::Finished).await), ErrorKind::Fenced);
    assert_eq!(kind(two.open(&key, Open::Continue).await), ErrorKind::Busy, "the newer one has it still");
    newer.append(&bytes("er")).await.unwrap();
    newer.finish(End::Finished).await.unwrap();
    assert_eq!(all(&one, &key).await.0, b"newer");
    // At rest, and untouched.
    one.delete(&key).await.unwrap();
    let untouched = one.open(&key, Open::Continue).await.unwrap();
    let deleted = two.delete(&key).await;
    assert!(deleted.is_ok() || kind(deleted) == ErrorKind::NotFound);
    drop(untouched);
    assert_eq!(one.stat(&key).await.unwrap(), None);
}

async fn clause_2_the_fenced_can_do_no_harm_after_the_end<S: Storage>(one: S, two: S) {
    let key = key("a");
    let mut first = one.open(&key, Open::Continue).await.unwrap();
    first.append(&bytes("1")).await.unwrap();
    let mut second = two.open(&key, Open::Takeover).await.unwrap();
    second.append(&bytes("2")).await.unwrap();
    second.finish(End::Sealed).await.unwrap();
    // The zombie comes back when all is over.
    assert_eq!(kind(first.append(&bytes("never")).await), ErrorKind::Fenced);
    drop(first);
    let (data, stat) = all(&one, &key).await;
    assert_eq!((&*data, stat.state), (&b"12"[..], State::Sealed));
}

async fn clause_3_committed_is_visible_on_every_handle<S: Storage>(one: S, two: S) {
    let key = key("d/a");
    let mut appender = one.open(&key, Open::Create).await.unwrap();
    let mut len = 0;
    for size in [1usize, 0, 5, 100, 65_536, 1, 300_000] {
        let data = pattern(len, size);
        len += size as u64;
        assert_eq!(appender.append(&bytes(&data)).await.unwrap(), len);
        assert_eq!(appender.stat().len, len);
        let stat = two.stat(&key).await.unwrap().unwrap();
        assert_eq!((stat.len, stat.state, stat.life), (len, State::Live, appender.stat().life));
        assert!(read(&two, &key, stat.life, 0..len).await.unwrap() == pattern(0, len as usize), "{len}");
        assert_eq!(appender.sync().await.unwrap(), len);
    }
    // A sync is about what is committed when it is first polled, and appends go on meanwhile.
    let sync = appender.sync();
    len = appender.append(&bytes(pattern(len, 7))).await.unwrap();
    let mut sync = std::pin::pin!(sync);
    let synced = match futures_util::poll!(&mut sync) {
        std::task::Poll::Ready(synced) => synced.unwrap(),
        std::task::Poll::Pending => {
            appender.append(&bytes(pattern(len, 9))).await.unwrap();
            let synced = sync.await.unwrap();
            len += 9;
            synced
        }
    };
    assert!(synced == len || synced == len - 9, "{synced} of {len}");
    assert!(read(&two, &key, appender.stat().life, 0..len).await.unwrap() == pattern(0, len as usize));
    let stat = appender.finish(End::Finished).await.unwrap();
    assert_eq!((stat.len, stat.state), (len, State::Finished));
    let seen = two.stat(&key).await.unwrap().unwrap();
    assert_eq!((seen.life, seen.len, seen.state), (stat.life, stat.len, stat.state));
}

/// Small and good enough: xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

async fn clause_4_ranges_are_exact<S: Storage>(one: S, two: S) {
    const LEN: u64 = 1_000_000;
    let key = key("a");
    let mut appender = one.open(&key, Open::Create).await.unwrap();
    let life = appender.stat().life;
    for at in (0..LEN).step_by(10_000) {
        appender.append(&bytes(pattern(at, 10_000))).await.unwrap();
    }
    for live in [true, false] {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for _ in 0..200 {
            let start = random.below(LEN + 1);
            let width = [1, 100, 65_536, LEN][random.below(4) as usize];
            let end = start + random.below(width.min(LEN - start) + 1);
            let got = read(&two, &key, life, start..end).await.unwrap();
            assert!(got == pattern(start, (end - start) as usize), "{start}..{end}, live: {live}");
        }
        for past in [0..LEN + 1, LEN..LEN + 1, LEN + 1..LEN + 1, LEN + 1..u64::MAX, u64::MAX..u64::MAX] {
            assert_eq!(kind(read(&two, &key, life, past.clone()).await), ErrorKind::PastEnd, "{past:?}");
        }
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = 5..4;
        assert_eq!(kind(read(&two, &key, life, reversed).await), ErrorKind::PastEnd);
        assert_eq!(read(&two, &key, life, LEN..LEN).await.unwrap(), b"");
        if live {
            // A read that was begun before goes on over the end.
            let begun = two.read(&key, life, 0..LEN).await.unwrap();
            appender.finish(End::Finished).await.unwrap();
            let chunks: Vec<Bytes> = begun.try_collect().await.unwrap();
            assert!(chunks.concat() == pattern(0, LEN as usize));
            appender = one.open(&key, Open::Continue).await.unwrap();
        }
    }
}

async fn clause_4_another_life_is_not_found<S: Storage>(one: S, two: S) {
    let key = key("a");
    let first = write(&one, &key, "first", End::Finished).await;
    let other = Life::random().unwrap();
    assert_eq!(kind(read(&two, &key, other, 0..0).await), ErrorKind::NotFound);
    assert_eq!(kind(read(&two, &key, other, 0..5).await), ErrorKind::NotFound);
    let begun = two.read(&key, first.life, 0..5).await.unwrap();
    one.delete(&key).await.unwrap();
    assert_eq!(kind(read(&two, &key, first.life, 0..0).await), ErrorKind::NotFound);
    let second = write(&one, &key, "second", End::Finished).await;
    assert_ne!(first.life, second.life);
    assert_eq!(kind(read(&two, &key, first.life, 0..5).await), ErrorKind::NotFound);
    assert_eq!(
        kind(two.file(&key, first.life).await.map(|f| f.ok_or(ErrorKind::NotFound)).and_then(|f| Ok(f?))),
        ErrorKind::NotFound
    );
    // What was begun in the first life gives that or an error, and never the other's bytes.
    match begun.try_collect::<Vec<Bytes>>().await {
        Ok(chunks) => assert_eq!(chunks.concat(), b"first"),
        Err(error) => assert!([ErrorKind::NotFound, ErrorKind::Storage].contains(&error.kind())),
    }
    // Also while it is live.
    let mut live = one.open(&key, Open::Continue).await.unwrap();
    assert_eq!(live.stat().life, second.life, "appending again is no new life");
    live.append(&bytes("!")).await.unwrap();
    assert_eq!(kind(read(&two, &key, first.life, 0..1).await), ErrorKind::NotFound);
}

async fn clause_4_a_life_never_repeats<S: Storage>(one: S, two: S) {
    let key = key("d/a");
    let mut lives = HashSet::new();
    for round in 0..250 {
        let mut appender = open(&one, &key, Open::Create).await;
        let life = appender.stat().life;
        // Without a byte it takes no sync, so that these follow each other within one tick of the clock.
        if round >= 100 {
            appender.append(&bytes("x")).await.unwrap();
        }
        // Deleted while live, while it is lost, and at rest.
        match round % 3 {
            0 | 1 if round < 100 => {
                two.delete(&key).await.unwrap();
                drop(appender);
            }
            0 => {
                two.delete(&key).await.unwrap();
                drop(appender);
            }
            1 => {
                drop(appender);
                soon("a delete", async {
                    while let Err(error) = two.delete(&key).await {
                        assert_eq!(error.kind(), ErrorKind::Busy);
                    }
                })
                .await;
            }
            _ => {
                assert_eq!(appender.finish(End::Finished).await.unwrap().life, life);
                assert_eq!(two.stat(&key).await.unwrap().unwrap().life, life);
                two.delete(&key).await.unwrap();
            }
        }
        assert!(lives.insert(life), "{life} again, after {round} lives");
    }
}

async fn clause_5_a_cancelled_append_leaves_a_prefix<S: Storage>(one: S, two: S) {
    for round in 0..40usize {
        let key = key(&format!("{round}"));
        let mut appender = one.open(&key, Open::Continue).await.unwrap();
        if round % 2 == 0 {
            appender.append(&bytes(pattern(0, 10))).await.unwrap();
        }
        let before = appender.stat().len;
        let data = [Bytes::from(pattern(before, 300_000)), Bytes::from(pattern(before + 300_000, 700_000))];
        let done = {
            let mut append = std::pin::pin!(appender.append(&data));
            let mut done = None;
            for _ in 0..=round % 4 {
                if let std::task::Poll::Ready(appended) = futures_util::poll!(&mut append) {
                    done = Some(appended.unwrap());
                    break;
                }
                tokio::task::yield_now().await;
            }
            done
        };
        if done.is_none() {
            assert_eq!(kind(appender.append(&bytes("never")).await), ErrorKind::Poisoned, "{round}");
        }
        drop(appender);
        // A new open waits for whatever still runs, and tells the length.
        let again = open(&two, &key, Open::Continue).await;
        let len = again.stat().len;
        assert!(len >= before && len <= before + 1_000_000, "{len}");
        assert!(done.is_none_or(|done| done == len));
        if let Some(stat) = two.stat(&key).await.unwrap() {
            assert_eq!(stat.len, len);
            assert!(read(&two, &key, stat.life, 0..len).await.unwrap() == pattern(0, len as usize), "a prefix");
        }
        drop(again);
    }
}

async fn clause_5_slices_are_appended_in_order_and_large_ones_too<S: Storage>(one: S, two: S) {
    let key = key("a");
    let mut appender = one.open(&key, Open::Continue).await.unwrap();
    let mut len = 0u64;
    // Nothing, many small ones (more than one system call takes), empty ones between, and large ones.
    let mut add = Vec::new();
    assert_eq!(appender.append(&[]).await.unwrap(), 0);
    assert_eq!(appender.append(&[Bytes::new(), Bytes::new()]).await.unwrap(), 0);
    for at in 0..5000usize {
        add.push(Bytes::from(pattern(len, at % 7)));
        len += at as u64 % 7;
    }
    assert_eq!(appender.append(&add).await.unwrap(), len);
    let add: Vec<Bytes> = (0..4).map(|at| Bytes::from(pattern(len + at * 3_000_000, 3_000_000))).collect();
    len += 12_000_000;
    assert_eq!(appender.append(&add).await.unwrap(), len);
    let stat = appender.finish(End::Finished).await.unwrap();
    assert_eq!(stat.len, len);
    assert!(all(&two, &key).await.0 == pattern(0, len as usize));
}

async fn clause_6_dropped_is_interrupted<S: Storage>(one: S, two: S) {
    let key = key("a");
    let mut appender = one.open(&key, Open::Continue).await.unwrap();
    appender.append(&bytes("1")).await.unwrap();
    drop(appender);
    let mut appender = open(&two, &key, Open::Continue).await;
    assert_eq!(appender.stat().len, 1);
    // Interrupted, whatever it was before, and from the first byte on.
    for end in [Some(End::Finished), None, Some(End::Finished)] {
        appender.append(&bytes("2")).await.unwrap();
        match end {
            Some(end) => drop(appender.finish(end).await.unwrap()),
            None => drop(appender),
        }
        let state = end.map_or(State::Interrupted, End::state);
        soon("the state", async {
            while one.stat(&key).await.unwrap().unwrap().state != state {
                tokio::task::yield_now().await;
            }
        })
        .await;
        appender = open(&one, &key, Open::Continue).await;
    }
    drop(appender);
    assert_eq!(all(&one, &key).await.0, b"1222");
    // A sync under way doesn't hold a dropped one.
    let mut appender = open(&one, &key, Open::Continue).await;
    appender.append(&bytes("3")).await.unwrap();
    let sync = appender.sync();
    drop(appender);
    let synced = sync.await;
    assert!(synced.is_ok() || [ErrorKind::Fenced, ErrorKind::Poisoned].contains(&kind(synced)));
    drop(open(&two, &key, Open::Continue).await);
    assert_eq!(two.stat(&key).await.unwrap().unwrap().state, State::Interrupted);
}

async fn clause_6_untouched_is_as_it_was<S: Storage>(one: S, two: S) {
    let absent = key("d/absent");
    for round in 0..6 {
        let mut appender = open(&one, &absent, if round % 2 == 0 { Open::Create } else { Open::Continue }).await;
        match round / 2 {
            0 => drop(appender),
            1 => drop(appender.finish(End::Interrupted).await.unwrap()),
            _ => {
                assert_eq!(appender.append(&[Bytes::new()]).await.unwrap(), 0);
                appender.sync().await.unwrap();
                drop(appender);
            }
        }
        drop(open(&two, &absent, Open::Continue).await);
        assert_eq!(two.stat(&absent).await.unwrap(), None, "{round}");
    }
    for (name, end) in [("finished", End::Finished), ("interrupted", End::Interrupted)] {
        let key = key(name);
        let before = write(&one, &key, "x", end).await;
        for how in [Open::Continue, Open::Takeover, Open::Continue] {
            let appender = open(&one, &key, how).await;
            assert_eq!((appender.stat().len, appender.stat().state), (1, State::Live));
            drop(appender);
            let appender = open(&two, &key, how).await;
            appender.finish(End::Interrupted).await.unwrap();
            let after = two.stat(&key).await.unwrap().unwrap();
            assert_eq!((after.life, after.len, after.state), (before.life, 1, end.state()), "{name}");
        }
    }
    // Finished without a byte is finished nevertheless.
    let empty = write(&one, &key("empty"), "", End::Finished).await;
    assert_eq!((empty.len, empty.state), (0, State::Finished));
    assert_eq!(all(&two, &key("empty")).await.1.state, State::Finished);
}

fn owner(of: u8) -> Option<Owner> {
    Some(Owner::from_bytes([of; 32]))
}

/// Appends as this owner; the appender.
async fn claimed<S: Storage>(storage: &S, key: &Key, how: Open, owner: Option<Owner>, data: &str) -> S::Appender {
    let mut appender = open(storage, key, how).await;
    appender.claim(owner);
    appender.append(&bytes(data)).await.unwrap();
    appender
}

/// The state and the owner, once nobody appends any more.
async fn left<S: Storage>(storage: &S, key: &Key) -> (State, Option<Owner>) {
    soon("a release", async {
        loop {
            let stat = storage.stat(key).await.unwrap().unwrap();
            if stat.state != State::Live {
                return (stat.state, stat.owner);
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

async fn clause_6_claimed_and_dropped_is_lost_with_its_owner<S: Storage>(one: S, two: S) {
    // New, and after each end.
    for end in [None, Some(End::Finished), Some(End::Interrupted)] {
        let key = key(&format!("d/{end:?}"));
        let before = match end {
            Some(end) => write(&one, &key, "before ", end).await.len,
            None => 0,
        };
        let mut appender = open(&one, &key, Open::Continue).await;
        appender.claim(owner(1));
        assert_eq!(appender.stat().owner, None, "a claim takes effect with the first append");
        appender.append(&bytes("1")).await.unwrap();
        assert_eq!(appender.stat().owner, owner(1));
        let life = appender.stat().life;
        drop(appender);
        assert_eq!(left(&two, &key).await, (State::Lost, owner(1)));
        assert_eq!(kind(two.open(&key, Open::Create).await), ErrorKind::Exists);
        // It goes on in its life, at its end, however often it is lost, and with any kind of open.
        for (at, how) in [Open::Continue, Open::Takeover, Open::Continue].into_iter().enumerate() {
            let appender = claimed(&two, &key, how, owner(1), "2").await;
            let stat = appender.stat();
            assert_eq!((stat.life, stat.len, stat.owner), (life, before + 2 + at as u64, owner(1)));
            assert_eq!(two.stat(&key).await.unwrap().unwrap().state, State::Live);
            if at == 1 {
                appender.sync().await.unwrap();
            }
            drop(appender);
            assert_eq!(left(&one, &key).await, (State::Lost, owner(1)));
        }
        let (data, stat) = all(&one, &key).await;
        assert_eq!(data, [&b"before "[..before as usize], b"1222"].concat());
        assert_eq!(stat.life, life);
        assert_eq!(kind(read(&one, &key, Life::random().unwrap(), 0..1).await), ErrorKind::NotFound);
        one.delete(&key).await.unwrap();
        assert_eq!(two.stat(&key).await.unwrap(), None);
        let fresh = claimed(&two, &key, Open::Create, None, "x").await;
        assert_ne!(fresh.stat().life, life);
    }
}

async fn clause_6_an_untouched_release_leaves_the_lost_lost<S: Storage>(one: S, two: S) {
    let lost = key("a");
    drop(claimed(&one, &lost, Open::Create, owner(1), "1").await);
    for claim in [owner(1), owner(2), None] {
        let mut appender = open(&two, &lost, Open::Continue).await;
        appender.claim(claim);
        assert_eq!((appender.stat().len, appender.stat().owner), (1, owner(1)));
        appender.append(&[Bytes::new()]).await.unwrap();
        assert_eq!(appender.sync().await.unwrap(), 1);
        assert_eq!(appender.stat().owner, owner(1), "nothing was appended");
        drop(appender);
        assert_eq!(left(&one, &lost).await, (State::Lost, owner(1)));
    }
    // Claimed, but never appended to: as it was.
    let mut appender = open(&one, &key("absent"), Open::Create).await;
    appender.claim(owner(1));
    drop(appender);
    drop(open(&one, &key("absent"), Open::Continue).await);
    assert_eq!(two.stat(&key("absent")).await.unwrap(), None);
    let finished = write(&one, &key("finished"), "x", End::Finished).await;
    let mut appender = open(&one, &key("finished"), Open::Continue).await;
    appender.claim(owner(1));
    drop(appender);
    assert_eq!(left(&two, &key("finished")).await.0, State::Finished);
    assert_eq!(all(&two, &key("finished")).await.1.life, finished.life);
}

async fn clause_6_the_owner_is_whoever_appended_last<S: Storage>(one: S, two: S) {
    let key = key("a");
    drop(claimed(&one, &key, Open::Create, owner(1), "1").await);
    // By the next one, by none, and again by one.
    for (claim, state) in [(owner(2), State::Lost), (None, State::Interrupted), (owner(3), State::Lost)] {
        let appender = claimed(&two, &key, Open::Continue, claim, "2").await;
        assert_eq!(appender.stat().owner, claim);
        assert_eq!(one.stat(&key).await.unwrap().unwrap().owner, claim);
        drop(appender);
        assert_eq!(left(&one, &key).await, (state, claim));
    }
    // Taken over: it is the older one's until the newer one appends.
    let older = claimed(&one, &key, Open::Continue, owner(4), "3").await;
    let newer = two.open(&key, Open::Takeover).await.unwrap();
    assert_eq!(newer.stat().owner, owner(4));
    drop((older, newer));
    assert_eq!(left(&one, &key).await, (State::Lost, owner(4)));
    let older = claimed(&one, &key, Open::Continue, owner(4), "4").await;
    let newer = claimed(&two, &key, Open::Takeover, owner(5), "5").await;
    drop((older, newer));
    assert_eq!(left(&one, &key).await, (State::Lost, owner(5)));
    let older = claimed(&one, &key, Open::Continue, owner(5), "6").await;
    let newer = claimed(&two, &key, Open::Takeover, None, "7").await;
    drop((older, newer));
    assert_eq!(left(&one, &key).await, (State::Interrupted, None));
    let older = claimed(&one, &key, Open::Continue, None, "8").await;
    let newer = claimed(&two, &key, Open::Takeover, owner(6), "9").await;
    drop((older, newer));
    assert_eq!(left(&one, &key).await, (State::Lost, owner(6)));
    assert_eq!(all(&two, &key).await.0, b"12223456789");
}

async fn clause_7_a_lost_one_ends_as_it_is_told<S: Storage>(one: S, two: S) {
    for end in [End::Interrupted, End::Finished, End::Sealed] {
        for more in ["", "2"] {
            let key = key(&format!("{end:?}{more}"));
            let appender = claimed(&one, &key, Open::Create, owner(1), "1").await;
            let life = appender.stat().life;
            drop(appender);
            let mut appender = open(&two, &key, Open::Continue).await;
            if more.is_empty() {
                // What is not appended claims nothing.
                appender.claim(owner(2));
            } else {
                appender.claim(owner(1));
                appender.append(&bytes(more)).await.unwrap();
            }
            let ended = appender.finish(end).await.unwrap();
            assert_eq!((ended.state, ended.len, ended.life), (end.state(), 1 + more.len() as u64, life));
            assert_eq!(left(&one, &key).await.0, end.state());
            assert_eq!(all(&one, &key).await.1.life, life);
            if end == End::Interrupted {
                // It is known who it was, should that one come back after all.
                assert_eq!(open(&one, &key, Open::Continue).await.stat().owner, owner(1));
                assert_eq!(left(&one, &key).await, (State::Interrupted, owner(1)));
            }
        }
    }
}

async fn lost_lists_exactly_the_lost<S: Storage>(one: S, two: S) {
    for (name, end) in [("finished", End::Finished), ("interrupted", End::Interrupted), ("sealed", End::Sealed)] {
        write(&one, &key(name), name, end).await;
    }
    drop(claimed(&one, &key("dropped"), Open::Create, None, "1").await);
    let live = claimed(&one, &key("d/live"), Open::Create, owner(1), "1").await;
    let mut lives = Vec::new();
    for (name, of) in [("d/first", 1), ("second", 2), ("d/third", 2)] {
        let appender = claimed(&one, &key(name), Open::Create, owner(of), name).await;
        lives.push(appender.stat().life);
        drop(appender);
        left(&one, &key(name)).await;
    }
    drop(claimed(&two, &key("back"), Open::Create, owner(3), "1").await);
    let back = claimed(&two, &key("back"), Open::Continue, owner(3), "1").await;
    drop(claimed(&two, &key("ended"), Open::Create, owner(3), "1").await);
    open(&two, &key("ended"), Open::Continue).await.finish(End::Interrupted).await.unwrap();
    let mut lost: Vec<(Key, Stat)> = two.lost().try_collect().await.unwrap();
    lost.sort_by_key(|(_, stat)| lives.iter().position(|life| *life == stat.life));
    let lost: Vec<_> = lost.iter().map(|(key, s)| (key.as_str(), s.state, s.owner, s.len)).collect();
    let expected = [("d/first", 1, 7), ("second", 2, 6), ("d/third", 2, 7)];
    assert_eq!(lost, expected.map(|(name, of, len)| (name, State::Lost, owner(of), len)));
    drop((live, back));
}

async fn clause_7_ends_and_reopens<S: Storage>(one: S, two: S) {
    let key = key("d/a");
    let mut expected = String::new();
    let mut life = None;
    for (data, end) in [("1", End::Interrupted), ("2", End::Finished), ("", End::Finished), ("3", End::Interrupted)] {
        let stat = write(&one, &key, data, end).await;
        expected += data;
        assert_eq!((stat.len, stat.state), (expected.len() as u64, end.state()));
        assert_eq!(*life.get_or_insert(stat.life), stat.life);
        let (got, seen) = all(&two, &key).await;
        assert_eq!((got, seen.state, seen.life), (expected.clone().into_bytes(), end.state(), stat.life));
    }
    // An interrupted one may be declared finished without another byte.
    assert_eq!(write(&two, &key, "", End::Finished).await.state, State::Finished);
    assert_eq!(two.stat(&key).await.unwrap().unwrap().state, State::Finished);
    assert_eq!(write(&two, &key, "", End::Sealed).await.state, State::Sealed);
    for how in [Open::Continue, Open::Takeover] {
        assert_eq!(kind(one.open(&key, how).await), ErrorKind::Sealed);
    }
    assert_eq!(kind(one.open(&key, Open::Create).await), ErrorKind::Exists);
    assert_eq!(all(&one, &key).await.1.state, State::Sealed);
    assert_eq!(all(&one, &key).await.0, b"123");
    two.delete(&key).await.unwrap();
    assert_eq!(write(&one, &key, "x", End::Sealed).await.len, 1, "deleted, and free again");
}

async fn clause_7_a_finish_that_is_dropped_is_one_or_the_other<S: Storage>(one: S, two: S) {
    for round in 0..20 {
        let key = key(&format!("{round}"));
        let mut appender = one.open(&key, Open::Continue).await.unwrap();
        appender.append(&bytes("x")).await.unwrap();
        {
            let mut finish = Box::pin(appender.finish(End::Sealed));
            if round % 4 > 0 {
                let _ = futures_util::poll!(&mut finish);
            }
        }
        // It is sealed, or it is as if it had been dropped; and it doesn't change from one to the other later on.
        let state = soon("an end", async {
            loop {
                match two.open(&key, Open::Continue).await {
                    Ok(appender) => {
                        drop(appender);
                        break State::Interrupted;
                    }
                    Err(error) if error.kind() == ErrorKind::Sealed => break State::Sealed,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Busy),
                }
            }
        })
        .await;
        drop(two.open(&key, Open::Takeover).await);
        let (data, stat) = all(&two, &key).await;
        assert_eq!((&*data, stat.state), (&b"x"[..], state), "{round}");
    }
}

async fn follow_tells_of_growth_and_of_the_end<S: Storage>(one: S, two: S) {
    let key = key("a");
    let mut appender = one.open(&key, Open::Continue).await.unwrap();
    appender.append(&bytes("1")).await.unwrap();
    let life = appender.stat().life;
    let mut stats = two.follow(&key, life, 0);
    assert_eq!(soon("a stat", stats.next()).await.unwrap().unwrap().len, 1);
    appender.append(&bytes("23")).await.unwrap();
    assert_eq!(soon("a stat", stats.next()).await.unwrap().unwrap().len, 3);
    appender.finish(End::Finished).await.unwrap();
    let last = soon("a stat", stats.next()).await.unwrap().unwrap();
    assert_eq!((last.len, last.state), (3, State::Finished));
    assert!(soon("the end", stats.next()).await.is_none());
    one.delete(&key).await.unwrap();
    let mut stats = two.follow(&key, life, 0);
    assert_eq!(kind(soon("an error", stats.next()).await.unwrap()), ErrorKind::NotFound);
}

async fn list_has_the_prefix<S: Storage>(one: S, two: S) {
    for name in ["a", "ab", "b/a", "b/c/d", "bc", "ü/ö"] {
        write(&one, &key(name), name, End::Finished).await;
    }
    write(&one, &key("lost"), "x", End::Interrupted).await;
    let mut live = one.open(&key("b/live"), Open::Continue).await.unwrap();
    live.append(&bytes("x")).await.unwrap();
    let names = async |prefix: &str| {
        let mut found: Vec<String> = two.list(prefix).map_ok(|(key, _)| key.to_string()).try_collect().await.unwrap();
        found.sort();
        found.join(" ")
    };
    assert_eq!(names("").await, "a ab b/a b/c/d b/live bc lost ü/ö");
    assert_eq!(names("a").await, "a ab");
    assert_eq!(names("b").await, "b/a b/c/d b/live bc");
    assert_eq!(names("b/").await, "b/a b/c/d b/live");
    assert_eq!(names("b/c").await, "b/c/d");
    assert_eq!(names("b/c/d").await, "b/c/d");
    assert_eq!(names("b/c/d/").await, "");
    assert_eq!(names("ü").await, "ü/ö");
    assert_eq!(names("nothing").await, "");
    let stats: Vec<(Key, Stat)> = two.list("").try_collect().await.unwrap();
    for (key, stat) in stats {
        let expected = match key.as_str() {
            "lost" => State::Interrupted,
            "b/live" => State::Live,
            _ => State::Finished,
        };
        assert_eq!(stat.state, expected, "{key}");
        assert_eq!(Some(stat.life), two.stat(&key).await.unwrap().map(|stat| stat.life), "{key}");
        assert_eq!(stat.len, if stat.state == State::Finished { key.as_str().len() as u64 } else { 1 }, "{key}");
    }
    live.finish(End::Finished).await.unwrap();
}

async fn names_are_told_apart<S: Storage>(one: S, two: S) {
    let names =
        ["a", "A", "a b", " a", "a%20b", "a%2Fb", "..a", "a..", "ä", "a\u{308}", "é/è", "-", "~", "*", "?", "$x"];
    for (at, name) in names.into_iter().enumerate() {
        write(&one, &key(name), &at.to_string(), End::Finished).await;
    }
    for (at, name) in names.into_iter().enumerate() {
        assert_eq!(all(&two, &key(name)).await.0, at.to_string().as_bytes(), "{name}");
    }
}

#[tokio::test]
async fn memory_is_full_at_its_cap_and_goes_on() {
    let storage = MemoryStorage::new(10);
    let (a, b) = (key("a"), key("b"));
    let mut appender = storage.open(&a, Open::Continue).await.unwrap();
    appender.append(&bytes("12345678")).await.unwrap();
    assert_eq!(kind(appender.append(&bytes("never")).await), ErrorKind::Full);
    assert_eq!(kind(appender.append(&[Bytes::from("9"), Bytes::from("10")]).await), ErrorKind::Full);
    assert_eq!((storage.used(), appender.stat().len), (8, 8), "nothing of it was stored");
    let mut other = storage.open(&b, Open::Continue).await.unwrap();
    assert_eq!(kind(other.append(&bytes("xyz")).await), ErrorKind::Full);
    drop(other);
    assert_eq!(storage.stat(&b).await.unwrap(), None, "and nothing was made");
    assert_eq!(appender.append(&bytes("90")).await.unwrap(), 10, "the appender goes on");
    assert_eq!(kind(appender.append(&bytes("!")).await), ErrorKind::Full);
    assert_eq!(appender.append(&[]).await.unwrap(), 10);
    appender.finish(End::Finished).await.unwrap();
    assert_eq!(all(&storage, &a).await.0, b"1234567890");
    storage.delete(&a).await.unwrap();
    assert_eq!(storage.used(), 0);
    write(&storage, &b, "0123456789", End::Finished).await;
}

/// The names of the records, without those of resources that are being appended to.
fn records(root: &Path) -> Vec<String> {
    tree(&root.join(".httpfstream/records"))
}

#[tokio::test]
async fn files_plainly_finished_have_no_bookkeeping() {
    let dir = tempfile::tempdir().unwrap();
    let storage = FsStorage::open(dir.path()).unwrap();
    for round in 0..3 {
        write(&storage, &key("d/a"), "x", End::Finished).await;
        assert_eq!(records(dir.path()), [""; 0], "{round}");
    }
    write(&storage, &key("d/empty"), "", End::Finished).await;
    assert_eq!(records(dir.path()), [""; 0]);
    write(&storage, &key("lost"), "x", End::Interrupted).await;
    assert_eq!(records(dir.path()).len(), 1);
    write(&storage, &key("lost"), "y", End::Finished).await;
    assert_eq!(records(dir.path()), [""; 0], "it is gone once the resource is finished after all");
    assert_eq!(tree(dir.path()), ["d/a", "d/empty", "lost"]);
    assert_eq!(std::fs::read(dir.path().join("lost")).unwrap(), b"xy");
}

#[tokio::test]
async fn files_of_appenders_that_were_lost_are_interrupted_after_a_reopen_and_whole() {
    for leaked in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (fresh, again, untouched) = (key("d/fresh"), key("again"), key("untouched"));
        let life = {
            let storage = FsStorage::open(dir.path()).unwrap();
            write(&storage, &again, "before ", End::Finished).await;
            let mut appenders = Vec::new();
            for name in [&fresh, &again] {
                let mut appender = storage.open(name, Open::Continue).await.unwrap();
                appender.append(&bytes(pattern(0, 200_000))).await.unwrap();
                appender.append(&bytes("the last bytes")).await.unwrap();
                appenders.push(appender);
            }
            let life = appenders[0].stat().life;
            appenders.push(storage.open(&untouched, Open::Continue).await.unwrap());
            if leaked {
                // As a killed process leaves it: nothing is told to anybody. The lock has to go by other means, so the
                // folder is copied.
                let copy = tempfile::tempdir().unwrap();
                copy_tree(dir.path(), copy.path());
                std::mem::forget(appenders);
                std::mem::forget(storage);
                // The copy has other inodes, and so isn't what the records are about: that is told apart as well.
                let storage = FsStorage::open(copy.path()).unwrap();
                let stat = storage.stat(&fresh).await.unwrap().unwrap();
                assert_ne!(stat.life, life, "another file is another life");
                assert_eq!(records(copy.path()), [""; 0]);
                continue;
            }
            life
        };
        let storage = soon("the lock", async {
            loop {
                match FsStorage::open(dir.path()) {
                    Ok(storage) => break storage,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Busy),
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
        for (name, prefix) in [(&fresh, ""), (&again, "before ")] {
            let (data, stat) = all(&storage, name).await;
            let expected = [prefix.as_bytes(), &pattern(0, 200_000), b"the last bytes"].concat();
            assert!(data == expected, "{name}: {} bytes", data.len());
            assert_eq!(stat.state, State::Interrupted, "{name}");
        }
        assert_eq!(storage.stat(&fresh).await.unwrap().unwrap().life, life, "nothing was lost: the same life");
        assert_eq!(storage.stat(&untouched).await.unwrap(), None);
        assert_eq!(tree(dir.path()), ["again", "d/fresh"]);
        // They go on at their end.
        assert_eq!(write(&storage, &fresh, "!", End::Finished).await.len, 200_015);
        assert_eq!(records(dir.path()).len(), 1);
    }
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Runs `files_child` in a process of its own, which dies by itself in the middle of everything.
#[tokio::test]
async fn files_of_a_process_that_died_are_interrupted_and_whole() {
    let dir = tempfile::tempdir().unwrap();
    for round in 1..=3u64 {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["files_child", "--exact", "--nocapture", "--include-ignored"])
            .env("STORAGE_ROOT", dir.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!output.status.success() && text.contains("all is written"), "{text}");
        // Twice: what recovery did is not done again.
        for _ in 0..2 {
            let storage = FsStorage::open(dir.path()).unwrap();
            let (data, stat) = all(&storage, &key("d/a")).await;
            assert!(data == pattern(0, (round * 100_000) as usize), "{} bytes", data.len());
            assert_eq!((stat.state, stat.len), (State::Interrupted, round * 100_000));
            let (data, stat) = all(&storage, &key("finished")).await;
            assert_eq!((&*data, stat.state), (&b"whole"[..], State::Finished), "opened again, and not appended to");
            assert_eq!(storage.stat(&key("untouched")).await.unwrap(), None);
            assert_eq!(tree(&dir.path().join(".httpfstream/new")), [""; 0]);
        }
    }
}

#[tokio::test]
#[ignore = "a part of files_of_a_process_that_died_are_interrupted_and_whole, run by it"]
async fn files_child() {
    let Some(root) = std::env::var_os("STORAGE_ROOT") else { return };
    let storage = FsStorage::open(root).unwrap();
    if storage.stat(&key("finished")).await.unwrap().is_none() {
        write(&storage, &key("finished"), "whole", End::Finished).await;
    }
    let _again = storage.open(&key("finished"), Open::Continue).await.unwrap();
    let _untouched = storage.open(&key("untouched"), Open::Continue).await.unwrap();
    let mut appender = storage.open(&key("d/a"), Open::Continue).await.unwrap();
    let from = appender.stat().len;
    appender.append(&bytes(pattern(from, 60_000))).await.unwrap();
    appender.append(&bytes(pattern(from + 60_000, 40_000))).await.unwrap();
    println!("all is written");
    std::process::abort();
}

#[tokio::test]
async fn files_interrupted_and_sealed_survive_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let mut stats = Vec::new();
    let ends = [("finished", End::Finished), ("d/interrupted", End::Interrupted), ("d/sealed", End::Sealed)];
    {
        let storage = FsStorage::open(dir.path()).unwrap();
        for (name, end) in ends {
            stats.push(write(&storage, &key(name), name, end).await);
        }
    }
    for _ in 0..2 {
        let storage = FsStorage::open(dir.path()).unwrap();
        for ((name, end), before) in ends.into_iter().zip(&stats) {
            let (data, stat) = all(&storage, &key(name)).await;
            assert_eq!((&*data, stat.state, stat.life), (name.as_bytes(), end.state(), before.life), "{name}");
        }
        assert_eq!(kind(storage.open(&key("d/sealed"), Open::Continue).await), ErrorKind::Sealed);
        assert_eq!(storage.list("").try_collect::<Vec<_>>().await.unwrap().len(), 3);
    }
}

#[tokio::test]
async fn files_dropped_in_are_finished_resources() {
    let dir = tempfile::tempdir().unwrap();
    let storage = FsStorage::open(dir.path()).unwrap();
    std::fs::create_dir_all(dir.path().join("d/e")).unwrap();
    std::fs::write(dir.path().join("d/e/dropped.txt"), "dropped in").unwrap();
    std::fs::write(dir.path().join("d/e/empty"), "").unwrap();
    let key = key("d/e/dropped.txt");
    let (data, stat) = all(&storage, &key).await;
    assert_eq!((&*data, stat.state), (&b"dropped in"[..], State::Finished));
    assert_eq!(storage.stat(&key).await.unwrap().unwrap().life, stat.life, "the same each time");
    assert_eq!(kind(storage.open(&key, Open::Create).await), ErrorKind::Exists);
    let after = write(&storage, &key, ", and appended to", End::Finished).await;
    assert_eq!(after.life, stat.life);
    assert_eq!(std::fs::read(dir.path().join("d/e/dropped.txt")).unwrap(), b"dropped in, and appended to");
    // Another file under the name is another life, also where the first was interrupted.
    write(&storage, &key, "!", End::Interrupted).await;
    std::fs::write(dir.path().join("d/other"), "other").unwrap();
    std::fs::rename(dir.path().join("d/other"), dir.path().join("d/e/dropped.txt")).unwrap();
    let (data, other) = all(&storage, &key).await;
    assert_eq!((&*data, other.state), (&b"other"[..], State::Finished));
    assert_ne!(other.life, stat.life);
    assert_eq!(kind(read(&storage, &key, stat.life, 0..1).await), ErrorKind::NotFound);
    write(&storage, &key, "!", End::Finished).await;
    assert_eq!(records(dir.path()), [""; 0], "the older record went with it");
}

#[tokio::test]
async fn files_deleted_leave_no_empty_folders() {
    let dir = tempfile::tempdir().unwrap();
    let storage = FsStorage::open(dir.path()).unwrap();
    for (name, end) in [("a/b/c/d", End::Finished), ("a/b/e", End::Interrupted), ("a/f", End::Sealed)] {
        write(&storage, &key(name), "x", end).await;
    }
    storage.delete(&key("a/b/c/d")).await.unwrap();
    assert!(!dir.path().join("a/b/c").exists() && dir.path().join("a/b/e").exists());
    storage.delete(&key("a/b/e")).await.unwrap();
    assert_eq!(tree(dir.path()), ["a/f"]);
    storage.delete(&key("a/f")).await.unwrap();
    assert_eq!((tree(dir.path()), records(dir.path())), (vec![], vec![]));
    assert_eq!(kind(storage.delete(&key("a/f")).await), ErrorKind::NotFound);
    assert_eq!(kind(storage.delete(&key(".httpfstream/lock")).await), ErrorKind::NotFound);
    assert!(dir.path().join(".httpfstream/lock").exists());
}

#[tokio::test]
async fn files_keep_their_bookkeeping_where_they_are_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let storage = FsStorage::builder(dir.path()).bookkeeping(".keep").open().unwrap();
    write(&storage, &key(".httpfstream/lock"), "an ordinary name", End::Interrupted).await;
    assert!(dir.path().join(".keep/lock").exists());
    for name in [".keep", ".keep/lock", "d/.keep/x"] {
        assert_eq!(kind(storage.open(&key(name), Open::Continue).await), ErrorKind::NotFound);
        assert_eq!(storage.stat(&key(name)).await.unwrap(), None);
    }
    for bad in ["", "..", "a/b", "a\0"] {
        let opened = FsStorage::builder(dir.path()).bookkeeping(bad).open();
        assert_eq!(opened.unwrap_err().kind(), ErrorKind::BadPath, "{bad:?}");
    }
}
