//! Following over connections that break.

use std::time::Duration;

use httpfstream::client::{self, Client, Follower};
use httpfstream::{Error, ErrorKind};
use httpfstream::{Life, State, Update};

use crate::peer::{BINARY, LIFE, PING, Peer, Server, TEXT, answer, close, frame, quick, serve, within};

const END: &str = r#"{"state":"finished","length":9}"#;

async fn read(follower: &mut Follower) -> (Vec<u8>, Result<(), Error>) {
    let mut data = Vec::new();
    loop {
        match within(follower.next_chunk()).await {
            Ok(Some(chunk)) => {
                data.extend_from_slice(&chunk.bytes);
                assert_eq!((chunk.next_offset, follower.offset()), (data.len() as u64, data.len() as u64));
            }
            Ok(None) => return (data, Ok(())),
            Err(error) => return (data, Err(error)),
        }
    }
}

/// A follower that has got five bytes of its first connection.
async fn half_way(server: &Server, client: Client) -> (Follower, Peer) {
    let opening = tokio::spawn(client.follow(&server.url).into_future());
    let mut peer = server.accept().await;
    peer.begin(0, "live").await;
    peer.send(frame(0x80 | BINARY, b"first")).await;
    let mut follower = within(opening).await.unwrap().unwrap();
    assert_eq!(within(follower.next_chunk()).await.unwrap().unwrap().bytes, "first");
    (follower, peer)
}

/// Says the rest, from `first` on, and the end.
async fn say_the_rest(peer: &mut Peer) {
    peer.send([frame(0x80 | BINARY, b"rest"), frame(0x80 | TEXT, END.as_bytes()), close(1000, "")].concat()).await;
    peer.drain().await;
}

#[tokio::test]
async fn the_request_says_where_to_begin() {
    let server = Server::new().await;
    let life = Life::from_bits(u128::from_str_radix(LIFE, 16).unwrap());
    for (request, options) in [
        (client::follow(&server.url), vec![]),
        (client::follow(&server.url).offset(0), vec![]),
        (client::follow(&server.url).offset(7), vec![("offset", "7")]),
        (client::follow(&server.url).offset(7).tail(0), vec![("tail", "0")]),
        (client::follow(&server.url).lines(10).life(life), vec![("lines", "10"), ("life", LIFE)]),
        (client::follow(&server.url).wait(Duration::from_secs(9)), vec![("wait", "9")]),
        (client::follow(&server.url).wait(Duration::MAX), vec![("wait", "30")]),
    ] {
        let opening = tokio::spawn(request.into_future());
        let mut peer = server.accept().await;
        assert_eq!(peer.header("sec-websocket-protocol"), Some("httpfstream.v1"));
        assert_eq!(peer.head.lines().next().unwrap().matches('=').count(), options.len(), "{}", peer.head);
        for (name, value) in options {
            assert_eq!(peer.option(name), Some(value), "{}", peer.head);
        }
        peer.begin(7, "lost").await;
        let follower = within(opening).await.unwrap().unwrap();
        assert!(follower.is_resumable() && follower.is_live());
        assert_eq!((follower.offset(), follower.life(), follower.state()), (7, Some(life), Some(State::Lost)));
    }
}

