//! CORS: what pages of other origins may send and read (the Fetch standard, section 3.3).

use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode, request};

use crate::body::OwnBody;
use crate::error::Result;
use crate::server::origins::{Origins, forbidden_origin};
use crate::server::response::empty;

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, PUT, POST, PATCH, DELETE");
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "Stream-State, Stream-Life, Stream-Offset, Upload-Offset, Upload-Complete, Upload-Length, ETag, Location, Content-Range, Retry-After",
);
/// How long a preflight may be cached, in seconds. Some browsers cap it lower.
const MAX_AGE: HeaderValue = HeaderValue::from_static("7200");

/// Answers a preflight.
pub(crate) fn preflight(origins: &Origins, head: &request::Parts) -> Result<Response<OwnBody>> {
    if !origins.is_listed(head) {
        return Err(forbidden_origin());
    }
    let mut response = empty(StatusCode::NO_CONTENT);
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    // Echo the requested headers: `*` excludes credentialed requests.
    for requested in head.headers.get_all(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.append(header::ACCESS_CONTROL_ALLOW_HEADERS, requested.clone());
    }
    Ok(response)
}

/// Lets the requesting page read the response, if its origin is allowed.
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
