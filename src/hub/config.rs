//! What the hub is configured with.

use std::time::Duration;

use super::Limits;

#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) tail_cache: usize,
    pub(crate) durability: Durability,
    /// How long a lost appender may take to come back.
    pub(crate) grace: Duration,
    /// How long a resource may be parked.
    pub(crate) parking_timeout: Duration,
    pub(crate) limits: Limits,
    /// How long the storage may take.
    pub(crate) storage_timeout: Duration,
}

/// When committed bytes are made to survive a power loss. They survive the process's death in any case, if the
/// storage keeps them elsewhere. A finish always syncs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// Only at the finish; until then whenever the system writes them back. What is acknowledged survives a killed
    /// process, but not a power loss.
    Process,
    /// Not later than this after they were committed. Bytes that an appender waits to have acknowledged (over the
    /// subprotocol `httpfstream.v1`) are synced at once.
    Interval(Duration),
    /// At once. Syncs that are asked for while one runs are done as one, together with other resources'.
    Acked,
}

impl Default for Durability {
    /// `Interval` of one second.
    fn default() -> Self {
        Self::Interval(Duration::from_secs(1))
    }
}
