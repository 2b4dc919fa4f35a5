//! Resources as plain files under a root.
//!
//! # On disk
//! A resource's data is the file at its key under the root, from the first byte on. Next to the data lies one folder,
//! `.httpfstream`, which holds what the files alone don't tell:
//!
//! - `lock`: locked as long as a process uses the root. A second process is refused.
//! - `new/`: empty files that wait for their first byte. One gets its name with that byte, so that a resource that is
//!   opened and released is never seen. Emptied at the start.
//! - `records/`: one record for each resource that is not plainly finished. `HASH.open` exists from the first append
//!   of an appender to its end, and says for whom the resource is kept if its appender is lost; `HASH.rest` keeps that
//!   a resource is interrupted or sealed.
//!
//! A file without a record is a finished resource: drop files in to have them served. Its [`Life`] is made of its
//! inode number and its birth time.
//!
//! ```text
//!  absent ──first append──► data + HASH.open ──finish──► data            (finished)
//!                             │    ▲     ▲ └──────────► data + HASH.rest (interrupted, sealed)
//!                     dropped │    │     └── append again ────┘ ▲
//!                    or crash ▼    │ append again              │
//!                   data + HASH.open, no appender ─────────────┘
//!                     claimed: lost, until somebody comes and ends it
//!                     not claimed: interrupted, and settled so at the next start or open
//! ```
//!
//! # What makes it crash-safe
//! - The record is durable before the first byte of an appender can be seen, and removed (or renamed) only after the
//!   data was synced. So data that might not be whole always has a record.
//! - A killed process loses nothing: the file's length is the committed length, since a failed write is cut back and
//!   space is allocated ahead without changing the size. The resource is interrupted, or lost with its owner.
//! - After a power loss a file's length lies: there may be zeros inside. A record says up to where its data was synced,
//!   and in which boot of the system. In another boot the file is cut to that length before it is used, and begins a
//!   new life, for bytes that were seen may be gone.
//! - A record of a file that is as long as before its appender came is undone: the resource is as it was.
//! - What a crash left is read by a pure function of the record and the file (`Slot::left`), so that looking, settling
//!   and settling again after a crash in between all come to the same.
//!
//! - A sync makes the data durable (and the names of a new file and its folders), then the record that says up to
//!   where, then answers; see `commit`. One that fails is never tried again: the record is marked as of no boot, and the
//!   file is cut to its last durable length as after a power loss, in a new life.
//!
//! # Systems
//! Written for Linux. Other Unixes have the same calls but no preallocation and no reads that never wait, and their
//! boots can't be told apart; none has been tried.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant, UNIX_EPOCH};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{Append, ByteStream, End, EntryStream, Open, Storage, check_range, stream};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::Owner;
use crate::key::Key;
use crate::state::{Life, Stat, State};
use futures_core::future::BoxFuture;

mod commit;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod lease;
mod path;
mod read;
mod record;
mod threads;

use self::commit::Commits;
use self::lease::{Lease, Opened};
use self::path::{Dir, Folders, Found, conflict, error};
use self::read::FileStream;
use self::record::{Kept, Left, Looked, NO_BOOT, Record, Slot, first_bits, open_name, rest_name};
use self::threads::{Gate, Gates, INLINE};

/// The largest append that is written on the caller's thread. Larger ones, and all while this root syncs, go to the
/// blocking pool: an inline write of 64 bytes was seen to stall for 33–136 ms behind another file's sync. See also
/// [`threads`].
const MAX_INLINE: u64 = 256 * 1024;
/// Coarser than the clock that file systems stamp births with.
const BIRTH_TICK: Duration = Duration::from_secs(1);

/// Resources as plain files under a root directory. How they lie there, and what survives what, is told in
/// [Surviving](crate::docs::surviving).
///
/// Clones are handles on one root, which one process owns: a second [`open`](FsStorage::open) is refused as long as
/// any clone lives.
///
/// Calls need a tokio runtime: what may block runs on its blocking pool. Of calls that change something, of reads, and of
/// lists that are not yet taken, at most 128, 128 and 32 run at a time for each root; others wait for their turn. So a file
/// system that stops answering does not take the pool (512 threads, by tokio's default) from everybody else, and where it is
/// frozen, it can still be read. What is not counted: finished resources that are sent as files (by tower-http's
/// `ServeFile`), each with a thread while it reads.
#[derive(Clone, Debug)]
pub struct FsStorage {
    root: Arc<Root>,
}

/// Configures an [`FsStorage`].
#[derive(Clone, Debug)]
pub struct FsStorageBuilder {
    root: PathBuf,
    bookkeeping: String,
    preallocate: bool,
    inline_appends: bool,
}

#[derive(Debug)]
struct Root {
    top: Dir,
    new: Dir,
    records: Dir,
    /// The name of the bookkeeping folder, which no key may hold.
    reserved: String,
    preallocate: bool,
    inline_appends: bool,
    boot: [u8; 16],
    next_new: AtomicU64,
    /// The file system that this root is on.
    device: u64,
    commits: Arc<Commits>,
    gates: Gates,
    folders: Folders,
    table: Mutex<Table>,
    _lock: File,
}

#[derive(Debug, Default)]
struct Table {
    by_key: BTreeMap<Key, Entry>,
    inodes: HashSet<(u64, u64)>,
    /// Counts each open, end and delete: a look into the files during which it moved may have seen a mixture.
    epoch: u64,
    /// Lives that ended just now: an inode used again within a clock tick would look like the same life.
    ended: VecDeque<(Instant, Life)>,
}

#[derive(Debug)]
enum Entry {
    /// Being opened or deleted.
    Reserved,
    Held(Arc<Lease>),
}

impl FsStorageBuilder {
    /// The name of the folder under the root that holds the bookkeeping. No resource can have a segment of this name.
    ///
    /// Default: `.httpfstream`.
    #[must_use]
    pub fn bookkeeping(mut self, name: impl Into<String>) -> Self {
        self.bookkeeping = name.into();
        self
    }

    /// Whether space for what is appended is allocated ahead, where the file system can, so that a full disk strikes
    /// before anything is written. Off, a file takes no more space than it has bytes, as is right where an allocation
    /// buys nothing (file systems that copy on write).
    ///
    /// Default: on.
    #[must_use]
    pub fn preallocate(mut self, preallocate: bool) -> Self {
        self.preallocate = preallocate;
        self
    }

    /// Whether small appends (up to 256 KiB) may be written on the threads of the runtime, which is several times cheaper
    /// than handing them to its blocking pool. One is at a time, in the whole process, and only in a runtime with several
    /// threads. Where the file system stops answering (frozen, or a network file system without its server), that one
    /// thread stops with it, with the task that it runs and those few that only this thread may run next (tokio's LIFO
    /// slot, and tasks that have used up their budget): up to 64 followers of the same resource, mostly. All else goes on
    /// within a fifth of a second, with everything in the blocking pool. Off, no thread of the runtime ever waits for an append.
    ///
    /// Default: on.
    #[must_use]
    pub fn inline_appends(mut self, inline: bool) -> Self {
        self.inline_appends = inline;
        self
    }

    /// Opens the root, making it where it is missing, and settles what a crash left behind. Blocks on the disk.
    ///
    /// # Errors
    /// [`Busy`](ErrorKind::Busy) if another process uses the root; [`BadPath`](ErrorKind::BadPath) if the bookkeeping's
    /// name can't be a file's name; otherwise what the system said.
    pub fn open(self) -> Result<FsStorage> {
        if Key::new(&self.bookkeeping).is_err() || self.bookkeeping.contains('/') {
            return Err(Error::new(ErrorKind::BadPath).with_detail("the bookkeeping folder needs a plain file name"));
        }
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.root).map_err(error)?;
        let top = Dir::open(&self.root).map_err(error)?;
        let own = top.make_dir(&self.bookkeeping).map_err(error)?;
        let lock = own.create_file("lock", false).map_err(error)?;
        lock.try_lock().map_err(|failed| match failed {
            std::fs::TryLockError::WouldBlock => {
                Error::new(ErrorKind::Busy).with_detail("another process uses this root; one root has one owner")
            }
            std::fs::TryLockError::Error(failed) => error(failed),
        })?;
        let root = Root {
            new: own.make_dir("new").map_err(error)?,
            records: own.make_dir("records").map_err(error)?,
            device: top.device().map_err(error)?,
            top,
            reserved: self.bookkeeping,
            preallocate: self.preallocate,
            inline_appends: self.inline_appends,
            boot: boot_id(),
            next_new: AtomicU64::new(0),
            commits: Arc::new(Commits::new()),
            gates: Gates::new(),
            folders: Folders::default(),
            table: Mutex::default(),
            _lock: lock,
        };
        root.recover().map_err(error)?;
        Ok(FsStorage { root: Arc::new(root) })
    }
}

