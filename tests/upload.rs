//! Appending by the body of a request, and resumable uploads (protocol section 5).
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use axum::Router;
use bytes::Bytes;
use common::plain::{BOTH, Client, Frames, Http, LAST_CHUNK, Live, Upload, ask, chunk, full, problem};
use common::spy::Spy;
use common::{
    Answer, Frame, Raw, Server, Store, fs_layer, memory_layer, pattern, pipe, reopened, serve, serve_router, soon,
    stores, within,
};
use futures_util::FutureExt;
use httpfstream::{Denied, ErrorKind, Grant, HttpFStream, HttpFStreamLayer, Streams, Update};
use httpfstream::{
    Stat, State,
    storage::{FsStorage, MemoryStorage},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Longer than any test waits.
const NEVER: Duration = Duration::from_secs(3600);

const ID: &str = "0123456789abcdefghijklmnopqrstuv";
const OTHER: &str = "vutsrqponmlkjihgfedcba9876543210";

const PARTIAL: (&str, &str) = ("content-type", "application/partial-upload");
const MORE: (&str, &str) = ("upload-complete", "?0");
const ALL: (&str, &str) = ("upload-complete", "?1");
const BY_ID: (&str, &str) = ("appender-id", ID);

/// A request with a whole body, over a connection of its own.
async fn send(
    server: &Server,
    http: Http,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: impl Into<bytes::Bytes>,
) -> Answer {
    let response = Client::new(server.addr, http).await.send(method, target, headers, full(body)).await.unwrap();
    Live::of(response).whole().await
}

async fn one(server: &Server, method: &str, target: &str, headers: &[(&str, &str)], body: &'static str) -> Answer {
    send(server, Http::One, method, target, headers, body).await
}

/// Status and problem.
fn refused(answer: &Answer) -> (u16, String) {
    (answer.status, problem(answer))
}

async fn stat(server: &Server, key: &str) -> Option<Stat> {
    server.streams.stat(key).await.unwrap()
}

async fn until_state(server: &Server, key: &str, state: State) -> Stat {
    soon("the state", async {
        loop {
            match stat(server, key).await {
                Some(stat) if stat.state == state => return stat,
                _ => tokio::task::yield_now().await,
            }
        }
    })
    .await
}

async fn until_len(server: &Server, key: &str, len: u64) {
    soon("the length", async {
        while stat(server, key).await.is_none_or(|stat| stat.len != len) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// A follower by plain HTTP, from the start.
async fn follow(server: &Server, key: &str) -> Live {
    let live = ask(server.addr, Http::One, &format!("/{key}?verb=FOLLOW&wait=30"), &[]).await;
    assert_eq!(live.status, 200);
    live
}

async fn finished(server: &Server, key: &str, data: &'static str) -> Stat {
    let mut out = server.streams.append(key).await.unwrap();
    out.append(data).await.unwrap();
    out.finish().await.unwrap()
}

/// The next answer's head, however long the clock takes.
async fn head_at_last<IO>(raw: &mut Raw<IO>) -> Answer
where
    IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    while !raw.buf.windows(4).any(|w| w == b"\r\n\r\n") {
        assert!(within(NEVER, "an answer", raw.stream.read_buf(&mut raw.buf)).await.unwrap() > 0);
    }
    raw.read_head().await
}

#[tokio::test]
async fn followers_get_each_piece_while_the_request_runs() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        for http in BOTH {
            for (method, headers) in
                [("PUT", &[][..]), ("POST", &[]), ("PATCH", &[PARTIAL, ("upload-offset", "0")]), ("POST", &[ALL])]
            {
                let key = format!("{http:?}{method}{}", headers.len());
                let upload = Upload::begin(server.addr, http, method, &format!("/{key}?verb=APPEND"), headers).await;
                let mut follower = follow(&server, &key).await;
                for i in 0..20 {
                    let piece = pattern(i, 1 + i as usize * 500);
                    upload.send(piece.clone()).await;
                    assert!(follower.bytes(piece.len()).await == piece, "{name} {key} {i}");
                }
                assert_eq!(stat(&server, &key).await.unwrap().state, State::Live);
                let answer = upload.end().await;
                assert_eq!(answer.status, if method == "PATCH" { 200 } else { 201 }, "{name} {key} {answer:?}");
                assert_eq!(follower.to_end().await, (vec![], true), "{name} {key}");
            }
        }
    }
}

#[tokio::test]
async fn large_bodies_arrive_exactly() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        let all = pattern(0, 12 << 20);
        for http in BOTH {
            let key = format!("{http:?}");
            let follower = async {
                // It waits for the first byte.
                follow(&server, &key).await.to_end().await
            };
            let target = format!("/{key}?verb=APPEND");
            let (answer, (got, clean)) = tokio::join!(send(&server, http, "PUT", &target, &[], all.clone()), follower);
            assert_eq!((answer.status, answer.header("upload-offset")), (201, Some(&*all.len().to_string())));
            assert!(clean && got == all, "{name} {http:?}: {}", got.len());
            assert!(server.get(&format!("/{key}")).await.body == all, "{name} {http:?}");
        }
    }
}

#[tokio::test]
async fn methods_begin_where_they_say() {
    for store in stores() {
        let server = serve(store.layer.clone()).await;
        let name = store.name;
        for http in BOTH {
            let key = format!("d/{http:?}.log");
            let target = format!("/{key}?verb=APPEND");
            let put = async |headers: &[(&str, &str)], body: &'static str| {
                send(&server, http, "PUT", &target, headers, body).await
            };
            let answer = put(&[], "one ").await;
            let life = stat(&server, &key).await.unwrap().life.to_string();
            assert_eq!((answer.status, answer.body.len()), (201, 0), "{name}");
            for (header, value) in [
                ("location", &*format!("./{http:?}.log")),
                ("stream-state", "finished"),
                ("stream-life", &life),
                ("upload-offset", "4"),
                ("upload-complete", "?1"),
            ] {
                assert_eq!(answer.header(header), Some(value), "{name} {header}");
            }
            let tag = answer.header("etag").unwrap().to_owned();
            assert!(server.get(&format!("/{key}")).await.header("etag").unwrap().starts_with(&tag[..35]), "{name}");
            // A replayed PUT changes nothing.
            let before = stat(&server, &key).await;
            let answer = put(&[], "one ").await;
            assert_eq!(refused(&answer), (409, "offset".into()), "{name}");
            assert_eq!(answer.header("upload-offset"), Some("4"), "it says where it ends");
            assert_eq!(stat(&server, &key).await, before, "{name}");
            // But one that says where goes on.
            assert_eq!(put(&[("upload-offset", "4")], "two ").await.status, 200);
            let post = async |query: &str, headers: &[(&str, &str)], body: &'static str| {
                send(&server, http, "POST", &format!("{target}{query}"), headers, body).await
            };
            let answer = post("", &[], "three ").await;
            assert_eq!((answer.status, answer.header("upload-offset")), (200, Some("14")), "{name}");
            assert_eq!(answer.header("location"), None);
            assert_eq!(post("&offset=14", &[], "four ").await.status, 200);
            let patch = async |headers: &[(&str, &str)], body: &'static str| {
                send(&server, http, "PATCH", &target, headers, body).await
            };
            assert_eq!(patch(&[PARTIAL, ("upload-offset", "19")], "five").await.status, 200);
            let before = stat(&server, &key).await;
            let other_life = format!("&life={}", "0".repeat(32));
            for (answer, expected) in [
                (post("&offset=3", &[], "x").await, (409, "offset")),
                (post("", &[("upload-offset", "24")], "x").await, (409, "offset")),
                (post("", &[("if-none-match", "*")], "x").await, (409, "exists")),
                (post("&create", &[], "x").await, (409, "exists")),
                (post(&other_life, &[], "x").await, (412, "life")),
                (patch(&[PARTIAL, ("upload-offset", "4")], "x").await, (409, "offset")),
                (patch(&[PARTIAL], "x").await, (400, "bad-request")),
                (patch(&[("upload-offset", "23")], "x").await, (415, "media-type")),
                (post("&offset=3", &[("upload-offset", "4")], "x").await, (400, "bad-request")),
                (post("", &[("upload-offset", "-1")], "x").await, (400, "bad-request")),
                (post("", &[("appender-id", "short")], "x").await, (400, "bad-request")),
                (post("&finish=3", &[], "x").await, (400, "bad-request")),
                (post("", &[("upload-complete", "true")], "x").await, (400, "bad-request")),
                (post("", &[("upload-length", "x")], "x").await, (400, "bad-request")),
                (post("", &[("content-range", "bytes 0-0/1")], "x").await, (400, "bad-request")),
            ] {
                assert_eq!(refused(&answer), (expected.0, expected.1.into()), "{name} {answer:?}");
                assert_eq!(stat(&server, &key).await, before, "{name} {answer:?}");
            }
            assert_eq!(post(&format!("&life={life}"), &[], "").await.status, 200, "{name}");
            assert_eq!(server.get(&format!("/{key}")).await.text(), "one two three four five");
        }
        store.holds_only(&["d/One.log", "d/Two.log"]);
    }
}

