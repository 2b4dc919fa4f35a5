//! Resources as plain files under a root directory.
//!
//! | Module | Concern |
//! |---|---|
//! | `mod` (this file) | [`FsStorage`]: the [`Storage`] calls, each sent to a thread that may block |
//! | `builder` | [`FsStorageBuilder`]: the options |
//! | `root` | One root directory in use: its folders and its lock; the identity of a file |
//! | `table` | Which resources have an appender in this process, by key and by inode |
//! | `open` | Opening a resource for appending, and deleting one |
//! | `lookup` | What a key's file and records say about a resource without an appender |
//! | `recovery` | Bringing records and files in order after a crash or a power loss |
//! | `list` | Listing resources, all or the lost ones |
//! | `appender` | [`FsAppend`]: the [`Append`](super::Append) calls of one appender |
//! | `file_lease` | One open resource: length, record, fencing, the write path, the end |
//! | `sync` | The steps of one sync of an open resource |
//! | `commit` | Group commit: the queue of syncs and the threads that serve it |
//! | `record` | The format of a record, and what it says after a crash |
//! | `path` | System calls on paths: beneath one directory handle, following no symlink |
//! | `write` | System calls that allocate and write |
//! | `read` | The stream of a file's range |
//! | `threads` | Which calls may block where |
//!
//! # On disk
//! A resource's data is the file at its key under the root, from the first byte on. One folder next to the data,
//! `.httpfstream`, holds what the files alone don't tell:
//!
//! - `lock`: locked while a process uses the root. A second process is refused.
//! - `new/`: empty files that wait for their first byte. Such a file is linked to its key's name with that byte, so that
//!   a resource that is opened and released is never visible. Emptied when the root is opened.
//! - `records/`: one record for each resource that is not simply finished. `HASH.open` exists from an appender's first
//!   append to its end, and names the owner that the resource is kept for if its appender is lost. `HASH.rest` says that
//!   a resource is interrupted or sealed, or who finished it.
//!
//! A file without a record is a finished resource: files that are dropped in are served. Its [`Life`] is derived from its
//! inode number and its birth time.
//!
//! ```text
//!  absent ──first append──► data + HASH.open ──finish──► data            (finished)
//!                             │    ▲     ▲ └──────────► data + HASH.rest (interrupted, sealed)
//!                     dropped │    │     └── append again ────┘ ▲
//!                    or crash ▼    │ append again              │
//!                   data + HASH.open, no appender ─────────────┘
//!                     claimed: lost, until an appender ends it
//!                     not claimed: interrupted, and recorded as such at the next start or open
//! ```
//!
//! # In which order things become durable
//! - First append: the record is durable before the first byte is visible. It is removed or renamed only after the data
//!   was synced. So data that may be incomplete always has a record.
//! - Sync: the data (and the names of a new file and its folders), then the record with the new durable length, then the
//!   answer; see `commit`.
//! - Finish: the data, its name, the record's final slot, then the record's removal or new name.
//!
//! # After a crash
//! - A killed process loses nothing: the file's length is the committed length, since a failed write is cut off and space
//!   is allocated ahead without changing the size. The resource is interrupted, or lost with its owner.
//! - After a power loss a file's length can't be trusted: there may be zeros inside. A record holds the length up to which
//!   its data was synced, and the boot of the system in which it was written. In another boot the file is cut to that
//!   length before it is used, and begins a new life, since bytes that were read before may be gone.
//! - The record of a file that is as long as before its appender opened it is undone: the resource is as it was.
//! - What a crash left is judged by a pure function of the record and the file (`Slot::recovery`), so that a lookup, a
//!   recovery, and a recovery after a crash during recovery all come to the same result.
//! - A sync that fails is never tried again: the record is marked as written in no boot, and the file is cut to its last
//!   durable length, in a new life, as after a power loss.
//!
//! # Systems
//! Written for Linux. Other Unixes have the same calls but no preallocation, no reads that never wait, and no way to tell
//! their boots apart; none has been tried.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::{ByteStream, EntryStream, Open, Storage, check_range, stream};
use crate::error::{ErrorKind, Result};
use crate::key::Key;
use crate::state::{Life, Stat};

