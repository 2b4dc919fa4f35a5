//! After a killed process, a reboot, or with a corrupt record.

use std::fs::File;
use std::path::Path;

use super::super::record::{NO_BOOT, Slot, Status, closed_record_name, open_record_name};
use super::{bytes, claimed, content, crash, open_after_reboot, owner, records, rewrite};
use crate::error::ErrorKind;
use crate::key::Key;
use crate::state::{End, State};
use crate::storage::{Append, FsStorage, Open, Storage};

#[tokio::test]
async fn a_killed_process_loses_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let key = Key::new("a/b").unwrap();
    let storage = FsStorage::open(tmp.path()).unwrap();
    let mut append = storage.open(&key, Open::Create).await.unwrap();
    let life = append.stat().life;
    append.append(&bytes(b"durable ")).await.unwrap();
    append.sync().await.unwrap();
    append.append(&bytes(b"committed")).await.unwrap();
    crash(storage, append).await;
    for _ in 0..2 {
        let storage = FsStorage::open(tmp.path()).unwrap();
        let (stat, all) = content(&storage, &key).await;
        assert_eq!((stat.state, stat.life, &all[..]), (State::Interrupted, life, &b"durable committed"[..]));
        assert_eq!(records(tmp.path()), [closed_record_name(&key)]);
    }
}

#[tokio::test]
async fn a_reboot_cuts_to_the_durable_length_and_begins_a_new_life() {
    let tmp = tempfile::tempdir().unwrap();
    let key = Key::new("a").unwrap();
    let storage = FsStorage::open(tmp.path()).unwrap();
    let mut append = storage.open(&key, Open::Create).await.unwrap();
    let life = append.stat().life;
    append.append(&bytes(b"durable ")).await.unwrap();
    assert_eq!(append.sync().await.unwrap(), 8);
    append.append(&bytes(b"committed")).await.unwrap();
    crash(storage, append).await;
    let storage = open_after_reboot(tmp.path());
    let (stat, all) = content(&storage, &key).await;
    assert_eq!((stat.state, &all[..]), (State::Interrupted, &b"durable "[..]));
    assert_ne!(stat.life, life, "bytes that were read are gone");
    // It continues from there, and keeps its new life when it is finished.
    let mut append = storage.open(&key, Open::Continue).await.unwrap();
    append.append(&bytes(b"again")).await.unwrap();
    append.finish(End::Finished).await.unwrap();
    drop(storage);
    let (after, all) = content(&FsStorage::open(tmp.path()).unwrap(), &key).await;
    assert_eq!((after.state, after.life, &all[..]), (State::Finished, stat.life, &b"durable again"[..]));
}

#[tokio::test]
async fn a_reboot_leaves_a_sealed_resource_alone() {
    let tmp = tempfile::tempdir().unwrap();
    let key = Key::new("a").unwrap();
    let storage = FsStorage::open(tmp.path()).unwrap();
    let mut append = storage.open(&key, Open::Create).await.unwrap();
    append.append(&bytes(b"all of it")).await.unwrap();
    let sealed = append.finish(End::Sealed).await.unwrap();
    drop(storage);
    let storage = open_after_reboot(tmp.path());
    let (stat, all) = content(&storage, &key).await;
    assert_eq!((stat.state, stat.life, &all[..]), (State::Sealed, sealed.life, &b"all of it"[..]));
    assert_eq!(storage.open(&key, Open::Continue).await.unwrap_err().kind(), ErrorKind::Sealed);
}

#[tokio::test]
async fn a_reboot_begins_a_new_life_even_at_the_old_length() {
    let tmp = tempfile::tempdir().unwrap();
    let key = Key::new("a").unwrap();
    let storage = FsStorage::open(tmp.path()).unwrap();
    let mut append = storage.open(&key, Open::Create).await.unwrap();
    append.append(&bytes(b"finished")).await.unwrap();
    append.finish(End::Finished).await.unwrap();
    let mut append = storage.open(&key, Open::Continue).await.unwrap();
    let life = append.stat().life;
    append.append(&bytes(b" seen by followers")).await.unwrap();
    crash(storage, append).await;
    // Delayed allocation leaves the size as it was last synced.
    File::options().write(true).open(tmp.path().join("a")).unwrap().set_len(8).unwrap();
    let (stat, all) = content(&open_after_reboot(tmp.path()), &key).await;
    assert_eq!((stat.state, &all[..]), (State::Interrupted, &b"finished"[..]));
    assert_ne!(stat.life, life, "bytes that were read behind it are gone");
}

