//! Following over a WebSocket, or from a response body where the resource is closed.

mod request;
mod task;

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_core::Stream;
use http::{Response, header};
use hyper::body::{Body, Incoming};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use self::task::{FollowTask, Position, Step, connection_lost, run_non_resumable};
use super::append::v1_required;
use super::close::Failure;
use super::request::{Dialect, WebSocket};
use crate::chunk::{Chunk, FollowBody, Update};
#[cfg(doc)]
use crate::error::Error;
use crate::error::{ErrorKind, Result};
use crate::protocol::headers::STREAM_STATE;
use crate::state::{Life, State};

pub use self::request::FollowRequest;

/// The capacity of the queue between the task and the user. Each entry keeps at most one read's buffer alive, usually
/// 64 KiB.
const QUEUE_LEN: usize = 8;

/// Reads a resource up to its end.
///
/// Take [chunks](Self::next_chunk), also as a [`Stream`], read it as an [`AsyncRead`], or turn it into the
/// [body](Self::into_body) of a response; the first three can be mixed. It ends cleanly only if the server said that the
/// resource has ended; everything else is an error, behind all bytes that arrived before. The errors of the [`AsyncRead`]
/// hold an [`Error`] ([`io::Error::downcast`] gets it back).
///
/// A background task runs the connection and answers the server's pings while the user does something else. It reads
/// ahead up to 8 chunks (usually of at most 64 KiB); then it reads nothing more from the socket, and a server may close
/// the connection of a follower that stalls.
///
/// # Broken connections
/// With a server that speaks `httpfstream.v1` ([`is_resumable`](Self::is_resumable)) the follower survives them: when a
/// connection breaks or the server stops, it reconnects ([`retry_for`](super::ClientBuilder::retry_for) bounds the time)
/// and continues at the next byte, in the same life. With other servers it fails with its first connection.
///
/// Dropping the follower closes its connection at once.
#[derive(Debug)]
pub struct Follower {
    source: Source,
    /// Received, and not handed out yet.
    buffered: Bytes,
    offset: u64,
    /// How many bytes to drop before the user's offset is reached.
    skip: u64,
    life: Option<Life>,
    state: Option<State>,
    ended: Option<Result<(), Failure>>,
    /// The [`Stream`] has yielded its error, and is at its end.
    exhausted: bool,
}

#[derive(Debug)]
enum Source {
    WebSocket {
        steps: mpsc::Receiver<Step>,
        _task: AbortOnDropHandle<()>,
    },
    Body {
        body: Incoming,
        /// The body has a length or is chunked, so that its end can't be mistaken for a cut.
        delimited: bool,
        interrupted: bool,
        _driver: AbortOnDropHandle<()>,
    },
}

impl Follower {
    fn resumable(task: FollowTask, conn: WebSocket, position: Position) -> Self {
        let (sender, steps) = mpsc::channel(QUEUE_LEN);
        let task = AbortOnDropHandle::new(tokio::spawn(task.run(conn, sender)));
        let Position { offset, life, state } = position;
        let mut follower = Self::new(Source::WebSocket { steps, _task: task }, 0);
        follower.offset = offset;
        follower.life = Some(life);
        follower.state = Some(state);
        follower
    }

    fn non_resumable(conn: WebSocket, dialect: Dialect, closed: Option<State>, silence: Duration, skip: u64) -> Self {
        let (sender, steps) = mpsc::channel(QUEUE_LEN);
        let task = AbortOnDropHandle::new(tokio::spawn(run_non_resumable(conn, sender, dialect, silence)));
        let mut follower = Self::new(Source::WebSocket { steps, _task: task }, skip);
        follower.state = closed;
        follower
    }

