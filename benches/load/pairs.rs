//! Many resources with an appender and a follower each: what a message costs, beside a relay without storage, and one that
//! writes each message to a file.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::measure::{self, Child, count, median, size, spread, table};
use super::peers::{Appender, Follower};

pub async fn pairs(smoke: bool) {
    let pairs = if smoke { 50 } else { 2000 };
    let mut rows = Vec::new();
    for bytes in [64, 1024] {
        let mut runs: [Vec<f64>; 3] = Default::default();
        for _ in 0..if smoke { 1 } else { 5 } {
            for (server, runs) in runs.iter_mut().enumerate() {
                let child = match server {
                    0 => Child::start(&["relay"]),
                    1 => Child::storing(&["relay"]),
                    _ => Child::layer(),
                };
                runs.push(one_run(&child, pairs, bytes, smoke).await);
            }
        }
        let [relay, storing, layer] = runs;
        let to = |other: &[f64]| format!("{:.2}×", median(&layer) / median(other));
        let costs = [&layer, &storing, &relay].map(|runs| spread(runs, 1));
        rows.push([&[size(bytes)], &costs[..], &[to(&storing), to(&relay)]].concat());
    }
    table(
        &format!(
            "{} resources, an appender and a follower each: CPU s per million messages, five runs in turn",
            count(pairs)
        ),
        &["Message", "this crate", "relay that stores", "relay", "to the one that stores", "to the relay"],
        &rows,
    );
}

/// CPU seconds of the server for each million messages.
async fn one_run(child: &Child, pairs: usize, bytes: usize, smoke: bool) -> f64 {
    // Each pair says something every so often, all in turn.
    let (each, a_second) = if smoke { (3, 1000) } else { (15, 10_000) };
    let data: Arc<[u8]> = measure::text(bytes * each).into();
    let (mut appenders, mut followers) = (Vec::new(), tokio::task::JoinSet::new());
    for i in 0..pairs {
        appenders.push(Appender::open(child.addr, &format!("/r{i}")).await);
        let follower = Follower::open(child.addr, &format!("/r{i}")).await;
        followers.spawn(follower.whole(Arc::clone(&data)));
    }
    let mut sent = 0;
    let mut before = child.cpu();
    let mut start = Instant::now();
    for (round, message) in data.chunks(bytes).enumerate() {
        if round == 1 {
            // The first message makes the file, which is not what is asked here.
            tokio::time::sleep(Duration::from_millis(if smoke { 10 } else { 1500 })).await;
            (before, start) = (child.cpu(), Instant::now());
        }
        for appender in &mut appenders {
            if sent % 20 == 0 && round > 0 {
                sleep_until(start + Duration::from_secs(1) * (sent - pairs) as u32 / a_second).await;
            }
            appender.send(message).await;
            sent += 1;
        }
    }
    // What was sent last has arrived as well.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let cpu = child.cpu() - before;
    for appender in &mut appenders {
        appender.finish().await;
    }
    while let Some(done) = followers.join_next().await {
        done.expect("each follower gets every byte and the end");
    }
    cpu / (sent - pairs) as f64 * 1e6
}
