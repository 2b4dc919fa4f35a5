//! Reading: single events, batches of whole messages, or data as a stream.

use std::borrow::Cow;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::Conn;
use crate::buffer::ByteQueue;
use crate::websocket::frame::{Event, Kind, ProtocolError};

/// Reads of this size go through the stack, so that an idle connection holds no buffer.
pub(super) const SMALL_READ: usize = 4 * 1024;
/// After a small read that was full, more is waiting.
pub(super) const LARGE_READ: usize = 64 * 1024;
/// The longest TEXT message that [`Conn::poll_streamed`] accepts, in bytes.
const MAX_TEXT: usize = 16 * 1024;

/// An event from the peer.
#[derive(Debug)]
pub(crate) enum Inbound {
    /// A part of a TEXT or BINARY message.
    Data { payload: Bytes, end: bool, text: bool },
    /// The answer to a ping.
    Pong,
    /// A close frame, with its code if it has one. The caller answers with [`Conn::close`].
    Close(Option<u16>),
    /// A violation of the protocol. The caller closes with this code.
    ProtocolError { code: u16, reason: Cow<'static, str> },
    /// The end of the peer's side without a close frame; it truncates a message unless it comes between two.
    Eof { between_messages: bool },
    /// A failure of the connection.
    Broken(io::Error),
}

/// What [`Conn::poll_message`] returns.
#[derive(Debug)]
pub(crate) enum Message {
    /// The complete messages that have arrived so far, joined.
    Data(ByteQueue),
    /// Any event but data.
    Other(Inbound),
}

/// What [`Conn::poll_streamed`] returns.
#[derive(Debug)]
pub(crate) enum Streamed {
    /// The payload of BINARY messages that has arrived so far, complete or not.
    Data(ByteQueue),
    /// A complete TEXT message.
    Text(Vec<u8>),
    /// Any event but data.
    Other(Inbound),
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Conn<IO> {
    /// The next event from the peer. Pings are answered here: the pong is queued, and written as far as the socket
    /// takes it.
    pub(crate) fn poll_inbound(&mut self, cx: &mut Context<'_>) -> Poll<Inbound> {
        loop {
            match self.next_decoded() {
                Ok(Some(inbound)) => return Poll::Ready(inbound),
                Ok(None) => {}
                Err(ProtocolError { code, reason }) => return Poll::Ready(Inbound::ProtocolError { code, reason }),
            }
            match self.poll_flush(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Inbound::Broken(error)),
                // Pongs must not pile up for a peer that pings without reading. Any other peer that doesn't read is
                // still read from, above all for its close frame.
                Poll::Pending if self.pong_bytes > SMALL_READ => return Poll::Pending,
                Poll::Pending => {}
            }
            match ready!(self.poll_fill(cx)) {
                Ok(0) => {
                    let between_messages = self.between_messages() && self.read_buf.is_empty();
                    return Poll::Ready(Inbound::Eof { between_messages });
                }
                Ok(_) => self.reads += 1,
                Err(error) => return Poll::Ready(Inbound::Broken(error)),
            }
        }
    }

    /// [`poll_inbound`](Self::poll_inbound) as a future.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn inbound(&mut self) -> Inbound {
        poll_fn(|cx| self.poll_inbound(cx)).await
    }

