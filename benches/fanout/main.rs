//! One appender, many followers, over real sockets; every follower's bytes are compared whole.
//!
//! `cargo bench --bench fanout` prints what a delivery costs the server, beside a floor measured in the same run: a
//! server without storage that writes each batch to each socket and does nothing else. Then how long a message takes by
//! WebSocket, by plain body and as server-sent events. Then what a follower that waits costs in memory. `-- latency` (or `fanout`, `idle`) is only that part. It fails if a byte is missing or a follower
//! that waits costs more than 15 KiB by WebSocket, 30 by plain HTTP.
//!
//! The server is a process of its own on one core, so that its CPU time is its alone. `--smoke` (or any run that isn't
//! `cargo bench`) is a few seconds of the same, for CI.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

mod latency;
mod measure;
mod peers;
mod server;

use std::sync::Arc;
use std::time::{Duration, Instant};

use latency::{Reader, Way};
use measure::Child;

/// Nothing here takes nearly as long.
const LIMIT: Duration = Duration::from_secs(120);
const FOLLOWERS: usize = 100;
/// What a follower may cost that waits, in KiB: over a connection of hyper's it is mostly that.
fn idle_limit(way: Way) -> f64 {
    if way == Way::Socket { 15.0 } else { 30.0 }
}

struct Load {
    size: usize,
    messages: usize,
    /// Messages a second; `None`: as fast as the server takes them.
    rate: Option<u32>,
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(role) = args.iter().position(|arg| arg == "--serve") {
        return server::run(&args[role + 1], args[role + 2].parse().unwrap());
    }
    let smoke = args.iter().any(|arg| arg == "--smoke") || !args.iter().any(|arg| arg == "--bench");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    measure::raise_file_limit();
    runtime.block_on(async {
        tokio::time::timeout(LIMIT * 5, async {
            let named = |part: &str| args.iter().any(|arg| arg == part);
            let all = !["fanout", "latency", "idle"].into_iter().any(named);
            if all || named("fanout") {
                fanout(smoke).await;
            }
            if all || named("latency") {
                latency::latency(smoke).await;
            }
            if all || named("idle") {
                for way in latency::WAYS {
                    idle(way, if smoke { 200 } else { 1000 }).await;
                }
            }
        })
        .await
        .expect("the whole bench comes to its end");
    });
}

fn loads(smoke: bool) -> Vec<Load> {
    let load = |size, messages, rate| Load { size, messages, rate };
    if smoke {
        return vec![load(64, 500, Some(1000)), load(1024, 2000, None), load(64 * 1024, 20, None)];
    }
    vec![
        load(64, 6000, Some(2000)),
        load(1024, 6000, Some(2000)),
        load(64 * 1024, 150, Some(50)),
        load(64, 200_000, None),
        load(1024, 50_000, None),
        load(64 * 1024, 600, None),
    ]
}

async fn fanout(smoke: bool) {
    println!("fan-out to {FOLLOWERS} followers: the server's CPU time for each million deliveries, and each GB");
    println!(
        "{:>8} {:>8} {:>10} {:>11} {:>9} {:>9} {:>7} {:>9} {:>9}",
        "size", "msg/s", "server", "deliveries", "s/million", "s/GB", "wall s", "CPU s", "to floor"
    );
    for load in loads(smoke) {
        let floor = one_run("floor", &load, None).await;
        one_run("layer", &load, Some(floor)).await;
    }
}

/// Runs one load against one server and returns the server's CPU seconds.
async fn one_run(role: &str, load: &Load, floor: Option<f64>) -> f64 {
    let child = Child::start(role, load.size);
    let data: Arc<[u8]> = measure::text(load.size * load.messages).into();
    let mut appender = peers::Appender::open(child.addr, "/log.txt").await;
    let mut followers = tokio::task::JoinSet::new();
    for _ in 0..FOLLOWERS {
        let follower = peers::Follower::open(child.addr, "/log.txt").await;
        followers.spawn(follower.whole(Arc::clone(&data)));
    }
    let (before, start) = (child.cpu(), Instant::now());
    let appending = tokio::spawn({
        let (data, size, rate) = (Arc::clone(&data), load.size, load.rate);
        async move { appender.send_all(&data, size, rate).await }
    });
    let all = async {
        appending.await.unwrap();
        while let Some(done) = followers.join_next().await {
            done.expect("each follower gets every byte and the end");
        }
    };
    tokio::time::timeout(LIMIT, all).await.expect("the end within the limit");
    let (cpu, wall) = (child.cpu() - before, start.elapsed().as_secs_f64());
    let deliveries = (load.messages * FOLLOWERS) as f64;
    println!(
        "{:>8} {:>8} {:>10} {:>11} {:>9.2} {:>9.2} {:>7.2} {:>9.3} {:>9}",
        load.size,
        load.rate.map_or("full".to_owned(), |rate| rate.to_string()),
        role,
        deliveries,
        cpu / deliveries * 1e6,
        cpu / (deliveries * load.size as f64) * 1e9,
        wall,
        cpu,
        floor.map_or(String::new(), |floor| format!("{:.2}x", cpu / floor)),
    );
    cpu
}

/// What followers cost in memory that have everything and wait: fresh ones, and ones that got something before.
async fn idle(way: Way, count: usize) {
    let limit = idle_limit(way);
    let child = Child::start("layer", 0);
    let data: Arc<[u8]> = measure::text(8 * 1024).into();
    let mut appender = peers::Appender::open(child.addr, "/idle.txt").await;
    appender.send(&data[..1024]).await;
    // What the server makes once for all is not counted.
    let mut warm = Vec::new();
    for _ in 0..20 {
        warm.push(Reader::open(child.addr, way, "/idle.txt").await);
    }
    for follower in &mut warm {
        follower.reach(&data, 1024).await;
    }
    let before = child.settled_rss().await;
    let mut followers = Vec::new();
    for _ in 0..count {
        followers.push(Reader::open(child.addr, way, "/idle.txt").await);
    }
    for follower in &mut followers {
        follower.reach(&data, 1024).await;
    }
    let fresh = (child.settled_rss().await - before) / count as f64;
    appender.send(&data[1024..]).await;
    for follower in followers.iter_mut().chain(&mut warm) {
        follower.reach(&data, data.len()).await;
    }
    let used = (child.settled_rss().await - before) / count as f64;
    println!(
        "{count} idle followers by {}: {fresh:.1} KiB of the server's RSS each, {used:.1} after a message (limit {limit})",
        way.name()
    );
    assert!(fresh <= limit && used <= limit, "an idle follower costs too much");
}
