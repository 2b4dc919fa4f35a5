//! Streams that share a connection (RFC 8441), in clear text and by ALPN.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Version};
use httpfstream::State;
use httpfstream::client::{Client, ClientBuilder, Follower};
use httpfstream::{Access, Denied, ErrorKind, Grant, HttpFStreamLayer, Streams};
use hyper::service::Service as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Layer as _;

use crate::common::{inner, memory_layer, pattern, reopened};
use crate::peer::{BINARY, LIFE, TEXT, frame, quick, within};

/// How a server of ours is run.
#[derive(Clone, Copy)]
struct How {
    tls: bool,
    extended_connect: bool,
    most_streams: u32,
}

const CLEAR: How = How { tls: false, extended_connect: true, most_streams: 200 };
const TLS: How = How { tls: true, ..CLEAR };

/// What all servers here show: it has to stay the same when one is restarted.
static IDENTITY: LazyLock<(Arc<ServerConfig>, String)> = LazyLock::new(|| {
    let (config, pem, _) = crate::tls::config(&["h2", "http/1.1"]);
    (config, pem)
});

/// What a server has seen.
#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    requests: Mutex<Vec<(Version, Method, HeaderMap)>>,
}

/// A server of ours over both versions.
struct Host {
    addr: SocketAddr,
    url: String,
    seen: Arc<Seen>,
    running: TaskTracker,
    stop: CancellationToken,
}

