//! Appending over a WebSocket.

mod pipe;
mod request;
mod task;

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use self::pipe::Pipe;
use crate::error::{Error, ErrorKind, Result};
use crate::identity::AppenderId;
use crate::state::Life;

pub(super) use self::pipe::unspoken;
pub use self::request::AppendRequest;

/// How much is read of a source at once, in bytes.
const READ: usize = 64 * 1024;

/// Appends to a resource.
///
/// A task in the background runs the connection: it answers the server's pings even while nothing is written. Small
/// writes that gather while another is sent leave as one frame; nothing is delayed for the sake of that.
///
/// # Broken connections
/// With a server that speaks `httpfstream.v1` ([`is_resumable`](Self::is_resumable)) the appender survives them: bytes
/// are kept until the server has acknowledged them, up to a
/// [bound](super::ClientBuilder::max_unacknowledged), then [`append`](Self::append) and [`AsyncWrite::poll_write`]
/// wait. When a connection breaks, or the server stops, another one is made, [for a
/// time](super::ClientBuilder::retry_for), and what is missing is sent again: each byte is stored once. Where that
/// can't be known, because somebody else appended in between, it fails with [`Diverged`](ErrorKind::Diverged).
///
/// Other servers acknowledge nothing. At most 128 KiB wait or are on their way to the socket then, and the first broken
/// connection is the end.
///
/// # As an [`AsyncWrite`]
/// A flush is [`flush`](Self::flush), a shutdown is [`finish`](Self::finish). Its errors hold an [`Error`]
/// ([`io::Error::downcast`] gets it back).
///
/// # Ending
/// Only [`finish`](Self::finish) and [`seal`](Self::seal) end the resource cleanly. Dropping the appender means that it
/// was lost: the task sends what is left and the close code 1001 within 5 s, if there is a connection and the runtime
/// lives that long, and followers are told that the resource is lost, then interrupted. A process that is killed sends
/// no close frame, to the same effect at a server of ours; what it had handed to the system still arrives.
///
/// # Time
/// An appender that is idle stays open for as long as the server is there. A server that says nothing is pinged every
/// 30 s, and its connection given up after the third time; the original's server can't answer, and is waited for. How
/// long a stalled server is waited for is the caller's decision: put a [`tokio::time::timeout`] around the call.
#[derive(Debug)]
pub struct Appender {
    pipe: Arc<Pipe>,
    id: AppenderId,
    seal: bool,
}

impl Appender {
    /// Appends the bytes. Returns once they are taken over, not once they are sent.
    ///
    /// # Errors
    /// How it ended, from now on for every call:
    /// - [`Connection`](ErrorKind::Connection), [`TimedOut`](ErrorKind::TimedOut): the connection broke, and no other
    ///   could be made.
    /// - [`Storage`](ErrorKind::Storage), [`ShuttingDown`](ErrorKind::ShuttingDown),
    ///   [`Overloaded`](ErrorKind::Overloaded), [`Busy`](ErrorKind::Busy): the same, with the server's last word.
    /// - [`TooLarge`](ErrorKind::TooLarge): the resource is over the server's limit.
    /// - [`Fenced`](ErrorKind::Fenced): another connection showed this appender's id, or the resource was deleted;
    ///   [`Unauthorized`](ErrorKind::Unauthorized), [`Forbidden`](ErrorKind::Forbidden): not allowed, or no longer.
    ///   These are final.
    /// - [`Diverged`](ErrorKind::Diverged), [`Life`](ErrorKind::Life): the resource is not as it was left, after a
    ///   broken connection.
    /// - [`Protocol`](ErrorKind::Protocol): the server broke the protocol, or says that this side did.
    ///
    /// What is stored of the bytes that were not [acknowledged](Self::acknowledged) is unknown then.
    ///
    /// # Cancel safety
    /// Not cancel safe: if the future is dropped, some of the bytes may have been taken over.
    pub async fn append(&mut self, data: impl AsRef<[u8]>) -> Result<()> {
        self.write_all(data.as_ref()).await
    }

