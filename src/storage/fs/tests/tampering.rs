//! Files that another program changes.

use std::fs::File;

use super::{bytes, claimed, content, crash, lost, owner, records};
use crate::key::Key;
use crate::state::{End, State};
use crate::storage::{Append, FsStorage, Open, Storage};

#[tokio::test]
async fn bytes_that_others_add_are_kept_and_a_cut_begins_a_new_life() {
    let tmp = tempfile::tempdir().unwrap();
    let key = Key::new("a").unwrap();
    let storage = FsStorage::open(tmp.path()).unwrap();
    let mut append = storage.open(&key, Open::Create).await.unwrap();
    append.append(&bytes(b"ours ")).await.unwrap();
    let life = append.finish(End::Interrupted).await.unwrap().life;
    std::fs::write(tmp.path().join("a"), "ours and theirs ").unwrap();
    assert_eq!(content(&storage, &key).await.0.life, life);
    let mut append = storage.open(&key, Open::Continue).await.unwrap();
    append.append(&bytes(b"again")).await.unwrap();
    append.finish(End::Interrupted).await.unwrap();
    assert_eq!(content(&storage, &key).await.1, b"ours and theirs again");

    File::options().write(true).open(tmp.path().join("a")).unwrap().set_len(4).unwrap();
    let (cut, all) = content(&storage, &key).await;
    assert_eq!(all, b"ours");
    assert_ne!(cut.life, life, "other bytes may follow where some were read");
    let mut append = storage.open(&key, Open::Continue).await.unwrap();
    append.append(&bytes(b"!")).await.unwrap();
    append.finish(End::Finished).await.unwrap();
    let (after, all) = content(&storage, &key).await;
    assert_eq!((after.life, &all[..]), (cut.life, &b"ours!"[..]));
}

/// Seen to return to the earlier life, though bytes that were read are gone.
#[tokio::test]
async fn a_cut_to_the_length_before_the_open_begins_a_new_life() {
    for claim in [owner(1), None] {
        let tmp = tempfile::tempdir().unwrap();
        let key = Key::new("a").unwrap();
        let storage = FsStorage::open(tmp.path()).unwrap();
        claimed(&storage, &key, None, b"before").await.finish(End::Finished).await.unwrap();
        let mut append = claimed(&storage, &key, claim, b" seen").await;
        let life = append.stat().life;
        File::options().write(true).open(tmp.path().join("a")).unwrap().set_len(6).unwrap();
        append.append(&bytes(b" more")).await.unwrap_err();
        crash(storage, append).await;
        let storage = FsStorage::open(tmp.path()).unwrap();
        let (stat, all) = content(&storage, &key).await;
        assert_eq!((stat.owner, &all[..]), (claim, &b"before"[..]));
        assert_eq!(stat.state, if claim.is_some() { State::Lost } else { State::Interrupted });
        assert_ne!(stat.life, life);
    }
}

#[tokio::test]
async fn a_cut_of_a_new_resource_begins_a_new_life() {
    for (claim, end) in [(owner(1), None), (None, None), (None, Some(End::Interrupted)), (None, Some(End::Sealed))] {
        let tmp = tempfile::tempdir().unwrap();
        let key = Key::new("a").unwrap();
        let storage = FsStorage::open(tmp.path()).unwrap();
        let mut append = claimed(&storage, &key, claim, b"bytes that were seen").await;
        let life = append.stat().life;
        let cut = || File::options().write(true).open(tmp.path().join("a")).unwrap().set_len(5).unwrap();
        match end {
            Some(end) => {
                append.finish(end).await.unwrap();
                drop(storage);
                cut();
            }
            None => {
                cut();
                append.append(&bytes(b" more")).await.unwrap_err();
                crash(storage, append).await;
            }
        }
        let (stat, all) = content(&FsStorage::open(tmp.path()).unwrap(), &key).await;
        assert_eq!(all, b"bytes", "{claim:?} {end:?}");
        assert_ne!(stat.life, life, "{claim:?} {end:?}");
    }
}

#[tokio::test]
async fn each_cut_while_the_storage_is_closed_begins_a_new_life() {
    for claim in [owner(1), None] {
        let tmp = tempfile::tempdir().unwrap();
        let key = Key::new("a").unwrap();
        let storage = FsStorage::open(tmp.path()).unwrap();
        let append = claimed(&storage, &key, claim, b"bytes that were seen").await;
        append.sync().await.unwrap();
        let mut life = append.stat().life;
        crash(storage, append).await;
        for len in [15, 5] {
            File::options().write(true).open(tmp.path().join("a")).unwrap().set_len(len).unwrap();
            let (stat, _) = content(&FsStorage::open(tmp.path()).unwrap(), &key).await;
            assert_eq!((stat.len, stat.owner), (len, claim));
            assert_ne!(stat.life, life, "{claim:?} {len}");
            life = stat.life;
            let (again, _) = content(&FsStorage::open(tmp.path()).unwrap(), &key).await;
            assert_eq!(again.life, life, "{claim:?} {len}");
        }
    }
}

#[tokio::test]
async fn a_file_that_replaced_a_lost_resource_is_served_as_it_is() {
    for folder in [true, false] {
        let tmp = tempfile::tempdir().unwrap();
        let key = Key::new("a/b").unwrap();
        let storage = FsStorage::open(tmp.path()).unwrap();
        crash(storage.clone(), claimed(&storage, &key, owner(1), b"lost").await).await;
        drop(storage);
        std::fs::remove_dir_all(tmp.path().join("a")).unwrap();
        let theirs = Key::new(if folder { "a/b" } else { "a" }).unwrap();
        if folder {
            std::fs::create_dir(tmp.path().join("a")).unwrap();
        }
        std::fs::write(tmp.path().join(theirs.as_str()), "theirs").unwrap();
        let storage = FsStorage::open(tmp.path()).unwrap();
        assert_eq!((records(tmp.path()), lost(&storage).await), (vec![], vec![]));
        let (stat, all) = content(&storage, &theirs).await;
        assert_eq!((stat.state, &all[..]), (State::Finished, &b"theirs"[..]));
    }
}
