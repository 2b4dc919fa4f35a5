//! Both storages of the crate keep the storage contract, and what is their own beyond it.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::Path;

use bytes::Bytes;
use common::{pattern, soon, tree};
use futures_util::TryStreamExt;
use httpfstream::{ErrorKind, Key, Result};
use httpfstream::{
    Life, Stat, State,
    storage::{Append, End, FsStorage, MemoryStorage, Open, Storage},
};

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

fn bytes(data: impl AsRef<[u8]>) -> [Bytes; 1] {
    [Bytes::copy_from_slice(data.as_ref())]
}

/// The kind of an error; panics on success.
fn kind<T>(result: Result<T>) -> ErrorKind {
    match result {
        Ok(_) => panic!("it should have failed"),
        Err(error) => error.kind(),
    }
}

async fn read<S: Storage>(storage: &S, key: &Key, life: Life, range: std::ops::Range<u64>) -> Result<Vec<u8>> {
    let chunks: Vec<Bytes> = storage.read(key, life, range).await?.try_collect().await?;
    Ok(chunks.concat())
}

/// All there is, and the stat that tells it.
async fn all<S: Storage>(storage: &S, key: &Key) -> (Vec<u8>, Stat) {
    let stat = storage.stat(key).await.unwrap().unwrap();
    (read(storage, key, stat.life, 0..stat.len).await.unwrap(), stat)
}

async fn write<S: Storage>(storage: &S, key: &Key, data: &str, end: End) -> Stat {
    let mut appender = open(storage, key, Open::Continue).await;
    if !data.is_empty() {
        appender.append(&bytes(data)).await.unwrap();
    }
    appender.finish(end).await.unwrap()
}

/// Opens as soon as whoever was dropped before has let go.
async fn open<S: Storage>(storage: &S, key: &Key, how: Open) -> S::Appender {
    soon("an open", async {
        loop {
            match storage.open(key, how).await {
                Err(error) if error.kind() == ErrorKind::Busy => tokio::task::yield_now().await,
                opened => return opened.unwrap(),
            }
        }
    })
    .await
}

/// The contract, clause by clause.
#[cfg(feature = "conformance")]
mod conformance {
    use httpfstream::storage::{FsStorage, MemoryStorage};

    use super::common::tree;

    /// Large enough for each clause; the one about full stores fills it.
    fn memory_store() -> (MemoryStorage, MemoryStorage, ()) {
        let one = MemoryStorage::new(64 << 20);
        (one.clone(), one, ())
    }

    /// A root in a folder of its own.
    fn file_store(preallocate: bool, inline: bool) -> (FsStorage, FsStorage, Released) {
        let dir = tempfile::tempdir().unwrap();
        let one = FsStorage::builder(dir.path()).preallocate(preallocate).inline_appends(inline).open().unwrap();
        (one.clone(), one, Released(dir))
    }

    /// When a test is over, whatever was opened is released, and nothing waits for its first byte.
    struct Released(tempfile::TempDir);

    impl Drop for Released {
        fn drop(&mut self) {
            let waiting = self.0.path().join(".httpfstream/new");
            let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
            while !std::thread::panicking() && !tree(&waiting).is_empty() {
                assert!(std::time::Instant::now() < until, "left behind: {:?}", tree(&waiting));
                std::thread::yield_now();
            }
        }
    }

    httpfstream::storage_conformance! {
        mod memory {
            async || memory_store();
        }
    }

    httpfstream::storage_conformance! {
        mod files {
            async || file_store(true, true);
            without cap = "it is full when the disk is: tests/external/disk.sh";
        }
    }

    httpfstream::storage_conformance! {
        mod files_without_preallocation {
            async || file_store(false, true);
            without cap = "it is full when the disk is: tests/external/disk.sh";
        }
    }

    httpfstream::storage_conformance! {
        mod files_by_the_blocking_pool {
            async || file_store(true, false);
            without cap = "it is full when the disk is: tests/external/disk.sh";
        }
    }
}

/// The contract leaves it to a storage whether what was opened and has no byte yet is there; here it is.
#[tokio::test]
async fn what_has_no_byte_yet_can_be_deleted() {
    let dir = tempfile::tempdir().unwrap();
    deletes_what_has_no_byte_yet(MemoryStorage::new(1 << 20)).await;
    deletes_what_has_no_byte_yet(FsStorage::open(dir.path()).unwrap()).await;
}

