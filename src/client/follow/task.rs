//! The task that runs a follower's connections, one after the other.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::{self, Permit};
use tokio::time::{Instant, sleep, timeout};

use super::v1_required;
use crate::client::builder::Settings;
use crate::client::close::close_error;
use crate::client::control::{MessageBuffer, ToFollower, violation};
use crate::client::refusal::printable;
use crate::client::request::{Accepted, Dialect, Parameters, Verb, WebSocket, send};
use crate::client::retry::Attempts;
use crate::client::url::Target;
use crate::error::{Error, ErrorKind, Result};
use crate::state::{Life, State};
use crate::websocket::Inbound;
use crate::websocket::frame::Kind;

/// The time limit for closing a connection whose outcome is known.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// What the task hands to the [`Follower`](super::Follower).
#[derive(Debug)]
pub(super) enum Step {
    Data(Bytes),
    State(State),
    /// The resource was created anew before its first byte.
    Life(Life),
    /// The end, with the resource's state if the server sent it.
    End(Result<Option<State>>),
}

/// Where a follower stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Position {
    pub(super) offset: u64,
    pub(super) life: Life,
    pub(super) state: State,
}

/// Follows with `httpfstream.v1`, and reconnects.
pub(super) struct FollowTask {
    settings: Arc<Settings>,
    target: Target,
    /// The first request's parameters, used until a server has sent the position.
    parameters: Parameters,
    attempts: Attempts,
    /// The life that is followed, the offset before which everything was handed out, and the last known state.
    position: Option<Position>,
    /// The user requested no life and no offset, so any life is accepted until the first byte.
    any_life: bool,
    /// The resource existed and, as far as is known, was empty: it may vanish and be created anew.
    was_empty: bool,
    /// When the current connection became ready for use.
    attached: Option<Instant>,
    message: MessageBuffer,
}

impl FollowTask {
    pub(super) fn new(settings: Arc<Settings>, target: Target, parameters: Parameters, any_life: bool) -> Self {
        let attempts = Attempts::new(settings.retry);
        Self {
            settings,
            target,
            parameters,
            attempts,
            position: None,
            any_life,
            was_empty: false,
            attached: None,
            message: MessageBuffer::default(),
        }
    }

    /// Waits for the server's first message on this connection, or on one that replaces it.
    pub(super) async fn begin(&mut self, conn: WebSocket) -> Result<(WebSocket, Position)> {
        match self.greet(conn).await {
            Ok(begun) => Ok(begun),
            Err(error) => self.reconnect(error).await,
        }
    }

    /// Runs the connections up to the resource's end.
    pub(super) async fn run(mut self, mut conn: WebSocket, steps: mpsc::Sender<Step>) {
        loop {
            let before = self.position.map(|position| position.offset);
            let Some(error) = self.follow(conn, &steps).await else { return };
            let progress = self.position.map(|position| position.offset) > before;
            self.attempts.reset_on_progress(progress, self.attached.take());
            let known = self.position.map(|position| (position.life, position.state));
            match self.reconnect(error).await {
                Ok((next, Position { life, state, .. })) => {
                    conn = next;
                    let life = Some(Step::Life(life)).filter(|_| known.is_none_or(|known| known.0 != life));
                    let state = Some(Step::State(state)).filter(|_| known.is_none_or(|known| known.1 != state));
                    for step in [life, state].into_iter().flatten() {
                        if steps.send(step).await.is_err() {
                            return;
                        }
                    }
                }
                Err(error) => {
                    let _ = steps.send(Step::End(Err(error))).await;
                    return;
                }
            }
        }
    }

    /// Connects again after this error, and after those of the attempts to.
    async fn reconnect(&mut self, mut error: Error) -> Result<(WebSocket, Position)> {
        loop {
            error = self.tolerate_absence(error);
            sleep(self.attempts.delay(error)?).await;
            let begun = match self.connect().await {
                Ok(conn) => self.greet(conn).await,
                Err(error) => Err(error),
            };
            match begun {
                Ok(begun) => return Ok(begun),
                Err(next) => error = next,
            }
        }
    }

