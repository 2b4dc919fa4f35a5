//! Clause 1: at most one appender.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::tools::{bytes, key, kind, open, poll_times, same, soon, write};
use crate::error::ErrorKind;
use crate::state::{End, State};
use crate::storage::{Append, Open, Storage};

/// Of 16 simultaneous opens across both handles exactly one succeeds and the others fail with `Busy`, for new, finished and
/// interrupted resources. Of as many opens with [`Open::Create`] of an existing resource none succeeds.
pub async fn clause_1_of_many_opens_one_succeeds<S: Storage>(one: S, two: S) {
    for round in 0..30 {
        // New, finished and interrupted resources.
        let key = key(&format!("d/{}", round % 3));
        for how in [Open::Continue, Open::Create] {
            let mut opens = tokio::task::JoinSet::new();
            for at in 0..16 {
                let (storage, key) = (if at % 2 == 0 { one.clone() } else { two.clone() }, key.clone());
                opens.spawn(async move { storage.open(&key, how).await });
            }
            let (mut opened, mut refused) = (Vec::new(), Vec::new());
            for open in soon("the opens", opens.join_all()).await {
                match open {
                    Ok(appender) => opened.push(appender),
                    Err(error) => refused.push(error.kind()),
                }
            }
            let exists = how == Open::Create;
            // `Busy` while there is an appender; `Exists` is possible only for `Create`.
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

/// Six tasks on both handles open one resource repeatedly, append, and end in different ways: there is never a second
/// appender, and each one finds all bytes that were appended before.
pub async fn clause_1_appenders_never_overlap<S: Storage>(one: S, two: S) {
    let key = key("d/a");
    // Whether there is an appender, and the length.
    let (occupied, len) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..6 {
        let (storage, key) = (if task % 2 == 0 { one.clone() } else { two.clone() }, key.clone());
        let (occupied, len) = (Arc::clone(&occupied), Arc::clone(&len));
        tasks.spawn(async move {
            for round in 0..15 {
                let mut appender = open(&storage, &key, Open::Continue).await;
                assert!(!occupied.swap(true, Ordering::SeqCst), "two appenders at once");
                assert_eq!(appender.stat().len, len.load(Ordering::SeqCst));
                tokio::task::yield_now().await;
                len.store(appender.append(&bytes("x")).await.unwrap(), Ordering::SeqCst);
                assert!(occupied.swap(false, Ordering::SeqCst));
                match (task + round) % 3 {
                    0 => drop(appender.finish(End::Finished).await.unwrap()),
                    1 => drop(appender.finish(End::Interrupted).await.unwrap()),
                    _ => drop(appender),
                }
            }
        });
    }
    while let Some(done) = soon("the tasks", tasks.join_next()).await {
        done.unwrap();
    }
    assert_eq!(two.stat(&key).await.unwrap().map(|stat| stat.len), Some(6 * 15));
}

/// `Create` opens only an absent resource, `Continue` one without an appender, `Takeover` any; a new resource is live at
/// length zero.
pub async fn clause_1_create_continue_and_takeover<S: Storage>(one: S, two: S) {
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

/// An open that is cancelled after any number of polls leaves the resource as it was, and free.
pub async fn clause_1_a_cancelled_open_leaves_the_resource_free<S: Storage>(one: S, two: S) {
    write(&one, &key("finished"), "x", End::Finished).await;
    write(&one, &key("interrupted"), "x", End::Interrupted).await;
    for name in ["absent", "finished", "interrupted"] {
        let key = key(name);
        let before = two.stat(&key).await.unwrap();
        for times in 0..8 {
            for how in [Open::Continue, Open::Takeover] {
                drop(poll_times(pin!(one.open(&key, how)), times).await);
                // What still runs of it neither blocks later opens for good nor affects the next appender.
                let next = open(&two, &key, Open::Continue).await;
                tokio::task::yield_now().await;
                next.sync().await.unwrap();
                drop(next);
                same(&two.stat(&key).await.unwrap(), &before, (name, times, how));
            }
        }
    }
}
