//! The record of one resource that is not simply finished: its format, and what it says after a crash.
//!
//! A record is a file: a head that never changes (which key, which file), and two slots that are written in turn, so that
//! a torn write leaves the other slot intact. Each part has a checksum.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::path::Dir;
use super::sync::SyncedFile;
use crate::identity::Owner;
use crate::key::Key;
use crate::state::{Life, State};

const MAGIC: &[u8; 8] = b"HFSrec2\n";
/// The offset of the first slot, behind the longest head.
const SLOTS: u64 = 8192;
/// The distance between the slots, so that no sector holds both.
const SLOT: u64 = 4096;
const SLOT_LEN: usize = 8 + 1 + 16 + 8 + 8 + 16 + 1 + 1 + 32;
const SUM: usize = 16;
/// In place of a boot id: the file's length is not trusted in any boot.
pub(super) const NO_BOOT: [u8; 16] = [0xff; 16];

/// What a record says about its resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// It has an appender, or had one when the process died.
    Open,
    /// As `Open`, and the file was cut since: there is no earlier state to return to.
    Truncated,
    /// It has ended: finished, interrupted or sealed.
    Closed(State),
}

impl Status {
    /// Whether the end was not recorded.
    pub(super) fn is_open(self) -> bool {
        matches!(self, Self::Open | Self::Truncated)
    }
}

/// The part of a record that changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) status: Status,
    /// The life, where it is not the one derived from the file.
    pub(super) life: Option<Life>,
    /// Closed: the committed length. Open: the length before the first append. Truncated: the length after the cut.
    pub(super) len: u64,
    /// Bytes before this offset survive power loss.
    pub(super) durable: u64,
    /// The boot of the system in which this slot was written, or [`NO_BOOT`].
    pub(super) boot: [u8; 16],
    /// Open: whether the resource existed before.
    pub(super) existed: bool,
    /// The owner as of the last append. Open: the resource is kept for it if the appender is lost.
    pub(super) owner: Option<Owner>,
}

/// What becomes of a resource without an appender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recovery {
    /// Nothing was added: the resource is as it was before the open, possibly absent.
    Undo,
    /// It continues as this slot says, with this many bytes.
    Keep(Slot, u64),
}

impl Slot {
    /// For a file whose record can't be read. Bytes may be missing, so the resource is interrupted and in a new life.
    pub(super) fn for_corrupt_record(id: u128, size: u64, boot: [u8; 16]) -> Self {
        let (status, life) = (Status::Closed(State::Interrupted), Some(Life::from_bits(!id)));
        Self { status, life, len: size, durable: size, boot, existed: true, owner: None }
    }

    /// What becomes of a file with this identity and size, in this boot of the system. Pure, and applied again to its own
    /// result it changes nothing, so that a crash during recovery does no harm.
    pub(super) fn recovery(&self, id: u128, size: u64, boot: [u8; 16]) -> Recovery {
        if let Status::Closed(_) = self.status {
            // Bytes that another program added are served, like a file that was dropped in. A file that another program
            // cut begins a new life, since other bytes may follow where some were read.
            let life = if size < self.len { Some(self.life_after_cut(id, size, self.boot)) } else { self.life };
            return Recovery::Keep(Self { life, ..*self }, size);
        }
        let rebooted = self.boot != boot;
        let len = if rebooted { size.min(self.durable) } else { size };
        // A record is written before its first byte. After a reboot, bytes that a reader has seen may be lost even if the
        // length looks right, so a new life begins, unless the resource was new and nothing of it is left. In the same boot
        // only another program can have cut the file.
        let cut = match rebooted {
            true => self.existed || len > 0,
            false => size < self.durable || self.status == Status::Open && size < self.len,
        };
        let life = if cut { Some(self.life_after_cut(id, len, boot)) } else { self.life };
        let stands = Self { life, len, durable: len, boot, existed: true, ..*self };
        Recovery::Keep(
            match self.owner {
                _ if !cut && self.status == Status::Open && len == self.len => return Recovery::Undo,
                None => Self { status: Status::Closed(State::Interrupted), ..stands },
                Some(_) if cut => Self { status: Status::Truncated, ..stands },
                Some(_) => *self,
            },
            len,
        )
    }

