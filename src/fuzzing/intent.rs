//! The interpretation of a request's head.

use http::{HeaderName, HeaderValue, Method, Request, Uri, Version, header};

use crate::access::Verb;
use crate::error::ErrorKind;
use crate::key::Key;
use crate::protocol::StartPosition;
use crate::server::intent::{Intent, Rules};
use crate::server::parameters::{FollowHeaders, Parameters, Range};

/// Parses a request from text: a method, a target and a version in the first line, then headers. Lines that can't be
/// headers are skipped. `None` if hyper would refuse the request as well.
pub(super) fn request(text: &[u8]) -> Option<Request<()>> {
    let mut lines = text.split(|byte| *byte == b'\n');
    let mut first = lines.next()?.split(|byte| *byte == b' ');
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(first.next()?).ok()?;
    *request.uri_mut() = Uri::try_from(first.next()?).ok()?;
    *request.version_mut() = match first.next() {
        Some(b"0") => Version::HTTP_10,
        Some(b"2") => Version::HTTP_2,
        _ => Version::HTTP_11,
    };
    if request.method() == Method::CONNECT {
        request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
    }
    for line in lines.take(100) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            request.headers_mut().append(name, value);
        }
    }
    Some(request)
}

/// The layer interprets a request like this simple implementation, which collects all values and compares them.
pub fn intent(data: &[u8]) -> bool {
    let Some((&options, text)) = data.split_first() else { return false };
    let Some(request) = request(text) else { return false };
    let rules = Rules {
        mount: ["", "/a", "/a/b", ""][usize::from(options % 4)].into(),
        plain: options & 4 != 0,
        verb_from_method: options & 8 != 0,
    };
    let verbs = values(&request, "verb", Some("x-verb"));
    let known = |value: &Vec<u8>| match value.to_ascii_uppercase().as_slice() {
        b"APPEND" => Some(Verb::Append),
        b"FOLLOW" => Some(Verb::Follow),
        _ => None,
    };
    let verb = verbs.first().and_then(known);
    let agree = verbs.iter().all(|other| known(other) == verb);
    let upgrades = request.method() == Method::CONNECT || request.headers().contains_key(header::UPGRADE);
    let path =
        request.uri().path().strip_prefix(&*rules.mount).filter(|rest| rest.starts_with('/') || rules.mount.is_empty());
    let key = path.map(Key::from_url_path);
    let intent = rules.intent(&request);
    match &intent {
        Intent::Pass => {
            // A request is not passed on if it has a verb of ours and no contradiction.
            let ours = key.is_some() && !verbs.is_empty() && agree && verb.is_some();
            let over_http2 = request.method() == Method::CONNECT;
            assert!(!ours || !(rules.plain || over_http2), "{request:?} passed");
        }
        Intent::Refuse(error) => {
            assert!(key.is_some() && (upgrades || rules.plain));
            match error.kind() {
                ErrorKind::BadRequest => {
                    assert!(!agree || (rules.verb_from_method && verb.is_none() && !verbs.is_empty()));
                }
                kind => assert!(matches!(&key, Some(Err(error)) if error.kind() == kind)),
            }
        }
        Intent::MethodNotAllowed { .. } => assert!(rules.plain && verb.is_some()),
        Intent::Preflight => assert!(rules.plain && request.method() == Method::OPTIONS),
        Intent::WebSocket { verb: meant, key: at, .. } => {
            assert!(
                upgrades
                    && agree
                    && Some(*meant) == verb.or(rules.verb_from_method.then_some(Verb::Follow))
                    && is(&key, at)
            );
        }
        Intent::Http { verb: meant, key: at } => {
            assert!(rules.plain && agree && is(&key, at) && *meant != Verb::Delete);
            assert!(verb.is_none_or(|verb| verb == *meant));
            assert!(*meant == Verb::Append || matches!(*request.method(), Method::GET | Method::HEAD));
        }
        Intent::Read { key: at } => {
            assert!(rules.plain && verbs.is_empty() && is(&key, at));
            assert!(matches!(*request.method(), Method::GET | Method::HEAD));
        }
        Intent::Delete { key: at } => {
            assert!(rules.plain && verbs.is_empty() && is(&key, at) && *request.method() == Method::DELETE);
        }
    }
    check_options(request) && matches!(intent, Intent::WebSocket { .. } | Intent::Http { .. })
}

