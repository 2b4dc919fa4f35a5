//! Clauses 6 and 7 for storages that store [owners](Append::claim).

use bytes::Bytes;

use super::tools::{all, bytes, claimed, closed_state, collect, key, kind, open, owner, read, write};
use crate::error::ErrorKind;
use crate::state::{End, Life, State};
use crate::storage::{Append, Open, Storage};

/// A claimed resource is lost, with its owner, when its appender is dropped after an append. It continues at its end, in
/// its life.
pub async fn clause_6_a_claimed_resource_is_lost_with_its_owner<S: Storage>(one: S, two: S) {
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
        assert_eq!(closed_state(&two, &key).await, (State::Lost, owner(1)));
        assert_eq!(kind(two.open(&key, Open::Create).await), ErrorKind::Exists);
        // It continues at its end, in its life, however often it is lost and with any kind of open.
        for (at, how) in [Open::Continue, Open::Takeover, Open::Continue].into_iter().enumerate() {
            let appender = claimed(&two, &key, how, owner(1), "2").await;
            let stat = appender.stat();
            assert_eq!((stat.life, stat.len, stat.owner), (life, before + 2 + at as u64, owner(1)));
            assert_eq!(two.stat(&key).await.unwrap().unwrap().state, State::Live);
            if at == 1 {
                appender.sync().await.unwrap();
            }
            drop(appender);
            assert_eq!(closed_state(&one, &key).await, (State::Lost, owner(1)));
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

/// An appender that appends nothing leaves a lost resource lost, with its owner, whatever it claimed.
pub async fn clause_6_opening_without_appending_keeps_a_lost_resource_lost<S: Storage>(one: S, two: S) {
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
        assert_eq!(closed_state(&one, &lost).await, (State::Lost, owner(1)));
    }
    // A resource that is claimed but not appended to remains as it was.
    let mut appender = open(&one, &key("absent"), Open::Create).await;
    appender.claim(owner(1));
    drop(appender);
    drop(open(&one, &key("absent"), Open::Continue).await);
    assert_eq!(two.stat(&key("absent")).await.unwrap(), None);
    let finished = write(&one, &key("finished"), "x", End::Finished).await;
    let mut appender = open(&one, &key("finished"), Open::Continue).await;
    appender.claim(owner(1));
    drop(appender);
    assert_eq!(closed_state(&two, &key("finished")).await.0, State::Finished);
    assert_eq!(all(&two, &key("finished")).await.1.life, finished.life);
}

/// A claim takes effect with the first append, also after a takeover; a claim without an owner ends an earlier one.
pub async fn clause_6_the_owner_is_that_of_the_last_append<S: Storage>(one: S, two: S) {
    let key = key("a");
    drop(claimed(&one, &key, Open::Create, owner(1), "1").await);
    // A new owner, no owner, and another owner.
    for (claim, state) in [(owner(2), State::Lost), (None, State::Interrupted), (owner(3), State::Lost)] {
        let appender = claimed(&two, &key, Open::Continue, claim, "2").await;
        assert_eq!(appender.stat().owner, claim);
        assert_eq!(one.stat(&key).await.unwrap().unwrap().owner, claim);
        drop(appender);
        assert_eq!(closed_state(&one, &key).await, (state, claim));
    }
    // After a takeover the older appender's owner remains until the newer one appends.
    let older = claimed(&one, &key, Open::Continue, owner(4), "3").await;
    let newer = two.open(&key, Open::Takeover).await.unwrap();
    assert_eq!(newer.stat().owner, owner(4));
    drop((older, newer));
    assert_eq!(closed_state(&one, &key).await, (State::Lost, owner(4)));
    let older = claimed(&one, &key, Open::Continue, owner(4), "4").await;
    let newer = claimed(&two, &key, Open::Takeover, owner(5), "5").await;
    drop((older, newer));
    assert_eq!(closed_state(&one, &key).await, (State::Lost, owner(5)));
    let older = claimed(&one, &key, Open::Continue, owner(5), "6").await;
    let newer = claimed(&two, &key, Open::Takeover, None, "7").await;
    drop((older, newer));
    assert_eq!(closed_state(&one, &key).await, (State::Interrupted, None));
    let older = claimed(&one, &key, Open::Continue, None, "8").await;
    let newer = claimed(&two, &key, Open::Takeover, owner(6), "9").await;
    drop((older, newer));
    assert_eq!(closed_state(&one, &key).await, (State::Lost, owner(6)));
    assert_eq!(all(&two, &key).await.0, b"12223456789");
}

/// A lost resource can be ended in each way, with and without further bytes.
pub async fn clause_7_a_lost_resource_can_be_ended<S: Storage>(one: S, two: S) {
    for end in [End::Interrupted, End::Finished, End::Sealed] {
        for more in ["", "2"] {
            let key = key(&format!("{end:?}{more}"));
            let appender = claimed(&one, &key, Open::Create, owner(1), "1").await;
            let life = appender.stat().life;
            drop(appender);
            let mut appender = open(&two, &key, Open::Continue).await;
            if more.is_empty() {
                // Without an append this claim has no effect, except on a clean finish.
                appender.claim(owner(2));
            } else {
                appender.claim(owner(1));
                appender.append(&bytes(more)).await.unwrap();
            }
            let ended = appender.finish(end).await.unwrap();
            assert_eq!((ended.state, ended.len, ended.life), (end.state(), 1 + more.len() as u64, life));
            assert_eq!(closed_state(&one, &key).await.0, end.state());
            assert_eq!(all(&one, &key).await.1.life, life);
            if end == End::Interrupted {
                // The owner is still known, should it ask.
                assert_eq!(open(&one, &key, Open::Continue).await.stat().owner, owner(1));
                assert_eq!(closed_state(&one, &key).await, (State::Interrupted, owner(1)));
            }
        }
    }
}

/// The owner of a finished or sealed resource is known afterwards, so that an appender that missed the answer can ask; with
/// and without bytes, for a new resource and for one that another owner lost.
pub async fn clause_7_the_owner_is_known_after_the_end<S: Storage>(one: S, two: S) {
    for end in [End::Finished, End::Sealed] {
        for lost in [false, true] {
            for more in ["", "2"] {
                let key = key(&format!("d/{end:?}{lost}{more}"));
                if lost {
                    drop(claimed(&one, &key, Open::Create, owner(1), "1").await);
                }
                let mut appender = open(&one, &key, Open::Continue).await;
                appender.claim(owner(2));
                if !more.is_empty() {
                    appender.append(&bytes(more)).await.unwrap();
                }
                let ended = appender.finish(end).await.unwrap();
                assert_eq!((ended.state, ended.owner), (end.state(), owner(2)), "lost {lost}, {more:?}");
                assert_eq!(closed_state(&two, &key).await, (end.state(), owner(2)), "lost {lost}, {more:?}");
            }
        }
    }
}

/// [`Storage::lost`] lists the lost resources, with their owners, and nothing else.
pub async fn lost_lists_exactly_the_lost_resources<S: Storage>(one: S, two: S) {
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
        closed_state(&one, &key(name)).await;
    }
    drop(claimed(&two, &key("back"), Open::Create, owner(3), "1").await);
    let back = claimed(&two, &key("back"), Open::Continue, owner(3), "1").await;
    drop(claimed(&two, &key("ended"), Open::Create, owner(3), "1").await);
    open(&two, &key("ended"), Open::Continue).await.finish(End::Interrupted).await.unwrap();
    let mut lost = collect(two.lost()).await.unwrap();
    lost.sort_by_key(|(_, stat)| lives.iter().position(|life| *life == stat.life));
    let lost: Vec<_> = lost.iter().map(|(key, s)| (key.as_str(), s.state, s.owner, s.len)).collect();
    let expected = [("d/first", 1, 7), ("second", 2, 6), ("d/third", 2, 7)];
    assert_eq!(lost, expected.map(|(name, of, len)| (name, State::Lost, owner(of), len)));
    drop((live, back));
}
