//! Group commit: the queue of syncs that are waited for, and the few threads that serve it.
//!
//! Each open resource has at most one queued request; callers that arrive before it begins join it. So the queue is
//! bounded by the number of open resources. A request makes the data durable, then the record that says so, then answers.
//!
//! A short queue is served one request at a time by a few threads, so that no sync waits for another resource's large
//! file. A long one is served as a batch: one call (`syncfs`) makes all data durable and a second one all records. The
//! system reports a failure of such a call only once, and not for which file. From the first failure on, every file is
//! synced by itself, which reports its own.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::table::LeaseGuard;
use crate::error::{Error, ErrorKind, Result};

/// How many threads sync at a time.
const WORKERS: usize = 16;
/// The length from which the queue is served as a batch.
const BATCH_MIN: usize = 32;

/// How long the queue waits for the running batch to end, to become the next one. A batch that takes longer may wait for a
/// disk that hangs, or for data of other programs.
const BATCH_TIMEOUT: Duration = Duration::from_secs(1);

/// The durable length, for all callers that joined a request.
type SyncResult = Result<u64, Arc<Error>>;
/// Holds the result once there is one.
pub(super) type SyncReceiver = watch::Receiver<Option<SyncResult>>;

/// The syncs of a root.
#[derive(Debug)]
pub(super) struct Commits {
    queue: Mutex<Queue>,
    /// Notified when a batch has ended.
    batch_done: Condvar,
    /// How many syncs run now, queued ones and others.
    syncing: AtomicUsize,
}

#[derive(Debug)]
struct Queue {
    pending: VecDeque<Request>,
    /// Requests for files on another device than the root, which a batch doesn't sync.
    other_devices: VecDeque<Request>,
    workers: usize,
    can_sync_batches: bool,
    /// When the running batch began. There is at most one: of two calls, one might miss a failure that the system reports
    /// to the other.
    batch_since: Option<Instant>,
    /// A worker waits for the batch to end.
    worker_waits: bool,
}

impl Queue {
    fn is_batch(&self) -> bool {
        self.pending.len() >= BATCH_MIN && self.can_sync_batches
    }

    /// How much longer the queue waits to become the next batch, while one runs.
    fn batch_wait(&self) -> Option<Duration> {
        let since = self.batch_since.filter(|_| self.is_batch())?;
        BATCH_TIMEOUT.checked_sub(since.elapsed()).filter(|wait| !wait.is_zero())
    }
}

#[derive(Debug)]
struct Request {
    guard: Arc<LeaseGuard>,
    sender: watch::Sender<Option<SyncResult>>,
}

impl Commits {
    pub(super) fn new() -> Self {
        let queue = Queue {
            pending: VecDeque::new(),
            other_devices: VecDeque::new(),
            workers: 0,
            can_sync_batches: can_sync_batches(),
            batch_since: None,
            worker_waits: false,
        };
        Self { queue: Mutex::new(queue), batch_done: Condvar::new(), syncing: AtomicUsize::new(0) }
    }

    /// Whether a write may have to wait for a sync.
    pub(super) fn is_syncing(&self) -> bool {
        self.syncing.load(Ordering::Relaxed) > 0
    }

    /// Counts a running sync until the guard is dropped.
    pub(super) fn syncing(&self) -> impl Drop + '_ {
        struct Syncing<'a>(&'a AtomicUsize);
        impl Drop for Syncing<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.syncing.fetch_add(1, Ordering::Relaxed);
        Syncing(&self.syncing)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // No code that panics runs under this lock.
        self.queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Makes durable what is committed now, together with concurrent callers; returns the durable length.
pub(super) async fn sync(guard: Arc<LeaseGuard>) -> Result<u64> {
    let mut receiver = request(guard);
    let result = receiver.wait_for(Option::is_some).await.map_err(Error::storage)?;
    match &*result {
        Some(Ok(len)) => Ok(*len),
        Some(Err(failed)) => Err(Error::new(failed.kind()).with_source(Arc::clone(failed))),
        None => Err(ErrorKind::Storage.into()),
    }
}

/// Joins the resource's queued request, or queues one and sees to it that a worker serves it.
fn request(guard: Arc<LeaseGuard>) -> SyncReceiver {
    let commits = Arc::clone(&guard.lease.root.commits);
    let (sender, receiver) = watch::channel(None);
    {
        let mut next = guard.lease.next_sync();
        // A request without a sender is never answered: its runtime was stopped before it began.
        if let Some(next) = next.as_ref().filter(|next| next.has_changed().is_ok()) {
            return next.clone();
        }
        *next = Some(receiver.clone());
    }
    {
        let mut queue = commits.queue();
        let on_root_device = guard.lease.inode.0 == guard.lease.root.device;
        let pending = if on_root_device { &mut queue.pending } else { &mut queue.other_devices };
        pending.push_back(Request { guard, sender });
        if queue.workers == WORKERS || queue.worker_waits && on_root_device && queue.batch_wait().is_some() {
            return receiver;
        }
        queue.workers += 1;
    }
    let worker = Worker { commits, counted: true, runs_batch: false };
    tokio::task::spawn_blocking(move || worker.run());
    receiver
}

