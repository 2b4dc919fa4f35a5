//! Tests that look at the files and records of a root; the contract's own tests are in `tests/storage.rs`.

use std::path::Path;

use bytes::Bytes;

use super::appender::FsAppend;
use super::path::Dir;
use super::record::{Loaded, Record, Slot};
use crate::identity::Owner;
use crate::key::Key;
use crate::state::Stat;
use crate::storage::{Append, FsStorage, Open, Storage, stream};

mod append;
mod owners;
mod recovery;
mod sync;
mod tampering;

fn bytes(data: &'static [u8]) -> Vec<Bytes> {
    vec![Bytes::from_static(data)]
}

/// Rewrites a record, as a crash between two system calls may leave it.
fn rewrite(path: &Path, name: &str, change: impl FnOnce(Slot) -> Slot) {
    let records = Dir::open(&path.join(".httpfstream/records")).unwrap();
    let Loaded::Intact(mut record) = Record::load(&records, name, true).unwrap() else { panic!("no record {name}") };
    let slot = change(record.slot);
    record.write(slot).unwrap();
}

/// Opens the root as after a reboot.
fn open_after_reboot(path: &Path) -> FsStorage {
    // The storage knows a reboot only by the boot id in each record.
    for name in records(path) {
        rewrite(path, &name, |slot| Slot { boot: [0xee; 16], ..slot });
    }
    FsStorage::open(path).unwrap()
}

/// Leaves an appender behind as a killed process does: with an open record.
async fn crash(storage: FsStorage, append: FsAppend) {
    drop(append);
    drop(storage);
}

fn records(path: &Path) -> Vec<String> {
    let dir = std::fs::read_dir(path.join(".httpfstream/records")).unwrap();
    dir.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

async fn content(storage: &FsStorage, key: &Key) -> (Stat, Vec<u8>) {
    let stat = storage.stat(key).await.unwrap().unwrap();
    let mut read = storage.read(key, stat.life, 0..stat.len).await.unwrap();
    let mut all = Vec::new();
    while let Some(chunk) = stream::next(&mut read).await {
        all.extend_from_slice(&chunk.unwrap());
    }
    (stat, all)
}

fn owner(of: u8) -> Option<Owner> {
    Some(Owner::from_bytes([of; 32]))
}

/// Opens a resource and appends as this owner.
async fn claimed(storage: &FsStorage, key: &Key, owner: Option<Owner>, data: &'static [u8]) -> FsAppend {
    let mut append = storage.open(key, Open::Continue).await.unwrap();
    append.claim(owner);
    append.append(&bytes(data)).await.unwrap();
    append
}

async fn lost(storage: &FsStorage) -> Vec<(Key, Stat)> {
    let (mut entries, mut lost) = (storage.lost(), Vec::new());
    while let Some(entry) = stream::next(&mut entries).await {
        lost.push(entry.unwrap());
    }
    lost
}
