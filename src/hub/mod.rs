//! The live resources of this process: who appends, how far each has come, and who waits for more.
//!
//! A resource is bytes in the storage plus one number, the committed length. The appender makes bytes committed and
//! then moves the number; a follower is a [`Cursor`] that reads up to the number and awaits its next change, or is written
//! what comes while it waits in the [idle_groups]. Nothing is queued per follower.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{OnceCell, broadcast, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::budget::{Budget, Reservation};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::Owner;
use crate::key::Key;
use crate::state::{Life, Stat, State};
use crate::storage::erased::{DynAppend, DynStorage, unresponsive};
use crate::storage::{Open, stream};
use futures_core::future::BoxFuture;

mod config;
mod cursor;
mod events;
mod idle;
mod lease;
mod limits;
mod progress;
mod resource;
#[cfg(test)]
mod sim;

pub(crate) use self::config::Config;
pub use self::config::Durability;
pub(crate) use self::cursor::{Cursor, Step};
pub use self::events::Event;
pub(crate) use self::idle::{GroupWrite, IdleMember, Membership};
pub(crate) use self::lease::Lease;
use self::lease::{end_lost, stop_it};
#[cfg(test)]
pub(crate) use self::limits::READ_AHEAD;
use self::limits::{FollowerCounts, one_append};
pub(crate) use self::limits::{FollowerPermit, Limits};
pub(crate) use self::progress::{Phase, Progress};
pub(crate) use self::resource::Resource;
use self::resource::{Held, Place};

/// How much a lagging member for events can be behind before it is told that it missed some.
const EVENTS: usize = 1024;

pub(crate) struct Hub {
    pub(crate) storage: Box<dyn DynStorage>,
    config: Config,
    live: Mutex<HashMap<Key, Entry>>,
    /// What syncs are timed by.
    begun: Instant,
    followers: Arc<FollowerCounts>,
    /// For each resource that is not at rest.
    appends: Arc<Budget>,
    /// Bytes of messages that have arrived in part.
    pub(crate) message_budget: Arc<Budget>,
    /// Memory for what appenders sent while the storage was busy.
    pub(crate) read_ahead_budget: Arc<Budget>,
    /// Set once what an earlier process left lost has its grace.
    adopted: OnceCell<()>,
    events: broadcast::Sender<Event>,
    /// No new work.
    pub(crate) shutting_down: CancellationToken,
    /// No work at all.
    pub(crate) aborting: CancellationToken,
    /// All connections and whatever must not be cut short.
    pub(crate) tasks: TaskTracker,
    /// One token for each lease.
    pub(crate) leases: TaskTracker,
}

enum Entry {
    /// The storage is being asked. `since` is when that began; `None`: it unresponsive.
    Opening {
        /// Cancelled when it has answered.
        settled: CancellationToken,
        since: Option<Instant>,
    },
    /// Live or lost.
    Open(Arc<Resource>),
}

/// What a follower finds.
pub(crate) enum Found {
    /// More may come.
    Open(Cursor),
    /// Nobody appends, and nobody is waited for.
    Closed(Cursor, Stat),
}

impl Found {
    /// Counts its follower as long as there is one.
    fn with_permit(self, permit: FollowerPermit) -> Self {
        match self {
            Self::Open(cursor) => Self::Open(cursor.with_permit(permit)),
            Self::Closed(cursor, stat) => Self::Closed(cursor.with_permit(permit), stat),
        }
    }
}

/// How an appender wants a resource.
#[derive(Debug, Clone)]
pub(crate) struct AttachRequest {
    pub(crate) how: Open,
    /// Who it is, if it may come back.
    pub(crate) owner: Option<Owner>,
    /// Where the end has to be.
    pub(crate) offset: Option<u64>,
    /// The life that it has to be, unless the appender is known.
    pub(crate) life: Option<Life>,
    /// Its finish at this length may have been done already.
    pub(crate) finish: Option<u64>,
}

impl AttachRequest {
    pub(crate) fn new(how: Open) -> Self {
        Self { how, owner: None, offset: None, life: None, finish: None }
    }

