//! What lies between an [`Appender`](super::Appender) and the task that runs its connection: one bounded buffer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::close::Failure;
use crate::error::{Error, ErrorKind, Result};

/// The most bytes that wait to be sent, and so the largest frame.
const CAPACITY: usize = 64 * 1024;

/// Bytes that wait to be sent, and how it ended.
///
/// All bytes that gathered while the last frame was written leave as one frame: small writes coalesce, and none waits
/// for more to come.
#[derive(Debug, Default)]
pub(super) struct Pipe {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    /// Taken by the task and not yet written.
    in_flight: bool,
    wish: Wish,
    ended: Option<Result<(), Failure>>,
    /// The one side and the other: neither waits at two places at once.
    user: Option<Waker>,
    task: Option<Waker>,
}

/// What the user wants to happen.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Wish {
    #[default]
    GoOn,
    Finish,
    /// The appender was dropped.
    Abandon,
}

/// What the task has to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Write what was put into the sink.
    Write,
    /// Everything is written: end the resource.
    Finish,
    /// Nobody wants the rest, which was put into the sink.
    Abandon,
}

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes some of the bytes, at least one if there are any.
    pub(super) fn poll_write(&self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize>> {
        let mut state = self.lock();
        state.check()?;
        if state.wish != Wish::GoOn {
            return Poll::Ready(Err(Error::new(ErrorKind::Poisoned).with_detail("this appender was finished before")));
        }
        let take = data.len().min(CAPACITY - state.waiting.len());
        if take == 0 && !data.is_empty() {
            return state.wait_user(cx);
        }
        state.waiting.extend_from_slice(&data[..take]);
        State::wake(&mut state.task);
        Poll::Ready(Ok(take))
    }

    /// Waits until everything is written to the socket.
    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let mut state = self.lock();
        state.check()?;
        if state.waiting.is_empty() && !state.in_flight { Poll::Ready(Ok(())) } else { state.wait_user(cx) }
    }

    /// Asks for the end and waits until the server has confirmed it.
    pub(super) fn poll_finish(&self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let mut state = self.lock();
        state.check()?;
        if state.ended.is_some() {
            return Poll::Ready(Ok(()));
        }
        state.wish = Wish::Finish;
        State::wake(&mut state.task);
        state.wait_user(cx)
    }

    /// Waits for a failure.
    pub(super) fn poll_failed(&self, cx: &mut Context<'_>) -> Poll<Error> {
        let mut state = self.lock();
        match state.check() {
            Err(error) => Poll::Ready(error),
            Ok(()) => state.wait_user(cx),
        }
    }

    /// The user is gone.
    pub(super) fn abandon(&self) {
        let mut state = self.lock();
        state.wish = Wish::Abandon;
        State::wake(&mut state.task);
    }

    /// The task's next order. `flushed` says whether everything that it took before is written; until then it gets no
    /// more, but is told if it is abandoned.
    pub(super) fn poll_order(&self, cx: &mut Context<'_>, flushed: bool, sink: impl FnOnce(&[u8])) -> Poll<Order> {
        let mut state = self.lock();
        if flushed && state.in_flight {
            state.in_flight = false;
            State::wake(&mut state.user);
        }
        let order = match state.wish {
            Wish::Abandon => Order::Abandon,
            _ if flushed && !state.waiting.is_empty() => Order::Write,
            Wish::Finish if flushed => Order::Finish,
            _ => {
                state.task = Some(cx.waker().clone());
                return Poll::Pending;
            }
        };
        if !state.waiting.is_empty() {
            sink(&state.waiting);
            state.waiting.clear();
            state.in_flight = true;
            State::wake(&mut state.user);
        }
        if order == Order::Finish {
            // An idle one needs no buffer.
            state.waiting = Vec::new();
        }
        Poll::Ready(order)
    }
}

impl State {
    fn check(&mut self) -> Result<()> {
        match &mut self.ended {
            Some(Err(failure)) => Err(failure.tell()),
            _ => Ok(()),
        }
    }

    fn wait_user<T>(&mut self, cx: &mut Context<'_>) -> Poll<T> {
        self.user = Some(cx.waker().clone());
        Poll::Pending
    }

    fn wake(waker: &mut Option<Waker>) {
        if let Some(waker) = waker.take() {
            waker.wake();
        }
    }
}

/// The task's side. If the task ends without a word (its runtime did), the user is told so.
#[derive(Debug)]
pub(super) struct TaskSide(pub(super) Arc<Pipe>);

impl TaskSide {
    /// Tells the user how it ended; the first word counts.
    pub(super) fn end(&self, result: Result<()>) {
        let mut state = self.0.lock();
        if state.ended.is_none() {
            state.ended = Some(result.map_err(Failure::from));
        }
        State::wake(&mut state.user);
    }
}

impl Drop for TaskSide {
    fn drop(&mut self) {
        self.end(Err(Error::new(ErrorKind::Connection).with_detail("the runtime that ran the connection has ended")));
    }
}
