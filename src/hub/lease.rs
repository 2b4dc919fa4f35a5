//! The one appender of a resource, as everything above the hub uses it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::resource::Place;
use super::{Hub, Phase, Resource};
use crate::error::{Error, ErrorKind, Result};
use crate::hub::{Durability, Event};
use crate::state::{End, Stat, State};
use crate::storage::Open;
use crate::storage::erased::{DynAppend, timed_out};
use futures_core::future::BoxFuture;

/// How long what is kept for followers who are behind may stay when nothing comes any more.
const COOL: Duration = Duration::from_secs(1);

/// After as many bytes whoever appends gives way to followers.
const TURN: u64 = 64 * 1024;

/// The right to append to a resource. Dropping it means that the appender was lost.
pub(crate) struct Lease {
    hub: Arc<Hub>,
    resource: Arc<Resource>,
    holder: u64,
    over: CancellationToken,
    /// Gone once the lease has ended.
    append: Option<Box<dyn DynAppend>>,
    /// An append failed or was cut short: the storage has to be asked anew how long the resource is.
    spoiled: bool,
    /// How much was appended for followers since others had their turn.
    since_turn: u64,
    /// Whoever appends waits for acknowledgements, and so asks for syncs by itself.
    acknowledged: bool,
    /// A sync is due and will come.
    sync_due: Arc<AtomicBool>,
    /// Somebody looks after the tail.
    cooling: Arc<AtomicBool>,
    /// Where the end is done, whoever drops this and wherever.
    runtime: Handle,
    _counted: TaskTrackerToken,
}

impl Lease {
    pub(super) fn new(
        hub: Arc<Hub>,
        resource: Arc<Resource>,
        append: Box<dyn DynAppend>,
        holder: u64,
        over: CancellationToken,
    ) -> Self {
        let counted = hub.leases.token();
        Self {
            hub,
            resource,
            holder,
            over,
            append: Some(append),
            spoiled: false,
            since_turn: 0,
            acknowledged: false,
            sync_due: Arc::default(),
            cooling: Arc::default(),
            runtime: Handle::current(),
            _counted: counted,
        }
    }

    pub(crate) fn resource(&self) -> &Arc<Resource> {
        &self.resource
    }

    /// From now on nothing is synced but what [`sync`](Self::sync) is asked for.
    pub(crate) fn sync_on_request(&mut self) {
        self.acknowledged = true;
    }

    /// Whether an append counts only once it is synced.
    pub(crate) fn syncs_each_append(&self) -> bool {
        self.hub.config.durability == Durability::Acked
    }

    /// Cancelled when somebody else has taken over, or the resource was ended from outside.
    pub(crate) fn revoked(&self) -> &CancellationToken {
        &self.over
    }

    /// Why it is [`over`](Self::over).
    pub(crate) fn revocation(&self) -> ErrorKind {
        self.resource.revocation(self.holder)
    }

    /// Gives way to followers where they would find in the tail no longer what they want next. Cancel safe.
    ///
    /// Apart from [`append`](Self::append): whoever polls other things beside that would take the turn for over at once.
    pub(crate) async fn give_way(&mut self) {
        if self.since_turn >= TURN {
            self.since_turn = 0;
            tokio::task::yield_now().await;
        }
    }

    /// Appends, then tells the followers. Returns the committed length.
    ///
    /// Not cancel safe: the appender is poisoned.
    pub(crate) async fn append(&mut self, data: &[Bytes]) -> Result<u64> {
        if self.hub.aborting.is_cancelled() {
            return Err(ErrorKind::ShuttingDown.into());
        }
        if self.over.is_cancelled() {
            return Err(self.revocation().into());
        }
        let append = self.append.as_mut().filter(|_| !self.spoiled).ok_or(ErrorKind::Poisoned)?;
        let before = self.resource.len();
        self.spoiled = true;
        // One who never waits would keep groups of followers from their turn.
        tokio::task::consume_budget().await;
        let appended = append.append(data).await;
        self.spoiled =
            appended.as_ref().is_err_and(|error| !matches!(error.kind(), ErrorKind::Full | ErrorKind::Fenced));
        let len = appended?;
        if len == before {
            return Ok(len);
        }
        if self.resource.is_followed() {
            self.since_turn += len - before;
        }
        if self.resource.grow(self.holder, data, len)? {
            self.cool_soon();
        }
        if before == 0 {
            self.hub.emit(Event::Created { key: self.resource.key.clone(), life: self.resource.life });
        }
        self.sync_soon();
        Ok(len)
    }