    /// Whether it may have what is kept for this owner.
    fn may_have(&self, kept_for: Option<Owner>) -> bool {
        kept_for.is_some_and(|owner| owner == self.owner.unwrap_or(Owner::ANYONE))
    }

    /// Whether it doesn't want a resource of this length.
    fn is_elsewhere(&self, len: u64) -> bool {
        self.offset.is_some_and(|offset| offset != len)
    }
}

/// What became of an [`AttachRequest`].
pub(crate) enum Attached {
    /// `resumed`: the resource's last byte came from this very appender.
    Open { lease: Lease, resumed: bool },
    /// The finish had been done: this is how the resource stands.
    Finished(Stat),
}

/// One try to attach.
enum Try {
    Done(Attached),
    /// Once this is cancelled.
    Again(CancellationToken),
    /// The resource is lost or held by the same appender, which may pass.
    Pass(Arc<Resource>, CancellationToken),
    /// Nobody has it here, and there is room for one more.
    Open(Opening),
}

impl Hub {
    pub(crate) fn new(storage: Box<dyn DynStorage>, config: Config) -> Self {
        Self {
            storage,
            live: Mutex::default(),
            begun: Instant::now(),
            followers: FollowerCounts::new(config.limits),
            appends: Budget::new(config.limits.appends),
            message_budget: Budget::new(config.limits.incomplete),
            read_ahead_budget: Budget::new(limits::READ_AHEAD),
            config,
            adopted: OnceCell::new(),
            events: broadcast::channel(EVENTS).0,
            shutting_down: CancellationToken::new(),
            aborting: CancellationToken::new(),
            tasks: TaskTracker::new(),
            leases: TaskTracker::new(),
        }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// When to do what has to be done within this time, so that many do it at once.
    fn together(&self, within: Duration) -> Instant {
        together(self.begun, within)
    }

    fn emit(&self, event: Event) {
        // Nobody listening is fine.
        let _ = self.events.send(event);
    }

    fn live(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        // No code that panics runs under this lock. It may be held while a resource's own is taken, never after.
        self.live.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Gives what an earlier process left lost its grace. Done once, before anything else.
    pub(crate) async fn recover(self: &Arc<Self>) -> Result<()> {
        let adopting = async || {
            let mut lost = self.storage.lost();
            let next = async |lost: &mut _| {
                timeout(self.config.storage_timeout, stream::next(lost)).await.map_err(|_| unresponsive())
            };
            while let Some(found) = next(&mut lost).await? {
                match found {
                    Ok((key, stat)) => self.adopt(key, &stat),
                    // Whoever asks for it is told; the others must not wait for that.
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::error!(error, "a resource that was left lost can't be looked at");
                    }
                }
            }
            Ok(())
        };
        self.adopted.get_or_try_init(adopting).await.copied()
    }

    /// Gives a lost resource its grace, counted from now.
    fn adopt(self: &Arc<Self>, key: Key, stat: &Stat) {
        let mut live = self.live();
        if !live.contains_key(&key) {
            self.keep_lost(&mut live, key, stat);
        }
    }

    /// As [`adopt`](Self::adopt), whatever stood at the key.
    fn keep_lost(self: &Arc<Self>, live: &mut HashMap<Key, Entry>, key: Key, stat: &Stat) {
        let place = Place::Lost(None);
        // It is there, whether there is room for it or not.
        let counted = one_append(&self.appends).ok();
        let resource = Arc::new(Resource::new(key.clone(), stat, stat.owner, place, self.config.tail_cache, counted));
        self.start_grace(&resource, &resource.held(), &Handle::current());
        live.insert(key, Entry::Open(resource));
    }

    /// Opens a resource for appending.
    ///
    /// Cancel safe: what the storage opens for nobody is released.
    pub(crate) async fn attach(self: &Arc<Self>, key: &Key, attach: AttachRequest) -> Result<Attached> {
        self.recover().await?;
        loop {
            if self.shutting_down.is_cancelled() {
                return Err(ErrorKind::ShuttingDown.into());
            }
            let tried = self.try_attach(key, &attach).await?;
            let (hub, wanted) = (Arc::clone(self), attach.clone());
            // A task of its own, so that neither a caller that goes away nor a panic leaves the key taken.
            let opened = match tried {
                Try::Done(attached) => return Ok(attached),
                Try::Again(settled) => {
                    self.until(&settled).await?;
                    continue;
                }
                Try::Pass(resource, settled) => {
                    let passing = Passing { resource, settled, hub, runtime: Handle::current() };
                    self.tasks.spawn(async move { passing.run(wanted).await })
                }
                Try::Open(opening) => self.tasks.spawn(async move {
                    let mut owner = wanted.owner;
                    match hub.storage.stat(&opening.key).await? {
                        // By another node, or by one whose sync failed; nobody knows yet whom it is kept for.
                        Some(stat) if stat.state == State::Live => return Err(ErrorKind::Busy.into()),
                        // The storage failed while the hub gave it up, or another node left it: it is kept all the same.
                        Some(stat)
                            if stat.state == State::Lost
                                && stat.owner != wanted.owner
                                && !wanted.may_have(stat.owner) =>
                        {
                            opening.adopt(&stat);
                            return Err(ErrorKind::Busy.into());
                        }
                        // What is kept for anyone stays so.
                        Some(stat) if stat.state == State::Lost => owner = owner.or(stat.owner),
                        _ => {}
                    }
                    let append = hub.storage.open(&opening.key, wanted.how).await?;
                    if check(&wanted, append.opened())? {
                        match hub.sync_before_told(append.as_ref()).await {
                            // Deleted or taken over meanwhile; look again.
                            Err(error) if error.kind() == ErrorKind::Fenced => return Ok(None),
                            synced => synced?,
                        };
                    }
                    Ok(Some(opening.opened(append, owner)))
                }),
            };
            // If that takes too long it goes on to its end, for nobody.
            let opened = timeout(self.config.storage_timeout, opened).await.map_err(|_| unresponsive())?;
            if let Some(attached) = opened.map_err(Error::storage)?? {
                return Ok(attached);
            }
        }
    }

    async fn try_attach(self: &Arc<Self>, key: &Key, attach: &AttachRequest) -> Result<Try> {
        {
            let mut live = self.live();
            match live.get(key) {
                Some(Entry::Opening { since, .. }) if self.is_overdue(*since) => return Err(unresponsive()),
                // Whoever may come back waits for what its own older connection has begun.
                Some(Entry::Opening { settled, .. }) if attach.owner.is_some() => {
                    return Ok(Try::Again(settled.clone()));
                }
                Some(Entry::Opening { .. }) => return Err(ErrorKind::Busy.into()),
                Some(Entry::Open(resource)) => {
                    if !attach.may_have(resource.owner) {
                        return Err(ErrorKind::Busy.into());
                    }
                    let anyone = resource.owner == Some(Owner::ANYONE);
                    let mut held = resource.held();
                    let settled = CancellationToken::new();
                    let left = match &mut held.place {
                        Place::Passing { settled, .. } => return Ok(Try::Again(settled.clone())),
                        Place::Ending => return Ok(Try::Again(resource.ended.clone())),
                        // Nobody can tell whether it is the same one.
                        Place::Taken if anyone => return Err(ErrorKind::Busy.into()),
                        Place::Taken => None,
                        // What is wrong by now leaves it as it is.
                        Place::Lost(_) if anyone && attach.how == Open::Create => {
                            return Err(ErrorKind::Exists.into());
                        }
                        Place::Lost(_) if attach.is_elsewhere(resource.len()) => {
                            return Err(ErrorKind::Offset.into());
                        }
                        Place::Lost(_) if anyone && attach.life.is_some_and(|life| life != resource.life) => {
                            return Err(ErrorKind::Life.into());
                        }
                        Place::Lost(left) => Some(left.take()),
                    };
                    held.place = Place::Passing { settled: settled.clone(), left };
                    return Ok(Try::Pass(Arc::clone(resource), settled));
                }
                None if attach.finish.is_none() => {
                    let counted = one_append(&self.appends)?;
                    return Ok(Try::Open(self.opening(&mut live, key, Some(counted))));
                }
                None => {}
            }
        }
        // It may be finished already, by the same appender before its connection broke.
        if let Some(stat) = self.storage.stat(key).await?
            && matches!(stat.state, State::Finished | State::Sealed)
            && (Some(stat.life), Some(stat.len)) == (attach.life, attach.finish)
            // Somebody else may have ended it at the same length.
            && stat.owner.is_some()
            && stat.owner == attach.owner
        {
            return Ok(Try::Done(Attached::Finished(stat)));
        }
        let mut live = self.live();
        if live.contains_key(key) {
            let at_once = CancellationToken::new();
            at_once.cancel();
            return Ok(Try::Again(at_once));
        }
        let counted = one_append(&self.appends)?;
        Ok(Try::Open(self.opening(&mut live, key, Some(counted))))
    }

    /// Makes durable what an earlier connection of an appender had stored: being told its length is an acknowledgement.
    fn sync_before_told(&self, append: &dyn DynAppend) -> BoxFuture<'static, Result<u64>> {
        match self.config.durability {
            Durability::Process => Box::pin(std::future::ready(Ok(append.opened().len))),
            _ => append.sync(),
        }
    }

