//! Following without a WebSocket: the response's body is the stream, plain or as server-sent events (protocol section
//! 5). The cursor is the same as for WebSockets.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version, header, request};
use tokio::time::Instant;

use super::find;
use super::response_body::{BodyWriter, StreamedBody};
use crate::access::{Allowed, Verb};
use crate::body::{OwnBody, boxed, full};
use crate::error::{Error, ErrorKind, Result};
use crate::hub::{Cursor, Found, Hub, Step};
use crate::key::Key;
use crate::protocol::StartPosition;
use crate::protocol::events::{self, Encoder};
use crate::protocol::headers::STREAM_OFFSET;
use crate::server::checks::{authorize, deadline, expired, expiry};
use crate::server::config::Options;
use crate::server::parameters::{EventId, FollowHeaders, Parameters, Range, UNBOUNDED, bad_request, malformed};
use crate::server::read::{content_type, serve};
use crate::server::response::{describe, empty, problem_with_stat, sandbox};
use crate::state::{Stat, State};

const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");
/// Keeps nginx from buffering the response.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Answers a FOLLOW without an upgrade.
pub(crate) async fn follow(
    hub: &Arc<Hub>,
    options: &Options,
    key: Key,
    head: &request::Parts,
) -> Result<Response<OwnBody>> {
    let parameters = Parameters::for_follow(head)?;
    let follow_headers = FollowHeaders::from_head(head)?;
    let Allowed { key, left, .. } = authorize(options, Verb::Follow, key, head).await?;
    let (mut cursor, stat) = match find(hub, options, &key, parameters.wait).await {
        Ok(Found::Open(cursor)) => {
            let stat = Stat::new(cursor.life(), cursor.len(), cursor.state());
            (cursor, stat)
        }
        Ok(Found::Closed(cursor, stat)) => (cursor, stat),
        Err(error) if follow_headers.accepts_events && error.kind() == ErrorKind::ShuttingDown => {
            return Ok(empty_event_stream());
        }
        Err(error) => return Err(error),
    };
    let (start, partial) = match plan(&parameters, &follow_headers, head, &stat) {
        Ok(Plan::Follow(start)) => (start, false),
        Ok(Plan::FollowRange(start)) => (start, true),
        Ok(Plan::Snapshot) => return serve(hub, &key, head, &stat, &options.content_type).await,
        Ok(Plan::NoContent) => {
            let mut response = empty(StatusCode::NO_CONTENT);
            describe(response.headers_mut(), &stat);
            forbid_buffering(response.headers_mut(), false);
            return Ok(response);
        }
        Err(error) => return Ok(problem_with_stat(&error, Some(stat))),
    };
    if let Err(error) = cursor.start(start).await {
        return Ok(problem_with_stat(&error, Some(stat)));
    }
    let at = cursor.at();
    let live = stat.state.is_open();
    let mut response = empty(if partial { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK });
    let headers = response.headers_mut();
    describe(headers, &stat);
    forbid_buffering(headers, live);
    sandbox(headers);
    headers.insert(STREAM_OFFSET, HeaderValue::from(at));
    let content_type = match follow_headers.accepts_events {
        true => EVENT_STREAM,
        false => content_type(&key, &options.content_type),
    };
    headers.insert(header::CONTENT_TYPE, content_type);
    let len = (!live && !follow_headers.accepts_events).then(|| stat.len - at);
    if let Some(len) = len {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(len));
    }
    if partial && let Ok(range) = HeaderValue::try_from(format!("bytes {at}-{UNBOUNDED}/*")) {
        headers.insert(header::CONTENT_RANGE, range);
    }
    if head.method == Method::HEAD {
        return Ok(response);
    }
    let limits = BodyLimits {
        heartbeat: follow_headers.accepts_events.then_some(options.timeouts.ping),
        until: deadline(left),
        stall: options.timeouts.stall,
        len,
    };
    Ok(response.map(|_| boxed(follow_body(Arc::clone(hub), cursor, limits))))
}

/// A stream of events that ends at once, upon which `EventSource` reconnects. After a 503 it would give up for good.
fn empty_event_stream() -> Response<OwnBody> {
    let mut response = Response::new(full(events::RETRY));
    forbid_buffering(response.headers_mut(), false);
    response.headers_mut().insert(header::CONTENT_TYPE, EVENT_STREAM);
    response
}

/// The response to a follow.
enum Plan {
    /// A body that follows from this position.
    Follow(StartPosition),
    /// The same, as a 206: a `Range` gave the position.
    FollowRange(StartPosition),
    /// What is stored now, as for a GET without a verb.
    Snapshot,
    /// A 204: the client has seen everything.
    NoContent,
}

