//! What one follower that reads nothing does to the others and to the appender: nothing, if all is well.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Barrier;
use tokio::time::{Instant, sleep_until};

use super::latency::{Timed, Way};
use super::measure::{self, Child, spread, table};
use super::peers::{Appender, Follower};

const SIZE: usize = 1024;

/// What one run measures: the others' 99th percentile, in ms, and the appender's throughput, in MiB/s.
type Run = (f64, f64);

pub async fn stalled(smoke: bool) {
    let rounds = if smoke { 1 } else { 10 };
    let mut runs: [Vec<Run>; 2] = Default::default();
    for _ in 0..rounds {
        for stalled in [false, true] {
            runs[usize::from(stalled)].push(one_run(stalled, smoke).await);
        }
    }
    let row = |name: &str, runs: &[Run]| {
        let [p99, speed] = [|run: &Run| run.0, |run: &Run| run.1].map(|of| runs.iter().map(of).collect::<Vec<_>>());
        vec![name.to_owned(), spread(&p99, 2), spread(&speed, 1)]
    };
    table(
        &format!("One stalled follower beside 100: {rounds} runs in turn, median (least–most)"),
        &["", "p99 of the others, ms", "appender, MiB/s"],
        &[row("without", &runs[0]), row("with", &runs[1])],
    );
}

async fn one_run(stalled: bool, smoke: bool) -> Run {
    // Before what is measured, as much as fills every buffer of the one that reads nothing.
    let (before, paced, rate, full) = if smoke { (100, 50, 200, 500) } else { (16_384, 600, 300, 30_000) };
    let child = Child::layer();
    let data: Arc<[u8]> = measure::text(SIZE * (before + paced + full)).into();
    let sent = Arc::new(Mutex::new(vec![Instant::now(); before]));
    let mut appender = Appender::open(child.addr, "/stalled.txt").await;
    let mut followers = tokio::task::JoinSet::new();
    let others = if smoke { 10 } else { 100 };
    let caught_up = Arc::new(Barrier::new(others + 1));
    for _ in 0..others {
        let mut follower =
            Timed::open(child.addr, Way::Socket, "/stalled.txt", SIZE, Arc::clone(&data), Arc::clone(&sent)).await;
        let caught_up = Arc::clone(&caught_up);
        followers.spawn(async move {
            follower.reach(SIZE * before).await;
            caught_up.wait().await;
            follower.whole().await
        });
    }
    let waits = if stalled { Some(Follower::open(child.addr, "/stalled.txt").await) } else { None };
    appender.send_some(&data[..SIZE * before], SIZE, None).await;
    caught_up.wait().await;
    let start = Instant::now();
    for (i, message) in (0..).zip(data[SIZE * before..SIZE * (before + paced)].chunks(SIZE)) {
        sleep_until(start + Duration::from_secs(1) * i / rate).await;
        sent.lock().unwrap().push(Instant::now());
        appender.send(message).await;
    }
    let begun = Instant::now();
    sent.lock().unwrap().extend(std::iter::repeat_n(begun, full));
    appender.send_some(&data[SIZE * (before + paced)..], SIZE, None).await;
    let speed = (SIZE * full) as f64 / begun.elapsed().as_secs_f64() / f64::from(1 << 20);
    appender.finish().await;
    let mut times = Vec::new();
    while let Some(done) = followers.join_next().await {
        let done = done.expect("each follower gets every byte and the end");
        times.extend_from_slice(&done[before..before + paced]);
    }
    if let Some(stalled) = waits {
        // It is still there, and has missed nothing.
        stalled.whole(data).await;
    }
    times.sort();
    (times[(times.len() - 1) * 99 / 100].as_secs_f64() * 1e3, speed)
}
