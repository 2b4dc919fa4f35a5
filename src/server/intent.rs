//! What a request wants, derived from its head alone: no I/O, no state.

use std::borrow::Cow;

use http::{HeaderMap, Method, Request, Version, header};
use percent_encoding::percent_decode_str;

use crate::access::Verb;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::protocol::headers::{APPENDER_ID, PARTIAL_UPLOAD, UPLOAD_COMPLETE, UPLOAD_DRAFT, UPLOAD_OFFSET, X_VERB};

/// Which requests the layer handles.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules {
    /// Below which path, without its trailing slash; empty: everywhere.
    pub(crate) mount: Box<str>,
    /// Whether requests count that are no upgrades.
    pub(crate) plain: bool,
    /// Whether a request without a verb means what its method says.
    pub(crate) verb_from_method: bool,
}

/// How a request asks for a WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Upgrade {
    /// `Upgrade: websocket` (RFC 6455).
    Http1,
    /// Extended CONNECT (RFC 8441).
    Http2,
}

/// What a request wants.
#[derive(Debug)]
pub(crate) enum Intent {
    /// The request is the inner service's.
    Pass,
    /// The request is for the layer, and invalid.
    Refuse(Error),
    /// The verb is ours, but doesn't take this method. `allow` lists those that it takes.
    MethodNotAllowed { allow: &'static str },
    /// An append or a follow over a WebSocket. `by_header`: the verb came in `X-Verb`, as from the original's client.
    WebSocket { verb: Verb, key: Key, upgrade: Upgrade, by_header: bool },
    /// An append or a follow without an upgrade, resumable uploads included.
    Http { verb: Verb, key: Key },
    /// A CORS preflight for one of our requests.
    Preflight,
    /// A GET or HEAD without a verb. The path may name a resource.
    Read { key: Key },
    /// A DELETE without a verb. The path may name a resource.
    Delete { key: Key },
}

impl Rules {
    /// The intent of a request whose path names the resource.
    pub(crate) fn intent<B>(&self, request: &Request<B>) -> Intent {
        match strip_prefix(request.uri().path(), &self.mount) {
            Some(path) => self.intent_for(request, || Key::from_url_path(path)),
            None => Intent::Pass,
        }
    }

    /// The intent of a request for a given resource, whatever its path.
    pub(crate) fn intent_for<B>(&self, request: &Request<B>, key: impl FnOnce() -> Result<Key>) -> Intent {
        let upgrade = requested_upgrade(request);
        if upgrade.is_none() && !self.plain {
            return Intent::Pass;
        }
        let Verbs { verb, by_header } = match verbs(request) {
            Ok(verbs) => verbs,
            Err(NotOurs::Unknown) if self.verb_from_method => {
                let detail = "the verb is unknown: it is APPEND or FOLLOW";
                return Intent::Refuse(Error::new(ErrorKind::BadRequest).with_detail(detail));
            }
            Err(NotOurs::Unknown) => return Intent::Pass,
            Err(NotOurs::Contradiction) => {
                let detail = "the verb is given more than once, with different values";
                return Intent::Refuse(Error::new(ErrorKind::BadRequest).with_detail(detail));
            }
        };
        let preflight = upgrade.is_none() && is_preflight(request);
        if preflight && (self.verb_from_method || verb.is_some() || announces_ours(request.headers())) {
            return Intent::Preflight;
        }
        // The key is parsed last, so that a request that is not ours costs no allocation.
        let followed = self.verb_from_method && upgrade.is_some();
        match (verb.or(followed.then_some(Verb::Follow)), upgrade) {
            (None, Some(_)) => Intent::Pass,
            (None, None) => match *request.method() {
                Method::GET | Method::HEAD => key().map_or(Intent::Pass, |key| Intent::Read { key }),
                Method::DELETE => key().map_or(Intent::Pass, |key| Intent::Delete { key }),
                Method::PUT | Method::POST | Method::PATCH if self.verb_from_method || is_resumable(request) => {
                    match key() {
                        Ok(key) => Intent::Http { verb: Verb::Append, key },
                        Err(error) => Intent::Refuse(error),
                    }
                }
                _ => Intent::Pass,
            },
            (Some(verb), upgrade) => match key() {
                Err(error) => Intent::Refuse(error),
                Ok(key) => match upgrade {
                    Some(upgrade) => Intent::WebSocket { verb, key, upgrade, by_header },
                    None => plain(request.method(), verb, key),
                },
            },
        }
    }
}

/// A verb without an upgrade. A GET that appends is let through, and refused later with a 426.
fn plain(method: &Method, verb: Verb, key: Key) -> Intent {
    let (fits, allow) = match verb {
        Verb::Follow => (matches!(*method, Method::GET | Method::HEAD), "GET, HEAD"),
        _ => (matches!(*method, Method::GET | Method::PUT | Method::POST | Method::PATCH), "GET, PUT, POST, PATCH"),
    };
    if fits { Intent::Http { verb, key } } else { Intent::MethodNotAllowed { allow } }
}

/// Whether the request is a resumable upload (draft-ietf-httpbis-resumable-upload).
fn is_resumable<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    headers.contains_key(UPLOAD_COMPLETE)
        || headers.contains_key(UPLOAD_DRAFT)
        || (request.method() == Method::PATCH && is_partial_upload(headers))
}