    /// Makes what is committed durable, as far as the policy asks for it before it is acknowledged, and returns that
    /// length. A failure ends the resource.
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

    /// Sees to it that what is committed now is synced within the configured time.
    fn sync_soon(&self) {
        let within = match self.hub.config.durability {
            Durability::Interval(within) => within,
            Durability::Acked => Duration::ZERO,
            Durability::Process => return,
        };
        if self.acknowledged || self.sync_due.swap(true, Ordering::AcqRel) {
            return;
        }
        let sync = self.sync();
        let due = Arc::clone(&self.sync_due);
        let ended = self.resource.ended.clone();
        let at = self.hub.together(within);
        self.runtime.spawn(async move {
            tokio::select! {
                biased;
                // The end syncs by itself.
                () = ended.cancelled() => return,
                () = tokio::time::sleep_until(at) => {}
            }
            // What is appended from here on may miss this sync, and asks for one of its own.
            due.store(false, Ordering::Release);
            let _ = sync.await;
        });
    }

    /// Sees to it that the tail is no larger than it has to be, once less is appended.
    fn cool_soon(&self) {
        if self.cooling.swap(true, Ordering::AcqRel) {
            return;
        }
        let (hub, resource) = (Arc::clone(&self.hub), Arc::clone(&self.resource));
        let cooling = Arc::clone(&self.cooling);
        self.runtime.spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    () = resource.ended.cancelled() => return,
                    () = tokio::time::sleep_until(hub.together(COOL)) => {}
                }
                let mut held = resource.held();
                if held.tail.cool() {
                    // Under the lock: whoever makes it large again comes after this.
                    cooling.store(false, Ordering::Release);
                    return;
                }
            }
        });
    }

    /// Ends the resource. Goes on to its end even if the future is dropped.
    pub(crate) async fn finish(mut self, end: End) -> Result<Stat> {
        let append = self.append.take_if(|_| !self.spoiled).ok_or(ErrorKind::Poisoned)?;
        let (hub, resource, holder) = (Arc::clone(&self.hub), Arc::clone(&self.resource), self.holder);
        let ending = async move {
            loop {
                let settled = {
                    let mut held = resource.held();
                    match &held.place {
                        _ if held.holder != holder => return Err(ErrorKind::Fenced.into()),
                        // Whoever comes back waits for this end, unless it was first.
                        Place::Passing { settled, .. } => settled.clone(),
                        _ => {
                            held.place = Place::Ending;
                            break;
                        }
                    }
                };
                settled.cancelled().await;
            }
            end_it(hub, resource, append, end).await
        };
        let ending = self.hub.tasks.spawn(ending);
        // If that takes too long it goes on to its end all the same, and whoever comes back is told of it.
        let ended = timeout(self.hub.config.storage_timeout, ending).await.map_err(|_| timed_out())?;
        ended.unwrap_or_else(|panicked| {
            // Nobody knows how it ended, but it has.
            self.hub.end(&self.resource, self.resource.len(), Phase::Cut(ErrorKind::Storage));
            Err(Error::storage(panicked))
        })
    }

    /// Leaves the resource open for whoever goes on: everything is synced, and its followers wait.
    ///
    /// Dropping the future means that the appender was lost.
    pub(crate) async fn park(mut self) -> Result<Stat> {
        self.sync().await?;
        let mut held = self.resource.held();
        if held.holder != self.holder || self.over.is_cancelled() {
            drop(held);
            return Err(self.revocation().into());
        }
        let append = self.append.take_if(|_| !self.spoiled).ok_or(ErrorKind::Poisoned)?;
        match &mut held.place {
            Place::Passing { left, .. } => *left = Some(Some(append)),
            Place::Taken => {
                self.hub.keep(&self.resource, &mut held, Some(append), Phase::Parked, &self.runtime);
            }
            Place::Lost(_) | Place::Ending => {}
        }
        drop(held);
        Ok(self.resource.stat())
    }

    /// The server stops. The followers are told so; an appender that can come back finds its place kept.
    pub(crate) async fn stop(mut self) {
        let Some(append) = self.append.take() else { return };
        let stopping = {
            let mut held = self.resource.held();
            if held.holder != self.holder {
                return;
            }
            held.place = Place::Ending;
            stop_it(Arc::clone(&self.hub), Arc::clone(&self.resource), Some(append))
        };
        let _ = self.hub.tasks.spawn(stopping).await;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(append) = self.append.take() else { return };
        let mut held = self.resource.held();
        if held.holder != self.holder || self.over.is_cancelled() {
            return;
        }
        let append = if self.spoiled { None } else { Some(append) };
        match &mut held.place {
            Place::Passing { left, .. } => *left = Some(append),
            Place::Taken if self.resource.owner.is_none() => {
                held.place = Place::Ending;
                let (hub, resource) = (Arc::clone(&self.hub), Arc::clone(&self.resource));
                self.hub.tasks.spawn_on(end_lost(hub, resource, append), &self.runtime);
            }
            Place::Taken if self.hub.shutting_down.is_cancelled() => {
                held.place = Place::Ending;
                let (hub, resource) = (Arc::clone(&self.hub), Arc::clone(&self.resource));
                self.hub.tasks.spawn_on(stop_it(hub, resource, append), &self.runtime);
            }
            Place::Taken => {
                if let Some(append) = append.as_ref().filter(|_| self.hub.config.durability != Durability::Process) {
                    // Nobody waits for an acknowledgement any more, but nothing has to stay unsynced for that.
                    let (sync, hub, resource) = (append.sync(), Arc::clone(&self.hub), Arc::clone(&self.resource));
                    self.runtime.spawn(async move {
                        if let Err(error) = sync.await {
                            hub.sync_failed(&resource, &error);
                        }
                    });
                }
                self.hub.keep(&self.resource, &mut held, append, Phase::Lost, &self.runtime);
            }
            Place::Lost(_) | Place::Ending => {}
        }
    }
}

