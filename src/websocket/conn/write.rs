//! Writing: a queue of frames, and vectored writes from it.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite};

use super::Conn;
use crate::websocket::frame::{Kind, Role, apply_mask, put_header};

/// The most segments that one `writev` takes.
const MAX_SLICES: usize = 64;

impl<IO: AsyncRead + AsyncWrite + Unpin> Conn<IO> {
    /// Queues a frame; a client's is masked.
    pub(crate) fn queue(&mut self, kind: Kind, payload: &[u8]) {
        let role = self.role;
        self.out.write_with(|buf| match role {
            Role::Server => {
                put_header(buf, kind, payload.len(), None);
                buf.extend_from_slice(payload);
            }
            Role::Client => {
                let mut mask = [0; 4];
                // Masks protect caches in between, not us (RFC 6455 section 10.3): zeros are legal if all else fails.
                let _ = getrandom::fill(&mut mask);
                put_header(buf, kind, payload.len(), Some(mask));
                let start = buf.len();
                buf.extend_from_slice(payload);
                apply_mask(&mut buf[start..], mask);
            }
        });
    }

    /// Writes and flushes the queue. Each step has to make progress within `stall`.
    ///
    /// # Cancel safety
    /// Cancel safe: unwritten bytes stay queued.
    pub(crate) async fn flush(&mut self, stall: Duration) -> io::Result<()> {
        while self.out.has_remaining() {
            let step = poll_fn(|cx| self.poll_write_some(cx));
            match tokio::time::timeout(stall, step).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
        match tokio::time::timeout(stall, poll_fn(|cx| self.poll_flush(cx))).await {
            Ok(flushed) => flushed,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Writes frames that are shared with other connections. Bytes that the socket doesn't take at once are queued.
    ///
    /// Returns whether everything is flushed, including what was queued before.
    pub(crate) fn write_shared(&mut self, cx: &mut Context<'_>, segments: &[Bytes]) -> bool {
        let mut written = 0;
        if self.out.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let mut filled = 0;
            for (slice, segment) in slices.iter_mut().zip(segments) {
                *slice = IoSlice::new(segment);
                filled += 1;
            }
            // An error is ignored here: it recurs when the queue is flushed.
            if let Poll::Ready(Ok(n)) = poll_write(&mut self.io, cx, &slices[..filled]) {
                written = n;
                self.unflushed = true;
            }
        }
        for segment in segments {
            let gone = written.min(segment.len());
            written -= gone;
            if gone < segment.len() {
                self.out.push(segment.slice(gone..));
            }
        }
        matches!(self.poll_flush(cx), Poll::Ready(Ok(())))
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.out.has_remaining() {
            ready!(self.poll_write_some(cx))?;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_some(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let filled = self.out.chunks_vectored(&mut slices);
        let written = ready!(poll_write(&mut self.io, cx, &slices[..filled]))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.out.advance(written);
        self.unflushed = true;
        if self.out.is_empty() {
            self.pong_bytes = 0;
        }
        Poll::Ready(Ok(written))
    }
}

/// Writes one segment with `send`, which is cheaper than a `writev`. Small frames are one segment.
fn poll_write<IO: AsyncWrite + Unpin>(
    io: &mut IO,
    cx: &mut Context<'_>,
    slices: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    match slices {
        [one] => Pin::new(io).poll_write(cx, one),
        many => Pin::new(io).poll_write_vectored(cx, many),
    }
}
