//! What other sites' pages may read and ask for: CORS (the Fetch standard, section 3.3).

use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode, request};

use crate::body::{OwnBody, full};
use crate::error::Result;
use crate::server::origins::{Origins, foreign};

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, PUT, POST, PATCH, DELETE");
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "Stream-State, Stream-Life, Stream-Offset, Upload-Offset, Upload-Complete, Upload-Length, ETag, Location, Content-Range, Retry-After",
);
/// In seconds. Longer than some browsers allow anyway.
const MAX_AGE: HeaderValue = HeaderValue::from_static("7200");

/// Answers a preflight.
pub(crate) fn preflight(origins: &Origins, head: &request::Parts) -> Result<Response<OwnBody>> {
    if !origins.is_listed(head) {
        return Err(foreign());
    }
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    // Who may come may bring any header; `*` would not be for those who bring credentials.
    for asked in head.headers.get_all(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.append(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
    }
    Ok(response)
}

/// Lets the page that asked read an answer, if its origin is listed.
pub(crate) fn expose(origins: &Origins, head: &request::Parts, headers: &mut HeaderMap) {
    if origins.allowed.is_empty() {
        return;
    }
    if !origins.allows_all() {
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
    }
    if !origins.is_listed(head) {
        return;
    }
    let Some(origin) = head.headers.get(header::ORIGIN) else { return };
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    if origins.allows_all() {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    } else {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
}
