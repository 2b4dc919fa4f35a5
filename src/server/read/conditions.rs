//! Conditional requests and ranges (RFC 9110 sections 13 and 14).

use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::server::checks::lists;

/// Evaluates the conditions on our own entity tag, and returns the status if they decide the response. The other
/// headers are copied to `forwarded`, for tower-http, whose tags are its own.
pub(super) fn evaluate(
    request: &HeaderMap,
    tag: &str,
    live: bool,
    empty: bool,
    forwarded: &mut HeaderMap,
) -> Option<StatusCode> {
    let if_match = lists(request, header::IF_MATCH, tag);
    if if_match == Some(false) {
        return Some(StatusCode::PRECONDITION_FAILED);
    }
    let if_none_match = lists(request, header::IF_NONE_MATCH, tag);
    if if_none_match == Some(true) {
        return Some(StatusCode::NOT_MODIFIED);
    }
    let mut forward = |name: header::HeaderName| {
        if let Some(value) = request.get(&name) {
            forwarded.insert(name, value.clone());
        }
    };
    if !live {
        // Only of a closed resource: a date, in seconds, is too coarse for one that grows by the millisecond.
        if if_match.is_none() {
            forward(header::IF_UNMODIFIED_SINCE);
        }
        if if_none_match.is_none() {
            forward(header::IF_MODIFIED_SINCE);
        }
    }
    // A date is no strong validator here, so an `If-Range` with one never yields a range. A malformed range is ignored,
    // as RFC 9110 section 14.2 asks for.
    let unchanged = request.get(header::IF_RANGE).is_none_or(|value| value.as_bytes() == tag.as_bytes());
    if unchanged && request.get(header::RANGE).is_some_and(is_single_range) {
        forward(header::RANGE);
    }
    // tower-http would serve the first byte of an empty resource.
    (empty && forwarded.contains_key(header::RANGE)).then_some(StatusCode::RANGE_NOT_SATISFIABLE)
}

/// Whether it is `bytes=N-M`, `bytes=N-` or `bytes=-N`.
fn is_single_range(value: &HeaderValue) -> bool {
    let range = value.to_str().ok().and_then(|value| value.split_once('='));
    let Some((first, last)) = range.filter(|(unit, _)| *unit == "bytes").and_then(|(_, range)| range.split_once('-'))
    else {
        return false;
    };
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match (number(first), number(last)) {
        (true, true) => first.parse::<u64>().ok().zip(last.parse().ok()).is_some_and(|(first, last)| first <= last),
        (true, false) => last.is_empty(),
        (false, true) => first.is_empty(),
        (false, false) => false,
    }
}
