//! Clause 2: after a takeover or a delete the older appender has no effect any more.

use bytes::Bytes;

use super::tools::{all, bytes, key, kind, open, pattern, pause, same, soon};
use crate::error::ErrorKind;
use crate::state::{End, State};
use crate::storage::{Append, Open, Storage};

/// After a takeover from the other handle every call of the older appender fails with `Fenced`, and neither its calls nor
/// its drop affect the newer one; with and without a byte, and three takeovers in a row.
pub async fn clause_2_a_takeover_fences<S: Storage>(one: S, two: S) {
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
        assert_eq!(
            one.stat(&key).await.unwrap().unwrap().state,
            State::Live,
            "dropping a fenced appender doesn't end the next one"
        );
        assert_eq!(kind(two.open(&key, Open::Continue).await), ErrorKind::Busy);
        newest.append(&bytes("est")).await.unwrap();
        expected += "est";
        assert_eq!(newest.finish(End::Finished).await.unwrap().state, State::Finished);
        let (data, stat) = all(&two, &key).await;
        assert_eq!((String::from_utf8(data).unwrap(), stat.state), (expected, State::Finished));
    }
}

/// When a takeover returns, an append of the older appender in flight is either committed in full and acknowledged, or
/// nothing of it is stored. Tried with 4 MiB.
pub async fn clause_2_a_takeover_waits_for_calls_in_flight<S: Storage>(one: S, two: S) {
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
        let (appended, older) = soon("the append", appending).await.unwrap();
        match appended {
            Ok(appended) => assert_eq!(len, appended, "committed before the takeover"),
            Err(error) => assert_eq!((error.kind(), len), (ErrorKind::Fenced, 1), "fenced by the takeover"),
        }
        assert_eq!(two.stat(&key).await.unwrap().unwrap().len, len);
        drop(older);
        assert_eq!(newer.finish(End::Finished).await.unwrap().len, len);
    }
}

/// After a delete from the other handle the appender is fenced, and does not affect the resource that is created next.
pub async fn clause_2_a_delete_fences<S: Storage>(one: S, two: S) {
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
    assert_eq!(kind(two.open(&key, Open::Continue).await), ErrorKind::Busy, "the newer one still has it");
    newer.append(&bytes("er")).await.unwrap();
    newer.finish(End::Finished).await.unwrap();
    assert_eq!(all(&one, &key).await.0, b"newer");
    // Without an appender, and with one that has not appended.
    one.delete(&key).await.unwrap();
    let untouched = one.open(&key, Open::Continue).await.unwrap();
    let deleted = two.delete(&key).await;
    assert!(deleted.is_ok() || kind(deleted) == ErrorKind::NotFound);
    drop(untouched);
    assert_eq!(one.stat(&key).await.unwrap(), None);
}

/// A fenced appender that is used after the newer one has sealed the resource changes nothing.
pub async fn clause_2_a_fenced_appender_cannot_change_a_sealed_resource<S: Storage>(one: S, two: S) {
    let key = key("a");
    let mut first = one.open(&key, Open::Continue).await.unwrap();
    first.append(&bytes("1")).await.unwrap();
    let mut second = two.open(&key, Open::Takeover).await.unwrap();
    second.append(&bytes("2")).await.unwrap();
    second.finish(End::Sealed).await.unwrap();
    // The fenced appender is used after the end.
    assert_eq!(kind(first.append(&bytes("never")).await), ErrorKind::Fenced);
    drop(first);
    let (data, stat) = all(&one, &key).await;
    assert_eq!((&*data, stat.state), (&b"12"[..], State::Sealed));
}

/// What fenced an appender.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fence {
    /// A takeover, whose appender still has the resource.
    Taken,
    /// A takeover, whose appender then ended the resource.
    Ended(End),
    /// A delete.
    Deleted,
    /// A delete, after which the resource was created anew.
    Recreated,
}

/// A call on a fenced appender.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Call {
    Append(&'static str),
    Sync,
    Finish(End),
    Drop,
}

