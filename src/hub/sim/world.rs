//! The seed, the random generator, the clock, and the trace of what happened.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use super::appender::Session;
use super::model::{Hold, LifeRecord};
use super::store::StoredResource;
use crate::hub::Durability;
use crate::identity::{AppenderId, Owner};
use crate::key::Key;
use crate::state::{Life, State};

tokio::task_local! {
    /// A follower's own random generator. A `watch` wakes its receivers in a random order, so followers must not share one.
    static OWN_RNG: Cell<u64>;
}

/// The state of one simulation. Locked for single steps only; there is only one thread.
#[derive(Clone)]
pub(super) struct World(Arc<Mutex<Inner>>);

pub(super) struct Inner {
    rng: u64,
    pub(super) plan: Plan,
    /// The number of the current process.
    pub(super) process: u64,
    pub(super) next_lease: u64,
    pub(super) next_life: u64,
    pub(super) next_hold: u64,
    /// The simulated time at which this process began.
    time_at_start: Duration,
    started_at: Instant,
    pub(super) store: BTreeMap<Key, StoredResource>,
    pub(super) lives: BTreeMap<Life, LifeRecord>,
    pub(super) sessions: Vec<Session>,
    /// Appenders that believe to hold their resource.
    pub(super) holds: BTreeMap<u64, Hold>,
    /// Since when each lost resource is kept, by key and owner. A parked one counts as lost later, by as much as it is kept
    /// longer.
    pub(super) lost_at: BTreeMap<(Key, [u8; 32]), Duration>,
    /// The same for appenders that left before they had an answer.
    pub(super) maybe_lost_at: BTreeMap<(Key, [u8; 32]), Duration>,
    /// The hash of the trace.
    hash: u64,
    /// The hash of what followers log, in any order.
    unordered_hash: u64,
    trace: Vec<String>,
    failed: Option<String>,
    /// How often each thing happened, to see that the seeds reach it.
    pub(super) counts: BTreeMap<&'static str, u64>,
}

/// What is drawn once for each seed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) durability: Durability,
    pub(super) grace: Duration,
    /// Longer than the grace.
    pub(super) parking_timeout: Duration,
    pub(super) tail_cache: usize,
    /// How many of ten thousand storage calls fail.
    pub(super) faults: u64,
    /// Whether there are power losses and failed syncs.
    pub(super) losses: bool,
    pub(super) slow: bool,
    pub(super) keys: u64,
    pub(super) sessions: u64,
    pub(super) followers: u64,
    pub(super) deleters: u64,
    pub(super) processes: u64,
}

