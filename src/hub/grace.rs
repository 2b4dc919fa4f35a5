//! Open resources whose appender is absent: each is kept for a time, its grace, in which the appender may come back.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::time::timeout;

use super::close::{close_for_shutdown, interrupt};
use super::limits::reserve_resource;
use super::progress::Phase;
use super::resource::{Holder, Resource, ResourceState};
use super::{Entries, Entry, Hub};
use crate::error::Result;
use crate::key::Key;
use crate::state::Stat;
use crate::storage::erased::{DynAppend, unresponsive};
use crate::storage::stream;

impl Hub {
    /// Gives the lost resources of an earlier process their grace. Done once, before anything else.
    pub(crate) async fn recover(self: &Arc<Self>) -> Result<()> {
        let recovery = async || {
            let mut lost = self.storage.lost();
            let next = async |lost: &mut _| {
                timeout(self.config.storage_timeout, stream::next(lost)).await.map_err(|_| unresponsive())
            };
            while let Some(found) = next(&mut lost).await? {
                match found {
                    Ok((key, stat)) => self.adopt(key, &stat),
                    // Requests for this resource will fail; requests for others must not.
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::error!(error, "the state of a lost resource could not be read");
                    }
                }
            }
            Ok(())
        };
        self.recovered.get_or_try_init(recovery).await.copied()
    }

    /// Opens an entry for a lost resource, unless there is one, and gives the resource its grace, counted from now.
    pub(super) fn adopt(self: &Arc<Self>, key: Key, stat: &Stat) {
        let mut entries = self.entries();
        if !entries.contains_key(&key) {
            self.insert_lost(&mut entries, key, stat);
        }
    }

    /// As [`adopt`](Self::adopt), but replaces an entry that is there.
    pub(super) fn insert_lost(self: &Arc<Self>, entries: &mut Entries, key: Key, stat: &Stat) {
        // The resource exists, even if that is one more than the limit.
        let reservation = reserve_resource(&self.resource_budget).ok();
        let (holder, tail_cache) = (Holder::Absent(None), self.config.tail_cache);
        let resource = Arc::new(Resource::new(key.clone(), stat, stat.owner, holder, tail_cache, reservation));
        self.start_grace(&resource, &resource.lock(), &Handle::current());
        entries.insert(key, Entry::Open(resource));
    }

    /// Keeps a resource open for its appender, which was lost or has parked it.
    pub(super) fn keep(
        self: &Arc<Self>,
        resource: &Arc<Resource>,
        state: &mut ResourceState,
        append: Option<Box<dyn DynAppend>>,
        phase: Phase,
        runtime: &Handle,
    ) {
        state.holder = Holder::Absent(append);
        resource.update(|progress| {
            // A takeover that fails leaves a lost or parked resource as it was.
            if progress.phase == Phase::Live {
                progress.phase = phase;
            }
        });
        self.start_grace(resource, state, runtime);
    }

    /// Interrupts a resource when its grace is over, unless its appender is back by then. At a shutdown the resource is left
    /// lost, for the next start.
    fn start_grace(self: &Arc<Self>, resource: &Arc<Resource>, state: &ResourceState, runtime: &Handle) {
        let (epoch, revoked) = (state.epoch, state.revoked.clone());
        let (hub, resource) = (Arc::clone(self), Arc::clone(resource));
        let limit = match resource.phase() {
            Phase::Parked => self.config.parking_timeout,
            _ => self.config.grace,
        };
        let grace = async move {
            let shutting_down = tokio::select! {
                biased;
                // The appender is back, or the resource is closed.
                () = revoked.cancelled() => return,
                () = hub.shutting_down.cancelled() => true,
                () = tokio::time::sleep(limit) => false,
            };
            let append = {
                let mut state = resource.lock();
                let current = state.epoch == epoch;
                match &mut state.holder {
                    Holder::Absent(append) if current => {
                        let append = append.take();
                        state.holder = Holder::Closing;
                        append
                    }
                    _ => return,
                }
            };
            if shutting_down {
                close_for_shutdown(hub, resource, append).await;
            } else {
                interrupt(hub, resource, append).await;
            }
        };
        self.tasks.spawn_on(grace, runtime);
    }
}
