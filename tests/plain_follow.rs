//! Following without a WebSocket (protocol sections 5 and 6): the body of a GET is the stream, and how it ends tells.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::Router;
use common::plain::{BOTH, Client, Http, Live, ask, full, problem};
use common::spy::Spy;
use common::{
    Answer, Frame, Raw, Server, Store, fs_layer, memory_layer, pattern, pipe, serve, serve_router, soon, stores,
};
use http::Request;
use http_body_util::BodyExt;
use httpfstream::{Appender, AppenderId, Grant, HttpFStreamLayer, Streams};
use httpfstream::{State, storage::MemoryStorage};
use tokio::io::AsyncReadExt;
use tower::{Layer, ServiceExt};

/// Longer than any test waits.
const NEVER: Duration = Duration::from_secs(3600);

const UNBOUNDED: &str = "9007199254740991";

/// Follows over a connection of its own; the answer is 200.
async fn follow(server: &Server, http: Http, key: &str) -> Live {
    let live = ask(server.addr, http, &format!("/{key}?verb=FOLLOW"), &[]).await;
    assert_eq!(live.status, 200);
    live
}

async fn open(server: &Server, key: &str, data: impl Into<bytes::Bytes>) -> Appender {
    let mut out = server.streams.open_append(key).await.unwrap();
    out.append(data).await.unwrap();
    out
}

async fn get(server: &Server, target: &str, headers: &[(&str, &str)]) -> Answer {
    server.request("GET", target, headers).await
}

/// The head of an answer whose body may go on for ever, and the connection with what has arrived of it.
async fn head(server: &Server, method: &str, target: &str, headers: &[(&str, &str)]) -> (Answer, Raw) {
    let mut raw = Raw::connect(server.addr).await;
    raw.send_head(method, target, headers, "").await;
    (raw.read_head().await, raw)
}

/// Chunks until so many bytes are there.
async fn chunks<IO>(raw: &mut Raw<IO>, len: usize) -> Vec<u8>
where
    IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut data = Vec::new();
    while data.len() < len {
        data.extend(raw.chunk().await.expect("no cut").expect("no end"));
    }
    data
}

#[tokio::test]
async fn what_is_stored_comes_first_then_what_is_appended_then_a_clean_end() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        for http in BOTH {
            for seal in [false, true] {
                let key = format!("{http:?}-{seal}.log");
                let all = pattern(0, 500_000);
                let mut out = open(&server, &key, all[..100_000].to_vec()).await;
                let mut early = follow(&server, http, &key).await;
                assert!(early.bytes(100_000).await == all[..100_000], "{name} {http:?}");
                // Each piece arrives before the next is appended: nothing is held back.
                for at in (100_000..110_000).step_by(1000) {
                    out.append(all[at..at + 1000].to_vec()).await.unwrap();
                    assert!(early.bytes(1000).await == all[at..at + 1000], "{name} {http:?}");
                }
                let late = follow(&server, http, &key).await;
                for at in (110_000..500_000).step_by(30_000) {
                    out.append(all[at..at + 30_000].to_vec()).await.unwrap();
                }
                match seal {
                    true => out.seal().await.unwrap(),
                    false => out.finish().await.unwrap(),
                };
                assert!(early.to_end().await == (all[110_000..].to_vec(), true), "{name} {http:?}");
                assert!(late.to_end().await == (all, true), "{name} {http:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_live_body_says_how_things_stand_and_that_it_must_not_be_held_back() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        let mut out = open(&server, "a.html", "<b>1").await;
        let life = out.life().to_string();
        let tag = server.get("/a.html").await.header("etag").unwrap().to_owned();
        for http in BOTH {
            let live = ask(server.addr, http, "/a.html?verb=FOLLOW&offset=1", &[]).await;
            for (header, value) in [
                ("stream-state", "live"),
                ("stream-life", &life),
                ("stream-offset", "1"),
                ("upload-offset", "4"),
                ("upload-complete", "?0"),
                ("etag", &tag),
                ("cache-control", "no-store, no-transform"),
                ("x-accel-buffering", "no"),
                ("content-encoding", "identity"),
                ("content-type", "text/html; charset=utf-8"),
                ("x-content-type-options", "nosniff"),
                ("content-security-policy", "sandbox"),
            ] {
                assert_eq!(live.header(header), Some(value), "{name} {http:?} {header}");
            }
            for header in ["content-length", "last-modified", "content-range"] {
                assert_eq!(live.header(header), None, "{name} {http:?} {header}");
            }
        }
        out.append("!").await.unwrap();
        out.finish().await.unwrap();
        let rest = server.get("/a.html?verb=FOLLOW").await;
        for (header, value) in [
            ("stream-state", "finished"),
            ("stream-life", &life),
            ("upload-offset", "5"),
            ("upload-complete", "?1"),
            ("cache-control", "no-cache"),
            ("content-length", "5"),
        ] {
            assert_eq!(rest.header(header), Some(value), "{name} {header}");
        }
        let plain = server.get("/a.html").await;
        let bare = |answer: &Answer| {
            let mut headers = answer.headers.clone();
            headers.retain(|(name, _)| name != "date");
            (answer.status, headers, answer.text())
        };
        assert_eq!(bare(&rest), bare(&plain), "{name}: at rest it is answered as by a GET without a verb");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_27_a_follower_joins_at_any_byte_of_a_running_append() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        for http in BOTH {
            let key = format!("{http:?}");
            let all = pattern(0, 2_000);
            let mut out = open(&server, &key, all[..1].to_vec()).await;
            let done = Arc::new(AtomicBool::new(false));
            let appending = {
                let (all, done) = (all.clone(), Arc::clone(&done));
                tokio::spawn(async move {
                    let mut at = 1;
                    while at < all.len() {
                        let len = (at % 7 + 1).min(all.len() - at);
                        out.append(all[at..at + len].to_vec()).await.unwrap();
                        at += len;
                        tokio::task::yield_now().await;
                    }
                    done.store(true, Ordering::Relaxed);
                    out
                })
            };
            // From the end as it stands at that moment, from a byte before it, from the start.
            let mut followers = Vec::new();
            while !done.load(Ordering::Relaxed) || followers.len() < 10 {
                let len = server.streams.stat(&*key).await.unwrap().unwrap().len;
                let (target, from) = match followers.len() % 4 {
                    0 => (format!("/{key}?verb=FOLLOW"), Some(0)),
                    1 => (format!("/{key}?verb=FOLLOW&offset={len}"), Some(len)),
                    2 => (format!("/{key}?verb=FOLLOW&offset={}", len - 1), Some(len - 1)),
                    _ => (format!("/{key}?verb=FOLLOW&tail=0"), None),
                };
                let live = ask(server.addr, http, &target, &[]).await;
                let at: u64 = live.header("stream-offset").unwrap().parse().unwrap();
                assert!(from.map_or(at >= len, |from| at == from), "{name} {target}: {at}");
                followers.push((at as usize, tokio::spawn(live.to_end())));
            }
            appending.await.unwrap().finish().await.unwrap();
            for (at, follower) in followers {
                let (data, clean) = follower.await.unwrap();
                assert!(clean && data == all[at..], "{name} {http:?} from {at}: {} bytes", data.len());
            }
        }
    }
}

/// Every way to end that is none: the body is aborted, and what came before arrives.
#[tokio::test]
async fn what_is_cut_is_no_clean_end() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        for http in BOTH {
            for how in ["interrupted", "deleted"] {
                let key = format!("{http:?}-{how}");
                let mut out = open(&server, &key, "one ").await;
                let mut follower = follow(&server, http, &key).await;
                assert_eq!(follower.bytes(4).await, b"one ");
                let mut idle = follow(&server, http, &key).await;
                assert_eq!(idle.bytes(4).await, b"one ");
                match how {
                    "interrupted" => {
                        out.append("two").await.unwrap();
                        drop(out);
                    }
                    _ => {
                        out.append("two").await.unwrap();
                        assert_eq!(follower.bytes(3).await, b"two");
                        server.streams.delete(&*key).await.unwrap();
                    }
                }
                let rest = if how == "deleted" { &b""[..] } else { b"two" };
                assert_eq!(follower.to_end().await, (rest.to_vec(), false), "{name} {http:?} {how}");
                // What was deleted before it was read can't be had any more.
                let (data, clean) = idle.to_end().await;
                assert!(!clean && (data == b"two" || how == "deleted"), "{name} {http:?} {how}: {data:?}");
            }
        }
    }
}