/// Ends what nobody came back for.
pub(super) async fn end_lost(hub: Arc<Hub>, resource: Arc<Resource>, append: Option<Box<dyn DynAppend>>) {
    let append = match append {
        Some(append) => Ok(append),
        None => hub.settled(&resource, hub.storage.open(&resource.key, Open::Takeover)).await,
    };
    match append {
        Ok(append) if append.opened().life == resource.life => {
            let _ = end_it(hub, resource, append, End::Interrupted).await;
        }
        Ok(_) => hub.end(&resource, resource.len(), Phase::Cut(ErrorKind::NotFound)),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::error!(key = %resource.key, error, "what an appender left could not be ended");
            hub.end(&resource, resource.len(), Phase::Cut(ErrorKind::Storage));
        }
    }
}

/// Leaves a resource for the next start of the server: synced, and lost if its appender can come back.
pub(super) async fn stop_it(hub: Arc<Hub>, resource: Arc<Resource>, append: Option<Box<dyn DynAppend>>) {
    hub.end(&resource, resource.len(), Phase::Cut(ErrorKind::ShuttingDown));
    let Some(append) = append else { return };
    if resource.owner.is_none() {
        let _ = end_it(hub, resource, append, End::Interrupted).await;
        return;
    }
    if let Err(error) = append.sync().await
        && error.kind() != ErrorKind::Fenced
    {
        let error = &error as &dyn std::error::Error;
        tracing::error!(key = %resource.key, error, "syncing a resource for the shutdown failed");
    }
}