/// Whether the media type says that the body is a part of a resumable upload.
pub(crate) fn is_partial_upload(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| is_media_type(value.as_bytes(), PARTIAL_UPLOAD))
}

/// Whether a header value names this media type, with parameters or without.
pub(crate) fn is_media_type(value: &[u8], name: &str) -> bool {
    let bare = value.split(|byte| *byte == b';').next().unwrap_or_default();
    bare.trim_ascii().eq_ignore_ascii_case(name.as_bytes())
}

/// Whether the request is a preflight (the Fetch standard, "CORS-preflight request").
fn is_preflight<B>(request: &Request<B>) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ORIGIN)
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// Whether a preflight announces headers that only our requests have.
fn announces_ours(headers: &HeaderMap) -> bool {
    let ours = [X_VERB, APPENDER_ID, UPLOAD_OFFSET, UPLOAD_COMPLETE, UPLOAD_DRAFT];
    let mut announced = headers.get_all(header::ACCESS_CONTROL_REQUEST_HEADERS).into_iter();
    announced.any(|value| {
        tokens(value.as_bytes()).any(|name| ours.iter().any(|ours| name.eq_ignore_ascii_case(ours.as_str().as_bytes())))
    })
}

/// The rest of a path behind a prefix, which is matched on segment boundaries.
fn strip_prefix<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    if prefix.is_empty() {
        // `str::strip_prefix` would compare zero bytes at the dangling pointer of an empty box, for which glibc's
        // memcmp does a masked load from an unmapped page. That costs a hundred nanoseconds (seen with AVX-512).
        return Some(path);
    }
    path.strip_prefix(prefix).filter(|rest| rest.starts_with('/'))
}

fn requested_upgrade<B>(request: &Request<B>) -> Option<Upgrade> {
    if request.method() == Method::GET && request.version() == Version::HTTP_11 {
        let upgrade = request.headers().get(header::UPGRADE)?;
        let websocket = tokens(upgrade.as_bytes()).any(|token| token.eq_ignore_ascii_case(b"websocket"));
        return (websocket && has_connection_upgrade(request.headers())).then_some(Upgrade::Http1);
    }
    if request.method() == Method::CONNECT {
        let protocol = request.extensions().get::<hyper::ext::Protocol>()?;
        return protocol.as_str().eq_ignore_ascii_case("websocket").then_some(Upgrade::Http2);
    }
    None
}

