//! Appending over a WebSocket, in the original's dialect and in the resumable subprotocol (protocol sections 3 and 4).

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Response, header, request};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::{AppendEnd, AppendLimits, Input, Source, appending};
use crate::access::{Allowed, Verb};
use crate::body::OwnBody;
use crate::buffer::ByteQueue;
use crate::error::{Error, ErrorKind, Result};
use crate::hub::{AttachRequest, Attached, Hub, Lease};
use crate::identity::Owner;
use crate::key::Key;
use crate::protocol::messages;
use crate::server::checks::{authorize, closing};
use crate::server::config::Options;
use crate::server::handshake::AcceptedUpgrade;
use crate::server::intent::Upgrade;
use crate::server::parameters::Parameters;
use crate::server::response::{describe, problem_with_stat};
use crate::state::{End, Stat};
use crate::storage::Open;
use crate::websocket::frame::{Kind, Role};
use crate::websocket::{Conn, Inbound, Message, Streamed};

pub(crate) async fn append(
    hub: &Arc<Hub>,
    options: &Options,
    key: Key,
    upgrade: Upgrade,
    head: &mut request::Parts,
) -> Result<Response<OwnBody>> {
    options.origins.check(head)?;
    let parameters = Parameters::of(head, Verb::Append)?;
    let granted = AcceptedUpgrade::check(upgrade, head)?;
    let granted = if parameters.v1 { granted.speak_v1() } else { granted };
    let (mut response, pending) = granted.split()?;
    let Allowed { key, left, principal } = authorize(options, Verb::Append, key, head).await?;
    let attach = AttachRequest {
        how: if parameters.create { Open::Create } else { Open::Continue },
        owner: parameters.appender.map(|id| Owner::new(&id, principal.as_deref())),
        offset: parameters.offset,
        life: parameters.life,
        finish: parameters.finish,
    };
    let (lease, resumed) = match hub.attach(&key, attach).await {
        Ok(Attached::Open { lease, resumed }) => (lease, resumed),
        Ok(Attached::Finished(stat)) => {
            describe(response.headers_mut(), &stat);
            let task_hub = Arc::clone(hub);
            hub.tasks.spawn(async move {
                if let Some(io) = pending.wait().await {
                    finished(task_hub, io, stat).await;
                }
            });
            return Ok(response);
        }
        Err(error) => return Ok(problem_with_stat(&error, hub.stat(&key).await.ok().flatten())),
    };
    describe(response.headers_mut(), &lease.resource().stat());
    let limits = AppendLimits {
        times: options.times,
        max_message: options.max_message,
        max_resource: options.max_resource,
        until: left.map(|left| Instant::now() + left),
    };
    let dialect = match parameters.v1 {
        true => AppendDialect::V1 { resumed },
        // Over HTTP/2 an end is told as one, and a cut may look like it.
        false => AppendDialect::Original { bare: upgrade == Upgrade::Http1 && is_bare(&head.headers) },
    };
    let task_hub = Arc::clone(hub);
    hub.tasks.spawn(async move {
        // Without a connection the lease is dropped, and the resource is as it was.
        if let Some(io) = pending.wait().await {
            run(task_hub, io, lease, limits, dialect).await;
        }
    });
    Ok(response)
}

/// How an appender speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AppendDialect {
    /// Without a subprotocol. `bare`: it is like the original's client, see [`is_bare`].
    Original { bare: bool },
    /// `resumed` is what it is told first.
    V1 { resumed: bool },
}

/// Whether the peer is like the original's client, which can't close a WebSocket and can't answer pings: its handshake
/// has neither `User-Agent` nor `Origin`.
pub(crate) fn is_bare(headers: &HeaderMap) -> bool {
    !headers.contains_key(header::USER_AGENT) && !headers.contains_key(header::ORIGIN)
}

/// A WebSocket.
struct WebSocketSource<IO> {
    conn: Conn<IO>,
    dialect: AppendDialect,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Source for WebSocketSource<IO> {
    async fn input(&mut self, most: usize) -> Input {
        input(&mut self.conn, most, self.dialect).await
    }

    fn is_stream(&self) -> bool {
        // Whole messages may be large, and are counted for as long as no more is parameters for.
        matches!(self.dialect, AppendDialect::V1 { .. })
    }

    fn activity(&self) -> u64 {
        self.conn.activity()
    }

    fn answers_pings(&self) -> bool {
        // Pinging a peer that never reads would make its close a reset, which destroys what it sent last.
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

/// Appends what arrives over a WebSocket until the appender ends or is lost.
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
    let ended = match appending(&hub, &mut socket, &mut lease, limits).await {
        // The original's client has nothing to append; or it never got the 101, and has gone. What is there is left as it was.
        AppendEnd::Finished(_) if socket.activity() == 0 && lease.resource().len() > 0 => AppendEnd::Disconnected,
        ended => ended,
    };
    let v1 = matches!(dialect, AppendDialect::V1 { .. });
    let last = match ended {
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
        // A WebSocket doesn't park.
        AppendEnd::Disconnected | AppendEnd::Parked => {
            drop(lease);
            None
        }
    };
    if let Some((code, reason)) = last {
        socket.conn.close(code, &reason, closing(&hub)).await;
    }
}

/// Tells an appender that came back for it that its finish had been done.
pub(crate) async fn finished<IO>(hub: Arc<Hub>, io: IO, stat: Stat)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut conn = Conn::new(io, Role::Server, 0);
    messages::queue(conn.out(), &messages::finished(stat.len));
    conn.close(1000, "", closing(&hub)).await;
}

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
            // Not 1000, which would say that all is stored.
            Streamed::Other(Inbound::Close(code)) => Input::Ended(AppendEnd::ClosedByPeer(code.unwrap_or(1001))),
            Streamed::Other(other) => ended(other),
        },
        AppendDialect::Original { bare } => match conn.message(most).await {
            Message::Data(pieces) => Input::Data(pieces),
            Message::Other(Inbound::Close(code)) => Input::Ended(match code {
                // A close without a code is what `socket.close()` in a browser sends.
                Some(1000) | None if conn.between_messages() => AppendEnd::Finished(End::Finished),
                Some(1000) | None => AppendEnd::ProtocolError(1002, "closed inside a message".to_owned()),
                Some(code) => AppendEnd::ClosedByPeer(code),
            }),
            Message::Other(Inbound::Eof { between_messages: true }) if bare => {
                Input::Ended(AppendEnd::Finished(End::Finished))
            }
            Message::Other(other) => ended(other),
        },
    }
}

/// What means the same in all dialects.
fn ended(inbound: Inbound) -> Input {
    match inbound {
        Inbound::Eof { .. } | Inbound::Broken(_) => Input::Ended(AppendEnd::Disconnected),
        Inbound::ProtocolError { code, reason } => Input::Ended(AppendEnd::ProtocolError(code, reason.into_owned())),
        Inbound::Close(code) => Input::Ended(AppendEnd::ClosedByPeer(code.unwrap_or(1000))),
        Inbound::Pong | Inbound::Data { .. } => Input::Nothing,
    }
}
