//! Which web pages may open WebSockets and write, by their origin.

use http::{HeaderValue, header, request};

use crate::error::{Error, ErrorKind};

/// The origins whose pages may open WebSockets and write, beside pages of the request's own host.
///
/// Browsers let any page open a WebSocket to any host, with the user's cookies. Checking the `Origin` header (RFC 6454)
/// is the only defense.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origins {
    pub(crate) allowed: Vec<Box<str>>,
}

impl Origins {
    /// Refuses a request from a page of another origin that is not allowed. Clients other than browsers send no
    /// `Origin` and pass.
    pub(crate) fn check(&self, head: &request::Parts) -> Result<(), Error> {
        if !head.headers.contains_key(header::ORIGIN) {
            return Ok(());
        }
        let origin = single_origin(head).ok_or_else(forbidden_origin)?;
        if self.lists(origin) || is_own(origin, head) { Ok(()) } else { Err(forbidden_origin()) }
    }

    /// Whether the request comes from a page whose origin is allowed by name, or by `*`.
    pub(crate) fn is_listed(&self, head: &request::Parts) -> bool {
        single_origin(head).is_some_and(|origin| self.lists(origin))
    }

    pub(crate) fn allows_all(&self) -> bool {
        self.allowed.iter().any(|allowed| &**allowed == "*")
    }

    fn lists(&self, origin: &str) -> bool {
        self.allowed.iter().any(|allowed| &**allowed == "*" || allowed.eq_ignore_ascii_case(origin))
    }
}

pub(crate) fn forbidden_origin() -> Error {
    Error::new(ErrorKind::Forbidden).with_detail("this web page's origin is not allowed here")
}

/// The request's `Origin`, if it has exactly one.
fn single_origin(head: &request::Parts) -> Option<&str> {
    let mut origins = head.headers.get_all(header::ORIGIN).into_iter();
    let (Some(origin), None) = (origins.next(), origins.next()) else { return None };
    HeaderValue::to_str(origin).ok()
}

/// Whether the origin is the host that the request was sent to. The scheme can't be compared, since a proxy may have
/// terminated TLS.
fn is_own(origin: &str, head: &request::Parts) -> bool {
    let Some((scheme, origin)) = origin.split_once("://") else { return false };
    let default = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return false,
    };
    let Some(host) = host(head) else { return false };
    match (authority(origin, default), authority(host, default)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}

/// The host that a request names: in its target (HTTP/2), else in its `Host` header.
fn host(head: &request::Parts) -> Option<&str> {
    match head.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => head.headers.get(header::HOST)?.to_str().ok(),
    }
}

/// Host and port, for comparison.
fn authority(text: &str, default: u16) -> Option<(String, u16)> {
    let authority: http::uri::Authority = text.parse().ok()?;
    Some((authority.host().to_ascii_lowercase(), authority.port_u16().unwrap_or(default)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_17_only_own_and_allowed_origins_pass() {
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
