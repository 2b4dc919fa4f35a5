//! WebSocket peers on raw sockets: as little of their own as possible.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

/// Sends a handshake and reads the answer's head; with what came behind it.
async fn open(addr: SocketAddr, target: &str) -> (TcpStream, Vec<u8>) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let head = format!(
        "GET {target} HTTP/1.1\r\nHost: {addr}\r\nUser-Agent: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut buf = Vec::new();
    loop {
        if let Some(end) = buf.windows(4).position(|w| w == b"\r\n\r\n") {
            assert!(buf.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&buf));
            return (stream, buf.split_off(end + 4));
        }
        assert!(stream.read_buf(&mut buf).await.unwrap() > 0, "an answer");
    }
}

/// A client's frame. Its mask is zero, which is legal and spares us the work.
pub fn put_frame(out: &mut Vec<u8>, first: u8, payload: &[u8]) {
    out.push(first);
    match payload.len() {
        len @ 0..=125 => out.push(0x80 | len as u8),
        len @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend((len as u16).to_be_bytes());
        }
        len => {
            out.push(0x80 | 127);
            out.extend((len as u64).to_be_bytes());
        }
    }
    out.extend([0; 4]);
    out.extend_from_slice(payload);
}

pub struct Appender(TcpStream);

impl Appender {
    pub async fn open(addr: SocketAddr, path: &str) -> Self {
        Self(open(addr, &format!("{path}?verb=APPEND")).await.0)
    }

    pub async fn send(&mut self, message: &[u8]) {
        let mut frame = Vec::new();
        put_frame(&mut frame, 0x81, message);
        self.0.write_all(&frame).await.unwrap();
    }

    /// Sends everything in messages of one size, so many a second, and finishes.
    pub async fn send_all(&mut self, data: &[u8], size: usize, rate: Option<u32>) {
        self.send_some(data, size, rate).await;
        self.finish().await;
    }

    /// As [`send_all`](Self::send_all), without the end.
    pub async fn send_some(&mut self, data: &[u8], size: usize, rate: Option<u32>) {
        let start = Instant::now();
        let mut out = Vec::new();
        for (i, message) in (0..).zip(data.chunks(size)) {
            put_frame(&mut out, 0x81, message);
            if let Some(rate) = rate {
                // Whoever is late catches up: the rate holds on the whole.
                sleep_until(start + Duration::from_secs(1) * i / rate).await;
            } else if out.len() < 64 * 1024 {
                continue;
            }
            self.0.write_all(&out).await.unwrap();
            out.clear();
        }
        self.0.write_all(&out).await.unwrap();
    }

    pub async fn finish(&mut self) {
        let mut out = Vec::new();
        put_frame(&mut out, 0x88, &1000u16.to_be_bytes());
        self.0.write_all(&out).await.unwrap();
        let mut end = Vec::new();
        self.0.read_to_end(&mut end).await.unwrap();
        assert!(end.ends_with(&[0x88, 2, 0x03, 0xe8]), "the finish is confirmed");
    }
}

pub struct Follower {
    stream: TcpStream,
    buf: Vec<u8>,
    /// How much of the data has come, and was right.
    at: usize,
    /// Of the frame that is arriving.
    left: usize,
}

impl Follower {
    pub async fn open(addr: SocketAddr, path: &str) -> Self {
        let (stream, buf) = open(addr, &format!("{path}?verb=FOLLOW")).await;
        Self { stream, buf, at: 0, left: 0 }
    }

    /// Reads up to this offset.
    pub async fn reach(&mut self, data: &[u8], offset: usize) {
        while self.at < offset {
            assert!(!self.take(data), "the end comes too early");
            if self.at < offset {
                self.read().await;
            }
        }
        if self.buf.is_empty() {
            self.buf = Vec::new();
        }
    }

    /// Reads to the end, which has to be a clean one behind the last byte.
    pub async fn whole(mut self, data: Arc<[u8]>) {
        while !self.take(&data) {
            self.read().await;
        }
        assert_eq!(self.at, data.len(), "bytes are missing");
    }

    /// Takes what comes next: how far the data has come, and whether that was the end.
    pub async fn step(&mut self, data: &[u8]) -> (usize, bool) {
        self.read().await;
        let ended = self.take(data);
        (self.at, ended)
    }

    async fn read(&mut self) {
        self.buf.reserve(64 * 1024);
        assert!(self.stream.read_buf(&mut self.buf).await.unwrap() > 0, "an end without a close, at {}", self.at);
    }

    /// Takes what has arrived; whether it was the end.
    fn take(&mut self, data: &[u8]) -> bool {
        let mut from = 0;
        loop {
            let now = self.left.min(self.buf.len() - from);
            let expected = &data.get(self.at..self.at + now).expect("no more than was sent");
            assert!(self.buf[from..from + now] == **expected, "other bytes than were sent, behind {}", self.at);
            self.at += now;
            self.left -= now;
            from += now;
            if self.left == 0 {
                match self.buf[from..] {
                    [0x88, 2, 0x03, 0xe8, ..] => return true,
                    [0x89, 0, ..] => {
                        from += 2;
                        continue;
                    }
                    [0x81 | 0x82, len @ 0..=125, ..] => (self.left, from) = (len.into(), from + 2),
                    [0x81 | 0x82, 126, a, b, ..] => (self.left, from) = (u16::from_be_bytes([a, b]).into(), from + 4),
                    [0x81 | 0x82, 127, 0, 0, 0, 0, a, b, c, d, ..] => {
                        (self.left, from) = (u32::from_be_bytes([a, b, c, d]) as usize, from + 10);
                    }
                    [0x81 | 0x82 | 0x88 | 0x89] | [0x81 | 0x82, 126 | 127, ..] | [0x88, 2, ..] | [] => {}
                    ref other => panic!("not a frame: {:?}", &other[..other.len().min(16)]),
                }
            }
            if self.left == 0 || from == self.buf.len() {
                self.buf.drain(..from);
                return false;
            }
        }
    }
}
