//! How much may be open at once: what is over it is refused, and what ends makes room again, exactly.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::future::IntoFuture;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::plain::{Client, Http, Live, empty, full, problem};
use common::spy::Spy;
use common::{Answer, Frame, Raw, Server, client_frame, fs_layer, pattern, serve, soon};
use httpfstream::{AppenderId, Error, ErrorKind, HttpFStreamLayer, Streams, StreamsBuilder};
use httpfstream::{
    State,
    storage::{FsStorage, MemoryStorage},
};

const ID: &str = "0123456789abcdefghijklmnopqrstuv";
const V1: (&str, &str) = ("Sec-WebSocket-Protocol", "httpfstream.v1");
const EVENTS: (&str, &str) = ("Accept", "text/event-stream");

fn streams() -> StreamsBuilder {
    Streams::builder(MemoryStorage::new(1 << 30)).grace(Duration::from_secs(3600))
}

async fn server(streams: StreamsBuilder) -> Server {
    serve(HttpFStreamLayer::from_streams(streams.build()).plain_http(true)).await
}

#[track_caller]
fn is_overloaded(answer: &Answer, what: &str) {
    assert_eq!((answer.status, &*problem(answer)), (503, "overloaded"), "{what}: {answer:?}");
    assert_eq!(answer.header("retry-after"), Some("5"), "{what}");
    assert!(answer.text().contains("try again later"), "{what}: {answer:?}");
}

/// Asks for a body that goes on; `Err` is the answer if there is none.
async fn live(server: &Server, http: Http, target: &str, headers: &[(&str, &str)]) -> Result<Live, Answer> {
    let mut client = Client::new(server.addr, http).await;
    let response = client.send("GET", target, headers, empty()).await.unwrap();
    match response.status().is_success() {
        true => Ok(Live::of(response)),
        false => Err(Live::of(response).whole().await),
    }
}

