//! What [`Storage::follow`] reports.

use std::pin::pin;

use super::tools::{all, bytes, key, kind, pattern, poll_times, read, soon, write};
use crate::error::ErrorKind;
use crate::state::{End, Stat, State};
use crate::storage::stream::next;
use crate::storage::{Append, Open, StatStream, Storage};

/// A follow on the other handle reports growth and the end, and then ends; after a delete it fails.
pub async fn follow_reports_growth_and_the_end<S: Storage>(one: S, two: S) {
    let key = key("a");
    let mut appender = one.open(&key, Open::Continue).await.unwrap();
    appender.append(&bytes("1")).await.unwrap();
    let life = appender.stat().life;
    let mut stats = two.follow(&key, life, 0);
    assert_eq!(soon("a stat", next(&mut stats)).await.unwrap().unwrap().len, 1);
    appender.append(&bytes("23")).await.unwrap();
    assert_eq!(soon("a stat", next(&mut stats)).await.unwrap().unwrap().len, 3);
    appender.finish(End::Finished).await.unwrap();
    let last = soon("a stat", next(&mut stats)).await.unwrap().unwrap();
    assert_eq!((last.len, last.state), (3, State::Finished));
    assert!(soon("the end", next(&mut stats)).await.is_none());
    one.delete(&key).await.unwrap();
    let mut stats = two.follow(&key, life, 0);
    assert_eq!(kind(soon("an error", next(&mut stats)).await.unwrap()), ErrorKind::NotFound);
}

/// Awaits the next stat; panics if there is none.
async fn next_stat(stats: &mut StatStream) -> Stat {
    soon("a stat", next(stats)).await.expect("it has not ended").unwrap()
}

/// Awaits the final stat and the end of the stream.
async fn expect_end(stats: &mut StatStream, len: u64, state: State) {
    loop {
        let stat = next_stat(stats).await;
        assert!(stat.len <= len, "{stat:?}");
        if !stat.state.is_open() {
            assert_eq!((stat.len, stat.state), (len, state));
            break;
        }
    }
    assert!(soon("the end", next(stats)).await.is_none(), "the stream ends after the final stat");
}

/// A follow from the start, the middle or the end reports a greater length at once, waits if there is none, and then reports
/// the end; for live resources, and for those that have ended before.
pub async fn follow_begins_at_the_given_length<S: Storage>(one: S, two: S) {
    // All at the same time, because polling storages take their time.
    let mut ends = tokio::task::JoinSet::new();
    for (name, end) in [("finished", End::Finished), ("d/sealed", End::Sealed), ("d/interrupted", End::Interrupted)] {
        ends.spawn(follow_from_each_length(one.clone(), two.clone(), name, end));
    }
    while let Some(done) = soon("the follows", ends.join_next()).await {
        done.unwrap();
    }
    // Dropping the appender is an end as well.
    let mut appender = one.open(&key("dropped"), Open::Create).await.unwrap();
    appender.append(&bytes("1")).await.unwrap();
    let mut stats = two.follow(&key("dropped"), appender.stat().life, 0);
    assert_eq!(next_stat(&mut stats).await.len, 1);
    drop(appender);
    expect_end(&mut stats, 1, State::Interrupted).await;
}

async fn follow_from_each_length<S: Storage>(one: S, two: S, name: &str, end: End) {
    let key = key(name);
    let mut appender = one.open(&key, Open::Create).await.unwrap();
    appender.append(&bytes("0123456789")).await.unwrap();
    let life = appender.stat().life;
    let mut follows = [0, 5, 10].map(|from| two.follow(&key, life, from));
    let [start, middle, tail] = &mut follows;
    for stat in <[Stat; 2]>::from(tokio::join!(next_stat(start), next_stat(middle))) {
        assert_eq!((stat.life, stat.len, stat.state), (life, 10, State::Live), "{name}");
    }
    // Nothing to report: the length is the given one.
    assert!(poll_times(pin!(next(tail)), 5).await.is_none(), "{name}: nothing to report");
    appender.append(&bytes("more")).await.unwrap();
    for stat in <[Stat; 3]>::from(tokio::join!(next_stat(start), next_stat(middle), next_stat(tail))) {
        assert_eq!((stat.len, stat.state), (14, State::Live), "{name}");
    }
    appender.finish(end).await.unwrap();
    let state = end.state();
    tokio::join!(expect_end(start, 14, state), expect_end(middle, 14, state), expect_end(tail, 14, state));
    for from in [0, 7, 14] {
        let mut stats = two.follow(&key, life, from);
        let stat = next_stat(&mut stats).await;
        assert_eq!((stat.len, stat.state), (14, state), "{name} from {from}");
        assert!(soon("the end", next(&mut stats)).await.is_none(), "{name} from {from}");
    }
}

/// A reader that reads up to each reported length gets every byte once, from the start and from the middle, while the
/// other handle appends.
pub async fn follow_through_a_burst_reaches_every_byte<S: Storage>(one: S, two: S) {
    const LEN: u64 = 500_000;
    let key = key("d/a");
    let mut appender = one.open(&key, Open::Create).await.unwrap();
    let life = appender.stat().life;
    let mut len = appender.append(&bytes(pattern(0, 1000))).await.unwrap();
    let mut followers = tokio::task::JoinSet::new();
    for from in [0, 700] {
        let (storage, key) = (two.clone(), key.clone());
        followers.spawn(async move {
            let mut stats = storage.follow(&key, life, from);
            let mut at = from;
            loop {
                let stat = next_stat(&mut stats).await;
                assert!(stat.len >= at, "it shrank from {at} to {}", stat.len);
                assert!(stat.len > at || stat.state != State::Live, "nothing new at {at}");
                let data = read(&storage, &key, life, at..stat.len).await.unwrap();
                assert!(data == pattern(at, data.len()), "from {at}");
                at = stat.len;
                if stat.state == State::Finished {
                    assert!(soon("the end", next(&mut stats)).await.is_none());
                    return at;
                }
            }
        });
    }
    while len < LEN {
        len = appender.append(&bytes(pattern(len, 1000))).await.unwrap();
        tokio::task::yield_now().await;
    }
    appender.finish(End::Finished).await.unwrap();
    assert_eq!(soon("the followers", followers.join_all()).await, [LEN, LEN]);
}

/// A follow fails when the resource is deleted, and never reports the next life.
pub async fn follow_fails_when_the_life_is_over<S: Storage>(one: S, two: S) {
    for recreated in [false, true] {
        let key = key(&format!("d/{recreated}"));
        let mut appender = one.open(&key, Open::Create).await.unwrap();
        appender.append(&bytes("1")).await.unwrap();
        let life = appender.stat().life;
        let mut stats = two.follow(&key, life, 0);
        assert_eq!(next_stat(&mut stats).await.len, 1);
        one.delete(&key).await.unwrap();
        if recreated {
            drop(appender);
            write(&one, &key, "another", End::Finished).await;
            assert_ne!(all(&one, &key).await.1.life, life);
        }
        assert_eq!(
            kind(soon("an error", next(&mut stats)).await.expect("an error before the end")),
            ErrorKind::NotFound
        );
    }
}
