//! The resumable subprotocol `httpfstream.v1` (protocol section 4), byte by byte over sockets.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use common::spy::Spy;
use common::{Answer, Frame, Raw, Server, Store, pattern, reopened, serve, soon, stores};
use httpfstream::{AppenderId, Durability, ErrorKind, Grant, HttpFStreamLayer, Streams, Update};
use httpfstream::{
    State,
    storage::{FsStorage, MemoryStorage},
};
use serde_json::{Value, json};

const ID: &str = "0123456789abcdefghijklmnopqrstuv";
const OTHER: &str = "vutsrqponmlkjihgfedcba9876543210";

async fn ask(server: &Server, target: &str, headers: &[(&str, &str)]) -> (Answer, Raw) {
    let mut all = vec![("Sec-WebSocket-Protocol", "httpfstream.v1")];
    all.extend_from_slice(headers);
    server.upgrade(target, &all).await
}

async fn open(server: &Server, target: &str, headers: &[(&str, &str)]) -> (Raw, Value) {
    let (answer, mut raw) = ask(server, target, headers).await;
    assert_eq!(answer.status, 101, "{answer:?}");
    assert_eq!(answer.header("sec-websocket-protocol"), Some("httpfstream.v1"));
    let first = message(&mut raw).await;
    (raw, first)
}

async fn append(server: &Server, key: &str, id: &str) -> (Raw, Value) {
    open(server, &format!("/{key}?verb=APPEND"), &[("Appender-Id", id)]).await
}

async fn follow(server: &Server, key: &str, options: &str) -> (Raw, Value) {
    open(server, &format!("/{key}?verb=FOLLOW&{options}"), &[]).await
}

/// The next control message, which has to come next.
async fn message(raw: &mut Raw) -> Value {
    match raw.frame().await {
        Frame::Text(text) => serde_json::from_slice(&text).unwrap(),
        other => panic!("{other:?} instead of a control message"),
    }
}

/// Waits for the acknowledgement of a length; earlier ones may come before.
async fn acked(raw: &mut Raw, len: u64) {
    let mut before = 0;
    while before < len {
        let ack = message(raw).await;
        let ack = ack["ack"].as_u64().unwrap_or_else(|| panic!("{ack} instead of an acknowledgement"));
        assert!(ack > before && ack <= len, "{ack} after {before}, of {len}");
        before = ack;
    }
}

async fn send(raw: &mut Raw, data: &[u8]) {
    raw.send_frame(0x82, data).await;
}

/// Finishes, and hears that it is finished at this length.
async fn finish(raw: &mut Raw, how: Value, len: u64) {
    raw.send_text(how.to_string()).await;
    loop {
        let told = message(raw).await;
        if told == json!({"ack": len, "finished": true}) {
            break;
        }
        assert!(told["ack"].as_u64().is_some_and(|ack| ack <= len) && told["finished"] == Value::Null, "{told}");
    }
    assert_eq!(raw.frame().await, Frame::Close(Some(1000), String::new()));
}

/// BINARY frames until so many bytes are there.
async fn binary(raw: &mut Raw, len: usize) -> Vec<u8> {
    let mut data = Vec::new();
    while data.len() < len {
        match raw.frame().await {
            Frame::Binary(payload) => data.extend(payload),
            other => panic!("{other:?} after {} of {len} bytes", data.len()),
        }
    }
    data
}

/// What a follower gets from where it stands: data, states, the end.
async fn rest(raw: &mut Raw) -> (Vec<u8>, Vec<Value>, Option<u16>) {
    let (mut data, mut told) = (Vec::new(), Vec::new());
    loop {
        match raw.frame().await {
            Frame::Binary(payload) => data.extend(payload),
            Frame::Text(text) => told.push(serde_json::from_slice(&text).unwrap()),
            Frame::Close(code, _) => return (data, told, code),
            other => panic!("{other:?}"),
        }
    }
}

async fn refused(server: &Server, target: &str, headers: &[(&str, &str)]) -> (u16, String, Option<String>) {
    let (answer, _) = ask(server, target, headers).await;
    let problem: Value = serde_json::from_slice(&answer.body).unwrap();
    let kind = problem["type"].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
    (answer.status, kind, answer.header("upload-offset").map(str::to_owned))
}

