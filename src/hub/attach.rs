//! Opening a resource for appending.

use std::sync::Arc;

use futures_core::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::key_lock::KeyLock;
use super::limits::reserve_resource;
use super::resource::{Holder, Predecessor, Resource};
use super::takeover::Takeover;
use super::{Durability, Entries, Entry, Hub, Lease};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::Owner;
use crate::key::Key;
use crate::state::{Life, Stat, State};
use crate::storage::Open;
use crate::storage::erased::{DynAppend, unresponsive};

/// What an appender asks for.
#[derive(Debug, Clone)]
pub(crate) struct AttachRequest {
    pub(crate) how: Open,
    /// The appender's identity, if it can come back after a lost connection.
    pub(crate) owner: Option<Owner>,
    /// The length that the resource must have.
    pub(crate) offset: Option<u64>,
    /// The life that the resource must be in. Not required of an appender that is the resource's owner.
    pub(crate) life: Option<Life>,
    /// The length at which this appender may already have finished the resource, before it lost its connection.
    pub(crate) finish: Option<u64>,
}

impl AttachRequest {
    pub(crate) fn new(how: Open) -> Self {
        Self { how, owner: None, offset: None, life: None, finish: None }
    }

    /// Whether this appender may have a resource that is kept for an owner.
    pub(super) fn may_resume(&self, kept_for: Option<Owner>) -> bool {
        kept_for.is_some_and(|owner| owner == self.owner.unwrap_or(Owner::ANYONE))
    }

    /// Whether the resource must have another length than this.
    pub(super) fn rejects_len(&self, len: u64) -> bool {
        self.offset.is_some_and(|offset| offset != len)
    }

    /// Checks that the resource is what the appender asked for. Returns whether the appender is its owner.
    fn check(&self, stat: &Stat) -> Result<bool> {
        let owned = self.owner.is_some_and(|owner| owner != Owner::ANYONE && Some(owner) == stat.owner);
        if !owned && self.life.is_some_and(|life| life != stat.life) {
            return Err(ErrorKind::Life.into());
        }
        if self.rejects_len(stat.len) {
            return Err(ErrorKind::Offset.into());
        }
        Ok(owned)
    }
}

/// The outcome of an [`AttachRequest`].
pub(crate) enum Attached {
    /// The resource is open. `resumed`: its last byte was appended by this same appender.
    Open { lease: Lease, resumed: bool },
    /// This appender had finished the resource already.
    Finished(Stat),
}

/// The outcome of one attempt to attach.
enum Attempt {
    Done(Attached),
    RetryNow,
    /// Retry when this token is cancelled.
    RetryAfter(CancellationToken),
    /// The resource is open, and this appender may take it over, even if its older connection is still attached.
    TakeOver(Takeover),
    /// The resource is not open here. The key is locked, and counts as one more open resource.
    Open(KeyLock),
}

impl Hub {
    /// Opens a resource for appending.
    ///
    /// # Cancel safety
    /// Cancel safe: an appender that the storage opens after the future was dropped is released.
    pub(crate) async fn attach(self: &Arc<Self>, key: &Key, request: AttachRequest) -> Result<Attached> {
        self.recover().await?;
        loop {
            if self.shutting_down.is_cancelled() {
                return Err(ErrorKind::ShuttingDown.into());
            }
            let opened = match self.try_attach(key, &request).await? {
                Attempt::Done(attached) => return Ok(attached),
                Attempt::RetryNow => continue,
                Attempt::RetryAfter(token) => {
                    self.wait_until_cancelled(&token).await?;
                    continue;
                }
                // Spawned, so that neither a dropped future nor a panic leaves the key locked.
                Attempt::TakeOver(takeover) => self.tasks.spawn(takeover.run(request.clone())),
                Attempt::Open(lock) => self.tasks.spawn(lock.open(request.clone())),
            };
            // A task that takes longer runs to its end, and what it opens is released.
            let opened = timeout(self.config.storage_timeout, opened).await.map_err(|_| unresponsive())?;
            if let Some(attached) = opened.map_err(Error::storage)?? {
                return Ok(attached);
            }
        }
    }

    async fn try_attach(self: &Arc<Self>, key: &Key, request: &AttachRequest) -> Result<Attempt> {
        {
            let mut entries = self.entries();
            match entries.get(key) {
                Some(Entry::Locked { since, .. }) if self.is_overdue(*since) => return Err(unresponsive()),
                // The lock may be that of the same appender's older connection.
                Some(Entry::Locked { released, .. }) if request.owner.is_some() => {
                    return Ok(Attempt::RetryAfter(released.clone()));
                }
                Some(Entry::Locked { .. }) => return Err(ErrorKind::Busy.into()),
                Some(Entry::Open(resource)) => return self.try_take_over(resource, request),
                None if request.finish.is_none() => return self.lock_for_opening(&mut entries, key),
                None => {}
            }
        }
        // The same appender may have finished it already, before its connection broke.
        if let Some(stat) = self.storage.stat(key).await?
            && matches!(stat.state, State::Finished | State::Sealed)
            && (Some(stat.life), Some(stat.len)) == (request.life, request.finish)
            // Another appender may have finished it at the same length.
            && stat.owner.is_some()
            && stat.owner == request.owner
        {
            return Ok(Attempt::Done(Attached::Finished(stat)));
        }
        let mut entries = self.entries();
        if entries.contains_key(key) {
            return Ok(Attempt::RetryNow);
        }
        self.lock_for_opening(&mut entries, key)
    }

