//! Notices a peer that is gone: pings, and gives up after too much silence.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// Watches whether a peer is alive. The only timer of a connection.
pub(crate) struct Keepalive {
    sleep: Pin<Box<Sleep>>,
    every: Duration,
    /// Silent ticks after which the peer is given up.
    patience: u32,
    heard: u64,
    silent: u32,
}

/// What a tick calls for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum KeepaliveAction {
    Ping,
    GiveUp,
}

impl Keepalive {
    /// Pings every so often, and gives up after so much silence.
    pub(crate) fn new(every: Duration, silence: Duration) -> Self {
        let patience = silence.as_nanos().div_ceil(every.as_nanos().max(1)).clamp(1, u32::MAX.into());
        // A tick may come just after a ping was answered: the silence is full one tick later.
        Self::with_patience(every, u32::try_from(patience).unwrap_or(u32::MAX))
    }

    fn with_patience(every: Duration, patience: u32) -> Self {
        let sleep = Box::pin(sleep_until(Instant::now() + every));
        Self { sleep, every, patience, heard: 0, silent: 0 }
    }

    /// Waits for the next tick; `heard` is the connection's count of signs of life at that time.
    ///
    /// Cancel safe.
    pub(crate) async fn tick(&mut self) {
        std::future::poll_fn(|cx| self.sleep.as_mut().poll(cx)).await;
    }

    /// Says what the tick calls for.
    pub(crate) fn on_tick(&mut self, heard: u64) -> KeepaliveAction {
        self.sleep.as_mut().reset(Instant::now() + self.every);
        if heard != self.heard {
            self.heard = heard;
            self.silent = 0;
        } else {
            self.silent += 1;
        }
        if self.silent >= self.patience { KeepaliveAction::GiveUp } else { KeepaliveAction::Ping }
    }
}
