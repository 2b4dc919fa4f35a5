//! Frames that no client should send: fault cases 20 to 26.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Frame, Raw, Server, client_frame, memory_layer, pattern, serve, stores};
use httpfstream::State;

/// The header of a masked frame that declares a length, whatever follows.
fn declares(first: u8, len: u64) -> Vec<u8> {
    let mut frame = vec![first, 0x80 | 127];
    frame.extend_from_slice(&len.to_be_bytes());
    frame.extend_from_slice(&[1, 2, 3, 4]);
    frame
}

/// Appends `kept`, sees it followed, and returns the appender and the follower.
async fn with_some(server: &Server, key: &str) -> (Raw, Raw) {
    let mut appender = server.append(key).await;
    appender.send_text("kept").await;
    let mut follower = server.follow(key).await;
    assert_eq!(follower.data(4).await, b"kept");
    (appender, follower)
}

/// The resource is `kept`, and interrupted; so was the follower told.
async fn interrupted(server: &Server, key: &str, mut follower: Raw, stored: &str) {
    let rest = &stored[4..];
    assert_eq!(follower.to_end().await, (rest.as_bytes().to_vec(), Some(1011)), "{key}");
    assert_eq!(server.at_rest(&key[1..]).await.unwrap().state, State::Interrupted);
    let answer = server.get(key).await;
    assert_eq!((answer.text().as_str(), answer.header("stream-state")), (stored, Some("interrupted")));
}

#[tokio::test]
async fn fault_20_what_breaks_the_protocol_is_closed_with_1002_and_not_appended() {
    for store in stores() {
        let server = serve(store.layer).await;
        let mut nested = client_frame(0x01, b"never");
        nested.extend(client_frame(0x81, b"never"));
        let mut fragment_then_bad = client_frame(0x02, b"never");
        fragment_then_bad.extend(client_frame(0x83, b""));
        let cases: [(&str, Vec<u8>); 14] = [
            ("unmasked", vec![0x82, 5, b'n', b'e', b'v', b'e', b'r']),
            ("rsv1", client_frame(0xc2, b"never")),
            ("rsv2", client_frame(0xa2, b"never")),
            ("rsv3", client_frame(0x92, b"never")),
            ("opcode 3", client_frame(0x83, b"never")),
            ("opcode 7", client_frame(0x87, b"never")),
            ("opcode 11", client_frame(0x8b, b"never")),
            ("opcode 15", client_frame(0x8f, b"never")),
            ("ping of 126 bytes", client_frame(0x89, &[b'n'; 126])),
            ("fragmented ping", client_frame(0x09, b"never")),
            ("fragmented close", client_frame(0x08, &1000u16.to_be_bytes())),
            ("continuation of nothing", client_frame(0x80, b"never")),
            ("message in a message", nested),
            ("bad frame in a message", fragment_then_bad),
        ];
        for (at, (name, bad)) in cases.into_iter().enumerate() {
            let key = format!("/{at}");
            let (mut appender, follower) = with_some(&server, &key).await;
            // With a good message before and one behind, all in one segment.
            let mut sent = client_frame(0x82, b" too");
            sent.extend(bad);
            sent.extend(client_frame(0x82, b"never"));
            appender.send(&sent).await;
            assert_eq!(appender.to_end().await, (vec![], Some(1002)), "{} {name}", store.name);
            interrupted(&server, &key, follower, "kept too").await;
        }
    }
}

#[tokio::test]
async fn fault_20_a_bad_close_frame_is_no_finish() {
    let server = serve(memory_layer()).await;
    for (at, (payload, code)) in [
        (&[3u8][..], 1002),
        (&[3, 237], 1002),
        (&[3, 238], 1002),
        (&[0, 0], 1002),
        (&[0x13, 0x88], 1002),
        (&[3, 232, 0xff], 1007),
    ]
    .into_iter()
    .enumerate()
    {
        let key = format!("/{at}");
        let (mut appender, follower) = with_some(&server, &key).await;
        appender.send_frame(0x88, payload).await;
        assert_eq!(appender.to_end().await, (vec![], Some(code)), "{payload:?}");
        interrupted(&server, &key, follower, "kept").await;
    }
}

