//! Appending over a WebSocket, in the original's dialect and in the resumable subprotocol (protocol sections 3 and 4).

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Response, header, request};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{AppendEnd, AppendLimits, Input, Source, append_from, attach_request, problem_with_current_stat};
use crate::access::{Allowed, Verb};
use crate::body::OwnBody;
use crate::buffer::ByteQueue;
use crate::error::{Error, ErrorKind, Result};
use crate::hub::{Attached, Hub, Lease};
use crate::key::Key;
use crate::protocol::messages;
use crate::server::checks::{authorize, closing};
use crate::server::config::Options;
use crate::server::handshake::AcceptedUpgrade;
use crate::server::intent::Upgrade;
use crate::server::parameters::Parameters;
use crate::server::response::describe;
use crate::state::{End, Stat};
use crate::websocket::frame::{Kind, Role};
use crate::websocket::{Conn, Inbound, Message, Streamed};

/// Answers an upgrade that appends: attaches to the resource, then spawns the connection's task.
pub(crate) async fn append(
    hub: &Arc<Hub>,
    options: &Options,
    key: Key,
    upgrade: Upgrade,
    head: &mut request::Parts,
) -> Result<Response<OwnBody>> {
    options.origins.check(head)?;
    let parameters = Parameters::from_upgrade(head, Verb::Append)?;
    let accepted = AcceptedUpgrade::check(upgrade, head)?;
    let accepted = if parameters.v1 { accepted.select_v1() } else { accepted };
    let (mut response, pending) = accepted.split()?;
    let Allowed { key, left, principal } = authorize(options, Verb::Append, key, head).await?;
    let (lease, resumed) = match hub.attach(&key, attach_request(&parameters, principal.as_deref())).await {
        Ok(Attached::Open { lease, resumed }) => (lease, resumed),
        Ok(Attached::Finished(stat)) => {
            describe(response.headers_mut(), &stat);
            let task_hub = Arc::clone(hub);
            hub.tasks.spawn(async move {
                if let Some(io) = pending.connection().await {
                    confirm_finish(task_hub, io, stat).await;
                }
            });
            return Ok(response);
        }
        Err(error) => return Ok(problem_with_current_stat(hub, &key, &error).await),
    };
    describe(response.headers_mut(), &lease.resource().stat());
    let limits = AppendLimits::new(options, left);
    let dialect = match parameters.v1 {
        true => AppendDialect::V1 { resumed },
        // Not over HTTP/2, where the end of a stream is explicit and a cut may look like it.
        false => AppendDialect::Original { bare: upgrade == Upgrade::Http1 && is_bare(&head.headers) },
    };
    let task_hub = Arc::clone(hub);
    hub.tasks.spawn(async move {
        // Without a connection the lease is dropped, which leaves the resource as it was.
        if let Some(io) = pending.connection().await {
            run(task_hub, io, lease, limits, dialect).await;
        }
    });
    Ok(response)
}

/// What an appender speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AppendDialect {
    /// No subprotocol. `bare`: the handshake is like that of the original's client, see [`is_bare`]. The end of such a
    /// connection finishes the resource.
    Original { bare: bool },
    /// The first message says whether the append was `resumed`.
    V1 { resumed: bool },
}

/// Whether the handshake has neither `User-Agent` nor `Origin`, like that of the original's client, which can neither
/// close a WebSocket nor answer pings.
fn is_bare(headers: &HeaderMap) -> bool {
    !headers.contains_key(header::USER_AGENT) && !headers.contains_key(header::ORIGIN)
}

/// Appends what arrives over a WebSocket, until the appender ends or is lost.
pub(crate) async fn run<IO>(hub: Arc<Hub>, io: IO, mut lease: Lease, limits: AppendLimits, dialect: AppendDialect)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let conn = Conn::new(io, Role::Server, limits.max_message).with_budget(&hub.message_budget);
    let mut socket = WebSocketSource { conn, dialect };
    if let AppendDialect::V1 { resumed } = dialect {
        lease.sync_on_request();
        let resource = lease.resource();
        messages::queue(socket.conn.out(), &messages::appending(resource.len(), resource.life, resumed));
    }
    let end = match append_from(&hub, &mut socket, &mut lease, limits).await {
        // The original's client had nothing to append, or never got the 101 and has gone. A resource that has bytes
        // already must not be finished by that.
        AppendEnd::Finished(_) if socket.activity() == 0 && lease.resource().len() > 0 => AppendEnd::Disconnected,
        end => end,
    };
    let v1 = matches!(dialect, AppendDialect::V1 { .. });
    let close = match end {
        AppendEnd::Finished(end) => match lease.finish(end).await {
            Ok(stat) => {
                if v1 {
                    messages::queue(socket.conn.out(), &messages::finished(stat.len));
                }
                Some((1000, String::new()))
            }
            Err(error) => Some((error.kind().close_code(), error.to_string())),
        },
        AppendEnd::ClosedByPeer(code) => {
            drop(lease);
            Some((code, String::new()))
        }
        AppendEnd::ProtocolError(code, reason) => {
            drop(lease);
            Some((code, reason))
        }
        AppendEnd::Failed(error) => {
            drop(lease);
            Some((error.kind().close_code(), error.to_string()))
        }
        AppendEnd::ShuttingDown => {
            if v1 && let Ok(len) = lease.sync().await {
                messages::queue(socket.conn.out(), &messages::ack(len));
            }
            lease.stop().await;
            Some((1001, Error::from(ErrorKind::ShuttingDown).to_string()))
        }
        // A WebSocket never parks.
        AppendEnd::Disconnected | AppendEnd::Parked => {
            drop(lease);
            None
        }
    };
    if let Some((code, reason)) = close {
        socket.conn.close(code, &reason, closing(&hub)).await;
    }
}

