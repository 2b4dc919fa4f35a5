//! Fuzz targets for records and their recovery: see [`crate::fuzzing`].

use std::cell::RefCell;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::FsStorage;
use super::record::{
    Record, Recovery, Slot, Status, closed_record_name, encode_slot, open_record_name, parse_slot, push_checksum,
};
use super::root::{boot_id, identity};
use crate::key::Key;
use crate::state::{End, Stat, State};
use crate::storage::{Append, Open, Storage, stream};

/// The offsets of the slots, and a slot's length without its checksum.
const SLOTS: [usize; 2] = [8192, 12288];
const SLOT_LEN: usize = 91;

/// Builds a record's bytes from an input: a head and two slots, each with a valid checksum if a bit of the first byte says
/// so, since a fuzzer doesn't guess checksums. Other bits replace the head by that of `about`, and a slot's boot by this
/// one.
fn record_of(data: &[u8], about: Option<(&Key, u128)>) -> Vec<u8> {
    let (flags, rest) = data.split_first().unwrap_or((&0, &[]));
    let (slots, head) = rest.split_at(rest.len().min(2 * SLOT_LEN));
    let mut record = match about.filter(|_| flags & 8 == 0) {
        Some((key, id)) => {
            let len = (key.as_str().len() as u32).to_le_bytes();
            [b"HFSrec2\n", &id.to_le_bytes()[..], &len, key.as_str().as_bytes()].concat()
        }
        None => head.to_vec(),
    };
    if flags & 1 != 0 {
        push_checksum(&mut record);
    }
    for (i, slot) in slots.chunks(SLOT_LEN).enumerate() {
        if record.len() < SLOTS[i] {
            record.resize(SLOTS[i], 0);
        }
        let mut slot = slot.to_vec();
        if let (Some(boot), true) = (slot.get_mut(41..57), flags & (16 << i) != 0) {
            boot.copy_from_slice(&boot_id());
        }
        if flags & (2 << i) != 0 {
            push_checksum(&mut slot);
        }
        record.extend_from_slice(&slot);
    }
    record
}

/// A record is read as what its bytes say, or refused. Its recovery gives the same result however often it is applied, and
/// never more bytes than the file has.
pub fn record(data: &[u8]) -> bool {
    thread_local! {
        static FILE: File = File::open("/dev/null").expect("a file");
    }
    let bytes = record_of(data, None);
    let file = FILE.with(|file| file.try_clone()).expect("a file");
    let Some(record) = Record::parse(file, &bytes) else { return false };
    // The head, by its offsets.
    let len = u32::from_le_bytes(bytes[24..28].try_into().unwrap()) as usize;
    assert_eq!(&bytes[..8], b"HFSrec2\n");
    assert_eq!(record.id.to_le_bytes(), bytes[8..24]);
    assert_eq!(record.key.as_str().as_bytes(), &bytes[28..28 + len]);
    // The slot is the valid one with the greater number. It is written back to the same bytes, except for flags (any value
    // but 0 is true) and the owner's bytes where there is no owner.
    let slots = SLOTS.map(|at| bytes.get(at..at + SLOT_LEN + 16));
    let parsed = slots.map(|slot| parse_slot(slot?));
    let newest = parsed.iter().flatten().map(|(seq, _)| *seq).max().expect("a slot");
    assert_eq!(record.seq(), newest);
    assert!(parsed.iter().flatten().any(|(seq, slot)| *seq == newest && *slot == record.slot));
    for (slot, parsed) in slots.iter().zip(parsed) {
        let Some((seq, parsed)) = parsed else { continue };
        let slot = slot.expect("parsed before");
        let written = encode_slot(seq, parsed);
        assert_eq!(parse_slot(&written), Some((seq, parsed)));
        assert_eq!(slot[..57], written[..57]);
        assert!(slot[58] == 0 || slot[59..SLOT_LEN] == written[59..SLOT_LEN]);
    }
    check_recovery(record.slot, record.id, &bytes)
}

/// Recovers with file sizes and boots taken from the input. Returns whether an undo was among the results.
fn check_recovery(slot: Slot, id: u128, bytes: &[u8]) -> bool {
    let mut undone = false;
    let some = u64::from(bytes[bytes.len() - 1]);
    for size in [0, 1, some, slot.len, slot.durable, slot.len.saturating_add(some), slot.durable / 2, u64::MAX] {
        for boot in [slot.boot, [1; 16], [2; 16]] {
            let recovery = slot.recovery(id, size, boot);
            assert_eq!(recovery, slot.recovery(id, size, boot));
            let Recovery::Keep(kept, len) = recovery else {
                // Only if nothing was added and nothing is missing.
                assert!(slot.status == Status::Open && len_of(slot, size, boot) == slot.len);
                undone = true;
                continue;
            };
            assert!(len <= size);
            if let Status::Closed(_) = slot.status {
                assert_eq!((kept.status, len), (slot.status, size));
                assert!(size >= slot.len || kept.life != slot.life, "a cut file is in another life");
                continue;
            }
            assert_eq!(len, len_of(slot, size, boot));
            assert_eq!(kept.status.is_open(), slot.owner.is_some());
            assert!(kept != slot || len == size, "an unchanged slot goes with an unchanged file");
            let again = kept.recovery(id, len, boot);
            match again {
                // Kept for its owner, and exactly as long as before the open.
                Recovery::Undo => assert!(kept.status == Status::Open && len == kept.len),
                Recovery::Keep(again, same) => {
                    assert_eq!(same, len);
                    assert_eq!((again.status, again.life, again.owner), (kept.status, kept.life, kept.owner));
                }
            }
        }
    }
    undone
}

