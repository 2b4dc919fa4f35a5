//! A storage that barely keeps the contract: every call takes a random time, calls fail, and a cancelled append goes on.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_core::future::BoxFuture;

use super::model::LifeRecord;
use super::world::{Inner, World};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::Owner;
use crate::key::Key;
use crate::state::{End, Life, Stat, State};
use crate::storage::{Append, ByteStream, EntryStream, Open, Storage, check_range, stream};

/// A resource in the storage.
pub(super) struct StoredResource {
    pub(super) life: Life,
    pub(super) bytes: Vec<u8>,
    pub(super) durable: u64,
    /// The state that it has once no appender is attached.
    pub(super) state: State,
    /// The appenders' owners, each with the offset of its first byte.
    owners: Vec<(u64, Option<Owner>)>,
    /// Whether it exists even without an appender: it has bytes, or was finished.
    exists: bool,
    pub(super) lease: Option<u64>,
    pub(super) poisoned: bool,
    pub(super) running_appends: u32,
    /// `len`, `state` and `exists` before the appender that has not ended yet.
    base: Option<(u64, State, bool)>,
}

impl StoredResource {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The owner of the last byte.
    pub(super) fn owner(&self) -> Option<Owner> {
        self.owners.last().and_then(|(_, owner)| *owner)
    }

    fn stat(&self) -> Stat {
        let state = if self.lease.is_some() { State::Live } else { self.state };
        Stat::new(self.life, self.len(), state).with_owner(self.owner())
    }
}

#[derive(Clone)]
pub(super) struct SimStore {
    world: World,
    process: u64,
}

impl SimStore {
    pub(super) fn new(world: &World) -> Self {
        Self { world: world.clone(), process: world.lock().process }
    }

    fn fault(&self) -> bool {
        let mut inner = self.world.lock();
        let faults = inner.plan.faults;
        inner.draw(10_000) < faults
    }

    fn failed(&self, what: &str, key: &Key) -> Error {
        self.world.log(format_args!("store: {what} {key} fails"));
        self.world.lock().count("storage failures");
        self.world.lock().storage_failed(key);
        Error::storage("injected")
    }
}

/// The process died. If the power was lost, so were bytes that were not durable.
pub(super) fn crash(world: &World, power_lost: bool) {
    let mut inner = world.lock();
    inner.log(format_args!("crash{}", if power_lost { ", power lost" } else { "" }));
    let keys: Vec<Key> = inner.store.keys().cloned().collect();
    for key in keys {
        detach(&mut inner, &key);
        if power_lost {
            cut(&mut inner, &key);
        }
    }
}

/// Detaches the appender.
fn detach(inner: &mut Inner, key: &Key) {
    let Some(stored) = inner.store.get_mut(key) else { return };
    (stored.lease, stored.poisoned, stored.running_appends) = (None, false, 0);
    if !stored.exists {
        inner.store.remove(key);
        return;
    }
    let (life, len, state) = (stored.life, stored.len(), stored.state);
    if state == State::Interrupted {
        inner.record_end(life, len, state);
    }
}

/// Cuts a resource to its durable length, which is a new life if bytes are lost.
fn cut(inner: &mut Inner, key: &Key) {
    let Some(stored) = inner.store.get_mut(key) else { return };
    if stored.durable == stored.len() {
        return;
    }
    let (life, durable) = (stored.life, stored.durable);
    inner.count("cuts");
    let new_life = inner.cut_life(life, durable);
    let Some(stored) = inner.store.get_mut(key) else { return };
    stored.life = new_life;
    stored.bytes.truncate(durable as usize);
    stored.owners.retain(|(from, _)| *from < durable);
    if let Some((len, state, exists)) = stored.base
        && durable <= len
    {
        (stored.state, stored.exists, stored.base) = (state, exists, None);
    }
    let (state, exists, free) = (stored.state, stored.exists, stored.lease.is_none());
    if state == State::Interrupted {
        inner.record_end(new_life, durable, state);
    }
    inner.log(format_args!("store: {key} is cut to {durable}, now {new_life:?}"));
    if !exists && free {
        inner.store.remove(key);
    }
    // Acknowledged bytes must survive.
    let broken = inner.sessions.iter().find(|s| s.key == *key && s.life == Some(life) && s.acked > durable.max(s.base));
    if let Some(session) = broken {
        let (id, acked) = (session.id, session.acked);
        inner.fail(format_args!("session {id} has {acked} acknowledged, and {durable} are durable"));
    }
}

