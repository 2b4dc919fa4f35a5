//! How many connections there may be, and for how long each may say nothing.

use std::io::{self, IoSlice, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// File descriptors that neither connections nor appends get: the listener, the storage, reads.
const RESERVE: u64 = 64;
/// How many resources may be appended to at most, however many descriptors there are.
const MOST_APPENDS: u64 = 10_000;
/// How many of those that are turned away are heard out.
const HEARD_OUT: usize = 32;
/// How long.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many times longer than a head may take a connection may be idle between two requests. (Over HTTP/1.1 hyper allows
/// no more than for a head.)
const IDLE: u32 = 4;

const TURNED_AWAY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    content-type: application/problem+json\r\n\
    content-length: 153\r\n\
    cache-control: no-store\r\n\
    retry-after: 5\r\n\
    connection: close\r\n\r\n\
    {\"type\":\"urn:httpfstream:problem:overloaded\",\"title\":\"Service Unavailable\",\"status\":503,\
    \"detail\":\"too many connections to this server: try again later\"}\n";

/// How the process's file descriptors are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shares {
    pub(crate) connections: usize,
    pub(crate) appends: usize,
}

impl Shares {
    /// Half of them are for connections, unless that was said. An append holds up to two besides; a third of what is left
    /// after these is for reads.
    pub(crate) fn of(descriptors: u64, connections: Option<usize>) -> Self {
        let usable = descriptors.saturating_sub(RESERVE).max(2);
        let connections = connections.unwrap_or(usize::try_from(usable / 2).unwrap_or(usize::MAX));
        let left = usable.saturating_sub(connections as u64);
        Self { connections, appends: (left / 3).clamp(1, MOST_APPENDS) as usize }
    }
}

/// Raises the limit of file descriptors as far as that is allowed, as Go's programs do, and says where it is. The usual
/// one (1,024) is that low only for programs that use `select`.
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

/// Counts connections.
#[derive(Debug, Clone)]
pub(crate) struct Connections {
    room: Arc<Semaphore>,
    heard_out: Arc<Semaphore>,
}

impl Connections {
    pub(crate) fn new(most: usize) -> Self {
        let semaphore = |most: usize| Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        Self { room: semaphore(most), heard_out: semaphore(HEARD_OUT) }
    }

    /// One more, if there is room. Else it is told so, and closed.
    pub(crate) fn admit(&self, stream: TcpStream) -> Option<Counted> {
        match Arc::clone(&self.room).try_acquire_owned() {
            Ok(counted) => return Some(Counted { stream, _counted: counted }),
            Err(_) => tracing::debug!("a connection is turned away"),
        }
        match Arc::clone(&self.heard_out).try_acquire_owned() {
            Ok(counted) => {
                tokio::spawn(tokio::time::timeout(PATIENCE, turn_away(stream, counted)));
            }
            // Too many at once: those whose request is here already may miss the answer.
            Err(_) => {
                let _ = stream.into_std().and_then(|mut stream| stream.write(TURNED_AWAY));
            }
        }
        None
    }
}

/// Closing a socket with something unread in it would be a reset, which destroys what was written.
async fn turn_away(mut stream: TcpStream, _counted: OwnedSemaphorePermit) -> io::Result<()> {
    stream.write_all(TURNED_AWAY).await?;
    stream.shutdown().await?;
    let mut sink = [0; 1024];
    while stream.read(&mut sink).await? > 0 {}
    Ok(())
}

/// A connection, counted until its socket is closed: after an upgrade too.
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

/// The requests of one connection that are being answered.
#[derive(Debug, Clone)]
pub(crate) struct Requests(watch::Sender<usize>);

impl Requests {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(0))
    }

    /// One more, until this is dropped.
    pub(crate) fn begin(&self) -> Answering {
        self.0.send_modify(|answering| *answering += 1);
        Answering(self.0.clone())
    }

    /// Returns once the connection has been idle for too long: without a request for as long as a head may take, and
    /// without another one for somewhat longer.
    ///
    /// hyper alone waits for ever for a first byte, for the rest of what may become HTTP/2, for its settings, and for
    /// the next request over it.
    pub(crate) async fn idle(&self, head: Duration) {
        let mut answering = self.0.subscribe();
        let mut limit = head;
        loop {
            let none = *answering.borrow_and_update() == 0;
            let limit_now = if none { limit } else { Duration::MAX };
            match tokio::time::timeout(limit_now, answering.changed()).await {
                Ok(_) => limit = head.saturating_mul(IDLE),
                Err(_) => return,
            }
        }
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub(crate) struct Answering(watch::Sender<usize>);

impl Answering {
    /// It is so to the connection's end.
    pub(crate) fn for_good(self) {
        // Given back only once.
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
    fn fault_38_descriptors_are_shared_out() {
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
    fn fault_43_the_raw_answer_is_as_long_as_it_says() {
        let text = std::str::from_utf8(TURNED_AWAY).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{}", body.len());
        serde_json::from_str::<serde_json::Value>(body).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn fault_16_only_idle_connections_are_idle() {
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
            // Begun and ended before anybody looks.
            tokio::time::sleep(head * 3).await;
            drop(requests.begin());
            began.elapsed()
        };
        let ((), ended) = tokio::join!(requests.idle(head), using);
        assert_eq!(began.elapsed() - ended, head * IDLE);
        requests.begin().for_good();
        let for_ever = Duration::from_secs(1 << 30);
        assert!(tokio::time::timeout(for_ever, requests.idle(head)).await.is_err());
    }
}
