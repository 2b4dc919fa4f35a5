//! `LogStorage` keeps the storage contract, but for what it says that it leaves out.
#![allow(clippy::unwrap_used)]
use crate::log::LogStorage;

httpfstream::storage_conformance! {
    mod log_storage {
        async || {
            let dir = tempfile::tempdir().unwrap();
            let one = LogStorage::open(&dir.path().join("streams.log")).unwrap();
            (one.clone(), one, dir)
        };
        without owners = "its records have no place for them";
        without listing = "it is left at its default";
        without cap = "it is full when the disk is";
    }
}
