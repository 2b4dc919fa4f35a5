//! WebSockets over HTTP/2 (RFC 8441): extended CONNECT, many on one connection.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::HashSet;

use bytes::Bytes;
use common::http2_frames::{DATA, Frames, RST_STREAM, binary};
use common::{Raw, Server, fs_layer, memory_layer, pattern, serve, soon};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use httpfstream::{HttpFStreamLayer, Streams};
use httpfstream::{State, storage::MemoryStorage};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// A connection that has seen the server's settings, so that it knows of extended CONNECT.
async fn connect(server: &Server) -> SendRequest<Empty<Bytes>> {
    let io = TokioIo::new(TcpStream::connect(server.addr).await.unwrap());
    let (mut send, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(format!("http://{}/", server.addr)).body(Empty::new()).unwrap();
    let response = soon("an answer", send.send_request(request)).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "inner");
    send
}

async fn ask(send: &mut SendRequest<Empty<Bytes>>, protocol: &'static str, path: &str) -> Response<Incoming> {
    let request = Request::connect(format!("http://localhost{path}"))
        .header("sec-websocket-version", "13")
        .extension(hyper::ext::Protocol::from_static(protocol))
        .body(Empty::new())
        .unwrap();
    soon("an answer", send.send_request(request)).await.unwrap()
}

async fn open(send: &mut SendRequest<Empty<Bytes>>, path: &str) -> Raw<TokioIo<Upgraded>> {
    let response = ask(send, "websocket", path).await;
    assert_eq!(response.status(), 200);
    let stream = TokioIo::new(soon("the stream", hyper::upgrade::on(response)).await.unwrap());
    Raw { stream, buf: Vec::new() }
}

#[tokio::test]
async fn fault_13_appending_and_following_over_extended_connect() {
    let (layer, _dir) = fs_layer();
    let server = serve(layer).await;
    let mut send = connect(&server).await;
    let data = pattern(0, 300_000);
    let mut appender = open(&mut send, "/a?verb=APPEND").await;
    appender.send_frame(0x82, &data[..100_000]).await;
    let mut followers = Vec::new();
    for _ in 0..5 {
        followers.push(open(&mut send, "/a?verb=FOLLOW").await);
    }
    let appending = async {
        for chunk in data[100_000..].chunks(10_000) {
            appender.send_frame(0x82, chunk).await;
        }
        appender.send_close(1000).await;
        appender.to_end().await
    };
    let following = async {
        for mut follower in followers {
            assert!(follower.to_end().await == (data.clone(), Some(1000)));
        }
    };
    let (appended, ()) = tokio::join!(appending, following);
    assert_eq!(appended, (vec![], Some(1000)));
    // A body can't answer a CONNECT: what is at rest comes as messages too.
    let mut late = open(&mut send, "/a?verb=FOLLOW").await;
    assert!(late.to_end().await == (data, Some(1000)));
    assert_eq!(ask(&mut send, "websocket", "/absent?verb=FOLLOW").await.status(), 404);
}

#[tokio::test]
async fn fault_13_another_protocol_passes_on() {
    let server = serve(memory_layer()).await;
    let mut send = connect(&server).await;
    let response = ask(&mut send, "connect-udp", "/a?verb=FOLLOW").await;
    assert!(response.status().is_client_error() || response.status().is_server_error(), "{}", response.status());
    assert_eq!(server.streams.stat("a").await.unwrap(), None);
}

