//! A response body that is written while it is sent, and that knows when its bytes have left.
//!
//! A server that gets an error from a body drops what it still holds: hyper its write buffer over HTTP/1.1 (seen: 192
//! KiB before an error, none of which arrived), h2 its queue. So each piece carries a token, which is dropped with the
//! piece once the server has written it to the socket, and an abort waits for the last token.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_core::future::BoxFuture;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use crate::error::BoxError;

/// After the last token is gone, an abort waits until the body was not polled for this long: TLS, for example, may still hold
/// copies of the last bytes.
const LINGER: Duration = Duration::from_secs(1);

/// A body whose bytes a future writes through a [`BodyWriter`].
pub(super) struct StreamedBody {
    /// `None` once it has returned.
    write: Option<BoxFuture<'static, Result<(), BoxError>>>,
    pieces: mpsc::Receiver<Bytes>,
    /// How many bytes are still to come, if the length is known.
    remaining: Option<u64>,
}

impl StreamedBody {
    /// A body of `len` bytes, if that is known. `write` is polled only when more of the body is requested, and is never
    /// ahead by more than a piece. Its `Ok` is the body's clean end, its `Err` aborts the body.
    pub(super) fn new<F, Fut>(len: Option<u64>, write: F) -> Self
    where
        F: FnOnce(BodyWriter) -> Fut,
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let (sender, pieces) = mpsc::channel(1);
        let (token, tokens) = mpsc::channel(1);
        let write = write(BodyWriter { pieces: sender, token, tokens });
        Self { write: Some(Box::pin(write)), pieces, remaining: len }
    }
}

impl Body for StreamedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        loop {
            if let Ok(bytes) = this.pieces.try_recv() {
                if let Some(remaining) = &mut this.remaining {
                    *remaining = remaining.saturating_sub(bytes.len() as u64);
                }
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            let Some(write) = &mut this.write else { return Poll::Ready(None) };
            match write.as_mut().poll(cx) {
                Poll::Ready(written) => {
                    this.write = None;
                    if let Err(error) = written {
                        return Poll::Ready(Some(Err(error)));
                    }
                }
                Poll::Pending if this.pieces.is_empty() => return Poll::Pending,
                // It has sent a piece, and may be waiting for room for the next.
                Poll::Pending => {}
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.remaining.map(SizeHint::with_exact).unwrap_or_default()
    }
}

/// Writes a [`StreamedBody`].
pub(super) struct BodyWriter {
    pieces: mpsc::Sender<Bytes>,
    /// Cloned for each piece.
    token: mpsc::Sender<Infallible>,
    /// Ends once all tokens are dropped.
    tokens: mpsc::Receiver<Infallible>,
}

impl BodyWriter {
    /// Cancel safe: the piece is sent or not.
    pub(super) async fn send(&self, bytes: Bytes) {
        let piece = Bytes::from_owner(TrackedPiece { bytes, _token: self.token.clone() });
        // Fails only if the body is being dropped.
        let _ = self.pieces.send(piece).await;
    }

    /// Waits until all pieces have left, or until the reader takes none of them for `stall`.
    pub(super) async fn sent(mut self, stall: Duration) {
        drop(self.token);
        loop {
            let before = self.tokens.sender_strong_count();
            let all_gone = timeout(stall, self.tokens.recv()).await;
            if all_gone.is_ok() || self.tokens.sender_strong_count() == before {
                break;
            }
        }
        let _ = timeout(stall, unpolled_for(LINGER)).await;
    }
}

/// Waits until the body has not been polled for this long. A server polls a body whenever its connection does anything.
async fn unpolled_for(time: Duration) {
    let mut sleep = pin!(sleep(time));
    poll_fn(|cx| {
        if sleep.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        sleep.as_mut().reset(Instant::now() + time);
        sleep.as_mut().poll(cx)
    })
    .await;
}

/// Bytes with a token that is dropped with them.
struct TrackedPiece {
    bytes: Bytes,
    _token: mpsc::Sender<Infallible>,
}

impl AsRef<[u8]> for TrackedPiece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
