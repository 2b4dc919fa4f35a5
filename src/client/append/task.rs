//! The task that runs an appender's connections, one after the other.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::buffer::{Command, SendBuffer, TaskGuard, v1_required};
use crate::client::builder::Settings;
use crate::client::close::close_error;
use crate::client::control::{MessageBuffer, ToAppender, violation};
use crate::client::request::{Accepted, Dialect, Parameters, Verb, WebSocket, send};
use crate::client::retry::Attempts;
use crate::client::url::Target;
use crate::error::{Error, ErrorKind, Result};
use crate::identity::AppenderId;
use crate::websocket::Inbound;
use crate::websocket::frame::{Kind, close_payload};
use crate::websocket::keepalive::{Keepalive, KeepaliveAction};

/// The time limit for closing a connection whose outcome is known.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the client reads on for a close frame after a write failed.
const CLOSE_REASON_TIMEOUT: Duration = Duration::from_secs(1);

/// Sends what is in the buffer, and reconnects.
pub(super) struct AppendTask {
    pub(super) settings: Arc<Settings>,
    pub(super) target: Target,
    pub(super) id: AppenderId,
    pub(super) guard: TaskGuard,
    /// The first request's parameters, used until a server has sent the position.
    pub(super) parameters: Parameters,
    /// A finish at this length was sent; whether the server carried it out is unknown.
    pub(super) pending_finish: Option<u64>,
    /// Another life than the known one is accepted, because no bytes of this appender are stored in that.
    pub(super) any_life: bool,
}

/// What follows the end of a connection.
enum Outcome {
    /// The appender is at its end.
    Done,
    /// Reconnect, unless this error is permanent. The time is when the connection became ready for use, if it did.
    Reconnect(Error, Option<Instant>),
}

/// Why a connection ended.
enum End {
    /// The server confirmed the finish.
    Confirmed,
    /// The appender was dropped.
    Abandoned,
    /// The server was silent for too long.
    Silent,
    /// The server broke `httpfstream.v1`.
    Violation(Error),
    Inbound(Inbound),
}

/// One connection.
struct Connection {
    conn: WebSocket,
    dialect: Dialect,
    message: MessageBuffer,
    keepalive: Keepalive,
    /// The finish was sent.
    finishing: bool,
}

impl AppendTask {
    /// Runs the first connection and those that replace it, up to the append's end.
    pub(super) async fn run(mut self, conn: WebSocket, dialect: Dialect) {
        let mut attempts = Attempts::new(self.settings.retry);
        let mut outcome = self.run_connection(conn, dialect).await;
        while let Outcome::Reconnect(error, attached) = outcome {
            // A life that need not be insisted on is no reason to wait.
            if !self.drop_life(&error) {
                attempts.reset_on_progress(false, attached);
                match attempts.delay(error) {
                    Ok(delay) => {
                        if self.unless_abandoned(sleep(delay)).await.is_none() {
                            return;
                        }
                    }
                    Err(error) => return self.guard.end(Err(error)),
                }
            }
            let before = self.buffer().position().acknowledged;
            outcome = match self.unless_abandoned(self.connect()).await {
                Some(Ok(conn)) => self.run_connection(conn, Dialect::V1).await,
                Some(Err(error)) => Outcome::Reconnect(error, None),
                None => return,
            };
            attempts.reset_on_progress(self.buffer().position().acknowledged > before, None);
        }
    }

    fn buffer(&self) -> &SendBuffer {
        &self.guard.0
    }