    /// The complete messages that have arrived, joined: at most `max_len` bytes, but at least one message.
    pub(crate) fn poll_message(&mut self, cx: &mut Context<'_>, max_len: usize) -> Poll<Message> {
        if let Some(handed_out) = &mut self.handed_out {
            handed_out.clear();
        }
        let mut batch = ByteQueue::default();
        if std::mem::take(&mut self.message_complete) {
            batch.append(&mut self.message);
            self.hand_out();
        }
        loop {
            if batch.is_empty()
                && let Some(deferred) = self.deferred.take()
            {
                return Poll::Ready(Message::Other(deferred));
            }
            let next = match self.next_decoded() {
                // A batch is extended only by what has arrived already.
                Ok(None) if !batch.is_empty() => {
                    if batch.len() + LARGE_READ <= max_len && self.read_more(cx) {
                        continue;
                    }
                    return Poll::Ready(Message::Data(batch));
                }
                Ok(None) => ready!(self.poll_inbound(cx)),
                Ok(Some(inbound)) => inbound,
                Err(ProtocolError { code, reason }) => Inbound::ProtocolError { code, reason },
            };
            match next {
                Inbound::Data { payload, end: false, .. } => match self.store_fragment(&payload) {
                    None => {}
                    Some(refusal) if batch.is_empty() => return Poll::Ready(Message::Other(refusal)),
                    refusal => {
                        self.deferred = refusal;
                        return Poll::Ready(Message::Data(batch));
                    }
                },
                Inbound::Data { payload, end: true, .. } => {
                    if !batch.is_empty() && batch.len() + self.message.len() + payload.len() > max_len {
                        self.message.push(payload);
                        self.message_complete = true;
                        return Poll::Ready(Message::Data(batch));
                    }
                    batch.append(&mut self.message);
                    self.hand_out();
                    self.push_decoded(&mut batch, payload);
                }
                Inbound::Pong if !batch.is_empty() => {}
                other if batch.is_empty() => return Poll::Ready(Message::Other(other)),
                other => {
                    self.deferred = Some(other);
                    return Poll::Ready(Message::Data(batch));
                }
            }
        }
    }

