//! [`Storage`] as a trait object, so that nothing above it is generic over it, with its failures contained: a panic in a
//! call becomes an error, and so does a call that takes too long. (A panic in a destructor is not contained.)

use std::fs::File;
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use futures_core::future::BoxFuture;
use tokio::task::coop::{Unconstrained, unconstrained};
use tokio::time::{Sleep, sleep};

use super::{Append, ByteStream, End, EntryStream, Open, StatStream, Storage};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::Owner;
use crate::key::Key;
use crate::state::{Life, Stat};

pub(crate) trait DynStorage: Send + Sync + 'static {
    fn open<'a>(&'a self, key: &'a Key, how: Open) -> BoxFuture<'a, Result<Box<dyn DynAppend>>>;
    fn stat<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stat>>>;
    fn read<'a>(&'a self, key: &'a Key, life: Life, range: Range<u64>) -> BoxFuture<'a, Result<ByteStream>>;
    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<()>>;
    fn follow(&self, key: &Key, life: Life, from: u64) -> StatStream;
    fn file<'a>(&'a self, key: &'a Key, life: Life) -> BoxFuture<'a, Result<Option<File>>>;
    fn lost(&self) -> EntryStream;
    fn list(&self, prefix: &str) -> EntryStream;
}

pub(crate) trait DynAppend: Send + 'static {
    /// The stat as of the open.
    fn opened(&self) -> &Stat;
    fn claim(&mut self, owner: Option<Owner>);
    fn append<'a>(&'a mut self, data: &'a [Bytes]) -> BoxFuture<'a, Result<u64>>;
    fn sync(&self) -> BoxFuture<'static, Result<u64>>;
    fn finish(self: Box<Self>, end: End) -> BoxFuture<'static, Result<Stat>>;
}

/// Wraps a storage: panics become errors, and calls time out. [`open`](DynStorage::open), [`delete`](DynStorage::delete) and
/// [`finish`](DynAppend::finish) have no timeout here: the hub has to wait until they have ended.
pub(crate) struct Guarded<S> {
    storage: S,
    timeout: Duration,
}

struct GuardedAppend<A> {
    append: A,
    opened: Stat,
    timeout: Duration,
    /// `claim` panicked, so that appends would be recorded for the wrong owner. They fail instead.
    claim_failed: bool,
}

impl<S> Guarded<S> {
    pub(crate) fn new(storage: S, timeout: Duration) -> Self {
        Self { storage, timeout }
    }
}

/// The error for a call that timed out and changed nothing: it may be tried again.
pub(crate) fn unresponsive() -> Error {
    let why = "a call takes longer than it may";
    Error::new(ErrorKind::Overloaded).with_detail("the storage does not answer; try again later").with_source(why)
}

/// The error for a call that timed out with an unknown result.
pub(crate) fn timed_out() -> Error {
    Error::new(ErrorKind::Storage).with_detail("the storage does not answer")
}

fn panicked() -> Error {
    // Without the message, which the panic hook has already reported.
    Error::storage("the storage panicked")
}

/// Turns a panic of the call into an error.
async fn catch_panics<T>(call: impl Future<Output = Result<T>>) -> Result<T> {
    let mut call = pin!(call);
    poll_fn(|cx| {
        // Unwind safe enough: the future isn't polled again, and an appender is poisoned by any error.
        let polled = catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(cx)));
        polled.unwrap_or_else(|_| Poll::Ready(Err(panicked())))
    })
    .await
}

/// Unconstrained, so that it also fires for a call that uses up the task's coop budget at every poll.
fn timer(timeout: Duration) -> Unconstrained<Sleep> {
    unconstrained(sleep(timeout))
}

/// Drops the call and returns `error` when the timeout has passed; turns a panic into an error.
async fn with_timeout<T>(timeout: Duration, error: fn() -> Error, call: impl Future<Output = Result<T>>) -> Result<T> {
    let (mut call, mut elapsed) = (pin!(catch_panics(call)), pin!(None));
    poll_fn(|cx| {
        if let Poll::Ready(done) = call.as_mut().poll(cx) {
            return Poll::Ready(done);
        }
        // Created late, because most calls end at the first poll.
        if elapsed.is_none() {
            elapsed.set(Some(timer(timeout)));
        }
        let elapsed = elapsed.as_mut().as_pin_mut().map(|elapsed| elapsed.poll(cx));
        if elapsed == Some(Poll::Ready(())) { Poll::Ready(Err(error())) } else { Poll::Pending }
    })
    .await
}

type Items<T> = Pin<Box<dyn Stream<Item = Result<T>> + Send>>;

/// Wraps a stream: panics become errors, and an item may time out. Ends after an error.
struct GuardedStream<T> {
    items: Option<Items<T>>,
    /// For one item.
    timeout: Option<Duration>,
    /// Runs while the next item is pending.
    timer: Option<Pin<Box<Unconstrained<Sleep>>>>,
}

/// Guards a stream whose items may take any time.
fn without_timeout<T: Send + 'static>(make: impl FnOnce() -> Items<T>) -> Items<T> {
    let items = catch_unwind(AssertUnwindSafe(make));
    let items = items.unwrap_or_else(|_| Box::pin(super::stream::iter([Err(panicked())])));
    Box::pin(GuardedStream { items: Some(items), timeout: None, timer: None })
}