#[tokio::test]
async fn fault_44_a_server_that_stops_gives_the_tail_and_aborts() {
    for http in BOTH {
        for Store { name, layer, .. } in stores() {
            let server = serve(layer).await;
            let mut appender = server.append("/a").await;
            let mut follower = ask(server.addr, http, "/a?verb=FOLLOW&wait=30", &[]).await;
            appender.send_text("one ").await;
            assert_eq!(follower.bytes(4).await, b"one ");
            appender.send_text("two").await;
            appender.send_frame(0x89, b"").await;
            assert_eq!(appender.frame().await, Frame::Pong(vec![]));
            let streams = server.streams.clone();
            let told = async {
                assert_eq!(appender.to_end().await.1, Some(1001));
                drop(appender);
                assert_eq!(follower.to_end().await, (b"two".to_vec(), false), "{name} {http:?}");
            };
            soon("the shutdown", async { tokio::join!(streams.shutdown(NEVER), told) }).await;
        }
    }
}

#[tokio::test]
async fn a_failing_storage_aborts_the_body() {
    let spy = Spy::new(MemoryStorage::new(1 << 20));
    let watch = spy.watch.clone();
    let server = serve(HttpFStreamLayer::new(spy).plain_http(true)).await;
    for http in BOTH {
        let key = format!("{http:?}");
        watch.fail_syncs.store(false, Ordering::Relaxed);
        let mut out = open(&server, &key, "some").await;
        let mut follower = follow(&server, http, &key).await;
        assert_eq!(follower.bytes(4).await, b"some");
        watch.fail_syncs.store(true, Ordering::Relaxed);
        out.sync().await.unwrap_err();
        assert_eq!(follower.to_end().await, (vec![], false), "{http:?}");
    }
}

#[tokio::test]
async fn a_storage_whose_files_become_shorter_aborts_the_body() {
    let (layer, dir) = fs_layer();
    let streams = layer.streams();
    let server = serve(layer).await;
    let out = open(&server, "a", pattern(0, 1_000_000)).await;
    let file = std::fs::OpenOptions::new().write(true).open(dir.path().join("a")).unwrap();
    file.set_len(10).unwrap();
    let (data, clean) = ask(server.addr, Http::One, "/a?verb=FOLLOW", &[]).await.to_end().await;
    assert!(!clean && data.len() <= 10, "{} bytes", data.len());
    drop((out, streams));
}

