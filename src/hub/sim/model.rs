//! What must hold, whatever the hub does: which bytes may be stored, who may hold a resource, and how long it is kept.

use std::collections::BTreeSet;

use tokio_util::sync::CancellationToken;

use super::world::{Inner, byte};
use crate::hub::Lease;
use crate::identity::Owner;
use crate::key::Key;
use crate::state::{Life, State};

/// An appender that was let in.
pub(super) struct Hold {
    key: Key,
    life: Life,
    revoked: CancellationToken,
}

/// All bytes that were ever committed in a life, and the sessions that they must come from.
#[derive(Default, Clone)]
pub(super) struct LifeRecord {
    pub(super) bytes: Vec<u8>,
    /// From this offset on the bytes are this session's, beginning with this byte of it.
    runs: Vec<(u64, u8, u64)>,
    /// The lengths and states in which the storage ended it.
    ends: BTreeSet<(u64, &'static str)>,
}

impl Inner {
    pub(super) fn new_life(&mut self, record: LifeRecord) -> Life {
        self.next_life += 1;
        let life = Life::from_bits(self.next_life.into());
        self.lives.insert(life, record);
        life
    }

    // --- What is stored.

    /// Bytes were committed. They must be the next ones of the session that holds the resource.
    pub(super) fn committed(&mut self, life: Life, at: u64, data: &[u8]) {
        let Some(record) = self.lives.get_mut(&life) else { return self.fail(format_args!("{life:?} is unknown")) };
        let end = record.bytes.len() as u64;
        record.bytes.extend_from_slice(data);
        let (run, runs) = (record.runs.iter().rev().find(|run| run.0 <= at).copied(), record.runs.clone());
        self.check(at == end, format_args!("{} bytes committed at {at}, not at {end}", data.len()));
        let Some((from, session, skip)) = run else {
            return self.fail(format_args!("the bytes at {at} are of no session"));
        };
        let wrong = data.iter().enumerate().find(|(i, found)| **found != byte(session, skip + at - from + *i as u64));
        if let Some((i, _)) = wrong {
            self.fail(format_args!("byte {} is not session {session}'s: {runs:?}", at + i as u64));
        }
    }

    /// From `at` on a life has the bytes of this session, beginning with the session's byte `skip`.
    pub(super) fn expect_session(&mut self, life: Life, at: u64, session: u8, skip: u64) {
        let Some(record) = self.lives.get_mut(&life) else { return self.fail(format_args!("{life:?} is unknown")) };
        let len = record.bytes.len() as u64;
        // Removes sessions that left without a byte.
        record.runs.retain(|run| run.0 < at);
        record.runs.push((at, session, skip));
        self.check(at == len, format_args!("session {session} was let in at {at} of {len}"));
    }

    /// Begins a new life that has the first `len` bytes of another.
    pub(super) fn cut_life(&mut self, life: Life, len: u64) -> Life {
        let mut record = self.lives.get(&life).cloned().unwrap_or_default();
        record.bytes.truncate(len as usize);
        record.runs.retain(|run| run.0 < len);
        record.ends.retain(|end| end.0 <= len);
        self.new_life(record)
    }

    /// The storage ended a life in this state.
    pub(super) fn record_end(&mut self, life: Life, len: u64, state: State) {
        if let Some(record) = self.lives.get_mut(&life) {
            record.ends.insert((len, state.as_str()));
        }
    }

    /// Whether the storage ever ended the life in this state, at this length.
    pub(super) fn has_ended(&self, life: Life, len: u64, state: State) -> bool {
        self.lives.get(&life).is_some_and(|record| record.ends.contains(&(len, state.as_str())))
    }

    // --- Who holds.

    /// An appender was let in.
    pub(super) fn hold(&mut self, lease: &Lease, owner: Option<Owner>) -> u64 {
        let (key, life, revoked) = (&lease.resource().key, lease.resource().life, lease.revoked());
        let others = self.holds.values().filter(|hold| hold.key == *key && !hold.revoked.is_cancelled()).count();
        self.next_hold += 1;
        self.holds.insert(self.next_hold, Hold { key: key.clone(), life, revoked: revoked.clone() });
        // It may have been taken over, or its resource deleted, before it learned that it was let in.
        if revoked.is_cancelled() {
            return self.next_hold;
        }
        self.check(others == 0, format_args!("two appenders hold {key}"));
        let (now, grace) = (self.now(), self.plan.grace);
        let other = |at: &[u8; 32]| owner.unwrap_or(Owner::ANYONE).to_bytes() != *at;
        let kept = self.lost_at.iter().find(|((of, by), at)| of == key && other(by) && now < **at + grace);
        if let Some((_, at)) = kept {
            let at = *at;
            self.fail(format_args!("{key} is kept since {at:?}, and another appender was let in"));
        }
        self.forget_lost(key);
        self.next_hold
    }

