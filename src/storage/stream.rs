//! The few stream helpers that storages need, without a stream library.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;

use super::{StatStream, Storage};
use crate::error::ErrorKind;
use crate::key::Key;
use crate::state::{Life, State};

/// The next item, like `StreamExt::next`.
pub(crate) async fn next<S: Stream + Unpin + ?Sized>(stream: &mut S) -> Option<S::Item> {
    poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx)).await
}

/// A stream of queued items.
pub(crate) struct Queue<T>(VecDeque<T>);

impl<T> Unpin for Queue<T> {}

impl<T> Stream for Queue<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<T>> {
        Poll::Ready(self.0.pop_front())
    }
}

/// A stream of these items.
pub(crate) fn iter<T>(items: impl IntoIterator<Item = T>) -> Queue<T> {
    Queue(items.into_iter().collect())
}

/// A stream without items.
pub(crate) fn empty<T>() -> Queue<T> {
    Queue(VecDeque::new())
}

/// A stream that calls an async step until it returns `None`; each call passes its state on to the next.
pub(crate) struct Unfold<S, F, Fut> {
    state: Option<S>,
    step: F,
    running: Option<Pin<Box<Fut>>>,
}

// The running future is boxed, and nothing else here is ever pinned.
impl<S, F, Fut> Unpin for Unfold<S, F, Fut> {}

pub(crate) fn unfold<S, T, F, Fut>(state: S, step: F) -> Unfold<S, F, Fut>
where
    F: FnMut(S) -> Fut,
    Fut: Future<Output = Option<(T, S)>>,
{
    Unfold { state: Some(state), step, running: None }
}

impl<S, T, F, Fut> Stream for Unfold<S, F, Fut>
where
    F: FnMut(S) -> Fut,
    Fut: Future<Output = Option<(T, S)>>,
{
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let this = &mut *self;
        if this.running.is_none() {
            let Some(state) = this.state.take() else { return Poll::Ready(None) };
            this.running = Some(Box::pin((this.step)(state)));
        }
        let Some(running) = this.running.as_mut() else { return Poll::Ready(None) };
        let done = std::task::ready!(running.as_mut().poll(cx));
        this.running = None;
        Poll::Ready(done.map(|(item, state)| {
            this.state = Some(state);
            item
        }))
    }
}

/// Polls the stat at an interval, and yields it when it has changed.
pub(crate) fn poll_stats<S: Storage>(storage: S, key: Key, life: Life, from: u64, every: Duration) -> StatStream {
    /// What the last item said.
    struct Last {
        len: u64,
        state: State,
        /// It was the end, or an error.
        ended: bool,
        /// The stat was read before, so the next time waits for the interval.
        polled: bool,
    }
    let last = Last { len: from, state: State::Live, ended: false, polled: false };
    let step = move |mut last: Last| {
        let storage = storage.clone();
        let key = key.clone();
        async move {
            if last.ended {
                return None;
            }
            loop {
                if std::mem::replace(&mut last.polled, true) {
                    tokio::time::sleep(every).await;
                }
                let stat = match storage.stat(&key).await {
                    Ok(Some(stat)) if stat.life == life => stat,
                    gone => {
                        last.ended = true;
                        return Some((Err(gone.err().unwrap_or(ErrorKind::NotFound.into())), last));
                    }
                };
                last.ended = !stat.state.is_open();
                if last.ended || stat.len > last.len || stat.state != last.state {
                    (last.len, last.state) = (stat.len, stat.state);
                    return Some((Ok(stat), last));
                }
            }
        }
    };
    Box::pin(unfold(last, step))
}
