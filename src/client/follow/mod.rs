//! Following over a WebSocket, or reading what is finished.

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

use self::task::{Beginning, Step, Task, lost, run_plain};
use super::append::unspoken;
use super::close::Failure;
use super::request::{Dialect, STREAM_STATE, WebSocket};
use crate::chunk::{Chunk, FollowBody, Update};
#[cfg(doc)]
use crate::error::Error;
use crate::error::{ErrorKind, Result};
use crate::state::{Life, State};

pub use self::request::FollowRequest;

/// How many pieces wait for the user at most; each keeps at most one read's buffer, usually 64 KiB.
const QUEUE: usize = 8;

/// Reads a resource up to its end.
///
/// Take [chunks](Self::next_chunk), also as a [`Stream`], read it as an [`AsyncRead`], or turn it into the
/// [body](Self::into_body) of a response; the first three can be mixed. The end is an end only if the
/// server said so; everything else is an error, after all bytes that arrived before it were handed out. The errors of
/// the [`AsyncRead`] hold an [`Error`] ([`io::Error::downcast`] gets it back).
///
/// A task in the background runs the connection: it answers the server's pings while the user does something else. Up
/// to 8 pieces (of usually at most 64 KiB) wait for the user; then nothing more is read from the socket, and a server
/// may close the connection in the end.
///
/// # Broken connections
/// With a server that speaks `httpfstream.v1` ([`is_resumable`](Self::is_resumable)) the follower survives them: when a
/// connection breaks, or the server stops, it makes another one, [for a time](super::ClientBuilder::retry_for), and
/// goes on at the very byte, in the same life. With other servers the first broken connection is the end.
///
/// Dropping the follower ends its connection at once; nobody else notices.
#[derive(Debug)]
pub struct Follower {
    source: Source,
    /// What an [`AsyncRead`] had no room for.
    left: Bytes,
    offset: u64,
    /// So many bytes come first that the user doesn't want.
    skip: u64,
    life: Option<Life>,
    state: Option<State>,
    ended: Option<Result<(), Failure>>,
    /// The [`Stream`] has yielded its error, and is at its end.
    exhausted: bool,
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

impl Follower {
    fn resumable(task: Task, conn: WebSocket, beginning: Beginning) -> Self {
        let (sender, pieces) = mpsc::channel(QUEUE);
        let task = AbortOnDropHandle::new(tokio::spawn(task.run(conn, sender)));
        let Beginning { offset, life, state } = beginning;
        let mut follower = Self::new(Source::Live { pieces, _task: task }, 0);
        follower.offset = offset;
        follower.life = Some(life);
        follower.state = Some(state);
        follower
    }

    fn live(conn: WebSocket, dialect: Dialect, ended: Option<State>, silence: Duration, skip: u64) -> Self {
        let (sender, pieces) = mpsc::channel(QUEUE);
        let task = AbortOnDropHandle::new(tokio::spawn(run_plain(conn, sender, dialect, silence)));
        let mut follower = Self::new(Source::Live { pieces, _task: task }, skip);
        follower.state = ended;
        follower
    }

    fn plain(response: Response<Incoming>, driver: AbortOnDropHandle<()>, skip: u64) -> Self {
        let (head, body) = response.into_parts();
        let delimited = body.size_hint().exact().is_some() || head.headers.contains_key(header::TRANSFER_ENCODING);
        let state = head.headers.get(STREAM_STATE).and_then(|state| state.to_str().ok());
        let state = state.and_then(|state| state.to_ascii_lowercase().parse().ok());
        let interrupted = state == Some(State::Interrupted);
        let mut follower = Self::new(Source::Plain { body, delimited, interrupted, _driver: driver }, skip);
        follower.state = state;
        follower
    }

    fn new(source: Source, skip: u64) -> Self {
        Self { source, left: Bytes::new(), offset: skip, skip, life: None, state: None, ended: None, exhausted: false }
    }

