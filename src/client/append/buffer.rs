//! The send buffer between an [`Appender`](super::Appender) and the task that runs its connections.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::client::close::Failure;
use crate::client::control::violation;
use crate::error::{Error, ErrorKind, Result};
use crate::state::Life;

/// The payload of the largest frame, in bytes. An idle appender keeps a buffer of about twice that at most.
const MAX_FRAME: usize = 64 * 1024;
/// The buffer's limit where nothing is acknowledged: one frame that waits, and one on its way to the socket.
const LIMIT_WITHOUT_ACKS: usize = 2 * MAX_FRAME;

/// The bytes that are not sent or not acknowledged yet, bounded, and the outcome of the append.
///
/// All bytes that gathered while a frame was written leave as the next frame: small writes coalesce, and none is
/// delayed for the sake of that.
pub(in crate::client) struct SendBuffer {
    inner: Mutex<Inner>,
}

/// Where an appender stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Position {
    /// The offset of the user's next byte.
    pub(super) end: u64,
    /// Everything before this offset is acknowledged.
    pub(super) acknowledged: u64,
    pub(super) life: Option<Life>,
    /// The server speaks `httpfstream.v1`.
    pub(super) resumable: bool,
    /// The resource's last byte, when it was opened, was this appender's own.
    pub(super) resumed: bool,
}

struct Inner {
    /// Bytes to send, preceded by those that a further connection may have to send again.
    bytes: VecDeque<u8>,
    /// The offset of the first buffered byte.
    start: u64,
    /// How many of the buffered bytes were sent on the current connection.
    sent: usize,
    /// How many of the buffered bytes were sent on any connection.
    ever_sent: usize,
    limit: usize,
    position: Position,
    /// A first connection has been established.
    attached: bool,
    phase: Phase,
    outcome: Option<Result<(), Failure>>,
    /// Each side waits for one thing at a time, so one waker each is enough.
    user: Option<Waker>,
    task: Option<Waker>,
}

/// What the user does with the appender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Appending,
    Finishing {
        seal: bool,
    },
    /// The appender was dropped.
    Abandoned,
}

/// What the task has to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Write the frame that was put into the sink.
    Write,
    /// Everything is written: end the resource, for good with `seal`.
    Finish { seal: bool },
    /// The appender was dropped; the rest of the bytes was put into the sink.
    Abandon,
}

