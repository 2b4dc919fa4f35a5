//! The options of a follow, and how it is opened.

use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::task::FollowTask;
use super::{Follower, v1_required};
use crate::client::builder::Settings;
use crate::client::request::{Accepted, Dialect, Parameters, Verb, send};
use crate::client::retry::{Attempts, Retry, is_transient};
use crate::client::url::Target;
use crate::error::{ErrorKind, Result};
use crate::protocol::StartPosition;
use crate::state::Life;

/// The longest wait that one request asks a server for. Proxies give up on a response after a minute.
const MAX_WAIT_PER_REQUEST: Duration = Duration::from_secs(30);
/// The delays between requests to a server that doesn't wait itself.
const POLL: Retry = Retry { limit: Duration::MAX, first: Duration::from_millis(100), longest: Duration::from_secs(2) };

/// Follows a resource once it is awaited: see [`Client::follow`](crate::client::Client::follow).
///
/// Starts at the first byte, or where [`offset`](Self::offset), [`tail`](Self::tail) or [`lines`](Self::lines) says; the
/// last of these calls counts.
#[must_use = "nothing is followed before it is awaited"]
#[derive(Debug)]
pub struct FollowRequest {
    destination: Result<(Arc<Settings>, Target)>,
    start: StartPosition,
    life: Option<Life>,
    wait: Duration,
}

impl FollowRequest {
    pub(in crate::client) fn new(destination: Result<(Arc<Settings>, Target)>) -> Self {
        Self { destination, start: StartPosition::Beginning, life: None, wait: Duration::ZERO }
    }

    /// Starts at this offset, in bytes; [`PastEnd`](ErrorKind::PastEnd) if the resource ends before it.
    ///
    /// A server that doesn't speak `httpfstream.v1` sends everything, and the client drops what lies before the offset.
    pub fn offset(mut self, offset: u64) -> Self {
        self.start = StartPosition::Offset(offset);
        self
    }

    /// Starts this many bytes before the end. [`Protocol`](ErrorKind::Protocol) if the server doesn't speak
    /// `httpfstream.v1`.
    pub fn tail(mut self, bytes: u64) -> Self {
        self.start = StartPosition::Tail(bytes);
        self
    }

    /// Starts this many lines before the end; bytes behind the last line feed count as a line.
    /// [`Protocol`](ErrorKind::Protocol) if the server doesn't speak `httpfstream.v1`.
    pub fn lines(mut self, lines: u64) -> Self {
        self.start = StartPosition::Lines(lines);
        self
    }

    /// Only in this life of the resource, else [`Life`](ErrorKind::Life): to continue from an [`offset`](Self::offset).
    /// [`Protocol`](ErrorKind::Protocol) if the server doesn't speak `httpfstream.v1`.
    pub fn life(mut self, life: Life) -> Self {
        self.life = Some(life);
        self
    }

    /// Waits this long for an absent resource before failing with [`NotFound`](ErrorKind::NotFound); [`Duration::MAX`]
    /// waits forever. Default: no wait.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    async fn open(self) -> Result<Follower> {
        let Self { destination, start, life, wait } = self;
        let (settings, target) = destination?;
        let mut parameters = Parameters::default();
        match start {
            StartPosition::Beginning | StartPosition::Offset(0) => {}
            StartPosition::Offset(offset) => parameters.set("offset", offset),
            StartPosition::Tail(bytes) => parameters.set("tail", bytes),
            StartPosition::Lines(lines) => parameters.set("lines", lines),
        }
        if let Some(life) = life {
            parameters.set("life", life);
        }
        let silence = settings.silence_timeout;
        let accepted = open_when_created(&settings, &target, &parameters, wait).await?;
        if let Accepted::WebSocket { conn, dialect: Dialect::V1, .. } = accepted {
            let any_life = life.is_none() && !matches!(start, StartPosition::Offset(1..));
            let mut task = FollowTask::new(settings, target, parameters, any_life);
            let (conn, position) = task.begin(conn).await?;
            return Ok(Follower::resumable(task, conn, position));
        }
        tracing::info!("the server doesn't speak httpfstream.v1: broken connections can't be resumed");
        let skip = match start {
            StartPosition::Beginning if life.is_none() => 0,
            StartPosition::Offset(offset) if life.is_none() => offset,
            _ => return Err(v1_required("an option")),
        };
        Ok(match accepted {
            Accepted::WebSocket { conn, dialect, closed, .. } => {
                Follower::non_resumable(conn, dialect, closed, silence, skip)
            }
            Accepted::Body { response, driver } => Follower::body(response, driver, skip),
        })
    }
}

/// Sends the request, again and again while the resource is absent, up to `wait`.
async fn open_when_created(
    settings: &Arc<Settings>,
    target: &Target,
    parameters: &Parameters,
    wait: Duration,
) -> Result<Accepted> {
    let start = Instant::now();
    let mut attempts = Attempts::new(POLL);
    let mut reachable = false;
    loop {
        let remaining = wait.saturating_sub(start.elapsed());
        let server_wait = remaining.min(MAX_WAIT_PER_REQUEST);
        let mut parameters = parameters.clone();
        if !remaining.is_zero() {
            parameters.set("wait", server_wait.as_millis().div_ceil(1000));
            parameters.extend_timeout(server_wait);
        }
        let sent = Instant::now();
        match Box::pin(send(settings, target, Verb::Follow, &parameters)).await {
            Err(error) if !remaining.is_zero() => {
                let absent = error.kind() == ErrorKind::NotFound;
                let server_waited = sent.elapsed() >= Duration::from_secs(1);
                // A server that was reached before may be restarting. One that never was fails the call at once.
                reachable |= absent || server_waited || error.kind() == ErrorKind::ShuttingDown;
                if !(absent || reachable && is_transient(error.kind())) {
                    return Err(error);
                }
                // A server that waited itself gets the next request at once.
                if !(absent && server_waited) {
                    sleep(attempts.next_delay().min(remaining)).await;
                }
            }
            result => return result,
        }
    }
}

impl IntoFuture for FollowRequest {
    type Output = Result<Follower>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<Follower>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.open())
    }
}
