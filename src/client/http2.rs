//! An HTTP/2 connection shared by many streams, each of them a WebSocket (RFC 8441).

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

/// The flow-control window of a stream: how much the server may send ahead of its reader, in bytes.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// The flow-control window of the connection, in bytes: the largest that is allowed (RFC 9113 section 6.9.1).
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// The most streams of one connection. All their windows together are less than half of the connection's, which h2
/// refills once half of it is used: no stream ever waits for the connection's window, and readers that take nothing
/// can't starve the others.
const MAX_STREAMS: usize = 1000;
const _: () = assert!(MAX_STREAMS * (STREAM_WINDOW as usize) < CONNECTION_WINDOW as usize / 2);

/// How long a connection lives on after its last stream, to send what is buffered.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection, which closes after its last stream.
pub(super) struct SharedConnection {
    sender: SendRequest<Empty<Bytes>>,
    /// The number of slots taken.
    open_streams: AtomicUsize,
    /// The server's `MAX_CONCURRENT_STREAMS`.
    max_streams: Arc<AtomicUsize>,
    used: AtomicBool,
    /// No more streams are opened on it.
    retired: AtomicBool,
    /// Tells the connection's task that nobody uses it any more.
    _unused: DropGuard,
}

/// The right to one stream of a connection. Dropping it frees the slot.
pub(super) struct StreamSlot {
    connection: Arc<SharedConnection>,
    /// This is the first stream, on a connection that is fresh.
    pub(super) is_first: bool,
}

/// A request without a response.
pub(super) struct RequestFailed {
    pub(super) error: hyper::Error,
    /// The connection failed, not only this stream.
    pub(super) connection_lost: bool,
    /// The server has certainly not processed the request.
    pub(super) unprocessed: bool,
    /// The server asks for HTTP/1.1 instead (`HTTP_1_1_REQUIRED`, RFC 9113 section 7).
    pub(super) http1_required: bool,
}

/// Starts HTTP/2 and waits for the server's settings. `None` if they don't allow extended CONNECT.
pub(super) async fn handshake<IO>(io: IO, silence: Duration) -> Result<Option<Arc<SharedConnection>>>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let tasks = Tasks::default();
    // Dropped if this attempt is, later with the last stream.
    let unused = tasks.unused.clone().drop_guard();
    let (sender, settings) = oneshot::channel();
    let io = TokioIo::new(SettingsWatch { io, frame_len: Vec::with_capacity(3), read: 0, sender: Some(sender) });
    // Twice as often as the streams' own pings, so that a dead connection is found first. Otherwise streams that time out
    // would reconnect over it.
    let (sender, connection) = Builder::new(tasks.clone())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEAD as u32)
        .keep_alive_interval(silence / 6)
        .keep_alive_timeout(silence / 6)
        .handshake(io)
        .await
        .map_err(handshake_error)?;
    // Extended CONNECT may be used only after the settings have allowed it (RFC 8441 section 3).
    if settings.await.is_err() {
        tasks.abort.cancel();
        return Err(match connection.await {
            Err(error) => handshake_error(error),
            Ok(()) => Error::new(ErrorKind::Connection).with_detail("the server ended the connection at once"),
        });
    }
    let max_streams = Arc::new(AtomicUsize::new(connection.current_max_send_streams()));
    if !connection.is_extended_connect_protocol_enabled() || max_streams.load(Ordering::Relaxed) == 0 {
        return Ok(None);
    }
    let shared = SharedConnection {
        sender,
        open_streams: AtomicUsize::new(0),
        max_streams: Arc::clone(&max_streams),
        used: AtomicBool::new(false),
        retired: AtomicBool::new(false),
        _unused: unused,
    };
    tokio::spawn(async move {
        {
            // Owned by the future, so that it is dropped as soon as it ends: a request that is sent at that moment would
            // otherwise wait in its queue forever.
            let connection = async move {
                let mut connection = pin!(connection);
                poll_fn(|cx| {
                    max_streams.store(connection.current_max_send_streams(), Ordering::Relaxed);
                    connection.as_mut().poll(cx)
                })
                .await
            };
            tokio::select! {
                // After a GOAWAY the open streams may still end in good order. An error reaches each stream by itself.
                _ = connection => tasks.unused.cancelled().await,
                () = tasks.unused.cancelled() => {}
            }
        }
        tasks.tracker.close();
        let _ = timeout(DRAIN_TIMEOUT, tasks.tracker.wait()).await;
        tasks.abort.cancel();
    });
    Ok(Some(Arc::new(shared)))
}

/// The error of the HTTP/2 handshake: the server speaks something else, or the connection broke.
fn handshake_error(error: hyper::Error) -> Error {
    let broken = cause(&error).is_none_or(|error| error.is_io());
    let (kind, detail) = match broken {
        true => (ErrorKind::Connection, "the connection broke before HTTP/2 was set up"),
        false => (ErrorKind::Protocol, "the server doesn't speak HTTP/2"),
    };
    Error::new(kind).with_detail(detail).with_source(error)
}

