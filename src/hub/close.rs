//! All the ways in which an open resource closes.

use std::pin::pin;
use std::sync::Arc;

use tokio::time::{Instant, timeout};

use super::key_lock::KeyLock;
use super::progress::{Phase, Progress};
use super::resource::{Holder, Resource};
use super::{Entry, Event, Hub};
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::state::{End, Stat, State};
use crate::storage::Open;
use crate::storage::erased::{DynAppend, unresponsive};

impl Hub {
    /// Deletes a resource. Its appender is fenced, and its followers are cut off.
    ///
    /// # Cancel safety
    /// A delete that has begun goes on when the future is dropped.
    pub(crate) async fn delete(self: &Arc<Self>, key: &Key) -> Result<()> {
        self.recover().await?;
        let target = loop {
            let released = {
                let mut entries = self.entries();
                match entries.get(key) {
                    Some(Entry::Open(resource)) => break Ok(Arc::clone(resource)),
                    Some(Entry::Locked { since, .. }) if self.is_overdue(*since) => return Err(unresponsive()),
                    Some(Entry::Locked { released, .. }) => released.clone(),
                    // Locked, so that it isn't opened meanwhile: the storage would fence an appender that is live here.
                    None => break Err(KeyLock::new(self, &mut entries, key, Some(Instant::now()), None)),
                }
            };
            self.wait_until_cancelled(&released).await?;
        };
        let (hub, key) = (Arc::clone(self), key.clone());
        // Spawned, so that the followers of a deleted resource are cut off even if the caller goes away.
        let deletion = self.tasks.spawn(async move {
            let deleted = hub.storage.delete(&key).await;
            if let Ok(resource) = &target {
                match &deleted {
                    Ok(()) => hub.close(resource, resource.len(), Phase::Cut(ErrorKind::NotFound)),
                    Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Busy) => {}
                    // The appender may be fenced already.
                    Err(_) => hub.close(resource, resource.len(), Phase::Cut(ErrorKind::Storage)),
                }
            }
            deleted?;
            hub.emit(Event::Deleted { key });
            Ok(())
        });
        timeout(self.config.storage_timeout, deletion).await.map_err(|_| unresponsive())?.map_err(Error::storage)?
    }

    /// Cuts off everything that is still open: the last step of a shutdown.
    pub(crate) fn cut_all(&self) {
        for resource in self.open_resources() {
            self.close(&resource, resource.len(), Phase::Cut(ErrorKind::ShuttingDown));
        }
    }

    /// Closes a resource: removes its entry and tells its followers, in one step. Has no effect on the phase of a resource
    /// that is closed already.
    pub(super) fn close(&self, resource: &Arc<Resource>, len: u64, phase: Phase) {
        let mut entries = self.entries();
        if matches!(entries.get(&resource.key), Some(Entry::Open(here)) if Arc::ptr_eq(here, resource)) {
            entries.remove(&resource.key);
        }
        // Given back first: a follower that sees the end may open the next resource at once.
        resource.lock().reservation = None;
        resource.update(|progress| *progress = Progress { len, phase });
        resource.closed.cancel();
        let mut state = resource.lock();
        // Slow followers may keep the resource for long.
        state.tail.trim();
        // The storage appender of an absent appender is dropped, outside the locks: to the storage it is lost.
        let append = match &mut state.holder {
            Holder::Absent(append) => append.take(),
            _ => None,
        };
        drop((state, entries));
        drop(append);
    }

    /// Closes a resource whose sync failed: bytes that were reported as committed may be gone.
    pub(super) fn sync_failed(&self, resource: &Arc<Resource>, error: &Error) {
        if !matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Poisoned) {
            let cause = error as &dyn std::error::Error;
            tracing::error!(key = %resource.key, error = cause, "a sync failed; the resource is cut off");
            self.close(resource, resource.len(), Phase::Cut(ErrorKind::Storage));
        }
    }

    /// Awaits a storage call on an open resource. If it exceeds its time the resource is cut off, and its key stays locked
    /// until the call returns.
    pub(super) async fn cut_if_unresponsive<T>(
        self: &Arc<Self>,
        resource: &Arc<Resource>,
        call: impl Future<Output = T>,
    ) -> T {
        let mut call = pin!(call);
        if let Ok(done) = timeout(self.config.storage_timeout, call.as_mut()).await {
            return done;
        }
        tracing::error!(key = %resource.key, "the storage does not answer; the resource is unavailable until it does");
        let _lock = self.cut_and_lock(resource);
        call.await
    }

    /// Cuts off a resource and locks its key, unless the resource is closed already.
    fn cut_and_lock(self: &Arc<Self>, resource: &Arc<Resource>) -> Option<KeyLock> {
        let mut entries = self.entries();
        if !matches!(entries.get(&resource.key), Some(Entry::Open(here)) if Arc::ptr_eq(here, resource)) {
            return None;
        }
        let mut lock = KeyLock::new(self, &mut entries, &resource.key, None, None);
        drop(entries);
        lock.reservation = resource.lock().reservation.take();
        self.close(resource, resource.len(), Phase::Cut(ErrorKind::Storage));
        Some(lock)
    }
}