#[tokio::test]
async fn a_cut_at_any_byte_loses_and_repeats_none() {
    let all: Vec<u8> = (0..120).collect();
    for writes in 0..260 {
        let server = Server::new().await;
        let opening = tokio::spawn(quick().build().unwrap().follow(&server.url).into_future());
        let source = all.clone();
        let serving = tokio::spawn(async move {
            for connection in 0.. {
                let mut peer = server.accept().await;
                if connection == 0 {
                    peer.upgrade_v1().await;
                }
                let writes = if connection < 3 { writes } else { usize::MAX };
                let mut peer = peer.cut_after(usize::MAX, writes);
                let from: usize = peer.option("offset").map_or(0, |offset| offset.parse().unwrap());
                let told = format!(r#"{{"offset":{from},"life":"{LIFE}","state":"live"}}"#);
                let mut sent = frame(0x80 | TEXT, told.as_bytes());
                for piece in source[from..].chunks(25) {
                    sent.extend(frame(0x80 | BINARY, piece));
                }
                sent.extend(frame(0x80 | TEXT, br#"{"state":"finished","length":120}"#));
                sent.extend(close(1000, ""));
                let saying = async {
                    if connection > 0 {
                        peer.try_upgrade("Sec-WebSocket-Protocol: httpfstream.v1\r\n").await?;
                    }
                    peer.try_send(sent).await
                };
                if saying.await.is_ok() {
                    peer.drain().await;
                }
            }
        });
        let mut follower = within(opening).await.unwrap().unwrap();
        let (data, end) = read(&mut follower).await;
        assert!(data == all && end.is_ok(), "cut at {writes}: {data:?} {end:?}");
        serving.abort();
    }
}

#[tokio::test]
async fn changes_of_the_state_are_told_in_their_place() {
    let server = Server::new().await;
    let opening = tokio::spawn(quick().build().unwrap().follow(&server.url).into_future());
    let mut peer = server.accept().await;
    peer.begin(0, "live").await;
    peer.send(frame(0x80 | BINARY, b"first")).await;
    peer.say(r#"{"state":"live"}"#).await;
    peer.say(r#"{"state":"lost","new":{}}"#).await;
    let mut follower = within(opening).await.unwrap().unwrap();
    let update = async |follower: &mut Follower| match within(follower.next_update()).await.unwrap() {
        Some(Update::Data(chunk)) => String::from_utf8(chunk.bytes.to_vec()).unwrap(),
        Some(Update::State(state)) => state.to_string(),
        other => format!("{other:?}"),
    };
    assert_eq!(update(&mut follower).await, "first");
    assert_eq!(follower.state(), Some(State::Live));
    assert_eq!(update(&mut follower).await, "lost");
    assert!(follower.is_live());
    drop(peer);
    // It came back while nobody was connected.
    let mut peer = server.accept().await;
    peer.begin(5, "live").await;
    assert_eq!(update(&mut follower).await, "live");
    say_the_rest(&mut peer).await;
    assert_eq!(update(&mut follower).await, "rest");
    assert_eq!(update(&mut follower).await, "None");
    assert_eq!((follower.state(), follower.is_live()), (Some(State::Finished), false));
    assert!(within(follower.next_chunk()).await.unwrap().is_none());
    assert!(server.is_left_alone().await);
}

#[tokio::test]
async fn updates_go_on_to_the_end_of_a_resource_that_was_closed_meanwhile() {
    let server = Server::new().await;
    let (mut follower, peer) = half_way(&server, quick().build().unwrap()).await;
    drop(peer);
    let mut peer = server.accept().await;
    peer.begin(5, "finished").await;
    say_the_rest(&mut peer).await;
    let Some(Update::Data(chunk)) = within(follower.next_update()).await.unwrap() else { panic!("a false end") };
    assert_eq!(chunk.bytes, "rest");
    assert_eq!(within(follower.next_update()).await.unwrap(), None);

    let (mut follower, peer) = half_way(&server, quick().build().unwrap()).await;
    drop(peer);
    let mut peer = server.accept().await;
    peer.begin(5, "interrupted").await;
    peer.say(r#"{"state":"interrupted","length":5}"#).await;
    assert_eq!(within(follower.next_update()).await.unwrap_err().kind(), ErrorKind::Interrupted);
}

#[tokio::test]
async fn only_the_message_is_the_end() {
    for (state, end) in [("finished", Ok(())), ("sealed", Ok(())), ("interrupted", Err(ErrorKind::Interrupted))] {
        let server = Server::new().await;
        let (mut follower, mut peer) = half_way(&server, quick().build().unwrap()).await;
        peer.say(&format!(r#"{{"state":"{state}","length":5}}"#)).await;
        // Whatever becomes of the connection.
        drop(peer);
        let ended = within(follower.next_chunk()).await;
        assert_eq!(ended.map(|chunk| assert!(chunk.is_none())).map_err(|error| error.kind()), end);
        assert_eq!(follower.state().map(State::as_str), Some(state));
        assert!(server.is_left_alone().await);
    }
}

#[tokio::test]
async fn whatever_may_pass_is_tried_again() {
    for code in [1000, 1001, 1011, 1012, 1013, 4002, 4999] {
        let server = Server::new().await;
        let (mut follower, mut peer) = half_way(&server, quick().build().unwrap()).await;
        peer.send(close(code, "")).await;
        for status in ["503 X", "502 X", "504 X"] {
            server.accept().await.refuse_with(status, "").await;
        }
        drop(server.accept().await);
        let mut peer = server.accept().await;
        assert_eq!((peer.option("offset"), peer.option("life"), peer.option("wait")), (Some("5"), Some(LIFE), None));
        peer.begin(5, "finished").await;
        say_the_rest(&mut peer).await;
        let chunk = within(follower.next_chunk()).await.unwrap().unwrap();
        assert_eq!((&chunk.bytes[..], chunk.next_offset), (&b"rest"[..], 9), "{code}");
        assert!(within(follower.next_chunk()).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn some_ends_are_final() {
    for (code, kind) in [(4003, ErrorKind::Forbidden), (1002, ErrorKind::Protocol), (1008, ErrorKind::BadRequest)] {
        let server = Server::new().await;
        let (mut follower, mut peer) = half_way(&server, quick().build().unwrap()).await;
        peer.send(close(code, "")).await;
        assert_eq!(within(follower.next_chunk()).await.unwrap_err().kind(), kind, "{code}");
        assert!(server.is_left_alone().await, "{code}");
    }
    for (status, problem, kind) in [
        ("401 X", "", ErrorKind::Unauthorized),
        ("403 X", "", ErrorKind::Forbidden),
        ("404 X", "", ErrorKind::NotFound),
        ("412 X", "life", ErrorKind::Life),
        ("416 X", "past-end", ErrorKind::PastEnd),
    ] {
        let server = Server::new().await;
        let (mut follower, peer) = half_way(&server, quick().build().unwrap()).await;
        drop(peer);
        server.accept().await.refuse_with(status, problem).await;
        assert_eq!(within(follower.next_chunk()).await.unwrap_err().kind(), kind, "{status}");
        assert!(server.is_left_alone().await, "{status}");
    }
    let url = answer(
        "HTTP/1.1 412 X\r\nContent-Type: application/problem+json\r\n\r\n{\"type\":\"urn:httpfstream:problem:life\"}",
    )
    .await;
    let error = within(client::follow(url).life(Life::from_bits(1)).offset(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Life);
}

#[tokio::test]
async fn what_was_still_empty_may_be_created_anew() {
    let server = Server::new().await;
    let opening = tokio::spawn(quick().build().unwrap().follow(&server.url).into_future());
    let mut peer = server.accept().await;
    peer.begin(0, "lost").await;
    let mut follower = within(opening).await.unwrap().unwrap();
    drop(peer);
    server.accept().await.refuse_with("412 X", "life").await;
    server.accept().await.refuse_with("404 X", "not-found").await;
    let mut peer = server.accept().await;
    assert_eq!((peer.option("life"), peer.option("offset")), (None, None));
    let life = "f".repeat(32);
    peer.upgrade_v1().await;
    peer.say(&format!(r#"{{"offset":0,"life":"{life}","state":"live"}}"#)).await;
    peer.send(frame(0x80 | BINARY, b"data")).await;
    assert_eq!(within(follower.next_chunk()).await.unwrap().unwrap().bytes, "data");
    assert_eq!((follower.life().unwrap().to_string(), follower.state()), (life, Some(State::Live)));
}

#[tokio::test]
async fn what_went_before_it_told_where_it_stands_may_be_created_anew() {
    let server = Server::new().await;
    let opening = tokio::spawn(quick().build().unwrap().follow(&server.url).into_future());
    server.accept().await.upgrade_v1().await;
    server.accept().await.refuse_with("404 X", "not-found").await;
    server.accept().await.refuse_with("404 X", "not-found").await;
    server.accept().await.begin(0, "live").await;
    assert!(within(opening).await.unwrap().is_ok());
    // Whoever holds bytes of it is told.
    let opening = tokio::spawn(quick().build().unwrap().follow(&server.url).offset(1).into_future());
    server.accept().await.upgrade_v1().await;
    server.accept().await.refuse_with("404 X", "not-found").await;
    assert_eq!(within(opening).await.unwrap().unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn it_is_given_up_in_time() {
    for limit in [0, 60] {
        let server = Server::new().await;
        let client = Client::builder()
            .retry_for(Duration::from_millis(limit))
            .retry_delays(Duration::from_millis(1), Duration::from_secs(5));
        let (mut follower, mut peer) = half_way(&server, client.build().unwrap()).await;
        drop(server);
        peer.send(close(1011, "the storage failed")).await;
        let error = within(follower.next_chunk()).await.unwrap_err();
        assert_eq!(error.kind(), if limit == 0 { ErrorKind::Storage } else { ErrorKind::Connection }, "{error}");
    }
}

#[tokio::test]
async fn a_server_that_breaks_the_rules_is_left() {
    let huge = [
        [&[0x80 | TEXT, 127][..], &(1u64 << 40).to_be_bytes(), &[b' '; 20_000]].concat(),
        [frame(TEXT, &[b' '; 10_000]), frame(0, &[b' '; 10_000])].concat(),
    ];
    let begin = format!(r#"{{"offset":5,"life":"{LIFE}","state":"live"}}"#);
    let texts = [
        "",
        "{",
        "[]",
        "{}",
        r#"{"ack":5}"#,
        r#"{"state":"paused"}"#,
        r#"{"state":"finished"}"#,
        r#"{"state":7}"#,
        r#"{"state":"finished","length":6}"#,
        r#"{"state":"sealed","length":4}"#,
        &begin,
    ];
    for bad in texts.map(|text| frame(0x80 | TEXT, text.as_bytes())).into_iter().chain(huge.clone()) {
        let server = Server::new().await;
        let (mut follower, mut peer) = half_way(&server, quick().build().unwrap()).await;
        let _ = peer.try_send(&bad).await;
        assert_eq!(within(follower.next_chunk()).await.unwrap_err().kind(), ErrorKind::Protocol, "{bad:?}");
        assert!(server.is_left_alone().await);
    }
    let first = [
        r#"{"state":"live"}"#.to_owned(),
        r#"{"offset":0,"life":"0123","state":"live"}"#.to_owned(),
        format!(r#"{{"offset":0,"life":"{LIFE}","state":"absent"}}"#),
        format!(r#"{{"offset":18446744073709551615,"life":"{LIFE}","state":"live"}}"#),
    ];
    let first = first.map(|text| frame(0x80 | TEXT, text.as_bytes()));
    for bad in first.into_iter().chain(huge).chain([frame(0x80 | BINARY, b"data")]) {
        let server = Server::new().await;
        let opening = tokio::spawn(quick().build().unwrap().follow(&server.url).into_future());
        let mut peer = server.accept().await;
        peer.upgrade_v1().await;
        let _ = peer.try_send(&bad).await;
        assert_eq!(within(opening).await.unwrap().unwrap_err().kind(), ErrorKind::Protocol, "{bad:?}");
    }
    // A sequel that is none: bytes would be lost, repeated or spliced.
    for (offset, life) in [(4, LIFE), (6, LIFE), (5, "ffffffffffffffffffffffffffffffff")] {
        let server = Server::new().await;
        let (mut follower, peer) = half_way(&server, quick().build().unwrap()).await;
        drop(peer);
        let mut peer = server.accept().await;
        peer.upgrade_v1().await;
        peer.say(&format!(r#"{{"offset":{offset},"life":"{life}","state":"live"}}"#)).await;
        assert_eq!(within(follower.next_chunk()).await.unwrap_err().kind(), ErrorKind::Protocol, "{offset}");
    }
}

#[tokio::test]
async fn a_silent_server_is_asked_and_then_replaced() {
    let server = Server::new().await;
    let (mut follower, mut silent) = half_way(&server, quick().build().unwrap()).await;
    // From here on nothing but the silence takes time.
    tokio::time::pause();
    let (io, _) = server.listener.accept().await.unwrap();
    tokio::time::resume();
    let mut peer = Peer::new(io).await;
    peer.begin(5, "live").await;
    say_the_rest(&mut peer).await;
    assert_eq!(silent.frame().await, (PING, vec![]));
    assert_eq!(within(follower.next_chunk()).await.unwrap().unwrap().bytes, "rest");
}

#[tokio::test]
async fn an_absent_resource_is_waited_for() {
    let server = Server::new().await;
    let opening = tokio::spawn(client::follow(&server.url).wait(Duration::MAX).into_future());
    for _ in 0..3 {
        server.accept().await.refuse_with("404 Not Found", "not-found").await;
    }
    server.accept().await.begin(0, "live").await;
    assert!(within(opening).await.unwrap().is_ok());
    // A server that doesn't wait is asked until the time is over.
    let opening = tokio::spawn(client::follow(&server.url).wait(Duration::from_millis(50)).into_future());
    let serving = tokio::spawn(async move {
        loop {
            server.accept().await.refuse_with("404 Not Found", "not-found").await;
        }
    });
    assert_eq!(within(opening).await.unwrap().unwrap_err().kind(), ErrorKind::NotFound);
    serving.abort();
}

#[tokio::test]
async fn without_the_subprotocol_the_beginning_is_dropped_here() {
    for live in [true, false] {
        for (offset, expected) in [(0, Ok("abcdef")), (2, Ok("cdef")), (6, Ok("")), (7, Err(ErrorKind::PastEnd))] {
            let (url, _) = serve(async move |mut peer| {
                if live {
                    peer.upgrade("").await;
                    peer.send([frame(0x80 | TEXT, b"abc"), frame(0x80 | TEXT, b"def"), close(1000, "")].concat()).await;
                } else {
                    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabcdef").await;
                }
                peer.drain().await;
            })
            .await;
            let mut follower = within(client::follow(&url).offset(offset)).await.unwrap();
            assert!(!follower.is_resumable() && follower.life().is_none() && follower.offset() == offset);
            let mut data = String::new();
            let end = loop {
                match within(follower.next_chunk()).await {
                    Ok(Some(chunk)) => data += std::str::from_utf8(&chunk.bytes).unwrap(),
                    Ok(None) => break Ok(data.as_str()),
                    Err(error) => break Err(error.kind()),
                }
            };
            assert_eq!(end, expected, "{offset} of a live one: {live}");
        }
    }
    for request in [
        |url: &str| client::follow(url).tail(1),
        |url: &str| client::follow(url).lines(1),
        |url: &str| client::follow(url).life(Life::from_bits(1)),
    ] {
        let url = answer("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc").await;
        let error = within(request(&url)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol);
        assert!(error.detail().contains("httpfstream.v1"), "{error}");
    }
    // A server that spoke it must not stop doing so.
    let server = Server::new().await;
    let (mut follower, peer) = half_way(&server, quick().build().unwrap()).await;
    drop(peer);
    server.accept().await.send("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc").await;
    assert_eq!(within(follower.next_chunk()).await.unwrap_err().kind(), ErrorKind::Protocol);
}
