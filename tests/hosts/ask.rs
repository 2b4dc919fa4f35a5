//! What can be asked of a host, and what comes of it.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Empty};
use httpfstream::Streams;
use hyper::body::Incoming;
use hyper::client::conn::http2::{Connection, SendRequest};
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::common::plain::{self, Client, Http, Upload, full};
use crate::common::{Frame, Raw, Server, soon};
use crate::host::{BASE, Host};

/// What came of asking, as the documentation's table says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Got {
    /// All of it works.
    Yes,
    /// The host doesn't speak that version of HTTP.
    Unspoken,
    /// The server's settings don't offer extended CONNECT.
    NotOffered,
    /// A status instead.
    Status(u16),
    /// The connection was granted and ended before anything was said.
    Dies,
    /// It can be followed, but not appended to: that is 403.
    Follows,
    /// It works, but the answer to what nobody has is this.
    Nowhere(&'static str),
}

impl fmt::Display for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Yes => f.write_str("yes"),
            Self::Unspoken => f.write_str("–"),
            Self::NotOffered => f.write_str("not offered"),
            Self::Status(status) => write!(f, "{status}"),
            Self::Dies => f.write_str("101, then cut"),
            Self::Follows => f.write_str("follow; append: 403"),
            Self::Nowhere(answer) => write!(f, "yes ({answer})"),
        }
    }
}

impl Host {
    /// Asks over each version that the host speaks; they must agree.
    async fn over_all(&self, ask: impl AsyncFn(Http) -> Got) -> Got {
        let mut got = None;
        for http in self.speaks {
            let this = ask(*http).await;
            assert_eq!(*got.get_or_insert(this.clone()), this, "{http:?} is as the other");
        }
        got.unwrap()
    }

    /// Appends over one WebSocket and follows over another meanwhile, over HTTP/1.1.
    pub(crate) async fn socket_over_http1(&self) -> Got {
        if !self.speaks.contains(&Http::One) {
            return Got::Unspoken;
        }
        let server = &self.server;
        let v1 = [("Sec-WebSocket-Protocol", "httpfstream.v1")];
        let (answer, appender) = server.upgrade(&format!("{BASE}/one.txt?verb=APPEND"), &v1).await;
        let following = async {
            let (answer, follower) = server.upgrade(&format!("{BASE}/one.txt?verb=FOLLOW"), &[]).await;
            assert_eq!(answer.status, 101);
            follower
        };
        match answer.status {
            101 => append_and_follow(appender, following).await,
            403 => self.follow("one.txt", following).await,
            other => Got::Status(other),
        }
    }

    /// The same over HTTP/2, both on one connection.
    pub(crate) async fn socket_over_http2(&self) -> Got {
        if !self.speaks.contains(&Http::Two) {
            return Got::Unspoken;
        }
        let mut client = Two::connect(&self.server).await;
        if !client.offered() {
            return Got::NotOffered;
        }
        let v1 = [("sec-websocket-protocol", "httpfstream.v1")];
        let appender = client.open(&format!("{BASE}/two.txt?verb=APPEND"), &v1).await;
        let following = async { client.open(&format!("{BASE}/two.txt?verb=FOLLOW"), &[]).await.unwrap() };
        match appender {
            Ok(appender) => append_and_follow(appender, following).await,
            Err(403) => self.follow("two.txt", following).await,
            Err(other) => Got::Status(other),
        }
    }