fn has_connection_upgrade(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::CONNECTION).into_iter();
    values.any(|value| tokens(value.as_bytes()).any(|token| token.eq_ignore_ascii_case(b"upgrade")))
}

/// The elements of a comma-separated header value.
pub(crate) fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

struct Verbs {
    verb: Option<Verb>,
    by_header: bool,
}

enum NotOurs {
    Unknown,
    Contradiction,
}

/// The verb of a request, from its headers and its query.
fn verbs<B>(request: &Request<B>) -> Result<Verbs, NotOurs> {
    let mut found: Option<Option<Verb>> = None;
    let mut add = |value: &[u8]| {
        let verb = Verb::parse(value);
        match found {
            None => found = Some(verb),
            Some(before) if before == verb => {}
            Some(_) => return Err(NotOurs::Contradiction),
        }
        Ok(())
    };
    let mut by_header = false;
    for value in request.headers().get_all(X_VERB) {
        add(value.as_bytes().trim_ascii())?;
        by_header = true;
    }
    for (_, value) in query(request.uri().query().unwrap_or("")).filter(|(name, _)| name == "verb") {
        add(&Cow::from(percent_decode_str(value)))?;
    }
    match found {
        None => Ok(Verbs { verb: None, by_header: false }),
        Some(Some(verb)) => Ok(Verbs { verb: Some(verb), by_header }),
        Some(None) => Err(NotOurs::Unknown),
    }
}

