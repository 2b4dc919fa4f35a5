//! The hub's configuration.

use std::time::Duration;

use super::Limits;

#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// How many of the last bytes of each open resource are cached.
    pub(crate) tail_cache: usize,
    pub(crate) durability: Durability,
    /// How long a lost resource waits for its appender.
    pub(crate) grace: Duration,
    /// How long a parked resource waits for its appender.
    pub(crate) parking_timeout: Duration,
    pub(crate) limits: Limits,
    /// How long a call of the storage may take.
    pub(crate) storage_timeout: Duration,
}

/// When committed bytes are made to survive a power loss.
///
/// They survive the death of this process in any case, provided that the storage keeps them outside of it. A finish always
/// syncs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// At the finish only; before that, whenever the operating system writes the bytes back. Acknowledged bytes survive a
    /// killed process, but not a power loss.
    Process,
    /// At most this long after they were committed. Bytes whose acknowledgement the appender waits for (over the
    /// subprotocol `httpfstream.v1`) are synced at once.
    Interval(Duration),
    /// At once. Syncs that are requested while one is running are done together, also those of other resources.
    Acked,
}

impl Default for Durability {
    /// `Interval` of one second.
    fn default() -> Self {
        Self::Interval(Duration::from_secs(1))
    }
}
