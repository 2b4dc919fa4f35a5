//! What lies between an [`Appender`](super::Appender) and the task that runs its connections: one bounded buffer.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::client::close::Failure;
use crate::client::control::wrong;
use crate::error::{Error, ErrorKind, Result};
use crate::state::Life;

/// The largest frame, in bytes, and about what an idle appender may hold on to.
const FRAME: usize = 64 * 1024;
/// What is kept where nothing is acknowledged: what waits, and what is on its way to the socket.
const UNCONFIRMED: usize = 2 * FRAME;

/// Bytes that wait to be sent or to be acknowledged, and how it ended.
///
/// All bytes that gathered while the last frame was written leave as one frame: small writes coalesce, and none waits
/// for more to come.
pub(in crate::client) struct Pipe {
    state: Mutex<State>,
}

/// Where an appender stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Position {
    /// Where the next byte of the user goes.
    pub(super) end: u64,
    pub(super) acknowledged: u64,
    pub(super) life: Option<Life>,
    /// The server speaks `httpfstream.v1`.
    pub(super) resumable: bool,
    /// The first connection found this appender's own bytes.
    pub(super) resumed: bool,
}

struct State {
    /// What may have to be sent again, and what was not sent yet.
    kept: VecDeque<u8>,
    /// The offset of the first byte that is kept.
    start: u64,
    /// So many of the kept bytes were given to this connection.
    sent: usize,
    /// So many of them were given to any.
    tried: usize,
    limit: usize,
    at: Position,
    attached: bool,
    wish: Wish,
    ended: Option<Result<(), Failure>>,
    /// The one side and the other: neither waits at two places at once.
    user: Option<Waker>,
    task: Option<Waker>,
}

/// What the user wants to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    GoOn,
    Finish {
        seal: bool,
    },
    /// The appender was dropped.
    Abandon,
}

/// What the task has to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Write what was put into the sink.
    Write,
    /// Everything is written: end the resource, for good if it is to be sealed.
    Finish { seal: bool },
    /// Nobody waits for the rest, which was put into the sink.
    Abandon,
}