    /// Awaits the future, or returns `None` as soon as the appender is dropped.
    async fn unless_abandoned<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = poll_fn(|cx| self.buffer().poll_abandoned(cx)) => None,
            output = future => Some(output),
        }
    }

    /// Reconnects.
    async fn connect(&self) -> Result<WebSocket> {
        let position = self.buffer().position();
        let mut parameters = Parameters::default();
        parameters.set_id(&self.id)?;
        if !position.resumable {
            parameters = self.parameters.clone();
        } else if let Some(life) = position.life.filter(|_| !self.any_life) {
            // While nothing is acknowledged, the resource may be in any life in which it is empty.
            if position.acknowledged > 0 || self.pending_finish.is_some() {
                parameters.set("life", life);
            }
            if let Some(length) = self.pending_finish {
                parameters.set("finish", length);
            }
        }
        match Box::pin(send(&self.settings, &self.target, Verb::Append, &parameters)).await? {
            Accepted::WebSocket { conn, dialect: Dialect::V1, .. } => Ok(conn),
            _ => Err(v1_required("resuming")),
        }
    }

    /// If the error says that the known life is over, and nothing was acknowledged in it, accepts any life from now on.
    /// An empty resource may vanish and be created anew. True if this changed anything.
    fn drop_life(&mut self, error: &Error) -> bool {
        let dropped = matches!(error.kind(), ErrorKind::Life | ErrorKind::NotFound)
            && !self.any_life
            && self.buffer().position().acknowledged == 0;
        self.any_life |= dropped;
        dropped
    }

    /// Runs a connection to its end.
    async fn run_connection(&mut self, mut conn: WebSocket, dialect: Dialect) -> Outcome {
        let mut attached = None;
        let mut message = MessageBuffer::default();
        if dialect == Dialect::V1 {
            let greeting =
                self.unless_abandoned(timeout(self.settings.response_timeout, greeting(&mut conn, &mut message)));
            let finished = match greeting.await {
                Some(Ok(greeting)) => greeting.and_then(|greeting| self.on_greeting(greeting)),
                Some(Err(_)) => {
                    Err(Error::new(ErrorKind::TimedOut).with_detail("the server sent nothing after the upgrade"))
                }
                None => {
                    conn.close(1001, "", CLOSE_TIMEOUT).await;
                    return Outcome::Done;
                }
            };
            match finished {
                Ok(true) => {
                    self.guard.end(Ok(()));
                    conn.close(1000, "", CLOSE_TIMEOUT).await;
                    return Outcome::Done;
                }
                Ok(false) => {
                    attached = Some(Instant::now());
                    // From now on it is this life, and a finish that was sent before was not carried out.
                    self.any_life = false;
                    self.pending_finish = None;
                }
                Err(error) => {
                    let code = if error.kind() == ErrorKind::Protocol { 1002 } else { 1001 };
                    // In a task, so that the closing handshake doesn't delay the next connection.
                    tokio::spawn(async move { conn.close(code, "", CLOSE_TIMEOUT).await });
                    return Outcome::Reconnect(error, None);
                }
            }
        }
        let silence = self.settings.silence_timeout;
        let keepalive = Keepalive::new(silence / 3, silence * 2 / 3);
        let mut connection = Connection { conn, dialect, message, keepalive, finishing: false };
        let mut end = poll_fn(|cx| connection.poll(cx, self.buffer())).await;
        if connection.finishing {
            self.pending_finish = Some(self.buffer().position().end);
        }
        if let End::Inbound(Inbound::Broken(error)) = end {
            end = self.read_close_reason(&mut connection, error).await;
        }
        let Connection { conn, finishing, .. } = connection;
        let error = match end {
            End::Confirmed => {
                self.guard.end(Ok(()));
                match dialect {
                    Dialect::V1 => conn.close(1000, "", CLOSE_TIMEOUT).await,
                    _ => conn.shutdown(CLOSE_TIMEOUT).await,
                }
                return Outcome::Done;
            }
            End::Abandoned => {
                if finishing {
                    conn.shutdown(CLOSE_TIMEOUT).await;
                } else {
                    conn.close(1001, "", CLOSE_TIMEOUT).await;
                }
                return Outcome::Done;
            }
            End::Silent => Error::new(ErrorKind::TimedOut).with_detail("the server fell silent"),
            End::Violation(error) => {
                tokio::spawn(async move { conn.close(1002, "", CLOSE_TIMEOUT).await });
                error
            }
            End::Inbound(Inbound::Close(code)) => {
                let error = close_error(code, conn.close_reason(), Verb::Append);
                tokio::spawn(async move {
                    if finishing && dialect != Dialect::V1 {
                        conn.shutdown(CLOSE_TIMEOUT).await;
                    } else {
                        conn.close(code.unwrap_or(1000), "", CLOSE_TIMEOUT).await;
                    }
                });
                error
            }
            End::Inbound(Inbound::ProtocolError { code, reason }) => {
                let detail = format!("the server broke the WebSocket protocol: {reason}");
                tokio::spawn(async move { conn.close(code, &reason, CLOSE_TIMEOUT).await });
                Error::new(ErrorKind::Protocol).with_detail(detail)
            }
            End::Inbound(Inbound::Broken(error)) => connection_lost(finishing).with_source(error),
            End::Inbound(Inbound::Eof { .. } | Inbound::Data { .. } | Inbound::Pong) => connection_lost(finishing),
        };
        if dialect == Dialect::V1 {
            return Outcome::Reconnect(error, attached);
        }
        self.guard.end(Err(error));
        Outcome::Done
    }

    /// Takes the server's first message. True if it says that the pending finish was carried out.
    fn on_greeting(&self, greeting: ToAppender) -> Result<bool> {
        match greeting {
            ToAppender::Attached { offset, life, resumed } => {
                self.buffer().attach(offset, life, resumed)?;
                Ok(false)
            }
            ToAppender::Finished(length) if self.pending_finish == Some(length) => {
                self.buffer().confirm(length)?;
                Ok(true)
            }
            ToAppender::Finished(_) | ToAppender::Ack(_) => {
                Err(violation("an acknowledgement before anything was sent"))
            }
        }
    }

    /// Reads on after a write failed. A server that sends a close frame and closes the socket at once makes the next
    /// write fail, while the frame can still be read.
    async fn read_close_reason(&self, connection: &mut Connection, error: io::Error) -> End {
        connection.conn.out().take_all();
        let reading = async {
            loop {
                match connection.conn.inbound().await {
                    Inbound::Data { payload, end, text: true } if connection.dialect == Dialect::V1 => {
                        match connection.on_control(&payload, end, self.buffer()) {
                            Ok(false) => {}
                            Ok(true) => return Some(End::Confirmed),
                            Err(error) => return Some(End::Violation(error)),
                        }
                    }
                    Inbound::Data { .. } | Inbound::Pong => {}
                    close @ Inbound::Close(_) => return Some(End::Inbound(close)),
                    _ => return None,
                }
            }
        };
        timeout(CLOSE_REASON_TIMEOUT, reading).await.ok().flatten().unwrap_or(End::Inbound(Inbound::Broken(error)))
    }
}