async fn until_state(server: &Server, key: &str, state: State) {
    soon("the state", async {
        while server.streams.stat(key).await.unwrap().is_none_or(|stat| stat.state != state) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// A server whose lost appenders have this long.
async fn with_grace(storage: MemoryStorage, grace: Duration) -> Server {
    let streams = Streams::builder(storage).grace(grace).build();
    serve(HttpFStreamLayer::from_streams(streams).plain_http(true)).await
}

#[tokio::test]
async fn bytes_are_acknowledged_and_a_finish_is_confirmed() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        let (mut out, first) = append(&server, "a", ID).await;
        let life = server.streams.stat("a").await.unwrap().unwrap().life.to_string();
        assert_eq!(first, json!({"offset": 0, "life": life, "resumed": false}), "{name}");
        let (mut early, first) = follow(&server, "a", "").await;
        assert_eq!(first, json!({"offset": 0, "life": life, "state": "live"}));
        let all = pattern(0, 300_000);
        send(&mut out, &all[..100]).await;
        acked(&mut out, 100).await;
        assert_eq!(binary(&mut early, 100).await, &all[..100]);
        send(&mut out, &all[100..]).await;
        finish(&mut out, json!({"finish": true}), 300_000).await;
        let end = json!({"state": "finished", "length": 300_000});
        assert_eq!(rest(&mut early).await, (all[100..].to_vec(), vec![end.clone()], Some(1000)), "{name}");
        // Upgraded though it is at rest.
        let (mut late, first) = follow(&server, "a", "").await;
        assert_eq!(first, json!({"offset": 0, "life": life, "state": "finished"}));
        assert_eq!(rest(&mut late).await, (all, vec![end], Some(1000)));
    }
}

#[tokio::test]
async fn fault_24_a_cut_message_is_stored_as_far_as_it_came_and_the_appender_goes_on() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        let (mut out, _) = append(&server, "a", ID).await;
        let (mut follower, first) = follow(&server, "a", "").await;
        let all = pattern(0, 50_000);
        let frame = common::client_frame(0x82, &all[..40_000]);
        out.send(&frame[..20_000]).await;
        let got = binary(&mut follower, 1).await;
        out.reset();
        until_state(&server, "a", State::Lost).await;
        let (mut out, told) = append(&server, "a", ID).await;
        let at = told["offset"].as_u64().unwrap();
        assert_eq!(told, json!({"offset": at, "life": first["life"], "resumed": true}), "{name}");
        assert!(at as usize >= got.len() && at < 20_000);
        send(&mut out, &all[at as usize..]).await;
        finish(&mut out, json!({"finish": true}), 50_000).await;
        let (data, told, code) = rest(&mut follower).await;
        assert!([got, data].concat() == all, "{name}");
        let states =
            [json!({"state": "lost"}), json!({"state": "live"}), json!({"state": "finished", "length": 50_000})];
        assert_eq!((&told[..], code), (&states[..], Some(1000)), "{name}");
    }
}

#[tokio::test]
async fn fault_30_the_same_appender_takes_over_at_once_and_the_ghost_is_fenced() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        let (mut ghost, _) = append(&server, "a", ID).await;
        send(&mut ghost, b"one ").await;
        acked(&mut ghost, 4).await;
        let (mut out, told) = append(&server, "a", ID).await;
        assert_eq!((&told["offset"], &told["resumed"]), (&json!(4), &json!(true)), "{name}");
        send(&mut ghost, b"GHOST").await;
        assert_eq!(ghost.to_end().await.1, Some(4001), "{name}");
        // Nobody else gets in.
        for id in [Some(("Appender-Id", OTHER)), None] {
            let told = refused(&server, "/a?verb=APPEND", id.as_slice()).await;
            assert_eq!((told.0, &told.1[..]), (409, "busy"));
        }
        send(&mut out, b"two").await;
        finish(&mut out, json!({"finish": true}), 7).await;
        assert_eq!(server.get("/a").await.body, b"one two", "{name}");
    }
}

