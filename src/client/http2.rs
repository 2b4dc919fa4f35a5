//! An HTTP/2 connection that many streams share, each a WebSocket of its own (RFC 8441).

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::connect::MAX_HEAD;
use crate::error::{Error, ErrorKind, Result};

/// What the server may send of a stream before its reader has taken it, in bytes.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// The same of all streams together: the most there is (RFC 9113 section 6.9.1).
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// The most streams of one connection. All their windows together are less than half of the connection's, which h2
/// renews when half of it is used up: so the connection's is never what a stream waits for, and readers that take
/// nothing can't starve those beside them.
const MAX_STREAMS: usize = 1000;
const _: () = assert!(MAX_STREAMS * (STREAM_WINDOW as usize) < CONNECTION_WINDOW as usize / 2);

/// How long a connection lives on to send what its last stream left.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connection. It ends after its last stream.
pub(super) struct Shared {
    sender: SendRequest<Empty<Bytes>>,
    /// Streams that are open or asked for.
    open: AtomicUsize,
    /// How many the server allows at once (its `MAX_CONCURRENT_STREAMS`).
    allowed: Arc<AtomicUsize>,
    used: AtomicBool,
    /// No more streams are to be opened on it.
    retired: AtomicBool,
    /// Tells the task that runs it.
    _gone: DropGuard,
}

/// A place on a connection for one stream.
pub(super) struct Place {
    shared: Arc<Shared>,
    /// The connection was made for it, or so it could have been.
    pub(super) first: bool,
}

/// A request that was not answered.
pub(super) struct Unanswered {
    pub(super) error: hyper::Error,
    /// The connection failed, not only this stream.
    pub(super) lost: bool,
    /// The server has certainly done nothing about it.
    pub(super) untouched: bool,
    /// The server wants HTTP/1.1 for it (RFC 9113 section 7).
    pub(super) http1: bool,
}

/// Begins to speak HTTP/2, and hears out the server's settings. `None` if it allows no extended CONNECT.
pub(super) async fn handshake<IO>(io: IO, silence: Duration) -> Result<Option<Arc<Shared>>>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let tasks = Tasks::default();
    // Dropped with the attempt, and later by the last stream.
    let gone = tasks.gone.clone().drop_guard();
    let (settled, settings) = oneshot::channel();
    let io = TokioIo::new(Settling { io, first: Vec::with_capacity(3), read: 0, settled: Some(settled) });
    // A dead connection is found before the streams find their own silence, which would otherwise come back on it.
    let (sender, connection) = Builder::new(tasks.clone())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEAD as u32)
        .keep_alive_interval(silence / 6)
        .keep_alive_timeout(silence / 6)
        .handshake(io)
        .await
        .map_err(unfit)?;
    // Extended CONNECT may be used once the settings allow it (RFC 8441 section 3), and not before.
    if settings.await.is_err() {
        tasks.stop.cancel();
        return Err(match connection.await {
            Err(error) => unfit(error),
            Ok(()) => Error::new(ErrorKind::Connection).with_detail("the server ended the connection at once"),
        });
    }
    let allowed = Arc::new(AtomicUsize::new(connection.current_max_send_streams()));
    if !connection.is_extended_connect_protocol_enabled() || allowed.load(Ordering::Relaxed) == 0 {
        return Ok(None);
    }
    let shared = Shared {
        sender,
        open: AtomicUsize::new(0),
        allowed: Arc::clone(&allowed),
        used: AtomicBool::new(false),
        retired: AtomicBool::new(false),
        _gone: gone,
    };
    tokio::spawn(async move {
        {
            // Gone as soon as it ends: else a request that comes at that moment would wait in it for ever.
            let running = async move {
                let mut connection = pin!(connection);
                poll_fn(|cx| {
                    allowed.store(connection.current_max_send_streams(), Ordering::Relaxed);
                    connection.as_mut().poll(cx)
                })
                .await
            };
            tokio::select! {
                // Streams may drain it: a server that goes away lets them end first. Its error they know themselves.
                _ = running => tasks.gone.cancelled().await,
                () = tasks.gone.cancelled() => {}
            }
        }
        tasks.tracker.close();
        let _ = timeout(PATIENCE, tasks.tracker.wait()).await;
        tasks.stop.cancel();
    });
    Ok(Some(Arc::new(shared)))
}

/// The server speaks something else than HTTP/2, or is gone.
fn unfit(error: hyper::Error) -> Error {
    let broken = cause(&error).is_none_or(|error| error.is_io());
    let (kind, detail) = match broken {
        true => (ErrorKind::Connection, "the connection broke before HTTP/2 was set up"),
        false => (ErrorKind::Protocol, "the server doesn't speak HTTP/2"),
    };
    Error::new(kind).with_detail(detail).with_source(error)
}