/// Interrupts a resource whose appender was lost and did not come back.
pub(super) async fn interrupt(hub: Arc<Hub>, resource: Arc<Resource>, append: Option<Box<dyn DynAppend>>) {
    let append = match append {
        Some(append) => Ok(append),
        None => hub.cut_if_unresponsive(&resource, hub.storage.open(&resource.key, Open::Takeover)).await,
    };
    match append {
        Ok(append) if append.opened().life == resource.life => {
            let _ = finish_and_close(hub, resource, append, End::Interrupted).await;
        }
        Ok(_) => hub.close(&resource, resource.len(), Phase::Cut(ErrorKind::NotFound)),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::error!(key = %resource.key, error, "a lost resource could not be opened to interrupt it");
            hub.close(&resource, resource.len(), Phase::Cut(ErrorKind::Storage));
        }
    }
}

/// Closes a resource for a shutdown. If its appender can come back, the resource is synced and left lost for the next start
/// of the server; otherwise it is interrupted.
pub(super) async fn close_for_shutdown(hub: Arc<Hub>, resource: Arc<Resource>, append: Option<Box<dyn DynAppend>>) {
    hub.close(&resource, resource.len(), Phase::Cut(ErrorKind::ShuttingDown));
    let Some(append) = append else { return };
    if resource.owner.is_none() {
        let _ = finish_and_close(hub, resource, append, End::Interrupted).await;
        return;
    }
    if let Err(error) = append.sync().await
        && error.kind() != ErrorKind::Fenced
    {
        let error = &error as &dyn std::error::Error;
        tracing::error!(key = %resource.key, error, "syncing a resource for the shutdown failed");
    }
}

/// Finishes the storage's appender, then closes the resource. In this order: a key without an entry is free in the storage
/// too.
pub(super) async fn finish_and_close(
    hub: Arc<Hub>,
    resource: Arc<Resource>,
    append: Box<dyn DynAppend>,
    end: End,
) -> Result<Stat> {
    let finished = hub.cut_if_unresponsive(&resource, append.finish(end)).await;
    match &finished {
        Ok(stat) => {
            // An appender that was lost without a byte leaves the resource in its earlier state. Followers get that state, not
            // `interrupted`.
            hub.close(&resource, stat.len, Phase::Ended(stat.state));
            let untouched = end == End::Interrupted && resource.len_at_open == Some(stat.len);
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
                tracing::error!(key = %resource.key, error, "finishing a resource failed");
            }
            hub.close(&resource, resource.len(), Phase::Cut(ErrorKind::Storage));
            if error.kind() != ErrorKind::Fenced {
                let stat = Stat::new(resource.life, resource.len(), State::Interrupted);
                hub.emit(Event::Interrupted { key: resource.key.clone(), stat });
            }
        }
    }
    finished
}
