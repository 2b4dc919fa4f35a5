//! Resources in the memory of this process, up to a cap.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use futures_core::future::BoxFuture;

use super::{Append, ByteStream, End, EntryStream, Open, Storage, check_range, stream};
use crate::error::{ErrorKind, Result};
use crate::identity::Owner;
use crate::key::Key;
use crate::state::{Life, Stat, State};

/// The size of a block of bytes. The last block of a resource takes only what it needs.
const BLOCK: usize = 64 * 1024;

/// Resources in memory: for tests, for caches, for data that need not outlive the process.
///
/// All resources together hold at most `cap` bytes; an append beyond that fails with [`Full`](ErrorKind::Full). Nothing is
/// ever evicted: [`delete`](Storage::delete) what is no longer needed.
///
/// Clones share one store.
///
/// ```
/// use httpfstream::{Streams, storage::MemoryStorage};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> httpfstream::Result<()> {
/// let streams = Streams::new(MemoryStorage::new(64 << 20));
/// streams.append("a", &b"kept until the process ends"[..]).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct MemoryStorage {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    cap: u64,
    used: u64,
    resources: BTreeMap<Key, Resource>,
    /// The id of the next appender. A resource stores the id of its current one.
    next_lease: u64,
}

#[derive(Debug)]
struct Resource {
    life: Life,
    len: u64,
    state: State,
    owner: Option<Owner>,
    modified: SystemTime,
    /// Blocks of exactly `BLOCK` bytes.
    full: Vec<Bytes>,
    last: BytesMut,
    lease: Option<u64>,
    /// Whether the resource remains when its appender is dropped: it existed before the open, or was written since.
    permanent: bool,
}

impl Resource {
    fn stat(&self) -> Stat {
        let state = if self.lease.is_some() { State::Live } else { self.state };
        Stat::new(self.life, self.len, state).with_modified(Some(self.modified)).with_owner(self.owner)
    }

    fn push(&mut self, mut data: &[u8]) {
        self.len += data.len() as u64;
        while !data.is_empty() {
            let (head, tail) = data.split_at(data.len().min(BLOCK - self.last.len()));
            self.last.extend_from_slice(head);
            if self.last.len() == BLOCK {
                self.full.push(std::mem::take(&mut self.last).freeze());
            }
            data = tail;
        }
    }

    /// The bytes of a range; not copied where they are in full blocks.
    fn slices(&self, range: Range<u64>) -> Vec<Bytes> {
        let mut pieces = Vec::new();
        let mut at = range.start as usize;
        let end = range.end as usize;
        while at < end {
            let (block, offset) = (at / BLOCK, at % BLOCK);
            let take = (end - at).min(BLOCK - offset);
            pieces.push(match self.full.get(block) {
                Some(full) => full.slice(offset..offset + take),
                None => Bytes::copy_from_slice(&self.last[offset..offset + take]),
            });
            at += take;
        }
        pieces
    }
}