#[tokio::test]
async fn a_clean_end_without_a_byte_creates_a_resource_and_a_colon_is_no_scheme() {
    for store in stores() {
        let server = serve(store.layer.clone()).await;
        for (method, key) in [("PUT", "a:b"), ("POST", "b")] {
            let answer = one(&server, method, &format!("/{key}?verb=APPEND"), &[], "").await;
            assert_eq!((answer.status, answer.header("upload-offset")), (201, Some("0")), "{}", store.name);
            assert_eq!(answer.header("location"), Some(&*format!("./{key}")));
            assert_eq!(stat(&server, key).await.unwrap().state, State::Finished);
        }
        store.holds_only(&["a:b", "b"]);
    }
}

#[tokio::test]
async fn other_methods_with_the_verb_are_405_and_a_get_is_426() {
    let server = serve(memory_layer()).await;
    let answer = server.get("/a?verb=APPEND").await;
    assert_eq!(refused(&answer), (426, "upgrade-required".into()));
    assert_eq!((answer.header("upgrade"), answer.header("sec-websocket-version")), (Some("websocket"), Some("13")));
    assert!(answer.text().contains("proxy"), "it names the cause: {answer:?}");
    for method in ["HEAD", "DELETE", "OPTIONS"] {
        let answer = server.request(method, "/a?verb=APPEND", &[]).await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, PUT, POST, PATCH")), "{method}");
    }
    assert_eq!(stat(&server, "a").await, None);
}

#[tokio::test]
async fn everything_is_synced_before_the_answer() {
    let spy = Spy::new(MemoryStorage::new(1 << 20));
    let watch = spy.watch.clone();
    let server = serve(HttpFStreamLayer::new(spy).plain_http(true)).await;
    let gate = watch.hold_syncs();
    // What is parked is synced; the answer waits for that.
    let mut parking = std::pin::pin!(one(&server, "POST", "/a", &[MORE], "some"));
    let calls = tokio::select! {
        answer = &mut parking => panic!("{answer:?} before the sync"),
        calls = watch.until("the sync to begin", |calls| calls.syncs_begun > 0) => calls,
    };
    assert_eq!((calls.appended, calls.syncs), (4, 0));
    for _ in 0..100 {
        assert!((&mut parking).now_or_never().is_none(), "not before the sync is done");
        tokio::task::yield_now().await;
    }
    drop(gate);
    assert_eq!(parking.await.status, 201);
    assert_eq!(watch.now().synced, 4);
    let patch = [PARTIAL, ("upload-offset", "4")];
    assert_eq!(one(&server, "PATCH", "/a", &patch, " more").await.status, 200);
    assert_eq!(watch.now().finishes, 1);
    // One that fails is no success, and nobody is told that it is stored.
    watch.fail_syncs.store(true, Ordering::Relaxed);
    let answer = one(&server, "POST", "/b", &[MORE], "some").await;
    assert_eq!(refused(&answer), (500, "storage".into()));
}

#[tokio::test]
async fn what_is_parked_waits_for_whoever_goes_on() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        for http in BOTH {
            for by in ["POST", "PATCH", "PUT", "websocket", "v1"] {
                let key = format!("{http:?}{by}");
                let target = format!("/{key}");
                let answer = send(&server, http, "POST", &target, &[MORE], "one ").await;
                assert_eq!((answer.status, answer.header("stream-state")), (201, Some("parked")), "{name} {key}");
                assert_eq!(answer.header("upload-complete"), Some("?0"));
                let location = format!("./{key}");
                assert_eq!(answer.header("location"), Some(&*location));
                let mut follower = follow(&server, &key).await;
                assert_eq!(follower.header("stream-state"), Some("parked"));
                assert_eq!(follower.bytes(4).await, b"one ");
                let told = server.request("HEAD", &target, &[]).await;
                for (header, value) in [("upload-offset", "4"), ("upload-complete", "?0"), ("stream-state", "parked")] {
                    assert_eq!(told.header(header), Some(value), "{name} {key} {header}");
                }
                assert_eq!(told.header("upload-length"), None);
                // It was left for those without an id.
                let answer = send(&server, http, "POST", &target, &[MORE, BY_ID], "x").await;
                assert_eq!(refused(&answer), (409, "busy".into()), "{name} {key}");
                let part = |at: &'static str, complete| [PARTIAL, ("upload-offset", at), complete];
                let answer = send(&server, http, "PATCH", &target, &part("4", MORE), "two ").await;
                assert_eq!((answer.status, answer.header("stream-state")), (200, Some("parked")), "{answer:?}");
                assert_eq!(follower.bytes(4).await, b"two ");
                match by {
                    "POST" => {
                        let verb = format!("{target}?verb=APPEND");
                        assert_eq!(send(&server, http, "POST", &verb, &[], "three").await.status, 200);
                    }
                    "PATCH" => {
                        assert_eq!(send(&server, http, "PATCH", &target, &part("8", ALL), "three").await.status, 200);
                    }
                    "PUT" => {
                        let at = [ALL, ("upload-offset", "8")];
                        assert_eq!(send(&server, http, "PUT", &target, &at, "three").await.status, 200);
                    }
                    "websocket" => {
                        let mut appender = server.append(&target).await;
                        appender.send_text("three").await;
                        appender.send_close(1000).await;
                        assert_eq!(appender.to_end().await, (vec![], Some(1000)));
                    }
                    _ => {
                        let protocol = [("Sec-WebSocket-Protocol", "httpfstream.v1")];
                        let (answer, mut appender) =
                            server.upgrade(&format!("{target}?verb=APPEND&offset=8"), &protocol).await;
                        assert_eq!(answer.status, 101, "{answer:?}");
                        appender.send_frame(0x82, b"three").await;
                        appender.send_close(1000).await;
                        let (told, code) = appender.to_end().await;
                        assert_eq!(code, Some(1000), "{}", String::from_utf8_lossy(&told));
                    }
                }
                assert_eq!(follower.to_end().await, (b"three".to_vec(), true), "{name} {key}");
                let told = server.request("HEAD", &target, &[]).await;
                for (header, value) in [("upload-offset", "13"), ("upload-complete", "?1"), ("upload-length", "13")] {
                    assert_eq!(told.header(header), Some(value), "{name} {key} {header}");
                }
            }
        }
    }
}

#[tokio::test]
async fn what_was_parked_with_an_id_waits_for_that_id() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        assert_eq!(one(&server, "POST", "/a", &[MORE, BY_ID], "one ").await.status, 201);
        for headers in [&[MORE][..], &[MORE, ("appender-id", OTHER)], &[]] {
            let answer = one(&server, "POST", "/a?verb=APPEND", headers, "x").await;
            assert_eq!(refused(&answer), (409, "busy".into()), "{name}");
            assert_eq!(answer.header("stream-state"), Some("parked"));
        }
        assert_eq!(server.upgrade("/a?verb=APPEND", &[]).await.0.status, 409);
        let patch = [PARTIAL, ("upload-offset", "4"), MORE, BY_ID];
        assert_eq!(one(&server, "PATCH", "/a", &patch, "two ").await.status, 200);
        let headers = [("Sec-WebSocket-Protocol", "httpfstream.v1"), ("Appender-Id", ID)];
        let (answer, mut appender) = server.upgrade("/a?verb=APPEND", &headers).await;
        assert_eq!(answer.status, 101, "{name}");
        let Frame::Text(first) = appender.frame().await else { panic!() };
        let first: serde_json::Value = serde_json::from_slice(&first).unwrap();
        assert_eq!((&first["offset"], &first["resumed"]), (&8.into(), &true.into()), "{name}");
        appender.send_frame(0x82, b"three").await;
        appender.send_close(1000).await;
        assert_eq!(appender.to_end().await.1, Some(1000));
        assert_eq!(server.get("/a").await.text(), "one two three", "{name}");
    }
}