/// Every call on a fenced appender (append, sync, each finish), whatever fenced it, fails with `Fenced`. Neither the calls
/// nor the drop have an effect that either handle sees.
pub async fn clause_2_calls_of_a_fenced_appender_have_no_effect<S: Storage>(one: S, two: S) {
    let fences = [Fence::Taken, Fence::Ended(End::Finished), Fence::Ended(End::Interrupted), Fence::Deleted];
    let calls = [Call::Append("never"), Call::Append(""), Call::Sync, Call::Drop];
    let finishes = [End::Finished, End::Sealed, End::Interrupted].map(Call::Finish);
    for fence in fences.into_iter().chain([Fence::Recreated]) {
        for call in calls.into_iter().chain(finishes) {
            let context = (fence, call);
            let key = key(&format!("d/{fence:?} {call:?}"));
            let mut older = one.open(&key, Open::Create).await.unwrap();
            older.append(&bytes("old ")).await.unwrap();
            let mut newer = match fence {
                Fence::Taken | Fence::Ended(_) => Some(two.open(&key, Open::Takeover).await.unwrap()),
                Fence::Deleted | Fence::Recreated => {
                    two.delete(&key).await.unwrap();
                    if fence == Fence::Recreated { Some(two.open(&key, Open::Create).await.unwrap()) } else { None }
                }
            };
            if let Some(newer) = &mut newer {
                newer.append(&bytes("new")).await.unwrap();
            }
            if let Fence::Ended(end) = fence {
                newer.take().unwrap().finish(end).await.unwrap();
            }
            let before = two.stat(&key).await.unwrap();
            match call {
                Call::Append(data) => {
                    assert_eq!(kind(older.append(&bytes(data)).await), ErrorKind::Fenced, "{context:?}");
                    drop(older);
                }
                Call::Sync => {
                    assert_eq!(kind(older.sync().await), ErrorKind::Fenced, "{context:?}");
                    drop(older);
                }
                Call::Finish(end) => assert_eq!(kind(older.finish(end).await), ErrorKind::Fenced, "{context:?}"),
                Call::Drop => drop(older),
            }
            same(&one.stat(&key).await.unwrap(), &before, context);
            same(&two.stat(&key).await.unwrap(), &before, context);
            if let Some(mut newer) = newer {
                assert_eq!(kind(one.open(&key, Open::Continue).await), ErrorKind::Busy, "{context:?}");
                newer.append(&bytes("er")).await.unwrap();
                newer.sync().await.unwrap();
                newer.finish(End::Finished).await.unwrap();
            }
            let expected: Option<&[u8]> = match fence {
                Fence::Taken => Some(b"old newer"),
                Fence::Ended(_) => Some(b"old new"),
                Fence::Recreated => Some(b"newer"),
                Fence::Deleted => None,
            };
            match expected {
                Some(expected) => assert_eq!(all(&one, &key).await.0, expected, "{context:?}"),
                None => {
                    let fresh = open(&one, &key, Open::Create).await;
                    assert_ne!(Some(fresh.stat().life), before.map(|stat| stat.life), "{context:?}");
                }
            }
        }
    }
}

/// Four appenders on both handles take over one resource from each other repeatedly. In the end every acknowledged append
/// is at its acknowledged offset, once, and there are no other bytes.
pub async fn clause_2_racing_takeovers_keep_exactly_the_acknowledged_bytes<S: Storage>(one: S, two: S) {
    const RECORD: usize = 16;
    let key = key("d/a");
    let mut racing = tokio::task::JoinSet::new();
    for racer in 0..4 {
        let (storage, key) = (if racer % 2 == 0 { one.clone() } else { two.clone() }, key.clone());
        racing.spawn(async move {
            let mut acknowledged = Vec::new();
            for round in 0..25 {
                let mut appender = loop {
                    match storage.open(&key, Open::Takeover).await {
                        // Another takeover is running.
                        Err(error) if error.kind() == ErrorKind::Busy => pause().await,
                        opened => break opened.unwrap(),
                    }
                };
                for at in 0..4 {
                    let record = format!("{racer:>4}{round:>6}{at:>6}");
                    match appender.append(&bytes(&record)).await {
                        Ok(end) => acknowledged.push((end, record)),
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::Fenced, "{record}");
                            break;
                        }
                    }
                    tokio::task::yield_now().await;
                }
            }
            acknowledged
        });
    }
    let mut acknowledged = soon("the race", racing.join_all()).await.concat();
    acknowledged.sort();
    drop(open(&two, &key, Open::Takeover).await);
    let (data, _) = all(&two, &key).await;
    let stored: Vec<(u64, String)> = data
        .chunks(RECORD)
        .enumerate()
        .map(|(at, record)| (((at + 1) * RECORD) as u64, String::from_utf8_lossy(record).into_owned()))
        .collect();
    assert_eq!(stored, acknowledged);
}
