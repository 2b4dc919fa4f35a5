//! Appending over a WebSocket.

mod buffer;
mod request;
mod task;

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use self::buffer::SendBuffer;
use crate::error::{Error, ErrorKind, Result};
use crate::identity::AppenderId;
use crate::state::Life;

pub(super) use self::buffer::v1_required;
pub use self::request::AppendRequest;

/// The size of a read from the user's reader, in bytes.
const READ_SIZE: usize = 64 * 1024;

/// Appends to a resource.
///
/// A background task runs the connection and answers the server's pings even while nothing is written. Small writes
/// that gather while a frame is sent leave as the next frame; none is delayed for the sake of that.
///
/// # Broken connections
/// With a server that speaks `httpfstream.v1` ([`is_resumable`](Self::is_resumable)) the appender survives them. It
/// buffers bytes until the server has acknowledged them; at the [limit](super::ClientBuilder::max_unacknowledged)
/// [`append`](Self::append) and [`AsyncWrite::poll_write`] wait. When a connection breaks or the server stops, the
/// appender reconnects ([`retry_for`](super::ClientBuilder::retry_for) bounds the time) and sends again what the server
/// lacks: each byte is stored once. Where that can't be guaranteed, because somebody else appended in between, it fails
/// with [`Diverged`](ErrorKind::Diverged).
///
/// Other servers acknowledge nothing. The buffer then holds at most 128 KiB, and the appender fails with its first
/// connection.
///
/// # As an [`AsyncWrite`]
/// A flush is [`sync`](Self::sync), a shutdown is [`finish`](Self::finish). Its errors hold an [`Error`]
/// ([`io::Error::downcast`] gets it back).
///
/// # Ending
/// Only [`finish`](Self::finish) and [`seal`](Self::seal) end the resource cleanly. Dropping the appender means that it
/// was lost: the task sends the rest of the buffer and the close code 1001 within 5 s, if there is a connection and the
/// runtime lives that long. Followers see the resource lost, then interrupted. A killed process sends no close frame, to
/// the same effect at a server of this crate; what it had handed to the operating system still arrives.
///
/// # Time
/// An idle appender stays open for as long as the server is there. A silent server is pinged every 30 s by default, and
/// its connection is given up after 90 s ([`silence_timeout`](super::ClientBuilder::silence_timeout)); the original's
/// server can't answer pings and is waited for without a limit. A server that answers pings but stores nothing stalls
/// the calls here: put a [`tokio::time::timeout`] around them if that must not last.
#[derive(Debug)]
pub struct Appender {
    buffer: Arc<SendBuffer>,
    id: AppenderId,
    seal: bool,
}

impl Appender {
    /// Appends the bytes. Returns the [offset](Self::offset) behind them once they are buffered, not once they are sent:
    /// [`sync`](Self::sync) waits for that.
    ///
    /// # Errors
    /// Once the appender has failed, every call returns the same kind of error:
    /// - [`Connection`](ErrorKind::Connection), [`TimedOut`](ErrorKind::TimedOut): the connection broke, and
    ///   reconnecting failed.
    /// - [`Storage`](ErrorKind::Storage), [`ShuttingDown`](ErrorKind::ShuttingDown),
    ///   [`Overloaded`](ErrorKind::Overloaded), [`Busy`](ErrorKind::Busy): the same, with the server's reason.
    /// - [`TooLarge`](ErrorKind::TooLarge): the resource is over the server's limit.
    /// - [`Fenced`](ErrorKind::Fenced): another connection used this appender's id, or the resource was deleted;
    ///   [`Unauthorized`](ErrorKind::Unauthorized), [`Forbidden`](ErrorKind::Forbidden): not allowed, or no longer.
    ///   These are final.
    /// - [`Diverged`](ErrorKind::Diverged), [`Life`](ErrorKind::Life): after a broken connection the resource is
    ///   not as this appender left it.
    /// - [`Protocol`](ErrorKind::Protocol): the server broke the protocol, or says that the client did.
    ///
    /// How many of the bytes that were not [acknowledged](Self::acknowledged) are stored is then unknown.
    ///
    /// # Cancel safety
    /// Not cancel safe: if the future is dropped, some of the bytes may have been buffered.
    pub async fn append(&mut self, data: impl Into<Bytes>) -> Result<u64> {
        self.write_all(&data.into()).await?;
        Ok(self.offset())
    }

