//! Following without a WebSocket: the response's body is the stream, as it is or as server-sent events (protocol section
//! 5). The cursor is the one that WebSockets follow with.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version, header, request};
use tokio::time::Instant;

use super::find;
use super::response_body::{BodyWriter, FollowBody};
use crate::access::{Allowed, Verb};
use crate::body::{OwnBody, boxed, full};
use crate::error::{Error, ErrorKind, Result};
use crate::hub::{Cursor, Found, Hub, Step};
use crate::key::Key;
use crate::protocol::StartPosition;
use crate::protocol::events::{self, Encoder};
use crate::protocol::headers::STREAM_OFFSET;
use crate::server::checks::{authorize, expired, expiry};
use crate::server::config::Options;
use crate::server::parameters::{EventId, FollowHeaders, Parameters, Range, UNBOUNDED, bad, malformed};
use crate::server::read::{content_type, serve};
use crate::server::response::{describe, problem_with_stat, sandbox};
use crate::state::{Stat, State};

const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");
/// Tells nginx not to gather what it passes on.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// FOLLOW without an upgrade.
pub(crate) async fn follow(
    hub: &Arc<Hub>,
    options: &Options,
    key: Key,
    head: &request::Parts,
) -> Result<Response<OwnBody>> {
    let parameters = Parameters::to_follow(head)?;
    let headers_of_follow = FollowHeaders::of(head)?;
    let Allowed { key, left, .. } = authorize(options, Verb::Follow, key, head).await?;
    let (mut cursor, stat) = match find(hub, options, &key, parameters.wait).await {
        Ok(Found::Open(cursor)) => {
            let stat = Stat::new(cursor.life(), cursor.len(), cursor.state());
            (cursor, stat)
        }
        Ok(Found::Closed(cursor, stat)) => (cursor, stat),
        Err(error) if headers_of_follow.events && error.kind() == ErrorKind::ShuttingDown => return Ok(come_again()),
        Err(error) => return Err(error),
    };
    let (begin, partial) = match plan(&parameters, &headers_of_follow, head, &stat) {
        Ok(Plan::Live(begin)) => (begin, false),
        Ok(Plan::Part(begin)) => (begin, true),
        Ok(Plan::Snapshot) => return serve(hub, &key, head, &stat, &options.content_type).await,
        Ok(Plan::Nothing) => {
            let mut response = Response::new(full(""));
            *response.status_mut() = StatusCode::NO_CONTENT;
            describe(response.headers_mut(), &stat);
            not_to_be_held(response.headers_mut(), false);
            return Ok(response);
        }
        Err(error) => return Ok(problem_with_stat(&error, Some(stat))),
    };
    if let Err(error) = cursor.start(begin).await {
        return Ok(problem_with_stat(&error, Some(stat)));
    }
    let at = cursor.at();
    let live = stat.state.is_open();
    let mut response = Response::new(full(""));
    let headers = response.headers_mut();
    describe(headers, &stat);
    not_to_be_held(headers, live);
    sandbox(headers);
    headers.insert(STREAM_OFFSET, HeaderValue::from(at));
    let content_type = match headers_of_follow.events {
        true => EVENT_STREAM,
        false => content_type(&key, &options.content_type),
    };
    headers.insert(header::CONTENT_TYPE, content_type);
    let len = (!live && !headers_of_follow.events).then(|| stat.len - at);
    if let Some(len) = len {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(len));
    }
    if partial {
        if let Ok(range) = HeaderValue::try_from(format!("bytes {at}-{UNBOUNDED}/*")) {
            headers.insert(header::CONTENT_RANGE, range);
        }
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    if head.method == Method::HEAD {
        return Ok(response);
    }
    let limits = FollowLimits {
        keep_alive: headers_of_follow.events.then_some(options.times.ping),
        until: left.map(|left| Instant::now() + left),
        stall: options.times.stall,
        len,
    };
    Ok(response.map(|_| boxed(live_body(Arc::clone(hub), cursor, limits))))
}

/// Events that end before they begin. `EventSource` gives up for good when it is told 503, but comes back after this.
fn come_again() -> Response<OwnBody> {
    let mut response = Response::new(full(events::RETRY));
    not_to_be_held(response.headers_mut(), false);
    response.headers_mut().insert(header::CONTENT_TYPE, EVENT_STREAM);
    response
}

/// How a follower is answered.
enum Plan {
    /// By a body that follows from here on.
    Live(StartPosition),
    /// The same, and it was a range that said so.
    Part(StartPosition),
    /// As a GET without a verb.
    Snapshot,
    /// It has everything.
    Nothing,
}