/// What HTTP/2 has to say about an error.
pub(super) fn cause(error: &hyper::Error) -> Option<&h2::Error> {
    std::error::Error::source(error)?.downcast_ref()
}

impl Shared {
    /// Whether it is of no use to new streams.
    pub(super) fn is_closed(&self) -> bool {
        self.retired.load(Ordering::Relaxed) || self.sender.is_closed()
    }

    /// A place for one more stream, if there is one.
    pub(super) fn place(self: &Arc<Self>) -> Option<Place> {
        let most = self.allowed.load(Ordering::Relaxed).min(MAX_STREAMS);
        let taken =
            self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| (open < most).then_some(open + 1));
        taken.ok()?;
        let first = !self.used.swap(true, Ordering::Relaxed);
        Some(Place { shared: Arc::clone(self), first })
    }
}

impl Place {
    /// Sends the request. Dropping the future takes it back.
    pub(super) async fn send(&self, request: Request<Empty<Bytes>>) -> Result<Response<Incoming>, Unanswered> {
        let mut sender = self.shared.sender.clone();
        let unanswered = match sender.try_send_request(request).await {
            Ok(response) => return Ok(response),
            Err(unanswered) => unanswered,
        };
        let unsent = unanswered.message().is_some();
        let error = unanswered.into_error();
        let told = cause(&error).filter(|error| error.is_remote());
        let reset = told.filter(|error| error.is_reset()).and_then(h2::Error::reason);
        let lost = reset.is_none();
        if lost {
            self.retire();
        }
        let untouched = unsent || told.is_some_and(h2::Error::is_go_away) || reset == Some(h2::Reason::REFUSED_STREAM);
        Err(Unanswered { error, lost, untouched, http1: reset == Some(h2::Reason::HTTP_1_1_REQUIRED) })
    }

    /// Opens no more streams on this connection.
    pub(super) fn retire(&self) {
        self.shared.retired.store(true, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").finish_non_exhaustive()
    }
}

/// Runs what hyper spawns, so that none of it outlasts the connection.
#[derive(Clone, Default)]
struct Tasks {
    tracker: TaskTracker,
    /// The last stream is gone.
    gone: CancellationToken,
    /// Whatever still runs is dropped, and the socket with it.
    stop: CancellationToken,
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.tracker.spawn(self.stop.clone().run_until_cancelled_owned(task));
    }
}

/// Tells when the server's settings have come, which hyper doesn't. They are its first frame (RFC 9113 section 3.4).
struct Settling<IO> {
    io: IO,
    /// The length of the first frame, as far as it has come.
    first: Vec<u8>,
    read: usize,
    settled: Option<oneshot::Sender<()>>,
}

impl<IO> Settling<IO> {
    fn has_first_frame(&self) -> bool {
        const HEAD: usize = 9;
        matches!(self.first[..], [a, b, c] if self.read >= HEAD + u32::from_be_bytes([0, a, b, c]) as usize)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Settling<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.settled.is_none() {
            return Pin::new(&mut this.io).poll_read(cx, buf);
        }
        // h2 asks for more only once it has dealt with every whole frame that it has.
        if this.has_first_frame()
            && let Some(settled) = this.settled.take()
        {
            let _ = settled.send(());
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let fresh = &buf.filled()[before..];
        this.first.extend(fresh.iter().take(3 - this.first.len()));
        this.read += fresh.len();
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Settling<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use hyper_util::rt::TokioExecutor;
    use tokio::io::duplex;

    use super::*;

    #[tokio::test]
    async fn a_request_after_the_end_of_the_connection_does_not_wait_in_it() {
        let (ours, theirs) = duplex(64 * 1024);
        let answer = hyper::service::service_fn(async |_: Request<Incoming>| {
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        });
        let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        server.enable_connect_protocol();
        let server = tokio::spawn(server.serve_connection(TokioIo::new(theirs), answer));
        let shared = handshake(ours, Duration::from_secs(600)).await.unwrap().expect("it allows WebSockets");
        // Another stream is there still, which keeps the connection.
        let (_other, place) = (shared.place().unwrap(), shared.place().unwrap());
        let request = || Request::get("http://localhost/").body(Empty::new()).unwrap();
        assert!(place.send(request()).await.is_ok());
        server.abort();
        assert!(server.await.is_err());
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let unanswered =
            timeout(Duration::from_secs(20), place.send(request())).await.expect("it is told").err().unwrap();
        assert!(unanswered.lost && shared.is_closed());
    }
}
