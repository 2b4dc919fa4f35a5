//! Who may do what: the application's own check, and what browsers are let do.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::request;

use crate::error::{Error, ErrorKind};
use crate::key::Key;
use futures_core::future::BoxFuture;

/// What a request does with a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verb {
    /// Write at its end.
    Append,
    /// Read it, as it stands or as it grows. A plain GET or HEAD too.
    Follow,
    /// Delete it.
    Delete,
}

impl Verb {
    pub(crate) fn parse(value: &[u8]) -> Option<Self> {
        if value.eq_ignore_ascii_case(b"APPEND") {
            Some(Self::Append)
        } else if value.eq_ignore_ascii_case(b"FOLLOW") {
            Some(Self::Follow)
        } else {
            None
        }
    }
}

/// A request that asks to be let in: see [`HttpFStreamLayer::authorize`](crate::HttpFStreamLayer::authorize).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Access {
    /// What it wants to do.
    pub verb: Verb,
    /// To which resource, as the URL names it.
    pub key: Key,
    /// The request's head, with the extensions that layers outside have set.
    pub head: request::Parts,
}

/// Lets a request in.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Grant {
    until: Option<SystemTime>,
    key: Option<Key>,
    principal: Option<Box<str>>,
}

impl Grant {
    /// Without conditions.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the connection at this time: a long follow or append doesn't outlive its token (close code 4003).
    pub fn until(mut self, end: SystemTime) -> Self {
        self.until = Some(end);
        self
    }

    /// Maps the request to another resource than its URL names: `tenant-7/` before each key, say.
    pub fn key(mut self, key: Key) -> Self {
        self.key = Some(key);
        self
    }

    /// Says who asks, so that an [`AppenderId`](crate::AppenderId) that somebody else has got hold of is of no use to
    /// them: only the same principal can come back with it.
    pub fn principal(mut self, name: impl Into<String>) -> Self {
        self.principal = Some(name.into().into());
        self
    }

    pub(crate) fn apply(self, key: Key) -> Allowed {
        let left = self.until.map(|end| end.duration_since(SystemTime::now()).unwrap_or_default());
        Allowed { key: self.key.unwrap_or(key), left, principal: self.principal }
    }
}

/// What a request was let in to.
#[derive(Debug)]
pub(crate) struct Allowed {
    /// The resource that is meant.
    pub(crate) key: Key,
    /// For how long.
    pub(crate) left: Option<Duration>,
    pub(crate) principal: Option<Box<str>>,
}

/// Keeps a request out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Denied {
    /// 401: who is it? Sent with `WWW-Authenticate: Bearer` (RFC 9110 section 15.5.2 asks for a challenge).
    Unauthorized,
    /// 403: not this one.
    Forbidden,
    /// 404, or the inner service's answer to a plain GET: doesn't even tell whether there is such a resource.
    NotFound,
}

impl From<Denied> for Error {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Unauthorized => ErrorKind::Unauthorized,
            Denied::Forbidden => ErrorKind::Forbidden,
            Denied::NotFound => ErrorKind::NotFound,
        }
        .into()
    }
}

/// The application's check, erased.
#[derive(Clone)]
pub(crate) struct Authorize(Arc<dyn Fn(Access) -> BoxFuture<'static, Result<Grant, Denied>> + Send + Sync>);

impl Authorize {
    pub(crate) fn new<F, Fut>(check: F) -> Self
    where
        F: Fn(Access) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Grant, Denied>> + Send + 'static,
    {
        Self(Arc::new(move |access| Box::pin(check(access))))
    }

    pub(crate) async fn check(&self, verb: Verb, key: &Key, head: &request::Parts) -> Result<Grant, Denied> {
        (self.0)(Access { verb, key: key.clone(), head: head.clone() }).await
    }
}

impl fmt::Debug for Authorize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authorize")
    }
}