#[tokio::test]
async fn an_upload_may_be_created_without_a_byte() {
    for store in stores() {
        let server = serve(store.layer.clone()).await;
        let name = store.name;
        let answer = one(&server, "POST", "/a", &[MORE, ("upload-length", "8")], "").await;
        assert_eq!((answer.status, answer.header("upload-offset")), (201, Some("0")), "{name}");
        assert_eq!(answer.header("stream-state"), Some("parked"));
        let told = server.request("HEAD", "/a", &[]).await;
        assert_eq!((told.status, told.header("upload-offset")), (200, Some("0")), "{name}");
        assert_eq!(server.get("/a").await.text(), "");
        let mut follower = follow(&server, "a").await;
        let patch = [PARTIAL, ("upload-offset", "0"), MORE];
        assert_eq!(one(&server, "PATCH", "/a", &patch, "half").await.status, 200);
        assert_eq!(follower.bytes(4).await, b"half");
        // Ended without another byte.
        let patch = [PARTIAL, ("upload-offset", "4"), ALL];
        assert_eq!(one(&server, "PATCH", "/a", &patch, "").await.status, 200);
        assert_eq!(follower.to_end().await, (vec![], true), "{name}");
        store.holds_only(&["a"]);
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_goes_on_and_the_parking_ends() {
    let streams = Streams::builder(MemoryStorage::new(1 << 20)).parking_timeout(Duration::from_secs(600)).build();
    let layer = HttpFStreamLayer::from_streams(streams.clone()).plain_http(true);
    let mut follower = streams.follow("a").wait(NEVER);
    for (key, data) in [("a", "some"), ("empty", "")] {
        let mut raw = pipe(&layer);
        raw.send_head("POST", &format!("/{key}"), &[MORE, ("content-length", &data.len().to_string())], "").await;
        raw.send(data.as_bytes()).await;
        assert_eq!(head_at_last(&mut raw).await.status, 201);
    }
    follower = follower.wait(Duration::ZERO);
    let begun = tokio::time::Instant::now();
    let mut follower = follower.await.unwrap();
    let mut raw = pipe(&layer);
    raw.send_head("GET", "/a?verb=FOLLOW", &[], "").await;
    assert_eq!(raw.read_head().await.status, 200);
    assert_eq!(raw.chunk().await, Ok(Some(b"some".to_vec())));
    assert_eq!(raw.chunk().await, Err(()), "it is interrupted, not finished");
    assert_eq!(begun.elapsed().as_secs(), 601, "and the second that an abort lingers");
    assert_eq!(follower.next_chunk().await.unwrap().as_deref(), Some(&b"some"[..]));
    assert_eq!(follower.next_chunk().await.unwrap_err().kind(), ErrorKind::Interrupted);
    assert_eq!(streams.stat("a").await.unwrap().unwrap().state, State::Interrupted);
    assert_eq!(streams.stat("empty").await.unwrap(), None, "it leaves no trace");
    // Whoever uploads can go on after that too.
    let mut raw = pipe(&layer);
    raw.send_head("PATCH", "/a", &[PARTIAL, ("upload-offset", "4"), ("content-length", "1")], "").await;
    raw.send(b"!").await;
    assert_eq!(head_at_last(&mut raw).await.status, 200);
}

/// Ways to cut a body.
async fn cut(server: &Server, how: &str, target: &str, headers: &[(&'static str, &str)]) {
    let key = target.trim_start_matches('/').split('?').next().unwrap();
    match how {
        "one" | "two" => {
            let http = if how == "one" { Http::One } else { Http::Two };
            let upload = Upload::begin(server.addr, http, "POST", target, headers).await;
            upload.send("half").await;
            until_len(server, key, 4).await;
            upload.cut().await;
        }
        // The future of the answer is dropped: RST_STREAM with CANCEL, as from a tab that is closed.
        "cancelled" => {
            let upload = Upload::begin(server.addr, Http::Two, "POST", target, headers).await;
            upload.send("half").await;
            until_len(server, key, 4).await;
            upload.answer.abort();
            let _ = upload.answer.await;
        }
        _ => {
            let mut raw = Raw::connect(server.addr).await;
            let length = [("content-length", "100")];
            let chunked = [("transfer-encoding", "chunked")];
            let headers = [headers, if how == "short" { &length } else { &chunked }].concat();
            raw.send_head("POST", target, &headers, "").await;
            match how {
                "short" => raw.send(b"half").await,
                _ => raw.send(&chunk("half")).await,
            }
            until_len(server, key, 4).await;
            match how {
                "reset" => raw.reset(),
                "inside" => raw.send(b"5\r\nab").await,
                "garbage" => {
                    raw.send(b"xyz\r\n").await;
                    let mut rest = Vec::new();
                    let _ = soon("the end", raw.stream.read_to_end(&mut rest)).await;
                }
                // An end of the connection where a chunk could come.
                _ => {}
            }
        }
    }
}

const CUTS: [&str; 8] = ["one", "two", "cancelled", "short", "reset", "inside", "garbage", "eof"];

#[tokio::test]
async fn a_plain_body_that_is_cut_interrupts_at_once() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        for how in CUTS {
            let following = follow(&server, how);
            let target = format!("/{how}?verb=APPEND");
            let (mut follower, ()) = tokio::join!(following, cut(&server, how, &target, &[]));
            assert_eq!(follower.bytes(4).await, b"half", "{name} {how}");
            let (rest, clean) = follower.to_end().await;
            // What comes of a piece is stored or not, but it is no end.
            assert!(!clean && (rest.is_empty() || how == "inside"), "{name} {how}: {rest:?} {clean}");
            let stat = server.at_rest(how).await.unwrap();
            assert_eq!(stat.state, State::Interrupted, "{name} {how}");
            // Anybody may append at once.
            let target = format!("/{how}?verb=APPEND&offset={}", stat.len);
            assert_eq!(one(&server, "POST", &target, &[], "!").await.status, 200, "{name} {how}");
        }
    }
}

/// `NO_ERROR` is what Envoy resets with when its own client has gone in the middle of an upload.
#[tokio::test]
async fn a_stream_that_is_reset_is_cut_whatever_its_code() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        for (code, headers) in
            [(0, &[("content-length", "100")][..]), (0, &[]), (8, &[]), (8, &[("content-length", "100")]), (2, &[])]
        {
            let mut upload = Frames::post(server.addr, "/a?verb=APPEND", headers).await;
            upload.data(b"half", false).await;
            until_len(&server, "a", 4).await;
            upload.reset(code).await;
            let stat = server.at_rest("a").await.unwrap();
            assert_eq!(stat.state, State::Interrupted, "{name}: code {code}, {headers:?}");
            server.streams.delete("a").await.unwrap();
        }
        // A reset behind the end comes too late.
        let mut upload = Frames::post(server.addr, "/a?verb=APPEND", &[]).await;
        upload.data(b"half", false).await;
        upload.data(b"", true).await;
        until_len(&server, "a", 4).await;
        assert_eq!(server.at_rest("a").await.unwrap().state, State::Finished, "{name}");
        upload.reset(0).await;
    }
}

#[tokio::test]
async fn trailers_are_no_data_and_an_end_like_any_other() {
    let server = serve(memory_layer()).await;
    let mut raw = Raw::connect(server.addr).await;
    // The verb by its header, too.
    raw.send_head("PUT", "/one", &[("X-Verb", "append"), ("transfer-encoding", "chunked")], "").await;
    raw.send(&[&chunk("data")[..], b"0\r\nx: y\r\n\r\n"].concat()).await;
    assert_eq!(raw.read_head().await.status, 201);
    let mut upload = Frames::post(server.addr, "/two", &[("x-verb", "APPEND")]).await;
    upload.data(b"data", false).await;
    upload.trailers().await;
    until_state(&server, "two", State::Finished).await;
    for target in ["/one", "/two"] {
        assert_eq!(server.get(target).await.text(), "data");
    }
}

/// What may come through one dialect is fenced by another.
#[tokio::test]
async fn fault_30_a_websocket_and_a_body_take_over_from_each_other() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        for http in BOTH {
            let key = format!("{http:?}");
            let target = format!("/{key}?verb=APPEND");
            let v1 = [("Sec-WebSocket-Protocol", "httpfstream.v1"), ("Appender-Id", ID)];
            let (answer, mut socket) = server.upgrade(&target, &v1).await;
            assert_eq!(answer.status, 101);
            socket.send_frame(0x82, b"one ").await;
            until_len(&server, &key, 4).await;
            let body = Upload::begin(server.addr, http, "POST", &target, &[BY_ID]).await;
            body.send("two ").await;
            until_len(&server, &key, 8).await;
            socket.send_frame(0x82, b"GHOST").await;
            assert_eq!(socket.to_end().await.1, Some(4001), "{name} {http:?}");
            let (answer, mut socket) = server.upgrade(&target, &v1).await;
            assert_eq!(answer.status, 101);
            assert_eq!(refused(&body.answer().await), (409, "fenced".into()), "{name} {http:?}");
            socket.send_frame(0x82, b"three").await;
            socket.send_close(1000).await;
            assert_eq!(socket.to_end().await.1, Some(1000));
            assert_eq!(server.get(&format!("/{key}")).await.text(), "one two three", "{name} {http:?}");
        }
    }
}