/// A short form; `HTTPFSTREAM_TAKEOVERS` is how many rounds, and `tests/external/takeover.sh` has the long one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_30_ghosts_reconnects_and_strangers_never_mix_bytes() {
    let rounds = std::env::var("HTTPFSTREAM_TAKEOVERS").map_or(40, |rounds| rounds.parse::<usize>().unwrap());
    let mut of_ghosts = 0;
    for (round, Store { name, layer, .. }) in stores().into_iter().enumerate() {
        let server = serve(layer).await;
        let half = [rounds / 2, rounds - rounds / 2][round];
        for i in 0..half {
            of_ghosts += takeover(&server, name, &format!("r{round}-{i}"), i).await;
        }
    }
    println!("takeover: {rounds} rounds, one winner each, {of_ghosts} bytes of ghosts before their fence, 0 after it");
}

/// One ghost that goes on sending, one stranger, one that comes back; how much of the ghost was stored.
async fn takeover(server: &Server, name: &str, key: &str, round: usize) -> u64 {
    use tokio::io::AsyncWriteExt;
    let target = format!("/{key}?verb=APPEND");
    let (mut ghost, _) = append(server, key, ID).await;
    let ghosting = tokio::spawn(async move {
        // Whole messages, halves of them, one byte at a time; all in flight when it is fenced.
        let frame = common::client_frame(0x82, &[b'g'; 640]);
        let piece = [frame.len(), frame.len() / 2, 1][round % 3];
        'sending: loop {
            for piece in frame.chunks(piece) {
                if ghost.stream.write_all(piece).await.is_err() {
                    break 'sending;
                }
                tokio::task::yield_now().await;
            }
        }
    });
    // Some come at once, some when the ghost is well under way.
    let enough = [0, 1, 5_000, 50_000][round / 3 % 4];
    soon("the ghost to get on", async {
        while server.streams.stat(key).await.unwrap().is_none_or(|stat| stat.len < enough) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let (stranger, again) = tokio::join!(refused(server, &target, &[("Appender-Id", OTHER)]), append(server, key, ID),);
    assert_eq!((stranger.0, &stranger.1[..]), (409, "busy"), "{name}");
    let (mut out, told) = again;
    let at = told["offset"].as_u64().unwrap();
    assert!(at >= enough, "{name}: {at} of {enough}");
    send(&mut out, b"between").await;
    acked(&mut out, at + 7).await;
    let stranger = refused(server, &target, &[("Appender-Id", OTHER)]).await;
    assert_eq!((stranger.0, &stranger.1[..]), (409, "busy"), "{name}");
    send(&mut out, b" and end").await;
    finish(&mut out, json!({"finish": true}), at + 15).await;
    let stored = server.get(&format!("/{key}")).await.body;
    assert!(stored == [vec![b'g'; at as usize], b"between and end".to_vec()].concat(), "{name} {key}");
    server.streams.delete(key).await.unwrap();
    ghosting.abort();
    at
}

#[tokio::test]
async fn fault_42_a_slow_sync_holds_up_acknowledgements_and_nothing_else() {
    let storage = Spy::new(MemoryStorage::new(1 << 30));
    let watch = storage.watch.clone();
    let server = serve(HttpFStreamLayer::new(storage).plain_http(true)).await;
    let (mut out, _) = append(&server, "a", ID).await;
    let (mut follower, _) = follow(&server, "a", "").await;
    let gate = watch.hold_syncs();
    let data = pattern(0, 4_000_000);
    for piece in data.chunks(40_000) {
        send(&mut out, piece).await;
    }
    // All of it is stored and followed while the first sync hangs, and no second one waits behind it.
    assert!(binary(&mut follower, data.len()).await == data);
    assert_eq!(watch.now().syncs_begun, 1);
    drop(gate);
    acked(&mut out, data.len() as u64).await;
    assert!(watch.now().syncs_begun <= 3, "{:?}", watch.now());
}

#[tokio::test]
async fn fault_32_a_finish_whose_answer_was_lost_is_told_again_and_nothing_is_reopened() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        for (key, how, state) in [
            ("finished", json!({"finish": true}), State::Finished),
            ("sealed", json!({"finish": true, "seal": true}), State::Sealed),
        ] {
            let (mut out, told) = append(&server, key, ID).await;
            let life = told["life"].as_str().unwrap();
            send(&mut out, b"everything").await;
            out.send_text(how.to_string()).await;
            out.reset();
            let target = format!("/{key}?verb=APPEND&life={life}&finish=10");
            let (answer, mut again) = ask(&server, &target, &[("Appender-Id", ID)]).await;
            assert_eq!(answer.status, 101, "{answer:?}");
            let first = message(&mut again).await;
            if first["resumed"] == true {
                // The reset overtook what was sent.
                let at = first["offset"].as_u64().unwrap() as usize;
                send(&mut again, &b"everything"[at..]).await;
                finish(&mut again, how, 10).await;
            } else {
                assert_eq!(first, json!({"ack": 10, "finished": true}), "{name}");
                assert_eq!(again.frame().await, Frame::Close(Some(1000), String::new()));
            }
            let stat = server.streams.stat(key).await.unwrap().unwrap();
            assert_eq!((stat.state, stat.len), (state, 10), "{name}");
            // Asked once more it is the same; from another life it is an error.
            let (mut again, first) = open(&server, &target, &[("Appender-Id", ID)]).await;
            assert_eq!(first, json!({"ack": 10, "finished": true}));
            assert_eq!(again.frame().await, Frame::Close(Some(1000), String::new()));
            let other = format!("/{key}?verb=APPEND&life={}&finish=10", "0".repeat(32));
            let told = refused(&server, &other, &[("Appender-Id", OTHER)]).await;
            let expected = if state == State::Sealed { (409, "sealed") } else { (412, "life") };
            assert_eq!((told.0, &told.1[..]), expected, "{name}");
        }
        // A stranger appended meanwhile: the finish is no longer the end.
        let mut stranger = server.streams.append("finished").await.unwrap();
        stranger.append("!").await.unwrap();
        stranger.finish().await.unwrap();
        let life = server.streams.stat("finished").await.unwrap().unwrap().life;
        let target = format!("/finished?verb=APPEND&life={life}&finish=10");
        let (_, told) = open(&server, &target, &[("Appender-Id", ID)]).await;
        assert_eq!(told, json!({"offset": 11, "life": life.to_string(), "resumed": false}), "{name}");
    }
}