    /// Follows over a WebSocket what is appended in the process.
    async fn follow<IO>(&self, key: &str, following: impl Future<Output = Raw<IO>>) -> Got
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let mut out = self.server.streams.open_append(key).await.unwrap();
        out.append("one ").await.unwrap();
        let mut follower = following.await;
        assert_eq!(follower.data(4).await, b"one ");
        out.append("two").await.unwrap();
        assert_eq!(follower.data(3).await, b"two", "while it is live");
        out.finish().await.unwrap();
        assert_eq!(follower.to_end().await, (vec![], Some(1000)));
        Got::Follows
    }

    /// Follows by a body: what is stored, what comes, and a clean end.
    pub(crate) async fn live_body(&self) -> Got {
        let streams = &self.server.streams;
        self.over_all(async |http| {
            let key = format!("live-{http:?}.txt");
            let mut out = streams.open_append(&key).await.unwrap();
            out.append("stored ").await.unwrap();
            let mut live = plain::ask(self.server.addr, http, &format!("{BASE}/{key}?verb=FOLLOW"), &[]).await;
            if live.status != 200 {
                return Got::Status(live.status.as_u16());
            }
            assert_eq!(live.bytes(7).await, b"stored ");
            out.append("and ").await.unwrap();
            assert_eq!(live.bytes(4).await, b"and ");
            out.append("new").await.unwrap();
            out.finish().await.unwrap();
            assert_eq!(live.to_end().await, (b"new".to_vec(), true));
            Got::Yes
        })
        .await
    }

    /// Appends by the body of a PUT, which is followed while it runs.
    pub(crate) async fn append_by_body(&self) -> Got {
        let streams = &self.server.streams;
        self.over_all(async |http| {
            let key = format!("put-{http:?}.txt");
            let target = format!("{BASE}/{key}?verb=APPEND");
            let mut upload = Upload::begin(self.server.addr, http, "PUT", &target, &[]).await;
            // A host that refuses it may do so before it takes a byte.
            let _ = upload.body.as_ref().unwrap().send(Ok(http_body::Frame::data("one ".into()))).await;
            let first = async {
                let mut follower = streams.follow(&key).wait(std::time::Duration::from_secs(60)).await.unwrap();
                follower.next_chunk().await.unwrap().unwrap().bytes
            };
            tokio::select! {
                chunk = soon("the first bytes", first) => assert_eq!(chunk, "one "),
                answer = &mut upload.answer => return Got::Status(answer.unwrap().unwrap().status().as_u16()),
            }
            upload.send("two").await;
            let answer = upload.end().await;
            assert_eq!(answer.status, 201, "{answer:?}");
            assert_eq!(stored(streams, &key).await, b"one two");
            Got::Yes
        })
        .await
    }

    /// Reads what is stored and at rest, and a range of it.
    pub(crate) async fn stored_bytes(&self) -> Got {
        let mut out = self.server.streams.open_append("rest.txt").await.unwrap();
        out.append("0123456789").await.unwrap();
        out.finish().await.unwrap();
        self.over_all(async |http| {
            let target = format!("{BASE}/rest.txt");
            let whole = plain::ask(self.server.addr, http, &target, &[]).await.whole().await;
            if whole.status != 200 {
                return Got::Status(whole.status);
            }
            assert_eq!((whole.text().as_str(), whole.header("stream-state")), ("0123456789", Some("finished")));
            let part = plain::ask(self.server.addr, http, &target, &[("range", "bytes=2-4")]).await.whole().await;
            assert_eq!((part.status, part.text().as_str()), (206, "234"));
            Got::Yes
        })
        .await
    }

    /// What isn't ours: the application's routes, a body, a WebSocket of its own, and what nobody has.
    pub(crate) async fn foreign(&self) -> Got {
        let addr = self.server.addr;
        self.over_all(async |http| {
            let mut client = Client::new(addr, http).await;
            let index = plain::Live::of(client.send("GET", "/", &[], plain::empty()).await.unwrap()).whole().await;
            assert_eq!((index.status, index.text().as_str()), (200, "inner"));
            let verb = [("x-verb", "APPEND")];
            let echo = client.send("POST", "/echo", &verb, full("a body of its own")).await.unwrap();
            let echo = plain::Live::of(echo).whole().await;
            assert_eq!((echo.status, echo.text().as_str()), (200, "a body of its own"));
            let nowhere = client.send("GET", "/nowhere", &[], plain::empty()).await.unwrap();
            let nowhere = plain::Live::of(nowhere).whole().await;
            match (nowhere.status, nowhere.text().as_str(), nowhere.header("grpc-status")) {
                (404, "nothing here", None) => Got::Yes,
                (404, "there is no such resource\n", None) => Got::Nowhere("the 404 is ours"),
                (200, "", Some("12")) => Got::Nowhere("the 404 is tonic's `grpc-status: 12`"),
                other => panic!("{other:?}"),
            }
        })
        .await
    }

    /// A unary call and a stream, each ended by trailers; and one that fails.
    pub(crate) async fn grpc(&mut self) -> Got {
        if !self.speaks.contains(&Http::Two) {
            return Got::Unspoken;
        }
        let serving = tonic_health::ServingStatus::Serving;
        self.health.set_service_status("lamp", serving).await;
        let mut client = Client::new(self.server.addr, Http::Two).await;
        let mut check = Call::begin(&mut client, "Check", "lamp").await;
        assert_eq!(check.message().await.unwrap(), b"\x08\x01", "serving");
        assert_eq!(check.message().await.unwrap_err()["grpc-status"], "0");
        let mut watch = Call::begin(&mut client, "Watch", "lamp").await;
        assert_eq!(watch.message().await.unwrap(), b"\x08\x01");
        self.health.set_service_status("lamp", tonic_health::ServingStatus::NotServing).await;
        assert_eq!(watch.message().await.unwrap(), b"\x08\x02", "while the call runs");
        self.health.clear_service_status("lamp").await;
        assert_eq!(watch.message().await.unwrap_err()["grpc-status"], "0");
        // An error without a message has its trailers in the head.
        assert_eq!(Call::begin(&mut client, "Check", "absent").await.head["grpc-status"], "5");
        Got::Yes
    }
}