#[tokio::test]
async fn a_resumable_body_that_is_cut_is_lost_and_anyone_goes_on() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        for how in CUTS {
            for (complete, with_id) in [(ALL, false), (MORE, false), (ALL, true)] {
                let key = format!("{how}-{}-{with_id}", &complete.1[1..]);
                let target = format!("/{key}");
                let headers = if with_id { vec![complete, BY_ID] } else { vec![complete] };
                let following = follow(&server, &key);
                let (mut follower, ()) = tokio::join!(following, cut(&server, how, &target, &headers));
                assert_eq!(follower.bytes(4).await, b"half");
                // What has come of a piece is stored or not.
                let at = until_state(&server, &key, State::Lost).await.len;
                assert!(at == 4 || how == "inside", "{name} {key}: {at}");
                let at = &*at.to_string();
                let told = server.request("HEAD", &target, &[]).await;
                assert_eq!((told.header("upload-offset"), told.header("upload-complete")), (Some(at), Some("?0")));
                let other = if with_id { vec![MORE] } else { vec![MORE, BY_ID] };
                let answer = send(&server, Http::One, "POST", &target, &other, "x").await;
                assert_eq!(refused(&answer), (409, "busy".into()), "{name} {key}");
                let mut patch = vec![PARTIAL, ("upload-offset", at), ALL];
                patch.extend(with_id.then_some(BY_ID));
                let answer = send(&server, Http::One, "PATCH", &target, &patch, " whole").await;
                assert_eq!(answer.status, 200, "{name} {key} {answer:?}");
                let stored = server.get(&target).await.body;
                assert!(stored.starts_with(b"half") && stored.ends_with(b" whole"), "{name} {key}");
                assert_eq!(follower.to_end().await, (stored[4..].to_vec(), true), "{name} {key}: no end in between");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_resumable_body_that_is_cut_is_interrupted_when_its_grace_is_over() {
    let streams = Streams::builder(MemoryStorage::new(1 << 20)).grace(Duration::from_secs(30)).build();
    let layer = HttpFStreamLayer::from_streams(streams.clone()).plain_http(true);
    let mut raw = pipe(&layer);
    raw.send_head("POST", "/a", &[ALL, ("content-length", "100")], "").await;
    raw.send(b"half").await;
    let mut follower = streams.follow("a").wait(Duration::from_secs(1)).await.unwrap();
    assert_eq!(follower.next_chunk().await.unwrap().as_deref(), Some(&b"half"[..]));
    let begun = tokio::time::Instant::now();
    drop(raw);
    assert_eq!(follower.next_update().await.unwrap(), Some(Update::State(State::Lost)));
    assert_eq!(follower.next_update().await.unwrap_err().kind(), ErrorKind::Interrupted);
    assert_eq!(begun.elapsed().as_secs(), 30);
}

#[tokio::test]
async fn fault_30_the_same_appender_takes_over_at_once_and_the_ghosts_bytes_are_never_stored() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        for http in BOTH {
            let key = format!("{http:?}");
            let target = format!("/{key}?verb=APPEND");
            let ghost = Upload::begin(server.addr, http, "POST", &target, &[BY_ID]).await;
            let mut follower = follow(&server, &key).await;
            ghost.send("one ").await;
            assert_eq!(follower.bytes(4).await, b"one ");
            // Everybody else is kept out, however they ask.
            for headers in [&[][..], &[MORE], &[("appender-id", OTHER)], &[("upload-offset", "4")]] {
                let answer = send(&server, http, "POST", &target, headers, "x").await;
                assert_eq!(refused(&answer), (409, "busy".into()), "{name} {http:?}");
            }
            let at = [PARTIAL, BY_ID, ("upload-offset", "4")];
            let again = Upload::begin(server.addr, http, "PATCH", &target, &at).await;
            again.send("two ").await;
            assert_eq!(follower.bytes(4).await, b"two ");
            let _ = ghost.body.as_ref().unwrap().send(Ok(http_body::Frame::data("GHOST".into()))).await;
            let answer = ghost.answer().await;
            assert_eq!(answer.status, 409, "{name} {http:?}: {answer:?}");
            again.send("three").await;
            assert_eq!(again.end().await.status, 200, "{name} {http:?}");
            assert_eq!(follower.to_end().await, (b"three".to_vec(), true), "{name} {http:?}");
            assert_eq!(server.get(&format!("/{key}")).await.text(), "one two three");
        }
    }
}

#[tokio::test]
async fn fault_30_without_an_id_nobody_can_tell_who_it_is_and_a_live_one_is_busy() {
    let server = serve(memory_layer()).await;
    for http in BOTH {
        let target = format!("/{http:?}");
        let live = Upload::begin(server.addr, http, "POST", &target, &[ALL]).await;
        live.send("one").await;
        until_len(&server, &target[1..], 3).await;
        let patch = [PARTIAL, ("upload-offset", "3"), ALL];
        assert_eq!(refused(&send(&server, http, "PATCH", &target, &patch, "x").await), (409, "busy".into()));
        // Asking where it stands disturbs nobody.
        let told = server.request("HEAD", &target, &[]).await;
        assert_eq!((told.header("upload-offset"), told.header("stream-state")), (Some("3"), Some("live")));
        live.send("two").await;
        assert_eq!(live.end().await.status, 201);
        assert_eq!(server.get(&target).await.text(), "onetwo");
    }
}

