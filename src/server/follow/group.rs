//! Where a WebSocket follower waits that has all there is: what comes is written to its connection by whoever comes by
//! (see [`hub::idle`](crate::hub)), while its own task looks after everything else.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;

use super::dialect::{FrameEncoder, encode};
use crate::error::Result;
use crate::hub::{Cursor, GroupWrite, IdleMember, Membership, Resource, Step};
use crate::server::checks::expiry;
use crate::websocket::keepalive::Keepalive;
use crate::websocket::{Conn, Inbound};

/// What a follower is told by.
pub(crate) struct Connection<IO> {
    pub(crate) conn: Conn<IO>,
    pub(crate) encoder: FrameEncoder,
}

/// What a follower has to do next.
pub(crate) enum Wakeup {
    Step(Result<Step>),
    /// Something has changed; look.
    Look,
    Inbound(Inbound),
    Expired,
    Tick,
}

/// A follower's seat, for as long as it follows.
pub(crate) struct IdleFollower<IO> {
    shared: Arc<SharedSlot<IO>>,
    turns: watch::Receiver<()>,
    ticket: Option<Membership>,
}

/// What whoever comes by has of it.
struct SharedSlot<IO>(Mutex<Slot<IO>>);

/// What a follower leaves while it waits.
struct Slot<IO> {
    /// Not here while it is in use: so it is gone if it panics.
    line: Option<Box<Connection<IO>>>,
    /// How far it has come.
    at: u64,
    /// It has to look after itself.
    called: bool,
    waker: Waker,
}

impl<IO> SharedSlot<IO> {
    fn slot(&self) -> MutexGuard<'_, Slot<IO>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static> IdleFollower<IO> {
    pub(crate) fn new(resource: &Resource) -> Self {
        let slot = Slot { line: None, at: 0, called: false, waker: Waker::noop().clone() };
        Self { shared: Arc::new(SharedSlot(Mutex::new(slot))), turns: resource.state_changes(), ticket: None }
    }

    /// Waits until there is anything to do but to write what has come. Whether it ends or is dropped, the connection stays
    /// here, to be [taken](Self::leave).
    pub(crate) async fn wait(
        &mut self,
        line: Box<Connection<IO>>,
        cursor: &mut Cursor,
        resource: &Arc<Resource>,
        until: Option<Instant>,
        keepalive: &mut Keepalive,
    ) -> Wakeup {
        {
            let mut slot = self.shared.slot();
            // Whoever has to flush the rest of a write does so before it sits down again.
            slot.called &= !line.conn.is_flushed();
            (slot.line, slot.at) = (Some(line), cursor.at());
        }
        if self.ticket.as_ref().is_none_or(|ticket| !ticket.is_valid()) {
            let ticket = resource.join_idle_group(Arc::clone(&self.shared) as _);
            let valid = ticket.is_valid();
            self.ticket = Some(ticket);
            if !valid {
                // The runtime is being shut down, and this task with it, if it is given a chance.
                tokio::task::yield_now().await;
            }
        }
        self.turns.mark_unchanged();
        tokio::select! {
            // A peer that says much must not outlive its grant, nor miss a turn.
            biased;
            () = expiry(until) => Wakeup::Expired,
            _ = self.turns.changed() => Wakeup::Look,
            () = keepalive.tick() => Wakeup::Tick,
            turn = poll_fn(|cx| self.shared.poll(cx, &mut *cursor)) => turn,
        }
    }

    /// Takes the connection back, if it is not gone.
    pub(crate) fn leave(&self, cursor: &mut Cursor) -> Option<Box<Connection<IO>>> {
        let mut slot = self.shared.slot();
        cursor.skip_to(slot.at);
        slot.line.take()
    }
}

