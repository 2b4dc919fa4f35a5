//! A peer that says what it was made to say, and what it means to one who has all of it at once.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::Input;

/// The most that one input is blown up to, in bytes.
const MOST: usize = 600_000;
/// The mask of all small frames of clients. Large ones have zeros, which take no time.
const MASK: [u8; 4] = [0x11, 0x80, 0xff, 0x07];
/// In the place of an opcode: no frame but bytes as they are, in a large frame, a wait for the other side, a control
/// message of `httpfstream.v1`, the end of the connection.
const RAW: u8 = 0x70;
const LARGE: u8 = 0x71;
const GATE: u8 = 0x72;
const CONTROL: u8 = 0x73;
const END: u8 = 0x74;

/// What a peer says.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pub(super) bytes: Vec<u8>,
    /// Here it waits until it has heard something new.
    pub(super) gates: Vec<usize>,
}

impl Lines {
    /// Takes the lines of one connection out of an input.
    pub(super) fn parse(input: &mut Input<'_>, masked: bool) -> Self {
        let mut lines = Self::default();
        while !input.is_empty() && lines.bytes.len() < MOST {
            match input.byte() {
                RAW => {
                    let len = input.byte();
                    lines.bytes.extend_from_slice(input.take(len.into()));
                }
                LARGE => {
                    let (first, len) = (input.byte(), usize::from(input.byte()) << 10);
                    let seed = input.byte();
                    let mut payload = vec![seed; len];
                    payload.iter_mut().step_by(509).enumerate().for_each(|(i, byte)| *byte = i as u8);
                    lines.frame(first, &payload, masked.then_some([0; 4]));
                }
                // Whoever is silent for longer is given up.
                GATE if lines.gates.len() < 40 => lines.gates.push(lines.bytes.len()),
                GATE => {}
                CONTROL => {
                    let message = control(input);
                    lines.frame(0x81, message.as_bytes(), masked.then_some(MASK));
                }
                END => break,
                first => {
                    let len = input.byte();
                    lines.frame(first, input.take(len.into()), masked.then_some(MASK));
                }
            }
        }
        lines
    }

    fn frame(&mut self, first: u8, payload: &[u8], mask: Option<[u8; 4]>) {
        let bit = if mask.is_some() { 0x80 } else { 0 };
        let out = &mut self.bytes;
        out.push(first);
        match payload.len() {
            len @ ..126 => out.push(bit | len as u8),
            len @ ..65536 => {
                out.push(bit | 126);
                out.extend_from_slice(&(len as u16).to_be_bytes());
            }
            len => {
                out.push(bit | 127);
                out.extend_from_slice(&(len as u64).to_be_bytes());
            }
        }
        out.extend_from_slice(mask.as_ref().map_or(&[], |mask| &mask[..]));
        let start = out.len();
        out.extend_from_slice(payload);
        unmask(&mut out[start..], mask);
    }
}

/// The life that all servers tell.
pub(super) const LIFE: &str = "0123456789abcdef0123456789abcdef";