#[tokio::test]
async fn what_is_wrong_leaves_a_parked_or_lost_resource_as_it_is() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        for (key, headers) in [("anyones", &[MORE][..]), ("somebodys", &[MORE, BY_ID])] {
            for state in [State::Parked, State::Lost] {
                let key = format!("{key}-{state}");
                let target = format!("/{key}");
                match state {
                    State::Parked => {
                        let answer = send(&server, Http::One, "POST", &target, headers, "four").await;
                        assert_eq!(answer.status, 201, "{name} {key}");
                    }
                    _ => {
                        let upload = Upload::begin(server.addr, Http::Two, "POST", &target, headers).await;
                        upload.send("four").await;
                        until_len(&server, &key, 4).await;
                        upload.cut().await;
                        until_state(&server, &key, State::Lost).await;
                    }
                }
                let before = stat(&server, &key).await;
                let mut follower = server.streams.follow(&*key).offset(4).await.unwrap();
                let id = headers.get(1).copied();
                let ask = async |method: &'static str, query: &str, more: &[(&str, &str)]| {
                    let mut all = more.to_vec();
                    all.extend(id);
                    let target = format!("{target}?verb=APPEND{query}");
                    refused(&send(&server, Http::One, method, &target, &all, "x").await)
                };
                let other = format!("&life={}", "0".repeat(32));
                let wrong_offsets = [
                    ("PUT", "", &[][..]),
                    ("PUT", "", &[ALL]),
                    ("POST", "&offset=3", &[]),
                    ("PATCH", "", &[PARTIAL, ("upload-offset", "5")]),
                    ("POST", "", &[("upload-draft-interop-version", "6"), MORE]),
                ];
                for (method, query, more) in wrong_offsets {
                    assert_eq!(ask(method, query, more).await, (409, "offset".into()), "{name} {key} {method} {query}");
                }
                for (more, expected) in [
                    (&[("if-match", "\"other\"")][..], (412, "precondition")),
                    (&[("content-encoding", "gzip")], (415, "media-type")),
                    (&[("upload-complete", "2")], (400, "bad-request")),
                ] {
                    assert_eq!(ask("POST", "", more).await, (expected.0, expected.1.into()), "{name} {key} {more:?}");
                }
                if id.is_none() {
                    // Who is known by its id is let in whatever it says of these, see section 4.
                    assert_eq!(ask("POST", &other, &[]).await, (412, "life".into()), "{name} {key}");
                    assert_eq!(ask("POST", "&create", &[]).await, (409, "exists".into()), "{name} {key}");
                    let create = [("if-none-match", "*")];
                    assert_eq!(ask("POST", "", &create).await, (409, "exists".into()), "{name} {key}");
                }
                let socket = format!("{target}?verb=APPEND&offset=3");
                let headers = [("Sec-WebSocket-Protocol", "httpfstream.v1"), id.unwrap_or(("x-none", "1"))];
                assert_eq!(server.upgrade(&socket, &headers).await.0.status, 409, "{name} {key}");
                assert_eq!(stat(&server, &key).await, before, "{name} {key}");
                assert!(follower.next_update().now_or_never().is_none(), "{name} {key}: nothing to be told");
                assert_eq!(follower.state(), state);
                // And whoever is right goes on.
                let mut patch = vec![PARTIAL, ("upload-offset", "4")];
                patch.extend(id);
                let answer = send(&server, Http::One, "PATCH", &target, &patch, "!").await;
                assert_eq!(answer.status, 200, "{name} {key}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_29_of_many_puts_at_once_exactly_one_creates() {
    for Store { name, layer, .. } in stores() {
        let server = std::sync::Arc::new(serve(layer).await);
        for (round, headers) in [&[][..], &[ALL], &[("if-none-match", "*")], &[]].into_iter().enumerate() {
            for http in BOTH {
                let target = format!("/{round}{http:?}?verb=APPEND");
                let mut putting = Vec::new();
                for i in 0..24 {
                    let (server, target) = (server.clone(), target.clone());
                    putting.push(tokio::spawn(async move {
                        let body = format!("{i:02}").repeat(1_000);
                        let answer = send(&server, http, "PUT", &target, headers, body.clone()).await;
                        (answer, body)
                    }));
                }
                let mut created = Vec::new();
                for put in putting {
                    let (answer, body) = put.await.unwrap();
                    match answer.status {
                        201 => created.push(body),
                        _ => assert_eq!(answer.status, 409, "{name} {answer:?}"),
                    }
                }
                assert_eq!(created.len(), 1, "{name} {target}");
                assert_eq!(server.get(target.split('?').next().unwrap()).await.text(), created[0]);
            }
        }
    }
}

#[tokio::test]
async fn expect_100_continue_is_answered_only_when_the_bytes_will_be_taken() {
    let layer = memory_layer().max_resource_size(100).authorize(|access| async move {
        match access.key.as_str() {
            "denied" => Err(Denied::Unauthorized),
            _ => Ok(Grant::new()),
        }
    });
    let server = serve(layer).await;
    finished(&server, "there", "12345").await;
    let mut out = server.streams.append("sealed").await.unwrap();
    out.append("12345").await.unwrap();
    out.seal().await.unwrap();
    let _live = server.streams.append("live").await.unwrap();
    let expect = ("expect", "100-continue");
    let asked = async |method: &str, target: &str, headers: &[(&str, &str)]| {
        let mut raw = Raw::connect(server.addr).await;
        let mut all = vec![expect];
        if !headers.iter().any(|(name, _)| *name == "content-length") {
            all.push(("content-length", "4"));
        }
        all.extend_from_slice(headers);
        raw.send_head(method, &format!("{target}?verb=APPEND"), &all, "").await;
        let answer = raw.read_head().await;
        (answer.status, raw)
    };
    for (method, target, headers, status) in [
        ("PUT", "/there", &[][..], 409),
        ("POST", "/there", &[("if-none-match", "*")], 409),
        ("POST", "/there", &[("upload-offset", "4")], 409),
        ("POST", "/live", &[], 409),
        ("POST", "/sealed", &[], 409),
        ("POST", "/there", &[("if-match", "\"x\"")], 412),
        ("POST", "/there", &[("origin", "https://evil.example")], 403),
        ("POST", "/denied", &[], 401),
        ("PUT", "/new", &[("content-length", "101")], 413),
        ("PUT", "/new", &[("upload-length", "101")], 413),
        ("POST", "/there", &[("content-length", "96")], 413),
        ("PATCH", "/there", &[PARTIAL, ("upload-offset", "5"), ("content-length", "96")], 413),
        ("PUT", "/new", &[("content-encoding", "gzip")], 415),
        ("POST", "/new", &[("content-type", "multipart/form-data; boundary=x")], 415),
        ("PATCH", "/new", &[("upload-offset", "0")], 415),
        ("PATCH", "/new", &[PARTIAL], 400),
        ("POST", "/new", &[("upload-complete", "x")], 400),
        ("GET", "/new", &[], 426),
        ("DELETE", "/new", &[], 405),
    ] {
        let before = stat(&server, "there").await;
        let (answered, _) = asked(method, target, headers).await;
        assert_eq!(answered, status, "{method} {target} {headers:?}: at once, without a 100 before it");
        assert_eq!(stat(&server, "new").await, None, "{method} {target} {headers:?}");
        assert_eq!(stat(&server, "there").await, before, "{method} {target} {headers:?}");
    }
    for (method, target, headers, status) in [
        ("PUT", "/new", &[][..], 201),
        ("POST", "/there", &[], 200),
        ("PATCH", "/there", &[PARTIAL, ("upload-offset", "9")], 200),
        ("POST", "/there", &[("content-length", "87")], 200),
    ] {
        let (answered, mut raw) = asked(method, target, headers).await;
        assert_eq!(answered, 100, "{method} {target}");
        let len = headers.iter().find(|(name, _)| *name == "content-length").map_or(4, |(_, len)| len.parse().unwrap());
        raw.send(&vec![b'x'; len]).await;
        assert_eq!(raw.read_head().await.status, status, "{method} {target}");
    }
}

#[tokio::test]
async fn what_can_be_refused_by_its_head_is_refused_before_the_store_is_touched() {
    type Changed = fn(HttpFStreamLayer) -> HttpFStreamLayer;
    type Case = (&'static str, Changed, &'static [(&'static str, &'static str)], (u16, &'static str));
    let cases: [Case; 6] = [
        ("read-only", |layer| layer.read_only(), &[], (403, "not-allowed")),
        ("401", |layer| layer.authorize(|_| async { Err(Denied::Unauthorized) }), &[], (401, "unauthorized")),
        ("403", |layer| layer.authorize(|_| async { Err(Denied::Forbidden) }), &[], (403, "not-allowed")),
        ("404", |layer| layer.authorize(|_| async { Err(Denied::NotFound) }), &[], (404, "not-found")),
        ("a page", |layer| layer, &[("origin", "https://evil.example")], (403, "not-allowed")),
        ("null", |layer| layer, &[("origin", "null")], (403, "not-allowed")),
    ];
    for (what, change, headers, expected) in cases {
        let spy = Spy::new(MemoryStorage::new(1 << 20));
        let watch = spy.watch.clone();
        let spied = serve(change(HttpFStreamLayer::new(spy).plain_http(true))).await;
        for method in ["PUT", "POST", "PATCH"] {
            let mut headers = headers.to_vec();
            if method == "PATCH" {
                headers.extend([PARTIAL, ("upload-offset", "0")]);
            }
            let answer = one(&spied, method, "/a?verb=APPEND", &headers, "x").await;
            assert_eq!(refused(&answer), (expected.0, expected.1.into()), "{what} {method}");
            let calls = watch.now();
            assert_eq!((calls.opens, calls.stats, calls.reads), (0, 0, 0), "{what} {method}");
        }
        for store in stores() {
            let server = serve(change(store.layer.clone())).await;
            assert_eq!(one(&server, "PUT", "/d/a?verb=APPEND", headers, "x").await.status, expected.0, "{what}");
            assert_eq!(stat(&server, "d/a").await, None);
            store.holds_only(&[]);
        }
    }
    // A page of the same host is let in, and what is no browser.
    let server = serve(memory_layer()).await;
    let own = format!("http://{}", server.addr);
    assert_eq!(one(&server, "PUT", "/a?verb=APPEND", &[("origin", &own)], "x").await.status, 201);
}

#[tokio::test]
async fn fault_1_to_9_bad_paths_are_refused_and_leave_nothing() {
    for store in stores() {
        let server = serve(store.layer.clone()).await;
        finished(&server, "file", "x").await;
        for (target, status) in
            [("/%2e%2e/a", 400), ("/a//b", 400), ("/a%00", 400), (&*format!("/{}", "a".repeat(300)), 414)]
        {
            for method in ["PUT", "POST"] {
                let answer = one(&server, method, &format!("{target}?verb=APPEND"), &[], "x").await;
                assert_eq!(answer.status, status, "{} {method} {target} {answer:?}", store.name);
            }
        }
        if store.name == "files" {
            let answer = one(&server, "PUT", "/file/child?verb=APPEND", &[], "x").await;
            assert_eq!(refused(&answer), (409, "conflict".into()));
            assert_eq!(one(&server, "PUT", "/.httpfstream/x?verb=APPEND", &[], "x").await.status, 404);
        }
        store.holds_only(&["file"]);
    }
}

#[tokio::test]
async fn a_body_that_grows_over_the_limit_is_413_in_the_middle_and_what_is_stored_stays() {
    for store in stores() {
        let server = serve(store.layer.clone().max_resource_size(10)).await;
        for http in BOTH {
            let key = format!("{http:?}");
            let upload = Upload::begin(server.addr, http, "POST", &format!("/{key}?verb=APPEND"), &[]).await;
            let mut follower = follow(&server, &key).await;
            upload.send("12345678").await;
            assert_eq!(follower.bytes(8).await, b"12345678");
            upload.send("901").await;
            let answer = upload.answer().await;
            assert_eq!(refused(&answer), (413, "too-large".into()), "{}", store.name);
            let (rest, clean) = follower.to_end().await;
            assert!(!clean && b"90".starts_with(&rest), "{rest:?}");
            assert_eq!(server.at_rest(&key).await.unwrap().state, State::Interrupted);
            // Exactly as much as is allowed is.
            let key = format!("{key}-exact");
            let upload = Upload::begin(server.addr, http, "POST", &format!("/{key}?verb=APPEND"), &[]).await;
            upload.send("1234567").await;
            upload.send("890").await;
            assert_eq!(upload.end().await.status, 201);
        }
        // Told by the head, nothing is opened.
        for (target, headers) in [
            ("/new?verb=APPEND", &[][..]),
            ("/new?verb=APPEND&offset=5", &[]),
            ("/new", &[("upload-complete", "?0"), ("upload-length", "11")]),
            ("/One-exact?verb=APPEND", &[]),
        ] {
            let body = if headers.is_empty() { "12345678901" } else { "1" };
            let answer = one(&server, "POST", target, headers, body).await;
            assert_eq!(refused(&answer), (413, "too-large".into()), "{} {target}", store.name);
        }
        assert_eq!(stat(&server, "new").await, None);
        // The whole upload's length is not counted on top of what is there.
        let part = |complete| [("upload-length", "8"), complete];
        assert_eq!(one(&server, "POST", "/new", &part(MORE), "1234").await.status, 201);
        assert_eq!(one(&server, "POST", "/new", &part(ALL), "5678").await.status, 200, "{}", store.name);
        store.holds_only(&["One", "One-exact", "Two", "Two-exact", "new"]);
    }
}

#[tokio::test]
async fn what_would_not_be_stored_as_it_is_meant_is_415() {
    for store in stores() {
        let server = serve(store.layer.clone()).await;
        for (method, headers) in [
            ("POST", &[("content-type", "multipart/form-data; boundary=x")][..]),
            ("PUT", &[("content-encoding", "gzip")]),
            ("PUT", &[("content-encoding", "identity, br")]),
            ("PATCH", &[("upload-offset", "0")]),
            ("PATCH", &[("upload-offset", "0"), ("content-type", "application/json")]),
        ] {
            let answer = one(&server, method, "/a?verb=APPEND", headers, "x").await;
            assert_eq!(refused(&answer), (415, "media-type".into()), "{} {headers:?}", store.name);
            assert_eq!(answer.header("accept-patch"), Some("application/partial-upload"));
        }
        store.holds_only(&[]);
        for (i, content_type) in
            ["text/plain", "application/x-www-form-urlencoded", "multipart/mixed"].iter().enumerate()
        {
            let headers = [("content-type", *content_type), ("content-encoding", "identity")];
            assert_eq!(one(&server, "PUT", &format!("/{i}?verb=APPEND"), &headers, "x").await.status, 201);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_says_nothing_is_given_up_with_408() {
    let layer = memory_layer().silence_timeout(Duration::from_secs(600));
    let streams = layer.streams();
    for (key, headers, state) in [("plain", &[][..], State::Interrupted), ("resumable", &[ALL], State::Lost)] {
        let mut raw = pipe(&layer);
        let headers = [headers, &[("transfer-encoding", "chunked")]].concat();
        raw.send_head("POST", &format!("/{key}?verb=APPEND"), &headers, "").await;
        // Now and then a byte is enough, for hours.
        for _ in 0..50 {
            tokio::time::sleep(Duration::from_secs(590)).await;
            raw.send(&chunk("x")).await;
        }
        let begun = tokio::time::Instant::now();
        let answer = head_at_last(&mut raw).await;
        let lasted = begun.elapsed().as_secs();
        assert!((600..=1200).contains(&lasted), "{lasted}");
        let answer = raw.sized(answer).await;
        assert_eq!(refused(&answer), (408, "timeout".into()), "{key}");
        let stat = streams.stat(key).await.unwrap().unwrap();
        assert_eq!((stat.state, stat.len), (state, 50), "{key}");
    }
}

#[tokio::test(start_paused = true)]
async fn fault_19_a_grant_that_expires_ends_the_append() {
    let layer =
        memory_layer().authorize(|_| async { Ok(Grant::new().until(SystemTime::now() + Duration::from_secs(3600))) });
    let streams = layer.streams();
    let mut raw = pipe(&layer);
    raw.send_head("POST", "/a?verb=APPEND", &[("transfer-encoding", "chunked")], "").await;
    let begun = tokio::time::Instant::now();
    raw.send(&chunk("x")).await;
    let answer = loop {
        tokio::select! {
            answer = head_at_last(&mut raw) => break answer,
            () = tokio::time::sleep(Duration::from_secs(60)) => {}
        }
        assert!(begun.elapsed() < 2 * NEVER, "it goes on for ever");
        raw.send(&chunk("x")).await;
    };
    assert_eq!(answer.status, 403);
    assert!((3590..=3602).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    let stat = streams.stat("a").await.unwrap().unwrap();
    assert_eq!(stat.state, State::Interrupted);
    assert!((59..=61).contains(&stat.len), "{stat:?}");
}

#[tokio::test]
async fn conditions_hold_when_it_is_opened_or_nothing_happens() {
    for store in stores() {
        let server = serve(store.layer.clone()).await;
        let name = store.name;
        let post = async |headers: &[(&str, &str)]| one(&server, "POST", "/a?verb=APPEND", headers, "x").await;
        for condition in ["*", "\"x\""] {
            let answer = post(&[("if-match", condition)]).await;
            assert_eq!(refused(&answer), (412, "precondition".into()), "{name}: there is nothing to match");
        }
        store.holds_only(&[]);
        // Nothing is there, so no tag is.
        assert_eq!(post(&[("if-none-match", "\"x\"")]).await.status, 201, "{name}");
        let tag = server.get("/a").await.header("etag").unwrap().to_owned();
        for headers in [
            [("if-match", "\"x\"")],
            [("if-match", &*format!("W/{tag}"))],
            [("if-none-match", &tag)],
            [("if-none-match", &*format!("\"x\", W/{tag}"))],
        ] {
            let answer = post(&headers).await;
            assert_eq!(refused(&answer), (412, "precondition".into()), "{name} {headers:?}");
            assert_eq!(answer.header("etag"), Some(&*tag), "it says how things stand");
        }
        assert_eq!(refused(&post(&[("if-none-match", "*")]).await), (409, "exists".into()), "{name}");
        assert_eq!(post(&[("if-match", &tag)]).await.status, 200, "{name}");
        assert_eq!(refused(&post(&[("if-match", &tag)]).await), (412, "precondition".into()), "{name}: a replay");
        assert_eq!(post(&[("if-match", "*")]).await.status, 200, "{name}");
        assert_eq!(post(&[("if-none-match", "\"x\"")]).await.status, 200, "{name}");
        assert_eq!(server.get("/a").await.text(), "xxxx", "{name}");
    }
}

#[tokio::test]
async fn of_two_that_depend_on_the_same_state_one_appends() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        finished(&server, "a", "x").await;
        for _ in 0..20 {
            let tag = server.get("/a").await.header("etag").unwrap().to_owned();
            let before = stat(&server, "a").await.unwrap().len;
            let headers = [("if-match", &*tag)];
            let (one, two) = tokio::join!(
                one(&server, "POST", "/a?verb=APPEND", &headers, "1"),
                one(&server, "POST", "/a?verb=APPEND", &headers, "2")
            );
            let mut statuses = [one.status, two.status];
            statuses.sort_unstable();
            assert!(matches!(statuses, [200, 409 | 412]), "{name} {statuses:?}");
            assert_eq!(stat(&server, "a").await.unwrap().len, before + 1, "{name}");
        }
    }
}

/// The one that appends in between is another hub's, so nothing here keeps it out.
#[tokio::test]
async fn what_changes_between_the_look_and_the_opening_is_not_appended_to() {
    for condition in ["if-match", "if-none-match"] {
        for recreate in [false, true] {
            let storage = MemoryStorage::new(1 << 20);
            let spy = Spy::new(storage.clone());
            let watch = spy.watch.clone();
            let server = serve(HttpFStreamLayer::new(spy).plain_http(true)).await;
            finished(&server, "a", "four").await;
            let tag = server.get("/a").await.header("etag").unwrap().to_owned();
            let looks = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
            let before = watch.now().stats;
            let other = Streams::new(storage);
            watch.meanwhile(move || {
                let (other, looks) = (other.clone(), looks.clone());
                async move {
                    // Behind the first look.
                    if looks.fetch_add(1, Ordering::Relaxed) == 1 {
                        let data = if recreate { "five" } else { "!" };
                        if recreate {
                            other.delete("a").await.unwrap();
                        }
                        let mut out = other.append("a").await.unwrap();
                        out.append(data).await.unwrap();
                        out.finish().await.unwrap();
                    }
                }
            });
            let value = if condition == "if-match" { &*tag } else { "\"x\"" };
            let answer = one(&server, "POST", "/a?verb=APPEND", &[(condition, value)], "late").await;
            let expected = if recreate { (412, "life") } else { (409, "offset") };
            assert_eq!(refused(&answer), (expected.0, expected.1.into()), "{condition}");
            assert!(watch.now().stats > before + 1, "it looked more than once");
            let stored = server.get("/a").await.text();
            assert_eq!(stored, if recreate { "five" } else { "four!" }, "{condition}");
        }
    }
}

#[tokio::test]
async fn fault_32_a_finish_whose_answer_was_lost_is_told_again() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        let first = one(&server, "PUT", "/a?verb=APPEND", &[BY_ID], "everything").await;
        assert_eq!(first.status, 201);
        let life = first.header("stream-life").unwrap().to_owned();
        let before = stat(&server, "a").await;
        let target = format!("/a?verb=APPEND&life={life}&finish=10");
        for method in ["PUT", "POST"] {
            let again = one(&server, method, &target, &[BY_ID], "everything").await;
            assert_eq!((again.status, again.header("upload-complete")), (200, Some("?1")), "{name} {method}");
            assert_eq!(stat(&server, "a").await, before, "{name} {method}");
            // Its bytes aren't even asked for.
            let mut raw = Raw::connect(server.addr).await;
            let headers = [BY_ID, ("expect", "100-continue"), ("content-length", "10")];
            raw.send_head(method, &target, &headers, "").await;
            assert_eq!(raw.read_head().await.status, 200, "{name} {method}");
        }
        // It isn't anybody else's finish, nor another one.
        for (target, headers, expected) in [
            (&*target, &[][..], (409, "offset")),
            (&target, &[("appender-id", OTHER)], (409, "offset")),
            (&*format!("/a?verb=APPEND&life={life}&finish=9"), &[BY_ID], (409, "offset")),
        ] {
            let answer = one(&server, "PUT", target, headers, "x").await;
            assert_eq!(refused(&answer), (expected.0, expected.1.into()), "{name} {target}");
        }
        assert_eq!(stat(&server, "a").await, before, "{name}");
    }
}

#[tokio::test]
async fn fault_44_a_shutdown_ends_a_body_and_keeps_what_has_arrived() {
    for (headers, state) in [(&[][..], State::Interrupted), (&[ALL], State::Lost), (&[BY_ID], State::Lost)] {
        for http in BOTH {
            for Store { name, layer, .. } in stores() {
                let server = serve(layer).await;
                let upload = Upload::begin(server.addr, http, "POST", "/a?verb=APPEND", headers).await;
                let mut follower = follow(&server, "a").await;
                upload.send("one ").await;
                assert_eq!(follower.bytes(4).await, b"one ");
                let streams = server.streams.clone();
                let told = async {
                    let answer = upload.answer().await;
                    assert_eq!(refused(&answer), (503, "shutting-down".into()), "{name} {http:?}");
                    assert_eq!(follower.to_end().await, (vec![], false), "{name} {http:?}");
                };
                soon("the shutdown", async { tokio::join!(streams.shutdown(NEVER), told) }).await;
                let stat = streams.stat("a").await.unwrap().unwrap();
                assert_eq!((stat.len, stat.state), (4, state), "{name} {http:?} {headers:?}");
                let answer = one(&server, "PUT", "/b?verb=APPEND", &[], "x").await;
                assert_eq!(refused(&answer), (503, "shutting-down".into()), "nothing new");
                assert_eq!(streams.stat("b").await.unwrap(), None);
            }
        }
    }
}

#[tokio::test]
async fn a_restart_makes_lost_what_was_parked_and_it_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let life = {
        let server = serve(HttpFStreamLayer::new(FsStorage::open(dir.path()).unwrap()).plain_http(true)).await;
        let answer = one(&server, "POST", "/anyones", &[MORE], "four").await;
        assert_eq!(one(&server, "POST", "/somebodys", &[MORE, BY_ID], "four").await.status, 201);
        soon("the shutdown", server.streams.shutdown(NEVER)).await;
        answer.header("stream-life").unwrap().to_owned()
    };
    let server = serve(HttpFStreamLayer::new(reopened(dir.path()).await).plain_http(true)).await;
    for (key, id) in [("anyones", None), ("somebodys", Some(BY_ID))] {
        let target = format!("/{key}");
        let told = server.request("HEAD", &target, &[]).await;
        assert_eq!((told.header("stream-state"), told.header("upload-offset")), (Some("lost"), Some("4")), "{key}");
        let mut follower = follow(&server, key).await;
        assert_eq!(follower.bytes(4).await, b"four");
        let other = if id.is_some() { vec![MORE] } else { vec![MORE, BY_ID] };
        assert_eq!(refused(&one(&server, "POST", &target, &other, "x").await), (409, "busy".into()), "{key}");
        let mut patch = vec![PARTIAL, ("upload-offset", "4"), ALL];
        patch.extend(id);
        assert_eq!(one(&server, "PATCH", &target, &patch, " more").await.status, 200, "{key}");
        assert_eq!(follower.to_end().await, (b" more".to_vec(), true), "{key}");
    }
    assert_eq!(server.get("/anyones").await.header("stream-life"), Some(&*life));
}

#[tokio::test]
async fn what_is_sealed_is_409() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        let mut out = server.streams.append("a").await.unwrap();
        out.append("all").await.unwrap();
        let before = out.seal().await.unwrap();
        for (method, headers) in
            [("PUT", &[][..]), ("POST", &[]), ("POST", &[MORE, BY_ID]), ("PATCH", &[PARTIAL, ("upload-offset", "3")])]
        {
            let answer = one(&server, method, "/a?verb=APPEND", headers, "x").await;
            assert_eq!(refused(&answer), (409, "sealed".into()), "{name} {method}");
            assert_eq!(answer.header("stream-state"), Some("sealed"));
        }
        assert_eq!(stat(&server, "a").await.unwrap().len, before.len);
    }
}

