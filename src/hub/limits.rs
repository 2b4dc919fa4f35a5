//! How much may be open at once. What is counted is given back when it is dropped, whichever way that comes about.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::budget::{Budget, Share};
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;

/// As much memory may all appenders together take for what was read ahead of the storage.
pub(crate) const READ_AHEAD: usize = 128 * 1024 * 1024;

/// From the configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Resources that are live, lost or parked.
    pub(crate) appends: usize,
    /// Followers of one resource.
    pub(crate) followers: usize,
    /// Followers of all resources.
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
pub(super) fn one_append(appends: &Arc<Budget>) -> Result<Share> {
    let mut one = appends.share();
    one.grow(1).then_some(one).ok_or_else(|| overloaded("too much is appended to on this server: try again later"))
}

/// Counts followers, by resource and altogether.
pub(super) struct Followers {
    limits: Limits,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    total: usize,
    by_key: HashMap<Key, usize>,
}

impl Followers {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, counts: Mutex::default() })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Nothing that panics runs under this lock.
        self.counts.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Counts one more follower of a resource, whether that is there yet or not.
    pub(super) fn seat(self: &Arc<Self>, key: &Key) -> Result<Seat> {
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
        Ok(Seat { of: Arc::clone(self), key: key.clone() })
    }
}

/// One follower of a resource.
pub(crate) struct Seat {
    of: Arc<Followers>,
    key: Key,
}

impl Drop for Seat {
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
        let followers = Followers::new(Limits { followers: 2, total_followers: 3, ..Limits::default() });
        let (a, b) = (Key::new("a").unwrap(), Key::new("b").unwrap());
        let (one, two) = (followers.seat(&a).unwrap(), followers.seat(&a).unwrap());
        assert_eq!(followers.seat(&a).err().unwrap().kind(), ErrorKind::Overloaded);
        let three = followers.seat(&b).unwrap();
        assert_eq!(followers.seat(&b).err().unwrap().kind(), ErrorKind::Overloaded, "three altogether");
        drop(one);
        drop(followers.seat(&b).unwrap());
        drop((two, three));
        let counts = followers.counts();
        assert_eq!((counts.total, counts.by_key.len()), (0, 0), "not even keys");
    }
}
