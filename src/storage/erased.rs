//! [`Storage`] as an object, so that nothing above it is generic over it, and with its failures contained: a panic in a
//! call is an error, and so is a call that takes too long. (A panic while something is dropped is not contained.)

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
    /// What it was when it was opened.
    fn opened(&self) -> &Stat;
    fn claim(&mut self, owner: Option<Owner>);
    fn append<'a>(&'a mut self, data: &'a [Bytes]) -> BoxFuture<'a, Result<u64>>;
    fn sync(&self) -> BoxFuture<'static, Result<u64>>;
    fn finish(self: Box<Self>, end: End) -> BoxFuture<'static, Result<Stat>>;
}

/// A storage whose panics are errors, and whose calls end in time; but for those that nobody may give up before they have
/// ended: [`open`](DynStorage::open), [`delete`](DynStorage::delete) and [`finish`](DynAppend::finish).
pub(crate) struct Guarded<S> {
    storage: S,
    limit: Duration,
}

struct GuardedAppend<A> {
    append: A,
    opened: Stat,
    limit: Duration,
    /// It could not take the claim, and so may do nothing in its name.
    unclaimed: bool,
}

impl<S> Guarded<S> {
    pub(crate) fn new(storage: S, limit: Duration) -> Self {
        Self { storage, limit }
    }
}

/// Nothing has been done, and may be tried again.
pub(crate) fn unresponsive() -> Error {
    let why = "a call takes longer than it may";
    Error::new(ErrorKind::Overloaded).with_detail("the storage does not answer; try again later").with_source(why)
}

/// What was begun has failed.
pub(crate) fn timed_out() -> Error {
    Error::new(ErrorKind::Storage).with_detail("the storage does not answer")
}

fn panicked() -> Error {
    // What it said went where all panics go.
    Error::storage("the storage panicked")
}

/// A call whose panic is an error.
async fn caught<T>(call: impl Future<Output = Result<T>>) -> Result<T> {
    let mut call = pin!(call);
    poll_fn(|cx| {
        // It isn't polled again, and the contract has a failed appender poisoned.
        let polled = catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(cx)));
        polled.unwrap_or_else(|_| Poll::Ready(Err(panicked())))
    })
    .await
}

/// Fires also for a call that always uses up what a task may do at once.
fn timer(limit: Duration) -> Unconstrained<Sleep> {
    unconstrained(sleep(limit))
}

/// A call that is given up when it takes too long.
async fn within<T>(limit: Duration, late: fn() -> Error, call: impl Future<Output = Result<T>>) -> Result<T> {
    let (mut call, mut over) = (pin!(caught(call)), pin!(None));
    poll_fn(|cx| {
        if let Poll::Ready(done) = call.as_mut().poll(cx) {
            return Poll::Ready(done);
        }
        // Most are done at once, and need no timer.
        if over.is_none() {
            over.set(Some(timer(limit)));
        }
        let over = over.as_mut().as_pin_mut().map(|over| over.poll(cx));
        if over == Some(Poll::Ready(())) { Poll::Ready(Err(late())) } else { Poll::Pending }
    })
    .await
}

type Items<T> = Pin<Box<dyn Stream<Item = Result<T>> + Send>>;

/// What is read, or told, piece by piece. Ends behind an error.
struct GuardedStream<T> {
    items: Option<Items<T>>,
    /// For one piece.
    limit: Option<Duration>,
    /// Since it was asked for the next piece.
    late: Option<Pin<Box<Unconstrained<Sleep>>>>,
}

/// What is told for as long as there is something to tell.
fn told<T: Send + 'static>(make: impl FnOnce() -> Items<T>) -> Items<T> {
    let items = catch_unwind(AssertUnwindSafe(make));
    let items = items.unwrap_or_else(|_| Box::pin(super::stream::iter([Err(panicked())])));
    Box::pin(GuardedStream { items: Some(items), limit: None, late: None })
}

impl<T> Stream for GuardedStream<T> {
    type Item = Result<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some(items) = &mut this.items else { return Poll::Ready(None) };
        let next = match catch_unwind(AssertUnwindSafe(|| items.as_mut().poll_next(cx))) {
            Ok(Poll::Ready(next)) => next,
            Ok(Poll::Pending) => {
                let Some(limit) = this.limit else { return Poll::Pending };
                let late = this.late.get_or_insert_with(|| Box::pin(timer(limit)));
                if late.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                Some(Err(timed_out()))
            }
            Err(_) => Some(Err(panicked())),
        };
        this.late = None;
        if !matches!(next, Some(Ok(_))) {
            this.items = None;
        }
        Poll::Ready(next)
    }
}

