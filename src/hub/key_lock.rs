//! The exclusive use of a key while the storage works on its resource.

use std::sync::Arc;

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{Entries, Entry, Hub};
use crate::budget::Reservation;
use crate::error::Result;
use crate::key::Key;
use crate::storage::erased::unresponsive;

/// Locks a key that has no open resource, so that nothing else is done to it meanwhile. Dropping it releases the key,
/// unless a resource was opened in its place.
pub(super) struct KeyLock {
    pub(super) hub: Arc<Hub>,
    pub(super) key: Key,
    released: CancellationToken,
    /// Counts the resource that is being opened, or was just cut off, against the limit.
    pub(super) reservation: Option<Reservation>,
}

impl KeyLock {
    /// Puts a lock at a key. An entry that is there is replaced.
    pub(super) fn new(
        hub: &Arc<Hub>,
        entries: &mut Entries,
        key: &Key,
        since: Option<Instant>,
        reservation: Option<Reservation>,
    ) -> Self {
        let released = CancellationToken::new();
        entries.insert(key.clone(), Entry::Locked { released: released.clone(), since });
        Self { hub: Arc::clone(hub), key: key.clone(), released, reservation }
    }
}

impl Drop for KeyLock {
    fn drop(&mut self) {
        let mut entries = self.hub.entries();
        if matches!(entries.get(&self.key), Some(Entry::Locked { .. })) {
            entries.remove(&self.key);
        }
        drop(entries);
        // Before the release: an appender that waited for it may need the reservation.
        self.reservation = None;
        self.released.cancel();
    }
}

impl Hub {
    /// Whether the storage call that began then has exceeded its time.
    pub(super) fn is_overdue(&self, since: Option<Instant>) -> bool {
        since.is_none_or(|since| since.elapsed() >= self.config.storage_timeout)
    }

    /// Waits for a token that is cancelled when another request's storage call is done; an error if that takes too long.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn wait_until_cancelled(&self, token: &CancellationToken) -> Result<()> {
        timeout(self.config.storage_timeout, token.cancelled()).await.map_err(|_| unresponsive())
    }
}
