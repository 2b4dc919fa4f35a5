//! The follow loop over a WebSocket without a subprotocol: the original's dialect (protocol section 3).

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::error::ErrorKind;
use crate::hub::{Cursor, Hub, Step};
use crate::socket::{Beat, Pulse, Times, closing, expiry};
use crate::storage::State;
use crate::wire::frame::{Kind, Role};
use crate::wire::text::Framer;
use crate::wire::{Conn, Inbound};

/// A follower has nothing to say, so this bounds only what is refused.
const MAX_MESSAGE: u64 = 64 * 1024;

/// What a following connection may do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) times: Times,
    pub(crate) until: Option<Instant>,
    /// The verb came by `X-Verb`, as the original's client gives it.
    pub(crate) original: bool,
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
    let mut framer = Framer::new(terms.original);
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
            Ok(Step::Data(mut pieces)) => {
                framer.push(pieces.take_all(), conn.out());
                None
            }
            Ok(Step::End(State::Interrupted)) => Some((1011, "the appender was lost: the data is not whole")),
            Ok(Step::End(_)) => Some((1000, "")),
            Ok(Step::Cut(ErrorKind::ShuttingDown)) => {
                Some((1011, "the server is shutting down: the data is not whole"))
            }
            Ok(Step::Cut(_)) => Some((1011, "the resource is gone or its storage failed: the data is not whole")),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "reading for a follower failed");
                Some((1011, "the storage failed: the data is not whole"))
            }
        };
        if end.is_some() {
            framer.end(conn.out());
        }
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