/// The byte that a session sends at this index.
pub(super) fn byte(session: u8, at: u64) -> u8 {
    // Some line feeds, for followers that begin at a line.
    let mixed = (u64::from(session) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ at.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    match (mixed ^ (mixed >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 56 {
        0..16 => b'\n',
        other => other as u8,
    }
}

impl World {
    pub(super) fn new(seed: u64, started_at: Instant) -> Self {
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
            time_at_start: Duration::ZERO,
            started_at,
            store: BTreeMap::new(),
            lives: BTreeMap::new(),
            sessions: Vec::new(),
            holds: BTreeMap::new(),
            lost_at: BTreeMap::new(),
            maybe_lost_at: BTreeMap::new(),
            hash: 0xcbf2_9ce4_8422_2325,
            unordered_hash: 0,
            trace: Vec::new(),
            failed: None,
            counts: BTreeMap::new(),
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

    /// The key of a resource that an actor may use.
    pub(super) fn any_key(&self) -> Key {
        let keys = self.keys();
        keys[self.draw(keys.len() as u64) as usize].clone()
    }

    /// All keys that actors use.
    pub(super) fn keys(&self) -> Vec<Key> {
        let inner = self.lock();
        let own = inner.sessions.iter().filter(|session| session.is_anyone()).map(|session| session.key.clone());
        (0..inner.plan.keys).map(super::appender::key).chain(own).collect()
    }

    /// A random number below `n`.
    pub(super) fn draw(&self, n: u64) -> u64 {
        self.lock().draw(n)
    }

    /// True in this many of a hundred cases.
    pub(super) fn chance(&self, percent: u64) -> bool {
        self.draw(100) < percent
    }

    pub(super) fn log(&self, what: fmt::Arguments<'_>) {
        self.lock().log(what);
    }

    pub(super) fn fail(&self, what: fmt::Arguments<'_>) {
        self.lock().fail(what);
    }

    pub(super) fn check(&self, condition: bool, what: fmt::Arguments<'_>) {
        if !condition {
            self.fail(what);
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        self.lock().failed.is_some()
    }

    /// Runs a future with its own random generator.
    pub(super) fn with_own_rng<F: Future>(&self, run: F) -> impl Future<Output = F::Output> + use<F> {
        OWN_RNG.scope(Cell::new(self.draw(u64::MAX)), run)
    }

    /// Waits for the next millisecond that only this follower uses, so that no two followers act at the same moment.
    pub(super) async fn wait_for_own_millisecond(&self, index: u64) {
        let now = self.lock().started_at.elapsed().as_millis() as u64;
        tokio::time::sleep(Duration::from_millis(8 + index - now % 8)).await;
    }

    /// Sleeps for a random time, at most this many milliseconds.
    pub(super) async fn sleep_up_to(&self, most: u64) {
        let millis = self.draw(most + 1);
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    /// Sleeps for a random time or yields, and often does neither.
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

    /// The hash of everything that happened, or what failed.
    pub(super) fn outcome(&self) -> Result<u64, String> {
        let inner = self.lock();
        match &inner.failed {
            None => Ok(inner.hash.wrapping_add(inner.unordered_hash)),
            Some(failed) => {
                // What follows the first failure is of little use.
                let upto = inner.trace.iter().position(|line| line.contains("FAILED")).unwrap_or_default() + 1;
                let from = upto.saturating_sub(100);
                Err(format!("{}\n{:?}\n{failed}", inner.trace[from..upto].join("\n"), inner.plan))
            }
        }
    }

    pub(super) fn trace(&self) -> String {
        self.lock().trace.join("\n")
    }

    /// Begins a new process. No appender holds anything any more.
    pub(super) fn begin_process(&self) {
        let mut inner = self.lock();
        inner.started_at = Instant::now();
        inner.process += 1;
        inner.holds.clear();
        inner.lost_at.clear();
        inner.maybe_lost_at.clear();
        let now = inner.now();
        // Each grace begins anew.
        let lost: Vec<_> = inner
            .store
            .iter()
            .filter(|(_, stored)| stored.state == State::Lost)
            .filter_map(|(key, stored)| Some(((key.clone(), stored.owner()?.to_bytes()), now)))
            .collect();
        inner.lost_at.extend(lost);
        let process = inner.process;
        inner.log(format_args!("process {process} begins"));
    }

    /// Ends the current process.
    pub(super) fn end_process(&self) {
        let mut inner = self.lock();
        inner.time_at_start = inner.now();
        inner.started_at = Instant::now();
        // What still runs belongs to the ended process.
        inner.process += 1;
    }
}

impl Inner {
    pub(super) fn draw(&mut self, n: u64) -> u64 {
        let step = |state: u64| state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let own = OWN_RNG.try_with(|own| {
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
        self.time_at_start + self.started_at.elapsed()
    }

    pub(super) fn log(&mut self, what: fmt::Arguments<'_>) {
        let own = OWN_RNG.try_with(|_| ()).is_ok();
        let line = format!("{}{:>7} {what}", if own { '~' } else { ' ' }, self.now().as_millis());
        let begin = if own { 0xcbf2_9ce4_8422_2325 } else { self.hash };
        let hash = line.bytes().fold(begin, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        match own {
            true => self.unordered_hash = self.unordered_hash.wrapping_add(hash),
            false => self.hash = hash,
        }
        self.trace.push(line);
    }

    pub(super) fn fail(&mut self, what: fmt::Arguments<'_>) {
        self.log(format_args!("FAILED: {what}"));
        self.failed.get_or_insert_with(|| what.to_string());
    }

    pub(super) fn check(&mut self, condition: bool, what: fmt::Arguments<'_>) {
        if !condition {
            self.fail(what);
        }
    }

    /// Counts something that happened.
    pub(super) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub(super) fn owner(&mut self) -> Owner {
        let id = format!("{:022}", self.draw(u64::MAX));
        Owner::new(&id.parse::<AppenderId>().unwrap(), None)
    }
}