#[tokio::test]
async fn fault_35_a_full_storage_is_507_and_others_go_on() {
    for http in BOTH {
        let server = serve(HttpFStreamLayer::new(MemoryStorage::new(10)).plain_http(true)).await;
        let upload = Upload::begin(server.addr, http, "POST", "/a?verb=APPEND", &[]).await;
        let mut follower = follow(&server, "a").await;
        upload.send("1234567").await;
        assert_eq!(follower.bytes(7).await, b"1234567");
        upload.send("89012").await;
        assert_eq!(refused(&upload.answer().await), (507, "full".into()), "{http:?}");
        assert_eq!(follower.to_end().await, (vec![], false), "nothing of what failed is served");
        let stat = server.at_rest("a").await.unwrap();
        assert_eq!((stat.len, stat.state), (7, State::Interrupted));
        assert_eq!(send(&server, http, "PUT", "/b?verb=APPEND", &[], "123").await.status, 201);
        assert_eq!(send(&server, http, "PUT", "/c?verb=APPEND", &[], "1").await.status, 507);
        assert_eq!(server.streams.stat("c").await.unwrap(), None);
        server.streams.delete("a").await.unwrap();
        assert_eq!(send(&server, http, "PUT", "/c?verb=APPEND", &[], "1").await.status, 201, "there is space again");
    }
}

