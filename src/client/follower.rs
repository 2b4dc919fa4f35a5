//! Following over a WebSocket, or reading what is finished.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::{Response, header};
use hyper::body::{Body, Incoming};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::close::{Failure, closed};
use super::request::{STREAM_STATE, Verb};
use crate::error::{Error, ErrorKind, Result};
use crate::wire::frame::Kind;
use crate::wire::{Conn, Inbound};

/// How many pieces wait for the user at most; each keeps at most one read's buffer, usually 64 KiB.
const QUEUE: usize = 8;
/// How long the end of a connection may take once its outcome is known.
const PATIENCE: Duration = Duration::from_secs(5);
/// After so long a silence a server of ours is asked whether it is there, and after three times that given up.
const SILENCE: Duration = Duration::from_secs(30);

/// A piece of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Chunk {
    /// Never empty. Where chunks are cut means nothing.
    pub bytes: Bytes,
    /// The offset of the byte behind this chunk, from the resource's start.
    pub next_offset: u64,
}

/// Reads a resource from its first byte to its end.
///
/// Take [chunks](Self::next_chunk), or read it as an [`AsyncRead`]; both can be mixed. The end is an end only if the
/// server said so; everything else is an error, after all bytes that arrived before it were handed out. The errors of
/// the [`AsyncRead`] hold an [`Error`] ([`io::Error::downcast`] gets it back).
///
/// For a [live](Self::is_live) resource a task in the background runs the connection: it answers the server's pings
/// while the user does something else. Up to 8 pieces (of usually at most 64 KiB) wait for the user; then nothing more
/// is read from the socket, and a server may close the connection in the end
/// ([`TimedOut`](ErrorKind::TimedOut)).
///
/// Dropping the follower ends its connection at once; nobody else notices.
#[derive(Debug)]
pub struct Follower {
    source: Source,
    /// What an [`AsyncRead`] had no room for.
    left: Bytes,
    offset: u64,
    ended: Option<Result<(), Failure>>,
}

#[derive(Debug)]
enum Source {
    Live {
        pieces: mpsc::Receiver<Step>,
        _task: AbortOnDropHandle<()>,
    },
    Plain {
        body: Incoming,
        /// Whether the end of the body can be told from a cut.
        delimited: bool,
        interrupted: bool,
        _driver: AbortOnDropHandle<()>,
    },
}

#[derive(Debug)]
enum Step {
    Piece(Bytes),
    End(Result<()>),
}

impl Follower {
    pub(super) fn live(conn: Conn<TokioIo<Upgraded>>, ours: bool) -> Self {
        let (sender, pieces) = mpsc::channel(QUEUE);
        let task = tokio::spawn(run(conn, sender, ours));
        Self::new(Source::Live { pieces, _task: AbortOnDropHandle::new(task) })
    }

    pub(super) fn plain(response: Response<Incoming>, driver: AbortOnDropHandle<()>) -> Self {
        let (head, body) = response.into_parts();
        let delimited = body.size_hint().exact().is_some() || head.headers.contains_key(header::TRANSFER_ENCODING);
        let state = head.headers.get(STREAM_STATE);
        let interrupted = state.is_some_and(|state| state.as_bytes().eq_ignore_ascii_case(b"interrupted"));
        Self::new(Source::Plain { body, delimited, interrupted, _driver: driver })
    }

    fn new(source: Source) -> Self {
        Self { source, left: Bytes::new(), offset: 0, ended: None }
    }

    /// Whether the server follows a live resource for us; otherwise it answered with all that there is, plainly.
    pub fn is_live(&self) -> bool {
        matches!(self.source, Source::Live { .. })
    }

