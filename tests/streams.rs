//! The in-process API: the appender as an `AsyncWrite`, the follower as an `AsyncRead` and a `Stream`, what they report,
//! and `serve` on a route of the application's own.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use common::soon;
use common::spy::{Spy, Watch};
use futures_util::{StreamExt, poll};
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Full};
use httpfstream::storage::MemoryStorage;
use httpfstream::{
    Access, Appender, Denied, Durability, Error, ErrorKind, Event, Events, Follower, Grant, HttpFStream,
    HttpFStreamLayer, State, Streams, Verb,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tower::{Layer, ServiceExt};

fn memory() -> Streams {
    Streams::new(MemoryStorage::new(1 << 20))
}

/// Streams whose appends wait for a sync, and can be held up.
fn spied() -> (Streams, Watch) {
    let spy = Spy::new(MemoryStorage::new(1 << 20));
    let watch = spy.watch.clone();
    (Streams::builder(spy).durability(Durability::Acked).build(), watch)
}

/// The error inside an I/O error.
fn kind(error: io::Error) -> ErrorKind {
    error.downcast::<Error>().expect("an error of this crate").kind()
}

async fn ended(events: &mut Events) -> Event {
    loop {
        match soon("an end", events.next()).await.unwrap() {
            Event::Created { .. } => {}
            event => return event,
        }
    }
}

/// A reader that yields what it is given, one piece for each read.
struct Pieces(Vec<io::Result<&'static [u8]>>);

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.0.pop() {
            Some(Ok(piece)) => buf.put_slice(piece),
            Some(Err(error)) => return Poll::Ready(Err(error)),
            None => {}
        }
        let _ = cx;
        Poll::Ready(Ok(()))
    }
}

#[test]
fn handles_can_move_between_tasks() {
    fn check<T: Send + Unpin>() {}
    check::<Appender>();
    check::<Follower>();
    check::<Events>();
}

// AsyncWrite

#[tokio::test]
async fn a_write_that_was_taken_over_needs_no_further_poll() {
    let (streams, watch) = spied();
    let mut out = streams.open_append("a").await.unwrap();
    let mut follower = streams.follow("a").await.unwrap();
    let held = watch.hold_appends();
    assert_eq!(out.write(b"one").await.unwrap(), 3);
    assert!(poll!(pin!(out.flush())).is_pending(), "a flush waits for the append");
    assert!(poll!(pin!(out.write(b"two"))).is_pending(), "and so does the next write");
    drop(held);
    let chunk = soon("the bytes, although nobody polls the appender", follower.next_chunk()).await;
    assert_eq!(chunk.unwrap().unwrap().bytes, "one");
    out.flush().await.unwrap();
    assert_eq!(out.append("two").await.unwrap(), 6);
}

#[tokio::test]
async fn writes_appends_and_the_finish_keep_their_order() {
    let (streams, watch) = spied();
    let mut out = streams.open_append("a").await.unwrap();
    let held = watch.hold_appends();
    assert_eq!(out.write(b"one").await.unwrap(), 3);
    {
        let mut second = pin!(out.write(b"two"));
        assert!(poll!(&mut second).is_pending(), "one write at a time");
        drop(held);
        assert_eq!(soon("the second write", second).await.unwrap(), 3);
    }
    assert_eq!(out.append("three").await.unwrap(), 11);
    let held = watch.hold_appends();
    assert_eq!(out.write(b"four").await.unwrap(), 4);
    drop(held);
    assert_eq!(out.finish().await.unwrap(), 15);
    let body = streams.follow("a").await.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "onetwothreefour");
}

#[tokio::test]
async fn dropping_an_appender_while_a_write_is_pending_loses_the_appender_but_no_byte() {
    let (streams, watch) = spied();
    let mut events = streams.events();
    let mut out = streams.open_append("a").await.unwrap();
    let held = watch.hold_appends();
    out.write_all(b"one").await.unwrap();
    drop(out);
    drop(held);
    let Event::Interrupted { stat, .. } = ended(&mut events).await else { panic!("not interrupted") };
    assert_eq!(stat.len, 3);
    assert_eq!(streams.open_append("a").await.unwrap().offset(), 3, "the lease is free");
}

