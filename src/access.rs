//! Who may do what: the application's own check, which [`HttpFStreamLayer::authorize`](crate::HttpFStreamLayer::authorize)
//! takes.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_core::future::BoxFuture;
use http::{HeaderValue, request};

use crate::error::{Error, ErrorKind};
use crate::key::Key;

/// What a request does with a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verb {
    /// Write at its end.
    Append,
    /// Read what is stored, or follow the resource as it grows. A plain GET or HEAD is `Follow` too.
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

/// A request that has to be authorized: see [`HttpFStreamLayer::authorize`](crate::HttpFStreamLayer::authorize).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Access {
    /// What the request does.
    pub verb: Verb,
    /// The resource that the URL names.
    pub key: Key,
    /// The head of the request, with the extensions that outer layers have set.
    pub head: request::Parts,
}

impl Access {
    /// An access as the layer makes it for each request, to test an `authorize` function without a server.
    ///
    /// ```
    /// use httpfstream::{Access, Denied, Grant, Key, Verb};
    ///
    /// async fn read_only(access: Access) -> Result<Grant, Denied> {
    ///     if access.verb == Verb::Follow { Ok(Grant::new()) } else { Err(Denied::Forbidden) }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> httpfstream::Result<()> {
    /// let (head, ()) = http::Request::builder().uri("/logs/a").body(()).unwrap().into_parts();
    /// let denied = read_only(Access::new(Verb::Append, Key::new("logs/a")?, head)).await;
    /// assert!(matches!(denied, Err(Denied::Forbidden)));
    /// # Ok(()) }
    /// ```
    pub fn new(verb: Verb, key: Key, head: request::Parts) -> Self {
        Self { verb, key, head }
    }
}

/// Permits a request.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Grant {
    until: Option<SystemTime>,
    key: Option<Key>,
    principal: Option<Box<str>>,
}

impl Grant {
    /// A grant without conditions.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the connection at this time, so that a long follow or append doesn't outlive its token. A WebSocket is closed
    /// with code 4003, a body is aborted.
    ///
    /// Default: the grant doesn't end.
    pub fn until(mut self, end: SystemTime) -> Self {
        self.until = Some(end);
        self
    }

    /// Maps the request to another resource than its URL names, for example to `tenant-7/` followed by the key.
    ///
    /// Default: the key that the URL names.
    pub fn key(mut self, key: Key) -> Self {
        self.key = Some(key);
        self
    }

    /// Names who makes the request. An [`AppenderId`](crate::AppenderId) is bound to this name: another principal that has
    /// got hold of the id can't resume with it.
    ///
    /// Default: no name, so that the id alone is enough.
    pub fn principal(mut self, name: impl Into<String>) -> Self {
        self.principal = Some(name.into().into());
        self
    }

    pub(crate) fn apply(self, key: Key) -> Allowed {
        let left = self.until.map(|end| end.duration_since(SystemTime::now()).unwrap_or_default());
        Allowed { key: self.key.unwrap_or(key), left, principal: self.principal }
    }
}

/// What a request was permitted.
#[derive(Debug)]
pub(crate) struct Allowed {
    /// The resource, after the grant has mapped it.
    pub(crate) key: Key,
    /// For how long.
    pub(crate) left: Option<Duration>,
    pub(crate) principal: Option<Box<str>>,
}

/// Refuses a request.
///
/// Every [`Error`] converts into one, so that `?` works in an `authorize` function: a check that could not be made is
/// answered with that error's own status.
#[derive(Debug)]
#[non_exhaustive]
pub enum Denied {
    /// 401 with `WWW-Authenticate: Bearer` (RFC 9110 section 15.5.2 requires a challenge). For other challenges see
    /// [`challenge`](Self::challenge).
    Unauthorized,
    /// 403.
    Forbidden,
    /// The request is answered as if the resource were absent, so that not even its existence is revealed: a plain GET,
    /// HEAD or DELETE goes on to the inner service, everything else is 404.
    NotFound,
    /// Any other refusal.
    Error(Error),
}

impl Denied {
    /// 401 with these challenges, one `WWW-Authenticate` header for each (RFC 9110 section 11.6.1).
    ///
    /// ```
    /// use http::HeaderValue;
    /// use httpfstream::Denied;
    ///
    /// // A browser then asks its user for a name and a password.
    /// let denied = Denied::challenge([HeaderValue::from_static("Basic realm=\"logs\"")]);
    /// ```
    pub fn challenge(challenges: impl IntoIterator<Item = HeaderValue>) -> Self {
        let error = Error::new(ErrorKind::Unauthorized);
        Self::Error(challenges.into_iter().fold(error, Error::with_challenge))
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unauthorized => ErrorKind::Unauthorized.fmt(f),
            Self::Forbidden => ErrorKind::Forbidden.fmt(f),
            Self::NotFound => ErrorKind::NotFound.fmt(f),
            Self::Error(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Denied {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Error(error) => error.source(),
            _ => None,
        }
    }
}

impl From<Error> for Denied {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<Denied> for Error {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Unauthorized => ErrorKind::Unauthorized.into(),
            Denied::Forbidden => ErrorKind::Forbidden.into(),
            Denied::NotFound => ErrorKind::NotFound.into(),
            Denied::Error(error) => error,
        }
    }
}

/// The application's check, with its type erased.
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
        (self.0)(Access::new(verb, key.clone(), head.clone())).await
    }
}

impl fmt::Debug for Authorize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authorize")
    }
}
