//! Appends beside readers, and on a full disk.

use std::fs::File;

use super::bytes;
use crate::error::ErrorKind;
use crate::key::Key;
use crate::state::{End, State};
use crate::storage::{Append, FsStorage, Open, Storage};

/// Seen to fail when the file's length is read before the committed one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_during_appends_never_reports_a_cut_file() {
    let tmp = tempfile::tempdir().unwrap();
    let key = Key::new("a").unwrap();
    let storage = FsStorage::open(tmp.path()).unwrap();
    let mut append = storage.open(&key, Open::Create).await.unwrap();
    let life = append.stat().life;
    let appending = tokio::spawn(async move {
        for _ in 0..50_000 {
            append.append(&bytes(b"x")).await.unwrap();
        }
        append.finish(End::Finished).await.unwrap()
    });
    while !appending.is_finished() {
        storage.read(&key, life, 0..0).await.map(drop).unwrap();
    }
    assert_eq!(appending.await.unwrap().len, 50_000);
}

/// Seen to fail without the check that the table's epoch is unchanged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_during_a_lookup_is_not_reported_as_interrupted() {
    let tmp = tempfile::tempdir().unwrap();
    let key = Key::new("a").unwrap();
    let storage = FsStorage::open(tmp.path()).unwrap();
    storage.open(&key, Open::Create).await.unwrap().finish(End::Finished).await.unwrap();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut looking = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (storage, key, stopped) = (storage.clone(), key.clone(), stopped.clone());
        looking.spawn(async move {
            while !*stopped.borrow() {
                assert_ne!(storage.stat(&key).await.unwrap().unwrap().state, State::Interrupted);
            }
        });
    }
    for _ in 0..300 {
        let mut append = storage.open(&key, Open::Continue).await.unwrap();
        append.append(&bytes(b"x")).await.unwrap();
        append.finish(End::Finished).await.unwrap();
    }
    stop.send(true).unwrap();
    while let Some(looked) = looking.join_next().await {
        looked.unwrap();
    }
}

/// A file of the greatest length that the file system allows stands for a full disk.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn fault_35_an_append_to_a_full_disk_is_refused_and_the_appender_continues() {
    let tmp = tempfile::tempdir().unwrap();
    let key = Key::new("a").unwrap();
    let file = File::create(tmp.path().join("a")).unwrap();
    let (mut fits, mut too_long) = (0, 1 << 63);
    while fits + 1 < too_long {
        let len = fits + (too_long - fits) / 2;
        if file.set_len(len).is_ok() { fits = len } else { too_long = len }
    }
    file.set_len(fits).unwrap();
    let storage = FsStorage::open(tmp.path()).unwrap();
    let mut append = storage.open(&key, Open::Continue).await.unwrap();
    assert_eq!(append.append(&bytes(b"!")).await.unwrap_err().kind(), ErrorKind::Full);
    assert_eq!(append.append(&[]).await.unwrap(), fits, "not poisoned");
    assert_eq!(append.finish(End::Sealed).await.unwrap().len, fits);
}