#[tokio::test]
async fn a_large_write_is_taken_over_in_parts() {
    let streams = memory();
    let mut out = streams.open_append("a").await.unwrap();
    let data = vec![b'x'; 200_000];
    assert_eq!(out.write(&data).await.unwrap(), 64 * 1024);
    assert_eq!(out.write(b"").await.unwrap(), 0);
    out.write_all(&data[64 * 1024..]).await.unwrap();
    out.shutdown().await.unwrap();
    let stat = streams.stat("a").await.unwrap().unwrap();
    assert_eq!((stat.len, stat.state), (200_000, State::Finished));
}

#[tokio::test]
async fn a_full_storage_fails_the_write_and_the_appender_goes_on() {
    let streams = Streams::new(MemoryStorage::new(4));
    let mut out = streams.open_append("a").await.unwrap();
    out.write_all(b"one").await.unwrap();
    let error = out.write(b"two").await.unwrap_err();
    assert_eq!((error.kind(), kind(error)), (io::ErrorKind::StorageFull, ErrorKind::Full));
    out.write_all(b"2").await.unwrap();
    out.shutdown().await.unwrap();
    assert_eq!(streams.stat("a").await.unwrap().unwrap().len, 4);
}

#[tokio::test]
async fn a_failed_write_is_reported_once_and_then_the_appender_has_ended() {
    let (streams, watch) = spied();
    let mut out = streams.open_append("a").await.unwrap();
    let held = watch.hold_syncs();
    out.write_all(b"one").await.unwrap();
    watch.fail_syncs.store(true, Ordering::Relaxed);
    drop(held);
    assert_eq!(out.append("two").await.unwrap_err().kind(), ErrorKind::Storage, "of the write before");
    assert_eq!(watch.now().appended, 3, "nothing else was done");
    assert_eq!(kind(out.write(b"three").await.unwrap_err()), ErrorKind::Storage);
    assert_eq!(out.append("four").await.unwrap_err().kind(), ErrorKind::Storage);
    assert_eq!(watch.now().appended, 3);
}

#[tokio::test]
async fn after_a_shutdown_nothing_can_be_written() {
    let streams = memory();
    let mut out = streams.open_append("a").await.unwrap();
    out.write_all(b"one").await.unwrap();
    out.shutdown().await.unwrap();
    out.shutdown().await.expect("a second shutdown has nothing to do");
    out.flush().await.unwrap();
    assert_eq!(kind(out.write(b"x").await.unwrap_err()), ErrorKind::Poisoned);
    assert_eq!(out.append("x").await.unwrap_err().kind(), ErrorKind::Poisoned);
    assert_eq!(out.finish().await.unwrap(), 3, "it is finished");
    assert_eq!(streams.stat("a").await.unwrap().unwrap().state, State::Finished);
}

#[tokio::test]
async fn a_failed_shutdown_fails_again() {
    let streams = memory();
    let mut out = streams.open_append("a").await.unwrap();
    out.write_all(b"one").await.unwrap();
    streams.delete("a").await.unwrap();
    assert_eq!(kind(out.shutdown().await.unwrap_err()), ErrorKind::Fenced);
    assert_eq!(kind(out.shutdown().await.unwrap_err()), ErrorKind::Fenced);
    assert_eq!(kind(out.write(b"x").await.unwrap_err()), ErrorKind::Fenced);
}

// Whole readers

