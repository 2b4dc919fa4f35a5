//! The body of every response: the inner service's, or one of ours.

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
    /// The response body of [`HttpFStream`](crate::HttpFStream): what the inner service gave, unboxed, or our own.
    ///
    /// Where there is no inner service, `B` is what [`NotFound`](crate::NotFound) answers with.
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

/// A body of ours.
pub(crate) type OwnBody = UnsyncBoxBody<Bytes, BoxError>;

/// A body of these bytes.
pub(crate) fn full(bytes: impl Into<Bytes>) -> OwnBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Forgets the type of a body.
pub(crate) fn boxed<B>(body: B) -> OwnBody
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
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
    /// A file's body that gives as many bytes as were announced, whatever becomes of the file meanwhile: a longer one
    /// is a protocol error over HTTP/2.
    pub(crate) struct Capped<B> {
        #[pin]
        body: B,
        left: u64,
    }
}

impl<B> Capped<B> {
    pub(crate) fn new(body: B, left: u64) -> Self {
        Self { body, left }
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
        if *this.left == 0 {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(this.body.poll_frame(cx)) {
            Some(Ok(frame)) => Some(Ok(frame.map_data(|mut data| {
                data.truncate(usize::try_from(*this.left).unwrap_or(usize::MAX));
                *this.left -= data.len() as u64;
                data
            }))),
            Some(Err(error)) => Some(Err(error.into())),
            None => Some(Err("the file became shorter while it was sent".into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// How long what is sent behind a refusal is taken, and dropped.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// The body of a request, whatever its type was.
pub(crate) type RequestBody = UnsyncBoxBody<Bytes, BoxError>;

/// Forgets the type of a request's body.
pub(crate) fn request_body<B>(body: B) -> RequestBody
where
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    AsBytes { body }.map_err(Into::into).boxed_unsync()
}

pin_project! {
    /// A body whose data are `Bytes`. (`map_frame` would forget how much is still to come.)
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

/// Takes what is still sent of a body that was refused. To drop it resets the stream or the connection, and most clients
/// then never see why (seen: curl 7.88, httpx over HTTP/1.1).
pub(crate) fn drain(mut body: RequestBody) {
    if body.is_end_stream() {
        return;
    }
    tokio::spawn(tokio::time::timeout(DRAIN_TIMEOUT, async move { while let Some(Ok(_)) = body.frame().await {} }));
}
