//! What a follower can be asked for.

use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::task::Task;
use super::{Follower, unspoken};
use crate::client::builder::Settings;
use crate::client::request::{Answer, Dialect, Options, Verb, send};
use crate::client::retry::{Attempts, Retry, is_passing};
use crate::client::url::Target;
use crate::error::{ErrorKind, Result};
use crate::protocol::StartPosition;
use crate::state::Life;

/// The longest that a server is asked to wait at once: proxies give up on answers after a minute.
const WAIT_AT_ONCE: Duration = Duration::from_secs(30);
/// Between two questions to a server that doesn't wait itself.
const ASK_AGAIN: Retry =
    Retry { limit: Duration::MAX, first: Duration::from_millis(100), longest: Duration::from_secs(2) };

/// Follows a resource once it is awaited: see [`Client::follow`](crate::client::Client::follow).
///
/// Without [`offset`](Self::offset), [`tail`](Self::tail) or [`lines`](Self::lines), of which the last one counts, it
/// begins with the first byte.
#[must_use = "nothing is followed before it is awaited"]
#[derive(Debug)]
pub struct FollowRequest {
    at: Result<(Arc<Settings>, Target)>,
    from: StartPosition,
    life: Option<Life>,
    wait: Duration,
}

impl FollowRequest {
    pub(in crate::client) fn new(at: Result<(Arc<Settings>, Target)>) -> Self {
        Self { at, from: StartPosition::Beginning, life: None, wait: Duration::ZERO }
    }

    /// From this offset on, in bytes; past the end it is [`PastEnd`](ErrorKind::PastEnd).
    ///
    /// A server that doesn't speak `httpfstream.v1` sends everything; what lies before the offset is dropped here.
    pub fn offset(mut self, offset: u64) -> Self {
        self.from = StartPosition::Offset(offset);
        self
    }

    /// From so many bytes before the end on. Needs a server that speaks `httpfstream.v1`, else it is
    /// [`Protocol`](ErrorKind::Protocol).
    pub fn tail(mut self, bytes: u64) -> Self {
        self.from = StartPosition::Tail(bytes);
        self
    }

    /// From so many lines before the end on; what stands behind the last line feed is a line too. Needs a server that
    /// speaks `httpfstream.v1`, else it is [`Protocol`](ErrorKind::Protocol).
    pub fn lines(mut self, lines: u64) -> Self {
        self.from = StartPosition::Lines(lines);
        self
    }

    /// Only in this life of the resource, else [`Life`](ErrorKind::Life): for whoever holds bytes of it. Needs a server
    /// that speaks `httpfstream.v1`, else it is [`Protocol`](ErrorKind::Protocol).
    pub fn life(mut self, life: Life) -> Self {
        self.life = Some(life);
        self
    }

    /// How long an absent resource is waited for before it is [`NotFound`](ErrorKind::NotFound); [`Duration::MAX`] is for
    /// ever. Default: not at all.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    async fn open(self) -> Result<Follower> {
        let Self { at, from, life, wait } = self;
        let (settings, target) = at?;
        let mut options = Options::default();
        match from {
            StartPosition::Beginning | StartPosition::Offset(0) => {}
            StartPosition::Offset(offset) => options.set("offset", offset),
            StartPosition::Tail(bytes) => options.set("tail", bytes),
            StartPosition::Lines(lines) => options.set("lines", lines),
        }
        if let Some(life) = life {
            options.set("life", life);
        }
        let silence = settings.silence_timeout;
        let answer = ask(&settings, &target, &options, wait).await?;
        if let Answer::Upgraded { conn, dialect: Dialect::Resumable, .. } = answer {
            let from_nothing = life.is_none() && !matches!(from, StartPosition::Offset(1..));
            let mut task = Task::new(settings, target, options, from_nothing);
            let (conn, beginning) = task.begin(conn).await?;
            return Ok(Follower::resumable(task, conn, beginning));
        }
        tracing::info!("the server doesn't speak httpfstream.v1: what breaks can't be resumed");
        let skip = match from {
            StartPosition::Beginning if life.is_none() => 0,
            StartPosition::Offset(offset) if life.is_none() => offset,
            _ => return Err(unspoken("what was asked for")),
        };
        Ok(match answer {
            Answer::Upgraded { conn, dialect, ended, .. } => Follower::live(conn, dialect, ended, silence, skip),
            Answer::Plain { response, driver } => Follower::plain(response, driver, skip),
        })
    }
}

/// Asks until the resource is there, as long as it may take.
async fn ask(settings: &Arc<Settings>, target: &Target, options: &Options, wait: Duration) -> Result<Answer> {
    let began = Instant::now();
    let mut attempts = Attempts::new(ASK_AGAIN);
    let mut known = false;
    loop {
        let left = wait.saturating_sub(began.elapsed());
        let at_once = left.min(WAIT_AT_ONCE);
        let mut options = options.clone();
        if !left.is_zero() {
            options.set("wait", at_once.as_millis().div_ceil(1000));
            options.set_patience(at_once);
        }
        let asked = Instant::now();
        match Box::pin(send(settings, target, Verb::Follow, &options)).await {
            Err(error) if !left.is_zero() => {
                let absent = error.kind() == ErrorKind::NotFound;
                // A server that waits itself is asked again at once.
                let waited = asked.elapsed() >= Duration::from_secs(1);
                // One that was there may be restarted meanwhile; one that never was is told at once.
                known |= absent || waited || error.kind() == ErrorKind::ShuttingDown;
                if !(absent || known && is_passing(error.kind())) {
                    return Err(error);
                }
                if !(absent && waited) {
                    sleep(attempts.pause().min(left)).await;
                }
            }
            answer => return answer,
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
