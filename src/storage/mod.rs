//! Where bytes live: the contract that a storage keeps, and the two that come with the crate.
//!
//! | | [`FsStorage`] | [`MemoryStorage`] |
//! |---|---|---|
//! | bytes are | plain files under a root, from the first byte on | in this process, up to a cap |
//! | survive a killed process | yes | no |
//! | survive a power loss | what was synced, see [`Durability`](crate::Durability) | no |
//! | several handles | clones in one process; a second process is refused | clones in one process |
//!
//! # The contract
//!
//! Implement [`Storage`] and [`Append`] to keep resources elsewhere; plain `async fn`s do. The feature `conformance`
//! brings tests of each clause, in `storage::conformance`.
//!
//! 1. **Exclusive.** For any key there is at most one appender that is not fenced, across all handles and nodes.
//!    Of any number of simultaneous [`open`](Storage::open)s exactly one succeeds, the others fail with
//!    [`Busy`](ErrorKind::Busy).
//! 2. **Fenced.** Once a later [`Open::Takeover`] or a [`delete`](Storage::delete) succeeded, every call on the older
//!    appender fails with [`Fenced`](ErrorKind::Fenced) and has no visible effect. This is enforced where bytes are
//!    committed, never by clocks.
//! 3. **Committed** (an [`append`](Append::append) returned): visible to every later `stat`, `read` and `follow`, on
//!    every node; survives the death of this process. **Durable** (a [`sync`](Append::sync) returned): survives power
//!    loss. [`finish`](Append::finish) always syncs.
//! 4. **Visible is final** within a [`Life`]. Reading with another life fails with [`NotFound`](ErrorKind::NotFound):
//!    bytes of two lives are never spliced. If committed bytes that were not durable are lost to a power failure,
//!    that is a new life.
//! 5. **Failure and cancellation.** After an error or a dropped `append`, what is committed is the old bytes plus a
//!    prefix of the data; the appender is poisoned and a new open tells the length. [`Full`](ErrorKind::Full) is the
//!    exception: nothing was stored and the appender goes on. A failed `sync` poisons.
//! 6. **Dropping** an appender never blocks and means that it was lost; a crash means the same. The resource is then
//!    [`Interrupted`](State::Interrupted), or, if it was [claimed](Append::claim), [`Lost`](State::Lost) with its owner.
//!    Opening and releasing without appending leaves the resource as it was (an absent one absent).
//! 7. **Finish** is atomic. A finished, interrupted or lost resource continues at its end, in its life, when opened
//!    again; a sealed one fails with [`Sealed`](ErrorKind::Sealed).
//! 8. **A hanging backend** is the hub's to bear: it answers after
//!    [`storage_timeout`](crate::StreamsBuilder::storage_timeout), but gives a resource to nobody else before the storage has
//!    confirmed that the old call ended or is fenced. So is one that panics.

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
#[cfg(all(unix, any(fuzzing, test)))]
pub(crate) use self::fs::fuzz;
mod memory;
pub(crate) mod stream;

#[cfg(unix)]
pub use self::fs::{FsStorage, FsStorageBuilder};
pub use self::memory::MemoryStorage;
pub use crate::state::End;

/// A piece of a resource, chunk by chunk.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes>> + Send + 'static>>;
/// What becomes of a resource: see [`Storage::follow`].
pub type StatStream = Pin<Box<dyn Stream<Item = Result<Stat>> + Send + 'static>>;
/// Resources, one after the other: see [`Storage::list`].
pub type EntryStream = Pin<Box<dyn Stream<Item = Result<(Key, Stat)>> + Send + 'static>>;

/// How to open a resource for appending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Open {
    /// Only if it is absent, else [`Exists`](ErrorKind::Exists).
    Create,
    /// At its end, or from zero if it is absent.
    Continue,
    /// As `Continue`, and an appender that holds the resource is fenced first.
    ///
    /// What the older appender had in flight has settled when this returns.
    Takeover,
}

