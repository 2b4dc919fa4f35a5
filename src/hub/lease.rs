//! The right to append to an open resource, as everything above the hub uses it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_core::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::close::{close_for_shutdown, finish_and_close, interrupt};
use super::progress::Phase;
use super::resource::{Holder, Predecessor};
use super::{Durability, Event, Hub, Resource};
use crate::error::{Error, ErrorKind, Result};
use crate::state::{End, Stat};
use crate::storage::erased::{DynAppend, timed_out};

/// How often an enlarged tail is looked at, to trim it once little is appended.
const TRIM_INTERVAL: Duration = Duration::from_secs(1);

/// After this many bytes an appender yields to followers.
const YIELD_AFTER: u64 = 64 * 1024;

/// The right to append to a resource. Dropping it means that the appender was lost.
pub(crate) struct Lease {
    hub: Arc<Hub>,
    resource: Arc<Resource>,
    /// The number of this lease: see [`ResourceState::epoch`](super::resource::ResourceState::epoch).
    epoch: u64,
    revoked: CancellationToken,
    /// `None` once the lease has ended.
    append: Option<Box<dyn DynAppend>>,
    /// An append failed or was cancelled: how long the resource is can only be learned by opening it anew.
    poisoned: bool,
    /// Bytes that were appended to a followed resource since the last yield.
    since_yield: u64,
    /// The appender requests each sync that it waits for, so that none is scheduled.
    syncs_on_request: bool,
    /// A sync is scheduled.
    sync_due: Arc<AtomicBool>,
    /// A task will trim the tail.
    trim_due: Arc<AtomicBool>,
    /// Where the tasks of this lease run, even if it is dropped outside a runtime.
    runtime: Handle,
    _tracker_token: TaskTrackerToken,
}

impl Lease {
    pub(super) fn new(
        hub: Arc<Hub>,
        resource: Arc<Resource>,
        append: Box<dyn DynAppend>,
        epoch: u64,
        revoked: CancellationToken,
    ) -> Self {
        let tracker_token = hub.leases.token();
        Self {
            hub,
            resource,
            epoch,
            revoked,
            append: Some(append),
            poisoned: false,
            since_yield: 0,
            syncs_on_request: false,
            sync_due: Arc::default(),
            trim_due: Arc::default(),
            runtime: Handle::current(),
            _tracker_token: tracker_token,
        }
    }

    pub(crate) fn resource(&self) -> &Arc<Resource> {
        &self.resource
    }

    /// The runtime that the lease was opened in.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// From now on only [`sync`](Self::sync) syncs; no sync is scheduled after an append.
    pub(crate) fn sync_on_request(&mut self) {
        self.syncs_on_request = true;
    }

    /// Whether an append counts only once it is synced.
    pub(crate) fn syncs_each_append(&self) -> bool {
        self.hub.config.durability == Durability::Acked
    }

    /// Cancelled when another lease has taken over, or the resource was closed by something else than this lease.
    pub(crate) fn revoked(&self) -> &CancellationToken {
        &self.revoked
    }

    /// Why the lease was [`revoked`](Self::revoked).
    pub(crate) fn revocation(&self) -> ErrorKind {
        self.resource.revocation(self.epoch)
    }

    /// Observes the lease from outside.
    pub(crate) fn watch(&self) -> LeaseWatch {
        LeaseWatch {
            resource: Arc::clone(&self.resource),
            epoch: self.epoch,
            revoked: self.revoked.clone(),
            shutting_down: self.hub.shutting_down.clone(),
        }
    }

