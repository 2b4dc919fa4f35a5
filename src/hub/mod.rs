//! The live resources of this process: who appends, how far each has come, and who waits for more.
//!
//! A resource is bytes in the storage plus one number, the committed length. The appender makes bytes committed and
//! then moves the number; a follower is a [`Cursor`] that reads up to the number and awaits its next change. Nothing
//! is queued per follower.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::storage::erased::{DynAppend, DynStorage};
use crate::storage::{Life, Open, Stat, State, stream};
use crate::streams::Event;

mod append;
mod cursor;
mod progress;

pub(crate) use self::append::Lease;
pub(crate) use self::cursor::{Cursor, Step};
use self::progress::Tail;
pub(crate) use self::progress::{Phase, Progress};

/// How much a lagging listener for events can be behind before it is told that it missed some.
const EVENTS: usize = 1024;

#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) tail_cache: usize,
    /// How long committed bytes may stay unsynced; `None`: until the finish.
    pub(crate) sync_within: Option<Duration>,
}

pub(crate) struct Hub {
    pub(crate) storage: Box<dyn DynStorage>,
    config: Config,
    live: Mutex<HashMap<Key, Entry>>,
    events: broadcast::Sender<Event>,
    /// No new work.
    pub(crate) soft: CancellationToken,
    /// No work at all.
    pub(crate) hard: CancellationToken,
    /// All connections and whatever must not be cut short.
    pub(crate) tasks: TaskTracker,
    /// One token for each lease.
    pub(crate) leases: TaskTracker,
}

enum Entry {
    /// The storage is being asked; the token is cancelled when it has answered.
    Opening(CancellationToken),
    Live(Arc<Resource>),
}

/// A live resource.
pub(crate) struct Resource {
    pub(crate) key: Key,
    pub(crate) life: Life,
    /// Its length before its appender came.
    opened_at: u64,
    progress: watch::Sender<Progress>,
    tail: Mutex<Tail>,
    /// Cancelled when the resource is no longer live.
    pub(crate) ended: CancellationToken,
}

/// What a follower finds.
pub(crate) enum Found {
    /// Somebody appends.
    Live(Cursor),
    /// Nobody does.
    AtRest(Stat),
}