impl SendBuffer {
    /// An empty buffer that is not attached yet. `life` is the life that the resource has to be in, `start` the offset
    /// that an earlier appender got acknowledged.
    pub(super) fn new(limit: usize, start: u64, life: Option<Life>) -> Self {
        let position = Position { end: start, acknowledged: start, life, resumable: false, resumed: false };
        let inner = Inner {
            bytes: VecDeque::new(),
            start,
            sent: 0,
            ever_sent: 0,
            limit,
            position,
            attached: false,
            phase: Phase::Appending,
            outcome: None,
            user: None,
            task: None,
        };
        Self { inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn position(&self) -> Position {
        self.lock().position
    }

    pub(super) fn is_finished(&self) -> bool {
        matches!(self.lock().outcome, Some(Ok(())))
    }

    /// Waits until the first connection is established.
    pub(super) fn poll_attached(&self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let mut inner = self.lock();
        inner.check()?;
        if inner.attached { Poll::Ready(Ok(())) } else { inner.wait_user(cx) }
    }

    /// Buffers some of the bytes, at least one if there are any.
    pub(super) fn poll_write(&self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize>> {
        let mut inner = self.lock();
        inner.check()?;
        if inner.phase != Phase::Appending || inner.outcome.is_some() {
            return Poll::Ready(Err(Error::new(ErrorKind::Poisoned).with_detail("this appender was finished before")));
        }
        let taken = data.len().min(inner.limit.saturating_sub(inner.bytes.len()));
        if taken == 0 && !data.is_empty() {
            return inner.wait_user(cx);
        }
        inner.bytes.extend(&data[..taken]);
        inner.position.end += taken as u64;
        Inner::wake(&mut inner.task);
        Poll::Ready(Ok(taken))
    }

    /// Waits until everything is acknowledged, or written to the socket where nothing is acknowledged. Returns the
    /// acknowledged length.
    pub(super) fn poll_sync(&self, cx: &mut Context<'_>) -> Poll<Result<u64>> {
        let mut inner = self.lock();
        inner.check()?;
        if inner.bytes.is_empty() { Poll::Ready(Ok(inner.position.acknowledged)) } else { inner.wait_user(cx) }
    }

    /// Requests the end and waits until the server has confirmed it. Returns the final length.
    pub(super) fn poll_finish(&self, cx: &mut Context<'_>, seal: bool) -> Poll<Result<u64>> {
        let mut inner = self.lock();
        inner.check()?;
        if inner.outcome.is_some() {
            return Poll::Ready(Ok(inner.position.end));
        }
        if seal && !inner.position.resumable {
            return Poll::Ready(Err(v1_required("sealing")));
        }
        inner.phase = Phase::Finishing { seal };
        Inner::wake(&mut inner.task);
        inner.wait_user(cx)
    }

    /// Waits for a failure.
    pub(super) fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<Error> {
        let mut inner = self.lock();
        match inner.check() {
            Err(error) => Poll::Ready(error),
            Ok(()) => inner.wait_user(cx),
        }
    }

    /// Tells the task that the appender was dropped.
    pub(super) fn abandon(&self) {
        let mut inner = self.lock();
        inner.phase = Phase::Abandoned;
        Inner::wake(&mut inner.task);
    }

    /// Waits until the appender is dropped. For the task while it has no connection.
    pub(super) fn poll_abandoned(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.lock();
        if inner.phase == Phase::Abandoned {
            return Poll::Ready(());
        }
        inner.task = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Attaches a connection whose server acknowledges nothing. `length` is the resource's, if the server sent it.
    pub(super) fn attach_without_acks(&self, length: Option<u64>) {
        let mut inner = self.lock();
        let offset = length.unwrap_or(0).min(i64::MAX as u64);
        inner.begin(offset);
        inner.limit = LIMIT_WITHOUT_ACKS;
    }

    /// Attaches a connection on which the server expects the byte at `offset` next. Bytes before it are not sent again.
    ///
    /// # Errors
    /// [`Diverged`](ErrorKind::Diverged) if going on there would splice the bytes of two appenders, or lose some.
    pub(super) fn attach(&self, offset: u64, life: Life, resumed: bool) -> Result<()> {
        let mut inner = self.lock();
        let first = !inner.attached;
        if first && inner.position.life.is_none() {
            inner.begin(offset);
        } else {
            // The server can't have more of this appender's bytes than were ever sent. How many an earlier process sent
            // is not known.
            let most = if first { u64::MAX } else { inner.start + inner.ever_sent as u64 };
            let own = resumed && (inner.start..=most).contains(&offset);
            // Unchanged since the last acknowledgement, or still empty, in whichever life.
            let untouched = offset == inner.start && (inner.position.life == Some(life) || inner.start == 0);
            if !own && !untouched {
                let detail = format!(
                    "the resource is not as this appender left it: {} bytes were acknowledged, and the server is at {offset}{}",
                    inner.start,
                    if resumed { "" } else { " after somebody else" }
                );
                return Err(Error::new(ErrorKind::Diverged).with_detail(detail));
            }
            if first {
                inner.begin(offset);
            } else {
                inner.release(offset);
            }
        }
        inner.sent = 0;
        inner.position.life = Some(life);
        inner.position.resumable = true;
        inner.position.resumed |= first && resumed;
        inner.position.acknowledged = offset;
        Ok(())
    }

    /// Everything before this offset is durable.
    pub(super) fn acknowledge(&self, offset: u64) -> Result<()> {
        let mut inner = self.lock();
        if !(inner.start..=inner.start + inner.sent as u64).contains(&offset) {
            return Err(violation("an acknowledgement of bytes that it didn't get"));
        }
        inner.release(offset);
        inner.position.acknowledged = offset;
        Ok(())
    }

    /// The server has confirmed the end at this offset.
    pub(super) fn confirm(&self, offset: u64) -> Result<()> {
        let mut inner = self.lock();
        if inner.attached && offset != inner.position.end {
            return Err(violation("a confirmation of another end"));
        }
        if !inner.attached {
            inner.begin(offset);
            inner.position.resumable = true;
            inner.position.resumed = true;
        }
        inner.position.acknowledged = offset;
        inner.bytes = VecDeque::new();
        Ok(())
    }

    /// The task's next command. `flushed`: everything that the task took before is written to the socket. Until then
    /// the only command is [`Abandon`](Command::Abandon).
    pub(super) fn poll_command(
        &self,
        cx: &mut Context<'_>,
        flushed: bool,
        mut sink: impl FnMut(&[u8]),
    ) -> Poll<Command> {
        let mut inner = self.lock();
        if flushed && !inner.position.resumable && inner.sent > 0 {
            let written = inner.start + inner.sent as u64;
            inner.release(written);
        }
        let phase = inner.phase;
        match phase {
            Phase::Abandoned => {
                while inner.send(&mut sink) {}
                Poll::Ready(Command::Abandon)
            }
            _ if flushed && inner.send(&mut sink) => Poll::Ready(Command::Write),
            Phase::Finishing { seal } if flushed => Poll::Ready(Command::Finish { seal }),
            _ => {
                inner.task = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl fmt::Debug for SendBuffer {
    /// Shows the position, and no bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SendBuffer").field(&self.position()).finish()
    }
}

impl Inner {
    fn begin(&mut self, offset: u64) {
        self.start = offset;
        self.position.end = offset;
        self.position.acknowledged = offset;
        self.attached = true;
        Self::wake(&mut self.user);
    }

    /// Puts the next frame's payload into the sink. False if everything is sent.
    fn send(&mut self, sink: &mut impl FnMut(&[u8])) -> bool {
        let (front, back) = self.bytes.as_slices();
        let rest = match self.sent.checked_sub(front.len()) {
            None => &front[self.sent..],
            Some(sent) => &back[sent..],
        };
        let frame = &rest[..rest.len().min(MAX_FRAME)];
        if frame.is_empty() {
            return false;
        }
        sink(frame);
        self.sent += frame.len();
        self.ever_sent = self.ever_sent.max(self.sent);
        true
    }

    /// Forgets the bytes before `offset`, which lies within the buffer or at its end.
    fn release(&mut self, offset: u64) {
        let released = usize::try_from(offset - self.start).unwrap_or(usize::MAX).min(self.bytes.len());
        self.bytes.drain(..released);
        self.start = offset;
        self.sent = self.sent.saturating_sub(released);
        self.ever_sent = self.ever_sent.saturating_sub(released);
        if self.bytes.is_empty() && self.bytes.capacity() > 2 * MAX_FRAME {
            // An idle appender needs no large buffer.
            self.bytes = VecDeque::new();
        }
        Self::wake(&mut self.user);
    }

    fn check(&mut self) -> Result<()> {
        match &mut self.outcome {
            Some(Err(failure)) => Err(failure.error()),
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

/// The error of an operation that needs `httpfstream.v1` with a server that doesn't speak it.
pub(in crate::client) fn v1_required(what: &str) -> Error {
    let detail = format!("the server doesn't speak httpfstream.v1, which {what} needs");
    Error::new(ErrorKind::Protocol).with_detail(detail)
}

/// The task's handle on the buffer. If it is dropped before an outcome was set, because the runtime ended, the appender
/// fails instead of hanging.
#[derive(Debug)]
pub(super) struct TaskGuard(pub(super) Arc<SendBuffer>);

impl TaskGuard {
    /// Sets the outcome of the append, unless there is one.
    pub(super) fn end(&self, outcome: Result<()>) {
        let mut inner = self.0.lock();
        if inner.outcome.is_none() {
            inner.outcome = Some(outcome.map_err(Failure::from));
        }
        Inner::wake(&mut inner.user);
    }
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.end(Err(Error::new(ErrorKind::Connection).with_detail("the runtime that ran the connection has ended")));
    }
}
