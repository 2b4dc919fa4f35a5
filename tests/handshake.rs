//! The verb, the upgrade, the origin and the authorization: fault cases 10 to 12, 14, 17 and 19.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::{Arc, Mutex};

use common::spy::Spy;
use common::{HANDSHAKE, Raw, Server, client_frame, log, memory_layer, serve, stores};
use http::HeaderValue;
use httpfstream::storage::MemoryStorage;
use httpfstream::{Access, Denied, Grant, HttpFStreamLayer, Key, State, Verb};

const APPEND: (&str, &str) = ("X-Verb", "APPEND");
const FOLLOW: (&str, &str) = ("X-Verb", "FOLLOW");

/// A finished resource `a` of the bytes `stored`.
async fn with_a(server: &Server) {
    let mut appender = server.streams.open_append("a").await.unwrap();
    appender.append("stored").await.unwrap();
    appender.finish().await.unwrap();
}

#[tokio::test]
async fn fault_10_contradicting_verbs_are_400() {
    for store in stores() {
        let server = serve(store.layer.clone()).await;
        for (target, headers) in [
            ("/new?verb=FOLLOW", &[APPEND][..]),
            ("/new?verb=APPEND&verb=FOLLOW", &[]),
            ("/new", &[APPEND, FOLLOW]),
            ("/new?verb=APPEND&verb=nonsense", &[]),
            ("/new?verb=nonsense", &[APPEND]),
            ("/new?verb=", &[APPEND]),
            ("/new?verb=%46OLLOW", &[APPEND]),
        ] {
            assert_eq!(server.upgrade(target, headers).await.0.status, 400, "{target} {headers:?}");
            assert_eq!(server.request("GET", target, headers).await.status, 400, "{target} {headers:?}");
        }
        // The same one twice is none.
        let mut appender = server.upgrade("/new?verb=append&verb=APPEND", &[APPEND]).await;
        assert_eq!(appender.0.status, 101);
        appender.1.send_close(1000).await;
        appender.1.to_end().await;
        store.holds_only(&["new"]);
    }
}

#[tokio::test]
async fn fault_10_an_unknown_verb_is_the_inner_services() {
    let server = serve(memory_layer()).await;
    with_a(&server).await;
    for target in ["/a?verb=READ", "/a?verb=", "/a?verb=APPEN", "/a?verb=FOLLOWW", "/../a?verb=nope", "/?verb=x"] {
        let (answer, _) = server.upgrade(target, &[]).await;
        assert!([200, 404].contains(&answer.status) && answer.text() != "stored", "{target}: {answer:?}");
        let answer = server.get(target).await;
        assert!(["inner", "nothing here"].contains(&answer.text().as_str()), "{target}: {answer:?}");
    }
    // Nor is an upgrade without a verb ours, as long as no default is configured.
    assert_eq!(server.upgrade("/a", &[]).await.0.text(), "nothing here");
    let following = serve(memory_layer().verb_from_method(true)).await;
    with_a(&following).await;
    assert_eq!(following.upgrade("/a", &[]).await.0.text(), "stored");
    assert_eq!(following.upgrade("/b", &[]).await.0.status, 404);
}

#[tokio::test]
async fn fault_11_a_bad_handshake_is_never_101() {
    for store in stores() {
        let server = serve(store.layer.clone()).await;
        let live = server.append("/live").await;
        let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let version = "Sec-WebSocket-Version: 13\r\n";
        for (key, version, status) in [
            ("", version, 400),
            ("Sec-WebSocket-Key:\r\n", version, 400),
            ("Sec-WebSocket-Key: short\r\n", version, 400),
            ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ\r\n", version, 400),
            ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZSE=\r\n", version, 400),
            ("Sec-WebSocket-Key: ????????????????????????\r\n", version, 400),
            (&key.repeat(2), version, 400),
            (key, "", 426),
            (key, "Sec-WebSocket-Version: 8\r\n", 426),
            (key, "Sec-WebSocket-Version: 14\r\n", 426),
            (key, "Sec-WebSocket-Version: 13, 8\r\n", 426),
            (key, "Sec-WebSocket-Version: \u{ff}\r\n", 426),
        ] {
            for target in ["/new?verb=APPEND", "/live?verb=FOLLOW"] {
                let mut raw = Raw::connect(server.addr).await;
                let more = format!("Connection: Upgrade\r\nUpgrade: websocket\r\n{key}{version}");
                raw.send_head("GET", target, &[], &more).await;
                let answer = raw.read_head().await;
                assert_eq!(answer.status, status, "{target} {key}{version}");
                if status == 426 {
                    assert_eq!(answer.header("sec-websocket-version"), Some("13"));
                }
            }
        }
        // No lease was left behind.
        assert_eq!(server.streams.stat("new").await.unwrap(), None);
        drop(server.append("/new").await);
        drop(live);
        assert_eq!(server.at_rest("new").await, None);
        assert_eq!(server.at_rest("live").await, None);
        store.holds_only(&[]);
    }
}

