//! The open resources of this process: who appends to them, how long they are, and who follows.
//!
//! A resource is bytes in the storage plus one number, the committed length. The appender makes bytes committed and
//! then moves the number. A follower is a [`Cursor`] that reads up to the number and awaits its next change. Nothing is
//! queued per follower.
//!
//! A resource is *open* while it is live, lost or parked, and *closed* otherwise (finished, interrupted or sealed). The hub
//! has an entry for each open resource; closed ones are in the storage only.
//!
//! | File | What it has |
//! |---|---|
//! | `attach` | opening a resource for appending, up to its lease |
//! | `takeover` | an appender that comes back while its older connection may still be there |
//! | `key_lock` | the exclusive use of a key while the storage opens or deletes its resource |
//! | `lease` | the appender's side: append, sync, finish, park |
//! | `grace` | resources whose appender is absent, and the recovery of those from an earlier process |
//! | `close` | all the ways in which a resource closes: finish, interruption, delete, shutdown, a failed storage |
//! | `resource` | an open resource, as its lease and its followers share it |
//! | `progress`, `tail` | its length and phase, and the cache of its last bytes |
//! | `lookup` | finding a resource for following, here or on another node |
//! | `cursor` | a follower's position |
//! | `idle` | groups of caught-up followers, which are written to without waking a task for each |
//! | `limits` | how much may be open at once |
//! | `deadline` | deadlines that coincide, so that syncs do |
//! | `config`, `events` | what the hub is configured with, and what it reports |
//!
//! # Lock order
//! Each lock may be taken while those before it are held, never the other way round, and none is held across an `await`:
//!
//! 1. `Hub::entries`
//! 2. `Resource::state`, then its progress (the lock inside the `watch`)
//!
//! The locks of the idle groups (the list of groups, then the members of one group) are taken with none of these held, and
//! released before a member is called. A member may take `Resource::state`, to read the tail.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{OnceCell, broadcast};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::budget::Budget;
use crate::key::Key;
use crate::storage::erased::DynStorage;

mod attach;
mod close;
mod config;
mod cursor;
mod deadline;
mod events;
mod grace;
mod idle;
mod key_lock;
mod lease;
mod limits;
mod lookup;
mod progress;
mod resource;
#[cfg(test)]
mod sim;
mod tail;
mod takeover;

pub(crate) use self::attach::{AttachRequest, Attached};
pub(crate) use self::config::Config;
pub use self::config::Durability;
pub(crate) use self::cursor::{Cursor, Step};
pub use self::events::Event;
pub(crate) use self::idle::{GroupWrite, IdleMember, Membership};
pub(crate) use self::lease::{Lease, LeaseWatch};
use self::limits::FollowerCounts;
#[cfg(test)]
pub(crate) use self::limits::READ_AHEAD;
pub(crate) use self::limits::{FollowerPermit, Limits};
pub(crate) use self::lookup::Found;
pub(crate) use self::resource::Resource;

/// How many events a subscriber may be behind before it misses some.
const EVENT_CAPACITY: usize = 1024;

pub(crate) struct Hub {
    pub(crate) storage: Box<dyn DynStorage>,
    config: Config,
    entries: Mutex<Entries>,
    /// The epoch of [shared deadlines](Self::shared_deadline).
    started_at: Instant,
    followers: Arc<FollowerCounts>,
    /// One unit for each open resource.
    resource_budget: Arc<Budget>,
    /// Bytes of incomplete messages.
    pub(crate) message_budget: Arc<Budget>,
    /// Bytes that appenders sent while the storage was busy.
    pub(crate) read_ahead_budget: Arc<Budget>,
    /// Set once the lost resources of an earlier process are [recovered](Self::recover).
    recovered: OnceCell<()>,
    events: broadcast::Sender<Event>,
    /// Cancelled when a shutdown begins: no new work is accepted.
    pub(crate) shutting_down: CancellationToken,
    /// Cancelled when the time for a shutdown is over: running work ends too.
    pub(crate) aborting: CancellationToken,
    /// All connections, and the work that must not be cut short.
    pub(crate) tasks: TaskTracker,
    /// One token for each lease.
    pub(crate) leases: TaskTracker,
}

type Entries = HashMap<Key, Entry>;

/// What the hub has at a key.
enum Entry {
    /// The storage opens or deletes the resource: see [`KeyLock`](key_lock::KeyLock).
    Locked {
        /// Cancelled when the lock is released.
        released: CancellationToken,
        /// When the storage was called; `None` if it has exceeded its time already.
        since: Option<Instant>,
    },
    Open(Arc<Resource>),
}

impl Hub {
    pub(crate) fn new(storage: Box<dyn DynStorage>, config: Config) -> Self {
        Self {
            storage,
            entries: Mutex::default(),
            started_at: Instant::now(),
            followers: FollowerCounts::new(config.limits),
            resource_budget: Budget::new(config.limits.appends),
            message_budget: Budget::new(config.limits.incomplete),
            read_ahead_budget: Budget::new(limits::READ_AHEAD),
            config,
            recovered: OnceCell::new(),
            events: broadcast::channel(EVENT_CAPACITY).0,
            shutting_down: CancellationToken::new(),
            aborting: CancellationToken::new(),
            tasks: TaskTracker::new(),
            leases: TaskTracker::new(),
        }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// How many followers a resource has here. Those that wait for its creation count, and so do those that read a closed
    /// resource.
    pub(crate) fn follower_count(&self, key: &Key) -> usize {
        self.followers.count(key)
    }

    fn emit(&self, event: Event) {
        // Fails if there are no subscribers, which is fine.
        let _ = self.events.send(event);
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        // No code that panics runs under this lock.
        self.entries.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn open_resources(&self) -> Vec<Arc<Resource>> {
        let entries = self.entries();
        let open = entries.values().filter_map(|entry| match entry {
            Entry::Open(resource) => Some(Arc::clone(resource)),
            Entry::Locked { .. } => None,
        });
        // Sorted, so that a simulation is reproducible.
        let mut open: Vec<_> = open.collect();
        open.sort_by(|a, b| a.key.cmp(&b.key));
        open
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Duration;

    use super::*;
    use crate::storage::{MemoryStorage, Open};
    use crate::streams::Streams;

    #[tokio::test(start_paused = true)]
    async fn follower_count_counts_reading_and_waiting_followers() {
        let hub = Streams::new(MemoryStorage::new(1 << 20)).hub;
        let [a, b] = ["a", "b"].map(|key| Key::new(key).unwrap());
        let attached = hub.attach(&a, AttachRequest::new(Open::Create)).await.unwrap();
        assert_eq!(hub.follower_count(&a), 0);
        let followers = [hub.follow(&a).await.unwrap(), hub.follow(&a).await.unwrap()];
        assert_eq!((hub.follower_count(&a), hub.follower_count(&b)), (2, 0));
        {
            let mut waiting = pin!(hub.follow_when_created(&b, Duration::from_secs(60)));
            assert!(futures_util::poll!(&mut waiting).is_pending());
            assert_eq!(hub.follower_count(&b), 1);
        }
        drop(followers);
        assert_eq!((hub.follower_count(&a), hub.follower_count(&b)), (0, 0));
        drop(attached);
    }
}
