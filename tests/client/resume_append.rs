//! Appending over connections that break.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::HeaderMap;
use httpfstream::Life;
use httpfstream::client::{self, Appender, Client};
use httpfstream::{AppenderId, ErrorKind};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::peer::{BINARY, CLOSE, Cut, LIFE, PING, Peer, Server, TEXT, close, frame, quick, within};

fn life() -> Life {
    Life::from_bits(u128::from_str_radix(LIFE, 16).unwrap())
}

fn attached(offset: usize, life: &str, resumed: bool) -> String {
    format!(r#"{{"offset":{offset},"life":"{life}","resumed":{resumed}}}"#)
}

/// An appender whose first connection stands, and the server's side of that.
async fn open(client: &Client, server: &Server, offset: usize) -> (Appender, Peer) {
    let request = client.open_append(&server.url);
    let (appender, peer) = tokio::join!(within(request), async {
        let mut peer = server.accept().await;
        peer.attach(offset, false).await;
        peer
    });
    (appender.unwrap(), peer)
}

/// Data with this many of its bytes acknowledged on the first connection.
async fn half_acknowledged(server: &Server) -> (Appender, Peer) {
    let (mut appender, mut peer) = open(&quick().build().unwrap(), server, 0).await;
    appender.append("acked").await.unwrap();
    peer.data(5).await;
    peer.say(r#"{"ack":5}"#).await;
    within(appender.sync()).await.unwrap();
    appender.append("sent").await.unwrap();
    peer.data(4).await;
    (appender, peer)
}

#[tokio::test]
async fn the_request_names_the_appender_and_its_options() {
    let server = Server::new().await;
    let id = AppenderId::random().unwrap();
    let request = client::open_append(format!("{}?a=b", server.url)).create_new().offset(7).appender_id(id.clone());
    let (appender, peer) = tokio::join!(within(request), async {
        let mut peer = server.accept().await;
        peer.attach(7, false).await;
        peer
    });
    let appender = appender.unwrap();
    assert_eq!(peer.header("sec-websocket-protocol"), Some("httpfstream.v1"));
    assert_eq!(peer.header("appender-id"), Some(id.as_str()));
    assert_eq!((peer.option("a"), peer.option("create"), peer.option("offset")), (Some("b"), Some("1"), Some("7")));
    assert_eq!((appender.offset(), appender.acknowledged(), appender.life()), (7, 7, Some(life())));
    assert!(appender.is_resumable() && !appender.is_resumed() && !appender.is_finished());
    assert_eq!(appender.id(), &id);
    assert!(!format!("{appender:?}").contains(id.as_str()));
}

#[tokio::test]
async fn flush_waits_for_the_acknowledgement_and_finish_for_the_last_one() {
    let server = Server::new().await;
    let (mut appender, mut peer) = open(&Client::new().unwrap(), &server, 3).await;
    within(appender.write_all(b"data")).await.unwrap();
    assert_eq!(peer.data(4).await, b"data");
    for ack in [3, 4, 6] {
        peer.say(&format!(r#"{{"ack":{ack}}}"#)).await;
        let early = tokio::time::timeout(Duration::from_millis(20), AsyncWriteExt::flush(&mut appender)).await;
        assert!(early.is_err(), "{ack}");
        assert_eq!((appender.acknowledged(), appender.offset()), (ack, 7));
    }
    peer.say(r#"{"ack":7}"#).await;
    within(AsyncWriteExt::flush(&mut appender)).await.unwrap();
    appender.append("more").await.unwrap();
    let mut finish = tokio::spawn(async move { appender.shutdown().await.map(|()| appender) });
    assert_eq!(peer.data(4).await, b"more");
    assert_eq!(peer.frame().await, (TEXT, br#"{"finish":true}"#.to_vec()));
    peer.say(r#"{"ack":11}"#).await;
    assert!(tokio::time::timeout(Duration::from_millis(20), &mut finish).await.is_err());
    peer.say(r#"{"ack":11,"finished":true}"#).await;
    let appender = within(finish).await.unwrap().unwrap();
    assert!(appender.is_finished() && appender.acknowledged() == 11);
    assert_eq!(peer.frame().await.0, CLOSE);
}

#[tokio::test]
async fn sealing_is_a_finish_for_good() {
    let server = Server::new().await;
    for at_end in [false, true] {
        let request = quick().build().unwrap().open_append(&server.url);
        let request = if at_end { request.seal_at_end() } else { request };
        let client = tokio::spawn(async move {
            let mut appender = request.await.unwrap();
            if at_end { appender.shutdown().await.unwrap() } else { appender.seal().await.map(drop).unwrap() }
        });
        let mut peer = server.accept().await;
        peer.attach(0, false).await;
        assert_eq!(peer.frame().await, (TEXT, br#"{"finish":true,"seal":true}"#.to_vec()));
        peer.confirm(0).await;
        within(client).await.unwrap();
    }
}

/// What a server of ours keeps between connections.
#[derive(Default)]
struct Store {
    bytes: Vec<u8>,
    finished: bool,
}

/// Serves appends as protocol.md has it; the first connections break after so many bytes read or written.
async fn serve_cut(server: Server, store: Arc<Mutex<Store>>, reads: usize, writes: usize, acks: bool) {
    for connection in 0.. {
        let mut peer = server.accept().await;
        // An appender that is not yet let in needs not come back.
        if connection == 0 {
            peer.upgrade_v1().await;
        }
        let (reads, writes) = if connection < 3 { (reads, writes) } else { (usize::MAX, usize::MAX) };
        let mut peer = peer.cut_after(reads, writes);
        let _ = serve_one(&mut peer, connection > 0, &store, acks).await;
    }
}

async fn serve_one(peer: &mut Peer<Cut<TcpStream>>, upgrade: bool, store: &Mutex<Store>, acks: bool) -> io::Result<()> {
    if upgrade {
        peer.try_upgrade("Sec-WebSocket-Protocol: httpfstream.v1\r\n").await?;
    }
    let (length, finished) = {
        let store = store.lock().unwrap();
        (store.bytes.len(), store.finished)
    };
    let confirmation = |length| {
        let told = format!(r#"{{"ack":{length},"finished":true}}"#);
        [frame(0x80 | TEXT, told.as_bytes()), close(1000, "")].concat()
    };
    if finished {
        assert_eq!(peer.option("finish"), Some(&*length.to_string()), "a finished resource was opened again");
        assert_eq!(peer.option("life"), Some(LIFE));
        return peer.try_send(confirmation(length)).await;
    }
    peer.try_send(frame(0x80 | TEXT, attached(length, LIFE, length > 0).as_bytes())).await?;
    loop {
        match peer.try_frame().await? {
            (BINARY, payload) => {
                let length = {
                    let mut store = store.lock().unwrap();
                    store.bytes.extend(payload);
                    store.bytes.len()
                };
                if acks {
                    peer.try_send(frame(0x80 | TEXT, format!(r#"{{"ack":{length}}}"#).as_bytes())).await?;
                }
            }
            (TEXT, payload) => {
                assert_eq!(payload, br#"{"finish":true}"#);
                let length = {
                    let mut store = store.lock().unwrap();
                    store.finished = true;
                    store.bytes.len()
                };
                peer.try_send(confirmation(length)).await?;
                peer.drain().await;
                return Ok(());
            }
            _ => return Ok(()),
        }
    }
}

async fn append_through_cuts(reads: usize, writes: usize, acks: bool) {
    let server = Server::new().await;
    let url = server.url.clone();
    let store = Arc::new(Mutex::new(Store::default()));
    let serving = tokio::spawn(serve_cut(server, Arc::clone(&store), reads, writes, acks));
    let mut appender = within(quick().build().unwrap().open_append(url)).await.unwrap();
    let data: Vec<u8> = (0..90).collect();
    for (at, piece) in data.chunks(30).enumerate() {
        within(appender.append(piece.to_vec())).await.unwrap();
        if acks && at == 1 {
            within(appender.sync()).await.unwrap();
        }
    }
    within(appender.finish()).await.unwrap();
    assert!(!serving.is_finished(), "the server found a fault");
    serving.abort();
    let store = store.lock().unwrap();
    assert!(store.finished && store.bytes == data, "cut at {reads}/{writes}: {:?}", store.bytes);
}

#[tokio::test]
async fn fault_24_a_cut_at_any_byte_loses_and_repeats_none() {
    for acks in [true, false] {
        for reads in 0..160 {
            append_through_cuts(reads, usize::MAX, acks).await;
        }
    }
}

#[tokio::test]
async fn fault_32_any_lost_answer_loses_and_repeats_nothing() {
    // A first message, acknowledgements, and the confirmation: all of them, and the later upgrades.
    for acks in [true, false] {
        for writes in (0..340).step_by(2) {
            append_through_cuts(usize::MAX, writes, acks).await;
        }
    }
}

/// Appends, finishes, and breaks the connection once the finish was sent.
async fn finish_and_break(server: &Server) -> tokio::task::JoinHandle<httpfstream::Result<u64>> {
    let (mut appender, mut peer) = open(&quick().build().unwrap(), server, 0).await;
    appender.append("data").await.unwrap();
    let finish = tokio::spawn(appender.finish());
    peer.data(4).await;
    assert_eq!(peer.frame().await.0, TEXT);
    drop(peer);
    finish
}

#[tokio::test]
async fn fault_32_a_lost_confirmation_is_asked_for_again() {
    let server = Server::new().await;
    let finish = finish_and_break(&server).await;
    // The server has not stored it all: it goes on, and ends once more.
    let mut peer = server.accept().await;
    assert_eq!((peer.option("finish"), peer.option("life")), (Some("4"), Some(LIFE)));
    peer.attach(3, true).await;
    assert_eq!(peer.data(1).await, b"a");
    assert_eq!(peer.frame().await.0, TEXT);
    drop(peer);
    // It has.
    let mut peer = server.accept().await;
    assert_eq!((peer.option("finish"), peer.option("life")), (Some("4"), Some(LIFE)));
    peer.upgrade_v1().await;
    peer.confirm(4).await;
    within(finish).await.unwrap().unwrap();
    assert!(server.is_left_alone().await);
}

#[tokio::test]
async fn what_a_server_finds_decides() {
    let other = "f".repeat(32);
    for (message, go_on) in [
        (attached(5, LIFE, true), Ok(0)),
        (attached(7, LIFE, true), Ok(2)),
        (attached(9, LIFE, true), Ok(4)),
        // Its own id is known in a new life too.
        (attached(6, &other, true), Ok(1)),
        // Nobody was there in between.
        (attached(5, LIFE, false), Ok(0)),
        // Somebody was.
        (attached(5, &other, false), Err(ErrorKind::Diverged)),
        (attached(7, LIFE, false), Err(ErrorKind::Diverged)),
        (attached(0, LIFE, false), Err(ErrorKind::Diverged)),
        // What was acknowledged is gone, and what was never sent is there.
        (attached(4, LIFE, true), Err(ErrorKind::Diverged)),
        (attached(10, LIFE, true), Err(ErrorKind::Diverged)),
    ] {
        let server = Server::new().await;
        let (mut appender, peer) = half_acknowledged(&server).await;
        drop(peer);
        let mut peer = server.accept().await;
        assert_eq!((peer.option("life"), peer.option("finish")), (Some(LIFE), None));
        assert_eq!(peer.header("appender-id"), Some(appender.id().as_str()));
        peer.upgrade_v1().await;
        peer.say(&message).await;
        match go_on {
            Ok(from) => {
                appender.append("!").await.unwrap();
                assert_eq!(peer.data(5 - from).await, b"sent!"[from..], "{message}");
                let finish = tokio::spawn(appender.finish());
                peer.finish(10).await;
                within(finish).await.unwrap().unwrap();
            }
            Err(kind) => {
                assert_eq!(within(appender.closed()).await.kind(), kind, "{message}");
                assert_eq!(within(appender.append("!")).await.unwrap_err().kind(), kind);
                assert!(server.is_left_alone().await);
            }
        }
    }
}

#[tokio::test]
async fn an_appender_that_left_nothing_takes_any_life() {
    let server = Server::new().await;
    let finish = finish_and_break(&server).await;
    // None of it was stored before the server died.
    let mut peer = server.accept().await;
    assert_eq!(peer.option("life"), Some(LIFE));
    peer.refuse_with("412 Precondition Failed", "life").await;
    let mut peer = server.accept().await;
    assert_eq!((peer.option("life"), peer.option("finish")), (None, None));
    peer.upgrade_v1().await;
    peer.say(&attached(0, &"a".repeat(32), false)).await;
    assert_eq!(peer.data(4).await, b"data");
    peer.finish(4).await;
    within(finish).await.unwrap().unwrap();
}

#[tokio::test]
async fn fault_30_some_ends_are_final() {
    for (code, kind) in [
        (4001, ErrorKind::Fenced),
        (4003, ErrorKind::Forbidden),
        (1002, ErrorKind::Protocol),
        (1008, ErrorKind::BadRequest),
        (1009, ErrorKind::TooLarge),
    ] {
        let server = Server::new().await;
        let (mut appender, mut peer) = half_acknowledged(&server).await;
        peer.send(close(code, "")).await;
        assert_eq!(within(appender.closed()).await.kind(), kind, "{code}");
        assert!(server.is_left_alone().await, "{code}");
    }
    for (status, problem, kind) in [
        ("401 Unauthorized", "", ErrorKind::Unauthorized),
        ("403 Forbidden", "", ErrorKind::Forbidden),
        ("404 Not Found", "", ErrorKind::NotFound),
        ("400 Bad Request", "", ErrorKind::BadRequest),
        ("409 Conflict", "sealed", ErrorKind::Sealed),
        ("412 Precondition Failed", "life", ErrorKind::Life),
    ] {
        let server = Server::new().await;
        let (mut appender, peer) = half_acknowledged(&server).await;
        drop(peer);
        server.accept().await.refuse_with(status, problem).await;
        assert_eq!(within(appender.closed()).await.kind(), kind, "{status}");
        assert!(server.is_left_alone().await, "{status}");
    }
}

#[tokio::test]
async fn whatever_may_pass_is_tried_again() {
    let server = Server::new().await;
    let (mut appender, mut peer) = half_acknowledged(&server).await;
    for code in [1000, 1001, 1011, 1013, 4002, 4999] {
        peer.send(close(code, "")).await;
        for (status, problem) in [("503 X", "shutting-down"), ("409 X", "busy"), ("507 X", "full"), ("502 X", "")] {
            server.accept().await.refuse_with(status, problem).await;
        }
        drop(server.accept().await);
        peer = server.accept().await;
        peer.attach(5, true).await;
        assert_eq!(peer.data(4).await, b"sent", "{code}");
    }
    peer.io.set_zero_linger().unwrap();
    drop(peer);
    let mut peer = server.accept().await;
    peer.attach(9, true).await;
    appender.append("!").await.unwrap();
    assert_eq!(peer.data(1).await, b"!");
}

#[tokio::test]
async fn it_is_given_up_in_time() {
    // A server that lets in and fails at once is no progress, if nothing else moves.
    for (limit, bad) in [(0, false), (60, false), (60, true)] {
        let server = Server::new().await;
        let client = Client::builder()
            .retry_for(Duration::from_millis(limit))
            .retry_delays(Duration::from_millis(1), Duration::from_secs(5));
        let (mut appender, peer) = open(&client.build().unwrap(), &server, 0).await;
        drop(peer);
        let serving = tokio::spawn(async move {
            if !bad {
                return;
            }
            loop {
                let mut peer = server.accept().await;
                peer.attach(0, false).await;
                peer.send(close(1011, "full")).await;
            }
        });
        let error = within(appender.closed()).await;
        assert_eq!(error.kind(), if bad { ErrorKind::Storage } else { ErrorKind::Connection });
        assert_eq!(error.detail().contains("given up"), limit > 0, "{error}");
        serving.abort();
    }
}

#[tokio::test]
async fn the_bound_holds_and_gives_backpressure() {
    let server = Server::new().await;
    let client = Client::builder().max_unacknowledged(10).build().unwrap();
    let (mut appender, mut peer) = open(&client, &server, 0).await;
    let writing = tokio::spawn(async move {
        appender.append((0..25).collect::<Vec<u8>>()).await.unwrap();
        appender
    });
    let mut got = peer.data(10).await;
    for ack in [4, 14, 15] {
        // Nothing more comes before the acknowledgement.
        assert!(tokio::time::timeout(Duration::from_millis(20), peer.frame()).await.is_err());
        assert!(!writing.is_finished());
        peer.say(&format!(r#"{{"ack":{ack}}}"#)).await;
        got.extend(peer.data(ack + 10 - got.len()).await);
    }
    let appender = within(writing).await.unwrap();
    assert_eq!((got, appender.offset(), appender.acknowledged()), ((0..25).collect(), 25, 15));
}

#[tokio::test]
async fn a_server_that_breaks_the_rules_is_left() {
    let first = [
        "",
        "{",
        "[]",
        "{}",
        "null",
        r#"{"ack":0}"#,
        r#"{"state":"live"}"#,
        r#"{"ack":0,"finished":true}"#,
        r#"{"offset":-1,"life":"0123456789abcdef0123456789abcdef","resumed":true}"#,
        r#"{"offset":18446744073709551615,"life":"0123456789abcdef0123456789abcdef","resumed":true}"#,
        r#"{"offset":0,"life":"0123","resumed":true}"#,
    ];
    for bad in first.map(|text| frame(0x80 | TEXT, text.as_bytes())).into_iter().chain(huge()) {
        let server = Server::new().await;
        let opening = tokio::spawn(quick().build().unwrap().open_append(&server.url).into_future());
        let mut peer = server.accept().await;
        peer.upgrade_v1().await;
        let _ = peer.try_send(&bad).await;
        assert_eq!(within(opening).await.unwrap().unwrap_err().kind(), ErrorKind::Protocol, "{bad:?}");
        assert!(server.is_left_alone().await);
    }
    let again = attached(9, LIFE, true);
    let later = [
        "x",
        "{}",
        &again,
        r#"{"ack":4}"#,
        r#"{"ack":10}"#,
        r#"{"ack":9,"finished":true}"#,
        r#"{"ack":null}"#,
        "\u{0}",
        r#"{"ack":9,"ack":99}"#,
    ];
    for bad in later.map(|text| frame(0x80 | TEXT, text.as_bytes())).into_iter().chain(huge()) {
        let server = Server::new().await;
        let (mut appender, mut peer) = half_acknowledged(&server).await;
        let _ = peer.try_send(&bad).await;
        assert_eq!(within(appender.closed()).await.kind(), ErrorKind::Protocol, "{bad:?}");
        assert!(server.is_left_alone().await);
    }
}

/// Control messages without end, data where there is none to come, and bytes that are no text.
fn huge() -> Vec<Vec<u8>> {
    vec![
        [&[0x80 | TEXT, 127][..], &(1u64 << 40).to_be_bytes(), &[b' '; 20_000]].concat(),
        [frame(TEXT, &[b' '; 10_000]), frame(0, &[b' '; 10_000])].concat(),
        frame(0x80 | TEXT, &[b'['; 16_384]),
        frame(0x80 | TEXT, b"{\"ack\":5,\"\xff\":0}"),
        frame(0x80 | BINARY, b"data"),
    ]
}

#[tokio::test]
async fn the_header_provider_is_asked_for_each_connection() {
    let server = Server::new().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let provider = {
        let asked = Arc::clone(&asked);
        move || {
            let n = asked.fetch_add(1, Ordering::SeqCst);
            async move {
                if n == 2 {
                    return Err(io::Error::other("no more tokens"));
                }
                Ok(HeaderMap::from_iter([(http::header::AUTHORIZATION, n.into())]))
            }
        }
    };
    let (mut appender, peer) = open(&quick().header_provider(provider).build().unwrap(), &server, 0).await;
    assert_eq!(peer.header("authorization"), Some("0"));
    drop(peer);
    let mut peer = server.accept().await;
    assert_eq!(peer.header("authorization"), Some("1"));
    peer.attach(0, false).await;
    drop(peer);
    assert_eq!(within(appender.closed()).await.kind(), ErrorKind::Unauthorized);
}

#[tokio::test]
async fn fault_30_a_silent_server_is_asked_and_then_replaced() {
    let server = Server::new().await;
    let (appender, mut silent) = open(&quick().build().unwrap(), &server, 0).await;
    // From here on nothing but the silence takes time.
    tokio::time::pause();
    let (io, _) = server.listener.accept().await.unwrap();
    tokio::time::resume();
    let mut peer = Peer::new(io).await;
    peer.attach(0, false).await;
    assert_eq!(silent.frame().await, (PING, vec![]));
    drop(appender);
}

#[tokio::test]
async fn a_dropped_appender_sends_what_it_has_and_is_lost() {
    let server = Server::new().await;
    let (mut appender, mut peer) = open(&Client::new().unwrap(), &server, 0).await;
    let data = vec![7; 300_000];
    appender.append(data.clone()).await.unwrap();
    drop(appender);
    assert!(peer.data_until_close(BINARY).await == (data, 1001));
    peer.send(close(1001, "")).await;
    peer.drain().await;
    assert!(server.is_left_alone().await);
}

#[tokio::test]
async fn another_process_goes_on() {
    let server = Server::new().await;
    let id: AppenderId = "a".repeat(30).parse().unwrap();
    for (message, at) in [
        (attached(9, LIFE, true), Ok(9)),
        (attached(5, LIFE, true), Ok(5)),
        (attached(5, LIFE, false), Ok(5)),
        (attached(9, LIFE, false), Err(ErrorKind::Diverged)),
        (attached(4, LIFE, true), Err(ErrorKind::Diverged)),
        (attached(5, &"e".repeat(32), false), Err(ErrorKind::Diverged)),
    ] {
        let request = quick().build().unwrap().open_append(&server.url).appender_id(id.clone()).resume(life(), 5);
        let opening = tokio::spawn(request.into_future());
        let mut peer = server.accept().await;
        assert_eq!((peer.option("life"), peer.header("appender-id")), (Some(LIFE), Some(id.as_str())));
        peer.upgrade_v1().await;
        peer.say(&message).await;
        let opened = within(opening).await.unwrap();
        assert_eq!(opened.map(|appender| appender.offset()).map_err(|error| error.kind()), at, "{message}");
    }
    let request = client::open_append(&server.url).appender_id(id).resume(life(), 5).perhaps_finished(9);
    let opening = tokio::spawn(request.into_future());
    let mut peer = server.accept().await;
    assert_eq!(peer.option("finish"), Some("9"));
    peer.upgrade_v1().await;
    peer.confirm(9).await;
    let appender = within(opening).await.unwrap().unwrap();
    assert!(appender.is_finished() && appender.acknowledged() == 9);
    within(appender.finish()).await.unwrap();
    assert_eq!(
        client::open_append(&server.url).resume(life(), 5).await.unwrap_err().kind(),
        ErrorKind::BadRequest,
        "without its id"
    );
}

#[tokio::test]
async fn the_originals_dialect_can_do_less_and_says_so() {
    let server = Server::new().await;
    for request in [
        client::open_append(&server.url).create_new(),
        client::open_append(&server.url).offset(0),
        client::open_append(&server.url).seal_at_end(),
    ] {
        let opening = tokio::spawn(request.into_future());
        server.accept().await.upgrade("").await;
        let error = within(opening).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol);
        assert!(error.detail().contains("httpfstream.v1"), "{error}");
    }
    let opening = tokio::spawn(client::open_append(&server.url).into_future());
    let mut peer = server.accept().await;
    peer.upgrade("Stream-State: live\r\nUpload-Offset: 7\r\n").await;
    let mut appender = within(opening).await.unwrap().unwrap();
    appender.append("data").await.unwrap();
    within(appender.sync()).await.unwrap();
    assert!(!appender.is_resumable() && appender.life().is_none());
    assert_eq!((appender.offset(), appender.acknowledged()), (11, 7));
    assert_eq!(within(appender.seal()).await.unwrap_err().kind(), ErrorKind::Protocol);
    // A server that spoke it must not stop doing so.
    let (mut appender, peer) = half_acknowledged(&server).await;
    drop(peer);
    server.accept().await.upgrade("").await;
    assert_eq!(within(appender.closed()).await.kind(), ErrorKind::Protocol);
}
