//! Response parts that all handlers share.

use std::time::UNIX_EPOCH;

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use crate::body::{OwnBody, ResponseBody, full};
use crate::error::{Error, ErrorKind};
use crate::protocol::headers::{PARTIAL_UPLOAD, STREAM_LIFE, STREAM_STATE, UPLOAD_COMPLETE, UPLOAD_OFFSET};
use crate::state::Stat;

/// The media types that a PATCH may have (RFC 5789 section 3.1).
const ACCEPT_PATCH: HeaderName = HeaderName::from_static("accept-patch");
/// In seconds. A limit has room again as soon as a connection ends, and a restarting server is back within seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("5");

/// An empty response with this status.
pub(crate) fn empty(status: StatusCode) -> Response<OwnBody> {
    let mut response = Response::new(full(""));
    *response.status_mut() = status;
    response
}

/// Adds the headers that describe a resource. Every response about one has them.
pub(crate) fn describe(headers: &mut HeaderMap, stat: &Stat) {
    headers.insert(STREAM_STATE, HeaderValue::from_static(stat.state.as_str()));
    headers.insert(UPLOAD_OFFSET, HeaderValue::from(stat.len));
    headers.insert(UPLOAD_COMPLETE, HeaderValue::from_static(if stat.state.is_complete() { "?1" } else { "?0" }));
    if let Ok(life) = HeaderValue::try_from(stat.life.to_string()) {
        headers.insert(STREAM_LIFE, life);
    }
    if let Ok(etag) = HeaderValue::from_str(&etag(stat)) {
        headers.insert(header::ETAG, etag);
    }
}

/// The entity tag of a resource (RFC 9110 section 8.8.3): strong, since the bytes of a life never change. Once the
/// resource is closed the tag includes the modification time too, in case another program overwrites the file.
pub(crate) fn etag(stat: &Stat) -> String {
    let modified = stat.modified.filter(|_| !stat.state.is_open());
    let modified = modified.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map(|at| format!("-{:x}", at.as_nanos()));
    format!("\"{}-{:x}{}\"", stat.life, stat.len, modified.unwrap_or_default())
}

/// Keeps browsers from running stored bytes as scripts of this site.
pub(crate) fn sandbox(headers: &mut HeaderMap) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
}

impl Error {
    /// The response to a request that failed with this error: its [status](Self::status) and a problem document (RFC 9457,
    /// `application/problem+json`) with the [text](Self::detail). Underlying errors are logged, not sent.
    ///
    /// ```
    /// use httpfstream::{Error, ErrorKind};
    ///
    /// let response = Error::new(ErrorKind::Busy).to_response();
    /// assert_eq!(response.status(), 409);
    /// assert_eq!(response.headers()["content-type"], "application/problem+json");
    /// ```
    pub fn to_response(&self) -> Response<ResponseBody> {
        problem(self).map(ResponseBody::own)
    }
}

/// A problem document (RFC 9457) for a request that failed.
pub(crate) fn problem(error: &Error) -> Response<OwnBody> {
    let (status, kind) = (error.kind().status(), error.kind().problem());
    // Not failures of the server, and any client could fill the log with them.
    let over_limit = error.kind() == ErrorKind::Overloaded && std::error::Error::source(error).is_none();
    let refused = over_limit || matches!(error.kind(), ErrorKind::HttpVersion | ErrorKind::ShuttingDown);
    if status.is_server_error() && !refused {
        tracing::error!(%status, error = error as &dyn std::error::Error, "a request failed");
    } else {
        tracing::debug!(%status, error = error as &dyn std::error::Error, "a request is refused");
    }
    let title = status.canonical_reason().unwrap_or("Error");
    let detail = escape(error.detail());
    let body = format!(
        "{{\"type\":\"urn:httpfstream:problem:{kind}\",\"title\":\"{title}\",\"status\":{},\"detail\":\"{detail}\"}}\n",
        status.as_u16()
    );
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    match status {
        StatusCode::UPGRADE_REQUIRED => {
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        StatusCode::UNSUPPORTED_MEDIA_TYPE => {
            headers.insert(ACCEPT_PATCH, HeaderValue::from_static(PARTIAL_UPLOAD));
        }
        StatusCode::SERVICE_UNAVAILABLE => {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        StatusCode::UNAUTHORIZED => {
            if error.challenges().is_empty() {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            for challenge in error.challenges() {
                headers.append(header::WWW_AUTHENTICATE, challenge.clone());
            }
        }
        _ => {}
    }
    response
}

/// [`problem`], with the headers that describe the resource.
pub(crate) fn problem_with_stat(error: &Error, stat: Option<Stat>) -> Response<OwnBody> {
    let mut response = problem(error);
    if let Some(stat) = stat {
        describe(response.headers_mut(), &stat);
        if error.kind() == ErrorKind::PastEnd
            && let Ok(range) = HeaderValue::try_from(format!("bytes */{}", stat.len))
        {
            response.headers_mut().insert(header::CONTENT_RANGE, range);
        }
    }
    response
}

/// Escapes text for a JSON string. Control characters become spaces.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}
