//! What layers outside and inside do, sentence by sentence as `docs::mounting` says it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::error_handling::HandleErrorLayer;
use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware::{map_request, map_response};
use axum::response::Response;
use axum::routing::{get, post};
use http::{HeaderValue, Method, StatusCode};
use httpfstream::{Denied, Grant, HttpFStreamLayer, Streams};
use httpfstream::{State, storage::MemoryStorage};
use hyper::upgrade::OnUpgrade;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::load_shed::LoadShedLayer;
use tower::{ServiceBuilder, ServiceExt};
use tower_http::compression::CompressionLayer;
use tower_http::cors::{Any, CorsLayer};
use tower_http::decompression::{Decompression, RequestDecompressionLayer};
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use tower_http::timeout::{RequestBodyTimeoutLayer, ResponseBodyTimeoutLayer, TimeoutLayer};
use tower_http::trace::TraceLayer;

use crate::ask::{Two, stored};
use crate::common::plain::{self, BOTH, Client, Http, Live, Upload, full};
use crate::common::{Answer, Frame, Raw, Server, log, memory_layer, pattern, serve_router, soon};

/// The application, with the layer around it.
fn app(layer: HttpFStreamLayer) -> Router {
    routes().layer(layer)
}

fn routes() -> Router {
    let routes =
        Router::new().route("/", get(|| async { "inner" })).route("/echo", post(|body: String| async { body }));
    routes.fallback(|| async { (StatusCode::NOT_FOUND, "nothing here") })
}

/// A server with something around the layer.
async fn around(outside: impl FnOnce(Router) -> Router) -> Server {
    let layer = memory_layer();
    let streams = layer.streams();
    serve_router(outside(app(layer)), streams).await
}

/// A connection to it without a socket in between, for tests that move the clock.
fn pipe(app: &Router) -> Raw<DuplexStream> {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let service = hyper_util::service::TowerToHyperService::new(app.clone());
    tokio::spawn(async move {
        let io = hyper_util::rt::TokioIo::new(theirs);
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).with_upgrades().await;
    });
    Raw { stream: ours, buf: Vec::new() }
}

/// Appends all of it by one request.
async fn put(server: &Server, http: Http, target: &str, data: impl Into<bytes::Bytes>) -> Answer {
    let mut client = Client::new(server.addr, http).await;
    Live::of(client.send("PUT", target, &[("x-verb", "APPEND")], full(data)).await.unwrap()).whole().await
}

async fn finished(streams: &Streams, key: &str, data: impl Into<bytes::Bytes>) {
    let mut out = streams.open_append(key).await.unwrap();
    out.append(data.into()).await.unwrap();
    out.finish().await.unwrap();
}

/// Appends and follows over WebSockets, both kinds of them, and sees to it that the bytes arrive.
async fn sockets_work(server: &Server) {
    let key = |version| format!("/socket-{version}.txt");
    let mut appender = server.append(&key(1)).await;
    let mut follower = server.follow(&key(1)).await;
    appender.send_text("a message of more than ten bytes").await;
    appender.send_close(1000).await;
    assert_eq!(follower.to_end().await, (b"a message of more than ten bytes".to_vec(), Some(1000)));
    let mut client = Two::connect(server).await;
    let mut appender = client.open(&format!("{}?verb=APPEND", key(2)), &[]).await.unwrap();
    let mut follower = client.open(&format!("{}?verb=FOLLOW", key(2)), &[]).await.unwrap();
    appender.send_text("a message of more than ten bytes").await;
    appender.send_close(1000).await;
    assert_eq!(follower.to_end().await, (b"a message of more than ten bytes".to_vec(), Some(1000)));
}