/// Many times what sockets and their clients hold, so that it is mostly in the store when the abort is decided.
#[tokio::test]
async fn every_byte_before_an_abort_arrives_at_a_reader_that_reads_late_or_slowly() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        for http in BOTH {
            let all = pattern(0, 24 << 20);
            for (key, early) in [("late", false), ("slow", true)] {
                let key = format!("{http:?}-{key}");
                let mut out = open(&server, &key, all[..1].to_vec()).await;
                let mut reader = follow(&server, http, &key).await;
                for (i, piece) in all[1..].chunks(1 << 20).enumerate() {
                    out.append(piece.to_vec()).await.unwrap();
                    if early {
                        let at = i * 50_000;
                        assert!(reader.bytes(50_000).await == all[at..at + 50_000]);
                    }
                }
                drop(out);
                assert_eq!(server.at_rest(&key).await.unwrap().state, State::Interrupted);
                let read = if early { 24 * 50_000 } else { 0 };
                let mut at = read;
                // It takes its time, and gives the server's side many chances to be ahead of it.
                while at + 300_000 < all.len() {
                    assert!(reader.bytes(300_000).await == all[at..at + 300_000], "{name} {key} at {at}");
                    at += 300_000;
                    for _ in 0..20 {
                        tokio::task::yield_now().await;
                    }
                }
                let (rest, clean) = reader.to_end().await;
                assert!(rest == all[at..] && !clean, "{name} {key}: {} of {}", rest.len(), all.len() - at);
            }
        }
    }
}

/// What fits into the buffers of the server's connection is there when the abort comes, and is all that can be lost.
#[tokio::test]
async fn what_lies_in_the_servers_buffers_when_the_abort_comes_arrives_too() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        for http in BOTH {
            for (i, len) in [1, 100, 1_000, 64 << 10, 192 << 10, 1 << 20, 3 << 20].into_iter().enumerate() {
                let key = format!("{http:?}-{i}");
                let all = pattern(i as u64, len);
                // The abort is due at the same moment as the bytes.
                let mut out = open(&server, &key, "x").await;
                let mut reader = follow(&server, http, &key).await;
                assert_eq!(reader.bytes(1).await, b"x");
                out.append(all.clone()).await.unwrap();
                drop(out);
                let (rest, clean) = reader.to_end().await;
                assert!(rest == all && !clean, "{name} {key}: {} of {len}", rest.len());
            }
        }
    }
}

/// What the server's side of the connection holds waits for its reader for ten seconds, and no longer.
#[tokio::test(start_paused = true)]
async fn an_abort_waits_the_stall_timeout_for_a_reader_that_takes_nothing() {
    for (seconds, whole) in [(9, true), (11, false)] {
        let layer = memory_layer().stall_timeout(Duration::from_secs(10));
        let mut out = layer.streams().open_append("a").await.unwrap();
        // More than the pipe holds, and less than hyper does.
        let all = pattern(0, 200_000);
        out.append(all.clone()).await.unwrap();
        let mut raw = pipe(&layer);
        raw.send_head("GET", "/a?verb=FOLLOW", &[], "").await;
        assert_eq!(raw.read_head().await.status, 200);
        drop(out);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let mut got = Vec::new();
        let end = loop {
            match raw.chunk().await {
                Ok(Some(chunk)) => got.extend(chunk),
                end => break end,
            }
        };
        assert_eq!((end, got == all), (Err(()), whole), "after {seconds} s: {} bytes", got.len());
        assert!(all.starts_with(&got));
    }
}

#[tokio::test]
async fn http1_tells_a_cut_by_a_missing_last_chunk() {
    let server = serve(memory_layer()).await;
    for end in ["finish", "lose"] {
        let out = open(&server, end, "data").await;
        let (answer, mut raw) = head(&server, "GET", &format!("/{end}?verb=FOLLOW"), &[]).await;
        assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
        assert_eq!(chunks(&mut raw, 4).await, b"data");
        match end {
            "finish" => drop(out.finish().await.unwrap()),
            _ => drop(out),
        }
        let expected = if end == "finish" { Ok(None) } else { Err(()) };
        assert_eq!(raw.chunk().await, expected, "{end}");
    }
}

#[tokio::test]
async fn what_was_interrupted_before_the_request_is_given_whole_and_marked() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer.clone()).await;
        drop(open(&server, "a", "0123456789").await);
        server.at_rest("a").await;
        for http in BOTH {
            for (query, from) in [("", 0), ("&offset=4", 4), ("&tail=3", 7), ("&lines=1", 0), ("&offset=10", 10)] {
                let live = ask(server.addr, http, &format!("/a?verb=FOLLOW{query}"), &[]).await;
                assert_eq!(live.header("stream-state"), Some("interrupted"), "{name} {http:?} {query}");
                assert_eq!(live.to_end().await, (b"0123456789"[from..].to_vec(), true), "{name} {http:?} {query}");
                // Also to a layer outside that reads bodies to their very end, as compressing ones do.
                let request = Request::get(format!("/a?verb=FOLLOW{query}")).body(http_body_util::Full::default());
                let service = layer.layer(common::inner());
                let body = service.oneshot(request.unwrap()).await.unwrap().into_body();
                let all = body.collect().await.map(|all| all.to_bytes());
                assert_eq!(&all.expect(query)[..], &b"0123456789"[from..], "{name} {query}");
            }
        }
    }
}

