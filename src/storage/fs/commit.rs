//! Group commit: who waits for a sync, and the few threads that serve them all.
//!
//! Each open resource has at most one request that has not begun; whoever asks meanwhile joins it. So what waits is
//! bounded by what is open. A request makes the data durable, then the record that says so, then answers.
//!
//! While few wait, each is a task of its own, a few at a time, and nobody waits for somebody else's large file. Where
//! many wait, one call (`syncfs`) makes the data of all of them durable and another one all their records. The system
//! tells of a failure in such a call only once and not whose it is: from the first one on every file is synced by
//! itself, which tells each its own.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Held;
use crate::error::{Error, ErrorKind, Result};

/// How many threads sync at a time.
const WORKERS: usize = 16;
/// As many waiting requests as are served together.
const MANY: usize = 32;

/// How long what waits is left to the next call for many: one that takes longer may wait for a disk that hangs, or for what
/// other programs have written.
const PATIENCE: Duration = Duration::from_secs(1);

/// The answer to all who wait for one sync.
type Answer = Result<u64, Arc<Error>>;
/// Where it comes.
pub(super) type Answered = watch::Receiver<Option<Answer>>;

/// A file's data, and whether a sync of it ever failed: the system tells that only once, to whoever syncs first.
#[derive(Debug)]
pub(super) struct Data {
    pub(super) file: Arc<File>,
    failed: Mutex<bool>,
}

impl Data {
    pub(super) fn new(file: File) -> Self {
        Self { file: Arc::new(file), failed: Mutex::new(false) }
    }

    /// Syncs, unless that failed before: what failed to be written is marked clean, so that no retry can be believed.
    pub(super) fn sync(&self, sync: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
        let mut failed = self.failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if *failed {
            return Err(io::Error::other("an earlier sync of this file failed"));
        }
        let synced = sync(&self.file);
        *failed = synced.is_err();
        synced
    }

    /// As [`sync`](Self::sync), where a call for all files has done it.
    pub(super) fn synced_with_all(&self) -> io::Result<()> {
        self.sync(|_| Ok(()))
    }
}

/// The requests of a root.
#[derive(Debug)]
pub(super) struct Commits {
    queue: Mutex<Queue>,
    /// The call for many has ended.
    many_done: Condvar,
    /// How many calls sync just now, these or others.
    syncing: AtomicUsize,
}

#[derive(Debug)]
struct Queue {
    waiting: VecDeque<Request>,
    /// Those of files on another device than the root: no call for many is for them.
    elsewhere: VecDeque<Request>,
    workers: usize,
    can_sync_many: bool,
    /// A call for many runs, since then: a second one beside it might miss the failure that the first one is told of.
    many_since: Option<Instant>,
    /// A worker waits for its end.
    one_waits: bool,
}

impl Queue {
    fn are_many(&self) -> bool {
        self.waiting.len() >= MANY && self.can_sync_many
    }

    /// For how long what waits is left to the next call for many, while one runs.
    fn left_for(&self) -> Option<Duration> {
        let since = self.many_since.filter(|_| self.are_many())?;
        PATIENCE.checked_sub(since.elapsed()).filter(|left| !left.is_zero())
    }
}

#[derive(Debug)]
struct Request {
    held: Arc<Held>,
    answer: watch::Sender<Option<Answer>>,
}

impl Commits {
    pub(super) fn new() -> Self {
        let queue = Queue {
            waiting: VecDeque::new(),
            elsewhere: VecDeque::new(),
            workers: 0,
            can_sync_many: can_sync_many(),
            many_since: None,
            one_waits: false,
        };
        Self { queue: Mutex::new(queue), many_done: Condvar::new(), syncing: AtomicUsize::new(0) }
    }

    /// Whether a write may have to wait for a sync.
    pub(super) fn is_syncing(&self) -> bool {
        self.syncing.load(Ordering::Relaxed) > 0
    }

