//! Which web pages may open WebSockets and write.

use http::{HeaderMap, header, request};

use crate::error::{Error, ErrorKind};

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
