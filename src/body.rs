//! Response bodies, the inner service's or our own, and request bodies.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use pin_project_lite::pin_project;

use crate::error::BoxError;

pin_project! {
    /// The response body of [`HttpFStream`](crate::HttpFStream): the inner service's body, unboxed, or our own.
    ///
    /// Without an inner service, `B` is the body of [`NotFound`](crate::NotFound).
    pub struct ResponseBody<B = String> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<B> {
        Inner { #[pin] body: B },
        Own { body: OwnBody },
    }
}

/// The body of a response of our own.
pub(crate) type OwnBody = UnsyncBoxBody<Bytes, BoxError>;

/// A body of these bytes.
pub(crate) fn full(bytes: impl Into<Bytes>) -> OwnBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Boxes a response body.
pub(crate) fn boxed<B>(body: B) -> OwnBody
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
}

impl<B> ResponseBody<B> {
    pub(crate) fn inner(body: B) -> Self {
        Self { kind: Kind::Inner { body } }
    }

    pub(crate) fn own(body: OwnBody) -> Self {
        Self { kind: Kind::Own { body } }
    }
}

impl<B> Default for ResponseBody<B> {
    fn default() -> Self {
        Self::own(full(Bytes::new()))
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().kind.project() {
            KindProj::Inner { body } => body.poll_frame(cx).map_err(Into::into),
            KindProj::Own { body } => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Inner { body } => body.is_end_stream(),
            Kind::Own { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Inner { body } => body.size_hint(),
            Kind::Own { body } => body.size_hint(),
        }
    }
}

impl<B> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Inner { .. } => "Inner",
            Kind::Own { .. } => "Own",
        };
        f.debug_tuple("ResponseBody").field(&kind).finish()
    }
}

pin_project! {
    /// A file's body of exactly the announced length, even if the file changes while it is sent: more bytes would be a
    /// protocol error over HTTP/2, and fewer are an error of this body.
    pub(crate) struct Capped<B> {
        #[pin]
        body: B,
        remaining: u64,
    }
}

impl<B> Capped<B> {
    /// `remaining` is the announced length, in bytes.
    pub(crate) fn new(body: B, remaining: u64) -> Self {
        Self { body, remaining }
    }
}

impl<B> Body for Capped<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.project();
        if *this.remaining == 0 {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(this.body.poll_frame(cx)) {
            Some(Ok(frame)) => Some(Ok(frame.map_data(|mut data| {
                data.truncate(usize::try_from(*this.remaining).unwrap_or(usize::MAX));
                *this.remaining -= data.len() as u64;
                data
            }))),
            Some(Err(error)) => Some(Err(error.into())),
            None => Some(Err("the file became shorter while it was sent".into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}

/// How long a refused request body is read and dropped.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// The body of any request, boxed.
pub(crate) type RequestBody = UnsyncBoxBody<Bytes, BoxError>;

/// Boxes a request body.
pub(crate) fn request_body<B>(body: B) -> RequestBody
where
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    AsBytes { body }.map_err(Into::into).boxed_unsync()
}

pin_project! {
    /// Converts a body's data to `Bytes`. (`map_frame` would lose the size hint.)
    struct AsBytes<B> {
        #[pin]
        body: B,
    }
}

impl<B: Body> Body for AsBytes<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let as_bytes = |frame: Frame<B::Data>| frame.map_data(|mut data| data.copy_to_bytes(data.remaining()));
        self.project().body.poll_frame(cx).map_ok(as_bytes)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Reads a refused body for up to two seconds, so that the client sees the answer. Dropping the body would reset the
/// stream or the connection, and most clients then lose the answer (seen with curl 7.88, and httpx over HTTP/1.1).
pub(crate) fn drain(mut body: RequestBody) {
    if body.is_end_stream() {
        return;
    }
    tokio::spawn(tokio::time::timeout(DRAIN_TIMEOUT, async move { while let Some(Ok(_)) = body.frame().await {} }));
}
