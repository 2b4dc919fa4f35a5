//! How much may be open at once. Permits and reservations are guards: dropping one gives it back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::budget::{Budget, Reservation};
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;

/// Bytes that all appenders together may read ahead while the storage is busy.
pub(crate) const READ_AHEAD: usize = 128 * 1024 * 1024;

/// The configured limits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Open resources: live, lost or parked.
    pub(crate) appends: usize,
    /// Followers of one resource.
    pub(crate) followers: usize,
    /// Followers of all resources.
    pub(crate) total_followers: usize,
    /// Bytes of incomplete messages, over all appenders.
    pub(crate) incomplete: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { appends: 10_000, followers: 10_000, total_followers: 50_000, incomplete: 256 * 1024 * 1024 }
    }
}

fn overloaded(why: &'static str) -> Error {
    Error::new(ErrorKind::Overloaded).with_detail(why)
}

/// Reserves one more open resource.
pub(super) fn reserve_resource(budget: &Arc<Budget>) -> Result<Reservation> {
    let mut one = budget.reservation();
    one.grow(1).then_some(one).ok_or_else(|| overloaded("too many resources are open on this server: try again later"))
}

/// Counts the followers of each resource and of all.
pub(super) struct FollowerCounts {
    limits: Limits,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    total: usize,
    by_key: HashMap<Key, usize>,
}

impl FollowerCounts {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, counts: Mutex::default() })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // No code that panics runs under this lock.
        self.counts.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// How many permits a resource has.
    pub(super) fn count(&self, key: &Key) -> usize {
        self.counts().by_key.get(key).copied().unwrap_or(0)
    }

    /// Counts one more follower of a resource, which need not exist yet.
    pub(super) fn permit(self: &Arc<Self>, key: &Key) -> Result<FollowerPermit> {
        let mut counts = self.counts();
        if counts.total >= self.limits.total_followers {
            return Err(overloaded("too many followers on this server: try again later"));
        }
        let followers = counts.by_key.get(key).copied().unwrap_or(0);
        if followers >= self.limits.followers {
            return Err(overloaded("this resource has too many followers: try again later"));
        }
        counts.total += 1;
        counts.by_key.insert(key.clone(), followers + 1);
        Ok(FollowerPermit { counts: Arc::clone(self), key: key.clone() })
    }
}

/// Counts one follower of a resource, until it is dropped.
pub(crate) struct FollowerPermit {
    counts: Arc<FollowerCounts>,
    key: Key,
}

impl Drop for FollowerPermit {
    fn drop(&mut self) {
        let mut counts = self.counts.counts();
        counts.total -= 1;
        if let Some(followers) = counts.by_key.get_mut(&self.key) {
            *followers -= 1;
            if *followers == 0 {
                counts.by_key.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_43_dropped_permits_leave_nothing_behind() {
        let followers = FollowerCounts::new(Limits { followers: 2, total_followers: 3, ..Limits::default() });
        let (a, b) = (Key::new("a").unwrap(), Key::new("b").unwrap());
        let (one, two) = (followers.permit(&a).unwrap(), followers.permit(&a).unwrap());
        assert_eq!(followers.permit(&a).err().unwrap().kind(), ErrorKind::Overloaded);
        assert_eq!((followers.count(&a), followers.count(&b)), (2, 0));
        let three = followers.permit(&b).unwrap();
        assert_eq!(followers.permit(&b).err().unwrap().kind(), ErrorKind::Overloaded, "three in total");
        drop(one);
        drop(followers.permit(&b).unwrap());
        drop((two, three));
        let counts = followers.counts();
        assert_eq!((counts.total, counts.by_key.len()), (0, 0), "no keys are left");
    }
}
