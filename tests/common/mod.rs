//! A server on a port of the system's choosing, and a client that can misbehave.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::wrong_self_convention)]

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use http::Request;
use httpfstream::{HttpFStreamLayer, Streams, storage};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};

pub mod http2_frames;
pub mod log;
pub mod plain;
pub mod spy;

/// Awaits an event that has to come: a hang is a failure, not a hang.
pub async fn soon<F: Future>(what: &str, event: F) -> F::Output {
    within(SOON, what, event).await
}

const SOON: Duration = Duration::from_secs(30);

pub async fn within<F: Future>(limit: Duration, what: &str, event: F) -> F::Output {
    match tokio::time::timeout(limit, event).await {
        Ok(output) => output,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

/// A layer with plain HTTP on over memory.
pub fn memory_layer() -> HttpFStreamLayer {
    HttpFStreamLayer::new(storage::MemoryStorage::new(1 << 30)).plain_http(true)
}

/// A layer with plain HTTP on over files, and the folder they are in.
pub fn fs_layer() -> (HttpFStreamLayer, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let storage = storage::FsStorage::open(dir.path()).unwrap();
    (HttpFStreamLayer::new(storage).plain_http(true), dir)
}

/// Opens a root as soon as the server before it has let go of it.
pub async fn reopened(path: &std::path::Path) -> storage::FsStorage {
    soon("the root to be free", async {
        loop {
            match storage::FsStorage::open(path) {
                Ok(storage) => return storage,
                Err(error) if error.kind() == httpfstream::ErrorKind::Busy => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await
}

/// A store to run a test on, for what must hold on all of them.
pub struct Store {
    pub name: &'static str,
    pub layer: HttpFStreamLayer,
    dir: Option<tempfile::TempDir>,
}

/// Memory and files.
pub fn stores() -> [Store; 2] {
    let (files, dir) = fs_layer();
    [Store { name: "memory", layer: memory_layer(), dir: None }, Store { name: "files", layer: files, dir: Some(dir) }]
}

impl Store {
    /// The folder, to be kept for as long as the layer is used.
    pub fn into_dir(self) -> Option<tempfile::TempDir> {
        self.dir
    }

    /// The folder, where there is one.
    pub fn root(&self) -> Option<&std::path::Path> {
        self.dir.as_ref().map(tempfile::TempDir::path)
    }

    /// Sees to it that nothing is left but what these keys name.
    pub fn holds_only(&self, keys: &[&str]) {
        if let Some(dir) = &self.dir {
            let mut expected: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
            expected.sort();
            assert_eq!(tree(dir.path()), expected, "what lies under the root");
            assert_eq!(tree(&dir.path().join(".httpfstream/new")), [""; 0], "files that wait for a byte");
        }
    }
}

/// All files and empty folders under a root, without the bookkeeping, as relative paths; a folder ends with `/`.
pub fn tree(root: &std::path::Path) -> Vec<String> {
    fn walk(dir: &std::path::Path, above: &str, found: &mut Vec<String>) {
        let mut any = false;
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            any = true;
            if above.is_empty() && name == ".httpfstream" {
                continue;
            }
            match entry.file_type().unwrap().is_dir() {
                true => walk(&entry.path(), &format!("{above}{name}/"), found),
                false => found.push(format!("{above}{name}")),
            }
        }
        if !any && !above.is_empty() {
            found.push(above.to_owned());
        }
    }
    let mut found = Vec::new();
    walk(root, "", &mut found);
    found.sort();
    found
}

/// A running server. Stops when dropped.
pub struct Server {
    pub addr: SocketAddr,
    pub streams: Streams,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves a layer around a small application of its own: `/` answers "inner", everything else 404 "nothing here".
pub async fn serve(layer: HttpFStreamLayer) -> Server {
    let streams = layer.streams();
    let app = Router::new()
        .route("/", axum::routing::get(|| async { "inner" }))
        .fallback(|| async { (http::StatusCode::NOT_FOUND, "nothing here") })
        .layer(layer);
    serve_router(app, streams).await
}

pub async fn serve_router(app: Router, streams: Streams) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    Server { addr, streams, task }
}

/// A connection to a layer without a socket in between, for tests that move the clock.
pub fn pipe(layer: &HttpFStreamLayer) -> Raw<DuplexStream> {
    use tower::Layer;
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let service = hyper_util::service::TowerToHyperService::new(layer.layer(nothing_here()));
    tokio::spawn(async move {
        let io = hyper_util::rt::TokioIo::new(theirs);
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).with_upgrades().await;
    });
    Raw { stream: ours, buf: Vec::new() }
}

fn nothing_here() -> impl tower::Service<
    Request<hyper::body::Incoming>,
    Response = http::Response<http_body_util::Full<Bytes>>,
    Error = Infallible,
    Future: Send,
> + Clone
+ Send
+ 'static {
    tower::service_fn(|_| async {
        let mut response = http::Response::new(http_body_util::Full::from("nothing here"));
        *response.status_mut() = http::StatusCode::NOT_FOUND;
        Ok(response)
    })
}

impl Server {
    /// One that is run by this task.
    pub fn of(addr: SocketAddr, streams: Streams, task: tokio::task::JoinHandle<()>) -> Self {
        Self { addr, streams, task }
    }

    /// Sends a request without an upgrade and reads the whole answer.
    pub async fn request(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> Answer {
        let mut raw = Raw::connect(self.addr).await;
        raw.send_head(method, target, headers, "Connection: close\r\n").await;
        let mut answer = raw.read_head().await;
        let mut body = std::mem::take(&mut raw.buf);
        soon("the whole body", raw.stream.read_to_end(&mut body)).await.unwrap();
        answer.body = body;
        answer
    }

    pub async fn get(&self, target: &str) -> Answer {
        self.request("GET", target, &[]).await
    }

    /// Asks for a WebSocket, as a client with a name does.
    pub async fn upgrade(&self, target: &str, headers: &[(&str, &str)]) -> (Answer, Raw) {
        let mut all = vec![("User-Agent", "test")];
        all.extend_from_slice(headers);
        self.upgrade_bare(target, &all).await
    }

    /// Asks for a WebSocket, as the original's client does: without `User-Agent` and `Origin`.
    pub async fn upgrade_bare(&self, target: &str, headers: &[(&str, &str)]) -> (Answer, Raw) {
        let mut raw = Raw::connect(self.addr).await;
        raw.send_head("GET", target, headers, HANDSHAKE).await;
        let mut answer = raw.read_head().await;
        if answer.status != 101 {
            let len = answer.header("content-length").map_or(0, |len| len.parse().unwrap());
            while raw.buf.len() < len {
                assert!(soon("the body", raw.stream.read_buf(&mut raw.buf)).await.unwrap() > 0, "cut body");
            }
            answer.body = std::mem::take(&mut raw.buf);
        }
        (answer, raw)
    }

    /// An appender, as the original's client makes one.
    pub async fn append_as_original(&self, target: &str) -> Raw {
        let (answer, raw) = self.upgrade_bare(target, &[("X-Verb", "APPEND")]).await;
        assert_eq!(answer.status, 101, "{answer:?}");
        raw
    }

    /// An appender with a name.
    pub async fn append(&self, target: &str) -> Raw {
        let (answer, raw) = self.upgrade(&format!("{target}?verb=APPEND"), &[]).await;
        assert_eq!(answer.status, 101, "{answer:?}");
        raw
    }

    /// A follower, as the original's client makes one.
    pub async fn follow_as_original(&self, target: &str) -> Raw {
        let (answer, raw) = self.upgrade_bare(target, &[("X-Verb", "FOLLOW")]).await;
        assert_eq!(answer.status, 101, "{answer:?}");
        raw
    }

    /// A follower, as a browser makes one.
    pub async fn follow(&self, target: &str) -> Raw {
        let (answer, raw) = self.upgrade(&format!("{target}?verb=FOLLOW"), &[]).await;
        assert_eq!(answer.status, 101, "{answer:?}");
        raw
    }

    /// Waits until a resource is in a state other than live (or absent again).
    pub async fn at_rest(&self, key: &str) -> Option<httpfstream::Stat> {
        soon("the resource to come to rest", async {
            loop {
                let stat = self.streams.stat(key).await.unwrap();
                match stat {
                    Some(stat) if stat.state == httpfstream::State::Live => tokio::task::yield_now().await,
                    stat => return stat,
                }
            }
        })
        .await
    }
}

pub const HANDSHAKE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// An answer's head, and its body where that was read.
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body: String = self.text().chars().take(200).collect();
        write!(f, "{} {:?} {body:?} ({} bytes)", self.status, self.headers, self.body.len())
    }
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| &**v)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A frame that the server sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
    /// The connection ended without a close frame.
    Eof,
}

/// A client socket with no manners of its own.
pub struct Raw<IO = TcpStream> {
    pub stream: IO,
    pub buf: Vec<u8>,
}

impl Raw {
    pub async fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buf: Vec::new() }
    }

    /// Breaks the connection with a reset.
    pub fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Raw<IO> {
    /// Asks for a WebSocket on this connection.
    pub async fn upgrade(&mut self, target: &str, headers: &[(&str, &str)]) -> Answer {
        self.send_head("GET", target, headers, HANDSHAKE).await;
        self.read_head().await
    }

    pub async fn send_head(&mut self, method: &str, target: &str, headers: &[(&str, &str)], more: &str) {
        let mut head = format!("{method} {target} HTTP/1.1\r\n{more}");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head += "Host: test.example\r\n";
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        self.send(format!("{head}\r\n").as_bytes()).await;
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        soon("the server to take bytes", self.stream.write_all(bytes)).await.unwrap();
    }

    pub async fn read_head(&mut self) -> Answer {
        loop {
            if let Some(end) = self.buf.windows(4).position(|w| w == b"\r\n\r\n") {
                let head: Vec<u8> = self.buf.drain(..end + 4).collect();
                let head = String::from_utf8(head).unwrap();
                let mut lines = head.split("\r\n");
                let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
                let headers = lines
                    .filter_map(|line| line.split_once(':'))
                    .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
                    .collect();
                return Answer { status, headers, body: Vec::new() };
            }
            let n = soon("an answer", self.stream.read_buf(&mut self.buf)).await.unwrap();
            assert!(n > 0, "no answer, but {:?}", String::from_utf8_lossy(&self.buf));
        }
    }

    /// Sends a masked frame; `first` is its first byte (0x81 text, 0x82 binary, 0x88 close, 0x89 ping …).
    pub async fn send_frame(&mut self, first: u8, payload: &[u8]) {
        self.send(&client_frame(first, payload)).await;
    }

    pub async fn send_text(&mut self, payload: impl AsRef<[u8]>) {
        self.send_frame(0x81, payload.as_ref()).await;
    }

    pub async fn send_close(&mut self, code: u16) {
        self.send_frame(0x88, &code.to_be_bytes()).await;
    }

    /// The next frame.
    pub async fn frame(&mut self) -> Frame {
        self.frame_within(SOON).await
    }

    /// The next frame, for tests that move the clock.
    pub async fn frame_within(&mut self, limit: Duration) -> Frame {
        loop {
            if let Some(frame) = self.take_frame() {
                return frame;
            }
            match within(limit, "a frame", self.stream.read_buf(&mut self.buf)).await {
                Ok(n) if n > 0 => {}
                _ => return Frame::Eof,
            }
        }
    }

    fn take_frame(&mut self) -> Option<Frame> {
        let (&first, &second) = (self.buf.first()?, self.buf.get(1)?);
        assert_eq!(second & 0x80, 0, "a server must not mask");
        assert_eq!(first & 0xf0, 0x80, "one frame a message, no extensions");
        let (start, len) = match second {
            126 => (4, u16::from_be_bytes(self.buf.get(2..4)?.try_into().unwrap()) as usize),
            127 => (10, u64::from_be_bytes(self.buf.get(2..10)?.try_into().unwrap()) as usize),
            len => (2, len as usize),
        };
        let payload = self.buf.get(start..start + len)?.to_vec();
        self.buf.drain(..start + len);
        Some(match first & 0x0f {
            1 => Frame::Text(payload),
            2 => Frame::Binary(payload),
            8 if payload.is_empty() => Frame::Close(None, String::new()),
            8 => Frame::Close(
                Some(u16::from_be_bytes([payload[0], payload[1]])),
                String::from_utf8(payload[2..].to_vec()).unwrap(),
            ),
            9 => Frame::Ping(payload),
            10 => Frame::Pong(payload),
            other => panic!("opcode {other}"),
        })
    }

    /// Reads data until at least `len` bytes have come.
    pub async fn data(&mut self, len: usize) -> Vec<u8> {
        let mut data = Vec::new();
        while data.len() < len {
            match self.frame().await {
                Frame::Text(payload) | Frame::Binary(payload) => data.extend(payload),
                Frame::Ping(_) => {}
                other => panic!("{other:?} after {} of {len} bytes", data.len()),
            }
        }
        data
    }

    /// Reads data until the connection closes; with the close code, if there was one.
    pub async fn to_end(&mut self) -> (Vec<u8>, Option<u16>) {
        let mut data = Vec::new();
        loop {
            match self.frame().await {
                Frame::Text(payload) | Frame::Binary(payload) => data.extend(payload),
                Frame::Ping(_) | Frame::Pong(_) => {}
                Frame::Close(code, _) => return (data, code),
                Frame::Eof => return (data, None),
            }
        }
    }
}

pub fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];
    let mut out = vec![first];
    match payload.len() {
        n @ 0..=125 => out.push(0x80 | n as u8),
        n @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(n as u16).to_be_bytes());
        }
        n => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(n as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&MASK);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(b, m)| b ^ m));
    out
}

/// Bytes that tell where they are from: any gap, repetition or swap shows.
pub fn pattern(from: u64, len: usize) -> Vec<u8> {
    (from..from + len as u64).map(|i| (i ^ (i >> 8) ^ (i >> 16)).wrapping_mul(31) as u8).collect()
}

/// An inner service for those who call the layer without a socket.
pub fn inner() -> impl tower::Service<
    Request<http_body_util::Full<Bytes>>,
    Response = http::Response<http_body_util::Full<Bytes>>,
    Error = Infallible,
    Future: Send,
> + Clone
+ Send {
    tower::service_fn(|_| async { Ok::<_, Infallible>(http::Response::new(http_body_util::Full::from("inner"))) })
}
