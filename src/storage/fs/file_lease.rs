//! One open resource: its length, its record, who may write, and how it ends. Everything here blocks; callers choose the
//! thread.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, TryLockError};
use std::time::SystemTime;

use bytes::Bytes;

use super::commit::SyncReceiver;
use super::open::Opened;
use super::path::error;
use super::read::truncated;
use super::record::{NO_BOOT, Record, Recovery, Slot, Status, closed_record_name, open_record_name};
use super::root::Root;
use super::sync::SyncedFile;
use super::write::{Allocation, write_all_at};
use crate::error::{ErrorKind, Result};
use crate::identity::Owner;
use crate::key::Key;
use crate::state::{End, Life, Stat, State};

/// One appender's hold on a resource, shared by the appender and the table. A takeover moves the core to a new lease.
#[derive(Debug)]
pub(super) struct FileLease {
    pub(super) root: Arc<Root>,
    pub(super) key: Key,
    pub(super) life: Life,
    /// Device and inode of the file.
    pub(super) inode: (u64, u64),
    /// Outside the core, so that readers need no lock.
    pub(super) data: Arc<SyncedFile>,
    /// See [`next_sync()`](Self::next_sync).
    pub(super) next_sync: Mutex<Option<SyncReceiver>>,
    /// A copy of the core's, for readers.
    committed: AtomicU64,
    /// The owner before this appender's first append …
    owner: Option<Owner>,
    /// … and from then on.
    claimed: OnceLock<Option<Owner>>,
    core: Mutex<Core>,
}

/// The part of a lease that changes, under its lock.
#[derive(Debug)]
pub(super) struct Core {
    /// Set once the lease has ended: the error of every later call.
    pub(super) ended: Option<ErrorKind>,
    pub(super) committed: u64,
    allocation: Allocation,
    /// The name in `new/` of a file that has no byte yet.
    unlinked: Option<String>,
    /// Whether the names of the file and of the folders above it survive a power loss.
    pub(super) name_durable: bool,
    /// Present from the first append on; from the start, if it was left by a lost appender.
    pub(super) record: Option<Record>,
    /// Whether the resource existed before it was opened.
    existed: bool,
    /// The resource's state if the appender is lost now.
    state: State,
    /// The life, where it is not the one derived from the file.
    recorded_life: Option<Life>,
    id: u128,
}

impl FileLease {
    pub(super) fn new(root: Arc<Root>, key: Key, opened: Opened) -> io::Result<Self> {
        let meta = opened.file.metadata()?;
        let core = Core {
            ended: None,
            committed: opened.len,
            allocation: Allocation { end: opened.len, enabled: root.preallocate },
            unlinked: opened.unlinked,
            // A lost appender may have been killed before it made its file's name durable.
            name_durable: opened.before.is_some() && opened.record.is_none(),
            record: opened.record,
            existed: opened.before.is_some(),
            state: opened.before.unwrap_or(State::Interrupted),
            recorded_life: opened.recorded_life,
            id: opened.id,
        };
        Ok(Self {
            root,
            key,
            life: opened.life,
            inode: (meta.dev(), meta.ino()),
            data: Arc::new(SyncedFile::new(opened.file)),
            next_sync: Mutex::default(),
            committed: AtomicU64::new(opened.len),
            owner: opened.owner,
            claimed: OnceLock::new(),
            core: Mutex::new(core),
        })
    }

    /// Fences this lease and returns its successor. Waits for calls in flight.
    pub(super) fn take_over(&self) -> Result<Self> {
        let mut core = self.lock();
        core.check()?;
        core.ended = Some(ErrorKind::Fenced);
        Ok(Self {
            root: Arc::clone(&self.root),
            key: self.key.clone(),
            life: self.life,
            inode: self.inode,
            data: Arc::clone(&self.data),
            next_sync: Mutex::default(),
            committed: AtomicU64::new(core.committed),
            owner: self.owner(),
            claimed: OnceLock::new(),
            core: Mutex::new(Core {
                ended: None,
                committed: core.committed,
                allocation: core.allocation,
                unlinked: core.unlinked.take(),
                name_durable: core.name_durable,
                record: core.record.take(),
                existed: core.existed,
                state: core.state,
                recorded_life: core.recorded_life,
                id: core.id,
            }),
        })
    }

    /// Ends the lease because the resource is deleted. Waits for calls in flight.
    pub(super) fn fence(&self) {
        let mut core = self.lock();
        core.ended = Some(ErrorKind::Fenced);
        core.discard_unlinked(&self.root);
    }

