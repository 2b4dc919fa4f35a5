//! A WebSocket connection: events in, frames out.

mod close;
mod read;
#[cfg(test)]
mod tests;
mod write;

use std::sync::Arc;

use bytes::BytesMut;

pub(crate) use self::read::{Inbound, Message, Streamed};
use super::frame::{Decoder, Role};
use crate::budget::{Budget, Reservation};
use crate::buffer::ByteQueue;

/// A WebSocket connection after its handshake.
#[derive(Debug)]
pub(crate) struct Conn<IO> {
    io: IO,
    role: Role,
    decoder: Decoder,
    /// Bytes that were read and not decoded yet.
    read_buf: BytesMut,
    /// Whether the next read is a large one.
    read_large: bool,
    /// Length of the small read that `read_buf` was allocated for; 0 if it was extended since, or filled by a large
    /// read.
    small_read_len: usize,
    /// Bytes that are to be written.
    out: ByteQueue,
    /// Bytes of pongs that were queued since `out` was last empty.
    pong_bytes: usize,
    /// Written bytes may still be in a buffer of the I/O, as with TLS.
    unflushed: bool,
    /// Number of reads that returned data.
    reads: u64,
    /// The fragments so far of a message that is delivered whole.
    message: ByteQueue,
    /// `message` is complete, but didn't fit into the batch before it.
    message_complete: bool,
    /// What `message` takes of a budget shared with other connections, if there is one.
    arriving: Option<Reservation>,
    /// What the messages that were returned last take of that budget: they stay in memory until the next call.
    handed_out: Option<Reservation>,
    /// The event that followed a batch of data, to be returned next.
    deferred: Option<Inbound>,
}

impl<IO> Conn<IO> {
    /// `max_message` limits the payload of a message, in bytes.
    pub(crate) fn new(io: IO, role: Role, max_message: u64) -> Self {
        Self {
            io,
            role,
            decoder: Decoder::new(role, max_message),
            read_buf: BytesMut::new(),
            read_large: false,
            small_read_len: 0,
            out: ByteQueue::default(),
            pong_bytes: 0,
            unflushed: false,
            reads: 0,
            message: ByteQueue::default(),
            message_complete: false,
            arriving: None,
            handed_out: None,
            deferred: None,
        }
    }

    /// Charges messages that are larger than a read to this budget.
    pub(crate) fn with_budget(self, budget: &Arc<Budget>) -> Self {
        Self { arriving: Some(budget.reservation()), handed_out: Some(budget.reservation()), ..self }
    }

    /// A counter that grows whenever bytes arrive from the peer.
    pub(crate) fn activity(&self) -> u64 {
        self.reads
    }

    /// Whether the decoder is between two messages, so that an end here truncates nothing.
    pub(crate) fn between_messages(&self) -> bool {
        self.decoder.between_messages()
    }

    /// Whether everything that was queued has been written and flushed.
    pub(crate) fn is_flushed(&self) -> bool {
        self.out.is_empty() && !self.unflushed
    }

    /// The reason in the peer's close frame: see [`Decoder::close_reason`].
    pub(crate) fn close_reason(&self) -> &str {
        self.decoder.close_reason()
    }

    /// The write queue; [`flush`](Self::flush) writes it.
    pub(crate) fn out(&mut self) -> &mut ByteQueue {
        &mut self.out
    }
}