impl FsStorage {
    /// Opens a root directory with the default configuration; see [`FsStorageBuilder::open`]. Blocks on the disk.
    ///
    /// # Errors
    /// As [`FsStorageBuilder::open`].
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        Self::builder(root).open()
    }

    /// Configures a storage in this root directory.
    pub fn builder(root: impl AsRef<Path>) -> FsStorageBuilder {
        FsStorageBuilder {
            root: root.as_ref().to_owned(),
            bookkeeping: ".httpfstream".to_owned(),
            preallocate: true,
            inline_appends: true,
        }
    }

    /// Runs what may block on the disk.
    async fn blocking<T: Send + 'static>(
        &self,
        gate: fn(&Gates) -> &Gate,
        run: impl FnOnce(&Arc<Root>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let root = Arc::clone(&self.root);
        gate(&self.root.gates).run(move || run(&root)).await?
    }

    async fn find(&self, key: &Key) -> Result<Option<AtRest>> {
        let key = key.clone();
        self.blocking(|gates| &gates.reads, move |root| root.find(&key)).await
    }

    /// Looks for entries on the blocking pool, as fast as they are taken.
    fn entries(&self, look: impl FnOnce(&Root, &Entries) -> Result<()> + Send + 'static) -> EntryStream {
        let (send, receive) = tokio::sync::mpsc::channel(64);
        let root = Arc::clone(&self.root);
        let gate = root.gates.lists.clone();
        let look = move || {
            let looked = look(&root, &send);
            // Whoever sees the end may open the root anew.
            drop(root);
            if let Err(failed) = looked {
                let _ = send.blocking_send(Err(failed));
            }
        };
        Box::pin(stream::unfold((Some((gate, look)), receive), |(mut begin, mut receive)| async move {
            if let Some((gate, look)) = begin.take()
                && let Err(failed) = gate.begin(look).await
            {
                return Some((Err(failed), (None, receive)));
            }
            Some((receive.recv().await?, (None, receive)))
        }))
    }
}

impl Storage for FsStorage {
    type Appender = FsAppend;

    async fn open(&self, key: &Key, how: Open) -> Result<FsAppend> {
        let key = key.clone();
        // Goes with this future: what still waits for a thread then must not come between later opens.
        let wanted = Arc::new(());
        let wish = Arc::downgrade(&wanted);
        let opened = self.blocking(|gates| &gates.changes, move |root| root.open_lease(key, how, &wish)).await;
        drop(wanted);
        opened
    }

    async fn stat(&self, key: &Key) -> Result<Option<Stat>> {
        if let Some(lease) = self.root.held(key) {
            return Ok(Some(lease.stat()));
        }
        Ok(self.find(key).await?.map(|found| found.stat))
    }

    async fn read(&self, key: &Key, life: Life, range: Range<u64>) -> Result<ByteStream> {
        let (stat, file) = match self.root.held(key) {
            Some(lease) => {
                let here = if self.root.inline_appends { INLINE.enter() } else { None };
                let checked = here.map(|_here| lease.check_file());
                match checked {
                    Some(checked) => checked?,
                    None => {
                        let lease = Arc::clone(&lease);
                        self.root.gates.reads.run(move || lease.check_file()).await??;
                    }
                }
                (lease.stat(), Arc::clone(&lease.data.file))
            }
            None => {
                let found = self.find(key).await?.ok_or(ErrorKind::NotFound)?;
                (found.stat, Arc::new(found.file))
            }
        };
        if stat.life != life {
            return Err(ErrorKind::NotFound.into());
        }
        check_range(&range, stat.len)?;
        let gate = self.root.gates.reads.clone();
        Ok(Box::pin(FileStream::new(file, range.start, range.end, gate)))
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        let key = key.clone();
        self.blocking(|gates| &gates.changes, move |root| root.delete(&key)).await
    }

    async fn file(&self, key: &Key, life: Life) -> Result<Option<File>> {
        match self.find(key).await? {
            Some(found) if found.stat.life == life => Ok(Some(found.file)),
            _ => Err(ErrorKind::NotFound.into()),
        }
    }

    fn lost(&self) -> EntryStream {
        self.entries(|root, send| root.lost(send))
    }

    fn list(&self, prefix: &str) -> EntryStream {
        let prefix = prefix.to_owned();
        self.entries(move |root, send| {
            let top = root.top.sub_dir(".").map_err(error)?;
            root.list(&top, "", &prefix, send)
        })
    }
}

/// Where entries go, one after the other as they are taken.
type Entries = tokio::sync::mpsc::Sender<Result<(Key, Stat)>>;

/// What there is to see at a key.
struct Seen {
    /// What stands there, with nobody appending.
    at_rest: Option<AtRest>,
    /// An appender of an earlier time left something that has to be settled before another one comes.
    unsettled: bool,
}

struct AtRest {
    stat: Stat,
    file: File,
    /// What a lost appender left, to go on with.
    record: Option<Record>,
    recorded_life: Option<Life>,
    id: u128,
}

impl Root {
    fn table(&self) -> MutexGuard<'_, Table> {
        // No code that panics runs under this lock.
        self.table.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn held(&self, key: &Key) -> Option<Arc<Lease>> {
        self.table().held(key)
    }

    /// Makes a resource's name durable.
    fn sync_name(&self, key: &Key) -> std::io::Result<()> {
        self.top.sync_parent(key, &self.folders)
    }

    fn is_reserved(&self, key: &Key) -> bool {
        // Folded, for file systems that fold.
        key.segments().any(|segment| segment.eq_ignore_ascii_case(&self.reserved))
    }

    fn open_lease(self: &Arc<Self>, key: Key, how: Open, wish: &Weak<()>) -> Result<FsAppend> {
        if self.is_reserved(&key) {
            return Err(ErrorKind::NotFound.into());
        }
        let older = {
            let mut table = self.table();
            // Under the lock: whoever opens the key after the caller has gone takes it too, before or after this. Before,
            // this sees that the caller has gone; after, the key is taken until what is opened here has been dropped.
            if wish.strong_count() == 0 {
                return Err(ErrorKind::Busy.into());
            }
            let older = match table.by_key.get(&key) {
                Some(Entry::Held(lease)) if how == Open::Takeover => Some(Arc::clone(lease)),
                Some(_) => return Err(ErrorKind::Busy.into()),
                None => None,
            };
            if older.is_none() {
                table.check_family(&key)?;
            }
            // From here on the older appender's end can't free the key.
            table.by_key.insert(key.clone(), Entry::Reserved);
            older
        };
        let reservation = Reservation { root: self, key };
        let key = &reservation.key;
        let taken = older.and_then(|older| {
            let taken = older.take_over().ok();
            if taken.is_none() {
                // It had ended by itself; what it left is found as after any other end.
                self.table().inodes.remove(&older.inode);
            }
            taken
        });
        let lease = match taken {
            Some(lease) => lease,
            None => {
                let lease = Lease::new(Arc::clone(self), key.clone(), self.open_file(key, how)?).map_err(error)?;
                if !self.table().inodes.insert(lease.inode) {
                    // A hard link, or another spelling on a file system that folds case.
                    lease.release();
                    return Err(ErrorKind::Busy.into());
                }
                lease
            }
        };
        let lease = Arc::new(lease);
        reservation.fill(Arc::clone(&lease));
        Ok(FsAppend { held: Arc::new(Held { lease }), claimed: None, busy: false })
    }

