//! The request, and answers that are no consent.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use httpfstream::client::{self, Client};
use httpfstream::{Error, ErrorKind};
use tokio::net::TcpListener;

use crate::peer::{TEXT, answer, close, frame, serve, within};

async fn follow_error(url: &str) -> Error {
    within(client::follow(url)).await.unwrap_err()
}

#[tokio::test]
async fn the_request_is_an_upgrade_with_a_verb() {
    let (url, task) = serve(async |mut peer| {
        peer.upgrade("").await;
        peer.send(close(1000, "")).await;
        peer.head
    })
    .await;
    within(client::follow(format!("{url}?a=b%20c"))).await.unwrap();
    let head = within(task).await.unwrap();
    let host = url.split('/').nth(2).unwrap();
    assert!(head.starts_with("GET /some/log.txt?a=b%20c HTTP/1.1\r\n"), "{head}");
    for line in [
        format!("host: {host}"),
        format!("user-agent: httpfstream/{}", env!("CARGO_PKG_VERSION")),
        "x-verb: FOLLOW".into(),
        "connection: Upgrade".into(),
        "upgrade: websocket".into(),
        "sec-websocket-version: 13".into(),
    ] {
        assert_eq!(head.lines().filter(|l| *l == line).count(), 1, "{line} in {head}");
    }
    let key = head.lines().find_map(|l| l.strip_prefix("sec-websocket-key: ")).unwrap();
    assert!(key.len() == 24 && key.ends_with("=="), "{key}");
}

#[tokio::test]
async fn the_header_provider_is_asked_for_each_connection() {
    let asked = Arc::new(AtomicUsize::new(0));
    let client = Client::builder()
        .header("authorization", "stale")
        .header("x-tag", "a")
        .header("x-tag", "b")
        .user_agent("test/1")
        .header_provider({
            let asked = Arc::clone(&asked);
            move || {
                let token = format!("Bearer {}", asked.fetch_add(1, Ordering::SeqCst));
                async move {
                    let mut headers = HeaderMap::new();
                    headers.insert("authorization", HeaderValue::try_from(token)?);
                    Ok::<_, http::Error>(headers)
                }
            }
        })
        .build()
        .unwrap();
    for n in 0..2 {
        let (url, task) = serve(async |mut peer| {
            peer.upgrade("").await;
            peer.head
        })
        .await;
        within(client.clone().open_append(url)).await.unwrap();
        let head = within(task).await.unwrap();
        let sent: Vec<_> = head.lines().filter(|l| l.starts_with("authorization") || l.starts_with("x-tag")).collect();
        assert_eq!(sent.len(), 3, "{head}");
        assert!(sent.contains(&format!("authorization: Bearer {n}").as_str()) && sent.contains(&"x-tag: b"), "{head}");
        assert!(head.contains("user-agent: test/1\r\n") && head.contains("x-verb: APPEND\r\n"), "{head}");
    }
}

