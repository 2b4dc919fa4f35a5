//! A storage that tells what is asked of it, and misbehaves on demand.

use std::fs::File;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use httpfstream::{ErrorKind, Key, Result};
use httpfstream::{
    Life, Stat,
    storage::{Append, ByteStream, End, EntryStream, Open, StatStream, Storage},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::soon;

/// How often each call was made; appends and syncs by their ends.
#[derive(Debug, Clone, Default)]
pub struct Calls {
    pub opens: usize,
    pub stats: usize,
    pub reads: usize,
    pub deletes: usize,
    pub appends: usize,
    pub appended: u64,
    pub syncs_begun: usize,
    pub syncs: usize,
    /// The longest length that a sync was told for.
    pub synced: u64,
    pub finishes: usize,
}

/// Wraps a storage.
#[derive(Clone)]
pub struct Spy<S> {
    inner: S,
    pub watch: Watch,
}

/// What a [`Spy`] saw.
#[derive(Clone)]
pub struct Watch {
    calls: Arc<watch::Sender<Calls>>,
    /// Syncs fail from now on.
    pub fail_syncs: Arc<AtomicBool>,
    /// Reads find no room for them from now on.
    pub refuse_reads: Arc<AtomicBool>,
    /// Syncs take a permit, and give it back.
    syncing: Arc<Semaphore>,
    /// And so do appends.
    appending: Arc<Semaphore>,
    meanwhile: Arc<Mutex<Option<Hook>>>,
}

type Hook = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

impl<S> Spy<S> {
    pub fn new(inner: S) -> Self {
        let calls = Arc::new(watch::Sender::new(Calls::default()));
        let [syncing, appending] = [(); 2].map(|()| Arc::new(Semaphore::new(1000)));
        let watch = Watch {
            calls,
            fail_syncs: Arc::default(),
            refuse_reads: Arc::default(),
            syncing,
            appending,
            meanwhile: Arc::default(),
        };
        Self { inner, watch }
    }
}

impl Watch {
    pub fn now(&self) -> Calls {
        self.calls.borrow().clone()
    }

    /// Waits until the calls are so.
    pub async fn until(&self, what: &str, so: impl FnMut(&Calls) -> bool) -> Calls {
        let mut calls = self.calls.subscribe();
        soon(what, calls.wait_for(so)).await.unwrap().clone()
    }

    /// Syncs hang until what this returns is dropped.
    pub fn hold_syncs(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.syncing).try_acquire_many_owned(1000).unwrap()
    }

    /// Appends hang until what this returns is dropped.
    pub fn hold_appends(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.appending).try_acquire_many_owned(1000).unwrap()
    }

    /// Does this before and after each look into the storage, while whoever looks waits.
    pub fn meanwhile<F: Future<Output = ()> + Send + 'static>(&self, hook: impl Fn() -> F + Send + Sync + 'static) {
        *self.meanwhile.lock().unwrap() = Some(Arc::new(move || Box::pin(hook())));
    }

    async fn pass(&self) {
        let hook = self.meanwhile.lock().unwrap().clone();
        if let Some(hook) = hook {
            hook().await;
        }
    }

    fn count(&self, count: impl FnOnce(&mut Calls)) {
        self.calls.send_modify(count);
    }
}

impl<S: Storage> Storage for Spy<S> {
    type Appender = SpyAppend<S::Appender>;

    async fn open(&self, key: &Key, how: Open) -> Result<Self::Appender> {
        self.watch.count(|calls| calls.opens += 1);
        Ok(SpyAppend { inner: self.inner.open(key, how).await?, watch: self.watch.clone() })
    }

    async fn stat(&self, key: &Key) -> Result<Option<Stat>> {
        self.watch.count(|calls| calls.stats += 1);
        self.watch.pass().await;
        let stat = self.inner.stat(key).await;
        self.watch.pass().await;
        stat
    }

    async fn read(&self, key: &Key, life: Life, range: Range<u64>) -> Result<ByteStream> {
        self.watch.count(|calls| calls.reads += 1);
        if self.watch.refuse_reads.load(Ordering::Relaxed) {
            return Err(ErrorKind::Overloaded.into());
        }
        self.watch.pass().await;
        let bytes = self.inner.read(key, life, range).await;
        self.watch.pass().await;
        bytes
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.watch.count(|calls| calls.deletes += 1);
        self.inner.delete(key).await
    }

    fn follow(&self, key: &Key, life: Life, from: u64) -> StatStream {
        self.inner.follow(key, life, from)
    }

    async fn file(&self, key: &Key, life: Life) -> Result<Option<File>> {
        self.inner.file(key, life).await
    }

    fn list(&self, prefix: &str) -> EntryStream {
        self.inner.list(prefix)
    }
}

pub struct SpyAppend<A> {
    inner: A,
    watch: Watch,
}

impl<A: Append> Append for SpyAppend<A> {
    type Sync = Pin<Box<dyn Future<Output = Result<u64>> + Send>>;

    fn stat(&self) -> Stat {
        self.inner.stat()
    }

    async fn append(&mut self, data: &[Bytes]) -> Result<u64> {
        let _permit = self.watch.appending.acquire().await.unwrap();
        let appended = self.inner.append(data).await;
        self.watch.count(|calls| {
            calls.appends += 1;
            calls.appended += data.iter().map(|data| data.len() as u64).sum::<u64>();
        });
        appended
    }

    fn sync(&self) -> Self::Sync {
        let (sync, watch) = (self.inner.sync(), self.watch.clone());
        Box::pin(async move {
            watch.count(|calls| calls.syncs_begun += 1);
            let _permit = watch.syncing.acquire().await.unwrap();
            let synced = match watch.fail_syncs.load(Ordering::Relaxed) {
                true => Err(ErrorKind::Storage.into()),
                false => sync.await,
            };
            watch.count(|calls| {
                calls.syncs += 1;
                calls.synced = calls.synced.max(*synced.as_ref().unwrap_or(&0));
            });
            synced
        })
    }

    async fn finish(self, end: End) -> Result<Stat> {
        let finished = self.inner.finish(end).await;
        self.watch.count(|calls| calls.finishes += 1);
        finished
    }
}