impl Host {
    async fn new(layer: HttpFStreamLayer, how: How) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), layer, how)
    }

    fn on(listener: TcpListener, layer: HttpFStreamLayer, how: How) -> Self {
        let addr = listener.local_addr().unwrap();
        let acceptor = how.tls.then(|| TlsAcceptor::from(Arc::clone(&IDENTITY.0)));
        let (seen, running, stop) = (Arc::<Seen>::default(), TaskTracker::new(), CancellationToken::new());
        let host = Self {
            addr,
            url: format!("{}://localhost:{}", if how.tls { "https" } else { "http" }, addr.port()),
            seen: Arc::clone(&seen),
            running: running.clone(),
            stop: stop.clone(),
        };
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http2().max_concurrent_streams(how.most_streams);
        if how.extended_connect {
            builder.http2().enable_connect_protocol();
        }
        let service = TowerToHyperService::new(layer.layer(inner()));
        let accepting = stop.clone();
        running.clone().spawn(accepting.run_until_cancelled_owned(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                seen.connections.fetch_add(1, Ordering::SeqCst);
                let (builder, service, acceptor, seen) =
                    (builder.clone(), service.clone(), acceptor.clone(), Arc::clone(&seen));
                let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                    let (version, method) = (request.version(), request.method().clone());
                    seen.requests.lock().unwrap().push((version, method, request.headers().clone()));
                    service.call(request.map(body))
                });
                running.spawn(stop.clone().run_until_cancelled_owned(async move {
                    match acceptor {
                        Some(acceptor) => {
                            let Ok(stream) = acceptor.accept(stream).await else { return };
                            let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
                        }
                        None => {
                            let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
                        }
                    }
                }));
            }
        }));
        host
    }

    fn client(&self) -> ClientBuilder {
        let client = quick().root_certificate(&IDENTITY.1);
        if self.url.starts_with("https") { client } else { client.http2_prior_knowledge() }
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.url)
    }

    fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    fn versions(&self) -> Vec<Version> {
        self.seen.requests.lock().unwrap().iter().map(|(version, ..)| *version).collect()
    }

    /// Kills it, with all that is open.
    async fn kill(self) -> SocketAddr {
        self.stop.cancel();
        self.running.close();
        within(self.running.wait()).await;
        self.addr
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The inner service of these tests takes no body of hyper's.
fn body(_: hyper::body::Incoming) -> http_body_util::Full<Bytes> {
    http_body_util::Full::default()
}

/// Everything up to the end.
async fn whole(mut follower: Follower) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(chunk) = within(follower.next_chunk()).await.unwrap() {
        all.extend(chunk.bytes);
        assert_eq!(chunk.next_offset, all.len() as u64);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn appenders_and_followers_share_one_connection() {
    for how in [CLEAR, TLS] {
        let host = Host::new(memory_layer(), how).await;
        let client = host.client().build().unwrap();
        let data = pattern(0, 3_000_000);
        // At once, so that all wait for one attempt to connect.
        let following: Vec<_> = (0..20)
            .map(|_| {
                let (client, url) = (client.clone(), host.url("a"));
                tokio::spawn(async move { client.follow(url).wait(Duration::from_secs(30)).await.unwrap() })
            })
            .collect();
        let mut appender = within(client.open_append(host.url("a"))).await.unwrap();
        assert!(appender.is_resumable());
        within(appender.append(&data[..70_000])).await.unwrap();
        let followers: Vec<_> = within(async { futures_util::future::join_all(following).await })
            .await
            .into_iter()
            .map(Result::unwrap)
            .collect();
        let reading: Vec<_> = followers.into_iter().map(|follower| tokio::spawn(whole(follower))).collect();
        for chunk in data[70_000..].chunks(70_000) {
            within(appender.append(chunk)).await.unwrap();
        }
        within(appender.finish()).await.unwrap();
        for read in reading {
            assert!(within(read).await.unwrap() == data);
        }
        assert_eq!(host.connections(), 1);
        assert!(host.versions().iter().all(|version| *version == Version::HTTP_2));
        // A CONNECT has no body to answer with: what is finished comes as messages.
        let late = within(client.follow(host.url("a")).offset(2_999_999)).await.unwrap();
        assert!(!late.is_live() && late.is_resumable());
        assert_eq!(late.state(), Some(State::Finished));
        drop(late);
        // In HTTP/1.1, by option and in clear text by default, each has its own.
        let before = host.connections();
        let client = quick().root_certificate(&IDENTITY.1);
        let client = if how.tls { client.http1_only() } else { client }.build().unwrap();
        assert!(whole(within(client.follow(host.url("a"))).await.unwrap()).await == data);
        assert!(whole(within(client.follow(host.url("a"))).await.unwrap()).await == data);
        assert_eq!(host.connections(), before + 2);
        assert_eq!(*host.versions().last().unwrap(), Version::HTTP_11);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_in_mid_stream_is_survived_by_all_who_share_the_connection() {
    for how in [CLEAR, TLS] {
        let dir = tempfile::tempdir().unwrap();
        let streams = Streams::new(reopened(dir.path()).await);
        let mut host = Host::new(HttpFStreamLayer::from_streams(streams.clone()).plain_http(true), how).await;
        let client = host.client().build().unwrap();
        let (url, data) = (host.url("a"), pattern(0, 2_000_000));
        let mut appender = within(client.open_append(&url)).await.unwrap();
        within(appender.append(&data[..1_000_000])).await.unwrap();
        within(appender.flush()).await.unwrap();
        let mut reading = Vec::new();
        for _ in 0..8 {
            let mut follower = within(client.follow(&url)).await.unwrap();
            let mut first = vec![0; 500_000];
            within(follower.read_exact(&mut first)).await.unwrap();
            assert!(first == data[..500_000]);
            reading.push(tokio::spawn(async move {
                let mut rest = Vec::new();
                within(follower.read_to_end(&mut rest)).await.unwrap();
                rest
            }));
        }
        assert_eq!(host.connections(), 1);
        // Some of it is on its way when everything breaks.
        within(appender.append(&data[1_000_000..1_500_000])).await.unwrap();
        let addr = host.kill().await;
        within(streams.shutdown(Duration::ZERO)).await;
        drop(streams);
        let layer = HttpFStreamLayer::new(reopened(dir.path()).await).plain_http(true);
        host = Host::on(rebound(addr).await, layer, how);
        within(appender.append(&data[1_500_000..])).await.unwrap();
        within(appender.finish()).await.unwrap();
        for read in reading {
            assert!(within(read).await.unwrap() == data[500_000..]);
        }
        assert!(std::fs::read(dir.path().join("a")).unwrap() == data);
        assert_eq!(host.connections(), 1, "those who came back share one again");
    }
}

/// The same port again.
async fn rebound(addr: SocketAddr) -> TcpListener {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(addr).unwrap();
    socket.listen(1024).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_extended_connect_is_spoken_to_over_http1() {
    let how = How { extended_connect: false, ..TLS };
    let host = Host::new(memory_layer(), how).await;
    let client = host.client().build().unwrap();
    let mut appender = within(client.open_append(host.url("a"))).await.unwrap();
    assert_eq!(host.connections(), 2, "one by HTTP/2 in vain");
    within(appender.append("hello")).await.unwrap();
    let follower = within(client.follow(host.url("a"))).await.unwrap();
    assert_eq!(host.connections(), 3, "that is remembered");
    within(appender.finish()).await.unwrap();
    assert_eq!(whole(follower).await, b"hello");
    assert!(host.versions().iter().all(|version| *version == Version::HTTP_11));

    // Who insists is told.
    for how in [how, How { tls: false, ..how }] {
        let host = Host::new(memory_layer(), how).await;
        let client = host.client().http2_prior_knowledge().build().unwrap();
        let error = within(client.follow(host.url("a"))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
        assert!(error.detail().contains("RFC 8441"), "{error}");
        assert_eq!(host.connections(), 1);
    }
}

#[tokio::test]
async fn a_server_without_http2_is_an_error_to_who_insists() {
    let client = Client::builder().http2_prior_knowledge().build().unwrap();
    for answer in ["HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "SSH-2.0-OpenSSH and more of it\r\n"] {
        let url = anything(answer.as_bytes()).await;
        let error = within(client.follow(url)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    }
    let error = within(client.follow(anything(b"").await)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connection, "{error}");
    // One failure is the failure of all who waited for it.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let all = (0..50).map(|_| client.follow(format!("http://{free}/x")).into_future());
    for result in within(async { futures_util::future::join_all(all).await }).await {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Connection);
    }
}

/// A server that reads the beginning and answers with these bytes.
async fn anything(answer: &[u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/x", listener.local_addr().unwrap());
    let answer = answer.to_vec();
    tokio::spawn(async move {
        let (mut io, _) = listener.accept().await.unwrap();
        let mut preface = [0; 24];
        io.read_exact(&mut preface).await.unwrap();
        io.write_all(&answer).await.unwrap();
        io.shutdown().await.unwrap();
        let _ = tokio::io::copy(&mut io, &mut tokio::io::sink()).await;
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn more_streams_than_the_server_allows_take_more_connections() {
    let host = Host::new(memory_layer(), How { most_streams: 3, ..CLEAR }).await;
    let client = host.client().build().unwrap();
    let mut appender = within(client.open_append(host.url("a"))).await.unwrap();
    let opening = (0..10).map(|_| client.follow(host.url("a")).into_future());
    let followers = within(async { futures_util::future::join_all(opening).await }).await;
    let followers: Vec<_> = followers.into_iter().map(Result::unwrap).collect();
    assert_eq!(host.connections(), 4, "11 streams");
    within(appender.append("to all")).await.unwrap();
    within(appender.finish()).await.unwrap();
    for follower in followers {
        assert_eq!(whole(follower).await, b"to all");
    }
}

#[tokio::test]
async fn a_place_that_was_given_back_is_taken_again() {
    let server = H2Server::new().await;
    let client = quick().http2_prior_knowledge().build().unwrap();
    let open = async || client.follow(&server.url).await.unwrap();
    let serve = async {
        let mut connection = server.accept().await;
        (connection.follow().await, connection.follow().await, connection)
    };
    let ((_first, mut second, mut connection), (_kept, given_up)) =
        within(async { tokio::join!(serve, async { (open().await, open().await) }) }).await;
    // Two are all that the server allows.
    drop(given_up);
    second.over().await;
    within(async { tokio::join!(open(), connection.follow()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_told_as_over_http1_and_leave_the_connection_to_the_others() {
    let layer = memory_layer().authorize(|access: Access| async move {
        match access.head.headers.get("authorization") {
            Some(token) if token == "Bearer good" => Ok(Grant::new()),
            Some(_) => Err(Denied::Forbidden),
            None => Err(Denied::Unauthorized),
        }
    });
    let host = Host::new(layer, CLEAR).await;
    let good = host.client().header("authorization", "Bearer good").build().unwrap();
    let mut appender = within(good.open_append(host.url("a"))).await.unwrap();
    within(appender.append("before ")).await.unwrap();
    let follower = within(good.follow(host.url("a"))).await.unwrap();
    for (error, kind) in [
        (within(good.open_append(host.url("a"))).await.unwrap_err(), ErrorKind::Busy),
        (within(good.follow(host.url("absent"))).await.unwrap_err(), ErrorKind::NotFound),
        (within(good.follow(host.url("a")).offset(100)).await.unwrap_err(), ErrorKind::PastEnd),
        (within(good.follow(host.url("a%00"))).await.unwrap_err(), ErrorKind::BadPath),
    ] {
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.detail().contains("the server answered 4"), "{error}");
    }
    assert_eq!(host.connections(), 1);
    for (token, kind) in [(None, ErrorKind::Unauthorized), (Some("Bearer bad"), ErrorKind::Forbidden)] {
        let mut client = host.client();
        if let Some(token) = token {
            client = client.header("authorization", token);
        }
        let error = within(client.build().unwrap().follow(host.url("a"))).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
    }
    within(appender.append("and after")).await.unwrap();
    within(appender.finish()).await.unwrap();
    assert_eq!(whole(follower).await, b"before and after");
    let requests = host.seen.requests.lock().unwrap();
    for (version, method, headers) in requests.iter() {
        assert_eq!((*version, method), (Version::HTTP_2, &Method::CONNECT));
        assert_eq!(headers["sec-websocket-version"], "13");
        for absent in ["connection", "upgrade", "sec-websocket-key", "host"] {
            assert!(!headers.contains_key(absent), "{absent}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_31_readers_that_take_nothing_starve_nobody_on_their_connection() {
    let layer = memory_layer();
    let streams = layer.streams();
    let host = Host::new(layer, CLEAR).await;
    let client = host.client().build().unwrap();
    let data = pattern(0, 3 << 20);
    let mut appender = streams.append("a").into_future().await.unwrap();
    appender.append(data.clone()).await.unwrap();
    appender.finish().await.unwrap();
    let mut stalled = Vec::new();
    for _ in 0..20 {
        stalled.push(within(client.follow(host.url("a"))).await.unwrap());
    }
    // Whatever the stalled ones can hold is on its way before this one is through, and more than once.
    for _ in 0..2 {
        assert!(whole(within(client.follow(host.url("a"))).await.unwrap()).await == data);
    }
    assert_eq!(host.connections(), 1);
    // They go on where they stood.
    for follower in stalled {
        assert!(whole(follower).await == data);
    }
}

#[tokio::test]
async fn the_connection_ends_with_its_last_stream() {
    let server = H2Server::new().await;
    let client = quick().http2_prior_knowledge().build().unwrap();
    let serving = async {
        let mut connection = server.accept().await;
        let streams = [connection.follow().await, connection.follow().await];
        (connection, streams)
    };
    let opening = async { (client.follow(&server.url).await.unwrap(), client.follow(&server.url).await.unwrap()) };
    let ((mut connection, [mut given_up, mut other]), (first, second)) =
        within(async { tokio::join!(serving, opening) }).await;
    drop(first);
    given_up.over().await;
    other.say(b"still there");
    let mut second = second;
    assert_eq!(within(second.next_chunk()).await.unwrap().unwrap().bytes, "still there");
    drop(second);
    other.over().await;
    assert!(connection.next().await.is_none());
}

/// Speaks HTTP/2 by hand up to the first request. True if the client had acknowledged the settings before.
async fn first_request(io: &mut TcpStream) -> bool {
    let mut preface = [0; 24];
    io.read_exact(&mut preface).await.unwrap();
    // ENABLE_CONNECT_PROTOCOL (8) = 1, byte by byte.
    for byte in [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 1] {
        io.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut acknowledged = false;
    loop {
        let mut head = [0; 9];
        io.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        io.read_exact(&mut payload).await.unwrap();
        match head[3] {
            4 => acknowledged |= head[4] == 1,
            1 => return acknowledged,
            _ => {}
        }
    }
}

#[tokio::test]
async fn nothing_is_asked_before_the_servers_settings_have_come() {
    let server = H2Server::new().await;
    let client = quick().http2_prior_knowledge().build().unwrap();
    let serving = async {
        let (mut io, _) = server.listener.accept().await.unwrap();
        first_request(&mut io).await
    };
    tokio::select! {
        acknowledged = within(serving) => assert!(acknowledged),
        answer = client.follow(&server.url).into_future() => panic!("{answer:?}"),
    }
}

#[tokio::test]
async fn what_the_server_left_untouched_is_asked_again() {
    let client = quick().http2_prior_knowledge().build().unwrap();
    for goes_away in [false, true] {
        let server = H2Server::new().await;
        let serving = async {
            let mut first = None;
            if goes_away {
                // GOAWAY (7): the last stream that it has looked at was 0, which is none.
                let (mut io, _) = server.listener.accept().await.unwrap();
                first_request(&mut io).await;
                io.write_all(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).await.unwrap();
            } else {
                let mut connection = server.accept().await;
                let (request, mut respond) = connection.next().await.unwrap();
                assert_eq!(request.headers()["x-verb"], "APPEND");
                respond.send_reset(h2::Reason::REFUSED_STREAM);
                first = Some(connection);
            }
            let mut connection = server.accept().await;
            let (_, mut respond) = connection.next().await.unwrap();
            respond.send_response(Response::builder().status(507).body(()).unwrap(), true).unwrap();
            drop(first);
        };
        let opening = async { client.open_append(&server.url).await.unwrap_err() };
        let (error, ()) = within(async { tokio::join!(opening, serving) }).await;
        assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    }
}

#[tokio::test]
async fn answers_that_are_no_consent_are_refused() {
    let client = quick().http2_prior_knowledge().build().unwrap();
    let answer = |status: u16, name: &'static str, value: &'static str| {
        Response::builder().status(status).header(name, value).body(()).unwrap()
    };
    for (answer, kind) in [
        (Ok(answer(200, "sec-websocket-protocol", "chat")), ErrorKind::Protocol),
        (Ok(answer(200, "sec-websocket-extensions", "permessage-deflate")), ErrorKind::Protocol),
        (Ok(answer(302, "location", "https://elsewhere.example/")), ErrorKind::Redirect),
        (Ok(answer(204, "x-tag", "x")), ErrorKind::Status),
        (Ok(answer(503, "x-tag", "x")), ErrorKind::Overloaded),
        (Err(h2::Reason::PROTOCOL_ERROR), ErrorKind::Protocol),
        (Err(h2::Reason::HTTP_1_1_REQUIRED), ErrorKind::Protocol),
        (Err(h2::Reason::INTERNAL_ERROR), ErrorKind::Connection),
    ] {
        let server = H2Server::new().await;
        let told = format!("{answer:?}");
        let serving = async {
            let mut connection = server.accept().await;
            let (_, mut respond) = connection.next().await.unwrap();
            match answer {
                Ok(answer) => drop(respond.send_response(answer, true).unwrap()),
                Err(reason) => respond.send_reset(reason),
            }
        };
        let (error, ()) =
            within(async { tokio::join!(async { client.follow(&server.url).await.unwrap_err() }, serving) }).await;
        assert_eq!(error.kind(), kind, "{told}: {error}");
    }
}

#[cfg(feature = "cli")]
#[tokio::test(flavor = "multi_thread")]
async fn the_programs_speak_it_by_alpn_or_by_option() {
    use crate::programs::{APPEND, FOLLOW, end, start};
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, &IDENTITY.1).unwrap();
    let ca = ca.to_str().unwrap();
    for (how, option, version) in [
        (CLEAR, "--http2-prior-knowledge", Version::HTTP_2),
        (CLEAR, "--http1.1", Version::HTTP_11),
        (TLS, "-v", Version::HTTP_2),
        (TLS, "--http1.1", Version::HTTP_11),
    ] {
        let host = Host::new(memory_layer(), how).await;
        let url = host.url("a");
        let mut child = start(APPEND, &[option, "--ca-file", ca, &url]);
        child.stdin.take().unwrap().write_all(b"by a program").await.unwrap();
        let (code, _, said) = end(child).await;
        assert_eq!(code, Some(0), "{option}: {said}");
        let (code, out, said) = end(start(FOLLOW, &[option, "--ca-file", ca, &url])).await;
        assert_eq!((code, out), (Some(0), b"by a program".to_vec()), "{option}: {said}");
        assert_eq!(host.versions(), [version; 2], "{option}");
    }
}

/// A connection whose server is gone without a word is found out, and nobody comes back on it, not even those who give
/// up while others still hope.
#[tokio::test]
async fn fault_30_a_dead_connection_is_replaced() {
    let server = H2Server::new().await;
    let client = quick().http2_prior_knowledge().silence_timeout(Duration::from_millis(600)).build().unwrap();
    let open = async || client.follow(&server.url).await.unwrap();
    let serve = async {
        let mut connection = server.accept().await;
        (connection.follow().await, connection.follow().await, connection)
    };
    let ((mut one, mut two, mut first), (mut early, mut late)) =
        within(async { tokio::join!(serve, async { (open().await, open().await) }) }).await;
    one.say(b"one ");
    assert_eq!(within(early.next_chunk()).await.unwrap().unwrap().bytes, "one ");
    // It is pinged since nothing has come for a while; the other has just heard something when all falls silent.
    within(one.recv.data()).await.unwrap().unwrap();
    two.say(b"one ");
    assert_eq!(within(late.next_chunk()).await.unwrap().unwrap().bytes, "one ");
    first.freeze.send(()).await.unwrap();
    let mut second = server.accept().await;
    let mut streams = [second.follow().await, second.follow().await];
    streams.iter_mut().for_each(|stream| stream.say(b"two"));
    for follower in [&mut early, &mut late] {
        let chunk = within(follower.next_chunk()).await.unwrap().unwrap();
        assert_eq!((&chunk.bytes[..], chunk.next_offset), (&b"two"[..], 7));
    }
    assert!(first.requests.try_recv().is_err());
}

/// A server that is played by a test.
struct H2Server {
    listener: TcpListener,
    url: String,
}

/// One connection, which a task runs.
struct H2Connection {
    requests: mpsc::Receiver<(Request<h2::RecvStream>, h2::server::SendResponse<Bytes>)>,
    /// Nothing is read or written from then on, and nothing closed.
    freeze: mpsc::Sender<()>,
}

/// A WebSocket that was granted.
struct H2Stream {
    send: h2::SendStream<Bytes>,
    recv: h2::RecvStream,
}

impl H2Server {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/some/log.txt", listener.local_addr().unwrap());
        Self { listener, url }
    }

    async fn accept(&self) -> H2Connection {
        let (io, _) = within(self.listener.accept()).await.unwrap();
        io.set_nodelay(true).unwrap();
        let mut builder = h2::server::Builder::new();
        builder.enable_connect_protocol().max_concurrent_streams(2);
        let mut connection = within(builder.handshake(io)).await.unwrap();
        let (sender, requests) = mpsc::channel(8);
        let (freeze, mut frozen) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    request = connection.accept() => match request {
                        Some(Ok(request)) => drop(sender.send(request).await),
                        _ => return,
                    },
                    Some(()) = frozen.recv() => std::future::pending().await,
                }
            }
        });
        H2Connection { requests, freeze }
    }
}

impl H2Connection {
    /// The next request; `None` once the connection has ended.
    async fn next(&mut self) -> Option<(Request<h2::RecvStream>, h2::server::SendResponse<Bytes>)> {
        within(self.requests.recv()).await
    }

    /// Grants the next one who asks to follow, from where it asks.
    async fn follow(&mut self) -> H2Stream {
        let (request, mut respond) = self.next().await.unwrap();
        let protocol = request.extensions().get::<h2::ext::Protocol>().unwrap();
        assert_eq!((request.method(), protocol.as_str()), (&Method::CONNECT, "websocket"));
        assert_eq!(request.uri().path(), "/some/log.txt");
        assert_eq!(request.headers()["x-verb"], "FOLLOW");
        let answer = Response::builder().header("sec-websocket-protocol", "httpfstream.v1").body(()).unwrap();
        let send = respond.send_response(answer, false).unwrap();
        let asked = request.uri().query().unwrap_or_default().split('&');
        let offset = asked.filter_map(|option| option.strip_prefix("offset=")).next().unwrap_or("0");
        let begin = format!(r#"{{"offset":{offset},"life":"{LIFE}","state":"live"}}"#);
        let mut stream = H2Stream { send, recv: request.into_body() };
        stream.send.send_data(frame(0x80 | TEXT, begin.as_bytes()).into(), false).unwrap();
        stream
    }
}

impl H2Stream {
    fn say(&mut self, data: &[u8]) {
        self.send.send_data(frame(0x80 | BINARY, data).into(), false).unwrap();
    }

    /// Waits until the client has given it up, or ended it.
    async fn over(&mut self) {
        while let Some(Ok(_)) = within(self.recv.data()).await {}
    }
}
