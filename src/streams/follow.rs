//! Following inside the process.

use std::fmt;
use std::future::{Future, IntoFuture, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::sync::ReusableBoxFuture;

use super::Streams;
use crate::buffer::Segments;
use crate::chunk::{Chunk, FollowBody, Update};
#[cfg(doc)]
use crate::error::Error;
use crate::error::{ErrorKind, Result};
use crate::hub::{Cursor, Found, Step};
use crate::key::Key;
use crate::protocol::StartPosition;
use crate::state::{Life, State};

/// A resource about to be followed: see [`Streams::follow`]. Await it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> httpfstream::Result<()> {
/// # use httpfstream::{Streams, storage::MemoryStorage};
/// # let streams = Streams::new(MemoryStorage::new(1 << 20));
/// let mut out = streams.open_append("build.log").await?;
/// out.append("one\ntwo\nthree\n").await?;
/// let mut last = streams.follow("build.log").lines(2).await?;
/// assert_eq!(last.next_chunk().await?.unwrap().bytes, "two\nthree\n");
/// # Ok(()) }
/// ```
///
/// # Cancel safety
/// Nothing is lost if the future is dropped.
#[derive(Debug)]
#[must_use = "nothing is followed before this is awaited"]
pub struct FollowRequest {
    streams: Streams,
    key: Result<Key>,
    from: StartPosition,
    life: Option<Life>,
    wait: Duration,
}

impl FollowRequest {
    pub(super) fn new(streams: Streams, key: Result<Key>) -> Self {
        Self { streams, key, from: StartPosition::Beginning, life: None, wait: Duration::ZERO }
    }

    /// Starts at this byte. Past the end of the resource it is [`PastEnd`](ErrorKind::PastEnd).
    ///
    /// Of `offset`, [`tail`](Self::tail) and [`lines`](Self::lines) the last call counts. Default: the beginning.
    pub fn offset(mut self, offset: u64) -> Self {
        self.from = StartPosition::Offset(offset);
        self
    }

    /// Starts this many bytes before the end.
    pub fn tail(mut self, bytes: u64) -> Self {
        self.from = StartPosition::Tail(bytes);
        self
    }

    /// Starts this many lines before the end. Bytes after the last line feed are a line too.
    pub fn lines(mut self, lines: u64) -> Self {
        self.from = StartPosition::Lines(lines);
        self
    }

    /// Only in this life, else [`Life`](ErrorKind::Life): to continue at an [`offset`](Self::offset) of an earlier follower.
    pub fn life(mut self, life: Life) -> Self {
        self.life = Some(life);
        self
    }

    /// Waits up to this long for an absent resource. Default: not at all.
    pub fn wait(mut self, limit: Duration) -> Self {
        self.wait = limit;
        self
    }
}

impl IntoFuture for FollowRequest {
    type Output = Result<Follower>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<Follower>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let (hub, key) = (&self.streams.hub, self.key?);
            let found = match self.wait {
                Duration::ZERO => hub.follow(&key).await?,
                limit => hub.follow_when_created(&key, limit).await?,
            };
            let mut cursor = match found.ok_or(ErrorKind::NotFound)? {
                Found::Open(cursor) | Found::Closed(cursor, _) => cursor,
            };
            if self.life.is_some_and(|life| life != cursor.life()) {
                return Err(ErrorKind::Life.into());
            }
            cursor.start(self.from).await?;
            Ok(Follower::new(cursor))
        })
    }
}

/// Reads a resource up to its end, and follows it while it grows.
///
/// Take [chunks](Self::next_chunk), read it as an [`AsyncRead`], or use it as a [`Stream`] of chunks; they can be mixed. A
/// follower that reads slowly holds up nobody, and costs no memory.
///
/// The end is an end only if the resource was finished; an interrupted resource yields an error after its last byte. Errors of
/// the [`AsyncRead`] contain an [`Error`] ([`io::Error::downcast`] returns it).
pub struct Follower {
    /// The next step, which returns the cursor with it. It is kept when a caller stops waiting, so that nothing is read
    /// twice.
    next: ReusableBoxFuture<'static, (Cursor, Result<Step>)>,
    /// Chunks of the last step that were not handed out yet.
    ready: <Segments as IntoIterator>::IntoIter,
    /// What remains of a chunk that an [`AsyncRead`] had no room for.
    rest: Bytes,
    offset: u64,
    life: Life,
    state: State,
    ended: Option<Result<(), ErrorKind>>,
    /// Whether the [`Stream`] has ended.
    exhausted: bool,
}

async fn step(mut cursor: Cursor) -> (Cursor, Result<Step>) {
    let step = cursor.next().await;
    (cursor, step)
}

