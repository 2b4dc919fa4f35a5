//! Detects a dead peer: sends pings, and gives up after too long a silence.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// Watches whether a peer is alive. The only timer of a connection.
pub(crate) struct Keepalive {
    sleep: Pin<Box<Sleep>>,
    interval: Duration,
    /// Number of successive ticks without activity after which the peer is given up.
    max_silent_ticks: u32,
    silent_ticks: u32,
    /// The connection's activity counter at the last tick.
    last_activity: u64,
}

/// What to do after a tick.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum KeepaliveAction {
    Ping,
    GiveUp,
}

impl Keepalive {
    /// Ticks every `interval`, and gives up once the peer was silent for `silence`, which is rounded up to whole
    /// intervals.
    pub(crate) fn new(interval: Duration, silence: Duration) -> Self {
        // The tick that first sees activity resets the count, so a peer is given up between `silence` and one interval later.
        let ticks = silence.as_nanos().div_ceil(interval.as_nanos().max(1)).clamp(1, u32::MAX.into());
        Self {
            sleep: Box::pin(sleep_until(Instant::now() + interval)),
            interval,
            max_silent_ticks: u32::try_from(ticks).unwrap_or(u32::MAX),
            silent_ticks: 0,
            last_activity: 0,
        }
    }

    /// Waits for the next tick, after which [`on_tick`](Self::on_tick) is to be called.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn tick(&mut self) {
        std::future::poll_fn(|cx| self.sleep.as_mut().poll(cx)).await;
    }

    /// Starts the next interval and returns what to do now. `activity` is the connection's counter, which grows
    /// whenever something arrives.
    pub(crate) fn on_tick(&mut self, activity: u64) -> KeepaliveAction {
        self.sleep.as_mut().reset(Instant::now() + self.interval);
        if activity != self.last_activity {
            self.last_activity = activity;
            self.silent_ticks = 0;
        } else {
            self.silent_ticks += 1;
        }
        if self.silent_ticks >= self.max_silent_ticks { KeepaliveAction::GiveUp } else { KeepaliveAction::Ping }
    }
}