#[tokio::test]
async fn who_calls_is_told_by_a_layer_outside() {
    #[derive(Clone)]
    struct User(String);
    let layer = memory_layer().authorize(|access| async move {
        match access.head.extensions.get::<User>() {
            Some(User(name)) if name == "anna" => Ok(Grant::new()),
            _ => Err(Denied::Forbidden),
        }
    });
    let streams = layer.streams();
    let identify = map_request(async |mut request: Request| {
        if let Some(name) = request.headers().get("x-user").and_then(|name| name.to_str().ok()) {
            let user = User(name.to_owned());
            request.extensions_mut().insert(user);
        }
        request
    });
    let server = serve_router(app(layer).layer(identify), streams).await;
    finished(&server.streams, "a.txt", "of anna").await;
    let mut client = Two::connect(&server).await;
    for (name, granted) in [("anna", true), ("bert", false)] {
        let user = [("x-user", name)];
        let (answer, _) = server.upgrade("/b.txt?verb=APPEND", &user).await;
        assert_eq!(answer.status, if granted { 101 } else { 403 }, "{name}");
        let opened = client.open("/c.txt?verb=APPEND", &user).await;
        assert_eq!(opened.err(), (!granted).then_some(403), "{name}");
        for http in BOTH {
            let read = plain::ask(server.addr, http, "/a.txt", &user).await;
            assert_eq!(read.status, if granted { 200 } else { 403 }, "{name}");
        }
    }
}

#[tokio::test]
async fn a_trace_ends_with_the_101_and_the_crate_logs_what_comes_after() {
    let (log, _guard) = log::of_this_thread();
    let (told, mut answers) = mpsc::unbounded_channel();
    let trace = TraceLayer::new_for_http()
        .make_span_with(|request: &http::Request<_>| tracing::info_span!("request", path = request.uri().path()))
        .on_response(move |response: &http::Response<_>, _: Duration, _: &tracing::Span| {
            told.send(response.status().as_u16()).unwrap();
        });
    let layer = HttpFStreamLayer::new(MemoryStorage::new(10)).plain_http(true);
    let streams = layer.streams();
    let server = serve_router(app(layer).layer(trace), streams).await;

    let (_, mut appender) = server.upgrade("/a.txt?verb=APPEND&token=sesame", &[]).await;
    assert_eq!(soon("the end of the request", answers.recv()).await, Some(101));
    appender.send_text("one").await;
    let mut live = plain::ask(server.addr, Http::One, "/a.txt?verb=FOLLOW", &[]).await;
    assert_eq!(live.bytes(3).await, b"one");
    assert_eq!(soon("an answer to be traced", answers.recv()).await, Some(200), "while the body runs");
    let mut client = Two::connect(&server).await;
    assert_eq!(soon("an answer to be traced", answers.recv()).await, Some(200));
    let mut follower = client.open("/a.txt?verb=FOLLOW", &[]).await.unwrap();
    assert_eq!(soon("an answer to be traced", answers.recv()).await, Some(200), "over HTTP/2");
    assert_eq!(follower.data(3).await, b"one");

    assert!(!log.text().contains("appending failed"));
    appender.send_text("more than there is room for").await;
    assert_eq!(appender.to_end().await.1, Some(1011));
    log.until("appending failed").await;
    let text = log.text();
    assert!(text.contains("target=httpfstream::server::append"), "{text}");
    assert!(text.contains("path=\"/a.txt\"") && !text.contains("sesame"), "a span of the path has no token: {text}");
}

#[tokio::test]
async fn what_a_trace_logs_unless_told_otherwise_has_the_token_of_a_query() {
    let (log, _guard) = log::of_this_thread();
    let server = around(|app| app.layer(TraceLayer::new_for_http())).await;
    let (answer, _appender) = server.upgrade("/a.txt?verb=APPEND&token=sesame", &[]).await;
    assert_eq!(answer.status, 101);
    log.until("uri=/a.txt?verb=APPEND&token=sesame").await;
}