    /// [`poll_message`](Self::poll_message) as a future.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn message(&mut self, max_len: usize) -> Message {
        poll_fn(|cx| self.poll_message(cx, max_len)).await
    }

    /// The payload of BINARY messages that has arrived, regardless of their boundaries and about `max_len` bytes at
    /// most; or a complete TEXT message.
    pub(crate) fn poll_streamed(&mut self, cx: &mut Context<'_>, max_len: usize) -> Poll<Streamed> {
        let mut data = ByteQueue::default();
        loop {
            let next = match self.deferred.take() {
                Some(deferred) => deferred,
                None => match self.next_decoded() {
                    Ok(None) if !data.is_empty() => {
                        if data.len() + LARGE_READ <= max_len && self.read_more(cx) {
                            continue;
                        }
                        return Poll::Ready(Streamed::Data(data));
                    }
                    Ok(None) => ready!(self.poll_inbound(cx)),
                    Ok(Some(inbound)) => inbound,
                    Err(ProtocolError { code, reason }) => Inbound::ProtocolError { code, reason },
                },
            };
            match next {
                Inbound::Data { payload, text: false, .. } => {
                    self.push_decoded(&mut data, payload);
                    if data.len() >= max_len {
                        return Poll::Ready(Streamed::Data(data));
                    }
                }
                Inbound::Pong if !data.is_empty() => {}
                other if !data.is_empty() => {
                    self.deferred = Some(other);
                    return Poll::Ready(Streamed::Data(data));
                }
                Inbound::Data { payload, end, .. } => {
                    if self.message.len() + payload.len() > MAX_TEXT {
                        let reason = "control message over the size limit".into();
                        return Poll::Ready(Streamed::Other(Inbound::ProtocolError { code: 1009, reason }));
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

    /// [`poll_streamed`](Self::poll_streamed) as a future.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn streamed(&mut self, max_len: usize) -> Streamed {
        poll_fn(|cx| self.poll_streamed(cx, max_len)).await
    }

    /// The next event in the read buffer, if it holds one. Queues the answers to pings.
    fn next_decoded(&mut self) -> Result<Option<Inbound>, ProtocolError> {
        while let Some(event) = self.decoder.decode(&mut self.read_buf, self.small_read_len > 0)? {
            match event {
                Event::Data { payload, end, text } => return Ok(Some(Inbound::Data { payload, end, text })),
                Event::Ping(payload) => {
                    let before = self.out.len();
                    self.queue(Kind::Pong, &payload);
                    self.pong_bytes += self.out.len() - before;
                }
                Event::Pong => return Ok(Some(Inbound::Pong)),
                Event::Close(code) => return Ok(Some(Inbound::Close(code))),
            }
        }
        Ok(None)
    }

    /// Stores a part of a message that is not complete. Returns the refusal if the budget has no room for it.
    pub(super) fn store_fragment(&mut self, payload: &Bytes) -> Option<Inbound> {
        if let Some(arriving) = &mut self.arriving {
            let free = LARGE_READ.saturating_sub(self.message.len());
            if !arriving.grow(payload.len().saturating_sub(free)) {
                let reason = "too many large messages arrive at once: try again later, or send smaller ones".into();
                return Some(Inbound::ProtocolError { code: 1013, reason });
            }
        }
        push_compact(&mut self.message, payload);
        None
    }

    /// Keeps the budget's share of a message that is returned to the caller.
    fn hand_out(&mut self) {
        if let (Some(arriving), Some(handed_out)) = (&mut self.arriving, &mut self.handed_out) {
            arriving.move_to(handed_out);
        }
    }

    /// Adds the payload that was decoded last.
    fn push_decoded(&self, data: &mut ByteQueue, payload: Bytes) {
        let is_most = self.small_read_len > 0 && 2 * payload.len() >= self.small_read_len;
        if is_most && !self.read_large && self.read_buf.is_empty() && data.is_empty() {
            // Most often this is the whole read but for the frame header: sharing it wastes little, and saves a copy.
            data.push_shared(payload);
        } else {
            push_compact(data, &payload);
        }
    }

    /// Reads on to extend a batch, since one large append costs much less than many small ones. Returns whether there
    /// was more; an end or an error is deferred.
    fn read_more(&mut self, cx: &mut Context<'_>) -> bool {
        // The limit of queued pongs holds here as well as in `poll_inbound`.
        if !self.read_large || self.deferred.is_some() || self.pong_bytes > SMALL_READ {
            return false;
        }
        match self.poll_fill(cx) {
            Poll::Ready(Ok(n)) if n > 0 => {
                self.reads += 1;
                return true;
            }
            Poll::Ready(Ok(_)) => {
                let between_messages = self.between_messages() && self.read_buf.is_empty();
                self.deferred = Some(Inbound::Eof { between_messages });
            }
            Poll::Ready(Err(error)) => self.deferred = Some(Inbound::Broken(error)),
            Poll::Pending => {}
        }
        false
    }

    /// Reads once into the read buffer. Returns the number of bytes, 0 at the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.read_large {
            self.read_buf.reserve(LARGE_READ);
            let read = poll_read_buf(Pin::new(&mut self.io), cx, &mut self.read_buf);
            if read.is_pending() && self.read_buf.is_empty() {
                // The connection may stay idle for long.
                self.read_buf = BytesMut::new();
            }
            let n = ready!(read)?;
            (self.read_large, self.small_read_len) = (n >= SMALL_READ, 0);
            return Poll::Ready(Ok(n));
        }
        if self.read_buf.is_empty() {
            self.read_buf = BytesMut::new();
        }
        let mut small = [const { MaybeUninit::uninit() }; SMALL_READ];
        let mut buf = ReadBuf::uninit(&mut small);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
        let filled = buf.filled();
        if self.read_buf.is_empty() {
            (self.read_buf, self.small_read_len) = (BytesMut::from(filled), filled.len());
        } else {
            self.read_buf.extend_from_slice(filled);
            self.small_read_len = 0;
        }
        self.read_large = filled.len() == SMALL_READ;
        Poll::Ready(Ok(filled.len()))
    }
}

/// Adds payload; copies it if it is small.
fn push_compact(data: &mut ByteQueue, payload: &Bytes) {
    if payload.len() < LARGE_READ / 2 {
        // Sharing could keep a whole read alive for this payload alone, where the peer sent frames that were dropped
        // around it.
        data.push_small(payload);
    } else {
        data.push_shared(payload.clone());
    }
}