/// Acknowledges a finish that was done before, to an appender that resumed because it never saw the acknowledgement.
async fn confirm_finish<IO>(hub: Arc<Hub>, io: IO, stat: Stat)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut conn = Conn::new(io, Role::Server, 0);
    messages::queue(conn.out(), &messages::finished(stat.len));
    conn.close(1000, "", closing(&hub)).await;
}

struct WebSocketSource<IO> {
    conn: Conn<IO>,
    dialect: AppendDialect,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Source for WebSocketSource<IO> {
    async fn input(&mut self, most: usize) -> Input {
        input(&mut self.conn, most, self.dialect).await
    }

    fn is_stream(&self) -> bool {
        // In the original's dialect whole messages are handed out. They may be large, and the connection's memory
        // budget counts them only until more is read.
        matches!(self.dialect, AppendDialect::V1 { .. })
    }

    fn activity(&self) -> u64 {
        self.conn.activity()
    }

    fn answers_pings(&self) -> bool {
        // The original's client never reads. A ping would turn its close into a reset, which destroys what it sent
        // last.
        self.dialect != AppendDialect::Original { bare: true }
    }

    fn ping(&mut self) {
        if self.answers_pings() {
            self.conn.queue(Kind::Ping, b"");
        }
    }

    fn acks(&mut self) -> Option<&mut ByteQueue> {
        matches!(self.dialect, AppendDialect::V1 { .. }).then(|| self.conn.out())
    }

    async fn send_acks(&mut self, limit: Duration) -> std::io::Result<()> {
        self.conn.flush(limit).await
    }
}

/// The next input, as the dialect defines it.
///
/// Cancel safe.
async fn input<IO>(conn: &mut Conn<IO>, most: usize, dialect: AppendDialect) -> Input
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    match dialect {
        AppendDialect::V1 { .. } => match conn.streamed(most).await {
            Streamed::Data(pieces) => Input::Data(pieces),
            Streamed::Text(message) => Input::Ended(match messages::finish(&message) {
                Some(end) => AppendEnd::Finished(end),
                None => AppendEnd::ProtocolError(1002, "a control message that is not known".to_owned()),
            }),
            Streamed::Other(Inbound::Close(Some(1000))) => Input::Ended(match conn.between_messages() {
                true => AppendEnd::Finished(End::Finished),
                false => AppendEnd::ProtocolError(1002, "closed inside a message".to_owned()),
            }),
            // A close without a code doesn't finish the resource, so 1000 as the reply would be misleading.
            Streamed::Other(Inbound::Close(code)) => Input::Ended(AppendEnd::ClosedByPeer(code.unwrap_or(1001))),
            Streamed::Other(other) => other_input(other),
        },
        AppendDialect::Original { bare } => match conn.message(most).await {
            Message::Data(pieces) => Input::Data(pieces),
            Message::Other(Inbound::Close(code)) => Input::Ended(match code {
                // `socket.close()` in a browser sends a close without a code.
                Some(1000) | None if conn.between_messages() => AppendEnd::Finished(End::Finished),
                Some(1000) | None => AppendEnd::ProtocolError(1002, "closed inside a message".to_owned()),
                Some(code) => AppendEnd::ClosedByPeer(code),
            }),
            Message::Other(Inbound::Eof { between_messages: true }) if bare => {
                Input::Ended(AppendEnd::Finished(End::Finished))
            }
            Message::Other(other) => other_input(other),
        },
    }
}

/// What means the same in both dialects.
fn other_input(inbound: Inbound) -> Input {
    match inbound {
        Inbound::Eof { .. } | Inbound::Broken(_) => Input::Ended(AppendEnd::Disconnected),
        Inbound::ProtocolError { code, reason } => Input::Ended(AppendEnd::ProtocolError(code, reason.into_owned())),
        Inbound::Close(code) => Input::Ended(AppendEnd::ClosedByPeer(code.unwrap_or(1000))),
        Inbound::Pong | Inbound::Data { .. } => Input::Nothing,
    }
}