/// A kill after the end was recorded and before the record was renamed, in a finish or a recovery.
#[tokio::test]
async fn a_recorded_end_counts_before_the_record_is_renamed() {
    for (existed, end) in [(false, State::Interrupted), (false, State::Sealed), (true, State::Interrupted)] {
        let tmp = tempfile::tempdir().unwrap();
        let key = Key::new("a").unwrap();
        let storage = FsStorage::open(tmp.path()).unwrap();
        let mut expected = Vec::new();
        if existed {
            let mut append = storage.open(&key, Open::Create).await.unwrap();
            append.append(&bytes(b"before ")).await.unwrap();
            append.finish(End::Interrupted).await.unwrap();
            expected.extend_from_slice(b"before ");
        }
        let mut append = storage.open(&key, Open::Continue).await.unwrap();
        append.append(&bytes(b"and after")).await.unwrap();
        append.sync().await.unwrap();
        expected.extend_from_slice(b"and after");
        crash(storage, append).await;
        let len = expected.len() as u64;
        rewrite(tmp.path(), &open_record_name(&key), |slot| Slot {
            status: Status::Closed(end),
            len,
            durable: len,
            ..slot
        });
        let storage = FsStorage::open(tmp.path()).unwrap();
        let (stat, all) = content(&storage, &key).await;
        assert_eq!((stat.state, all), (end, expected), "existed: {existed}");
        assert_eq!(records(tmp.path()), [closed_record_name(&key)]);
    }
}

/// A failed sync, after which the process dies before the file is cut.
#[tokio::test]
async fn an_untrusted_file_is_cut_in_the_same_boot_too() {
    for (claim, state) in [(owner(1), State::Lost), (None, State::Interrupted)] {
        let tmp = tempfile::tempdir().unwrap();
        let key = Key::new("a").unwrap();
        let storage = FsStorage::open(tmp.path()).unwrap();
        let mut append = claimed(&storage, &key, claim, b"durable").await;
        let life = append.stat().life;
        append.sync().await.unwrap();
        append.append(&bytes(b" who knows")).await.unwrap();
        crash(storage, append).await;
        rewrite(tmp.path(), &open_record_name(&key), |slot| Slot { boot: NO_BOOT, ..slot });
        let storage = FsStorage::open(tmp.path()).unwrap();
        let (stat, all) = content(&storage, &key).await;
        assert_eq!((stat.state, stat.owner, &all[..]), (state, claim, &b"durable"[..]));
        assert_ne!(stat.life, life);
    }
}

/// Leaves a lost resource with some durable bytes, and some that are not.
async fn lost_unsynced(path: &Path, key: &Key) -> FsStorage {
    let storage = FsStorage::open(path).unwrap();
    let mut append = claimed(&storage, key, owner(1), b"durable").await;
    append.sync().await.unwrap();
    append.append(&bytes(b" committed")).await.unwrap();
    crash(storage.clone(), append).await;
    storage
}

/// A kill during the recovery after a reboot: however far it came, the life is the same.
#[tokio::test]
async fn an_interrupted_recovery_leads_to_the_same_life() {
    let tmp = tempfile::tempdir().unwrap();
    let key = Key::new("a").unwrap();
    let storage = lost_unsynced(tmp.path(), &key).await;
    let root = &storage.root;
    rewrite(tmp.path(), &open_record_name(&key), |slot| Slot { boot: [0xee; 16], ..slot });
    let seen = root.find(&key).unwrap().unwrap().stat;
    assert_eq!((seen.len, seen.state), (7, State::Lost), "bytes above the durable length are never served");
    File::options().write(true).open(tmp.path().join("a")).unwrap().set_len(7).unwrap();
    assert_eq!(root.find(&key).unwrap().unwrap().stat.life, seen.life);
    root.recover(&key).unwrap();
    assert_eq!(root.find(&key).unwrap().unwrap().stat.life, seen.life);
    root.recover(&key).unwrap();
    assert_eq!(root.find(&key).unwrap().unwrap().stat.life, seen.life);
}