/// A store of resources. The [module](self) has the contract.
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

    /// What is known of a resource; `None` if it is absent.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict) if something else is at the path.
    fn stat(&self, key: &Key) -> impl Future<Output = Result<Option<Stat>>> + Send;

    /// Reads a range that lies within the committed length; in chunks of the storage's choosing.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) for another life; [`PastEnd`](ErrorKind::PastEnd) for a range that is not
    /// committed. The stream yields an error, never other bytes, where committed ones are gone.
    fn read(&self, key: &Key, life: Life, range: Range<u64>) -> impl Future<Output = Result<ByteStream>> + Send;

    /// Deletes a resource and fences its appender. Deleting an absent one is [`NotFound`](ErrorKind::NotFound).
    fn delete(&self, key: &Key) -> impl Future<Output = Result<()>> + Send;

    /// Tells of every change to a resource that another node appends to: a stat whenever it is longer than `from` or
    /// than the stat before, or in another state. Ends after a stat that is not [open](State::is_open), and with an
    /// error once the life is over.
    ///
    /// The default asks [`stat`](Storage::stat) twice a second; a storage that can push should.
    fn follow(&self, key: &Key, life: Life, from: u64) -> StatStream {
        stream::poll_stats(self.clone(), key.clone(), life, from, Duration::from_millis(500))
    }

    /// An open file that holds the resource's bytes from its start, if it is in one, for serving.
    ///
    /// The default has none; the bytes are then served through [`read`](Storage::read).
    fn file(&self, key: &Key, life: Life) -> impl Future<Output = Result<Option<File>>> + Send {
        let _ = (key, life);
        async { Ok(None) }
    }

    /// Lists the resources that are [`Lost`](State::Lost), with their [owner](Stat::owner): what another process left
    /// when it died or stopped. Parameters for once, before anything else.
    ///
    /// The default has none: a storage that can't keep owners loses no bytes by that, but no appender's place is kept
    /// across a restart, and such resources are interrupted.
    fn lost(&self) -> EntryStream {
        Box::pin(stream::empty())
    }

    /// Lists the resources whose key starts with `prefix`, in any order.
    ///
    /// The default lists none: a storage that can't list stays usable for everything else.
    fn list(&self, prefix: &str) -> EntryStream {
        let _ = prefix;
        Box::pin(stream::empty())
    }
}

/// The one appender of a resource. [Dropping](self#the-contract) it never blocks and means that it was lost.
pub trait Append: Send + 'static {
    /// What [`sync`](Append::sync) returns: it doesn't borrow the appender, so that appends go on meanwhile.
    type Sync: Future<Output = Result<u64>> + Send + 'static;

    /// The resource as opened, plus what this appender appended: `len` is where the next byte goes, and `owner` is
    /// whoever appended last, somebody else until this appender does.
    fn stat(&self) -> Stat;

    /// Says whom the resource is to be kept for if this appender is lost; `None`: nobody. Called before the first
    /// append at most, and takes effect with it or with a clean finish, as durably as the bytes: it must not block.
    ///
    /// The owner is kept for a finished or sealed resource too, at least for an hour: an appender that missed the answer
    /// to its finish asks whether it was done.
    ///
    /// The default keeps nothing: see [`Storage::lost`].
    fn claim(&mut self, owner: Option<Owner>) {
        let _ = owner;
    }

    /// Appends the slices in order and returns the committed length.
    ///
    /// # Cancel safety
    /// Not cancel safe: the appender is poisoned, and a prefix of the data may be committed.
    ///
    /// # Errors
    /// [`Full`](ErrorKind::Full): nothing was stored, the appender goes on. All others poison it.
    fn append(&mut self, data: &[Bytes]) -> impl Future<Output = Result<u64>> + Send;

    /// Makes all that is committed when the future is first polled survive power loss, and returns that length.
    ///
    /// # Errors
    /// All of them poison the appender: what was not durable before may be gone.
    fn sync(&self) -> Self::Sync;

    /// Syncs everything, ends the appender and returns the final stat.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the resource either with this end or as if the appender had been dropped.
    fn finish(self, end: End) -> impl Future<Output = Result<Stat>> + Send;
}

/// Checks a range against the committed length.
pub(crate) fn check_range(range: &Range<u64>, len: u64) -> Result<()> {
    if range.start > range.end || range.end > len {
        return Err(ErrorKind::PastEnd.into());
    }
    Ok(())
}
