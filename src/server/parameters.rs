//! A request's parameters, from its query and its headers. Pure, like the intent.

use std::borrow::Cow;
use std::str::FromStr;
use std::time::Duration;

use http::{HeaderMap, HeaderName, header, request};
use percent_encoding::percent_decode_str;

use crate::access::Verb;
use crate::error::{Error, ErrorKind, Result};
use crate::identity::AppenderId;
use crate::protocol::headers::{APPENDER_ID, UPLOAD_OFFSET};
use crate::protocol::{SUBPROTOCOL, StartPosition};
use crate::server::intent::{is_media_type, query, tokens};
use crate::state::{Life, State};

/// A range whose last byte is at least this has no end: it includes what is still to come (RFC 8673 section 2.2).
pub(crate) const UNBOUNDED: u64 = (1 << 53) - 1;

/// What a request says besides its verb and its key.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Parameters {
    /// The handshake offers the resumable subprotocol.
    pub(crate) v1: bool,
    /// The life that the resource must have.
    pub(crate) life: Option<Life>,
    /// Append: the length that the resource must have.
    pub(crate) offset: Option<u64>,
    /// Append: the resource must not exist yet.
    pub(crate) create: bool,
    /// Append: the identity that may resume it.
    pub(crate) appender: Option<AppenderId>,
    /// Append: the length at which a finish was sent before, which may have been done.
    pub(crate) finish: Option<u64>,
    /// Follow: where it begins.
    pub(crate) start: StartPosition,
    /// Follow: how long to wait for the resource to be created.
    pub(crate) wait: Option<Duration>,
}

impl Parameters {
    /// The parameters of a WebSocket handshake.
    pub(crate) fn from_upgrade(head: &request::Parts, verb: Verb) -> Result<Self> {
        let protocols = head.headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter();
        let v1 = protocols.flat_map(|value| tokens(value.as_bytes())).any(|name| name == SUBPROTOCOL.as_bytes());
        if !v1 {
            // The original's dialect has no parameters, so that the query is the application's. But a follower that
            // began elsewhere than its query says would assemble wrong bytes.
            let meant_for_v1 = ["offset", "tail", "lines", "life"].into_iter().find(|name| is_in_query(head, name));
            return match meant_for_v1.filter(|_| verb == Verb::Follow) {
                Some(name) => Err(bad_request(format!("`{name}` needs the subprotocol {SUBPROTOCOL}"))),
                None => Ok(Self::default()),
            };
        }
        let parameters = if verb == Verb::Append { Self::for_append(head)? } else { Self::for_follow(head)? };
        Ok(Self { v1, ..parameters })
    }

    /// The parameters of an append.
    pub(crate) fn for_append(head: &request::Parts) -> Result<Self> {
        let parameters = Self {
            offset: number(head, "offset", Some(UPLOAD_OFFSET))?,
            create: match single_value(head, "create", None)?.as_deref() {
                None => head.headers.get_all(header::IF_NONE_MATCH).iter().any(|value| value == "*"),
                Some("" | "1" | "true") => true,
                Some(_) => return Err(malformed("create")),
            },
            appender: parsed(head, "appender", Some(APPENDER_ID))?,
            finish: number(head, "finish", None)?,
            life: parsed(head, "life", None)?,
            ..Self::default()
        };
        if parameters.finish.is_some() && parameters.life.is_none() {
            return Err(bad_request("`finish` needs `life`".to_owned()));
        }
        Ok(parameters)
    }

    /// The parameters of a follow.
    pub(crate) fn for_follow(head: &request::Parts) -> Result<Self> {
        let starts = [
            number(head, "offset", Some(UPLOAD_OFFSET))?.map(StartPosition::Offset),
            number(head, "tail", None)?.map(StartPosition::Tail),
            number(head, "lines", None)?.map(StartPosition::Lines),
        ];
        let mut starts = starts.into_iter().flatten();
        let start = starts.next().unwrap_or_default();
        if starts.next().is_some() {
            return Err(bad_request("only one of `offset`, `tail` and `lines` can be given".to_owned()));
        }
        let wait = number(head, "wait", None)?.or_else(|| preferred_wait(&head.headers)).map(Duration::from_secs);
        Ok(Self { life: parsed(head, "life", None)?, start, wait, ..Self::default() })
    }
}

/// What the headers of a follow over plain HTTP say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FollowHeaders {
    pub(crate) range: Range,
    /// It accepts server-sent events.
    pub(crate) accepts_events: bool,
    /// The last event that it has seen, when it reconnects.
    pub(crate) last_event_id: Option<EventId>,
}

/// What a `Range` means to a follow (RFC 9110 section 14.2, RFC 8673).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Range {
    /// No range, or one in a unit other than bytes.
    Absent,
    /// From this position to the end, including what is still to come.
    From(StartPosition),
    /// First and last byte are given.
    Bounded,
    Malformed,
}

