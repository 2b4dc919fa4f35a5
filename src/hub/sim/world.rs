//! What the simulation knows and the hub doesn't: the seed, the time, what may be stored, told and held.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::Lease;
use super::actors::Session;
use super::store::Res;
use crate::hub::Durability;
use crate::identity::{AppenderId, Owner};
use crate::key::Key;
use crate::state::{Life, State};

tokio::task_local! {
    /// A follower's own generator. The order in which a `watch` wakes several is random, so they must not share one.
    static OWN: Cell<u64>;
}

/// All that one seed is about. Locked for single steps only; there is but one thread.
#[derive(Clone)]
pub(super) struct World(Arc<Mutex<Inner>>);

pub(super) struct Inner {
    rng: u64,
    pub(super) plan: Plan,
    /// Counts the processes, one after the other.
    pub(super) process: u64,
    pub(super) next_lease: u64,
    next_life: u64,
    next_hold: u64,
    /// The time before this process began.
    before: Duration,
    began: Instant,
    pub(super) store: BTreeMap<Key, Res>,
    pub(super) lives: BTreeMap<Life, Told>,
    pub(super) sessions: Vec<Session>,
    /// Appenders that take themselves for the holder.
    holds: BTreeMap<u64, Hold>,
    /// Whose resource is kept since when. What is parked counts as lost later, by as much as it is kept longer.
    lost_at: BTreeMap<(Key, [u8; 32]), Duration>,
    /// The same of those who asked and didn't wait for the answer.
    perhaps_lost_at: BTreeMap<(Key, [u8; 32]), Duration>,
    hash: u64,
    /// Of what followers say, in any order.
    loose: u64,
    trace: Vec<String>,
    failed: Option<String>,
    pub(super) seen: BTreeMap<&'static str, u64>,
}

struct Hold {
    key: Key,
    life: Life,
    over: CancellationToken,
}

/// A life: every byte that was ever committed, and whose they have to be.
#[derive(Default, Clone)]
pub(super) struct Told {
    pub(super) bytes: Vec<u8>,
    /// From here on it is this session's, from this byte of it.
    runs: Vec<(u64, u8, u64)>,
    /// Where it ended, as far as that has been told by the storage.
    pub(super) ends: BTreeSet<(u64, &'static str)>,
}

/// What is drawn once for a seed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) durability: Durability,
    pub(super) grace: Duration,
    /// Longer than the grace.
    pub(super) parking_timeout: Duration,
    pub(super) tail_cache: usize,
    /// In ten thousand calls of the storage.
    pub(super) faults: u64,
    /// Power losses and failed syncs.
    pub(super) losses: bool,
    pub(super) slow: bool,
    pub(super) keys: u64,
    pub(super) sessions: u64,
    pub(super) followers: u64,
    pub(super) deleters: u64,
    pub(super) processes: u64,
}