    /// Takes a key that nobody has.
    fn opening(self: &Arc<Self>, live: &mut HashMap<Key, Entry>, key: &Key, counted: Option<Reservation>) -> Opening {
        let settled = CancellationToken::new();
        live.insert(key.clone(), Entry::Opening { settled: settled.clone(), since: Some(Instant::now()) });
        Opening { hub: Arc::clone(self), key: key.clone(), settled, counted }
    }

    /// Keeps a resource for its appender, which was lost or has parked it.
    fn keep(
        self: &Arc<Self>,
        resource: &Arc<Resource>,
        held: &mut Held,
        left: Option<Box<dyn DynAppend>>,
        phase: Phase,
        runtime: &Handle,
    ) {
        held.place = Place::Lost(left);
        resource.turn(|progress| {
            // Whoever ends it at this moment has told so already.
            if progress.phase == Phase::Live {
                progress.phase = phase;
            }
        });
        self.start_grace(resource, held, runtime);
    }

    /// Ends a lost resource when its grace is over, unless its appender is back by then. A shutdown leaves it to the next
    /// start.
    fn start_grace(self: &Arc<Self>, resource: &Arc<Resource>, held: &Held, runtime: &Handle) {
        let (holder, over) = (held.holder, held.over.clone());
        let (hub, resource) = (Arc::clone(self), Arc::clone(resource));
        let limit = match resource.phase() {
            Phase::Parked => self.config.parking_timeout,
            _ => self.config.grace,
        };
        let waiting = async move {
            let stopping = tokio::select! {
                biased;
                // It is back, or has ended.
                () = over.cancelled() => return,
                () = hub.shutting_down.cancelled() => true,
                () = tokio::time::sleep(limit) => false,
            };
            let left = {
                let mut held = resource.held();
                let here = held.holder == holder;
                match &mut held.place {
                    Place::Lost(left) if here => {
                        let left = left.take();
                        held.place = Place::Ending;
                        left
                    }
                    _ => return,
                }
            };
            if stopping {
                stop_it(hub, resource, left).await;
            } else {
                end_lost(hub, resource, left).await;
            }
        };
        self.tasks.spawn_on(waiting, runtime);
    }

