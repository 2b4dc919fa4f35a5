//! An open resource: its appender, its progress, the cache of its last bytes, and its idle followers.

use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::idle::{IdleGroups, IdleMember, Membership};
use super::progress::{Phase, Progress};
use super::tail::Tail;
use crate::budget::Reservation;
use crate::error::{ErrorKind, Result};
use crate::identity::Owner;
use crate::key::Key;
use crate::state::{Life, Stat};
use crate::storage::erased::DynAppend;

/// A live, lost or parked resource.
pub(crate) struct Resource {
    pub(crate) key: Key,
    pub(crate) life: Life,
    /// The length before its appender attached; `None` if that was before a restart.
    pub(super) len_at_open: Option<u64>,
    progress: watch::Sender<Progress>,
    /// Notified of every change of the progress but growth.
    state_changes: watch::Sender<()>,
    pub(super) idle_groups: IdleGroups,
    /// Cancelled when the resource is closed.
    pub(super) closed: CancellationToken,
    pub(super) owner: Option<Owner>,
    state: Mutex<ResourceState>,
}

/// The part of a resource that changes hands with its appender.
pub(super) struct ResourceState {
    /// The number of the current lease. A lease with another number is fenced.
    pub(super) epoch: u64,
    /// Cancelled when the current lease is taken over, or the resource is closed.
    pub(super) revoked: CancellationToken,
    pub(super) holder: Holder,
    pub(super) tail: Tail,
    /// Counts the resource against the limit until it is closed.
    pub(super) reservation: Option<Reservation>,
}

/// Who may append to a resource.
pub(super) enum Holder {
    /// A [`Lease`](super::Lease).
    Attached,
    /// No lease, until the appender comes back. Its storage appender is kept here; `None` after a restart, or if an append
    /// failed.
    Absent(Option<Box<dyn DynAppend>>),
    /// The appender comes back on a new connection while its older lease may still be attached.
    TakingOver {
        /// Cancelled when the takeover has succeeded or failed.
        decided: CancellationToken,
        predecessor: Predecessor,
    },
    /// The resource is being closed, which can't be undone.
    Closing,
}

/// The lease that was there before a takeover.
pub(super) enum Predecessor {
    Attached,
    /// The lease has ended, or ended before the takeover began. Its storage appender is kept as in [`Holder::Absent`].
    Absent(Option<Box<dyn DynAppend>>),
}

impl Resource {
    pub(super) fn new(
        key: Key,
        stat: &Stat,
        owner: Option<Owner>,
        holder: Holder,
        tail_cache: usize,
        reservation: Option<Reservation>,
    ) -> Self {
        let (phase, len_at_open) = match holder {
            Holder::Absent(_) => (Phase::Lost, None),
            _ => (Phase::Live, Some(stat.len)),
        };
        let closed = CancellationToken::new();
        Self {
            key,
            life: stat.life,
            len_at_open,
            progress: watch::Sender::new(Progress { len: stat.len, phase }),
            state_changes: watch::Sender::new(()),
            idle_groups: IdleGroups::default(),
            owner,
            state: Mutex::new(ResourceState {
                epoch: 0,
                revoked: closed.child_token(),
                holder,
                tail: Tail::new(stat.len, tail_cache),
                reservation,
            }),
            closed,
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.progress.borrow().len
    }

    pub(crate) fn stat(&self) -> Stat {
        let Progress { len, phase } = *self.progress.borrow();
        Stat::new(self.life, len, phase.state()).with_owner(self.owner)
    }

    pub(crate) fn is_followed(&self) -> bool {
        self.progress.receiver_count() > 0
    }

    /// Adds a follower that has caught up to a group of idle followers.
    pub(crate) fn join_idle_group(self: &Arc<Self>, member: Arc<dyn IdleMember>) -> Membership {
        IdleGroups::join(self, member)
    }

    /// Notifies of every change but growth, for idle followers: growth is written to them by their group.
    pub(crate) fn state_changes(&self) -> watch::Receiver<()> {
        self.state_changes.subscribe()
    }

    pub(super) fn phase(&self) -> Phase {
        self.progress.borrow().phase
    }

    /// Notifies of every change, for followers.
    pub(super) fn subscribe(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Changes the progress, unless the resource is closed.
    pub(super) fn update(&self, change: impl FnOnce(&mut Progress)) {
        let updated = self.progress.send_if_modified(|progress| {
            let open = progress.phase.is_open();
            if open {
                change(progress);
            }
            open
        });
        if updated {
            self.state_changes.send_replace(());
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, ResourceState> {
        // No code that panics runs under this lock.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Publishes bytes that the lease with this number has committed. Returns whether the tail is enlarged and has to be
    /// [trimmed](Tail::trim_if_quiet) later.
    pub(super) fn grow(&self, epoch: u64, data: &[Bytes], len: u64) -> Result<bool> {
        let enlarged = {
            let mut state = self.lock();
            if state.epoch != epoch {
                // The length that the newer lease began with includes these bytes.
                return Err(ErrorKind::Fenced.into());
            }
            state.tail.push(data, self.progress.receiver_count());
            self.progress.send_modify(|progress| progress.len = len);
            state.tail.is_enlarged()
        };
        self.idle_groups.notify_growth(self);
        Ok(enlarged)
    }

    /// Why the lease with this number was revoked.
    pub(super) fn revocation(&self, epoch: u64) -> ErrorKind {
        if self.lock().epoch != epoch {
            return ErrorKind::Fenced;
        }
        match self.phase() {
            Phase::Cut(kind @ (ErrorKind::ShuttingDown | ErrorKind::Storage)) => kind,
            _ => ErrorKind::Fenced,
        }
    }
}