fn plan(
    parameters: &Parameters,
    headers_of_follow: &FollowHeaders,
    head: &request::Parts,
    stat: &Stat,
) -> Result<Plan> {
    let live = stat.state.is_open();
    let lives = [parameters.life, headers_of_follow.last.map(|last| last.life)];
    if lives.into_iter().flatten().any(|life| life != stat.life) {
        return Err(ErrorKind::Life.into());
    }
    if live && head.version < Version::HTTP_11 {
        return Err(ErrorKind::HttpVersion.into());
    }
    if let Some(EventId { offset, interrupted, .. }) = headers_of_follow.last {
        // Whoever has been told all of it must not come again: `EventSource` does so until it is told 204.
        let told_all = if interrupted { stat.state == State::Interrupted } else { stat.state.is_complete() };
        return Ok(if told_all && offset == stat.len {
            Plan::Nothing
        } else {
            Plan::Live(StartPosition::Offset(offset))
        });
    }
    if headers_of_follow.events {
        return Ok(Plan::Live(parameters.begin));
    }
    let range = if depends_on_other_bytes(&head.headers, stat) { Range::No } else { headers_of_follow.range };
    if range != Range::No && parameters.begin != StartPosition::Beginning {
        return Err(bad("only one of `Range`, `offset`, `tail` and `lines` can be given".to_owned()));
    }
    Ok(match range {
        Range::From(begin) if live => Plan::Part(begin),
        Range::Malformed if live => return Err(malformed("Range")),
        // What is stored stays as it is: a piece of it is the same whether more comes or not.
        Range::Piece => Plan::Snapshot,
        _ if !live && parameters.begin == StartPosition::Beginning => Plan::Snapshot,
        _ => Plan::Live(parameters.begin),
    })
}

/// Whether `If-Range` names other bytes than those that are here. One life's bytes stay the same however long it gets (RFC
/// 9110 section 13.1.5).
fn depends_on_other_bytes(headers: &HeaderMap, stat: &Stat) -> bool {
    let of_this_life = |tag: &HeaderValue| tag.as_bytes().starts_with(format!("\"{}-", stat.life).as_bytes());
    headers.get(header::IF_RANGE).is_some_and(|tag| !of_this_life(tag))
}

/// Tells whatever is in between to pass on bytes as they come.
fn not_to_be_held(headers: &mut HeaderMap, live: bool) {
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    if live {
        // What compresses would hold bytes back. tower-http and nginx leave alone what has an encoding.
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("identity"));
    }
}

/// What a following body may do.
#[derive(Debug, Clone, Copy)]
struct FollowLimits {
    /// The bytes are told as server-sent events, with a comment every so often.
    keep_alive: Option<Duration>,
    /// When the right to it ends.
    until: Option<Instant>,
    /// How long a reader may take nothing before an abort no longer waits for it.
    stall: Duration,
    /// How long it will be, where that is known: the resource is at rest, and the head has told how it ended.
    len: Option<u64>,
}

/// A body that follows.
fn live_body(hub: Arc<Hub>, cursor: Cursor, limits: FollowLimits) -> FollowBody {
    BodyWriter::body(limits.len, move |out| async move {
        // A shutdown waits for what a follower is still to get.
        let _counted = hub.tasks.token();
        let followed = tokio::select! {
            // First what it has to be told, as far as that can be done at once.
            biased;
            followed = run(&hub, cursor, limits, &out) => followed,
            () = hub.aborting.cancelled() => return Err(Error::from(ErrorKind::ShuttingDown).into()),
        };
        let Err(error) = followed else { return Ok(()) };
        tokio::select! {
            () = out.settle(limits.stall) => {}
            () = hub.aborting.cancelled() => {}
        }
        Err(error.into())
    })
}

/// Sends what the cursor finds until the resource ends; an error where that is not its end.
async fn run(hub: &Hub, mut cursor: Cursor, limits: FollowLimits, out: &BodyWriter) -> Result<(), Error> {
    let FollowLimits { keep_alive, until, len, .. } = limits;
    let mut events = keep_alive.map(|_| Encoder::new(cursor.life(), cursor.at()));
    if let Some(events) = &mut events {
        out.send(events.begin(cursor.state())).await;
    }
    let mut beats = keep_alive.map(|every| tokio::time::interval_at(Instant::now() + every, every));
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
            () = beat(&mut beats) => {
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
                let told = events.data(&pieces.take_all());
                if !told.is_empty() {
                    out.send(told).await;
                }
            }
            (Step::State(_), None) => {}
            (Step::State(state), Some(events)) => out.send(events.state(state)).await,
            // The last event tells which end it is.
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

/// Cancel safe.
async fn beat(beats: &mut Option<tokio::time::Interval>) {
    match beats {
        Some(beats) => {
            beats.tick().await;
        }
        None => std::future::pending().await,
    }
}
