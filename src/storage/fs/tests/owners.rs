//! Claimed resources after a restart.

use std::fs::File;
use std::time::{Duration, SystemTime};

use super::super::record::{closed_record_name, open_record_name};
use super::{bytes, claimed, content, crash, lost, open_after_reboot, owner, records};
use crate::key::Key;
use crate::state::{End, State};
use crate::storage::{Append, FsStorage, Open, Storage};

#[tokio::test]
async fn a_killed_process_leaves_claimed_resources_lost_until_they_are_ended() {
    let tmp = tempfile::tempdir().unwrap();
    let key = Key::new("a/b").unwrap();
    let storage = FsStorage::open(tmp.path()).unwrap();
    let append = claimed(&storage, &key, owner(1), b"one ").await;
    let life = append.stat().life;
    crash(storage, append).await;
    for data in [&b"two "[..], b"three "] {
        let storage = FsStorage::open(tmp.path()).unwrap();
        let (stat, _) = content(&storage, &key).await;
        assert_eq!((stat.state, stat.life, stat.owner), (State::Lost, life, owner(1)));
        assert_eq!(lost(&storage).await, [(key.clone(), stat)]);
        assert_eq!(records(tmp.path()), [open_record_name(&key)]);
        // The file's name was never synced, so the next appender's sync does that.
        let append = claimed(&storage, &key, owner(1), data).await;
        append.sync().await.unwrap();
        crash(storage, append).await;
    }
    let storage = FsStorage::open(tmp.path()).unwrap();
    let ended = storage.open(&key, Open::Continue).await.unwrap().finish(End::Interrupted).await.unwrap();
    assert_eq!((ended.state, ended.owner), (State::Interrupted, owner(1)));
    assert_eq!((records(tmp.path()), lost(&storage).await), (vec![closed_record_name(&key)], vec![]));
    drop(storage);
    let (stat, all) = content(&FsStorage::open(tmp.path()).unwrap(), &key).await;
    assert_eq!((stat.state, stat.life, stat.owner), (State::Interrupted, life, owner(1)));
    assert_eq!(all, b"one two three ");
}

#[tokio::test]
async fn a_reboot_cuts_lost_resources_and_keeps_their_owner() {
    let tmp = tempfile::tempdir().unwrap();
    let key = Key::new("a").unwrap();
    let storage = FsStorage::open(tmp.path()).unwrap();
    let mut append = claimed(&storage, &key, owner(1), b"durable ").await;
    let mut life = append.stat().life;
    append.sync().await.unwrap();
    append.append(&bytes(b"committed")).await.unwrap();
    crash(storage, append).await;
    for reboots in 0..3 {
        let storage = open_after_reboot(tmp.path());
        let (stat, all) = content(&storage, &key).await;
        assert_eq!((stat.state, stat.owner, &all[..]), (State::Lost, owner(1), &b"durable "[..]), "{reboots}");
        assert_ne!(stat.life, life);
        life = stat.life;
        drop(storage);
        // Neither another start in the same boot nor an open changes anything.
        let storage = FsStorage::open(tmp.path()).unwrap();
        drop(storage.open(&key, Open::Continue).await.unwrap());
        let (again, _) = content(&storage, &key).await;
        assert_eq!((again.state, again.life), (State::Lost, life));
    }
    let storage = FsStorage::open(tmp.path()).unwrap();
    crash(storage.clone(), claimed(&storage, &key, None, b"by a stranger").await).await;
    drop(storage);
    let (stat, all) = content(&FsStorage::open(tmp.path()).unwrap(), &key).await;
    assert_eq!((stat.state, stat.life, stat.owner), (State::Interrupted, life, None));
    assert_eq!(all, b"durable by a stranger");
}

/// A kill between the record and the first byte, for new and for existing resources.
#[tokio::test]
async fn a_claim_without_a_byte_is_undone() {
    for before in [None, Some(End::Finished), Some(End::Interrupted)] {
        let tmp = tempfile::tempdir().unwrap();
        let key = Key::new("a").unwrap();
        let storage = FsStorage::open(tmp.path()).unwrap();
        let mut life = None;
        if let Some(end) = before {
            life = Some(claimed(&storage, &key, owner(7), b"before").await.finish(end).await.unwrap().life);
        }
        drop(claimed(&storage, &key, owner(1), b" after").await);
        let len = if before.is_some() { 6 } else { 0 };
        File::options().write(true).open(tmp.path().join("a")).unwrap().set_len(len).unwrap();
        let expected = before.map(End::state).zip(life);
        assert_eq!(storage.stat(&key).await.unwrap().map(|stat| (stat.state, stat.life)), expected);
        assert!(lost(&storage).await.is_empty());
        drop(storage);
        let storage = FsStorage::open(tmp.path()).unwrap();
        assert_eq!(storage.stat(&key).await.unwrap().map(|stat| (stat.state, stat.life)), expected);
        assert_eq!(tmp.path().join("a").exists(), before.is_some());
        assert!(records(tmp.path()).iter().all(|name| *name == closed_record_name(&key)));
    }
}

#[tokio::test]
async fn the_owner_of_a_finished_resource_is_known_for_an_hour() {
    let tmp = tempfile::tempdir().unwrap();
    let key = Key::new("a").unwrap();
    let storage = FsStorage::open(tmp.path()).unwrap();
    claimed(&storage, &key, owner(1), b"whole").await.finish(End::Finished).await.unwrap();
    drop(storage);
    let record = tmp.path().join(".httpfstream/records").join(closed_record_name(&key));
    for (minutes, known) in [(0, true), (59, true), (61, false)] {
        let at = SystemTime::now() - Duration::from_secs(minutes * 60);
        File::options().write(true).open(&record).unwrap().set_modified(at).unwrap();
        let (stat, all) = content(&FsStorage::open(tmp.path()).unwrap(), &key).await;
        assert_eq!((stat.state, &all[..]), (State::Finished, &b"whole"[..]));
        assert_eq!((stat.owner, record.exists()), (owner(1).filter(|_| known), known), "{minutes} minutes");
    }
}
