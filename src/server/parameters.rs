//! The options of a request, wherever they are given: pure, as the intent is.

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

/// From here on a range's last byte means "whatever comes" (RFC 8673 section 2.2).
pub(crate) const UNBOUNDED: u64 = (1 << 53) - 1;

/// What a request asks for besides its verb.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Parameters {
    /// It offers the resumable subprotocol.
    pub(crate) v1: bool,
    /// An appender's: where it believes the end to be.
    pub(crate) offset: Option<u64>,
    pub(crate) create: bool,
    pub(crate) appender: Option<AppenderId>,
    pub(crate) finish: Option<u64>,
    pub(crate) life: Option<Life>,
    /// A follower's.
    pub(crate) begin: StartPosition,
    pub(crate) wait: Option<Duration>,
}

impl Parameters {
    /// What the head of a WebSocket upgrade asks for.
    pub(crate) fn of(head: &request::Parts, verb: Verb) -> Result<Self> {
        let protocols = head.headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter();
        let v1 = protocols.flat_map(|value| tokens(value.as_bytes())).any(|name| name == SUBPROTOCOL.as_bytes());
        if !v1 {
            // The original's dialect keeps none, and what its clients put into their queries is their own. But a
            // follower that begins elsewhere than it asked for would assemble other bytes.
            let keeps = ["offset", "tail", "lines", "life"].into_iter().find(|name| is_given(head, name));
            return match keeps.filter(|_| verb == Verb::Follow) {
                Some(name) => Err(bad(format!("`{name}` needs the subprotocol {SUBPROTOCOL}"))),
                None => Ok(Self::default()),
            };
        }
        let asked = if verb == Verb::Append { Self::to_append(head)? } else { Self::to_follow(head)? };
        Ok(Self { v1, ..asked })
    }

    /// What an appender asks for.
    pub(crate) fn to_append(head: &request::Parts) -> Result<Self> {
        let asked = Self {
            offset: number(head, "offset", Some(UPLOAD_OFFSET))?,
            create: match one(head, "create", None)?.as_deref() {
                None => head.headers.get_all(header::IF_NONE_MATCH).iter().any(|value| value == "*"),
                Some("" | "1" | "true") => true,
                Some(_) => return Err(malformed("create")),
            },
            appender: parsed(head, "appender", Some(APPENDER_ID))?,
            finish: number(head, "finish", None)?,
            life: parsed(head, "life", None)?,
            ..Self::default()
        };
        if asked.finish.is_some() && asked.life.is_none() {
            return Err(bad("`finish` needs `life`".to_owned()));
        }
        Ok(asked)
    }

    /// What a follower asks for.
    pub(crate) fn to_follow(head: &request::Parts) -> Result<Self> {
        let begins = [
            number(head, "offset", Some(UPLOAD_OFFSET))?.map(StartPosition::Offset),
            number(head, "tail", None)?.map(StartPosition::Tail),
            number(head, "lines", None)?.map(StartPosition::Lines),
        ];
        let mut begins = begins.into_iter().flatten();
        let begin = begins.next().unwrap_or_default();
        if begins.next().is_some() {
            return Err(bad("only one of `offset`, `tail` and `lines` can be given".to_owned()));
        }
        let wait = number(head, "wait", None)?.or_else(|| preferred_wait(&head.headers)).map(Duration::from_secs);
        Ok(Self { life: parsed(head, "life", None)?, begin, wait, ..Self::default() })
    }
}

/// What a follower without an upgrade asks for besides.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FollowHeaders {
    pub(crate) range: Range,
    /// It wants server-sent events.
    pub(crate) events: bool,
    /// The last event that it got.
    pub(crate) last: Option<EventId>,
}

/// What a `Range` means to a follower (RFC 9110 section 14.2, RFC 8673).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Range {
    /// There is none, or one in a unit that is not ours.
    No,
    /// From here to the end that is yet to come.
    From(StartPosition),
    /// A piece of what is stored.
    Piece,
    Malformed,
}

/// The place behind a server-sent event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EventId {
    pub(crate) life: Life,
    pub(crate) offset: u64,
    /// It was the one that told that the resource is interrupted.
    pub(crate) interrupted: bool,
}

impl FollowHeaders {
    pub(crate) fn of(head: &request::Parts) -> Result<Self> {
        let events = head
            .headers
            .get_all(header::ACCEPT)
            .into_iter()
            .any(|value| tokens(value.as_bytes()).any(|range| is_media_type(range, "text/event-stream")));
        let last = head.headers.get("last-event-id").filter(|value| events && !value.is_empty());
        let last =
            last.map(|value| value.to_str().ok().and_then(EventId::parse).ok_or_else(|| malformed("Last-Event-ID")));
        Ok(Self { range: range(&head.headers), events, last: last.transpose()? })
    }
}

impl EventId {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let life = parts.next()?.parse().ok()?;
        let offset = digits(parts.next()?)?;
        let interrupted = match parts.next() {
            None => false,
            Some(state) if state == State::Interrupted.as_str() => true,
            Some(_) => return None,
        };
        parts.next().is_none().then_some(Self { life, offset, interrupted })
    }
}

