//! Runs a follower's connections, one after the other.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::{self, Permit};
use tokio::time::{Instant, sleep, timeout};

use super::unspoken;
use crate::client::builder::Settings;
use crate::client::close::closed;
use crate::client::control::{Inbox, ToFollower, wrong};
use crate::client::refusal::printable;
use crate::client::request::{Answer, Dialect, Options, Verb, WebSocket, send};
use crate::client::retry::Attempts;
use crate::client::url::Target;
use crate::error::{Error, ErrorKind, Result};
use crate::state::{Life, State};
use crate::websocket::Inbound;
use crate::websocket::frame::Kind;

/// How long the end of a connection may take once its outcome is known.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the user's side is told.
#[derive(Debug)]
pub(super) enum Step {
    Piece(Bytes),
    State(State),
    /// Another life, before its first byte.
    Life(Life),
    /// In which state it ended, where the server tells states.
    End(Result<Option<State>>),
}

/// Where a connection begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Beginning {
    pub(super) offset: u64,
    pub(super) life: Life,
    pub(super) state: State,
}

/// What it takes to connect again.
pub(super) struct Task {
    settings: Arc<Settings>,
    target: Target,
    /// What was asked first, and is asked until the server has said where it begins.
    first: Options,
    attempts: Attempts,
    /// The life that is followed, the offset up to which its bytes were handed on, and the state that was told last.
    reached: Option<Beginning>,
    /// Nothing is held of it before it begins.
    from_nothing: bool,
    /// The resource was there and, as far as is known, had nothing, so that it may have come to nothing, and may come again.
    was_empty: bool,
    attached: Option<Instant>,
    inbox: Inbox,
}

impl Task {
    pub(super) fn new(settings: Arc<Settings>, target: Target, first: Options, from_nothing: bool) -> Self {
        let attempts = Attempts::new(settings.retry);
        Self {
            settings,
            target,
            first,
            attempts,
            reached: None,
            from_nothing,
            was_empty: false,
            attached: None,
            inbox: Inbox::default(),
        }
    }

    /// Sees to it that a connection stands and has begun: this one, or those that replace it.
    pub(super) async fn begin(&mut self, conn: WebSocket) -> Result<(WebSocket, Beginning)> {
        match self.greet(conn).await {
            Ok(begun) => Ok(begun),
            Err(error) => self.again(error).await,
        }
    }

