//! A scripted peer, and a simple decoder of everything it sends.

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

/// The approximate maximum length of a script, in bytes.
const MAX_LEN: usize = 600_000;
/// The mask of clients' small frames. Large ones are masked with zeros, which takes no time.
const MASK: [u8; 4] = [0x11, 0x80, 0xff, 0x07];
/// Instructions in the place of an opcode: raw bytes instead of a frame, a large frame, a wait for the other side, a
/// control message of `httpfstream.v1`, the end of the connection.
const RAW: u8 = 0x70;
const LARGE: u8 = 0x71;
const GATE: u8 = 0x72;
const CONTROL: u8 = 0x73;
const END: u8 = 0x74;

/// What a peer sends.
#[derive(Debug, Default)]
pub(super) struct Script {
    pub(super) bytes: Vec<u8>,
    /// Positions at which the peer waits until it receives something new, or for a second.
    pub(super) gates: Vec<usize>,
}

impl Script {
    /// Parses the script of one connection.
    pub(super) fn parse(input: &mut Input<'_>, masked: bool) -> Self {
        let mut script = Self::default();
        while !input.is_empty() && script.bytes.len() < MAX_LEN {
            match input.byte() {
                RAW => {
                    let len = input.byte();
                    script.bytes.extend_from_slice(input.take(len.into()));
                }
                LARGE => {
                    let (first, len) = (input.byte(), usize::from(input.byte()) << 10);
                    let seed = input.byte();
                    let mut payload = vec![seed; len];
                    payload.iter_mut().step_by(509).enumerate().for_each(|(i, byte)| *byte = i as u8);
                    script.frame(first, &payload, masked.then_some([0; 4]));
                }
                // Each gate may last for a second, and a peer that is silent for too long is given up.
                GATE if script.gates.len() < 40 => script.gates.push(script.bytes.len()),
                GATE => {}
                CONTROL => {
                    let message = control(input);
                    script.frame(0x81, message.as_bytes(), masked.then_some(MASK));
                }
                END => break,
                first => {
                    let len = input.byte();
                    script.frame(first, input.take(len.into()), masked.then_some(MASK));
                }
            }
        }
        script
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

/// The life in the messages of all servers.
pub(super) const LIFE: &str = "0123456789abcdef0123456789abcdef";

/// A control message of a server or a client.
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

/// A connection to a peer that follows a script and then closes.
#[derive(Debug)]
pub(crate) struct ScriptedPeer {
    script: Script,
    at: usize,
    /// The most bytes that a read returns.
    step: usize,
    /// Whether every other read is pending.
    pauses: bool,
    paused: bool,
    /// While it waits at a gate: the number of bytes received before, and the end of the wait.
    gate: Option<(usize, Pin<Box<Sleep>>)>,
    /// For a server: how it answers the request that it waits for, before the script.
    response: Option<Response>,
    waker: Option<Waker>,
    pub(super) received: Arc<Mutex<Vec<u8>>>,
}

/// How a server answers the request.
#[derive(Debug)]
pub(super) enum Response {
    /// With these bytes.
    Raw(Vec<u8>),
    /// With an upgrade, and these additional header lines.
    Upgrade(&'static str),
}

impl ScriptedPeer {
    pub(super) fn new(script: Script, response: Option<Response>, step: u8) -> Self {
        let (pauses, step) = (step & 1 == 1, usize::from(step >> 1));
        // At most about 200 reads.
        let step = if step == 0 { usize::MAX } else { (step * step).max(script.bytes.len() / 200) };
        let received = Arc::default();
        Self { script, at: 0, step, pauses, paused: false, gate: None, response, waker: None, received }
    }

    /// Answers once the request is complete.
    fn respond(&mut self) {
        let received = self.received.lock().unwrap();
        if !received.ends_with(b"\r\n\r\n") {
            return;
        }
        let mut bytes = match self.response.take() {
            None => return,
            Some(Response::Raw(head)) => head,
            Some(Response::Upgrade(more)) => {
                let request = std::str::from_utf8(&received).expect("a request is ASCII");
                let key = request.lines().find_map(|line| line.strip_prefix("sec-websocket-key: "));
                let accept = derive_accept_key(key.expect("a key").as_bytes());
                format!(
                    "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n{more}\r\n"
                )
                .into_bytes()
            }
        };
        self.script.gates.iter_mut().for_each(|gate| *gate += bytes.len());
        bytes.append(&mut self.script.bytes);
        self.script.bytes = bytes;
    }
}

impl AsyncRead for ScriptedPeer {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.response.is_some() {
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
        if self.script.gates.first() == Some(&at) {
            let received = self.received.lock().unwrap().len();
            let gate = self.gate.get_or_insert_with(|| (received, Box::pin(sleep(Duration::from_secs(1)))));
            if gate.0 == received && gate.1.as_mut().poll(cx).is_pending() {
                self.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            self.gate = None;
            self.script.gates.remove(0);
        }
        let next = self.script.gates.first().copied().unwrap_or(usize::MAX).max(at);
        let most = self.step.min(next - at).min(buf.remaining()).min(self.script.bytes.len() - at);
        buf.put_slice(&self.script.bytes[at..at + most]);
        self.at += most;
        if most == 0 && self.at < self.script.bytes.len() {
            // Two gates at one position: this is not the end.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ScriptedPeer {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.received.lock().unwrap().extend_from_slice(data);
        self.respond();
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
    static SERVERS: RefCell<Option<VecDeque<ScriptedPeer>>> = const { RefCell::new(None) };
}

/// Replaces the network of this thread by these servers, one for each connection.
pub(super) fn set_servers(servers: Option<VecDeque<ScriptedPeer>>) {
    SERVERS.set(servers);
}

/// A connection to the next of these servers, refused after the last one. `None` if the network isn't replaced.
pub(crate) fn dial() -> Option<io::Result<ScriptedPeer>> {
    let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
    SERVERS.with_borrow_mut(|servers| Some(servers.as_mut()?.pop_front().ok_or_else(refused)))
}

/// An event in what a peer sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PeerEvent {
    /// The payload of a data frame, or the part of it that has arrived.
    Part {
        text: bool,
        payload: Vec<u8>,
        end: bool,
    },
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close {
        code: Option<u16>,
        /// Whether it comes between two messages.
        between: bool,
    },
    ProtocolError(u16),
    Eof {
        between: bool,
    },
}

/// Decodes everything that one side sent by RFC 6455 section 5, up to the first event that ends the connection.
pub(super) fn decode(mut bytes: &[u8], masked: bool, max_message: u64) -> Vec<PeerEvent> {
    let mut events = Vec::new();
    // The message that is arriving: whether it is text, and its length.
    let mut message: Option<(bool, u64)> = None;
    loop {
        let between = message.is_none();
        let eof = PeerEvent::Eof { between: between && bytes.is_empty() };
        let Some(header) = header(bytes) else {
            events.push(eof);
            return events;
        };
        bytes = &bytes[header.size..];
        let violation = match (header.opcode, message) {
            _ if header.reserved != 0 || header.mask.is_some() != masked => Some(1002),
            (3..=7 | 11.., _) | (0, None) | (1 | 2, Some(_)) => Some(1002),
            (8.., _) if !header.fin || header.len > 125 => Some(1002),
            (..=2, _) if header.len.saturating_add(message.map_or(0, |m| m.1)) > max_message => Some(1009),
            _ => None,
        };
        if let Some(code) = violation {
            events.push(PeerEvent::ProtocolError(code));
            return events;
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
                events.push(PeerEvent::Part { text, payload, end });
                message = if end { None } else { Some((text, len + header.len)) };
                if !whole {
                    events.push(PeerEvent::Eof { between: false });
                    return events;
                }
            }
            _ if !whole => {
                events.push(PeerEvent::Eof { between: false });
                return events;
            }
            9 => events.push(PeerEvent::Ping(payload)),
            10 => events.push(PeerEvent::Pong(payload)),
            _ => {
                let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                events.push(match code {
                    None if payload.is_empty() => PeerEvent::Close { code, between },
                    Some(1000..=1003 | 1007..=1014 | 3000..=4999) => match std::str::from_utf8(&payload[2..]) {
                        Ok(_) => PeerEvent::Close { code, between },
                        Err(_) => PeerEvent::ProtocolError(1007),
                    },
                    _ => PeerEvent::ProtocolError(1002),
                });
                return events;
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
