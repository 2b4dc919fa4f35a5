//! Clause 4: what is visible is final within a life, and lives are told apart.

use std::collections::HashSet;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::tools::{Random, all, bytes, collect, key, kind, open, pattern, pause, read, soon, write};
use crate::error::ErrorKind;
use crate::state::{End, Life};
use crate::storage::{Append, Open, Storage};

/// Random ranges are exactly those bytes, live and at rest; a range that is not committed is `PastEnd`; a read that
/// was begun goes on over the end.
pub async fn clause_4_ranges_are_exact<S: Storage>(one: S, two: S) {
    const LEN: u64 = 1_000_000;
    let key = key("a");
    let mut appender = one.open(&key, Open::Create).await.unwrap();
    let life = appender.stat().life;
    for at in (0..LEN).step_by(10_000) {
        appender.append(&bytes(pattern(at, 10_000))).await.unwrap();
    }
    let mut random = Random::new();
    for live in [true, false] {
        for _ in 0..200 {
            let range = random.range(LEN);
            let got = read(&two, &key, life, range.clone()).await.unwrap();
            assert!(got == pattern(range.start, (range.end - range.start) as usize), "{range:?}, live: {live}");
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
            let chunks = collect(begun).await.unwrap();
            assert!(chunks.concat() == pattern(0, LEN as usize));
            appender = one.open(&key, Open::Continue).await.unwrap();
        }
    }
}

/// Another life is `NotFound`, before and after the resource was deleted and created again, for reads and for
/// files; a read that was begun never gives bytes of the next life.
pub async fn clause_4_another_life_is_not_found<S: Storage>(one: S, two: S) {
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
    match collect(begun).await {
        Ok(chunks) => assert_eq!(chunks.concat(), b"first"),
        Err(error) => assert!([ErrorKind::NotFound, ErrorKind::Storage].contains(&error.kind())),
    }
    // Also while it is live.
    let mut live = one.open(&key, Open::Continue).await.unwrap();
    assert_eq!(live.stat().life, second.life, "appending again is no new life");
    live.append(&bytes("!")).await.unwrap();
    assert_eq!(kind(read(&two, &key, first.life, 0..1).await), ErrorKind::NotFound);
}

/// 250 lives of one key, ended in all ways and in quick succession, are all different.
pub async fn clause_4_a_life_never_repeats<S: Storage>(one: S, two: S) {
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
                // Whether what has no byte yet exists is the storage's to say; an appender of it is not harmed then.
                if let Err(error) = two.delete(&key).await {
                    assert_eq!(error.kind(), ErrorKind::NotFound);
                }
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
                        pause().await;
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

/// While one handle appends pieces of random sizes, random ranges of what it acknowledged are read on both, and are
/// exactly those bytes.
pub async fn clause_4_ranges_are_exact_while_it_grows<S: Storage>(one: S, two: S) {
    const LEN: u64 = 2_000_000;
    let key = key("d/a");
    let mut appender = one.open(&key, Open::Create).await.unwrap();
    let life = appender.stat().life;
    let mut random = Random::new();
    appender.append(&bytes(pattern(0, 1))).await.unwrap();
    let committed = Arc::new(AtomicU64::new(1));
    let mut readers = tokio::task::JoinSet::new();
    for storage in [one.clone(), two.clone()] {
        let (key, committed) = (key.clone(), Arc::clone(&committed));
        let mut random = Random::new();
        readers.spawn(async move {
            loop {
                let len = committed.load(Ordering::Acquire);
                let range = random.range(len);
                let got = read(&storage, &key, life, range.clone()).await.unwrap();
                assert!(got == pattern(range.start, (range.end - range.start) as usize), "{range:?} of {len}");
                if len == LEN {
                    return;
                }
                tokio::task::yield_now().await;
            }
        });
    }
    let mut len = 1;
    while len < LEN {
        let sizes = [10, 1000, 100_000][random.below(3) as usize];
        let size = (1 + random.below(sizes)).min(LEN - len) as usize;
        let cut = random.below(size as u64 + 1) as usize;
        let data = Bytes::from(pattern(len, size));
        len = appender.append(&[data.slice(..cut), data.slice(cut..)]).await.unwrap();
        committed.store(len, Ordering::Release);
        tokio::task::yield_now().await;
    }
    soon("the readers", readers.join_all()).await;
    appender.finish(End::Finished).await.unwrap();
    assert!(all(&two, &key).await.0 == pattern(0, LEN as usize));
}

/// An open file, where the storage has one ([`Storage::file`]), begins with what is committed, live and at rest.
pub async fn clause_4_a_file_holds_what_is_committed<S: Storage>(one: S, two: S) {
    let key = key("d/a");
    let mut appender = one.open(&key, Open::Create).await.unwrap();
    appender.append(&bytes(pattern(0, 100_000))).await.unwrap();
    let life = appender.stat().life;
    let live = two.file(&key, life).await.unwrap();
    appender.append(&bytes(pattern(100_000, 100_000))).await.unwrap();
    let stat = appender.finish(End::Finished).await.unwrap();
    let at_rest = two.file(&key, life).await.unwrap();
    for file in [live, at_rest].into_iter().flatten() {
        let mut data = Vec::new();
        // On this thread: a file that can be served is one that can be read.
        file.take(stat.len).read_to_end(&mut data).unwrap();
        assert!(data == pattern(0, 200_000), "{} bytes", data.len());
    }
    let other = two.file(&key, Life::random().unwrap()).await;
    assert!(matches!(&other, Ok(None)) || kind(other) == ErrorKind::NotFound, "another life has no file");
}
