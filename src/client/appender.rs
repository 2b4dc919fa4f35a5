//! Appending over a WebSocket.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::timeout;

use super::close::closed;
use super::pipe::{Order, Pipe, TaskSide};
use super::request::Verb;
use crate::error::{Error, ErrorKind, Result};
use crate::wire::frame::{Kind, close_payload};
use crate::wire::{Conn, Inbound};

/// How much is read of a source at once, in bytes.
const READ: usize = 64 * 1024;
/// How long the end of a connection may take once its outcome is known.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a server that broke the connection is listened to for its reason.
const LAST_WORDS: Duration = Duration::from_secs(1);

type Connection = Conn<TokioIo<Upgraded>>;

/// Appends to a resource.
///
/// A task in the background runs the connection: it answers the server's pings even while nothing is written. At most
/// 64 KiB wait in this appender and as much is on its way to the socket; then [`append`](Self::append) and
/// [`AsyncWrite::poll_write`] wait. Small writes that gather in the meantime leave as one frame; nothing is delayed for
/// the sake of that.
///
/// As an [`AsyncWrite`]: a flush waits until everything is written to the socket, which says nothing about the server;
/// a shutdown is [`finish`](Self::finish). Its errors hold an [`Error`] ([`io::Error::downcast`] gets it back).
///
/// # Ending
/// Only [`finish`](Self::finish) ends the resource cleanly. Dropping the appender means that it was lost: the task
/// sends what is left and the close code 1001 within 5 s, if the runtime lives that long, and followers are told that
/// the resource is interrupted. A process that is killed sends no close frame, to the same effect at a server of ours;
/// what it had handed to the system still arrives.
///
/// # Time
/// An appender that is idle stays open for as long as the server is there. How long a stalled server is waited for is
/// the caller's decision: put a [`tokio::time::timeout`] around the call.
#[derive(Debug)]
pub struct Appender {
    pipe: Arc<Pipe>,
}

impl Appender {
    pub(super) fn start(conn: Connection, ours: bool) -> Self {
        let pipe = Arc::new(Pipe::default());
        // The original's server drops BINARY messages, and takes whatever bytes as TEXT.
        let kind = if ours { Kind::Binary } else { Kind::Text };
        tokio::spawn(run(conn, TaskSide(Arc::clone(&pipe)), kind));
        Self { pipe }
    }

    /// Appends the bytes. Returns once they are taken over, not once they are sent.
    ///
    /// # Errors
    /// How the connection ended, from now on for every call:
    /// - [`Connection`](ErrorKind::Connection): it broke.
    /// - [`Storage`](ErrorKind::Storage), [`TooLarge`](ErrorKind::TooLarge),
    ///   [`ShuttingDown`](ErrorKind::ShuttingDown), [`Overloaded`](ErrorKind::Overloaded): the server can't go on.
    /// - [`Fenced`](ErrorKind::Fenced): somebody took over, or the resource was deleted;
    ///   [`Forbidden`](ErrorKind::Forbidden): no longer allowed. Both are final.
    /// - [`Protocol`](ErrorKind::Protocol): the server broke the protocol, or says that this side did.
    ///
    /// How much of what was taken over is stored is unknown then.
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
    /// As [`append`](Self::append), and as soon as the connection ends, even while `reader` has nothing to give.
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
                error = poll_fn(|cx| self.pipe.poll_failed(cx)) => return Err(error),
                read = reader.read(&mut buf) => read.map_err(unreadable)?,
            };
            if read == 0 {
                return Ok(total);
            }
            self.write_all(&buf[..read]).await?;
            total += read as u64;
        }
    }

    /// Ends the resource: sends what is left and the close code 1000 (RFC 6455 section 7), and waits for the server's
    /// confirmation that it has everything.
    ///
    /// # Errors
    /// As [`append`](Self::append). [`Connection`](ErrorKind::Connection) also if the connection ends without the
    /// server's word: then it is unknown whether the resource was finished.
    ///
    /// # Cancel safety
    /// Not cancel safe: if the future is dropped, it is unknown whether the resource was finished.
    pub async fn finish(self) -> Result<()> {
        poll_fn(|cx| self.pipe.poll_finish(cx)).await
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
        self.pipe.poll_finish(cx).map_err(Into::into)
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

/// Runs the connection to its end.
async fn run(mut conn: Connection, side: TaskSide, kind: Kind) {
    let mut finishing = false;
    let mut heard = poll_fn(|cx| poll_run(cx, &mut conn, &side.0, kind, &mut finishing)).await;
    if let Some(Inbound::Broken(error)) = heard {
        heard = Some(last_words(&mut conn, error).await);
    }
    match heard {
        None if finishing => conn.end(PATIENCE).await,
        None => conn.close(1001, "", PATIENCE).await,
        Some(Inbound::Close(Some(1000))) if finishing => {
            side.end(Ok(()));
            conn.end(PATIENCE).await;
        }
        Some(Inbound::Close(code)) => {
            side.end(Err(closed(code, conn.close_reason(), Verb::Append)));
            if finishing {
                conn.end(PATIENCE).await;
            } else {
                conn.close(code.unwrap_or(1000), "", PATIENCE).await;
            }
        }
        Some(Inbound::Breach { code, reason }) => {
            let detail = format!("the server broke the WebSocket protocol: {reason}");
            side.end(Err(Error::new(ErrorKind::Protocol).with_detail(detail)));
            conn.close(code, &reason, PATIENCE).await;
        }
        Some(Inbound::Broken(error)) => side.end(Err(lost(finishing).with_source(error))),
        Some(Inbound::Eof { .. } | Inbound::Data { .. } | Inbound::Pong) => side.end(Err(lost(finishing))),
    }
}

/// Reads and writes until the server ends it, or the user drops it (`None`).
fn poll_run(
    cx: &mut Context<'_>,
    conn: &mut Connection,
    pipe: &Pipe,
    kind: Kind,
    finishing: &mut bool,
) -> Poll<Option<Inbound>> {
    loop {
        // Reading comes first: a server that refuses says so while this side still writes.
        match conn.poll_inbound(cx) {
            // A server has nothing to say here; the original's never reads what it could answer to.
            Poll::Ready(Inbound::Data { .. } | Inbound::Pong) => continue,
            Poll::Ready(other) => return Poll::Ready(Some(other)),
            Poll::Pending => {}
        }
        let flushed = conn.is_flushed() && !*finishing;
        match ready!(pipe.poll_order(cx, flushed, |data| conn.put(kind, data))) {
            Order::Write => {}
            Order::Finish => {
                conn.put(Kind::Close, &close_payload(1000, ""));
                *finishing = true;
            }
            Order::Abandon => return Poll::Ready(None),
        }
    }
}

/// A server that refuses and goes away at once makes the next write fail; what it said before can still be read.
async fn last_words(conn: &mut Connection, error: io::Error) -> Inbound {
    conn.out().take_all();
    let listening = async {
        loop {
            match conn.inbound().await {
                Inbound::Data { .. } | Inbound::Pong => {}
                close @ Inbound::Close(_) => return Some(close),
                _ => return None,
            }
        }
    };
    timeout(LAST_WORDS, listening).await.ok().flatten().unwrap_or(Inbound::Broken(error))
}

fn lost(finishing: bool) -> Error {
    Error::new(ErrorKind::Connection).with_detail(if finishing {
        "the connection ended before the server confirmed the end: the last bytes may be missing"
    } else {
        "the connection to the server was lost while appending"
    })
}
