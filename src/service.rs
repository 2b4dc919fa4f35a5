//! The middleware itself.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::{CACHE_CONTROL, CONTENT_TYPE, EXPECT, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use tower::{Layer, Service};

use crate::access::Verb;
use crate::body::ResponseBody;
use crate::body::{drain, request_body};
use crate::error::{BoxError, ErrorKind};
use crate::future::{ResponseFuture, Verdict};
use crate::hub::Hub;
use crate::layer::HttpFStreamLayer;
use crate::server::config::Options;
use crate::server::dispatch::dispatch;
use crate::server::intent::Intent;
use crate::server::response::problem;
use crate::storage::Storage;
use crate::streams::Streams;

/// Intercepts the requests that append to or follow a resource, and passes all others to the inner service.
///
/// Made by an [`HttpFStreamLayer`], or by [`new`](HttpFStream::new) as a service of its own.
#[derive(Clone)]
pub struct HttpFStream<S> {
    inner: S,
    hub: Arc<Hub>,
    options: Arc<Options>,
}

impl HttpFStream<NotFound> {
    /// A service of its own, as `ServeDir` is one: what is no resource is 404, plain GET and HEAD are answered, and a
    /// WebSocket upgrade without a verb follows.
    ///
    /// For more configuration, start from what this is:
    /// `HttpFStreamLayer::new(storage).plain_http(true).default_verb(Verb::Follow).layer(NotFound)`.
    pub fn new<T: Storage>(storage: T) -> Self {
        HttpFStreamLayer::new(storage).plain_http(true).default_verb(Verb::Follow).layer(NotFound)
    }
}

impl<S> HttpFStream<S> {
    pub(crate) fn layered(inner: S, hub: Arc<Hub>, options: Arc<Options>) -> Self {
        Self { inner, hub, options }
    }

    /// The in-process side of the same resources.
    pub fn streams(&self) -> Streams {
        Streams { hub: Arc::clone(&self.hub) }
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for HttpFStream<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone + Send + 'static,
    S::Future: 'static,
    ReqBody: Body + Send + 'static,
    ReqBody::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let intent = self.options.rules.intent(&request);
        if matches!(intent, Intent::Pass) {
            return ResponseFuture::inner(self.inner.call(request));
        }
        let (mut head, body) = request.into_parts();
        let mut body = Some(body);
        // The one that was polled ready goes with the request, which may be its own after all.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let (hub, options) = (Arc::clone(&self.hub), Arc::clone(&self.options));
        ResponseFuture::own(Box::pin(async move {
            let mut taken = || body.take().map(request_body).unwrap_or_default();
            let answered = dispatch(&hub, &options, intent, &mut head, &mut taken).await;
            match (answered, body) {
                (None, Some(body)) => Verdict::Theirs(inner.call(Request::from_parts(head, body))),
                (Some(response), body) => {
                    // One that waits to be asked for must not be asked for.
                    let unasked = response.status().is_success() || head.headers.contains_key(EXPECT);
                    if let Some(body) = body.filter(|_| !unasked) {
                        drain(request_body(body));
                    }
                    Verdict::Ours(response)
                }
                // A body is taken only by what is ours.
                (None, None) => Verdict::Ours(problem(&ErrorKind::NotFound.into())),
            }
        }))
    }
}

impl<S: fmt::Debug> fmt::Debug for HttpFStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpFStream")
            .field("inner", &self.inner)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// Answers everything with 404: the inner service of a standalone [`HttpFStream`].
#[derive(Debug, Clone, Copy, Default)]
pub struct NotFound;

impl<B> Service<Request<B>> for NotFound {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let text = if request.method() == Method::HEAD { "" } else { "there is no such resource\n" };
        let mut response = Response::new(text.to_owned());
        *response.status_mut() = StatusCode::NOT_FOUND;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        // It may exist a moment later.
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        std::future::ready(Ok(response))
    }
}
