//! When a stream reconnects, and when it gives up.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::Instant;

use crate::error::{Error, ErrorKind};

/// The user's limits: see [`ClientBuilder::retry_for`](super::ClientBuilder::retry_for) and
/// [`retry_delays`](super::ClientBuilder::retry_delays).
#[derive(Debug, Clone, Copy)]
pub(super) struct Retry {
    pub(super) limit: Duration,
    pub(super) first: Duration,
    pub(super) longest: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { limit: Duration::from_secs(120), first: Duration::from_millis(100), longest: Duration::from_secs(5) }
    }
}

/// The attempts of one stream to reconnect since its last progress.
#[derive(Debug)]
pub(super) struct Attempts {
    retry: Retry,
    /// When the first of them began.
    since: Option<Instant>,
    delays: Option<ExponentialBackoff>,
}

impl Attempts {
    pub(super) fn new(retry: Retry) -> Self {
        Self { retry, since: None, delays: None }
    }

    /// Counts the limits anew if the connection that just ended was of use: `progress` was made on it, or it lasted for
    /// the longest delay since `attached`, when it was ready for use. Being accepted by a server that then fails at once
    /// is no progress.
    pub(super) fn reset_on_progress(&mut self, progress: bool, attached: Option<Instant>) {
        if progress || attached.is_some_and(|attached| attached.elapsed() >= self.retry.longest) {
            *self = Self::new(self.retry);
        }
    }

    /// The delay before the next attempt after this error.
    ///
    /// # Errors
    /// The error itself if it is permanent or the time is up.
    pub(super) fn delay(&mut self, error: Error) -> Result<Duration, Error> {
        if !is_transient(error.kind()) || self.retry.limit.is_zero() {
            return Err(error);
        }
        let elapsed = self.since.get_or_insert_with(Instant::now).elapsed();
        if elapsed >= self.retry.limit {
            let kind = error.kind();
            let detail = format!("{error}; given up after {:?} without progress", self.retry.limit);
            return Err(Error::new(kind).with_detail(detail).with_source(error));
        }
        let delay = self.next_delay().min(self.retry.limit - elapsed);
        tracing::info!(error = &error as &dyn std::error::Error, ?delay, "the connection is lost, trying again");
        Ok(delay)
    }

    /// The next exponential delay with jitter, whatever the time limit.
    pub(super) fn next_delay(&mut self) -> Duration {
        let Retry { first, longest, .. } = self.retry;
        let delays = self.delays.get_or_insert_with(|| {
            let delays = ExponentialBuilder::new().with_min_delay(first).with_max_delay(longest);
            delays.without_max_times().with_jitter().build()
        });
        delays.next().unwrap_or(longest)
    }
}

/// Whether another attempt may succeed. Bad credentials, contradictions and ends are permanent.
pub(super) fn is_transient(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Connection
            | ErrorKind::TimedOut
            | ErrorKind::ShuttingDown
            | ErrorKind::Overloaded
            | ErrorKind::Busy
            | ErrorKind::Storage
            | ErrorKind::Full
    )
}
