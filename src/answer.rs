//! From an intent to an answer: checks first, the storage last, a connection at the very end.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, Response, StatusCode, header, request};
use http_body::Body;
use tokio::time::Instant;

use crate::access::Allowed;
use crate::append;
use crate::asked::Asked;
use crate::body::{OwnBody, full};
use crate::cors;
use crate::error::{Error, ErrorKind, Result};
use crate::follow;
use crate::hub::{Attach, Attached, Found, Hub};
use crate::id::Owner;
use crate::inflow::RequestBody;
use crate::intent::{Intent, Upgrade, Verb};
use crate::key::Key;
use crate::options::Options;
use crate::plain;
use crate::respond::{describe, problem};
use crate::serve::{depends_on_another, serve};
use crate::storage::{Open, Stat};
use crate::upgrade::Granted;
use crate::upload::upload;

/// Answers what is ours. `None`: there is no such resource, and the request named none of our verbs. `body` is asked for
/// only once it will be appended.
pub(crate) async fn answer(
    hub: &Arc<Hub>,
    options: &Options,
    intent: Intent,
    head: &mut request::Parts,
    body: &mut (dyn FnMut() -> RequestBody + Send),
) -> Option<Response<OwnBody>> {
    let mut response = answer_any(hub, options, intent, head, body).await?;
    if head.method == Method::HEAD {
        // hyper leaves it out over HTTP/1.1, but over HTTP/2 it would be sent.
        if let Some(len @ 1..) = response.body().size_hint().exact() {
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(len));
        }
        *response.body_mut() = full("");
    }
    cors::expose(&options.origins, head, response.headers_mut());
    Some(response)
}

async fn answer_any(
    hub: &Arc<Hub>,
    options: &Options,
    intent: Intent,
    head: &mut request::Parts,
    body: &mut (dyn FnMut() -> RequestBody + Send),
) -> Option<Response<OwnBody>> {
    let answered = match intent {
        Intent::Pass => return None,
        Intent::Refuse(error) => Err(error),
        Intent::MethodNotAllowed { allow } => {
            let mut response = problem(&ErrorKind::MethodNotAllowed.into());
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
            Ok(response)
        }
        Intent::Socket { verb: Verb::Append, key, upgrade, .. } => append(hub, options, key, upgrade, head).await,
        Intent::Socket { key, upgrade, by_header, .. } => follow(hub, options, key, upgrade, by_header, head).await,
        Intent::Plain { verb: Verb::Follow, key } => plain::follow(hub, options, key, head).await,
        Intent::Plain { key, .. } => upload(hub, options, key, head, body).await,
        Intent::Preflight => cors::preflight(&options.origins, head),
        Intent::Serve { key } => return read(hub, options, key, head).await,
        Intent::Delete { key } => return delete(hub, options, key, head).await,
    };
    Some(answered.unwrap_or_else(|error| problem(&error)))
}

pub(crate) async fn authorize(options: &Options, verb: Verb, key: Key, head: &request::Parts) -> Result<Allowed> {
    if options.read_only && verb != Verb::Follow {
        return Err(Error::new(ErrorKind::Forbidden).with_detail("this is read-only here"));
    }
    let Some(authorize) = &options.authorize else { return Ok(Allowed { key, left: None, principal: None }) };
    let allowed = authorize.check(verb, &key, head).await?.apply(key);
    if allowed.left == Some(Duration::ZERO) {
        return Err(ErrorKind::Unauthorized.into());
    }
    Ok(allowed)
}

async fn append(
    hub: &Arc<Hub>,
    options: &Options,
    key: Key,
    upgrade: Upgrade,
    head: &mut request::Parts,
) -> Result<Response<OwnBody>> {
    options.origins.check(head)?;
    let asked = Asked::of(head, Verb::Append)?;
    let granted = Granted::check(upgrade, head)?;
    let granted = if asked.v1 { granted.speak_v1() } else { granted };
    let (mut response, pending) = granted.split()?;
    let Allowed { key, left, principal } = authorize(options, Verb::Append, key, head).await?;
    let attach = Attach {
        how: if asked.create { Open::Create } else { Open::Continue },
        owner: asked.appender.map(|id| Owner::new(&id, principal.as_deref())),
        offset: asked.offset,
        life: asked.life,
        finish: asked.finish,
    };
    let (lease, resumed) = match hub.attach(&key, attach).await {
        Ok(Attached::Open { lease, resumed }) => (lease, resumed),
        Ok(Attached::Finished(stat)) => {
            describe(response.headers_mut(), &stat);
            let task_hub = Arc::clone(hub);
            hub.tasks.spawn(async move {
                if let Some(io) = pending.wait().await {
                    append::finished(task_hub, io, stat).await;
                }
            });
            return Ok(response);
        }
        Err(error) => return Ok(told_with(&error, hub.stat(&key).await.ok().flatten())),
    };
    describe(response.headers_mut(), &lease.resource().stat());
    let terms = append::Terms {
        times: options.times,
        max_message: options.max_message,
        max_resource: options.max_resource,
        until: left.map(|left| Instant::now() + left),
    };
    let dialect = match asked.v1 {
        true => append::Dialect::V1 { resumed },
        // Over HTTP/2 an end is told as one, and a cut may look like it.
        false => append::Dialect::Original { bare: upgrade == Upgrade::Http1 && append::is_bare(&head.headers) },
    };
    let task_hub = Arc::clone(hub);
    hub.tasks.spawn(async move {
        // Without a connection the lease is dropped, and the resource is as it was.
        if let Some(io) = pending.wait().await {
            append::run(task_hub, io, lease, terms, dialect).await;
        }
    });
    Ok(response)
}

