//! A listener for what happens to resources.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::ReusableBoxFuture;

#[cfg(doc)]
use super::Streams;
use crate::hub::Event;

/// Events as they happen: see [`Streams::events`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> httpfstream::Result<()> {
/// use httpfstream::{Event, Streams, storage::MemoryStorage};
///
/// let streams = Streams::new(MemoryStorage::new(1 << 20));
/// let mut events = streams.events();
/// streams.append("a", &b"all"[..]).await?;
/// assert!(matches!(events.next().await, Some(Event::Created { .. })));
/// let Some(Event::Finished { key, stat }) = events.next().await else { panic!() };
/// assert_eq!((key.as_str(), stat.len), ("a", 3));
/// # Ok(()) }
/// ```
pub struct Events(ReusableBoxFuture<'static, (Result<Event, RecvError>, Receiver<Event>)>);

async fn receive(mut receiver: Receiver<Event>) -> (Result<Event, RecvError>, Receiver<Event>) {
    (receiver.recv().await, receiver)
}

impl Events {
    pub(super) fn new(receiver: Receiver<Event>) -> Self {
        Self(ReusableBoxFuture::new(receive(receiver)))
    }

    /// The next event; `None` once the last [`Streams`] handle is gone.
    ///
    /// # Cancel safety
    /// Cancel safe: no event is lost.
    pub async fn next(&mut self) -> Option<Event> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let (received, receiver) = ready!(self.0.poll(cx));
        self.0.set(receive(receiver));
        Poll::Ready(match received {
            Ok(event) => Some(event),
            Err(RecvError::Lagged(missed)) => Some(Event::Missed(missed)),
            Err(RecvError::Closed) => None,
        })
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}
