//! A WebSocket connection: events in, frames out, one task.

use std::borrow::Cow;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::frame::{Breach, Decoder, Event, Kind, Role, apply_mask, close_payload, put_header};
use super::pieces::Pieces;
use crate::budget::{Budget, Share};

/// Reads go through the stack in this size, so that an idle connection holds no buffer.
const SMALL_READ: usize = 4 * 1024;
/// Once a small read came back full there is more where it came from.
const LARGE_READ: usize = 64 * 1024;

/// What the peer did.
#[derive(Debug)]
pub(crate) enum Inbound {
    /// A piece of a message, TEXT or BINARY.
    Data { payload: Bytes, end: bool, text: bool },
    /// It answered a ping.
    Pong,
    /// It closes, with this code if it gave one. The caller answers with [`Conn::close`].
    Close(Option<u16>),
    /// It broke the protocol. The caller closes with this code.
    Breach { code: u16, reason: Cow<'static, str> },
    /// It closed its side without a close frame; cleanly if that cut no message.
    Eof { between_messages: bool },
    /// The connection broke.
    Broken(io::Error),
}

/// A whole message or anything else that a peer did: see [`Conn::poll_message`].
#[derive(Debug)]
pub(crate) enum Message {
    /// The complete messages that have arrived so far, in pieces.
    Data(Pieces),
    /// Anything but data.
    Other(Inbound),
}

/// Data as a stream, or anything else that a peer did: see [`Conn::poll_streamed`].
#[derive(Debug)]
pub(crate) enum Streamed {
    /// What has arrived of BINARY messages so far, whole or not.
    Data(Pieces),
    /// A whole TEXT message.
    Text(Vec<u8>),
    /// Anything but data.
    Other(Inbound),
}

/// The longest TEXT message that [`Conn::poll_streamed`] accepts, in bytes.
const MAX_TEXT: usize = 16 * 1024;

/// A WebSocket connection after its handshake.
#[derive(Debug)]
pub(crate) struct Conn<IO> {
    io: IO,
    role: Role,
    decoder: Decoder,
    inbuf: BytesMut,
    read_large: bool,
    out: Pieces,
    /// Bytes of pongs that were queued since `out` was empty.
    pongs: usize,
    /// The I/O may hold written bytes back: TLS does.
    unflushed: bool,
    /// Counts reads that brought anything: a sign of life.
    heard: u64,
    /// The message that is arriving, for those who want whole ones.
    message: Pieces,
    /// What that message takes of a budget that the connection shares with others, if it does.
    arriving: Option<Share>,
    /// The same for the messages that were handed out last: they are in memory until more is asked for.
    handed_out: Option<Share>,
    /// That message is complete, and had no room in the batch before it.
    message_waits: bool,
    /// What came behind a batch of messages and is told next.
    behind: Option<Inbound>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Conn<IO> {
    pub(crate) fn new(io: IO, role: Role, max_message: u64) -> Self {
        Self {
            io,
            role,
            decoder: Decoder::new(role, max_message),
            inbuf: BytesMut::new(),
            read_large: false,
            out: Pieces::default(),
            pongs: 0,
            unflushed: false,
            heard: 0,
            message: Pieces::default(),
            arriving: None,
            handed_out: None,
            message_waits: false,
            behind: None,
        }
    }

    /// Takes what messages need from a budget, once they are larger than a read.
    pub(crate) fn sharing(self, budget: &Arc<Budget>) -> Self {
        Self { arriving: Some(budget.share()), handed_out: Some(budget.share()), ..self }
    }

    /// Grows whenever bytes arrive from the peer.
    pub(crate) fn heard(&self) -> u64 {
        self.heard
    }

    /// Whether the peer stands between two messages, so that an end here cuts nothing.
    pub(crate) fn between_messages(&self) -> bool {
        self.decoder.between_messages()
    }

    /// Whether everything that was queued is written and gone.
    pub(crate) fn is_flushed(&self) -> bool {
        self.out.is_empty() && !self.unflushed
    }

    /// What the peer's close frame gave as its reason: see [`Decoder::close_reason`].
    pub(crate) fn close_reason(&self) -> &str {
        self.decoder.close_reason()
    }

    /// What is to be written; [`flush`](Self::flush) writes it.
    pub(crate) fn out(&mut self) -> &mut Pieces {
        &mut self.out
    }

    /// Queues a frame; a client's is masked.
    pub(crate) fn put(&mut self, kind: Kind, payload: &[u8]) {
        let role = self.role;
        self.out.write_with(|buf| match role {
            Role::Server => {
                put_header(buf, kind, payload.len(), None);
                buf.extend_from_slice(payload);
            }
            Role::Client => {
                let mut mask = [0; 4];
                // Masks protect caches in between, not us (RFC 6455 section 10.3): zeros are legal if all else fails.
                let _ = getrandom::fill(&mut mask);
                put_header(buf, kind, payload.len(), Some(mask));
                let start = buf.len();
                buf.extend_from_slice(payload);
                apply_mask(&mut buf[start..], mask);
            }
        });
    }

    /// The next thing the peer did. Pings are answered (queued) here.
    pub(crate) fn poll_inbound(&mut self, cx: &mut Context<'_>) -> Poll<Inbound> {
        loop {
            match self.decoded() {
                Ok(Some(inbound)) => return Poll::Ready(inbound),
                Ok(None) => {}
                Err(Breach { code, reason }) => return Poll::Ready(Inbound::Breach { code, reason }),
            }
            match self.poll_flush(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Inbound::Broken(error)),
                // A peer that pings without reading the answers must not make us gather them. Otherwise what it
                // says is heard while it doesn't read: its close above all.
                Poll::Pending if self.pongs > SMALL_READ => return Poll::Pending,
                Poll::Pending => {}
            }
            match ready!(self.poll_fill(cx)) {
                Ok(0) => {
                    let between_messages = self.between_messages() && self.inbuf.is_empty();
                    return Poll::Ready(Inbound::Eof { between_messages });
                }
                Ok(_) => self.heard += 1,
                Err(error) => return Poll::Ready(Inbound::Broken(error)),
            }
        }
    }