#[tokio::test]
async fn fault_32_what_a_stranger_finished_at_the_same_length_is_no_finish_of_ours() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        let (mut stranger, told) = append(&server, "a", OTHER).await;
        send(&mut stranger, b"0123456789").await;
        finish(&mut stranger, json!({"finish": true}), 10).await;
        let target = format!("/a?verb=APPEND&life={}&finish=10", told["life"].as_str().unwrap());
        let as_any_other = json!({"offset": 10, "life": told["life"], "resumed": false});
        let (mut out, first) = open(&server, &target, &[]).await;
        assert_eq!(first, as_any_other, "{name}, without an id");
        out.send_close(1001).await;
        assert_eq!(out.to_end().await.1, Some(1001));
        assert_eq!(server.at_rest("a").await.unwrap().state, State::Finished);
        // Whoever finished it is told so.
        let (_, first) = open(&server, &target, &[("Appender-Id", OTHER)]).await;
        assert_eq!(first, json!({"ack": 10, "finished": true}), "{name}");
        let (_, first) = open(&server, &target, &[("Appender-Id", ID)]).await;
        assert_eq!(first, as_any_other, "{name}");
    }
}

#[tokio::test]
async fn a_lost_appender_keeps_others_out_until_its_grace_ends() {
    let server = with_grace(MemoryStorage::new(1 << 20), Duration::from_millis(150)).await;
    let (mut out, told) = append(&server, "a", ID).await;
    let (mut follower, _) = follow(&server, "a", "").await;
    let mut original = server.follow("/a").await;
    send(&mut out, b"some").await;
    acked(&mut out, 4).await;
    out.reset();
    assert_eq!(binary(&mut follower, 4).await, b"some");
    assert_eq!(message(&mut follower).await, json!({"state": "lost"}));
    assert_eq!(
        refused(&server, "/a?verb=APPEND", &[("Appender-Id", OTHER)]).await,
        (409, "busy".into(), Some("4".into()))
    );
    let end = json!({"state": "interrupted", "length": 4});
    assert_eq!(rest(&mut follower).await, (vec![], vec![end], Some(1000)));
    assert_eq!(original.to_end().await, (b"some".to_vec(), Some(1011)));
    // It is still known, unless somebody else appends.
    let (mut out, again) = append(&server, "a", ID).await;
    assert_eq!(again, json!({"offset": 4, "life": told["life"], "resumed": true}));
    out.send_close(1001).await;
    until_state(&server, "a", State::Lost).await;
    until_state(&server, "a", State::Interrupted).await;
    let (mut stranger, told) = append(&server, "a", OTHER).await;
    assert_eq!(told["resumed"], false);
    send(&mut stranger, b" more").await;
    finish(&mut stranger, json!({"finish": true}), 9).await;
    let (_, told) = append(&server, "a", ID).await;
    assert_eq!((&told["offset"], &told["resumed"]), (&json!(9), &json!(false)));
}