    fn open_file(&self, key: &Key, how: Open) -> Result<Opened> {
        let mut seen = self.look(key, true)?;
        if seen.unsettled {
            self.settle(key).map_err(error)?;
            seen = self.look(key, true)?;
        }
        let Some(found) = seen.at_rest else { return self.make_new() };
        match found.stat.state {
            _ if how == Open::Create => Err(ErrorKind::Exists.into()),
            State::Sealed => Err(ErrorKind::Sealed.into()),
            state => Ok(Opened {
                life: found.stat.life,
                recorded_life: found.recorded_life,
                id: found.id,
                len: found.stat.len,
                before: Some(state),
                waiting: None,
                file: found.file,
                owner: found.stat.owner,
                record: found.record,
            }),
        }
    }

    fn make_new(&self) -> Result<Opened> {
        let name = format!("{:x}", self.next_new.fetch_add(1, Ordering::Relaxed));
        let file = self.new.create_file(&name, true).map_err(error)?;
        let id = identity(&file).map_err(error)?;
        let life = Life::from_bits(id);
        let reused = {
            let mut table = self.table();
            table.forget_old_lives();
            table.ended.iter().any(|(_, ended)| *ended == life)
        };
        // Without a birth time, or within a tick of the inode's last use, the file alone can't tell lives apart.
        let born = file.metadata().and_then(|meta| meta.created()).is_ok();
        let recorded_life = if born && !reused { None } else { Some(Life::random()?) };
        Ok(Opened {
            file,
            life: recorded_life.unwrap_or(life),
            recorded_life,
            id,
            len: 0,
            before: None,
            waiting: Some(name),
            owner: None,
            record: None,
        })
    }

    /// What is at the key, as a reader sees it, open or not.
    fn find(&self, key: &Key) -> Result<Option<AtRest>> {
        loop {
            let (epoch, held) = {
                let table = self.table();
                (table.epoch, table.held(key))
            };
            if let Some(lease) = held {
                let file = lease.data.file.try_clone().map_err(error)?;
                let (stat, id) = (lease.stat(), lease.life.to_bits());
                return Ok(Some(AtRest { stat, file, record: None, recorded_life: None, id }));
            }
            let seen = self.look(key, false);
            // An appender that came meanwhile may have added to the file after its record was looked for: what was
            // found would be taken for a resource at rest.
            if self.table().epoch == epoch {
                return Ok(seen?.at_rest);
            }
        }
    }

    fn look(&self, key: &Key, write: bool) -> Result<Seen> {
        const NOTHING: Seen = Seen { at_rest: None, unsettled: false };
        if self.is_reserved(key) {
            return Ok(NOTHING);
        }
        let file = match self.top.find(key, write)? {
            Found::File(file) => file,
            Found::Absent => return Ok(NOTHING),
            Found::Symlink if write => return Err(ErrorKind::NotFound.into()),
            Found::Symlink => return Ok(NOTHING),
        };
        let id = identity(&file).map_err(error)?;
        let open = Record::open(&self.records, &open_name(key), write).map_err(error)?;
        // After the record: what is appended from here on is in a file that only grows.
        let meta = file.metadata().map_err(error)?;
        let size = meta.len();
        let mut seen = Seen { at_rest: None, unsettled: !matches!(open, Looked::Absent) };
        let (mut record, mut left) = (None, None);
        match open {
            Looked::Garbled => left = Some((Slot::of_garbled(id, size, self.boot), size)),
            Looked::Whole(open) if open.is_about(key, id) => match open.slot.left(id, size, self.boot) {
                Left::Undone if !open.slot.existed => return Ok(seen),
                Left::Undone => {}
                Left::As(slot, len) => {
                    left = Some((slot, len));
                    if slot == open.slot && slot.kept.is_open() {
                        seen.unsettled = false;
                        record = Some(open);
                    }
                }
            },
            Looked::Absent | Looked::Whole(_) => {}
        }
        if left.is_none() {
            left = match Record::open(&self.records, &rest_name(key), false).map_err(error)? {
                Looked::Absent => None,
                Looked::Whole(rest) if !rest.is_about(key, id) => None,
                Looked::Whole(Record { slot, .. }) if !slot.kept.is_open() => match slot.left(id, size, self.boot) {
                    Left::As(slot, len) => Some((slot, len)),
                    Left::Undone => None,
                },
                // The slot that said how it ended can't be read, but the one before it can.
                Looked::Garbled | Looked::Whole(_) => Some((Slot::of_garbled(id, size, self.boot), size)),
            };
        }
        let recorded_life = left.and_then(|(slot, _)| slot.life);
        let state = match left.map(|(slot, _)| slot.kept) {
            None => State::Finished,
            Some(Kept::Open | Kept::Cut) => State::Lost,
            Some(Kept::Rest(state)) => state,
        };
        let len = left.map_or(size, |(_, len)| len);
        let stat = Stat::new(recorded_life.unwrap_or(Life::from_bits(id)), len, state).modified(meta.modified().ok());
        let stat = stat.owner(left.and_then(|(slot, _)| slot.owner));
        seen.at_rest = Some(AtRest { stat, file, record, recorded_life, id });
        Ok(seen)
    }

    fn delete(self: &Arc<Self>, key: &Key) -> Result<()> {
        if self.is_reserved(key) {
            return Err(ErrorKind::NotFound.into());
        }
        let held = {
            let mut table = self.table();
            let held = match table.by_key.get(key) {
                Some(Entry::Reserved) => return Err(ErrorKind::Busy.into()),
                Some(Entry::Held(lease)) => Some(Arc::clone(lease)),
                None => None,
            };
            table.by_key.insert(key.clone(), Entry::Reserved);
            held
        };
        let reservation = Reservation { root: self, key: key.clone() };
        let life = match &held {
            Some(lease) => {
                lease.fence();
                self.table().inodes.remove(&lease.inode);
                lease.life
            }
            None => self.find(key)?.ok_or(ErrorKind::NotFound)?.stat.life,
        };
        {
            let mut table = self.table();
            table.epoch += 1;
            table.forget_old_lives();
            table.ended.push_back((Instant::now(), life));
        }
        self.top.remove(key)?;
        let records = [open_name(key), rest_name(key)].map(|name| self.records.remove_file(&name).map_err(error));
        for removed in records {
            removed?;
        }
        self.records.sync().map_err(error)?;
        drop(reservation);
        Ok(())
    }

    /// Settles whatever a process that died left behind.
    fn recover(&self) -> std::io::Result<()> {
        for (name, kind) in self.new.names()? {
            if kind.is_file() {
                self.new.remove_file(&name)?;
            }
        }
        for (name, _) in self.records.names()? {
            if name.ends_with(".tmp") {
                self.records.remove_file(&name)?;
            } else if name.ends_with(".rest") {
                if Record::open(&self.records, &name, false)?.is_forgettable() {
                    self.records.remove_file(&name)?;
                }
            } else if name.ends_with(".open") {
                let settled = match Record::open(&self.records, &name, false)? {
                    Looked::Whole(record) if open_name(&record.key) == name => self.settle(&record.key),
                    _ => Err(std::io::Error::other("the record can't be read")),
                };
                if let Err(failed) = settled {
                    // It is tried again when the resource is appended to; the others must not wait for that.
                    let failed = &failed as &dyn std::error::Error;
                    tracing::error!(record = name, error = failed, "what an appender left open could not be settled");
                }
            }
        }
        Ok(())
    }

    /// Settles what an appender left open: cuts what may be lost, and writes down how the resource stands. One that is
    /// kept for its owner stays open, with all that is there. Idempotent.
    fn settle(&self, key: &Key) -> std::io::Result<()> {
        let (open, rest) = (open_name(key), rest_name(key));
        let mut record = match Record::open(&self.records, &open, true)? {
            Looked::Absent => return Ok(()),
            Looked::Garbled => return self.settle_garbled(key),
            Looked::Whole(record) => record,
        };
        let file = match self.top.find(key, true) {
            Ok(Found::File(file)) => Some(file),
            Ok(Found::Absent | Found::Symlink) => None,
            Err(failed) if failed.kind() == ErrorKind::Conflict => None,
            Err(failed) => return Err(std::io::Error::other(failed)),
        };
        let Some(file) = file.filter(|file| identity(file).is_ok_and(|id| id == record.id)) else {
            self.records.remove_file(&open)?;
            return self.records.sync();
        };
        let before = record.slot;
        if !before.kept.is_open() {
            // Its end was written down, after its data was synced; only the name is left to do.
            self.records.rename(&open, &rest)?;
            return self.records.sync();
        }
        let size = file.metadata()?.len();
        let Left::As(slot, len) = before.left(record.id, size, self.boot) else {
            // Nothing was added: it is as it was.
            if !before.existed {
                self.top.remove(key).map_err(std::io::Error::other)?;
            }
            self.records.remove_file(&open)?;
            return self.records.sync();
        };
        if slot == before {
            return Ok(());
        }
        file.set_len(len)?;
        if let Err(failed) = file.sync_all() {
            // A later one would be told that all is well.
            let _ = record.write(Slot { boot: NO_BOOT, ..before });
            return Err(failed);
        }
        self.sync_name(key)?;
        record.write(slot)?;
        if slot.kept.is_open() {
            return Ok(());
        }
        self.records.rename(&open, &rest)?;
        self.records.sync()
    }

