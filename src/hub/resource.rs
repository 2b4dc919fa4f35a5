//! A resource that is not at rest: who holds it, how far it has come.

use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::idle::{IdleGroups, IdleMember, Membership};
use super::progress::Tail;
use super::{Phase, Progress};
use crate::budget::Reservation;
use crate::error::{ErrorKind, Result};
use crate::identity::Owner;
use crate::key::Key;
use crate::state::{Life, Stat};
use crate::storage::erased::DynAppend;

/// A live or lost resource.
pub(crate) struct Resource {
    pub(crate) key: Key,
    pub(crate) life: Life,
    /// Its length before its appender came; `None` if that was before a restart.
    pub(super) opened_at: Option<u64>,
    progress: watch::Sender<Progress>,
    /// Moves with every change but growth.
    turned: watch::Sender<()>,
    pub(super) idle_groups: IdleGroups,
    /// Cancelled when the resource has come to rest.
    pub(super) ended: CancellationToken,
    pub(super) owner: Option<Owner>,
    held: Mutex<Held>,
}

/// Who holds a resource, and the cache that only the holder fills.
pub(super) struct Held {
    /// Counts the appenders. The last one holds it.
    pub(super) holder: u64,
    /// Cancelled when the holder is one no longer.
    pub(super) over: CancellationToken,
    pub(super) place: Place,
    pub(super) tail: Tail,
    /// Counts the resource until it is at rest.
    pub(super) counted: Option<Reservation>,
}

/// What stands at the appender's place.
pub(super) enum Place {
    /// The appender.
    Taken,
    /// Nobody, for a while. What the storage gave waits here; after a restart there is nothing.
    Lost(Option<Box<dyn DynAppend>>),
    /// The same appender comes back, over the head of the one before it.
    Passing {
        /// Cancelled when it is decided.
        settled: CancellationToken,
        /// What the one before left meanwhile; `None`: it is still there.
        left: Option<Option<Box<dyn DynAppend>>>,
    },
    /// The end, which nobody can stop.
    Ending,
}

impl Resource {
    pub(super) fn new(
        key: Key,
        stat: &Stat,
        owner: Option<Owner>,
        place: Place,
        tail_cache: usize,
        counted: Option<Reservation>,
    ) -> Self {
        let (phase, opened_at) = match place {
            Place::Lost(_) => (Phase::Lost, None),
            _ => (Phase::Live, Some(stat.len)),
        };
        let ended = CancellationToken::new();
        Self {
            key,
            life: stat.life,
            opened_at,
            progress: watch::Sender::new(Progress { len: stat.len, phase }),
            turned: watch::Sender::new(()),
            idle_groups: IdleGroups::default(),
            owner,
            held: Mutex::new(Held {
                holder: 0,
                over: ended.child_token(),
                place,
                tail: Tail::new(stat.len, tail_cache),
                counted,
            }),
            ended,
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.progress.borrow().len
    }

    pub(super) fn phase(&self) -> Phase {
        self.progress.borrow().phase
    }

    /// For whoever follows.
    pub(super) fn subscribe(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    pub(crate) fn is_followed(&self) -> bool {
        self.progress.receiver_count() > 0
    }

    /// A permit for a follower that has caught up.
    pub(crate) fn join_idle_group(self: &Arc<Self>, member: Arc<dyn IdleMember>) -> Membership {
        IdleGroups::join(self, member)
    }

    /// For whoever sits.
    pub(crate) fn state_changes(&self) -> watch::Receiver<()> {
        self.turned.subscribe()
    }

    /// Changes anything, as long as the resource is not at rest.
    pub(super) fn turn(&self, change: impl FnOnce(&mut Progress)) {
        let turned = self.progress.send_if_modified(|progress| {
            let open = progress.phase.is_open();
            if open {
                change(progress);
            }
            open
        });
        if turned {
            self.turned.send_replace(());
        }
    }

    pub(crate) fn stat(&self) -> Stat {
        let Progress { len, phase } = *self.progress.borrow();
        Stat::new(self.life, len, phase.state()).owner(self.owner)
    }

    pub(super) fn held(&self) -> MutexGuard<'_, Held> {
        // Nothing that panics runs under this lock.
        self.held.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Tells the followers what its holder has committed; whether the tail has to be [cooled](Tail::cool) some time.
    pub(super) fn grow(&self, holder: u64, data: &[Bytes], len: u64) -> Result<bool> {
        let large = {
            let mut held = self.held();
            if held.holder != holder {
                // Whoever took over counts these bytes already.
                return Err(ErrorKind::Fenced.into());
            }
            held.tail.push(data, self.progress.receiver_count());
            self.progress.send_modify(|progress| progress.len = len);
            held.tail.is_large()
        };
        self.idle_groups.tell(self);
        Ok(large)
    }

    /// What a holder is told once it is one no longer.
    pub(super) fn revocation(&self, holder: u64) -> ErrorKind {
        if self.held().holder != holder {
            return ErrorKind::Fenced;
        }
        match self.phase() {
            Phase::Cut(kind @ (ErrorKind::ShuttingDown | ErrorKind::Storage)) => kind,
            _ => ErrorKind::Fenced,
        }
    }
}
