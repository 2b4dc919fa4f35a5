//! What followers hand out, in process and over the wire.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_core::Stream;
use http_body::{Body, Frame};
use pin_project_lite::pin_project;

use crate::error::{Error, Result};
use crate::state::State;

/// A piece of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Chunk {
    /// The bytes, at least one. Chunk boundaries carry no meaning.
    pub bytes: Bytes,
    /// The offset of the byte behind this chunk, from the resource's start: where a later follower continues.
    pub next_offset: u64,
}

impl Chunk {
    pub(crate) fn new(bytes: Bytes, next_offset: u64) -> Self {
        Self { bytes, next_offset }
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl From<Chunk> for Bytes {
    fn from(chunk: Chunk) -> Self {
        chunk.bytes
    }
}

/// What a follower learns next: bytes, or a change of the resource's state.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Update {
    /// The next bytes.
    Data(Chunk),
    /// The appender was lost and may come back ([`State::Lost`]), has left the resource open between two requests
    /// ([`State::Parked`]), or is back ([`State::Live`]).
    State(State),
}

pin_project! {
    /// A follower as the body of a response or a request: what `into_body` of a follower returns.
    ///
    /// The body ends cleanly where the resource does. An error of the follower is the body's error, so that an HTTP
    /// server cuts the response off behind the bytes that came before, and its reader sees that it is not whole.
    #[derive(Debug)]
    pub struct FollowBody<F> {
        #[pin]
        follower: F,
    }
}

impl<F> FollowBody<F> {
    pub(crate) fn new(follower: F) -> Self {
        Self { follower }
    }
}

impl<F> Body for FollowBody<F>
where
    F: Stream<Item = Result<Chunk>>,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        self.project().follower.poll_next(cx).map_ok(|chunk| Frame::data(chunk.bytes))
    }
}
