//! How much may be open at once. What is counted is given back when it is dropped, whichever way that comes about.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::budget::{Budget, Reservation};
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;

/// As much memory may all appenders together take for what was read ahead of the storage.
pub(crate) const READ_AHEAD: usize = 128 * 1024 * 1024;

/// From the configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Resources that are live, lost or parked.
    pub(crate) appends: usize,
    /// FollowerCounts of one resource.
    pub(crate) followers: usize,
    /// FollowerCounts of all resources.
    pub(crate) total_followers: usize,
    /// Bytes of incomplete messages.
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

/// One resource more that is not at rest.
pub(super) fn one_append(appends: &Arc<Budget>) -> Result<Reservation> {
    let mut one = appends.reservation();
    one.grow(1).then_some(one).ok_or_else(|| overloaded("too much is appended to on this server: try again later"))
}

/// Counts followers, by resource and altogether.
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
        // Nothing that panics runs under this lock.
        self.counts.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Counts one more follower of a resource, whether that is there yet or not.
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
        Ok(FollowerPermit { of: Arc::clone(self), key: key.clone() })
    }
}

/// One follower of a resource.
pub(crate) struct FollowerPermit {
    of: Arc<FollowerCounts>,
    key: Key,
}

impl Drop for FollowerPermit {
    fn drop(&mut self) {
        let mut counts = self.of.counts();
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
    fn fault_43_followers_leave_nothing_behind() {
        let followers = FollowerCounts::new(Limits { followers: 2, total_followers: 3, ..Limits::default() });
        let (a, b) = (Key::new("a").unwrap(), Key::new("b").unwrap());
        let (one, two) = (followers.permit(&a).unwrap(), followers.permit(&a).unwrap());
        assert_eq!(followers.permit(&a).err().unwrap().kind(), ErrorKind::Overloaded);
        let three = followers.permit(&b).unwrap();
        assert_eq!(followers.permit(&b).err().unwrap().kind(), ErrorKind::Overloaded, "three altogether");
        drop(one);
        drop(followers.permit(&b).unwrap());
        drop((two, three));
        let counts = followers.counts();
        assert_eq!((counts.total, counts.by_key.len()), (0, 0), "not even keys");
    }
}