/// What is stored, read in the process.
pub(crate) async fn stored(streams: &Streams, key: &str) -> Vec<u8> {
    let mut follower = streams.follow(key).await.unwrap();
    let mut data = Vec::new();
    while let Some(chunk) = soon("what is stored", follower.next_chunk()).await.unwrap() {
        data.extend(chunk.bytes);
    }
    data
}

/// Both sides of a resource, one after the other. The appender speaks `httpfstream.v1`, in which the server speaks first.
async fn append_and_follow<IO>(mut appender: Raw<IO>, following: impl Future<Output = Raw<IO>>) -> Got
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    match appender.frame().await {
        Frame::Text(_) => {}
        Frame::Eof => return Got::Dies,
        other => panic!("{other:?}"),
    }
    appender.send_frame(0x82, b"one ").await;
    let mut follower = following.await;
    assert_eq!(follower.data(4).await, b"one ");
    appender.send_frame(0x82, b"two").await;
    assert_eq!(follower.data(3).await, b"two", "while it is live");
    appender.send_close(1000).await;
    assert_eq!(follower.to_end().await, (vec![], Some(1000)));
    assert_eq!(appender.to_end().await.1, Some(1000));
    Got::Yes
}

type Driver = Connection<TokioIo<TcpStream>, Empty<Bytes>, TokioExecutor>;

/// A connection over HTTP/2 for WebSockets, that has seen the server's settings.
pub(crate) struct Two {
    send: SendRequest<Empty<Bytes>>,
    connection: Arc<Mutex<Driver>>,
}

impl Two {
    pub(crate) async fn connect(server: &Server) -> Self {
        let io = TokioIo::new(TcpStream::connect(server.addr).await.unwrap());
        let (mut send, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        let connection = Arc::new(Mutex::new(connection));
        let runs = Arc::clone(&connection);
        tokio::spawn(std::future::poll_fn(move |cx| Pin::new(&mut *runs.lock().unwrap()).poll(cx)));
        // An answer comes behind the settings.
        let request = Request::get(format!("http://{}/", server.addr)).body(Empty::new()).unwrap();
        soon("an answer", send.send_request(request)).await.unwrap();
        Self { send, connection }
    }

    fn offered(&self) -> bool {
        self.connection.lock().unwrap().is_extended_connect_protocol_enabled()
    }

    /// Opens a WebSocket; a status other than 200 is an error.
    pub(crate) async fn open(&mut self, path: &str, headers: &[(&str, &str)]) -> Result<Raw<TokioIo<Upgraded>>, u16> {
        let mut request = Request::connect(format!("http://localhost{path}"))
            .header("sec-websocket-version", "13")
            .header("user-agent", "test")
            .extension(hyper::ext::Protocol::from_static("websocket"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = soon("an answer", self.send.send_request(request.body(Empty::new()).unwrap())).await.unwrap();
        if response.status() != 200 {
            return Err(response.status().as_u16());
        }
        let stream = TokioIo::new(soon("the stream", hyper::upgrade::on(response)).await.unwrap());
        Ok(Raw { stream, buf: Vec::new() })
    }
}

/// A gRPC call of tonic-health's service, seen as what it is on the wire.
struct Call {
    head: HeaderMap,
    body: Incoming,
    buf: Vec<u8>,
}

impl Call {
    async fn begin(client: &mut Client, method: &str, service: &str) -> Self {
        // A `HealthCheckRequest`: its only field is a string.
        let mut message = vec![0x0a, service.len() as u8];
        message.extend(service.bytes());
        let mut frame = vec![0, 0, 0, 0, message.len() as u8];
        frame.extend(message);
        let headers = [("content-type", "application/grpc"), ("te", "trailers")];
        let target = format!("/grpc.health.v1.Health/{method}");
        let (head, body) = client.send("POST", &target, &headers, full(frame)).await.unwrap().into_parts();
        assert_eq!((head.status.as_u16(), &head.headers["content-type"]), (200, &"application/grpc".parse().unwrap()));
        Self { head: head.headers, body, buf: Vec::new() }
    }

    /// The next message, or else the trailers.
    async fn message(&mut self) -> Result<Vec<u8>, HeaderMap> {
        loop {
            if let Some(len) = self.buf.get(1..5) {
                let len = u32::from_be_bytes(len.try_into().unwrap()) as usize;
                if self.buf.len() >= 5 + len {
                    let message: Vec<u8> = self.buf.drain(..5 + len).collect();
                    assert_eq!(message[0], 0, "not compressed");
                    return Ok(message[5..].to_vec());
                }
            }
            let frame = soon("a message or trailers", self.body.frame()).await.expect("trailers").unwrap();
            match frame.into_data() {
                Ok(data) => self.buf.extend(data),
                Err(frame) => return Err(frame.into_trailers().unwrap()),
            }
        }
    }
}
