//! The hub's own code in a deterministic simulation. A seed decides the time, when the storage responds or fails, when
//! appenders and followers connect and disconnect, and when the server stops, is killed or loses its power.
//!
//! A seed reproduces exactly: there is one thread, a clock that only the simulation moves, one random generator, and nothing
//! depends on the order of a hash map.
//!
//! ```text
//! cargo test --lib simulation                                    a few hundred seeds
//! HTTPFSTREAM_SIM_SEEDS=100000 cargo test --lib simulation       this many seeds
//! HTTPFSTREAM_SIM_SEED=4711 cargo test --lib simulation -- --nocapture    this seed, with a trace of all that happens
//! ```
//!
//! # What is checked
//! - The bytes that are committed in a life are the next ones of the one session that holds the resource: none is repeated,
//!   left out, or comes from another session or from a fenced appender.
//! - Acknowledged bytes are durable, and survive a crash, a power loss and a failed sync.
//! - A finish succeeds only when all bytes of the session are stored and the resource is finished. A follower gets an end
//!   only where the resource has ended.
//! - A follower gets the bytes of one life, from where it began.
//! - There is one holder at a time. During the grace of a lost appender no other is let in, and the resource isn't
//!   interrupted before its grace is over.
//! - No call hangs. A shutdown waits only for what must end. Nothing is left in the hub at the end.
//!
//! # Files
//! `appender`, `follower` and `disruptor` are the actors, `store` is the storage, `world` has the seed and the clock, and
//! `model` knows what must hold.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::appender::Session;
use self::store::SimStore;
use self::world::World;
use super::{AttachRequest, Attached};
use crate::error::ErrorKind;
use crate::state::State;
use crate::storage::Open;
use crate::streams::Streams;

mod appender;
mod disruptor;
mod follower;
mod model;
mod store;
mod world;

/// How a process ends.
#[derive(Debug, Clone, Copy)]
enum Ending {
    Killed,
    PowerLost,
    Stopped,
}

/// Longer than anything that a shutdown may wait for.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(300);

/// Runs a seed to its end.
fn run(seed: u64) -> (World, Result<u64, String>) {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let first = runtime();
    let world = World::new(seed, first.block_on(async { Instant::now() }));
    let sessions: Vec<_> = (0..world.plan().sessions).map(|id| Session::draw(&world, id as u8)).collect();
    world.lock().sessions = sessions;
    let mut runtimes = vec![first];
    let processes = world.plan().processes;
    for process in 1..=processes {
        // Each process has its own runtime, which dies with it.
        let running = runtimes.pop().unwrap_or_else(runtime);
        let ending = running.block_on(async {
            world.begin_process();
            let ending = run_process(&world, process == processes).await;
            world.end_process();
            ending
        });
        match ending {
            Ending::Killed => running.block_on(async { store::crash(&world, false) }),
            Ending::PowerLost => running.block_on(async { store::crash(&world, true) }),
            Ending::Stopped => {}
        }
        drop(running);
        if world.has_failed() {
            break;
        }
    }
    let outcome = world.outcome();
    (world, outcome)
}

/// Runs one process.
async fn run_process(world: &World, last: bool) -> Ending {
    let plan = world.plan();
    let builder = Streams::builder(SimStore::new(world)).durability(plan.durability);
    let streams = builder.grace(plan.grace).parking_timeout(plan.parking_timeout).tail_cache(plan.tail_cache).build();
    let stop = CancellationToken::new();
    let mut followers = tokio::task::JoinSet::new();
    for index in 0..plan.followers {
        followers.spawn(world.with_own_rng(follower::follow(world.clone(), streams.clone(), index, stop.clone())));
    }
    let mut others = tokio::task::JoinSet::new();
    for index in 0..plan.sessions {
        others.spawn(appender::append(world.clone(), streams.clone(), index as usize));
    }
    for _ in 0..plan.deleters {
        others.spawn(disruptor::delete(world.clone(), streams.clone()));
    }
    if world.chance(15) {
        others.spawn(disruptor::evict(world.clone(), streams.clone()));
    }
    if !last {
        world.sleep_up_to(8000).await;
        let ending = match world.draw(3) {
            0 if plan.losses => Ending::PowerLost,
            1 => Ending::Stopped,
            _ => Ending::Killed,
        };
        if let Ending::Stopped = ending {
            shutdown(world, &streams).await;
            // A cancelled append may still run, as on a blocking pool.
            let held = world
                .lock()
                .store
                .values()
                .filter(|stored| stored.lease.is_some() && stored.running_appends == 0)
                .count();
            world.check(held == 0, format_args!("{held} resources are held after the shutdown"));
            tokio::time::timeout(SHUTDOWN_GRACE, join(world, &mut others)).await.ok();
            tokio::time::timeout(SHUTDOWN_GRACE, join(world, &mut followers)).await.ok();
        }
        return ending;
    }
    let all = tokio::time::timeout(Duration::from_secs(20_000), join(world, &mut others)).await;
    world.check(all.is_ok(), format_args!("an appender hangs"));
    world.lock().plan.faults = 0;
    stop.cancel();
    let all = tokio::time::timeout(Duration::from_secs(60), join(world, &mut followers)).await;
    world.check(all.is_ok(), format_args!("a follower hangs"));
    if !world.has_failed() {
        check_closed(world, &streams).await;
    }
    shutdown(world, &streams).await;
    Ending::Stopped
}

