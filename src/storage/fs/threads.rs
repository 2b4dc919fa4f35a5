//! Which threads may block: the runtime's own for short calls, its blocking pool's for the rest; and how the damage is
//! contained when a file system stops answering.
//!
//! A runtime thread that hangs in a system call stops more than its task: it may be the one that polls the sockets. So at
//! most one may hang: the process makes one [`Inline`] call at a time, sends all others to the pool meanwhile, and has a
//! watcher thread that makes another runtime thread take over. In the pool, each [`Gate`] admits a number of calls that
//! leaves threads for others, and calls that change files have a gate of their own, so that they don't hold up reads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use crate::error::{Error, Result};

/// How many calls of one kind block in the pool at a time. Tokio's pool has 512 threads.
const BLOCKING: usize = 128;
/// How many lists do: each holds a thread until it was read to its end.
const LISTS: usize = 32;
/// How often the watcher looks. A call that it sees twice takes too long.
const TICK: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 100 });
/// After how many ticks without such a call inline calls are resumed …
const RESUME_AFTER: u32 = 50;
/// … and after how many without any call the watcher exits.
const STOP_AFTER: u32 = 50;

/// Limits the calls of a root that block in the pool.
#[derive(Debug)]
pub(super) struct Gates {
    /// Calls that change something: on a frozen file system these hang while reads don't.
    pub(super) changes: Gate,
    pub(super) reads: Gate,
    pub(super) lists: Gate,
}

/// Admits a limited number of calls at a time; others wait for their turn. Dropping a future cancels a call that still
/// waits; one that has begun continues.
#[derive(Clone, Debug)]
pub(super) struct Gate(Arc<Semaphore>);

impl Gates {
    pub(super) fn new() -> Self {
        let gate = |calls| Gate(Arc::new(Semaphore::new(calls)));
        Self { changes: gate(BLOCKING), reads: gate(BLOCKING), lists: gate(LISTS) }
    }
}

impl Gate {
    /// Starts a call in the pool, without waiting for its end.
    pub(super) async fn begin<T: Send + 'static>(
        &self,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>> {
        let start = |permit: OwnedSemaphorePermit| {
            tokio::task::spawn_blocking(move || {
                // Held as long as the thread is, even if the caller no longer waits.
                let _permit = permit;
                run()
            })
        };
        if let Ok(permit) = Arc::clone(&self.0).try_acquire_owned() {
            return Ok(start(permit));
        }
        // The turn is awaited by a task: a future that nobody polls for a while would get its permit and hold up the others.
        let turn = Arc::clone(&self.0).acquire_owned();
        let waiting = tokio::spawn(async move { turn.await.map(start) });
        AbortOnDropHandle::new(waiting).await.map_err(Error::storage)?.map_err(Error::storage)
    }

    /// Runs a call in the pool to its end.
    pub(super) async fn run<T: Send + 'static>(&self, run: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        self.begin(run).await?.await.map_err(Error::storage)
    }
}

/// Limits the calls that block on a runtime's own threads.
#[derive(Debug)]
pub(super) struct Inline {
    busy: AtomicBool,
    /// How many calls were made.
    calls: AtomicU64,
    /// A call took too long, so that none is admitted for a while.
    suspended: AtomicBool,
    /// The watcher thread runs.
    watched: AtomicBool,
    /// The runtime of the last call.
    runtime: Mutex<Option<Handle>>,
}

/// The one of this process.
pub(super) static INLINE: Inline = Inline::new();