#[tokio::test]
async fn a_follower_begins_where_it_wants() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        let text = format!("{}\nlast but one\nlast\n", "long ".repeat(40_000));
        let len = text.len();
        let mut out = Some(open(&server, "a", text.clone()).await);
        let life = out.as_ref().unwrap().life();
        for live in [true, false] {
            if !live {
                out.take().unwrap().finish().await.unwrap();
            }
            for (query, headers, from) in [
                (format!("offset={len}"), &[][..], len),
                ("offset=7".to_owned(), &[], 7),
                (String::new(), &[("upload-offset", "7")][..], 7),
                ("offset=7".to_owned(), &[("upload-offset", "7")], 7),
                (format!("offset=9&life={life}"), &[], 9),
                ("tail=0".to_owned(), &[], len),
                ("tail=5".to_owned(), &[], len - 5),
                ("tail=99999999".to_owned(), &[], 0),
                ("lines=0".to_owned(), &[], len),
                ("lines=1".to_owned(), &[], len - 5),
                ("lines=2".to_owned(), &[], len - 18),
                ("lines=4".to_owned(), &[], 0),
            ] {
                for http in BOTH {
                    let mut reader = ask(server.addr, http, &format!("/a?verb=FOLLOW&{query}"), headers).await;
                    let context = format!("{name} {http:?} live: {live} {query}");
                    assert_eq!(reader.status, 200, "{context}");
                    assert_eq!(reader.header("stream-offset"), Some(&*from.to_string()), "{context}");
                    match live {
                        true => {
                            assert!(reader.bytes(len - from).await == text.as_bytes()[from..], "{context}");
                            assert_eq!(reader.header("content-length"), None);
                        }
                        false => {
                            assert_eq!(reader.header("content-length"), Some(&*(len - from).to_string()));
                            assert!(reader.to_end().await == (text.as_bytes()[from..].to_vec(), true), "{context}");
                        }
                    }
                }
            }
            let past = format!("offset={}", len + 1);
            let other = format!("life={}", "0".repeat(32));
            let differ = [("upload-offset", "8")];
            for (query, headers, status, kind) in [
                (&*past, &[][..], 416, "past-end"),
                (&other, &[], 412, "life"),
                ("offset=1&tail=1", &[], 400, "bad-request"),
                ("offset=1&lines=1", &[], 400, "bad-request"),
                ("offset=1&offset=2", &[], 400, "bad-request"),
                ("offset=7", &differ, 400, "bad-request"),
                ("offset=-1", &[], 400, "bad-request"),
                ("offset=99999999999999999999", &[], 400, "bad-request"),
                ("tail=x", &[], 400, "bad-request"),
                ("lines=", &[], 400, "bad-request"),
                ("life=x", &[], 400, "bad-request"),
                ("wait=x", &[], 400, "bad-request"),
            ] {
                let answer = get(&server, &format!("/a?verb=FOLLOW&{query}"), headers).await;
                assert_eq!((answer.status, &*problem(&answer)), (status, kind), "{name} live: {live} {query}");
                if status != 400 {
                    assert_eq!(answer.header("upload-offset"), Some(&*len.to_string()), "it says how things stand");
                    assert_eq!(answer.header("stream-life"), Some(&*life.to_string()));
                }
            }
        }
        let answer = get(&server, "/none?verb=FOLLOW&offset=1", &[]).await;
        assert_eq!((answer.status, &*problem(&answer)), (404, "not-found"));
    }
}

#[tokio::test]
async fn a_reader_that_was_cut_goes_on_with_offset_and_life() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        let all = pattern(0, 300_000);
        let mut out = open(&server, "a", all[..150_000].to_vec()).await;
        let mut got = Vec::new();
        for round in 0..10 {
            let life = out.life();
            let target = format!("/a?verb=FOLLOW&life={life}&offset={}", got.len());
            let mut reader = ask(server.addr, BOTH[round % 2], &target, &[]).await;
            got.extend(reader.bytes(15_000).await);
            drop(reader);
        }
        out.append(all[150_000..].to_vec()).await.unwrap();
        let life = out.life();
        out.finish().await.unwrap();
        let rest = get(&server, &format!("/a?verb=FOLLOW&life={life}&offset={}", got.len()), &[]).await;
        got.extend(rest.body);
        assert!(got == all, "{name}");
        server.streams.delete("a").await.unwrap();
        let _other = open(&server, "a", all).await;
        let answer = get(&server, &format!("/a?verb=FOLLOW&life={life}&offset=5"), &[]).await;
        assert_eq!((answer.status, &*problem(&answer)), (412, "life"), "{name}: no two lives are spliced");
    }
}

#[tokio::test]
async fn a_range_without_an_end_follows_and_one_with_an_end_is_a_snapshot() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        let mut out = open(&server, "a", "0123456789").await;
        for http in BOTH {
            for (range, from) in [
                ("bytes=0-", 0),
                ("bytes=4-", 4),
                ("bytes=10-", 10),
                ("bytes=4-9007199254740991", 4),
                ("bytes=4-18446744073709551615", 4),
                ("Bytes=4-", 4),
                ("bytes=-3", 7),
                ("bytes=-0", 10),
                ("bytes=-99", 0),
                ("bytes=-99999999999999999999", 0),
            ] {
                let mut live = ask(server.addr, http, "/a?verb=FOLLOW", &[("range", range)]).await;
                assert_eq!(live.status, 206, "{name} {range}");
                let content_range = format!("bytes {from}-{UNBOUNDED}/*");
                assert_eq!(live.header("content-range"), Some(&*content_range), "{name} {range}");
                assert_eq!(live.header("stream-offset"), Some(&*from.to_string()), "{name} {range}");
                assert_eq!(live.header("content-length"), None);
                assert_eq!(live.bytes(10 - from).await, b"0123456789"[from..], "{name} {range}");
            }
        }
        for (range, content_range, data) in
            [("bytes=2-4", "bytes 2-4/10", "234"), ("bytes=2-99", "bytes 2-9/10", "23456789")]
        {
            let (asked, plain) = (get(&server, "/a?verb=FOLLOW", &[("range", range)]).await, {
                get(&server, "/a", &[("range", range)]).await
            });
            for answer in [asked, plain] {
                assert_eq!((answer.status, &*answer.text()), (206, data), "{name} {range}");
                assert_eq!(answer.header("content-range"), Some(content_range));
            }
        }
        // Another unit is ignored.
        let mut live = ask(server.addr, Http::One, "/a?verb=FOLLOW", &[("range", "lines=1-")]).await;
        assert_eq!((live.status.as_u16(), live.bytes(10).await), (200, b"0123456789".to_vec()));
        for (range, query, status, kind) in [
            ("bytes=11-", "", 416, "past-end"),
            ("bytes=5-4", "", 400, "bad-request"),
            ("bytes=x-", "", 400, "bad-request"),
            ("bytes=--1", "", 400, "bad-request"),
            ("bytes=99999999999999999999-", "", 400, "bad-request"),
            ("bytes=4-", "&offset=4", 400, "bad-request"),
            ("bytes=2-4", "&tail=1", 400, "bad-request"),
            ("bytes=4-", "&lines=1", 400, "bad-request"),
        ] {
            let answer = get(&server, &format!("/a?verb=FOLLOW{query}"), &[("range", range)]).await;
            assert_eq!((answer.status, &*problem(&answer)), (status, kind), "{name} {range} {query}");
        }
        // At rest it is a GET without a verb.
        out.append("ab").await.unwrap();
        out.finish().await.unwrap();
        for (range, status, content_range) in [
            ("bytes=4-", 206, Some("bytes 4-11/12")),
            ("bytes=-3", 206, Some("bytes 9-11/12")),
            ("bytes=2-4", 206, Some("bytes 2-4/12")),
            ("bytes=4-9007199254740991", 206, Some("bytes 4-11/12")),
            ("bytes=12-", 416, Some("bytes */12")),
            ("bytes=5-4", 200, None),
        ] {
            for target in ["/a", "/a?verb=FOLLOW"] {
                let answer = get(&server, target, &[("range", range)]).await;
                assert_eq!((answer.status, answer.header("content-range")), (status, content_range), "{name} {range}");
            }
        }
    }
}

