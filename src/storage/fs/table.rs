//! Which resources have an appender in this process, by key and by inode.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::file_lease::FileLease;
use super::path::conflict;
use super::root::Root;
use crate::error::Result;
use crate::key::Key;
use crate::state::Life;

/// Longer than a tick of the clock that file systems stamp birth times with.
const BIRTH_TICK: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) by_key: BTreeMap<Key, Entry>,
    /// Device and inode of each open file: a hard link is the same resource.
    pub(super) inodes: HashSet<(u64, u64)>,
    /// Counts opens, ends and deletes. A lookup during which it changed may have seen a mixture of states.
    pub(super) epoch: u64,
    /// Lives that were deleted within the last tick: a new file with the same inode would have the same life.
    recent_lives: VecDeque<(Instant, Life)>,
}

#[derive(Debug)]
pub(super) enum Entry {
    /// Being opened or deleted.
    Reserved,
    Open(Arc<FileLease>),
}

impl Table {
    pub(super) fn lease(&self, key: &Key) -> Option<Arc<FileLease>> {
        match self.by_key.get(key) {
            Some(Entry::Open(lease)) => Some(Arc::clone(lease)),
            _ => None,
        }
    }

    /// Refuses a key above or below an open one: a file can't be a folder too.
    pub(super) fn check_nesting(&self, key: &Key) -> Result<()> {
        let mut above = key.as_str();
        while let Some((parent, _)) = above.rsplit_once('/') {
            if Key::new(parent).is_ok_and(|parent| self.by_key.contains_key(&parent)) {
                return Err(conflict());
            }
            above = parent;
        }
        let Ok(first) = Key::new(&format!("{key}/\u{20}")) else { return Ok(()) };
        let below = self.by_key.range(first..).next().map(|(other, _)| other.as_str());
        if below.and_then(|other| other.strip_prefix(key.as_str())).is_some_and(|rest| rest.starts_with('/')) {
            return Err(conflict());
        }
        Ok(())
    }

    /// Whether this life was deleted less than a tick ago.
    pub(super) fn ended_recently(&mut self, life: Life) -> bool {
        self.expire_lives();
        self.recent_lives.iter().any(|(_, ended)| *ended == life)
    }

    pub(super) fn remember_ended(&mut self, life: Life) {
        self.expire_lives();
        self.recent_lives.push_back((Instant::now(), life));
    }

    fn expire_lives(&mut self) {
        while self.recent_lives.front().is_some_and(|(at, _)| at.elapsed() > BIRTH_TICK) {
            self.recent_lives.pop_front();
        }
    }
}

/// Reserves a key while it is being opened or deleted. Dropping it frees the key.
pub(super) struct KeyReservation<'a> {
    pub(super) root: &'a Root,
    pub(super) key: Key,
}

impl KeyReservation<'_> {
    /// Turns the reservation into an open resource.
    pub(super) fn fill(self, lease: Arc<FileLease>) {
        let mut table = self.root.table();
        table.epoch += 1;
        table.by_key.insert(self.key.clone(), Entry::Open(lease));
    }
}

impl Drop for KeyReservation<'_> {
    fn drop(&mut self) {
        let mut table = self.root.table();
        if matches!(table.by_key.get(&self.key), Some(Entry::Reserved)) {
            table.by_key.remove(&self.key);
        }
    }
}

/// A lease in the hands of its appender and of the appender's running calls. Dropping the last one frees the key.
#[derive(Debug)]
pub(super) struct LeaseGuard {
    pub(super) lease: Arc<FileLease>,
}

impl LeaseGuard {
    /// Frees the key. The lease has ended, or nothing else holds it: no running call can do more.
    pub(super) fn free_key(&self) {
        let lease = &self.lease;
        let mut table = lease.root.table();
        let ours = matches!(table.by_key.get(&lease.key), Some(Entry::Open(current)) if Arc::ptr_eq(current, lease));
        if ours {
            table.epoch += 1;
            table.by_key.remove(&lease.key);
            table.inodes.remove(&lease.inode);
        }
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        self.free_key();
        self.lease.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_are_remembered_for_a_tick_of_the_clock() {
        let Some(old) = Instant::now().checked_sub(2 * BIRTH_TICK) else { return };
        let mut table = Table::default();
        let lives = [1, 2, 3].map(Life::from_bits);
        table.recent_lives.extend([(old, lives[0]), (old, lives[1]), (Instant::now() + BIRTH_TICK, lives[2])]);
        table.expire_lives();
        assert_eq!(table.recent_lives.iter().map(|(_, life)| *life).collect::<Vec<_>>(), lives[2..]);
    }
}
