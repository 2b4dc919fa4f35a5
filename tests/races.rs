//! Joins, ends and opens that race: fault cases 27 to 29.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::spy::Spy;
use common::{Server, client_frame, pattern, serve, soon, stores};
use httpfstream::storage::MemoryStorage;
use httpfstream::{AppenderId, ErrorKind, HttpFStreamLayer, Streams};

/// Follows to the end, upgraded or as a plain 200, and gives all the bytes.
async fn followed(server: &Server, target: &str) -> Vec<u8> {
    let (answer, mut raw) = server.upgrade_bare(target, &[("X-Verb", "FOLLOW")]).await;
    match answer.status {
        200 => {
            assert_eq!(answer.header("stream-state"), Some("finished"));
            answer.body
        }
        101 => {
            let (bytes, code) = raw.to_end().await;
            assert_eq!(code, Some(1000), "after {} bytes", bytes.len());
            bytes
        }
        _ => panic!("{answer:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_27_who_joins_a_running_append_misses_and_repeats_nothing() {
    for store in stores() {
        let server = serve(store.layer).await;
        const LEN: usize = 2_000_000;
        let data = pattern(0, LEN);
        let mut appender = server.append("/a").await;
        appender.send_frame(0x82, &data[..1]).await;
        let appending = {
            let data = data.clone();
            tokio::spawn(async move {
                // Pieces of many sizes, some below and some above every buffer on the way.
                let (mut at, mut size) = (1, 1);
                while at < LEN {
                    let end = (at + size).min(LEN);
                    appender.send_frame(0x82, &data[at..end]).await;
                    at = end;
                    size = size * 7 % 90_001;
                    tokio::task::yield_now().await;
                }
                appender.send_close(1000).await;
                assert_eq!(appender.to_end().await, (vec![], Some(1000)));
            })
        };
        // One after the other they join wherever the append is by then.
        let mut followers = tokio::task::JoinSet::new();
        let server = std::sync::Arc::new(server);
        while !appending.is_finished() && followers.len() < 100 {
            let server = std::sync::Arc::clone(&server);
            followers.spawn(async move { followed(&server, "/a").await });
            tokio::task::yield_now().await;
        }
        soon("the append", appending).await.unwrap();
        assert!(!followers.is_empty());
        while let Some(got) = soon("the followers", followers.join_next()).await {
            let got = got.unwrap();
            assert!(got == data, "{}: {} of {LEN} bytes, or others", store.name, got.len());
        }
    }
}

#[tokio::test]
async fn fault_27_a_join_between_any_two_appends_is_exact() {
    // Every place is joined once, with caches that hold nothing, something and everything of what is there.
    for tail_cache in [0, 100, 1 << 20] {
        let streams = Streams::builder(MemoryStorage::new(1 << 20)).tail_cache(tail_cache).build();
        let mut appender = streams.open_append("a").await.unwrap();
        let (mut followers, mut len) = (Vec::new(), 0);
        for size in 0..200 {
            let mut follower = streams.follow("a").await.unwrap();
            // Some begin to read at once, some when there is more, some at the end.
            let mut got = Vec::new();
            if size % 3 == 1 && len > 0 {
                got.extend(soon("a chunk", follower.next_chunk()).await.unwrap().unwrap().bytes);
            }
            followers.push((follower, got));
            appender.append(pattern(len, size)).await.unwrap();
            len += size as u64;
        }
        appender.finish().await.unwrap();
        for (follower, got) in &mut followers {
            while let Some(chunk) = soon("a chunk", follower.next_chunk()).await.unwrap() {
                got.extend(chunk.bytes);
            }
            assert!(*got == pattern(0, len as usize), "cache {tail_cache}: {} of {len}", got.len());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_28_an_end_that_races_with_a_join_is_all_bytes_and_then_the_end() {
    for store in stores() {
        let server = serve(store.layer).await;
        for round in 0..60 {
            let target = format!("/{round}");
            let mut appender = server.append(&target).await;
            appender.send_text("all of ").await;
            // The appender's end travels at the same time as the requests to follow.
            let mut sent = client_frame(0x81, b"it");
            sent.extend(client_frame(0x88, &1000u16.to_be_bytes()));
            // Nothing is appended before the first of them is in: a follower waits for that.
            assert_eq!(server.follow(&target).await.data(7).await, b"all of ");
            let ending = async {
                appender.send(&sent).await;
                assert_eq!(appender.to_end().await, (vec![], Some(1000)));
            };
            let ((), one, two) = tokio::join!(ending, followed(&server, &target), followed(&server, &target));
            assert_eq!((&*one, &*two), (&b"all of it"[..], &b"all of it"[..]), "{} {round}", store.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_28_in_process_joins_race_with_finishes_and_reopens() {
    for store in stores() {
        let streams = store.layer.streams();
        for round in 0..100u64 {
            let mut appender = streams.open_append("a").await.unwrap();
            appender.append(pattern(round * 2, 2)).await.unwrap();
            let join = async {
                let mut follower = streams.follow("a").await.unwrap();
                let mut got = Vec::new();
                while let Some(chunk) = soon("a chunk", follower.next_chunk()).await.unwrap() {
                    got.extend(chunk.bytes);
                }
                got
            };
            let joining = tokio::spawn({
                let streams = streams.clone();
                async move {
                    let mut follower = streams.follow("a").await.unwrap();
                    let mut got = Vec::new();
                    while let Some(chunk) = soon("a chunk", follower.next_chunk()).await.unwrap() {
                        got.extend(chunk.bytes);
                    }
                    got
                }
            });
            let (len, got) = tokio::join!(appender.finish(), join);
            let all = pattern(0, (round as usize + 1) * 2);
            assert_eq!(len.unwrap(), all.len() as u64);
            assert_eq!(got, all, "{} {round}", store.name);
            assert_eq!(soon("the other", joining).await.unwrap(), all);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_29_of_many_appenders_at_once_one_is_accepted() {
    for store in stores() {
        let server = serve(store.layer).await;
        let server = std::sync::Arc::new(server);
        for round in 0..10 {
            let mut attempts = tokio::task::JoinSet::new();
            for _ in 0..20 {
                let server = std::sync::Arc::clone(&server);
                let target = format!("/{}?verb=APPEND", if round % 2 == 0 { "again" } else { "and-again" });
                attempts.spawn(async move { server.upgrade(&target, &[]).await });
            }
            let (mut accepted, mut refused) = (Vec::new(), 0);
            while let Some(attempt) = soon("the attempts", attempts.join_next()).await {
                let (answer, raw) = attempt.unwrap();
                match answer.status {
                    101 => accepted.push(raw),
                    409 => refused += 1,
                    _ => panic!("{answer:?}"),
                }
            }
            assert_eq!((accepted.len(), refused), (1, 19), "{} {round}", store.name);
            let mut appender = accepted.pop().unwrap();
            appender.send_text(format!("{round} ")).await;
            appender.send_close(1000).await;
            assert_eq!(appender.to_end().await, (vec![], Some(1000)));
        }
        assert_eq!(server.get("/again").await.text(), "0 2 4 6 8 ");
        assert_eq!(server.get("/and-again").await.text(), "1 3 5 7 9 ");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_29_two_hubs_on_one_storage_are_refused_by_the_storage() {
    let storage = MemoryStorage::new(1 << 20);
    let (one, two) = (Streams::new(storage.clone()), Streams::new(storage.clone()));
    let mut appender = one.open_append("a").await.unwrap();
    appender.append("x").await.unwrap();
    assert_eq!(two.open_append("a").await.unwrap_err().kind(), ErrorKind::Busy);
    let server = serve(HttpFStreamLayer::from_streams(two)).await;
    assert_eq!(server.upgrade("/a?verb=APPEND", &[]).await.0.status, 409);
    // Who follows through the other one sees it all the same.
    let mut follower = server.follow("/a").await;
    assert_eq!(follower.data(1).await, b"x");
    appender.append("y").await.unwrap();
    appender.finish().await.unwrap();
    assert_eq!(follower.to_end().await, (b"y".to_vec(), Some(1000)));
}

#[tokio::test]
async fn fault_29_what_another_node_left_is_kept_for_its_appender() {
    let storage = MemoryStorage::new(1 << 20);
    let (one, two) = (Streams::new(storage.clone()), Streams::new(storage.clone()));
    // It has looked for what was left before, and found nothing.
    two.recover().await.unwrap();
    let id = AppenderId::random().unwrap();
    let mut appender = one.open_append("a").appender_id(id.clone()).await.unwrap();
    appender.append("x").await.unwrap();
    drop(appender);
    soon("the shutdown", one.shutdown(Duration::ZERO)).await;
    for _ in 0..2 {
        assert_eq!(two.open_append("a").await.unwrap_err().kind(), ErrorKind::Busy);
    }
    let mut appender = two.open_append("a").appender_id(id).await.unwrap();
    assert!(appender.is_resumed());
    assert_eq!(appender.append("y").await.unwrap(), 2);
}

#[tokio::test]
async fn fault_29_what_another_node_leaves_just_then_is_kept_for_its_appender() {
    let storage = MemoryStorage::new(1 << 20);
    let spy = Spy::new(storage.clone());
    let (one, two) = (Streams::new(storage), Streams::new(spy.clone()));
    two.recover().await.unwrap();
    let id = AppenderId::random().unwrap();
    let mut appender = one.open_append("a").appender_id(id.clone()).await.unwrap();
    appender.append("x").await.unwrap();
    // It is live when the other node looks, and lost before that opens it.
    let (leaving, looks) = (Arc::new(Mutex::new(Some(appender))), Arc::new(AtomicUsize::new(0)));
    spy.watch.meanwhile(move || {
        let left = if looks.fetch_add(1, Ordering::Relaxed) == 1 { leaving.lock().unwrap().take() } else { None };
        let one = one.clone();
        async move {
            if left.is_some() {
                drop(left);
                one.shutdown(Duration::ZERO).await;
            }
        }
    });
    assert_eq!(two.open_append("a").await.unwrap_err().kind(), ErrorKind::Busy);
    assert!(two.open_append("a").appender_id(id).await.unwrap().is_resumed());
}

#[tokio::test]
async fn fault_44_a_node_that_stops_follows_no_other() {
    let storage = MemoryStorage::new(1 << 20);
    let (one, two) = (Streams::new(storage.clone()), Streams::new(storage.clone()));
    let mut appender = one.open_append("a").await.unwrap();
    appender.append("x").await.unwrap();
    assert_eq!(two.follow("a").await.unwrap().next_chunk().await.unwrap().unwrap().bytes, "x");
    soon("the shutdown", two.shutdown(Duration::ZERO)).await;
    assert_eq!(two.follow("a").await.unwrap_err().kind(), ErrorKind::ShuttingDown);
    // What is at rest can be read to the last.
    appender.finish().await.unwrap();
    assert_eq!(two.follow("a").await.unwrap().next_chunk().await.unwrap().unwrap().bytes, "x");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_27_who_joins_while_an_appender_opens_is_told_of_no_end() {
    for store in stores() {
        let streams = store.layer.streams();
        for round in 0..150 {
            let key = format!("k{round}");
            let mut before = streams.open_append(&key).await.unwrap();
            before.append("before ").await.unwrap();
            before.finish().await.unwrap();
            let (finish, finishing) = tokio::sync::oneshot::channel::<()>();
            let appending = tokio::spawn({
                let (streams, key) = (streams.clone(), key.clone());
                async move {
                    let mut appender = streams.open_append(&key).await.unwrap();
                    appender.append("one ").await.unwrap();
                    appender.append("two ").await.unwrap();
                    finishing.await.unwrap();
                    appender.append("three").await.unwrap();
                    appender.finish().await.unwrap();
                }
            });
            let mut joins = tokio::task::JoinSet::new();
            let (joined, mut all_joined) = tokio::sync::mpsc::channel::<()>(1);
            for wait in 0..12 {
                let (streams, key) = (streams.clone(), key.clone());
                let joined = joined.clone();
                joins.spawn(async move {
                    for _ in 0..wait {
                        tokio::task::yield_now().await;
                    }
                    let mut follower = streams.follow(&key).await.unwrap();
                    drop(joined);
                    let mut got = Vec::new();
                    while let Some(chunk) = soon("a chunk", follower.next_chunk()).await.unwrap() {
                        got.extend(chunk.bytes);
                    }
                    got
                });
            }
            drop(joined);
            assert_eq!(soon("all to join", all_joined.recv()).await, None);
            finish.send(()).unwrap();
            while let Some(got) = joins.join_next().await {
                let got = String::from_utf8(got.unwrap()).unwrap();
                // Either all was over with the first appender, or the second one's end is the end.
                assert!(got == "before " || got == "before one two three", "{} {round}: {got:?}", store.name);
            }
            appending.await.unwrap();
        }
    }
}
