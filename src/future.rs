//! The response future: the inner service's, unboxed, or our own.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::future::BoxFuture;
use http::Response;
use pin_project_lite::pin_project;

use crate::body::{OwnBody, ResponseBody};

pin_project! {
    /// The response future of [`HttpFStream`](crate::HttpFStream): the inner service's, unboxed, or our own.
    pub struct ResponseFuture<F> {
        #[pin]
        kind: Kind<F>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<F> {
        Inner { #[pin] future: F },
        Own { future: BoxFuture<'static, Verdict<F>> },
    }
}

/// Who answers a request that the layer had to look up.
pub(crate) enum Verdict<F> {
    /// The layer, with this response.
    Ours(Response<OwnBody>),
    /// The inner service, by this future.
    Theirs(F),
}

impl<F> ResponseFuture<F> {
    pub(crate) fn inner(future: F) -> Self {
        Self { kind: Kind::Inner { future } }
    }

    pub(crate) fn own(future: BoxFuture<'static, Verdict<F>>) -> Self {
        Self { kind: Kind::Own { future } }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let mut this = self.as_mut().project();
            let future = match this.kind.as_mut().project() {
                KindProj::Inner { future } => {
                    return future.poll(cx).map_ok(|response| response.map(ResponseBody::inner));
                }
                KindProj::Own { future } => match ready!(future.as_mut().poll(cx)) {
                    Verdict::Ours(response) => return Poll::Ready(Ok(response.map(ResponseBody::own))),
                    Verdict::Theirs(future) => future,
                },
            };
            this.kind.set(Kind::Inner { future });
        }
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