    /// Finds a resource for following.
    ///
    /// Cancel safe.
    pub(crate) async fn follow(self: &Arc<Self>, key: &Key) -> Result<Option<Found>> {
        let permit = self.followers.permit(key)?;
        Ok(self.look_up(key).await?.map(|found| found.with_permit(permit)))
    }

    async fn look_up(self: &Arc<Self>, key: &Key) -> Result<Option<Found>> {
        self.recover().await?;
        loop {
            let opening = match self.live().get(key) {
                Some(Entry::Open(resource)) => return Ok(Some(Found::Open(Cursor::live(self, resource)))),
                Some(Entry::Opening { since, .. }) if self.is_overdue(*since) => return Err(unresponsive()),
                Some(Entry::Opening { settled, .. }) => Some(settled.clone()),
                None => None,
            };
            if let Some(settled) = opening {
                self.until(&settled).await?;
                continue;
            }
            let Some(stat) = self.storage.stat(key).await? else { return Ok(None) };
            match stat.state {
                // More may come, but not here; it isn't at rest.
                state if state.is_open() && self.shutting_down.is_cancelled() => {
                    return Err(ErrorKind::ShuttingDown.into());
                }
                // It was live here a moment ago, or is live on another node.
                State::Live => {
                    if !self.live().contains_key(key) {
                        return Ok(Some(Found::Open(self.follow_elsewhere(key, &stat))));
                    }
                }
                // Another node left it.
                State::Lost | State::Parked => self.adopt(key.clone(), &stat),
                _ => return Ok(Some(Found::Closed(Cursor::closed(self, key, &stat), stat))),
            }
        }
    }