impl Storage for SimStore {
    type Appender = SimAppend;

    async fn open(&self, key: &Key, how: Open) -> Result<SimAppend> {
        self.world.pause().await;
        if self.fault() {
            return Err(self.failed("open", key));
        }
        let wait = self.world.chance(50);
        let (lease, stat) = loop {
            {
                let mut inner = self.world.lock();
                let busy = inner.store.get(key).is_some_and(|stored| stored.running_appends > 0);
                // An append in flight is waited for, or fenced.
                if !(busy && wait && how == Open::Takeover) {
                    let lease = open(&mut inner, key, how)?;
                    let stat = inner.store.get(key).map(StoredResource::stat).ok_or(ErrorKind::Storage)?;
                    break (DetachOnDrop(LeaseRef { store: self.clone(), key: key.clone(), lease }), stat);
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        self.world.pause().await;
        Ok(SimAppend { lease: Arc::new(lease), stat, claimed: None })
    }

    async fn stat(&self, key: &Key) -> Result<Option<Stat>> {
        self.world.pause().await;
        if self.fault() {
            return Err(self.failed("stat", key));
        }
        let stat = self.world.lock().store.get(key).map(StoredResource::stat);
        self.world.pause().await;
        Ok(stat)
    }

    async fn read(&self, key: &Key, life: Life, range: Range<u64>) -> Result<ByteStream> {
        self.world.pause().await;
        if self.fault() {
            return Err(self.failed("read", key));
        }
        {
            let inner = self.world.lock();
            let stored = inner.store.get(key).filter(|stored| stored.life == life).ok_or(ErrorKind::NotFound)?;
            check_range(&range, stored.len())?;
        }
        let (store, key) = (self.clone(), key.clone());
        Ok(Box::pin(stream::unfold(range, move |range| {
            let (store, key) = (store.clone(), key.clone());
            async move {
                if range.is_empty() {
                    return None;
                }
                store.world.pause().await;
                if store.fault() {
                    return Some((Err(store.failed("read", &key)), range.end..range.end));
                }
                let mut inner = store.world.lock();
                let upto = range.start + 1 + inner.draw(range.end - range.start);
                let found = inner.store.get(&key).filter(|stored| stored.life == life);
                let Some(bytes) = found.map(|stored| stored.bytes[range.start as usize..upto as usize].to_vec()) else {
                    return Some((Err(ErrorKind::NotFound.into()), range.end..range.end));
                };
                Some((Ok(bytes.into()), upto..range.end))
            }
        })))
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.world.pause().await;
        if self.fault() {
            return Err(self.failed("delete", key));
        }
        {
            let mut inner = self.world.lock();
            let found = inner.store.remove(key);
            inner.log(format_args!("store: delete {key}: {}", found.is_some()));
            found.ok_or(ErrorKind::NotFound)?;
            inner.forget_lost(key);
        }
        self.world.pause().await;
        Ok(())
    }

    fn lost(&self) -> EntryStream {
        let inner = self.world.lock();
        let lost = inner.store.iter().filter(|(_, stored)| stored.lease.is_none() && stored.state == State::Lost);
        let lost: Vec<_> = lost.map(|(key, stored)| (key.clone(), stored.stat())).collect();
        drop(inner);
        let store = self.clone();
        Box::pin(stream::unfold(lost.into_iter(), move |mut lost| {
            let store = store.clone();
            async move {
                store.world.pause().await;
                let found = lost.next()?;
                let failed = store.fault().then(|| store.failed("lost", &found.0));
                Some((failed.map_or(Ok(found), Err), lost))
            }
        }))
    }
}

/// Attaches an appender. Returns the number of its lease.
fn open(inner: &mut Inner, key: &Key, how: Open) -> Result<u64> {
    let existing = inner.store.get(key).map(|stored| (stored.lease, stored.poisoned, stored.state));
    if let Some((lease, poisoned, state)) = existing {
        match (lease, how) {
            (Some(_), Open::Create | Open::Continue) => return Err(ErrorKind::Busy.into()),
            (None, Open::Create) => return Err(ErrorKind::Exists.into()),
            _ if state == State::Sealed => return Err(ErrorKind::Sealed.into()),
            // A poisoned appender has ended.
            (Some(_), _) if poisoned => detach(inner, key),
            _ => {}
        }
    }
    inner.next_lease += 1;
    let lease = inner.next_lease;
    match inner.store.get_mut(key) {
        Some(stored) => {
            if stored.lease.is_none() && stored.state != State::Lost {
                // Unless the resource is lost, an open makes durable what earlier appenders left.
                (stored.base, stored.durable) = (None, stored.len());
            }
            stored.lease = Some(lease);
        }
        None => {
            let life = inner.new_life(LifeRecord::default());
            inner.record_end(life, 0, State::Interrupted);
            // An appender that lost it had not stored a byte.
            inner.forget_lost(key);
            let stored = StoredResource {
                life,
                bytes: Vec::new(),
                durable: 0,
                state: State::Interrupted,
                owners: Vec::new(),
                exists: false,
                lease: Some(lease),
                poisoned: false,
                running_appends: 0,
                base: None,
            };
            inner.store.insert(key.clone(), stored);
        }
    }
    inner.log(format_args!("store: {how:?} {key} as {lease}"));
    Ok(lease)
}

/// Detaches the appender when it and all its running appends are gone.
struct DetachOnDrop(LeaseRef);

#[derive(Clone)]
struct LeaseRef {
    store: SimStore,
    key: Key,
    lease: u64,
}

impl LeaseRef {
    /// The resource, unless this lease is fenced or poisoned.
    fn resource<'a>(&self, inner: &'a mut Inner) -> Result<&'a mut StoredResource> {
        let stored = inner.store.get_mut(&self.key).filter(|stored| stored.lease == Some(self.lease));
        let stored = stored.ok_or(ErrorKind::Fenced)?;
        if stored.poisoned {
            return Err(ErrorKind::Poisoned.into());
        }
        Ok(stored)
    }

    fn append(&self, data: &[Bytes], claimed: Option<Owner>) -> Result<u64> {
        let (full, fails) = (self.store.fault(), self.store.fault());
        let mut inner = self.store.world.lock();
        let all = data.concat();
        let part = inner.draw(all.len() as u64 + 1) as usize;
        let stored = self.resource(&mut inner)?;
        let (life, at) = (stored.life, stored.len());
        if full {
            inner.count("full");
            return Err(ErrorKind::Full.into());
        }
        let data = if fails { &all[..part] } else { &all[..] };
        stored.poisoned = fails;
        if !data.is_empty() {
            let (state, owner) = (stored.state, stored.owner());
            stored.base.get_or_insert((at, state, stored.exists));
            stored.bytes.extend_from_slice(data);
            if stored.owners.is_empty() || owner != claimed {
                stored.owners.push((at, claimed));
            }
            stored.state = if claimed.is_some() { State::Lost } else { State::Interrupted };
            stored.exists = true;
            let kept = state == State::Lost && owner != claimed;
            inner.check(!kept, format_args!("{} is kept for its appender, and another one appended", self.key));
            inner.committed(life, at, data);
        }
        inner.log(format_args!("store: {} has {} by {}", self.key, at + data.len() as u64, self.lease));
        drop(inner);
        match fails {
            true => Err(self.store.failed("append", &self.key)),
            false => Ok(at + data.len() as u64),
        }
    }

    fn sync(&self, upto: u64) -> Result<u64> {
        let fails = self.store.fault() && self.store.world.plan().losses;
        let mut inner = self.store.world.lock();
        let stored = self.resource(&mut inner)?;
        if fails {
            stored.poisoned = true;
            cut(&mut inner, &self.key);
            drop(inner);
            return Err(self.store.failed("sync", &self.key));
        }
        stored.durable = stored.durable.max(upto.min(stored.len()));
        inner.log(format_args!("store: {} has {upto} durable", self.key));
        Ok(upto)
    }

    fn finish(&self, end: End) -> Result<Stat> {
        let (fails, answer_is_lost) = (self.store.fault(), self.store.fault());
        let mut inner = self.store.world.lock();
        let loses = inner.plan.losses && inner.draw(2) == 0;
        let stored = self.resource(&mut inner)?;
        if fails {
            stored.poisoned = true;
            if loses {
                cut(&mut inner, &self.key);
            }
            drop(inner);
            return Err(self.store.failed("finish", &self.key));
        }
        let lost = (stored.state == State::Lost).then(|| stored.owner()).flatten();
        let untouched = end == End::Interrupted && stored.base.is_none() && lost.is_none();
        (stored.lease, stored.base, stored.durable) = (None, None, stored.len());
        if !untouched {
            (stored.state, stored.exists) = (end.state(), true);
        }
        let (stat, exists) = (stored.stat(), stored.exists);
        if !exists {
            inner.store.remove(&self.key);
        }
        if let (Some(owner), End::Interrupted) = (lost, end) {
            inner.interrupted(&self.key, owner);
        }
        inner.forget_lost(&self.key);
        inner.record_end(stat.life, stat.len, stat.state);
        inner.log(format_args!("store: {} ends by {} as {} at {}", self.key, self.lease, stat.state, stat.len));
        drop(inner);
        match answer_is_lost {
            true => Err(self.store.failed("the answer to finish", &self.key)),
            false => Ok(stat),
        }
    }
}

impl Drop for DetachOnDrop {
    fn drop(&mut self) {
        let LeaseRef { store, key, lease } = &self.0;
        let mut inner = store.world.lock();
        let running = inner.process == store.process;
        if running && inner.store.get(key).is_some_and(|stored| stored.lease == Some(*lease)) {
            inner.log(format_args!("store: {key} is dropped by {lease}"));
            detach(&mut inner, key);
        }
    }
}

pub(super) struct SimAppend {
    lease: Arc<DetachOnDrop>,
    stat: Stat,
    claimed: Option<Owner>,
}

impl Append for SimAppend {
    type Sync = BoxFuture<'static, Result<u64>>;

