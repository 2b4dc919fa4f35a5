//! Where bytes are stored: the contract of a storage, and the two storages that come with the crate.
//!
//! | | [`FsStorage`] | [`MemoryStorage`] |
//! |---|---|---|
//! | bytes are | in plain files under a root, from the first byte on | in this process, up to a cap |
//! | survive a killed process | yes | no |
//! | survive a power loss | those that were synced, see [`Durability`](crate::Durability) | no |
//! | several handles | clones in one process; a second process is refused | clones in one process |
//!
//! # The contract
//!
//! Implement [`Storage`] and [`Append`] to store resources elsewhere, with plain `async fn`s. The feature `conformance` has
//! tests of each clause, in `storage::conformance`.
//!
//! 1. **Exclusive.** A key has at most one appender that is not fenced, across all handles and nodes.
//!    Of any number of simultaneous [`open`](Storage::open)s exactly one succeeds, the others fail with
//!    [`Busy`](ErrorKind::Busy).
//! 2. **Fenced.** Once a later [`Open::Takeover`] or a [`delete`](Storage::delete) has succeeded, every call on the older
//!    appender fails with [`Fenced`](ErrorKind::Fenced) and has no visible effect. This is enforced where bytes are
//!    committed, never by clocks.
//! 3. **Committed** bytes (an [`append`](Append::append) returned) are visible to every later `stat`, `read` and `follow`,
//!    on every node, and survive the death of this process. **Durable** bytes (a [`sync`](Append::sync) returned) survive
//!    power loss. [`finish`](Append::finish) always syncs.
//! 4. **Visible is final** within a [`Life`]. Reading with another life fails with [`NotFound`](ErrorKind::NotFound):
//!    bytes of two lives are never spliced. If a power failure loses committed bytes that were not durable, the resource
//!    begins a new life.
//! 5. **Failure and cancellation.** After an error or a dropped `append`, the committed bytes are the old ones plus a prefix
//!    of the data; the appender is poisoned, and a new open returns the length. [`Full`](ErrorKind::Full) is the exception:
//!    nothing was stored, and the appender stays usable. A failed `sync` poisons.
//! 6. **Dropping** an appender never blocks and means that it was lost; a crash means the same. The resource is then
//!    [`Interrupted`](State::Interrupted), or, if it was [claimed](Append::claim), [`Lost`](State::Lost) with its owner.
//!    Opening and dropping without an append leaves the resource as it was (an absent one absent).
//! 7. **Finish** is atomic. A finished, interrupted or lost resource that is opened again continues at its end, in its life;
//!    opening a sealed one fails with [`Sealed`](ErrorKind::Sealed).
//! 8. **A hanging or panicking backend** is handled above the storage. A request is answered after
//!    [`storage_timeout`](crate::StreamsBuilder::storage_timeout), but no other appender gets the resource before the storage
//!    has confirmed that the old call has ended or is fenced.

use std::fs::File;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;

use crate::error::{ErrorKind, Result};
use crate::identity::Owner;
use crate::key::Key;
#[cfg(doc)]
use crate::state::State;
use crate::state::{Life, Stat};

#[cfg(feature = "conformance")]
pub mod conformance;
pub(crate) mod erased;
#[cfg(unix)]
mod fs;
mod memory;
pub(crate) mod stream;

#[cfg(all(unix, any(fuzzing, test)))]
pub(crate) use self::fs::fuzz;
#[cfg(unix)]
pub use self::fs::{FsStorage, FsStorageBuilder};
pub use self::memory::MemoryStorage;
pub use crate::state::End;

/// The bytes of a range, in chunks: see [`Storage::read`].
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes>> + Send + 'static>>;
/// The changes of a resource: see [`Storage::follow`].
pub type StatStream = Pin<Box<dyn Stream<Item = Result<Stat>> + Send + 'static>>;
/// Resources with their stats: see [`Storage::list`].
pub type EntryStream = Pin<Box<dyn Stream<Item = Result<(Key, Stat)>> + Send + 'static>>;

/// How to open a resource for appending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Open {
    /// Only if it is absent, else [`Exists`](ErrorKind::Exists).
    Create,
    /// At its end, or at zero if it is absent. [`Busy`](ErrorKind::Busy) if it has an appender.
    Continue,
    /// As `Continue`, and if the resource has an appender, that one is fenced first.
    ///
    /// When the open returns, the older appender's calls in flight have either been committed or failed.
    Takeover,
}