    /// Turns the absence of a resource from which nothing was read into a transient error. A resource whose appender was
    /// lost without a byte vanishes, life and all. When the appender resumes it is created anew, and a follower at
    /// offset 0 has missed nothing.
    fn tolerate_absence(&mut self, error: Error) -> Error {
        let vanished = matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Life)
            && self.position.take_if(|position| position.offset == 0).is_some();
        self.was_empty |= vanished;
        if vanished || self.was_empty && error.kind() == ErrorKind::NotFound {
            let detail = "the resource had no bytes yet, and is gone for now";
            return Error::new(ErrorKind::Connection).with_detail(detail).with_source(error);
        }
        error
    }

    async fn connect(&self) -> Result<WebSocket> {
        let parameters = match self.position {
            None => self.parameters.clone(),
            Some(Position { life, offset, .. }) => {
                let mut parameters = Parameters::default();
                parameters.set("life", life);
                parameters.set("offset", offset);
                parameters
            }
        };
        match Box::pin(send(&self.settings, &self.target, Verb::Follow, &parameters)).await? {
            Accepted::WebSocket { conn, dialect: Dialect::V1, .. } => Ok(conn),
            _ => Err(v1_required("resuming")),
        }
    }

    /// Waits for the server's first message, within the time limit.
    async fn greet(&mut self, mut conn: WebSocket) -> Result<(WebSocket, Position)> {
        self.message = MessageBuffer::default();
        let greeting = timeout(self.settings.response_timeout, self.greeting(&mut conn)).await;
        let silent = || Error::new(ErrorKind::TimedOut).with_detail("the server sent nothing after the upgrade");
        match greeting.map_err(|_| silent()).flatten() {
            Ok(position) => {
                self.attached = Some(Instant::now());
                Ok((conn, position))
            }
            Err(error) => {
                // The upgrade shows that the resource existed. Whether it had bytes is not known.
                self.was_empty |= self.position.is_none() && self.any_life;
                if error.kind() == ErrorKind::Protocol {
                    tokio::spawn(async move { conn.close(1002, "", CLOSE_TIMEOUT).await });
                }
                Err(error)
            }
        }
    }

    async fn greeting(&mut self, conn: &mut WebSocket) -> Result<Position> {
        loop {
            let message = match conn.inbound().await {
                Inbound::Data { payload, end, text: true } => match self.message.push(&payload, end)? {
                    Some(message) => message,
                    None => continue,
                },
                Inbound::Data { .. } => return Err(violation("data before its first message")),
                Inbound::Pong => continue,
                other => return Err(end_error(other, conn.close_reason())),
            };
            let ToFollower::Begin { offset, life, state } = ToFollower::parse(&message)? else {
                return Err(violation("another first message"));
            };
            if self.position.is_some_and(|position| (position.offset, position.life) != (offset, life)) {
                return Err(violation("another part of the resource than was requested"));
            }
            let position = Position { offset, life, state };
            self.position = Some(position);
            return Ok(position);
        }
    }

    /// Follows on one connection. Returns the error that ended it; `None` after the resource's end, or once the
    /// [`Follower`](super::Follower) is dropped.
    async fn follow(&mut self, mut conn: WebSocket, steps: &mpsc::Sender<Step>) -> Option<Error> {
        // Nothing is read from the socket while the queue is full.
        while let Ok(permit) = steps.reserve().await {
            let ended = match inbound(&mut conn, self.settings.silence_timeout).await {
                Ok(Inbound::Data { payload, end, text }) => self.on_data(permit, payload, end, text),
                Ok(Inbound::Pong) => Ok(false),
                Ok(other) => {
                    let code = match &other {
                        Inbound::Close(code) => Some(code.unwrap_or(1000)),
                        Inbound::ProtocolError { code, .. } => Some(*code),
                        _ => None,
                    };
                    let error = end_error(other, conn.close_reason());
                    if let Some(code) = code {
                        tokio::spawn(async move { conn.close(code, "", CLOSE_TIMEOUT).await });
                    }
                    return Some(error);
                }
                Err(silent) => return Some(silent),
            };
            match ended {
                Ok(false) => {}
                Ok(true) => {
                    conn.close(1000, "", CLOSE_TIMEOUT).await;
                    return None;
                }
                Err(error) => {
                    tokio::spawn(async move { conn.close(1002, "", CLOSE_TIMEOUT).await });
                    return Some(error);
                }
            }
        }
        None
    }

    /// Takes a fragment of a message. True if the message is the resource's end.
    fn on_data(&mut self, permit: Permit<'_, Step>, payload: Bytes, end: bool, text: bool) -> Result<bool> {
        let Some(position) = &mut self.position else { return Err(violation("data before its first message")) };
        if !text {
            if !payload.is_empty() {
                position.offset += payload.len() as u64;
                permit.send(Step::Data(payload));
            }
            return Ok(false);
        }
        let Some(message) = self.message.push(&payload, end)? else { return Ok(false) };
        match ToFollower::parse(&message)? {
            ToFollower::Open(state) => {
                if std::mem::replace(&mut position.state, state) != state {
                    permit.send(Step::State(state));
                }
                Ok(false)
            }
            ToFollower::End { length, .. } if length != position.offset => {
                Err(violation("an end elsewhere than where its data ends"))
            }
            ToFollower::End { state, .. } => {
                permit.send(Step::End(Ok(Some(state))));
                Ok(true)
            }
            ToFollower::Begin { .. } => Err(violation("a second first message")),
        }
    }
}