    /// The life that begins when a file is cut; different for each cut.
    fn life_after_cut(&self, id: u128, len: u64, boot: [u8; 16]) -> Life {
        let mut hash = Sha256::new();
        hash.update(b"httpfstream cut");
        hash.update(id.to_le_bytes());
        hash.update(self.life.map_or(0, Life::to_bits).to_le_bytes());
        hash.update(len.to_le_bytes());
        hash.update(self.boot);
        hash.update(boot);
        Life::from_bits(first_bits(hash))
    }
}

/// The first 128 bits of a hash.
pub(super) fn first_bits(hash: Sha256) -> u128 {
    hash.finalize().iter().take(16).fold(0, |bits, byte| bits << 8 | u128::from(*byte))
}

/// A record's open file, with what was read from it.
#[derive(Debug)]
pub(super) struct Record {
    data: Arc<SyncedFile>,
    seq: u64,
    /// The number of the last write that is known to be durable.
    synced: u64,
    /// The [identity](super::root::identity) of the resource's file.
    pub(super) id: u128,
    pub(super) key: Key,
    pub(super) slot: Slot,
}

/// What was found at a record's name.
#[derive(Debug)]
pub(super) enum Loaded {
    Absent,
    /// A file that is no valid record. A bad disk's work, not a crash's: a record gets its name once it is complete.
    Corrupt,
    Intact(Record),
}

/// How long the record of a finished resource names its owner. The first start after that removes it.
const OWNER_RETENTION: Duration = Duration::from_secs(3600);

impl Loaded {
    /// Whether the record only names the owner of a finished resource, and has done so for long enough.
    pub(super) fn is_expired(&self) -> bool {
        let Self::Intact(record) = self else { return false };
        let written = record.data.file.metadata().and_then(|meta| meta.modified());
        let old = written.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > OWNER_RETENTION));
        old && record.slot.status == Status::Closed(State::Finished) && record.slot.life.is_none()
    }
}