impl<IO> Drop for IdleFollower<IO> {
    fn drop(&mut self) {
        // Others may have the rest for a while; the waker would keep all of the task.
        let gone = {
            let mut slot = self.shared.slot();
            (slot.line.take(), std::mem::replace(&mut slot.waker, Waker::noop().clone()))
        };
        drop(gone);
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> SharedSlot<IO> {
    fn poll(&self, cx: &mut Context<'_>, cursor: &mut Cursor) -> Poll<Wakeup> {
        let mut line = {
            let mut slot = self.slot();
            if !slot.waker.will_wake(cx.waker()) {
                slot.waker = cx.waker().clone();
            }
            // What came before it sat down, nobody told it.
            match slot.line.take() {
                Some(line) if slot.is_idle(cursor) => line,
                line => {
                    slot.line = line;
                    return Poll::Ready(Wakeup::Look);
                }
            }
        };
        // Whoever comes by must not wait for what the peer has to say.
        let inbound = line.conn.poll_inbound(cx);
        let mut slot = self.slot();
        slot.line = Some(line);
        match inbound {
            Poll::Ready(inbound) => Poll::Ready(Wakeup::Inbound(inbound)),
            // Whoever came by meanwhile found nothing here.
            Poll::Pending if !slot.is_idle(cursor) => Poll::Ready(Wakeup::Look),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<IO> Slot<IO> {
    fn is_idle(&self, cursor: &Cursor) -> bool {
        !self.called && cursor.is_idle_at(self.at)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin + Send> IdleMember for SharedSlot<IO> {
    fn write(&self, batch: &mut GroupWrite<'_>) {
        let mut slot = self.slot();
        let Slot { line: left, at, called, waker } = &mut *slot;
        // Whoever is away holds up none of the others.
        while left.is_some() && !*called && batch.is_behind(*at) && batch.may_write_now(*at) {
            let Some(mut line) = left.take() else { return };
            let frame = line.encoder.text().and_then(|text| {
                batch.frame(*at, text.map_or(0, |text| text as u8 + 1), |pieces| encode(text, pieces))
            });
            let all_gone = frame.is_some_and(|(frame, to)| {
                *at = to;
                line.conn.write_shared(&mut Context::from_waker(waker), frame)
            });
            *left = Some(line);
            if !all_gone {
                *called = true;
                waker.wake_by_ref();
            }
        }
    }

    fn wake(&self) {
        let mut slot = self.slot();
        slot.called = true;
        slot.waker.wake_by_ref();
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::pin::{Pin, pin};
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use tokio::io::{DuplexStream, ReadBuf, duplex};

    use super::*;
    use crate::hub::Found;
    use crate::key::Key;
    use crate::server::follow::dialect::FollowDialect;
    use crate::storage::MemoryStorage;
    use crate::streams::Streams;
    use crate::websocket::frame::Role;

    async fn cursor(streams: &Streams) -> Cursor {
        match streams.hub.follow(&Key::new("a").unwrap()).await.unwrap() {
            Some(Found::Open(cursor)) => cursor,
            _ => panic!("it is at rest"),
        }
    }

    fn shared<IO>(line: Connection<IO>) -> SharedSlot<IO> {
        let line = Some(Box::new(line));
        SharedSlot(Mutex::new(Slot { line, at: 0, called: false, waker: Waker::noop().clone() }))
    }

    #[tokio::test]
    async fn what_came_before_it_sat_down_is_not_missed() {
        let streams = Streams::new(MemoryStorage::new(1 << 20));
        let mut appender = streams.append("a").await.unwrap();
        let mut cursor = cursor(&streams).await;
        let (ours, _theirs) = duplex(1 << 20);
        let line = Connection { conn: Conn::new(ours, Role::Server, 1), encoder: FrameEncoder::new(FollowDialect::V1) };
        let shared = shared(line);
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(shared.poll(cx, &mut cursor).is_pending());
        appender.append("a").await.unwrap();
        assert!(matches!(shared.poll(cx, &mut cursor), Poll::Ready(Wakeup::Look)));
        shared.slot().at = 1;
        assert!(shared.poll(cx, &mut cursor).is_pending());
        shared.wake();
        assert!(matches!(shared.poll(cx, &mut cursor), Poll::Ready(Wakeup::Look)));
    }

    /// Is called while it is read from.
    struct Meanwhile(Arc<OnceLock<Arc<SharedSlot<Meanwhile>>>>);

    impl AsyncRead for Meanwhile {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            if let Some(shared) = self.0.get() {
                shared.wake();
            }
            Poll::Pending
        }
    }

    impl AsyncWrite for Meanwhile {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn nor_what_came_while_it_read() {
        let streams = Streams::new(MemoryStorage::new(1 << 20));
        let _appender = streams.append("a").await.unwrap();
        let mut cursor = cursor(&streams).await;
        let meanwhile = Arc::new(OnceLock::new());
        let line = Connection {
            conn: Conn::new(Meanwhile(Arc::clone(&meanwhile)), Role::Server, 1),
            encoder: FrameEncoder::new(FollowDialect::V1),
        };
        let shared = Arc::new(shared(line));
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(shared.poll(cx, &mut cursor).is_pending());
        assert!(meanwhile.set(Arc::clone(&shared)).is_ok());
        assert!(matches!(shared.poll(cx, &mut cursor), Poll::Ready(Wakeup::Look)));
        shared.slot().line = None;
    }

    /// Counts what it hears.
    #[derive(Default)]
    struct Present(AtomicU64);

    impl IdleMember for Present {
        fn write(&self, batch: &mut GroupWrite<'_>) {
            let at = self.0.load(Ordering::Relaxed);
            if batch.is_behind(at) && batch.may_write_now(at) {
                self.0.store(at + 1, Ordering::Relaxed);
            }
        }

        fn wake(&self) {}
    }

    #[tokio::test]
    async fn whoever_is_away_holds_up_nobody() {
        let streams = Streams::new(MemoryStorage::new(1 << 20));
        let mut appender = streams.append("a").await.unwrap();
        let cursor = cursor(&streams).await;
        let resource = cursor.resource().unwrap();
        let away: IdleFollower<DuplexStream> = IdleFollower::new(resource);
        let present = Arc::<Present>::default();
        let _seats = [
            resource.join_idle_group(Arc::clone(&away.shared) as _),
            resource.join_idle_group(Arc::clone(&present) as _),
        ];
        // More than is written here and now to somebody who has nothing of it yet.
        present.0.store(19_999, Ordering::Relaxed);
        for count in 0..10 {
            appender.append(vec![b'x'; if count == 0 { 20_000 } else { 1 }]).await.unwrap();
            assert_eq!(present.0.load(Ordering::Relaxed), 20_000 + count);
        }
    }

    #[tokio::test]
    async fn what_is_left_of_a_write_is_flushed_in_time() {
        let streams = Streams::new(MemoryStorage::new(1 << 20));
        let _appender = streams.append("a").await.unwrap();
        let mut cursor = cursor(&streams).await;
        let resource = Arc::clone(cursor.resource().unwrap());
        let mut waiting = IdleFollower::new(&resource);
        for (queued, looks) in [(b"rest".as_slice(), true), (b"", false)] {
            let (ours, _theirs) = duplex(1);
            let mut line = Box::new(Connection {
                conn: Conn::new(ours, Role::Server, 1),
                encoder: FrameEncoder::new(FollowDialect::V1),
            });
            line.conn.out().push_small(queued);
            waiting.shared.wake();
            // A keepalive, or a pong, came first.
            let mut keepalive = Keepalive::new(Duration::from_secs(60), Duration::from_secs(60));
            let mut wait = pin!(waiting.wait(line, &mut cursor, &resource, None, &mut keepalive));
            let turn = wait.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert_eq!(matches!(turn, Poll::Ready(Wakeup::Look)), looks);
            assert_eq!(turn.is_pending(), !looks);
        }
    }
}