    /// Whether more may come than is there now: the resource was live or [lost](State::Lost) when that was last heard.
    pub fn is_live(&self) -> bool {
        match self.state {
            Some(state) => state.is_open(),
            None => matches!(self.source, Source::Live { .. }),
        }
    }

    /// Whether broken connections are survived: the server speaks `httpfstream.v1`.
    pub fn is_resumable(&self) -> bool {
        self.life.is_some()
    }

    /// The resource's life, if the server told it: if it speaks `httpfstream.v1`. To go on later, or elsewhere, ask for
    /// [it](FollowRequest::life) and the [offset](FollowRequest::offset) that was reached. It never changes once there
    /// was a byte; before that the resource may come to nothing and be created anew.
    pub fn life(&self) -> Option<Life> {
        self.life
    }

    /// How the resource stood where the bytes end that were handed out, if the server told it.
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
    /// Also however often it is called:
    /// - [`Interrupted`](ErrorKind::Interrupted): the appender was lost for good; what was handed out is all there is,
    ///   but not the whole. Without `httpfstream.v1` also: the server failed.
    /// - [`Connection`](ErrorKind::Connection), [`TimedOut`](ErrorKind::TimedOut),
    ///   [`ShuttingDown`](ErrorKind::ShuttingDown), [`Overloaded`](ErrorKind::Overloaded),
    ///   [`Storage`](ErrorKind::Storage): the connection broke, was ended by the server or fell silent, and no other
    ///   could be made.
    /// - [`Life`](ErrorKind::Life), [`NotFound`](ErrorKind::NotFound): what was handed out is not the resource's any
    ///   more.
    /// - [`Unauthorized`](ErrorKind::Unauthorized), [`Forbidden`](ErrorKind::Forbidden): not allowed, or no longer.
    /// - [`PastEnd`](ErrorKind::PastEnd): the resource ends before the offset that was asked for.
    /// - [`Protocol`](ErrorKind::Protocol), [`TooLarge`](ErrorKind::TooLarge): what the server sent can't be accepted.
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

    /// The next bytes or the next change of the state, in their order; `None` at the clean end.
    ///
    /// The states that end a resource are no updates: after the end [`state`](Self::state) tells them.
    ///
    /// # Errors
    /// As [`next_chunk`](Self::next_chunk).
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is lost if the future is dropped.
    pub async fn next_update(&mut self) -> Result<Option<Update>> {
        poll_fn(|cx| {
            let before = self.state;
            ready!(self.poll_step(cx))?;
            Poll::Ready(Ok(match self.take_chunk() {
                Some(chunk) => Some(Update::Data(chunk)),
                None => self.state.filter(|state| state.is_open() && Some(*state) != before).map(Update::State),
            }))
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
        let bytes = std::mem::take(&mut self.left);
        if bytes.is_empty() {
            return None;
        }
        self.offset += bytes.len() as u64;
        Some(Chunk::new(bytes, self.offset))
    }

    /// Sees to it that something is left, unless the resource has ended.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        loop {
            ready!(self.poll_step(cx))?;
            if !self.left.is_empty() || self.ended.is_some() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Waits until something is left, the state has changed, or the resource has ended.
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        while self.left.is_empty() {
            match &mut self.ended {
                None => {}
                Some(Ok(())) => return Poll::Ready(Ok(())),
                Some(Err(failure)) => return Poll::Ready(Err(failure.tell())),
            }
            match ready!(self.source.poll_step(cx)) {
                Step::Piece(mut piece) => {
                    let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(piece.len());
                    piece.advance(skipped);
                    self.skip -= skipped as u64;
                    self.left = piece;
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
                    None if *interrupted => Step::End(Ok(Some(State::Interrupted))),
                    None if !*delimited => {
                        Step::End(Err(lost("the server's answer gave no length, so that it may have been cut short")))
                    }
                    None => Step::End(Ok(None)),
                });
            },
        }
    }
}
