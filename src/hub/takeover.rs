//! An appender that comes back.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::progress::{Phase, Progress};
use super::resource::{Holder, Predecessor, Resource};
use super::tail::Tail;
use super::{AttachRequest, Attached, Hub, Lease};
use crate::error::{ErrorKind, Result};
use crate::storage::Open;

/// An appender takes over an open resource from its own older connection, whether that is still attached or not. Dropping
/// it before it has succeeded leaves the resource as it was.
pub(super) struct Takeover {
    pub(super) hub: Arc<Hub>,
    pub(super) resource: Arc<Resource>,
    pub(super) decided: CancellationToken,
    pub(super) runtime: Handle,
}

impl Takeover {
    /// `None`: the resource was closed meanwhile, or is in another life now; retry.
    pub(super) async fn run(self, request: AttachRequest) -> Result<Option<Attached>> {
        let (hub, resource) = (&self.hub, &self.resource);
        let opening = hub.storage.open(&resource.key, Open::Takeover);
        let mut append = hub.cut_if_unresponsive(resource, opening).await?;
        let stat = append.opened().clone();
        if stat.life != resource.life {
            hub.close(resource, resource.len(), Phase::Cut(ErrorKind::NotFound));
            return Ok(None);
        }
        if let Err(error) = hub.sync_resumed(append.as_ref()).await {
            if error.kind() == ErrorKind::Fenced {
                return Ok(None);
            }
            hub.sync_failed(resource, &error);
            return Err(error);
        }
        append.claim(resource.owner);
        let (previous, epoch, revoked) = {
            let mut state = resource.lock();
            if !matches!(state.holder, Holder::TakingOver { .. }) {
                // The server shuts down.
                return Ok(None);
            }
            state.epoch += 1;
            std::mem::replace(&mut state.revoked, resource.closed.child_token()).cancel();
            state.tail = Tail::new(stat.len, hub.config.tail_cache);
            resource.update(|progress| *progress = Progress { len: stat.len, phase: Phase::Live });
            (std::mem::replace(&mut state.holder, Holder::Attached), state.epoch, state.revoked.clone())
        };
        // The predecessor's storage appender is fenced. It is dropped outside the lock.
        drop(previous);
        let lease = Lease::new(Arc::clone(hub), Arc::clone(resource), append, epoch, revoked);
        if request.rejects_len(stat.len) {
            return Err(ErrorKind::Offset.into());
        }
        // For a storage that keeps no owners: bytes appended since the resource was opened here are this owner's.
        let resumed = stat.owner == resource.owner || resource.len_at_open.is_some_and(|len| len < stat.len);
        Ok(Some(Attached::Open { lease, resumed }))
    }
}

impl Drop for Takeover {
    fn drop(&mut self) {
        {
            let mut state = self.resource.lock();
            if let Holder::TakingOver { predecessor, .. } = &mut state.holder {
                match std::mem::replace(predecessor, Predecessor::Attached) {
                    Predecessor::Attached => state.holder = Holder::Attached,
                    // Closed meanwhile: it is not kept any more, and its storage appender is dropped.
                    Predecessor::Absent(_) if self.resource.closed.is_cancelled() => state.holder = Holder::Closing,
                    Predecessor::Absent(append) => {
                        self.hub.keep(&self.resource, &mut state, append, Phase::Lost, &self.runtime);
                    }
                }
            }
        }
        self.decided.cancel();
    }
}