    /// Yields to followers often enough that they find in the tail what they want next.
    ///
    /// Not part of [`append`](Self::append): in a `select!` beside other futures the yield would be over at once.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn give_way(&mut self) {
        if self.since_yield >= YIELD_AFTER {
            self.since_yield = 0;
            tokio::task::yield_now().await;
        }
    }

    /// Commits bytes, then publishes them to the followers. Returns the committed length.
    ///
    /// # Cancel safety
    /// Not cancel safe: dropping the future poisons the lease.
    pub(crate) async fn append(&mut self, data: &[Bytes]) -> Result<u64> {
        if self.hub.aborting.is_cancelled() {
            return Err(ErrorKind::ShuttingDown.into());
        }
        if self.revoked.is_cancelled() {
            return Err(self.revocation().into());
        }
        let append = self.append.as_mut().filter(|_| !self.poisoned).ok_or(ErrorKind::Poisoned)?;
        let before = self.resource.len();
        self.poisoned = true;
        // An appender that never has to wait would starve the tasks of the idle groups.
        tokio::task::consume_budget().await;
        let appended = append.append(data).await;
        self.poisoned =
            appended.as_ref().is_err_and(|error| !matches!(error.kind(), ErrorKind::Full | ErrorKind::Fenced));
        let len = appended?;
        if len == before {
            return Ok(len);
        }
        if self.resource.is_followed() {
            self.since_yield += len - before;
        }
        if self.resource.grow(self.epoch, data, len)? {
            self.schedule_trim();
        }
        if before == 0 {
            self.hub.emit(Event::Created { key: self.resource.key.clone(), life: self.resource.life });
        }
        self.schedule_sync();
        Ok(len)
    }

    /// Makes what is committed durable, as far as the configured [`Durability`] asks for that before an acknowledgement,
    /// and returns the length. A failure closes the resource.
    pub(crate) fn sync(&self) -> BoxFuture<'static, Result<u64>> {
        let Some(append) = &self.append else { return Box::pin(async { Err(ErrorKind::Poisoned.into()) }) };
        if self.hub.config.durability == Durability::Process {
            let len = self.resource.len();
            return Box::pin(async move { Ok(len) });
        }
        let (sync, hub, resource) = (append.sync(), Arc::clone(&self.hub), Arc::clone(&self.resource));
        Box::pin(async move {
            let synced = sync.await;
            if let Err(error) = &synced {
                hub.sync_failed(&resource, error);
            }
            synced
        })
    }

    /// Finishes the resource.
    ///
    /// # Cancel safety
    /// The finish goes on when the future is dropped.
    pub(crate) async fn finish(mut self, end: End) -> Result<Stat> {
        let append = self.append.take_if(|_| !self.poisoned).ok_or(ErrorKind::Poisoned)?;
        let (hub, resource, epoch) = (Arc::clone(&self.hub), Arc::clone(&self.resource), self.epoch);
        let finishing = async move {
            loop {
                let decided = {
                    let mut state = resource.lock();
                    match &state.holder {
                        _ if state.epoch != epoch => return Err(ErrorKind::Fenced.into()),
                        // A takeover that began before this finish goes first.
                        Holder::TakingOver { decided, .. } => decided.clone(),
                        _ => {
                            state.holder = Holder::Closing;
                            break;
                        }
                    }
                };
                decided.cancelled().await;
            }
            finish_and_close(hub, resource, append, end).await
        };
        let finishing = self.hub.tasks.spawn(finishing);
        // A finish that takes longer goes on; an appender that comes back learns its outcome.
        let finished = timeout(self.hub.config.storage_timeout, finishing).await.map_err(|_| timed_out())?;
        finished.unwrap_or_else(|panicked| {
            // Whether it is finished is unknown, but its appender is gone.
            self.hub.close(&self.resource, self.resource.len(), Phase::Cut(ErrorKind::Storage));
            Err(Error::storage(panicked))
        })
    }

    /// Syncs the resource and leaves it open for an appender that will go on; its followers keep waiting.
    ///
    /// # Cancel safety
    /// Dropping the future means that the appender was lost.
    pub(crate) async fn park(mut self) -> Result<Stat> {
        self.sync().await?;
        let mut state = self.resource.lock();
        if state.epoch != self.epoch || self.revoked.is_cancelled() {
            drop(state);
            return Err(self.revocation().into());
        }
        let append = self.append.take_if(|_| !self.poisoned).ok_or(ErrorKind::Poisoned)?;
        match &mut state.holder {
            Holder::TakingOver { predecessor, .. } => *predecessor = Predecessor::Absent(Some(append)),
            Holder::Attached => {
                self.hub.keep(&self.resource, &mut state, Some(append), Phase::Parked, &self.runtime);
            }
            Holder::Absent(_) | Holder::Closing => {}
        }
        drop(state);
        Ok(self.resource.stat())
    }

    /// Closes the resource for a shutdown: its followers are cut off, and it is kept for an appender that can come back.
    pub(crate) async fn stop(mut self) {
        let Some(append) = self.append.take() else { return };
        let closing = {
            let mut state = self.resource.lock();
            if state.epoch != self.epoch {
                return;
            }
            state.holder = Holder::Closing;
            close_for_shutdown(Arc::clone(&self.hub), Arc::clone(&self.resource), Some(append))
        };
        let _ = self.hub.tasks.spawn(closing).await;
    }

    /// Schedules a sync of the bytes committed so far, within the configured time.
    fn schedule_sync(&self) {
        let within = match self.hub.config.durability {
            Durability::Interval(within) => within,
            Durability::Acked => Duration::ZERO,
            Durability::Process => return,
        };
        if self.syncs_on_request || self.sync_due.swap(true, Ordering::AcqRel) {
            return;
        }
        let sync = self.sync();
        let due = Arc::clone(&self.sync_due);
        let closed = self.resource.closed.clone();
        let at = self.hub.shared_deadline(within);
        self.runtime.spawn(async move {
            tokio::select! {
                biased;
                // Closing a resource syncs it.
                () = closed.cancelled() => return,
                () = tokio::time::sleep_until(at) => {}
            }
            // Reset before the sync: bytes that are appended meanwhile may miss it, and schedule another.
            due.store(false, Ordering::Release);
            let _ = sync.await;
        });
    }

    /// Schedules the trimming of the tail, for when little is appended.
    fn schedule_trim(&self) {
        if self.trim_due.swap(true, Ordering::AcqRel) {
            return;
        }
        let (hub, resource) = (Arc::clone(&self.hub), Arc::clone(&self.resource));
        let due = Arc::clone(&self.trim_due);
        self.runtime.spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    () = resource.closed.cancelled() => return,
                    () = tokio::time::sleep_until(hub.shared_deadline(TRIM_INTERVAL)) => {}
                }
                let mut state = resource.lock();
                if state.tail.trim_if_quiet() {
                    // Under the lock: an append that enlarges the tail again comes after this, and schedules another.
                    due.store(false, Ordering::Release);
                    return;
                }
            }
        });
    }
}

