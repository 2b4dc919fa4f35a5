//! The hub's own code under a simulation that a seed decides: the time, what the storage does and when, who comes, goes,
//! breaks off, and when the server stops, is killed or loses its power.
//!
//! A seed reproduces exactly: one thread, a clock that only the simulation moves, one generator, no order of a hash map.
//!
//! ```text
//! cargo test --lib simulation                                    a few hundred seeds
//! HTTPFSTREAM_SIM_SEEDS=100000 cargo test --lib simulation       so many
//! HTTPFSTREAM_SIM_SEED=4711 cargo test --lib simulation -- --nocapture    this one, and all that happens in it
//! ```
//!
//! # What is checked
//! - What is committed in a life are the next bytes of the one session that holds the resource: nothing twice, nothing
//!   left out, nothing of another's, nothing of a fenced one.
//! - What was acknowledged is durable, and stays through a crash, a power loss and a failed sync.
//! - A finish is answered only when all the session's bytes are stored and it is finished; a follower is told an end
//!   only where there is one.
//! - What a follower gets are the bytes of one life from where it began.
//! - There is one holder at a time; in the grace of a lost one nobody else is let in; nobody is given up before.
//! - No call hangs; a shutdown waits for nothing but what has to end; nothing is left in the hub at the end.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::actors::Session;
use self::store::SimStore;
use self::world::World;
use super::{AttachRequest, Attached};
use crate::error::ErrorKind;
use crate::state::State;
use crate::storage::Open;
use crate::streams::Streams;