    /// Runs the connections up to the end.
    pub(super) async fn run(mut self, mut conn: WebSocket, steps: mpsc::Sender<Step>) {
        loop {
            let before = self.reached.map(|reached| reached.offset);
            let Some(error) = self.follow(conn, &steps).await else { return };
            self.attempts.judge(self.reached.map(|reached| reached.offset) > before, self.attached.take());
            let told = self.reached.map(|reached| (reached.life, reached.state));
            match self.again(error).await {
                Ok((next, Beginning { life, state, .. })) => {
                    conn = next;
                    let life = Some(Step::Life(life)).filter(|_| told.is_none_or(|told| told.0 != life));
                    let state = Some(Step::State(state)).filter(|_| told.is_none_or(|told| told.1 != state));
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

    /// Makes another connection instead of one that ended so.
    async fn again(&mut self, mut error: Error) -> Result<(WebSocket, Beginning)> {
        loop {
            let tolerated = self.tolerated(error);
            sleep(self.attempts.delay(tolerated)?).await;
            let begun = match self.connect().await {
                Ok(conn) => self.greet(conn).await,
                Err(error) => Err(error),
            };
            match begun {
                Ok(begun) => return Ok(begun),
                Err(again) => error = again,
            }
        }
    }

    /// An appender that was lost without a byte leaves nothing behind, not even a life; when it comes back there is
    /// another one. Whoever has read nothing misses nothing by that.
    fn tolerated(&mut self, error: Error) -> Error {
        let gone = matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Life)
            && self.reached.take_if(|reached| reached.offset == 0).is_some();
        self.was_empty |= gone;
        if gone || self.was_empty && error.kind() == ErrorKind::NotFound {
            let detail = "the resource had no bytes yet, and is gone for now";
            return Error::new(ErrorKind::Connection).with_detail(detail).with_source(error);
        }
        error
    }

    async fn connect(&self) -> Result<WebSocket> {
        let options = match self.reached {
            None => self.first.clone(),
            Some(Beginning { life, offset, .. }) => {
                let mut options = Options::default();
                options.set("life", life);
                options.set("offset", offset);
                options
            }
        };
        match Box::pin(send(&self.settings, &self.target, Verb::Follow, &options)).await? {
            Answer::Upgraded { conn, dialect: Dialect::Resumable, .. } => Ok(conn),
            _ => Err(unspoken("going on")),
        }
    }

    /// Takes in the server's first message.
    async fn greet(&mut self, mut conn: WebSocket) -> Result<(WebSocket, Beginning)> {
        self.inbox = Inbox::default();
        let greeting = timeout(self.settings.response_timeout, self.greeting(&mut conn)).await;
        let silent = || Error::new(ErrorKind::TimedOut).with_detail("the server said nothing after the upgrade");
        match greeting.map_err(|_| silent()).flatten() {
            Ok(beginning) => {
                self.attached = Some(Instant::now());
                Ok((conn, beginning))
            }
            Err(error) => {
                // It was there, or there would have been no upgrade; what it had was not told any more.
                self.was_empty |= self.reached.is_none() && self.from_nothing;
                if error.kind() == ErrorKind::Protocol {
                    tokio::spawn(async move { conn.close(1002, "", PATIENCE).await });
                }
                Err(error)
            }
        }
    }

    async fn greeting(&mut self, conn: &mut WebSocket) -> Result<Beginning> {
        loop {
            let message = match conn.inbound().await {
                Inbound::Data { payload, end, text: true } => match self.inbox.push(&payload, end)? {
                    Some(message) => message,
                    None => continue,
                },
                Inbound::Data { .. } => return Err(wrong("data before its first message")),
                Inbound::Pong => continue,
                other => return Err(broken(other, conn.close_reason())),
            };
            let ToFollower::Begin { offset, life, state } = ToFollower::parse(&message)? else {
                return Err(wrong("another first message"));
            };
            if self.reached.is_some_and(|reached| (reached.offset, reached.life) != (offset, life)) {
                return Err(wrong("another part of the resource than was asked for"));
            }
            let beginning = Beginning { offset, life, state };
            self.reached = Some(beginning);
            return Ok(beginning);
        }
    }

    /// Follows on one connection. Gives the error that ended it; `None` once all is said.
    async fn follow(&mut self, mut conn: WebSocket, steps: &mpsc::Sender<Step>) -> Option<Error> {
        // While the user has no room for more, nothing is read.
        while let Ok(room) = steps.reserve().await {
            let taken = match inbound(&mut conn, self.settings.silence_timeout).await {
                Ok(Inbound::Data { payload, end, text }) => self.take_in(room, payload, end, text),
                Ok(Inbound::Pong) => Ok(false),
                Ok(other) => {
                    let code = match &other {
                        Inbound::Close(code) => Some(code.unwrap_or(1000)),
                        Inbound::ProtocolError { code, .. } => Some(*code),
                        _ => None,
                    };
                    let error = broken(other, conn.close_reason());
                    if let Some(code) = code {
                        tokio::spawn(async move { conn.close(code, "", PATIENCE).await });
                    }
                    return Some(error);
                }
                Err(silent) => return Some(silent),
            };
            match taken {
                Ok(false) => {}
                Ok(true) => {
                    conn.close(1000, "", PATIENCE).await;
                    return None;
                }
                Err(error) => {
                    tokio::spawn(async move { conn.close(1002, "", PATIENCE).await });
                    return Some(error);
                }
            }
        }
        None
    }

    /// Takes in a piece of a message. True if it tells the end.
    fn take_in(&mut self, room: Permit<'_, Step>, payload: Bytes, end: bool, text: bool) -> Result<bool> {
        let Some(reached) = &mut self.reached else { return Err(wrong("data before its first message")) };
        if !text {
            if !payload.is_empty() {
                reached.offset += payload.len() as u64;
                room.send(Step::Piece(payload));
            }
            return Ok(false);
        }
        let Some(message) = self.inbox.push(&payload, end)? else { return Ok(false) };
        match ToFollower::parse(&message)? {
            ToFollower::Open(state) => {
                if std::mem::replace(&mut reached.state, state) != state {
                    room.send(Step::State(state));
                }
                Ok(false)
            }
            ToFollower::End { length, .. } if length != reached.offset => {
                Err(wrong("an end elsewhere than where its data ends"))
            }
            ToFollower::End { state, .. } => {
                room.send(Step::End(Ok(Some(state))));
                Ok(true)
            }
            ToFollower::Begin { .. } => Err(wrong("a second first message")),
        }
    }
}

/// Runs a connection without the subprotocol to its end.
pub(super) async fn run_plain(mut conn: WebSocket, steps: mpsc::Sender<Step>, dialect: Dialect, silence: Duration) {
    while let Ok(room) = steps.reserve().await {
        let inbound = match dialect {
            // It may be silent for ever.
            Dialect::Original => Ok(conn.inbound().await),
            _ => inbound(&mut conn, silence).await,
        };
        let (end, reply) = match inbound {
            Ok(Inbound::Data { payload, .. }) => {
                if !payload.is_empty() {
                    room.send(Step::Piece(payload));
                }
                continue;
            }
            Ok(Inbound::Pong) => continue,
            Ok(Inbound::Close(Some(1000))) => (Ok(None), Some(1000)),
            Ok(Inbound::Close(code)) => {
                (Err(closed(code, conn.close_reason(), Verb::Follow)), Some(code.unwrap_or(1000)))
            }
            Ok(Inbound::ProtocolError { code, reason }) => (Err(breach(code, &reason)), Some(code)),
            Ok(Inbound::Eof { .. }) => (Err(lost("the connection ended, but the resource did not")), None),
            Ok(Inbound::Broken(error)) => (Err(lost("the connection broke").with_source(error)), None),
            Err(silent) => (Err(silent), None),
        };
        room.send(Step::End(end));
        if let Some(code) = reply {
            conn.close(code, "", PATIENCE).await;
        }
        return;
    }
}

/// What the server did, unless it is silent for too long.
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

/// What ended a connection of `httpfstream.v1`. No close code tells the resource's end there.
fn broken(inbound: Inbound, reason: &str) -> Error {
    match inbound {
        Inbound::Close(Some(1000)) => lost("the server closed the connection before the resource's end"),
        Inbound::Close(Some(1011)) => Error::new(ErrorKind::Storage)
            .with_detail(format!("the server could not go on (close code 1011: {})", printable(reason))),
        Inbound::Close(code) => closed(code, reason, Verb::Follow),
        Inbound::ProtocolError { code, reason } => breach(code, &reason),
        Inbound::Broken(error) => lost("the connection broke").with_source(error),
        Inbound::Eof { .. } | Inbound::Data { .. } | Inbound::Pong => {
            lost("the connection ended, but the resource did not")
        }
    }
}

fn breach(code: u16, reason: &str) -> Error {
    let kind = if code == 1009 { ErrorKind::TooLarge } else { ErrorKind::Protocol };
    Error::new(kind).with_detail(format!("the server broke the WebSocket protocol: {reason}"))
}

pub(super) fn lost(how: &'static str) -> Error {
    Error::new(ErrorKind::Connection).with_detail(how)
}