/// A thread that syncs. It holds no [`Root`](super::root::Root), so that once the last answer is sent nothing keeps the
/// root locked.
struct Worker {
    commits: Arc<Commits>,
    /// It is one of `Queue::workers`.
    counted: bool,
    runs_batch: bool,
}

impl Worker {
    /// Yields while the queue grows, up to a batch. With few cores, threads would otherwise serve the first requests one
    /// by one before there are enough for a batch. A single request never waits: to yield may cost milliseconds.
    fn gather(&self) {
        let mut seen = 1;
        loop {
            let pending = self.commits.queue().pending.len();
            if pending <= seen || pending >= BATCH_MIN {
                return;
            }
            seen = pending;
            std::thread::yield_now();
        }
    }

    fn run(mut self) {
        self.gather();
        loop {
            let mut queue = self.commits.queue();
            let batch_wait = queue.batch_wait();
            if queue.is_batch() && queue.batch_since.is_none() {
                (queue.batch_since, self.runs_batch) = (Some(Instant::now()), true);
                let requests = std::mem::take(&mut queue.pending);
                drop(queue);
                let _syncing = self.commits.syncing();
                let done = commit_batch(requests.into());
                let mut queue = self.commits.queue();
                queue.can_sync_batches &= done;
                (queue.batch_since, self.runs_batch) = (None, false);
                self.commits.batch_done.notify_all();
                continue;
            }
            let mut next = queue.other_devices.pop_front();
            if next.is_none() && batch_wait.is_none() {
                next = queue.pending.pop_front();
            }
            if let Some(request) = next {
                drop(queue);
                let _syncing = self.commits.syncing();
                let synced = request.guard.lease.sync();
                request.answer(synced);
            } else if let Some(batch_wait) = batch_wait.filter(|_| !queue.worker_waits) {
                // After the timeout the queue is served one by one.
                queue.worker_waits = true;
                let waited = self.commits.batch_done.wait_timeout(queue, batch_wait);
                waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0.worker_waits = false;
            } else {
                queue.workers -= 1;
                drop(queue);
                self.counted = false;
                return;
            }
        }
    }
}

impl Drop for Worker {
    /// Does something only if the runtime was stopped before `run`, or `run` panicked: without any worker left, queued
    /// requests would never be answered, so they are dropped.
    fn drop(&mut self) {
        if !self.counted {
            return;
        }
        let mut queue = self.commits.queue();
        queue.workers -= 1;
        if self.runs_batch {
            queue.batch_since = None;
            self.commits.batch_done.notify_all();
        }
        let last = queue.workers == 0;
        let unanswered = last.then(|| (std::mem::take(&mut queue.pending), std::mem::take(&mut queue.other_devices)));
        drop(queue);
        drop(unanswered);
    }
}

impl Request {
    /// Releases the resource, then answers, so that callers find it free.
    fn answer(self, synced: Result<u64>) {
        let Self { guard, sender } = self;
        drop(guard);
        // An error only means that no caller waits any more.
        let _ = sender.send(Some(synced.map_err(Arc::new)));
    }
}

/// Serves many requests with two calls, and returns whether both succeeded. If one fails, each file is synced by itself.
fn commit_batch(requests: Vec<Request>) -> bool {
    let Some(root) = requests.first().map(|request| Arc::clone(&request.guard.lease.root)) else { return true };
    let begun: Vec<_> = requests.into_iter().map(|request| (request.guard.lease.begin_sync(), request)).collect();
    let data = root.top.sync_file_system();
    let recorded: Vec<_> = begun
        .into_iter()
        .map(|(begun, request)| {
            let lease = &request.guard.lease;
            let recorded = begun.and_then(|pending| {
                let synced = if data.is_ok() { lease.data.synced_by_batch() } else { lease.sync_data(&pending) };
                lease.record_synced(pending, synced)
            });
            (recorded, request)
        })
        .collect();
    let records = data.and_then(|()| root.top.sync_file_system());
    if let Err(failed) = &records {
        let failed = failed as &dyn std::error::Error;
        tracing::warn!(
            error = failed,
            "a sync of the whole file system failed; each file is synced by itself from now on"
        );
    }
    drop(root);
    let done: Vec<_> = recorded
        .into_iter()
        .map(|(recorded, request)| {
            let done = recorded.and_then(|recorded| {
                let synced = recorded.sync_record(records.is_ok());
                request.guard.lease.end_sync(recorded, synced)
            });
            (done, request)
        })
        .collect();
    for (done, request) in done {
        request.answer(done);
    }
    records.is_ok()
}

/// Whether one call can sync a file system and reports failures: Linux from 5.8 on.
fn can_sync_batches() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    cfg!(target_os = "linux") && (numbers.next(), numbers.next()) >= (Some(5), Some(8))
}