/// Allows the current runtime thread to block briefly.
#[derive(Debug)]
pub(super) struct InlinePermit(&'static Inline);

impl Inline {
    const fn new() -> Self {
        Self {
            busy: AtomicBool::new(false),
            calls: AtomicU64::new(0),
            suspended: AtomicBool::new(false),
            watched: AtomicBool::new(false),
            runtime: Mutex::new(None),
        }
    }

    /// `None` if a call is running, or one took too long a short while ago, or the runtime has no other thread.
    pub(super) fn try_enter(&'static self) -> Option<InlinePermit> {
        if self.suspended.load(SeqCst) || self.busy.load(SeqCst) {
            return None;
        }
        let runtime = Handle::try_current().ok()?;
        if runtime.runtime_flavor() != RuntimeFlavor::MultiThread || runtime.metrics().num_workers() < 2 {
            return None;
        }
        if self.busy.swap(true, SeqCst) {
            return None;
        }
        let permit = InlinePermit(self);
        {
            let mut slot = self.runtime();
            *slot = Some(runtime);
            self.calls.fetch_add(1, SeqCst);
        }
        if !self.watched.load(SeqCst) && !self.watched.swap(true, SeqCst) {
            let watcher = std::thread::Builder::new().name("httpfstream-watch".to_owned());
            if watcher.spawn(|| self.watch()).is_err() {
                self.watched.store(false, SeqCst);
                return None;
            }
        }
        Some(permit)
    }

    fn runtime(&self) -> MutexGuard<'_, Option<Handle>> {
        self.runtime.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn watch(&self) {
        let mut seen = (false, 0);
        let (mut idle, mut good) = (0, 0);
        loop {
            std::thread::sleep(TICK);
            let (busy, calls) = (self.busy.load(SeqCst), self.calls.load(SeqCst));
            let stuck = busy && seen == (true, calls);
            idle = if seen == (false, calls) { idle + 1 } else { 0 };
            good = if stuck { 0 } else { good + 1 };
            seen = (busy, calls);
            if stuck {
                // Spawning from outside the runtime wakes one of its threads, which then polls sockets and timers.
                if let Some(runtime) = &*self.runtime() {
                    runtime.spawn(async {});
                }
                // Logged last, because the log may be on the same disk.
                if !self.suspended.swap(true, SeqCst) {
                    tracing::warn!("a file system takes long for a small call; further calls run in the blocking pool");
                }
            } else if good >= RESUME_AFTER {
                self.suspended.store(false, SeqCst);
            }
            if idle >= STOP_AFTER && !self.suspended.load(SeqCst) {
                // `try_enter` counts its call under this lock, then checks `watched`: either the count has changed here, or
                // that call starts a new watcher.
                let mut runtime = self.runtime();
                if self.calls.load(SeqCst) == calls {
                    self.watched.store(false, SeqCst);
                    runtime.take();
                    return;
                }
            }
        }
    }
}

impl Drop for InlinePermit {
    fn drop(&mut self) {
        self.0.busy.store(false, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::io::{Read, Write};
    use std::sync::mpsc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn runtime(threads: usize) -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap()
    }

    fn inline() -> &'static Inline {
        Box::leak(Box::new(Inline::new()))
    }

    #[test]
    fn fault_34_a_call_that_hangs_on_a_runtime_thread_holds_up_no_other_task() {
        let inline = inline();
        let runtime = runtime(2);
        // Only the runtime's threads poll the sockets here.
        let (send, port) = mpsc::channel();
        let (hang, hung) = mpsc::channel();
        let (thaw, thawed) = mpsc::channel::<()>();
        let (served, done) = mpsc::channel();
        runtime.spawn(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            send.send(listener.local_addr().unwrap()).unwrap();
            let (mut first, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                for _ in 0..3 {
                    let (mut socket, _) = listener.accept().await.unwrap();
                    let byte = socket.read_u8().await.unwrap();
                    socket.write_u8(byte).await.unwrap();
                }
                served.send(()).unwrap();
            });
            // By now the other thread sleeps, and the one that runs this task polls the sockets.
            for _ in 0..200 {
                let byte = first.read_u8().await.unwrap();
                first.write_u8(byte).await.unwrap();
            }
            first.read_u8().await.unwrap();
            let permit = inline.try_enter().expect("no other call runs");
            hang.send(()).unwrap();
            thawed.recv().unwrap();
            drop(permit);
        });
        let addr = port.recv().unwrap();
        let connect = || {
            let socket = std::net::TcpStream::connect(addr).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            socket
        };
        let mut first = connect();
        for _ in 0..200 {
            first.write_all(b"x").unwrap();
            first.read_exact(&mut [0]).unwrap();
        }
        first.write_all(b"x").unwrap();
        hung.recv().unwrap();
        for _ in 0..3 {
            let mut socket = connect();
            socket.write_all(b"x").unwrap();
            socket.read_exact(&mut [0]).unwrap();
        }
        done.recv().unwrap();
        assert!(runtime.block_on(async { inline.try_enter() }).is_none(), "a second thread would hang");
        thaw.send(()).unwrap();
        // Inline calls are resumed after a while without a slow one.
        while inline.suspended.load(SeqCst) {
            std::thread::yield_now();
        }
        while runtime.block_on(async { inline.try_enter() }).is_none() {}
        // The watcher exits, and keeps nothing.
        while inline.watched.load(SeqCst) {
            std::thread::yield_now();
        }
        assert!(inline.runtime().is_none());
    }

    #[test]
    fn without_another_runtime_thread_no_call_is_inline() {
        let inline = inline();
        assert!(inline.try_enter().is_none(), "without a runtime");
        assert!(runtime(1).block_on(async { inline.try_enter() }).is_none());
        let current = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert!(current.block_on(async { inline.try_enter() }).is_none());
        let runtime = runtime(2);
        let permit = runtime.block_on(async { inline.try_enter() });
        assert!(permit.is_some() && runtime.block_on(async { inline.try_enter() }).is_none());
        drop(permit);
        assert!(runtime.block_on(async { inline.try_enter() }).is_some());
    }

    #[tokio::test]
    async fn fault_34_calls_that_hang_leave_threads_for_others() {
        let gates = Gates::new();
        let (_thaw, frozen) = std::sync::mpsc::channel::<()>();
        let frozen = Arc::new(Mutex::new(frozen));
        let hang = || {
            let frozen = Arc::clone(&frozen);
            move || drop(frozen.lock().map(|frozen| frozen.recv()))
        };
        // Like calls that timed out: nothing waits for them.
        for _ in 0..BLOCKING {
            drop(gates.changes.begin(hang()).await.unwrap());
        }
        let mut late = std::pin::pin!(gates.changes.run(hang()));
        let waits = std::future::poll_fn(|cx| std::task::Poll::Ready(late.as_mut().poll(cx).is_pending())).await;
        assert!(waits);
        assert_eq!(gates.changes.0.available_permits(), 0);
        assert_eq!(gates.reads.run(|| 1).await.unwrap(), 1);
        assert_eq!(tokio::task::spawn_blocking(|| 2).await.unwrap(), 2);
        drop(_thaw);
        late.await.unwrap();
    }

    #[tokio::test]
    async fn a_call_that_nobody_polls_does_not_keep_its_turn() {
        let gates = Gates::new();
        let (thaw, frozen) = std::sync::mpsc::channel::<()>();
        let frozen = Arc::new(Mutex::new(frozen));
        for _ in 0..BLOCKING {
            let frozen = Arc::clone(&frozen);
            drop(gates.reads.begin(move || drop(frozen.lock().map(|frozen| frozen.recv()))).await.unwrap());
        }
        let mut unpolled = std::pin::pin!(gates.reads.run(|| 1));
        let waits = std::future::poll_fn(|cx| std::task::Poll::Ready(unpolled.as_mut().poll(cx).is_pending())).await;
        assert!(waits);
        drop(thaw);
        let all = tokio::time::timeout(Duration::from_secs(30), gates.reads.0.acquire_many(BLOCKING as u32)).await;
        drop(all.expect("all permits come back").unwrap());
        assert_eq!(unpolled.await.unwrap(), 1);
    }
}