#[tokio::test]
async fn a_cors_layer_outside_concerns_plain_reads_and_answers_preflights() {
    let cors = CorsLayer::new().allow_origin(Any).allow_methods([Method::GET]);
    let layer = memory_layer().allow_origins(["https://app.example"]);
    let streams = layer.streams();
    let server = serve_router(app(layer).layer(cors), streams).await;
    finished(&server.streams, "a.txt", "stored").await;
    let (foreign, allowed) = (("Origin", "https://evil.example"), ("Origin", "https://app.example"));
    for http in BOTH {
        for origin in [foreign, allowed] {
            for target in ["/", "/a.txt", "/a.txt?verb=FOLLOW"] {
                let read = plain::ask(server.addr, http, target, &[origin]).await;
                assert_eq!(read.status, 200);
                let told: Vec<_> = read.headers.get_all("access-control-allow-origin").into_iter().collect();
                assert_eq!(told, ["*"], "one answer, the outer layer's: {target} {origin:?}");
            }
        }
        // A browser asks before it appends, and is told by the outer layer what that allows.
        let asked = [allowed, ("access-control-request-method", "PUT"), ("access-control-request-headers", "x-verb")];
        let mut client = Client::new(server.addr, http).await;
        let preflight = client.send("OPTIONS", "/b.txt?verb=APPEND", &asked, plain::empty()).await.unwrap();
        assert_eq!(preflight.headers()["access-control-allow-methods"], "GET");
        assert_eq!(preflight.headers().get("access-control-allow-headers"), None);
    }
    // Who may write is the layer's own to say, whatever the other one allows.
    let (answer, _) = server.upgrade("/a.txt?verb=FOLLOW", &[foreign]).await;
    assert_eq!(answer.status, 403);
    let (answer, _) = server.upgrade("/b.txt?verb=APPEND", &[allowed]).await;
    assert_eq!(answer.status, 101);
    let mut client = Client::new(server.addr, Http::One).await;
    let written = client.send("PUT", "/c.txt?verb=APPEND", &[foreign], full("x")).await.unwrap();
    assert_eq!(written.status(), 403);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_outside_bounds_the_answer_and_so_an_append_by_body() {
    let layer = memory_layer();
    let streams = layer.streams();
    let limit = TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, Duration::from_secs(10));
    let app = app(layer).layer(limit);
    let mut appender = pipe(&app);
    assert_eq!(appender.upgrade("/a.txt?verb=APPEND", &[("User-Agent", "test")]).await.status, 101);
    let mut follower = pipe(&app);
    assert_eq!(follower.upgrade("/a.txt?verb=FOLLOW", &[]).await.status, 101);
    let mut live = pipe(&app);
    live.send_head("GET", "/a.txt?verb=FOLLOW", &[], "").await;
    assert_eq!(live.read_head().await.status, 200);
    for text in ["one", "two", "six"] {
        tokio::time::advance(Duration::from_secs(20)).await;
        appender.send_text(text).await;
        assert_eq!(follower.data(3).await, text.as_bytes());
        assert_eq!(live.chunk().await, Ok(Some(text.as_bytes().to_vec())));
    }

    let mut upload = pipe(&app);
    upload.send_head("PUT", "/b.txt?verb=APPEND", &[("Transfer-Encoding", "chunked")], "").await;
    upload.send(&plain::chunk("one")).await;
    let mut follower = streams.follow("b.txt").wait(Duration::from_secs(5)).await.unwrap();
    assert_eq!(follower.next_chunk().await.unwrap().unwrap().bytes, "one");
    // The clock moves to the timeout by itself, for nothing else is to be done.
    assert_eq!(upload.read_head().await.status, 408);
    assert!(follower.next_chunk().await.is_err(), "followers learn of the cut");
    let stat = streams.stat("b.txt").await.unwrap().unwrap();
    assert_eq!((stat.state, stat.len), (State::Interrupted, 3));
}

#[tokio::test(start_paused = true)]
async fn a_timeout_of_bodies_ends_a_live_body_that_is_quiet() {
    let layer = memory_layer();
    let streams = layer.streams();
    let app = app(layer).layer(ResponseBodyTimeoutLayer::new(Duration::from_secs(10)));
    let mut out = streams.open_append("a.txt").await.unwrap();
    let mut follower = pipe(&app);
    assert_eq!(follower.upgrade("/a.txt?verb=FOLLOW", &[]).await.status, 101);
    let mut live = pipe(&app);
    live.send_head("GET", "/a.txt?verb=FOLLOW", &[], "").await;
    assert_eq!(live.read_head().await.status, 200);
    for _ in 0..3 {
        tokio::time::advance(Duration::from_secs(8)).await;
        out.append("one").await.unwrap();
        assert_eq!(live.chunk().await, Ok(Some(b"one".to_vec())), "each piece begins anew");
    }
    assert_eq!(live.chunk().await, Err(()), "cut, which is no clean end");
    out.append("two").await.unwrap();
    assert_eq!(follower.data(12).await, b"oneoneonetwo", "a WebSocket is no body");
}