/// Ends the storage's appender, then the live resource. In this order: whoever finds it no longer live finds the
/// storage at rest.
async fn end_it(hub: Arc<Hub>, resource: Arc<Resource>, append: Box<dyn DynAppend>, end: End) -> Result<Stat> {
    let ended = hub.settled(&resource, append.finish(end)).await;
    match &ended {
        Ok(stat) => {
            // An appender that was lost without a byte leaves the resource as it was, and its followers are told that.
            hub.end(&resource, stat.len, Phase::Ended(stat.state));
            let untouched = end == End::Interrupted && resource.opened_at == Some(stat.len);
            let (key, stat) = (resource.key.clone(), stat.clone());
            match end {
                End::Interrupted if untouched => {}
                End::Interrupted => hub.emit(Event::Interrupted { key, stat }),
                End::Finished | End::Sealed => hub.emit(Event::Finished { key, stat }),
            }
        }
        Err(error) => {
            if !matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Poisoned) {
                let error = error as &dyn std::error::Error;
                tracing::error!(key = %resource.key, error, "ending a resource failed");
            }
            hub.end(&resource, resource.len(), Phase::Cut(ErrorKind::Storage));
            if error.kind() != ErrorKind::Fenced {
                let stat = Stat::new(resource.life, resource.len(), State::Interrupted);
                hub.emit(Event::Interrupted { key: resource.key.clone(), stat });
            }
        }
    }
    ended
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::{AttachRequest, Attached};
    use crate::identity::Owner;
    use crate::key::Key;
    use crate::storage::{Append, MemoryStorage, Storage};
    use crate::streams::Streams;

    #[tokio::test]
    async fn what_was_deleted_is_not_parked() {
        // A sync would tell it.
        let streams = Streams::builder(MemoryStorage::new(1 << 20)).durability(Durability::Process).build();
        let attach = AttachRequest { owner: Some(Owner::ANYONE), ..AttachRequest::new(Open::Continue) };
        let attached = streams.hub.attach(&Key::new("a").unwrap(), attach).await.unwrap();
        let Attached::Open { mut lease, .. } = attached else { panic!("it is finished") };
        lease.append(&[Bytes::from_static(b"x")]).await.unwrap();
        streams.delete("a").await.unwrap();
        assert_eq!(lease.park().await.unwrap_err().kind(), ErrorKind::Fenced);
    }

    /// Claims it, appends, and goes: as a node that died.
    async fn leave(storage: &MemoryStorage, key: &Key, owner: Owner, data: &'static [u8]) {
        let mut append = storage.open(key, Open::Continue).await.unwrap();
        append.claim(Some(owner));
        append.append(&[Bytes::from_static(data)]).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_grace_ends_no_other_life() {
        let storage = MemoryStorage::new(1 << 20);
        let (key, [old, new]) = (Key::new("a").unwrap(), [1, 2].map(|of| Owner::from_bytes([of; 32])));
        leave(&storage, &key, old, b"old").await;
        let streams = Streams::new(storage.clone());
        let mut follower = streams.follow("a").await.unwrap();
        assert_eq!(follower.next_chunk().await.unwrap().unwrap(), "old");
        // Another node deletes it, and what it begins anew is lost too.
        storage.delete(&key).await.unwrap();
        leave(&storage, &key, new, b"new").await;
        assert_eq!(follower.next_chunk().await.unwrap_err().kind(), ErrorKind::NotFound);
        let stat = storage.stat(&key).await.unwrap().unwrap();
        assert_eq!((stat.state, stat.owner), (State::Lost, Some(new)));
    }

    /// As soon as whoever was there before is gone.
    async fn opened(streams: &Streams) -> crate::streams::Appender {
        loop {
            match streams.append("a").await {
                Err(error) if error.kind() == ErrorKind::Busy => tokio::task::yield_now().await,
                opened => return opened.unwrap(),
            }
        }
    }

    #[tokio::test]
    async fn an_interruption_is_an_event_only_where_something_was_added() {
        let streams = Streams::new(MemoryStorage::new(1 << 20));
        let mut events = streams.events();
        drop(opened(&streams).await);
        for data in ["one", "two"] {
            let mut appender = opened(&streams).await;
            appender.append(data).await.unwrap();
            drop(appender);
            drop(opened(&streams).await);
        }
        opened(&streams).await.finish().await.unwrap();
        let mut told = Vec::new();
        while told.last() != Some(&"finished".to_owned()) {
            told.push(match events.next().await {
                Some(Event::Created { .. }) => "created".to_owned(),
                Some(Event::Interrupted { stat, .. }) => format!("interrupted at {}", stat.len),
                Some(Event::Finished { .. }) => "finished".to_owned(),
                other => panic!("{other:?}"),
            });
        }
        assert_eq!(told, ["created", "interrupted at 3", "interrupted at 6", "finished"]);
    }

    #[tokio::test]
    async fn one_who_never_waits_leaves_others_their_turn() {
        let streams = Streams::builder(MemoryStorage::new(1 << 24)).durability(Durability::Process).build();
        let mut appender = streams.append("a").await.unwrap();
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
        // Of large ones each, so that followers find in the tail what they want.
        let _follower = streams.follow("a").await.unwrap();
        let before = turns.load(Ordering::Relaxed);
        for _ in 0..100 {
            appender.append(vec![b'x'; 64 * 1024]).await.unwrap();
        }
        assert!(turns.load(Ordering::Relaxed) - before >= 99);
    }
}
