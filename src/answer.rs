//! From an intent to an answer: checks first, the storage last, a connection at the very end.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Response, StatusCode, header, request};
use tokio::time::Instant;

use crate::append;
use crate::body::{OwnBody, full};
use crate::error::{Error, ErrorKind, Result};
use crate::follow;
use crate::hub::{Cursor, Found, Hub};
use crate::intent::{Intent, Upgrade, Verb};
use crate::key::Key;
use crate::options::Options;
use crate::respond::{describe, problem};
use crate::serve::{depends_on_another, serve};
use crate::storage::{Open, Stat, State};
use crate::upgrade::Granted;

/// Answers what is ours. `None`: there is no such resource, and the request named none of our verbs.
pub(crate) async fn answer(
    hub: &Arc<Hub>,
    options: &Options,
    intent: Intent,
    head: &mut request::Parts,
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
        Intent::Plain { verb: Verb::Follow, key } => plain_follow(hub, options, key, head).await,
        Intent::Plain { .. } => Err(ErrorKind::UpgradeRequired.into()),
        Intent::Serve { key } => return read(hub, options, key, head).await,
        Intent::Delete { key } => return delete(hub, options, key, head).await,
    };
    Some(answered.unwrap_or_else(|error| problem(&error)))
}

async fn authorize(options: &Options, verb: Verb, key: Key, head: &request::Parts) -> Result<(Key, Option<Instant>)> {
    if options.read_only && verb != Verb::Follow {
        return Err(Error::new(ErrorKind::Forbidden).with_detail("this is read-only here"));
    }
    let Some(authorize) = &options.authorize else { return Ok((key, None)) };
    let (key, left) = authorize.check(verb, &key, head).await?.apply(key);
    if left == Some(Duration::ZERO) {
        return Err(ErrorKind::Unauthorized.into());
    }
    Ok((key, left.map(|left| Instant::now() + left)))
}

async fn append(
    hub: &Arc<Hub>,
    options: &Options,
    key: Key,
    upgrade: Upgrade,
    head: &mut request::Parts,
) -> Result<Response<OwnBody>> {
    options.origins.check(head)?;
    let (mut response, pending) = Granted::check(upgrade, head)?.split()?;
    let (key, until) = authorize(options, Verb::Append, key, head).await?;
    let lease = match hub.open(&key, Open::Continue).await {
        Ok(lease) => lease,
        Err(error) => return Ok(told_with(&error, hub.stat(&key).await.ok().flatten())),
    };
    let resource = lease.resource();
    describe(response.headers_mut(), &Stat::new(resource.life, resource.len(), State::Live));
    let terms = append::Terms {
        times: options.times,
        max_message: options.max_message,
        max_resource: options.max_resource,
        until,
        // Over HTTP/2 an end is told as one, and a cut may look like it.
        bare: upgrade == Upgrade::Http1 && append::is_bare(&head.headers),
    };
    let task_hub = Arc::clone(hub);
    hub.tasks.spawn(async move {
        // Without a connection the lease is dropped, and the resource is as it was.
        if let Some(io) = pending.wait().await {
            append::run(task_hub, io, lease, terms).await;
        }
    });
    Ok(response)
}

async fn follow(
    hub: &Arc<Hub>,
    options: &Options,
    key: Key,
    upgrade: Upgrade,
    original: bool,
    head: &mut request::Parts,
) -> Result<Response<OwnBody>> {
    options.origins.check(head)?;
    let granted = Granted::check(upgrade, head)?;
    let (key, until) = authorize(options, Verb::Follow, key, head).await?;
    let (cursor, state) = match hub.follow(&key).await?.ok_or(ErrorKind::NotFound)? {
        // New work is refused while shutting down, reading what is at rest is none.
        Found::Live(_) if hub.soft.is_cancelled() => return Err(ErrorKind::ShuttingDown.into()),
        Found::Live(cursor) => (cursor, State::Live),
        // As the original: no upgrade, the data as a plain body.
        Found::AtRest(stat) if upgrade == Upgrade::Http1 => {
            return serve(hub, &key, head, &stat, &options.content_type).await;
        }
        // There a body is impossible.
        Found::AtRest(stat) => (Cursor::at_rest(hub, &key, &stat), stat.state),
    };
    let (mut response, pending) = granted.split()?;
    describe(response.headers_mut(), &Stat::new(cursor.life(), cursor.len(), state));
    let terms = follow::Terms { times: options.times, until, original };
    let task_hub = Arc::clone(hub);
    hub.tasks.spawn(async move {
        if let Some(io) = pending.wait().await {
            follow::run(task_hub, io, cursor, terms).await;
        }
    });
    Ok(response)
}

/// A problem, with how the resource stands.
fn told_with(error: &Error, stat: Option<Stat>) -> Response<OwnBody> {
    let mut response = problem(error);
    if let Some(stat) = stat {
        describe(response.headers_mut(), &stat);
    }
    response
}

/// FOLLOW without an upgrade.
async fn plain_follow(hub: &Arc<Hub>, options: &Options, key: Key, head: &request::Parts) -> Result<Response<OwnBody>> {
    let (key, _) = authorize(options, Verb::Follow, key, head).await?;
    match hub.follow(&key).await?.ok_or(ErrorKind::NotFound)? {
        Found::Live(cursor) => {
            let stat = Stat::new(cursor.life(), cursor.len(), State::Live);
            Ok(told_with(&ErrorKind::UpgradeRequired.into(), Some(stat)))
        }
        Found::AtRest(stat) => serve(hub, &key, head, &stat, &options.content_type).await,
    }
}

/// GET or HEAD without a verb.
async fn read(hub: &Arc<Hub>, options: &Options, key: Key, head: &request::Parts) -> Option<Response<OwnBody>> {
    let allowed = authorize(options, Verb::Follow, key.clone(), head).await;
    if hidden(&allowed) {
        return None;
    }
    let meant = allowed.as_ref().map_or(&key, |(meant, _)| meant);
    let stat = existing(hub.stat(meant).await)?;
    let served = match (allowed, stat) {
        (Err(error), _) | (_, Err(error)) => Err(error),
        (Ok((key, _)), Ok(stat)) => match serve(hub, &key, head, &stat, &options.content_type).await {
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
    let meant = allowed.as_ref().map_or(&key, |(meant, _)| meant);
    let stat = match existing(hub.stat(meant).await)? {
        Ok(stat) => stat,
        Err(error) => return Some(problem(&error)),
    };
    let deleted = match allowed {
        Err(error) => Err(error),
        Ok(_) if depends_on_another(&head.headers, &stat) => Err(ErrorKind::Precondition.into()),
        Ok((key, _)) => hub.delete(&key).await,
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
