//! All path operations of the storage. They start at one directory handle, follow no symlink and open only regular files.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, fsync, linkat, mkdirat, openat, statat, unlinkat};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::record::first_bits;
use super::root::identity;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// `NONBLOCK` so that opening a FIFO returns; it has no effect on a regular file.
const FILE: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
const DIR_MODE: Mode = Mode::RWXU;
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// How often the folders above a new file may be removed while it is linked, before that is an error.
const MAX_RACES: usize = 100;
/// The most folders that are remembered as durable.
const MAX_FOLDERS: usize = 10_000;

/// A directory handle.
#[derive(Debug)]
pub(super) struct Dir(OwnedFd);

/// What was found at a key's path.
pub(super) enum Lookup {
    File(File),
    /// Nothing, and nothing that is in the way of a new file.
    Absent,
    /// A symlink, at the path or above it. Never followed.
    Symlink,
}

impl Dir {
    pub(super) fn open(path: &std::path::Path) -> io::Result<Self> {
        Ok(Self(File::open(path)?.into()))
    }

    /// Opens or creates a directory directly in this one.
    pub(super) fn make_dir(&self, name: &str) -> io::Result<Self> {
        match mkdirat(&self.0, name, DIR_MODE) {
            Ok(()) | Err(Errno::EXIST) => fsync(&self.0)?,
            Err(errno) => return Err(errno.into()),
        }
        Ok(Self(openat(&self.0, name, DIR, Mode::empty())?))
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        Ok(fsync(&self.0)?)
    }