#[tokio::test]
async fn without_an_id_a_lost_appender_is_interrupted_at_once() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        let (mut out, _) = open(&server, "/a?verb=APPEND", &[]).await;
        send(&mut out, b"some").await;
        acked(&mut out, 4).await;
        out.send_close(1001).await;
        let stat = server.at_rest("a").await.unwrap();
        assert_eq!((stat.state, stat.len), (State::Interrupted, 4), "{name}");
    }
}

#[tokio::test]
async fn an_appender_that_wants_another_resource_changes_nothing() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        let mut first = server.streams.append("a").await.unwrap();
        first.append("four").await.unwrap();
        let life = first.finish().await.unwrap().life;
        let before = server.streams.stat("a").await.unwrap();
        for (options, expected) in [
            ("offset=3", (409, "offset")),
            ("create", (409, "exists")),
            ("life=00000000000000000000000000000000", (412, "life")),
            ("offset=x", (400, "bad-request")),
            ("appender=short", (400, "bad-request")),
        ] {
            let (status, kind, len) = refused(&server, &format!("/a?verb=APPEND&{options}"), &[]).await;
            assert_eq!((status, &kind[..]), expected, "{name} {options}");
            assert_eq!(len.as_deref(), (status != 400).then_some("4"), "{name} {options}");
            assert_eq!(server.streams.stat("a").await.unwrap(), before, "{name} {options}");
        }
        let (mut out, told) = open(&server, &format!("/a?verb=APPEND&offset=4&life={life}"), &[]).await;
        assert_eq!(told["offset"], 4);
        send(&mut out, b"!").await;
        finish(&mut out, json!({"finish": true}), 5).await;
        let (_, told) = open(&server, "/new?verb=APPEND", &[("If-None-Match", "*")]).await;
        assert_eq!(told["offset"], 0);
    }
}

#[tokio::test]
async fn a_follower_begins_where_it_wants() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        let text = format!("{}\nlast but one\nlast\n", "long ".repeat(40_000));
        let len = text.len() as u64;
        let mut out = server.streams.append("a").await.unwrap();
        out.append(text.clone()).await.unwrap();
        let life = out.life();
        for live in [true, false] {
            if !live {
                let out = std::mem::replace(&mut out, server.streams.append("other").await.unwrap());
                out.finish().await.unwrap();
            }
            for (options, from) in [
                (format!("offset={len}"), len),
                ("offset=7".to_owned(), 7),
                (format!("offset=9&life={life}"), 9),
                ("tail=0".to_owned(), len),
                ("tail=5".to_owned(), len - 5),
                ("tail=99999999".to_owned(), 0),
                ("lines=0".to_owned(), len),
                ("lines=1".to_owned(), len - 5),
                ("lines=2".to_owned(), len - 18),
                ("lines=3".to_owned(), 0),
                ("lines=4".to_owned(), 0),
            ] {
                let (mut raw, first) = follow(&server, "a", &options).await;
                assert_eq!(first["offset"], from, "{name} {options}");
                let data = binary(&mut raw, (len - from) as usize).await;
                assert!(data == text.as_bytes()[from as usize..], "{name} {options}");
                if !live {
                    assert_eq!(message(&mut raw).await, json!({"state": "finished", "length": len}));
                }
            }
            for (options, expected) in [
                (format!("offset={}", len + 1), (416, "past-end")),
                (format!("life={}", "0".repeat(32)), (412, "life")),
                ("offset=1&tail=1".to_owned(), (400, "bad-request")),
                ("lines=-1".to_owned(), (400, "bad-request")),
            ] {
                let (status, kind, _) = refused(&server, &format!("/a?verb=FOLLOW&{options}"), &[]).await;
                assert_eq!((status, &kind[..]), expected, "{name} {options}");
            }
            assert_eq!(refused(&server, "/none?verb=FOLLOW&offset=1", &[]).await.0, 404);
        }
        let (answer, _) = server.upgrade("/a?verb=FOLLOW&offset=1", &[]).await;
        assert_eq!(answer.status, 400, "the original's dialect keeps no offset: {answer:?}");
    }
}

