//! Deadlines that coincide.

use std::time::Duration;

use tokio::time::Instant;

use super::Hub;

impl Hub {
    /// A deadline within this time, rounded down to a tick that all resources share.
    pub(super) fn shared_deadline(&self, within: Duration) -> Instant {
        shared_deadline(self.started_at, within)
    }
}

/// Rounds `now + within` down to a tick, counted from `epoch`. The ticks are half of `within` apart, so that a deadline is
/// never sooner than half of it. Work of many resources coincides that way: many syncs at once cost far less than one
/// after the other.
fn shared_deadline(epoch: Instant, within: Duration) -> Instant {
    const MAX: Duration = Duration::from_secs(366 * 24 * 3600);
    let within = within.min(MAX);
    let latest = Instant::now() + within;
    let tick = (within / 2).as_nanos().max(1);
    let excess = latest.duration_since(epoch).as_nanos() % tick;
    latest - Duration::from_nanos(excess as u64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn deadlines_coincide() {
        let epoch = Instant::now();
        for within in [Duration::ZERO, Duration::from_nanos(3), Duration::from_secs(1), Duration::from_millis(777)] {
            let mut deadlines = BTreeSet::new();
            for _ in 0..1000 {
                tokio::time::advance(Duration::from_millis(1)).await;
                let (now, at) = (Instant::now(), shared_deadline(epoch, within));
                assert!(at + within / 2 + Duration::from_nanos(1) >= now + within && at <= now + within, "{within:?}");
                deadlines.insert(at);
            }
            assert!(within < Duration::from_millis(1) || deadlines.len() <= 4, "{} for {within:?}", deadlines.len());
        }
        assert!(shared_deadline(epoch, Duration::MAX) > epoch + Duration::from_secs(1 << 24));
    }
}