    /// Puts a readable record in the place of one that can't be read.
    fn settle_garbled(&self, key: &Key) -> std::io::Result<()> {
        let (open, rest) = (open_name(key), rest_name(key));
        if let Ok(Found::File(file)) = self.top.find(key, true) {
            file.sync_all()?;
            let (id, len) = (identity(&file)?, file.metadata()?.len());
            Record::create(&self.records, &rest, key, id, Slot::of_garbled(id, len, self.boot))?;
        }
        self.records.remove_file(&open)?;
        self.records.sync()
    }

    fn lost(&self, send: &Entries) -> Result<()> {
        for (name, _) in self.records.names().map_err(error)? {
            if !name.ends_with(".open") {
                continue;
            }
            // One that can't be read is not kept for anybody.
            let Ok(Looked::Whole(record)) = Record::open(&self.records, &name, false) else { continue };
            let found = self.find(&record.key).map(|found| found.map(|found| (record.key, found.stat)));
            let Some(entry) = found.transpose() else { continue };
            let live = entry.as_ref().is_ok_and(|(_, stat)| stat.state != State::Lost);
            if !live && send.blocking_send(entry).is_err() {
                break;
            }
        }
        Ok(())
    }

    fn list(&self, dir: &Dir, above: &str, prefix: &str, send: &Entries) -> Result<()> {
        for (name, kind) in dir.names().map_err(error)? {
            let path = format!("{above}{name}");
            if name.eq_ignore_ascii_case(&self.reserved) {
                continue;
            }
            if kind.is_dir() {
                let below = path + "/";
                let shared = below.len().min(prefix.len());
                if below.as_bytes()[..shared] == prefix.as_bytes()[..shared] {
                    // A folder that is gone meanwhile has nothing to list.
                    if let Ok(sub) = dir.sub_dir(&name) {
                        self.list(&sub, &below, prefix, send)?;
                    }
                }
            } else if kind.is_file() && path.starts_with(prefix) {
                let Ok(key) = Key::new(&path) else { continue };
                // One that can't be looked at doesn't end the list.
                let found = self.find(&key).map(|found| found.map(|found| (key, found.stat)));
                let Some(entry) = found.transpose() else { continue };
                if send.blocking_send(entry).is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

impl Table {
    fn held(&self, key: &Key) -> Option<Arc<Lease>> {
        match self.by_key.get(key) {
            Some(Entry::Held(lease)) => Some(Arc::clone(lease)),
            _ => None,
        }
    }

    /// Refuses a key above or below one that is open: a file can't be a folder too.
    fn check_family(&self, key: &Key) -> Result<()> {
        let mut above = key.as_str();
        while let Some((parent, _)) = above.rsplit_once('/') {
            if Key::new(parent).is_ok_and(|parent| self.by_key.contains_key(&parent)) {
                return Err(conflict());
            }
            above = parent;
        }
        let Ok(first) = Key::new(&format!("{key}/\u{20}")) else { return Ok(()) };
        let below = self.by_key.range(first..).next().map(|(other, _)| other.as_str());
        if below.and_then(|other| other.strip_prefix(key.as_str())).is_some_and(|rest| rest.starts_with('/')) {
            return Err(conflict());
        }
        Ok(())
    }

    fn forget_old_lives(&mut self) {
        while self.ended.front().is_some_and(|(at, _)| at.elapsed() > BIRTH_TICK) {
            self.ended.pop_front();
        }
    }
}

/// A key that is being opened or deleted; given back when dropped.
struct Reservation<'a> {
    root: &'a Root,
    key: Key,
}

impl Reservation<'_> {
    /// The key is open from here on.
    fn fill(self, lease: Arc<Lease>) {
        let mut table = self.root.table();
        table.epoch += 1;
        table.by_key.insert(self.key.clone(), Entry::Held(lease));
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut table = self.root.table();
        if matches!(table.by_key.get(&self.key), Some(Entry::Reserved)) {
            table.by_key.remove(&self.key);
        }
    }
}

/// The lease as an appender and its running calls hold it: free again when the last of them is gone.
#[derive(Debug)]
struct Held {
    lease: Arc<Lease>,
}

impl Held {
    /// Frees the key. A call that still runs can do no more: its lease has ended.
    fn leave(&self) {
        let lease = &self.lease;
        let mut table = lease.root.table();
        let ours = matches!(table.by_key.get(&lease.key), Some(Entry::Held(held)) if Arc::ptr_eq(held, lease));
        if ours {
            table.epoch += 1;
            table.by_key.remove(&lease.key);
            table.inodes.remove(&lease.inode);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.leave();
        self.lease.release();
    }
}

/// The appender of a file.
#[derive(Debug)]
pub struct FsAppend {
    held: Arc<Held>,
    claimed: Option<Owner>,
    /// A call was begun and not seen to its end.
    busy: bool,
}

impl Append for FsAppend {
    type Sync = BoxFuture<'static, Result<u64>>;

    fn stat(&self) -> Stat {
        self.held.lease.stat()
    }

    fn claim(&mut self, owner: Option<Owner>) {
        self.claimed = owner;
    }

    async fn append(&mut self, data: &[Bytes]) -> Result<u64> {
        if self.busy {
            return Err(ErrorKind::Poisoned.into());
        }
        let lease = &self.held.lease;
        let len = data.iter().map(|d| d.len() as u64).sum();
        if len <= MAX_INLINE
            && lease.root.inline_appends
            && !lease.root.commits.is_syncing()
            && let Some(_here) = INLINE.enter()
            && let Some(appended) = lease.append_inline(data, len, self.claimed)
        {
            return appended;
        }
        let (held, data, claim) = (Arc::clone(&self.held), data.to_vec(), self.claimed);
        let gate = lease.root.gates.changes.clone();
        self.busy = true;
        // In a box of its own: what is written here and now doesn't need the room.
        let appended = Box::pin(gate.run(move || held.lease.append(&data, len, claim))).await?;
        self.busy = false;
        appended
    }

    fn sync(&self) -> Self::Sync {
        // A sync that nobody has asked for yet must not keep the key from the next appender.
        let held = Arc::downgrade(&self.held);
        Box::pin(async move {
            let held = held.upgrade().ok_or(ErrorKind::Fenced)?;
            commit::sync(held).await
        })
    }

    async fn finish(self, end: End) -> Result<Stat> {
        if self.busy {
            return Err(ErrorKind::Poisoned.into());
        }
        let gate = self.held.lease.root.gates.changes.clone();
        let finished = gate.run(move || {
            let finished = {
                let _syncing = self.held.lease.root.commits.syncing();
                self.held.lease.finish(end, self.claimed)
            };
            // Only now may another appender come, and not later: a sync may still hold the lease.
            self.held.leave();
            finished
        });
        finished.await?
    }
}

/// What tells a file from any other that was ever under its name: its inode number and its birth.
fn identity(file: &File) -> std::io::Result<u128> {
    let meta = file.metadata()?;
    let born = meta.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map_or(0, |d| d.as_nanos());
    let mut hash = Sha256::new();
    hash.update(b"httpfstream file");
    hash.update(meta.ino().to_le_bytes());
    hash.update(born.to_le_bytes());
    Ok(first_bits(hash))
}

/// Tells one boot of the system from another; zeros where the system doesn't say.
fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let mut digits = text.bytes().filter_map(|b| (b as char).to_digit(16));
    std::array::from_fn(|_| (digits.next().unwrap_or(0) << 4 | digits.next().unwrap_or(0)) as u8)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn bytes(data: &'static [u8]) -> Vec<Bytes> {
        vec![Bytes::from_static(data)]
    }

    /// Rewrites a record, as a crash between two system calls may leave it.
    fn rewrite(path: &Path, name: &str, change: impl FnOnce(Slot) -> Slot) {
        let records = Dir::open(&path.join(".httpfstream/records")).unwrap();
        let Looked::Whole(mut record) = Record::open(&records, name, true).unwrap() else { panic!("no record {name}") };
        let slot = change(record.slot);
        record.write(slot).unwrap();
    }

    /// Opens the root as the system's next boot would.
    fn open_after_reboot(path: &Path) -> FsStorage {
        // Each record is made to be of another boot: all that the storage can know of one.
        for name in records(path) {
            rewrite(path, &name, |slot| Slot { boot: [0xee; 16], ..slot });
        }
        FsStorage::open(path).unwrap()
    }

    /// Leaves an appender behind as a killed process does: the record says open.
    async fn crash(storage: FsStorage, append: FsAppend) {
        drop(append);
        drop(storage);
    }

    fn records(path: &Path) -> Vec<String> {
        let dir = std::fs::read_dir(path.join(".httpfstream/records")).unwrap();
        dir.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    async fn content(storage: &FsStorage, key: &Key) -> (Stat, Vec<u8>) {
        let stat = storage.stat(key).await.unwrap().unwrap();
        let mut read = storage.read(key, stat.life, 0..stat.len).await.unwrap();
        let mut all = Vec::new();
        while let Some(chunk) = stream::next(&mut read).await {
            all.extend_from_slice(&chunk.unwrap());
        }
        (stat, all)
    }

    #[tokio::test]
    async fn a_killed_process_loses_nothing() {
        let tmp = tempfile::tempdir().unwrap();
        let key = Key::new("a/b").unwrap();
        let storage = FsStorage::open(tmp.path()).unwrap();
        let mut append = storage.open(&key, Open::Create).await.unwrap();
        let life = append.stat().life;
        append.append(&bytes(b"durable ")).await.unwrap();
        append.sync().await.unwrap();
        append.append(&bytes(b"committed")).await.unwrap();
        crash(storage, append).await;
        for _ in 0..2 {
            let storage = FsStorage::open(tmp.path()).unwrap();
            let (stat, all) = content(&storage, &key).await;
            assert_eq!((stat.state, stat.life, &all[..]), (State::Interrupted, life, &b"durable committed"[..]));
            assert_eq!(records(tmp.path()), [rest_name(&key)]);
        }
    }

    #[tokio::test]
    async fn another_boot_cuts_to_what_was_durable_and_begins_a_new_life() {
        let tmp = tempfile::tempdir().unwrap();
        let key = Key::new("a").unwrap();
        let storage = FsStorage::open(tmp.path()).unwrap();
        let mut append = storage.open(&key, Open::Create).await.unwrap();
        let life = append.stat().life;
        append.append(&bytes(b"durable ")).await.unwrap();
        assert_eq!(append.sync().await.unwrap(), 8);
        append.append(&bytes(b"committed")).await.unwrap();
        crash(storage, append).await;
        let storage = open_after_reboot(tmp.path());
        let (stat, all) = content(&storage, &key).await;
        assert_eq!((stat.state, &all[..]), (State::Interrupted, &b"durable "[..]));
        assert_ne!(stat.life, life, "bytes that were seen are gone");
        // It goes on from there, and keeps its new life when it is finished.
        let mut append = storage.open(&key, Open::Continue).await.unwrap();
        append.append(&bytes(b"again")).await.unwrap();
        append.finish(End::Finished).await.unwrap();
        drop(storage);
        let (after, all) = content(&FsStorage::open(tmp.path()).unwrap(), &key).await;
        assert_eq!((after.state, after.life, &all[..]), (State::Finished, stat.life, &b"durable again"[..]));
    }

    #[tokio::test]
    async fn what_is_at_rest_is_left_alone_by_another_boot() {
        let tmp = tempfile::tempdir().unwrap();
        let key = Key::new("a").unwrap();
        let storage = FsStorage::open(tmp.path()).unwrap();
        let mut append = storage.open(&key, Open::Create).await.unwrap();
        append.append(&bytes(b"all of it")).await.unwrap();
        let sealed = append.finish(End::Sealed).await.unwrap();
        drop(storage);
        let storage = open_after_reboot(tmp.path());
        let (stat, all) = content(&storage, &key).await;
        assert_eq!((stat.state, stat.life, &all[..]), (State::Sealed, sealed.life, &b"all of it"[..]));
        assert_eq!(storage.open(&key, Open::Continue).await.unwrap_err().kind(), ErrorKind::Sealed);
    }

    /// Seen to fail with the file's length asked before the committed one.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn reading_beside_an_appender_is_never_taken_for_a_cut_file() {
        let tmp = tempfile::tempdir().unwrap();
        let key = Key::new("a").unwrap();
        let storage = FsStorage::open(tmp.path()).unwrap();
        let mut append = storage.open(&key, Open::Create).await.unwrap();
        let life = append.stat().life;
        let appending = tokio::spawn(async move {
            for _ in 0..50_000 {
                append.append(&bytes(b"x")).await.unwrap();
            }
            append.finish(End::Finished).await.unwrap()
        });
        while !appending.is_finished() {
            storage.read(&key, life, 0..0).await.map(drop).unwrap();
        }
        assert_eq!(appending.await.unwrap().len, 50_000);
    }

    /// A kill between the writing of the end and the record's renaming, in a finish or while settling.
    #[tokio::test]
    async fn an_end_that_was_written_down_counts_though_its_record_has_the_old_name() {
        for (existed, end) in [(false, State::Interrupted), (false, State::Sealed), (true, State::Interrupted)] {
            let tmp = tempfile::tempdir().unwrap();
            let key = Key::new("a").unwrap();
            let storage = FsStorage::open(tmp.path()).unwrap();
            let mut expected = Vec::new();
            if existed {
                let mut append = storage.open(&key, Open::Create).await.unwrap();
                append.append(&bytes(b"before ")).await.unwrap();
                append.finish(End::Interrupted).await.unwrap();
                expected.extend_from_slice(b"before ");
            }
            let mut append = storage.open(&key, Open::Continue).await.unwrap();
            append.append(&bytes(b"and after")).await.unwrap();
            append.sync().await.unwrap();
            expected.extend_from_slice(b"and after");
            crash(storage, append).await;
            let len = expected.len() as u64;
            rewrite(tmp.path(), &open_name(&key), |slot| Slot { kept: Kept::Rest(end), len, durable: len, ..slot });
            let storage = FsStorage::open(tmp.path()).unwrap();
            let (stat, all) = content(&storage, &key).await;
            assert_eq!((stat.state, all), (end, expected), "existed: {existed}");
            assert_eq!(records(tmp.path()), [rest_name(&key)]);
        }
    }

    #[tokio::test]
    async fn another_boot_begins_a_new_life_though_the_length_is_as_before() {
        let tmp = tempfile::tempdir().unwrap();
        let key = Key::new("a").unwrap();
        let storage = FsStorage::open(tmp.path()).unwrap();
        let mut append = storage.open(&key, Open::Create).await.unwrap();
        append.append(&bytes(b"finished")).await.unwrap();
        append.finish(End::Finished).await.unwrap();
        let mut append = storage.open(&key, Open::Continue).await.unwrap();
        let life = append.stat().life;
        append.append(&bytes(b" seen by followers")).await.unwrap();
        crash(storage, append).await;
        // What delayed allocation leaves: the size as it was last synced.
        File::options().write(true).open(tmp.path().join("a")).unwrap().set_len(8).unwrap();
        let (stat, all) = content(&open_after_reboot(tmp.path()), &key).await;
        assert_eq!((stat.state, &all[..]), (State::Interrupted, &b"finished"[..]));
        assert_ne!(stat.life, life, "what was seen behind it is gone");
    }

    #[tokio::test]
    async fn a_record_that_cannot_be_read_never_makes_a_resource_whole() {
        for settled in [false, true] {
            let tmp = tempfile::tempdir().unwrap();
            let key = Key::new("a").unwrap();
            let storage = FsStorage::open(tmp.path()).unwrap();
            let mut append = storage.open(&key, Open::Create).await.unwrap();
            let life = append.stat().life;
            append.append(&bytes(b"who knows")).await.unwrap();
            crash(storage, append).await;
            if settled {
                drop(FsStorage::open(tmp.path()).unwrap());
            }
            let [name] = &records(tmp.path())[..] else { panic!("one record") };
            std::fs::write(tmp.path().join(".httpfstream/records").join(name), b"garbage").unwrap();
            let storage = FsStorage::open(tmp.path()).unwrap();
            let (stat, all) = content(&storage, &key).await;
            assert_eq!((stat.state, &all[..]), (State::Interrupted, &b"who knows"[..]));
            assert_ne!(stat.life, life);
            let mut append = storage.open(&key, Open::Continue).await.unwrap();
            assert_eq!(append.stat().life, stat.life);
            append.append(&bytes(b"!")).await.unwrap();
            assert_eq!(append.finish(End::Finished).await.unwrap().life, stat.life);
            assert_eq!(content(&storage, &key).await.0.life, stat.life);
        }
    }

    #[tokio::test]
    async fn a_record_whose_last_slot_cannot_be_read_never_makes_a_resource_whole() {
        for len in [0, 3, 9] {
            let tmp = tempfile::tempdir().unwrap();
            let key = Key::new("a").unwrap();
            let storage = FsStorage::open(tmp.path()).unwrap();
            let mut append = storage.open(&key, Open::Create).await.unwrap();
            append.append(&bytes(b"who knows")).await.unwrap();
            append.finish(End::Interrupted).await.unwrap();
            drop(storage);
            // What was written before the end is the last that can be read.
            let before = |slot| Slot { kept: Kept::Open, len, durable: len, existed: true, boot: [0xee; 16], ..slot };
            rewrite(tmp.path(), &rest_name(&key), before);
            let storage = FsStorage::open(tmp.path()).unwrap();
            let (stat, all) = content(&storage, &key).await;
            assert_eq!((stat.state, &all[..]), (State::Interrupted, &b"who knows"[..]));
            let mut append = storage.open(&key, Open::Continue).await.unwrap();
            append.append(&bytes(b"!")).await.unwrap();
            assert_eq!(append.finish(End::Finished).await.unwrap().len, 10);
        }
    }

    /// Seen to fail without the second look at the table's epoch.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_opened_during_a_look_is_not_taken_for_interrupted() {
        let tmp = tempfile::tempdir().unwrap();
        let key = Key::new("a").unwrap();
        let storage = FsStorage::open(tmp.path()).unwrap();
        storage.open(&key, Open::Create).await.unwrap().finish(End::Finished).await.unwrap();
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let mut looking = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let (storage, key, stopped) = (storage.clone(), key.clone(), stopped.clone());
            looking.spawn(async move {
                while !*stopped.borrow() {
                    assert_ne!(storage.stat(&key).await.unwrap().unwrap().state, State::Interrupted);
                }
            });
        }
        for _ in 0..300 {
            let mut append = storage.open(&key, Open::Continue).await.unwrap();
            append.append(&bytes(b"x")).await.unwrap();
            append.finish(End::Finished).await.unwrap();
        }
        stop.send(true).unwrap();
        while let Some(looked) = looking.join_next().await {
            looked.unwrap();
        }
    }

