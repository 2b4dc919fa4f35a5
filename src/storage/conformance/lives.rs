//! Clause 4: visible bytes are final within a life, and lives are distinct.

use std::collections::HashSet;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::tools::{Random, all, bytes, collect, key, kind, open, pattern, pause, read, soon, write};
use crate::error::ErrorKind;
use crate::state::{End, Life};
use crate::storage::{Append, Open, Storage};

/// Random ranges return exactly their bytes, during appends and after the end. A range that is not committed fails with
/// `PastEnd`. A read continues when the resource ends meanwhile.
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
            // A read that began before the end continues after it.
            let begun = two.read(&key, life, 0..LEN).await.unwrap();
            appender.finish(End::Finished).await.unwrap();
            let chunks = collect(begun).await.unwrap();
            assert!(chunks.concat() == pattern(0, LEN as usize));
            appender = one.open(&key, Open::Continue).await.unwrap();
        }
    }
}

/// Another life fails with `NotFound`, before and after the resource is deleted and created again, for reads and for files.
/// A read that has begun never returns bytes of the next life.
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
    // The read that began in the first life returns its bytes or an error, never the second life's bytes.
    match collect(begun).await {
        Ok(chunks) => assert_eq!(chunks.concat(), b"first"),
        Err(error) => assert!([ErrorKind::NotFound, ErrorKind::Storage].contains(&error.kind())),
    }
    // Also while there is an appender.
    let mut live = one.open(&key, Open::Continue).await.unwrap();
    assert_eq!(live.stat().life, second.life, "appending again begins no new life");
    live.append(&bytes("!")).await.unwrap();
    assert_eq!(kind(read(&two, &key, first.life, 0..1).await), ErrorKind::NotFound);
}

/// 250 lives of one key, ended in different ways and in quick succession, are all distinct.
pub async fn clause_4_a_life_never_repeats<S: Storage>(one: S, two: S) {
    let key = key("d/a");
    let mut lives = HashSet::new();
    for round in 0..250 {
        let mut appender = open(&one, &key, Open::Create).await;
        let life = appender.stat().life;
        // Lives without a byte need no sync, so that many of them fit into one tick of the clock.
        if round >= 100 {
            appender.append(&bytes("x")).await.unwrap();
        }
        // Deleted with an appender, right after a drop, and after a finish.
        match round % 3 {
            0 | 1 if round < 100 => {
                // The storage decides whether a resource without a byte exists; if not, its appender is not affected.
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

/// While one handle appends pieces of random sizes, random ranges of the acknowledged bytes are read on both handles, and
/// return exactly their bytes.
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

/// A file of [`Storage::file`], if there is one, begins with the committed bytes, during appends and after the end.
pub async fn clause_4_a_file_holds_the_committed_bytes<S: Storage>(one: S, two: S) {
    let key = key("d/a");
    let mut appender = one.open(&key, Open::Create).await.unwrap();
    appender.append(&bytes(pattern(0, 100_000))).await.unwrap();
    let life = appender.stat().life;
    let live = two.file(&key, life).await.unwrap();
    appender.append(&bytes(pattern(100_000, 100_000))).await.unwrap();
    let stat = appender.finish(End::Finished).await.unwrap();
    let closed = two.file(&key, life).await.unwrap();
    for file in [live, closed].into_iter().flatten() {
        let mut data = Vec::new();
        // Blocking here is fine in a test.
        file.take(stat.len).read_to_end(&mut data).unwrap();
        assert!(data == pattern(0, 200_000), "{} bytes", data.len());
    }
    let other = two.file(&key, Life::random().unwrap()).await;
    assert!(matches!(&other, Ok(None)) || kind(other) == ErrorKind::NotFound, "another life has no file");
}
