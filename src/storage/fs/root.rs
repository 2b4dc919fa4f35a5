//! One root directory while a process uses it, shared by all handles and appenders.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::UNIX_EPOCH;

use sha2::{Digest, Sha256};

use super::builder::FsStorageBuilder;
use super::commit::Commits;
use super::file_lease::FileLease;
use super::path::{Dir, DurableFolders, error};
use super::record::first_bits;
use super::table::Table;
use super::threads::Gates;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;

#[derive(Debug)]
pub(super) struct Root {
    pub(super) top: Dir,
    pub(super) new: Dir,
    pub(super) records: Dir,
    /// The name of the bookkeeping folder, which no key may contain.
    pub(super) reserved: String,
    pub(super) preallocate: bool,
    pub(super) inline_appends: bool,
    pub(super) boot: [u8; 16],
    /// The name of the next file in `new/`.
    pub(super) next_new: AtomicU64,
    /// The device of the root's own file system.
    pub(super) device: u64,
    pub(super) commits: Arc<Commits>,
    pub(super) gates: Gates,
    folders: DurableFolders,
    table: Mutex<Table>,
    _lock: File,
}

impl Root {
    pub(super) fn open(config: FsStorageBuilder) -> Result<Self> {
        if Key::new(&config.bookkeeping).is_err() || config.bookkeeping.contains('/') {
            return Err(Error::new(ErrorKind::BadPath).with_detail("the bookkeeping folder needs a plain file name"));
        }
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.root).map_err(error)?;
        let top = Dir::open(&config.root).map_err(error)?;
        let own = top.make_dir(&config.bookkeeping).map_err(error)?;
        let lock = own.create_file("lock", false).map_err(error)?;
        lock.try_lock().map_err(|failed| match failed {
            std::fs::TryLockError::WouldBlock => {
                Error::new(ErrorKind::Busy).with_detail("another process uses this root; one root has one owner")
            }
            std::fs::TryLockError::Error(failed) => error(failed),
        })?;
        let root = Self {
            new: own.make_dir("new").map_err(error)?,
            records: own.make_dir("records").map_err(error)?,
            device: top.device().map_err(error)?,
            top,
            reserved: config.bookkeeping,
            preallocate: config.preallocate,
            inline_appends: config.inline_appends,
            boot: boot_id(),
            next_new: AtomicU64::new(0),
            commits: Arc::new(Commits::new()),
            gates: Gates::new(),
            folders: DurableFolders::default(),
            table: Mutex::default(),
            _lock: lock,
        };
        root.recover_all().map_err(error)?;
        Ok(root)
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        // No code that panics runs under this lock.
        self.table.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The current lease of a key that has an appender.
    pub(super) fn lease(&self, key: &Key) -> Option<Arc<FileLease>> {
        self.table().lease(key)
    }

    /// Makes the name of a key's file durable, and those of the folders above it.
    pub(super) fn sync_name(&self, key: &Key) -> std::io::Result<()> {
        self.top.sync_parent(key, &self.folders)
    }

    pub(super) fn is_reserved(&self, key: &Key) -> bool {
        // Ignoring case, for file systems that do.
        key.segments().any(|segment| segment.eq_ignore_ascii_case(&self.reserved))
    }
}

/// Distinguishes a file from any other that ever had its name: derived from its inode number and its birth time.
pub(super) fn identity(file: &File) -> std::io::Result<u128> {
    let meta = file.metadata()?;
    let born = meta.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map_or(0, |d| d.as_nanos());
    let mut hash = Sha256::new();
    hash.update(b"httpfstream file");
    hash.update(meta.ino().to_le_bytes());
    hash.update(born.to_le_bytes());
    Ok(first_bits(hash))
}

/// Distinguishes one boot of the system from another; zeros where the system has no such id.
pub(super) fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let mut digits = text.bytes().filter_map(|b| (b as char).to_digit(16));
    std::array::from_fn(|_| (digits.next().unwrap_or(0) << 4 | digits.next().unwrap_or(0)) as u8)
}
