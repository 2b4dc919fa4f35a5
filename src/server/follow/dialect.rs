//! How a resource is framed for followers over a WebSocket, in the original's dialect and in the resumable subprotocol.

use crate::buffer::ByteQueue;
use crate::error::{ErrorKind, Result};
use crate::hub::{Cursor, Step};
use crate::protocol::messages;
use crate::state::State;
use crate::websocket::frame::{Kind, header_len, put_header};
use crate::websocket::text::{Framer, Text};

/// What a follower speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FollowDialect {
    /// No subprotocol. `by_header`: the verb came in `X-Verb`, as from the original's client.
    Original {
        by_header: bool,
    },
    V1,
}

/// Encodes what a cursor finds into frames of a dialect.
pub(super) enum FrameEncoder {
    Original(Framer),
    V1,
}

/// A framing that depends on nothing but the bytes, so that one encoding serves all followers that share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SharedFraming {
    Original(Text),
    V1,
}

impl FrameEncoder {
    pub(super) fn new(dialect: FollowDialect) -> Self {
        match dialect {
            FollowDialect::Original { by_header } => Self::Original(Framer::new(by_header)),
            FollowDialect::V1 => Self::V1,
        }
    }

    /// The message that opens a follow, if the dialect has one.
    pub(super) fn begin(&self, cursor: &Cursor, out: &mut ByteQueue) {
        if let Self::V1 = self {
            messages::queue(out, &messages::following(cursor.at(), cursor.life(), cursor.state()));
        }
    }

    /// How the next bytes are framed. `None` if that depends on bytes held back for this follower alone.
    pub(super) fn shared_framing(&self) -> Option<SharedFraming> {
        match self {
            Self::Original(framer) => framer.text().map(SharedFraming::Original),
            Self::V1 => Some(SharedFraming::V1),
        }
    }

    pub(super) fn data(&mut self, mut pieces: ByteQueue, out: &mut ByteQueue) {
        match self {
            Self::Original(framer) => framer.push(pieces.take_all(), out),
            Self::V1 => {
                out.reserve(header_len(pieces.len()), pieces.len());
                out.write_with(|buf| put_header(buf, Kind::Binary, pieces.len(), None));
                out.append(&mut pieces);
            }
        }
    }

    /// Queues what precedes the close frame, and returns the frame's code and reason.
    pub(super) fn end(&mut self, step: &Result<Step>, cursor: &Cursor, out: &mut ByteQueue) -> (u16, &'static str) {
        if let Self::Original(framer) = self {
            framer.end(out);
        }
        match (step, self) {
            (Ok(Step::End(state)), Self::V1) => {
                messages::queue(out, &messages::ended(*state, cursor.at()));
                (1000, "")
            }
            (Ok(Step::End(State::Interrupted)), _) => (1011, "the appender was lost: the data is not whole"),
            (Ok(Step::End(_)), _) => (1000, ""),
            (Ok(Step::Cut(ErrorKind::ShuttingDown)), Self::V1) => (1001, "the server is shutting down"),
            // Not 1001, which the original's client takes for a regular end.
            (Ok(Step::Cut(ErrorKind::ShuttingDown)), _) => (1011, "the server is shutting down: the data is not whole"),
            (Ok(_), _) => (1011, "the resource is gone or its storage failed: the data is not whole"),
            (Err(error), _) => {
                tracing::warn!(error = error as &dyn std::error::Error, "reading for a follower failed");
                (1011, "the storage failed: the data is not whole")
            }
        }
    }
}

impl SharedFraming {
    /// A number that tells it from other framings.
    pub(super) fn id(self) -> u8 {
        match self {
            Self::V1 => 0,
            Self::Original(text) => text as u8 + 1,
        }
    }

    /// Encodes bytes for all followers of this framing. `None` if the bytes change the framing, so that each follower
    /// has to encode them for itself.
    pub(super) fn encode(self, pieces: ByteQueue) -> Option<ByteQueue> {
        let mut encoder = match self {
            Self::V1 => FrameEncoder::V1,
            Self::Original(text) => FrameEncoder::Original(Framer::with(text)),
        };
        let mut out = ByteQueue::default();
        encoder.data(pieces, &mut out);
        (encoder.shared_framing() == Some(self)).then_some(out)
    }
}
