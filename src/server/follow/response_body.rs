//! A body that is written as it is sent, and that knows when its bytes have left.
//!
//! What a server does with a body's error destroys what it still holds: hyper drops its write buffer over HTTP/1.1 (seen:
//! 192 KiB before an error, none of it arrived) and h2 its queue. So each piece carries a token that is dropped with it,
//! which the servers do once it is written to the socket. An abort waits for the last one.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::error::BoxError;
use futures_core::future::BoxFuture;

/// How long an abort waits for bytes that were copied on their way, by TLS for example, and can't be seen any more: since
/// the connection did anything last.
const LINGER: Duration = Duration::from_secs(1);

/// Where the bytes of a body are put.
pub(crate) struct BodyWriter {
    made: mpsc::Sender<Bytes>,
    /// One clone goes with each piece.
    token: mpsc::Sender<Infallible>,
    gone: mpsc::Receiver<Infallible>,
}

impl BodyWriter {
    /// A body that `make` writes: `Ok` is its clean end, `Err` aborts it. `make` runs only while the body is asked for more,
    /// and never gets ahead by more than a piece. `len` is what it will write, where that is known.
    pub(crate) fn body<F, Fut>(len: Option<u64>, make: F) -> FollowBody
    where
        F: FnOnce(Self) -> Fut,
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let (made, ready) = mpsc::channel(1);
        let (token, gone) = mpsc::channel(1);
        let making = make(Self { made, token, gone });
        FollowBody { making: Some(Box::pin(making)), ready, left: len }
    }

    /// Cancel safe: the piece is sent or not.
    pub(crate) async fn send(&self, bytes: Bytes) {
        let piece = Bytes::from_owner(Piece { bytes, _token: self.token.clone() });
        // Nobody is there to take it only while everything is being dropped.
        let _ = self.made.send(piece).await;
    }

    /// Waits until everything has left, as long as the reader takes any of it within this time.
    pub(crate) async fn settle(mut self, stall: Duration) {
        drop(self.token);
        loop {
            let left = self.gone.sender_strong_count();
            let gone = tokio::time::timeout(stall, self.gone.recv()).await;
            if gone.is_ok() || self.gone.sender_strong_count() == left {
                break;
            }
        }
        let _ = tokio::time::timeout(stall, quiet(LINGER)).await;
    }
}

/// Waits until nothing has asked for so long: a server asks for more of a body whenever its connection does anything.
async fn quiet(time: Duration) {
    let mut sleep = pin!(tokio::time::sleep(time));
    poll_fn(|cx| {
        if sleep.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        sleep.as_mut().reset(Instant::now() + time);
        sleep.as_mut().poll(cx)
    })
    .await;
}

/// Bytes that tell when they are dropped.
struct Piece {
    bytes: Bytes,
    _token: mpsc::Sender<Infallible>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The body: see [`BodyWriter::body`].
pub(crate) struct FollowBody {
    making: Option<BoxFuture<'static, Result<(), BoxError>>>,
    ready: mpsc::Receiver<Bytes>,
    left: Option<u64>,
}

impl Body for FollowBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        loop {
            if let Ok(bytes) = this.ready.try_recv() {
                if let Some(left) = &mut this.left {
                    *left = left.saturating_sub(bytes.len() as u64);
                }
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            let Some(making) = &mut this.making else { return Poll::Ready(None) };
            match making.as_mut().poll(cx) {
                Poll::Ready(made) => {
                    this.making = None;
                    if let Err(error) = made {
                        return Poll::Ready(Some(Err(error)));
                    }
                }
                // It may have been stopped by what it has just made.
                Poll::Pending if this.ready.is_empty() => return Poll::Pending,
                Poll::Pending => {}
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map(SizeHint::with_exact).unwrap_or_default()
    }
}