impl<S: Storage> DynStorage for Guarded<S> {
    fn open<'a>(&'a self, key: &'a Key, how: Open) -> BoxFuture<'a, Result<Box<dyn DynAppend>>> {
        Box::pin(async move {
            let (append, opened) = caught(async {
                let append = self.storage.open(key, how).await?;
                let opened = append.stat();
                Ok((append, opened))
            })
            .await?;
            Ok(Box::new(GuardedAppend { append, opened, limit: self.limit, unclaimed: false }) as _)
        })
    }

    fn stat<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stat>>> {
        Box::pin(within(self.limit, unresponsive, async { self.storage.stat(key).await }))
    }

    fn read<'a>(&'a self, key: &'a Key, life: Life, range: Range<u64>) -> BoxFuture<'a, Result<ByteStream>> {
        Box::pin(async move {
            let bytes = within(self.limit, timed_out, async { self.storage.read(key, life, range).await }).await?;
            Ok(Box::pin(GuardedStream { items: Some(bytes), limit: Some(self.limit), late: None }) as _)
        })
    }

    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<()>> {
        Box::pin(caught(async { self.storage.delete(key).await }))
    }

    fn follow(&self, key: &Key, life: Life, from: u64) -> StatStream {
        told(|| self.storage.follow(key, life, from))
    }

    fn file<'a>(&'a self, key: &'a Key, life: Life) -> BoxFuture<'a, Result<Option<File>>> {
        Box::pin(within(self.limit, unresponsive, async move { self.storage.file(key, life).await }))
    }

    fn lost(&self) -> EntryStream {
        told(|| self.storage.lost())
    }

    fn list(&self, prefix: &str) -> EntryStream {
        told(|| self.storage.list(prefix))
    }
}

impl<A: Append> DynAppend for GuardedAppend<A> {
    fn opened(&self) -> &Stat {
        &self.opened
    }

    fn claim(&mut self, owner: Option<Owner>) {
        self.unclaimed = catch_unwind(AssertUnwindSafe(|| self.append.claim(owner))).is_err();
    }

    fn append<'a>(&'a mut self, data: &'a [Bytes]) -> BoxFuture<'a, Result<u64>> {
        if self.unclaimed {
            return Box::pin(std::future::ready(Err(panicked())));
        }
        Box::pin(within(self.limit, timed_out, async { self.append.append(data).await }))
    }

    fn sync(&self) -> BoxFuture<'static, Result<u64>> {
        match catch_unwind(AssertUnwindSafe(|| self.append.sync())) {
            Ok(sync) => Box::pin(within(self.limit, timed_out, sync)),
            Err(_) => Box::pin(std::future::ready(Err(panicked()))),
        }
    }

    fn finish(self: Box<Self>, end: End) -> BoxFuture<'static, Result<Stat>> {
        if self.unclaimed {
            return Box::pin(std::future::ready(Err(panicked())));
        }
        Box::pin(caught(async move { self.append.finish(end).await }))
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::coop;

    use super::*;

    /// Does all that a task may do at once, whenever it is polled, and is never done.
    fn busy(polls: &mut u32, cx: &mut Context<'_>) {
        *polls += 1;
        assert!(*polls < 100, "it is polled again and again");
        while coop::has_budget_remaining() {
            assert!(pin!(coop::consume_budget()).poll(cx).is_ready());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_uses_up_what_a_task_may_do_is_given_up_as_well() {
        let (limit, mut polls) = (Duration::from_secs(1), 0);
        let call = poll_fn(|cx| {
            busy(&mut polls, cx);
            Poll::Pending::<Result<()>>
        });
        assert_eq!(within(limit, unresponsive, call).await.unwrap_err().kind(), ErrorKind::Overloaded);

        struct Busy(u32);
        impl Stream for Busy {
            type Item = Result<()>;
            fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
                busy(&mut self.0, cx);
                Poll::Pending
            }
        }
        let mut stream = GuardedStream { items: Some(Box::pin(Busy(0))), limit: Some(limit), late: None };
        let next = poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await;
        assert_eq!(next.unwrap().unwrap_err().to_string(), timed_out().to_string());
    }
}