/// The name of a key's record, without its extension.
fn stem(key: &Key) -> String {
    let hash = Sha256::digest(key.as_str().as_bytes());
    hash[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name of the record of an open resource.
pub(super) fn open_record_name(key: &Key) -> String {
    stem(key) + ".open"
}

/// The name of the record of a resource that has ended.
pub(super) fn closed_record_name(key: &Key) -> String {
    stem(key) + ".rest"
}

impl Record {
    /// Creates a record, durable before this returns.
    pub(super) fn create(dir: &Dir, name: &str, key: &Key, id: u128, slot: Slot) -> io::Result<Self> {
        let temporary = format!("{name}.tmp");
        dir.remove_file(&temporary)?;
        let file = dir.create_file(&temporary, true)?;
        let mut head = Vec::with_capacity(64 + key.as_str().len());
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&id.to_le_bytes());
        head.extend_from_slice(&(key.as_str().len() as u32).to_le_bytes());
        head.extend_from_slice(key.as_str().as_bytes());
        push_checksum(&mut head);
        file.write_all_at(&head, 0)?;
        // Space for the other slot, without a valid checksum, so that a later sync can't fail because the disk is full.
        file.write_all_at(&[0; SLOT_LEN + SUM], SLOTS)?;
        let mut record = Self { data: Arc::new(SyncedFile::new(file)), seq: 0, synced: 0, id, key: key.clone(), slot };
        record.write(slot)?;
        dir.rename(&temporary, name)?;
        dir.sync()?;
        Ok(record)
    }

    /// Writes a new slot, durable before this returns.
    pub(super) fn write(&mut self, slot: Slot) -> io::Result<()> {
        self.write_unsynced(slot)?;
        self.sync()
    }

    /// Makes the last write durable.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.synced < self.seq {
            self.data.sync(File::sync_data)?;
            self.synced = self.seq;
        }
        Ok(())
    }

    /// What to sync after [`write_unsynced`](Self::write_unsynced), and what to pass to
    /// [`mark_synced`](Self::mark_synced) then.
    pub(super) fn pending_sync(&self) -> (Arc<SyncedFile>, u64) {
        (Arc::clone(&self.data), self.seq)
    }

    /// The number of the last write.
    #[cfg(any(fuzzing, test))]
    pub(super) fn seq(&self) -> u64 {
        self.seq
    }

    pub(super) fn is_synced(&self) -> bool {
        self.synced == self.seq
    }

    pub(super) fn mark_synced(&mut self, seq: u64) {
        self.synced = self.synced.max(seq);
    }

    /// Writes a new slot, to be synced later.
    pub(super) fn write_unsynced(&mut self, slot: Slot) -> io::Result<()> {
        // Otherwise a power loss could tear both slots.
        self.sync()?;
        self.write_forced(slot)
    }

    /// As [`write_unsynced`](Self::write_unsynced), without syncing the write before.
    pub(super) fn write_forced(&mut self, slot: Slot) -> io::Result<()> {
        self.seq += 1;
        self.data.file.write_all_at(&encode_slot(self.seq, slot), SLOTS + self.seq % 2 * SLOT)?;
        self.slot = slot;
        Ok(())
    }

    /// Whether the record is for this file at this key, and not for an earlier file that was replaced.
    pub(super) fn belongs_to(&self, key: &Key, id: u128) -> bool {
        self.id == id && self.key == *key
    }

    /// Reads a record.
    pub(super) fn load(dir: &Dir, name: &str, write: bool) -> io::Result<Loaded> {
        let Some(file) = dir.open_file(name, write)? else { return Ok(Loaded::Absent) };
        let mut bytes = vec![0; SLOTS as usize + SLOT as usize + SLOT_LEN + SUM];
        let mut filled = 0;
        while filled < bytes.len() {
            match file.read_at(&mut bytes[filled..], filled as u64)? {
                0 => break,
                n => filled += n,
            }
        }
        Ok(Self::parse(file, &bytes).map_or(Loaded::Corrupt, Loaded::Intact))
    }

    pub(super) fn parse(file: File, bytes: &[u8]) -> Option<Self> {
        let head = bytes.strip_prefix(MAGIC)?;
        let id = u128::from_le_bytes(*head.first_chunk()?);
        let len = u32::from_le_bytes(*head.get(16..)?.first_chunk()?) as usize;
        let key = head.get(20..20usize.checked_add(len)?)?;
        strip_checksum(bytes.get(..MAGIC.len() + 20 + len + SUM)?)?;
        let key = Key::new(std::str::from_utf8(key).ok()?).ok()?;
        let slots = [0, 1].map(|i| {
            let start = (SLOTS + i * SLOT) as usize;
            parse_slot(bytes.get(start..start + SLOT_LEN + SUM)?)
        });
        let (seq, slot) = slots.into_iter().flatten().max_by_key(|(seq, _)| *seq)?;
        // Nothing is known to be synced: the writer may have died before.
        Some(Self { data: Arc::new(SyncedFile::new(file)), seq, synced: 0, id, key, slot })
    }
}

/// A slot's bytes, with their checksum.
pub(super) fn encode_slot(seq: u64, slot: Slot) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SLOT_LEN + SUM);
    bytes.extend_from_slice(&seq.to_le_bytes());
    bytes.push(match slot.status {
        Status::Open => 0,
        Status::Closed(State::Finished | State::Live | State::Lost | State::Parked) => 1,
        Status::Closed(State::Interrupted) => 2,
        Status::Closed(State::Sealed) => 3,
        Status::Truncated => 4,
    });
    bytes.extend_from_slice(&slot.life.map_or(0, Life::to_bits).to_le_bytes());
    bytes.extend_from_slice(&slot.len.to_le_bytes());
    bytes.extend_from_slice(&slot.durable.to_le_bytes());
    bytes.extend_from_slice(&slot.boot);
    bytes.push(u8::from(slot.existed));
    bytes.push(u8::from(slot.owner.is_some()));
    bytes.extend_from_slice(&slot.owner.map_or([0; 32], Owner::to_bytes));
    push_checksum(&mut bytes);
    bytes
}

