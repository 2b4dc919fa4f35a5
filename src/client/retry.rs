//! When a broken connection is replaced, and when it is given up.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::Instant;

use crate::error::{Error, ErrorKind};

/// What the user wants: see [`ClientBuilder::retry_for`](super::ClientBuilder::retry_for).
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

/// The attempts of one stream since it last got anywhere.
#[derive(Debug)]
pub(super) struct Attempts {
    retry: Retry,
    since: Option<Instant>,
    delays: Option<ExponentialBackoff>,
}

impl Attempts {
    pub(super) fn new(retry: Retry) -> Self {
        Self { retry, since: None, delays: None }
    }

    /// The connection that just ended was good for something: all limits count anew. `attached` is when it was ready
    /// for use. A server that lets everybody in and then fails at once is no progress.
    pub(super) fn judge(&mut self, moved: bool, attached: Option<Instant>) {
        if moved || attached.is_some_and(|attached| attached.elapsed() >= self.retry.longest) {
            *self = Self::new(self.retry);
        }
    }

    /// How long to wait before the next attempt; the error if there is to be none.
    pub(super) fn delay(&mut self, error: Error) -> Result<Duration, Error> {
        if !is_passing(error.kind()) || self.retry.limit.is_zero() {
            return Err(error);
        }
        let gone = self.since.get_or_insert_with(Instant::now).elapsed();
        if gone >= self.retry.limit {
            let kind = error.kind();
            let detail = format!("{error}; given up after {:?} without progress", self.retry.limit);
            return Err(Error::new(kind).with_detail(detail).with_source(error));
        }
        let delay = self.pause().min(self.retry.limit - gone);
        tracing::info!(error = &error as &dyn std::error::Error, ?delay, "the connection is gone, trying again");
        Ok(delay)
    }

    /// The next delay.
    pub(super) fn pause(&mut self) -> Duration {
        let Retry { first, longest, .. } = self.retry;
        let delays = self.delays.get_or_insert_with(|| {
            let delays = ExponentialBuilder::new().with_min_delay(first).with_max_delay(longest);
            delays.without_max_times().with_jitter().build()
        });
        delays.next().unwrap_or(longest)
    }
}

/// Whether the next attempt may fare better. Credentials, contradictions and ends don't mend by themselves.
pub(super) fn is_passing(kind: ErrorKind) -> bool {
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
