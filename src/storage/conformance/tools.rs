//! Helpers that the tests share.

use std::fmt::Debug;
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;

use crate::error::{ErrorKind, Result};
use crate::identity::Owner;
use crate::key::Key;
use crate::state::{End, Life, Stat, State};
use crate::storage::stream::next;
use crate::storage::{Append, Open, Storage};

/// How long an expected event may take.
const SOON: Duration = Duration::from_secs(30);

/// Awaits an expected event, and panics if it takes too long.
pub(super) async fn soon<F: Future>(what: &str, event: F) -> F::Output {
    match tokio::time::timeout(SOON, event).await {
        Ok(output) => output,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

/// Waits between two polls for something that a storage does not announce, such as the release of a dropped appender. Only
/// used in a loop under [`soon`], so that its length decides nothing.
pub(super) async fn pause() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

pub(super) fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

pub(super) fn bytes(data: impl AsRef<[u8]>) -> [Bytes; 1] {
    [Bytes::copy_from_slice(data.as_ref())]
}

/// Bytes of a resource, different at each place.
pub(super) fn pattern(from: u64, len: usize) -> Vec<u8> {
    (from..from + len as u64).map(|i| (i ^ (i >> 8) ^ (i >> 16)).wrapping_mul(31) as u8).collect()
}

/// The kind of an error; panics on success.
#[track_caller]
pub(super) fn kind<T>(result: Result<T>) -> ErrorKind {
    match result {
        Ok(_) => panic!("it should have failed"),
        Err(error) => error.kind(),
    }
}

/// Compares two stats, apart from the time of modification.
#[track_caller]
pub(super) fn same(stat: &Option<Stat>, expected: &Option<Stat>, context: impl Debug) {
    let parts = |stat: &Option<Stat>| stat.as_ref().map(|stat| (stat.life, stat.len, stat.state, stat.owner));
    assert_eq!(parts(stat), parts(expected), "{context:?}");
}

pub(super) async fn collect<T>(mut stream: impl Stream<Item = Result<T>> + Unpin) -> Result<Vec<T>> {
    let mut all = Vec::new();
    while let Some(item) = soon("the next of a stream", next(&mut stream)).await {
        all.push(item?);
    }
    Ok(all)
}

pub(super) async fn read<S: Storage>(storage: &S, key: &Key, life: Life, range: Range<u64>) -> Result<Vec<u8>> {
    Ok(collect(storage.read(key, life, range).await?).await?.concat())
}

/// All bytes of a resource, and its stat.
pub(super) async fn all<S: Storage>(storage: &S, key: &Key) -> (Vec<u8>, Stat) {
    let stat = storage.stat(key).await.unwrap().expect("it exists");
    (read(storage, key, stat.life, 0..stat.len).await.unwrap(), stat)
}

/// Opens a resource, appends and ends it.
pub(super) async fn write<S: Storage>(storage: &S, key: &Key, data: &str, end: End) -> Stat {
    let mut appender = open(storage, key, Open::Continue).await;
    if !data.is_empty() {
        appender.append(&bytes(data)).await.unwrap();
    }
    appender.finish(end).await.unwrap()
}

/// Opens a resource, once a dropped appender has released it.
pub(super) async fn open<S: Storage>(storage: &S, key: &Key, how: Open) -> S::Appender {
    soon("an open", async {
        loop {
            match storage.open(key, how).await {
                Err(error) if error.kind() == ErrorKind::Busy => pause().await,
                opened => return opened.unwrap(),
            }
        }
    })
    .await
}

pub(super) fn owner(of: u8) -> Option<Owner> {
    Some(Owner::from_bytes([of; 32]))
}

/// Opens a resource and appends as this owner.
pub(super) async fn claimed<S: Storage>(
    storage: &S,
    key: &Key,
    how: Open,
    owner: Option<Owner>,
    data: &str,
) -> S::Appender {
    let mut appender = open(storage, key, how).await;
    appender.claim(owner);
    appender.append(&bytes(data)).await.unwrap();
    appender
}

/// The state and the owner, once there is no appender any more.
pub(super) async fn closed_state<S: Storage>(storage: &S, key: &Key) -> (State, Option<Owner>) {
    soon("a release", async {
        loop {
            let stat = storage.stat(key).await.unwrap().unwrap();
            if stat.state != State::Live {
                return (stat.state, stat.owner);
            }
            pause().await;
        }
    })
    .await
}

/// Polls a future up to this many times, with other tasks in between. Returns its output if it completed.
pub(super) async fn poll_times<F: Future>(mut future: Pin<&mut F>, times: usize) -> Option<F::Output> {
    for _ in 0..times {
        if let Poll::Ready(output) = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
            return Some(output);
        }
        tokio::task::yield_now().await;
    }
    None
}

/// Random numbers (xorshift) from a seed that is printed, and that can be set to reproduce a failure.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new() -> Self {
        const SEED: &str = "HTTPFSTREAM_CONFORMANCE_SEED";
        let seed = match std::env::var(SEED) {
            Ok(given) => given.parse().expect("the seed is a number"),
            Err(_) => Life::random().unwrap().to_bits() as u64,
        };
        println!("{SEED}={seed}");
        // Xorshift would return zeros forever.
        Self(seed.max(1))
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    /// A range within this length, from very narrow to very wide.
    pub(super) fn range(&mut self, len: u64) -> Range<u64> {
        let start = self.below(len + 1);
        let width = [1, 100, 65_536, len][self.below(4) as usize];
        start..start + self.below(width.min(len - start) + 1)
    }
}