impl<T> Stream for GuardedStream<T> {
    type Item = Result<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some(items) = &mut this.items else { return Poll::Ready(None) };
        let next = match catch_unwind(AssertUnwindSafe(|| items.as_mut().poll_next(cx))) {
            Ok(Poll::Ready(next)) => next,
            Ok(Poll::Pending) => {
                let Some(timeout) = this.timeout else { return Poll::Pending };
                let timer = this.timer.get_or_insert_with(|| Box::pin(timer(timeout)));
                if timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                Some(Err(timed_out()))
            }
            Err(_) => Some(Err(panicked())),
        };
        this.timer = None;
        if !matches!(next, Some(Ok(_))) {
            this.items = None;
        }
        Poll::Ready(next)
    }
}

impl<S: Storage> DynStorage for Guarded<S> {
    fn open<'a>(&'a self, key: &'a Key, how: Open) -> BoxFuture<'a, Result<Box<dyn DynAppend>>> {
        Box::pin(async move {
            let (append, opened) = catch_panics(async {
                let append = self.storage.open(key, how).await?;
                let opened = append.stat();
                Ok((append, opened))
            })
            .await?;
            Ok(Box::new(GuardedAppend { append, opened, timeout: self.timeout, claim_failed: false }) as _)
        })
    }

    fn stat<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stat>>> {
        Box::pin(with_timeout(self.timeout, unresponsive, async { self.storage.stat(key).await }))
    }

    fn read<'a>(&'a self, key: &'a Key, life: Life, range: Range<u64>) -> BoxFuture<'a, Result<ByteStream>> {
        Box::pin(async move {
            let bytes =
                with_timeout(self.timeout, timed_out, async { self.storage.read(key, life, range).await }).await?;
            Ok(Box::pin(GuardedStream { items: Some(bytes), timeout: Some(self.timeout), timer: None }) as _)
        })
    }

    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<()>> {
        Box::pin(catch_panics(async { self.storage.delete(key).await }))
    }

    fn follow(&self, key: &Key, life: Life, from: u64) -> StatStream {
        without_timeout(|| self.storage.follow(key, life, from))
    }

    fn file<'a>(&'a self, key: &'a Key, life: Life) -> BoxFuture<'a, Result<Option<File>>> {
        Box::pin(with_timeout(self.timeout, unresponsive, async move { self.storage.file(key, life).await }))
    }

    fn lost(&self) -> EntryStream {
        without_timeout(|| self.storage.lost())
    }

    fn list(&self, prefix: &str) -> EntryStream {
        without_timeout(|| self.storage.list(prefix))
    }
}

impl<A: Append> DynAppend for GuardedAppend<A> {
    fn opened(&self) -> &Stat {
        &self.opened
    }

    fn claim(&mut self, owner: Option<Owner>) {
        self.claim_failed = catch_unwind(AssertUnwindSafe(|| self.append.claim(owner))).is_err();
    }

    fn append<'a>(&'a mut self, data: &'a [Bytes]) -> BoxFuture<'a, Result<u64>> {
        if self.claim_failed {
            return Box::pin(std::future::ready(Err(panicked())));
        }
        Box::pin(with_timeout(self.timeout, timed_out, async { self.append.append(data).await }))
    }

    fn sync(&self) -> BoxFuture<'static, Result<u64>> {
        match catch_unwind(AssertUnwindSafe(|| self.append.sync())) {
            Ok(sync) => Box::pin(with_timeout(self.timeout, timed_out, sync)),
            Err(_) => Box::pin(std::future::ready(Err(panicked()))),
        }
    }

    fn finish(self: Box<Self>, end: End) -> BoxFuture<'static, Result<Stat>> {
        if self.claim_failed {
            return Box::pin(std::future::ready(Err(panicked())));
        }
        Box::pin(catch_panics(async move { self.append.finish(end).await }))
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::coop;

    use super::*;

    /// Uses up the task's coop budget.
    fn busy(polls: &mut u32, cx: &mut Context<'_>) {
        *polls += 1;
        assert!(*polls < 100, "the timer never fires");
        while coop::has_budget_remaining() {
            assert!(pin!(coop::consume_budget()).poll(cx).is_ready());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_uses_up_the_coop_budget_times_out_too() {
        let (timeout, mut polls) = (Duration::from_secs(1), 0);
        let call = poll_fn(|cx| {
            busy(&mut polls, cx);
            Poll::Pending::<Result<()>>
        });
        assert_eq!(with_timeout(timeout, unresponsive, call).await.unwrap_err().kind(), ErrorKind::Overloaded);

        struct Busy(u32);
        impl Stream for Busy {
            type Item = Result<()>;
            fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
                busy(&mut self.0, cx);
                Poll::Pending
            }
        }
        let mut stream = GuardedStream { items: Some(Box::pin(Busy(0))), timeout: Some(timeout), timer: None };
        let next = poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await;
        assert_eq!(next.unwrap().unwrap_err().to_string(), timed_out().to_string());
    }
}