    pub(super) fn stat(&self) -> Stat {
        let stat = Stat::new(self.life, self.committed.load(Ordering::Acquire), State::Live);
        stat.with_modified(Some(SystemTime::now())).with_owner(self.owner())
    }

    /// The owner as of the last append.
    fn owner(&self) -> Option<Owner> {
        self.claimed.get().copied().unwrap_or(self.owner)
    }

    /// An error if another program removed or cut the file.
    pub(super) fn check_file(&self) -> Result<()> {
        // The committed length first: an append in between only makes the file longer.
        let committed = self.committed.load(Ordering::Acquire);
        let meta = self.data.file.metadata().map_err(error)?;
        if meta.nlink() == 0 || meta.len() < committed {
            return Err(truncated());
        }
        Ok(())
    }

    /// Appends, if that needs no sync and no wait for the lock; otherwise `None`.
    pub(super) fn append_inline(&self, data: &[Bytes], len: u64, claim: Option<Owner>) -> Option<Result<u64>> {
        let mut core = match self.core.try_lock() {
            Ok(core) => core,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        let recorded = core.record.as_ref().is_some_and(|record| record.slot.owner == claim);
        recorded.then(|| self.append_locked(&mut core, data, len, claim))
    }

    /// Appends, and makes `claim` the resource's owner.
    pub(super) fn append(&self, data: &[Bytes], len: u64, claim: Option<Owner>) -> Result<u64> {
        let mut core = self.lock();
        self.append_locked(&mut core, data, len, claim)
    }

    fn append_locked(&self, core: &mut Core, data: &[Bytes], len: u64, claim: Option<Owner>) -> Result<u64> {
        core.check()?;
        if len == 0 {
            return Ok(core.committed);
        }
        let written = self.ensure_record(core, claim).and_then(|()| self.write(core, data, len));
        match written {
            Ok(()) => {
                core.committed += len;
                core.state = if claim.is_some() { State::Lost } else { State::Interrupted };
                self.claimed.get_or_init(|| claim);
                self.committed.store(core.committed, Ordering::Release);
                Ok(core.committed)
            }
            Err(failed) => {
                self.begin_new_life_if_cut(core);
                // A failed write is not committed, so none of it may stay.
                let cut = match self.data.file.metadata() {
                    Ok(meta) if meta.len() > core.committed => self.data.file.set_len(core.committed).is_ok(),
                    Ok(meta) => meta.len() == core.committed && meta.nlink() > 0,
                    Err(_) => false,
                };
                if failed.kind() != ErrorKind::Full || !cut {
                    core.ended = Some(ErrorKind::Poisoned);
                }
                core.allocation.end = core.committed;
                Err(failed)
            }
        }
    }

    fn write(&self, core: &mut Core, data: &[Bytes], len: u64) -> Result<()> {
        // Half the cost of `File::metadata`, which asks for more.
        let stat = rustix::fs::fstat(&*self.data.file).map_err(|e| error(e.into()))?;
        if stat.st_size as u64 != core.committed || stat.st_nlink == 0 {
            return Err(truncated());
        }
        core.allocation.extend(&self.data.file, core.committed, len)?;
        write_all_at(&self.data.file, data, core.committed).map_err(error)
    }

    /// Before the first byte: makes the record durable, then gives a new file its name.
    fn ensure_record(&self, core: &mut Core, owner: Option<Owner>) -> Result<()> {
        if let Some(record) = &mut core.record {
            if record.slot.owner != owner {
                record.write(Slot { owner, ..record.slot }).map_err(error)?;
            }
            return Ok(());
        }
        let slot = Slot {
            status: Status::Open,
            life: core.recorded_life,
            len: core.committed,
            durable: core.committed,
            boot: self.root.boot,
            existed: core.existed,
            owner,
        };
        let name = open_record_name(&self.key);
        let record = Record::create(&self.root.records, &name, &self.key, core.id, slot).map_err(error)?;
        if let Some(unlinked) = core.unlinked.take() {
            if let Err(failed) = self.root.top.link(&self.root.new, &unlinked, &self.key) {
                core.unlinked = Some(unlinked);
                let _ = self.root.records.remove_file(&name);
                return Err(error(failed));
            }
            let _ = self.root.new.remove_file(&unlinked);
        }
        core.record = Some(record);
        Ok(())
    }

    /// Records a new life if another program cut committed bytes off the file.
    fn begin_new_life_if_cut(&self, core: &mut Core) {
        let Ok(size) = self.data.file.metadata().map(|meta| meta.len()) else { return };
        let (true, Some(record)) = (size < core.committed, &mut core.record) else { return };
        if record.slot.boot == NO_BOOT {
            // Cut by `poison_and_truncate`.
            return;
        }
        let life = Life::random();
        let written = life.map_err(io::Error::other).and_then(|life| {
            let durable = record.slot.durable.min(size);
            let slot =
                Slot { status: Status::Truncated, life: Some(life), len: size, durable, existed: true, ..record.slot };
            record.write(slot)
        });
        if let Err(failed) = written {
            let failed = &failed as &dyn std::error::Error;
            tracing::error!(key = %self.key, error = failed, "another program cut a file, and this could not be recorded");
        }
    }

    /// Ends the lease.
    pub(super) fn finish(&self, end: End, claimed: Option<Owner>) -> Result<Stat> {
        let mut core = self.lock();
        if end != End::Interrupted {
            // Recorded even without an append: an appender that misses the answer asks later whether this was its end.
            let _ = self.claimed.set(claimed);
        }
        core.check()?;
        // Nothing was added, by this appender or by one that it took over from.
        let untouched = match &core.record {
            None => true,
            Some(record) => record.slot.recovery(core.id, core.committed, self.root.boot) == Recovery::Undo,
        };
        if untouched && (end == End::Interrupted || core.record.is_none() && core.existed && core.state == end.state())
        {
            core.ended = Some(ErrorKind::Fenced);
            core.discard_unlinked(&self.root);
            return Ok(Stat::new(self.life, core.committed, core.state).with_owner(self.owner()));
        }
        let finished = self.finish_locked(&mut core, end);
        if finished.is_err() {
            self.begin_new_life_if_cut(&mut core);
        }
        core.ended = Some(if finished.is_ok() { ErrorKind::Fenced } else { ErrorKind::Poisoned });
        finished?;
        let modified = self.data.file.metadata().and_then(|meta| meta.modified()).ok();
        Ok(Stat::new(self.life, core.committed, end.state()).with_modified(modified).with_owner(self.owner()))
    }

    fn finish_locked(&self, core: &mut Core, end: End) -> Result<()> {
        let root = &*self.root;
        self.ensure_record(core, self.owner())?;
        let meta = self.data.file.metadata().map_err(error)?;
        if meta.len() < core.committed || meta.nlink() == 0 {
            return Err(truncated());
        }
        // Also frees what was allocated ahead.
        self.data.file.set_len(core.committed).map_err(error)?;
        if let Err(failed) = self.data.sync(File::sync_all) {
            return Err(self.poison_and_truncate(core, failed));
        }
        if !core.name_durable {
            root.sync_name(&self.key).map_err(error)?;
            core.name_durable = true;
        }
        let Some(record) = &mut core.record else { return Ok(()) };
        // The record of a claimed resource stays, so that an appender that missed the answer can learn of its end.
        let forget = end == End::Finished && core.recorded_life.is_none() && record.slot.owner.is_none();
        self.record_end(record, end, core.committed, forget).map_err(error)
    }

    /// Records how the resource ended. `forget`: the file alone says everything, so its records are removed.
    fn record_end(&self, record: &mut Record, end: End, len: u64, forget: bool) -> io::Result<()> {
        let records = &self.root.records;
        let (open, closed) = (open_record_name(&self.key), closed_record_name(&self.key));
        if forget {
            // The older record goes first, so that a crash in between leaves the open one.
            records.remove_file(&closed)?;
            records.remove_file(&open)?;
        } else {
            record.write(Slot { status: Status::Closed(end.state()), len, durable: len, ..record.slot })?;
            records.rename(&open, &closed)?;
        }
        records.sync()
    }

    /// Ends the lease of a dropped appender: removes a file that was never written. A record stays, and says that the
    /// resource is interrupted or lost.
    pub(super) fn release(&self) {
        let mut core = self.lock();
        core.ended.get_or_insert(ErrorKind::Fenced);
        core.discard_unlinked(&self.root);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        // A panic under this lock leaves the committed length as it was, which is all that later calls rely on.
        self.core.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Core {
    pub(super) fn check(&self) -> Result<()> {
        self.ended.map_or(Ok(()), |kind| Err(kind.into()))
    }

    fn discard_unlinked(&mut self, root: &Arc<Root>) {
        let Some(unlinked) = self.unlinked.take() else { return };
        let gate = root.gates.changes.clone();
        let root = Arc::clone(root);
        let remove = move || {
            let _ = root.new.remove_file(&unlinked);
        };
        // Not inline: also called when an appender is dropped, which must not block.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move { gate.run(remove).await })),
            Err(_) => remove(),
        }
    }
}