#[tokio::test]
async fn deleting_cancels_an_upload() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        for http in BOTH {
            let upload = Upload::begin(server.addr, http, "POST", "/a", &[ALL]).await;
            let mut follower = follow(&server, "a").await;
            upload.send("one").await;
            assert_eq!(follower.bytes(3).await, b"one");
            assert_eq!(server.request("DELETE", "/a", &[]).await.status, 204);
            assert_eq!(upload.answer().await.status, 409, "{name}");
            assert_eq!(follower.to_end().await, (vec![], false));
            assert_eq!(send(&server, http, "POST", "/a", &[MORE], "four").await.status, 201);
            let follower = follow(&server, "a").await;
            assert_eq!(server.request("DELETE", "/a", &[]).await.status, 204);
            assert!(!follower.to_end().await.1, "{name}");
            let patch = [PARTIAL, ("upload-offset", "4")];
            let answer = send(&server, http, "PATCH", "/a", &patch, "x").await;
            assert_eq!(refused(&answer), (409, "offset".into()), "{name}: it is gone");
            assert_eq!(stat(&server, "a").await, None, "{name}");
        }
    }
}

/// As tus-js-client does it.
#[tokio::test]
async fn drafts_of_resumable_uploads_work_without_a_verb() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        for version in ["5", "6"] {
            let target = format!("/{version}.bin");
            let draft = ("upload-draft-interop-version", version);
            let answer = one(&server, "POST", &target, &[draft, MORE], "one ").await;
            assert_eq!(answer.status, 201, "{name} {version}");
            assert_eq!(answer.header("location"), Some(&*format!(".{target}")));
            // A creation that is replayed duplicates nothing.
            let again = one(&server, "POST", &target, &[draft, MORE], "one ").await;
            assert_eq!(refused(&again), (409, "offset".into()), "{name} {version}");
            let told = server.request("HEAD", &target, &[draft]).await;
            assert_eq!((told.header("upload-offset"), told.header("upload-complete")), (Some("4"), Some("?0")));
            // Early ones send the file's type, or none.
            let patch = [draft, ("upload-offset", "4"), ALL, ("content-type", "image/png")];
            let answer = one(&server, "PATCH", &target, &patch, "two").await;
            assert_eq!((answer.status, answer.header("upload-complete")), (200, Some("?1")), "{name} {version}");
            assert_eq!(server.get(&target).await.text(), "one two");
            let told = server.request("HEAD", &target, &[draft]).await;
            assert_eq!(told.header("upload-length"), Some("7"));
        }
    }
}

