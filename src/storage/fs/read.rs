//! Reading a file's range: at once where it is in the page cache, else on the blocking pool.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_core::Stream;

use super::threads::Gate;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::erased::BoxFuture;

/// What one read asks for.
const CHUNK: u64 = 64 * 1024;

/// The bytes of a range of a file. Ends with an error where the file is shorter than it was.
pub(super) struct FileStream {
    file: Arc<File>,
    at: u64,
    end: u64,
    gate: Gate,
    /// One that has to wait.
    reading: Option<BoxFuture<'static, Result<io::Result<Vec<u8>>>>>,
}

impl FileStream {
    pub(super) fn new(file: Arc<File>, at: u64, end: u64, gate: Gate) -> Self {
        Self { file, at, end, gate, reading: None }
    }
}

impl Stream for FileStream {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        let this = &mut *self;
        if this.at >= this.end {
            return Poll::Ready(None);
        }
        let want = (this.end - this.at).min(CHUNK) as usize;
        let read = loop {
            if let Some(reading) = &mut this.reading {
                let read = ready!(Pin::new(reading).poll(cx));
                this.reading = None;
                break read.unwrap_or_else(|failed| Err(io::Error::other(failed)));
            }
            if let Some(read) = read_cached(&this.file, want, this.at) {
                break Ok(read);
            }
            let (file, at, gate) = (Arc::clone(&this.file), this.at, this.gate.clone());
            this.reading = Some(Box::pin(async move { gate.run(move || read(&file, want, at)).await }));
        };
        Poll::Ready(Some(match read {
            Ok(bytes) if bytes.is_empty() => {
                this.at = this.end;
                Err(truncated())
            }
            Ok(bytes) => {
                this.at += bytes.len() as u64;
                Ok(bytes.into())
            }
            Err(error) => {
                this.at = this.end;
                Err(super::path::error(error))
            }
        }))
    }
}

/// The file is shorter than what was committed: somebody else cut it.
pub(super) fn truncated() -> Error {
    Error::new(ErrorKind::Storage).with_source("the file was changed or removed by somebody else")
}

fn read(file: &File, want: usize, at: u64) -> io::Result<Vec<u8>> {
    let mut buf = vec![0; want];
    loop {
        match file.read_at(&mut buf, at) {
            Ok(n) => {
                buf.truncate(n);
                return Ok(buf);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Reads without waiting for a disk; `None` if that isn't possible here and now.
#[cfg(target_os = "linux")]
fn read_cached(file: &File, want: usize, at: u64) -> Option<Vec<u8>> {
    use rustix::io::{ReadWriteFlags, preadv2};
    let mut buf = vec![0; want];
    let n = preadv2(file, &mut [io::IoSliceMut::new(&mut buf)], at, ReadWriteFlags::NOWAIT).ok()?;
    // Nothing at all is for the slow path to confirm.
    buf.truncate(n);
    (n > 0).then_some(buf)
}

#[cfg(not(target_os = "linux"))]
fn read_cached(_: &File, _: usize, _: u64) -> Option<Vec<u8>> {
    None
}
