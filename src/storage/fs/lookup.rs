//! What a key's file and its records say about a resource.

use std::fs::File;

use super::path::{Lookup, error};
use super::record::{Loaded, Record, Recovery, Slot, Status, closed_record_name, open_record_name};
use super::root::{Root, identity};
use crate::error::{ErrorKind, Result};
use crate::key::Key;
use crate::state::{Life, Stat, State};

/// A resource as its file and its records describe it.
pub(super) struct Stored {
    pub(super) stat: Stat,
    pub(super) file: File,
    /// The open record of a lost appender, to be continued.
    pub(super) record: Option<Record>,
    pub(super) recorded_life: Option<Life>,
    pub(super) id: u128,
}

/// What one look at a key's file and records found.
pub(super) struct Inspection {
    /// The resource, as it is without an appender.
    pub(super) stored: Option<Stored>,
    /// An earlier appender left something that has to be recovered before the next one may append.
    pub(super) needs_recovery: bool,
}

impl Root {
    /// The resource at the key as a reader sees it, with or without an appender.
    pub(super) fn find(&self, key: &Key) -> Result<Option<Stored>> {
        loop {
            let (epoch, lease) = {
                let table = self.table();
                (table.epoch, table.lease(key))
            };
            if let Some(lease) = lease {
                let file = lease.data.file.try_clone().map_err(error)?;
                let (stat, id) = (lease.stat(), lease.life.to_bits());
                return Ok(Some(Stored { stat, file, record: None, recorded_life: None, id }));
            }
            let seen = self.inspect(key, false);
            // An appender that was opened meanwhile may have added to the file after its record was looked for: the
            // result would pass for a resource without an appender.
            if self.table().epoch == epoch {
                return Ok(seen?.stored);
            }
        }
    }

    /// Looks at the key's file and records, not at the table. `write` opens them for writing.
    pub(super) fn inspect(&self, key: &Key, write: bool) -> Result<Inspection> {
        const NOTHING: Inspection = Inspection { stored: None, needs_recovery: false };
        if self.is_reserved(key) {
            return Ok(NOTHING);
        }
        let file = match self.top.find(key, write)? {
            Lookup::File(file) => file,
            Lookup::Absent => return Ok(NOTHING),
            Lookup::Symlink if write => return Err(ErrorKind::NotFound.into()),
            Lookup::Symlink => return Ok(NOTHING),
        };
        let id = identity(&file).map_err(error)?;
        let open = Record::load(&self.records, &open_record_name(key), write).map_err(error)?;
        // The size is read after the record: from here on an appender can only make the file longer.
        let meta = file.metadata().map_err(error)?;
        let size = meta.len();
        let mut seen = Inspection { stored: None, needs_recovery: !matches!(open, Loaded::Absent) };
        let (mut record, mut recovered) = (None, None);
        match open {
            Loaded::Corrupt => recovered = Some((Slot::for_corrupt_record(id, size, self.boot), size)),
            Loaded::Intact(open) if open.belongs_to(key, id) => match open.slot.recovery(id, size, self.boot) {
                Recovery::Undo if !open.slot.existed => return Ok(seen),
                Recovery::Undo => {}
                Recovery::Keep(slot, len) => {
                    recovered = Some((slot, len));
                    if slot == open.slot && slot.status.is_open() {
                        seen.needs_recovery = false;
                        record = Some(open);
                    }
                }
            },
            Loaded::Absent | Loaded::Intact(_) => {}
        }
        if recovered.is_none() {
            recovered = match Record::load(&self.records, &closed_record_name(key), false).map_err(error)? {
                Loaded::Absent => None,
                Loaded::Intact(closed) if !closed.belongs_to(key, id) => None,
                Loaded::Intact(Record { slot, .. }) if !slot.status.is_open() => {
                    match slot.recovery(id, size, self.boot) {
                        Recovery::Keep(slot, len) => Some((slot, len)),
                        Recovery::Undo => None,
                    }
                }
                // An open slot in a closed record: the slot with the end can't be read, only the one before it.
                Loaded::Corrupt | Loaded::Intact(_) => Some((Slot::for_corrupt_record(id, size, self.boot), size)),
            };
        }
        let recorded_life = recovered.and_then(|(slot, _)| slot.life);
        let state = match recovered.map(|(slot, _)| slot.status) {
            None => State::Finished,
            Some(Status::Open | Status::Truncated) => State::Lost,
            Some(Status::Closed(state)) => state,
        };
        let len = recovered.map_or(size, |(_, len)| len);
        let stat =
            Stat::new(recorded_life.unwrap_or(Life::from_bits(id)), len, state).with_modified(meta.modified().ok());
        let stat = stat.with_owner(recovered.and_then(|(slot, _)| slot.owner));
        seen.stored = Some(Stored { stat, file, record, recorded_life, id });
        Ok(seen)
    }
}
