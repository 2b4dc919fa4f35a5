//! What followers hand out, in process and over the wire.

use bytes::Bytes;

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
