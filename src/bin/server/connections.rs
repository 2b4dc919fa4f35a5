//! The limits on the number of connections and on their idle time.

use std::io::{self, IoSlice, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// File descriptors reserved for the listener, the storage and reads.
const RESERVE: u64 = 64;
/// The maximum number of appends, however many descriptors there are.
const MAX_APPENDS: u64 = 10_000;
/// How many refused connections are drained at a time, so that the client sees the answer.
const MAX_DRAINING: usize = 32;
/// How long each of them is drained.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection may be idle between two requests, in multiples of the time limit for a head. (Over HTTP/1.1
/// hyper allows no more than that limit.)
const IDLE_FACTOR: u32 = 4;

const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    content-type: application/problem+json\r\n\
    content-length: 153\r\n\
    cache-control: no-store\r\n\
    retry-after: 5\r\n\
    connection: close\r\n\r\n\
    {\"type\":\"urn:httpfstream:problem:overloaded\",\"title\":\"Service Unavailable\",\"status\":503,\
    \"detail\":\"too many connections to this server: try again later\"}\n";

/// The division of the process's file descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shares {
    pub(crate) connections: usize,
    pub(crate) appends: usize,
}

impl Shares {
    /// Half of the descriptors are for connections, unless their number is given. Two thirds of the rest are for
    /// appends, each of which holds up to two besides its connection; the last third is for reads.
    pub(crate) fn of(descriptors: u64, connections: Option<usize>) -> Self {
        let usable = descriptors.saturating_sub(RESERVE).max(2);
        let connections = connections.unwrap_or(usize::try_from(usable / 2).unwrap_or(usize::MAX));
        let left = usable.saturating_sub(connections as u64);
        Self { connections, appends: (left / 3).clamp(1, MAX_APPENDS) as usize }
    }
}

/// Raises the limit of file descriptors to the hard limit, as Go's programs do, and returns it. The usual soft limit
/// (1,024) is so low only for programs that use `select`.
#[cfg(unix)]
pub(crate) fn raise_descriptors() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let limit = if setrlimit(Resource::Nofile, raised).is_ok() { raised } else { limit };
    limit.current.unwrap_or(u64::MAX)
}

#[cfg(not(unix))]
pub(crate) fn raise_descriptors() -> u64 {
    u64::MAX
}

/// Limits the number of connections.
#[derive(Debug, Clone)]
pub(crate) struct Connections {
    admitted: Arc<Semaphore>,
    draining: Arc<Semaphore>,
}

impl Connections {
    pub(crate) fn new(max: usize) -> Self {
        let semaphore = |max: usize| Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS)));
        Self { admitted: semaphore(max), draining: semaphore(MAX_DRAINING) }
    }

    /// Admits a connection, or answers it with 503 and closes it.
    pub(crate) fn admit(&self, stream: TcpStream) -> Option<Counted> {
        match Arc::clone(&self.admitted).try_acquire_owned() {
            Ok(counted) => return Some(Counted { stream, _counted: counted }),
            Err(_) => tracing::debug!("refusing a connection: the limit is reached"),
        }
        match Arc::clone(&self.draining).try_acquire_owned() {
            Ok(counted) => {
                tokio::spawn(tokio::time::timeout(DRAIN_TIMEOUT, refuse(stream, counted)));
            }
            // Too many at once: a client whose request has arrived already may miss the answer.
            Err(_) => {
                let _ = stream.into_std().and_then(|mut stream| stream.write(REFUSAL));
            }
        }
        None
    }
}

/// Sends the refusal, and drains the connection: closing a socket with unread data would reset it, which destroys what
/// was written.
async fn refuse(mut stream: TcpStream, _counted: OwnedSemaphorePermit) -> io::Result<()> {
    stream.write_all(REFUSAL).await?;
    stream.shutdown().await?;
    let mut sink = [0; 1024];
    while stream.read(&mut sink).await? > 0 {}
    Ok(())
}

