//! Reading a file's range: at once where it is in the page cache, else on the blocking pool.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures_core::Stream;

use super::threads::Gate;
use crate::error::{Error, ErrorKind, Result};
use futures_core::future::BoxFuture;

/// What one read asks for, and what a follower that is behind and stalls holds in memory. (For 100 followers that get 64 KiB
/// messages as fast as they can: .43 CPU s per GB with 64 KiB, .36 with 128, .35 with 256.)
const CHUNK: u64 = 128 * 1024;

/// A buffer, and how much of it was read.
type Read = io::Result<(BytesMut, usize)>;

/// The bytes of a range of a file. Ends with an error where the file is shorter than it was.
pub(super) struct FileStream {
    file: Arc<File>,
    at: u64,
    end: u64,
    gate: Gate,
    /// What was read last, to be used again once nobody holds it: it need not be cleared then.
    last: Bytes,
    /// One that has to wait.
    reading: Option<BoxFuture<'static, Result<Read>>>,
}

impl FileStream {
    pub(super) fn new(file: Arc<File>, at: u64, end: u64, gate: Gate) -> Self {
        Self { file, at, end, gate, last: Bytes::new(), reading: None }
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
                let read = ready!(reading.as_mut().poll(cx));
                this.reading = None;
                break read.unwrap_or_else(|failed| Err(io::Error::other(failed)));
            }
            let mut buf = match std::mem::take(&mut this.last).try_into_mut() {
                Ok(buf) if buf.len() >= want => buf,
                _ => BytesMut::zeroed(want),
            };
            if let Some(n) = read_cached(&this.file, &mut buf[..want], this.at) {
                break Ok((buf, n));
            }
            let (file, at, gate) = (Arc::clone(&this.file), this.at, this.gate.clone());
            let read = move || read(&file, &mut buf[..want], at).map(|n| (buf, n));
            this.reading = Some(Box::pin(async move { gate.run(read).await }));
        };
        Poll::Ready(Some(match read {
            Ok((_, 0)) => {
                this.at = this.end;
                Err(truncated())
            }
            Ok((buf, n)) => {
                this.at += n as u64;
                this.last = buf.freeze();
                Ok(this.last.slice(..n))
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

fn read(file: &File, buf: &mut [u8], at: u64) -> io::Result<usize> {
    loop {
        match file.read_at(buf, at) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// Reads without waiting for a disk; `None` if that isn't possible here and now. (Nothing at all is for the slow path to
/// confirm.)
#[cfg(target_os = "linux")]
fn read_cached(file: &File, buf: &mut [u8], at: u64) -> Option<usize> {
    use rustix::io::{ReadWriteFlags, preadv2};
    let n = preadv2(file, &mut [io::IoSliceMut::new(buf)], at, ReadWriteFlags::NOWAIT).ok()?;
    (n > 0).then_some(n)
}

#[cfg(not(target_os = "linux"))]
fn read_cached(_: &File, _: &mut [u8], _: u64) -> Option<usize> {
    None
}