#[tokio::test]
async fn append_uploads_a_reader_and_finishes() {
    let streams = memory();
    let pieces = Pieces(vec![Ok(b"three"), Ok(b"two"), Ok(b"one")]);
    assert_eq!(streams.append("a", pieces).await.unwrap(), 11);
    let stat = streams.stat("a").await.unwrap().unwrap();
    assert_eq!((stat.len, stat.state), (11, State::Finished));
    assert_eq!(streams.append("a", &b"!"[..]).await.unwrap(), 1, "the number of bytes, not the length");
    assert_eq!(streams.append("..", &b""[..]).await.unwrap_err().kind(), ErrorKind::BadPath);
}

#[tokio::test]
async fn append_reader_stops_where_the_reader_fails() {
    let streams = memory();
    let mut out = streams.open_append("a").await.unwrap();
    let pieces = Pieces(vec![Err(io::Error::other("unplugged")), Ok(b"one")]);
    let error = out.append_reader(pieces).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "unplugged");
    assert_eq!(out.append("two").await.unwrap(), 6, "the appender goes on");
}

#[tokio::test]
async fn append_reader_does_not_outwait_its_resource() {
    let streams = memory();
    let mut out = streams.open_append("a").await.unwrap();
    let (_idle, reader) = tokio::io::duplex(1);
    let appending = tokio::spawn(async move { (out.append_reader(reader).await.unwrap_err().kind(), out) });
    let shutdown = streams.clone();
    let shutdown = tokio::spawn(async move { shutdown.shutdown(std::time::Duration::from_secs(30)).await });
    let (kind, mut out) = soon("the shutdown", appending).await.unwrap();
    assert_eq!(kind, ErrorKind::ShuttingDown);
    out.append("the last words").await.unwrap();
    assert_eq!(out.finish().await.unwrap(), 14);
    soon("the end of the shutdown", shutdown).await.unwrap();
}

// What an appender learns

#[tokio::test]
async fn closed_tells_of_a_delete_and_of_a_shutdown() {
    let streams = memory();
    let mut deleted = streams.open_append("deleted").await.unwrap();
    deleted.append("x").await.unwrap();
    let closed = tokio::spawn(deleted.closed());
    streams.delete("deleted").await.unwrap();
    assert_eq!(soon("closed", closed).await.unwrap().kind(), ErrorKind::Fenced);
    assert_eq!(deleted.append("x").await.unwrap_err().kind(), ErrorKind::Fenced);
    drop(deleted);

    let mut live = streams.open_append("live").await.unwrap();
    let (closed, mut stopping) = (live.closed(), pin!(streams.shutting_down()));
    assert!(poll!(&mut stopping).is_pending());
    let shutdown = streams.clone();
    let shutdown = tokio::spawn(async move { shutdown.shutdown(std::time::Duration::from_secs(30)).await });
    soon("shutting_down", stopping).await;
    assert_eq!(soon("closed", closed).await.kind(), ErrorKind::ShuttingDown);
    streams.shutting_down().await;
    live.append("all of it").await.unwrap();
    assert_eq!(live.finish().await.unwrap(), 9);
    soon("the end of the shutdown", shutdown).await.unwrap();
    assert_eq!(streams.stat("live").await.unwrap().unwrap().state, State::Finished);
}

#[tokio::test]
async fn followers_are_counted() {
    let streams = memory();
    let out = streams.open_append("a").await.unwrap();
    assert_eq!((out.followers(), streams.followers("a").unwrap()), (0, 0));
    let followers = [streams.follow("a").await.unwrap(), streams.follow("a").await.unwrap()];
    assert_eq!((out.followers(), streams.followers("a").unwrap(), streams.followers("b").unwrap()), (2, 2, 0));
    drop(followers);
    assert_eq!(out.followers(), 0);
    assert_eq!(streams.followers("..").unwrap_err().kind(), ErrorKind::BadPath);
}

// AsyncRead and Stream