/// A connection that is counted until its socket is closed, also after an upgrade.
#[derive(Debug)]
pub(crate) struct Counted {
    stream: TcpStream,
    _counted: OwnedSemaphorePermit,
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The active requests of one connection.
#[derive(Debug, Clone)]
pub(crate) struct Requests(watch::Sender<usize>);

impl Requests {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(0))
    }

    /// Counts a request until the guard is dropped.
    pub(crate) fn begin(&self) -> Answering {
        self.0.send_modify(|answering| *answering += 1);
        Answering(self.0.clone())
    }

    /// Returns once the connection was idle for too long: for the time limit of a head before the first request, and
    /// for [`IDLE_FACTOR`] times as long after a request.
    ///
    /// hyper by itself waits for ever for the first byte, for the rest of an HTTP/2 preface, for the settings, and for
    /// the next request over HTTP/2.
    pub(crate) async fn idle(&self, head: Duration) {
        let mut answering = self.0.subscribe();
        let mut limit = head;
        loop {
            let is_idle = *answering.borrow_and_update() == 0;
            let limit_now = if is_idle { limit } else { Duration::MAX };
            match tokio::time::timeout(limit_now, answering.changed()).await {
                Ok(_) => limit = head.saturating_mul(IDLE_FACTOR),
                Err(_) => return,
            }
        }
    }
}

/// The guard of an active request.
#[derive(Debug)]
pub(crate) struct Answering(watch::Sender<usize>);

impl Answering {
    /// Keeps the request active until the connection ends.
    pub(crate) fn forever(self) {
        // Incremented twice, and decremented only once when dropped.
        self.0.send_modify(|answering| *answering += 1);
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.send_modify(|answering| *answering -= 1);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn fault_38_descriptors_are_divided() {
        assert_eq!(Shares::of(1_048_576, None), Shares { connections: 524_256, appends: 10_000 });
        assert_eq!(Shares::of(1_024, None), Shares { connections: 480, appends: 160 });
        assert_eq!(Shares::of(1_024, Some(100)), Shares { connections: 100, appends: 286 });
        assert_eq!(Shares::of(1_024, Some(5_000)), Shares { connections: 5_000, appends: 1 });
        assert_eq!(Shares::of(10, None), Shares { connections: 1, appends: 1 });
        assert_eq!(Shares::of(u64::MAX, None).appends, 10_000);
        for descriptors in [200, 1_024, 65_536] {
            let Shares { connections, appends } = Shares::of(descriptors, None);
            assert!(connections as u64 + 2 * appends as u64 + RESERVE <= descriptors);
        }
    }

    #[test]
    fn fault_43_the_raw_refusal_has_its_content_length() {
        let text = std::str::from_utf8(REFUSAL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{}", body.len());
        serde_json::from_str::<serde_json::Value>(body).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn fault_16_only_idle_connections_time_out() {
        let head = Duration::from_secs(30);
        let began = tokio::time::Instant::now();
        let requests = Requests::new();
        requests.idle(head).await;
        assert_eq!(began.elapsed(), head, "no request at all");
        let began = tokio::time::Instant::now();
        let using = async {
            drop(requests.begin());
            for _ in 0..3 {
                tokio::time::sleep(head * 3).await;
                let (one, two) = (requests.begin(), requests.begin());
                tokio::time::sleep(head * 100).await;
                drop((one, two));
            }
            // A request that begins and ends before the watcher runs.
            tokio::time::sleep(head * 3).await;
            drop(requests.begin());
            began.elapsed()
        };
        let ((), ended) = tokio::join!(requests.idle(head), using);
        assert_eq!(began.elapsed() - ended, head * IDLE_FACTOR);
        requests.begin().forever();
        let for_ever = Duration::from_secs(1 << 30);
        assert!(tokio::time::timeout(for_ever, requests.idle(head)).await.is_err());
    }
}