    /// Waits for an absent resource, up to a time, and finds it as [`follow`](Self::follow) does.
    ///
    /// Cancel safe.
    pub(crate) async fn follow_when_created(self: &Arc<Self>, key: &Key, limit: Duration) -> Result<Option<Found>> {
        // Whoever waits costs as much as whoever follows.
        let permit = self.followers.permit(key)?;
        let mut events = self.subscribe();
        let waiting = async {
            loop {
                if let Some(found) = self.look_up(key).await? {
                    return Ok(Some(found));
                }
                loop {
                    match events.recv().await {
                        Ok(Event::Created { key: other, .. } | Event::Finished { key: other, .. }) if other == *key => {
                            break;
                        }
                        Ok(_) => {}
                        // Some were missed.
                        Err(_) => break,
                    }
                }
            }
        };
        let found: Result<Option<Found>> = tokio::select! {
            biased;
            found = waiting => found,
            () = self.shutting_down.cancelled() => Err(ErrorKind::ShuttingDown.into()),
            () = tokio::time::sleep(limit) => Ok(None),
        };
        Ok(found?.map(|found| found.with_permit(permit)))
    }

    /// What is known of a resource.
    pub(crate) async fn stat(self: &Arc<Self>, key: &Key) -> Result<Option<Stat>> {
        self.recover().await?;
        let open = match self.live().get(key) {
            Some(Entry::Open(resource)) => Some(resource.stat()),
            _ => None,
        };
        match open {
            Some(stat) => Ok(Some(stat)),
            None => self.storage.stat(key).await,
        }
    }