/// How many bytes of an open resource are recovered.
fn len_of(slot: Slot, size: u64, boot: [u8; 16]) -> u64 {
    if slot.boot == boot { size } else { size.min(slot.durable) }
}

/// A root with arbitrary records is opened and recovered. Recovering again changes nothing, its file holds a prefix of what
/// it held, and it can be appended to unless it is sealed.
pub fn root(data: &[u8]) -> bool {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    thread_local! {
        static RUNTIME: RefCell<tokio::runtime::Runtime> = RefCell::new(
            tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
        );
    }
    struct Folder(PathBuf);
    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
    let memory = Path::new("/dev/shm");
    let above = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let name = format!("httpfstream-fuzz-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let folder = Folder(above.join(name));
    let (&kind, data) = data.split_first().unwrap_or((&0, &[]));
    let (&len, data) = data.split_first().unwrap_or((&0, &[]));
    let content: Vec<u8> = (0..len).collect();
    let records = folder.0.join(".httpfstream/records");
    std::fs::create_dir_all(&records).expect("a folder");
    let key = Key::new("a").expect("a key");
    let path = folder.0.join("a");
    std::fs::write(&path, &content).expect("to write");
    let id = identity(&File::open(&path).expect("a file")).expect("an identity");
    let (first, second) = data.split_at(data.len() / 2);
    let mut expected = None;
    if kind & 1 == 0 {
        let (name, bytes) = (records.join(open_record_name(&key)), record_of(first, Some((&key, id))));
        std::fs::write(&name, &bytes).expect("to write");
        let record = Record::parse(File::open(&name).expect("a file"), &bytes);
        expected = record.filter(|record| record.belongs_to(&key, id)).map(|record| {
            match record.slot.recovery(id, content.len() as u64, boot_id()) {
                Recovery::Keep(_, len) => Some(len),
                Recovery::Undo => record.slot.existed.then_some(content.len() as u64),
            }
        });
    }
    if kind & 2 != 0 {
        std::fs::write(records.join(closed_record_name(&key)), record_of(second, Some((&key, id)))).expect("to write");
    }
    RUNTIME.with_borrow(|runtime| runtime.block_on(check_root(&folder.0, &key, &content, expected)))
}

/// `expected` is the resource's length, `None` for absent, if its record determines it.
async fn check_root(folder: &Path, key: &Key, content: &[u8], expected: Option<Option<u64>>) -> bool {
    let storage = FsStorage::open(folder).expect("a root");
    let seen = check_stat(&storage, key, content).await;
    drop(storage);
    if let Some(expected) = expected {
        assert_eq!(seen.as_ref().map(|stat| stat.len), expected);
        assert_eq!(std::fs::metadata(folder.join("a")).ok().map(|meta| meta.len()), expected);
    }
    // Recovering again changes nothing.
    let storage = FsStorage::open(folder).expect("a root");
    let again = check_stat(&storage, key, content).await;
    let parts = |stat: &Option<Stat>| stat.as_ref().map(|stat| (stat.life, stat.len, stat.state, stat.owner));
    assert_eq!(parts(&seen), parts(&again));
    let mut lost = storage.lost();
    while let Some(found) = stream::next(&mut lost).await {
        assert_eq!(found.expect("a lost resource").1.state, State::Lost);
    }
    let before = seen.as_ref().map_or(0, |stat| stat.len);
    let sealed = seen.as_ref().is_some_and(|stat| stat.state == State::Sealed);
    match Storage::open(&storage, key, Open::Takeover).await {
        Ok(mut appender) => {
            assert!(!sealed);
            let appended = appender.append(&[bytes::Bytes::from_static(b"new")]).await;
            assert_eq!(appended.expect("to append"), before + 3);
            let stat = appender.finish(End::Finished).await.expect("to finish");
            assert_eq!((stat.len, stat.state), (before + 3, State::Finished));
            let read = std::fs::read(folder.join("a")).expect("to read");
            assert_eq!(read, [&content[..before as usize], b"new"].concat());
        }
        Err(error) => assert!(sealed, "{error:?}"),
    }
    seen.is_some_and(|stat| stat.state == State::Lost)
}

async fn check_stat(storage: &FsStorage, key: &Key, content: &[u8]) -> Option<Stat> {
    let stat = storage.stat(key).await.expect("to look");
    if let Some(stat) = &stat {
        assert!(stat.len <= content.len() as u64);
        let mut pieces = storage.read(key, stat.life, 0..stat.len).await.expect("to read");
        let mut read = Vec::new();
        while let Some(piece) = stream::next(&mut pieces).await {
            read.extend_from_slice(&piece.expect("to read"));
        }
        assert_eq!(read, content[..stat.len as usize]);
    }
    stat
}