/// A store of resources. The [module documentation](self) has the contract.
///
/// Clones are handles on one store.
pub trait Storage: Clone + Send + Sync + 'static {
    /// The appender of one resource.
    type Appender: Append;

    /// Opens a resource for appending; nothing is created before the first [`append`](Append::append) or
    /// [`finish`](Append::finish).
    ///
    /// # Cancel safety
    /// Dropping the future leaves the resource as it was, and free.
    ///
    /// # Errors
    /// [`Busy`](ErrorKind::Busy), [`Exists`](ErrorKind::Exists), [`Sealed`](ErrorKind::Sealed);
    /// [`Conflict`](ErrorKind::Conflict) if something else is at the path; [`NotFound`](ErrorKind::NotFound) if the
    /// storage never has a resource of this name.
    fn open(&self, key: &Key, how: Open) -> impl Future<Output = Result<Self::Appender>> + Send;

    /// The life, length and state of a resource; `None` if it is absent.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict) if something else is at the path.
    fn stat(&self, key: &Key) -> impl Future<Output = Result<Option<Stat>>> + Send;

    /// Reads a range within the committed length, in chunks of any size.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) for another life; [`PastEnd`](ErrorKind::PastEnd) for a range that is not
    /// committed. Where committed bytes are gone, the stream yields an error, never other bytes.
    fn read(&self, key: &Key, life: Life, range: Range<u64>) -> impl Future<Output = Result<ByteStream>> + Send;

    /// Deletes a resource and fences its appender.
    ///
    /// # Cancel safety
    /// The resource may be deleted even if the future is dropped.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if it is absent.
    fn delete(&self, key: &Key) -> impl Future<Output = Result<()>> + Send;

    /// Watches a resource that another node appends to: yields a stat whenever it is longer than `from` or than the stat
    /// before, or in another state. Ends after a stat that is not [open](State::is_open), and with an error once the life
    /// is over.
    ///
    /// The default polls [`stat`](Storage::stat) twice a second. A storage that can push changes should do that.
    fn follow(&self, key: &Key, life: Life, from: u64) -> StatStream {
        stream::poll_stats(self.clone(), key.clone(), life, from, Duration::from_millis(500))
    }

    /// Opens a file that begins with the resource's bytes, for serving them from it; `None` if the storage has no such file.
    ///
    /// The default returns `None`; the bytes are then served through [`read`](Storage::read).
    fn file(&self, key: &Key, life: Life) -> impl Future<Output = Result<Option<File>>> + Send {
        let _ = (key, life);
        async { Ok(None) }
    }

    /// Lists the resources that are [`Lost`](State::Lost), with their [owner](Stat::owner): those that had an appender when
    /// an earlier process died or stopped. Called once, before anything else.
    ///
    /// The default lists none. A storage that can't store owners loses no bytes by that, but no appender can reclaim its
    /// resource after a restart: such resources are interrupted.
    fn lost(&self) -> EntryStream {
        Box::pin(stream::empty())
    }

    /// Lists the resources whose key starts with `prefix`, in any order.
    ///
    /// The default lists none. A storage that can't list remains usable for everything else.
    fn list(&self, prefix: &str) -> EntryStream {
        let _ = prefix;
        Box::pin(stream::empty())
    }
}

/// The appender of a resource. [Dropping](self#the-contract) it never blocks and means that it was lost.
pub trait Append: Send + 'static {
    /// The future of [`sync`](Append::sync). It doesn't borrow the appender, so that appends continue meanwhile.
    type Sync: Future<Output = Result<u64>> + Send + 'static;

    /// The resource as opened, plus the bytes of this appender: `len` is the offset of the next byte. Until this appender's
    /// first append, `owner` is the earlier appender's.
    fn stat(&self) -> Stat;

    /// Sets the owner for which the resource is kept if this appender is lost; `None` for no owner. Called only before the
    /// first append. Takes effect with that append or with a clean finish, and is as durable as the bytes then: this call
    /// itself must not block.
    ///
    /// The owner of a finished or sealed resource is stored too, for at least an hour: an appender that missed the answer
    /// to its finish asks whether it was done.
    ///
    /// The default stores nothing: see [`Storage::lost`].
    fn claim(&mut self, owner: Option<Owner>) {
        let _ = owner;
    }

    /// Appends the slices in order and returns the committed length.
    ///
    /// # Cancel safety
    /// Not cancel safe: the appender is poisoned, and a prefix of the data may be committed.
    ///
    /// # Errors
    /// [`Full`](ErrorKind::Full): nothing was stored, and the appender stays usable. All others poison it.
    fn append(&mut self, data: &[Bytes]) -> impl Future<Output = Result<u64>> + Send;

    /// Makes all bytes durable that are committed when the future is first polled, and returns the durable length.
    ///
    /// # Errors
    /// Any error poisons the appender: bytes that were not durable before may be gone.
    fn sync(&self) -> Self::Sync;

    /// Makes all bytes durable, ends the appender and returns the final stat.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the resource either with this end, or as if the appender had been dropped.
    fn finish(self, end: End) -> impl Future<Output = Result<Stat>> + Send;
}

/// Checks a range against the committed length.
pub(crate) fn check_range(range: &Range<u64>, len: u64) -> Result<()> {
    if range.start > range.end || range.end > len {
        return Err(ErrorKind::PastEnd.into());
    }
    Ok(())
}
