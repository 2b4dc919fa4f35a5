//! Finding a resource for following.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::progress::{Phase, Progress};
use super::{Cursor, Entry, Event, FollowerPermit, Hub};
use crate::error::{ErrorKind, Result};
use crate::key::Key;
use crate::state::{Stat, State};
use crate::storage::erased::unresponsive;
use crate::storage::stream;

/// A resource that was found for following.
pub(crate) enum Found {
    /// More bytes may come.
    Open(Cursor),
    /// No appender is attached, and none is expected back.
    Closed(Cursor, Stat),
}

impl Found {
    fn with_permit(self, permit: FollowerPermit) -> Self {
        match self {
            Self::Open(cursor) => Self::Open(cursor.with_permit(permit)),
            Self::Closed(cursor, stat) => Self::Closed(cursor.with_permit(permit), stat),
        }
    }
}

impl Hub {
    /// Finds a resource for following, and counts the follower.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn follow(self: &Arc<Self>, key: &Key) -> Result<Option<Found>> {
        let permit = self.followers.permit(key)?;
        Ok(self.find(key).await?.map(|found| found.with_permit(permit)))
    }

    /// Waits up to `limit` for a resource to be created, and finds it as [`follow`](Self::follow) does.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn follow_when_created(self: &Arc<Self>, key: &Key, limit: Duration) -> Result<Option<Found>> {
        // A waiting follower costs as much as one that follows, and counts as one.
        let permit = self.followers.permit(key)?;
        let mut events = self.subscribe();
        let created = async {
            loop {
                if let Some(found) = self.find(key).await? {
                    return Ok(Some(found));
                }
                loop {
                    match events.recv().await {
                        Ok(Event::Created { key: other, .. } | Event::Finished { key: other, .. }) if other == *key => {
                            break;
                        }
                        Ok(_) => {}
                        // Events were missed, perhaps this one.
                        Err(_) => break,
                    }
                }
            }
        };
        let found: Result<Option<Found>> = tokio::select! {
            biased;
            found = created => found,
            () = self.shutting_down.cancelled() => Err(ErrorKind::ShuttingDown.into()),
            () = tokio::time::sleep(limit) => Ok(None),
        };
        Ok(found?.map(|found| found.with_permit(permit)))
    }

    /// The stat of a resource, from its entry if it is open here, else from the storage.
    pub(crate) async fn stat(self: &Arc<Self>, key: &Key) -> Result<Option<Stat>> {
        self.recover().await?;
        let open = match self.entries().get(key) {
            Some(Entry::Open(resource)) => Some(resource.stat()),
            _ => None,
        };
        match open {
            Some(stat) => Ok(Some(stat)),
            None => self.storage.stat(key).await,
        }
    }

    async fn find(self: &Arc<Self>, key: &Key) -> Result<Option<Found>> {
        self.recover().await?;
        loop {
            let locked = match self.entries().get(key) {
                Some(Entry::Open(resource)) => return Ok(Some(Found::Open(Cursor::open(self, resource)))),
                Some(Entry::Locked { since, .. }) if self.is_overdue(*since) => return Err(unresponsive()),
                Some(Entry::Locked { released, .. }) => Some(released.clone()),
                None => None,
            };
            if let Some(released) = locked {
                self.wait_until_cancelled(&released).await?;
                continue;
            }
            let Some(stat) = self.storage.stat(key).await? else { return Ok(None) };
            match stat.state {
                // It is open, but this server won't see more of it.
                state if state.is_open() && self.shutting_down.is_cancelled() => {
                    return Err(ErrorKind::ShuttingDown.into());
                }
                // Live on another node. If it has an entry by now, it was opened here meanwhile: retry.
                State::Live => {
                    if !self.entries().contains_key(key) {
                        return Ok(Some(Found::Open(self.follow_elsewhere(key, &stat))));
                    }
                }
                // Left by another node.
                State::Lost | State::Parked => self.adopt(key.clone(), &stat),
                _ => return Ok(Some(Found::Closed(Cursor::closed(self, key, &stat), stat))),
            }
        }
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
                    // The appender on the other node goes on, and a shutdown of this one can't wait for its end.
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
                                tracing::warn!(error, "following a resource of another node failed");
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
}
