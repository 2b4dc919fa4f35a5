//! The options of an [`FsStorage`].

use std::path::PathBuf;
use std::sync::Arc;

use super::FsStorage;
use super::root::Root;
#[cfg(doc)]
use crate::error::ErrorKind;
use crate::error::Result;

/// Configures an [`FsStorage`].
///
/// ```
/// # fn main() -> httpfstream::Result<()> {
/// use httpfstream::storage::FsStorage;
///
/// # let dir = tempfile::tempdir().unwrap(); let path = dir.path();
/// // On a file system that copies on write, space that is allocated ahead guarantees nothing.
/// let storage = FsStorage::builder(path).preallocate(false).open()?;
/// # let _ = storage; Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct FsStorageBuilder {
    pub(super) root: PathBuf,
    pub(super) bookkeeping: String,
    pub(super) preallocate: bool,
    pub(super) inline_appends: bool,
}

impl FsStorageBuilder {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, bookkeeping: ".httpfstream".to_owned(), preallocate: true, inline_appends: true }
    }

    /// The name of the folder under the root that holds the bookkeeping. No resource can have a segment of this name.
    ///
    /// Default: `.httpfstream`.
    #[must_use]
    pub fn bookkeeping(mut self, name: impl Into<String>) -> Self {
        self.bookkeeping = name.into();
        self
    }

    /// Whether space for appends is allocated ahead, where the file system can, so that a full disk is noticed before
    /// anything is written. Off, a file takes no more space than it has bytes; right where an allocation guarantees
    /// nothing (file systems that copy on write).
    ///
    /// Default: on.
    #[must_use]
    pub fn preallocate(mut self, preallocate: bool) -> Self {
        self.preallocate = preallocate;
        self
    }

    /// Whether small appends (up to 256 KiB) may be written on the runtime's own threads, which is several times cheaper
    /// than handing them to its blocking pool.
    ///
    /// Only one such append runs at a time in the whole process, and only in a runtime with several threads. Where the
    /// file system stops answering (frozen, or a network file system without its server), that one thread stops too, with
    /// its task and the few tasks that only this thread may run next (tokio's LIFO slot, and tasks that have used up their
    /// budget): up to 64 followers of the same resource, mostly. Everything else continues within a fifth of a second,
    /// with all appends in the blocking pool. Off, no thread of the runtime ever waits for an append.
    ///
    /// Default: on.
    #[must_use]
    pub fn inline_appends(mut self, inline: bool) -> Self {
        self.inline_appends = inline;
        self
    }

    /// Opens the root, creates it where it is missing, and recovers what a crash left. Blocks on the disk.
    ///
    /// # Errors
    /// [`Busy`](ErrorKind::Busy) if another process uses the root; [`BadPath`](ErrorKind::BadPath) if the bookkeeping
    /// folder's name can't be a file name; otherwise the error of the system call that failed.
    pub fn open(self) -> Result<FsStorage> {
        Ok(FsStorage { root: Arc::new(Root::open(self)?) })
    }
}