    /// The next thing the peer did.
    ///
    /// Cancel safe.
    pub(crate) async fn inbound(&mut self) -> Inbound {
        poll_fn(|cx| self.poll_inbound(cx)).await
    }

    /// The complete messages that have arrived, as one: no more of them than make `most` bytes, but at least one.
    pub(crate) fn poll_message(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<Message> {
        if let Some(handed_out) = &mut self.handed_out {
            handed_out.clear();
        }
        let mut whole = Pieces::default();
        if std::mem::take(&mut self.message_waits) {
            whole.append(&mut self.message);
            self.hand_out();
        }
        loop {
            if whole.is_empty()
                && let Some(behind) = self.behind.take()
            {
                return Poll::Ready(Message::Other(behind));
            }
            let next = match self.decoded() {
                // Between messages of a batch only what is here already is taken.
                Ok(None) if !whole.is_empty() => {
                    if whole.len() + LARGE_READ <= most && self.read_on(cx) {
                        continue;
                    }
                    return Poll::Ready(Message::Data(whole));
                }
                Ok(None) => ready!(self.poll_inbound(cx)),
                Ok(Some(inbound)) => inbound,
                Err(Breach { code, reason }) => Inbound::Breach { code, reason },
            };
            match next {
                Inbound::Data { payload, end: false, .. } => match self.hold(&payload) {
                    None => {}
                    Some(breach) if whole.is_empty() => return Poll::Ready(Message::Other(breach)),
                    breach => {
                        self.behind = breach;
                        return Poll::Ready(Message::Data(whole));
                    }
                },
                Inbound::Data { payload, end: true, .. } => {
                    if !whole.is_empty() && whole.len() + self.message.len() + payload.len() > most {
                        self.message.push(payload);
                        self.message_waits = true;
                        return Poll::Ready(Message::Data(whole));
                    }
                    whole.append(&mut self.message);
                    self.hand_out();
                    whole.push(payload);
                }
                Inbound::Pong if !whole.is_empty() => {}
                other if whole.is_empty() => return Poll::Ready(Message::Other(other)),
                // What comes behind the batch is told next time.
                other => {
                    self.behind = Some(other);
                    return Poll::Ready(Message::Data(whole));
                }
            }
        }
    }

    /// [`poll_message`](Self::poll_message) as a future. Cancel safe.
    pub(crate) async fn message(&mut self, most: usize) -> Message {
        poll_fn(|cx| self.poll_message(cx, most)).await
    }

    /// What has arrived of BINARY messages, without regard to where they end and no more than about `most` bytes, or a
    /// whole TEXT message.
    pub(crate) fn poll_streamed(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<Streamed> {
        let mut data = Pieces::default();
        loop {
            let next = match self.behind.take() {
                Some(behind) => behind,
                None => match self.decoded() {
                    Ok(None) if !data.is_empty() => {
                        if data.len() + LARGE_READ <= most && self.read_on(cx) {
                            continue;
                        }
                        return Poll::Ready(Streamed::Data(data));
                    }
                    Ok(None) => ready!(self.poll_inbound(cx)),
                    Ok(Some(inbound)) => inbound,
                    Err(Breach { code, reason }) => Inbound::Breach { code, reason },
                },
            };
            match next {
                Inbound::Data { payload, text: false, .. } => {
                    data.push(payload);
                    if data.len() >= most {
                        return Poll::Ready(Streamed::Data(data));
                    }
                }
                Inbound::Pong if !data.is_empty() => {}
                // What comes behind the data is told next time.
                other if !data.is_empty() => {
                    self.behind = Some(other);
                    return Poll::Ready(Streamed::Data(data));
                }
                Inbound::Data { payload, end, .. } => {
                    if self.message.len() + payload.len() > MAX_TEXT {
                        let reason = "control message over the size limit".into();
                        return Poll::Ready(Streamed::Other(Inbound::Breach { code: 1009, reason }));
                    }
                    self.message.push(payload);
                    if end {
                        return Poll::Ready(Streamed::Text(self.message.take_all().concat()));
                    }
                }
                other => return Poll::Ready(Streamed::Other(other)),
            }
        }
    }

    /// [`poll_streamed`](Self::poll_streamed) as a future. Cancel safe.
    pub(crate) async fn streamed(&mut self, most: usize) -> Streamed {
        poll_fn(|cx| self.poll_streamed(cx, most)).await
    }

    /// Writes what is queued. Each step has to make progress within `stall`.
    ///
    /// Cancel safe: what is not written stays queued.
    pub(crate) async fn flush(&mut self, stall: Duration) -> io::Result<()> {
        while self.out.has_remaining() {
            let step = poll_fn(|cx| self.poll_write_some(cx));
            match tokio::time::timeout(stall, step).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
        match tokio::time::timeout(stall, poll_fn(|cx| self.poll_flush(cx))).await {
            Ok(flushed) => flushed,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Ends the connection in good order: sends a close frame, waits for the peer's end, all within `patience`.
    ///
    /// Closing TCP with unread bytes in the socket would reset the connection and destroy what the peer has not
    /// read yet, so whatever still arrives is read and dropped.
    pub(crate) async fn close(mut self, code: u16, reason: &str, patience: Duration) {
        self.put(Kind::Close, &close_payload(code, reason));
        self.end(patience).await;
    }

    /// As [`close`](Self::close), with no close frame of its own (one is queued or was sent).
    pub(crate) async fn end(mut self, patience: Duration) {
        // What has come of a message is of no use any more, and others may need its room.
        (self.message, self.inbuf) = Default::default();
        (self.arriving, self.handed_out) = (None, None);
        let ending = async {
            self.flush(patience).await?;
            self.io.shutdown().await?;
            let mut sink = [0; 512];
            loop {
                let mut buf = ReadBuf::new(&mut sink);
                poll_fn(|cx| Pin::new(&mut self.io).poll_read(cx, &mut buf)).await?;
                if buf.filled().is_empty() {
                    return Ok::<(), io::Error>(());
                }
            }
        };
        let _ = tokio::time::timeout(patience, pin!(ending)).await;
    }

    /// Keeps a piece of a message that is not complete, or says why it can't.
    fn hold(&mut self, payload: &Bytes) -> Option<Inbound> {
        if let Some(arriving) = &mut self.arriving {
            let free = LARGE_READ.saturating_sub(self.message.len());
            if !arriving.grow(payload.len().saturating_sub(free)) {
                let reason = "too many large messages arrive at once: try again later, or send smaller ones".into();
                return Some(Inbound::Breach { code: 1013, reason });
            }
        }
        if payload.len() < LARGE_READ / 2 {
            // It may be all that keeps a whole read alive: what the peer sent between the pieces was dropped.
            self.message.push_small(payload);
        } else {
            self.message.push(payload.clone());
        }
        None
    }

    fn hand_out(&mut self) {
        if let (Some(arriving), Some(handed_out)) = (&mut self.arriving, &mut self.handed_out) {
            arriving.move_to(handed_out);
        }
    }

    fn decoded(&mut self) -> Result<Option<Inbound>, Breach> {
        while let Some(event) = self.decoder.decode(&mut self.inbuf)? {
            match event {
                Event::Data { payload, end, text } => return Ok(Some(Inbound::Data { payload, end, text })),
                Event::Ping(payload) => {
                    let before = self.out.len();
                    self.put(Kind::Pong, &payload);
                    self.pongs += self.out.len() - before;
                }
                Event::Pong => return Ok(Some(Inbound::Pong)),
                Event::Close(code) => return Ok(Some(Inbound::Close(code))),
            }
        }
        Ok(None)
    }

    fn poll_write_some(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut slices = [io::IoSlice::new(&[]); 64];
        let filled = self.out.chunks_vectored(&mut slices);
        let wrote = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &slices[..filled]))?;
        if wrote == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.out.advance(wrote);
        self.unflushed = true;
        if self.out.is_empty() {
            self.pongs = 0;
        }
        Poll::Ready(Ok(wrote))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.out.has_remaining() {
            ready!(self.poll_write_some(cx))?;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads what has arrived behind a batch: one append of much costs less than many of little. Whether there was
    /// more; an end is kept to be told next.
    fn read_on(&mut self, cx: &mut Context<'_>) -> bool {
        // Nor while answers to pings wait: they are gathered no further than `poll_inbound` lets them.
        if !self.read_large || self.behind.is_some() || self.pongs > SMALL_READ {
            return false;
        }
        match self.poll_fill(cx) {
            Poll::Ready(Ok(n)) if n > 0 => {
                self.heard += 1;
                return true;
            }
            Poll::Ready(Ok(_)) => {
                let between_messages = self.between_messages() && self.inbuf.is_empty();
                self.behind = Some(Inbound::Eof { between_messages });
            }
            Poll::Ready(Err(error)) => self.behind = Some(Inbound::Broken(error)),
            Poll::Pending => {}
        }
        false
    }

    /// Reads once; 0 is the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.read_large {
            self.inbuf.reserve(LARGE_READ);
            let n = ready!(poll_read_buf(Pin::new(&mut self.io), cx, &mut self.inbuf))?;
            self.read_large = n >= SMALL_READ;
            return Poll::Ready(Ok(n));
        }
        if self.inbuf.is_empty() {
            self.inbuf = BytesMut::new();
        }
        let mut small = [0; SMALL_READ];
        let mut buf = ReadBuf::new(&mut small);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
        let filled = buf.filled();
        self.inbuf.extend_from_slice(filled);
        self.read_large = filled.len() == SMALL_READ;
        Poll::Ready(Ok(filled.len()))
    }
}
