//! The URL of a request, parsed and checked once.

use http::Uri;
use http::header::HeaderValue;
use http::uri::PathAndQuery;

use crate::error::{BoxError, Error, ErrorKind, Result};

/// The parts of a URL that a connection and a request need.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) tls: bool,
    /// A name or an address, an IPv6 address without its brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// The value of `Host` (RFC 9110 section 7.2).
    pub(super) authority: HeaderValue,
    pub(super) path: PathAndQuery,
}

impl Target {
    pub(super) fn new<U>(url: U) -> Result<Self>
    where
        U: TryInto<Uri>,
        U::Error: Into<BoxError>,
    {
        let uri = url.try_into().map_err(|error| bad("the URL is malformed").with_source(error))?;
        let tls = match uri.scheme_str() {
            Some("http" | "ws") => false,
            Some("https" | "wss") => true,
            _ => return Err(bad("the URL has to begin with http://, https://, ws:// or wss://")),
        };
        if tls && cfg!(not(feature = "tls")) {
            return Err(bad("https and wss need the feature `tls` of the httpfstream crate, which is off here"));
        }
        let authority = uri.authority().ok_or_else(|| bad("the URL names no host"))?;
        if authority.as_str().contains('@') {
            return Err(bad("the URL holds a user name or password; send credentials as a header instead"));
        }
        let host = authority.host();
        let port = match authority.port_u16() {
            Some(port) => port,
            None if authority.as_str().len() > host.len() => {
                return Err(bad("the URL's port is not a number to 65535"));
            }
            None if tls => 443,
            None => 80,
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() {
            return Err(bad("the URL names no host"));
        }
        Ok(Self {
            tls,
            host: host.to_owned(),
            port,
            authority: HeaderValue::from_str(authority.as_str())
                .map_err(|error| bad("the URL's host is malformed").with_source(error))?,
            path: uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")),
        })
    }
}

fn bad(why: &'static str) -> Error {
    Error::new(ErrorKind::BadRequest).with_detail(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_parsed() {
        for (url, host, port, authority, path) in [
            ("http://localhost:8080/foo.txt", "localhost", 8080, "localhost:8080", "/foo.txt"),
            ("ws://h", "h", 80, "h", "/"),
            ("http://[::1]:81/a%20b?verb=x&y=1#frag", "::1", 81, "[::1]:81", "/a%20b?verb=x&y=1"),
            ("HTTP://[::1]/", "::1", 80, "[::1]", "/"),
        ] {
            let target = Target::new(url).unwrap();
            assert_eq!((target.host.as_str(), target.port, target.path.as_str()), (host, port, path), "{url}");
            assert_eq!(target.authority, authority);
        }
    }

    #[test]
    #[cfg(feature = "tls")]
    fn tls_defaults_to_port_443() {
        let target = Target::new("wss://h/x").unwrap();
        assert!(target.tls && target.port == 443);
    }

    #[test]
    #[cfg(not(feature = "tls"))]
    fn tls_needs_its_feature() {
        assert!(Target::new("https://h/x").unwrap_err().detail().contains("feature `tls`"));
    }

    #[test]
    fn unusable_urls_say_why_and_never_repeat_a_password() {
        for url in [
            "localhost:8080",
            "/foo",
            "ftp://h/",
            "http://user:secret@h/",
            "http://secret@h/",
            "http://h:99999/secret",
            "http://h:/x",
            "http://:80/",
            "http:///x",
            "",
            "http://h/a b",
        ] {
            let error = Target::new(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadRequest, "{url}");
            assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        }
    }
}
