//! Listing resources, all or the lost ones.

use tokio::sync::mpsc;

use super::path::{Dir, error};
use super::record::{Loaded, Record};
use super::root::Root;
use crate::error::Result;
use crate::key::Key;
use crate::state::{Stat, State};

/// The producing end of an [`EntryStream`](crate::storage::EntryStream).
pub(super) type Entries = mpsc::Sender<Result<(Key, Stat)>>;

impl Root {
    /// Lists the resources that are lost, by their open records.
    pub(super) fn list_lost(&self, send: &Entries) -> Result<()> {
        for (name, _) in self.records.names().map_err(error)? {
            if !name.ends_with(".open") {
                continue;
            }
            // A record that can't be read names no owner.
            let Ok(Loaded::Intact(record)) = Record::load(&self.records, &name, false) else { continue };
            let found = self.find(&record.key).map(|found| found.map(|found| (record.key, found.stat)));
            let Some(entry) = found.transpose() else { continue };
            let not_lost = entry.as_ref().is_ok_and(|(_, stat)| stat.state != State::Lost);
            if !not_lost && send.blocking_send(entry).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Lists the resources in a folder and below whose key starts with `prefix`. `above` is the folder's path from the
    /// root, with a slash at its end unless it is empty.
    pub(super) fn list(&self, dir: &Dir, above: &str, prefix: &str, send: &Entries) -> Result<()> {
        for (name, kind) in dir.names().map_err(error)? {
            let path = format!("{above}{name}");
            if name.eq_ignore_ascii_case(&self.reserved) {
                continue;
            }
            if kind.is_dir() {
                let below = path + "/";
                let shared = below.len().min(prefix.len());
                if below.as_bytes()[..shared] == prefix.as_bytes()[..shared] {
                    // A folder that was removed meanwhile has nothing to list.
                    if let Ok(sub) = dir.sub_dir(&name) {
                        self.list(&sub, &below, prefix, send)?;
                    }
                }
            } else if kind.is_file() && path.starts_with(prefix) {
                let Ok(key) = Key::new(&path) else { continue };
                // A lookup that fails is reported as an entry and doesn't end the list.
                let found = self.find(&key).map(|found| found.map(|found| (key, found.stat)));
                let Some(entry) = found.transpose() else { continue };
                if send.blocking_send(entry).is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
