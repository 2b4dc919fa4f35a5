//! Who may do what: the application's own check, and what browsers are let do.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, header, request};

use crate::error::{Error, ErrorKind};
use crate::intent::Verb;
use crate::key::Key;
use crate::storage::erased::BoxFuture;

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

/// Which web pages may open WebSockets and write: those of the request's own host, and these.
///
/// Browsers let any page open a WebSocket anywhere, with the user's cookies; the `Origin` header (RFC 6454) is all
/// there is against that.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origins {
    pub(crate) allowed: Vec<Box<str>>,
}

impl Origins {
    /// An error if the request comes from a foreign page. What is not a browser sends no `Origin`, and is let in.
    pub(crate) fn check(&self, head: &request::Parts) -> Result<(), Error> {
        let mut origins = head.headers.get_all(header::ORIGIN).into_iter();
        let (Some(origin), None) = (origins.next(), origins.next()) else {
            return if head.headers.contains_key(header::ORIGIN) { Err(foreign()) } else { Ok(()) };
        };
        let origin = origin.to_str().map_err(|_| foreign())?;
        if self.lists(origin) || is_own(origin, head) { Ok(()) } else { Err(foreign()) }
    }

    /// Whether the request comes from a page whose origin is allowed by name, or by `*`.
    pub(crate) fn is_listed(&self, head: &request::Parts) -> bool {
        let mut origins = head.headers.get_all(header::ORIGIN).into_iter();
        let (Some(origin), None) = (origins.next(), origins.next()) else { return false };
        origin.to_str().is_ok_and(|origin| self.lists(origin))
    }

    pub(crate) fn allows_all(&self) -> bool {
        self.allowed.iter().any(|allowed| &**allowed == "*")
    }

    fn lists(&self, origin: &str) -> bool {
        self.allowed.iter().any(|allowed| &**allowed == "*" || allowed.eq_ignore_ascii_case(origin))
    }
}

pub(crate) fn foreign() -> Error {
    Error::new(ErrorKind::Forbidden).with_detail("this web page's origin is not allowed here")
}

/// Whether the origin is the host that the request was sent to. The scheme can't be compared: a proxy in between may
/// have ended TLS.
fn is_own(origin: &str, head: &request::Parts) -> bool {
    let Some((scheme, origin)) = origin.split_once("://") else { return false };
    let default = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return false,
    };
    let Some(host) = host(&head.headers, head) else { return false };
    match (authority(origin, default), authority(host, default)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}

/// The host that a request names: in its target over HTTP/2, else in its `Host` header.
pub(crate) fn host<'a>(headers: &'a HeaderMap, head: &'a request::Parts) -> Option<&'a str> {
    match head.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => headers.get(header::HOST)?.to_str().ok(),
    }
}

fn authority(text: &str, default: u16) -> Option<(String, u16)> {
    let authority: http::uri::Authority = text.parse().ok()?;
    Some((authority.host().to_ascii_lowercase(), authority.port_u16().unwrap_or(default)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_17_only_own_and_listed_origins() {
        let origins = Origins { allowed: vec!["https://app.example".into()] };
        let check = |host: &str, sent: &[&str]| {
            let mut request = http::Request::builder().uri("/a").header("host", host);
            for origin in sent {
                request = request.header("origin", *origin);
            }
            origins.check(&request.body(()).unwrap().into_parts().0).is_ok()
        };
        for (host, origin) in [
            ("a.example", "http://a.example"),
            ("a.example", "https://a.example"),
            ("A.example:443", "https://a.example"),
            ("a.example:8080", "http://a.example:8080"),
            ("a.example", "https://app.example"),
            ("[::1]:80", "http://[::1]"),
        ] {
            assert!(check(host, &[origin]), "{origin} at {host}");
        }
        assert!(check("a.example", &[]), "not a browser");
        for (host, origin) in [
            ("a.example", "null"),
            ("a.example", ""),
            ("a.example", "http://b.example"),
            ("a.example", "http://a.example.evil"),
            ("a.example", "http://evil/a.example"),
            ("a.example:8080", "http://a.example"),
            ("a.example:8080", "http://a.example:8081"),
            ("a.example", "file://a.example"),
            ("a.example", "https://app.example.evil"),
        ] {
            assert!(!check(host, &[origin]), "{origin} at {host}");
        }
        assert!(!check("a.example", &["http://a.example", "http://a.example"]), "twice");
    }
}