#[tokio::test]
async fn fault_20_a_follower_that_breaks_the_protocol_is_closed_too() {
    let server = serve(memory_layer()).await;
    let (appender, mut good) = with_some(&server, "/a").await;
    for bad in [vec![0x89, 0], client_frame(0xc1, b"x"), client_frame(0x8b, b""), client_frame(0x89, &[0; 126])] {
        let mut follower = server.follow("/a").await;
        follower.send(&bad).await;
        assert_eq!(follower.to_end().await, (b"kept".to_vec(), Some(1002)));
    }
    let mut appender = appender;
    appender.send_text("!").await;
    assert_eq!(good.data(1).await, b"!", "nobody else noticed");
}

#[tokio::test]
async fn fault_21_a_declared_length_over_the_limit_is_1009_at_once() {
    for store in stores() {
        let server = serve(store.layer.max_message_size(1000)).await;
        for (at, len) in [1 << 63, u64::MAX, u64::MAX >> 1, 1 << 40, 1001].into_iter().enumerate() {
            let key = format!("/{at}");
            let (mut appender, follower) = with_some(&server, &key).await;
            // No payload follows: what is declared is enough.
            appender.send(&declares(0x82, len)).await;
            assert_eq!(appender.to_end().await, (vec![], Some(1009)), "{} {len}", store.name);
            interrupted(&server, &key, follower, "kept").await;
        }
        // In fragments none of which is over the limit.
        let (mut appender, follower) = with_some(&server, "/f").await;
        appender.send_frame(0x02, &[b'n'; 600]).await;
        appender.send_frame(0x00, &[b'n'; 400]).await;
        appender.send_frame(0x00, &[b'n'; 1]).await;
        assert_eq!(appender.to_end().await, (vec![], Some(1009)));
        interrupted(&server, "/f", follower, "kept").await;
        // At the limit it is fine, in one piece or many.
        let mut appender = server.append("/ok").await;
        appender.send_frame(0x82, &pattern(0, 1000)).await;
        appender.send_frame(0x02, &pattern(1000, 600)).await;
        appender.send_frame(0x80, &pattern(1600, 400)).await;
        appender.send_close(1000).await;
        assert_eq!(appender.to_end().await.1, Some(1000));
        assert!(server.get("/ok").await.body == pattern(0, 2000));
    }
}

#[tokio::test]
async fn fault_21_nothing_is_allocated_for_what_is_only_declared() {
    // All below a limit that would hold far more than there is memory for, if it were taken at its word.
    let server = serve(memory_layer().max_message_size(1 << 50)).await;
    let mut appenders = Vec::new();
    for at in 0..64 {
        let mut appender = server.append(&format!("/{at}")).await;
        appender.send(&declares(0x82, 1 << 49)).await;
        appender.send(b"a little").await;
        appenders.push(appender);
    }
    // Somebody else is still served.
    let (mut appender, _follower) = with_some(&server, "/other").await;
    appender.send_close(1000).await;
    assert_eq!(appender.to_end().await.1, Some(1000));
    drop(appenders);
    for at in 0..64 {
        // Nothing of a message that never ended was appended, so there is no such resource.
        assert_eq!(server.at_rest(&at.to_string()).await, None);
    }
}

#[tokio::test]
async fn fault_21_a_resource_over_its_limit_is_1009() {
    for store in stores() {
        let server = serve(store.layer.max_resource_size(10)).await;
        let (mut appender, follower) = with_some(&server, "/a").await;
        appender.send_text("123456").await;
        appender.send_frame(0x89, b"sync").await;
        assert_eq!(appender.frame().await, Frame::Pong(b"sync".to_vec()));
        appender.send_text("7").await;
        assert_eq!(appender.to_end().await, (vec![], Some(1009)));
        interrupted(&server, "/a", follower, "kept123456").await;
    }
}