    /// Deletes a resource; its appender is fenced, its followers are told that it is cut.
    pub(crate) async fn delete(self: &Arc<Self>, key: &Key) -> Result<()> {
        self.recover().await?;
        let resource = loop {
            let opening = {
                let mut live = self.live();
                match live.get(key) {
                    Some(Entry::Open(resource)) => break Ok(Arc::clone(resource)),
                    Some(Entry::Opening { since, .. }) if self.is_overdue(*since) => return Err(unresponsive()),
                    Some(Entry::Opening { settled, .. }) => settled.clone(),
                    // Nobody opens it meanwhile: the storage would fence an appender that is live here.
                    None => break Err(self.opening(&mut live, key, None)),
                }
            };
            self.until(&opening).await?;
        };
        let (hub, key) = (Arc::clone(self), key.clone());
        // A task of its own: once the storage has deleted it, the followers are told, whoever still waits for that.
        let deleting = self.tasks.spawn(async move {
            let deleted = hub.storage.delete(&key).await;
            if let Ok(resource) = &resource {
                match &deleted {
                    Ok(()) => hub.end(resource, resource.len(), Phase::Cut(ErrorKind::NotFound)),
                    Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Busy) => {}
                    // Its appender may be fenced already.
                    Err(_) => hub.end(resource, resource.len(), Phase::Cut(ErrorKind::Storage)),
                }
            }
            deleted?;
            hub.emit(Event::Deleted { key });
            Ok(())
        });
        timeout(self.config.storage_timeout, deleting).await.map_err(|_| unresponsive())?.map_err(Error::storage)?
    }

    /// A cursor on a resource that another node appends to, or another hub on the same storage.
    fn follow_elsewhere(self: &Arc<Self>, key: &Key, stat: &Stat) -> Cursor {
        let (send, receive) = watch::channel(Progress { len: stat.len, phase: Phase::Live });
        let mut stats = self.storage.follow(key, stat.life, stat.len);
        let shutting_down = self.shutting_down.clone();
        self.tasks.spawn(async move {
            loop {
                let next = tokio::select! {
                    biased;
                    next = stream::next(&mut stats) => next,
                    () = send.closed() => return,
                    // Its appender is another node's, and goes on: nobody here can wait for its end.
                    () = shutting_down.cancelled() => {
                        send.send_modify(|progress| progress.phase = Phase::Cut(ErrorKind::ShuttingDown));
                        return;
                    }
                };
                let progress = match next {
                    Some(Ok(Stat { len, state: State::Live, .. })) => Progress { len, phase: Phase::Live },
                    Some(Ok(Stat { len, state: State::Lost, .. })) => Progress { len, phase: Phase::Lost },
                    Some(Ok(Stat { len, state: State::Parked, .. })) => Progress { len, phase: Phase::Parked },
                    Some(Ok(Stat { len, state, .. })) => Progress { len, phase: Phase::Ended(state) },
                    failed => {
                        let kind = match failed {
                            // Deleted there.
                            Some(Err(error)) if error.kind() == ErrorKind::NotFound => ErrorKind::NotFound,
                            Some(Err(error)) => {
                                let error = &error as &dyn std::error::Error;
                                tracing::warn!(error, "following another node failed");
                                ErrorKind::Storage
                            }
                            _ => ErrorKind::Storage,
                        };
                        let len = send.borrow().len;
                        Progress { len, phase: Phase::Cut(kind) }
                    }
                };
                if send.send(progress).is_err() || !progress.phase.is_open() {
                    return;
                }
            }
        });
        Cursor::new(Arc::clone(self), key.clone(), stat.life, receive, None)
    }

    /// A sync failed: what the storage holds is no longer what was told.
    fn sync_failed(&self, resource: &Arc<Resource>, error: &Error) {
        if !matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Poisoned) {
            let cause = error as &dyn std::error::Error;
            tracing::error!(key = %resource.key, error = cause, "a sync failed; the appender ends");
            self.end(resource, resource.len(), Phase::Cut(ErrorKind::Storage));
        }
    }

    /// Whether the storage takes too long.
    fn is_overdue(&self, since: Option<Instant>) -> bool {
        since.is_none_or(|since| since.elapsed() >= self.config.storage_timeout)
    }

    /// Waits for what has begun at a key.
    ///
    /// Cancel safe.
    async fn until(&self, settled: &CancellationToken) -> Result<()> {
        timeout(self.config.storage_timeout, settled.cancelled()).await.map_err(|_| unresponsive())
    }

    /// Awaits what the storage does to a resource. If that takes too long the followers are told so, and the key stays
    /// taken until it is done.
    async fn settled<T>(self: &Arc<Self>, resource: &Arc<Resource>, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        if let Ok(done) = timeout(self.config.storage_timeout, work.as_mut()).await {
            return done;
        }
        tracing::error!(key = %resource.key, "the storage does not answer; the resource is out of order until it does");
        let _taken = self.take(resource);
        work.await
    }

    /// Ends a resource that the storage unresponsive on, and takes its key, unless it has ended already.
    fn take(self: &Arc<Self>, resource: &Arc<Resource>) -> Option<Opening> {
        let mut live = self.live();
        if !matches!(live.get(&resource.key), Some(Entry::Open(here)) if Arc::ptr_eq(here, resource)) {
            return None;
        }
        let settled = CancellationToken::new();
        live.insert(resource.key.clone(), Entry::Opening { settled: settled.clone(), since: None });
        drop(live);
        let counted = resource.held().counted.take();
        self.end(resource, resource.len(), Phase::Cut(ErrorKind::Storage));
        Some(Opening { hub: Arc::clone(self), key: resource.key.clone(), settled, counted })
    }

    /// Takes a resource out of the open ones and tells its followers, as one step.
    fn end(&self, resource: &Arc<Resource>, len: u64, phase: Phase) {
        let mut live = self.live();
        if matches!(live.get(&resource.key), Some(Entry::Open(here)) if Arc::ptr_eq(here, resource)) {
            live.remove(&resource.key);
        }
        // Whoever is told the end may begin anew at once.
        resource.held().counted = None;
        // The first end is the true one.
        resource.turn(|progress| *progress = Progress { len, phase });
        resource.ended.cancel();
        // What was lost is left to the storage.
        let mut held = resource.held();
        // Its followers may be here for long.
        held.tail.settle();
        let left = match &mut held.place {
            Place::Lost(left) => left.take(),
            _ => None,
        };
        drop((held, live));
        drop(left);
    }

    fn open_resources(&self) -> Vec<Arc<Resource>> {
        let live = self.live();
        let open = live.values().filter_map(|entry| match entry {
            Entry::Open(resource) => Some(Arc::clone(resource)),
            Entry::Opening { .. } => None,
        });
        // In an order that a simulation can repeat.
        let mut open: Vec<_> = open.collect();
        open.sort_by(|a, b| a.key.cmp(&b.key));
        open
    }

    /// Ends what is still open: the last step of a shutdown.
    pub(crate) fn cut_all(&self) {
        for resource in self.open_resources() {
            self.end(&resource, resource.len(), Phase::Cut(ErrorKind::ShuttingDown));
        }
    }
}