    #[tokio::test]
    async fn what_somebody_else_adds_or_cuts_at_rest_is_lived_with() {
        let tmp = tempfile::tempdir().unwrap();
        let key = Key::new("a").unwrap();
        let storage = FsStorage::open(tmp.path()).unwrap();
        let mut append = storage.open(&key, Open::Create).await.unwrap();
        append.append(&bytes(b"ours ")).await.unwrap();
        let life = append.finish(End::Interrupted).await.unwrap().life;
        std::fs::write(tmp.path().join("a"), "ours and theirs ").unwrap();
        assert_eq!(content(&storage, &key).await.0.life, life);
        let mut append = storage.open(&key, Open::Continue).await.unwrap();
        append.append(&bytes(b"again")).await.unwrap();
        append.finish(End::Interrupted).await.unwrap();
        assert_eq!(content(&storage, &key).await.1, b"ours and theirs again");

        File::options().write(true).open(tmp.path().join("a")).unwrap().set_len(4).unwrap();
        let (cut, all) = content(&storage, &key).await;
        assert_eq!(all, b"ours");
        assert_ne!(cut.life, life, "other bytes may come where some were seen");
        let mut append = storage.open(&key, Open::Continue).await.unwrap();
        append.append(&bytes(b"!")).await.unwrap();
        append.finish(End::Finished).await.unwrap();
        let (after, all) = content(&storage, &key).await;
        assert_eq!((after.life, &all[..]), (cut.life, &b"ours!"[..]));
    }

