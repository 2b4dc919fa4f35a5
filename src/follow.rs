//! The follow loop over a WebSocket, in the original's dialect and in the resumable subprotocol (protocol sections 3
//! and 4).

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::control;
use crate::error::{ErrorKind, Result};
use crate::hub::{Cursor, Hub, Step};
use crate::socket::{Beat, Pulse, Times, closing, expiry};
use crate::storage::State;
use crate::wire::frame::{Kind, Role, put_header};
use crate::wire::pieces::Pieces;
use crate::wire::text::Framer;
use crate::wire::{Conn, Inbound};

/// A follower has nothing to say, so this bounds only what is refused.
const MAX_MESSAGE: u64 = 64 * 1024;

/// What a following connection may do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) times: Times,
    pub(crate) until: Option<Instant>,
    pub(crate) dialect: Dialect,
}

/// How a follower is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// Without a subprotocol. `by_header`: the verb came by `X-Verb`, as the original's client gives it.
    Original {
        by_header: bool,
    },
    V1,
}

/// Says what the cursor finds, in the follower's dialect.
enum Voice {
    Original(Framer),
    V1,
}

impl Voice {
    fn new(dialect: Dialect) -> Self {
        match dialect {
            Dialect::Original { by_header } => Self::Original(Framer::new(by_header)),
            Dialect::V1 => Self::V1,
        }
    }

    fn begin(&self, cursor: &Cursor, out: &mut Pieces) {
        if let Self::V1 = self {
            control::put(out, &control::following(cursor.at(), cursor.life(), cursor.state()));
        }
    }

    fn data(&mut self, mut pieces: Pieces, out: &mut Pieces) {
        match self {
            Self::Original(framer) => framer.push(pieces.take_all(), out),
            Self::V1 => {
                out.write_with(|buf| put_header(buf, Kind::Binary, pieces.len(), None));
                out.append(&mut pieces);
            }
        }
    }

    /// The close code and reason that tell the end.
    fn end(&mut self, step: &Result<Step>, cursor: &Cursor, out: &mut Pieces) -> (u16, &'static str) {
        if let Self::Original(framer) = self {
            framer.end(out);
        }
        match (step, self) {
            (Ok(Step::End(state)), Self::V1) => {
                control::put(out, &control::ended(*state, cursor.at()));
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

/// Sends what the cursor finds until the resource ends or the follower goes.
pub(crate) async fn run<IO>(hub: Arc<Hub>, io: IO, cursor: Cursor, terms: Terms)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut conn = Conn::new(io, Role::Server, MAX_MESSAGE);
    let ended = tokio::select! {
        // First what it has to be told, as far as that can be done at once.
        biased;
        ended = following(&mut conn, cursor, terms) => ended,
        () = hub.hard.cancelled() => None,
    };
    if let Some((code, reason)) = ended {
        conn.close(code, reason, closing(&hub)).await;
    }
}

/// The close code and reason, or `None` if there is nobody to tell.
async fn following<IO>(conn: &mut Conn<IO>, mut cursor: Cursor, terms: Terms) -> Option<(u16, &'static str)>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut voice = Voice::new(terms.dialect);
    voice.begin(&cursor, conn.out());
    let mut pulse = Pulse::new(terms.times.ping, terms.times.silence);
    loop {
        let step = tokio::select! {
            step = cursor.next() => step,
            inbound = conn.inbound() => match inbound {
                Inbound::Pong => continue,
                Inbound::Data { .. } => return Some((1008, "a follower can't send data")),
                Inbound::Close(code) => return Some((code.unwrap_or(1000), "")),
                Inbound::Breach { code, .. } => return Some((code, "protocol error")),
                Inbound::Eof { .. } | Inbound::Broken(_) => return None,
            },
            () = expiry(terms.until) => return Some((4003, "no longer authorized")),
            () = pulse.tick() => match pulse.beat(conn.heard()) {
                Beat::Dead => return Some((4002, "no answer to pings")),
                Beat::Ping => {
                    conn.put(Kind::Ping, b"");
                    continue;
                }
            },
        };
        let end = match step {
            Ok(Step::Data(pieces)) => {
                voice.data(pieces, conn.out());
                None
            }
            Ok(Step::State(state)) => {
                if let Voice::V1 = voice {
                    control::put(conn.out(), &control::state(state));
                }
                None
            }
            step => Some(voice.end(&step, &cursor, conn.out())),
        };
        match conn.flush(terms.times.stall).await {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => return Some((4002, "stalled")),
            Err(_) => return None,
        }
        if end.is_some() {
            return end;
        }
    }
}
