//! The open resource: its file, its length, its record. Everything here blocks; callers choose where.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, TryLockError};
use std::time::SystemTime;

use bytes::Bytes;
use smallvec::SmallVec;

use super::Root;
use super::commit::{Answered, Data};
use super::path::error;
use super::read::truncated;
use super::record::{Kept, Left, NO_BOOT, Record, Slot, open_name, rest_name};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::Owner;
use crate::key::Key;
use crate::state::{End, Life, Stat, State};

/// Files grow by allocations of at least this many bytes …
const MIN_STEP: u64 = 64 * 1024;
/// … and at most this many.
const MAX_STEP: u64 = 8 * 1024 * 1024;

/// One open resource. The table of leases and the appender share it; a takeover moves its core to a new one.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) root: Arc<Root>,
    pub(super) key: Key,
    pub(super) life: Life,
    pub(super) inode: (u64, u64),
    /// For readers, who need no lock.
    pub(super) data: Arc<Data>,
    /// The sync that was asked for and has not begun.
    next_sync: Mutex<Option<Answered>>,
    committed: AtomicU64,
    /// Whoever appended last before this appender …
    owner: Option<Owner>,
    /// … and who this one is, once it has.
    claimed: OnceLock<Option<Owner>>,
    core: Mutex<Core>,
}

/// What changes, under the lease's lock.
#[derive(Debug)]
pub(super) struct Core {
    end: Option<ErrorKind>,
    committed: u64,
    allocated: u64,
    can_allocate: bool,
    /// Where a new file waits for its first byte, in the folder of new files.
    waiting: Option<String>,
    name_durable: bool,
    /// Present from the first append on, and from the start where a lost appender left it.
    record: Option<Record>,
    existed: bool,
    /// How the resource stands if nothing more happens, and the life that was recorded.
    stands: State,
    recorded_life: Option<Life>,
    id: u128,
}

/// What opening found or made.
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) life: Life,
    pub(super) recorded_life: Option<Life>,
    pub(super) id: u128,
    pub(super) len: u64,
    /// `None` for a new one.
    pub(super) before: Option<State>,
    pub(super) waiting: Option<String>,
    pub(super) owner: Option<Owner>,
    /// The open record that a lost appender left, to go on with.
    pub(super) record: Option<Record>,
}

impl Lease {
    pub(super) fn new(root: Arc<Root>, key: Key, opened: Opened) -> io::Result<Self> {
        let meta = opened.file.metadata()?;
        let core = Core {
            end: None,
            committed: opened.len,
            allocated: opened.len,
            can_allocate: root.preallocate,
            waiting: opened.waiting,
            // Of what a lost appender made nobody knows.
            name_durable: opened.before.is_some() && opened.record.is_none(),
            record: opened.record,
            existed: opened.before.is_some(),
            stands: opened.before.unwrap_or(State::Interrupted),
            recorded_life: opened.recorded_life,
            id: opened.id,
        };
        Ok(Self {
            root,
            key,
            life: opened.life,
            inode: (meta.dev(), meta.ino()),
            data: Arc::new(Data::new(opened.file)),
            next_sync: Mutex::default(),
            committed: AtomicU64::new(opened.len),
            owner: opened.owner,
            claimed: OnceLock::new(),
            core: Mutex::new(core),
        })
    }