#[tokio::test]
async fn fault_22_text_that_is_no_utf8_is_bytes() {
    for store in stores() {
        let server = serve(store.layer).await;
        let bytes: Vec<u8> = (0..=255).chain([0xc3, 0xe2, 0x82, 0xf0, 0x9f]).collect();
        let mut appender = server.append_as_original("/a").await;
        let mut original = server.follow_as_original("/a").await;
        let mut browser = server.follow("/a").await;
        for piece in bytes.chunks(7) {
            appender.send_text(piece).await;
        }
        // A message of no bytes, and fragments that cut a character.
        appender.send_text(b"").await;
        appender.send_frame(0x01, &[0xe2, 0x82]).await;
        appender.send_frame(0x80, &[0xac]).await;
        drop(appender);
        let all: Vec<u8> = bytes.iter().copied().chain("€".bytes()).collect();
        let mut got = Vec::new();
        loop {
            match original.frame().await {
                Frame::Text(payload) => got.extend(payload),
                Frame::Close(code, _) => break assert_eq!(code, Some(1000)),
                other => panic!("{other:?}: the original's client takes nothing but text"),
            }
        }
        assert_eq!(got, all);
        let (mut got, mut binary) = (Vec::new(), false);
        loop {
            match browser.frame().await {
                Frame::Text(payload) => {
                    assert!(!binary && std::str::from_utf8(&payload).is_ok(), "a browser fails on such text");
                    got.extend(payload);
                }
                Frame::Binary(payload) => {
                    binary = true;
                    got.extend(payload);
                }
                Frame::Close(code, _) => break assert_eq!(code, Some(1000)),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((got, binary), (all.clone(), true));
        assert_eq!(server.get("/a").await.body, all);
    }
}

/// While `flood` is sent on one connection (and its answers are read or not), others are served. Then it is over.
async fn under_flood(server: &Server, name: &str, mut flooder: Raw, flood: Vec<u8>, rounds: usize) -> Raw {
    let sending = tokio::spawn(async move {
        for _ in 0..rounds {
            flooder.send(&flood).await;
        }
        flooder
    });
    let mut served = 0;
    while !sending.is_finished() || served < 3 {
        let key = format!("/{name}{served}");
        let (mut appender, mut follower) = with_some(server, &key).await;
        appender.send_close(1000).await;
        assert_eq!(appender.to_end().await.1, Some(1000));
        assert_eq!(follower.to_end().await, (vec![], Some(1000)));
        served += 1;
    }
    common::soon("the flood to be taken", sending).await.unwrap()
}

#[tokio::test]
async fn fault_23_a_flood_of_empty_frames_is_borne() {
    let server = serve(memory_layer()).await;
    let flood: Vec<u8> = std::iter::repeat_n(client_frame(0x82, b""), 10_000).flatten().collect();
    let mut appender = under_flood(&server, "first", server.append("/a").await, flood, 30).await;
    appender.send_text("x").await;
    appender.send_close(1000).await;
    assert_eq!(appender.to_end().await.1, Some(1000));
    assert_eq!(server.get("/a").await.text(), "x");
    // Empty fragments without end as well.
    let flood: Vec<u8> = std::iter::repeat_n(client_frame(0x00, b""), 10_000).flatten().collect();
    let mut appender = server.append("/b").await;
    appender.send_frame(0x01, b"y").await;
    let mut appender = under_flood(&server, "second", appender, flood, 30).await;
    appender.send_frame(0x80, b"z").await;
    appender.send_close(1000).await;
    assert_eq!(appender.to_end().await.1, Some(1000));
    assert_eq!(server.get("/b").await.text(), "yz");
}

#[tokio::test]
async fn fault_23_a_flood_of_one_byte_fragments_costs_what_its_bytes_are_worth() {
    let limit = 200_000;
    let server = serve(memory_layer().max_message_size(limit)).await;
    let mut appender = server.append("/a").await;
    appender.send_frame(0x02, b"x").await;
    let flood: Vec<u8> = std::iter::repeat_n(client_frame(0x00, b"x"), 10_000).flatten().collect();
    let mut appender = under_flood(&server, "other", appender, flood, 19).await;
    appender.send_frame(0x80, b"y").await;
    appender.send_close(1000).await;
    assert_eq!(appender.to_end().await.1, Some(1000));
    assert_eq!(server.get("/a").await.body.len(), 190_002);
    // The limit counts them all.
    let mut appender = server.append("/b").await;
    appender.send_frame(0x02, b"x").await;
    let flood: Vec<u8> = std::iter::repeat_n(client_frame(0x00, b"x"), limit as usize).flatten().collect();
    appender.send(&flood).await;
    assert_eq!(appender.to_end().await, (vec![], Some(1009)));
    assert_eq!(server.at_rest("b").await, None);
}

#[tokio::test]
async fn fault_23_a_flood_of_pings_whose_answers_are_read_is_answered() {
    let server = serve(memory_layer()).await;
    let (mut appender, follower) = with_some(&server, "/a").await;
    for mut raw in [follower, server.append("/b").await] {
        let flood: Vec<u8> = std::iter::repeat_n(client_frame(0x89, &[7; 125]), 500).flatten().collect();
        for _ in 0..10 {
            raw.send(&flood).await;
            for _ in 0..500 {
                assert_eq!(raw.frame().await, Frame::Pong(vec![7; 125]));
            }
        }
        raw.send_close(1000).await;
        assert_eq!(raw.to_end().await, (vec![], Some(1000)));
    }
    appender.send_close(1000).await;
    assert_eq!(appender.to_end().await.1, Some(1000));
}

#[tokio::test]
async fn fault_23_a_flood_of_pings_whose_answers_are_not_read_is_stopped_by_backpressure() {
    let server = serve(memory_layer()).await;
    let (_live, _follower) = with_some(&server, "/live").await;
    let follower = server.follow("/live").await;
    for raw in [follower, server.append("/a").await] {
        // The server can't answer any more, so it must stop reading instead of gathering answers: at some point no more
        // is taken. Socket buffers hold a few megabytes; this would be 256.
        let flood: Vec<u8> = std::iter::repeat_n(client_frame(0x89, &[7; 125]), 4_000).flatten().collect();
        let mut stopped = false;
        for _ in 0..500 {
            let mut at = 0;
            while at < flood.len() && !stopped {
                match raw.stream.try_write(&flood[at..]) {
                    Ok(n) => at += n,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        // Whoever is served meanwhile takes longer than a server that reads needs to take more.
                        for _ in 0..3 {
                            assert_eq!(server.get("/live").await.text(), "kept");
                        }
                        stopped = raw.stream.try_write(&flood[at..at + 1]).map(|n| at += n).is_err();
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            if stopped {
                break;
            }
        }
        assert!(stopped, "the server reads on and on");
    }
}

#[tokio::test]
async fn fault_24_a_cut_inside_a_message_keeps_the_messages_before_and_is_told_as_lost() {
    for store in stores() {
        let server = serve(store.layer).await;
        let message = client_frame(0x81, b"never");
        let mut unfinished = client_frame(0x01, b"never");
        unfinished.extend(client_frame(0x00, b"never"));
        let cuts = [&message[..1], &message[..5], &message[..message.len() - 1], &unfinished[..], &unfinished[..11]];
        let mut at = 0;
        for cut in cuts {
            for reset in [false, true] {
                for original in [true, false] {
                    at += 1;
                    let key = format!("/{at}");
                    let mut appender = match original {
                        true => server.append_as_original(&key).await,
                        false => server.append(&key).await,
                    };
                    appender.send_text("kept").await;
                    let mut follower = server.follow_as_original(&key).await;
                    assert_eq!(follower.data(4).await, b"kept");
                    let mut sent = client_frame(0x81, b" too");
                    if reset {
                        // A reset destroys what was not read yet, so see it arrive first.
                        appender.send(&sent).await;
                        assert_eq!(follower.data(4).await, b" too");
                        appender.send(cut).await;
                        appender.reset();
                        assert_eq!(follower.to_end().await, (vec![], Some(1011)));
                        assert_eq!(server.at_rest(&key[1..]).await.unwrap().state, State::Interrupted);
                        assert_eq!(server.get(&key).await.text(), "kept too");
                    } else {
                        sent.extend_from_slice(cut);
                        appender.send(&sent).await;
                        drop(appender);
                        interrupted(&server, &key, follower, "kept too").await;
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn fault_24_a_reset_between_messages_is_no_clean_end_either() {
    for store in stores() {
        let server = serve(store.layer).await;
        let mut appender = server.append_as_original("/a").await;
        appender.send_text("kept").await;
        let mut follower = server.follow("/a").await;
        assert_eq!(follower.data(4).await, b"kept");
        appender.reset();
        interrupted(&server, "/a", follower, "kept").await;
    }
}

#[tokio::test]
async fn fault_24_only_the_original_ends_by_closing_tcp() {
    let server = serve(memory_layer()).await;
    for (key, original, state) in [("a", true, State::Finished), ("b", false, State::Interrupted)] {
        let target = format!("/{key}");
        let mut appender = match original {
            true => server.append_as_original(&target).await,
            false => server.append(&target).await,
        };
        appender.send_text("x").await;
        drop(appender);
        assert_eq!(server.at_rest(key).await.unwrap().state, state);
    }
}

#[tokio::test]
async fn fault_24_a_close_inside_a_message_or_with_another_code_is_no_finish() {
    let server = serve(memory_layer()).await;
    for (at, code) in [1001u16, 1003, 1011, 3000, 4999].into_iter().enumerate() {
        let key = format!("/{at}");
        let (mut appender, follower) = with_some(&server, &key).await;
        appender.send_close(code).await;
        assert_eq!(appender.to_end().await, (vec![], Some(code)));
        interrupted(&server, &key, follower, "kept").await;
    }
    let (mut appender, follower) = with_some(&server, "/inside").await;
    appender.send_frame(0x01, b"never").await;
    appender.send_close(1000).await;
    appender.to_end().await;
    interrupted(&server, "/inside", follower, "kept").await;
}

#[tokio::test]
async fn fault_25_a_follower_that_sends_data_is_closed_with_1008_and_nothing_is_stored() {
    for store in stores() {
        let server = serve(store.layer).await;
        let (mut appender, mut good) = with_some(&server, "/a").await;
        for data in
            [client_frame(0x81, b"x"), client_frame(0x82, b"x"), client_frame(0x82, b""), client_frame(0x01, b"x")]
        {
            let mut follower = server.follow("/a").await;
            assert_eq!(follower.data(4).await, b"kept");
            follower.send(&data).await;
            assert_eq!(follower.to_end().await, (vec![], Some(1008)));
        }
        appender.send_text("!").await;
        assert_eq!(good.data(1).await, b"!");
        appender.send_close(1000).await;
        appender.to_end().await;
        assert_eq!(server.get("/a").await.text(), "kept!");
    }
}

#[tokio::test]
async fn fault_26_compression_is_declined() {
    let server = serve(memory_layer()).await;
    let offer = [("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")];
    let (answer, mut appender) = server.upgrade("/a?verb=APPEND", &offer).await;
    assert_eq!((answer.status, answer.header("sec-websocket-extensions")), (101, None));
    appender.send_text("plain").await;
    let (answer, mut follower) = server.upgrade("/a?verb=FOLLOW", &offer).await;
    assert_eq!((answer.status, answer.header("sec-websocket-extensions")), (101, None));
    assert_eq!(follower.data(5).await, b"plain");
    // And who compresses all the same breaks the protocol.
    appender.send_frame(0xc1, b"\xaaV*\x01\x00").await;
    assert_eq!(appender.to_end().await.1, Some(1002));
}