#[tokio::test]
async fn fault_43_caps_count_each_stream() {
    let streams = Streams::builder(MemoryStorage::new(1 << 20)).max_followers(2).max_appends(1).build();
    let server = serve(HttpFStreamLayer::from_streams(streams).plain_http(true)).await;
    let mut send = connect(&server).await;
    let mut appender = open(&mut send, "/a?verb=APPEND").await;
    let mut first = open(&mut send, "/a?verb=FOLLOW").await;
    let second = open(&mut send, "/a?verb=FOLLOW").await;
    for over in ["/a?verb=FOLLOW", "/b?verb=APPEND"] {
        let refused = ask(&mut send, "websocket", over).await;
        let told = (refused.status().as_u16(), refused.headers().get("retry-after").map(|value| value.as_bytes()));
        assert_eq!(told, (503, Some(&b"5"[..])), "{over}");
    }
    drop(second);
    soon("room", async {
        while ask(&mut send, "websocket", "/a?verb=FOLLOW").await.status() != 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    appender.send_frame(0x82, b"x").await;
    assert_eq!(first.data(1).await, b"x");
}

/// hyper reports a stream that was cancelled as its end.
#[tokio::test]
async fn an_appender_whose_stream_is_cancelled_is_lost() {
    let server = serve(memory_layer()).await;
    let mut send = connect(&server).await;
    let mut appender = open(&mut send, "/a?verb=APPEND").await;
    let mut follower = open(&mut send, "/a?verb=FOLLOW").await;
    appender.send_frame(0x82, b"half").await;
    assert_eq!(follower.data(4).await, b"half");
    drop(appender);
    assert_eq!(follower.to_end().await, (vec![], Some(1011)));
    assert_eq!(server.at_rest("a").await.unwrap().state, State::Interrupted);
}

#[tokio::test]
async fn a_body_that_is_given_up_with_no_error_is_not_finished() {
    // Node's clients reset a stream with NO_ERROR when they give it up; hyper takes that for the end of the body.
    for (reason, ended) in [
        (Some(h2::Reason::NO_ERROR), State::Interrupted),
        (Some(h2::Reason::CANCEL), State::Interrupted),
        (None, State::Finished),
    ] {
        let server = serve(memory_layer()).await;
        let stream = TcpStream::connect(server.addr).await.unwrap();
        let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let request = Request::post(format!("http://{}/a?verb=APPEND", server.addr)).body(()).unwrap();
        let (response, mut body) = client.send_request(request, false).unwrap();
        body.send_data(Bytes::from_static(b"some of it"), false).unwrap();
        let following = server.streams.follow("a").wait(std::time::Duration::from_secs(60)).into_future();
        let mut follower = soon("the resource", following).await.unwrap();
        assert_eq!(soon("bytes", follower.next_chunk()).await.unwrap().unwrap(), "some of it");
        match reason {
            Some(reason) => body.send_reset(reason),
            None => {
                body.send_data(Bytes::new(), true).unwrap();
                assert_eq!(soon("an answer", response).await.unwrap().status(), 201);
            }
        }
        assert_eq!(server.at_rest("a").await.unwrap().state, ended, "{reason:?}");
    }
}

/// A resource that is at rest, of as many bytes.
async fn stored(server: &Server, len: usize) -> Vec<u8> {
    let data = pattern(0, len);
    let mut appender = server.streams.append("a").into_future().await.unwrap();
    appender.append(data.clone()).await.unwrap();
    appender.finish().await.unwrap();
    data
}

/// Whether all bytes and the close have come. (The windows may cut the close frame in two.)
fn is_whole(client: &Frames, stream: u32, data: &[u8]) -> bool {
    let got = client.got.get(&stream).map_or(&[][..], |got| got);
    got.ends_with(&[0x03, 0xe8]) && binary(got).len() == data.len()
}

/// With the smallest windows there are, and a peer that gives the connection its window back, and all streams but one
/// theirs.
#[tokio::test(flavor = "multi_thread")]
async fn fault_31_a_stream_that_is_stalled_holds_nothing_of_the_connections_window() {
    let server = serve(memory_layer()).await;
    let data = stored(&server, 1 << 20).await;
    let mut client = Frames::connect(server.addr).await;
    let stalled = client.websocket("/a?verb=FOLLOW").await;
    let mut others = Vec::new();
    for _ in 0..7 {
        others.push(client.websocket("/a?verb=FOLLOW").await);
    }
    let mut ended = HashSet::new();
    while ended.len() < others.len() {
        let (kind, _, stream, payload) = client.next().await;
        assert_ne!(kind, RST_STREAM);
        if kind != DATA {
            continue;
        }
        if !payload.is_empty() {
            client.grant(0, payload.len()).await;
        }
        if stream != stalled {
            if !payload.is_empty() {
                client.grant(stream, payload.len()).await;
            }
            if is_whole(&client, stream, &data) {
                ended.insert(stream);
            }
        }
    }
    for stream in others {
        assert!(binary(&client.got[&stream]) == data);
    }
    assert_eq!(client.got[&stalled].len(), 65_535, "all that its own window allows");
    // It goes on where it stood.
    client.grant(stalled, 2 << 20).await;
    client.grant(0, 2 << 20).await;
    while binary(&client.got[&stalled]).len() < data.len() {
        client.next().await;
    }
    assert!(binary(&client.got[&stalled]) == data);
}

/// Where the connection's window is what binds, all followers come on alike.
#[tokio::test(flavor = "multi_thread")]
async fn followers_share_the_window_of_their_connection() {
    const FOLLOWERS: usize = 8;
    let server = serve(memory_layer()).await;
    let data = stored(&server, 2 << 20).await;
    let mut client = Frames::connect(server.addr).await;
    for _ in 0..FOLLOWERS {
        let stream = client.websocket("/a?verb=FOLLOW").await;
        client.grant(stream, 8 << 20).await;
    }
    let (mut taken, mut worst, mut ended) = (0, 0, HashSet::new());
    while ended.len() < FOLLOWERS {
        let (kind, _, stream, payload) = client.next().await;
        if kind != DATA {
            continue;
        }
        if is_whole(&client, stream, &data) {
            ended.insert(stream);
        }
        // A small step at a time, once everything that was granted is here.
        taken += payload.len();
        if taken >= 16 * 1024 {
            client.grant(0, std::mem::take(&mut taken)).await;
        }
        if client.got.len() == FOLLOWERS {
            let (least, most) = (client.got.values().map(Vec::len).min(), client.got.values().map(Vec::len).max());
            worst = worst.max(most.unwrap() - least.unwrap());
        }
    }
    assert!(worst <= 512 * 1024, "one was {worst} bytes ahead of another");
    for got in client.got.values() {
        assert!(binary(got) == data);
    }
}
