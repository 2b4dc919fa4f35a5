//! Runs an appender's connections, one after the other.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::pipe::{Order, Pipe, TaskSide};
use crate::client::builder::Settings;
use crate::client::close::closed;
use crate::client::control::{Inbox, ToAppender, wrong};
use crate::client::request::{Answer, Dialect, Options, Verb, WebSocket, send};
use crate::client::retry::Attempts;
use crate::client::url::Target;
use crate::error::{Error, ErrorKind, Result};
use crate::identity::AppenderId;
use crate::websocket::Inbound;
use crate::websocket::frame::{Kind, close_payload};
use crate::websocket::keepalive::{Keepalive, KeepaliveAction};

/// How long the end of a connection may take once its outcome is known.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a server that broke the connection is listened to for its reason.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What it takes to connect again.
pub(super) struct Task {
    pub(super) settings: Arc<Settings>,
    pub(super) target: Target,
    pub(super) id: AppenderId,
    pub(super) side: TaskSide,
    /// What was asked first, and is asked until the server has said where the appender stands.
    pub(super) first: Options,
    /// A finish at this length was sent, and perhaps confirmed.
    pub(super) finishing: Option<u64>,
    /// The life that was known doesn't matter: it has nothing of ours.
    pub(super) any_life: bool,
}

/// How a connection ended.
enum Ended {
    /// All is said.
    Done,
    /// The connection is gone, and nothing else; it was ready for use since then.
    Lost(Error, Option<Instant>),
}

/// What ends a connection.
enum Heard {
    /// The end is confirmed.
    Confirmed,
    /// The user is gone.
    Abandoned,
    /// The server fell silent.
    Silent,
    /// The server broke `httpfstream.v1`.
    Wrong(Error),
    Inbound(Inbound),
}

/// One connection.
struct Link {
    conn: WebSocket,
    dialect: Dialect,
    inbox: Inbox,
    keepalive: Keepalive,
    /// The finish was sent.
    finishing: bool,
}

impl Task {
    /// Runs the first connection and those that replace it, up to the end.
    pub(super) async fn run(mut self, conn: WebSocket, dialect: Dialect) {
        let mut attempts = Attempts::new(self.settings.retry);
        let mut ended = self.converse(conn, dialect).await;
        while let Ended::Lost(error, attached) = ended {
            if self.mistaken_life(&error) {
                // There is nothing to wait for.
            } else {
                attempts.judge(false, attached);
                match attempts.delay(error) {
                    Ok(delay) => {
                        if self.unless_abandoned(sleep(delay)).await.is_none() {
                            return;
                        }
                    }
                    Err(error) => return self.side.end(Err(error)),
                }
            }
            let before = self.pipe().at().acknowledged;
            ended = match self.unless_abandoned(self.connect()).await {
                Some(Ok(conn)) => self.converse(conn, Dialect::Resumable).await,
                Some(Err(error)) => Ended::Lost(error, None),
                None => return,
            };
            attempts.judge(self.pipe().at().acknowledged > before, None);
        }
    }

    fn pipe(&self) -> &Pipe {
        &self.side.0
    }