    fn owner(of: u8) -> Option<Owner> {
        Some(Owner::from_bytes([of; 32]))
    }

    /// Appends as this owner; the appender.
    async fn claimed(storage: &FsStorage, key: &Key, owner: Option<Owner>, data: &'static [u8]) -> FsAppend {
        let mut append = storage.open(key, Open::Continue).await.unwrap();
        append.claim(owner);
        append.append(&bytes(data)).await.unwrap();
        append
    }

    async fn lost(storage: &FsStorage) -> Vec<(Key, Stat)> {
        let (mut entries, mut lost) = (storage.lost(), Vec::new());
        while let Some(entry) = stream::next(&mut entries).await {
            lost.push(entry.unwrap());
        }
        lost
    }

    #[tokio::test]
    async fn a_killed_process_leaves_the_claimed_lost_until_somebody_ends_them() {
        let tmp = tempfile::tempdir().unwrap();
        let key = Key::new("a/b").unwrap();
        let storage = FsStorage::open(tmp.path()).unwrap();
        let append = claimed(&storage, &key, owner(1), b"one ").await;
        let life = append.stat().life;
        crash(storage, append).await;
        for data in [&b"two "[..], b"three "] {
            let storage = FsStorage::open(tmp.path()).unwrap();
            let (stat, _) = content(&storage, &key).await;
            assert_eq!((stat.state, stat.life, stat.owner), (State::Lost, life, owner(1)));
            assert_eq!(lost(&storage).await, [(key.clone(), stat)]);
            assert_eq!(records(tmp.path()), [open_name(&key)]);
            // Its name was never synced, and whoever goes on with it makes up for that.
            let append = claimed(&storage, &key, owner(1), data).await;
            append.sync().await.unwrap();
            crash(storage, append).await;
        }
        let storage = FsStorage::open(tmp.path()).unwrap();
        let ended = storage.open(&key, Open::Continue).await.unwrap().finish(End::Interrupted).await.unwrap();
        assert_eq!((ended.state, ended.owner), (State::Interrupted, owner(1)));
        assert_eq!((records(tmp.path()), lost(&storage).await), (vec![rest_name(&key)], vec![]));
        drop(storage);
        let (stat, all) = content(&FsStorage::open(tmp.path()).unwrap(), &key).await;
        assert_eq!((stat.state, stat.life, stat.owner), (State::Interrupted, life, owner(1)));
        assert_eq!(all, b"one two three ");
    }

    #[tokio::test]
    async fn another_boot_cuts_the_lost_and_keeps_them_for_their_owner() {
        let tmp = tempfile::tempdir().unwrap();
        let key = Key::new("a").unwrap();
        let storage = FsStorage::open(tmp.path()).unwrap();
        let mut append = claimed(&storage, &key, owner(1), b"durable ").await;
        let mut life = append.stat().life;
        append.sync().await.unwrap();
        append.append(&bytes(b"committed")).await.unwrap();
        crash(storage, append).await;
        for reboots in 0..3 {
            let storage = open_after_reboot(tmp.path());
            let (stat, all) = content(&storage, &key).await;
            assert_eq!((stat.state, stat.owner, &all[..]), (State::Lost, owner(1), &b"durable "[..]), "{reboots}");
            assert_ne!(stat.life, life);
            life = stat.life;
            drop(storage);
            // Another start of this boot changes nothing, and nor does an open.
            let storage = FsStorage::open(tmp.path()).unwrap();
            drop(storage.open(&key, Open::Continue).await.unwrap());
            let (again, _) = content(&storage, &key).await;
            assert_eq!((again.state, again.life), (State::Lost, life));
        }
        let storage = FsStorage::open(tmp.path()).unwrap();
        crash(storage.clone(), claimed(&storage, &key, None, b"by a stranger").await).await;
        drop(storage);
        let (stat, all) = content(&FsStorage::open(tmp.path()).unwrap(), &key).await;
        assert_eq!((stat.state, stat.life, stat.owner), (State::Interrupted, life, None));
        assert_eq!(all, b"durable by a stranger");
    }

