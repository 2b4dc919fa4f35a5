//! The process that `tests/external/power.sh` takes the power from: appends, syncs and finishes, and says on its
//! standard output what it was promised, one line each; or says what is there.
//!
//! ```text
//! synced NAME LENGTH          these bytes are durable
//! finished NAME LENGTH LIFE   and so is the end
//! deleting NAME, deleted NAME
//! has NAME STATE LENGTH LIFE SHA256
//! ```
//!
//! The bytes of a resource are given by its name: block `n` of 32 bytes is `sha256(name ++ 8 bytes of n)`.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use httpfstream::{Key, Owner};
use httpfstream::{
    Stat, State,
    storage::{Append, End, FsStorage, Open, Storage},
};
use sha2::{Digest, Sha256};

/// As many appenders at a time: enough for some of their syncs to be served together.
const APPENDERS: u64 = 48;
const LONGEST: u64 = 1 << 20;
/// As many finished ones are kept; the others make room.
const KEPT: usize = 40;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut hasher = DefaultHasher::new();
        self.0.hash(&mut hasher);
        hasher.finish() % bound
    }
}

fn pattern(name: &str, from: u64, len: u64) -> Bytes {
    let mut bytes = Vec::new();
    for block in from / 32..=(from + len) / 32 {
        let mut hash = Sha256::new();
        hash.update(name);
        hash.update(block.to_le_bytes());
        bytes.extend_from_slice(&hash.finalize());
    }
    let skip = (from % 32) as usize;
    Bytes::from(bytes).slice(skip..skip + len as usize)
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn number(name: &str) -> u64 {
    std::env::var(name).unwrap().parse().unwrap()
}

async fn entries(storage: &FsStorage) -> Vec<(Key, Stat)> {
    storage.list("").try_collect().await.unwrap()
}

async fn check(storage: &FsStorage) {
    for (key, stat) in entries(storage).await {
        let mut hash = Sha256::new();
        let mut chunks = storage.read(&key, stat.life, 0..stat.len).await.unwrap();
        while let Some(chunk) = chunks.try_next().await.unwrap() {
            hash.update(&chunk);
        }
        println!("has {key} {} {} {} {}", stat.state, stat.len, stat.life, hex(hash));
    }
    println!("done");
}

/// Appends to one resource until it is finished, or anything fails: the disk is gone then.
async fn append(storage: &FsStorage, key: &Key, random: &mut Random, syncs: bool) -> httpfstream::Result<()> {
    let mut append = storage.open(key, Open::Continue).await?;
    // By its name, so that whoever looks knows what it has to be when it is lost.
    if key.as_str().ends_with('k') {
        append.claim(Some(Owner::from_bytes([7; 32])));
    }
    loop {
        let len = append.stat().len;
        let more = match random.below(8) {
            0 => 1 + random.below(100_000),
            _ => 1 + random.below(5_000),
        };
        append.append(&[pattern(key.as_str(), len, more)]).await?;
        match random.below(12) {
            0 if syncs => println!("synced {key} {}", append.sync().await?),
            0 => println!("synced {key} {}", append.stat().len),
            1 if len > random.below(LONGEST) => break,
            _ => tokio::time::sleep(Duration::from_millis(random.below(8))).await,
        }
    }
    if syncs {
        let stat = append.finish(End::Finished).await?;
        println!("finished {key} {} {}", stat.len, stat.life);
    } else {
        println!("finished {key} {} {}", append.stat().len, append.stat().life);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a part of tests/external/power.sh, run by it"]
async fn child() {
    let Some(root) = std::env::var_os("POWER_ROOT") else { return };
    println!("\nready");
    let (seed, cycle, syncs) = (number("POWER_SEED"), number("POWER_CYCLE"), std::env::var_os("POWER_LIES").is_none());
    let storage = FsStorage::open(root).unwrap();
    if std::env::var("POWER_MODE").unwrap() == "check" {
        return check(&storage).await;
    }
    let (finished, mut open): (Vec<_>, Vec<_>) =
        entries(&storage).await.into_iter().partition(|(_, stat)| stat.state == State::Finished);
    for (key, _) in finished.iter().skip(KEPT) {
        println!("deleting {key}");
        storage.delete(key).await.unwrap();
        println!("deleted {key}");
    }
    let made = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..APPENDERS {
        let (storage, made, mut again) = (storage.clone(), Arc::clone(&made), open.pop());
        tasks.spawn(async move {
            let mut random = Random(seed << 32 ^ cycle << 16 ^ task);
            loop {
                let key = again.take().map_or_else(
                    || {
                        let number = made.fetch_add(1, Ordering::Relaxed);
                        let kept = if number % 2 == 0 { "k" } else { "" };
                        Key::new(&format!("{}/{cycle}-{number}{kept}", number % 5)).unwrap()
                    },
                    |(key, _)| key,
                );
                if let Err(failed) = append(&storage, &key, &mut random, syncs).await {
                    println!("failed {key} {failed}");
                    return;
                }
            }
        });
    }
    tasks.join_all().await;
}