#[tokio::test]
async fn a_failing_header_provider_fails_the_call() {
    let client = Client::builder()
        .header_provider(async || Err::<HeaderMap, _>(std::io::Error::other("no token")))
        .build()
        .unwrap();
    let error = within(client.follow("http://127.0.0.1:1/x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "no token");
}

#[tokio::test]
async fn headers_of_the_handshake_are_not_the_users() {
    for name in ["host", "X-Verb", "sec-websocket-protocol", "content-length", "connection", "no good"] {
        let error = Client::builder().header(name, "x").build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadRequest, "{name}");
    }
    assert!(Client::builder().header("x-ok", "a\nb").build().is_err());
    let client = Client::builder()
        .header_provider(async || {
            Ok::<_, http::Error>(HeaderMap::from_iter([(http::header::HOST, HeaderValue::from_static("other"))]))
        })
        .build()
        .unwrap();
    let error = within(client.follow("http://127.0.0.1:1/x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadRequest);
}

#[tokio::test]
async fn fault_46_wrong_accept_is_refused() {
    let head = "HTTP/1.1 101 Switching Protocols\r\n";
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\n";
    for (case, bad) in [
        ("wrong", format!("{head}{upgrade}Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")),
        ("missing", format!("{head}{upgrade}\r\n")),
        ("empty", format!("{head}{upgrade}Sec-WebSocket-Accept:\r\n\r\n")),
    ] {
        let mut bad = bad.into_bytes();
        bad.extend(frame(0x80 | TEXT, b"data"));
        for verb in ["follow", "append"] {
            let url = answer(bad.clone()).await;
            let error = match verb {
                "follow" => follow_error(&url).await,
                _ => within(client::open_append(&url)).await.unwrap_err(),
            };
            assert_eq!(error.kind(), ErrorKind::Protocol, "{case}: {error}");
        }
    }
}

#[tokio::test]
async fn fault_46_what_was_not_asked_for_is_refused() {
    for extra in ["Sec-WebSocket-Protocol: chat\r\n", "Sec-WebSocket-Extensions: permessage-deflate\r\n"] {
        let (url, _) = serve(async |mut peer| {
            peer.upgrade(extra).await;
            peer.drain().await;
        })
        .await;
        assert_eq!(follow_error(&url).await.kind(), ErrorKind::Protocol, "{extra}");
    }
    let (url, _) = serve(async |mut peer| {
        let bare = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n";
        peer.send(bare).await;
        peer.drain().await;
    })
    .await;
    assert_eq!(follow_error(&url).await.kind(), ErrorKind::Protocol);
}

#[tokio::test]
async fn fault_46_redirects_are_not_followed_and_leak_nothing() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let there = format!("http://{}/stolen", elsewhere.local_addr().unwrap());
    let client = Client::builder().header("authorization", "Bearer secret").build().unwrap();
    for status in ["301 Moved Permanently", "302 Found", "303 See Other", "307 Temporary Redirect", "308 X"] {
        let url = answer(format!("HTTP/1.1 {status}\r\nLocation: {there}\r\nContent-Length: 0\r\n\r\n")).await;
        for verb in ["follow", "append"] {
            let url = if verb == "follow" {
                url.clone()
            } else {
                answer(format!("HTTP/1.1 {status}\r\nLocation: {there}\r\nContent-Length: 0\r\n\r\n")).await
            };
            let error = match verb {
                "follow" => within(client.follow(&url)).await.unwrap_err(),
                _ => within(client.open_append(&url)).await.unwrap_err(),
            };
            assert_eq!(error.kind(), ErrorKind::Redirect);
            assert!(error.detail().contains(&there), "{error}");
            assert!(!format!("{error:?} {client:?}").contains("secret"));
        }
    }
    // Whoever connected would be waiting in the backlog by now.
    let nobody = tokio::time::timeout(Duration::ZERO, elsewhere.accept()).await;
    assert!(nobody.is_err(), "a redirect was followed");
}

#[tokio::test]
async fn fault_46_endless_headers_are_bounded() {
    // One header without end, and headers without end.
    for chunk in ["x".repeat(1000), "X-Header: y\r\n".repeat(80)] {
        let (url, task) = serve(async move |mut peer| {
            use tokio::io::AsyncWriteExt as _;
            let mut sent = b"HTTP/1.1 101 Switching Protocols\r\nX: ".len();
            peer.send("HTTP/1.1 101 Switching Protocols\r\nX: ").await;
            // Ends once the client has had enough.
            while within(peer.io.write_all(chunk.as_bytes())).await.is_ok() {
                sent += chunk.len();
            }
            sent
        })
        .await;
        let error = follow_error(&url).await;
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
        // What the client took beside what the sockets hold.
        assert!(within(task).await.unwrap() < 16 << 20);
    }
}

#[tokio::test]
async fn fault_46_more_than_100_headers_are_refused() {
    let mut head = b"HTTP/1.1 200 OK\r\n".to_vec();
    for i in 0..101 {
        write!(head, "x-{i}: y\r\n").unwrap();
    }
    let error = follow_error(&answer([&head[..], b"\r\n"].concat()).await).await;
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
}

#[tokio::test]
async fn fault_46_a_silent_server_is_given_up() {
    let client = Client::builder().response_timeout(Duration::from_millis(50)).build().unwrap();
    for beginning in ["", "HTTP/1.1 404 Not Found\r\nContent-Length: 100\r\n\r\nbeginning"] {
        let (url, task) = serve(async move |mut peer| {
            peer.send(beginning).await;
            peer.drain().await;
        })
        .await;
        assert_eq!(within(client.follow(&url)).await.unwrap_err().kind(), ErrorKind::TimedOut);
        within(task).await.unwrap();
    }
}

#[tokio::test]
async fn statuses_become_kinds() {
    let problem = |status: &str, kind: &str| {
        let body =
            format!(r#"{{"type":"https://example.org/problems/{kind}","detail":"because\u001b of \"{kind}\""}}"#);
        let len = body.len();
        format!("HTTP/1.1 {status}\r\nContent-Type: application/problem+json\r\nContent-Length: {len}\r\n\r\n{body}")
    };
    let plain = |status: &str| {
        format!("HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 9\r\n\r\ngo away\r\n")
    };
    for (answered, kind, said) in [
        (plain("400 Bad Request"), ErrorKind::BadRequest, "go away"),
        (plain("401 Unauthorized"), ErrorKind::Unauthorized, "go away"),
        (plain("403 Forbidden"), ErrorKind::Forbidden, "go away"),
        (plain("404 Not Found"), ErrorKind::NotFound, "404 Not Found: go away"),
        (plain("409 Conflict"), ErrorKind::Busy, "go away"),
        (problem("409 Conflict", "busy"), ErrorKind::Busy, "because  of \"busy\""),
        (problem("409 Conflict", "sealed"), ErrorKind::Sealed, "sealed"),
        (problem("409 Conflict", "exists"), ErrorKind::Exists, "exists"),
        (problem("409 Conflict", "conflict"), ErrorKind::Conflict, "conflict"),
        (problem("413 X", "too-large"), ErrorKind::TooLarge, "too-large"),
        (problem("416 X", "past-end"), ErrorKind::PastEnd, "past-end"),
        (plain("426 Upgrade Required"), ErrorKind::UpgradeRequired, "426"),
        (
            "HTTP/1.1 426 X\r\nSec-WebSocket-Version: 99\r\nContent-Length: 0\r\n\r\n".into(),
            ErrorKind::WebSocketVersion,
            "426",
        ),
        (plain("503 Service Unavailable"), ErrorKind::Overloaded, "503"),
        (problem("503 X", "shutting-down"), ErrorKind::ShuttingDown, "503"),
        (problem("507 X", "full"), ErrorKind::Full, "507"),
        (plain("500 Internal Server Error"), ErrorKind::Status, "500"),
        (plain("206 Partial Content"), ErrorKind::Status, "206"),
        (
            "HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\n\r\n<h1>".into(),
            ErrorKind::Connection,
            "502 Bad Gateway",
        ),
    ] {
        let error = follow_error(&answer(answered.clone()).await).await;
        assert_eq!(error.kind(), kind, "{answered}");
        assert!(error.detail().contains(said) && !error.detail().contains(char::is_control), "{error}");
    }
}

#[tokio::test]
async fn a_refusal_without_end_is_cut() {
    let (url, task) = serve(async |mut peer| {
        use tokio::io::AsyncWriteExt as _;
        peer.send("HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\n\r\n").await;
        while within(peer.io.write_all(&[b'x'; 4096])).await.is_ok() {}
    })
    .await;
    let error = follow_error(&url).await;
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.detail().len() < 500);
    within(task).await.unwrap();
}

#[tokio::test]
async fn a_plain_200_is_no_append() {
    let url = answer("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let error = within(client::append(url, &b"lost"[..])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Status);
}

#[tokio::test]
async fn no_server_no_host_no_http() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = follow_error(&format!("http://{free}/x")).await;
    assert_eq!(error.kind(), ErrorKind::Connection);
    assert!(error.is_retryable() && std::error::Error::source(&error).is_some());
    assert_eq!(follow_error(&answer("SSH-2.0-OpenSSH\r\n").await).await.kind(), ErrorKind::Protocol);
    assert_eq!(follow_error(&answer("").await).await.kind(), ErrorKind::Connection);
    assert_eq!(follow_error("http://user:secret@127.0.0.1/").await.kind(), ErrorKind::BadRequest);
}