#[tokio::test]
async fn fault_11_a_good_handshake_is_computed_right() {
    let server = serve(memory_layer()).await;
    let (answer, _) = server.upgrade("/a?verb=APPEND", &[]).await;
    // The key and its answer are those of RFC 6455 section 1.3.
    assert_eq!(answer.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(answer.header("upgrade").map(str::to_ascii_lowercase).as_deref(), Some("websocket"));
    assert_eq!(answer.header("stream-state"), Some("live"));
}

#[tokio::test]
async fn fault_12_append_without_an_upgrade_is_426_and_says_why() {
    for store in stores() {
        let server = serve(store.layer.clone()).await;
        for (target, headers) in [("/a?verb=APPEND", &[][..]), ("/a", &[APPEND])] {
            let answer = server.request("GET", target, headers).await;
            assert_eq!(answer.status, 426);
            assert_eq!(answer.header("upgrade").map(str::to_ascii_lowercase).as_deref(), Some("websocket"));
            assert_eq!(answer.header("content-type"), Some("application/problem+json"));
            assert!(answer.text().contains("proxy") && answer.text().contains("Upgrade"), "{}", answer.text());
        }
        store.holds_only(&[]);
    }
}

#[tokio::test]
async fn fault_12_half_an_upgrade_is_none() {
    let server = serve(memory_layer()).await;
    for half in ["Upgrade: websocket\r\n", "Connection: Upgrade\r\n", "Connection: Upgrade\r\nUpgrade: h2c\r\n"] {
        let mut raw = Raw::connect(server.addr).await;
        let more = format!("{half}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n");
        raw.send_head("GET", "/a?verb=APPEND", &[], &more).await;
        assert_eq!(raw.read_head().await.status, 426, "{half}");
    }
}

#[tokio::test]
async fn fault_14_bytes_behind_the_upgrade_are_read_as_frames() {
    for store in stores() {
        let server = serve(store.layer.clone()).await;
        let mut raw = Raw::connect(server.addr).await;
        let mut sent = format!("GET /a?verb=APPEND HTTP/1.1\r\nHost: test.example\r\n{HANDSHAKE}\r\n").into_bytes();
        sent.extend(client_frame(0x82, b"one "));
        sent.extend(client_frame(0x82, b"two"));
        sent.extend(client_frame(0x88, &1000u16.to_be_bytes()));
        raw.send(&sent).await;
        assert_eq!(raw.read_head().await.status, 101);
        assert_eq!(raw.to_end().await, (vec![], Some(1000)));
        assert_eq!(server.get("/a").await.text(), "one two");
    }
}

#[tokio::test]
async fn fault_14_a_request_behind_the_upgrade_is_no_request() {
    let server = serve(memory_layer()).await;
    let mut raw = Raw::connect(server.addr).await;
    let smuggled = "DELETE /b HTTP/1.1\r\nHost: test.example\r\n\r\n";
    with_a(&server).await;
    raw.send(
        format!("GET /c?verb=APPEND HTTP/1.1\r\nHost: test.example\r\n{HANDSHAKE}\r\n").replace("/b", "/a").as_bytes(),
    )
    .await;
    raw.send(smuggled.replace("/b", "/a").as_bytes()).await;
    assert_eq!(raw.read_head().await.status, 101);
    assert_eq!(raw.to_end().await, (vec![], Some(1002)));
    assert_eq!(server.get("/a").await.text(), "stored");
    assert_eq!(server.at_rest("c").await, None);
}

#[tokio::test]
async fn fault_17_a_foreign_page_is_403_before_the_store_is_touched() {
    let spy = Spy::new(MemoryStorage::new(1 << 20));
    let watch = spy.watch.clone();
    let layer = HttpFStreamLayer::new(spy).plain_http(true).allow_origins(["https://app.example"]);
    let server = serve(layer).await;
    for origin in [
        "null",
        "http://evil.example",
        "http://test.example.evil",
        "http://test.example:81",
        "file://",
        "",
        "https://app.example.evil",
    ] {
        for verb in [APPEND, FOLLOW] {
            let (answer, _) = server.upgrade("/a", &[verb, ("Origin", origin)]).await;
            assert_eq!(answer.status, 403, "{verb:?} {origin}");
            let (answer, _) = server.upgrade(&format!("/a?verb={}", verb.1), &[("Origin", origin)]).await;
            assert_eq!(answer.status, 403, "{verb:?} {origin}");
        }
    }
    let twice = [APPEND, ("Origin", "http://test.example"), ("Origin", "http://evil.example")];
    assert_eq!(server.upgrade("/a", &twice).await.0.status, 403);
    let calls = watch.now();
    assert_eq!((calls.opens, calls.stats, calls.reads), (0, 0, 0), "{calls:?}");

    for origin in ["http://test.example", "https://test.example", "https://app.example"] {
        let (answer, appender) = server.upgrade("/a", &[APPEND, ("Origin", origin)]).await;
        assert_eq!(answer.status, 101, "{origin}");
        drop(appender);
        server.at_rest("a").await;
    }
    drop(server.append("/a").await);
}

#[tokio::test]
async fn fault_17_a_foreign_page_can_not_delete() {
    for store in stores() {
        let server = serve(store.layer).await;
        with_a(&server).await;
        for origin in ["null", "http://evil.example"] {
            let answer = server.request("DELETE", "/a", &[("Origin", origin)]).await;
            assert_eq!(answer.status, 403);
        }
        assert_eq!(server.get("/a").await.text(), "stored");
        // A plain read is a matter of CORS.
        assert_eq!(server.request("GET", "/a", &[("Origin", "http://evil.example")]).await.status, 200);
        let own = [("Origin", "http://test.example")];
        assert_eq!(server.request("DELETE", "/a", &own).await.status, 204);
    }
}

#[tokio::test]
async fn fault_19_a_denied_request_is_answered_before_the_upgrade_and_its_token_is_not_logged() {
    let log = log::install();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&asked);
    let spy = Spy::new(MemoryStorage::new(1 << 20));
    let watch = spy.watch.clone();
    let layer = HttpFStreamLayer::new(spy).plain_http(true).authorize(move |access: Access| {
        told.lock().unwrap().push((access.verb, access.key.to_string()));
        let query = access.head.uri.query().unwrap_or("").to_owned();
        async move {
            match query {
                q if q.contains("token=good") => Ok(Grant::new()),
                q if q.contains("token=") => Err(Denied::Forbidden),
                _ => Err(Denied::Unauthorized),
            }
        }
    });
    let server = serve(layer).await;
    for verb in ["APPEND", "FOLLOW"] {
        let (answer, _) = server.upgrade(&format!("/a?verb={verb}"), &[]).await;
        assert_eq!(answer.status, 401);
        assert!(answer.header("www-authenticate").is_some(), "RFC 9110 section 15.5.2");
        let (answer, _) = server.upgrade(&format!("/a?verb={verb}&token=s3cr3t-bad"), &[]).await;
        assert_eq!(answer.status, 403);
        assert!(!answer.text().contains("s3cr3t"));
    }
    assert_eq!(watch.now().opens + watch.now().stats + watch.now().reads, 0, "the store was not touched");
    assert_eq!(asked.lock().unwrap()[..2], [(Verb::Append, "a".into()), (Verb::Append, "a".into())]);
    // A plain FOLLOW and a GET are asked about as well.
    assert_eq!(server.get("/a?verb=FOLLOW").await.status, 401);

    let (answer, mut appender) = server.upgrade("/a?verb=APPEND&token=good-s3cr3t", &[]).await;
    assert_eq!(answer.status, 101);
    appender.send_text("stored").await;
    // Also what breaks is logged without it.
    appender.send(&[0xff; 14]).await;
    assert_eq!(appender.to_end().await.1, Some(1002));
    server.at_rest("a").await;
    assert_eq!(server.get("/a?token=s3cr3t-bad").await.status, 403);
    assert_eq!(server.get("/a").await.status, 401);
    assert_eq!(server.get("/a?token=good-s3cr3t").await.text(), "stored");
    assert_eq!(server.get("/..?verb=FOLLOW&token=good-s3cr3t").await.status, 400);
    let log = log.text();
    assert!(log.contains("a request is refused"), "the log is heard");
    // Nor do the crates underneath tell.
    let secret = log.lines().find(|line| line.contains("s3cr3t"));
    assert_eq!(secret, None, "a token in the log");
}