    /// An appender is about to end, or is lost if there is an owner that can come back.
    pub(super) fn release(&mut self, hold: u64, lost: Option<Owner>) {
        let Some(Hold { key, life, revoked }) = self.holds.remove(&hold) else { return };
        if let Some(owner) = lost {
            // The resource may have been deleted, or its storage may have failed, and the hub doesn't know yet.
            let intact = self.store.get(&key).is_some_and(|stored| stored.life == life && !stored.poisoned);
            // After a failure the hub has no entry for it, and it is kept if the storage has bytes of this owner.
            let kept = match revoked.is_cancelled() || !intact {
                true => self
                    .store
                    .get(&key)
                    .is_some_and(|stored| stored.state == State::Lost && stored.owner() == Some(owner)),
                false => true,
            };
            let taken = self.holds.values().any(|hold| hold.key == key && !hold.revoked.is_cancelled());
            if kept && !taken {
                let (at, now) = ((key, owner.to_bytes()), self.now());
                match revoked.is_cancelled() {
                    // It may have been taken over by an appender that was lost before this one.
                    true => drop(self.maybe_lost_at.entry(at).or_insert(now)),
                    false => drop(self.lost_at.insert(at, now)),
                }
            }
        }
    }

    /// An appender has parked its resource.
    pub(super) fn parked(&mut self, hold: u64, owner: Owner) {
        let at = self.holds.get(&hold).map(|hold| (hold.key.clone(), owner.to_bytes()));
        self.release(hold, Some(owner));
        let longer = self.plan.parking_timeout - self.plan.grace;
        if let Some(since) = at.and_then(|at| self.lost_at.get_mut(&at)) {
            *since += longer;
        }
    }

    /// An appender begins to finish, which may fail.
    pub(super) fn finishing(&mut self, hold: u64, key: &Key, owner: Option<Owner>) {
        self.release(hold, None);
        if let Some(owner) = owner {
            self.maybe_lost(key, owner);
        }
    }

    /// An appender left before it learned whether it was let in or finished.
    pub(super) fn maybe_lost(&mut self, key: &Key, owner: Owner) {
        let now = self.now();
        self.maybe_lost_at.entry((key.clone(), owner.to_bytes())).or_insert(now);
    }

    /// Forgets for whom the resource at this key is kept.
    pub(super) fn forget_lost(&mut self, key: &Key) {
        self.lost_at.retain(|(of, _), _| of != key);
        self.maybe_lost_at.retain(|(of, _), _| of != key);
    }

    /// A storage call failed: only a resource that is lost in the storage is still kept.
    pub(super) fn storage_failed(&mut self, key: &Key) {
        if self.store.get(key).is_none_or(|stored| stored.state != State::Lost) {
            self.lost_at.retain(|(of, _), _| of != key);
        }
        // A parked one is lost from now on.
        let now = self.now();
        self.lost_at.iter_mut().filter(|((of, _), _)| of == key).for_each(|(_, since)| *since = now.min(*since));
    }

    /// The hub interrupts a lost resource.
    pub(super) fn interrupted(&mut self, key: &Key, owner: Owner) {
        let (now, grace) = (self.now(), self.plan.grace);
        let at = (key.clone(), owner.to_bytes());
        let held = self.holds.values().any(|hold| hold.key == *key && !hold.revoked.is_cancelled());
        self.check(!held, format_args!("{key} was interrupted while an appender holds it"));
        // An appender that left before it was let in has ended the parking all the same.
        let since = [self.lost_at.get(&at), self.maybe_lost_at.get(&at)].into_iter().flatten().min().copied();
        match since {
            Some(at) if now >= at + grace => {}
            Some(at) => self.fail(format_args!("{key} was interrupted though kept since {at:?}")),
            None => self.fail(format_args!("{key} was interrupted, and was not lost")),
        }
    }
}
