//! What followers cost that have everything and wait: fresh ones, and ones that got something before.

use std::sync::Arc;
use std::time::Duration;

use super::latency::{Reader, WAYS, Way};
use super::measure::{self, Child, count, table};
use super::peers::Appender;

/// What the server makes once for all is made for these.
const WARM: usize = 20;

/// What a follower may cost that waits, in KiB: over a connection of hyper's it is mostly that.
fn limit(way: Way) -> f64 {
    if way == Way::Socket { 8.0 } else { 30.0 }
}

pub async fn idle(smoke: bool) {
    let followers = if smoke { 200 } else { 1000 };
    let mut rows = vec![floor(followers, smoke).await];
    for way in WAYS {
        rows.push(one_run(way, followers, smoke).await);
    }
    table(
        &format!("{} idle followers: the server's memory, and its CPU time", count(followers)),
        &["Way", "KiB each", "after a message", "CPU ms in a second for all"],
        &rows,
    );
}

/// The floor's sockets have no memory of their own in its process, but for the list of them.
async fn floor(followers: usize, smoke: bool) -> Vec<String> {
    let child = Child::floor(WARM + followers, 1024);
    let data: Arc<[u8]> = measure::text(1024).into();
    let mut appender = Appender::open(child.addr, "/idle.txt").await;
    let mut all = Vec::new();
    for _ in 0..WARM {
        all.push(Reader::open(child.addr, Way::Socket, "/idle.txt").await);
    }
    let before = child.settled_rss().await;
    for _ in 0..followers {
        all.push(Reader::open(child.addr, Way::Socket, "/idle.txt").await);
    }
    let fresh = (child.settled_rss().await - before) / followers as f64;
    appender.send(&data).await;
    for follower in &mut all {
        follower.reach(&data, data.len()).await;
    }
    let used = (child.settled_rss().await - before) / followers as f64;
    row("floor", &child, fresh, used, smoke).await
}

async fn row(name: &str, child: &Child, fresh: f64, used: f64, smoke: bool) -> Vec<String> {
    let (seconds, cpu) = (if smoke { 1 } else { 10 }, child.cpu());
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let cpu = (child.cpu() - cpu) * 1e3 / seconds as f64;
    vec![name.to_owned(), format!("{fresh:.1}"), format!("{used:.1}"), format!("{cpu:.3}")]
}

async fn one_run(way: Way, followers: usize, smoke: bool) -> Vec<String> {
    let child = Child::layer();
    let data: Arc<[u8]> = measure::text(8 * 1024).into();
    let mut appender = Appender::open(child.addr, "/idle.txt").await;
    appender.send(&data[..1024]).await;
    let mut warm = Vec::new();
    for _ in 0..WARM {
        warm.push(Reader::open(child.addr, way, "/idle.txt").await);
    }
    for follower in &mut warm {
        follower.reach(&data, 1024).await;
    }
    let before = child.settled_rss().await;
    let mut idle = Vec::new();
    for _ in 0..followers {
        idle.push(Reader::open(child.addr, way, "/idle.txt").await);
    }
    for follower in &mut idle {
        follower.reach(&data, 1024).await;
    }
    let fresh = (child.settled_rss().await - before) / followers as f64;
    appender.send(&data[1024..]).await;
    for follower in idle.iter_mut().chain(&mut warm) {
        follower.reach(&data, data.len()).await;
    }
    let used = (child.settled_rss().await - before) / followers as f64;
    // In a debug build futures are larger.
    let limit = if cfg!(debug_assertions) { limit(way) * 2.0 } else { limit(way) };
    assert!(fresh <= limit && used <= limit, "an idle follower by {} takes {fresh} and {used} KiB", way.name());
    row(way.name(), &child, fresh, used, smoke).await
}