    /// Appends everything `reader` yields, as it is read, up to its end. Returns the number of bytes. The resource stays
    /// open.
    ///
    /// # Errors
    /// As [`append`](Self::append), as soon as the appender fails, even while `reader` yields nothing.
    /// [`Interrupted`](ErrorKind::Interrupted) if `reader` fails, with its error as the source.
    ///
    /// # Cancel safety
    /// Not cancel safe: some of the bytes that were read may be lost.
    pub async fn append_reader<R: AsyncRead>(&mut self, reader: R) -> Result<u64> {
        let mut reader = pin!(reader);
        let mut buf = vec![0; READ_SIZE];
        let mut total = 0;
        loop {
            let read = tokio::select! {
                biased;
                error = self.closed() => return Err(error),
                read = reader.read(&mut buf) => read.map_err(unreadable)?,
            };
            if read == 0 {
                return Ok(total);
            }
            self.write_all(&buf[..read]).await?;
            total += read as u64;
        }
    }

    /// Waits until everything that was appended is durable at the server. Returns the
    /// [acknowledged](Self::acknowledged) length.
    ///
    /// Servers that don't speak `httpfstream.v1` acknowledge nothing: there it waits until everything is written to
    /// the socket, and returns the offset at which the appender began.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn sync(&mut self) -> Result<u64> {
        poll_fn(|cx| self.buffer.poll_sync(cx)).await
    }

    /// Finishes the resource: sends the rest of the buffer, and waits for the server's confirmation that it has
    /// everything. Returns the resource's length, counted as [`offset`](Self::offset) does.
    ///
    /// # Errors
    /// As [`append`](Self::append). If the server doesn't speak `httpfstream.v1`, [`Connection`](ErrorKind::Connection)
    /// also means that the connection ended without a confirmation: whether the resource was finished is then unknown.
    ///
    /// # Cancel safety
    /// Not cancel safe: if the future is dropped, it is unknown whether the resource was finished.
    pub async fn finish(self) -> Result<u64> {
        poll_fn(|cx| self.buffer.poll_finish(cx, self.seal)).await
    }

    /// Finishes the resource for good: as [`finish`](Self::finish), and nobody can append to it any more.
    ///
    /// # Errors
    /// As [`finish`](Self::finish); [`Protocol`](ErrorKind::Protocol) if the server doesn't speak `httpfstream.v1`: then
    /// the resource is interrupted.
    ///
    /// # Cancel safety
    /// As [`finish`](Self::finish).
    pub async fn seal(self) -> Result<u64> {
        poll_fn(|cx| self.buffer.poll_finish(cx, true)).await
    }

    /// Waits until the appender has failed. Returns the error that [`append`](Self::append) would return; pends forever
    /// if nothing fails.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn closed(&mut self) -> Error {
        poll_fn(|cx| self.buffer.poll_closed(cx)).await
    }

    /// Where the next byte goes, from the resource's start.
    ///
    /// The original's server doesn't send the resource's length: there this counts from the appender's first byte.
    pub fn offset(&self) -> u64 {
        self.buffer.position().end
    }

    /// The offset before which the server has acknowledged everything, from the resource's start. Until the first
    /// acknowledgement it is where the appender began.
    pub fn acknowledged(&self) -> u64 {
        self.buffer.position().acknowledged
    }

    /// The resource's life; `None` if the server doesn't speak `httpfstream.v1`.
    ///
    /// It may change when a server restarts after a power loss: to [resume](AppendRequest::resume) in another process,
    /// store the current one.
    pub fn life(&self) -> Option<Life> {
        self.buffer.position().life
    }

    /// Whether the appender survives broken connections: the server speaks `httpfstream.v1`.
    pub fn is_resumable(&self) -> bool {
        self.buffer.position().resumable
    }

    /// Whether the resource's last byte, when it was opened, came from an appender with this [id](Self::id).
    pub fn is_resumed(&self) -> bool {
        self.buffer.position().resumed
    }

    /// Whether the server has confirmed the end, which it can do at opening if the appender was
    /// [perhaps finished](AppendRequest::perhaps_finished) before.
    pub fn is_finished(&self) -> bool {
        self.buffer.is_finished()
    }

    /// The id that this appender uses, given or random.
    pub fn id(&self) -> &AppenderId {
        &self.id
    }

    async fn write_all(&mut self, mut data: &[u8]) -> Result<()> {
        poll_fn(|cx| {
            while !data.is_empty() {
                let taken = ready!(self.buffer.poll_write(cx, data))?;
                data = &data[taken..];
            }
            Poll::Ready(Ok(()))
        })
        .await
    }
}

impl AsyncWrite for Appender {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.buffer.poll_write(cx, data).map_err(Into::into)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.buffer.poll_sync(cx).map_ok(drop).map_err(Into::into)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.buffer.poll_finish(cx, self.seal).map_ok(drop).map_err(Into::into)
    }
}

impl Drop for Appender {
    fn drop(&mut self) {
        self.buffer.abandon();
    }
}

fn unreadable(error: io::Error) -> Error {
    Error::new(ErrorKind::Interrupted).with_detail("the data to append can't be read").with_source(error)
}
