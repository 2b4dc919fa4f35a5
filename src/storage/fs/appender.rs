//! The appender of a file: which of its calls run where.

use std::sync::Arc;

use bytes::Bytes;
use futures_core::future::BoxFuture;

use super::commit;
use super::table::LeaseGuard;
use super::threads::INLINE;
use crate::error::{ErrorKind, Result};
use crate::identity::Owner;
use crate::state::{End, Stat};
use crate::storage::Append;

/// The largest append that is written on the caller's thread. Larger appends, and all appends while this root syncs, go to
/// the blocking pool: an inline write of 64 bytes was seen to stall for 33–136 ms behind another file's sync. See also
/// [`threads`](super::threads).
const MAX_INLINE: u64 = 256 * 1024;

/// The appender of a file.
#[derive(Debug)]
pub struct FsAppend {
    pub(super) guard: Arc<LeaseGuard>,
    claimed: Option<Owner>,
    /// An append runs in the pool. Stays set if that append was cancelled: the appender is poisoned.
    busy: bool,
}

impl FsAppend {
    pub(super) fn new(guard: LeaseGuard) -> Self {
        Self { guard: Arc::new(guard), claimed: None, busy: false }
    }
}

impl Append for FsAppend {
    type Sync = BoxFuture<'static, Result<u64>>;

    fn stat(&self) -> Stat {
        self.guard.lease.stat()
    }

    fn claim(&mut self, owner: Option<Owner>) {
        self.claimed = owner;
    }

    async fn append(&mut self, data: &[Bytes]) -> Result<u64> {
        if self.busy {
            return Err(ErrorKind::Poisoned.into());
        }
        let lease = &self.guard.lease;
        let len = data.iter().map(|d| d.len() as u64).sum();
        if len <= MAX_INLINE
            && lease.root.inline_appends
            && !lease.root.commits.is_syncing()
            && let Some(_permit) = INLINE.try_enter()
            && let Some(appended) = lease.append_inline(data, len, self.claimed)
        {
            return appended;
        }
        let (guard, data, claim) = (Arc::clone(&self.guard), data.to_vec(), self.claimed);
        let gate = lease.root.gates.changes.clone();
        self.busy = true;
        // Boxed, so that inline appends don't carry this future's size.
        let appended = Box::pin(gate.run(move || guard.lease.append(&data, len, claim))).await?;
        self.busy = false;
        appended
    }

    fn sync(&self) -> Self::Sync {
        // Weak: a sync that was never polled must not keep the key from the next appender.
        let guard = Arc::downgrade(&self.guard);
        Box::pin(async move {
            let guard = guard.upgrade().ok_or(ErrorKind::Fenced)?;
            commit::sync(guard).await
        })
    }

    async fn finish(self, end: End) -> Result<Stat> {
        if self.busy {
            return Err(ErrorKind::Poisoned.into());
        }
        let gate = self.guard.lease.root.gates.changes.clone();
        let finished = gate.run(move || {
            let finished = {
                let _syncing = self.guard.lease.root.commits.syncing();
                self.guard.lease.finish(end, self.claimed)
            };
            // Not before, so that the next appender finds the end, and not with the last guard, which a sync may hold.
            self.guard.free_key();
            finished
        });
        finished.await?
    }
}
