//! Very many followers on one resource, and a restart of the server under them. Followers and appender are this crate's
//! client, which comes back by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use httpfstream::client::Client;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::measure::{self, Child, count, table};

pub async fn crowd(smoke: bool) {
    let followers = if smoke { 50 } else { 10_000 };
    let data = Bytes::from(measure::text(64 * 1024));
    let dir = tempfile::tempdir().unwrap();
    let child = Child::layer_at(dir.path(), 0);
    let (addr, url) = (child.addr, format!("http://{}/log.txt", child.addr));
    let client = Client::new().unwrap();
    let mut appender = client.open_append(url.as_str()).await.unwrap();
    appender.append(data.slice(..1024)).await.unwrap();
    appender.sync().await.unwrap();
    let before = child.settled_rss().await;
    // How many have reached each of the three lengths.
    let reached: Arc<[AtomicUsize; 3]> = Arc::default();
    let marks = [1024, 32 * 1024, data.len()];
    let mut following = tokio::task::JoinSet::new();
    let opening = Arc::new(Semaphore::new(64));
    let start = Instant::now();
    for _ in 0..followers {
        let (client, url, data) = (client.clone(), url.clone(), data.clone());
        let (reached, opening) = (Arc::clone(&reached), Arc::clone(&opening));
        following.spawn(async move {
            let turn = opening.acquire_owned().await.unwrap();
            let mut follower = client.follow(url.as_str()).await.unwrap();
            let (mut at, mut next) = (0, 0);
            let mut turn = Some(turn);
            while let Some(chunk) = follower.next_chunk().await.unwrap() {
                turn.take();
                assert!(data[at..].starts_with(&chunk.bytes), "other bytes than were sent, behind {at}");
                at += chunk.bytes.len();
                while next < marks.len() && at >= marks[next] {
                    reached[next].fetch_add(1, Ordering::Relaxed);
                    next += 1;
                }
            }
            assert_eq!(at, data.len(), "bytes are missing");
        });
    }
    all_have(&reached[0], followers).await;
    let joined = start.elapsed();
    let each = (child.settled_rss().await - before) / followers as f64;

    let start = Instant::now();
    appender.append(data.slice(1024..marks[1])).await.unwrap();
    all_have(&reached[1], followers).await;
    let told = start.elapsed();

    drop(child);
    let start = Instant::now();
    let child = Child::layer_at(dir.path(), addr.port());
    appender.append(data.slice(marks[1]..)).await.unwrap();
    all_have(&reached[2], followers).await;
    let back = start.elapsed();
    appender.finish().await.unwrap();
    while let Some(done) = following.join_next().await {
        done.expect("each follower gets every byte and the end");
    }
    drop(child);
    let seconds = |time: Duration| format!("{:.2} s", time.as_secs_f64());
    table(
        &format!("{} followers on one resource", count(followers)),
        &["all joined", "server's KiB each", "31 KiB to all", "after a kill and a restart, all have what came since"],
        &[vec![seconds(joined), format!("{each:.1}"), seconds(told), seconds(back)]],
    );
}

async fn all_have(reached: &AtomicUsize, followers: usize) {
    while reached.load(Ordering::Relaxed) < followers {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
