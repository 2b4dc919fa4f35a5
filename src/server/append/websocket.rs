//! Appending over a WebSocket, in the original's dialect and in the resumable subprotocol (protocol sections 3 and 4).

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Response, header, request};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::{Ended, Input, Source, Terms, appending};
use crate::access::{Allowed, Verb};
use crate::body::OwnBody;
use crate::buffer::Pieces;
use crate::error::{Error, ErrorKind, Result};
use crate::hub::{Attach, Attached, Hub, Lease};
use crate::identity::Owner;
use crate::key::Key;
use crate::protocol::messages;
use crate::server::checks::{authorize, closing};
use crate::server::config::Options;
use crate::server::handshake::Granted;
use crate::server::intent::Upgrade;
use crate::server::parameters::Asked;
use crate::server::response::{describe, told_with};
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
    let asked = Asked::of(head, Verb::Append)?;
    let granted = Granted::check(upgrade, head)?;
    let granted = if asked.v1 { granted.speak_v1() } else { granted };
    let (mut response, pending) = granted.split()?;
    let Allowed { key, left, principal } = authorize(options, Verb::Append, key, head).await?;
    let attach = Attach {
        how: if asked.create { Open::Create } else { Open::Continue },
        owner: asked.appender.map(|id| Owner::new(&id, principal.as_deref())),
        offset: asked.offset,
        life: asked.life,
        finish: asked.finish,
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
        Err(error) => return Ok(told_with(&error, hub.stat(&key).await.ok().flatten())),
    };
    describe(response.headers_mut(), &lease.resource().stat());
    let terms = Terms {
        times: options.times,
        max_message: options.max_message,
        max_resource: options.max_resource,
        until: left.map(|left| Instant::now() + left),
    };
    let dialect = match asked.v1 {
        true => Dialect::V1 { resumed },
        // Over HTTP/2 an end is told as one, and a cut may look like it.
        false => Dialect::Original { bare: upgrade == Upgrade::Http1 && is_bare(&head.headers) },
    };
    let task_hub = Arc::clone(hub);
    hub.tasks.spawn(async move {
        // Without a connection the lease is dropped, and the resource is as it was.
        if let Some(io) = pending.wait().await {
            run(task_hub, io, lease, terms, dialect).await;
        }
    });
    Ok(response)
}

/// How an appender speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
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
struct Socket<IO> {
    conn: Conn<IO>,
    dialect: Dialect,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Source for Socket<IO> {
    async fn input(&mut self, most: usize) -> Input {
        input(&mut self.conn, most, self.dialect).await
    }

    fn is_stream(&self) -> bool {
        // Whole messages may be large, and are counted for as long as no more is asked for.
        matches!(self.dialect, Dialect::V1 { .. })
    }

    fn heard(&self) -> u64 {
        self.conn.heard()
    }

    fn answers_pings(&self) -> bool {
        // Pinging a peer that never reads would make its close a reset, which destroys what it sent last.
        self.dialect != Dialect::Original { bare: true }
    }

    fn ping(&mut self) {
        if self.answers_pings() {
            self.conn.put(Kind::Ping, b"");
        }
    }

    fn acks(&mut self) -> Option<&mut Pieces> {
        matches!(self.dialect, Dialect::V1 { .. }).then(|| self.conn.out())
    }

    async fn send_acks(&mut self, limit: Duration) -> std::io::Result<()> {
        self.conn.flush(limit).await
    }
}

/// Appends what arrives over a WebSocket until the appender ends or is lost.
pub(crate) async fn run<IO>(hub: Arc<Hub>, io: IO, mut lease: Lease, terms: Terms, dialect: Dialect)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let conn = Conn::new(io, Role::Server, terms.max_message).sharing(&hub.incomplete);
    let mut socket = Socket { conn, dialect };
    if let Dialect::V1 { resumed } = dialect {
        lease.acknowledge();
        let resource = lease.resource();
        messages::put(socket.conn.out(), &messages::appending(resource.len(), resource.life, resumed));
    }
    let ended = match appending(&hub, &mut socket, &mut lease, terms).await {
        // The original's client has nothing to append; or it never got the 101, and has gone. What is there is left as it was.
        Ended::Finished(_) if socket.heard() == 0 && lease.resource().len() > 0 => Ended::Gone,
        ended => ended,
    };
    let v1 = matches!(dialect, Dialect::V1 { .. });
    let last = match ended {
        Ended::Finished(end) => match lease.finish(end).await {
            Ok(stat) => {
                if v1 {
                    messages::put(socket.conn.out(), &messages::finished(stat.len));
                }
                Some((1000, String::new()))
            }
            Err(error) => Some((error.kind().close_code(), error.to_string())),
        },
        Ended::Left(code) => {
            drop(lease);
            Some((code, String::new()))
        }
        Ended::Breach(code, reason) => {
            drop(lease);
            Some((code, reason))
        }
        Ended::Failed(error) => {
            drop(lease);
            Some((error.kind().close_code(), error.to_string()))
        }
        Ended::Stopping => {
            if v1 && let Ok(len) = lease.sync().await {
                messages::put(socket.conn.out(), &messages::ack(len));
            }
            lease.stop().await;
            Some((1001, Error::from(ErrorKind::ShuttingDown).to_string()))
        }
        // A WebSocket doesn't park.
        Ended::Gone | Ended::Parked => {
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
    messages::put(conn.out(), &messages::finished(stat.len));
    conn.close(1000, "", closing(&hub)).await;
}

/// Cancel safe.
async fn input<IO>(conn: &mut Conn<IO>, most: usize, dialect: Dialect) -> Input
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    match dialect {
        Dialect::V1 { .. } => match conn.streamed(most).await {
            Streamed::Data(pieces) => Input::Data(pieces),
            Streamed::Text(message) => Input::Ended(match messages::finish(&message) {
                Some(end) => Ended::Finished(end),
                None => Ended::Breach(1002, "a control message that is not known".to_owned()),
            }),
            Streamed::Other(Inbound::Close(Some(1000))) => Input::Ended(match conn.between_messages() {
                true => Ended::Finished(End::Finished),
                false => Ended::Breach(1002, "closed inside a message".to_owned()),
            }),
            // Not 1000, which would say that all is stored.
            Streamed::Other(Inbound::Close(code)) => Input::Ended(Ended::Left(code.unwrap_or(1001))),
            Streamed::Other(other) => ended(other),
        },
        Dialect::Original { bare } => match conn.message(most).await {
            Message::Data(pieces) => Input::Data(pieces),
            Message::Other(Inbound::Close(code)) => Input::Ended(match code {
                // A close without a code is what `socket.close()` in a browser sends.
                Some(1000) | None if conn.between_messages() => Ended::Finished(End::Finished),
                Some(1000) | None => Ended::Breach(1002, "closed inside a message".to_owned()),
                Some(code) => Ended::Left(code),
            }),
            Message::Other(Inbound::Eof { between_messages: true }) if bare => {
                Input::Ended(Ended::Finished(End::Finished))
            }
            Message::Other(other) => ended(other),
        },
    }
}

/// What means the same in all dialects.
fn ended(inbound: Inbound) -> Input {
    match inbound {
        Inbound::Eof { .. } | Inbound::Broken(_) => Input::Ended(Ended::Gone),
        Inbound::Breach { code, reason } => Input::Ended(Ended::Breach(code, reason.into_owned())),
        Inbound::Close(code) => Input::Ended(Ended::Left(code.unwrap_or(1000))),
        Inbound::Pong | Inbound::Data { .. } => Input::Nothing,
    }
}