    /// Does something that is no use to a user who is gone.
    async fn unless_abandoned<T>(&self, doing: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = poll_fn(|cx| self.pipe().poll_abandoned(cx)) => None,
            done = doing => Some(done),
        }
    }

    /// Connects again.
    async fn connect(&self) -> Result<WebSocket> {
        let at = self.pipe().at();
        let mut options = Options::default();
        options.set_id(&self.id)?;
        if !at.resumable {
            options = self.first.clone();
        } else if let Some(life) = at.life.filter(|_| !self.any_life) {
            // As long as nothing is acknowledged, any life will do that has nothing.
            if at.acknowledged > 0 || self.finishing.is_some() {
                options.set("life", life);
            }
            if let Some(length) = self.finishing {
                options.set("finish", length);
            }
        }
        match Box::pin(send(&self.settings, &self.target, Verb::Append, &options)).await? {
            Answer::Upgraded { conn, dialect: Dialect::Resumable, .. } => Ok(conn),
            _ => Err(super::pipe::unspoken("going on")),
        }
    }

    /// Whether the resource is not in the life that was asked for, and needs not be: an empty one may come to nothing.
    fn mistaken_life(&mut self, error: &Error) -> bool {
        let mistaken = matches!(error.kind(), ErrorKind::Life | ErrorKind::NotFound)
            && !self.any_life
            && self.pipe().at().acknowledged == 0;
        self.any_life |= mistaken;
        mistaken
    }

    /// Runs a connection to its end.
    async fn converse(&mut self, mut conn: WebSocket, dialect: Dialect) -> Ended {
        let mut attached = None;
        let mut inbox = Inbox::default();
        if dialect == Dialect::Resumable {
            let greeting =
                self.unless_abandoned(timeout(self.settings.response_timeout, greeting(&mut conn, &mut inbox)));
            let greeted = match greeting.await {
                Some(Ok(greeted)) => greeted.and_then(|greeting| self.greeted(greeting)),
                Some(Err(_)) => Err(Error::new(ErrorKind::TimedOut).with_detail("the server let nothing be appended")),
                None => {
                    conn.close(1001, "", PATIENCE).await;
                    return Ended::Done;
                }
            };
            match greeted {
                Ok(true) => {
                    self.side.end(Ok(()));
                    conn.close(1000, "", PATIENCE).await;
                    return Ended::Done;
                }
                Ok(false) => {
                    attached = Some(Instant::now());
                    // From here on it is this life, and whatever finish was sent has not been done.
                    self.any_life = false;
                    self.finishing = None;
                }
                Err(error) => {
                    let code = if error.kind() == ErrorKind::Protocol { 1002 } else { 1001 };
                    // Who is told first needs not wait for the other.
                    tokio::spawn(async move { conn.close(code, "", PATIENCE).await });
                    return Ended::Lost(error, None);
                }
            }
        }
        let silence = self.settings.silence_timeout;
        let keepalive = Keepalive::new(silence / 3, silence * 2 / 3);
        let mut link = Link { conn, dialect, inbox, keepalive, finishing: false };
        let mut heard = poll_fn(|cx| link.poll(cx, self.pipe())).await;
        if link.finishing {
            self.finishing = Some(self.pipe().at().end);
        }
        if let Heard::Inbound(Inbound::Broken(error)) = heard {
            heard = self.last_words(&mut link, error).await;
        }
        let Link { conn, finishing, .. } = link;
        let error = match heard {
            Heard::Confirmed => {
                self.side.end(Ok(()));
                match dialect {
                    Dialect::Resumable => conn.close(1000, "", PATIENCE).await,
                    _ => conn.shutdown(PATIENCE).await,
                }
                return Ended::Done;
            }
            Heard::Abandoned => {
                if finishing {
                    conn.shutdown(PATIENCE).await;
                } else {
                    conn.close(1001, "", PATIENCE).await;
                }
                return Ended::Done;
            }
            Heard::Silent => silent(),
            Heard::Wrong(error) => {
                tokio::spawn(async move { conn.close(1002, "", PATIENCE).await });
                error
            }
            Heard::Inbound(Inbound::Close(code)) => {
                let error = closed(code, conn.close_reason(), Verb::Append);
                tokio::spawn(async move {
                    if finishing && dialect != Dialect::Resumable {
                        conn.shutdown(PATIENCE).await;
                    } else {
                        conn.close(code.unwrap_or(1000), "", PATIENCE).await;
                    }
                });
                error
            }
            Heard::Inbound(Inbound::ProtocolError { code, reason }) => {
                let detail = format!("the server broke the WebSocket protocol: {reason}");
                tokio::spawn(async move { conn.close(code, &reason, PATIENCE).await });
                Error::new(ErrorKind::Protocol).with_detail(detail)
            }
            Heard::Inbound(Inbound::Broken(error)) => lost(finishing).with_source(error),
            Heard::Inbound(Inbound::Eof { .. } | Inbound::Data { .. } | Inbound::Pong) => lost(finishing),
        };
        if dialect == Dialect::Resumable {
            return Ended::Lost(error, attached);
        }
        self.side.end(Err(error));
        Ended::Done
    }

    /// Takes in the server's first message. True if it says that all has ended before.
    fn greeted(&self, greeting: ToAppender) -> Result<bool> {
        match greeting {
            ToAppender::Attached { offset, life, resumed } => {
                self.pipe().attach(offset, life, resumed)?;
                Ok(false)
            }
            ToAppender::Finished(length) if self.finishing == Some(length) => {
                self.pipe().confirm(length)?;
                Ok(true)
            }
            ToAppender::Finished(_) | ToAppender::Ack(_) => Err(wrong("an acknowledgement before anything was sent")),
        }
    }

    /// A server that refuses and goes away at once makes the next write fail; what it said before can still be read.
    async fn last_words(&self, link: &mut Link, error: io::Error) -> Heard {
        link.conn.out().take_all();
        let listening = async {
            loop {
                match link.conn.inbound().await {
                    Inbound::Data { payload, end, text: true } if link.dialect == Dialect::Resumable => {
                        match link.take_in(&payload, end, self.pipe()) {
                            Ok(false) => {}
                            Ok(true) => return Some(Heard::Confirmed),
                            Err(error) => return Some(Heard::Wrong(error)),
                        }
                    }
                    Inbound::Data { .. } | Inbound::Pong => {}
                    close @ Inbound::Close(_) => return Some(Heard::Inbound(close)),
                    _ => return None,
                }
            }
        };
        timeout(LAST_WORDS, listening).await.ok().flatten().unwrap_or(Heard::Inbound(Inbound::Broken(error)))
    }
}