impl Hub {
    pub(crate) fn new(storage: Box<dyn DynStorage>, config: Config) -> Self {
        Self {
            storage,
            config,
            live: Mutex::default(),
            events: broadcast::channel(EVENTS).0,
            soft: CancellationToken::new(),
            hard: CancellationToken::new(),
            tasks: TaskTracker::new(),
            leases: TaskTracker::new(),
        }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    fn emit(&self, event: Event) {
        // Nobody listening is fine.
        let _ = self.events.send(event);
    }

    fn live(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        // No code that panics runs under this lock.
        self.live.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Opens a resource for appending.
    ///
    /// Cancel safe: what the storage opens for nobody is released.
    pub(crate) async fn open(self: &Arc<Self>, key: &Key, how: Open) -> Result<Lease> {
        if self.soft.is_cancelled() {
            return Err(ErrorKind::ShuttingDown.into());
        }
        let opening = {
            let mut live = self.live();
            if live.contains_key(key) {
                return Err(ErrorKind::Busy.into());
            }
            let settled = CancellationToken::new();
            live.insert(key.clone(), Entry::Opening(settled.clone()));
            Opening { hub: Arc::clone(self), key: key.clone(), settled }
        };
        // A task of its own, so that neither a caller that goes away nor a panic leaves the key taken.
        let opened = self.tasks.spawn(async move {
            let append = opening.hub.storage.open(&opening.key, how).await?;
            Ok(opening.opened(append))
        });
        opened.await.map_err(Error::storage)?
    }

    /// Finds a resource for following.
    ///
    /// Cancel safe.
    pub(crate) async fn follow(self: &Arc<Self>, key: &Key) -> Result<Option<Found>> {
        loop {
            let opening = match self.live().get(key) {
                Some(Entry::Live(resource)) => return Ok(Some(Found::Live(Cursor::live(self, resource)))),
                Some(Entry::Opening(settled)) => Some(settled.clone()),
                None => None,
            };
            if let Some(settled) = opening {
                settled.cancelled().await;
                continue;
            }
            let Some(stat) = self.storage.stat(key).await? else { return Ok(None) };
            if stat.state != State::Live {
                return Ok(Some(Found::AtRest(stat)));
            }
            if !self.live().contains_key(key) {
                return Ok(Some(Found::Live(self.follow_elsewhere(key, &stat))));
            }
        }
    }

    /// What is known of a resource.
    pub(crate) async fn stat(&self, key: &Key) -> Result<Option<Stat>> {
        let live = match self.live().get(key) {
            Some(Entry::Live(resource)) => Some(Stat::new(resource.life, resource.len(), State::Live)),
            _ => None,
        };
        match live {
            Some(stat) => Ok(Some(stat)),
            None => self.storage.stat(key).await,
        }
    }

    /// Deletes a resource; its appender is fenced, its followers are told that it is cut.
    pub(crate) async fn delete(self: &Arc<Self>, key: &Key) -> Result<()> {
        let resource = loop {
            let opening = {
                let mut live = self.live();
                match live.get(key) {
                    Some(Entry::Live(resource)) => break Ok(Arc::clone(resource)),
                    Some(Entry::Opening(settled)) => settled.clone(),
                    None => {
                        // Nobody opens it meanwhile: the storage would fence an appender that is live here.
                        let settled = CancellationToken::new();
                        live.insert(key.clone(), Entry::Opening(settled.clone()));
                        break Err(Opening { hub: Arc::clone(self), key: key.clone(), settled });
                    }
                }
            };
            opening.cancelled().await;
        };
        let deleted = self.storage.delete(key).await;
        if let Ok(resource) = resource {
            match &deleted {
                Ok(()) => self.end(&resource, resource.len(), Phase::Cut(ErrorKind::NotFound)),
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Busy) => {}
                // Its appender may be fenced already.
                Err(_) => self.end(&resource, resource.len(), Phase::Cut(ErrorKind::Storage)),
            }
        }
        deleted?;
        self.emit(Event::Deleted { key: key.clone() });
        Ok(())
    }

    /// A cursor on a resource that another node appends to, or another hub on the same storage.
    fn follow_elsewhere(self: &Arc<Self>, key: &Key, stat: &Stat) -> Cursor {
        let (send, receive) = watch::channel(Progress { len: stat.len, phase: Phase::Live });
        let mut stats = self.storage.follow(key, stat.life, stat.len);
        let hard = self.hard.clone();
        self.tasks.spawn(async move {
            loop {
                let next = tokio::select! {
                    next = stream::next(&mut stats) => next,
                    () = send.closed() => return,
                    () = hard.cancelled() => None,
                };
                let progress = match next {
                    Some(Ok(Stat { len, state: State::Live, .. })) => Progress { len, phase: Phase::Live },
                    Some(Ok(Stat { len, state, .. })) => Progress { len, phase: Phase::Ended(state) },
                    failed => {
                        if let Some(Err(error)) = failed {
                            tracing::warn!(error = &error as &dyn std::error::Error, "following another node failed");
                        }
                        let len = send.borrow().len;
                        Progress { len, phase: Phase::Cut(ErrorKind::Storage) }
                    }
                };
                if send.send(progress).is_err() || progress.phase != Phase::Live {
                    return;
                }
            }
        });
        Cursor::new(Arc::clone(self), key.clone(), stat.life, receive, None)
    }

    /// Takes a resource out of the live ones and tells its followers, as one step.
    fn end(&self, resource: &Arc<Resource>, len: u64, phase: Phase) {
        let mut live = self.live();
        if matches!(live.get(&resource.key), Some(Entry::Live(here)) if Arc::ptr_eq(here, resource)) {
            live.remove(&resource.key);
        }
        resource.progress.send_if_modified(|progress| {
            // The first end is the true one.
            let first = progress.phase == Phase::Live;
            if first {
                *progress = Progress { len, phase };
            }
            first
        });
        resource.ended.cancel();
    }

    /// Ends what is still live: the last step of a shutdown.
    pub(crate) fn cut_all(&self) {
        let all: Vec<Arc<Resource>> = self
            .live()
            .values()
            .filter_map(|entry| match entry {
                Entry::Live(resource) => Some(Arc::clone(resource)),
                Entry::Opening(_) => None,
            })
            .collect();
        for resource in all {
            self.end(&resource, resource.len(), Phase::Cut(ErrorKind::ShuttingDown));
        }
    }
}

impl Resource {
    pub(crate) fn len(&self) -> u64 {
        self.progress.borrow().len
    }

    /// What its appender is told once it has been ended from outside.
    pub(crate) fn ended_as(&self) -> ErrorKind {
        match self.progress.borrow().phase {
            Phase::Cut(kind @ (ErrorKind::ShuttingDown | ErrorKind::Storage)) => kind,
            _ => ErrorKind::Fenced,
        }
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        // A cache that is torn by a panic would be wrong, but nothing under this lock panics.
        self.tail.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A key whose storage is being asked; free again when dropped before it answered.
struct Opening {
    hub: Arc<Hub>,
    key: Key,
    settled: CancellationToken,
}

impl Opening {
    fn opened(self, append: Box<dyn DynAppend>) -> Lease {
        let stat = append.stat();
        let resource = Arc::new(Resource {
            key: self.key.clone(),
            life: stat.life,
            opened_at: stat.len,
            progress: watch::Sender::new(Progress { len: stat.len, phase: Phase::Live }),
            tail: Mutex::new(Tail::new(stat.len, self.hub.config.tail_cache)),
            ended: CancellationToken::new(),
        });
        self.hub.live().insert(self.key.clone(), Entry::Live(Arc::clone(&resource)));
        Lease::new(Arc::clone(&self.hub), resource, append)
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let mut live = self.hub.live();
        if matches!(live.get(&self.key), Some(Entry::Opening(_))) {
            live.remove(&self.key);
        }
        drop(live);
        self.settled.cancel();
    }
}
