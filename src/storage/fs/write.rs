//! Allocating space ahead of the data, and writing at an offset.

use std::fs::File;
use std::io::{self, IoSlice};

use bytes::Bytes;
use smallvec::SmallVec;

use crate::error::{Error, ErrorKind, Result};

/// Files grow by allocations of at least this many bytes …
const MIN_STEP: u64 = 64 * 1024;
/// … and at most this many.
const MAX_STEP: u64 = 8 * 1024 * 1024;

/// The space that a file has allocated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allocation {
    /// Space is allocated up to this offset.
    pub(super) end: u64,
    /// Off by configuration, or because the file system can't allocate.
    pub(super) enabled: bool,
}

impl Allocation {
    /// Allocates room for `more` bytes after the committed ones, and some ahead, so that a full disk is noticed before
    /// anything is written.
    pub(super) fn extend(&mut self, file: &File, committed: u64, more: u64) -> Result<()> {
        let end = committed + more;
        if !self.enabled || end <= self.end {
            return Ok(());
        }
        let step = (committed / 4).clamp(MIN_STEP, MAX_STEP);
        let ahead = end.next_multiple_of(step);
        let mut allocated = allocate(file, self.end, ahead - self.end).map(|()| ahead);
        if matches!(&allocated, Err(e) if e.kind() == io::ErrorKind::StorageFull) {
            // There may still be room for the data, without a step ahead.
            allocated = allocate(file, self.end, end - self.end).map(|()| end);
        }
        match allocated {
            Ok(end) => self.end = end,
            Err(failed) if is_full(&failed) => return Err(Error::new(ErrorKind::Full).with_source(failed)),
            Err(_) => self.enabled = false,
        }
        Ok(())
    }
}

fn is_full(failed: &io::Error) -> bool {
    matches!(failed.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

#[cfg(target_os = "linux")]
fn allocate(file: &File, at: u64, len: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    loop {
        match fallocate(file, FallocateFlags::KEEP_SIZE, at, len) {
            Err(rustix::io::Errno::INTR) => {}
            done => return Ok(done?),
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn allocate(_: &File, _: u64, _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Writes all slices, the first one at this offset.
pub(super) fn write_all_at(file: &File, data: &[Bytes], mut at: u64) -> io::Result<()> {
    let slices = data.iter().filter(|d| !d.is_empty()).map(|d| IoSlice::new(d));
    let mut slices: SmallVec<[IoSlice<'_>; 8]> = slices.collect();
    let mut slices = &mut slices[..];
    while !slices.is_empty() {
        match write_at(file, slices, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                at += n as u64;
                IoSlice::advance_slices(&mut slices, n);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Writes several slices with one call where the system can.
#[cfg(target_os = "linux")]
fn write_at(file: &File, slices: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
    /// The most that one call takes.
    const MAX_SLICES: usize = 1024;
    Ok(rustix::io::pwritev(file, &slices[..slices.len().min(MAX_SLICES)], at)?)
}

#[cfg(not(target_os = "linux"))]
fn write_at(file: &File, slices: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::write_at(file, &slices[0], at)
}