#[tokio::test]
async fn an_absent_resource_is_waited_for() {
    let server = serve(common::memory_layer().max_wait(Duration::from_millis(50))).await;
    assert_eq!(refused(&server, "/a?verb=FOLLOW&wait=9999999", &[]).await.0, 404, "the server has a limit");
    let server = serve(common::memory_layer()).await;
    let waiting = follow(&server, "a", "wait=30");
    let appending = async {
        let mut out = server.streams.append("other").await.unwrap();
        out.append("x").await.unwrap();
        let mut out = server.streams.append("a").await.unwrap();
        out.append("here").await.unwrap();
        out.finish().await.unwrap();
    };
    let ((mut raw, _), ()) = tokio::join!(waiting, appending);
    assert_eq!(rest(&mut raw).await.0, b"here");
}

#[tokio::test]
async fn what_an_appender_may_not_say_ends_the_connection_not_the_resource() {
    let long = format!("{{\"x\":\"{}\"}}", "x".repeat(17_000));
    for (text, code) in [("{\"hello\":1}", 1002), ("finish", 1002), ("\u{0}", 1002), (&long[..], 1009)] {
        let server = serve(common::memory_layer()).await;
        let (mut out, _) = append(&server, "a", ID).await;
        send(&mut out, b"kept").await;
        acked(&mut out, 4).await;
        out.send_text(text).await;
        assert_eq!(out.to_end().await.1, Some(code));
        until_state(&server, "a", State::Lost).await;
        let (mut out, told) = append(&server, "a", ID).await;
        assert_eq!((&told["offset"], &told["resumed"]), (&json!(4), &json!(true)));
        // A close inside a message is none of a finish.
        out.send_frame(0x02, b"half").await;
        out.send_close(1000).await;
        assert_eq!(out.to_end().await.1, Some(1002));
    }
}

#[tokio::test]
async fn close_1000_finishes() {
    let server = serve(common::memory_layer()).await;
    let (mut out, _) = append(&server, "a", ID).await;
    send(&mut out, b"all").await;
    out.send_close(1000).await;
    loop {
        let told = message(&mut out).await;
        if told == json!({"ack": 3, "finished": true}) {
            break;
        }
        assert_eq!(told, json!({"ack": 3}));
    }
    assert_eq!(out.frame().await, Frame::Close(Some(1000), String::new()));
    assert_eq!(server.at_rest("a").await.unwrap().state, State::Finished);
}