impl Link {
    /// Reads and writes until it is over.
    fn poll(&mut self, cx: &mut Context<'_>, pipe: &Pipe) -> Poll<Heard> {
        loop {
            // Reading comes first: a server that refuses says so while this side still writes.
            match self.conn.poll_inbound(cx) {
                Poll::Ready(Inbound::Data { payload, end, text }) if self.dialect == Dialect::Resumable => {
                    let taken =
                        if text { self.take_in(&payload, end, pipe) } else { Err(wrong("data to an appender")) };
                    match taken {
                        Ok(false) => continue,
                        Ok(true) => return Poll::Ready(Heard::Confirmed),
                        Err(error) => return Poll::Ready(Heard::Wrong(error)),
                    }
                }
                // An older server has nothing to say here; the original's never reads what it could answer to.
                Poll::Ready(Inbound::Data { .. } | Inbound::Pong) => continue,
                Poll::Ready(Inbound::Close(Some(1000))) if self.finishing && self.dialect != Dialect::Resumable => {
                    let confirmed = pipe.confirm(pipe.at().end);
                    return Poll::Ready(confirmed.map_or_else(Heard::Wrong, |()| Heard::Confirmed));
                }
                Poll::Ready(other) => return Poll::Ready(Heard::Inbound(other)),
                Poll::Pending => {}
            }
            if self.dialect != Dialect::Original && pin!(self.keepalive.tick()).poll(cx).is_ready() {
                match self.keepalive.on_tick(self.conn.activity()) {
                    KeepaliveAction::Ping => self.conn.queue(Kind::Ping, b""),
                    KeepaliveAction::GiveUp => return Poll::Ready(Heard::Silent),
                }
                continue;
            }
            let flushed = self.conn.is_flushed() && !self.finishing;
            let (conn, dialect) = (&mut self.conn, self.dialect);
            // The original's server drops BINARY messages, and takes whatever bytes as TEXT.
            let kind = if dialect == Dialect::Original { Kind::Text } else { Kind::Binary };
            match ready!(pipe.poll_order(cx, flushed, |data| conn.queue(kind, data))) {
                Order::Write => {}
                Order::Finish { seal } => {
                    match (dialect, seal) {
                        (Dialect::Resumable, false) => conn.queue(Kind::Text, br#"{"finish":true}"#),
                        (Dialect::Resumable, true) => conn.queue(Kind::Text, br#"{"finish":true,"seal":true}"#),
                        _ => conn.queue(Kind::Close, &close_payload(1000, "")),
                    }
                    self.finishing = true;
                }
                Order::Abandon => return Poll::Ready(Heard::Abandoned),
            }
        }
    }

    /// Takes in a piece of a control message. True if it confirms the end.
    fn take_in(&mut self, piece: &[u8], end: bool, pipe: &Pipe) -> Result<bool> {
        let Some(message) = self.inbox.push(piece, end)? else { return Ok(false) };
        match ToAppender::parse(&message)? {
            ToAppender::Ack(offset) => pipe.acknowledge(offset).map(|()| false),
            ToAppender::Finished(length) if self.finishing => pipe.confirm(length).map(|()| true),
            ToAppender::Finished(_) => Err(wrong("the confirmation of a finish that it wasn't asked for")),
            ToAppender::Attached { .. } => Err(wrong("a second first message")),
        }
    }
}

/// The server's first message.
async fn greeting(conn: &mut WebSocket, inbox: &mut Inbox) -> Result<ToAppender> {
    loop {
        match conn.inbound().await {
            Inbound::Data { payload, end, text: true } => {
                if let Some(message) = inbox.push(&payload, end)? {
                    return ToAppender::parse(&message);
                }
            }
            Inbound::Data { .. } => return Err(wrong("data to an appender")),
            Inbound::Pong => {}
            Inbound::Close(code) => return Err(closed(code, conn.close_reason(), Verb::Append)),
            Inbound::ProtocolError { reason, .. } => {
                let detail = format!("the server broke the WebSocket protocol: {reason}");
                return Err(Error::new(ErrorKind::Protocol).with_detail(detail));
            }
            Inbound::Eof { .. } => return Err(lost(false)),
            Inbound::Broken(error) => return Err(lost(false).with_source(error)),
        }
    }
}

fn silent() -> Error {
    Error::new(ErrorKind::TimedOut).with_detail("the server fell silent")
}

fn lost(finishing: bool) -> Error {
    Error::new(ErrorKind::Connection).with_detail(if finishing {
        "the connection ended before the server confirmed the end: the last bytes may be missing"
    } else {
        "the connection to the server was lost while appending"
    })
}