mod appender;
mod builder;
mod commit;
mod file_lease;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod list;
mod lookup;
mod open;
mod path;
mod read;
mod record;
mod recovery;
mod root;
mod sync;
mod table;
#[cfg(test)]
mod tests;
mod threads;
mod write;

use self::appender::FsAppend;
pub use self::builder::FsStorageBuilder;
use self::list::Entries;
use self::lookup::Stored;
use self::path::error;
use self::read::FileStream;
use self::root::Root;
use self::threads::{Gate, Gates, INLINE};

/// Resources as plain files under a root directory. [Surviving](crate::docs::surviving) describes the layout on disk and
/// what survives what.
///
/// Clones are handles on one root, which belongs to one process: a second [`open`](FsStorage::open) is refused as long as
/// any clone lives.
///
/// Calls need a tokio runtime: what may block runs on its blocking pool. At most 128 changing calls, 128 reads and 32
/// unfinished lists run at a time for each root; others wait for their turn. So a file system that stops answering leaves
/// most of the pool (512 threads, by tokio's default) to others, and a frozen one can still be read. Not counted:
/// finished resources that are sent as files (by tower-http's `ServeFile`), each with a thread while it reads.
#[derive(Clone, Debug)]
pub struct FsStorage {
    root: Arc<Root>,
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
        FsStorageBuilder::new(root.as_ref().to_owned())
    }

    /// Runs a call that may block on the disk, on the blocking pool.
    async fn blocking<T: Send + 'static>(
        &self,
        gate: fn(&Gates) -> &Gate,
        run: impl FnOnce(&Arc<Root>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let root = Arc::clone(&self.root);
        gate(&self.root.gates).run(move || run(&root)).await?
    }

    async fn find(&self, key: &Key) -> Result<Option<Stored>> {
        let key = key.clone();
        self.blocking(|gates| &gates.reads, move |root| root.find(&key)).await
    }

    /// Streams entries that are produced on the blocking pool, as fast as they are consumed.
    fn entries(&self, produce: impl FnOnce(&Root, &Entries) -> Result<()> + Send + 'static) -> EntryStream {
        let (send, receive) = tokio::sync::mpsc::channel(64);
        let root = Arc::clone(&self.root);
        let gate = root.gates.lists.clone();
        let produce = move || {
            let produced = produce(&root, &send);
            // Before the stream ends: its consumer may then open the root anew.
            drop(root);
            if let Err(failed) = produced {
                let _ = send.blocking_send(Err(failed));
            }
        };
        Box::pin(stream::unfold((Some((gate, produce)), receive), |(mut start, mut receive)| async move {
            if let Some((gate, produce)) = start.take()
                && let Err(failed) = gate.begin(produce).await
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
        // Dropped with this future: an open that still waits for a thread must not get in the way of later opens.
        let alive = Arc::new(());
        let caller = Arc::downgrade(&alive);
        let opened = self.blocking(|gates| &gates.changes, move |root| root.open_appender(key, how, &caller)).await;
        drop(alive);
        opened
    }

    async fn stat(&self, key: &Key) -> Result<Option<Stat>> {
        if let Some(lease) = self.root.lease(key) {
            return Ok(Some(lease.stat()));
        }
        Ok(self.find(key).await?.map(|found| found.stat))
    }

    async fn read(&self, key: &Key, life: Life, range: Range<u64>) -> Result<ByteStream> {
        let (stat, file) = match self.root.lease(key) {
            Some(lease) => {
                let permit = if self.root.inline_appends { INLINE.try_enter() } else { None };
                let checked = permit.map(|_permit| lease.check_file());
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
        self.entries(|root, send| root.list_lost(send))
    }

    fn list(&self, prefix: &str) -> EntryStream {
        let prefix = prefix.to_owned();
        self.entries(move |root, send| {
            let top = root.top.sub_dir(".").map_err(error)?;
            root.list(&top, "", &prefix, send)
        })
    }
}