#[tokio::test]
async fn reads_of_any_size_and_chunks_can_be_mixed() {
    let streams = memory();
    streams.append("a", &b"0123456789"[..]).await.unwrap();
    let mut follower = streams.follow("a").await.unwrap();
    let mut three = [0; 3];
    assert_eq!(follower.read(&mut []).await.unwrap(), 0);
    follower.read_exact(&mut three).await.unwrap();
    assert_eq!((&three, follower.offset()), (b"012", 3));
    let chunk = follower.next_chunk().await.unwrap().unwrap();
    assert_eq!((&chunk.bytes[..], chunk.next_offset, follower.offset()), (&b"3456789"[..], 10, 10));
    assert_eq!(follower.read(&mut three).await.unwrap(), 0, "the clean end");
    assert_eq!(follower.read(&mut three).await.unwrap(), 0, "however often");
    assert_eq!((follower.next_chunk().await.unwrap(), follower.state()), (None, State::Finished));
}

#[tokio::test]
async fn an_interrupted_resource_is_no_end_of_file() {
    let streams = memory();
    let mut out = streams.open_append("a").await.unwrap();
    out.append("part").await.unwrap();
    let [mut reader, mut stream] = [streams.follow("a").await.unwrap(), streams.follow("a").await.unwrap()];
    let body = streams.follow("a").await.unwrap().into_body();
    drop(out);
    let mut all = Vec::new();
    let error = soon("the end", reader.read_to_end(&mut all)).await.unwrap_err();
    assert_eq!((error.kind(), kind(error)), (io::ErrorKind::UnexpectedEof, ErrorKind::Interrupted));
    assert_eq!(all, b"part");
    assert_eq!(stream.next().await.unwrap().unwrap().bytes, "part");
    assert_eq!(stream.next().await.unwrap().unwrap_err().kind(), ErrorKind::Interrupted);
    assert!(stream.next().await.is_none() && stream.next().await.is_none(), "a stream ends after its error");
    assert_eq!(stream.next_chunk().await.unwrap_err().kind(), ErrorKind::Interrupted, "a chunk doesn't pretend");
    assert_eq!(body.collect().await.unwrap_err().kind(), ErrorKind::Interrupted);
}

#[tokio::test]
async fn a_reader_is_woken_by_an_append() {
    let streams = memory();
    let mut out = streams.open_append("a").await.unwrap();
    let mut follower = streams.follow("a").await.unwrap();
    for _ in 0..3 {
        assert!(poll!(pin!(follower.next_chunk())).is_pending(), "dropped, and asked again below");
    }
    let reading = tokio::spawn(async move {
        let mut all = String::new();
        follower.read_to_string(&mut all).await.map(|_| all)
    });
    tokio::task::yield_now().await;
    out.append("one").await.unwrap();
    tokio::task::yield_now().await;
    out.append("two").await.unwrap();
    out.finish().await.unwrap();
    assert_eq!(soon("the end", reading).await.unwrap().unwrap(), "onetwo");
}

#[tokio::test]
async fn a_caller_that_stops_waiting_does_not_read_again() {
    let spy = Spy::new(MemoryStorage::new(1 << 20));
    let watch = spy.watch.clone();
    let streams = Streams::builder(spy).tail_cache(0).build();
    streams.append("a", &b"stored"[..]).await.unwrap();
    let mut follower = streams.follow("a").await.unwrap();
    // The storage responds only after some polls.
    watch.meanwhile(tokio::task::yield_now);
    for _ in 0..2 {
        assert!(poll!(pin!(follower.next_chunk())).is_pending());
    }
    assert_eq!(follower.next_chunk().await.unwrap().unwrap().bytes, "stored");
    assert_eq!(follower.next_chunk().await.unwrap(), None);
    assert_eq!(watch.now().reads, 1);
}

#[tokio::test]
async fn events_are_a_stream() {
    let streams = memory();
    let events = streams.events();
    streams.append("a", &b"x"[..]).await.unwrap();
    streams.delete("a").await.unwrap();
    drop(streams);
    let seen: Vec<_> = soon("the end of the events", events.collect()).await;
    assert!(matches!(&seen[..], [Event::Created { .. }, Event::Finished { .. }, Event::Deleted { .. }]), "{seen:?}");
}

