//! The bookkeeping of one resource that is not plainly finished.
//!
//! A record is a file of its own: a head that never changes (which key, which file), and two slots that are written in
//! turn, so that a torn write leaves the other one whole. Each part carries a checksum.

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
/// Where the slots begin: behind the longest head.
const SLOTS: u64 = 8192;
/// A slot's distance from the other, so that no sector holds both.
const SLOT: u64 = 4096;
const SLOT_LEN: usize = 8 + 1 + 16 + 8 + 8 + 16 + 1 + 1 + 32;
const SUM: usize = 16;
/// In the place of a boot: in none is the file's length to be trusted.
pub(super) const NO_BOOT: [u8; 16] = [0xff; 16];

/// How the resource stands, as recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// An appender has it, or had it when the process died.
    Open,
    /// As `Open`, and cut since: there is nothing that it could be undone to.
    Truncated,
    /// At rest.
    Closed(State),
}

impl Status {
    /// Whether an appender has it, or had it and did not say that it ended.
    pub(super) fn is_open(self) -> bool {
        matches!(self, Self::Open | Self::Truncated)
    }
}

/// What changes while a record lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) status: Status,
    /// The life, if it isn't the one that the file itself tells.
    pub(super) life: Option<Life>,
    /// At rest: the committed length. Open: the length before. Cut: to what length.
    pub(super) len: u64,
    /// Every byte before this one survives power loss.
    pub(super) durable: u64,
    /// The boot that this slot was written in.
    pub(super) boot: [u8; 16],
    /// Open: whether the resource existed before.
    pub(super) existed: bool,
    /// Whoever claimed the resource and appended last. While it is open: whom it is kept for.
    pub(super) owner: Option<Owner>,
}

/// What a record says of a resource that nobody has open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recovery {
    /// Nothing was added: the resource is as it was before, which may be absent.
    Undo,
    /// It has so many bytes, and stands as this slot says.
    Keep(Slot, u64),
}

impl Slot {
    /// Of a file whose record can't be read: who knows what is missing, so it is not whole, and nothing of it continues
    /// what was seen before.
    pub(super) fn for_corrupt_record(id: u128, size: u64, boot: [u8; 16]) -> Self {
        let (status, life) = (Status::Closed(State::Interrupted), Some(Life::from_bits(!id)));
        Self { status, life, len: size, durable: size, boot, existed: true, owner: None }
    }

    /// What is left of a file of this identity and size, in this boot of the system. The same answer however often it
    /// is asked, so that a crash while settling does no harm.
    pub(super) fn recovery(&self, id: u128, size: u64, boot: [u8; 16]) -> Recovery {
        if let Status::Closed(_) = self.status {
            // What somebody else added behind it is served like a file that somebody dropped in. Where somebody else
            // cut it, other bytes may come where some were seen.
            let life = if size < self.len { Some(self.life_after_cut(id, size, self.boot)) } else { self.life };
            return Recovery::Keep(Self { life, ..*self }, size);
        }
        let rebooted = self.boot != boot;
        let len = if rebooted { size.min(self.durable) } else { size };
        // A record is made for bytes to come: in another boot some may have been seen and be gone, whatever the length
        // says. In this one only somebody else can have cut it.
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

    /// The life that begins as a file is cut: no other cut makes the same.
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

/// An open record.
#[derive(Debug)]
pub(super) struct Record {
    data: Arc<SyncedFile>,
    seq: u64,
    /// The last write that is known to be durable.
    synced: u64,
    /// Tells the file that this record is about; see [`identity`](super::root::identity).
    pub(super) id: u128,
    pub(super) key: Key,
    pub(super) slot: Slot,
}

/// What is under a record's name.
#[derive(Debug)]
pub(super) enum Loaded {
    Absent,
    /// Something that can't be read: not by a crash, for a record gets its name when it is whole, but by a bad disk.
    Corrupt,
    Intact(Record),
}

/// For so long a finished resource's record tells who finished it; the next start removes it then.
const OWNER_RETENTION: Duration = Duration::from_secs(3600);

impl Loaded {
    /// Whether the record only tells who finished a resource, long ago: the file alone tells the rest.
    pub(super) fn is_expired(&self) -> bool {
        let Self::Intact(record) = self else { return false };
        let written = record.data.file.metadata().and_then(|meta| meta.modified());
        let old = written.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > OWNER_RETENTION));
        old && record.slot.status == Status::Closed(State::Finished) && record.slot.life.is_none()
    }
}