    fn try_take_over(self: &Arc<Self>, resource: &Arc<Resource>, request: &AttachRequest) -> Result<Attempt> {
        if !request.may_resume(resource.owner) {
            return Err(ErrorKind::Busy.into());
        }
        let runtime = Handle::current();
        let anyone = resource.owner == Some(Owner::ANYONE);
        let mut state = resource.lock();
        let predecessor = match &mut state.holder {
            Holder::TakingOver { decided, .. } => return Ok(Attempt::RetryAfter(decided.clone())),
            Holder::Closing => return Ok(Attempt::RetryAfter(resource.closed.clone())),
            // Without an identity there is no telling whether it is the same appender.
            Holder::Attached if anyone => return Err(ErrorKind::Busy.into()),
            Holder::Attached => Predecessor::Attached,
            // Requests that can't succeed are refused here, since a takeover would disturb the resource.
            Holder::Absent(_) if anyone && request.how == Open::Create => return Err(ErrorKind::Exists.into()),
            Holder::Absent(_) if request.rejects_len(resource.len()) => return Err(ErrorKind::Offset.into()),
            Holder::Absent(_) if anyone && request.life.is_some_and(|life| life != resource.life) => {
                return Err(ErrorKind::Life.into());
            }
            Holder::Absent(append) => Predecessor::Absent(append.take()),
        };
        let decided = CancellationToken::new();
        state.holder = Holder::TakingOver { decided: decided.clone(), predecessor };
        Ok(Attempt::TakeOver(Takeover { hub: Arc::clone(self), resource: Arc::clone(resource), decided, runtime }))
    }

    fn lock_for_opening(self: &Arc<Self>, entries: &mut Entries, key: &Key) -> Result<Attempt> {
        let reservation = reserve_resource(&self.resource_budget)?;
        Ok(Attempt::Open(KeyLock::new(self, entries, key, Some(Instant::now()), Some(reservation))))
    }

    /// Makes durable what the same appender stored over an earlier connection: to report its length to the appender is an
    /// acknowledgement.
    pub(super) fn sync_resumed(&self, append: &dyn DynAppend) -> BoxFuture<'static, Result<u64>> {
        match self.config.durability {
            Durability::Process => Box::pin(std::future::ready(Ok(append.opened().len))),
            _ => append.sync(),
        }
    }
}

impl KeyLock {
    /// Opens the resource for an appender. `None`: it was deleted or taken over meanwhile; retry.
    async fn open(self, request: AttachRequest) -> Result<Option<Attached>> {
        let storage = &self.hub.storage;
        let mut owner = request.owner;
        match storage.stat(&self.key).await? {
            // Appended to by another node, or by an appender whose sync failed. Its owner isn't known yet.
            Some(stat) if stat.state == State::Live => return Err(ErrorKind::Busy.into()),
            // Left by another node, or the storage failed while this hub closed it. It is kept for its owner all the same.
            Some(stat)
                if stat.state == State::Lost && stat.owner != request.owner && !request.may_resume(stat.owner) =>
            {
                self.adopt(&stat);
                return Err(ErrorKind::Busy.into());
            }
            // A resource that is kept for anyone stays so.
            Some(stat) if stat.state == State::Lost => owner = owner.or(stat.owner),
            _ => {}
        }
        let append = storage.open(&self.key, request.how).await?;
        if request.check(append.opened())? {
            match self.hub.sync_resumed(append.as_ref()).await {
                Err(error) if error.kind() == ErrorKind::Fenced => return Ok(None),
                synced => synced?,
            };
        }
        Ok(Some(self.into_lease(append, owner)))
    }

    /// Puts the opened resource in the place of this lock.
    fn into_lease(mut self, mut append: Box<dyn DynAppend>, owner: Option<Owner>) -> Attached {
        let stat = append.opened().clone();
        let resumed = owner.is_some() && stat.owner == owner;
        append.claim(owner);
        let tail_cache = self.hub.config.tail_cache;
        let reservation = self.reservation.take();
        let resource = Resource::new(self.key.clone(), &stat, owner, Holder::Attached, tail_cache, reservation);
        let resource = Arc::new(resource);
        let (epoch, revoked) = {
            let state = resource.lock();
            (state.epoch, state.revoked.clone())
        };
        self.hub.entries().insert(self.key.clone(), Entry::Open(Arc::clone(&resource)));
        Attached::Open { lease: Lease::new(Arc::clone(&self.hub), resource, append, epoch, revoked), resumed }
    }

    /// Puts a resource that turned out to be lost in the place of this lock, and gives it its grace. In one step, so that
    /// no other request opens the key in between.
    fn adopt(mut self, stat: &Stat) {
        self.reservation = None;
        if !self.hub.shutting_down.is_cancelled() {
            self.hub.insert_lost(&mut self.hub.entries(), self.key.clone(), stat);
        }
    }
}