async fn deletes_what_has_no_byte_yet<S: Storage>(storage: S) {
    let key = key("d/a");
    let mut older = storage.open(&key, Open::Create).await.unwrap();
    storage.delete(&key).await.unwrap();
    let newer = storage.open(&key, Open::Create).await.unwrap();
    assert_ne!(older.stat().life, newer.stat().life);
    assert_eq!(kind(older.append(&bytes("never")).await), ErrorKind::Fenced);
    drop((older, newer));
}

#[tokio::test]
async fn memory_is_full_at_its_cap_and_goes_on() {
    let storage = MemoryStorage::new(10);
    let (a, b) = (key("a"), key("b"));
    let mut appender = storage.open(&a, Open::Continue).await.unwrap();
    appender.append(&bytes("12345678")).await.unwrap();
    assert_eq!(kind(appender.append(&bytes("never")).await), ErrorKind::Full);
    assert_eq!(kind(appender.append(&[Bytes::from("9"), Bytes::from("10")]).await), ErrorKind::Full);
    assert_eq!((storage.used(), appender.stat().len), (8, 8), "nothing of it was stored");
    let mut other = storage.open(&b, Open::Continue).await.unwrap();
    assert_eq!(kind(other.append(&bytes("xyz")).await), ErrorKind::Full);
    drop(other);
    assert_eq!(storage.stat(&b).await.unwrap(), None, "and nothing was made");
    assert_eq!(appender.append(&bytes("90")).await.unwrap(), 10, "the appender goes on");
    assert_eq!(kind(appender.append(&bytes("!")).await), ErrorKind::Full);
    assert_eq!(appender.append(&[]).await.unwrap(), 10);
    appender.finish(End::Finished).await.unwrap();
    assert_eq!(all(&storage, &a).await.0, b"1234567890");
    storage.delete(&a).await.unwrap();
    assert_eq!(storage.used(), 0);
    write(&storage, &b, "0123456789", End::Finished).await;
}

/// The names of the records, without those of resources that are being appended to.
fn records(root: &Path) -> Vec<String> {
    tree(&root.join(".httpfstream/records"))
}

#[tokio::test]
async fn files_plainly_finished_have_no_bookkeeping() {
    let dir = tempfile::tempdir().unwrap();
    let storage = FsStorage::open(dir.path()).unwrap();
    for round in 0..3 {
        write(&storage, &key("d/a"), "x", End::Finished).await;
        assert_eq!(records(dir.path()), [""; 0], "{round}");
    }
    write(&storage, &key("d/empty"), "", End::Finished).await;
    assert_eq!(records(dir.path()), [""; 0]);
    write(&storage, &key("lost"), "x", End::Interrupted).await;
    assert_eq!(records(dir.path()).len(), 1);
    write(&storage, &key("lost"), "y", End::Finished).await;
    assert_eq!(records(dir.path()), [""; 0], "it is gone once the resource is finished after all");
    assert_eq!(tree(dir.path()), ["d/a", "d/empty", "lost"]);
    assert_eq!(std::fs::read(dir.path().join("lost")).unwrap(), b"xy");
}