    /// A later lease on the same open resource; this one is fenced. Waits for what is in flight.
    pub(super) fn take_over(&self) -> Result<Self> {
        let mut core = self.lock();
        core.check()?;
        core.end = Some(ErrorKind::Fenced);
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
                end: None,
                committed: core.committed,
                allocated: core.allocated,
                can_allocate: core.can_allocate,
                waiting: core.waiting.take(),
                name_durable: core.name_durable,
                record: core.record.take(),
                existed: core.existed,
                stands: core.stands,
                recorded_life: core.recorded_life,
                id: core.id,
            }),
        })
    }

    /// Ends the lease from outside. Waits for what is in flight.
    pub(super) fn fence(&self) {
        let mut core = self.lock();
        core.end = Some(ErrorKind::Fenced);
        core.forget_waiting(&self.root);
    }

    pub(super) fn stat(&self) -> Stat {
        let stat = Stat::new(self.life, self.committed.load(Ordering::Acquire), State::Live);
        stat.modified(Some(SystemTime::now())).owner(self.owner())
    }

    /// Whoever appended last.
    fn owner(&self) -> Option<Owner> {
        self.claimed.get().copied().unwrap_or(self.owner)
    }

    /// An error if the file is no longer what it was: removed, or shorter.
    pub(super) fn check_file(&self) -> Result<()> {
        // In this order: an append may come in between.
        let committed = self.committed.load(Ordering::Acquire);
        let meta = self.data.file.metadata().map_err(error)?;
        if meta.nlink() == 0 || meta.len() < committed {
            return Err(truncated());
        }
        Ok(())
    }

    /// Appends here and now if that can't block for long; `None` if it might.
    pub(super) fn append_inline(&self, data: &[Bytes], len: u64, claim: Option<Owner>) -> Option<Result<u64>> {
        let mut core = match self.core.try_lock() {
            Ok(core) => core,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        let recorded = core.record.as_ref().is_some_and(|record| record.slot.owner == claim);
        recorded.then(|| self.append_locked(&mut core, data, len, claim))
    }

    /// Appends, for whoever claims the resource.
    pub(super) fn append(&self, data: &[Bytes], len: u64, claim: Option<Owner>) -> Result<u64> {
        let mut core = self.lock();
        self.append_locked(&mut core, data, len, claim)
    }

    fn append_locked(&self, core: &mut Core, data: &[Bytes], len: u64, claim: Option<Owner>) -> Result<u64> {
        core.check()?;
        if len == 0 {
            return Ok(core.committed);
        }
        let written = self.touch(core, claim).and_then(|()| self.write(core, data, len));
        match written {
            Ok(()) => {
                core.committed += len;
                core.stands = if claim.is_some() { State::Lost } else { State::Interrupted };
                self.claimed.get_or_init(|| claim);
                self.committed.store(core.committed, Ordering::Release);
                Ok(core.committed)
            }
            Err(failed) => {
                self.begin_new_life_if_cut(core);
                // Nothing of a failed write may stay: it was not committed.
                let cut = match self.data.file.metadata() {
                    Ok(meta) if meta.len() > core.committed => self.data.file.set_len(core.committed).is_ok(),
                    Ok(meta) => meta.len() == core.committed && meta.nlink() > 0,
                    Err(_) => false,
                };
                if failed.kind() != ErrorKind::Full || !cut {
                    core.end = Some(ErrorKind::Poisoned);
                }
                core.allocated = core.committed;
                Err(failed)
            }
        }
    }

    fn write(&self, core: &mut Core, data: &[Bytes], len: u64) -> Result<()> {
        // Half of what `File::metadata` costs, which asks for more.
        let stat = rustix::fs::fstat(&*self.data.file).map_err(|e| error(e.into()))?;
        if stat.st_size as u64 != core.committed || stat.st_nlink == 0 {
            return Err(truncated());
        }
        core.allocate(&self.data.file, len)?;
        let slices = data.iter().filter(|d| !d.is_empty()).map(|d| IoSlice::new(d));
        let mut slices: SmallVec<[IoSlice<'_>; 8]> = slices.collect();
        let mut slices = &mut slices[..];
        let mut at = core.committed;
        while !slices.is_empty() {
            match write_at(&self.data.file, slices, at) {
                Ok(0) => return Err(error(io::ErrorKind::WriteZero.into())),
                Ok(n) => {
                    at += n as u64;
                    IoSlice::advance_slices(&mut slices, n);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(error(e)),
            }
        }
        Ok(())
    }

    /// Before the first byte: the record, durably, and a new file gets its name.
    fn touch(&self, core: &mut Core, owner: Option<Owner>) -> Result<()> {
        if let Some(record) = &mut core.record {
            if record.slot.owner != owner {
                record.write(Slot { owner, ..record.slot }).map_err(error)?;
            }
            return Ok(());
        }
        let slot = Slot {
            kept: Kept::Open,
            life: core.recorded_life,
            len: core.committed,
            durable: core.committed,
            boot: self.root.boot,
            existed: core.existed,
            owner,
        };
        let name = open_name(&self.key);
        let record = Record::create(&self.root.records, &name, &self.key, core.id, slot).map_err(error)?;
        if let Some(waiting) = core.waiting.take() {
            if let Err(failed) = self.root.top.link(&self.root.new, &waiting, &self.key) {
                core.waiting = Some(waiting);
                let _ = self.root.records.remove_file(&name);
                return Err(error(failed));
            }
            let _ = self.root.new.remove_file(&waiting);
        }
        core.record = Some(record);
        Ok(())
    }

    /// Writes down a new life if committed bytes are gone: somebody else cut the file.
    fn begin_new_life_if_cut(&self, core: &mut Core) {
        let Ok(size) = self.data.file.metadata().map(|meta| meta.len()) else { return };
        let (true, Some(record)) = (size < core.committed, &mut core.record) else { return };
        if record.slot.boot == NO_BOOT {
            // We cut it ourselves.
            return;
        }
        let life = Life::random();
        let written = life.map_err(io::Error::other).and_then(|life| {
            let durable = record.slot.durable.min(size);
            let slot = Slot { kept: Kept::Cut, life: Some(life), len: size, durable, existed: true, ..record.slot };
            record.write(slot)
        });
        if let Err(failed) = written {
            let failed = &failed as &dyn std::error::Error;
            tracing::error!(key = %self.key, error = failed, "a file was cut by somebody else, and a record failed");
        }
    }

    /// The place for the next sync; whoever begins it takes it out.
    pub(super) fn next_sync(&self) -> MutexGuard<'_, Option<Answered>> {
        self.next_sync.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Makes what is committed now durable, then says so in the record. Appends go on meanwhile.
    pub(super) fn sync(&self) -> Result<u64> {
        let mark = self.begin_sync()?;
        let synced = self.sync_data(&mark);
        let note = self.note_synced(mark, synced)?;
        let synced = note.sync_record(false);
        self.end_sync(note, synced)
    }

    /// What there is to be made durable.
    pub(super) fn begin_sync(&self) -> Result<Mark> {
        // Before the length is looked at: who asks from here on may have appended more.
        self.next_sync().take();
        let core = self.lock();
        core.check()?;
        let done = core
            .record
            .as_ref()
            .is_none_or(|record| core.name_durable && record.is_synced() && record.slot.durable == core.committed);
        Ok(Mark { committed: core.committed, name_durable: core.name_durable, done })
    }

    /// Makes it durable.
    pub(super) fn sync_data(&self, mark: &Mark) -> io::Result<()> {
        if mark.done {
            return Ok(());
        }
        self.data.sync(File::sync_data)?;
        if mark.name_durable { Ok(()) } else { self.root.sync_name(&self.key) }
    }

    /// Writes it down, to be synced after this.
    pub(super) fn note_synced(&self, mark: Mark, synced: io::Result<()>) -> Result<Note> {
        let mut core = self.lock();
        // Whoever took over, or deleted, has the record now.
        core.check()?;
        if mark.done {
            return Ok(Note { committed: mark.committed, record: None });
        }
        let noted = synced.and_then(|()| match &mut core.record {
            Some(record) if record.slot.durable < mark.committed => {
                record.write_soon(Slot { durable: mark.committed, ..record.slot })
            }
            _ => Ok(()),
        });
        if let Err(failed) = noted {
            return Err(self.distrust(&mut core, failed));
        }
        core.name_durable = true;
        Ok(Note { committed: mark.committed, record: core.record.as_ref().map(Record::unsynced) })
    }

    /// The record is durable, or can't be made so.
    pub(super) fn end_sync(&self, note: Note, synced: io::Result<()>) -> Result<u64> {
        let Some((_, seq)) = note.record else { return Ok(note.committed) };
        let mut core = self.lock();
        core.check()?;
        if let Err(failed) = synced {
            return Err(self.distrust(&mut core, failed));
        }
        if let Some(record) = &mut core.record {
            record.synced(seq);
        }
        Ok(note.committed)
    }

    /// After a failed sync: the kernel marks what it failed to write as clean, so that no retry could be believed. It is
    /// as after a power loss: what is above the durable length is cut, which is a new life.
    fn distrust(&self, core: &mut Core, failed: io::Error) -> Error {
        core.end = Some(ErrorKind::Poisoned);
        if let Some(record) = &mut core.record {
            let slot = Slot { boot: NO_BOOT, ..record.slot };
            let written = record.write_anyway(slot).and_then(|()| record.sync());
            if let Err(failed) = self.data.file.set_len(slot.durable).and(written) {
                let failed = &failed as &dyn std::error::Error;
                tracing::error!(key = %self.key, error = failed, "what a failed sync left could not be cut off");
            }
        }
        error(failed)
    }

    /// Ends the lease.
    pub(super) fn finish(&self, end: End, claimed: Option<Owner>) -> Result<Stat> {
        let mut core = self.lock();
        if end != End::Interrupted {
            // Whoever ends it is asked about, though it may have had nothing to add.
            let _ = self.claimed.set(claimed);
        }
        core.check()?;
        // Nothing was added, by this appender or by one that it took over from.
        let untouched = match &core.record {
            None => true,
            Some(record) => record.slot.left(core.id, core.committed, self.root.boot) == Left::Undone,
        };
        if untouched && (end == End::Interrupted || core.record.is_none() && core.existed && core.stands == end.state())
        {
            core.end = Some(ErrorKind::Fenced);
            core.forget_waiting(&self.root);
            return Ok(Stat::new(self.life, core.committed, core.stands).owner(self.owner()));
        }
        let finished = self.finish_locked(&mut core, end);
        if finished.is_err() {
            self.begin_new_life_if_cut(&mut core);
        }
        core.end = Some(if finished.is_ok() { ErrorKind::Fenced } else { ErrorKind::Poisoned });
        finished?;
        let modified = self.data.file.metadata().and_then(|meta| meta.modified()).ok();
        Ok(Stat::new(self.life, core.committed, end.state()).modified(modified).owner(self.owner()))
    }

    fn finish_locked(&self, core: &mut Core, end: End) -> Result<()> {
        let root = &*self.root;
        self.touch(core, self.owner())?;
        let meta = self.data.file.metadata().map_err(error)?;
        if meta.len() < core.committed || meta.nlink() == 0 {
            return Err(truncated());
        }
        // Also gives back what was allocated ahead.
        self.data.file.set_len(core.committed).map_err(error)?;
        if let Err(failed) = self.data.sync(File::sync_all) {
            return Err(self.distrust(core, failed));
        }
        if !core.name_durable {
            root.sync_name(&self.key).map_err(error)?;
            core.name_durable = true;
        }
        let Some(record) = &mut core.record else { return Ok(()) };
        // One that was claimed is kept, so that its appender can be told that its end was done, if it missed the answer.
        let plainly = end == End::Finished && core.recorded_life.is_none() && record.slot.owner.is_none();
        self.note_end(record, end, core.committed, plainly).map_err(error)
    }

    /// Says in the bookkeeping how the resource ended.
    fn note_end(&self, record: &mut Record, end: End, len: u64, plainly: bool) -> io::Result<()> {
        let records = &self.root.records;
        let (open, rest) = (open_name(&self.key), rest_name(&self.key));
        if plainly {
            // Nothing needs to be remembered. The older record goes first, so that a crash in between finds an open one.
            records.remove_file(&rest)?;
            records.remove_file(&open)?;
        } else {
            record.write(Slot { kept: Kept::Rest(end.state()), len, durable: len, ..record.slot })?;
            records.rename(&open, &rest)?;
        }
        records.sync()
    }

    /// The appender is gone without an end: what it never used is removed. The record stays, and tells.
    pub(super) fn release(&self) {
        let mut core = self.lock();
        core.end.get_or_insert(ErrorKind::Fenced);
        core.forget_waiting(&self.root);
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        // A panic in here leaves the length as it was, which is what counts.
        self.core.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// What a sync has to make durable.
pub(super) struct Mark {
    committed: u64,
    name_durable: bool,
    /// It is already.
    done: bool,
}

/// What a sync has made durable, and the record that says so, which is not durable yet.
pub(super) struct Note {
    committed: u64,
    record: Option<(Arc<Data>, u64)>,
}

impl Note {
    /// Makes the record durable; where a call for all files has done that, only asks whether it can be believed.
    pub(super) fn sync_record(&self, with_all: bool) -> io::Result<()> {
        match &self.record {
            Some((record, _)) if with_all => record.synced_with_all(),
            Some((record, _)) => record.sync(File::sync_data),
            None => Ok(()),
        }
    }
}

impl Core {
    fn check(&self) -> Result<()> {
        self.end.map_or(Ok(()), |kind| Err(kind.into()))
    }

    fn forget_waiting(&mut self, root: &Arc<Root>) {
        let Some(waiting) = self.waiting.take() else { return };
        let gate = root.gates.changes.clone();
        let root = Arc::clone(root);
        let remove = move || {
            let _ = root.new.remove_file(&waiting);
        };
        // Also called where an appender is dropped, which must not block.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move { gate.run(remove).await })),
            Err(_) => remove(),
        }
    }

    /// Allocates ahead, so that a full disk strikes before anything is written.
    fn allocate(&mut self, file: &File, more: u64) -> Result<()> {
        let end = self.committed + more;
        if !self.can_allocate || end <= self.allocated {
            return Ok(());
        }
        let step = (self.committed / 4).clamp(MIN_STEP, MAX_STEP);
        let upto = end.next_multiple_of(step);
        let mut allocated = allocate(file, self.allocated, upto - self.allocated).map(|()| upto);
        if matches!(&allocated, Err(e) if e.kind() == io::ErrorKind::StorageFull) {
            // Not enough for a step ahead may still be enough for this.
            allocated = allocate(file, self.allocated, end - self.allocated).map(|()| end);
        }
        match allocated {
            Ok(upto) => self.allocated = upto,
            Err(failed) if error_is_full(&failed) => return Err(Error::new(ErrorKind::Full).with_source(failed)),
            Err(_) => self.can_allocate = false,
        }
        Ok(())
    }
}

fn error_is_full(failed: &io::Error) -> bool {
    matches!(failed.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

#[cfg(target_os = "linux")]
fn allocate(file: &File, at: u64, len: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    loop {
        match fallocate(file, FallocateFlags::KEEP_SIZE, at, len) {
            Err(rustix::io::Errno::INTR) => {}
            done => return Ok(done?),
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn allocate(_: &File, _: u64, _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Writes at an offset, many pieces at once where the system can.
#[cfg(target_os = "linux")]
fn write_at(file: &File, slices: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
    /// What one call takes.
    const MAX_SLICES: usize = 1024;
    Ok(rustix::io::pwritev(file, &slices[..slices.len().min(MAX_SLICES)], at)?)
}

#[cfg(not(target_os = "linux"))]
fn write_at(file: &File, slices: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::write_at(file, &slices[0], at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_synced_unless_all_files_were() {
        // This can't be synced.
        let note = |data| Note { committed: 1, record: Some((Arc::new(data), 1)) };
        let null = || note(Data::new(File::open("/dev/null").unwrap()));
        null().sync_record(false).unwrap_err();
        null().sync_record(true).unwrap();
        // Whoever failed before is not believed.
        let failed = Data::new(tempfile::tempfile().unwrap());
        failed.sync(|_| Err(io::Error::other("as a disk that is broken"))).unwrap_err();
        let failed = note(failed);
        failed.sync_record(false).unwrap_err();
        failed.sync_record(true).unwrap_err();
    }
}
