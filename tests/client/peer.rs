//! A server that says exactly what a test wants it to say.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use httpfstream::client::{Client, ClientBuilder};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// The life that scripted servers tell.
pub(crate) const LIFE: &str = "0123456789abcdef0123456789abcdef";

pub(crate) const TEXT: u8 = 1;
pub(crate) const BINARY: u8 = 2;
pub(crate) const CLOSE: u8 = 8;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;

/// A server's frame: final unless `first` lacks the bit.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        len @ 0..126 => out.push(len as u8),
        len @ 126..65536 => {
            out.push(126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
    out
}

pub(crate) fn close(code: u16, reason: &str) -> Vec<u8> {
    frame(0x80 | CLOSE, &[&code.to_be_bytes(), reason.as_bytes()].concat())
}

/// Bounds an await, so that a hang is a failure.
pub(crate) async fn within<F: IntoFuture>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("hangs")
}

/// One accepted connection whose request was read.
#[derive(Debug)]
pub(crate) struct Peer<IO = TcpStream> {
    pub(crate) io: IO,
    /// The request's head, in lower case, as hyper writes header names anyway.
    pub(crate) head: String,
    key: String,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Peer<IO> {
    pub(crate) async fn new(mut io: IO) -> Self {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(within(io.read_u8()).await.expect("a whole request"));
        }
        let head = String::from_utf8(head).expect("ASCII");
        let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).unwrap_or_default().to_owned();
        Self { io, head, key }
    }

    /// The value of one header of the request.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    pub(crate) async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        within(self.io.write_all(bytes.as_ref())).await?;
        within(self.io.flush()).await
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).await.expect("to write");
    }

    /// Answers 101 as the original's server does; `extra` is whole header lines.
    pub(crate) async fn upgrade(&mut self, extra: &str) {
        self.try_upgrade(extra).await.expect("to write");
    }

    pub(crate) async fn try_upgrade(&mut self, extra: &str) -> std::io::Result<()> {
        let accept = derive_accept_key(self.key.as_bytes());
        self.try_send(format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n{extra}\r\n"
        ))
        .await
    }

    /// Answers 101 as a server that speaks httpfstream.v1.
    pub(crate) async fn upgrade_v1(&mut self) {
        self.upgrade("Sec-WebSocket-Protocol: httpfstream.v1\r\nStream-State: live\r\n").await;
    }

    /// As [`upgrade_v1`](Self::upgrade_v1), with the first message to an appender.
    pub(crate) async fn attach(&mut self, offset: usize, resumed: bool) {
        self.upgrade_v1().await;
        self.say(&format!(r#"{{"offset":{offset},"life":"{LIFE}","resumed":{resumed}}}"#)).await;
    }

    /// As [`upgrade_v1`](Self::upgrade_v1), with the first message to a follower.
    pub(crate) async fn begin(&mut self, offset: usize, state: &str) {
        self.upgrade_v1().await;
        self.say(&format!(r#"{{"offset":{offset},"life":"{LIFE}","state":"{state}"}}"#)).await;
    }

    /// Sends a control message.
    pub(crate) async fn say(&mut self, message: &str) {
        self.send(frame(0x80 | TEXT, message.as_bytes())).await;
    }

    /// Answers with a status and a problem.
    pub(crate) async fn refuse_with(&mut self, status: &str, problem: &str) {
        let body = format!(r#"{{"type":"urn:httpfstream:problem:{problem}"}}"#);
        let head = format!("Content-Type: application/problem+json\r\nContent-Length: {}", body.len());
        self.send(format!("HTTP/1.1 {status}\r\n{head}\r\n\r\n{body}")).await;
    }

    /// An option of the request.
    pub(crate) fn option(&self, name: &str) -> Option<&str> {
        let target = self.head.split(' ').nth(1)?;
        let mut options = target.split_once('?')?.1.split('&').filter_map(|option| option.split_once('='));
        options.find(|option| option.0 == name).map(|option| option.1)
    }

    /// The next so many bytes of data.
    pub(crate) async fn data(&mut self, len: usize) -> Vec<u8> {
        let mut data = Vec::new();
        while data.len() < len {
            let (opcode, payload) = self.frame().await;
            assert_eq!(opcode, BINARY, "{}", String::from_utf8_lossy(&payload));
            data.extend(payload);
        }
        data
    }

    /// A finish, confirmed at this length, and the end of the connection.
    pub(crate) async fn finish(&mut self, length: usize) {
        assert_eq!(self.frame().await, (TEXT, br#"{"finish":true}"#.to_vec()));
        self.confirm(length).await;
    }

    pub(crate) async fn confirm(&mut self, length: usize) {
        self.say(&format!(r#"{{"ack":{length},"finished":true}}"#)).await;
        self.send(close(1000, "")).await;
        self.drain().await;
    }

    /// The next frame: its opcode and payload.
    pub(crate) async fn frame(&mut self) -> (u8, Vec<u8>) {
        self.try_frame().await.expect("a frame")
    }

    /// The next frame; an error at the end.
    pub(crate) async fn try_frame(&mut self) -> std::io::Result<(u8, Vec<u8>)> {
        let io = &mut self.io;
        within(async {
            let (first, second) = (io.read_u8().await?, io.read_u8().await?);
            assert_eq!((first & 0xf0, second & 0x80), (0x80, 0x80), "whole and masked");
            let len = match second & 0x7f {
                126 => u64::from(io.read_u16().await?),
                127 => io.read_u64().await?,
                len => u64::from(len),
            };
            let mask = io.read_u32().await?.to_be_bytes();
            let mut payload = vec![0; len as usize];
            io.read_exact(&mut payload).await?;
            payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
            Ok((first & 0x0f, payload))
        })
        .await
    }

    /// All data up to the close frame, whose code comes with it. Asserts the opcode of data.
    pub(crate) async fn data_until_close(&mut self, opcode: u8) -> (Vec<u8>, u16) {
        let mut data = Vec::new();
        loop {
            match self.frame().await {
                (CLOSE, payload) => return (data, u16::from_be_bytes([payload[0], payload[1]])),
                (PONG, _) => {}
                (got, payload) => {
                    assert_eq!(got, opcode);
                    assert!(payload.len() <= 64 * 1024, "frame of {} bytes", payload.len());
                    data.extend_from_slice(&payload);
                }
            }
        }
    }

    /// Waits for the peer's end, whatever it still sends.
    pub(crate) async fn drain(&mut self) {
        let mut sink = vec![0; 4096];
        while matches!(within(self.io.read(&mut sink)).await, Ok(1..)) {}
    }
}

/// A server that is connected to several times.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) listener: TcpListener,
    pub(crate) url: String,
}

impl Server {
    pub(crate) async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/some/log.txt", listener.local_addr().expect("an address"));
        Self { listener, url }
    }

    /// The next connection, with its request read.
    pub(crate) async fn accept(&self) -> Peer {
        let (io, _) = within(self.listener.accept()).await.expect("a connection");
        io.set_nodelay(true).expect("nodelay");
        Peer::new(io).await
    }

    /// Whoever connected would be waiting in the backlog by now.
    pub(crate) async fn is_left_alone(&self) -> bool {
        tokio::time::timeout(Duration::ZERO, self.listener.accept()).await.is_err()
    }
}

/// A client that comes back at once.
pub(crate) fn quick() -> ClientBuilder {
    Client::builder().retry_delays(Duration::from_millis(1), Duration::from_millis(2))
}

/// Breaks after so many bytes each way.
#[derive(Debug)]
pub(crate) struct Cut<IO> {
    pub(crate) io: IO,
    pub(crate) reads: usize,
    pub(crate) writes: usize,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Cut<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if self.reads == 0 {
            return Poll::Ready(Err(std::io::ErrorKind::ConnectionAborted.into()));
        }
        let mut some = buf.take(self.reads);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut some))?;
        let read = some.filled().len();
        // The bytes are there: they were read into this very buffer.
        let bytes = some.filled().to_vec();
        buf.put_slice(&bytes);
        self.reads -= read;
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Cut<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<std::io::Result<usize>> {
        if self.writes == 0 {
            return Poll::Ready(Err(std::io::ErrorKind::ConnectionAborted.into()));
        }
        let most = data.len().min(self.writes);
        let wrote = ready!(Pin::new(&mut self.io).poll_write(cx, &data[..most]))?;
        self.writes -= wrote;
        Poll::Ready(Ok(wrote))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<IO> Peer<IO> {
    /// Breaks after so many more bytes each way.
    pub(crate) fn cut_after(self, reads: usize, writes: usize) -> Peer<Cut<IO>> {
        Peer { io: Cut { io: self.io, reads, writes }, head: self.head, key: self.key }
    }
}

/// Listens on a free port and plays `script` to the first connection. Returns the URL of `path`.
pub(crate) async fn serve<F, Fut, T>(script: F) -> (String, JoinHandle<T>)
where
    F: FnOnce(Peer) -> Fut + Send + 'static,
    Fut: Future<Output = T> + Send,
    T: Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/some/log.txt", listener.local_addr().expect("an address"));
    let task = tokio::spawn(async move {
        let (io, _) = within(listener.accept()).await.expect("a connection");
        io.set_nodelay(true).expect("nodelay");
        let peer = Peer::new(io).await;
        script(peer).await
    });
    (url, task)
}

/// As [`serve`], for answers that are bytes: sends them and waits for the client to go.
pub(crate) async fn answer(bytes: impl Into<Vec<u8>>) -> String {
    let bytes = bytes.into();
    let (url, _) = serve(async move |mut peer| {
        peer.send(bytes).await;
        within(peer.io.shutdown()).await.expect("shutdown");
        peer.drain().await;
    })
    .await;
    url
}
