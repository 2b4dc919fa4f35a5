//! The append loop over a WebSocket without a subprotocol: the original's dialect (protocol section 3).

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, header};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::hub::{Hub, Lease};
use crate::socket::{Beat, Pulse, Times, closing, expiry};
use crate::storage::End;
use crate::wire::frame::{Kind, Role};
use crate::wire::pieces::Pieces;
use crate::wire::{Conn, Inbound, Message};

/// At most as many bytes are gathered into one append: one write, one wake.
const BATCH: usize = 256 * 1024;

/// How long what a sender has sent by the time of a shutdown may take to be stored.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// What an appending connection may do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) times: Times,
    pub(crate) max_message: u64,
    pub(crate) max_resource: u64,
    pub(crate) until: Option<Instant>,
    pub(crate) bare: bool,
}

/// Whether the peer is like the original's client, which can't close a WebSocket and can't answer pings: its handshake
/// has neither `User-Agent` nor `Origin`.
pub(crate) fn is_bare(headers: &HeaderMap) -> bool {
    !headers.contains_key(header::USER_AGENT) && !headers.contains_key(header::ORIGIN)
}

/// How the connection ended.
enum Ended {
    /// The appender says that this was all.
    Finished,
    /// Answer its close with the same code.
    Left(u16),
    /// Close with this code.
    Close(u16, String),
    /// The server stops.
    Stopping,
    /// There is nobody to tell.
    Gone,
}

/// Appends what arrives until the appender ends or is lost.
pub(crate) async fn run<IO>(hub: Arc<Hub>, io: IO, mut lease: Lease, terms: Terms)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut conn = Conn::new(io, Role::Server, terms.max_message);
    let ended = appending(&hub, &mut conn, &mut lease, terms).await;
    let last = match ended {
        Ended::Finished => match lease.finish(End::Finished).await {
            Ok(_) => Some((1000, String::new())),
            Err(error) => Some((error.kind().close_code(), error.to_string())),
        },
        Ended::Left(code) => {
            drop(lease);
            Some((code, String::new()))
        }
        Ended::Close(code, reason) => {
            drop(lease);
            Some((code, reason))
        }
        Ended::Stopping => {
            lease.stop().await;
            Some((1001, Error::from(ErrorKind::ShuttingDown).to_string()))
        }
        Ended::Gone => {
            drop(lease);
            None
        }
    };
    if let Some((code, reason)) = last {
        conn.close(code, &reason, closing(&hub)).await;
    }
}

async fn appending<IO>(hub: &Hub, conn: &mut Conn<IO>, lease: &mut Lease, terms: Terms) -> Ended
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let fenced = lease.resource().ended.clone();
    // Pinging a peer that never reads would make its close a reset, which destroys what it sent last.
    let mut pulse = match terms.bare {
        true => Pulse::new(terms.times.silence, terms.times.silence),
        false => Pulse::new(terms.times.ping, terms.times.ping * 2),
    };
    loop {
        let message = tokio::select! {
            biased;
            () = fenced.cancelled() => return close(&lease.resource().ended_as().into()),
            () = hub.soft.cancelled() => break,
            () = expiry(terms.until) => return close(&expired()),
            message = conn.message(batch(lease, terms)) => message,
            () = pulse.tick() => match pulse.beat(conn.heard()) {
                Beat::Dead => return close(&ErrorKind::TimedOut.into()),
                Beat::Ping if terms.bare => continue,
                Beat::Ping => {
                    conn.put(Kind::Ping, b"");
                    continue;
                }
            },
        };
        if let Some(ended) = take(conn.between_messages(), lease, terms, message).await {
            return ended;
        }
    }
    // The server stops. What has arrived by now still counts, a finish above all; but a sender that doesn't pause
    // must not hold the server up.
    let stopped = Instant::now();
    while stopped.elapsed() < LAST_WORDS {
        let arrived = tokio::select! {
            biased;
            message = conn.message(batch(lease, terms)) => Some(message),
            // Once around the runtime, for it may not have looked at the socket yet.
            () = tokio::task::yield_now() => None,
        };
        let Some(message) = arrived else { break };
        if let Some(ended) = take(conn.between_messages(), lease, terms, message).await {
            return ended;
        }
    }
    Ended::Stopping
}

async fn take(between_messages: bool, lease: &mut Lease, terms: Terms, message: Message) -> Option<Ended> {
    match message {
        Message::Data(pieces) => append(lease, pieces, terms.max_resource).await.err().map(|error| close(&error)),
        Message::Other(Inbound::Close(code)) => match code {
            // A close without a code is what `socket.close()` in a browser sends.
            Some(1000) | None if between_messages => Some(Ended::Finished),
            Some(1000) | None => Some(Ended::Close(1002, "closed inside a message".to_owned())),
            Some(code) => Some(Ended::Left(code)),
        },
        Message::Other(Inbound::Eof { between_messages: true }) if terms.bare => Some(Ended::Finished),
        Message::Other(Inbound::Eof { .. } | Inbound::Broken(_)) => Some(Ended::Gone),
        Message::Other(Inbound::Breach { code, reason }) => Some(Ended::Close(code, reason.into_owned())),
        Message::Other(Inbound::Pong | Inbound::Data { .. }) => None,
    }
}

/// How much may be gathered: a batch ends before the message that is too much for the resource.
fn batch(lease: &Lease, terms: Terms) -> usize {
    let room = terms.max_resource.saturating_sub(lease.resource().len());
    usize::try_from(room).unwrap_or(usize::MAX).min(BATCH)
}

async fn append(lease: &mut Lease, mut pieces: Pieces, max: u64) -> Result<()> {
    if lease.resource().len().saturating_add(pieces.len() as u64) > max {
        return Err(ErrorKind::TooLarge.into());
    }
    lease.append(&pieces.take_all()).await.map(drop)
}

fn close(error: &Error) -> Ended {
    if matches!(error.kind(), ErrorKind::Storage | ErrorKind::Full | ErrorKind::Overloaded) {
        tracing::error!(error = error as &dyn std::error::Error, "appending failed");
    }
    Ended::Close(error.kind().close_code(), error.to_string())
}

fn expired() -> Error {
    Error::new(ErrorKind::Forbidden).with_detail("no longer authorized")
}