    fn body(response: Response<Incoming>, driver: AbortOnDropHandle<()>, skip: u64) -> Self {
        let (head, body) = response.into_parts();
        let delimited = body.size_hint().exact().is_some() || head.headers.contains_key(header::TRANSFER_ENCODING);
        let state = head.headers.get(STREAM_STATE).and_then(|state| state.to_str().ok());
        let state = state.and_then(|state| state.to_ascii_lowercase().parse().ok());
        let interrupted = state == Some(State::Interrupted);
        let mut follower = Self::new(Source::Body { body, delimited, interrupted, _driver: driver }, skip);
        follower.state = state;
        follower
    }

    fn new(source: Source, skip: u64) -> Self {
        Self {
            source,
            buffered: Bytes::new(),
            offset: skip,
            skip,
            life: None,
            state: None,
            ended: None,
            exhausted: false,
        }
    }

    /// Whether the resource may still grow: as far as is known it is [open](State::is_open).
    pub fn is_live(&self) -> bool {
        match self.state {
            Some(state) => state.is_open(),
            None => matches!(self.source, Source::WebSocket { .. }),
        }
    }

    /// Whether the follower survives broken connections: the server speaks `httpfstream.v1`.
    pub fn is_resumable(&self) -> bool {
        self.life.is_some()
    }

    /// The resource's life; `None` if the server doesn't speak `httpfstream.v1`. To continue later or elsewhere, ask for
    /// this [life](FollowRequest::life) and the [offset](FollowRequest::offset) that was reached. It never changes after
    /// the first byte; before that the resource may vanish and be created anew.
    pub fn life(&self) -> Option<Life> {
        self.life
    }

    /// The resource's state at the current [offset](Self::offset); `None` if the server didn't send it.
    pub fn state(&self) -> Option<State> {
        self.state
    }

    /// The offset of the next byte that will be handed out, from the resource's start.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next bytes, as soon as there are any; `None` at the clean end, however often it is called.
    ///
    /// # Errors
    /// Every later call returns the same kind of error:
    /// - [`Interrupted`](ErrorKind::Interrupted): the appender was lost for good; everything that is stored was
    ///   handed out, but it is incomplete. Without `httpfstream.v1` also: the server failed.
    /// - [`Connection`](ErrorKind::Connection), [`TimedOut`](ErrorKind::TimedOut),
    ///   [`ShuttingDown`](ErrorKind::ShuttingDown), [`Overloaded`](ErrorKind::Overloaded),
    ///   [`Storage`](ErrorKind::Storage): the connection broke, was closed by the server or fell silent, and
    ///   reconnecting failed.
    /// - [`Life`](ErrorKind::Life), [`NotFound`](ErrorKind::NotFound): the resource was deleted, or is in another
    ///   life than the bytes that were handed out.
    /// - [`Unauthorized`](ErrorKind::Unauthorized), [`Forbidden`](ErrorKind::Forbidden): not allowed, or no longer.
    /// - [`PastEnd`](ErrorKind::PastEnd): the resource ends before the requested offset.
    /// - [`Protocol`](ErrorKind::Protocol), [`TooLarge`](ErrorKind::TooLarge): the server sent something unacceptable.
    ///
    /// # Cancel safety
    /// Cancel safe: no bytes are lost if the future is dropped.
    pub async fn next_chunk(&mut self) -> Result<Option<Chunk>> {
        poll_fn(|cx| {
            ready!(self.poll_fill(cx))?;
            Poll::Ready(Ok(self.take_chunk()))
        })
        .await
    }

    /// The next bytes or the next change of the state, in order; `None` at the clean end. The final state is no update:
    /// see [`state`](Self::state) after the end.
    ///
    /// # Errors
    /// As [`next_chunk`](Self::next_chunk).
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is lost if the future is dropped.
    pub async fn next_update(&mut self) -> Result<Option<Update>> {
        poll_fn(|cx| {
            loop {
                let before = self.state;
                ready!(self.poll_step(cx))?;
                if let Some(chunk) = self.take_chunk() {
                    return Poll::Ready(Ok(Some(Update::Data(chunk))));
                }
                if self.ended.is_some() {
                    return Poll::Ready(Ok(None));
                }
                // A server that is connected to after the resource was closed says so before the rest of the bytes.
                if let Some(state) = self.state.filter(|state| state.is_open() && Some(*state) != before) {
                    return Poll::Ready(Ok(Some(Update::State(state))));
                }
            }
        })
        .await
    }

