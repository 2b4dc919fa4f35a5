//! The steps of one sync: the data, then the record that says up to where it is durable. Each step stands alone, so that
//! [group commit](super::commit) can run one step for many resources before the next.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use super::commit::SyncReceiver;
use super::file_lease::{Core, FileLease};
use super::path::error;
use super::record::{NO_BOOT, Record, Slot};
use crate::error::{Error, ErrorKind, Result};

/// A file, and whether a sync of it ever failed: the system reports a failure only once, to the first sync after it.
#[derive(Debug)]
pub(super) struct SyncedFile {
    pub(super) file: Arc<File>,
    failed: Mutex<bool>,
}

impl SyncedFile {
    pub(super) fn new(file: File) -> Self {
        Self { file: Arc::new(file), failed: Mutex::new(false) }
    }

    /// Syncs, unless an earlier sync failed: the kernel marks what it failed to write as clean, so that a retry would
    /// succeed without writing it.
    pub(super) fn sync(&self, sync: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
        let mut failed = self.failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if *failed {
            return Err(io::Error::other("an earlier sync of this file failed"));
        }
        let synced = sync(&self.file);
        *failed = synced.is_err();
        synced
    }

    /// As [`sync`](Self::sync), after one call has synced the whole file system.
    pub(super) fn synced_by_batch(&self) -> io::Result<()> {
        self.sync(|_| Ok(()))
    }
}

/// A sync that has begun: what it has to make durable.
pub(super) struct PendingSync {
    committed: u64,
    name_durable: bool,
    /// Everything is durable already.
    done: bool,
}

/// A sync whose data is durable, and whose record says so but is not durable yet.
pub(super) struct RecordedSync {
    committed: u64,
    /// The record's file and the write to make durable; `None` if there is nothing to do.
    record: Option<(Arc<SyncedFile>, u64)>,
}

impl RecordedSync {
    /// Makes the record durable. `by_batch`: one call has synced all files, so this only checks that no earlier sync of
    /// the record failed.
    pub(super) fn sync_record(&self, by_batch: bool) -> io::Result<()> {
        match &self.record {
            Some((record, _)) if by_batch => record.synced_by_batch(),
            Some((record, _)) => record.sync(File::sync_data),
            None => Ok(()),
        }
    }
}

impl FileLease {
    /// The queued sync that has not begun, for others to join. Taken out as it begins.
    pub(super) fn next_sync(&self) -> MutexGuard<'_, Option<SyncReceiver>> {
        self.next_sync.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Makes everything committed now durable, and records that. Appends continue meanwhile.
    pub(super) fn sync(&self) -> Result<u64> {
        let pending = self.begin_sync()?;
        let synced = self.sync_data(&pending);
        let recorded = self.record_synced(pending, synced)?;
        let synced = recorded.sync_record(false);
        self.end_sync(recorded, synced)
    }

    /// Step 1: what is to be made durable.
    pub(super) fn begin_sync(&self) -> Result<PendingSync> {
        // Before the length is read: a later caller may have appended more, and needs a sync of its own.
        self.next_sync().take();
        let core = self.lock();
        core.check()?;
        let done = core
            .record
            .as_ref()
            .is_none_or(|record| core.name_durable && record.is_synced() && record.slot.durable == core.committed);
        Ok(PendingSync { committed: core.committed, name_durable: core.name_durable, done })
    }

    /// Step 2: the data, and the name of a new file.
    pub(super) fn sync_data(&self, pending: &PendingSync) -> io::Result<()> {
        if pending.done {
            return Ok(());
        }
        self.data.sync(File::sync_data)?;
        if pending.name_durable { Ok(()) } else { self.root.sync_name(&self.key) }
    }

    /// Step 3: the new durable length is written to the record. `synced` is what step 2 came to.
    pub(super) fn record_synced(&self, pending: PendingSync, synced: io::Result<()>) -> Result<RecordedSync> {
        let mut core = self.lock();
        // After a takeover or a delete the record is no longer this lease's.
        core.check()?;
        if pending.done {
            return Ok(RecordedSync { committed: pending.committed, record: None });
        }
        let recorded = synced.and_then(|()| match &mut core.record {
            Some(record) if record.slot.durable < pending.committed => {
                record.write_unsynced(Slot { durable: pending.committed, ..record.slot })
            }
            _ => Ok(()),
        });
        if let Err(failed) = recorded {
            return Err(self.poison_and_truncate(&mut core, failed));
        }
        core.name_durable = true;
        Ok(RecordedSync { committed: pending.committed, record: core.record.as_ref().map(Record::pending_sync) })
    }

    /// Step 5, after [`RecordedSync::sync_record`], whose result `synced` is.
    pub(super) fn end_sync(&self, recorded: RecordedSync, synced: io::Result<()>) -> Result<u64> {
        let Some((_, seq)) = recorded.record else { return Ok(recorded.committed) };
        let mut core = self.lock();
        core.check()?;
        if let Err(failed) = synced {
            return Err(self.poison_and_truncate(&mut core, failed));
        }
        if let Some(record) = &mut core.record {
            record.mark_synced(seq);
        }
        Ok(recorded.committed)
    }

    /// After a failed sync: bytes above the durable length may never reach the disk, and no retry could tell. They are
    /// cut, which begins a new life, as after a power loss.
    pub(super) fn poison_and_truncate(&self, core: &mut Core, failed: io::Error) -> Error {
        core.ended = Some(ErrorKind::Poisoned);
        if let Some(record) = &mut core.record {
            let slot = Slot { boot: NO_BOOT, ..record.slot };
            let written = record.write_forced(slot).and_then(|()| record.sync());
            if let Err(failed) = self.data.file.set_len(slot.durable).and(written) {
                let failed = &failed as &dyn std::error::Error;
                tracing::error!(key = %self.key, error = failed, "bytes of a failed sync could not be cut off");
            }
        }
        error(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_synced_unless_a_batch_did() {
        // A device that can't be synced.
        let recorded = |data| RecordedSync { committed: 1, record: Some((Arc::new(data), 1)) };
        let null = || recorded(SyncedFile::new(File::open("/dev/null").unwrap()));
        null().sync_record(false).unwrap_err();
        null().sync_record(true).unwrap();
        // A file whose sync failed before is never synced again.
        let failed = SyncedFile::new(tempfile::tempfile().unwrap());
        failed.sync(|_| Err(io::Error::other("a simulated disk failure"))).unwrap_err();
        let failed = recorded(failed);
        failed.sync_record(false).unwrap_err();
        failed.sync_record(true).unwrap_err();
    }
}
