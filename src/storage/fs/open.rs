//! Opening a resource for appending, and deleting one.

use std::fs::File;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::appender::FsAppend;
use super::file_lease::FileLease;
use super::path::error;
use super::record::{Record, closed_record_name, open_record_name};
use super::root::{Root, identity};
use super::table::{Entry, KeyReservation, LeaseGuard};
use crate::error::{ErrorKind, Result};
use crate::identity::Owner;
use crate::key::Key;
use crate::state::{Life, State};
use crate::storage::Open;

/// A file that is ready for a [`FileLease`]: an existing one, or a new one without its name.
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) life: Life,
    /// The life, where it is not the one derived from the file.
    pub(super) recorded_life: Option<Life>,
    pub(super) id: u128,
    pub(super) len: u64,
    /// `None` for a new one.
    pub(super) before: Option<State>,
    /// The name in `new/` of a new one.
    pub(super) unlinked: Option<String>,
    pub(super) owner: Option<Owner>,
    /// The open record of a lost appender, to be continued.
    pub(super) record: Option<Record>,
}

impl Root {
    /// Opens a resource. `caller` is gone once the caller's future was dropped.
    pub(super) fn open_appender(self: &Arc<Self>, key: Key, how: Open, caller: &Weak<()>) -> Result<FsAppend> {
        if self.is_reserved(&key) {
            return Err(ErrorKind::NotFound.into());
        }
        let older = {
            let mut table = self.table();
            // The caller may have given up and opened the key again. If that newer open takes this lock first, this one
            // sees here that nobody waits for it. Otherwise the newer one gets `Busy` until the appender that is opened here
            // has been dropped.
            if caller.strong_count() == 0 {
                return Err(ErrorKind::Busy.into());
            }
            let older = match table.by_key.get(&key) {
                Some(Entry::Open(lease)) if how == Open::Takeover => Some(Arc::clone(lease)),
                Some(_) => return Err(ErrorKind::Busy.into()),
                None => None,
            };
            if older.is_none() {
                table.check_nesting(&key)?;
            }
            // From here on the older appender's end can't free the key.
            table.by_key.insert(key.clone(), Entry::Reserved);
            older
        };
        let reservation = KeyReservation { root: self, key };
        let key = &reservation.key;
        let taken_over = older.and_then(|older| {
            let taken_over = older.take_over().ok();
            if taken_over.is_none() {
                // It ended by itself meanwhile, so its file is looked up like any other.
                self.table().inodes.remove(&older.inode);
            }
            taken_over
        });
        let lease = match taken_over {
            Some(lease) => lease,
            None => {
                let lease = FileLease::new(Arc::clone(self), key.clone(), self.open_file(key, how)?).map_err(error)?;
                if !self.table().inodes.insert(lease.inode) {
                    // A hard link, or another spelling on a file system that ignores case.
                    lease.release();
                    return Err(ErrorKind::Busy.into());
                }
                lease
            }
        };
        let lease = Arc::new(lease);
        reservation.fill(Arc::clone(&lease));
        Ok(FsAppend::new(LeaseGuard { lease }))
    }

    fn open_file(&self, key: &Key, how: Open) -> Result<Opened> {
        let mut seen = self.inspect(key, true)?;
        if seen.needs_recovery {
            self.recover(key).map_err(error)?;
            seen = self.inspect(key, true)?;
        }
        let Some(stored) = seen.stored else { return self.create_unlinked() };
        match stored.stat.state {
            _ if how == Open::Create => Err(ErrorKind::Exists.into()),
            State::Sealed => Err(ErrorKind::Sealed.into()),
            state => Ok(Opened {
                life: stored.stat.life,
                recorded_life: stored.recorded_life,
                id: stored.id,
                len: stored.stat.len,
                before: Some(state),
                unlinked: None,
                file: stored.file,
                owner: stored.stat.owner,
                record: stored.record,
            }),
        }
    }

    /// Creates an empty file in `new/`.
    fn create_unlinked(&self) -> Result<Opened> {
        let name = format!("{:x}", self.next_new.fetch_add(1, Ordering::Relaxed));
        let file = self.new.create_file(&name, true).map_err(error)?;
        let id = identity(&file).map_err(error)?;
        let life = Life::from_bits(id);
        let reused = self.table().ended_recently(life);
        // Without a birth time, or within a tick of the inode's last use, lives derived from the file could repeat.
        let born = file.metadata().and_then(|meta| meta.created()).is_ok();
        let recorded_life = if born && !reused { None } else { Some(Life::random()?) };
        Ok(Opened {
            file,
            life: recorded_life.unwrap_or(life),
            recorded_life,
            id,
            len: 0,
            before: None,
            unlinked: Some(name),
            owner: None,
            record: None,
        })
    }

    pub(super) fn delete(self: &Arc<Self>, key: &Key) -> Result<()> {
        if self.is_reserved(key) {
            return Err(ErrorKind::NotFound.into());
        }
        let lease = {
            let mut table = self.table();
            let lease = match table.by_key.get(key) {
                Some(Entry::Reserved) => return Err(ErrorKind::Busy.into()),
                Some(Entry::Open(lease)) => Some(Arc::clone(lease)),
                None => None,
            };
            table.by_key.insert(key.clone(), Entry::Reserved);
            lease
        };
        let reservation = KeyReservation { root: self, key: key.clone() };
        let life = match &lease {
            Some(lease) => {
                lease.fence();
                self.table().inodes.remove(&lease.inode);
                lease.life
            }
            None => self.find(key)?.ok_or(ErrorKind::NotFound)?.stat.life,
        };
        {
            let mut table = self.table();
            table.epoch += 1;
            table.remember_ended(life);
        }
        self.top.remove(key)?;
        let records =
            [open_record_name(key), closed_record_name(key)].map(|name| self.records.remove_file(&name).map_err(error));
        for removed in records {
            removed?;
        }
        self.records.sync().map_err(error)?;
        drop(reservation);
        Ok(())
    }
}