fn range(headers: &HeaderMap) -> Range {
    let Some(value) = headers.get(header::RANGE) else { return Range::No };
    let Some((unit, ranges)) = value.to_str().ok().and_then(|value| value.split_once('=')) else {
        return Range::Malformed;
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Range::No;
    }
    let Some((first, last)) = ranges.trim().split_once('-') else { return Range::Malformed };
    match (first, digits(first), last, digits(last)) {
        (_, Some(first), "", _) => Range::From(StartPosition::Offset(first)),
        (_, Some(first), _, Some(last)) if last >= UNBOUNDED && first <= last => {
            Range::From(StartPosition::Offset(first))
        }
        (_, Some(first), _, Some(last)) if first <= last => Range::Piece,
        ("", _, _, Some(bytes)) => Range::From(StartPosition::Tail(bytes)),
        _ => Range::Malformed,
    }
}

/// `Prefer: wait=N` (RFC 7240 section 4.3). A preference that makes no sense is none.
fn preferred_wait(headers: &HeaderMap) -> Option<u64> {
    let values = headers.get_all("prefer").into_iter();
    let mut preferences = values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    preferences.find_map(|preference| {
        let (name, value) = preference.split(';').next()?.split_once('=')?;
        name.trim().eq_ignore_ascii_case("wait").then(|| digits(value.trim().trim_matches('"')))?
    })
}

pub(crate) fn bad(detail: String) -> Error {
    Error::new(ErrorKind::BadRequest).with_detail(detail)
}

pub(crate) fn malformed(name: &str) -> Error {
    bad(format!("`{name}` is malformed"))
}

/// A number without a sign, which Rust's own parser takes.
pub(crate) fn digits(text: &str) -> Option<u64> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

pub(crate) fn number(head: &request::Parts, name: &'static str, header: Option<HeaderName>) -> Result<Option<u64>> {
    one(head, name, header)?.map(|text| digits(&text).ok_or_else(|| malformed(name))).transpose()
}

fn parsed<T: FromStr>(head: &request::Parts, name: &'static str, header: Option<HeaderName>) -> Result<Option<T>> {
    one(head, name, header)?.map(|text| text.parse().map_err(|_| malformed(name))).transpose()
}

/// The option's one value, an error if there are several that differ.
fn one(head: &request::Parts, name: &'static str, header: Option<HeaderName>) -> Result<Option<String>> {
    let mut values = Vec::new();
    for value in header.iter().flat_map(|header| head.headers.get_all(header)) {
        values.push(value.to_str().map_err(|_| malformed(name))?.trim().to_owned());
    }
    for (_, value) in query(head.uri.query().unwrap_or("")).filter(|(found, _)| found == name) {
        let value: Cow<'_, [u8]> = percent_decode_str(value).into();
        values.push(String::from_utf8(value.into_owned()).map_err(|_| malformed(name))?);
    }
    if values.windows(2).any(|pair| pair[0] != pair[1]) {
        return Err(bad(format!("`{name}` is given more than once, with different values")));
    }
    Ok(values.pop())
}

fn is_given(head: &request::Parts, name: &str) -> bool {
    query(head.uri.query().unwrap_or("")).any(|(found, _)| found == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(verb: Verb, query: &str, headers: &[(&str, &str)]) -> Result<Parameters> {
        let mut request = http::Request::builder().uri(format!("/a?verb=x&{query}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Parameters::of(&request.body(()).unwrap().into_parts().0, verb)
    }

    const PROTOCOL: (&str, &str) = ("sec-websocket-protocol", "other, httpfstream.v1");

    #[test]
    fn options_are_read_from_header_and_query() {
        let id = "abcdefghijklmnopqrstuv";
        let life = "0123456789abcdef0123456789abcdef";
        let all = asked(
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
        assert!(asked(Verb::Append, "", &[PROTOCOL, ("if-none-match", "*")]).unwrap().create);
        assert!(!asked(Verb::Append, "", &[PROTOCOL]).unwrap().create);
        assert_eq!(asked(Verb::Append, "", &[]).unwrap(), Parameters::default());
        for (query, begin) in [
            ("", StartPosition::Beginning),
            ("offset=5", StartPosition::Offset(5)),
            ("tail=0", StartPosition::Tail(0)),
            ("lines=3", StartPosition::Lines(3)),
        ] {
            assert_eq!(asked(Verb::Follow, query, &[PROTOCOL]).unwrap().begin, begin);
        }
        assert_eq!(asked(Verb::Follow, "wait=2", &[PROTOCOL]).unwrap().wait, Some(Duration::from_secs(2)));
    }

    #[test]
    fn fault_15_malformed_and_contradictory_options_are_400() {
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
            assert_eq!(asked(verb, query, &[PROTOCOL]).unwrap_err().kind(), ErrorKind::BadRequest, "{query}");
        }
        let twice = [PROTOCOL, ("upload-offset", "1"), ("upload-offset", "2")];
        assert_eq!(asked(Verb::Append, "", &twice).unwrap_err().kind(), ErrorKind::BadRequest);
        for query in ["offset=1", "tail=1", "lines=1", life] {
            assert_eq!(asked(Verb::Follow, query, &[]).unwrap_err().kind(), ErrorKind::BadRequest, "no subprotocol");
        }
    }
}