#[tokio::test]
async fn fault_55_a_refusal_does_not_reveal_whether_the_resource_exists() {
    // Tenants: `/a` is `mine/a`, for those who may do anything at all.
    let spy = Spy::new(MemoryStorage::new(1 << 20));
    let watch = spy.watch.clone();
    let layer = HttpFStreamLayer::new(spy).plain_http(true).authorize(|access: Access| async move {
        match access.head.uri.query() {
            Some("mine") => Ok(Grant::new().key(Key::new(&format!("mine/{}", access.key))?)),
            Some("hidden") => Err(Denied::NotFound),
            Some("forbidden") => Err(Denied::Forbidden),
            _ => Err(Denied::challenge([HeaderValue::from_static("Basic realm=\"logs\"")])),
        }
    });
    let server = serve(layer).await;
    // At the name in the URL there is a resource as well, which nobody may see.
    for key in ["mine/a", "a"] {
        server.streams.append(key, key.as_bytes()).await.unwrap();
    }
    let calls = |watch: &common::spy::Watch| watch.now().opens + watch.now().stats + watch.now().reads;
    let before = calls(&watch);
    let foreign = [("Origin", "https://elsewhere.example")];
    for (query, status) in [("?hidden", 404), ("?forbidden", 403), ("", 401)] {
        for method in ["GET", "HEAD", "DELETE"] {
            for headers in [&[][..], &foreign] {
                let [here, absent] = [format!("/a{query}"), format!("/absent{query}")];
                let here = server.request(method, &here, headers).await;
                let absent = server.request(method, &absent, headers).await;
                assert_eq!((here.status, absent.status), (status, status), "{method} {query} {headers:?}");
                assert_eq!(here.body, absent.body);
                let challenge = here.header("www-authenticate");
                assert_eq!(challenge, (status == 401).then_some("Basic realm=\"logs\""), "{method} {query}");
            }
        }
    }
    assert_eq!(calls(&watch), before, "nothing was looked up");
    assert_eq!(server.get("/a?mine").await.text(), "mine/a");
    assert_eq!(server.get("/absent?mine").await.status, 404);
    assert_eq!(server.request("DELETE", "/a?mine", &foreign).await.status, 403);
    assert_eq!(server.request("DELETE", "/a?mine", &[]).await.status, 204);
    assert_eq!(server.streams.stat("mine/a").await.unwrap(), None);
    assert!(server.streams.stat("a").await.unwrap().is_some());
}