    /// Appends everything `reader` gives, up to its end, as it comes. Returns the number of bytes.
    ///
    /// Finish the resource afterwards, or append more.
    ///
    /// # Errors
    /// As [`append`](Self::append), and as soon as it ends, even while `reader` has nothing to give.
    /// [`Interrupted`](ErrorKind::Interrupted) if `reader` fails, with its error as the source.
    ///
    /// # Cancel safety
    /// Not cancel safe: some of what was read may be lost.
    pub async fn append_reader<R: AsyncRead>(&mut self, reader: R) -> Result<u64> {
        let mut reader = pin!(reader);
        let mut buf = vec![0; READ];
        let mut total = 0;
        loop {
            let read = tokio::select! {
                biased;
                error = self.failed() => return Err(error),
                read = reader.read(&mut buf) => read.map_err(unreadable)?,
            };
            if read == 0 {
                return Ok(total);
            }
            self.write_all(&buf[..read]).await?;
            total += read as u64;
        }
    }

    /// Waits until everything that was appended is durable at the server.
    ///
    /// Servers that don't speak `httpfstream.v1` acknowledge nothing: there it waits until everything is written to
    /// the socket.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn flush(&mut self) -> Result<()> {
        poll_fn(|cx| self.pipe.poll_flush(cx)).await
    }

    /// Ends the resource: sends what is left, and waits for the server's confirmation that it has everything.
    ///
    /// # Errors
    /// As [`append`](Self::append). Where nothing can be resumed, [`Connection`](ErrorKind::Connection) also if the
    /// connection ends without the server's word: then it is unknown whether the resource was finished.
    ///
    /// # Cancel safety
    /// Not cancel safe: if the future is dropped, it is unknown whether the resource was finished.
    pub async fn finish(self) -> Result<()> {
        poll_fn(|cx| self.pipe.poll_finish(cx, self.seal)).await
    }

    /// Ends the resource for good: as [`finish`](Self::finish), and nothing can be appended any more.
    ///
    /// # Errors
    /// As [`finish`](Self::finish); [`Protocol`](ErrorKind::Protocol) if the server doesn't speak `httpfstream.v1`: then
    /// it is interrupted.
    ///
    /// # Cancel safety
    /// As [`finish`](Self::finish).
    pub async fn seal(self) -> Result<()> {
        poll_fn(|cx| self.pipe.poll_finish(cx, true)).await
    }

    /// Waits until it has failed, and says how: as [`append`](Self::append) would. Without a failure it waits for ever.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn failed(&mut self) -> Error {
        poll_fn(|cx| self.pipe.poll_failed(cx)).await
    }

    /// Where the next byte goes, from the resource's start.
    ///
    /// The original's server doesn't say where its resource ends: there it is counted from this appender's first byte.
    pub fn offset(&self) -> u64 {
        self.pipe.at().end
    }

    /// Up to where the server has acknowledged all bytes, from the resource's start; where the appender began, as long
    /// as nothing is acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.pipe.at().acknowledged
    }

    /// The resource's life, if the server told it: if it speaks `httpfstream.v1`.
    ///
    /// It may change when a server comes back from a power loss. To go on in another process, store what is here.
    pub fn life(&self) -> Option<Life> {
        self.pipe.at().life
    }

    /// Whether broken connections are survived: the server speaks `httpfstream.v1`.
    pub fn is_resumable(&self) -> bool {
        self.pipe.at().resumable
    }

    /// Whether the resource ended with bytes of this very [id](Self::id) when it was opened.
    pub fn is_resumed(&self) -> bool {
        self.pipe.at().resumed
    }

    /// Whether the server has confirmed the end: above all, that of an appender that was
    /// [perhaps finished](AppendRequest::perhaps_finished).
    pub fn is_finished(&self) -> bool {
        self.pipe.is_finished()
    }

    /// Who appends.
    pub fn id(&self) -> &AppenderId {
        &self.id
    }

    async fn write_all(&mut self, mut data: &[u8]) -> Result<()> {
        poll_fn(|cx| {
            while !data.is_empty() {
                let taken = ready!(self.pipe.poll_write(cx, data))?;
                data = &data[taken..];
            }
            Poll::Ready(Ok(()))
        })
        .await
    }
}

impl AsyncWrite for Appender {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.pipe.poll_write(cx, data).map_err(Into::into)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pipe.poll_flush(cx).map_err(Into::into)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pipe.poll_finish(cx, self.seal).map_err(Into::into)
    }
}

impl Drop for Appender {
    fn drop(&mut self) {
        self.pipe.abandon();
    }
}

fn unreadable(error: io::Error) -> Error {
    Error::new(ErrorKind::Interrupted).with_detail("the data to append can't be read").with_source(error)
}