/// The name of a key's record, without its ending.
fn stem(key: &Key) -> String {
    let hash = Sha256::digest(key.as_str().as_bytes());
    hash[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name of the record of an open resource.
pub(super) fn open_record_name(key: &Key) -> String {
    stem(key) + ".open"
}

/// The name of the record of a resource at rest.
pub(super) fn closed_record_name(key: &Key) -> String {
    stem(key) + ".rest"
}

impl Record {
    /// Makes a record, durable before this returns.
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
        // The place of the other slot, which can't be read yet: a sync must not fail where the disk is full by then.
        file.write_all_at(&[0; SLOT_LEN + SUM], SLOTS)?;
        let mut record = Self { data: Arc::new(SyncedFile::new(file)), seq: 0, synced: 0, id, key: key.clone(), slot };
        record.write(slot)?;
        dir.rename(&temporary, name)?;
        dir.sync()?;
        Ok(record)
    }

    /// Replaces the slot, durable before this returns.
    pub(super) fn write(&mut self, slot: Slot) -> io::Result<()> {
        self.write_unsynced(slot)?;
        self.sync()
    }

    /// What was written last is durable when this returns.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.synced < self.seq {
            self.data.sync(File::sync_data)?;
            self.synced = self.seq;
        }
        Ok(())
    }

    /// What to sync after [`write_soon`](Self::write_soon), and what to tell [`synced`](Self::synced) then.
    pub(super) fn pending_sync(&self) -> (Arc<SyncedFile>, u64) {
        (Arc::clone(&self.data), self.seq)
    }

    /// Counts its writes.
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

    /// Replaces the slot, to be synced later.
    pub(super) fn write_unsynced(&mut self, slot: Slot) -> io::Result<()> {
        // Else both slots could be torn.
        self.sync()?;
        self.write_forced(slot)
    }

    /// As [`write_soon`](Self::write_soon), whatever became of the write before.
    pub(super) fn write_forced(&mut self, slot: Slot) -> io::Result<()> {
        self.seq += 1;
        self.data.file.write_all_at(&encode_slot(self.seq, slot), SLOTS + self.seq % 2 * SLOT)?;
        self.slot = slot;
        Ok(())
    }

    /// Whether it is about this file under this key: another file's is about one that somebody replaced.
    pub(super) fn belongs_to(&self, key: &Key, id: u128) -> bool {
        self.id == id && self.key == *key
    }

    /// Opens a record.
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
        // Whoever wrote it may have died before it was durable.
        Some(Self { data: Arc::new(SyncedFile::new(file)), seq, synced: 0, id, key, slot })
    }
}

/// How a slot is written, with its checksum.
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
    // What was not there before had no bytes and was not cut; and no record is written so often.
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
    fn a_record_reads_back_and_a_torn_write_leaves_the_slot_before() {
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
    fn a_record_is_synced_once_for_what_was_written() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Dir::open(tmp.path()).unwrap();
        let mut record = Record::create(&dir, "r", &Key::new("a").unwrap(), 42, slot(1)).unwrap();
        record.data.sync(|_| Err(io::Error::other("as a disk that is broken"))).unwrap_err();
        record.sync().unwrap();
        record.write_unsynced(slot(2)).unwrap();
        record.sync().unwrap_err();
        record.write_unsynced(slot(3)).unwrap_err();
    }

    #[test]
    fn what_no_appender_writes_is_not_read() {
        let new = Slot { existed: false, ..slot(0) };
        let read = |slot| parse_slot(&encode_slot(1, slot)).map(|(_, slot)| slot);
        assert_eq!(read(new), Some(new));
        // After a power loss it would stand as it is, with a file that is longer than what is left of it.
        assert_eq!(read(Slot { len: 1, ..new }), None);
        assert_eq!(read(Slot { status: Status::Truncated, ..new }), None);
        // Nothing could come behind it.
        assert_eq!(parse_slot(&encode_slot(u64::MAX, new)), None);
    }
}
