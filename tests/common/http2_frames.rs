//! HTTP/2 frame by frame (RFC 9113): a client that grants its windows as a test wants.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::soon;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const WINDOW_UPDATE: u8 = 8;

/// A connection with the default windows of 65,535 bytes, of which it grants nothing by itself.
pub struct Frames {
    io: TcpStream,
    next: u32,
    /// What has come on each stream.
    pub got: BTreeMap<u32, Vec<u8>>,
}

impl Frames {
    /// Speaks up to the point where extended CONNECT may be used.
    pub async fn connect(addr: SocketAddr) -> Self {
        let io = TcpStream::connect(addr).await.unwrap();
        io.set_nodelay(true).unwrap();
        let mut this = Self { io, next: 1, got: BTreeMap::new() };
        this.io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        this.send(SETTINGS, 0, 0, &[]).await;
        let (kind, ..) = this.next().await;
        assert_eq!(kind, SETTINGS);
        this
    }

    pub async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.io.write_all(&frame).await.unwrap();
    }

    /// The next frame: its kind, flags, stream and payload. Settings are acknowledged, data is kept.
    pub async fn next(&mut self) -> (u8, u8, u32, Vec<u8>) {
        let mut head = [0; 9];
        soon("a frame", self.io.read_exact(&mut head)).await.unwrap();
        let [a, b, c, kind, flags, s @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        soon("a frame's payload", self.io.read_exact(&mut payload)).await.unwrap();
        let stream = u32::from_be_bytes(s);
        match kind {
            SETTINGS if flags & 1 == 0 => self.send(SETTINGS, 1, 0, &[]).await,
            DATA => self.got.entry(stream).or_default().extend(&payload),
            _ => {}
        }
        (kind, flags, stream, payload)
    }

    /// Asks for a WebSocket; the stream's number.
    pub async fn websocket(&mut self, path: &str) -> u32 {
        let mut block = Vec::new();
        for (name, value) in [
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "http"),
            (":authority", "localhost"),
            (":path", path),
            ("sec-websocket-version", "13"),
            ("sec-websocket-protocol", "httpfstream.v1"),
        ] {
            // A literal that is not indexed (RFC 7541 section 6.2.2), neither name nor value with Huffman's code.
            block.push(0);
            for text in [name, value] {
                block.push(u8::try_from(text.len()).unwrap());
                block.extend(text.as_bytes());
            }
        }
        let stream = self.next;
        self.next += 2;
        // END_HEADERS
        self.send(HEADERS, 4, stream, &block).await;
        stream
    }

    /// Lets the server send so many more bytes on a stream, or with 0 on all of them together.
    pub async fn grant(&mut self, stream: u32, bytes: usize) {
        self.send(WINDOW_UPDATE, 0, stream, &(bytes as u32).to_be_bytes()).await;
    }
}

/// The binary data in the frames of a WebSocket, as far as they are whole.
pub fn binary(mut frames: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    while let [first, len, rest @ ..] = frames {
        let (len, rest) = match (len, rest) {
            (126, [a, b, rest @ ..]) => (usize::from(u16::from_be_bytes([*a, *b])), rest),
            (127, [a, b, c, d, e, f, g, h, rest @ ..]) => {
                (u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]) as usize, rest)
            }
            (126 | 127, _) => break,
            (len, rest) => (usize::from(*len), rest),
        };
        if *first == 0x82 {
            data.extend(&rest[..len.min(rest.len())]);
        }
        frames = rest.get(len..).unwrap_or_default();
    }
    data
}
