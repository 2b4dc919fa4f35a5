//! The one appender of a live resource, as everything above the hub uses it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::{Hub, Phase, Resource};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::erased::DynAppend;
use crate::storage::{End, Stat, State};
use crate::streams::Event;

/// The right to append to a resource. Dropping it means that the appender was lost.
pub(crate) struct Lease {
    hub: Arc<Hub>,
    resource: Arc<Resource>,
    /// Gone once the lease has ended.
    append: Option<Box<dyn DynAppend>>,
    /// A sync is due and will come.
    sync_due: Arc<AtomicBool>,
    /// Where the end is done, whoever drops this and wherever.
    runtime: Handle,
    _counted: TaskTrackerToken,
}

impl Lease {
    pub(super) fn new(hub: Arc<Hub>, resource: Arc<Resource>, append: Box<dyn DynAppend>) -> Self {
        let sync_due = Arc::new(AtomicBool::new(false));
        let counted = hub.leases.token();
        Self { hub, resource, append: Some(append), sync_due, runtime: Handle::current(), _counted: counted }
    }

    pub(crate) fn resource(&self) -> &Arc<Resource> {
        &self.resource
    }

    /// Appends, then tells the followers. Returns the committed length.
    ///
    /// Not cancel safe: the appender is poisoned.
    pub(crate) async fn append(&mut self, data: &[Bytes]) -> Result<u64> {
        if self.hub.hard.is_cancelled() {
            return Err(ErrorKind::ShuttingDown.into());
        }
        if self.resource.ended.is_cancelled() {
            return Err(self.resource.ended_as().into());
        }
        let append = self.append.as_mut().ok_or(ErrorKind::Poisoned)?;
        let before = self.resource.len();
        let len = append.append(data).await?;
        if len == before {
            return Ok(len);
        }
        self.resource.tail().push(data);
        self.resource.progress.send_modify(|progress| progress.len = len);
        if before == 0 {
            self.hub.emit(Event::Created { key: self.resource.key.clone(), life: self.resource.life });
        }
        self.sync_soon();
        Ok(len)
    }

    /// Sees to it that what is committed now is synced within the configured time.
    fn sync_soon(&self) {
        let (Some(within), Some(append)) = (self.hub.config.sync_within, &self.append) else { return };
        if self.sync_due.swap(true, Ordering::AcqRel) {
            return;
        }
        let sync = append.sync();
        let due = Arc::clone(&self.sync_due);
        let (hub, resource) = (Arc::clone(&self.hub), Arc::clone(&self.resource));
        self.runtime.spawn(async move {
            tokio::select! {
                // The end syncs by itself.
                () = resource.ended.cancelled() => return,
                () = tokio::time::sleep(within) => {}
            }
            // What is appended from here on may miss this sync, and asks for one of its own.
            due.store(false, Ordering::Release);
            if let Err(error) = sync.await
                && !matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Poisoned)
            {
                let cause = &error as &dyn std::error::Error;
                tracing::error!(key = %resource.key, error = cause, "a sync failed; the appender ends");
                hub.end(&resource, resource.len(), Phase::Cut(ErrorKind::Storage));
            }
        });
    }

    /// Ends the resource. Goes on to its end even if the future is dropped.
    pub(crate) async fn finish(mut self, end: End) -> Result<Stat> {
        let append = self.append.take().ok_or(ErrorKind::Poisoned)?;
        let ending = end_it(Arc::clone(&self.hub), Arc::clone(&self.resource), append, end);
        self.hub.tasks.spawn(ending).await.map_err(Error::storage)?
    }

    /// The server stops: the resource ends as interrupted, and its followers are told why.
    pub(crate) async fn stop(self) {
        let resource = Arc::clone(&self.resource);
        let hub = Arc::clone(&self.hub);
        hub.end(&resource, resource.len(), Phase::Cut(ErrorKind::ShuttingDown));
        let _ = self.finish(End::Interrupted).await;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(append) = self.append.take() {
            let ending = end_it(Arc::clone(&self.hub), Arc::clone(&self.resource), append, End::Interrupted);
            self.hub.tasks.spawn_on(ending, &self.runtime);
        }
    }
}

/// Ends the storage's appender, then the live resource. In this order: whoever finds it no longer live finds the
/// storage at rest.
async fn end_it(hub: Arc<Hub>, resource: Arc<Resource>, append: Box<dyn DynAppend>, end: End) -> Result<Stat> {
    let opened_at = resource.opened_at;
    let ended = append.finish(end).await;
    match &ended {
        Ok(stat) => {
            // An appender that was lost without a byte leaves the resource as it was, and its followers are told that.
            hub.end(&resource, stat.len, Phase::Ended(stat.state));
            let untouched = end == End::Interrupted && stat.len == opened_at;
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