#[tokio::test]
async fn if_range_splices_no_two_lives() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        let mut out = open(&server, "a", "01234").await;
        let tag = server.get("/a").await.header("etag").unwrap().to_owned();
        out.append("56789").await.unwrap();
        for (if_range, status, len) in [
            // One life's bytes stay the same however long it gets.
            (&*tag, 206, 7),
            (&*format!("W/{tag}"), 200, 10),
            ("\"other\"", 200, 10),
            ("Thu, 01 Jan 2099 00:00:00 GMT", 200, 10),
        ] {
            let headers = [("range", "bytes=3-"), ("if-range", if_range)];
            let mut live = ask(server.addr, Http::One, "/a?verb=FOLLOW", &headers).await;
            assert_eq!(live.status, status, "{name} {if_range}");
            assert_eq!(live.bytes(len).await, b"0123456789"[10 - len..], "{name} {if_range}");
        }
        drop(out);
        server.at_rest("a").await;
        server.streams.delete("a").await.unwrap();
        let _other = open(&server, "a", "abcdefgh").await;
        let headers = [("range", "bytes=3-"), ("if-range", &*tag)];
        let mut live = ask(server.addr, Http::One, "/a?verb=FOLLOW", &headers).await;
        assert_eq!((live.status.as_u16(), live.bytes(8).await), (200, b"abcdefgh".to_vec()), "{name}");
    }
}

#[tokio::test]
async fn head_gives_the_same_head() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        let mut out = Some(open(&server, "a", "0123456789").await);
        for rest in [false, true] {
            if rest {
                out.take().unwrap().finish().await.unwrap();
            }
            for (query, headers) in [
                ("", &[][..]),
                ("&offset=4", &[]),
                ("&offset=99", &[]),
                ("", &[("Range", "bytes=4-")]),
                ("", &[("Accept", "text/event-stream")]),
            ] {
                let target = format!("/a?verb=FOLLOW{query}");
                let told = |answer: &Answer| {
                    let names = [
                        "stream-state",
                        "stream-life",
                        "stream-offset",
                        "upload-offset",
                        "upload-complete",
                        "etag",
                        "content-type",
                        "cache-control",
                        "content-range",
                        "content-encoding",
                        "x-accel-buffering",
                        "content-security-policy",
                        "x-content-type-options",
                    ];
                    let headers = names.map(|name| answer.header(name).map(str::to_owned));
                    (answer.status, headers)
                };
                let (get, _) = head(&server, "GET", &target, headers).await;
                // The connection goes on, so nothing was sent behind the head.
                let (head, mut raw) = head(&server, "HEAD", &target, headers).await;
                assert_eq!(told(&head), told(&get), "{name} at rest: {rest} {query} {headers:?}");
                raw.send_head("GET", "/", &[], "").await;
                assert_eq!(raw.read_head().await.status, 200, "{name} {query}");
            }
        }
        assert_eq!(server.request("HEAD", "/none?verb=FOLLOW", &[]).await.status, 404);
    }
}

#[tokio::test]
async fn over_http_1_0_what_is_open_is_505_and_what_is_at_rest_is_served() {
    let server = serve(memory_layer()).await;
    let ask = async |target: &str, more: &str| {
        let mut raw = Raw::connect(server.addr).await;
        raw.send(format!("GET {target} HTTP/1.0\r\n{more}\r\n").as_bytes()).await;
        let mut answer = raw.read_head().await;
        answer.body = std::mem::take(&mut raw.buf);
        soon("the end", raw.stream.read_to_end(&mut answer.body)).await.unwrap();
        answer
    };
    let mut out = open(&server, "a", "0123").await;
    for more in ["", "Accept: text/event-stream\r\n", "Range: bytes=1-\r\n"] {
        let answer = ask("/a?verb=FOLLOW", more).await;
        assert_eq!((answer.status, &*problem(&answer)), (505, "http-version"), "{more}");
    }
    assert_eq!(ask("/a", "").await.text(), "0123", "a snapshot has a length");
    out.append("45").await.unwrap();
    out.finish().await.unwrap();
    for (query, data) in [("", "012345"), ("&offset=3", "345")] {
        let answer = ask(&format!("/a?verb=FOLLOW{query}"), "").await;
        assert_eq!((answer.status, &*answer.text()), (200, data));
    }
}

