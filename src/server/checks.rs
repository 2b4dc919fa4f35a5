//! Checks that handlers share: authorization and its expiry, conditions, and which resources are visible.

use std::time::Duration;

use http::{HeaderMap, header, request};
use tokio::time::{Instant, sleep_until};

use crate::access::{Allowed, Verb};
use crate::error::{Error, ErrorKind, Result};
use crate::hub::Hub;
use crate::key::Key;
use crate::server::config::Options;
use crate::server::response::etag;
use crate::state::Stat;

/// Whether the request may do this: a read-only layer refuses writes, then the application decides. A grant that has
/// expired already is a 401.
pub(crate) async fn authorize(options: &Options, verb: Verb, key: Key, head: &request::Parts) -> Result<Allowed> {
    if verb != Verb::Follow {
        writable(options)?;
    }
    grant(options, verb, key, head).await
}

/// An error if the layer is read-only.
pub(crate) fn writable(options: &Options) -> Result<()> {
    match options.read_only {
        true => Err(Error::new(ErrorKind::Forbidden).with_detail("this is read-only here")),
        false => Ok(()),
    }
}

/// What the application says to the request.
pub(crate) async fn grant(options: &Options, verb: Verb, key: Key, head: &request::Parts) -> Result<Allowed> {
    let Some(authorize) = &options.authorize else { return Ok(Allowed { key, left: None, principal: None }) };
    let allowed = authorize.check(verb, &key, head).await?.apply(key);
    if allowed.left == Some(Duration::ZERO) {
        return Err(ErrorKind::Unauthorized.into());
    }
    Ok(allowed)
}

/// Whether a header of entity tags has this one (or `*`), by strong comparison for `If-Match`, else by weak. `None`
/// without such a header.
pub(crate) fn lists(headers: &HeaderMap, name: header::HeaderName, tag: &str) -> Option<bool> {
    let weak = name != header::IF_MATCH;
    let mut values = headers.get_all(name).into_iter().peekable();
    values.peek()?;
    Some(values.any(|value| {
        value.to_str().unwrap_or("").split(',').map(str::trim).any(|listed| {
            let listed = if weak { listed.strip_prefix("W/").unwrap_or(listed) } else { listed };
            listed == "*" || listed == tag
        })
    }))
}

/// Whether the preconditions of a request that changes the resource fail (RFC 9110 section 13).
pub(crate) fn depends_on_another(headers: &HeaderMap, stat: &Stat) -> bool {
    let tag = etag(stat);
    lists(headers, header::IF_MATCH, &tag) == Some(false) || lists(headers, header::IF_NONE_MATCH, &tag) == Some(true)
}

/// How long a closing WebSocket may take to flush and to drain.
pub(crate) fn closing(hub: &Hub) -> Duration {
    Duration::from_secs(if hub.shutting_down.is_cancelled() { 1 } else { 5 })
}

/// When a grant expires that is valid for `left` from now.
pub(crate) fn deadline(left: Option<Duration>) -> Option<Instant> {
    left.map(|left| Instant::now() + left)
}

/// Waits until a grant expires, forever if it doesn't.
///
/// Cancel safe.
pub(crate) async fn expiry(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}

/// The error for an expired grant.
pub(crate) fn expired() -> Error {
    Error::new(ErrorKind::Forbidden).with_detail("no longer authorized")
}

/// `None` if there is no such resource, or the path can't name one: the request is not ours then.
pub(crate) fn existing(stat: Result<Option<Stat>>) -> Option<Result<Stat>> {
    match stat {
        Ok(stat) => stat.map(Ok),
        Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::NotFound | ErrorKind::PathTooLong) => {
            None
        }
        Err(error) => Some(Err(error)),
    }
}