/// Whether the resource is as the appender wants it. Says whether it is known to the resource.
fn check(attach: &AttachRequest, stat: &Stat) -> Result<bool> {
    let known = attach.owner.is_some_and(|owner| owner != Owner::ANYONE && Some(owner) == stat.owner);
    if !known && attach.life.is_some_and(|life| life != stat.life) {
        return Err(ErrorKind::Life.into());
    }
    if attach.is_elsewhere(stat.len) {
        return Err(ErrorKind::Offset.into());
    }
    Ok(known)
}

/// A key whose storage is being asked; free again when dropped before it answered.
struct Opening {
    hub: Arc<Hub>,
    key: Key,
    settled: CancellationToken,
    /// Counts the resource that it is to become, or has been.
    counted: Option<Reservation>,
}

/// When to do what has to be done within this time. There are two such moments in it, the same for all, since many syncs
/// at once cost far less than one after the other.
fn together(begun: Instant, within: Duration) -> Instant {
    const LONG: Duration = Duration::from_secs(366 * 24 * 3600);
    let within = within.min(LONG);
    let last = Instant::now() + within;
    let step = (within / 2).as_nanos().max(1);
    let over = last.duration_since(begun).as_nanos() % step;
    last - Duration::from_nanos(over as u64)
}

impl Opening {
    /// Gives what turned out to be lost its grace.
    fn adopt(mut self, stat: &Stat) {
        self.counted = None;
        if !self.hub.shutting_down.is_cancelled() {
            // In the place of this opening, so that no other one comes in between.
            self.hub.keep_lost(&mut self.hub.live(), self.key.clone(), stat);
        }
    }