impl MemoryStorage {
    /// An empty store that holds at most `cap` bytes.
    pub fn new(cap: u64) -> Self {
        let inner = Inner { cap, used: 0, resources: BTreeMap::new(), next_lease: 0 };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// The bytes that all resources hold now.
    pub fn used(&self) -> u64 {
        self.lock().used
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code here panics under this lock, and the data is consistent at each allocation that might.
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Storage for MemoryStorage {
    type Appender = MemoryAppend;

    async fn open(&self, key: &Key, how: Open) -> Result<MemoryAppend> {
        let fresh = Life::random()?;
        let mut inner = self.lock();
        let lease = inner.next_lease;
        inner.next_lease += 1;
        let resource = match inner.resources.get_mut(key) {
            Some(resource) => {
                match (resource.lease, how) {
                    (Some(_), Open::Create | Open::Continue) => return Err(ErrorKind::Busy.into()),
                    (None, Open::Create) => return Err(ErrorKind::Exists.into()),
                    _ if resource.state == State::Sealed => return Err(ErrorKind::Sealed.into()),
                    _ => resource.lease = Some(lease),
                }
                resource
            }
            None => inner.resources.entry(key.clone()).or_insert(Resource {
                life: fresh,
                len: 0,
                state: State::Interrupted,
                owner: None,
                modified: SystemTime::now(),
                full: Vec::new(),
                last: BytesMut::new(),
                lease: Some(lease),
                permanent: false,
            }),
        };
        let stat = resource.stat();
        Ok(MemoryAppend { storage: self.clone(), key: key.clone(), lease, stat, claimed: None })
    }

    async fn stat(&self, key: &Key) -> Result<Option<Stat>> {
        Ok(self.lock().resources.get(key).map(Resource::stat))
    }

    async fn read(&self, key: &Key, life: Life, range: Range<u64>) -> Result<ByteStream> {
        let inner = self.lock();
        let resource = inner.resources.get(key).filter(|r| r.life == life).ok_or(ErrorKind::NotFound)?;
        check_range(&range, resource.len)?;
        Ok(Box::pin(stream::iter(resource.slices(range).into_iter().map(Ok))))
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        let mut inner = self.lock();
        let gone = inner.resources.remove(key).ok_or(ErrorKind::NotFound)?;
        inner.used -= gone.len;
        Ok(())
    }

    fn lost(&self) -> EntryStream {
        let inner = self.lock();
        let lost = inner.resources.iter().filter(|(_, r)| r.lease.is_none() && r.state == State::Lost);
        Box::pin(stream::iter(lost.map(|(key, r)| Ok((key.clone(), r.stat()))).collect::<Vec<_>>()))
    }

    fn list(&self, prefix: &str) -> EntryStream {
        let inner = self.lock();
        let found = inner.resources.iter().filter(|(key, _)| key.as_str().starts_with(prefix));
        Box::pin(stream::iter(found.map(|(key, r)| Ok((key.clone(), r.stat()))).collect::<Vec<_>>()))
    }
}

/// The appender of a resource in memory.
#[derive(Debug)]
pub struct MemoryAppend {
    storage: MemoryStorage,
    key: Key,
    lease: u64,
    stat: Stat,
    claimed: Option<Owner>,
}

/// The resource, if this lease is its current one.
fn leased<'a>(inner: &'a mut Inner, key: &Key, lease: u64) -> Result<&'a mut Resource> {
    inner.resources.get_mut(key).filter(|r| r.lease == Some(lease)).ok_or_else(|| ErrorKind::Fenced.into())
}

impl MemoryAppend {
    fn release(&mut self, end: Option<End>) -> Result<Stat> {
        let storage = self.storage.clone();
        let mut inner = storage.lock();
        let resource = leased(&mut inner, &self.key, self.lease)?;
        resource.lease = None;
        let abandoned = resource.state == State::Lost && end.is_some();
        let ended = abandoned || matches!(end, Some(End::Finished | End::Sealed));
        let untouched = resource.len == self.stat.len && !ended;
        if let Some(end) = end.filter(|_| !untouched) {
            resource.state = end.state();
            resource.permanent = true;
            if end != End::Interrupted {
                resource.owner = self.claimed;
            }
        }
        let stat = resource.stat();
        if !resource.permanent {
            inner.resources.remove(&self.key);
        }
        Ok(stat)
    }
}

impl Append for MemoryAppend {
    type Sync = BoxFuture<'static, Result<u64>>;

    fn stat(&self) -> Stat {
        let mut inner = self.storage.lock();
        match leased(&mut inner, &self.key, self.lease) {
            Ok(resource) => resource.stat(),
            Err(_) => self.stat.clone(),
        }
    }

    fn claim(&mut self, owner: Option<Owner>) {
        self.claimed = owner;
    }

    async fn append(&mut self, data: &[Bytes]) -> Result<u64> {
        let more: u64 = data.iter().map(|d| d.len() as u64).sum();
        let mut inner = self.storage.lock();
        let (used, cap) = (inner.used, inner.cap);
        let resource = leased(&mut inner, &self.key, self.lease)?;
        if used.saturating_add(more) > cap {
            return Err(ErrorKind::Full.into());
        }
        for data in data {
            resource.push(data);
        }
        if more > 0 {
            resource.modified = SystemTime::now();
            resource.owner = self.claimed;
            resource.state = if self.claimed.is_some() { State::Lost } else { State::Interrupted };
            resource.permanent = true;
        }
        let len = resource.len;
        inner.used += more;
        Ok(len)
    }

    /// Memory doesn't survive a power loss, so there is nothing to do.
    fn sync(&self) -> Self::Sync {
        let (storage, key, lease) = (self.storage.clone(), self.key.clone(), self.lease);
        // The length as of the first poll, not of this call.
        Box::pin(async move { leased(&mut storage.lock(), &key, lease).map(|resource| resource.len) })
    }

    async fn finish(mut self, end: End) -> Result<Stat> {
        self.release(Some(end))
    }
}

impl Drop for MemoryAppend {
    fn drop(&mut self) {
        // Does nothing after a finish or a fence, which ended this lease.
        let _ = self.release(None);
    }
}