impl Follower {
    fn new(cursor: Cursor) -> Self {
        let (offset, life, state) = (cursor.at(), cursor.life(), cursor.state());
        let next = ReusableBoxFuture::new(step(cursor));
        let ready = Segments::new().into_iter();
        Self { next, ready, rest: Bytes::new(), offset, life, state, ended: None, exhausted: false }
    }

    /// The next bytes, as soon as there are any; `None` at the clean end, however often it is called.
    ///
    /// # Cancel safety
    /// Cancel safe: no byte is lost if the future is dropped.
    ///
    /// # Errors
    /// [`Interrupted`](ErrorKind::Interrupted) if the appender was lost for good: all stored bytes were handed out, but they
    /// are not the whole. [`NotFound`](ErrorKind::NotFound) if the resource was deleted;
    /// [`ShuttingDown`](ErrorKind::ShuttingDown); the errors of the storage.
    pub async fn next_chunk(&mut self) -> Result<Option<Chunk>> {
        poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// The next bytes, or the next change of the resource's state between them; `None` at the clean end.
    ///
    /// A state that closes the resource is no update: [`state`](Self::state) has it after the end.
    ///
    /// # Cancel safety
    /// As [`next_chunk`](Self::next_chunk).
    ///
    /// # Errors
    /// As [`next_chunk`](Self::next_chunk).
    pub async fn next_update(&mut self) -> Result<Option<Update>> {
        poll_fn(|cx| self.poll_update(cx)).await
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Chunk>>> {
        loop {
            match ready!(self.poll_update(cx))? {
                Some(Update::Data(chunk)) => return Poll::Ready(Ok(Some(chunk))),
                Some(Update::State(_)) => {}
                None => return Poll::Ready(Ok(None)),
            }
        }
    }

    fn poll_update(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Update>>> {
        loop {
            let rest = std::mem::take(&mut self.rest);
            let bytes = if rest.is_empty() { self.ready.next() } else { Some(rest) };
            if let Some(bytes) = bytes {
                self.offset += bytes.len() as u64;
                return Poll::Ready(Ok(Some(Update::Data(Chunk::new(bytes, self.offset)))));
            }
            match self.ended {
                None => {}
                Some(Ok(())) => return Poll::Ready(Ok(None)),
                Some(Err(kind)) => return Poll::Ready(Err(kind.into())),
            }
            match ready!(self.poll_step(cx))? {
                Step::Data(mut queue) => self.ready = queue.take_all().into_iter(),
                Step::State(state) => {
                    self.state = state;
                    return Poll::Ready(Ok(Some(Update::State(state))));
                }
                Step::End(state) => {
                    self.state = state;
                    self.ended = Some(if state == State::Interrupted { Err(ErrorKind::Interrupted) } else { Ok(()) });
                }
                Step::Cut(kind) => self.ended = Some(Err(kind)),
            }
        }
    }

    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Result<Step>> {
        let (cursor, result) = ready!(self.next.poll(cx));
        self.next.set(step(cursor));
        Poll::Ready(result)
    }

    /// Turns the follower into the body of a response or a request. It starts with the next byte that would be handed out.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> httpfstream::Result<()> {
    /// # use httpfstream::{Streams, storage::MemoryStorage};
    /// use http_body_util::BodyExt;
    ///
    /// # let streams = Streams::new(MemoryStorage::new(1 << 20));
    /// streams.append("a", &b"all"[..]).await?;
    /// let response = http::Response::new(streams.follow("a").await?.into_body());
    /// assert_eq!(response.into_body().collect().await?.to_bytes(), "all");
    /// # Ok(()) }
    /// ```
    pub fn into_body(self) -> FollowBody<Self> {
        FollowBody::new(self)
    }

    /// The state of the resource where the bytes end that were handed out.
    pub fn state(&self) -> State {
        self.state
    }

    /// The offset of the next byte that will be handed out, from the resource's start.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The life that is followed.
    pub fn life(&self) -> Life {
        self.life
    }
}

impl Stream for Follower {
    type Item = Result<Chunk>;

    /// As [`next_chunk`](Follower::next_chunk). It ends after an error.
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.exhausted {
            return Poll::Ready(None);
        }
        let next = ready!(self.poll_chunk(cx)).transpose();
        self.exhausted = !matches!(next, Some(Ok(_)));
        Poll::Ready(next)
    }
}

impl AsyncRead for Follower {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if let Some(chunk) = ready!(self.poll_chunk(cx))? {
            let mut bytes = chunk.bytes;
            let rest = bytes.split_off(bytes.len().min(buf.remaining()));
            buf.put_slice(&bytes);
            self.offset -= rest.len() as u64;
            self.rest = rest;
        }
        Poll::Ready(Ok(()))
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower").field("offset", &self.offset).field("ended", &self.ended).finish_non_exhaustive()
    }
}
