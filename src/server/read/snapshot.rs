//! A resource at one length, as a backend of tower-http's file service.

use std::future::{Ready, ready};
use std::io::{self, SeekFrom};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{self, Context, Poll};
use std::time::SystemTime;

use bytes::{Buf, Bytes};
use futures_core::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncSeek, ReadBuf};
use tower_http::services::fs::{Backend, File, Metadata};

use crate::error::Result;
use crate::hub::Hub;
use crate::key::Key;
use crate::state::{Life, Stat};
use crate::storage::ByteStream;

/// A resource as it is now: what is appended later is not part of it.
#[derive(Clone)]
pub(super) struct Snapshot {
    hub: Arc<Hub>,
    key: Key,
    life: Life,
    len: u64,
    modified: Option<SystemTime>,
}

impl Snapshot {
    pub(super) fn new(hub: &Arc<Hub>, key: &Key, stat: &Stat) -> Self {
        Self { hub: Arc::clone(hub), key: key.clone(), life: stat.life, len: stat.len, modified: stat.modified }
    }

    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { len: self.len, modified: self.modified }
    }
}

impl Backend for Snapshot {
    type File = SnapshotFile;
    type Metadata = SnapshotMeta;
    type OpenFuture = Ready<io::Result<SnapshotFile>>;
    type MetadataFuture = Ready<io::Result<SnapshotMeta>>;

    fn open(&self, _: PathBuf) -> Self::OpenFuture {
        ready(Ok(SnapshotFile { snapshot: self.clone(), position: 0, read: Mutex::new(Read::Idle) }))
    }

    fn metadata(&self, _: PathBuf) -> Self::MetadataFuture {
        ready(Ok(self.meta()))
    }
}

pub(super) struct SnapshotMeta {
    len: u64,
    modified: Option<SystemTime>,
}

impl Metadata for SnapshotMeta {
    fn is_dir(&self) -> bool {
        false
    }

    fn modified(&self) -> io::Result<SystemTime> {
        self.modified.ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    fn len(&self) -> u64 {
        self.len
    }
}

pub(super) struct SnapshotFile {
    snapshot: Snapshot,
    position: u64,
    /// Never locked, since the file is only used by `&mut`: tower-http requires `Sync`.
    read: Mutex<Read>,
}

/// A read of the storage, from the file's position to the snapshot's end.
enum Read {
    Idle,
    Opening(BoxFuture<'static, Result<ByteStream>>),
    /// The stream, and the rest of its last piece.
    Open(ByteStream, Bytes),
}

impl AsyncRead for SnapshotFile {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let SnapshotFile { snapshot, position, read } = &mut *self;
        let read = read.get_mut().unwrap_or_else(PoisonError::into_inner);
        loop {
            match read {
                Read::Idle if *position >= snapshot.len => return Poll::Ready(Ok(())),
                Read::Idle => {
                    let (snapshot, range) = (snapshot.clone(), *position..snapshot.len);
                    let opening = async move { snapshot.hub.storage.read(&snapshot.key, snapshot.life, range).await };
                    *read = Read::Opening(Box::pin(opening));
                }
                Read::Opening(opening) => {
                    let stream = task::ready!(opening.as_mut().poll(cx))?;
                    *read = Read::Open(stream, Bytes::new());
                }
                Read::Open(stream, rest) => {
                    if rest.is_empty() {
                        match task::ready!(stream.as_mut().poll_next(cx)) {
                            Some(bytes) => *rest = bytes?,
                            None if *position == snapshot.len => return Poll::Ready(Ok(())),
                            None => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                        }
                        continue;
                    }
                    let count = rest.len().min(buf.remaining());
                    buf.put_slice(&rest[..count]);
                    rest.advance(count);
                    *position += count as u64;
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncSeek for SnapshotFile {
    fn start_seek(mut self: Pin<&mut Self>, target: SeekFrom) -> io::Result<()> {
        let position = match target {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.snapshot.len.checked_add_signed(by),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        self.read = Mutex::new(Read::Idle);
        Ok(())
    }

    fn poll_complete(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Ok(self.position))
    }
}

impl File for SnapshotFile {
    type Metadata = SnapshotMeta;
    type MetadataFuture<'a> = Ready<io::Result<SnapshotMeta>>;

    fn metadata(&self) -> Self::MetadataFuture<'_> {
        ready(Ok(self.snapshot.meta()))
    }
}