impl Connection {
    /// Reads and writes until the connection ends.
    fn poll(&mut self, cx: &mut Context<'_>, buffer: &SendBuffer) -> Poll<End> {
        loop {
            // Reading comes first, so that a server's refusal is seen while there is still something to write.
            match self.conn.poll_inbound(cx) {
                Poll::Ready(Inbound::Data { payload, end, text }) if self.dialect == Dialect::V1 => {
                    let confirmed = if text {
                        self.on_control(&payload, end, buffer)
                    } else {
                        Err(violation("data to an appender"))
                    };
                    match confirmed {
                        Ok(false) => continue,
                        Ok(true) => return Poll::Ready(End::Confirmed),
                        Err(error) => return Poll::Ready(End::Violation(error)),
                    }
                }
                // Without v1 a server's messages mean nothing.
                Poll::Ready(Inbound::Data { .. } | Inbound::Pong) => continue,
                Poll::Ready(Inbound::Close(Some(1000))) if self.finishing && self.dialect != Dialect::V1 => {
                    let confirmed = buffer.confirm(buffer.position().end);
                    return Poll::Ready(confirmed.map_or_else(End::Violation, |()| End::Confirmed));
                }
                Poll::Ready(other) => return Poll::Ready(End::Inbound(other)),
                Poll::Pending => {}
            }
            // The original's server reads no control frames, so it can't answer a ping.
            if self.dialect != Dialect::Original && pin!(self.keepalive.tick()).poll(cx).is_ready() {
                match self.keepalive.on_tick(self.conn.activity()) {
                    KeepaliveAction::Ping => self.conn.queue(Kind::Ping, b""),
                    KeepaliveAction::GiveUp => return Poll::Ready(End::Silent),
                }
                continue;
            }
            let flushed = self.conn.is_flushed() && !self.finishing;
            let (conn, dialect) = (&mut self.conn, self.dialect);
            // The original's server drops BINARY messages, and accepts any bytes as TEXT.
            let kind = if dialect == Dialect::Original { Kind::Text } else { Kind::Binary };
            match ready!(buffer.poll_command(cx, flushed, |data| conn.queue(kind, data))) {
                Command::Write => {}
                Command::Finish { seal } => {
                    match (dialect, seal) {
                        (Dialect::V1, false) => conn.queue(Kind::Text, br#"{"finish":true}"#),
                        (Dialect::V1, true) => conn.queue(Kind::Text, br#"{"finish":true,"seal":true}"#),
                        _ => conn.queue(Kind::Close, &close_payload(1000, "")),
                    }
                    self.finishing = true;
                }
                Command::Abandon => return Poll::Ready(End::Abandoned),
            }
        }
    }

    /// Takes a fragment of a control message. True if the message confirms the finish.
    fn on_control(&mut self, fragment: &[u8], end: bool, buffer: &SendBuffer) -> Result<bool> {
        let Some(message) = self.message.push(fragment, end)? else { return Ok(false) };
        match ToAppender::parse(&message)? {
            ToAppender::Ack(offset) => buffer.acknowledge(offset).map(|()| false),
            ToAppender::Finished(length) if self.finishing => buffer.confirm(length).map(|()| true),
            ToAppender::Finished(_) => Err(violation("the confirmation of a finish that was not requested")),
            ToAppender::Attached { .. } => Err(violation("a second first message")),
        }
    }
}

/// Reads the server's first message.
async fn greeting(conn: &mut WebSocket, buffer: &mut MessageBuffer) -> Result<ToAppender> {
    loop {
        match conn.inbound().await {
            Inbound::Data { payload, end, text: true } => {
                if let Some(message) = buffer.push(&payload, end)? {
                    return ToAppender::parse(&message);
                }
            }
            Inbound::Data { .. } => return Err(violation("data to an appender")),
            Inbound::Pong => {}
            Inbound::Close(code) => return Err(close_error(code, conn.close_reason(), Verb::Append)),
            Inbound::ProtocolError { reason, .. } => {
                let detail = format!("the server broke the WebSocket protocol: {reason}");
                return Err(Error::new(ErrorKind::Protocol).with_detail(detail));
            }
            Inbound::Eof { .. } => return Err(connection_lost(false)),
            Inbound::Broken(error) => return Err(connection_lost(false).with_source(error)),
        }
    }
}

fn connection_lost(finishing: bool) -> Error {
    Error::new(ErrorKind::Connection).with_detail(if finishing {
        "the connection ended before the server confirmed the end: the last bytes may be missing"
    } else {
        "the connection to the server was lost while appending"
    })
}