/// The pairs of a query: names percent-decoded once, values still encoded.
pub(crate) fn query(query: &str) -> impl Iterator<Item = (Cow<'_, str>, &str)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (percent_decode_str(name).decode_utf8_lossy(), value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request's intent, in one line.
    fn summary(rules: &Rules, method: &str, uri: &str, headers: &[(&str, &str)]) -> String {
        let mut request = Request::builder().method(method).uri(uri);
        if method == "CONNECT" {
            request = request.version(Version::HTTP_2).extension(hyper::ext::Protocol::from_static("websocket"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        match rules.intent(&request.body(()).unwrap()) {
            Intent::Pass => "pass".into(),
            Intent::Refuse(error) => error.kind().status().as_str().into(),
            Intent::MethodNotAllowed { allow } => format!("405 {allow}"),
            Intent::WebSocket { verb, key, upgrade, by_header } => {
                format!("{verb:?} {key} {upgrade:?}{}", if by_header { " by header" } else { "" })
            }
            Intent::Http { verb, key } => format!("plain {verb:?} {key}"),
            Intent::Preflight => "preflight".into(),
            Intent::Read { key } => format!("serve {key}"),
            Intent::Delete { key } => format!("delete {key}"),
        }
    }

    const WS: [(&str, &str); 2] = [("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")];

    fn with<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        WS.iter().chain(more).copied().collect()
    }

    #[test]
    fn by_default_only_upgrades_with_a_verb_are_ours() {
        let rules = Rules::default();
        assert_eq!(summary(&rules, "GET", "/a?verb=FOLLOW", &WS), "Follow a Http1");
        assert_eq!(summary(&rules, "GET", "/a?x&verb=app%45nd", &WS), "Append a Http1");
        assert_eq!(summary(&rules, "GET", "/a", &with(&[("X-Verb", "follow")])), "Follow a Http1 by header");
        assert_eq!(
            summary(&rules, "GET", "/a?verb=follow", &with(&[("X-Verb", "FOLLOW")])),
            "Follow a Http1 by header"
        );
        assert_eq!(summary(&rules, "CONNECT", "http://h/a?verb=FOLLOW", &[]), "Follow a Http2");
        for (method, uri, headers) in [
            ("GET", "/a", &WS[..]),
            ("GET", "/a?verb=FOLLOW", &[]),
            ("GET", "/a?verb=FOLLOW", &[("upgrade", "websocket")]),
            ("GET", "/a?verb=FOLLOW", &[("upgrade", "h2c"), ("connection", "upgrade")]),
            ("POST", "/a?verb=APPEND", &WS),
            ("GET", "/a?verb=DELETE", &WS),
            ("GET", "/a?verb=", &WS),
            ("GET", "/..?verb=nope", &WS),
            ("GET", "/a?VERB=FOLLOW", &WS),
            ("GET", "/a?xverb=FOLLOW", &WS),
            ("GET", "/a", &[]),
            ("DELETE", "/a", &[]),
            ("CONNECT", "http://h/a", &[]),
        ] {
            assert_eq!(summary(&rules, method, uri, headers), "pass", "{method} {uri} {headers:?}");
        }
    }

    #[test]
    fn with_plain_http_requests_without_an_upgrade_are_ours() {
        let rules = Rules { plain: true, ..Rules::default() };
        assert_eq!(summary(&rules, "GET", "/a/b", &[]), "serve a/b");
        assert_eq!(summary(&rules, "HEAD", "/a", &[]), "serve a");
        assert_eq!(summary(&rules, "DELETE", "/a", &[]), "delete a");
        assert_eq!(summary(&rules, "GET", "/a?verb=FOLLOW", &[]), "plain Follow a");
        assert_eq!(summary(&rules, "GET", "/a?verb=APPEND", &[]), "plain Append a");
        assert_eq!(summary(&rules, "PUT", "/a?verb=APPEND", &[]), "plain Append a");
        assert_eq!(summary(&rules, "PUT", "/a?verb=FOLLOW", &[]), "405 GET, HEAD");
        assert_eq!(summary(&rules, "DELETE", "/a?verb=APPEND", &[]), "405 GET, PUT, POST, PATCH");
        assert_eq!(summary(&rules, "GET", "/../a?verb=FOLLOW", &[]), "400");
        for (method, uri) in [("GET", "/"), ("GET", "/a//b"), ("POST", "/a"), ("GET", "/a?verb=x"), ("OPTIONS", "/a")] {
            assert_eq!(summary(&rules, method, uri, &[]), "pass", "{method} {uri}");
        }
        assert_eq!(summary(&rules, "GET", "/a", &WS), "pass", "an upgrade that is not ours");
    }

    #[test]
    fn resumable_uploads_need_no_verb_where_plain_http_is_on() {
        let rules = Rules { plain: true, ..Rules::default() };
        let complete = ("Upload-Complete", "?0");
        for (method, headers) in [
            ("POST", &[complete][..]),
            ("PUT", &[complete]),
            ("PATCH", &[complete]),
            ("POST", &[("Upload-Draft-Interop-Version", "6")]),
            ("PATCH", &[("content-type", "Application/Partial-Upload; x=y")]),
        ] {
            assert_eq!(summary(&rules, method, "/a", headers), "plain Append a", "{method} {headers:?}");
            assert_eq!(summary(&Rules::default(), method, "/a", headers), "pass", "{method} {headers:?}");
        }
        assert_eq!(summary(&rules, "PATCH", "/..", &[complete]), "400");
        for (method, headers) in [
            ("GET", [complete]),
            ("POST", [("content-type", "application/partial-upload")]),
            ("PATCH", [("content-type", "application/partial-uploads")]),
            ("PATCH", [("upload-offset", "1")]),
        ] {
            assert_ne!(summary(&rules, method, "/a", &headers), "plain Append a", "{method} {headers:?}");
        }
    }

    #[test]
    fn preflights_for_our_requests_are_ours() {
        let rules = Rules { plain: true, ..Rules::default() };
        let cross = [("origin", "https://a.example"), ("access-control-request-method", "PUT")];
        let asking = |headers| [&cross[..], &[("access-control-request-headers", headers)]].concat();
        assert_eq!(summary(&rules, "OPTIONS", "/a?verb=APPEND", &cross), "preflight");
        assert_eq!(summary(&rules, "OPTIONS", "/a", &asking("content-type, Upload-Offset")), "preflight");
        assert_eq!(summary(&rules, "OPTIONS", "/a", &asking("x-verb")), "preflight");
        assert_eq!(summary(&Rules::default(), "OPTIONS", "/a?verb=APPEND", &cross), "pass");
        assert_eq!(summary(&rules, "OPTIONS", "/a", &cross), "pass");
        assert_eq!(summary(&rules, "OPTIONS", "/a", &asking("content-type, x-verbs")), "pass");
        assert_eq!(summary(&rules, "OPTIONS", "/a", &[("access-control-request-headers", "x-verb")]), "pass");
        assert_eq!(summary(&rules, "OPTIONS", "/a?verb=APPEND", &cross[..1]), "405 GET, PUT, POST, PATCH");
    }

    #[test]
    fn mount_points_match_whole_segments() {
        let rules = Rules { mount: "/s".into(), plain: true, verb_from_method: true };
        assert_eq!(summary(&rules, "GET", "/s/a", &[]), "serve a");
        assert_eq!(summary(&rules, "GET", "/s/a", &WS), "Follow a Http1");
        assert_eq!(summary(&rules, "GET", "/s/a?verb=APPEND", &WS), "Append a Http1");
        for uri in ["/sa", "/s", "/x/a", "/s/", "/S/a"] {
            assert_eq!(summary(&rules, "GET", uri, &[]), "pass", "{uri}");
        }
        assert_eq!(summary(&rules, "GET", "/s/?verb=FOLLOW", &WS), "400");
    }

    #[test]
    fn the_method_is_the_verb_where_every_request_is_ours() {
        let rules = Rules { plain: true, verb_from_method: true, ..Rules::default() };
        for method in ["PUT", "POST", "PATCH"] {
            assert_eq!(summary(&rules, method, "/a", &[]), "plain Append a");
            assert_eq!(summary(&rules, method, "/a/", &[]), "400");
        }
        assert_eq!(summary(&rules, "GET", "/a", &[]), "serve a");
        assert_eq!(summary(&rules, "HEAD", "/a", &[]), "serve a");
        assert_eq!(summary(&rules, "DELETE", "/a", &[]), "delete a");
        assert_eq!(summary(&rules, "GET", "/a", &WS), "Follow a Http1");
        assert_eq!(summary(&rules, "CONNECT", "http://h/a", &[]), "Follow a Http2");
        for verb in ["", "READ", "APPENDS"] {
            assert_eq!(summary(&rules, "GET", &format!("/a?verb={verb}"), &[]), "400", "{verb}");
            assert_eq!(summary(&rules, "GET", &format!("/a?verb={verb}"), &WS), "400", "{verb}");
        }
        let cross = [("origin", "https://a.example"), ("access-control-request-method", "PUT")];
        assert_eq!(summary(&rules, "OPTIONS", "/a", &cross), "preflight");
        assert_eq!(summary(&rules, "OPTIONS", "/a", &[]), "pass");
    }

    #[test]
    fn fault_10_contradictions_are_400_and_unknown_verbs_are_not_ours() {
        let rules = Rules { plain: true, ..Rules::default() };
        let append = [("X-Verb", "APPEND")];
        assert_eq!(summary(&rules, "GET", "/a?verb=FOLLOW", &with(&append)), "400");
        assert_eq!(summary(&rules, "GET", "/a?verb=FOLLOW&verb=APPEND", &WS), "400");
        assert_eq!(summary(&rules, "GET", "/a", &[("X-Verb", "APPEND"), ("X-Verb", "FOLLOW")]), "400");
        assert_eq!(summary(&rules, "GET", "/a?verb=nope", &with(&append)), "400");
        assert_eq!(summary(&rules, "GET", "/a?verb=FOLLOW&verb=follow", &WS), "Follow a Http1");
        assert_eq!(summary(&rules, "GET", "/a?verb=nope", &WS), "pass");
        assert_eq!(summary(&rules, "GET", "/a?verb=nope", &[]), "pass");
    }
}
