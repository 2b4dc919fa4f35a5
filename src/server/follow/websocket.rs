//! Following over a WebSocket, in the original's dialect and in the resumable subprotocol (protocol sections 3 and 4).

use std::sync::Arc;

use http::{Response, request};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::dialect::{FollowDialect, FrameEncoder};
use super::find;
use super::group::{Connection, IdleFollower, Wakeup};
use crate::access::{Allowed, Verb};
use crate::body::OwnBody;
use crate::error::{ErrorKind, Result};
use crate::hub::{Cursor, Found, Hub, Step};
use crate::key::Key;
use crate::protocol::messages;
use crate::server::checks::{authorize, closing, deadline, expiry};
use crate::server::config::{Options, Timeouts};
use crate::server::handshake::AcceptedUpgrade;
use crate::server::intent::Upgrade;
use crate::server::parameters::Parameters;
use crate::server::read::serve;
use crate::server::response::{describe, problem_with_stat};
use crate::state::Stat;
use crate::websocket::frame::{Kind, Role};
use crate::websocket::keepalive::{Keepalive, KeepaliveAction};
use crate::websocket::{Conn, Inbound};

/// Answers an upgrade that follows: finds the resource, then spawns the connection's task.
pub(crate) async fn follow(
    hub: &Arc<Hub>,
    options: &Options,
    key: Key,
    upgrade: Upgrade,
    by_header: bool,
    head: &mut request::Parts,
) -> Result<Response<OwnBody>> {
    options.origins.check(head)?;
    let parameters = Parameters::from_upgrade(head, Verb::Follow)?;
    let accepted = AcceptedUpgrade::check(upgrade, head)?;
    let Allowed { key, left, .. } = authorize(options, Verb::Follow, key, head).await?;
    let (mut cursor, modified) = match find(hub, options, &key, parameters.wait).await? {
        Found::Open(cursor) => (cursor, None),
        // Like the original: no upgrade, but the data as a plain body. Not over HTTP/2, where a CONNECT can't be
        // answered by a body, nor in v1, since a browser's WebSocket can't read one.
        Found::Closed(_, stat) if upgrade == Upgrade::Http1 && !parameters.v1 => {
            return serve(hub, &key, head, &stat, &options.content_type).await;
        }
        Found::Closed(cursor, stat) => (cursor, stat.modified),
    };
    let stat = Stat::new(cursor.life(), cursor.len(), cursor.state()).with_modified(modified);
    let started = match parameters.life.is_some_and(|life| life != stat.life) {
        true => Err(ErrorKind::Life.into()),
        false => cursor.start(parameters.start).await,
    };
    if let Err(error) = started {
        return Ok(problem_with_stat(&error, Some(stat)));
    }
    let accepted = if parameters.v1 { accepted.select_v1() } else { accepted };
    let (mut response, pending) = accepted.split()?;
    describe(response.headers_mut(), &stat);
    let dialect = if parameters.v1 { FollowDialect::V1 } else { FollowDialect::Original { by_header } };
    let limits = FollowLimits { timeouts: options.timeouts, until: deadline(left), dialect };
    let task_hub = Arc::clone(hub);
    hub.tasks.spawn(async move {
        if let Some(io) = pending.connection().await {
            run(task_hub, io, cursor, limits).await;
        }
    });
    Ok(response)
}

/// A follower sends no data, so this bounds only messages that are refused.
const MAX_MESSAGE: u64 = 64 * 1024;

/// Bounds of one follow, and its dialect.
#[derive(Debug, Clone, Copy)]
pub(super) struct FollowLimits {
    pub(super) timeouts: Timeouts,
    /// When the grant expires.
    pub(super) until: Option<Instant>,
    pub(super) dialect: FollowDialect,
}

/// Sends what the cursor finds, until the resource is closed or the follower is gone.
pub(super) async fn run<IO>(hub: Arc<Hub>, io: IO, cursor: Cursor, limits: FollowLimits)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let conn = Conn::new(io, Role::Server, MAX_MESSAGE);
    let connection = Box::new(Connection { conn, encoder: FrameEncoder::new(limits.dialect) });
    let close = tokio::select! {
        // Biased, so that what can be sent at once is sent even when the hub aborts.
        biased;
        close = send_all(connection, cursor, limits) => close,
        () = hub.aborting.cancelled() => None,
    };
    if let Some((connection, code, reason)) = close {
        connection.conn.close(code, reason, closing(&hub)).await;
    }
}

/// The follow loop. Returns the close code and reason, or `None` if the connection is gone.
async fn send_all<IO>(
    mut connection: Box<Connection<IO>>,
    mut cursor: Cursor,
    limits: FollowLimits,
) -> Option<(Box<Connection<IO>>, u16, &'static str)>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    connection.encoder.begin(&cursor, connection.conn.out());
    let mut keepalive = Keepalive::new(limits.timeouts.ping, limits.timeouts.silence);
    let mut idle = None;
    loop {
        let wakeup = match cursor.resource().filter(|_| cursor.is_idle()).cloned() {
            Some(resource) => {
                let idle = idle.get_or_insert_with(|| IdleFollower::new(&resource));
                let wakeup = idle.wait(connection, &mut cursor, &resource, limits.until, &mut keepalive).await;
                connection = idle.take_connection(&mut cursor)?;
                wakeup
            }
            None => {
                tokio::select! {
                    step = cursor.next() => Wakeup::Step(step),
                    inbound = connection.conn.inbound() => Wakeup::Inbound(inbound),
                    () = expiry(limits.until) => Wakeup::Expired,
                    () = keepalive.tick() => Wakeup::Tick,
                }
            }
        };
        let step = match wakeup {
            Wakeup::Step(step) => Some(step),
            Wakeup::Recheck => None,
            Wakeup::Inbound(Inbound::Pong) => continue,
            Wakeup::Inbound(Inbound::Data { .. }) => return Some((connection, 1008, "a follower can't send data")),
            Wakeup::Inbound(Inbound::Close(code)) => return Some((connection, code.unwrap_or(1000), "")),
            Wakeup::Inbound(Inbound::ProtocolError { code, .. }) => return Some((connection, code, "protocol error")),
            Wakeup::Inbound(Inbound::Eof { .. } | Inbound::Broken(_)) => return None,
            Wakeup::Expired => return Some((connection, 4003, "no longer authorized")),
            Wakeup::Tick => match keepalive.on_tick(connection.conn.activity()) {
                KeepaliveAction::GiveUp => return Some((connection, 4002, "no answer to pings")),
                KeepaliveAction::Ping => {
                    connection.conn.queue(Kind::Ping, b"");
                    continue;
                }
            },
        };
        let Connection { conn, encoder } = &mut *connection;
        let end = match step {
            None => None,
            Some(Ok(Step::Data(pieces))) => {
                encoder.data(pieces, conn.out());
                None
            }
            Some(Ok(Step::State(state))) => {
                if let FrameEncoder::V1 = encoder {
                    messages::queue(conn.out(), &messages::state(state));
                }
                None
            }
            Some(step) => Some(encoder.end(&step, &cursor, conn.out())),
        };
        match conn.flush(limits.timeouts.stall).await {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => return Some((connection, 4002, "stalled")),
            Err(_) => return None,
        }
        if let Some((code, reason)) = end {
            return Some((connection, code, reason));
        }
    }
}
