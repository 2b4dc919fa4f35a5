//! On which threads a call blocks: the runtime's own for what is short, its blocking pool's for the rest; and what there is
//! against file systems that stop answering.
//!
//! A thread of the runtime that hangs in a system call takes more with it than its task: often nobody else is left who
//! polls the sockets. So no more than one thread hangs: there is one [`Inline`] call at a time in the process, all others
//! go to the pool meanwhile, and a watcher sees to it that another thread of the runtime takes over. In the pool each
//! [`Gate`] lets in a number of calls that leaves threads for others, and those that change files hold up none that read.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::error::{Error, Result};

/// How many calls of a kind block in the pool at a time. Tokio's pool has 512 threads.
const BLOCKING: usize = 128;
/// As many lists: each holds a thread until it has been taken.
const LISTS: usize = 32;
/// How often the watcher looks. A call that it sees twice has taken too long.
const TICK: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 100 });
/// How many looks without one that takes too long before others are made inline again …
const RESUME_AFTER: u32 = 50;
/// … and before the watcher goes, with none at all.
const STOP_AFTER: u32 = 50;

/// The calls of a root that block in the pool. Dropping the future of one that waits leaves it undone; one that has begun
/// goes on.
#[derive(Debug)]
pub(super) struct Gates {
    /// Calls that change something, and may hang where reading does not: a file system that is frozen.
    pub(super) changes: Gate,
    pub(super) reads: Gate,
    pub(super) lists: Gate,
}

/// Lets in some calls at a time. The others wait for their turn.
#[derive(Clone, Debug)]
pub(super) struct Gate(Arc<Semaphore>);

impl Gates {
    pub(super) fn new() -> Self {
        let gate = |calls| Gate(Arc::new(Semaphore::new(calls)));
        Self { changes: gate(BLOCKING), reads: gate(BLOCKING), lists: gate(LISTS) }
    }
}

impl Gate {
    /// Begins a call that blocks in the pool.
    pub(super) async fn begin<T: Send + 'static>(
        &self,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>> {
        let permit = Arc::clone(&self.0).acquire_owned().await.map_err(Error::storage)?;
        Ok(tokio::task::spawn_blocking(move || {
            // Also where nobody waits any more, it is held as long as the thread is.
            let _permit = permit;
            run()
        }))
    }

    /// Blocks in the pool.
    pub(super) async fn run<T: Send + 'static>(&self, run: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        self.begin(run).await?.await.map_err(Error::storage)
    }
}

/// The calls that block on the threads of a runtime.
#[derive(Debug)]
pub(super) struct Inline {
    busy: AtomicBool,
    /// Counts the calls.
    calls: AtomicU64,
    /// One took too long: none for a while.
    suspended: AtomicBool,
    /// A thread watches.
    watched: AtomicBool,
    /// Where the call is.
    runtime: Mutex<Option<Handle>>,
}

/// That of this process.
pub(super) static INLINE: Inline = Inline::new();

/// The right to block here and now, but not for long.
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

    /// `None` where a call might hold up too much: one is being made, or took too long a short while ago, or the runtime
    /// has no other thread.
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
        let here = InlinePermit(self);
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
        Some(here)
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
            let hangs = busy && seen == (true, calls);
            idle = if seen == (false, calls) { idle + 1 } else { 0 };
            good = if hangs { 0 } else { good + 1 };
            seen = (busy, calls);
            if hangs {
                // A task that came from elsewhere wakes a thread, which then polls the sockets and the timers.
                if let Some(runtime) = &*self.runtime() {
                    runtime.spawn(async {});
                }
                // After that: the log may be on the same disk.
                if !self.suspended.swap(true, SeqCst) {
                    tracing::warn!("a file system takes long to write a little; the runtime goes on without it");
                }
            } else if good >= RESUME_AFTER {
                self.suspended.store(false, SeqCst);
            }
            if idle >= STOP_AFTER && !self.suspended.load(SeqCst) {
                // Whoever comes takes the same lock before it looks whether somebody watches.
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
    fn fault_34_a_call_that_hangs_on_a_thread_of_the_runtime_holds_up_nobody_else() {
        let inline = inline();
        let runtime = runtime(2);
        // Nobody but the runtime's threads polls the sockets here.
        let (send, port) = mpsc::channel();
        let (hangs, hung) = mpsc::channel();
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
            // Until the other thread sleeps: now whoever runs this is the one that polls the sockets.
            for _ in 0..200 {
                let byte = first.read_u8().await.unwrap();
                first.write_u8(byte).await.unwrap();
            }
            first.read_u8().await.unwrap();
            let here = inline.try_enter().expect("nobody else is here");
            hangs.send(()).unwrap();
            thawed.recv().unwrap();
            drop(here);
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
        // It is tried again once all has been well for a while.
        while inline.suspended.load(SeqCst) {
            std::thread::yield_now();
        }
        while runtime.block_on(async { inline.try_enter() }).is_none() {}
        // And nothing stays behind.
        while inline.watched.load(SeqCst) {
            std::thread::yield_now();
        }
        assert!(inline.runtime().is_none());
    }

    #[test]
    fn where_nobody_could_take_over_nothing_is_inline() {
        let inline = inline();
        assert!(inline.try_enter().is_none(), "without a runtime");
        assert!(runtime(1).block_on(async { inline.try_enter() }).is_none());
        let current = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert!(current.block_on(async { inline.try_enter() }).is_none());
        let runtime = runtime(2);
        let here = runtime.block_on(async { inline.try_enter() });
        assert!(here.is_some() && runtime.block_on(async { inline.try_enter() }).is_none());
        drop(here);
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
        // As those that time out: nobody waits for them.
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
}