/// Waits for all actors. A panic in one is a failure.
async fn join(world: &World, tasks: &mut tokio::task::JoinSet<()>) {
    while let Some(done) = tasks.join_next().await {
        world.check(done.is_ok(), format_args!("an actor panicked: {done:?}"));
    }
}

async fn shutdown(world: &World, streams: &Streams) {
    world.log(format_args!("shutdown"));
    let began = Instant::now();
    streams.shutdown(SHUTDOWN_GRACE).await;
    let took = began.elapsed();
    world.log(format_args!("down"));
    world.check(took < Duration::from_secs(20), format_args!("the shutdown took {took:?}"));
    // A call that goes on may still have its key locked.
    let (open, leases) = (streams.hub.open_resources().len(), streams.hub.leases.len());
    world.check((open, leases) == (0, 0), format_args!("left after the shutdown: {open} open, {leases} leases"));
}

/// Checks that nothing is left in the hub.
fn check_empty(world: &World, streams: &Streams) {
    let hub = &streams.hub;
    let (entries, leases, tasks) = (hub.entries().len(), hub.leases.len(), hub.tasks.len());
    world.check(
        (entries, leases, tasks) == (0, 0, 0),
        format_args!("left: {entries} entries, {leases} leases, {tasks} tasks"),
    );
}

/// Checks that after the last actor has gone every resource closes, complete, and can be opened.
async fn check_closed(world: &World, streams: &Streams) {
    let plan = world.plan();
    world.log(format_args!("waiting for all resources to close"));
    tokio::time::sleep(plan.parking_timeout + Duration::from_secs(30)).await;
    check_empty(world, streams);
    for key in world.keys() {
        // A resource whose end failed in the storage is kept for its grace at most.
        for last in [false, true] {
            match streams.hub.attach(&key, AttachRequest::new(Open::Continue)).await {
                Ok(Attached::Open { lease, .. }) => {
                    let mut inner = world.lock();
                    let hold = inner.hold(&lease, None);
                    // A resource that was kept for anyone stays so.
                    inner.release(hold, lease.resource().owner);
                    drop(inner);
                    drop(lease);
                    break;
                }
                Err(error) if error.kind() == ErrorKind::Sealed => break,
                Err(error) if error.kind() == ErrorKind::Busy && !last => {
                    tokio::time::sleep(plan.grace + Duration::from_secs(30)).await;
                }
                Err(error) => world.fail(format_args!("{key} is not free: {error:?}")),
                Ok(Attached::Finished(_)) => {
                    world.fail(format_args!("{key} is reported finished to an appender that never finished it"))
                }
            }
        }
        tokio::time::sleep(Duration::from_secs(30)).await;
        let outcome = {
            let inner = world.lock();
            inner.store.get(&key).map(|stored| {
                let complete = inner.lives[&stored.life].bytes == stored.bytes;
                (stored.lease, stored.state, complete)
            })
        };
        let Some((lease, state, complete)) = outcome else { continue };
        let closed = lease.is_none() && state != State::Lost && complete;
        world.check(closed, format_args!("{key} is left {state}, lease {lease:?}, complete: {complete}"));
        let Ok(mut follower) = streams.follow(key.as_str()).await else {
            world.fail(format_args!("{key} can't be followed at the end"));
            continue;
        };
        follower::read(world, 99, &mut follower, &CancellationToken::new(), true).await;
        let len = world.lock().store.get(&key).map(|stored| stored.bytes.len() as u64);
        world.check(Some(follower.offset()) == len, format_args!("the last follower of {key} misses something"));
    }
    check_empty(world, streams);
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

#[test]
fn simulation() {
    let seeds = match (variable("HTTPFSTREAM_SIM_SEED"), variable("HTTPFSTREAM_SIM_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, Some(seeds)) => 0..seeds,
        (None, None) => 0..300,
    };
    let mut counts = std::collections::BTreeMap::<_, u64>::new();
    for seed in seeds.clone() {
        let (world, outcome) = run(seed);
        if variable("HTTPFSTREAM_SIM_SEED").is_some() {
            println!("{}", world.trace());
        }
        if let Err(failure) = outcome {
            panic!("{failure}\nseed {seed} failed: HTTPFSTREAM_SIM_SEED={seed} cargo test --lib simulation");
        }
        for (what, count) in &world.lock().counts {
            *counts.entry(*what).or_default() += count;
        }
    }
    println!("{} seeds: {counts:?}", seeds.end - seeds.start);
}

#[test]
fn a_seed_of_the_simulation_reproduces_exactly() {
    for seed in 0..20 {
        let ((one, first), (two, second)) = (run(seed), run(seed));
        let (one, two) = (one.trace(), two.trace());
        let ordered =
            |trace: &str| trace.lines().filter(|line| !line.starts_with('~')).map(str::to_owned).collect::<Vec<_>>();
        let differs = ordered(&one).into_iter().zip(ordered(&two)).find(|(one, two)| one != two);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!(first, second, "seed {seed}");
    }
}