#[tokio::test]
async fn what_hides_the_end_of_a_request_body_makes_it_look_cut_over_http2() {
    let long = Duration::from_secs(3600);
    for (name, server) in [
        ("a timeout", around(|app| app.layer(RequestBodyTimeoutLayer::new(long))).await),
        ("decompression", around(|app| app.layer(RequestDecompressionLayer::new())).await),
    ] {
        sockets_work(&server).await;
        let answer = put(&server, Http::One, "/one.txt", "all of it").await;
        assert_eq!(answer.status, 201, "{name}: over HTTP/1.1 an end is told: {answer:?}");
        let answer = put(&server, Http::Two, "/sized.txt", "all of it").await;
        assert_eq!((answer.status, plain::problem(&answer).as_str()), (400, "bad-request"), "{name}");
        let upload = Upload::begin(server.addr, Http::Two, "PUT", "/two.txt?verb=APPEND", &[]).await;
        upload.send("all of it").await;
        let answer = upload.end().await;
        assert_ne!(answer.status, 201, "{name}: {answer:?}");
        let stat = server.at_rest("two.txt").await.unwrap();
        assert_eq!((stat.state, stat.len), (State::Interrupted, 9), "{name}");
    }
}

#[tokio::test]
async fn a_limit_on_request_bodies_outside_cuts_appends() {
    let server = around(|app| app.layer(RequestBodyLimitLayer::new(10))).await;
    sockets_work(&server).await;
    for http in BOTH {
        let key = |name: &str| format!("{name}-{http:?}.txt");
        let answer = put(&server, http, &format!("/{}", key("fits")), "0123456789").await;
        assert_eq!(answer.status, 201, "{answer:?}");
        // Told by its head, it doesn't reach the layer.
        let answer = put(&server, http, &format!("/{}", key("long")), "0123456789+").await;
        assert_eq!((answer.status, server.streams.stat(key("long")).await.unwrap()), (413, None));
        // Else when it is too much: what came before is stored, and was not all.
        let target = format!("/{}?verb=APPEND", key("grows"));
        let upload = Upload::begin(server.addr, http, "PUT", &target, &[]).await;
        upload.send("01234").await;
        let waiting = server.streams.follow(key("grows")).wait(Duration::from_secs(60)).into_future();
        let mut follower = soon("the resource", waiting).await.unwrap();
        assert_eq!(soon("bytes", follower.next_chunk()).await.unwrap().unwrap().bytes, "01234");
        upload.send("567890123").await;
        let stat = server.at_rest(&key("grows")).await.unwrap();
        assert_eq!((stat.state, stat.len), (State::Interrupted, 5));
    }
    // axum's concerns extractors.
    let server = around(|app| app.layer(DefaultBodyLimit::max(10))).await;
    for http in BOTH {
        let answer = put(&server, http, &format!("/{http:?}.txt"), "longer than ten bytes").await;
        assert_eq!(answer.status, 201);
        let mut client = Client::new(server.addr, http).await;
        let echo = client.send("POST", "/echo", &[], full("longer than ten bytes")).await.unwrap();
        assert_eq!(echo.status(), 413, "it is on");
    }
}

#[tokio::test]
async fn compression_outside_is_undone_exactly_and_leaves_ranges_and_sockets_alone() {
    let server = around(|app| app.layer(CompressionLayer::new())).await;
    sockets_work(&server).await;
    let data: Vec<u8> = pattern(0, 10_000).repeat(3);
    finished(&server.streams, "a.txt", data.clone()).await;
    for http in BOTH {
        let gzip = [("accept-encoding", "gzip")];
        for target in ["/a.txt", "/a.txt?verb=FOLLOW"] {
            let read = plain::ask(server.addr, http, target, &gzip).await;
            assert_eq!((read.status.as_u16(), read.header("content-encoding")), (200, Some("gzip")));
            let plain = plain::ask(server.addr, http, target, &[]).await;
            assert_eq!(read.header("etag"), plain.header("etag"), "one tag for both encodings");
            let addr = server.addr;
            let client = tower::service_fn(move |request: http::Request<()>| async move {
                let asked = [("accept-encoding", request.headers()["accept-encoding"].to_str().unwrap())];
                Client::new(addr, http).await.send("GET", target, &asked, plain::empty()).await
            });
            let response = Decompression::new(client).oneshot(http::Request::new(())).await.unwrap();
            let read = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
            assert!(read == data, "{target} {http:?}: {} bytes", read.len());
        }
        let part = plain::ask(server.addr, http, "/a.txt", &[gzip[0], ("range", "bytes=100-199")]).await;
        assert_eq!((part.status.as_u16(), part.header("content-encoding")), (206, None));
        assert!(part.whole().await.body == data[100..200]);
    }
}