mod actors;
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
const PATIENCE: Duration = Duration::from_secs(300);

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
        // Each process has one of its own, which dies with it.
        let running = runtimes.pop().unwrap_or_else(runtime);
        let ending = running.block_on(async {
            world.begin();
            let ending = live(&world, process == processes).await;
            world.end();
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

/// The life of one process.
async fn live(world: &World, last: bool) -> Ending {
    let plan = world.plan();
    let builder = Streams::builder(SimStore::new(world)).durability(plan.durability);
    let streams = builder.grace(plan.grace).parking_timeout(plan.parking_timeout).tail_cache(plan.tail_cache).build();
    let stop = CancellationToken::new();
    let mut followers = tokio::task::JoinSet::new();
    for index in 0..plan.followers {
        followers.spawn(world.alone(actors::follow(world.clone(), streams.clone(), index, stop.clone())));
    }
    let mut others = tokio::task::JoinSet::new();
    for index in 0..plan.sessions {
        others.spawn(actors::append(world.clone(), streams.clone(), index as usize));
    }
    for _ in 0..plan.deleters {
        others.spawn(actors::delete(world.clone(), streams.clone()));
    }
    if world.chance(15) {
        others.spawn(actors::evict(world.clone(), streams.clone()));
    }
    if !last {
        world.nap(8000).await;
        let ending = match world.draw(3) {
            0 if plan.losses => Ending::PowerLost,
            1 => Ending::Stopped,
            _ => Ending::Killed,
        };
        if let Ending::Stopped = ending {
            shutdown(world, &streams).await;
            // An append that was broken off may still run, as on a blocking pool.
            let open = world.lock().store.values().filter(|res| res.lease.is_some() && res.busy == 0).count();
            world.check(open == 0, format_args!("{open} resources are held after the shutdown"));
            tokio::time::timeout(PATIENCE, join(world, &mut others)).await.ok();
            tokio::time::timeout(PATIENCE, join(world, &mut followers)).await.ok();
        }
        return ending;
    }
    let all = tokio::time::timeout(Duration::from_secs(20_000), join(world, &mut others)).await;
    world.check(all.is_ok(), format_args!("the appenders don't come to an end"));
    world.lock().plan.faults = 0;
    stop.cancel();
    let all = tokio::time::timeout(Duration::from_secs(60), join(world, &mut followers)).await;
    world.check(all.is_ok(), format_args!("a follower hangs"));
    if !world.has_failed() {
        settle(world, &streams).await;
    }
    shutdown(world, &streams).await;
    Ending::Stopped
}

/// A panic in an actor is a failure too.
async fn join(world: &World, tasks: &mut tokio::task::JoinSet<()>) {
    while let Some(done) = tasks.join_next().await {
        world.check(done.is_ok(), format_args!("an actor panicked: {done:?}"));
    }
}

async fn shutdown(world: &World, streams: &Streams) {
    world.say(format_args!("shutdown"));
    let began = Instant::now();
    streams.shutdown(PATIENCE).await;
    let took = began.elapsed();
    world.say(format_args!("down"));
    world.check(took < Duration::from_secs(20), format_args!("the shutdown took {took:?}"));
    // A call that goes on may still have a key for itself.
    let (open, leases) = (streams.hub.open_resources().len(), streams.hub.leases.len());
    world.check((open, leases) == (0, 0), format_args!("left by the shutdown: {open} open, {leases} leases"));
}

/// Nothing is left in the hub.
fn left(world: &World, streams: &Streams) {
    let hub = &streams.hub;
    let (open, leases, tasks) = (hub.entries().len(), hub.leases.len(), hub.tasks.len());
    world.check((open, leases, tasks) == (0, 0, 0), format_args!("left: {open} open, {leases} leases, {tasks} tasks"));
}

/// When nobody is there any more, every resource comes to rest, whole, and free.
async fn settle(world: &World, streams: &Streams) {
    let plan = world.plan();
    world.say(format_args!("settling"));
    tokio::time::sleep(plan.parking_timeout + Duration::from_secs(30)).await;
    left(world, streams);
    for key in world.keys() {
        // What the storage failed to end is kept for its grace at most.
        for last in [false, true] {
            match streams.hub.attach(&key, AttachRequest::new(Open::Continue)).await {
                Ok(Attached::Open { lease, .. }) => {
                    let mut inner = world.lock();
                    let hold = inner.hold(&lease, None);
                    // Kept for anyone, if it was.
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
                Ok(Attached::Finished(_)) => world.fail(format_args!("{key} finished by nobody")),
            }
        }
        tokio::time::sleep(Duration::from_secs(30)).await;
        let stands = {
            let inner = world.lock();
            inner.store.get(&key).map(|res| (res.lease, res.state, inner.lives[&res.life].bytes == res.bytes))
        };
        let Some((lease, state, whole)) = stands else { continue };
        let closed = lease.is_none() && state != State::Lost && whole;
        world.check(closed, format_args!("{key} is left {state}, by {lease:?}, whole: {whole}"));
        let Ok(mut follower) = streams.follow(key.as_str()).await else {
            world.fail(format_args!("{key} can't be followed at the end"));
            continue;
        };
        actors::read(world, 99, &mut follower, &CancellationToken::new(), true).await;
        let len = world.lock().store.get(&key).map(|res| res.bytes.len() as u64);
        world.check(Some(follower.offset()) == len, format_args!("the last follower of {key} misses something"));
    }
    left(world, streams);
}

fn wanted(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

#[test]
fn simulation() {
    let seeds = match (wanted("HTTPFSTREAM_SIM_SEED"), wanted("HTTPFSTREAM_SIM_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, Some(seeds)) => 0..seeds,
        (None, None) => 0..300,
    };
    let mut seen = std::collections::BTreeMap::<_, u64>::new();
    for seed in seeds.clone() {
        let (world, outcome) = run(seed);
        if wanted("HTTPFSTREAM_SIM_SEED").is_some() {
            println!("{}", world.story());
        }
        if let Err(story) = outcome {
            panic!("{story}\nseed {seed} failed: HTTPFSTREAM_SIM_SEED={seed} cargo test --lib simulation");
        }
        for (what, count) in &world.lock().seen {
            *seen.entry(*what).or_default() += count;
        }
    }
    println!("{} seeds: {seen:?}", seeds.end - seeds.start);
}

#[test]
fn a_seed_of_the_simulation_reproduces_exactly() {
    for seed in 0..20 {
        let ((one, first), (two, second)) = (run(seed), run(seed));
        let (one, two) = (one.story(), two.story());
        let told =
            |story: &str| story.lines().filter(|line| !line.starts_with('~')).map(str::to_owned).collect::<Vec<_>>();
        let differs = told(&one).into_iter().zip(told(&two)).find(|(one, two)| one != two);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!(first, second, "seed {seed}");
    }
}