fn is(key: &Option<crate::Result<Key>>, at: &Key) -> bool {
    matches!(key, Some(Ok(key)) if key == at)
}

/// Checks the parsed parameters. Returns whether there were any valid ones.
fn check_options(request: Request<()>) -> bool {
    let number = |name: &str, header: Option<&str>| {
        let values = values(&request, name, header);
        let first = values.first()?;
        let text = std::str::from_utf8(first).ok()?;
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.then(|| text.parse::<u64>().ok()).flatten();
        Some(number.filter(|_| values.iter().all(|value| value == first)))
    };
    let (offset, tail) = (number("offset", Some("upload-offset")), number("tail", None));
    let (lines, finish) = (number("lines", None), number("finish", None));
    let wait = number("wait", None);
    let (head, ()) = request.into_parts();
    let mut understood = false;
    match Parameters::for_append(&head) {
        Ok(parameters) => {
            assert_eq!((parameters.offset.map(Some), parameters.finish.map(Some)), (offset, finish));
            assert!(parameters.finish.is_none() || parameters.life.is_some());
            understood |= parameters.offset.is_some();
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::BadRequest),
    }
    match Parameters::for_follow(&head) {
        Ok(parameters) => {
            let begin = match (offset, tail, lines) {
                (None, None, None) => StartPosition::Beginning,
                (Some(Some(offset)), None, None) => StartPosition::Offset(offset),
                (None, Some(Some(tail)), None) => StartPosition::Tail(tail),
                (None, None, Some(Some(lines))) => StartPosition::Lines(lines),
                other => panic!("{other:?} was parsed as {:?}", parameters.start),
            };
            assert_eq!(parameters.start, begin);
            assert!(wait.is_none() || parameters.wait.map(|wait| Some(wait.as_secs())) == wait);
            understood |= parameters.start != StartPosition::Beginning;
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::BadRequest),
    }
    for verb in [Verb::Append, Verb::Follow] {
        if let Ok(parameters) = Parameters::from_upgrade(&head, verb) {
            let offered = head.headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().any(|offer| {
                offer.as_bytes().split(|byte| *byte == b',').any(|name| name.trim_ascii() == b"httpfstream.v1")
            });
            assert_eq!(parameters.v1, offered);
            assert!(parameters.v1 || parameters == Parameters::default());
        }
    }
    match FollowHeaders::from_head(&head) {
        Ok(reading) => {
            let range = head.headers.get(header::RANGE).map(HeaderValue::as_bytes);
            assert!(range.is_some() || reading.range == Range::Absent);
            if let (Range::From(StartPosition::Offset(first)), Some(range)) = (reading.range, range) {
                let text = std::str::from_utf8(range).expect("ASCII");
                let (_, text) = text.split_once('=').expect("a unit");
                let digits = text.trim().split('-').next().expect("a first byte");
                assert_eq!(digits.trim_start_matches('0'), first.to_string().trim_start_matches('0'));
            }
            assert!(reading.last_event_id.is_none() || reading.accepts_events);
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::BadRequest),
    }
    understood
}

/// All values of a parameter: of its header, trimmed, then of the query, decoded once.
fn values(request: &Request<()>, name: &str, header: Option<&str>) -> Vec<Vec<u8>> {
    let headers = header.into_iter().flat_map(|header| request.headers().get_all(header));
    let mut values: Vec<Vec<u8>> = headers.map(|value| value.as_bytes().trim_ascii().to_vec()).collect();
    for pair in request.uri().query().unwrap_or_default().split('&') {
        let (found, value) = pair.split_once('=').unwrap_or((pair, ""));
        if unescape(found) == name.as_bytes() {
            values.push(unescape(value));
        }
    }
    values
}

/// Decodes percent escapes, and leaves malformed ones as they are.
fn unescape(text: &str) -> Vec<u8> {
    let (bytes, mut at, mut out) = (text.as_bytes(), 0, Vec::new());
    while at < bytes.len() {
        let digits = bytes.get(at + 1..at + 3).map(|digits| [digits[0], digits[1]].map(|d| char::from(d).to_digit(16)));
        match digits {
            Some([Some(high), Some(low)]) if bytes[at] == b'%' => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    out
}