// Requests

type Reply = (u16, http::HeaderMap, String);

async fn whole<B: http_body::Body<Data = Bytes, Error: std::fmt::Debug>>(response: Response<B>) -> Reply {
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (head.status.as_u16(), head.headers, String::from_utf8(body.to_vec()).unwrap())
}

fn request(method: &str, uri: &str, body: &'static str) -> Request<Full<Bytes>> {
    Request::builder().method(method).uri(uri).body(Full::from(body)).unwrap()
}

#[tokio::test]
async fn a_route_of_ones_own_has_the_options_of_its_layer() {
    let layer = HttpFStreamLayer::new(MemoryStorage::new(1 << 20))
        .mount("/elsewhere")
        .default_content_type(HeaderValue::from_static("text/markdown"))
        .max_resource_size(5)
        .allow_origins(["https://app.example"]);
    let (status, ..) = whole(layer.serve("a", request("PUT", "/any", "12345")).await).await;
    assert_eq!(status, 201);
    let mut get = request("GET", "/any", "");
    get.headers_mut().insert(header::ORIGIN, HeaderValue::from_static("https://app.example"));
    let (status, headers, text) = whole(layer.serve("a", get).await).await;
    assert_eq!((status, &text[..]), (200, "12345"));
    assert_eq!(headers[header::CONTENT_TYPE], "text/markdown");
    assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "https://app.example");
    let (status, ..) = whole(layer.serve("b", request("PUT", "/any", "123456")).await).await;
    assert_eq!(status, 413);
    let (status, headers, _) = whole(layer.serve("a", request("OPTIONS", "/any", "")).await).await;
    assert_eq!((status, headers[header::ALLOW].to_str().unwrap()), (405, "GET, HEAD, PUT, POST, PATCH, DELETE"));
    let (status, ..) = whole(layer.serve("absent", request("GET", "/any", "")).await).await;
    assert_eq!(status, 404);
    let (status, ..) = whole(layer.serve("..", request("GET", "/any", "")).await).await;
    assert_eq!(status, 400);

    let layer = layer.authorize(|access: Access| async move {
        assert_eq!((access.verb, access.key.as_str()), (Verb::Follow, "a"));
        Err::<Grant, _>(Denied::Forbidden)
    });
    let (status, ..) = whole(layer.serve("a", request("GET", "/any", "")).await).await;
    assert_eq!(status, 403);
}

#[tokio::test]
async fn the_short_serve_only_reads() {
    let streams = memory();
    streams.append("a", &b"text"[..]).await.unwrap();
    let (status, _, text) = whole(streams.serve("a", request("GET", "/any", "")).await).await;
    assert_eq!((status, &text[..]), (200, "text"));
    for method in ["PUT", "POST", "DELETE"] {
        let (status, ..) = whole(streams.serve("a", request(method, "/any", "more")).await).await;
        assert_eq!(status, 403, "{method}");
    }
    let (status, headers, _) = whole(streams.serve("a", request("OPTIONS", "/any", "")).await).await;
    assert_eq!((status, headers[header::ALLOW].to_str().unwrap()), (405, "GET, HEAD"));
    assert_eq!(streams.stat("a").await.unwrap().unwrap().len, 4);
}

#[tokio::test]
async fn in_the_standalone_service_the_method_is_the_verb() {
    let service = HttpFStream::new(MemoryStorage::new(1 << 20));
    for (method, upto, expected) in [("PUT", "one", 201), ("POST", "oneone", 200), ("PATCH", "oneoneone", 200)] {
        let mut append = request(method, "/a.log", "one");
        if method == "PATCH" {
            let headers = append.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/partial-upload"));
            headers.insert("upload-offset", HeaderValue::from_static("6"));
            headers.insert("upload-complete", HeaderValue::from_static("?1"));
        }
        let (status, ..) = whole(service.clone().oneshot(append).await.unwrap()).await;
        assert_eq!(status, expected, "{method}");
        let (status, _, text) = whole(service.clone().oneshot(request("GET", "/a.log", "")).await.unwrap()).await;
        assert_eq!((status, &text[..]), (200, upto), "{method}");
    }
    for method in ["GET", "PUT", "DELETE"] {
        let (status, _, text) =
            whole(service.clone().oneshot(request(method, "/a.log?verb=READ", "x")).await.unwrap()).await;
        assert_eq!(status, 400, "{method}");
        assert!(text.contains("APPEND") && text.contains("FOLLOW"), "{text}");
    }
    assert_eq!(service.streams().stat("a.log").await.unwrap().unwrap().len, 9);
}

