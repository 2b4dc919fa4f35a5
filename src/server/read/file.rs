//! The file of a closed resource, served by tower-http's `ServeFile`.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Empty;
use rustix::io::Errno;
use tower_http::services::ServeFile;

use crate::body::{Capped, OwnBody, boxed};
use crate::error::{Error, ErrorKind, Result};
use crate::hub::Hub;
use crate::key::Key;
use crate::state::Stat;

/// Serves the storage's file, or returns `None` where it has none or the file is not exactly what `stat` says.
///
/// `ServeFile` opens by name, so it gets the name of our open handle: what was looked up is served, whatever happens to
/// the path meanwhile.
pub(super) async fn serve_file(
    hub: &Arc<Hub>,
    key: &Key,
    stat: &Stat,
    request: &Request<Empty<Bytes>>,
) -> Result<Option<Response<OwnBody>>> {
    let Some(file) = hub.storage.file(key, stat.life).await? else { return Ok(None) };
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut service = ServeFile::new(path);
    let response = match service.try_call(request.clone()).await {
        Ok(response) => response,
        // Out of file descriptors: a snapshot would need one too.
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::MFILE | Errno::NFILE)) => {
            return Err(Error::new(ErrorKind::Overloaded).with_source(error));
        }
        Err(_) => return Ok(None),
    };
    drop(file);
    // /proc is not mounted.
    if response.status() == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    // A file that was appended to in the meantime is longer than `stat` says. A snapshot has the exact length.
    let total = match response.headers().get(header::CONTENT_RANGE) {
        Some(range) => range.to_str().ok().and_then(|range| range.rsplit('/').next()),
        None => response.headers().get(header::CONTENT_LENGTH).and_then(|len| len.to_str().ok()),
    };
    let exact = total.is_none_or(|total| total.parse() == Ok(stat.len));
    let announced = response.headers().get(header::CONTENT_LENGTH).and_then(|len| len.to_str().ok()?.parse().ok());
    let head = request.method() == Method::HEAD;
    Ok(exact.then(|| match announced {
        // A file that grows while it is sent must not send more than was announced.
        Some(len) if !head => response.map(|body| boxed(Capped::new(body, len))),
        _ => response.map(boxed),
    }))
}
