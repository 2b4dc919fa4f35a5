//! Clause 5: failed and cancelled appends leave a prefix of their data.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;

use super::tools::{Random, all, bytes, key, kind, open, pattern, poll_times, read};
use crate::error::ErrorKind;
use crate::state::{End, State};
use crate::storage::{Append, Open, Storage};

/// An append that is cancelled, after any number of polls or at a random moment, leaves a prefix of its data and poisons
/// the appender. Once an open on the other handle has returned the length, it changes nothing any more.
pub async fn clause_5_a_cancelled_append_leaves_a_prefix<S: Storage>(one: S, two: S) {
    let mut random = Random::new();
    let whole = Bytes::from(pattern(0, 1_000_020));
    for round in 0..60usize {
        let key = key(&format!("{round}"));
        let mut appender = one.open(&key, Open::Continue).await.unwrap();
        if round % 2 == 0 {
            appender.append(&[whole.slice(..10)]).await.unwrap();
        }
        let before = appender.stat().len;
        let (cut, end) = (before as usize + 300_000, before as usize + 1_000_000);
        let data = [whole.slice(before as usize..cut), whole.slice(cut..end)];
        let done = {
            let append = pin!(appender.append(&data));
            if round < 40 {
                poll_times(append, 1 + round / 2).await
            } else {
                // To stop it at a random moment, not to wait for anything.
                tokio::time::timeout(Duration::from_micros(random.below(3000)), append).await.ok()
            }
        };
        let done = done.map(Result::unwrap);
        match done {
            None if round % 3 == 1 => {
                assert_eq!(kind(appender.finish(End::Sealed).await), ErrorKind::Poisoned, "{round}");
            }
            None => {
                assert_eq!(kind(appender.append(&bytes("never")).await), ErrorKind::Poisoned, "{round}");
                drop(appender);
            }
            Some(_) => drop(appender),
        }
        // A new open waits for what still runs, and returns the length.
        let mut again = open(&two, &key, Open::Continue).await;
        let len = again.stat().len;
        assert!(len >= before && len <= before + 1_000_000, "{len}");
        assert!(done.is_none_or(|done| done == len));
        tokio::task::yield_now().await;
        if let Some(stat) = two.stat(&key).await.unwrap() {
            assert_eq!(stat.len, len);
            assert!(read(&two, &key, stat.life, 0..len).await.unwrap() == whole[..len as usize], "a prefix");
        }
        if round % 3 == 0 {
            drop(again);
            continue;
        }
        assert_eq!(again.append(&[whole.slice(len as usize..len as usize + 7)]).await.unwrap(), len + 7);
        let (data, stat) = {
            again.finish(End::Finished).await.unwrap();
            all(&one, &key).await
        };
        assert!(data == whole[..len as usize + 7], "it continues where the prefix ends");
        assert_eq!(stat.state, State::Finished);
    }
}

/// No slices, empty slices, 5,000 small ones and 12 MB at once are all stored, in order.
pub async fn clause_5_slices_are_appended_in_order<S: Storage>(one: S, two: S) {
    let key = key("a");
    let mut appender = one.open(&key, Open::Continue).await.unwrap();
    let mut len = 0u64;
    // No slices; many small ones (more than one system call takes) with empty ones between; large ones.
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

/// An append that fails with `Full` stores nothing and creates no resource, and the appender stays usable.
///
/// For storages that hold at most a few hundred MiB.
pub async fn clause_5_full_stores_nothing<S: Storage>(one: S, two: S) {
    const MOST: u64 = 512 << 20;
    let key_of_all = key("d/all");
    let mut appender = one.open(&key_of_all, Open::Create).await.unwrap();
    let life = appender.stat().life;
    let mut len = 0;
    // Odd, so that there is room for a part of the first append that is refused.
    let mut size = 5_000_011;
    let piece = Bytes::from(pattern(0, size));
    // Ever smaller appends, until there is no room for a single byte.
    loop {
        match appender.append(&[piece.slice(..size / 2), piece.slice(size / 2..size)]).await {
            Ok(committed) => {
                assert_eq!(committed, len + size as u64);
                len = committed;
                assert!(len <= MOST, "the storage's cap is too large for this test");
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Full, "{size}");
                assert_eq!(appender.stat().len, len, "nothing of it was stored");
                let stat = two.stat(&key_of_all).await.unwrap();
                assert_eq!(stat.map_or(0, |stat| stat.len), len, "nothing of it was stored");
                if size == 1 {
                    break;
                }
                size /= 2;
            }
        }
    }
    assert!(len > 0);
    let other = key("d/other");
    let mut none = two.open(&other, Open::Create).await.unwrap();
    assert_eq!(kind(none.append(&bytes("x")).await), ErrorKind::Full);
    drop(none);
    drop(open(&two, &other, Open::Continue).await);
    assert_eq!(two.stat(&other).await.unwrap(), None, "no resource was created");
    assert_eq!(appender.append(&[]).await.unwrap(), len, "the appender stays usable");
    assert_eq!(appender.sync().await.unwrap(), len);
    let ended = appender.finish(End::Finished).await.unwrap();
    assert_eq!((ended.life, ended.len, ended.state), (life, len, State::Finished));
    assert!(read(&two, &key_of_all, life, 0..piece.len() as u64).await.unwrap() == piece);
    assert_eq!(read(&two, &key_of_all, life, len..len).await.unwrap(), b"");
}
