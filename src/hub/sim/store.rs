//! A storage that keeps the contract, barely: everything takes its time, what can fail does, and a call that was given
//! up goes on.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::world::{Inner, Told, World};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::Owner;
use crate::key::Key;
use crate::state::{End, Life, Stat, State};
use crate::storage::{Append, ByteStream, EntryStream, Open, Storage, check_range, stream};
use futures_core::future::BoxFuture;

/// What is stored of one resource.
pub(super) struct Res {
    pub(super) life: Life,
    pub(super) bytes: Vec<u8>,
    pub(super) durable: u64,
    /// At rest.
    pub(super) state: State,
    /// Who appended, from where on.
    owners: Vec<(u64, Option<Owner>)>,
    real: bool,
    pub(super) lease: Option<u64>,
    pub(super) poisoned: bool,
    /// Appends that run.
    pub(super) busy: u32,
    /// The length, state and reality before the appender that has not ended yet.
    base: Option<(u64, State, bool)>,
}

impl Res {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Whose the last byte is.
    pub(super) fn owner(&self) -> Option<Owner> {
        self.owners.last().and_then(|(_, owner)| *owner)
    }

    fn stat(&self) -> Stat {
        let state = if self.lease.is_some() { State::Live } else { self.state };
        Stat::new(self.life, self.len(), state).owner(self.owner())
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
        self.world.say(format_args!("store: {what} {key} fails"));
        self.world.lock().count("storage failures");
        self.world.lock().shaken(key);
        Error::storage("injected")
    }
}

/// The process is gone; `power`: and with it whatever was not durable.
pub(super) fn crash(world: &World, power: bool) {
    let mut inner = world.lock();
    inner.say(format_args!("crash{}", if power { ", power lost" } else { "" }));
    let keys: Vec<Key> = inner.store.keys().cloned().collect();
    for key in keys {
        settle(&mut inner, &key);
        if power {
            cut(&mut inner, &key);
        }
    }
}

/// Nobody holds it any more.
fn settle(inner: &mut Inner, key: &Key) {
    let Some(res) = inner.store.get_mut(key) else { return };
    (res.lease, res.poisoned, res.busy) = (None, false, 0);
    if !res.real {
        inner.store.remove(key);
        return;
    }
    let (life, len, state) = (res.life, res.len(), res.state);
    if state == State::Interrupted {
        inner.ended(life, len, state);
    }
}