    /// Counts a sync as long as the guard lives.
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

/// Makes durable what is committed now, together with whoever else asks.
pub(super) async fn sync(held: Arc<Held>) -> Result<u64> {
    let mut answered = ask(held);
    let answer = answered.wait_for(Option::is_some).await.map_err(Error::storage)?;
    match &*answer {
        Some(Ok(len)) => Ok(*len),
        Some(Err(failed)) => Err(Error::new(failed.kind()).with_source(Arc::clone(failed))),
        None => Err(ErrorKind::Storage.into()),
    }
}

fn ask(held: Arc<Held>) -> Answered {
    let commits = Arc::clone(&held.lease.root.commits);
    let (answer, answered) = watch::channel(None);
    {
        let mut next = held.lease.next_sync();
        // One whose runtime was stopped before it began is never answered.
        if let Some(next) = next.as_ref().filter(|next| next.has_changed().is_ok()) {
            return next.clone();
        }
        *next = Some(answered.clone());
    }
    {
        let mut queue = commits.queue();
        let here = held.lease.inode.0 == held.lease.root.device;
        let waiting = if here { &mut queue.waiting } else { &mut queue.elsewhere };
        waiting.push_back(Request { held, answer });
        if queue.workers == WORKERS || queue.one_waits && here && queue.left_for().is_some() {
            return answered;
        }
        queue.workers += 1;
    }
    let worker = Worker { commits, counted: true, makes_many: false };
    tokio::task::spawn_blocking(move || worker.run());
    answered
}

/// One of the threads that sync. It holds no root: once an answer is there, nothing of ours keeps that locked.
struct Worker {
    commits: Arc<Commits>,
    counted: bool,
    makes_many: bool,
}

impl Worker {
    /// Lets those who ask at the same moment do so, as long as there are more: many are best served together. Where there
    /// are few cores, some threads would serve the first of them one by one otherwise, before they are many. One alone never
    /// waits: to give way may cost milliseconds.
    fn gather(&self) {
        let mut seen = 1;
        loop {
            let waiting = self.commits.queue().waiting.len();
            if waiting <= seen || waiting >= MANY {
                return;
            }
            seen = waiting;
            std::thread::yield_now();
        }
    }

    fn run(mut self) {
        self.gather();
        loop {
            let mut queue = self.commits.queue();
            let left_for = queue.left_for();
            if queue.are_many() && queue.many_since.is_none() {
                (queue.many_since, self.makes_many) = (Some(Instant::now()), true);
                let requests = std::mem::take(&mut queue.waiting);
                drop(queue);
                let _syncing = self.commits.syncing();
                let done = commit_many(requests.into());
                let mut queue = self.commits.queue();
                queue.can_sync_many &= done;
                (queue.many_since, self.makes_many) = (None, false);
                self.commits.many_done.notify_all();
                continue;
            }
            let mut one = queue.elsewhere.pop_front();
            if one.is_none() && left_for.is_none() {
                one = queue.waiting.pop_front();
            }
            if let Some(request) = one {
                drop(queue);
                let _syncing = self.commits.syncing();
                let synced = request.held.lease.sync();
                request.answer(synced);
            } else if let Some(left_for) = left_for.filter(|_| !queue.one_waits) {
                // Should it take too long, what waits is synced one by one.
                queue.one_waits = true;
                let waited = self.commits.many_done.wait_timeout(queue, left_for);
                waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0.one_waits = false;
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
    /// Where the runtime was stopped before this ran, nobody may be left to answer.
    fn drop(&mut self) {
        if !self.counted {
            return;
        }
        let mut queue = self.commits.queue();
        queue.workers -= 1;
        if self.makes_many {
            queue.many_since = None;
            self.commits.many_done.notify_all();
        }
        let nobody = queue.workers == 0;
        let unanswered = nobody.then(|| (std::mem::take(&mut queue.waiting), std::mem::take(&mut queue.elsewhere)));
        drop(queue);
        drop(unanswered);
    }
}

impl Request {
    /// Lets go of the resource, then answers: whoever is answered finds it free.
    fn answer(self, synced: Result<u64>) {
        let Self { held, answer } = self;
        drop(held);
        // Nobody may wait any more.
        let _ = answer.send(Some(synced.map_err(Arc::new)));
    }
}

/// Serves many with two calls; whether both succeeded. Where one fails, each resource is synced by itself.
fn commit_many(requests: Vec<Request>) -> bool {
    let Some(root) = requests.first().map(|request| Arc::clone(&request.held.lease.root)) else { return true };
    let begun: Vec<_> = requests.into_iter().map(|request| (request.held.lease.begin_sync(), request)).collect();
    let data = root.top.sync_file_system();
    let noted: Vec<_> = begun
        .into_iter()
        .map(|(begun, request)| {
            let lease = &request.held.lease;
            let noted = begun.and_then(|mark| {
                let synced = if data.is_ok() { lease.data.synced_with_all() } else { lease.sync_data(&mark) };
                lease.note_synced(mark, synced)
            });
            (noted, request)
        })
        .collect();
    let records = data.and_then(|()| root.top.sync_file_system());
    if let Err(failed) = &records {
        let failed = failed as &dyn std::error::Error;
        tracing::warn!(
            error = failed,
            "a sync of the whole file system failed; each file is synced by itself from now"
        );
    }
    drop(root);
    let done: Vec<_> = noted
        .into_iter()
        .map(|(noted, request)| {
            let done = noted.and_then(|note| {
                let synced = note.sync_record(records.is_ok());
                request.held.lease.end_sync(note, synced)
            });
            (done, request)
        })
        .collect();
    for (done, request) in done {
        request.answer(done);
    }
    records.is_ok()
}

/// Whether one call can sync a file system and tells of failures: Linux from 5.8 on.
fn can_sync_many() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    cfg!(target_os = "linux") && (numbers.next(), numbers.next()) >= (Some(5), Some(8))
}