/// The h2 error beneath hyper's.
pub(super) fn cause(error: &hyper::Error) -> Option<&h2::Error> {
    std::error::Error::source(error)?.downcast_ref()
}

impl SharedConnection {
    /// Whether no new streams can be opened.
    pub(super) fn is_closed(&self) -> bool {
        self.retired.load(Ordering::Relaxed) || self.sender.is_closed()
    }

    /// Takes a slot for one more stream, if there is one.
    pub(super) fn slot(self: &Arc<Self>) -> Option<StreamSlot> {
        let most = self.max_streams.load(Ordering::Relaxed).min(MAX_STREAMS);
        let taken = self
            .open_streams
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| (open < most).then_some(open + 1));
        taken.ok()?;
        let is_first = !self.used.swap(true, Ordering::Relaxed);
        Some(StreamSlot { connection: Arc::clone(self), is_first })
    }
}

impl StreamSlot {
    /// Sends the request. Dropping the future cancels it.
    pub(super) async fn send(&self, request: Request<Empty<Bytes>>) -> Result<Response<Incoming>, RequestFailed> {
        let mut sender = self.connection.sender.clone();
        let failed = match sender.try_send_request(request).await {
            Ok(response) => return Ok(response),
            Err(failed) => failed,
        };
        let unsent = failed.message().is_some();
        let error = failed.into_error();
        let remote = cause(&error).filter(|error| error.is_remote());
        let reset = remote.filter(|error| error.is_reset()).and_then(h2::Error::reason);
        let connection_lost = reset.is_none();
        if connection_lost {
            self.retire();
        }
        let go_away = remote.is_some_and(h2::Error::is_go_away);
        let unprocessed = unsent || go_away || reset == Some(h2::Reason::REFUSED_STREAM);
        let http1_required = reset == Some(h2::Reason::HTTP_1_1_REQUIRED);
        Err(RequestFailed { error, connection_lost, unprocessed, http1_required })
    }

    /// Opens no more streams on this connection.
    pub(super) fn retire(&self) {
        self.connection.retired.store(true, Ordering::Relaxed);
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        self.connection.open_streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for StreamSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamSlot").finish_non_exhaustive()
    }
}

/// Runs the tasks that hyper spawns, so that none of them outlasts the connection.
#[derive(Clone, Default)]
struct Tasks {
    tracker: TaskTracker,
    /// The last slot was dropped, and nobody holds the connection.
    unused: CancellationToken,
    /// Drops the tasks that still run, and the socket with them.
    abort: CancellationToken,
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.tracker.spawn(self.abort.clone().run_until_cancelled_owned(task));
    }
}

/// Signals that h2 has processed the server's settings, which hyper doesn't report. They are the first frame (RFC 9113
/// section 3.4).
struct SettingsWatch<IO> {
    io: IO,
    /// The bytes of the first frame's length that were read: three, once complete.
    frame_len: Vec<u8>,
    /// How many bytes were read.
    read: usize,
    /// Taken once the signal is sent.
    sender: Option<oneshot::Sender<()>>,
}

impl<IO> SettingsWatch<IO> {
    fn has_first_frame(&self) -> bool {
        const FRAME_HEADER_LEN: usize = 9;
        matches!(self.frame_len[..], [a, b, c] if self.read >= FRAME_HEADER_LEN + u32::from_be_bytes([0, a, b, c]) as usize)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for SettingsWatch<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.sender.is_none() {
            return Pin::new(&mut this.io).poll_read(cx, buf);
        }
        // h2 reads more only after it has processed every complete frame.
        if this.has_first_frame()
            && let Some(sender) = this.sender.take()
        {
            let _ = sender.send(());
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let fresh = &buf.filled()[before..];
        this.frame_len.extend(fresh.iter().take(3 - this.frame_len.len()));
        this.read += fresh.len();
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for SettingsWatch<IO> {
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
    async fn a_request_after_the_end_of_the_connection_fails_at_once() {
        let (ours, theirs) = duplex(64 * 1024);
        let service = hyper::service::service_fn(async |_: Request<Incoming>| {
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        });
        let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        server.enable_connect_protocol();
        let server = tokio::spawn(server.serve_connection(TokioIo::new(theirs), service));
        let shared = handshake(ours, Duration::from_secs(600)).await.unwrap().expect("the server allows WebSockets");
        // The other slot keeps the connection's task alive.
        let (_other, slot) = (shared.slot().unwrap(), shared.slot().unwrap());
        let request = || Request::get("http://localhost/").body(Empty::new()).unwrap();
        assert!(slot.send(request()).await.is_ok());
        server.abort();
        assert!(server.await.is_err());
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let failed = timeout(Duration::from_secs(20), slot.send(request())).await.expect("it fails").err().unwrap();
        assert!(failed.connection_lost && shared.is_closed());
    }
}