    fn opened(mut self, mut append: Box<dyn DynAppend>, owner: Option<Owner>) -> Attached {
        let stat = append.opened().clone();
        let resumed = owner.is_some() && stat.owner == owner;
        append.claim(owner);
        let tail_cache = self.hub.config.tail_cache;
        let resource =
            Arc::new(Resource::new(self.key.clone(), &stat, owner, Place::Taken, tail_cache, self.counted.take()));
        let (holder, over) = {
            let held = resource.held();
            (held.holder, held.over.clone())
        };
        self.hub.live().insert(self.key.clone(), Entry::Open(Arc::clone(&resource)));
        Attached::Open { lease: Lease::new(Arc::clone(&self.hub), resource, append, holder, over), resumed }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let mut live = self.hub.live();
        if matches!(live.get(&self.key), Some(Entry::Opening { .. })) {
            live.remove(&self.key);
        }
        drop(live);
        self.counted = None;
        self.settled.cancel();
    }
}

/// A resource whose appender comes back, over the head of its older connection if need be; as before when dropped.
struct Passing {
    hub: Arc<Hub>,
    resource: Arc<Resource>,
    settled: CancellationToken,
    runtime: Handle,
}

impl Passing {
    /// `None`: the resource has ended meanwhile, or begun another life; look again.
    async fn run(self, attach: AttachRequest) -> Result<Option<Attached>> {
        let resource = &self.resource;
        let mut append = self.hub.settled(resource, self.hub.storage.open(&resource.key, Open::Takeover)).await?;
        let stat = append.opened().clone();
        if stat.life != resource.life {
            self.hub.end(resource, resource.len(), Phase::Cut(ErrorKind::NotFound));
            return Ok(None);
        }
        if let Err(error) = self.hub.sync_before_told(append.as_ref()).await {
            if error.kind() == ErrorKind::Fenced {
                return Ok(None);
            }
            self.hub.sync_failed(resource, &error);
            return Err(error);
        }
        append.claim(resource.owner);
        let (before, holder, over) = {
            let mut held = resource.held();
            if !matches!(held.place, Place::Passing { .. }) {
                // The server stops.
                return Ok(None);
            }
            held.holder += 1;
            std::mem::replace(&mut held.over, resource.ended.child_token()).cancel();
            held.tail = progress::Tail::new(stat.len, self.hub.config.tail_cache);
            resource.turn(|progress| *progress = Progress { len: stat.len, phase: Phase::Live });
            (std::mem::replace(&mut held.place, Place::Taken), held.holder, held.over.clone())
        };
        // What was fenced can only be dropped.
        drop(before);
        let lease = Lease::new(Arc::clone(&self.hub), Arc::clone(resource), append, holder, over);
        if attach.is_elsewhere(stat.len) {
            return Err(ErrorKind::Offset.into());
        }
        // A storage that keeps no owners doesn't know it, but here it can be told.
        let resumed = stat.owner == resource.owner || resource.opened_at.is_some_and(|at| at < stat.len);
        Ok(Some(Attached::Open { lease, resumed }))
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        {
            let mut held = self.resource.held();
            if let Place::Passing { left, .. } = &mut held.place {
                match left.take() {
                    None => held.place = Place::Taken,
                    // Ended meanwhile: what was left is left to the storage.
                    Some(_) if self.resource.ended.is_cancelled() => held.place = Place::Ending,
                    Some(left) => self.hub.keep(&self.resource, &mut held, left, Phase::Lost, &self.runtime),
                }
            }
        }
        self.settled.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_due_within_the_same_time_is_done_together() {
        let begun = Instant::now();
        for within in [Duration::ZERO, Duration::from_nanos(3), Duration::from_secs(1), Duration::from_millis(777)] {
            let mut moments = std::collections::BTreeSet::new();
            for _ in 0..1000 {
                tokio::time::advance(Duration::from_millis(1)).await;
                let (now, at) = (Instant::now(), together(begun, within));
                assert!(at + within / 2 + Duration::from_nanos(1) >= now + within && at <= now + within, "{within:?}");
                moments.insert(at);
            }
            assert!(within < Duration::from_millis(1) || moments.len() <= 4, "{} for {within:?}", moments.len());
        }
        assert!(together(begun, Duration::MAX) > begun + Duration::from_secs(1 << 24));
    }
}
