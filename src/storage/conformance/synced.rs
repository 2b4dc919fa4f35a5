//! A wrapper that syncs after every append.

use std::fs::File;
use std::ops::Range;

use bytes::Bytes;

use crate::error::{ErrorKind, Result};
use crate::identity::Owner;
use crate::key::Key;
use crate::state::{End, Life, Stat};
use crate::storage::{Append, ByteStream, EntryStream, Open, StatStream, Storage};

/// A storage whose appenders sync after every append, and panic if fewer bytes are durable then than committed. It runs the
/// tests with syncs in between.
#[derive(Debug, Clone)]
pub struct Synced<S>(pub S);

/// An appender of [`Synced`].
#[derive(Debug)]
pub struct SyncedAppend<A> {
    inner: A,
    /// An append was cancelled, or its sync failed.
    poisoned: bool,
}

impl<S: Storage> Storage for Synced<S> {
    type Appender = SyncedAppend<S::Appender>;

    async fn open(&self, key: &Key, how: Open) -> Result<Self::Appender> {
        Ok(SyncedAppend { inner: self.0.open(key, how).await?, poisoned: false })
    }

    async fn stat(&self, key: &Key) -> Result<Option<Stat>> {
        self.0.stat(key).await
    }

    async fn read(&self, key: &Key, life: Life, range: Range<u64>) -> Result<ByteStream> {
        self.0.read(key, life, range).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.0.delete(key).await
    }

    fn follow(&self, key: &Key, life: Life, from: u64) -> StatStream {
        self.0.follow(key, life, from)
    }

    async fn file(&self, key: &Key, life: Life) -> Result<Option<File>> {
        self.0.file(key, life).await
    }

    fn lost(&self) -> EntryStream {
        self.0.lost()
    }

    fn list(&self, prefix: &str) -> EntryStream {
        self.0.list(prefix)
    }
}

impl<A: Append> Append for SyncedAppend<A> {
    type Sync = A::Sync;

    fn stat(&self) -> Stat {
        self.inner.stat()
    }

    fn claim(&mut self, owner: Option<Owner>) {
        self.inner.claim(owner);
    }

    async fn append(&mut self, data: &[Bytes]) -> Result<u64> {
        if std::mem::replace(&mut self.poisoned, true) {
            return Err(ErrorKind::Poisoned.into());
        }
        let appended = self.inner.append(data).await;
        if let Ok(committed) = appended {
            // Not awaited in place: a borrow across the await would require an appender that is `Sync`.
            let sync = self.inner.sync();
            match sync.await {
                Ok(durable) => assert!(durable >= committed, "only {durable} of {committed} bytes are durable"),
                // Fenced after the append was committed, so the append still counts.
                Err(error) if error.kind() == ErrorKind::Fenced => {}
                Err(error) => return Err(error),
            }
        }
        self.poisoned = false;
        appended
    }

    fn sync(&self) -> Self::Sync {
        self.inner.sync()
    }

    async fn finish(self, end: End) -> Result<Stat> {
        if self.poisoned {
            return Err(ErrorKind::Poisoned.into());
        }
        self.inner.finish(end).await
    }
}
