//! Clause 7: how a resource ends, and when it can be opened again.

use super::tools::{all, bytes, key, kind, pause, poll_times, same, soon, write};
use crate::error::ErrorKind;
use crate::state::{End, State};
use crate::storage::{Append, Open, Storage};

/// A finished or interrupted resource continues at its end, in its life; a sealed one can't be opened until it is deleted.
pub async fn clause_7_ends_and_reopens<S: Storage>(one: S, two: S) {
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
    // An interrupted resource can be finished without another byte.
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

/// A finish that is dropped after any number of polls has either sealed the resource or interrupted it, as if the appender
/// had been dropped, and that doesn't change later.
pub async fn clause_7_a_cancelled_finish_ends_or_interrupts<S: Storage>(one: S, two: S) {
    for round in 0..20 {
        let key = key(&format!("{round}"));
        let mut appender = one.open(&key, Open::Continue).await.unwrap();
        appender.append(&bytes("x")).await.unwrap();
        drop(poll_times(Box::pin(appender.finish(End::Sealed)).as_mut(), round % 7).await);
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
                pause().await;
            }
        })
        .await;
        tokio::task::yield_now().await;
        drop(two.open(&key, Open::Takeover).await);
        let (data, stat) = all(&two, &key).await;
        assert_eq!((&*data, stat.state), (&b"x"[..], state), "{round}");
    }
}

/// While a finish runs, the other handle sees the resource live or ended, and nothing in between.
pub async fn clause_7_a_finish_is_atomic<S: Storage>(one: S, two: S) {
    for round in 0..20 {
        let key = key(&format!("{round}"));
        let mut appender = one.open(&key, Open::Continue).await.unwrap();
        appender.append(&bytes("x")).await.unwrap();
        let end = [End::Finished, End::Sealed][round % 2];
        let finishing = tokio::spawn(appender.finish(end));
        soon("the end", async {
            for poll in 1.. {
                let stat = two.stat(&key).await.unwrap().expect("it exists");
                assert_eq!(stat.len, 1, "{round}");
                if stat.state == end.state() {
                    return;
                }
                assert_eq!(stat.state, State::Live, "{round}");
                // As often as possible, with a pause now and then so that other tasks get to the storage.
                if poll % 100 == 0 {
                    pause().await;
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
        let ended = soon("the finish", finishing).await.unwrap().unwrap();
        assert_eq!((ended.len, ended.state), (1, end.state()), "{round}");
        same(&two.stat(&key).await.unwrap(), &Some(ended), round);
    }
}