impl Pipe {
    /// For what was never attached: `life` is what it has to be, and `start` what was acknowledged before.
    pub(super) fn new(limit: usize, start: u64, life: Option<Life>) -> Self {
        let at = Position { end: start, acknowledged: start, life, resumable: false, resumed: false };
        let state = State {
            kept: VecDeque::new(),
            start,
            sent: 0,
            tried: 0,
            limit,
            at,
            attached: false,
            wish: Wish::GoOn,
            ended: None,
            user: None,
            task: None,
        };
        Self { state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn at(&self) -> Position {
        self.lock().at
    }

    pub(super) fn is_finished(&self) -> bool {
        matches!(self.lock().ended, Some(Ok(())))
    }

    /// Waits until the first connection stands.
    pub(super) fn poll_attached(&self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let mut state = self.lock();
        state.check()?;
        if state.attached { Poll::Ready(Ok(())) } else { state.wait_user(cx) }
    }

    /// Takes some of the bytes, at least one if there are any.
    pub(super) fn poll_write(&self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize>> {
        let mut state = self.lock();
        state.check()?;
        if state.wish != Wish::GoOn || state.ended.is_some() {
            return Poll::Ready(Err(Error::new(ErrorKind::Poisoned).with_detail("this appender was finished before")));
        }
        let take = data.len().min(state.limit.saturating_sub(state.kept.len()));
        if take == 0 && !data.is_empty() {
            return state.wait_user(cx);
        }
        state.kept.extend(&data[..take]);
        state.at.end += take as u64;
        State::wake(&mut state.task);
        Poll::Ready(Ok(take))
    }

    /// Waits until everything is acknowledged; written to the socket, where nothing is.
    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let mut state = self.lock();
        state.check()?;
        if state.kept.is_empty() { Poll::Ready(Ok(())) } else { state.wait_user(cx) }
    }

    /// Asks for the end and waits until the server has confirmed it.
    pub(super) fn poll_finish(&self, cx: &mut Context<'_>, seal: bool) -> Poll<Result<()>> {
        let mut state = self.lock();
        state.check()?;
        if state.ended.is_some() {
            return Poll::Ready(Ok(()));
        }
        if seal && !state.at.resumable {
            return Poll::Ready(Err(unspoken("sealing")));
        }
        state.wish = Wish::Finish { seal };
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

    /// Waits until the user is gone. For the task while it has no connection.
    pub(super) fn poll_abandoned(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.wish == Wish::Abandon {
            return Poll::Ready(());
        }
        state.task = Some(cx.waker().clone());
        Poll::Pending
    }

    /// A connection stands that is not resumable.
    pub(super) fn attach_plain(&self, length: Option<u64>) {
        let mut state = self.lock();
        let offset = length.unwrap_or(0).min(i64::MAX as u64);
        state.begin(offset);
        state.limit = UNCONFIRMED;
    }

    /// A connection stands, and the server says where it is to go on. What it has needs not be sent again; a sequel
    /// that would splice bytes is an error.
    pub(super) fn attach(&self, offset: u64, life: Life, resumed: bool) -> Result<()> {
        let mut state = self.lock();
        let first = !state.attached;
        if first && state.at.life.is_none() {
            state.begin(offset);
        } else {
            // Of its own bytes it may find as many as were ever sent; a new process can't know how many these are.
            let most = if first { u64::MAX } else { state.start + state.tried as u64 };
            let own = resumed && (state.start..=most).contains(&offset);
            // Where nothing was acknowledged at the very start, nothing can be torn.
            let untouched = offset == state.start && (state.at.life == Some(life) || state.start == 0);
            if !own && !untouched {
                let detail = format!(
                    "the resource is not as this appender left it: {} bytes were acknowledged, and the server is at {offset}{}",
                    state.start,
                    if resumed { "" } else { " after somebody else" }
                );
                return Err(Error::new(ErrorKind::Diverged).with_detail(detail));
            }
            if first {
                state.begin(offset);
            } else {
                state.release(offset);
            }
        }
        state.sent = 0;
        state.at.life = Some(life);
        state.at.resumable = true;
        state.at.resumed |= first && resumed;
        state.at.acknowledged = offset;
        Ok(())
    }

    /// Everything before this offset is durable.
    pub(super) fn acknowledge(&self, offset: u64) -> Result<()> {
        let mut state = self.lock();
        if !(state.start..=state.start + state.sent as u64).contains(&offset) {
            return Err(wrong("an acknowledgement of bytes that it didn't get"));
        }
        state.release(offset);
        state.at.acknowledged = offset;
        Ok(())
    }

    /// The server has confirmed the end at this offset.
    pub(super) fn confirm(&self, offset: u64) -> Result<()> {
        let mut state = self.lock();
        if state.attached && offset != state.at.end {
            return Err(wrong("a confirmation of another end"));
        }
        if !state.attached {
            state.begin(offset);
            state.at.resumable = true;
            state.at.resumed = true;
        }
        state.at.acknowledged = offset;
        state.kept = VecDeque::new();
        Ok(())
    }

    /// The task's next order. `flushed` says whether everything that it took before is written; until then it gets no
    /// more, but is told if it is abandoned.
    pub(super) fn poll_order(&self, cx: &mut Context<'_>, flushed: bool, mut sink: impl FnMut(&[u8])) -> Poll<Order> {
        let mut state = self.lock();
        if flushed && !state.at.resumable && state.sent > 0 {
            let written = state.start + state.sent as u64;
            state.release(written);
        }
        let wish = state.wish;
        match wish {
            Wish::Abandon => {
                while state.send(&mut sink) {}
                Poll::Ready(Order::Abandon)
            }
            _ if flushed && state.send(&mut sink) => Poll::Ready(Order::Write),
            Wish::Finish { seal } if flushed => Poll::Ready(Order::Finish { seal }),
            _ => {
                state.task = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl fmt::Debug for Pipe {
    /// Shows where it stands, and no bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pipe").field(&self.at()).finish()
    }
}

impl State {
    fn begin(&mut self, offset: u64) {
        self.start = offset;
        self.at.end = offset;
        self.at.acknowledged = offset;
        self.attached = true;
        Self::wake(&mut self.user);
    }

    /// Gives the next frame away, if there is one.
    fn send(&mut self, sink: &mut impl FnMut(&[u8])) -> bool {
        let (front, back) = self.kept.as_slices();
        let rest = match self.sent.checked_sub(front.len()) {
            None => &front[self.sent..],
            Some(sent) => &back[sent..],
        };
        let frame = &rest[..rest.len().min(FRAME)];
        if frame.is_empty() {
            return false;
        }
        sink(frame);
        self.sent += frame.len();
        self.tried = self.tried.max(self.sent);
        true
    }

    /// Forgets what lies before the offset, which is one of the kept bytes or their end.
    fn release(&mut self, offset: u64) {
        let gone = usize::try_from(offset - self.start).unwrap_or(usize::MAX).min(self.kept.len());
        self.kept.drain(..gone);
        self.start = offset;
        self.sent = self.sent.saturating_sub(gone);
        self.tried = self.tried.saturating_sub(gone);
        if self.kept.is_empty() && self.kept.capacity() > 2 * FRAME {
            // An idle one needs no buffer.
            self.kept = VecDeque::new();
        }
        Self::wake(&mut self.user);
    }

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

/// The server doesn't speak `httpfstream.v1`, and this needs it.
pub(in crate::client) fn unspoken(what: &str) -> Error {
    let detail = format!("the server doesn't speak httpfstream.v1, which {what} needs");
    Error::new(ErrorKind::Protocol).with_detail(detail)
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