/// What is not durable is gone.
fn cut(inner: &mut Inner, key: &Key) {
    let Some(res) = inner.store.get_mut(key) else { return };
    if res.durable == res.len() {
        return;
    }
    let (life, durable) = (res.life, res.durable);
    inner.count("cuts");
    let fresh = inner.cut(life, durable);
    let Some(res) = inner.store.get_mut(key) else { return };
    res.life = fresh;
    res.bytes.truncate(durable as usize);
    res.owners.retain(|(from, _)| *from < durable);
    if let Some((len, state, real)) = res.base
        && durable <= len
    {
        (res.state, res.real, res.base) = (state, real, None);
    }
    let (state, real, free) = (res.state, res.real, res.lease.is_none());
    if state == State::Interrupted {
        inner.ended(fresh, durable, state);
    }
    inner.say(format_args!("store: {key} is cut to {durable}, now {fresh:?}"));
    if !real && free {
        inner.store.remove(key);
    }
    // An acknowledgement is for ever.
    let broken = inner.sessions.iter().find(|s| s.key == *key && s.life == Some(life) && s.acked > durable.max(s.base));
    if let Some(session) = broken {
        let (id, acked) = (session.id, session.acked);
        inner.fail(format_args!("session {id} has {acked} acknowledged, and {durable} are left"));
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
        let (held, stat) = loop {
            {
                let mut inner = self.world.lock();
                let busy = inner.store.get(key).is_some_and(|res| res.busy > 0);
                // What is in flight is waited for, or has no effect any more.
                if !(busy && wait && how == Open::Takeover) {
                    let lease = open(&mut inner, key, how)?;
                    let stat = inner.store.get(key).map(Res::stat).ok_or(ErrorKind::Storage)?;
                    break (Held(Grip { store: self.clone(), key: key.clone(), lease }), stat);
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        self.world.pause().await;
        Ok(SimAppend { held: Arc::new(held), stat, claimed: None })
    }

    async fn stat(&self, key: &Key) -> Result<Option<Stat>> {
        self.world.pause().await;
        if self.fault() {
            return Err(self.failed("stat", key));
        }
        let stat = self.world.lock().store.get(key).map(Res::stat);
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
            let res = inner.store.get(key).filter(|res| res.life == life).ok_or(ErrorKind::NotFound)?;
            check_range(&range, res.len())?;
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
                let found = inner.store.get(&key).filter(|res| res.life == life);
                let Some(bytes) = found.map(|res| res.bytes[range.start as usize..upto as usize].to_vec()) else {
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
            inner.say(format_args!("store: delete {key}: {}", found.is_some()));
            found.ok_or(ErrorKind::NotFound)?;
            inner.forget(key);
        }
        self.world.pause().await;
        Ok(())
    }

    fn lost(&self) -> EntryStream {
        let inner = self.world.lock();
        let lost = inner.store.iter().filter(|(_, res)| res.lease.is_none() && res.state == State::Lost);
        let lost: Vec<_> = lost.map(|(key, res)| (key.clone(), res.stat())).collect();
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

/// Gives the number of the lease.
fn open(inner: &mut Inner, key: &Key, how: Open) -> Result<u64> {
    let there = inner.store.get(key).map(|res| (res.lease, res.poisoned, res.state));
    if let Some((lease, poisoned, state)) = there {
        match (lease, how) {
            (Some(_), Open::Create | Open::Continue) => return Err(ErrorKind::Busy.into()),
            (None, Open::Create) => return Err(ErrorKind::Exists.into()),
            _ if state == State::Sealed => return Err(ErrorKind::Sealed.into()),
            // It had ended by itself.
            (Some(_), _) if poisoned => settle(inner, key),
            _ => {}
        }
    }
    inner.next_lease += 1;
    let lease = inner.next_lease;
    match inner.store.get_mut(key) {
        Some(res) => {
            if res.lease.is_none() && res.state != State::Lost {
                // What a lost one left is settled by now.
                (res.base, res.durable) = (None, res.len());
            }
            res.lease = Some(lease);
        }
        None => {
            let life = inner.new_life(Told::default());
            inner.ended(life, 0, State::Interrupted);
            // Whoever lost it had not even begun.
            inner.forget(key);
            let res = Res {
                life,
                bytes: Vec::new(),
                durable: 0,
                state: State::Interrupted,
                owners: Vec::new(),
                real: false,
                lease: Some(lease),
                poisoned: false,
                busy: 0,
                base: None,
            };
            inner.store.insert(key.clone(), res);
        }
    }
    inner.say(format_args!("store: {how:?} {key} as {lease}"));
    Ok(lease)
}

/// Dropped once the appender and all that it had running is gone.
struct Held(Grip);

#[derive(Clone)]
struct Grip {
    store: SimStore,
    key: Key,
    lease: u64,
}

impl Grip {
    /// The resource, as far as it is still this one's.
    fn res<'a>(&self, inner: &'a mut Inner) -> Result<&'a mut Res> {
        let res = inner.store.get_mut(&self.key).filter(|res| res.lease == Some(self.lease));
        let res = res.ok_or(ErrorKind::Fenced)?;
        if res.poisoned {
            return Err(ErrorKind::Poisoned.into());
        }
        Ok(res)
    }

    fn append(&self, data: &[Bytes], claimed: Option<Owner>) -> Result<u64> {
        let (full, fails) = (self.store.fault(), self.store.fault());
        let mut inner = self.store.world.lock();
        let all = data.concat();
        let part = inner.draw(all.len() as u64 + 1) as usize;
        let res = self.res(&mut inner)?;
        let (life, at) = (res.life, res.len());
        if full {
            inner.count("full");
            return Err(ErrorKind::Full.into());
        }
        let stored = if fails { &all[..part] } else { &all[..] };
        res.poisoned = fails;
        if !stored.is_empty() {
            let (state, owner) = (res.state, res.owner());
            res.base.get_or_insert((at, state, res.real));
            res.bytes.extend_from_slice(stored);
            if res.owners.is_empty() || owner != claimed {
                res.owners.push((at, claimed));
            }
            res.state = if claimed.is_some() { State::Lost } else { State::Interrupted };
            res.real = true;
            let kept = state == State::Lost && owner != claimed;
            inner.check(!kept, format_args!("{} is kept for its appender, and somebody else appended", self.key));
            inner.committed(life, at, stored);
        }
        inner.say(format_args!("store: {} has {} by {}", self.key, at + stored.len() as u64, self.lease));
        drop(inner);
        match fails {
            true => Err(self.store.failed("append", &self.key)),
            false => Ok(at + stored.len() as u64),
        }
    }

    fn sync(&self, upto: u64) -> Result<u64> {
        let fails = self.store.fault() && self.store.world.plan().losses;
        let mut inner = self.store.world.lock();
        let res = self.res(&mut inner)?;
        if fails {
            res.poisoned = true;
            cut(&mut inner, &self.key);
            drop(inner);
            return Err(self.store.failed("sync", &self.key));
        }
        res.durable = res.durable.max(upto.min(res.len()));
        inner.say(format_args!("store: {} has {upto} durable", self.key));
        Ok(upto)
    }

    fn finish(&self, end: End) -> Result<Stat> {
        let (fails, silent) = (self.store.fault(), self.store.fault());
        let mut inner = self.store.world.lock();
        let loses = inner.plan.losses && inner.draw(2) == 0;
        let res = self.res(&mut inner)?;
        if fails {
            res.poisoned = true;
            if loses {
                cut(&mut inner, &self.key);
            }
            drop(inner);
            return Err(self.store.failed("finish", &self.key));
        }
        let lost = (res.state == State::Lost).then(|| res.owner()).flatten();
        let untouched = end == End::Interrupted && res.base.is_none() && lost.is_none();
        (res.lease, res.base, res.durable) = (None, None, res.len());
        if !untouched {
            (res.state, res.real) = (end.state(), true);
        }
        let (stat, real) = (res.stat(), res.real);
        if !real {
            inner.store.remove(&self.key);
        }
        if let (Some(owner), End::Interrupted) = (lost, end) {
            inner.given_up(&self.key, owner);
        }
        inner.forget(&self.key);
        inner.ended(stat.life, stat.len, stat.state);
        inner.say(format_args!("store: {} ends by {} as {} at {}", self.key, self.lease, stat.state, stat.len));
        drop(inner);
        match silent {
            true => Err(self.store.failed("the answer to finish", &self.key)),
            false => Ok(stat),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Grip { store, key, lease } = &self.0;
        let mut inner = store.world.lock();
        let alive = inner.process == store.process;
        if alive && inner.store.get(key).is_some_and(|res| res.lease == Some(*lease)) {
            inner.say(format_args!("store: {key} is dropped by {lease}"));
            settle(&mut inner, key);
        }
    }
}

pub(super) struct SimAppend {
    held: Arc<Held>,
    stat: Stat,
    claimed: Option<Owner>,
}

impl Append for SimAppend {
    type Sync = BoxFuture<'static, Result<u64>>;

    fn stat(&self) -> Stat {
        let grip = &self.held.0;
        let mut inner = grip.store.world.lock();
        let stat = grip.res(&mut inner).map(|res| res.stat());
        stat.unwrap_or_else(|_| self.stat.clone())
    }

    fn claim(&mut self, owner: Option<Owner>) {
        self.claimed = owner;
    }

    async fn append(&mut self, data: &[Bytes]) -> Result<u64> {
        let (held, data, claimed) = (Arc::clone(&self.held), data.to_vec(), self.claimed);
        let world = held.0.store.world.clone();
        held.0.res(&mut world.lock())?.busy += 1;
        // As on a blocking pool: goes on when nobody waits for it any more.
        let appended = tokio::spawn(async move {
            let grip = &held.0;
            grip.store.world.pause().await;
            let appended = grip.append(&data, claimed);
            if let Some(res) = grip.store.world.lock().store.get_mut(&grip.key) {
                res.busy = res.busy.saturating_sub(1);
            }
            appended
        });
        let appended = appended.await.map_err(Error::storage)?;
        world.pause().await;
        appended
    }

    fn sync(&self) -> Self::Sync {
        // Doesn't keep the resource held.
        let grip = self.held.0.clone();
        Box::pin(async move {
            let world = grip.store.world.clone();
            let upto = grip.res(&mut world.lock()).map(|res| res.len())?;
            world.pause().await;
            let synced = grip.sync(upto);
            world.pause().await;
            synced
        })
    }

    async fn finish(self, end: End) -> Result<Stat> {
        let grip = &self.held.0;
        grip.store.world.pause().await;
        let ended = grip.finish(end);
        grip.store.world.pause().await;
        ended
    }
}
