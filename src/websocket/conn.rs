//! A WebSocket connection: events in, frames out.

use std::borrow::Cow;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::frame::{Decoder, Event, Kind, ProtocolError, Role, apply_mask, close_payload, put_header};
use crate::budget::{Budget, Reservation};
use crate::buffer::ByteQueue;

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
    ProtocolError { code: u16, reason: Cow<'static, str> },
    /// It closed its side without a close frame; cleanly if that cut no message.
    Eof { between_messages: bool },
    /// The connection broke.
    Broken(io::Error),
}

/// A whole message or anything else that a peer did: see [`Conn::poll_message`].
#[derive(Debug)]
pub(crate) enum Message {
    /// The complete messages that have arrived so far, in pieces.
    Data(ByteQueue),
    /// Anything but data.
    Other(Inbound),
}

/// Data as a stream, or anything else that a peer did: see [`Conn::poll_streamed`].
#[derive(Debug)]
pub(crate) enum Streamed {
    /// What has arrived of BINARY messages so far, whole or not.
    Data(ByteQueue),
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
    /// How many bytes the buffer was made for by a small read; 0 if it was read into again, or by a large one.
    small: usize,
    out: ByteQueue,
    /// Bytes of pongs that were queued since `out` was empty.
    pongs: usize,
    /// The I/O may hold written bytes back: TLS does.
    unflushed: bool,
    /// Counts reads that brought anything: a sign of life.
    heard: u64,
    /// The message that is arriving, for those who want whole ones.
    message: ByteQueue,
    /// What that message takes of a budget that the connection shares with others, if it does.
    arriving: Option<Reservation>,
    /// The same for the messages that were handed out last: they are in memory until more is asked for.
    handed_out: Option<Reservation>,
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
            small: 0,
            out: ByteQueue::default(),
            pongs: 0,
            unflushed: false,
            heard: 0,
            message: ByteQueue::default(),
            arriving: None,
            handed_out: None,
            message_waits: false,
            behind: None,
        }
    }

    /// Takes what messages need from a budget, once they are larger than a read.
    pub(crate) fn with_budget(self, budget: &Arc<Budget>) -> Self {
        Self { arriving: Some(budget.reservation()), handed_out: Some(budget.reservation()), ..self }
    }

    /// Grows whenever bytes arrive from the peer.
    pub(crate) fn activity(&self) -> u64 {
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
    pub(crate) fn out(&mut self) -> &mut ByteQueue {
        &mut self.out
    }

    /// Queues a frame; a client's is masked.
    pub(crate) fn queue(&mut self, kind: Kind, payload: &[u8]) {
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
                Err(ProtocolError { code, reason }) => return Poll::Ready(Inbound::ProtocolError { code, reason }),
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
        let mut whole = ByteQueue::default();
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
                Err(ProtocolError { code, reason }) => Inbound::ProtocolError { code, reason },
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
                    self.gather(&mut whole, payload);
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
        let mut data = ByteQueue::default();
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
                    Err(ProtocolError { code, reason }) => Inbound::ProtocolError { code, reason },
                },
            };
            match next {
                Inbound::Data { payload, text: false, .. } => {
                    self.gather(&mut data, payload);
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

    /// Sends what others are sent too, as far as the peer takes it at once; what it doesn't take is queued. Whether all is
    /// gone, this and what was queued before.
    pub(crate) fn write_shared(&mut self, cx: &mut Context<'_>, pieces: &[Bytes]) -> bool {
        let mut wrote = 0;
        if self.out.is_empty() {
            let mut slices = [io::IoSlice::new(&[]); 64];
            let mut filled = 0;
            for (slice, piece) in slices.iter_mut().zip(pieces) {
                *slice = io::IoSlice::new(piece);
                filled += 1;
            }
            // An error comes again when what is queued is flushed.
            if let Poll::Ready(Ok(n)) = poll_write(&mut self.io, cx, &slices[..filled]) {
                wrote = n;
                self.unflushed = true;
            }
        }
        for piece in pieces {
            let gone = wrote.min(piece.len());
            wrote -= gone;
            if gone < piece.len() {
                self.out.push(piece.slice(gone..));
            }
        }
        matches!(self.poll_flush(cx), Poll::Ready(Ok(())))
    }

    /// Ends the connection in good order: sends a close frame, waits for the peer's end, all within `patience`.
    ///
    /// Closing TCP with unread bytes in the socket would reset the connection and destroy what the peer has not
    /// read yet, so whatever still arrives is read and dropped.
    ///
    /// In a box: who waits for years before it needs this has no room for it meanwhile.
    pub(crate) fn close(
        mut self,
        code: u16,
        reason: &str,
        patience: Duration,
    ) -> Pin<Box<impl Future<Output = ()> + use<IO>>> {
        self.queue(Kind::Close, &close_payload(code, reason));
        self.shutdown(patience)
    }

    /// As [`close`](Self::close), with no close frame of its own (one is queued or was sent).
    pub(crate) fn shutdown(self, patience: Duration) -> Pin<Box<impl Future<Output = ()> + use<IO>>> {
        Box::pin(self.ending(patience))
    }

    async fn ending(mut self, patience: Duration) {
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
                return Some(Inbound::ProtocolError { code: 1013, reason });
            }
        }
        keep(&mut self.message, payload);
        None
    }

    fn hand_out(&mut self) {
        if let (Some(arriving), Some(handed_out)) = (&mut self.arriving, &mut self.handed_out) {
            arriving.move_to(handed_out);
        }
    }

    fn decoded(&mut self) -> Result<Option<Inbound>, ProtocolError> {
        while let Some(event) = self.decoder.decode(&mut self.inbuf, self.small > 0)? {
            match event {
                Event::Data { payload, end, text } => return Ok(Some(Inbound::Data { payload, end, text })),
                Event::Ping(payload) => {
                    let before = self.out.len();
                    self.queue(Kind::Pong, &payload);
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
        let wrote = ready!(poll_write(&mut self.io, cx, &slices[..filled]))?;
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

    /// Adds what was decoded last to what has arrived.
    fn gather(&self, pieces: &mut ByteQueue, payload: Bytes) {
        let is_most = self.small > 0 && 2 * payload.len() >= self.small;
        if is_most && !self.read_large && self.inbuf.is_empty() && pieces.is_empty() {
            // Most often all there is, but for its header: not worth a copy.
            pieces.push_shared(payload);
        } else {
            keep(pieces, &payload);
        }
    }

    /// Reads once; 0 is the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.read_large {
            self.inbuf.reserve(LARGE_READ);
            let read = poll_read_buf(Pin::new(&mut self.io), cx, &mut self.inbuf);
            if read.is_pending() && self.inbuf.is_empty() {
                // It may be idle for long.
                self.inbuf = BytesMut::new();
            }
            let n = ready!(read)?;
            (self.read_large, self.small) = (n >= SMALL_READ, 0);
            return Poll::Ready(Ok(n));
        }
        if self.inbuf.is_empty() {
            self.inbuf = BytesMut::new();
        }
        let mut small = [const { MaybeUninit::uninit() }; SMALL_READ];
        let mut buf = ReadBuf::uninit(&mut small);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
        let filled = buf.filled();
        if self.inbuf.is_empty() {
            (self.inbuf, self.small) = (BytesMut::from(filled), filled.len());
        } else {
            self.inbuf.extend_from_slice(filled);
            self.small = 0;
        }
        self.read_large = filled.len() == SMALL_READ;
        Poll::Ready(Ok(filled.len()))
    }
}

/// Keeps a piece of what a peer sent.
fn keep(pieces: &mut ByteQueue, payload: &Bytes) {
    if payload.len() < LARGE_READ / 2 {
        // It may be all that keeps a whole read alive: what the peer sent between the pieces was dropped.
        pieces.push_small(payload);
    } else {
        pieces.push_shared(payload.clone());
    }
}

/// A `send` costs less than a `writev`, and small frames are one piece.
fn poll_write<IO: AsyncWrite + Unpin>(
    io: &mut IO,
    cx: &mut Context<'_>,
    slices: &[io::IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    match slices {
        [one] => Pin::new(io).poll_write(cx, one),
        many => Pin::new(io).poll_write_vectored(cx, many),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::Waker;

    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::buffer::Segments;

    /// The other end, which does what it is told.
    #[derive(Debug, Default)]
    struct Peer {
        /// What each read brings: nothing at all is the end. Then nothing has come yet.
        reads: VecDeque<io::Result<Vec<u8>>>,
        /// So many bytes more are taken, or none ever again.
        room: Option<usize>,
        written: Vec<u8>,
        /// What is written is not gone yet, as in TLS.
        holds_back: bool,
    }

    impl AsyncRead for Peer {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let Some(mut read) = self.reads.pop_front().transpose()? else { return Poll::Pending };
            let rest = read.split_off(read.len().min(buf.remaining()));
            if !rest.is_empty() {
                self.reads.push_front(Ok(rest));
            }
            buf.put_slice(&read);
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Peer {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let Some(room) = &mut self.room else { return Poll::Ready(Ok(0)) };
            let taken = buf.len().min(*room);
            *room -= taken;
            self.written.extend_from_slice(&buf[..taken]);
            if taken > 0 { Poll::Ready(Ok(taken)) } else { Poll::Pending }
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            if self.holds_back { Poll::Pending } else { Poll::Ready(Ok(())) }
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// A server's connection to one that sends this, read by read, and takes anything.
    fn conn(reads: impl IntoIterator<Item = Vec<u8>>) -> Conn<Peer> {
        let reads = reads.into_iter().map(Ok).collect();
        Conn::new(Peer { reads, room: Some(usize::MAX), ..Peer::default() }, Role::Server, 1 << 20)
    }

    /// A client's frame; its mask changes nothing.
    fn frame(first: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
        let payload = payload.as_ref();
        let mut out = BytesMut::new();
        put_header(&mut out, Kind::Binary, payload.len(), Some([0; 4]));
        out[0] = first;
        out.extend_from_slice(payload);
        out.to_vec()
    }

    const BINARY: u8 = 0x82;
    const TEXT: u8 = 0x81;
    const PONG: u8 = 0x8a;
    const CLOSE: u8 = 0x88;
    /// The first frame of a BINARY message, and its last.
    const BEGIN: u8 = 0x02;
    const END: u8 = 0x80;

    fn sent(frames: &[Vec<u8>]) -> [Vec<u8>; 1] {
        [frames.concat()]
    }

    /// Pings whose answers take so many bytes.
    fn pings(answers: usize) -> Vec<Vec<u8>> {
        let mut lens = vec![125; answers / 127];
        lens.extend((answers % 127).checked_sub(2));
        lens.into_iter().map(|len| frame(0x89, vec![b'p'; len])).collect()
    }

    #[derive(Debug, PartialEq, Eq)]
    enum Told {
        Waits,
        Data(Vec<u8>),
        Text(Vec<u8>),
        Other(String),
    }

    fn data(bytes: impl AsRef<[u8]>) -> Told {
        Told::Data(bytes.as_ref().to_vec())
    }

    fn other(inbound: &str) -> Told {
        Told::Other(inbound.to_owned())
    }

    fn inbound(conn: &mut Conn<Peer>) -> Told {
        match conn.poll_inbound(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => Told::Waits,
            Poll::Ready(inbound) => Told::Other(format!("{inbound:?}")),
        }
    }

    fn message(conn: &mut Conn<Peer>, most: usize) -> Told {
        match conn.poll_message(&mut Context::from_waker(Waker::noop()), most) {
            Poll::Pending => Told::Waits,
            Poll::Ready(Message::Data(mut pieces)) => Told::Data(pieces.take_all().concat()),
            Poll::Ready(Message::Other(inbound)) => Told::Other(format!("{inbound:?}")),
        }
    }

    fn streamed(conn: &mut Conn<Peer>, most: usize) -> Told {
        match conn.poll_streamed(&mut Context::from_waker(Waker::noop()), most) {
            Poll::Pending => Told::Waits,
            Poll::Ready(Streamed::Data(mut pieces)) => Told::Data(pieces.take_all().concat()),
            Poll::Ready(Streamed::Text(text)) => Told::Text(text),
            Poll::Ready(Streamed::Other(inbound)) => Told::Other(format!("{inbound:?}")),
        }
    }

    /// Both ways to take BINARY messages.
    const TAKES: [fn(&mut Conn<Peer>, usize) -> Told; 2] = [message, streamed];

    /// What is told next, with how many allocations.
    fn counted(conn: &mut Conn<Peer>) -> (Segments, u64) {
        let cx = &mut Context::from_waker(Waker::noop());
        let mut taken = Segments::new();
        let counted = allocation_counter::measure(|| {
            if let Poll::Ready(Message::Data(mut pieces)) = conn.poll_message(cx, 1 << 20) {
                taken = pieces.take_all();
            }
        });
        (taken, counted.count_total)
    }

    #[test]
    fn a_small_message_is_read_into_one_allocation() {
        for len in [6, 125, 126, 4000] {
            let (taken, allocations) = counted(&mut conn(sent(&[frame(BINARY, vec![b'x'; len])])));
            assert_eq!((taken.len(), taken[0].len()), (1, len));
            assert_eq!(allocations, 1, "{len}");
        }
    }

    #[test]
    fn what_is_little_of_a_read_keeps_no_buffer_alive() {
        let (little, pongs) = (frame(BINARY, "12345678"), vec![frame(PONG, ""); 100].concat());
        for (read_large, frames) in [
            (false, [pongs.clone(), little.clone()]),
            (false, [little.clone(), frame(BEGIN, vec![b'x'; 3000])]),
            (true, [pongs, little.clone()]),
            (true, [Vec::new(), little]),
        ] {
            let mut taken = Segments::new();
            let counted = allocation_counter::measure(|| {
                let mut conn = conn(sent(&frames));
                conn.read_large = read_large;
                while taken.is_empty() {
                    taken = counted(&mut conn).0;
                }
            });
            assert_eq!((taken.concat(), counted.bytes_current), (b"12345678".to_vec(), 8));
        }
    }

    #[test]
    fn a_large_read_leaves_its_buffer_to_the_next_but_not_while_nothing_comes() {
        let mut conn = conn([frame(BINARY, vec![b'x'; 5000]), frame(BINARY, vec![b'x'; 5000])]);
        conn.read_large = true;
        assert_eq!(message(&mut conn, 1), data([b'x'; 5000]));
        assert!(conn.read_large && conn.inbuf.capacity() > LARGE_READ / 2);
        assert_eq!(message(&mut conn, 1), data([b'x'; 5000]));
        assert_eq!(message(&mut conn, 1), Told::Waits);
        assert_eq!(conn.inbuf.capacity(), 0);
    }

    #[test]
    fn what_arrived_together_is_told_as_one_and_what_comes_behind_next() {
        for take in TAKES {
            let close = frame(CLOSE, b"\x03\xe8bye");
            let frames = [frame(BINARY, "a"), frame(PONG, ""), frame(BEGIN, "b"), frame(END, "c"), close];
            let mut conn = conn(sent(&frames));
            assert_eq!(take(&mut conn, 100), data("abc"));
            assert_eq!(take(&mut conn, 100), other("Close(Some(1000))"));
            assert_eq!(conn.close_reason(), "bye");
            assert_eq!(take(&mut conn, 100), Told::Waits);
            assert_eq!(conn.activity(), 1);
            conn.io.reads.extend([Ok(frame(PONG, "")), Ok(Vec::new())]);
            assert_eq!(take(&mut conn, 100), other("Pong"));
            assert_eq!(take(&mut conn, 100), other("Eof { between_messages: true }"));
        }
    }

    #[test]
    fn a_batch_holds_no_more_than_asked_for_but_one_message() {
        let frames = [frame(BINARY, [b'a'; 10]), frame(BEGIN, [b'b'; 4]), frame(END, [b'c'; 6])];
        let (first, second) = ([b'a'; 10], [&[b'b'; 4][..], &[b'c'; 6]].concat());
        let mut all = conn(sent(&frames));
        assert_eq!(message(&mut all, 20), data([&first[..], &second].concat()));
        for most in [19, 10, 1] {
            let mut each = conn(sent(&frames));
            assert_eq!(message(&mut each, most), data(first), "{most}");
            assert_eq!(message(&mut each, most), data(&second), "{most}");
            assert_eq!(message(&mut each, most), Told::Waits);
        }
        // A stream has no messages.
        let mut stream = conn(sent(&frames));
        assert_eq!(streamed(&mut stream, 14), data([&first[..], b"bbbb"].concat()));
        assert_eq!(streamed(&mut stream, 14), data(b"cccccc"));
    }

    /// A message that leaves the reader sure that there is more.
    static LONG: [u8; 20_000] = [b'l'; 20_000];

    #[test]
    fn behind_a_full_read_what_else_has_come_is_taken_too() {
        for take in TAKES {
            let reads = || [frame(BINARY, LONG), frame(BINARY, "a"), frame(BINARY, "b")];
            let most = LONG.len() + 64 * 1024;
            let mut conn = conn(reads());
            assert_eq!(take(&mut conn, most), data([&LONG[..], b"a"].concat()));
            assert_eq!(conn.activity(), 3, "two reads for the long one");
            // That was no full read: the next is by itself.
            assert_eq!(take(&mut conn, most), data("b"));
            assert_eq!(conn.activity(), 4);
            conn.io.reads.extend(reads().map(Ok));
            assert_eq!(take(&mut conn, most - 1), data(LONG), "there is no room for a full read more");
            assert_eq!(take(&mut conn, most), data("a"));
        }
    }

    #[test]
    fn an_end_behind_a_batch_is_told_next() {
        for take in TAKES {
            for (rest, told) in [("", "Eof { between_messages: true }"), ("\u{2}", "Eof { between_messages: false }")] {
                let mut conn = conn([[frame(BINARY, LONG), rest.into()].concat(), Vec::new()]);
                assert_eq!(take(&mut conn, 1 << 20), data(LONG));
                assert_eq!(conn.activity(), 2, "an end is no sign of life");
                assert_eq!(take(&mut conn, 1 << 20), other(told));
            }
            let mut conn = conn([frame(BINARY, LONG)]);
            conn.io.reads.push_back(Err(io::ErrorKind::ConnectionReset.into()));
            assert_eq!(take(&mut conn, 1 << 20), data(LONG));
            assert_eq!(take(&mut conn, 1 << 20), other("Broken(Kind(ConnectionReset))"));
        }
        let mut cut = conn([frame(BEGIN, "a"), Vec::new()]);
        assert_eq!(message(&mut cut, 1), other("Eof { between_messages: false }"));
    }

    #[test]
    fn whoever_reads_no_answers_is_not_read_when_4_kib_of_them_wait() {
        let mut flood = pings(4096);
        flood.extend([frame(0x89, ""), frame(CLOSE, "")]);
        let mut deaf = conn(flood);
        deaf.io.room = Some(0);
        assert_eq!(inbound(&mut deaf), Told::Waits);
        assert_eq!((deaf.io.reads.len(), deaf.out().len()), (1, 4098));
        deaf.io.room = Some(usize::MAX);
        assert_eq!(inbound(&mut deaf), other("Close(None)"));
        assert_eq!(deaf.io.written.len(), 4098);
        deaf.io.reads.extend(pings(4096).into_iter().map(Ok));
        deaf.io.room = Some(0);
        assert_eq!(inbound(&mut deaf), Told::Waits);
        assert!(deaf.io.reads.is_empty(), "those that were written count no more");
    }

    #[test]
    fn nor_behind_a_batch() {
        for take in TAKES {
            for (answers, told) in [(4096, data([&LONG[..], b"a"].concat())), (4098, data(LONG))] {
                let mut deaf =
                    conn([[vec![frame(BINARY, LONG)], pings(answers)].concat().concat(), frame(BINARY, "a")]);
                deaf.io.room = Some(0);
                assert_eq!(take(&mut deaf, 1 << 20), told, "{answers}");
                assert_eq!(deaf.out().len(), answers);
            }
        }
    }

    #[test]
    fn text_in_a_stream_comes_whole_and_has_at_most_16_kib() {
        let text = |len: usize| [frame(0x01, vec![b't'; len - 9000]), frame(END, [b't'; 9000])].concat();
        let mut conn = conn([frame(BINARY, "a"), text(16 * 1024), frame(TEXT, ""), text(16 * 1024 + 1)]);
        assert_eq!(streamed(&mut conn, 100), data("a"));
        assert_eq!(streamed(&mut conn, 100), Told::Text(vec![b't'; 16 * 1024]));
        assert_eq!(streamed(&mut conn, 100), Told::Text(Vec::new()));
        let Told::Other(breach) = streamed(&mut conn, 100) else { panic!("no breach") };
        assert!(breach.contains("1009"), "{breach}");
    }

    #[test]
    fn fault_43_a_message_takes_of_the_budget_from_64_kib_on_until_the_next_is_asked_for() {
        let budget = Budget::new(1000);
        let free = |bytes| {
            let mut share = budget.reservation();
            share.grow(bytes) && !share.grow(1)
        };
        let begin = frame(BEGIN, vec![b'm'; 64 * 1024 - 1]);
        let mut conn = conn([begin.clone(), frame(0x00, "m")]).with_budget(&budget);
        assert_eq!(message(&mut conn, 1), Told::Waits);
        assert!(free(1000));
        conn.io.reads.push_back(Ok(frame(0x00, [b'm'; 600])));
        assert_eq!(message(&mut conn, 1), Told::Waits);
        assert!(free(400));
        conn.io.reads.push_back(Ok(frame(END, "")));
        assert_eq!(message(&mut conn, 1), data(vec![b'm'; 64 * 1024 + 600]));
        assert!(free(400), "it is in memory still");
        assert_eq!(message(&mut conn, 1), Told::Waits);
        assert!(free(1000));
        // What there is no room for is told after what came before it, if anything did.
        let large = [begin, frame(0x00, [b'm'; 1002])].concat();
        conn.io.reads.push_back(Ok(frame(BINARY, LONG)));
        conn.io.reads.push_back(Ok(large.clone()));
        assert_eq!(message(&mut conn, 1 << 20), data(LONG));
        for _ in 0..2 {
            let Told::Other(breach) = message(&mut conn, 1 << 20) else { panic!("no breach") };
            assert!(breach.contains("1013"), "{breach}");
            conn.message = ByteQueue::default();
            conn.arriving.as_mut().unwrap().clear();
            conn.io.reads.push_back(Ok(frame(0x00, vec![b'm'; 64 * 1024 + 1001])));
        }
    }

    #[test]
    fn only_pieces_of_half_a_read_and_more_are_kept_as_they_came() {
        for (len, copied) in [(10_000, true), (32 * 1024 - 1, true), (32 * 1024, false), (60_000, false)] {
            let payload = Bytes::from(vec![0; len]);
            let mut conn = conn([]);
            assert!(conn.hold(&payload).is_none());
            assert_eq!((payload.is_unique(), conn.message.len()), (copied, len));
        }
    }

    #[test]
    fn flushed_is_what_the_peer_has() {
        let mut conn = conn([frame(0x89, "p")]);
        assert!(conn.is_flushed());
        conn.queue(Kind::Text, b"t");
        assert!(!conn.is_flushed());
        conn.io.holds_back = true;
        assert_eq!(inbound(&mut conn), Told::Waits);
        assert!(conn.out().is_empty() && !conn.is_flushed());
        conn.io.holds_back = false;
        assert_eq!(inbound(&mut conn), Told::Waits);
        assert!(conn.is_flushed());
        assert_eq!(conn.io.written, [0x81, 1, b't', 0x8a, 1, b'p']);
    }

    #[test]
    fn what_is_sent_to_many_is_gone_or_queued() {
        let cx = &mut Context::from_waker(Waker::noop());
        let pieces = [Bytes::from(vec![b'a'; 3]), Bytes::from(vec![b'b'; 9_000]), Bytes::from_static(b"c")];
        let all = pieces.concat();
        for frame in [&pieces[..], &pieces[..1]] {
            let all = frame.concat();
            for room in [all.len(), all.len() - 1, 5.min(all.len() - 1), 3, 2, 0] {
                let mut conn = conn([]);
                conn.io.room = Some(room);
                assert_eq!(conn.write_shared(cx, frame), room == all.len(), "{room} of {}", all.len());
                assert_eq!((conn.io.written.len(), conn.out().len()), (room, all.len() - room));
                // What comes next goes behind it.
                assert!(!conn.write_shared(cx, &[Bytes::from_static(b"next")]));
                conn.io.room = Some(usize::MAX);
                assert_eq!(inbound(&mut conn), Told::Waits);
                assert!(conn.io.written == [&all[..], b"next"].concat() && conn.is_flushed(), "{room}");
            }
        }
        // Behind what waits already, and where nothing can be written any more.
        let mut conn = conn([]);
        conn.queue(Kind::Ping, b"");
        assert!(conn.write_shared(cx, &pieces));
        assert_eq!(conn.io.written, [&[0x89, 0], &all[..]].concat());
        conn.io.room = None;
        assert!(!conn.write_shared(cx, &pieces) && conn.out().len() == all.len());
        // What TLS holds back is not gone.
        conn = self::conn([]);
        conn.io.holds_back = true;
        assert!(!conn.write_shared(cx, &pieces) && conn.out().is_empty() && !conn.is_flushed());
    }

    // The clock goes on when nothing else does.
    #[tokio::test(start_paused = true)]
    async fn a_flush_writes_all_and_waits_for_no_step_longer_than_it_may() {
        let stall = Duration::from_secs(10);
        let mut conn = conn([]);
        for _ in 0..100 {
            conn.queue(Kind::Binary, &[0; 1000]);
        }
        conn.flush(stall).await.unwrap();
        assert_eq!((conn.io.written.len(), conn.is_flushed()), (100 * 1004, true));
        for (room, holds_back, kind) in [
            (Some(5), false, io::ErrorKind::TimedOut),
            (Some(6), true, io::ErrorKind::TimedOut),
            (None, false, io::ErrorKind::WriteZero),
        ] {
            (conn.io.room, conn.io.holds_back) = (room, holds_back);
            conn.queue(Kind::Binary, &[0; 4]);
            let start = tokio::time::Instant::now();
            assert_eq!(conn.flush(stall).await.unwrap_err().kind(), kind);
            assert_eq!(start.elapsed() >= stall, kind == io::ErrorKind::TimedOut);
            conn.out = ByteQueue::default();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_close_is_sent_and_outlasts_what_the_peer_still_sends() {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let hour = Duration::from_secs(3600);
        let closing = tokio::spawn(Conn::new(ours, Role::Server, 1).close(1000, "bye", hour));
        theirs.write_all(&[0; 10_000]).await.unwrap();
        let mut got = Vec::new();
        theirs.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"\x88\x05\x03\xe8bye");
        assert!(!closing.is_finished());
        drop(theirs);
        closing.await.unwrap();
        // But not for ever.
        let (ours, _theirs) = tokio::io::duplex(1024);
        let start = tokio::time::Instant::now();
        Conn::new(ours, Role::Server, 1).close(1000, "bye", hour).await;
        assert_eq!(start.elapsed().as_secs(), 3600);
    }
}