/// The id of a server-sent event: the position behind its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EventId {
    pub(crate) life: Life,
    pub(crate) offset: u64,
    /// The event said that the resource is interrupted.
    pub(crate) interrupted: bool,
}

impl FollowHeaders {
    pub(crate) fn from_head(head: &request::Parts) -> Result<Self> {
        let accepts_events = head
            .headers
            .get_all(header::ACCEPT)
            .into_iter()
            .any(|value| tokens(value.as_bytes()).any(|range| is_media_type(range, "text/event-stream")));
        let last_event_id = if accepts_events { last_event_id(head)? } else { None };
        Ok(Self { range: range(&head.headers), accepts_events, last_event_id })
    }
}

/// The id of the last event that the client has seen: from its header, else from the query, where polyfills and htmx put it.
/// The header wins, because `EventSource` keeps the query of its first request, and updates only the header.
fn last_event_id(head: &request::Parts) -> Result<Option<EventId>> {
    let sources = [("Last-Event-ID", true), ("lastEventId", false), ("Last-Event-ID", false)];
    for (name, in_header) in sources {
        let value = match in_header {
            true => header_value(head, name, HeaderName::from_static("last-event-id"))?,
            false => single_value(head, name, None)?,
        };
        // Empty before the first event.
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            return EventId::parse(&value).map(Some).ok_or_else(|| malformed(name));
        }
    }
    Ok(None)
}

impl EventId {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let life = parts.next()?.parse().ok()?;
        let offset = unsigned(parts.next()?)?;
        let interrupted = match parts.next() {
            None => false,
            Some(state) if state == State::Interrupted.as_str() => true,
            Some(_) => return None,
        };
        parts.next().is_none().then_some(Self { life, offset, interrupted })
    }
}

fn range(headers: &HeaderMap) -> Range {
    let Some(value) = headers.get(header::RANGE) else { return Range::Absent };
    let Some((unit, ranges)) = value.to_str().ok().and_then(|value| value.split_once('=')) else {
        return Range::Malformed;
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Range::Absent;
    }
    let Some((first, last)) = ranges.trim().split_once('-') else { return Range::Malformed };
    match (first, unsigned(first), last, unsigned(last)) {
        (_, Some(first), "", _) => Range::From(StartPosition::Offset(first)),
        (_, Some(first), _, Some(last)) if last >= UNBOUNDED && first <= last => {
            Range::From(StartPosition::Offset(first))
        }
        (_, Some(first), _, Some(last)) if first <= last => Range::Bounded,
        ("", _, last, _) if is_digits(last) => Range::From(StartPosition::Tail(suffix_len(last))),
        _ => Range::Malformed,
    }
}

/// The seconds of `Prefer: wait=N` (RFC 7240 section 4.3). A malformed preference is ignored.
fn preferred_wait(headers: &HeaderMap) -> Option<u64> {
    let values = headers.get_all("prefer").into_iter();
    let mut preferences = values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    preferences.find_map(|preference| {
        let (name, value) = preference.split(';').next()?.split_once('=')?;
        name.trim().eq_ignore_ascii_case("wait").then(|| unsigned(value.trim().trim_matches('"')))?
    })
}

pub(crate) fn bad_request(detail: String) -> Error {
    Error::new(ErrorKind::BadRequest).with_detail(detail)
}

pub(crate) fn malformed(name: &str) -> Error {
    bad_request(format!("`{name}` is malformed"))
}

/// A decimal number of digits alone. (`str::parse` would accept a `+`.)
pub(crate) fn unsigned(text: &str) -> Option<u64> {
    text.parse().ok().filter(|_| is_digits(text))
}

pub(crate) fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// How many bytes the range `-N` asks for, counted from the end. More than there can be means all (RFC 9110 section 14.1.2).
pub(crate) fn suffix_len(digits: &str) -> u64 {
    digits.parse().unwrap_or(u64::MAX)
}

fn number(head: &request::Parts, name: &'static str, header: Option<HeaderName>) -> Result<Option<u64>> {
    single_value(head, name, header)?.map(|text| unsigned(&text).ok_or_else(|| malformed(name))).transpose()
}

fn parsed<T: FromStr>(head: &request::Parts, name: &'static str, header: Option<HeaderName>) -> Result<Option<T>> {
    single_value(head, name, header)?.map(|text| text.parse().map_err(|_| malformed(name))).transpose()
}