#[tokio::test]
async fn an_id_is_of_no_use_to_another_principal() {
    let layer = memory_layer().authorize(|access| async move {
        let who = access.head.headers.get("x-user").and_then(|who| who.to_str().ok()).unwrap_or("nobody").to_owned();
        Ok(Grant::new().principal(who))
    });
    let server = serve(layer).await;
    assert_eq!(one(&server, "POST", "/a", &[MORE, BY_ID, ("x-user", "ann")], "a").await.status, 201);
    let answer = one(&server, "POST", "/a", &[MORE, BY_ID, ("x-user", "bob")], "b").await;
    assert_eq!(refused(&answer), (409, "busy".into()));
    assert_eq!(one(&server, "POST", "/a", &[ALL, BY_ID, ("x-user", "ann")], "a").await.status, 200);
    assert_eq!(server.get("/a").await.text(), "aa");
}

#[tokio::test]
async fn a_client_that_leaves_behind_its_last_byte_has_finished() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        let mut follower = std::pin::pin!(follow(&server, "a"));
        assert!((&mut follower).now_or_never().is_none());
        let mut raw = Raw::connect(server.addr).await;
        raw.send_head("PUT", "/a?verb=APPEND", &[("transfer-encoding", "chunked")], "").await;
        raw.send(&[chunk("all of it"), LAST_CHUNK.to_vec()].concat()).await;
        raw.stream.shutdown().await.unwrap();
        assert_eq!(follower.await.to_end().await, (b"all of it".to_vec(), true), "{name}");
    }
}

/// What the application gets is what was sent to it, whatever was looked up before.
#[tokio::test]
async fn what_is_not_ours_reaches_the_inner_service_with_its_body() {
    use http_body_util::BodyExt;
    let echo = async |request: axum::extract::Request| {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let kept = head.headers.get("x-kept").map_or("", |value| value.to_str().unwrap());
        format!("{} {} {kept} {}", head.method, head.uri.path_and_query().unwrap(), String::from_utf8_lossy(&body))
    };
    let (files, _dir) = fs_layer();
    let denied = memory_layer().authorize(|_| async { Err(Denied::NotFound) });
    let bare = HttpFStreamLayer::new(MemoryStorage::new(1 << 20));
    for (name, layer) in [("memory", memory_layer()), ("files", files), ("denied", denied), ("bare", bare)] {
        let streams = layer.streams();
        let server = serve_router(Router::new().fallback(echo).layer(layer), streams).await;
        finished(&server, "there", "stored").await;
        let long = "body ".repeat(100_000);
        for http in BOTH {
            for (method, target) in [
                ("PUT", "/there"),
                ("POST", "/there?x=1"),
                ("PATCH", "/new"),
                ("POST", "/new?verb=SUBSCRIBE"),
                ("PUT", "/../odd"),
                ("GET", "/absent"),
                ("DELETE", "/absent"),
                ("OPTIONS", "/there"),
                ("REPORT", "/there"),
            ] {
                for body in ["", "short", &*long] {
                    let answer = send(&server, http, method, target, &[("x-kept", "kept")], body.to_owned()).await;
                    let expected = format!("{method} {target} kept {body}");
                    assert!(
                        answer.status == 200 && answer.text() == expected,
                        "{name} {http:?} {method} {target} {answer:?}"
                    );
                }
            }
            // A body that comes bit by bit, where the layer looks first.
            for method in ["POST", "DELETE"] {
                let upload = Upload::begin(server.addr, http, method, "/absent", &[]).await;
                upload.send("bit ").await;
                upload.send("by bit").await;
                assert_eq!(upload.end().await.text(), format!("{method} /absent  bit by bit"), "{name} {http:?}");
            }
            if name == "bare" {
                for target in ["/new?verb=APPEND", "/new"] {
                    let answer = send(&server, http, "PUT", target, &[ALL], "not ours").await;
                    assert_eq!(answer.text(), format!("PUT {target}  not ours"));
                }
            }
        }
        assert_eq!(server.streams.stat("new").await.unwrap(), None, "{name}");
        assert_eq!(server.streams.stat("there").await.unwrap().unwrap().len, 6, "{name}");
    }
}

/// A body that is sent bit by bit, without a server.
type Bits = tokio::sync::mpsc::Sender<Result<http_body::Frame<Bytes>, std::convert::Infallible>>;

#[tokio::test]
async fn an_answer_that_nobody_waits_for_ends_the_append_and_loses_nothing() {
    use tower::Service;
    for (ends, state, len) in [(false, State::Interrupted, 6), (true, State::Finished, 6)] {
        let mut service = HttpFStream::new(MemoryStorage::new(1 << 20));
        let streams = service.streams();
        let (send, receive): (Bits, _) = tokio::sync::mpsc::channel(4);
        let bit = |bytes: &'static str| Ok(http_body::Frame::data(Bytes::from(bytes)));
        let body = http_body_util::StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(receive));
        let mut answering = Box::pin(service.call(http::Request::put("/a?verb=APPEND").body(body).unwrap()));
        send.send(bit("hello")).await.unwrap();
        let arrived = async {
            while streams.stat("a").await.unwrap().is_none_or(|stat| stat.len < 5) {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            _ = &mut answering => panic!("an answer in the middle of the body"),
            () = soon("the first bit", arrived) => {}
        }
        // As a timeout outside gives it up, with something on its way.
        send.try_send(bit("!")).unwrap();
        let send = Some(send).filter(|_| !ends);
        drop(answering);
        let stat = soon("the end", async {
            loop {
                match streams.stat("a").await.unwrap().unwrap() {
                    stat if stat.state.is_open() => tokio::task::yield_now().await,
                    stat => return stat,
                }
            }
        })
        .await;
        assert_eq!((stat.state, stat.len), (state, len));
        if let Some(send) = send {
            soon("the body to be let go", send.closed()).await;
        }
    }
}

#[tokio::test]
async fn an_upload_that_is_not_as_long_as_it_said_is_not_finished() {
    let server = serve(memory_layer()).await;
    let whole = ("upload-length", "8");
    let short = one(&server, "POST", "/a", &[ALL, whole], "1234").await;
    assert_eq!((short.status, &*problem(&short)), (400, "bad-request"));
    assert_eq!(server.streams.stat("a").await.unwrap().unwrap().state, State::Lost);
    let rest = [PARTIAL, ("upload-offset", "4"), ALL, whole];
    assert_eq!(one(&server, "PATCH", "/a", &rest, "5678").await.status, 200);
    assert_eq!(server.get("/a").await.text(), "12345678");
}