    /// A kill between the record and the first byte, of a new resource and of ones that were there before.
    #[tokio::test]
    async fn a_claim_without_a_byte_is_undone() {
        for before in [None, Some(End::Finished), Some(End::Interrupted)] {
            let tmp = tempfile::tempdir().unwrap();
            let key = Key::new("a").unwrap();
            let storage = FsStorage::open(tmp.path()).unwrap();
            let mut life = None;
            if let Some(end) = before {
                life = Some(claimed(&storage, &key, owner(7), b"before").await.finish(end).await.unwrap().life);
            }
            drop(claimed(&storage, &key, owner(1), b" after").await);
            let len = if before.is_some() { 6 } else { 0 };
            File::options().write(true).open(tmp.path().join("a")).unwrap().set_len(len).unwrap();
            let expected = before.map(End::state).zip(life);
            assert_eq!(storage.stat(&key).await.unwrap().map(|stat| (stat.state, stat.life)), expected);
            assert!(lost(&storage).await.is_empty());
            drop(storage);
            let storage = FsStorage::open(tmp.path()).unwrap();
            assert_eq!(storage.stat(&key).await.unwrap().map(|stat| (stat.state, stat.life)), expected);
            assert_eq!(tmp.path().join("a").exists(), before.is_some());
            assert!(records(tmp.path()).iter().all(|name| *name == rest_name(&key)));
        }
    }

    /// Seen to go back to the life before, with bytes gone that were seen.
    #[tokio::test]
    async fn what_is_cut_to_where_it_began_is_a_new_life() {
        for claim in [owner(1), None] {
            let tmp = tempfile::tempdir().unwrap();
            let key = Key::new("a").unwrap();
            let storage = FsStorage::open(tmp.path()).unwrap();
            claimed(&storage, &key, None, b"before").await.finish(End::Finished).await.unwrap();
            let mut append = claimed(&storage, &key, claim, b" seen").await;
            let life = append.stat().life;
            File::options().write(true).open(tmp.path().join("a")).unwrap().set_len(6).unwrap();
            append.append(&bytes(b" more")).await.unwrap_err();
            crash(storage, append).await;
            let storage = FsStorage::open(tmp.path()).unwrap();
            let (stat, all) = content(&storage, &key).await;
            assert_eq!((stat.owner, &all[..]), (claim, &b"before"[..]));
            assert_eq!(stat.state, if claim.is_some() { State::Lost } else { State::Interrupted });
            assert_ne!(stat.life, life);
        }
    }

    /// What a failed sync leaves, if the process dies before the file is cut.
    #[tokio::test]
    async fn a_file_that_is_not_to_be_trusted_is_cut_in_this_boot_too() {
        for (claim, state) in [(owner(1), State::Lost), (None, State::Interrupted)] {
            let tmp = tempfile::tempdir().unwrap();
            let key = Key::new("a").unwrap();
            let storage = FsStorage::open(tmp.path()).unwrap();
            let mut append = claimed(&storage, &key, claim, b"durable").await;
            let life = append.stat().life;
            append.sync().await.unwrap();
            append.append(&bytes(b" who knows")).await.unwrap();
            crash(storage, append).await;
            rewrite(tmp.path(), &open_name(&key), |slot| Slot { boot: NO_BOOT, ..slot });
            let storage = FsStorage::open(tmp.path()).unwrap();
            let (stat, all) = content(&storage, &key).await;
            assert_eq!((stat.state, stat.owner, &all[..]), (state, claim, &b"durable"[..]));
            assert_ne!(stat.life, life);
        }
    }

    /// What an appender that was killed leaves: some bytes that are durable, and some that are not.
    async fn lost_unsynced(path: &Path, key: &Key) -> FsStorage {
        let storage = FsStorage::open(path).unwrap();
        let mut append = claimed(&storage, key, owner(1), b"durable").await;
        append.sync().await.unwrap();
        append.append(&bytes(b" committed")).await.unwrap();
        crash(storage.clone(), append).await;
        storage
    }

    /// A kill while a reboot's cut is under way: whatever was done by then, the life is the same.
    #[tokio::test]
    async fn a_cut_that_is_begun_again_makes_the_same_life() {
        let tmp = tempfile::tempdir().unwrap();
        let key = Key::new("a").unwrap();
        let storage = lost_unsynced(tmp.path(), &key).await;
        let root = &storage.root;
        rewrite(tmp.path(), &open_name(&key), |slot| Slot { boot: [0xee; 16], ..slot });
        let seen = root.find(&key).unwrap().unwrap().stat;
        assert_eq!((seen.len, seen.state), (7, State::Lost), "nothing above is served, settled or not");
        File::options().write(true).open(tmp.path().join("a")).unwrap().set_len(7).unwrap();
        assert_eq!(root.find(&key).unwrap().unwrap().stat.life, seen.life);
        root.settle(&key).unwrap();
        assert_eq!(root.find(&key).unwrap().unwrap().stat.life, seen.life);
        root.settle(&key).unwrap();
        assert_eq!(root.find(&key).unwrap().unwrap().stat.life, seen.life);
    }

    /// As where the start could not settle it.
    #[tokio::test]
    async fn whoever_comes_settles_what_was_left_open() {
        let tmp = tempfile::tempdir().unwrap();
        let key = Key::new("a").unwrap();
        let storage = lost_unsynced(tmp.path(), &key).await;
        rewrite(tmp.path(), &open_name(&key), |slot| Slot { boot: [0xee; 16], ..slot });
        crash(storage.clone(), claimed(&storage, &key, owner(1), b" again").await).await;
        let (stat, all) = content(&storage, &key).await;
        assert_eq!((stat.state, &all[..]), (State::Lost, &b"durable again"[..]));
        let end = |slot| Slot { kept: Kept::Rest(State::Finished), len: 13, durable: 13, owner: None, ..slot };
        rewrite(tmp.path(), &open_name(&key), end);
        crash(storage.clone(), claimed(&storage, &key, owner(2), b" and again").await).await;
        let (stat, all) = content(&storage, &key).await;
        assert_eq!((stat.state, stat.owner, &all[..]), (State::Lost, owner(2), &b"durable again and again"[..]));
    }

    #[tokio::test]
    async fn what_somebody_else_put_in_the_place_of_a_lost_one_is_theirs() {
        for folder in [true, false] {
            let tmp = tempfile::tempdir().unwrap();
            let key = Key::new("a/b").unwrap();
            let storage = FsStorage::open(tmp.path()).unwrap();
            crash(storage.clone(), claimed(&storage, &key, owner(1), b"lost").await).await;
            drop(storage);
            std::fs::remove_dir_all(tmp.path().join("a")).unwrap();
            let theirs = Key::new(if folder { "a/b" } else { "a" }).unwrap();
            if folder {
                std::fs::create_dir(tmp.path().join("a")).unwrap();
            }
            std::fs::write(tmp.path().join(theirs.as_str()), "theirs").unwrap();
            let storage = FsStorage::open(tmp.path()).unwrap();
            assert_eq!((records(tmp.path()), lost(&storage).await), (vec![], vec![]));
            let (stat, all) = content(&storage, &theirs).await;
            assert_eq!((stat.state, &all[..]), (State::Finished, &b"theirs"[..]));
        }
    }

    #[test]
    fn lives_are_remembered_for_a_tick_of_the_clock() {
        let Some(old) = Instant::now().checked_sub(2 * BIRTH_TICK) else { return };
        let mut table = Table::default();
        let lives = [1, 2, 3].map(Life::from_bits);
        table.ended.extend([(old, lives[0]), (old, lives[1]), (Instant::now() + BIRTH_TICK, lives[2])]);
        table.forget_old_lives();
        assert_eq!(table.ended.iter().map(|(_, life)| *life).collect::<Vec<_>>(), lives[2..]);
    }