    fn stat(&self) -> Stat {
        let lease = &self.lease.0;
        let mut inner = lease.store.world.lock();
        let stat = lease.resource(&mut inner).map(|stored| stored.stat());
        stat.unwrap_or_else(|_| self.stat.clone())
    }

    fn claim(&mut self, owner: Option<Owner>) {
        self.claimed = owner;
    }

    async fn append(&mut self, data: &[Bytes]) -> Result<u64> {
        let (lease, data, claimed) = (Arc::clone(&self.lease), data.to_vec(), self.claimed);
        let world = lease.0.store.world.clone();
        lease.0.resource(&mut world.lock())?.running_appends += 1;
        // Goes on when the future is dropped, as on a blocking pool.
        let appended = tokio::spawn(async move {
            let lease = &lease.0;
            lease.store.world.pause().await;
            let appended = lease.append(&data, claimed);
            if let Some(stored) = lease.store.world.lock().store.get_mut(&lease.key) {
                stored.running_appends = stored.running_appends.saturating_sub(1);
            }
            appended
        });
        let appended = appended.await.map_err(Error::storage)?;
        world.pause().await;
        appended
    }

    fn sync(&self) -> Self::Sync {
        // A sync doesn't keep the appender attached.
        let lease = self.lease.0.clone();
        Box::pin(async move {
            let world = lease.store.world.clone();
            let upto = lease.resource(&mut world.lock()).map(|stored| stored.len())?;
            world.pause().await;
            let synced = lease.sync(upto);
            world.pause().await;
            synced
        })
    }

    async fn finish(self, end: End) -> Result<Stat> {
        let lease = &self.lease.0;
        lease.store.world.pause().await;
        let finished = lease.finish(end);
        lease.store.world.pause().await;
        finished
    }
}
