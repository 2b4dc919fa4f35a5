//! Syncs of many resources at once, and failed ones.

use super::super::appender::FsAppend;
use super::super::record::{Loaded, Record, open_record_name};
use super::{bytes, claimed, content, lost, open_after_reboot, owner};
use crate::error::{ErrorKind, Result};
use crate::key::Key;
use crate::state::{End, State};
use crate::storage::{Append, FsStorage, Open, Storage};

/// Enough for the syncs to be served in batches.
const MANY: usize = 200;

async fn open_many(storage: &FsStorage) -> Vec<FsAppend> {
    let mut appenders = Vec::new();
    for at in 0..MANY {
        let key = Key::new(&format!("{}/{at}", at % 3)).unwrap();
        appenders.push(claimed(storage, &key, owner(1), b"first ").await);
    }
    appenders
}

/// Syncs all appenders at once, with more appended meanwhile, and returns each one's result.
async fn sync_at_once(appenders: Vec<FsAppend>) -> Vec<(FsAppend, Result<u64>)> {
    let mut tasks = tokio::task::JoinSet::new();
    for mut append in appenders {
        tasks.spawn(async move {
            let mut syncs = tokio::task::JoinSet::new();
            let before = append.stat().len;
            syncs.spawn(append.sync());
            syncs.spawn(append.sync());
            let _ = append.append(&bytes(b"and more ")).await;
            let (synced, len) = (append.sync().await, append.stat().len);
            assert!(synced.as_ref().is_ok_and(|synced| *synced == len) || synced.is_err());
            for synced in syncs.join_all().await.into_iter().flatten() {
                assert!((before..=len).contains(&synced));
            }
            (append, synced)
        });
    }
    tasks.join_all().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_durable_when_its_syncs_return() {
    let tmp = tempfile::tempdir().unwrap();
    let storage = FsStorage::open(tmp.path()).unwrap();
    for (append, synced) in sync_at_once(open_many(&storage).await).await {
        let lease = &append.guard.lease;
        let Loaded::Intact(record) = Record::load(&storage.root.records, &open_record_name(&lease.key), true).unwrap()
        else {
            panic!("no record")
        };
        assert_eq!(record.slot.durable, synced.unwrap());
    }
    drop(storage);
    // After the last answer no thread holds the root any more.
    let storage = open_after_reboot(tmp.path());
    assert_eq!(lost(&storage).await.iter().filter(|(_, stat)| stat.len == 15).count(), MANY);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_poisons_only_its_own_resource() {
    let tmp = tempfile::tempdir().unwrap();
    let storage = FsStorage::open(tmp.path()).unwrap();
    let appenders: Vec<_> =
        sync_at_once(open_many(&storage).await).await.into_iter().map(|(append, _)| append).collect();
    let (broken, life) = (appenders[7].guard.lease.key.clone(), appenders[7].stat().life);
    appenders[7].guard.lease.data.sync(|_| Err(std::io::Error::other("a simulated disk failure"))).unwrap_err();
    for (mut append, synced) in sync_at_once(appenders).await {
        let key = append.guard.lease.key.clone();
        assert_eq!(synced.is_err(), key == broken);
        assert_eq!(append.append(&bytes(b"!")).await.is_err(), key == broken);
    }
    // It is cut to its durable length, in a new life, and still kept for its owner.
    let (stat, all) = content(&storage, &broken).await;
    assert_eq!((stat.state, stat.owner, &all[..]), (State::Lost, owner(1), &b"first and more "[..]));
    assert_ne!(stat.life, life);
    let append = claimed(&storage, &broken, owner(1), b"again").await;
    assert_eq!(append.sync().await.unwrap(), 20, "the cut bytes do not affect later appends");
}

/// The system reports a failure only once, possibly to a sync of an earlier appender.
#[tokio::test]
async fn a_failed_sync_of_an_earlier_appender_fails_later_syncs_too() {
    for finish in [false, true] {
        let tmp = tempfile::tempdir().unwrap();
        let key = Key::new("a").unwrap();
        let storage = FsStorage::open(tmp.path()).unwrap();
        let older = claimed(&storage, &key, None, b"never synced").await;
        let newer = storage.open(&key, Open::Takeover).await.unwrap();
        older.guard.lease.data.sync(|_| Err(std::io::Error::other("a simulated disk failure"))).unwrap_err();
        match finish {
            false => assert_eq!(newer.sync().await.unwrap_err().kind(), ErrorKind::Storage),
            true => assert_eq!(newer.finish(End::Finished).await.unwrap_err().kind(), ErrorKind::Storage),
        }
        drop(older);
        assert_eq!(storage.stat(&key).await.unwrap().filter(|stat| stat.state != State::Live), None);
    }
}