/// Byte `at` of a session.
pub(super) fn byte(session: u8, at: u64) -> u8 {
    // A line feed now and then, for followers that count lines.
    let mixed = (u64::from(session) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ at.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    match (mixed ^ (mixed >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 56 {
        0..16 => b'\n',
        other => other as u8,
    }
}

impl World {
    pub(super) fn new(seed: u64, began: Instant) -> Self {
        let plan = Plan {
            durability: Durability::Acked,
            grace: Duration::from_secs(3),
            parking_timeout: Duration::from_secs(9),
            tail_cache: 64,
            faults: 0,
            losses: false,
            slow: false,
            keys: 1,
            sessions: 1,
            followers: 1,
            deleters: 0,
            processes: 1,
        };
        let world = Self(Arc::new(Mutex::new(Inner {
            rng: seed.wrapping_mul(0xd129_0c7b_5a4d_3f91) ^ 0x6a09_e667_f3bc_c908,
            plan,
            process: 0,
            next_lease: 0,
            next_life: 0,
            next_hold: 0,
            before: Duration::ZERO,
            began,
            store: BTreeMap::new(),
            lives: BTreeMap::new(),
            sessions: Vec::new(),
            holds: BTreeMap::new(),
            lost_at: BTreeMap::new(),
            perhaps_lost_at: BTreeMap::new(),
            hash: 0xcbf2_9ce4_8422_2325,
            loose: 0,
            trace: Vec::new(),
            failed: None,
            seen: BTreeMap::new(),
        })));
        let plan = Plan {
            durability: match world.draw(4) {
                0 => Durability::Process,
                1 => Durability::Interval(Duration::from_millis(200)),
                _ => Durability::Acked,
            },
            grace: Duration::from_millis(500 + world.draw(4000)),
            parking_timeout: Duration::from_millis(5000 + world.draw(5000)),
            tail_cache: [0, 16, 64, 65536][world.draw(4) as usize],
            faults: [0, 0, 50, 200, 600][world.draw(5) as usize],
            losses: world.draw(2) == 0,
            slow: world.draw(4) == 0,
            keys: 1 + world.draw(2),
            sessions: 1 + world.draw(5),
            followers: world.draw(4),
            deleters: world.draw(3) / 2,
            processes: 1 + world.draw(3),
        };
        world.lock().plan = Plan { losses: plan.losses && plan.durability != Durability::Process, ..plan };
        world
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn plan(&self) -> Plan {
        self.lock().plan
    }

    /// The key of one of the resources that there are, or may be.
    pub(super) fn any_key(&self) -> Key {
        let keys = self.keys();
        keys[self.draw(keys.len() as u64) as usize].clone()
    }

    /// All keys.
    pub(super) fn keys(&self) -> Vec<Key> {
        let inner = self.lock();
        let own = inner.sessions.iter().filter(|session| session.is_anyone()).map(|session| session.key.clone());
        (0..inner.plan.keys).map(super::actors::key).chain(own).collect()
    }

    /// A number below `n`.
    pub(super) fn draw(&self, n: u64) -> u64 {
        self.lock().draw(n)
    }

    /// Whether it happens this time, in so many of a hundred.
    pub(super) fn chance(&self, percent: u64) -> bool {
        self.draw(100) < percent
    }

    pub(super) fn say(&self, what: fmt::Arguments<'_>) {
        self.lock().say(what);
    }

    pub(super) fn fail(&self, what: fmt::Arguments<'_>) {
        self.lock().fail(what);
    }

    pub(super) fn check(&self, holds: bool, what: fmt::Arguments<'_>) {
        if !holds {
            self.fail(what);
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        self.lock().failed.is_some()
    }

    /// Runs with a generator of its own.
    pub(super) fn alone<F: Future>(&self, run: F) -> impl Future<Output = F::Output> + use<F> {
        OWN.scope(Cell::new(self.draw(u64::MAX)), run)
    }

    /// Waits for the next millisecond that is a follower's own, so that no two of them come at the same moment.
    pub(super) async fn turn(&self, index: u64) {
        let now = self.lock().began.elapsed().as_millis() as u64;
        tokio::time::sleep(Duration::from_millis(8 + index - now % 8)).await;
    }

    /// Waits up to so many milliseconds.
    pub(super) async fn nap(&self, most: u64) {
        let millis = self.draw(most + 1);
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    /// The same, but often not at all.
    pub(super) async fn pause(&self) {
        let (kind, yields, short, slow) = {
            let mut inner = self.lock();
            (inner.draw(20), inner.draw(3), inner.draw(40), inner.plan.slow)
        };
        match kind {
            0..8 => {}
            8..14 => {
                for _ in 0..=yields {
                    tokio::task::yield_now().await;
                }
            }
            19 if slow => tokio::time::sleep(Duration::from_millis(short * 40)).await,
            _ => tokio::time::sleep(Duration::from_millis(short)).await,
        }
    }

    /// The hash of all that happened, or what went wrong.
    pub(super) fn outcome(&self) -> Result<u64, String> {
        let inner = self.lock();
        match &inner.failed {
            None => Ok(inner.hash.wrapping_add(inner.loose)),
            Some(failed) => {
                // What comes after the first failure means little.
                let upto = inner.trace.iter().position(|line| line.contains("WRONG")).unwrap_or_default() + 1;
                let from = upto.saturating_sub(100);
                Err(format!("{}\n{:?}\n{failed}", inner.trace[from..upto].join("\n"), inner.plan))
            }
        }
    }

    pub(super) fn story(&self) -> String {
        self.lock().trace.join("\n")
    }

    /// A new process begins; what its holders were told by the one before is void.
    pub(super) fn begin(&self) {
        let mut inner = self.lock();
        inner.began = Instant::now();
        inner.process += 1;
        inner.holds.clear();
        inner.lost_at.clear();
        inner.perhaps_lost_at.clear();
        let now = inner.now();
        // The grace counts anew.
        let lost: Vec<_> = inner
            .store
            .iter()
            .filter(|(_, res)| res.state == State::Lost)
            .filter_map(|(key, res)| Some(((key.clone(), res.owner()?.to_bytes()), now)))
            .collect();
        inner.lost_at.extend(lost);
        let process = inner.process;
        inner.say(format_args!("process {process} begins"));
    }

    /// The process is at its end.
    pub(super) fn end(&self) {
        let mut inner = self.lock();
        inner.before = inner.now();
        inner.began = Instant::now();
        // Whatever still runs belongs to the dead.
        inner.process += 1;
    }
}

impl Inner {
    pub(super) fn draw(&mut self, n: u64) -> u64 {
        let step = |state: u64| state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let own = OWN.try_with(|own| {
            own.set(step(own.get()));
            own.get()
        });
        let mut z = own.unwrap_or_else(|_| {
            self.rng = step(self.rng);
            self.rng
        });
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    pub(super) fn now(&self) -> Duration {
        self.before + self.began.elapsed()
    }

    pub(super) fn say(&mut self, what: fmt::Arguments<'_>) {
        let own = OWN.try_with(|_| ()).is_ok();
        let line = format!("{}{:>7} {what}", if own { '~' } else { ' ' }, self.now().as_millis());
        let begin = if own { 0xcbf2_9ce4_8422_2325 } else { self.hash };
        let hash = line.bytes().fold(begin, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        match own {
            true => self.loose = self.loose.wrapping_add(hash),
            false => self.hash = hash,
        }
        self.trace.push(line);
    }

    pub(super) fn fail(&mut self, what: fmt::Arguments<'_>) {
        self.say(format_args!("WRONG: {what}"));
        self.failed.get_or_insert_with(|| what.to_string());
    }

    pub(super) fn check(&mut self, holds: bool, what: fmt::Arguments<'_>) {
        if !holds {
            self.fail(what);
        }
    }

    /// Counts what was come across, to see that the seeds reach it.
    pub(super) fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    pub(super) fn owner(&mut self) -> Owner {
        let id = format!("{:022}", self.draw(u64::MAX));
        Owner::new(&id.parse::<AppenderId>().unwrap(), None)
    }

    pub(super) fn new_life(&mut self, told: Told) -> Life {
        self.next_life += 1;
        let life = Life::from_bits(self.next_life.into());
        self.lives.insert(life, told);
        life
    }

    // --- what is stored

    /// Bytes are committed: they have to be the next ones of whoever holds the resource.
    pub(super) fn committed(&mut self, life: Life, at: u64, data: &[u8]) {
        let Some(told) = self.lives.get_mut(&life) else { return self.fail(format_args!("a life that never was")) };
        let end = told.bytes.len() as u64;
        told.bytes.extend_from_slice(data);
        let (run, runs) = (told.runs.iter().rev().find(|run| run.0 <= at).copied(), told.runs.clone());
        self.check(at == end, format_args!("{} bytes committed at {at}, not at {end}", data.len()));
        let Some((from, session, skip)) = run else { return self.fail(format_args!("bytes of nobody at {at}")) };
        let wrong = data.iter().enumerate().find(|(i, found)| **found != byte(session, skip + at - from + *i as u64));
        if let Some((i, _)) = wrong {
            self.fail(format_args!("byte {} is not session {session}'s: {runs:?}", at + i as u64));
        }
    }

    /// From here on a life is a session's, from the session's byte `skip` on.
    pub(super) fn granted(&mut self, life: Life, at: u64, session: u8, skip: u64) {
        let Some(told) = self.lives.get_mut(&life) else { return self.fail(format_args!("a life that never was")) };
        let len = told.bytes.len() as u64;
        // Those who came and went without a byte.
        told.runs.retain(|run| run.0 < at);
        told.runs.push((at, session, skip));
        self.check(at == len, format_args!("session {session} was told to go on at {at} of {len}"));
    }

    /// A life goes on as another one, cut short.
    pub(super) fn cut(&mut self, life: Life, len: u64) -> Life {
        let mut told = self.lives.get(&life).cloned().unwrap_or_default();
        told.bytes.truncate(len as usize);
        told.runs.retain(|run| run.0 < len);
        told.ends.retain(|end| end.0 <= len);
        self.new_life(told)
    }

    pub(super) fn ended(&mut self, life: Life, len: u64, state: State) {
        if let Some(told) = self.lives.get_mut(&life) {
            told.ends.insert((len, state.as_str()));
        }
    }

    pub(super) fn has_ended(&self, life: Life, len: u64, state: State) -> bool {
        self.lives.get(&life).is_some_and(|told| told.ends.contains(&(len, state.as_str())))
    }

    // --- who holds

    /// An appender was let in.
    pub(super) fn hold(&mut self, lease: &Lease, owner: Option<Owner>) -> u64 {
        let (key, life, over) = (&lease.resource().key, lease.resource().life, lease.revoked());
        let others = self.holds.values().filter(|hold| hold.key == *key && !hold.over.is_cancelled()).count();
        self.next_hold += 1;
        self.holds.insert(self.next_hold, Hold { key: key.clone(), life, over: over.clone() });
        // It may have been taken over itself, or its resource deleted, before it heard of it.
        if over.is_cancelled() {
            return self.next_hold;
        }
        self.check(others == 0, format_args!("two hold {key}"));
        let (now, grace) = (self.now(), self.plan.grace);
        let other = |at: &[u8; 32]| owner.unwrap_or(Owner::ANYONE).to_bytes() != *at;
        let kept = self.lost_at.iter().find(|((of, by), at)| of == key && other(by) && now < **at + grace);
        if let Some((_, at)) = kept {
            let at = *at;
            self.fail(format_args!("{key} is kept since {at:?}, and somebody else got in"));
        }
        self.forget(key);
        self.next_hold
    }

    /// An appender is about to end, or is lost if `owner` can come back.
    pub(super) fn release(&mut self, hold: u64, lost: Option<Owner>) {
        let Some(Hold { key, life, over }) = self.holds.remove(&hold) else { return };
        if let Some(owner) = lost {
            // Deleted, and the hub is about to hear of it, or the storage failed, which it is about to hear of too.
            let there = self.store.get(&key).is_some_and(|res| res.life == life && !res.poisoned);
            // Where the storage failed the resource is out of the hub's hands, and is kept if it had any bytes of it.
            let kept = match over.is_cancelled() || !there {
                true => self.store.get(&key).is_some_and(|res| res.state == State::Lost && res.owner() == Some(owner)),
                false => true,
            };
            let taken = self.holds.values().any(|hold| hold.key == key && !hold.over.is_cancelled());
            if kept && !taken {
                let (at, now) = ((key, owner.to_bytes()), self.now());
                match over.is_cancelled() {
                    // Perhaps it was taken over by somebody who was lost before this.
                    true => drop(self.perhaps_lost_at.entry(at).or_insert(now)),
                    false => drop(self.lost_at.insert(at, now)),
                }
            }
        }
    }

    /// An appender has left its resource open.
    pub(super) fn parked(&mut self, hold: u64, owner: Owner) {
        let at = self.holds.get(&hold).map(|hold| (hold.key.clone(), owner.to_bytes()));
        self.release(hold, Some(owner));
        let longer = self.plan.parking_timeout - self.plan.grace;
        if let Some(since) = at.and_then(|at| self.lost_at.get_mut(&at)) {
            *since += longer;
        }
    }

    /// An appender asks for its end, which may fail.
    pub(super) fn finishing(&mut self, hold: u64, key: &Key, owner: Option<Owner>) {
        self.release(hold, None);
        if let Some(owner) = owner {
            self.went(key, owner);
        }
    }

    /// Somebody went away before it heard whether it was let in.
    pub(super) fn went(&mut self, key: &Key, owner: Owner) {
        let now = self.now();
        self.perhaps_lost_at.entry((key.clone(), owner.to_bytes())).or_insert(now);
    }

    pub(super) fn forget(&mut self, key: &Key) {
        self.lost_at.retain(|(of, _), _| of != key);
        self.perhaps_lost_at.retain(|(of, _), _| of != key);
    }

    /// The storage failed: what it doesn't know to be lost need not be kept any more.
    pub(super) fn shaken(&mut self, key: &Key) {
        if self.store.get(key).is_none_or(|res| res.state != State::Lost) {
            self.lost_at.retain(|(of, _), _| of != key);
        }
        // And what was parked is lost from now on.
        let now = self.now();
        self.lost_at.iter_mut().filter(|((of, _), _)| of == key).for_each(|(_, since)| *since = now.min(*since));
    }

    /// The hub gives up on a lost appender.
    pub(super) fn given_up(&mut self, key: &Key, owner: Owner) {
        let (now, grace) = (self.now(), self.plan.grace);
        let at = (key.clone(), owner.to_bytes());
        let held = self.holds.values().any(|hold| hold.key == *key && !hold.over.is_cancelled());
        self.check(!held, format_args!("{key} was given up while somebody holds it"));
        // Who went away before it was let in has ended a parking all the same.
        let since = [self.lost_at.get(&at), self.perhaps_lost_at.get(&at)].into_iter().flatten().min().copied();
        match since {
            Some(at) if now >= at + grace => {}
            Some(at) => self.fail(format_args!("{key} was given up though kept since {at:?}")),
            None => self.fail(format_args!("{key} was given up and nobody had lost it")),
        }
    }
}
