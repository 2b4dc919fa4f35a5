//! Followers of [`Streams`] over the storage, with and without the tail cache, with and without syncs.

use std::time::Duration;

use super::tools::{Random, all, bytes, key, kind, open, pattern, soon};
use crate::error::ErrorKind;
use crate::hub::Durability;
use crate::state::State;
use crate::storage::{Append, Open, Storage};
use crate::streams::{Follower, Streams};

/// The configurations of the hub that read or sync differently, each with one hub on each handle.
fn hubs<S: Storage>(one: &S, two: &S) -> impl Iterator<Item = (String, Streams, Streams)> {
    let caches = [0, 64 * 1024];
    let durabilities = [Durability::Process, Durability::Acked];
    let configs = caches.into_iter().flat_map(move |cache| durabilities.map(|durability| (cache, durability)));
    configs.map(|(cache, durability)| {
        let hub = |storage: &S| Streams::builder(storage.clone()).tail_cache(cache).durability(durability).build();
        (format!("cache {cache}, {durability:?}"), hub(one), hub(two))
    })
}

/// Follows to the end; returns all bytes, and how it ended.
async fn to_the_end(mut follower: Follower) -> (Vec<u8>, Result<State, ErrorKind>) {
    let mut data = Vec::new();
    loop {
        match soon("the next chunk", follower.next_chunk()).await {
            Ok(Some(chunk)) => data.extend_from_slice(&chunk.bytes),
            Ok(None) => return (data, Ok(follower.state())),
            Err(error) => return (data, Err(error.kind())),
        }
    }
}

/// Followers on both nodes, from the start, the middle and the tail, begin during the appends and afterwards: all get every
/// byte from their start on, once, and the end.
pub async fn hub_followers_get_every_byte_and_the_end<S: Storage>(one: S, two: S) {
    const LEN: u64 = 600_000;
    let mut random = Random::new();
    for (config, here, there) in hubs(&one, &two) {
        let name = config.replace(' ', "/");
        let mut out = here.open_append(&*name).await.unwrap();
        let mut len = out.append(pattern(0, 200_000)).await.unwrap();
        let mut followers = tokio::task::JoinSet::new();
        loop {
            for streams in [&here, &there] {
                let started = [
                    streams.follow(&*name).await.unwrap(),
                    streams.follow(&*name).offset(123_456).await.unwrap(),
                    streams.follow(&*name).tail(10).await.unwrap(),
                ];
                for follower in started {
                    let config = config.clone();
                    followers.spawn(async move {
                        let from = follower.offset();
                        let (data, end) = to_the_end(follower).await;
                        assert_eq!((from + data.len() as u64, end), (LEN, Ok(State::Finished)), "{config} from {from}");
                        assert!(data == pattern(from, data.len()), "{config} from {from}");
                    });
                }
            }
            if len == LEN {
                break;
            }
            // Up to the length at which the next followers begin.
            let upto = len + 200_000;
            while len < upto {
                let size = (1 + random.below(40_000)).min(upto - len) as usize;
                len = out.append(pattern(len, size)).await.unwrap();
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(out.finish().await.unwrap(), LEN, "{config}");
        for streams in [&here, &there] {
            let follower = streams.follow(&*name).offset(LEN - 5).await.unwrap();
            assert_eq!(to_the_end(follower).await, (pattern(LEN - 5, 5), Ok(State::Finished)), "{config}, afterwards");
        }
        while let Some(done) = followers.join_next().await {
            done.unwrap();
        }
        assert!(all(&two, &key(&name)).await.0 == pattern(0, LEN as usize), "{config}");
        soon("the shutdown", async { tokio::join!(here.shutdown(Duration::ZERO), there.shutdown(Duration::ZERO)) })
            .await;
    }
}

/// Followers on both nodes get all bytes of a lost appender, and then the error `Interrupted`. Followers of a deleted
/// resource get an error, and an appender that another node has fenced fails with `Fenced`.
pub async fn hub_followers_get_the_error_of_a_lost_or_deleted_resource<S: Storage>(one: S, two: S) {
    for (config, here, there) in hubs(&one, &two) {
        let base = config.replace(' ', "/");
        let lost = format!("{base}/lost");
        let mut out = here.open_append(&*lost).await.unwrap();
        out.append(pattern(0, 100_000)).await.unwrap();
        let followers = [here.follow(&*lost).await.unwrap(), there.follow(&*lost).await.unwrap()];
        drop(out);
        for follower in followers {
            let (data, end) = to_the_end(follower).await;
            assert!(data == pattern(0, 100_000), "{config}: {} bytes", data.len());
            assert_eq!(end, Err(ErrorKind::Interrupted), "{config}");
        }
        let deleted = format!("{base}/deleted");
        let mut out = here.open_append(&*deleted).await.unwrap();
        out.append("x").await.unwrap();
        let followers = [here.follow(&*deleted).await.unwrap(), there.follow(&*deleted).await.unwrap()];
        here.delete(&*deleted).await.unwrap();
        for follower in followers {
            let (data, end) = to_the_end(follower).await;
            // The byte may be missed, since the delete follows at once.
            assert!(data.is_empty() || data == b"x", "{config}");
            assert!(end.is_err(), "{config}: a delete is not an end");
        }
        let fenced = format!("{base}/fenced");
        let mut out = here.open_append(&*fenced).await.unwrap();
        out.append("old ").await.unwrap();
        let mut newer = two.open(&key(&fenced), Open::Takeover).await.unwrap();
        assert_eq!(kind(out.append("never").await), ErrorKind::Fenced, "{config}");
        drop(out);
        newer.append(&bytes("new")).await.unwrap();
        drop(newer);
        drop(open(&two, &key(&fenced), Open::Continue).await);
        assert_eq!(all(&one, &key(&fenced)).await.0, b"old new", "{config}");
        soon("the shutdown", async { tokio::join!(here.shutdown(Duration::ZERO), there.shutdown(Duration::ZERO)) })
            .await;
    }
}