#[tokio::test]
async fn without_a_verb_the_method_tells_in_a_service_of_its_own() {
    let server = serve(memory_layer().verb_from_method(true)).await;
    for (method, data) in [("PUT", "put"), ("POST", "post")] {
        let target = format!("/{method}");
        let mut raw = Raw::connect(server.addr).await;
        raw.send_head(method, &target, &[("Content-Length", "4")], "").await;
        raw.send(b"body").await;
        assert_eq!(raw.read_head().await.status, 201, "{data}");
        assert_eq!(server.get(&target).await.text(), "body");
        // An upgrade follows. (Of a closed resource the original's dialect has the data as a plain body.)
        assert_eq!(server.upgrade(&target, &[]).await.0.text(), "body");
    }
    for verb in ["", "READ", "follows"] {
        let answer = server.get(&format!("/PUT?verb={verb}")).await;
        assert_eq!(answer.status, 400, "{verb:?}");
        assert!(answer.text().contains("APPEND or FOLLOW"), "{}", answer.text());
        assert_eq!(server.upgrade(&format!("/PUT?verb={verb}"), &[]).await.0.status, 400);
    }
    assert_eq!(server.request("DELETE", "/PUT", &[]).await.status, 204);
    assert_eq!(server.get("/PUT").await.status, 404);
    // Around an application all of that is the application's.
    let server = serve(memory_layer()).await;
    for method in ["PUT", "POST", "PATCH"] {
        assert_eq!(server.request(method, "/a", &[]).await.status, 404, "{method}");
    }
    assert_eq!(server.get("/a?verb=READ").await.status, 404);
    assert_eq!(server.upgrade("/a", &[]).await.0.status, 404);
}

#[tokio::test]
async fn fault_19_a_grant_that_ends_ends_the_connection() {
    let layer = memory_layer().authorize(|_| async {
        Ok(Grant::new().until(std::time::SystemTime::now() + std::time::Duration::from_millis(50)))
    });
    let server = serve(layer).await;
    let streams = server.streams.clone();
    let mut appender = streams.open_append("live").await.unwrap();
    appender.append("x").await.unwrap();
    let mut follower = server.follow("/live").await;
    assert_eq!(follower.to_end().await, (b"x".to_vec(), Some(4003)));
    let mut expired = server.append("/mine").await;
    assert_eq!(expired.to_end().await, (vec![], Some(4003)));
    assert_eq!(server.at_rest("mine").await, None);
    assert_eq!(streams.stat("live").await.unwrap().unwrap().state, State::Live, "that one is in-process");
}