#[tokio::test]
async fn fault_44_a_stopped_server_keeps_the_place_of_an_appender_that_can_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let life = {
        let layer = HttpFStreamLayer::new(FsStorage::open(dir.path()).unwrap()).plain_http(true);
        let server = serve(layer).await;
        let (mut out, told) = append(&server, "a", ID).await;
        let (mut lost, _) = append(&server, "lost", ID).await;
        send(&mut lost, b"lost before").await;
        acked(&mut lost, 11).await;
        lost.reset();
        until_state(&server, "lost", State::Lost).await;
        let (mut follower, _) = follow(&server, "a", "").await;
        send(&mut out, b"kept").await;
        assert_eq!(binary(&mut follower, 4).await, b"kept");
        server.streams.shutdown(Duration::from_secs(20)).await;
        let mut last = Value::Null;
        let code = loop {
            match out.frame().await {
                Frame::Text(text) => last = serde_json::from_slice(&text).unwrap(),
                Frame::Close(code, _) => break code,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((last, code), (json!({"ack": 4}), Some(1001)));
        assert_eq!(rest(&mut follower).await, (vec![], vec![], Some(1001)), "not the end");
        told["life"].clone()
    };
    let storage = reopened(dir.path()).await;
    let server = serve(HttpFStreamLayer::new(storage).plain_http(true)).await;
    // The follower first, and a stranger: the place is kept.
    let (mut follower, first) = follow(&server, "a", &format!("offset=4&life={}", life.as_str().unwrap())).await;
    assert_eq!(first, json!({"offset": 4, "life": life, "state": "lost"}));
    assert_eq!(refused(&server, "/a?verb=APPEND", &[]).await.1, "busy");
    assert_eq!(refused(&server, "/lost?verb=APPEND", &[("Appender-Id", OTHER)]).await.1, "busy");
    let (mut out, told) = append(&server, "a", ID).await;
    assert_eq!(told, json!({"offset": 4, "life": life, "resumed": true}));
    send(&mut out, b" on").await;
    finish(&mut out, json!({"finish": true}), 7).await;
    let told = vec![json!({"state": "live"}), json!({"state": "finished", "length": 7})];
    assert_eq!(rest(&mut follower).await, (b" on".to_vec(), told, Some(1000)));
    let (_, told) = append(&server, "lost", ID).await;
    assert_eq!((&told["offset"], &told["resumed"]), (&json!(11), &json!(true)));
}

#[tokio::test]
async fn a_grace_that_nobody_uses_after_a_restart_ends_too() {
    let storage = MemoryStorage::new(1 << 20);
    {
        let streams = Streams::new(storage.clone());
        let mut out = streams.append("a").appender_id(ID.parse().unwrap()).await.unwrap();
        out.append("some").await.unwrap();
        streams.shutdown(Duration::from_millis(1)).await;
    }
    let server = with_grace(storage, Duration::from_millis(100)).await;
    let (mut follower, first) = follow(&server, "a", "").await;
    assert_eq!(first["state"], "lost");
    let end = json!({"state": "interrupted", "length": 4});
    assert_eq!(rest(&mut follower).await, (b"some".to_vec(), vec![end], Some(1000)));
    server.streams.append("a").await.unwrap().finish().await.unwrap();
}

#[tokio::test]
async fn an_id_is_of_no_use_to_another_principal() {
    let layer = common::memory_layer().authorize(|access| async move {
        let who =
            access.head.headers.get("x-user").and_then(|value| value.to_str().ok()).unwrap_or("nobody").to_owned();
        Ok(Grant::new().principal(who))
    });
    let server = serve(layer).await;
    let (mut out, _) = open(&server, "/a?verb=APPEND", &[("Appender-Id", ID), ("X-User", "ann")]).await;
    send(&mut out, b"ann's").await;
    acked(&mut out, 5).await;
    let thief = refused(&server, "/a?verb=APPEND", &[("Appender-Id", ID), ("X-User", "eve")]).await;
    assert_eq!((thief.0, &thief.1[..]), (409, "busy"));
    let (_, told) = open(&server, "/a?verb=APPEND", &[("Appender-Id", ID), ("X-User", "ann")]).await;
    assert_eq!(told["resumed"], true);
}

#[tokio::test]
async fn fault_36_nothing_is_acknowledged_when_a_sync_fails() {
    let storage = Spy::new(MemoryStorage::new(1 << 20));
    let watch = storage.watch.clone();
    let server = serve(HttpFStreamLayer::new(storage).plain_http(true)).await;
    let (mut out, _) = append(&server, "a", ID).await;
    let (mut follower, _) = follow(&server, "a", "").await;
    watch.fail_syncs.store(true, Ordering::Relaxed);
    send(&mut out, b"doomed").await;
    assert_eq!(out.to_end().await, (vec![], Some(1011)));
    assert_eq!(rest(&mut follower).await.2, Some(1011));
}

#[tokio::test]
async fn fault_35_a_full_storage_refuses_and_takes_more_once_there_is_room() {
    let server = serve(HttpFStreamLayer::new(MemoryStorage::new(100)).plain_http(true)).await;
    let mut other = server.streams.append("other").await.unwrap();
    other.append(vec![b'o'; 60]).await.unwrap();
    let (mut out, _) = append(&server, "a", ID).await;
    send(&mut out, &[b'a'; 30]).await;
    acked(&mut out, 30).await;
    send(&mut out, &[b'b'; 30]).await;
    assert_eq!(out.to_end().await.1, Some(1011));
    until_state(&server, "a", State::Lost).await;
    other.append("goes on").await.unwrap();
    server.streams.delete("other").await.unwrap();
    let (mut out, told) = append(&server, "a", ID).await;
    assert_eq!((&told["offset"], &told["resumed"]), (&json!(30), &json!(true)));
    send(&mut out, &[b'b'; 30]).await;
    finish(&mut out, json!({"finish": true}), 60).await;
    assert_eq!(server.get("/a").await.body, [[b'a'; 30], [b'b'; 30]].concat());
}

#[tokio::test]
async fn acknowledgements_wait_for_syncs_unless_the_policy_is_to_do_without() {
    for (durability, syncs) in [(Durability::Process, false), (Durability::Acked, true), (Durability::default(), true)]
    {
        let storage = Spy::new(MemoryStorage::new(1 << 20));
        let watch = storage.watch.clone();
        let streams = Streams::builder(storage).durability(durability).build();
        let server = serve(HttpFStreamLayer::from_streams(streams)).await;
        let (mut out, _) = append(&server, "a", ID).await;
        send(&mut out, b"bytes").await;
        acked(&mut out, 5).await;
        assert_eq!(watch.now().synced, if syncs { 5 } else { 0 }, "{durability:?}");
    }
}

#[tokio::test]
async fn in_process_appends_wait_for_a_sync_only_where_nothing_counts_before() {
    for (durability, synced) in [(Durability::Acked, 1), (Durability::Interval(Duration::from_secs(3600)), 0)] {
        let storage = Spy::new(MemoryStorage::new(1 << 20));
        let watch = storage.watch.clone();
        let streams = Streams::builder(storage).durability(durability).build();
        let mut appender = streams.append("a").await.unwrap();
        appender.append("x").await.unwrap();
        assert_eq!(watch.now().synced, synced, "{durability:?}");
    }
}

#[tokio::test]
async fn in_process_appenders_come_back_and_followers_are_told() {
    let streams = Streams::new(MemoryStorage::new(1 << 20));
    let id = AppenderId::random().unwrap();
    let mut out = streams.append("a").appender_id(id.clone()).await.unwrap();
    assert!(!out.is_resumed());
    out.append("one ").await.unwrap();
    assert_eq!(out.sync().await.unwrap(), 4);
    let mut follower = streams.follow("a").offset(2).await.unwrap();
    let mut ghost = std::mem::replace(&mut out, streams.append("a").appender_id(id.clone()).await.unwrap());
    assert!(out.is_resumed());
    assert_eq!(ghost.append("ghost").await.unwrap_err().kind(), ErrorKind::Fenced);
    drop(ghost);
    drop(out);
    assert_eq!(streams.append("a").await.unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(streams.append("a").offset(3).appender_id(id.clone()).await.unwrap_err().kind(), ErrorKind::Offset);
    let mut out = streams.append("a").offset(4).appender_id(id).await.unwrap();
    out.append("two").await.unwrap();
    out.finish().await.unwrap();
    let (mut data, mut states) = (Vec::new(), Vec::new());
    while let Some(update) = follower.next_update().await.unwrap() {
        match update {
            Update::Data(bytes) => data.extend_from_slice(&bytes),
            Update::State(state) => states.push(state),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(data, b"e two");
    assert!(matches!(states[..], [] | [State::Lost, State::Live]), "coalesced or whole: {states:?}");
    assert_eq!((follower.state(), follower.offset()), (State::Finished, 7));
    let life = follower.life();
    assert_eq!(streams.follow("a").offset(8).await.unwrap_err().kind(), ErrorKind::PastEnd);
    assert_eq!(streams.follow("a").lines(1).life(life).await.unwrap().next_chunk().await.unwrap().unwrap(), "one two");
}