#[tokio::test]
async fn what_is_inside_never_sees_a_request_of_ours() {
    let seen = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&seen);
    let layer = memory_layer();
    let streams = layer.streams();
    let inside = routes().layer(RequestBodyLimitLayer::new(10)).layer(CompressionLayer::new()).layer(map_request(
        move |request: Request| {
            counting.fetch_add(1, Ordering::Relaxed);
            std::future::ready(request)
        },
    ));
    let server = serve_router(inside.layer(layer), streams).await;
    // A connection over HTTP/2 asks the application for `/`.
    sockets_work(&server).await;
    assert_eq!(seen.swap(0, Ordering::Relaxed), 1);
    for http in BOTH {
        let target = format!("/{http:?}.txt");
        assert_eq!(put(&server, http, &target, "more than ten bytes ".repeat(50)).await.status, 201);
        let read = plain::ask(server.addr, http, &target, &[("accept-encoding", "gzip")]).await;
        assert_eq!((read.status.as_u16(), read.header("content-encoding")), (200, None));
    }
    assert_eq!(seen.swap(0, Ordering::Relaxed), 0);
    let mut client = Client::new(server.addr, Http::One).await;
    let echo = client.send("POST", "/echo", &[], full("more than ten bytes")).await.unwrap();
    assert_eq!((echo.status().as_u16(), seen.load(Ordering::Relaxed)), (413, 1), "the application's own is bounded");
}

#[tokio::test]
async fn a_concurrency_limit_outside_counts_an_append_by_body_but_no_follower_and_no_socket() {
    let busy = HandleErrorLayer::new(|_: tower::BoxError| async { StatusCode::SERVICE_UNAVAILABLE });
    let limit =
        ServiceBuilder::new().layer(busy).layer(LoadShedLayer::new()).layer(GlobalConcurrencyLimitLayer::new(1));
    let server = around(|app| app.layer(limit)).await;
    let mut appender = server.append("/a.txt").await;
    let mut follower = server.follow("/a.txt").await;
    let mut live = plain::ask(server.addr, Http::One, "/a.txt?verb=FOLLOW", &[]).await;
    appender.send_text("one").await;
    assert_eq!((follower.data(3).await, live.bytes(3).await), (b"one".to_vec(), b"one".to_vec()));
    // All three are open, and none is counted.
    assert_eq!(server.get("/").await.status, 200);

    let upload = Upload::begin(server.addr, Http::One, "PUT", "/b.txt?verb=APPEND", &[]).await;
    upload.send("one").await;
    let waiting = server.streams.follow("b.txt").wait(Duration::from_secs(60)).into_future();
    soon("the resource", waiting).await.unwrap();
    assert_eq!(server.get("/").await.status, 503);
    assert_eq!(server.upgrade("/c.txt?verb=APPEND", &[]).await.0.status, 503);
    assert_eq!(upload.end().await.status, 201);
    assert_eq!(server.get("/").await.status, 200, "the place is free again");
}

#[tokio::test]
async fn a_request_id_set_outside_is_in_the_head_and_on_every_answer() {
    let (told, mut ids) = mpsc::unbounded_channel();
    let layer = memory_layer().authorize(move |access| {
        told.send(access.head.headers["x-request-id"].clone()).unwrap();
        async { Ok(Grant::new()) }
    });
    let streams = layer.streams();
    let app = app(layer)
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(SetRequestIdLayer::x_request_id(MakeRequestUuid));
    let server = serve_router(app, streams).await;
    finished(&server.streams, "a.txt", "stored").await;
    let (answer, _appender) = server.upgrade("/b.txt?verb=APPEND", &[]).await;
    assert_eq!(answer.status, 101);
    assert_eq!(answer.header("x-request-id").map(HeaderValue::from_str).unwrap().unwrap(), ids.recv().await.unwrap());
    for http in BOTH {
        for target in ["/a.txt", "/b.txt?verb=FOLLOW"] {
            let read = plain::ask(server.addr, http, target, &[]).await;
            assert_eq!(read.headers["x-request-id"], ids.recv().await.unwrap(), "{target}");
        }
    }
}