/// Observes a lease without holding it.
pub(crate) struct LeaseWatch {
    resource: Arc<Resource>,
    epoch: u64,
    revoked: CancellationToken,
    shutting_down: CancellationToken,
}

impl LeaseWatch {
    pub(crate) fn resource(&self) -> &Resource {
        &self.resource
    }

    /// Resolves when the lease is of no more use, with the reason: [`Fenced`](ErrorKind::Fenced) after a takeover or a
    /// delete, [`Storage`](ErrorKind::Storage) after a failed sync or a storage that stopped responding, and
    /// [`ShuttingDown`](ErrorKind::ShuttingDown) already when a shutdown begins, while the lease can still append and finish.
    ///
    /// After the lease itself was finished, parked or dropped, it resolves with `Fenced` once the resource is closed: the reason
    /// is no longer known then.
    ///
    /// Cancel safe: nothing but waiting is lost when the future is dropped.
    pub(crate) fn closed(&self) -> impl Future<Output = ErrorKind> + Send + use<> {
        let (resource, epoch, revoked) = (Arc::clone(&self.resource), self.epoch, self.revoked.clone());
        let shutting_down = self.shutting_down.clone();
        async move {
            tokio::select! {
                // A lease that was revoked before the shutdown reports that.
                biased;
                () = revoked.cancelled() => resource.revocation(epoch),
                () = shutting_down.cancelled() => ErrorKind::ShuttingDown,
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(append) = self.append.take() else { return };
        let mut state = self.resource.lock();
        if state.epoch != self.epoch || self.revoked.is_cancelled() {
            return;
        }
        let append = if self.poisoned { None } else { Some(append) };
        let (hub, resource) = (Arc::clone(&self.hub), Arc::clone(&self.resource));
        match &mut state.holder {
            Holder::TakingOver { predecessor, .. } => *predecessor = Predecessor::Absent(append),
            Holder::Attached if resource.owner.is_none() => {
                state.holder = Holder::Closing;
                self.hub.tasks.spawn_on(interrupt(hub, resource, append), &self.runtime);
            }
            Holder::Attached if hub.shutting_down.is_cancelled() => {
                state.holder = Holder::Closing;
                self.hub.tasks.spawn_on(close_for_shutdown(hub, resource, append), &self.runtime);
            }
            Holder::Attached => {
                if let Some(append) = append.as_ref().filter(|_| hub.config.durability != Durability::Process) {
                    // No acknowledgement depends on this sync, but the bytes should not stay unsynced during the grace.
                    let sync = append.sync();
                    self.runtime.spawn(async move {
                        if let Err(error) = sync.await {
                            hub.sync_failed(&resource, &error);
                        }
                    });
                }
                self.hub.keep(&self.resource, &mut state, append, Phase::Lost, &self.runtime);
            }
            Holder::Absent(_) | Holder::Closing => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::{AttachRequest, Attached};
    use crate::identity::Owner;
    use crate::key::Key;
    use crate::state::State;
    use crate::storage::{Append, MemoryStorage, Open, Storage};
    use crate::streams::Streams;

    #[tokio::test]
    async fn a_deleted_resource_is_not_parked() {
        // With other durabilities the sync would fail first.
        let streams = Streams::builder(MemoryStorage::new(1 << 20)).durability(Durability::Process).build();
        let attach = AttachRequest { owner: Some(Owner::ANYONE), ..AttachRequest::new(Open::Continue) };
        let attached = streams.hub.attach(&Key::new("a").unwrap(), attach).await.unwrap();
        let Attached::Open { mut lease, .. } = attached else { panic!("it is finished") };
        lease.append(&[Bytes::from_static(b"x")]).await.unwrap();
        streams.delete("a").await.unwrap();
        assert_eq!(lease.park().await.unwrap_err().kind(), ErrorKind::Fenced);
    }

    async fn lease_on(streams: &Streams, owner: Option<Owner>) -> Lease {
        let attach = AttachRequest { owner, ..AttachRequest::new(Open::Continue) };
        match streams.hub.attach(&Key::new("a").unwrap(), attach).await.unwrap() {
            Attached::Open { lease, .. } => lease,
            Attached::Finished(_) => panic!("it is finished"),
        }
    }

    #[tokio::test]
    async fn closed_resolves_with_the_reason() {
        let streams = Streams::new(MemoryStorage::new(1 << 20));
        let lease = lease_on(&streams, None).await;
        let mut closed = std::pin::pin!(lease.watch().closed());
        assert!(futures_util::poll!(&mut closed).is_pending());
        streams.delete("a").await.unwrap();
        assert_eq!(closed.await, ErrorKind::Fenced, "deleted");
        assert_eq!(lease.watch().closed().await, ErrorKind::Fenced, "asked for after the fact");

        let owner = Some(Owner::from_bytes([1; 32]));
        let older = lease_on(&streams, owner).await;
        let newer = lease_on(&streams, owner).await;
        assert_eq!(older.watch().closed().await, ErrorKind::Fenced, "taken over");
        assert!(futures_util::poll!(std::pin::pin!(newer.watch().closed())).is_pending());
        streams.hub.sync_failed(newer.resource(), &ErrorKind::Storage.into());
        assert_eq!(newer.watch().closed().await, ErrorKind::Storage, "a sync failed");
    }

    #[tokio::test]
    async fn closed_resolves_at_the_beginning_of_a_shutdown() {
        let streams = Streams::new(MemoryStorage::new(1 << 20));
        let mut lease = lease_on(&streams, None).await;
        let closed = tokio::spawn(lease.watch().closed());
        streams.hub.shutting_down.cancel();
        assert_eq!(closed.await.unwrap(), ErrorKind::ShuttingDown);
        lease.append(&[Bytes::from_static(b"the last words")]).await.unwrap();
        assert_eq!(lease.finish(End::Finished).await.unwrap().state, State::Finished);
    }

    /// Claims the resource, appends, and goes away like a node that died.
    async fn leave(storage: &MemoryStorage, key: &Key, owner: Owner, data: &'static [u8]) {
        let mut append = storage.open(key, Open::Continue).await.unwrap();
        append.claim(Some(owner));
        append.append(&[Bytes::from_static(data)]).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_grace_leaves_another_life_alone() {
        let storage = MemoryStorage::new(1 << 20);
        let (key, [old, new]) = (Key::new("a").unwrap(), [1, 2].map(|of| Owner::from_bytes([of; 32])));
        leave(&storage, &key, old, b"old").await;
        let streams = Streams::new(storage.clone());
        let mut follower = streams.follow("a").await.unwrap();
        assert_eq!(follower.next_chunk().await.unwrap().unwrap().bytes, "old");
        // Another node deletes the resource and begins another life of it, which is lost too.
        storage.delete(&key).await.unwrap();
        leave(&storage, &key, new, b"new").await;
        assert_eq!(follower.next_chunk().await.unwrap_err().kind(), ErrorKind::NotFound);
        let stat = storage.stat(&key).await.unwrap().unwrap();
        assert_eq!((stat.state, stat.owner), (State::Lost, Some(new)));
    }

    /// Opens the resource as soon as its last appender's end is done.
    async fn open_when_free(streams: &Streams) -> crate::streams::Appender {
        loop {
            match streams.open_append("a").await {
                Err(error) if error.kind() == ErrorKind::Busy => tokio::task::yield_now().await,
                opened => return opened.unwrap(),
            }
        }
    }

    #[tokio::test]
    async fn an_interruption_without_new_bytes_is_no_event() {
        let streams = Streams::new(MemoryStorage::new(1 << 20));
        let mut events = streams.events();
        drop(open_when_free(&streams).await);
        for data in ["one", "two"] {
            let mut appender = open_when_free(&streams).await;
            appender.append(data).await.unwrap();
            drop(appender);
            drop(open_when_free(&streams).await);
        }
        open_when_free(&streams).await.finish().await.unwrap();
        let mut seen = Vec::new();
        while seen.last() != Some(&"finished".to_owned()) {
            seen.push(match events.next().await {
                Some(Event::Created { .. }) => "created".to_owned(),
                Some(Event::Interrupted { stat, .. }) => format!("interrupted at {}", stat.len),
                Some(Event::Finished { .. }) => "finished".to_owned(),
                other => panic!("{other:?}"),
            });
        }
        assert_eq!(seen, ["created", "interrupted at 3", "interrupted at 6", "finished"]);
    }

    #[tokio::test]
    async fn an_appender_that_never_waits_does_not_starve_other_tasks() {
        let streams = Streams::builder(MemoryStorage::new(1 << 24)).durability(Durability::Process).build();
        let mut appender = streams.open_append("a").await.unwrap();
        let turns = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = Arc::clone(&turns);
        tokio::spawn(async move {
            loop {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        for _ in 0..1000 {
            appender.append("x").await.unwrap();
        }
        assert!(turns.load(Ordering::Relaxed) > 5);
        // With followers it yields after each large append.
        let _follower = streams.follow("a").await.unwrap();
        let before = turns.load(Ordering::Relaxed);
        for _ in 0..100 {
            appender.append(vec![b'x'; 64 * 1024]).await.unwrap();
        }
        assert!(turns.load(Ordering::Relaxed) - before >= 99);
    }
}