pub(super) fn parse_slot(bytes: &[u8]) -> Option<(u64, Slot)> {
    let bytes = strip_checksum(bytes)?;
    let seq = u64::from_le_bytes(*bytes.first_chunk()?);
    let status = match bytes.get(8)? {
        0 => Status::Open,
        1 => Status::Closed(State::Finished),
        2 => Status::Closed(State::Interrupted),
        3 => Status::Closed(State::Sealed),
        4 => Status::Truncated,
        _ => return None,
    };
    let life = u128::from_le_bytes(*bytes.get(9..)?.first_chunk()?);
    let len = u64::from_le_bytes(*bytes.get(25..)?.first_chunk()?);
    let durable = u64::from_le_bytes(*bytes.get(33..)?.first_chunk()?);
    let boot = *bytes.get(41..)?.first_chunk()?;
    let existed = *bytes.get(57)? != 0;
    let life = (life != 0).then_some(Life::from_bits(life));
    let owned = *bytes.get(58)? != 0;
    let owner = owned.then_some(Owner::from_bytes(*bytes.get(59..)?.first_chunk()?));
    // No appender writes these: a new resource had no bytes and was not cut, and no record is written that often.
    if !existed && (status == Status::Open && len > 0 || status == Status::Truncated) || seq == u64::MAX {
        return None;
    }
    Some((seq, Slot { status, life, len, durable, boot, existed, owner }))
}

pub(super) fn push_checksum(bytes: &mut Vec<u8>) {
    let sum = Sha256::digest(&bytes[..]);
    bytes.extend_from_slice(&sum[..SUM]);
}

fn strip_checksum(bytes: &[u8]) -> Option<&[u8]> {
    let (bytes, sum) = bytes.split_at_checked(bytes.len().checked_sub(SUM)?)?;
    (Sha256::digest(bytes)[..SUM] == *sum).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(len: u64) -> Slot {
        let (status, life, owner) = (Status::Open, Some(Life::from_bits(7)), Some(Owner::from_bytes([9; 32])));
        Slot { status, life, len, durable: 5, boot: [3; 16], existed: true, owner }
    }

    #[test]
    fn a_torn_write_leaves_the_slot_before() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Dir::open(tmp.path()).unwrap();
        let key = Key::new("a/b").unwrap();
        let mut record = Record::create(&dir, "r", &key, 42, slot(1)).unwrap();
        record.write(slot(2)).unwrap();
        record.write(slot(3)).unwrap();
        let open = |name| match Record::load(&dir, name, true).unwrap() {
            Loaded::Intact(record) => Some(record),
            Loaded::Corrupt | Loaded::Absent => None,
        };
        let read = open("r").unwrap();
        assert_eq!((read.id, &read.key, read.slot, read.seq), (42, &key, slot(3), 3));
        let path = tmp.path().join("r");
        let whole = std::fs::read(&path).unwrap();
        for at in [SLOTS + SLOT, SLOTS + SLOT + 30] {
            let mut torn = whole.clone();
            torn[at as usize] ^= 1;
            std::fs::write(&path, torn).unwrap();
            assert_eq!(open("r").unwrap().slot, slot(2));
        }
        for at in [0, 9, 30, 32] {
            let mut torn = whole.clone();
            torn[at] ^= 1;
            std::fs::write(&path, torn).unwrap();
            assert!(matches!(Record::load(&dir, "r", false).unwrap(), Loaded::Corrupt), "head byte {at}");
        }
        for len in [0, 20, 8191, 8192 + 50] {
            std::fs::write(&path, &whole[..len]).unwrap();
            assert!(matches!(Record::load(&dir, "r", false).unwrap(), Loaded::Corrupt), "{len} bytes");
        }
        assert!(matches!(Record::load(&dir, "absent", false).unwrap(), Loaded::Absent));
    }

    #[test]
    fn a_record_is_synced_once_for_each_write() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Dir::open(tmp.path()).unwrap();
        let mut record = Record::create(&dir, "r", &Key::new("a").unwrap(), 42, slot(1)).unwrap();
        record.data.sync(|_| Err(io::Error::other("a simulated disk failure"))).unwrap_err();
        record.sync().unwrap();
        record.write_unsynced(slot(2)).unwrap();
        record.sync().unwrap_err();
        record.write_unsynced(slot(3)).unwrap_err();
    }

    #[test]
    fn slots_that_no_appender_writes_are_refused() {
        let new = Slot { existed: false, ..slot(0) };
        let read = |slot| parse_slot(&encode_slot(1, slot)).map(|(_, slot)| slot);
        assert_eq!(read(new), Some(new));
        // After a power loss this would be kept as it is, with a file longer than the recovered length.
        assert_eq!(read(Slot { len: 1, ..new }), None);
        assert_eq!(read(Slot { status: Status::Truncated, ..new }), None);
        // No later slot could have a greater number.
        assert_eq!(parse_slot(&encode_slot(u64::MAX, new)), None);
    }
}