    /// The offset of the next byte that will be handed out, from the resource's start.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next bytes, as soon as there are any; `None` at the clean end, however often it is called.
    ///
    /// # Errors
    /// Also however often it is called:
    /// - [`Interrupted`](ErrorKind::Interrupted): the appender was lost, or the server failed. What was handed out is
    ///   all there is now, but not the whole.
    /// - [`Connection`](ErrorKind::Connection): the connection broke, or the answer was cut short.
    /// - [`ShuttingDown`](ErrorKind::ShuttingDown), [`Overloaded`](ErrorKind::Overloaded),
    ///   [`Forbidden`](ErrorKind::Forbidden): the server ended it before the resource's end.
    /// - [`TimedOut`](ErrorKind::TimedOut): the server fell silent, or found this follower too slow.
    /// - [`Protocol`](ErrorKind::Protocol), [`TooLarge`](ErrorKind::TooLarge): what the server sent can't be accepted.
    ///
    /// # Cancel safety
    /// Cancel safe: no bytes are lost if the future is dropped.
    pub async fn next_chunk(&mut self) -> Result<Option<Chunk>> {
        poll_fn(|cx| self.poll_chunk(cx)).await
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Chunk>>> {
        ready!(self.poll_fill(cx))?;
        let bytes = std::mem::take(&mut self.left);
        if bytes.is_empty() {
            return Poll::Ready(Ok(None));
        }
        self.offset += bytes.len() as u64;
        Poll::Ready(Ok(Some(Chunk { bytes, next_offset: self.offset })))
    }

    /// Sees to it that something is left, unless the resource has ended.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        while self.left.is_empty() {
            match &mut self.ended {
                None => {}
                Some(Ok(())) => return Poll::Ready(Ok(())),
                Some(Err(failure)) => return Poll::Ready(Err(failure.tell())),
            }
            match ready!(self.source.poll_step(cx)) {
                Step::Piece(piece) => self.left = piece,
                Step::End(result) => self.ended = Some(result.map_err(Failure::from)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Follower {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_fill(cx))?;
        let take = self.left.len().min(buf.remaining());
        buf.put_slice(&self.left[..take]);
        self.left.advance(take);
        self.offset += take as u64;
        Poll::Ready(Ok(()))
    }
}

impl Source {
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        match self {
            Self::Live { pieces, .. } => pieces.poll_recv(cx).map(|step| {
                step.unwrap_or_else(|| Step::End(Err(lost("the runtime that ran the connection has ended"))))
            }),
            Self::Plain { body, delimited, interrupted, .. } => loop {
                return Poll::Ready(match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => Step::Piece(data),
                        Err(_trailers) => continue,
                    },
                    Some(Err(error)) => Step::End(Err(lost("the server's answer was cut short").with_source(error))),
                    None if *interrupted => Step::End(Err(ErrorKind::Interrupted.into())),
                    None if !*delimited => {
                        Step::End(Err(lost("the server's answer gave no length, so that it may have been cut short")))
                    }
                    None => Step::End(Ok(())),
                });
            },
        }
    }
}

/// Runs the connection to its end.
async fn run(mut conn: Conn<TokioIo<Upgraded>>, pieces: mpsc::Sender<Step>, ours: bool) {
    // While the user has no room for more, nothing is read.
    while let Ok(room) = pieces.reserve().await {
        let (end, reply) = match inbound(&mut conn, ours).await {
            Ok(Inbound::Data { payload, .. }) => {
                if !payload.is_empty() {
                    room.send(Step::Piece(payload));
                }
                continue;
            }
            Ok(Inbound::Pong) => continue,
            Ok(Inbound::Close(Some(1000))) => (Ok(()), Some(1000)),
            Ok(Inbound::Close(code)) => {
                (Err(closed(code, conn.close_reason(), Verb::Follow)), Some(code.unwrap_or(1000)))
            }
            Ok(Inbound::Breach { code, reason }) => {
                let kind = if code == 1009 { ErrorKind::TooLarge } else { ErrorKind::Protocol };
                let detail = format!("the server broke the WebSocket protocol: {reason}");
                (Err(Error::new(kind).with_detail(detail)), Some(code))
            }
            Ok(Inbound::Eof { .. }) => (Err(lost("the connection ended, but the resource did not")), None),
            Ok(Inbound::Broken(error)) => (Err(lost("the connection broke").with_source(error)), None),
            Err(silent) => (Err(silent), None),
        };
        room.send(Step::End(end));
        if let Some(code) = reply {
            conn.close(code, "", PATIENCE).await;
        }
        return;
    }
}

/// What the server did, unless it is silent for too long. The original's servers may be silent for ever.
async fn inbound(conn: &mut Conn<TokioIo<Upgraded>>, ours: bool) -> Result<Inbound> {
    if !ours {
        return Ok(conn.inbound().await);
    }
    for _ in 0..3 {
        match timeout(SILENCE, conn.inbound()).await {
            Ok(inbound) => return Ok(inbound),
            Err(_) => conn.put(Kind::Ping, b""),
        }
    }
    let detail = format!("the server fell silent for {} s", 3 * SILENCE.as_secs());
    Err(Error::new(ErrorKind::TimedOut).with_detail(detail))
}

fn lost(how: &'static str) -> Error {
    Error::new(ErrorKind::Connection).with_detail(how)
}
