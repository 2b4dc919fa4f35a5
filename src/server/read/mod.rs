//! Plain GET and HEAD: what is stored now, with ranges and conditions, through tower-http.

mod conditions;
#[cfg(target_os = "linux")]
mod file;
mod snapshot;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header, request};
use http_body_util::Empty;
use tower::util::ServiceExt;
use tower_http::services::fs::ServeDir;

use self::snapshot::Snapshot;
use super::checks::{authorize, existing};
use super::config::Options;
use super::response::{describe, empty, etag, problem, sandbox};
use crate::access::{Allowed, Verb};
use crate::body::{OwnBody, boxed};
use crate::error::{ErrorKind, Result};
use crate::hub::Hub;
use crate::key::Key;
use crate::protocol::headers::UPLOAD_LENGTH;
use crate::state::Stat;

/// Answers a GET or HEAD without a verb. `None` if there is no such resource, or the application hides it.
pub(crate) async fn read(
    hub: &Arc<Hub>,
    options: &Options,
    key: Key,
    head: &request::Parts,
) -> Option<Response<OwnBody>> {
    // Authorized before anything is looked up, so that a refusal doesn't reveal what exists.
    let key = match authorize(options, Verb::Follow, key, head).await {
        Ok(Allowed { key, .. }) => key,
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => return Some(problem(&error)),
    };
    let served = match existing(hub.stat(&key).await)? {
        Ok(stat) => serve(hub, &key, head, &stat, &options.content_type).await,
        Err(error) => Err(error),
    };
    match served {
        // Deleted since it was looked up.
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        served => Some(served.unwrap_or_else(|error| problem(&error))),
    }
}

/// Responds with what is stored now: of an open resource, a snapshot at its committed length.
pub(crate) async fn serve(
    hub: &Arc<Hub>,
    key: &Key,
    head: &request::Parts,
    stat: &Stat,
    default_type: &HeaderValue,
) -> Result<Response<OwnBody>> {
    let live = stat.state.is_open();
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = if head.method == Method::HEAD { Method::HEAD } else { Method::GET };
    let tag = etag(stat);
    let decided = conditions::evaluate(&head.headers, &tag, live, stat.len, request.headers_mut());
    let mut response = match decided {
        Some(status) => empty(status),
        None => body(hub, key, stat, request).await?,
    };
    let status = response.status();
    let headers = response.headers_mut();
    describe(headers, stat);
    if stat.state.is_complete() {
        headers.insert(UPLOAD_LENGTH, HeaderValue::from(stat.len));
    }
    if status == StatusCode::RANGE_NOT_SATISFIABLE && stat.len == 0 {
        headers.insert(header::CONTENT_RANGE, HeaderValue::from_static("bytes */0"));
    }
    if live {
        headers.remove(header::LAST_MODIFIED);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    } else {
        // It may be appended to again, so caches have to revalidate.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    }
    if status == StatusCode::OK || status == StatusCode::PARTIAL_CONTENT {
        headers.insert(header::CONTENT_TYPE, content_type(key, default_type));
    }
    sandbox(headers);
    Ok(response)
}

/// The media type for the key's extension, else the layer's default.
pub(crate) fn content_type(key: &Key, default: &HeaderValue) -> HeaderValue {
    match mime_guess::from_path(key.as_str()).first_raw() {
        None => default.clone(),
        // Without a charset, browsers take text for Windows-1252.
        Some(text) if text.starts_with("text/") => {
            HeaderValue::try_from(format!("{text}; charset=utf-8")).unwrap_or_else(|_| default.clone())
        }
        Some(other) => HeaderValue::from_static(other),
    }
}

/// The stored bytes, or the part of them that the request asks for.
async fn body(hub: &Arc<Hub>, key: &Key, stat: &Stat, request: Request<Empty<Bytes>>) -> Result<Response<OwnBody>> {
    #[cfg(target_os = "linux")]
    if !stat.state.is_open()
        && let Some(response) = file::serve_file(hub, key, stat, &request).await?
    {
        return Ok(response);
    }
    let served = ServeDir::with_backend("", Snapshot::new(hub, key, stat)).oneshot(request).await;
    Ok(served.unwrap_or_else(|never| match never {}).map(boxed))
}
