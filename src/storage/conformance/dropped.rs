//! Clause 6: dropping an appender means that it was lost.

use bytes::Bytes;

use super::tools::{Random, all, bytes, key, kind, open, pattern, pause, soon, write};
use crate::error::ErrorKind;
use crate::state::{End, State};
use crate::storage::{Append, Open, Storage};

/// A dropped appender leaves the resource interrupted and free, with all its bytes, whatever its state was before. A sync
/// in flight does not change that.
pub async fn clause_6_a_dropped_appender_interrupts<S: Storage>(one: S, two: S) {
    let key = key("a");
    let mut appender = one.open(&key, Open::Continue).await.unwrap();
    appender.append(&bytes("1")).await.unwrap();
    drop(appender);
    let mut appender = open(&two, &key, Open::Continue).await;
    assert_eq!(appender.stat().len, 1);
    // Interrupted from the first byte on, whatever the state was before.
    for end in [Some(End::Finished), None, Some(End::Finished)] {
        appender.append(&bytes("2")).await.unwrap();
        match end {
            Some(end) => drop(appender.finish(end).await.unwrap()),
            None => drop(appender),
        }
        let state = end.map_or(State::Interrupted, End::state);
        soon("the state", async {
            while one.stat(&key).await.unwrap().unwrap().state != state {
                pause().await;
            }
        })
        .await;
        appender = open(&one, &key, Open::Continue).await;
    }
    drop(appender);
    assert_eq!(all(&one, &key).await.0, b"1222");
    // A sync in flight doesn't keep a dropped appender alive.
    let mut appender = open(&one, &key, Open::Continue).await;
    appender.append(&bytes("3")).await.unwrap();
    let sync = appender.sync();
    drop(appender);
    let synced = sync.await;
    assert!(synced.is_ok() || [ErrorKind::Fenced, ErrorKind::Poisoned].contains(&kind(synced)));
    drop(open(&two, &key, Open::Continue).await);
    assert_eq!(two.stat(&key).await.unwrap().unwrap().state, State::Interrupted);
}

/// An appender without a byte that is dropped, or finished as interrupted, leaves the resource as it was, an absent one
/// absent. A resource that is finished without a byte is finished.
pub async fn clause_6_opening_without_appending_changes_nothing<S: Storage>(one: S, two: S) {
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
    // A resource that is finished without a byte is finished.
    let empty = write(&one, &key("empty"), "", End::Finished).await;
    assert_eq!((empty.len, empty.state), (0, State::Finished));
    assert_eq!(all(&two, &key("empty")).await.1.state, State::Finished);
}

/// Appenders are dropped and opened again on alternating handles, after appends of random sizes: no acknowledged byte is
/// lost, and the life remains the same.
pub async fn clause_6_dropping_and_reopening_loses_nothing<S: Storage>(one: S, two: S) {
    let key = key("d/a");
    let mut random = Random::new();
    let (mut len, mut life) = (0, None);
    for round in 0..30 {
        let (writes, reads) = if round % 2 == 0 { (&one, &two) } else { (&two, &one) };
        let how = [Open::Continue, Open::Takeover][random.below(2) as usize];
        let mut appender = open(writes, &key, how).await;
        let stat = appender.stat();
        assert_eq!((stat.len, stat.state), (len, State::Live), "{round}");
        assert_eq!(stat.life, *life.get_or_insert(stat.life), "{round}");
        for _ in 0..=random.below(4) {
            let size = 1 + random.below(30_000) as usize;
            len = appender.append(&bytes(pattern(len, size))).await.unwrap();
        }
        drop(appender);
        let (data, stat) = all(reads, &key).await;
        assert!(data == pattern(0, len as usize), "{round}: {} of {len} bytes", data.len());
        assert_eq!(Some(stat.life), life, "{round}");
    }
}