fn plan(parameters: &Parameters, follow_headers: &FollowHeaders, head: &request::Parts, stat: &Stat) -> Result<Plan> {
    let live = stat.state.is_open();
    let expected_lives = [parameters.life, follow_headers.last_event_id.map(|last| last.life)];
    if expected_lives.into_iter().flatten().any(|life| life != stat.life) {
        return Err(ErrorKind::Life.into());
    }
    if live && head.version < Version::HTTP_11 {
        return Err(ErrorKind::HttpVersion.into());
    }
    if let Some(EventId { offset, interrupted, .. }) = follow_headers.last_event_id {
        // `EventSource` reconnects after every end, until it gets a 204.
        let seen_end = if interrupted { stat.state == State::Interrupted } else { stat.state.is_complete() };
        return Ok(if seen_end && offset == stat.len {
            Plan::NoContent
        } else {
            Plan::Follow(StartPosition::Offset(offset))
        });
    }
    if follow_headers.accepts_events {
        return Ok(Plan::Follow(parameters.start));
    }
    let range = if if_range_fails(&head.headers, stat) { Range::Absent } else { follow_headers.range };
    if range != Range::Absent && parameters.start != StartPosition::Beginning {
        return Err(bad_request("only one of `Range`, `offset`, `tail` and `lines` can be given".to_owned()));
    }
    Ok(match range {
        Range::From(start) if live => Plan::FollowRange(start),
        Range::Malformed if live => return Err(malformed("Range")),
        // Stored bytes never change, so this part of them is the same whether more follow or not.
        Range::Bounded => Plan::Snapshot,
        _ if !live && parameters.start == StartPosition::Beginning => Plan::Snapshot,
        _ => Plan::Follow(parameters.start),
    })
}

/// Whether there is an `If-Range` that is not for this life (RFC 9110 section 13.1.5). A tag of any length of this life
/// will do, since its bytes stay the same while it grows.
fn if_range_fails(headers: &HeaderMap, stat: &Stat) -> bool {
    let of_this_life = |tag: &HeaderValue| tag.as_bytes().starts_with(format!("\"{}-", stat.life).as_bytes());
    headers.get(header::IF_RANGE).is_some_and(|tag| !of_this_life(tag))
}

/// Tells caches, proxies and middleware to pass bytes on as they come.
fn forbid_buffering(headers: &mut HeaderMap, live: bool) {
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    if live {
        // Compression would delay bytes, and tower-http and nginx leave a response alone that has an encoding.
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("identity"));
    }
}

/// Bounds of one follow.
#[derive(Debug, Clone, Copy)]
struct BodyLimits {
    /// The time between heartbeats, which are comments, of a stream of server-sent events. `None` for plain bytes.
    heartbeat: Option<Duration>,
    /// When the grant expires.
    until: Option<Instant>,
    /// How long an abort waits for a reader that takes nothing. It never disconnects a reader by itself.
    stall: Duration,
    /// The length of the body, if it is known: the resource is closed, and the headers say in which state.
    len: Option<u64>,
}

/// The body of a follow.
fn follow_body(hub: Arc<Hub>, cursor: Cursor, limits: BodyLimits) -> StreamedBody {
    StreamedBody::new(limits.len, move |out| async move {
        // Counted, so that a shutdown waits until the follower has got the rest.
        let _counted = hub.tasks.token();
        let followed = tokio::select! {
            // Biased, so that what can be sent at once is sent even when the hub aborts.
            biased;
            followed = run(&hub, cursor, limits, &out) => followed,
            () = hub.aborting.cancelled() => return Err(Error::from(ErrorKind::ShuttingDown).into()),
        };
        let Err(error) = followed else { return Ok(()) };
        tokio::select! {
            () = out.sent(limits.stall) => {}
            () = hub.aborting.cancelled() => {}
        }
        Err(error.into())
    })
}

/// Sends what the cursor finds until the resource is closed. An error aborts the body.
async fn run(hub: &Hub, mut cursor: Cursor, limits: BodyLimits, out: &BodyWriter) -> Result<(), Error> {
    let BodyLimits { heartbeat, until, len, .. } = limits;
    let mut events = heartbeat.map(|_| Encoder::new(cursor.life(), cursor.at()));
    if let Some(events) = &mut events {
        out.send(events.begin(cursor.state())).await;
    }
    let mut heartbeat = heartbeat.map(|every| tokio::time::interval_at(Instant::now() + every, every));
    loop {
        if hub.aborting.is_cancelled() {
            return Err(ErrorKind::ShuttingDown.into());
        }
        if until.is_some_and(|until| until <= Instant::now()) {
            return Err(expired());
        }
        let step = tokio::select! {
            biased;
            step = cursor.next() => step?,
            () = expiry(until) => return Err(expired()),
            () = tick(&mut heartbeat) => {
                out.send(Bytes::from_static(b":\n\n")).await;
                continue;
            }
        };
        match (step, &mut events) {
            (Step::Data(mut pieces), None) => {
                for piece in pieces.take_all() {
                    out.send(piece).await;
                }
            }
            (Step::Data(mut pieces), Some(events)) => {
                let encoded = events.data(&pieces.take_all());
                if !encoded.is_empty() {
                    out.send(encoded).await;
                }
            }
            (Step::State(_), None) => {}
            (Step::State(state), Some(events)) => out.send(events.state(state)).await,
            // Always a clean end of the body, since the last event names the state.
            (Step::End(state), Some(events)) => {
                out.send(events.end(state)).await;
                return Ok(());
            }
            (Step::End(State::Interrupted), None) if len.is_none() => return Err(ErrorKind::Interrupted.into()),
            (Step::End(_), None) => return Ok(()),
            (Step::Cut(kind), _) => return Err(kind.into()),
        }
    }
}

/// The next tick, if there is an interval.
///
/// Cancel safe.
async fn tick(interval: &mut Option<tokio::time::Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}