/// An application that counts its requests.
async fn around(layer: HttpFStreamLayer, request: Request<Full<Bytes>>) -> (Reply, usize) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let application = tower::service_fn(move |request: Request<Full<Bytes>>| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move { Ok::<_, std::convert::Infallible>(Response::new(request.into_body())) }
    });
    let reply = whole(layer.layer(application).oneshot(request).await.unwrap()).await;
    (reply, calls.load(Ordering::Relaxed))
}

#[tokio::test]
async fn around_an_application_requests_without_a_known_verb_pass_through() {
    let layer = HttpFStreamLayer::new(MemoryStorage::new(1 << 20)).mount("/");
    layer.streams().append("a", &b"stored"[..]).await.unwrap();
    for (method, uri) in [("PUT", "/a"), ("POST", "/a"), ("PATCH", "/a"), ("GET", "/a?verb=READ")] {
        let ((status, _, text), calls) = around(layer.clone(), request(method, uri, "body")).await;
        assert_eq!((status, &text[..], calls), (200, "body", 1), "{method} {uri}");
    }
    assert_eq!(layer.streams().stat("a").await.unwrap().unwrap().len, 6);
}

#[tokio::test]
async fn a_refusal_comes_before_anything_is_looked_up() {
    let spy = Spy::new(MemoryStorage::new(1 << 20));
    let watch = spy.watch.clone();
    let layer = HttpFStreamLayer::new(spy).mount("/");
    let refused = layer.clone().authorize(|_| async { Err(Denied::Unauthorized) });
    let hidden = layer.authorize(|_| async { Err(Denied::NotFound) });
    for method in ["GET", "HEAD", "DELETE"] {
        let ((status, headers, _), calls) = around(refused.clone(), request(method, "/a", "")).await;
        assert_eq!((status, calls), (401, 0), "{method}");
        assert_eq!(headers[header::WWW_AUTHENTICATE], "Bearer");
        let ((status, ..), calls) = around(hidden.clone(), request(method, "/a", "")).await;
        assert_eq!((status, calls), (200, 1), "{method}: the application answers");
    }
    assert_eq!((watch.now().stats, watch.now().opens), (0, 0));
}

#[tokio::test]
async fn a_refusal_has_its_own_challenges() {
    let layer = HttpFStreamLayer::new(MemoryStorage::new(1 << 20)).mount("/").authorize(|_| async {
        Err(Denied::challenge(["Basic realm=\"logs\"", "Negotiate"].map(HeaderValue::from_static)))
    });
    let ((status, headers, _), _) = around(layer, request("GET", "/a", "")).await;
    let challenges: Vec<_> = headers.get_all(header::WWW_AUTHENTICATE).iter().collect();
    assert_eq!(status, 401);
    assert_eq!(challenges, ["Basic realm=\"logs\"", "Negotiate"]);

    let denied = Denied::from(Error::new(ErrorKind::Overloaded).with_detail("the directory is away"));
    let response = Error::from(denied).to_response();
    assert_eq!((response.status().as_u16(), &response.headers()[header::RETRY_AFTER]), (503, &HeaderValue::from(5)));
    let (_, headers, text) = whole(response).await;
    assert_eq!(headers[header::CONTENT_TYPE], "application/problem+json");
    assert!(text.contains("the directory is away"), "{text}");
}
