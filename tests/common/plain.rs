//! Plain HTTP piece by piece: bodies that are read and written while the other side still works, over HTTP/1.1 and
//! HTTP/2.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use httpfstream::BoxError;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Answer, Raw, soon};

pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>;

/// Both versions, for what must hold on both.
pub const BOTH: [Http; 2] = [Http::One, Http::Two];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Http {
    One,
    Two,
}

/// A connection for requests: over HTTP/1.1 one after the other, over HTTP/2 at once.
pub enum Client {
    One(hyper::client::conn::http1::SendRequest<Body>, SocketAddr),
    Two(hyper::client::conn::http2::SendRequest<Body>, SocketAddr),
}

impl Client {
    pub async fn new(addr: SocketAddr, http: Http) -> Self {
        let io = TcpStream::connect(addr).await.unwrap();
        io.set_nodelay(true).unwrap();
        let io = TokioIo::new(io);
        match http {
            Http::One => {
                let (send, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
                tokio::spawn(connection);
                Self::One(send, addr)
            }
            Http::Two => {
                let (send, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
                tokio::spawn(connection);
                Self::Two(send, addr)
            }
        }
    }

    /// A request with a body.
    pub async fn send(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> hyper::Result<Response<Incoming>> {
        let mut request = Request::builder().method(method);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        match self {
            Self::One(send, addr) => {
                let request = request.uri(target).header("host", addr.to_string()).body(body).unwrap();
                soon("an answer", send.send_request(request)).await
            }
            Self::Two(send, addr) => {
                let request = request.uri(format!("http://{addr}{target}")).body(body).unwrap();
                soon("an answer", send.send_request(request)).await
            }
        }
    }
}

/// A request without a body over a connection of its own; the body is still to be read.
pub async fn ask(addr: SocketAddr, http: Http, target: &str, headers: &[(&str, &str)]) -> Live {
    let response = Client::new(addr, http).await.send("GET", target, headers, empty()).await.unwrap();
    Live::of(response)
}

/// A request with a body that the test writes, under way.
pub struct Upload {
    /// Dropped, the body ends cleanly.
    pub body: Option<mpsc::Sender<Result<Frame<Bytes>, BoxError>>>,
    pub answer: tokio::task::JoinHandle<hyper::Result<Response<Incoming>>>,
}

impl Upload {
    pub async fn begin(
        addr: SocketAddr,
        http: Http,
        method: &'static str,
        target: &str,
        headers: &[(&'static str, &str)],
    ) -> Self {
        let mut client = Client::new(addr, http).await;
        let (send, body) = mpsc::channel(1);
        let body = StreamBody::new(ReceiverStream::new(body)).boxed_unsync();
        let (target, headers) = (target.to_owned(), owned(headers));
        let answer = tokio::spawn(async move {
            let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, &**value)).collect();
            client.send(method, &target, &headers, body).await
        });
        Self { body: Some(send), answer }
    }

    pub async fn send(&self, data: impl Into<Bytes>) {
        let frame = Frame::data(data.into());
        let sending = self.body.as_ref().unwrap().send(Ok(frame));
        soon("the connection to take bytes", sending).await.unwrap();
    }

    /// Ends the body, and gets the answer.
    pub async fn end(mut self) -> Answer {
        self.body = None;
        self.answer().await
    }

    /// The answer, however the body stands.
    pub async fn answer(self) -> Answer {
        let Self { body, answer } = self;
        let answer = Live::of(soon("an answer", answer).await.unwrap().unwrap()).whole().await;
        drop(body);
        answer
    }

    /// Cuts the body: over HTTP/1.1 the connection ends, over HTTP/2 the stream is reset.
    pub async fn cut(mut self) {
        let body = self.body.take().unwrap();
        body.send(Err("cut".into())).await.unwrap();
        let _ = soon("the end of the request", self.answer).await;
    }
}

fn owned(headers: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
    headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
}

pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

pub fn full(data: impl Into<Bytes>) -> Body {
    Full::new(data.into()).map_err(|never| match never {}).boxed_unsync()
}

/// An answer whose body is read bit by bit.
pub struct Live {
    pub status: StatusCode,
    pub headers: HeaderMap,
    body: Incoming,
    rest: Vec<u8>,
}

impl Live {
    pub fn of(response: Response<Incoming>) -> Self {
        let (head, body) = response.into_parts();
        Self { status: head.status, headers: head.headers, body, rest: Vec::new() }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Exactly the next `len` bytes.
    pub async fn bytes(&mut self, len: usize) -> Vec<u8> {
        while self.rest.len() < len {
            match soon("bytes of a body", self.body.frame()).await {
                Some(Ok(frame)) => self.rest.extend(frame.into_data().unwrap()),
                other => panic!("{other:?} after {} of {len} bytes", self.rest.len()),
            }
        }
        let rest = self.rest.split_off(len);
        std::mem::replace(&mut self.rest, rest)
    }

    /// The rest, and whether it ended cleanly.
    pub async fn to_end(mut self) -> (Vec<u8>, bool) {
        loop {
            match soon("the end of a body", self.body.frame()).await {
                Some(Ok(frame)) => self.rest.extend(frame.into_data().unwrap_or_default()),
                Some(Err(_)) => return (self.rest, false),
                None => return (self.rest, true),
            }
        }
    }

    /// All of it, which has to end cleanly.
    pub async fn whole(self) -> Answer {
        let status = self.status.as_u16();
        let value = |value: &http::HeaderValue| value.to_str().unwrap().to_owned();
        let headers = self.headers.iter().map(|(name, v)| (name.to_string(), value(v))).collect();
        let (body, clean) = self.to_end().await;
        assert!(clean, "{status}: the body was cut after {} bytes", body.len());
        Answer { status, headers, body }
    }
}

/// A piece of a chunked body.
pub fn chunk(data: impl AsRef<[u8]>) -> Vec<u8> {
    let data = data.as_ref();
    [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
}

/// The end of a chunked body.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

impl<IO: AsyncRead + AsyncWrite + Unpin> Raw<IO> {
    /// The data of the next chunk of an answer; `None` is its clean end, and `Err` an end without one.
    pub async fn chunk(&mut self) -> Result<Option<Vec<u8>>, ()> {
        loop {
            if let Some(at) = self.buf.windows(2).position(|w| w == b"\r\n") {
                let len = usize::from_str_radix(std::str::from_utf8(&self.buf[..at]).unwrap(), 16).unwrap();
                if self.buf.len() >= at + 2 + len + 2 {
                    let chunk: Vec<u8> = self.buf.drain(..at + 2 + len + 2).collect();
                    assert_eq!(&chunk[at + 2 + len..], b"\r\n");
                    return Ok((len > 0).then(|| chunk[at + 2..at + 2 + len].to_vec()));
                }
            }
            // Long enough for tests that move the clock, which need no other limit.
            let reading = self.stream.read_buf(&mut self.buf);
            match super::within(std::time::Duration::from_secs(100 * 3600), "a chunk", reading).await {
                Ok(n) if n > 0 => {}
                _ => return Err(()),
            }
        }
    }

    /// The body of an answer with a length.
    pub async fn sized(&mut self, mut answer: Answer) -> Answer {
        let len = answer.header("content-length").map_or(0, |len| len.parse().unwrap());
        while self.buf.len() < len {
            assert!(soon("the body", self.stream.read_buf(&mut self.buf)).await.unwrap() > 0, "cut body");
        }
        answer.body = self.buf.drain(..len).collect();
        answer
    }
}

/// The last part of a problem's type.
pub fn problem(answer: &Answer) -> String {
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{answer:?}");
    let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(problem["status"], answer.status);
    problem["type"].as_str().unwrap().strip_prefix("urn:httpfstream:problem:").unwrap().to_owned()
}

/// An upload over HTTP/2 frame by frame, for what no client does.
pub struct Frames(pub Raw);

impl Frames {
    /// POSTs to a target; the body is still to come.
    pub async fn post(addr: SocketAddr, target: &str, headers: &[(&str, &str)]) -> Self {
        let mut this = Self(Raw::connect(addr).await);
        this.0.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        this.send(4, 0, 0, &[]).await;
        this.send(4, 1, 0, &[]).await;
        let own = [(":method", "POST"), (":scheme", "http"), (":path", target), (":authority", "test.example")];
        let mut block = Vec::new();
        for (name, value) in own.iter().chain(headers) {
            // A literal without an index, RFC 7541 section 6.2.2.
            block.extend([0, name.len() as u8]);
            block.extend(name.bytes());
            block.push(value.len() as u8);
            block.extend(value.bytes());
        }
        this.send(1, 4, 1, &block).await;
        this
    }

    pub async fn data(&mut self, data: &[u8], end: bool) {
        self.send(0, end.into(), 1, data).await;
    }

    /// Ends the body with trailers.
    pub async fn trailers(&mut self) {
        self.send(1, 5, 1, b"\0\x01x\x01y").await;
    }

    pub async fn reset(&mut self, code: u32) {
        self.send(3, 0, 1, &code.to_be_bytes()).await;
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.0.send(&frame).await;
    }
}