/// A control message of either side.
fn control(input: &mut Input<'_>) -> String {
    let (kind, number) = (input.byte(), u64::from(input.byte()));
    let number = if number == 255 { i64::MAX as u64 + u64::from(kind & 64) } else { number };
    let state = ["live", "lost", "finished", "interrupted", "sealed", "parked"][usize::from(kind >> 4) % 6];
    match kind % 8 {
        0 => format!(r#"{{"offset":{number},"life":"{LIFE}","resumed":{}}}"#, kind & 16 != 0),
        1 => format!(r#"{{"ack":{number}}}"#),
        2 => format!(r#"{{"ack":{number},"finished":true}}"#),
        3 => format!(r#"{{"offset":{number},"life":"{LIFE}","state":"{state}"}}"#),
        4 => format!(r#"{{"state":"{state}"}}"#),
        5 => format!(r#"{{"state":"{state}","length":{number}}}"#),
        6 => format!(r#"{{"finish":true,"seal":{}}}"#, kind & 16 != 0),
        _ => format!(r#"{{"offset":{number},"life":"{number:032x}","resumed":true,"state":"live"}}"#),
    }
}

/// A connection to such a peer, which ends once all is said.
#[derive(Debug)]
pub(crate) struct Script {
    lines: Lines,
    at: usize,
    /// So many bytes arrive at once.
    step: usize,
    /// Nothing is there at every other look.
    pauses: bool,
    paused: bool,
    /// How much had been heard when it came to a gate, and when it has waited long enough.
    gate: Option<(usize, Pin<Box<Sleep>>)>,
    /// It is a server, and its lines stand behind this answer to a request that it waits for.
    answer: Option<Answer>,
    waker: Option<Waker>,
    pub(super) heard: Arc<Mutex<Vec<u8>>>,
}

/// How a server answers the request.
#[derive(Debug)]
pub(super) enum Answer {
    /// With these bytes.
    Head(Vec<u8>),
    /// With an upgrade, and these header lines.
    Upgrade(&'static str),
}

impl Script {
    pub(super) fn new(lines: Lines, answer: Option<Answer>, step: u8) -> Self {
        let (pauses, step) = (step & 1 == 1, usize::from(step >> 1));
        // Not in a million steps.
        let step = if step == 0 { usize::MAX } else { (step * step).max(lines.bytes.len() / 200) };
        let heard = Arc::default();
        Self { lines, at: 0, step, pauses, paused: false, gate: None, answer, waker: None, heard }
    }

    /// Answers once the request is there.
    fn greet(&mut self) {
        let heard = self.heard.lock().unwrap();
        if !heard.ends_with(b"\r\n\r\n") {
            return;
        }
        let mut bytes = match self.answer.take() {
            None => return,
            Some(Answer::Head(head)) => head,
            Some(Answer::Upgrade(more)) => {
                let request = std::str::from_utf8(&heard).expect("a request is ASCII");
                let key = request.lines().find_map(|line| line.strip_prefix("sec-websocket-key: "));
                let accept = derive_accept_key(key.expect("a key").as_bytes());
                format!(
                    "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n{more}\r\n"
                )
                .into_bytes()
            }
        };
        self.lines.gates.iter_mut().for_each(|gate| *gate += bytes.len());
        bytes.append(&mut self.lines.bytes);
        self.lines.bytes = bytes;
    }
}

impl AsyncRead for Script {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.answer.is_some() {
            self.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if self.pauses {
            self.paused ^= true;
            if self.paused {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        let at = self.at;
        if self.lines.gates.first() == Some(&at) {
            let heard = self.heard.lock().unwrap().len();
            let gate = self.gate.get_or_insert_with(|| (heard, Box::pin(sleep(Duration::from_secs(1)))));
            if gate.0 == heard && gate.1.as_mut().poll(cx).is_pending() {
                self.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            self.gate = None;
            self.lines.gates.remove(0);
        }
        let next = self.lines.gates.first().copied().unwrap_or(usize::MAX).max(at);
        let most = self.step.min(next - at).min(buf.remaining()).min(self.lines.bytes.len() - at);
        buf.put_slice(&self.lines.bytes[at..at + most]);
        self.at += most;
        if most == 0 && self.at < self.lines.bytes.len() {
            // Two gates at one place: not the end.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.heard.lock().unwrap().extend_from_slice(data);
        self.greet();
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Poll::Ready(Ok(()))
    }
}

thread_local! {
    static SERVERS: RefCell<Option<VecDeque<Script>>> = const { RefCell::new(None) };
}

/// Puts servers in the place of the network for this thread: one for each connection that is made.
pub(super) fn set_servers(servers: Option<VecDeque<Script>>) {
    SERVERS.set(servers);
}

/// The next connection, if there are such servers; the last one was all there is.
pub(crate) fn dial() -> Option<io::Result<Script>> {
    let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
    SERVERS.with_borrow_mut(|servers| Some(servers.as_mut()?.pop_front().ok_or_else(refused)))
}

/// What a frame means, in its order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// A frame of a message, or what has arrived of it.
    Part {
        text: bool,
        payload: Vec<u8>,
        end: bool,
    },
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    /// Whether it stands between two messages.
    Close {
        code: Option<u16>,
        between: bool,
    },
    ProtocolError(u16),
    Eof {
        between: bool,
    },
}

/// Decodes all that one side said, by RFC 6455 section 5, up to the first thing that ends it.
pub(super) fn decode(mut bytes: &[u8], masked: bool, max_message: u64) -> Vec<Said> {
    let mut said = Vec::new();
    // The message that is arriving: whether it is text, and its length.
    let mut message: Option<(bool, u64)> = None;
    loop {
        let between = message.is_none();
        let eof = Said::Eof { between: between && bytes.is_empty() };
        let Some(header) = header(bytes) else {
            said.push(eof);
            return said;
        };
        bytes = &bytes[header.size..];
        let breach = match (header.opcode, message) {
            _ if header.reserved != 0 || header.mask.is_some() != masked => Some(1002),
            (3..=7 | 11.., _) | (0, None) | (1 | 2, Some(_)) => Some(1002),
            (8.., _) if !header.fin || header.len > 125 => Some(1002),
            (..=2, _) if header.len.saturating_add(message.map_or(0, |m| m.1)) > max_message => Some(1009),
            _ => None,
        };
        if let Some(code) = breach {
            said.push(Said::ProtocolError(code));
            return said;
        }
        let arrived = usize::try_from(header.len).unwrap_or(usize::MAX).min(bytes.len());
        let mut payload = bytes[..arrived].to_vec();
        bytes = &bytes[arrived..];
        let whole = arrived as u64 == header.len;
        unmask(&mut payload, header.mask);
        match header.opcode {
            0..=2 => {
                let (text, len) = message.unwrap_or((header.opcode == 1, 0));
                let end = header.fin && whole;
                said.push(Said::Part { text, payload, end });
                message = if end { None } else { Some((text, len + header.len)) };
                if !whole {
                    said.push(Said::Eof { between: false });
                    return said;
                }
            }
            _ if !whole => {
                said.push(Said::Eof { between: false });
                return said;
            }
            9 => said.push(Said::Ping(payload)),
            10 => said.push(Said::Pong(payload)),
            _ => {
                let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                said.push(match code {
                    None if payload.is_empty() => Said::Close { code, between },
                    Some(1000..=1003 | 1007..=1014 | 3000..=4999) => match std::str::from_utf8(&payload[2..]) {
                        Ok(_) => Said::Close { code, between },
                        Err(_) => Said::ProtocolError(1007),
                    },
                    _ => Said::ProtocolError(1002),
                });
                return said;
            }
        }
    }
}

fn unmask(payload: &mut [u8], mask: Option<[u8; 4]>) {
    if let Some(mask) = mask.filter(|mask| *mask != [0; 4]) {
        payload.iter_mut().enumerate().for_each(|(i, byte)| *byte ^= mask[i % 4]);
    }
}

struct Header {
    size: usize,
    fin: bool,
    reserved: u8,
    opcode: u8,
    mask: Option<[u8; 4]>,
    len: u64,
}

fn header(bytes: &[u8]) -> Option<Header> {
    let (&[first, second], rest) = bytes.split_first_chunk()?;
    let (len, rest) = match second & 0x7f {
        126 => rest.split_first_chunk().map(|(len, rest)| (u64::from(u16::from_be_bytes(*len)), rest))?,
        127 => rest.split_first_chunk().map(|(len, rest)| (u64::from_be_bytes(*len), rest))?,
        len => (u64::from(len), rest),
    };
    let (mask, rest) = match second & 0x80 {
        0 => (None, rest),
        _ => rest.split_first_chunk().map(|(mask, rest)| (Some(*mask), rest))?,
    };
    let size = bytes.len() - rest.len();
    Some(Header { size, fin: first & 0x80 != 0, reserved: first & 0x70, opcode: first & 0xf, mask, len })
}
