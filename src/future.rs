//! The future of a call: the inner service's own, unboxed, or ours.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Response;
use pin_project_lite::pin_project;

use crate::body::{OwnBody, ResponseBody};
use futures_core::future::BoxFuture;

pin_project! {
    /// The response future of [`HttpFStream`](crate::HttpFStream).
    pub struct ResponseFuture<F> {
        #[pin]
        kind: Kind<F>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<F> {
        Inner { #[pin] future: F },
        Own { answer: BoxFuture<'static, Verdict<F>> },
    }
}

/// Whose the request turned out to be.
pub(crate) enum Verdict<F> {
    Ours(Response<OwnBody>),
    Theirs(F),
}

impl<F> ResponseFuture<F> {
    pub(crate) fn inner(future: F) -> Self {
        Self { kind: Kind::Inner { future } }
    }

    pub(crate) fn own(answer: BoxFuture<'static, Verdict<F>>) -> Self {
        Self { kind: Kind::Own { answer } }
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
                KindProj::Own { answer } => match ready!(answer.as_mut().poll(cx)) {
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