/// Runs the one connection to a server that doesn't speak `httpfstream.v1`.
pub(super) async fn run_non_resumable(
    mut conn: WebSocket,
    steps: mpsc::Sender<Step>,
    dialect: Dialect,
    silence: Duration,
) {
    while let Ok(permit) = steps.reserve().await {
        let inbound = match dialect {
            // The original's server may be silent for any time, and can't answer pings.
            Dialect::Original => Ok(conn.inbound().await),
            _ => inbound(&mut conn, silence).await,
        };
        let (end, reply) = match inbound {
            Ok(Inbound::Data { payload, .. }) => {
                if !payload.is_empty() {
                    permit.send(Step::Data(payload));
                }
                continue;
            }
            Ok(Inbound::Pong) => continue,
            Ok(Inbound::Close(Some(1000))) => (Ok(None), Some(1000)),
            Ok(Inbound::Close(code)) => {
                (Err(close_error(code, conn.close_reason(), Verb::Follow)), Some(code.unwrap_or(1000)))
            }
            Ok(Inbound::ProtocolError { code, reason }) => (Err(websocket_violation(code, &reason)), Some(code)),
            Ok(Inbound::Eof { .. }) => (Err(connection_lost("the connection ended, but the resource did not")), None),
            Ok(Inbound::Broken(error)) => (Err(connection_lost("the connection broke").with_source(error)), None),
            Err(silent) => (Err(silent), None),
        };
        permit.send(Step::End(end));
        if let Some(code) = reply {
            conn.close(code, "", CLOSE_TIMEOUT).await;
        }
        return;
    }
}

/// What the server sends next. Pings it after each third of the time, and fails if it was silent for all of it.
async fn inbound(conn: &mut WebSocket, silence: Duration) -> Result<Inbound> {
    for _ in 0..3 {
        match timeout(silence / 3, conn.inbound()).await {
            Ok(inbound) => return Ok(inbound),
            Err(_) => conn.queue(Kind::Ping, b""),
        }
    }
    let detail = format!("the server fell silent for {silence:?}");
    Err(Error::new(ErrorKind::TimedOut).with_detail(detail))
}

/// The error for the end of a connection with `httpfstream.v1`, where no close code means the resource's end.
fn end_error(inbound: Inbound, reason: &str) -> Error {
    match inbound {
        Inbound::Close(Some(1000)) => connection_lost("the server closed the connection before the resource's end"),
        Inbound::Close(Some(1011)) => Error::new(ErrorKind::Storage)
            .with_detail(format!("the server could not go on (close code 1011: {})", printable(reason))),
        Inbound::Close(code) => close_error(code, reason, Verb::Follow),
        Inbound::ProtocolError { code, reason } => websocket_violation(code, &reason),
        Inbound::Broken(error) => connection_lost("the connection broke").with_source(error),
        Inbound::Eof { .. } | Inbound::Data { .. } | Inbound::Pong => {
            connection_lost("the connection ended, but the resource did not")
        }
    }
}

fn websocket_violation(code: u16, reason: &str) -> Error {
    let kind = if code == 1009 { ErrorKind::TooLarge } else { ErrorKind::Protocol };
    Error::new(kind).with_detail(format!("the server broke the WebSocket protocol: {reason}"))
}

pub(super) fn connection_lost(how: &'static str) -> Error {
    Error::new(ErrorKind::Connection).with_detail(how)
}
