//! A caught-up WebSocket follower: it leaves its connection in a slot, into which the writer of its group in the hub
//! reaches to write what is appended (see [`hub::idle`](crate::hub)), while its own task looks after everything else.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;

use super::dialect::FrameEncoder;
use crate::error::Result;
use crate::hub::{Cursor, GroupWrite, IdleMember, Membership, Resource, Step};
use crate::server::checks::expiry;
use crate::websocket::keepalive::Keepalive;
use crate::websocket::{Conn, Inbound};

/// A follower's connection, and how bytes are framed on it.
pub(super) struct Connection<IO> {
    pub(super) conn: Conn<IO>,
    pub(super) encoder: FrameEncoder,
}

/// What a follower's task has to handle next.
pub(super) enum Wakeup {
    /// The cursor found something.
    Step(Result<Step>),
    /// Something has changed: the cursor has to be looked at again, or the rest of a write flushed.
    Recheck,
    /// The peer did something.
    Inbound(Inbound),
    /// The grant has expired.
    Expired,
    /// A tick of the keepalive.
    Tick,
}

/// A follower's part in the group writes of a resource.
pub(super) struct IdleFollower<IO> {
    shared: Arc<SharedSlot<IO>>,
    state_changes: watch::Receiver<()>,
    membership: Option<Membership>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static> IdleFollower<IO> {
    pub(super) fn new(resource: &Resource) -> Self {
        let slot = Slot { connection: None, at: 0, woken: false, waker: Waker::noop().clone() };
        Self {
            shared: Arc::new(SharedSlot(Mutex::new(slot))),
            state_changes: resource.state_changes(),
            membership: None,
        }
    }

    /// Leaves the connection to the group's writer, until there is anything else to do than to write what is appended.
    /// Whether this returns or is dropped, the connection stays in the slot: see
    /// [`take_connection`](Self::take_connection).
    pub(super) async fn wait(
        &mut self,
        connection: Box<Connection<IO>>,
        cursor: &mut Cursor,
        resource: &Arc<Resource>,
        until: Option<Instant>,
        keepalive: &mut Keepalive,
    ) -> Wakeup {
        {
            let mut slot = self.shared.slot();
            // Stays woken until the rest of the last write is flushed.
            slot.woken &= !connection.conn.is_flushed();
            (slot.connection, slot.at) = (Some(connection), cursor.at());
        }
        if self.membership.as_ref().is_none_or(|membership| !membership.is_valid()) {
            let membership = resource.join_idle_group(Arc::clone(&self.shared) as _);
            let valid = membership.is_valid();
            self.membership = Some(membership);
            if !valid {
                // The runtime is shutting down. Yielding lets it drop this task.
                tokio::task::yield_now().await;
            }
        }
        self.state_changes.mark_unchanged();
        tokio::select! {
            // Biased, so that a peer that sends without pause can neither outlive its grant nor delay a change of
            // state.
            biased;
            () = expiry(until) => Wakeup::Expired,
            _ = self.state_changes.changed() => Wakeup::Recheck,
            () = keepalive.tick() => Wakeup::Tick,
            wakeup = poll_fn(|cx| self.shared.poll(cx, &mut *cursor)) => wakeup,
        }
    }

    /// Takes the connection back, and moves the cursor behind what was written. `None` if a write to the connection
    /// panicked.
    pub(super) fn take_connection(&self, cursor: &mut Cursor) -> Option<Box<Connection<IO>>> {
        let mut slot = self.shared.slot();
        cursor.skip_to(slot.at);
        slot.connection.take()
    }
}

impl<IO> Drop for IdleFollower<IO> {
    fn drop(&mut self) {
        // The group may hold the slot for a while longer, and the waker would keep the whole task alive.
        let dropped = {
            let mut slot = self.shared.slot();
            (slot.connection.take(), std::mem::replace(&mut slot.waker, Waker::noop().clone()))
        };
        drop(dropped);
    }
}

/// A slot, shared by a follower's task and its group's writer.
struct SharedSlot<IO>(Mutex<Slot<IO>>);

/// What a follower leaves while it is idle.
struct Slot<IO> {
    /// Taken out while it is in use, so that it is dropped if the use panics.
    connection: Option<Box<Connection<IO>>>,
    /// How far the follower has been written to.
    at: u64,
    /// The follower's task has to take its connection back.
    woken: bool,
    waker: Waker,
}

impl<IO> Slot<IO> {
    fn is_idle(&self, cursor: &Cursor) -> bool {
        !self.woken && cursor.is_idle_at(self.at)
    }
}

impl<IO> SharedSlot<IO> {
    fn slot(&self) -> MutexGuard<'_, Slot<IO>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> SharedSlot<IO> {
    fn poll(&self, cx: &mut Context<'_>, cursor: &mut Cursor) -> Poll<Wakeup> {
        let mut connection = {
            let mut slot = self.slot();
            if !slot.waker.will_wake(cx.waker()) {
                slot.waker = cx.waker().clone();
            }
            match slot.connection.take() {
                Some(connection) if slot.is_idle(cursor) => connection,
                // The resource has grown before the slot was filled, which woke nobody; or the slot was woken.
                connection => {
                    slot.connection = connection;
                    return Poll::Ready(Wakeup::Recheck);
                }
            }
        };
        // Outside the lock, so that the group's writer never waits for a read.
        let inbound = connection.conn.poll_inbound(cx);
        let mut slot = self.slot();
        slot.connection = Some(connection);
        match inbound {
            Poll::Ready(inbound) => Poll::Ready(Wakeup::Inbound(inbound)),
            // A group write during the read found no connection here.
            Poll::Pending if !slot.is_idle(cursor) => Poll::Ready(Wakeup::Recheck),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin + Send> IdleMember for SharedSlot<IO> {
    fn write(&self, batch: &mut GroupWrite<'_>) {
        let mut slot = self.slot();
        let Slot { connection: stored, at, woken, waker } = &mut *slot;
        // In this order, so that a follower whose connection is not here doesn't end the batch for the others.
        while stored.is_some() && !*woken && batch.is_behind(*at) && batch.may_write_now(*at) {
            let Some(mut connection) = stored.take() else { return };
            let framing = connection.encoder.shared_framing();
            let frame = framing.and_then(|framing| batch.frame(*at, framing.id(), |pieces| framing.encode(pieces)));
            let written = frame.is_some_and(|(frame, to)| {
                *at = to;
                connection.conn.write_shared(&mut Context::from_waker(waker), frame)
            });
            *stored = Some(connection);
            if !written {
                *woken = true;
                waker.wake_by_ref();
            }
        }
    }

    fn wake(&self) {
        let mut slot = self.slot();
        slot.woken = true;
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
    use crate::server::follow::dialect::FollowDialect;
    use crate::server::follow::tests::cursor;
    use crate::storage::MemoryStorage;
    use crate::streams::Streams;
    use crate::websocket::frame::Role;

    fn shared<IO>(connection: Connection<IO>) -> SharedSlot<IO> {
        let connection = Some(Box::new(connection));
        SharedSlot(Mutex::new(Slot { connection, at: 0, woken: false, waker: Waker::noop().clone() }))
    }

    #[tokio::test]
    async fn growth_before_the_slot_was_filled_is_not_missed() {
        let streams = Streams::new(MemoryStorage::new(1 << 20));
        let mut appender = streams.open_append("a").await.unwrap();
        let mut cursor = cursor(&streams).await;
        let (ours, _theirs) = duplex(1 << 20);
        let connection =
            Connection { conn: Conn::new(ours, Role::Server, 1), encoder: FrameEncoder::new(FollowDialect::V1) };
        let shared = shared(connection);
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(shared.poll(cx, &mut cursor).is_pending());
        appender.append("a").await.unwrap();
        assert!(matches!(shared.poll(cx, &mut cursor), Poll::Ready(Wakeup::Recheck)));
        shared.slot().at = 1;
        assert!(shared.poll(cx, &mut cursor).is_pending());
        shared.wake();
        assert!(matches!(shared.poll(cx, &mut cursor), Poll::Ready(Wakeup::Recheck)));
    }

    /// A connection whose slot is woken while it is read from.
    struct WokenByRead(Arc<OnceLock<Arc<SharedSlot<WokenByRead>>>>);

    impl AsyncRead for WokenByRead {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            if let Some(shared) = self.0.get() {
                shared.wake();
            }
            Poll::Pending
        }
    }

    impl AsyncWrite for WokenByRead {
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
    async fn a_wakeup_during_a_read_is_not_missed() {
        let streams = Streams::new(MemoryStorage::new(1 << 20));
        let _appender = streams.open_append("a").await.unwrap();
        let mut cursor = cursor(&streams).await;
        let slot = Arc::new(OnceLock::new());
        let connection = Connection {
            conn: Conn::new(WokenByRead(Arc::clone(&slot)), Role::Server, 1),
            encoder: FrameEncoder::new(FollowDialect::V1),
        };
        let shared = Arc::new(shared(connection));
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(shared.poll(cx, &mut cursor).is_pending());
        assert!(slot.set(Arc::clone(&shared)).is_ok());
        assert!(matches!(shared.poll(cx, &mut cursor), Poll::Ready(Wakeup::Recheck)));
        shared.slot().connection = None;
    }

    /// A member that counts the bytes it is given.
    #[derive(Default)]
    struct Counting(AtomicU64);

    impl IdleMember for Counting {
        fn write(&self, batch: &mut GroupWrite<'_>) {
            let at = self.0.load(Ordering::Relaxed);
            if batch.is_behind(at) && batch.may_write_now(at) {
                self.0.store(at + 1, Ordering::Relaxed);
            }
        }

        fn wake(&self) {}
    }

    #[tokio::test]
    async fn a_follower_that_is_not_idle_delays_none_of_the_others() {
        let streams = Streams::new(MemoryStorage::new(1 << 20));
        let mut appender = streams.open_append("a").await.unwrap();
        let cursor = cursor(&streams).await;
        let resource = cursor.resource().unwrap();
        let busy: IdleFollower<DuplexStream> = IdleFollower::new(resource);
        let counting = Arc::<Counting>::default();
        let _memberships = [
            resource.join_idle_group(Arc::clone(&busy.shared) as _),
            resource.join_idle_group(Arc::clone(&counting) as _),
        ];
        // The first append is more than the appender's own task would write to a follower that has nothing yet.
        counting.0.store(19_999, Ordering::Relaxed);
        for count in 0..10 {
            appender.append(vec![b'x'; if count == 0 { 20_000 } else { 1 }]).await.unwrap();
            assert_eq!(counting.0.load(Ordering::Relaxed), 20_000 + count);
        }
    }

    #[tokio::test]
    async fn the_rest_of_a_write_is_flushed_in_time() {
        let streams = Streams::new(MemoryStorage::new(1 << 20));
        let _appender = streams.open_append("a").await.unwrap();
        let mut cursor = cursor(&streams).await;
        let resource = Arc::clone(cursor.resource().unwrap());
        let mut follower = IdleFollower::new(&resource);
        for (queued, rechecks) in [(b"rest".as_slice(), true), (b"", false)] {
            let (ours, _theirs) = duplex(1);
            let mut connection = Box::new(Connection {
                conn: Conn::new(ours, Role::Server, 1),
                encoder: FrameEncoder::new(FollowDialect::V1),
            });
            connection.conn.out().push_small(queued);
            follower.shared.wake();
            // The task was woken by something else first: a keepalive tick, or a pong.
            let mut keepalive = Keepalive::new(Duration::from_secs(60), Duration::from_secs(60));
            let mut wait = pin!(follower.wait(connection, &mut cursor, &resource, None, &mut keepalive));
            let wakeup = wait.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert_eq!(matches!(wakeup, Poll::Ready(Wakeup::Recheck)), rechecks);
            assert_eq!(wakeup.is_pending(), !rechecks);
        }
    }
}
