//! Bringing records and files in order after a crash or a power loss.

use std::io;

use super::path::Lookup;
use super::record::{Loaded, NO_BOOT, Record, Recovery, Slot, closed_record_name, open_record_name};
use super::root::{Root, identity};
use crate::error::ErrorKind;
use crate::key::Key;

impl Root {
    /// Recovers everything that an earlier process left.
    pub(super) fn recover_all(&self) -> io::Result<()> {
        for (name, kind) in self.new.names()? {
            if kind.is_file() {
                self.new.remove_file(&name)?;
            }
        }
        for (name, _) in self.records.names()? {
            if name.ends_with(".tmp") {
                self.records.remove_file(&name)?;
            } else if name.ends_with(".rest") {
                if Record::load(&self.records, &name, false)?.is_expired() {
                    self.records.remove_file(&name)?;
                }
            } else if name.ends_with(".open") {
                let recovered = match Record::load(&self.records, &name, false)? {
                    Loaded::Intact(record) if open_record_name(&record.key) == name => self.recover(&record.key),
                    _ => Err(io::Error::other("the record can't be read")),
                };
                if let Err(failed) = recovered {
                    // Tried again when the resource is next appended to; the others must not wait for that.
                    let failed = &failed as &dyn std::error::Error;
                    tracing::error!(record = name, error = failed, "a resource could not be recovered");
                }
            }
        }
        Ok(())
    }

    /// Recovers a resource whose appender is gone: cuts bytes that may be corrupt, and records its state. In the same boot a
    /// resource that is kept for its owner keeps its open record and all its bytes; after a reboot it too is cut to the durable
    /// length, and begins a new life. Idempotent.
    pub(super) fn recover(&self, key: &Key) -> io::Result<()> {
        let (open, closed) = (open_record_name(key), closed_record_name(key));
        let mut record = match Record::load(&self.records, &open, true)? {
            Loaded::Absent => return Ok(()),
            Loaded::Corrupt => return self.replace_corrupt_record(key),
            Loaded::Intact(record) => record,
        };
        let file = match self.top.find(key, true) {
            Ok(Lookup::File(file)) => Some(file),
            Ok(Lookup::Absent | Lookup::Symlink) => None,
            Err(failed) if failed.kind() == ErrorKind::Conflict => None,
            Err(failed) => return Err(io::Error::other(failed)),
        };
        let Some(file) = file.filter(|file| identity(file).is_ok_and(|id| id == record.id)) else {
            self.records.remove_file(&open)?;
            return self.records.sync();
        };
        let before = record.slot;
        if !before.status.is_open() {
            // The end was recorded after the data was synced; only the renaming is missing.
            self.records.rename(&open, &closed)?;
            return self.records.sync();
        }
        let size = file.metadata()?.len();
        let Recovery::Keep(slot, len) = before.recovery(record.id, size, self.boot) else {
            // Nothing was added: the resource is as it was before the open.
            if !before.existed {
                self.top.remove(key).map_err(io::Error::other)?;
            }
            self.records.remove_file(&open)?;
            return self.records.sync();
        };
        if slot == before {
            return Ok(());
        }
        file.set_len(len)?;
        if let Err(failed) = file.sync_all() {
            // A later sync would succeed, though data may be missing.
            let _ = record.write(Slot { boot: NO_BOOT, ..before });
            return Err(failed);
        }
        self.sync_name(key)?;
        record.write(slot)?;
        if slot.status.is_open() {
            return Ok(());
        }
        self.records.rename(&open, &closed)?;
        self.records.sync()
    }

    /// Replaces a record that can't be read by one that says the resource is interrupted.
    fn replace_corrupt_record(&self, key: &Key) -> io::Result<()> {
        let (open, closed) = (open_record_name(key), closed_record_name(key));
        if let Ok(Lookup::File(file)) = self.top.find(key, true) {
            file.sync_all()?;
            let (id, len) = (identity(&file)?, file.metadata()?.len());
            Record::create(&self.records, &closed, key, id, Slot::for_corrupt_record(id, len, self.boot))?;
        }
        self.records.remove_file(&open)?;
        self.records.sync()
    }
}