/// The lease is held for a connection that never comes: until the old one closes, or for 10 seconds.
#[tokio::test(start_paused = true)]
async fn a_layer_that_replaces_a_101_holds_the_lease_until_the_connection_closes_or_for_ten_seconds() {
    let (log, _guard) = log::of_this_thread();
    let layer = memory_layer();
    let streams = layer.streams();
    let app = app(layer).layer(map_response(async |mut response: Response| {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            response = Response::new("replaced".into());
        }
        response
    }));
    let ask = async |raw: &mut Raw<DuplexStream>| {
        let answer = raw.upgrade("/a.txt?verb=APPEND", &[("User-Agent", "test")]).await;
        raw.sized(answer).await
    };
    let mut first = pipe(&app);
    assert_eq!(ask(&mut first).await.text(), "replaced");
    let mut second = pipe(&app);
    assert_eq!(ask(&mut second).await.status, 409, "held");
    drop(first);
    let closed = Instant::now();
    let let_in = soon("the lease", async {
        loop {
            let answer = ask(&mut second).await;
            if answer.status != 409 {
                return answer;
            }
        }
    });
    assert_eq!(let_in.await.text(), "replaced");
    assert_eq!(closed.elapsed(), Duration::ZERO, "at once");

    let mut third = pipe(&app);
    tokio::time::advance(Duration::from_millis(9_900)).await;
    assert_eq!(ask(&mut third).await.status, 409, "the second's connection is open");
    tokio::time::advance(Duration::from_millis(200)).await;
    log.until("an upgrade was granted and never completed: does a layer outside replace the response?").await;
    assert_eq!(closed.elapsed(), Duration::from_millis(10_100), "the clock has not moved by itself meanwhile");
    assert_eq!(ask(&mut third).await.text(), "replaced");
    drop((second, third));
    let at_rest = async |key: &str| loop {
        match streams.stat(key).await.unwrap() {
            Some(stat) if stat.state == State::Live => tokio::task::yield_now().await,
            stat => return stat.map(|stat| (stat.state, stat.len)),
        }
    };
    assert_eq!(soon("the end of the leases", at_rest("a.txt")).await, None, "nothing was appended");

    // hyper hands over the connection that has ended, which is all that the original's client says at its end.
    let mut bare = pipe(&app);
    assert_eq!(bare.upgrade("/b.txt?verb=APPEND", &[]).await.status, 200);
    drop(bare);
    assert_eq!(soon("the end of the lease", at_rest("b.txt")).await, Some((State::Finished, 0)));
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_delays_a_101_for_too_long_ends_the_connection() {
    let layer = memory_layer();
    let app = app(layer).layer(map_response(async |response: Response| {
        tokio::time::sleep(Duration::from_secs(11)).await;
        response
    }));
    let mut raw = pipe(&app);
    assert_eq!(raw.upgrade("/a.txt?verb=APPEND", &[("User-Agent", "test")]).await.status, 101);
    assert_eq!(raw.frame().await, Frame::Eof);
}

#[tokio::test]
async fn a_layer_that_removes_the_upgrade_makes_it_501_and_nothing_is_held() {
    let server = around(|app| {
        app.layer(map_request(async |mut request: Request| {
            request.extensions_mut().remove::<OnUpgrade>();
            request
        }))
    })
    .await;
    for _ in 0..2 {
        let (answer, _) = server.upgrade("/a.txt?verb=APPEND", &[]).await;
        assert_eq!((answer.status, plain::problem(&answer).as_str()), (501, "not-upgradable"));
    }
    assert_eq!(put(&server, Http::One, "/a.txt", "by a body").await.status, 201);
    assert_eq!(stored(&server.streams, "a.txt").await, b"by a body");
}