#[tokio::test]
async fn an_absent_resource_is_waited_for_as_long_as_is_asked_and_allowed() {
    let server = serve(memory_layer()).await;
    for (i, (query, headers)) in [
        ("&wait=30", &[][..]),
        ("", &[("prefer", "respond-async, wait=30")]),
        ("&wait=30", &[("accept", "text/event-stream")]),
    ]
    .into_iter()
    .enumerate()
    {
        for http in BOTH {
            let key = format!("{i}{http:?}");
            let target = format!("/{key}?verb=FOLLOW{query}");
            let waiting = ask(server.addr, http, &target, headers);
            let appending = async {
                drop(open(&server, "other", "x").await);
                let mut out = open(&server, &key, "here").await;
                out.append(" too").await.unwrap();
                out.finish().await.unwrap();
            };
            let (live, ()) = tokio::join!(waiting, appending);
            assert_eq!(live.status, 200, "{query} {headers:?}");
            let (data, clean) = live.to_end().await;
            assert!(clean && String::from_utf8(data).unwrap().contains("here"), "{query} {headers:?}");
        }
    }
    // Nothing of a wait: no verb, no time.
    for target in ["/none?verb=FOLLOW&wait=0", "/none?verb=FOLLOW"] {
        assert_eq!(server.get(target).await.status, 404, "{target}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_when_it_is_over_and_not_before() {
    let layer = memory_layer().max_wait(Duration::from_secs(100));
    for (query, headers, seconds) in [
        ("&wait=7", &[][..], 7),
        ("", &[("Prefer", "wait=7")], 7),
        ("&wait=7", &[("Prefer", "wait=50")], 7),
        ("&wait=9999999", &[], 100),
    ] {
        let begun = tokio::time::Instant::now();
        let mut raw = pipe(&layer);
        raw.send_head("GET", &format!("/a?verb=FOLLOW{query}"), headers, "").await;
        // The clock moves by itself to the next timer, so a read that is limited would end too early.
        while !raw.buf.windows(4).any(|w| w == b"\r\n\r\n") {
            raw.stream.read_buf(&mut raw.buf).await.unwrap();
        }
        assert_eq!(raw.read_head().await.status, 404);
        assert_eq!(begun.elapsed().as_secs(), seconds, "{query} {headers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn fault_19_a_grant_that_expires_aborts_the_body() {
    let layer =
        memory_layer().authorize(|_| async { Ok(Grant::new().until(SystemTime::now() + Duration::from_secs(3600))) });
    let streams = layer.streams();
    let mut out = streams.open_append("a").await.unwrap();
    out.append("one ").await.unwrap();
    for accept in ["*/*", "text/event-stream"] {
        let mut raw = pipe(&layer);
        let begun = tokio::time::Instant::now();
        raw.send_head("GET", "/a?verb=FOLLOW", &[("Accept", accept)], "").await;
        assert_eq!(raw.read_head().await.status, 200);
        out.append("two").await.unwrap();
        let mut got = String::new();
        let end = loop {
            match raw.chunk().await {
                Ok(Some(chunk)) => got += std::str::from_utf8(&chunk).unwrap(),
                end => break end,
            }
        };
        assert_eq!(end, Err(()), "{accept}");
        assert!(got.contains("one ") && got.contains("two") && !got.contains("finished"), "{got}");
        let lasted = begun.elapsed().as_secs();
        assert!((3590..=3602).contains(&lasted), "{accept}: {lasted} s");
    }
    out.append("!").await.unwrap();
}

#[tokio::test]
async fn fault_31_a_reader_that_takes_nothing_delays_nobody() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        for http in BOTH {
            let key = format!("{http:?}");
            let data = pattern(0, 300 * 65536);
            let mut appender = server.append(&format!("/{key}")).await;
            appender.send_frame(0x82, &data[..65536]).await;
            let target = format!("/{key}?verb=FOLLOW&wait=30");
            let mut stalled = ask(server.addr, http, &target, &[]).await;
            assert_eq!(stalled.bytes(1).await, data[..1]);
            let good = follow(&server, http, &key).await;
            let reading = tokio::spawn(good.to_end());
            for piece in data[65536..].chunks(65536) {
                appender.send_frame(0x82, piece).await;
            }
            appender.send_close(1000).await;
            assert_eq!(appender.to_end().await, (vec![], Some(1000)), "{name} {http:?}: the appender didn't wait");
            let (got, clean) = soon("the good reader", reading).await.unwrap();
            assert!(got == data && clean, "{name} {http:?}: {}", got.len());
            // It misses nothing either.
            let (got, clean) = stalled.to_end().await;
            assert!(got == data[1..] && clean, "{name} {http:?}: {}", got.len());
        }
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn fault_31_stalled_readers_cost_no_memory_each() {
    fn resident() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }
    let (layer, _dir) = fs_layer();
    let server = serve(layer).await;
    let mut out = open(&server, "a", "x").await;
    let mut stalled = Vec::new();
    for i in 0..50 {
        let headers = if i % 4 < 2 { &[("accept", "text/event-stream")][..] } else { &[] };
        stalled.push(ask(server.addr, BOTH[i % 2], "/a?verb=FOLLOW", headers).await);
    }
    let before = resident();
    let piece = bytes::Bytes::from(pattern(0, 256 * 1024));
    for _ in 0..256 {
        // 64 MiB, which would be 3,200 if each of them had a queue.
        out.append(piece.clone()).await.unwrap();
    }
    let grown = resident().saturating_sub(before);
    // The clients are in here too, with the windows of theirs.
    assert!(grown < 500 << 20, "grown by {} MiB", grown >> 20);
    out.finish().await.unwrap();
}

#[tokio::test]
async fn nothing_is_read_ahead_of_a_reader_that_takes_nothing() {
    let spy = Spy::new(MemoryStorage::new(1 << 30));
    let watch = spy.watch.clone();
    let layer = HttpFStreamLayer::from_streams(Streams::builder(spy).tail_cache(0).build()).plain_http(true);
    let mut out = layer.streams().open_append("a").await.unwrap();
    out.append(pattern(0, 10_000)).await.unwrap();
    for accept in ["*/*", "text/event-stream"] {
        let request = Request::get("/a?verb=FOLLOW").header("accept", accept).body(http_body_util::Full::default());
        let response = layer.layer(common::inner()).oneshot(request.unwrap()).await.unwrap();
        let mut body = response.into_body();
        let before = watch.now().reads;
        for _ in 0..1_000 {
            out.append(pattern(0, 10_000)).await.unwrap();
        }
        assert_eq!(watch.now().reads, before, "{accept}: nobody asked for a byte");
        for _ in 0..3 {
            let frame = soon("a frame", body.frame()).await.unwrap().unwrap().into_data().unwrap();
            assert!(frame.len() <= 300_000, "{accept}: a frame of {} bytes", frame.len());
        }
        assert!(watch.now().reads <= before + 1, "{accept}");
    }
}

/// A chat of one byte at a time has to come through a compressing layer as it is said.
#[tokio::test]
async fn a_compressing_layer_outside_leaves_a_live_body_alone() {
    for Store { name, layer, .. } in stores() {
        let streams = layer.streams();
        let app = Router::new().fallback(|| async { "inner" }).layer(layer);
        let app = app.layer(tower_http::compression::CompressionLayer::new());
        let server = serve_router(app, streams).await;
        let gzip = [("accept-encoding", "gzip")];
        let mut out = open(&server, "a.txt", "0123456789".repeat(100)).await;
        for http in BOTH {
            for (query, headers) in [("", &gzip[..]), ("&offset=3", &gzip), ("", &[gzip[0], ("range", "bytes=3-")])] {
                let target = format!("/a.txt?verb=FOLLOW{query}");
                let mut live = ask(server.addr, http, &target, headers).await;
                assert_eq!(live.header("content-encoding"), Some("identity"), "{name}");
                let from: u64 = live.header("stream-offset").unwrap().parse().unwrap();
                let stored = server.streams.stat("a.txt").await.unwrap().unwrap().len - from;
                live.bytes(stored as usize).await;
                for byte in ["x", "y", "z"] {
                    out.append(byte).await.unwrap();
                    assert_eq!(live.bytes(1).await, byte.as_bytes(), "{name} {http:?} {query}");
                }
            }
            let events = [gzip[0], ("accept", "text/event-stream")];
            let mut live = ask(server.addr, http, "/a.txt?verb=FOLLOW&tail=0", &events).await;
            let mut told = Vec::new();
            for byte in ["x", "y", "z"] {
                out.append(byte).await.unwrap();
                let data = format!("data: {byte}\n\n");
                while !told.ends_with(data.as_bytes()) {
                    told.extend(live.bytes(1).await);
                }
            }
        }
        drop(out);
        server.at_rest("a.txt").await;
        let compressed = get(&server, "/a.txt?verb=FOLLOW", &gzip).await;
        assert_eq!(compressed.header("content-encoding"), Some("gzip"), "{name}: it does compress");
        // And reads what is at rest to its end, which is a clean one.
        let compressed = ask(server.addr, Http::One, "/a.txt?verb=FOLLOW&offset=3", &gzip).await;
        let (data, clean) = compressed.to_end().await;
        assert!(clean && !data.is_empty(), "{name}: {} bytes, {clean}", data.len());
    }
}

#[tokio::test]
async fn streams_serve_follows_just_so() {
    for Store { name, layer, .. } in stores() {
        let streams = layer.streams();
        let of = streams.clone();
        let route = move |request: axum::extract::Request| {
            let of = of.clone();
            async move { of.serve("inside/a", request).await }
        };
        let app = Router::new().route("/job/7/log", axum::routing::any(route));
        let server = serve_router(app, streams).await;
        for http in BOTH {
            let mut out = open(&server, "inside/a", "one ").await;
            let mut live = ask(server.addr, http, "/job/7/log?verb=FOLLOW", &[]).await;
            assert_eq!((live.status.as_u16(), live.header("stream-state")), (200, Some("live")));
            assert_eq!(live.header("content-encoding"), Some("identity"));
            assert_eq!(live.bytes(4).await, b"one ");
            let cut = ask(server.addr, http, "/job/7/log?verb=FOLLOW&offset=4", &[]).await;
            let events = [("accept", "text/event-stream")];
            let mut told = ask(server.addr, http, "/job/7/log?verb=FOLLOW", &events).await;
            assert_eq!(told.header("content-type"), Some("text/event-stream"));
            told.bytes(10).await;
            out.append("two").await.unwrap();
            assert_eq!(live.bytes(3).await, b"two");
            for method in ["PUT", "POST"] {
                let mut client = Client::new(server.addr, http).await;
                let answer = client.send(method, "/job/7/log?verb=APPEND", &[], full("evil")).await.unwrap();
                assert_eq!(answer.status(), 403, "{name} {method}");
            }
            drop(out);
            assert_eq!(live.to_end().await, (vec![], false), "{name} {http:?}");
            assert_eq!(cut.to_end().await, (b"two".to_vec(), false), "{name} {http:?}");
            let (told, clean) = told.to_end().await;
            assert!(clean && String::from_utf8(told).unwrap().contains(r#""state":"interrupted""#), "{name} {http:?}");
            server.at_rest("inside/a").await;
            server.streams.delete("inside/a").await.unwrap();
        }
        assert_eq!(server.get("/job/7/log?verb=FOLLOW").await.status, 404);
    }
}

#[tokio::test]
async fn fault_44_a_shutdown_waits_for_the_tail_that_a_slow_reader_is_still_to_get() {
    for Store { name, layer, .. } in stores() {
        // A storage is shut down once.
        let http = BOTH[usize::from(name == "files")];
        {
            let server = serve(layer).await;
            let key = "a".to_owned();
            let all = pattern(0, 24 << 20);
            let mut out = open(&server, &key, all[..1].to_vec()).await;
            let mut reader = follow(&server, http, &key).await;
            assert_eq!(reader.bytes(1).await, all[..1]);
            out.append(all[1..].to_vec()).await.unwrap();
            let streams = Streams::clone(&server.streams);
            let mut down = std::pin::pin!(streams.shutdown(NEVER));
            assert!(futures_util::poll!(&mut down).is_pending());
            out.finish().await.unwrap();
            for _ in 0..1_000 {
                assert!(
                    futures_util::poll!(&mut down).is_pending(),
                    "{name} {http:?}: the reader has not got its tail"
                );
                tokio::task::yield_now().await;
            }
            // Nothing new is let in, for it would wait too.
            let other = ask(server.addr, http, "/none?verb=FOLLOW&wait=60", &[]).await;
            assert_eq!(other.status, 503, "{name}");
            let (rest, clean) = reader.to_end().await;
            assert!(rest == all[1..] && clean, "{name} {http:?}: {}", rest.len());
            soon("the shutdown", down).await;
        }
    }
}

#[tokio::test]
async fn fault_44_after_the_grace_the_body_is_aborted_and_what_was_handed_out_arrives() {
    for http in BOTH {
        let server = serve(memory_layer()).await;
        let mut out = open(&server, "a", "one ").await;
        let mut reader = follow(&server, http, "a").await;
        assert_eq!(reader.bytes(4).await, b"one ");
        let events = [("accept", "text/event-stream")];
        let told = ask(server.addr, http, "/a?verb=FOLLOW", &events).await;
        let shutdown = server.streams.shutdown(Duration::from_millis(100));
        let appending = async {
            out.append("two").await.unwrap();
            assert_eq!(reader.bytes(3).await, b"two");
            assert_eq!(reader.to_end().await, (vec![], false), "{http:?}");
            let (told, clean) = told.to_end().await;
            let told = String::from_utf8(told).unwrap();
            assert!(!clean && told.contains("two") && !told.contains("length"), "{http:?}: {told}");
        };
        soon("the shutdown", async { tokio::join!(shutdown, appending) }).await;
    }
}

#[tokio::test]
async fn nothing_is_sent_while_nothing_is_appended_and_whoever_leaves_leaves_nothing_running() {
    let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let server = serve(memory_layer()).await;
    let mut out = open(&server, "a", "x").await;
    let before = alive();
    let mut readers = Vec::new();
    for i in 0..20 {
        let mut reader = follow(&server, BOTH[i % 2], "a").await;
        reader.bytes(1).await;
        readers.push(reader);
    }
    drop(readers);
    soon("what ran for the readers to end", async {
        while alive() > before {
            tokio::task::yield_now().await;
        }
    })
    .await;
    out.append("y").await.unwrap();
    out.finish().await.unwrap();
    soon("the shutdown", server.streams.shutdown(NEVER)).await;
}

#[tokio::test]
async fn what_is_lost_or_parked_is_waited_for_and_goes_on() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        for http in BOTH {
            let key = format!("{http:?}");
            let id = AppenderId::random().unwrap();
            let mut out = server.streams.open_append(&*key).appender_id(id.clone()).await.unwrap();
            out.append("one ").await.unwrap();
            drop(out);
            let mut reader = follow(&server, http, &key).await;
            assert_eq!(reader.header("stream-state"), Some("lost"), "{name}");
            assert_eq!(reader.bytes(4).await, b"one ");
            let mut out = server.streams.open_append(&*key).appender_id(id).await.unwrap();
            out.append("two").await.unwrap();
            assert_eq!(reader.bytes(3).await, b"two");
            out.finish().await.unwrap();
            assert_eq!(reader.to_end().await, (vec![], true), "{name} {http:?}: it never ended in between");
        }
    }
}

#[tokio::test]
async fn fault_13_other_methods_with_a_verb_are_405() {
    let server = serve(memory_layer()).await;
    let _out = open(&server, "a", "x").await;
    for method in ["PUT", "POST", "PATCH", "DELETE", "OPTIONS"] {
        let answer = server.request(method, "/a?verb=FOLLOW", &[]).await;
        assert_eq!((answer.status, &*problem(&answer)), (405, "method"), "{method}");
        assert_eq!(answer.header("allow"), Some("GET, HEAD"));
    }
    assert_eq!(server.streams.stat("a").await.unwrap().unwrap().state, State::Live);
}

#[tokio::test]
async fn authorization_comes_before_anything_is_looked_up() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let spy = Spy::new(MemoryStorage::new(1 << 20));
    let watch = spy.watch.clone();
    let layer = HttpFStreamLayer::new(spy).plain_http(true).authorize(move |access| {
        seen.lock().unwrap().push((access.verb, access.key.as_str().to_owned()));
        async { Err(httpfstream::Denied::Unauthorized) }
    });
    let server = serve(layer).await;
    for target in ["/a?verb=FOLLOW", "/none?verb=FOLLOW&wait=5"] {
        for headers in [&[][..], &[("Accept", "text/event-stream")]] {
            let answer = get(&server, target, headers).await;
            assert_eq!((answer.status, &*problem(&answer)), (401, "unauthorized"));
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
    }
    assert_eq!(asked.lock().unwrap().len(), 4);
    let calls = watch.now();
    assert_eq!((calls.stats, calls.reads, calls.opens), (0, 0, 0), "the store was not touched");
}