    /// Syncs the whole file system of this directory.
    #[cfg(target_os = "linux")]
    pub(super) fn sync_file_system(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.0)?)
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn sync_file_system(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn device(&self) -> io::Result<u64> {
        Ok(rustix::fs::fstat(&self.0)?.st_dev)
    }

    /// Opens the key's file, for reading or for both.
    pub(super) fn find(&self, key: &Key, write: bool) -> Result<Lookup> {
        let (parent, name) = match self.parent(key)? {
            Parent::Dir(parent, name) => (parent, name),
            Parent::Absent => return Ok(Lookup::Absent),
            Parent::Symlink => return Ok(Lookup::Symlink),
        };
        let access = access(write);
        let fd = match openat(parent.as_fd(self), name, FILE | access, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(Lookup::Absent),
            Err(Errno::LOOP) => return Ok(Lookup::Symlink),
            Err(errno) => return Err(error(errno.into())),
        };
        let file = File::from(fd);
        if !file.metadata().map_err(error)?.is_file() {
            return Err(conflict());
        }
        Ok(Lookup::File(file))
    }

    /// Links a file of another directory to the key's path, and creates the folders above. Fails if anything is there.
    pub(super) fn link(&self, from: &Dir, from_name: &str, key: &Key) -> io::Result<()> {
        let link = || -> io::Result<()> {
            let (parent, name) = self.make_parent(key)?;
            Ok(linkat(&from.0, from_name, parent.as_fd(self), name, AtFlags::empty())?)
        };
        // A concurrent delete may remove a folder that is empty at this moment; it is created again then.
        let mut linked = link();
        for _ in 0..MAX_RACES {
            match linked {
                Err(error) if error.kind() == io::ErrorKind::NotFound => linked = link(),
                settled => return settled,
            }
        }
        linked
    }

    /// Removes the key's file, and the folders above it that become empty. An absent file is no error.
    pub(super) fn remove(&self, key: &Key) -> Result<()> {
        let Parent::Dir(parent, name) = self.parent(key)? else { return Ok(()) };
        match unlinkat(parent.as_fd(self), name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(error(errno.into())),
        }
        fsync(parent.as_fd(self)).map_err(|e| error(e.into()))?;
        // A folder that gets a file at this moment is not empty, and stays.
        let mut path = key.as_str();
        while let Some((folder, _)) = path.rsplit_once('/') {
            let Ok(key) = Key::new(folder) else { break };
            let Ok(Parent::Dir(parent, name)) = self.parent(&key) else { break };
            if unlinkat(parent.as_fd(self), name, AtFlags::REMOVEDIR).is_err() {
                break;
            }
            path = folder;
        }
        Ok(())
    }

    /// Makes the name of the key's file durable, and those of the folders above it, also of existing ones: the process
    /// that created them may have been killed before it did so.
    pub(super) fn sync_parent(&self, key: &Key, known: &DurableFolders) -> io::Result<()> {
        let mut at = Handle::Top;
        let mut segments = key.segments().peekable();
        while let Some(segment) = segments.next() {
            if segments.peek().is_none() {
                break;
            }
            let next = enter(at.as_fd(self), segment)?;
            let name = folder_id(at.as_fd(self), segment, &next)?;
            if name.is_none_or(|name| !known.lock().contains(&name)) {
                fsync(at.as_fd(self))?;
                known.add(name);
            }
            at = Handle::Sub(next);
        }
        Ok(fsync(at.as_fd(self))?)
    }

    /// Opens a file directly in this directory.
    pub(super) fn open_file(&self, name: &str, write: bool) -> io::Result<Option<File>> {
        match openat(&self.0, name, FILE | access(write), Mode::empty()) {
            Ok(fd) => Ok(Some(fd.into())),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Creates or opens a file directly in this directory.
    pub(super) fn create_file(&self, name: &str, exclusive: bool) -> io::Result<File> {
        let exclusive = if exclusive { OFlags::EXCL } else { OFlags::empty() };
        let flags = FILE | OFlags::RDWR | OFlags::CREATE | exclusive;
        Ok(openat(&self.0, name, flags, FILE_MODE)?.into())
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.0, from, &self.0, to)?)
    }

    /// Removes a file directly in this directory; returns whether it existed.
    pub(super) fn remove_file(&self, name: &str) -> io::Result<bool> {
        match unlinkat(&self.0, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The entries of this directory, with their types.
    pub(super) fn names(&self) -> io::Result<Vec<(String, FileType)>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.0)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => match statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                    Err(_) => continue,
                },
                kind => kind,
            };
            names.push((name.to_owned(), kind));
        }
        Ok(names)
    }

    pub(super) fn sub_dir(&self, name: &str) -> io::Result<Self> {
        Ok(Self(openat(&self.0, name, DIR, Mode::empty())?))
    }

    fn parent<'k>(&self, key: &'k Key) -> Result<Parent<'k>> {
        let mut at = Handle::Top;
        let mut segments = key.segments().peekable();
        while let Some(segment) = segments.next() {
            if segments.peek().is_none() {
                return Ok(Parent::Dir(at, segment));
            }
            at = match enter(at.as_fd(self), segment) {
                Ok(fd) => Handle::Sub(fd),
                Err(Errno::NOENT) => return Ok(Parent::Absent),
                Err(Errno::LOOP) => return Ok(Parent::Symlink),
                Err(errno) => return Err(error(errno.into())),
            };
        }
        Ok(Parent::Absent)
    }

    fn make_parent<'k>(&self, key: &'k Key) -> io::Result<(Handle, &'k str)> {
        let mut at = Handle::Top;
        let mut segments = key.segments().peekable();
        while let Some(segment) = segments.next() {
            if segments.peek().is_none() {
                return Ok((at, segment));
            }
            let next = match enter(at.as_fd(self), segment) {
                Err(Errno::NOENT) => {
                    // Not synced here, but with the file's name: see `sync_parent`.
                    match mkdirat(at.as_fd(self), segment, DIR_MODE) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                    enter(at.as_fd(self), segment)?
                }
                other => other?,
            };
            at = Handle::Sub(next);
        }
        Err(io::ErrorKind::InvalidInput.into())
    }
}

/// Folders whose names this process made durable, by [`folder_id`].
#[derive(Debug, Default)]
pub(super) struct DurableFolders(Mutex<HashSet<u128>>);