    /// The follower as the body of a response, to relay it.
    ///
    /// ```
    /// # use http::Response;
    /// use httpfstream::FollowBody;
    /// use httpfstream::client::{Follower, follow};
    ///
    /// async fn relay(url: &str) -> httpfstream::Result<Response<FollowBody<Follower>>> {
    ///     Ok(Response::new(follow(url).await?.into_body()))
    /// }
    /// ```
    pub fn into_body(self) -> FollowBody<Self> {
        FollowBody::new(self)
    }

    fn take_chunk(&mut self) -> Option<Chunk> {
        let bytes = std::mem::take(&mut self.buffered);
        if bytes.is_empty() {
            return None;
        }
        self.offset += bytes.len() as u64;
        Some(Chunk::new(bytes, self.offset))
    }

    /// Waits until bytes are buffered, or the resource has ended.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        loop {
            ready!(self.poll_step(cx))?;
            if !self.buffered.is_empty() || self.ended.is_some() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Waits until bytes are buffered, the state has changed, or the resource has ended.
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        while self.buffered.is_empty() {
            match &mut self.ended {
                None => {}
                Some(Ok(())) => return Poll::Ready(Ok(())),
                Some(Err(failure)) => return Poll::Ready(Err(failure.error())),
            }
            match ready!(self.source.poll_step(cx)) {
                Step::Data(mut data) => {
                    let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(data.len());
                    data.advance(skipped);
                    self.skip -= skipped as u64;
                    self.buffered = data;
                }
                Step::Life(life) => self.life = Some(life),
                Step::State(state) => {
                    self.state = Some(state);
                    return Poll::Ready(Ok(()));
                }
                Step::End(result) => self.ended = Some(self.end(result).map_err(Failure::from)),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn end(&mut self, result: Result<Option<State>>) -> Result<()> {
        let state = result?;
        self.state = state.or(self.state);
        match state {
            _ if self.skip > 0 => Err(ErrorKind::PastEnd.into()),
            Some(State::Interrupted) => Err(ErrorKind::Interrupted.into()),
            _ => Ok(()),
        }
    }
}

/// Yields what [`next_chunk`](Follower::next_chunk) returns; an error is the last item.
impl Stream for Follower {
    type Item = Result<Chunk>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Chunk>>> {
        if self.exhausted {
            return Poll::Ready(None);
        }
        let filled = ready!(self.poll_fill(cx));
        self.exhausted = filled.is_err();
        Poll::Ready(filled.map(|()| self.take_chunk()).transpose())
    }
}

impl AsyncRead for Follower {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_fill(cx))?;
        let len = self.buffered.len().min(buf.remaining());
        buf.put_slice(&self.buffered[..len]);
        self.buffered.advance(len);
        self.offset += len as u64;
        Poll::Ready(Ok(()))
    }
}

impl Source {
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        match self {
            Self::WebSocket { steps, .. } => steps.poll_recv(cx).map(|step| {
                step.unwrap_or_else(|| Step::End(Err(connection_lost("the runtime that ran the connection has ended"))))
            }),
            Self::Body { body, delimited, interrupted, .. } => loop {
                return Poll::Ready(match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => Step::Data(data),
                        Err(_trailers) => continue,
                    },
                    Some(Err(error)) => {
                        Step::End(Err(connection_lost("the server's response was cut short").with_source(error)))
                    }
                    None if *interrupted => Step::End(Ok(Some(State::Interrupted))),
                    None if !*delimited => Step::End(Err(connection_lost(
                        "the server's response has no length, so that it may have been cut short",
                    ))),
                    None => Step::End(Ok(None)),
                });
            },
        }
    }
}