/// The parameter's value, from its header and the query. An error if it is given with different values.
fn single_value(head: &request::Parts, name: &'static str, header: Option<HeaderName>) -> Result<Option<String>> {
    let mut values = Vec::new();
    if let Some(header) = header {
        values.extend(header_value(head, name, header)?);
    }
    for (_, value) in query(head.uri.query().unwrap_or("")).filter(|(found, _)| found == name) {
        let value: Cow<'_, [u8]> = percent_decode_str(value).into();
        values.push(String::from_utf8(value.into_owned()).map_err(|_| malformed(name))?);
    }
    same_value(name, values)
}

/// The header's value. An error if it is given with different values.
fn header_value(head: &request::Parts, name: &'static str, header: HeaderName) -> Result<Option<String>> {
    let values = head.headers.get_all(header).into_iter();
    let values: Result<Vec<_>> =
        values.map(|value| Ok(value.to_str().map_err(|_| malformed(name))?.trim().to_owned())).collect();
    same_value(name, values?)
}

fn same_value(name: &'static str, mut values: Vec<String>) -> Result<Option<String>> {
    if values.windows(2).any(|pair| pair[0] != pair[1]) {
        return Err(bad_request(format!("`{name}` is given more than once, with different values")));
    }
    Ok(values.pop())
}

fn is_in_query(head: &request::Parts, name: &str) -> bool {
    query(head.uri.query().unwrap_or("")).any(|(found, _)| found == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upgrade(verb: Verb, query: &str, headers: &[(&str, &str)]) -> Result<Parameters> {
        let mut request = http::Request::builder().uri(format!("/a?verb=x&{query}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Parameters::from_upgrade(&request.body(()).unwrap().into_parts().0, verb)
    }

    const PROTOCOL: (&str, &str) = ("sec-websocket-protocol", "other, httpfstream.v1");

    #[test]
    fn parameters_are_read_from_headers_and_query() {
        let id = "abcdefghijklmnopqrstuv";
        let life = "0123456789abcdef0123456789abcdef";
        let all = upgrade(
            Verb::Append,
            &format!("offset=7&create&appender={id}&life={life}&finish=%39"),
            &[PROTOCOL, ("upload-offset", " 7 "), ("appender-id", id)],
        );
        let expected = Parameters {
            v1: true,
            offset: Some(7),
            create: true,
            appender: Some(id.parse().unwrap()),
            finish: Some(9),
            life: Some(Life::from_bits(0x0123456789abcdef0123456789abcdef)),
            ..Parameters::default()
        };
        assert_eq!(all.unwrap(), expected);
        assert!(upgrade(Verb::Append, "", &[PROTOCOL, ("if-none-match", "*")]).unwrap().create);
        assert!(!upgrade(Verb::Append, "", &[PROTOCOL]).unwrap().create);
        assert_eq!(upgrade(Verb::Append, "", &[]).unwrap(), Parameters::default());
        for (query, start) in [
            ("", StartPosition::Beginning),
            ("offset=5", StartPosition::Offset(5)),
            ("tail=0", StartPosition::Tail(0)),
            ("lines=3", StartPosition::Lines(3)),
        ] {
            assert_eq!(upgrade(Verb::Follow, query, &[PROTOCOL]).unwrap().start, start);
        }
        assert_eq!(upgrade(Verb::Follow, "wait=2", &[PROTOCOL]).unwrap().wait, Some(Duration::from_secs(2)));
    }

    #[test]
    fn fault_15_malformed_and_contradictory_parameters_are_400() {
        let life = "life=0123456789abcdef0123456789abcdef";
        for (verb, query) in [
            (Verb::Append, "offset=-1"),
            (Verb::Append, "offset=+1"),
            (Verb::Append, "offset="),
            (Verb::Append, "offset=18446744073709551616"),
            (Verb::Append, "offset=1&offset=2"),
            (Verb::Append, "offset=%ff"),
            (Verb::Append, "appender=short"),
            (Verb::Append, "create=2"),
            (Verb::Append, "finish=1"),
            (Verb::Append, "life=1"),
            (Verb::Append, "life=0123456789ABCDEF0123456789abcdeg"),
            (Verb::Append, &format!("{life}&life=1123456789abcdef0123456789abcdef")),
            (Verb::Follow, "offset=1&tail=1"),
            (Verb::Follow, "lines=1&tail=1"),
            (Verb::Follow, "lines=x"),
            (Verb::Follow, "wait=1.5"),
        ] {
            assert_eq!(upgrade(verb, query, &[PROTOCOL]).unwrap_err().kind(), ErrorKind::BadRequest, "{query}");
        }
        let twice = [PROTOCOL, ("upload-offset", "1"), ("upload-offset", "2")];
        assert_eq!(upgrade(Verb::Append, "", &twice).unwrap_err().kind(), ErrorKind::BadRequest);
        for query in ["offset=1", "tail=1", "lines=1", life] {
            assert_eq!(upgrade(Verb::Follow, query, &[]).unwrap_err().kind(), ErrorKind::BadRequest, "no subprotocol");
        }
    }
}