#[tokio::test]
async fn files_of_appenders_that_were_lost_are_interrupted_after_a_reopen_and_whole() {
    for leaked in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (fresh, again, untouched) = (key("d/fresh"), key("again"), key("untouched"));
        let life = {
            let storage = FsStorage::open(dir.path()).unwrap();
            write(&storage, &again, "before ", End::Finished).await;
            let mut appenders = Vec::new();
            for name in [&fresh, &again] {
                let mut appender = storage.open(name, Open::Continue).await.unwrap();
                appender.append(&bytes(pattern(0, 200_000))).await.unwrap();
                appender.append(&bytes("the last bytes")).await.unwrap();
                appenders.push(appender);
            }
            let life = appenders[0].stat().life;
            appenders.push(storage.open(&untouched, Open::Continue).await.unwrap());
            if leaked {
                // As a killed process leaves it: nothing is told to anybody. The lock has to go by other means, so the
                // folder is copied.
                let copy = tempfile::tempdir().unwrap();
                copy_tree(dir.path(), copy.path());
                std::mem::forget(appenders);
                std::mem::forget(storage);
                // The copy has other inodes, and so isn't what the records are about: that is told apart as well.
                let storage = FsStorage::open(copy.path()).unwrap();
                let stat = storage.stat(&fresh).await.unwrap().unwrap();
                assert_ne!(stat.life, life, "another file is another life");
                assert_eq!(records(copy.path()), [""; 0]);
                continue;
            }
            life
        };
        let storage = soon("the lock", async {
            loop {
                match FsStorage::open(dir.path()) {
                    Ok(storage) => break storage,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Busy),
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
        for (name, prefix) in [(&fresh, ""), (&again, "before ")] {
            let (data, stat) = all(&storage, name).await;
            let expected = [prefix.as_bytes(), &pattern(0, 200_000), b"the last bytes"].concat();
            assert!(data == expected, "{name}: {} bytes", data.len());
            assert_eq!(stat.state, State::Interrupted, "{name}");
        }
        assert_eq!(storage.stat(&fresh).await.unwrap().unwrap().life, life, "nothing was lost: the same life");
        assert_eq!(storage.stat(&untouched).await.unwrap(), None);
        assert_eq!(tree(dir.path()), ["again", "d/fresh"]);
        // They go on at their end.
        assert_eq!(write(&storage, &fresh, "!", End::Finished).await.len, 200_015);
        assert_eq!(records(dir.path()).len(), 1);
    }
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Runs `files_child` in a process of its own, which dies by itself in the middle of everything.
#[tokio::test]
async fn files_of_a_process_that_died_are_interrupted_and_whole() {
    let dir = tempfile::tempdir().unwrap();
    for round in 1..=3u64 {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["files_child", "--exact", "--nocapture", "--include-ignored"])
            .env("STORAGE_ROOT", dir.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!output.status.success() && text.contains("all is written"), "{text}");
        // Twice: what recovery did is not done again.
        for _ in 0..2 {
            let storage = FsStorage::open(dir.path()).unwrap();
            let (data, stat) = all(&storage, &key("d/a")).await;
            assert!(data == pattern(0, (round * 100_000) as usize), "{} bytes", data.len());
            assert_eq!((stat.state, stat.len), (State::Interrupted, round * 100_000));
            let (data, stat) = all(&storage, &key("finished")).await;
            assert_eq!((&*data, stat.state), (&b"whole"[..], State::Finished), "opened again, and not appended to");
            assert_eq!(storage.stat(&key("untouched")).await.unwrap(), None);
            assert_eq!(tree(&dir.path().join(".httpfstream/new")), [""; 0]);
        }
    }
}

#[tokio::test]
#[ignore = "a part of files_of_a_process_that_died_are_interrupted_and_whole, run by it"]
async fn files_child() {
    let Some(root) = std::env::var_os("STORAGE_ROOT") else { return };
    let storage = FsStorage::open(root).unwrap();
    if storage.stat(&key("finished")).await.unwrap().is_none() {
        write(&storage, &key("finished"), "whole", End::Finished).await;
    }
    let _again = storage.open(&key("finished"), Open::Continue).await.unwrap();
    let _untouched = storage.open(&key("untouched"), Open::Continue).await.unwrap();
    let mut appender = storage.open(&key("d/a"), Open::Continue).await.unwrap();
    let from = appender.stat().len;
    appender.append(&bytes(pattern(from, 60_000))).await.unwrap();
    appender.append(&bytes(pattern(from + 60_000, 40_000))).await.unwrap();
    println!("all is written");
    std::process::abort();
}

#[tokio::test]
async fn files_interrupted_and_sealed_survive_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let mut stats = Vec::new();
    let ends = [("finished", End::Finished), ("d/interrupted", End::Interrupted), ("d/sealed", End::Sealed)];
    {
        let storage = FsStorage::open(dir.path()).unwrap();
        for (name, end) in ends {
            stats.push(write(&storage, &key(name), name, end).await);
        }
    }
    for _ in 0..2 {
        let storage = FsStorage::open(dir.path()).unwrap();
        for ((name, end), before) in ends.into_iter().zip(&stats) {
            let (data, stat) = all(&storage, &key(name)).await;
            assert_eq!((&*data, stat.state, stat.life), (name.as_bytes(), end.state(), before.life), "{name}");
        }
        assert_eq!(kind(storage.open(&key("d/sealed"), Open::Continue).await), ErrorKind::Sealed);
        assert_eq!(storage.list("").try_collect::<Vec<_>>().await.unwrap().len(), 3);
    }
}

#[tokio::test]
async fn files_dropped_in_are_finished_resources() {
    let dir = tempfile::tempdir().unwrap();
    let storage = FsStorage::open(dir.path()).unwrap();
    std::fs::create_dir_all(dir.path().join("d/e")).unwrap();
    std::fs::write(dir.path().join("d/e/dropped.txt"), "dropped in").unwrap();
    std::fs::write(dir.path().join("d/e/empty"), "").unwrap();
    let key = key("d/e/dropped.txt");
    let (data, stat) = all(&storage, &key).await;
    assert_eq!((&*data, stat.state), (&b"dropped in"[..], State::Finished));
    assert_eq!(storage.stat(&key).await.unwrap().unwrap().life, stat.life, "the same each time");
    assert_eq!(kind(storage.open(&key, Open::Create).await), ErrorKind::Exists);
    let after = write(&storage, &key, ", and appended to", End::Finished).await;
    assert_eq!(after.life, stat.life);
    assert_eq!(std::fs::read(dir.path().join("d/e/dropped.txt")).unwrap(), b"dropped in, and appended to");
    // Another file under the name is another life, also where the first was interrupted.
    write(&storage, &key, "!", End::Interrupted).await;
    std::fs::write(dir.path().join("d/other"), "other").unwrap();
    std::fs::rename(dir.path().join("d/other"), dir.path().join("d/e/dropped.txt")).unwrap();
    let (data, other) = all(&storage, &key).await;
    assert_eq!((&*data, other.state), (&b"other"[..], State::Finished));
    assert_ne!(other.life, stat.life);
    assert_eq!(kind(read(&storage, &key, stat.life, 0..1).await), ErrorKind::NotFound);
    write(&storage, &key, "!", End::Finished).await;
    assert_eq!(records(dir.path()), [""; 0], "the older record went with it");
}

#[tokio::test]
async fn files_deleted_leave_no_empty_folders() {
    let dir = tempfile::tempdir().unwrap();
    let storage = FsStorage::open(dir.path()).unwrap();
    for (name, end) in [("a/b/c/d", End::Finished), ("a/b/e", End::Interrupted), ("a/f", End::Sealed)] {
        write(&storage, &key(name), "x", end).await;
    }
    storage.delete(&key("a/b/c/d")).await.unwrap();
    assert!(!dir.path().join("a/b/c").exists() && dir.path().join("a/b/e").exists());
    storage.delete(&key("a/b/e")).await.unwrap();
    assert_eq!(tree(dir.path()), ["a/f"]);
    storage.delete(&key("a/f")).await.unwrap();
    assert_eq!((tree(dir.path()), records(dir.path())), (vec![], vec![]));
    assert_eq!(kind(storage.delete(&key("a/f")).await), ErrorKind::NotFound);
    assert_eq!(kind(storage.delete(&key(".httpfstream/lock")).await), ErrorKind::NotFound);
    assert!(dir.path().join(".httpfstream/lock").exists());
}

#[tokio::test]
async fn files_keep_their_bookkeeping_where_they_are_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let storage = FsStorage::builder(dir.path()).bookkeeping(".keep").open().unwrap();
    write(&storage, &key(".httpfstream/lock"), "an ordinary name", End::Interrupted).await;
    assert!(dir.path().join(".keep/lock").exists());
    for name in [".keep", ".keep/lock", "d/.keep/x"] {
        assert_eq!(kind(storage.open(&key(name), Open::Continue).await), ErrorKind::NotFound);
        assert_eq!(storage.stat(&key(name)).await.unwrap(), None);
    }
    for bad in ["", "..", "a/b", "a\0"] {
        let opened = FsStorage::builder(dir.path()).bookkeeping(bad).open();
        assert_eq!(opened.unwrap_err().kind(), ErrorKind::BadPath, "{bad:?}");
    }
}