    #[tokio::test]
    async fn what_somebody_else_cuts_of_a_new_resource_is_a_new_life() {
        for (claim, end) in [(owner(1), None), (None, None), (None, Some(End::Interrupted)), (None, Some(End::Sealed))]
        {
            let tmp = tempfile::tempdir().unwrap();
            let key = Key::new("a").unwrap();
            let storage = FsStorage::open(tmp.path()).unwrap();
            let mut append = claimed(&storage, &key, claim, b"bytes that were seen").await;
            let life = append.stat().life;
            let cut = || File::options().write(true).open(tmp.path().join("a")).unwrap().set_len(5).unwrap();
            match end {
                Some(end) => {
                    append.finish(end).await.unwrap();
                    drop(storage);
                    cut();
                }
                None => {
                    cut();
                    append.append(&bytes(b" more")).await.unwrap_err();
                    crash(storage, append).await;
                }
            }
            let (stat, all) = content(&FsStorage::open(tmp.path()).unwrap(), &key).await;
            assert_eq!(all, b"bytes", "{claim:?} {end:?}");
            assert_ne!(stat.life, life, "{claim:?} {end:?}");
        }
    }

    #[tokio::test]
    async fn what_somebody_else_cuts_while_nobody_is_there_is_a_new_life_each_time() {
        for claim in [owner(1), None] {
            let tmp = tempfile::tempdir().unwrap();
            let key = Key::new("a").unwrap();
            let storage = FsStorage::open(tmp.path()).unwrap();
            let append = claimed(&storage, &key, claim, b"bytes that were seen").await;
            append.sync().await.unwrap();
            let mut life = append.stat().life;
            crash(storage, append).await;
            for len in [15, 5] {
                File::options().write(true).open(tmp.path().join("a")).unwrap().set_len(len).unwrap();
                let (stat, _) = content(&FsStorage::open(tmp.path()).unwrap(), &key).await;
                assert_eq!((stat.len, stat.owner), (len, claim));
                assert_ne!(stat.life, life, "{claim:?} {len}");
                life = stat.life;
                let (again, _) = content(&FsStorage::open(tmp.path()).unwrap(), &key).await;
                assert_eq!(again.life, life, "{claim:?} {len}");
            }
        }
    }

    #[tokio::test]
    async fn who_finished_it_is_known_for_an_hour() {
        let tmp = tempfile::tempdir().unwrap();
        let key = Key::new("a").unwrap();
        let storage = FsStorage::open(tmp.path()).unwrap();
        claimed(&storage, &key, owner(1), b"whole").await.finish(End::Finished).await.unwrap();
        drop(storage);
        let record = tmp.path().join(".httpfstream/records").join(rest_name(&key));
        for (minutes, known) in [(0, true), (59, true), (61, false)] {
            let at = SystemTime::now() - Duration::from_secs(minutes * 60);
            File::options().write(true).open(&record).unwrap().set_modified(at).unwrap();
            let (stat, all) = content(&FsStorage::open(tmp.path()).unwrap(), &key).await;
            assert_eq!((stat.state, &all[..]), (State::Finished, &b"whole"[..]));
            assert_eq!((stat.owner, record.exists()), (owner(1).filter(|_| known), known), "{minutes} minutes");
        }
    }

    /// The longest file that the file system lets be stands for a full disk.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn fault_35_what_has_no_room_is_refused_and_the_appender_goes_on() {
        let tmp = tempfile::tempdir().unwrap();
        let key = Key::new("a").unwrap();
        let file = File::create(tmp.path().join("a")).unwrap();
        let (mut fits, mut too_long) = (0, 1 << 63);
        while fits + 1 < too_long {
            let len = fits + (too_long - fits) / 2;
            if file.set_len(len).is_ok() { fits = len } else { too_long = len }
        }
        file.set_len(fits).unwrap();
        let storage = FsStorage::open(tmp.path()).unwrap();
        let mut append = storage.open(&key, Open::Continue).await.unwrap();
        assert_eq!(append.append(&bytes(b"!")).await.unwrap_err().kind(), ErrorKind::Full);
        assert_eq!(append.append(&[]).await.unwrap(), fits, "not poisoned");
        assert_eq!(append.finish(End::Sealed).await.unwrap().len, fits);
    }

    /// Enough for several to be served with one call.
    const CROWD: usize = 200;

    async fn crowd(storage: &FsStorage) -> Vec<FsAppend> {
        let mut crowd = Vec::new();
        for at in 0..CROWD {
            let key = Key::new(&format!("{}/{at}", at % 3)).unwrap();
            crowd.push(claimed(storage, &key, owner(1), b"first ").await);
        }
        crowd
    }

    /// What each got from a sync, all asked for at once, with more appended meanwhile.
    async fn sync_at_once(crowd: Vec<FsAppend>) -> Vec<(FsAppend, Result<u64>)> {
        let mut tasks = tokio::task::JoinSet::new();
        for mut append in crowd {
            tasks.spawn(async move {
                let mut asked = tokio::task::JoinSet::new();
                let before = append.stat().len;
                asked.spawn(append.sync());
                asked.spawn(append.sync());
                let _ = append.append(&bytes(b"and more ")).await;
                let (synced, len) = (append.sync().await, append.stat().len);
                assert!(synced.as_ref().is_ok_and(|synced| *synced == len) || synced.is_err());
                for synced in asked.join_all().await.into_iter().flatten() {
                    assert!((before..=len).contains(&synced));
                }
                (append, synced)
            });
        }
        tasks.join_all().await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_crowd_that_syncs_at_once_is_durable_when_it_is_told_so() {
        let tmp = tempfile::tempdir().unwrap();
        let storage = FsStorage::open(tmp.path()).unwrap();
        for (append, synced) in sync_at_once(crowd(&storage).await).await {
            let lease = &append.held.lease;
            let Looked::Whole(record) = Record::open(&storage.root.records, &open_name(&lease.key), true).unwrap()
            else {
                panic!("no record")
            };
            assert_eq!(record.slot.durable, synced.unwrap());
        }
        drop(storage);
        // Nothing of ours holds the root any more.
        let storage = open_after_reboot(tmp.path());
        assert_eq!(lost(&storage).await.iter().filter(|(_, stat)| stat.len == 15).count(), CROWD);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_failed_sync_ends_its_own_resource_and_no_other() {
        let tmp = tempfile::tempdir().unwrap();
        let storage = FsStorage::open(tmp.path()).unwrap();
        let crowd: Vec<_> = sync_at_once(crowd(&storage).await).await.into_iter().map(|(append, _)| append).collect();
        let (broken, life) = (crowd[7].held.lease.key.clone(), crowd[7].stat().life);
        crowd[7].held.lease.data.sync(|_| Err(std::io::Error::other("as a disk that is broken"))).unwrap_err();
        for (mut append, synced) in sync_at_once(crowd).await {
            let key = append.held.lease.key.clone();
            assert_eq!(synced.is_err(), key == broken);
            assert_eq!(append.append(&bytes(b"!")).await.is_err(), key == broken);
        }
        // It is cut to what was durable, in a new life, and still kept for its owner.
        let (stat, all) = content(&storage, &broken).await;
        assert_eq!((stat.state, stat.owner, &all[..]), (State::Lost, owner(1), &b"first and more "[..]));
        assert_ne!(stat.life, life);
        let append = claimed(&storage, &broken, owner(1), b"again").await;
        assert_eq!(append.sync().await.unwrap(), 20, "what was cut is not in the way of what comes");
    }

    /// The system tells of a failure only once, and that may be the appender before, or the one before a finish.
    #[tokio::test]
    async fn whoever_comes_after_a_failed_sync_is_told_of_it() {
        for finish in [false, true] {
            let tmp = tempfile::tempdir().unwrap();
            let key = Key::new("a").unwrap();
            let storage = FsStorage::open(tmp.path()).unwrap();
            let older = claimed(&storage, &key, None, b"never synced").await;
            let newer = storage.open(&key, Open::Takeover).await.unwrap();
            older.held.lease.data.sync(|_| Err(std::io::Error::other("as a disk that is broken"))).unwrap_err();
            match finish {
                false => assert_eq!(newer.sync().await.unwrap_err().kind(), ErrorKind::Storage),
                true => assert_eq!(newer.finish(End::Finished).await.unwrap_err().kind(), ErrorKind::Storage),
            }
            drop(older);
            assert_eq!(storage.stat(&key).await.unwrap().filter(|stat| stat.state != State::Live), None);
        }
    }
}