/// Tries until there is room: the server notices that a connection has gone when it does.
async fn once_there_is_room<T>(mut attempt: impl AsyncFnMut() -> Result<T, Answer>) -> T {
    soon("room", async {
        loop {
            match attempt().await {
                Ok(done) => return done,
                Err(answer) => is_overloaded(&answer, "until there is room"),
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

async fn socket(server: &Server, target: &str, headers: &[(&str, &str)]) -> Result<Raw, Answer> {
    let (answer, raw) = server.upgrade(target, headers).await;
    if answer.status == 101 { Ok(raw) } else { Err(answer) }
}

#[tokio::test]
async fn fault_43_followers_over_the_cap_are_refused_on_every_way() {
    let server = server(streams().max_followers_per_resource(2)).await;
    let mut out = server.streams.open_append("a").await.unwrap();
    out.append("one").await.unwrap();
    let mut by_socket = server.follow("/a").await;
    let by_body = live(&server, Http::One, "/a?verb=FOLLOW", &[]).await.unwrap();
    let refused = async |what: &str| {
        is_overloaded(&socket(&server, "/a?verb=FOLLOW", &[]).await.err().unwrap(), what);
        is_overloaded(&socket(&server, "/a?verb=FOLLOW", &[V1]).await.err().unwrap(), what);
        for http in [Http::One, Http::Two] {
            for headers in [&[][..], &[EVENTS], &[("Range", "bytes=1-")], &[("Prefer", "wait=50")]] {
                is_overloaded(&live(&server, http, "/a?verb=FOLLOW", headers).await.err().unwrap(), what);
            }
        }
        let error = server.streams.follow("a").await.err().unwrap();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Overloaded, true), "{what}");
        let error = server.streams.follow("a").wait(Duration::from_secs(60)).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Overloaded, "{what}");
    };
    refused("full").await;
    // Others, reads and appends are as before.
    let _b = server.streams.open_append("b").await.unwrap();
    let other = server.follow("/b").await;
    assert_eq!(server.get("/a").await.text(), "one");
    out.append("two").await.unwrap();
    assert_eq!(by_socket.data(6).await, b"onetwo");

    // Whoever leaves makes room for one, whichever way it followed.
    drop(by_body);
    let events = once_there_is_room(async || live(&server, Http::Two, "/a?verb=FOLLOW", &[EVENTS]).await).await;
    refused("full again").await;
    drop(events);
    let v1 = once_there_is_room(async || socket(&server, "/a?verb=FOLLOW", &[V1]).await).await;
    refused("full by v1").await;
    v1.reset();
    let inside = soon("room", async {
        loop {
            match server.streams.follow("a").await {
                Ok(follower) => return follower,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Overloaded),
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    refused("full by one inside").await;
    drop(inside);
    let inside = server.streams.follow("a").await.unwrap();
    refused("full by one inside").await;
    drop((inside, other));

    // What is at rest can be followed by as many, and downloaded by all.
    out.finish().await.unwrap();
    assert_eq!(by_socket.to_end().await, (vec![], Some(1000)));
    let mut at_rest = Vec::new();
    for _ in 0..2 {
        at_rest.push(soon("room", async { server.streams.follow("a").await }).await.unwrap());
    }
    is_overloaded(&socket(&server, "/a?verb=FOLLOW", &[V1]).await.err().unwrap(), "at rest");
    assert_eq!(server.get("/a").await.text(), "onetwo");
    at_rest.pop();
    assert_eq!(server.get("/a?verb=FOLLOW").await.text(), "onetwo");
    assert!(socket(&server, "/a?verb=FOLLOW", &[V1]).await.is_ok());
}

#[tokio::test]
async fn fault_43_whoever_waits_is_counted() {
    let server = server(streams().max_followers_per_resource(1).max_followers_total(2)).await;
    let mut waiting = Raw::connect(server.addr).await;
    waiting.send_head("GET", "/a?verb=FOLLOW&wait=60", &[], "").await;
    // It waits once another one is refused.
    soon("the first to wait", async {
        while server.streams.follow("a").await.err().unwrap().kind() != ErrorKind::Overloaded {
            tokio::task::yield_now().await;
        }
    })
    .await;
    is_overloaded(&server.get("/a?verb=FOLLOW&wait=60").await, "one waits");
    let elsewhere = tokio::spawn(server.streams.follow("b").wait(Duration::from_secs(3600)).into_future());
    soon("the second to wait", async {
        while server.streams.follow("c").await.err().unwrap().kind() != ErrorKind::Overloaded {
            tokio::task::yield_now().await;
        }
    })
    .await;
    is_overloaded(&server.get("/c?verb=FOLLOW&wait=60").await, "two wait");
    elsewhere.abort();
    assert!(elsewhere.await.unwrap_err().is_cancelled());
    assert_eq!(server.streams.follow("b").await.err().unwrap().kind(), ErrorKind::NotFound, "room again");
    // The one that waits is still counted when it follows, and is so no longer when it leaves.
    let mut out = server.streams.open_append("a").await.unwrap();
    out.append("x").await.unwrap();
    assert_eq!(waiting.read_head().await.status, 200);
    is_overloaded(&server.get("/a?verb=FOLLOW").await, "it follows");
    drop(waiting);
    soon("room", async {
        while let Err(error) = server.streams.follow("a").await {
            assert_eq!(error.kind(), ErrorKind::Overloaded);
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn fault_43_appends_over_the_cap_are_refused_on_every_way() {
    let server = server(streams().max_open_resources(1)).await;
    let refused = async |what: &str| {
        is_overloaded(&socket(&server, "/b?verb=APPEND", &[]).await.err().unwrap(), what);
        is_overloaded(&socket(&server, "/b?verb=APPEND", &[V1]).await.err().unwrap(), what);
        for http in [Http::One, Http::Two] {
            for (method, headers) in
                [("PUT", &[][..]), ("POST", &[]), ("POST", &[("Upload-Complete", "?0"), ("Appender-Id", ID)])]
            {
                let mut client = Client::new(server.addr, http).await;
                let response = client.send(method, "/b?verb=APPEND", headers, full("x")).await.unwrap();
                is_overloaded(&Live::of(response).whole().await, what);
            }
        }
        assert_eq!(server.streams.open_append("b").await.err().unwrap().kind(), ErrorKind::Overloaded, "{what}");
        assert_eq!(server.streams.stat("b").await.unwrap(), None, "{what}");
    };
    let mut appender = server.append("/a").await;
    appender.send_text("x").await;
    refused("live").await;
    assert_eq!(server.upgrade("/a?verb=APPEND", &[]).await.0.status, 409, "the true cause comes first");
    appender.send_close(1000).await;
    assert_eq!(appender.to_end().await.1, Some(1000));
    // Whoever was told the end finds room at once.
    for _ in 0..20 {
        let mut out = server.streams.open_append("a").await.unwrap();
        let mut follower = server.streams.follow("a").offset(out.offset()).await.unwrap();
        out.append("y").await.unwrap();
        tokio::join!(async { out.finish().await.unwrap() }, async {
            while follower.next_chunk().await.unwrap().is_some() {}
            drop(server.streams.open_append("c").await.unwrap());
            server.at_rest("c").await;
        });
    }

    // What is kept for its appender keeps its place, and only that one comes back to it.
    let id: AppenderId = ID.parse().unwrap();
    let mut out = server.streams.open_append("kept").appender_id(id.clone()).await.unwrap();
    out.append("1").await.unwrap();
    drop(out);
    assert_eq!(server.streams.stat("kept").await.unwrap().unwrap().state, State::Lost);
    refused("lost").await;
    let mut back = server.streams.open_append("kept").appender_id(id.clone()).await.unwrap();
    refused("back").await;
    let taken_over = server.streams.open_append("kept").appender_id(id).await.unwrap();
    assert_eq!(back.append("2").await.unwrap_err().kind(), ErrorKind::Fenced);
    drop(back);
    refused("taken over").await;
    server.streams.delete("kept").await.unwrap();
    drop(taken_over);

    // Parked, until it is finished.
    let mut client = Client::new(server.addr, Http::One).await;
    let parked = client.send("POST", "/p?verb=APPEND", &[("Upload-Complete", "?0")], full("12")).await.unwrap();
    assert_eq!(Live::of(parked).whole().await.status, 201);
    refused("parked").await;
    let more = [("Upload-Complete", "?1"), ("Upload-Offset", "2")];
    let done = client.send("POST", "/p?verb=APPEND", &more, full("34")).await.unwrap();
    assert_eq!(Live::of(done).whole().await.status, 200);
    drop(server.streams.open_append("b").await.unwrap());
}

#[tokio::test]
async fn fault_43_what_fails_takes_no_room() {
    let (_, dir) = fs_layer();
    let storage = FsStorage::open(dir.path().join("root")).unwrap();
    let server =
        server(Streams::builder(storage).max_open_resources(1).max_followers_per_resource(1).max_followers_total(1))
            .await;
    let mut out = server.streams.open_append("a").await.unwrap();
    out.append("x").await.unwrap();
    out.finish().await.unwrap();
    for round in 0..20 {
        for (target, status) in [
            ("/a/b?verb=APPEND", 409),
            ("/a?verb=APPEND&offset=7", 409),
            ("/a?verb=APPEND&create", 409),
            ("/a?verb=APPEND&life=00000000000000000000000000000000", 412),
            ("/absent?verb=FOLLOW", 404),
        ] {
            assert_eq!(server.upgrade(target, &[V1]).await.0.status, status, "{target} {round}");
        }
        for (target, status) in [("/a?verb=FOLLOW&offset=7", 416), ("/absent?verb=FOLLOW&wait=0", 404)] {
            assert_eq!(server.get(target).await.status, status, "{target} {round}");
        }
        // Deleting is no appending.
        assert_eq!(server.request("DELETE", "/absent", &[]).await.status, 404);
    }
    let out = server.streams.open_append("a").await.unwrap();
    let follower = server.streams.follow("a").await.unwrap();
    assert_eq!(server.get("/a?verb=FOLLOW&offset=7").await.status, 503);
    drop(follower);
    assert_eq!(server.get("/a?verb=FOLLOW&offset=7").await.status, 416);
    drop(out);
}

/// Sends a message up to its last byte, and waits until the server has read that: it answers a ping inside.
async fn all_but_the_last(appender: &mut Raw, message: &[u8]) -> Frame {
    appender.send_frame(0x02, &message[..message.len() - 1]).await;
    appender.send_frame(0x89, b"").await;
    appender.frame().await
}

async fn the_last(appender: &mut Raw, message: &[u8]) {
    appender.send_frame(0x80, &message[message.len() - 1..]).await;
}

#[tokio::test]
async fn fault_21_incomplete_messages_share_a_budget() {
    // Room for one: what each may hold in any case does not count.
    let server = server(streams().max_buffered_message_bytes(256 * 1024)).await;
    let (large, small) = (pattern(0, 300_000), pattern(0, 60_000));
    let pong = Frame::Pong(vec![]);
    let (mut one, mut other) = (server.append("/one").await, server.append("/other").await);
    assert_eq!(all_but_the_last(&mut one, &large).await, pong);
    for _ in 0..3 {
        let mut refused = server.append("/refused").await;
        match all_but_the_last(&mut refused, &large).await {
            Frame::Close(Some(1013), reason) => assert!(reason.contains("try again later"), "{reason}"),
            other => panic!("{other:?}"),
        }
        server.at_rest("refused").await;
    }
    // The others are as before, and the first one ends well.
    assert_eq!(all_but_the_last(&mut other, &small).await, pong);
    for (appender, path, message) in [(&mut other, "/other", &small), (&mut one, "/one", &large)] {
        the_last(appender, message).await;
        appender.send_close(1000).await;
        assert_eq!(appender.to_end().await.1, Some(1000));
        assert!(server.get(path).await.body == *message);
    }
    // What was held has been given back, also by one that is cut inside a message.
    for _ in 0..3 {
        let mut cut = server.append("/cut").await;
        assert_eq!(all_but_the_last(&mut cut, &large).await, pong);
        cut.reset();
        server.at_rest("cut").await;
    }
    // And nothing is left behind by a message that comes together with the beginning of the next one.
    let mut many = server.append("/many").await;
    many.send(&client_frame(0x82, &large).repeat(40)).await;
    many.send_close(1000).await;
    assert_eq!(many.to_end().await.1, Some(1000));
    assert!(server.get("/many").await.body == large.repeat(40));
}

#[tokio::test(start_paused = true)]
async fn fault_38_a_follower_waits_where_the_storage_has_no_room() {
    let spy = Spy::new(MemoryStorage::new(1 << 20));
    let watch = spy.watch.clone();
    let streams = Streams::builder(spy).tail_cache(0).build();
    let mut out = streams.open_append("a").await.unwrap();
    out.append("stored").await.unwrap();
    let mut follower = streams.follow("a").await.unwrap();
    watch.refuse_reads.store(true, Ordering::Relaxed);
    let following = tokio::spawn(async move {
        let mut got = Vec::new();
        while let Some(chunk) = follower.next_chunk().await? {
            got.extend_from_slice(&chunk.bytes);
        }
        Ok::<_, Error>(got)
    });
    watch.until("it to ask again", |calls| calls.reads >= 3).await;
    // Whoever asks for lines has been told nothing yet, and can be told that.
    assert_eq!(streams.follow("a").lines(1).await.err().unwrap().kind(), ErrorKind::Overloaded);
    out.append(" and more").await.unwrap();
    watch.refuse_reads.store(false, Ordering::Relaxed);
    out.finish().await.unwrap();
    assert_eq!(soon("all of it", following).await.unwrap().unwrap(), b"stored and more");
}

#[tokio::test]
async fn lines_are_looked_for_only_so_far_back() {
    const REACH: usize = 16 * 1024 * 1024;
    let streams = streams().build();
    let at = async |key: &str, lines| streams.follow(key).lines(lines).await.unwrap().offset() as usize;
    let long = [b"first\n".to_vec(), vec![b'x'; REACH + 5]].concat();
    let mut out = streams.open_append("long").await.unwrap();
    out.append(long.clone()).await.unwrap();
    // One line that is longer than that: its end.
    assert_eq!(at("long", 1).await, 11);
    out.append("\nlast\n").await.unwrap();
    let len = long.len() + 6;
    assert_eq!(at("long", 1).await, len - 5);
    // Within reach there are no more than these.
    assert_eq!(at("long", 2).await, len - 5);
    assert_eq!(at("long", u64::MAX).await, len - 5);
    let mut out = streams.open_append("short").await.unwrap();
    out.append([b"first\n".to_vec(), vec![b'x'; REACH - 6]].concat()).await.unwrap();
    assert_eq!(
        (at("short", 1).await, at("short", 2).await, at("short", 9).await),
        (6, 0, 0),
        "all of it is within reach"
    );
}
