//! Conditional requests and ranges (RFC 9110 sections 13 and 14).

use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::server::checks::lists;
use crate::server::parameters::{is_digits, suffix_len};

/// Evaluates the conditions on our entity tag, and returns the status if they decide the response. A range, and of a closed
/// resource dates, are copied to `forwarded` for tower-http. Tags are not, since tower-http would compare its own.
pub(super) fn evaluate(
    request: &HeaderMap,
    tag: &str,
    live: bool,
    len: u64,
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
    if unchanged && let Some(range) = request.get(header::RANGE).and_then(|range| single_range(range, len)) {
        forwarded.insert(header::RANGE, range);
    }
    // tower-http would serve the first byte of an empty resource.
    (len == 0 && forwarded.contains_key(header::RANGE)).then_some(StatusCode::RANGE_NOT_SATISFIABLE)
}

/// The range for tower-http, if it is `bytes=N-M`, `bytes=N-` or `bytes=-N`.
fn single_range(value: &HeaderValue, len: u64) -> Option<HeaderValue> {
    let (first, last) = value.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
    match (is_digits(first), is_digits(last)) {
        (true, true) => {
            let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
            (first <= last).then(|| value.clone())
        }
        (true, false) if last.is_empty() => Some(value.clone()),
        // tower-http can't read a number that is larger than any length.
        (false, true) if first.is_empty() => {
            HeaderValue::try_from(format!("bytes=-{}", suffix_len(last).min(len))).ok()
        }
        _ => None,
    }
}
