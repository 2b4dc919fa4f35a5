//! A request that is not ours reaches the inner service untouched, and costs no allocation where its head tells.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use httpfstream::{HttpFStreamLayer, storage};
use tower::{Layer, Service};

/// A body of the application's own; a request's is `Send` and nothing else.
#[derive(Debug, PartialEq)]
struct Mine(&'static str, std::cell::Cell<bool>);

fn mine(text: &'static str) -> Mine {
    Mine(text, false.into())
}

impl Body for Mine {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let done = self.1.replace(true);
        Poll::Ready((!done).then(|| Ok(Frame::data(Bytes::from_static(self.0.as_bytes())))))
    }

    fn is_end_stream(&self) -> bool {
        self.1.get()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.len() as u64)
    }
}

/// Something that another layer left in the extensions.
#[derive(Debug, Clone, PartialEq)]
struct Mark(u64);

/// Keeps the request that reached it.
#[derive(Clone, Default)]
struct Inner(Arc<Mutex<Option<Request<Mine>>>>);

impl Inner {
    fn taken(&self) -> Request<Mine> {
        self.0.lock().unwrap().take().expect("the request reaches the inner service")
    }
}

impl Service<Request<Mine>> for Inner {
    type Response = Response<Mine>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Mine>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Mine>) -> Self::Future {
        *self.0.lock().unwrap() = Some(request);
        let mut response = Response::new(mine("answered"));
        *response.status_mut() = StatusCode::IM_A_TEAPOT;
        *response.version_mut() = Version::HTTP_10;
        ready(Ok(response))
    }
}

fn bare() -> HttpFStreamLayer {
    HttpFStreamLayer::new(storage::MemoryStorage::new(1 << 20))
}

const NO_HEADERS: &[(&str, &str)] = &[];
const WEBSOCKET: &[(&str, &str)] = &[
    ("connection", "keep-alive, Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];
const UNKNOWN_VERB: &[(&str, &str)] =
    &[("connection", "upgrade"), ("upgrade", "websocket"), ("x-verb", "SUBSCRIBE"), ("x-verb", "SUBSCRIBE")];

type Foreign = (&'static str, HttpFStreamLayer, &'static str, &'static str, &'static [(&'static str, &'static str)]);

/// What the head alone tells to be none of ours.
fn foreign() -> Vec<Foreign> {
    vec![
        ("no upgrade", bare(), "GET", "/a/b?x=1", NO_HEADERS),
        ("a verb, no upgrade", bare(), "POST", "/a?verb=APPEND", NO_HEADERS),
        ("odd path", bare(), "GET", "/a/../%00//b", NO_HEADERS),
        ("h2c", bare(), "GET", "/a?verb=FOLLOW", &[("connection", "upgrade"), ("upgrade", "h2c")]),
        ("a WebSocket without a verb", bare(), "GET", "/chat/room?user=%41nna", WEBSOCKET),
        ("an unknown verb", bare(), "GET", "/chat", UNKNOWN_VERB),
        ("another prefix", bare().mount("/streams"), "GET", "/streamsome/a?verb=FOLLOW", NO_HEADERS),
        ("another prefix, upgrade", bare().mount("/streams"), "GET", "/a?verb=FOLLOW", WEBSOCKET),
        ("a method that serves nothing", bare().plain_http(true), "POST", "/a", NO_HEADERS),
    ]
}

fn request(method: &str, uri: &str, headers: &[(&'static str, &'static str)]) -> Request<Mine> {
    let mut request = Request::builder().method(method).uri(uri).extension(Mark(7)).body(mine("asked")).unwrap();
    for (name, value) in headers {
        request.headers_mut().append(*name, HeaderValue::from_static(value));
    }
    request
}

#[test]
fn a_foreign_request_and_its_answer_pass_untouched() {
    for (what, layer, method, uri, headers) in foreign() {
        let inner = Inner::default();
        let answer = layer.layer(inner.clone()).call(request(method, uri, headers)).now_or_never();
        let answer = answer.expect("at the first poll").unwrap();

        let (head, body) = inner.taken().into_parts();
        assert_eq!((head.method.as_str(), head.uri.to_string().as_str()), (method, uri), "{what}");
        assert_eq!(head.version, Version::HTTP_11, "{what}");
        let expected: HeaderMap =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect();
        assert_eq!(head.headers, expected, "{what}");
        assert_eq!((head.extensions.get(), head.extensions.len()), (Some(&Mark(7)), 1), "{what}");
        assert_eq!(body, mine("asked"), "{what}: its own type, not begun");

        let (head, mut body) = answer.into_parts();
        assert_eq!((head.status, head.version), (StatusCode::IM_A_TEAPOT, Version::HTTP_10), "{what}");
        assert!(head.headers.is_empty() && head.extensions.is_empty(), "{what}: nothing added");
        assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(8), false), "{what}");
        let frame = body.frame().now_or_never().expect("not held back").unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "answered", "{what}");
        assert!(body.is_end_stream() && body.frame().now_or_never().unwrap().is_none(), "{what}");
    }
}

/// Counted on this thread alone, so it is the same at every run.
#[test]
fn a_foreign_request_costs_no_allocation() {
    for (what, layer, method, uri, headers) in foreign() {
        let inner = Inner::default();
        let mut service = layer.layer(inner.clone());
        let request = request(method, uri, headers);
        let mut answer = None;
        let counted = allocation_counter::measure(|| answer = service.call(request).now_or_never());
        assert_eq!((counted.count_total, counted.bytes_total), (0, 0), "{what}");
        assert_eq!(inner.taken().uri(), uri);
        drop(answer);
    }
    let counted = allocation_counter::measure(|| drop(Box::new(1)));
    assert_eq!(counted.count_total, 1, "the counter counts");
}

#[test]
fn a_served_get_of_nothing_falls_through_untouched() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let files = HttpFStreamLayer::new(storage::FsStorage::open(dir.path()).unwrap());
    for (layer, method) in [(bare(), "GET"), (bare(), "HEAD"), (files.clone(), "GET"), (files, "HEAD")] {
        let inner = Inner::default();
        let mut service = layer.plain_http(true).layer(inner.clone());
        let asked = request(method, "/a/b", &[("range", "bytes=0-1")]);
        let answer = runtime.block_on(service.call(asked)).unwrap();
        assert_eq!(answer.status(), StatusCode::IM_A_TEAPOT);
        let (head, body) = inner.taken().into_parts();
        assert_eq!((head.method.as_str(), head.headers["range"].as_bytes()), (method, &b"bytes=0-1"[..]));
        assert_eq!((head.extensions.get(), body), (Some(&Mark(7)), mine("asked")));
    }
}