impl DurableFolders {
    fn lock(&self) -> MutexGuard<'_, HashSet<u128>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn add(&self, name: Option<u128>) {
        let mut known = self.lock();
        if known.len() >= MAX_FOLDERS {
            known.clear();
        }
        known.extend(name);
    }
}

/// Distinguishes a folder with this name from any other that ever had it; `None` where the file system has no birth times.
fn folder_id(parent: &OwnedFd, name: &str, fd: &OwnedFd) -> io::Result<Option<u128>> {
    let (parent, folder) = (File::from(parent.try_clone()?), File::from(fd.try_clone()?));
    if folder.metadata()?.created().is_err() {
        return Ok(None);
    }
    let mut hash = Sha256::new();
    hash.update(identity(&parent)?.to_le_bytes());
    hash.update(identity(&folder)?.to_le_bytes());
    hash.update(name);
    Ok(Some(first_bits(hash)))
}

/// Readers open files for reading only: on a frozen file system, opening one for writing blocks.
fn access(write: bool) -> OFlags {
    if write { OFlags::RDWR } else { OFlags::RDONLY }
}

/// Opens a folder of resources. A symlink is `LOOP`, anything else that is not a folder is `NOTDIR`.
fn enter(parent: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    let opened = openat(parent, name, DIR, Mode::empty());
    // Opening a symlink as a directory fails like opening a file as one.
    if let Err(Errno::NOTDIR) = opened {
        let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        // A directory by now was something else a moment ago, most likely a symlink.
        if matches!(FileType::from_raw_mode(stat.st_mode), FileType::Symlink | FileType::Directory) {
            return Err(Errno::LOOP);
        }
    }
    opened
}

enum Parent<'k> {
    Dir(Handle, &'k str),
    Absent,
    Symlink,
}

enum Handle {
    Top,
    Sub(OwnedFd),
}

impl Handle {
    fn as_fd<'a>(&'a self, top: &'a Dir) -> &'a OwnedFd {
        match self {
            Self::Top => &top.0,
            Self::Sub(fd) => fd,
        }
    }
}

pub(super) fn conflict() -> Error {
    ErrorKind::Conflict.into()
}

/// The error for a failed system call.
pub(super) fn error(source: io::Error) -> Error {
    let kind = match Errno::from_io_error(&source) {
        Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => ErrorKind::Full,
        Some(Errno::NAMETOOLONG) => ErrorKind::PathTooLong,
        Some(Errno::ISDIR | Errno::NOTDIR | Errno::NXIO | Errno::EXIST | Errno::OPNOTSUPP) => ErrorKind::Conflict,
        // A symlink, which is never followed.
        Some(Errno::LOOP) => ErrorKind::NotFound,
        Some(Errno::MFILE | Errno::NFILE) => ErrorKind::Overloaded,
        // Also a denied permission: that is the operator's business, and says nothing about the client's credentials.
        _ => ErrorKind::Storage,
    };
    Error::new(kind).with_source(source)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_number_of_remembered_folders_is_bounded() {
        let known = DurableFolders::default();
        for name in 0..MAX_FOLDERS as u128 {
            known.add(Some(name));
        }
        assert_eq!(known.lock().len(), MAX_FOLDERS);
        known.add(Some(u128::MAX));
        assert_eq!(*known.lock(), HashSet::from([u128::MAX]));
    }

    #[test]
    fn a_directory_knows_its_device() {
        let tmp = tempfile::tempdir().unwrap();
        let device = Dir::open(tmp.path()).unwrap().device().unwrap();
        assert_eq!(device, std::fs::metadata(tmp.path()).unwrap().dev());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_failed_sync_is_an_error() {
        // An `O_PATH` descriptor can't be synced.
        let dir = Dir(openat(rustix::fs::CWD, "/", OFlags::PATH, Mode::empty()).unwrap());
        dir.sync().unwrap_err();
        dir.sync_file_system().unwrap_err();
    }
}
