//! What a follower over a WebSocket is sent, in the original's dialect and in the resumable subprotocol.

use crate::buffer::ByteQueue;
use crate::error::{ErrorKind, Result};
use crate::hub::{Cursor, Step};
use crate::protocol::messages;
use crate::state::State;
use crate::websocket::frame::{Kind, header_len, put_header};
use crate::websocket::text::{Framer, Text};

/// How a follower is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FollowDialect {
    /// Without a subprotocol. `by_header`: the verb came by `X-Verb`, as the original's client gives it.
    Original {
        by_header: bool,
    },
    V1,
}

/// Says what the cursor finds, in the follower's dialect.
pub(crate) enum FrameEncoder {
    Original(Framer),
    V1,
}

impl FrameEncoder {
    pub(crate) fn new(dialect: FollowDialect) -> Self {
        match dialect {
            FollowDialect::Original { by_header } => Self::Original(Framer::new(by_header)),
            FollowDialect::V1 => Self::V1,
        }
    }

    pub(super) fn begin(&self, cursor: &Cursor, out: &mut ByteQueue) {
        if let Self::V1 = self {
            messages::queue(out, &messages::following(cursor.at(), cursor.life(), cursor.state()));
        }
    }

    /// All that tells how the next bytes are framed, where that is not for this follower alone: as what text.
    pub(crate) fn text(&self) -> Option<Option<Text>> {
        match self {
            Self::Original(framer) => framer.text().map(Some),
            Self::V1 => Some(None),
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

    /// The close code and reason that tell the end.
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
            // The original's client takes 1001 for the end.
            (Ok(Step::Cut(ErrorKind::ShuttingDown)), _) => (1011, "the server is shutting down: the data is not whole"),
            (Ok(_), _) => (1011, "the resource is gone or its storage failed: the data is not whole"),
            (Err(error), _) => {
                tracing::warn!(error = error as &dyn std::error::Error, "reading for a follower failed");
                (1011, "the storage failed: the data is not whole")
            }
        }
    }
}

/// What all who are in this state are sent; `None` if it leaves them in another one.
pub(crate) fn encode(text: Option<Text>, pieces: ByteQueue) -> Option<ByteQueue> {
    let mut encoder = text.map_or(FrameEncoder::V1, |text| FrameEncoder::Original(Framer::with(text)));
    let mut out = ByteQueue::default();
    encoder.data(pieces, &mut out);
    (encoder.text() == Some(text)).then_some(out)
}