/// The case of a recovery that failed at the start.
#[tokio::test]
async fn an_open_recovers_the_resource_first() {
    let tmp = tempfile::tempdir().unwrap();
    let key = Key::new("a").unwrap();
    let storage = lost_unsynced(tmp.path(), &key).await;
    rewrite(tmp.path(), &open_record_name(&key), |slot| Slot { boot: [0xee; 16], ..slot });
    crash(storage.clone(), claimed(&storage, &key, owner(1), b" again").await).await;
    let (stat, all) = content(&storage, &key).await;
    assert_eq!((stat.state, &all[..]), (State::Lost, &b"durable again"[..]));
    let end = |slot| Slot { status: Status::Closed(State::Finished), len: 13, durable: 13, owner: None, ..slot };
    rewrite(tmp.path(), &open_record_name(&key), end);
    crash(storage.clone(), claimed(&storage, &key, owner(2), b" and again").await).await;
    let (stat, all) = content(&storage, &key).await;
    assert_eq!((stat.state, stat.owner, &all[..]), (State::Lost, owner(2), &b"durable again and again"[..]));
}

#[tokio::test]
async fn a_corrupt_record_means_interrupted() {
    for settled in [false, true] {
        let tmp = tempfile::tempdir().unwrap();
        let key = Key::new("a").unwrap();
        let storage = FsStorage::open(tmp.path()).unwrap();
        let mut append = storage.open(&key, Open::Create).await.unwrap();
        let life = append.stat().life;
        append.append(&bytes(b"who knows")).await.unwrap();
        crash(storage, append).await;
        if settled {
            drop(FsStorage::open(tmp.path()).unwrap());
        }
        let [name] = &records(tmp.path())[..] else { panic!("one record") };
        std::fs::write(tmp.path().join(".httpfstream/records").join(name), b"garbage").unwrap();
        let storage = FsStorage::open(tmp.path()).unwrap();
        let (stat, all) = content(&storage, &key).await;
        assert_eq!((stat.state, &all[..]), (State::Interrupted, &b"who knows"[..]));
        assert_ne!(stat.life, life);
        let mut append = storage.open(&key, Open::Continue).await.unwrap();
        assert_eq!(append.stat().life, stat.life);
        append.append(&bytes(b"!")).await.unwrap();
        assert_eq!(append.finish(End::Finished).await.unwrap().life, stat.life);
        assert_eq!(content(&storage, &key).await.0.life, stat.life);
    }
}

#[tokio::test]
async fn a_closed_record_with_a_corrupt_last_slot_means_interrupted() {
    for len in [0, 3, 9] {
        let tmp = tempfile::tempdir().unwrap();
        let key = Key::new("a").unwrap();
        let storage = FsStorage::open(tmp.path()).unwrap();
        let mut append = storage.open(&key, Open::Create).await.unwrap();
        append.append(&bytes(b"who knows")).await.unwrap();
        append.finish(End::Interrupted).await.unwrap();
        drop(storage);
        // As if the slot with the end were corrupt, and only the one before it readable.
        let before = |slot| Slot { status: Status::Open, len, durable: len, existed: true, boot: [0xee; 16], ..slot };
        rewrite(tmp.path(), &closed_record_name(&key), before);
        let storage = FsStorage::open(tmp.path()).unwrap();
        let (stat, all) = content(&storage, &key).await;
        assert_eq!((stat.state, &all[..]), (State::Interrupted, &b"who knows"[..]));
        let mut append = storage.open(&key, Open::Continue).await.unwrap();
        append.append(&bytes(b"!")).await.unwrap();
        assert_eq!(append.finish(End::Finished).await.unwrap().len, 10);
    }
}
