//! What is checked before the storage is touched: rights, conditions, and the end of a grant.

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

/// Whether a header of entity tags lists this one (or any): strongly compared for `If-Match`, else weakly. `None`
/// without such a header.
pub(crate) fn lists(asked: &HeaderMap, name: header::HeaderName, tag: &str) -> Option<bool> {
    let weak = name != header::IF_MATCH;
    let mut values = asked.get_all(name).into_iter().peekable();
    values.peek()?;
    Some(values.any(|value| {
        value.to_str().unwrap_or("").split(',').map(str::trim).any(|listed| {
            let listed = if weak { listed.strip_prefix("W/").unwrap_or(listed) } else { listed };
            listed == "*" || listed == tag
        })
    }))
}

/// Whether a request that changes something depends on another state of the resource than it is in.
pub(crate) fn depends_on_another(asked: &HeaderMap, stat: &Stat) -> bool {
    let tag = etag(stat);
    lists(asked, header::IF_MATCH, &tag) == Some(false) || lists(asked, header::IF_NONE_MATCH, &tag) == Some(true)
}

/// How long a closing connection may take to hear out and to be heard out.
pub(crate) fn closing(hub: &Hub) -> Duration {
    Duration::from_secs(if hub.shutting_down.is_cancelled() { 1 } else { 5 })
}

/// The end of a grant, if it has one.
pub(crate) async fn expiry(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}

/// What whoever had it is told at its end.
pub(crate) fn expired() -> Error {
    Error::new(ErrorKind::Forbidden).with_detail("no longer authorized")
}

/// Whether the application wants the request answered as if there were no resource: by the inner service then.
pub(crate) fn hidden<T>(allowed: &Result<T>) -> bool {
    allowed.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// `None` where there is nothing that could be a resource: the request is not ours then.
pub(crate) fn existing(stat: Result<Option<Stat>>) -> Option<Result<Stat>> {
    match stat {
        Ok(stat) => stat.map(Ok),
        Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::NotFound | ErrorKind::PathTooLong) => {
            None
        }
        Err(error) => Some(Err(error)),
    }
}