async fn follow(
    hub: &Arc<Hub>,
    options: &Options,
    key: Key,
    upgrade: Upgrade,
    by_header: bool,
    head: &mut request::Parts,
) -> Result<Response<OwnBody>> {
    options.origins.check(head)?;
    let asked = Asked::of(head, Verb::Follow)?;
    let granted = Granted::check(upgrade, head)?;
    let Allowed { key, left, .. } = authorize(options, Verb::Follow, key, head).await?;
    let (mut cursor, modified) = match find(hub, options, &key, asked.wait).await? {
        Found::Open(cursor) => (cursor, None),
        // As the original: no upgrade, the data as a plain body. A browser can't read that, and over HTTP/2 a body is
        // impossible.
        Found::AtRest(_, stat) if upgrade == Upgrade::Http1 && !asked.v1 => {
            return serve(hub, &key, head, &stat, &options.content_type).await;
        }
        Found::AtRest(cursor, stat) => (cursor, stat.modified),
    };
    let stat = Stat::new(cursor.life(), cursor.len(), cursor.state()).modified(modified);
    let begun = match asked.life.is_some_and(|life| life != stat.life) {
        true => Err(ErrorKind::Life.into()),
        false => cursor.start(asked.begin).await,
    };
    if let Err(error) = begun {
        return Ok(told_with(&error, Some(stat)));
    }
    let granted = if asked.v1 { granted.speak_v1() } else { granted };
    let (mut response, pending) = granted.split()?;
    describe(response.headers_mut(), &stat);
    let dialect = if asked.v1 { follow::Dialect::V1 } else { follow::Dialect::Original { by_header } };
    let terms = follow::Terms { times: options.times, until: left.map(|left| Instant::now() + left), dialect };
    let task_hub = Arc::clone(hub);
    hub.tasks.spawn(async move {
        if let Some(io) = pending.wait().await {
            follow::run(task_hub, io, cursor, terms).await;
        }
    });
    Ok(response)
}

/// What there is to follow, waited for as long as was asked for.
pub(crate) async fn find(hub: &Arc<Hub>, options: &Options, key: &Key, wait: Option<Duration>) -> Result<Found> {
    let found = match wait.map(|wait| wait.min(options.max_wait)) {
        None | Some(Duration::ZERO) => hub.follow(key).await?,
        Some(limit) => hub.follow_within(key, limit).await?,
    };
    match found.ok_or(ErrorKind::NotFound)? {
        // New work is refused while shutting down, reading what is at rest is none.
        Found::Open(_) if hub.soft.is_cancelled() => Err(ErrorKind::ShuttingDown.into()),
        found => Ok(found),
    }
}

/// A problem, with how the resource stands.
pub(crate) fn told_with(error: &Error, stat: Option<Stat>) -> Response<OwnBody> {
    let mut response = problem(error);
    if let Some(stat) = stat {
        describe(response.headers_mut(), &stat);
        if error.kind() == ErrorKind::PastEnd
            && let Ok(range) = HeaderValue::try_from(format!("bytes */{}", stat.len))
        {
            response.headers_mut().insert(header::CONTENT_RANGE, range);
        }
    }
    response
}

/// GET or HEAD without a verb.
async fn read(hub: &Arc<Hub>, options: &Options, key: Key, head: &request::Parts) -> Option<Response<OwnBody>> {
    let allowed = authorize(options, Verb::Follow, key.clone(), head).await;
    if hidden(&allowed) {
        return None;
    }
    let meant = allowed.as_ref().map_or(&key, |allowed| &allowed.key);
    let stat = existing(hub.stat(meant).await)?;
    let served = match (allowed, stat) {
        (Err(error), _) | (_, Err(error)) => Err(error),
        (Ok(Allowed { key, .. }), Ok(stat)) => match serve(hub, &key, head, &stat, &options.content_type).await {
            // Gone since.
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            served => served,
        },
    };
    Some(served.unwrap_or_else(|error| problem(&error)))
}

/// DELETE without a verb.
async fn delete(hub: &Arc<Hub>, options: &Options, key: Key, head: &request::Parts) -> Option<Response<OwnBody>> {
    let allowed = match options.origins.check(head) {
        Ok(()) => authorize(options, Verb::Delete, key.clone(), head).await,
        Err(error) => Err(error),
    };
    if hidden(&allowed) {
        return None;
    }
    let meant = allowed.as_ref().map_or(&key, |allowed| &allowed.key);
    let stat = match existing(hub.stat(meant).await)? {
        Ok(stat) => stat,
        Err(error) => return Some(problem(&error)),
    };
    let deleted = match allowed {
        Err(error) => Err(error),
        Ok(_) if depends_on_another(&head.headers, &stat) => Err(ErrorKind::Precondition.into()),
        Ok(Allowed { key, .. }) => hub.delete(&key).await,
    };
    Some(match deleted {
        Ok(()) => {
            let mut response = Response::new(full(""));
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        }
        Err(error) => problem(&error),
    })
}

/// Whether the application wants the request answered as if there were no resource: by the inner service then.
fn hidden<T>(allowed: &Result<T>) -> bool {
    allowed.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// `None` where there is nothing that could be a resource: the request is not ours then.
fn existing(stat: Result<Option<Stat>>) -> Option<Result<Stat>> {
    match stat {
        Ok(stat) => stat.map(Ok),
        Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::NotFound | ErrorKind::PathTooLong) => {
            None
        }
        Err(error) => Some(Err(error)),
    }
}
