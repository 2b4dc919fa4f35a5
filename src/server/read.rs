//! Plain GET and HEAD: what is stored now, with ranges and conditions, through tower-http.

use std::io::{self, SeekFrom};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use bytes::{Buf, Bytes};
use futures_core::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header, request};
use http_body_util::Empty;
use tokio::io::{AsyncRead, AsyncSeek, ReadBuf};
use tower::util::ServiceExt;
use tower_http::services::fs::{Backend, File, Metadata, ServeDir};

use super::checks::{authorize, existing, hidden, lists};
use super::config::Options;
use super::response::{describe, etag, problem, sandbox};
use crate::access::{Allowed, Verb};
use crate::body::{Capped, OwnBody, boxed, full};
use crate::error::{ErrorKind, Result};
use crate::hub::Hub;
use crate::key::Key;
use crate::protocol::headers::UPLOAD_LENGTH;
use crate::state::{Life, Stat};
use crate::storage::ByteStream;

/// GET or HEAD without a verb.
pub(crate) async fn read(
    hub: &Arc<Hub>,
    options: &Options,
    key: Key,
    head: &request::Parts,
) -> Option<Response<OwnBody>> {
    let allowed = authorize(options, Verb::Follow, key.clone(), head).await;
    if hidden(&allowed) {
        return None;
    }
    let meant = allowed.as_ref().map_or(&key, |allowed| &allowed.key);
    let stat = existing(hub.stat(meant).await)?;
    let served = match (allowed, stat) {
        (Err(error), _) | (_, Err(error)) => Err(error),
        (Ok(Allowed { key, .. }), Ok(stat)) => match serve(hub, &key, head, &stat, &options.content_type).await {
            // Gone since.
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            served => served,
        },
    };
    Some(served.unwrap_or_else(|error| problem(&error)))
}

/// Answers with what is stored now; of a live resource that is a snapshot of its committed length.
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
    let mut response = match conditions(&head.headers, &tag, live, stat.len == 0, request.headers_mut()) {
        Some(status) => {
            let mut response = Response::new(full(""));
            *response.status_mut() = status;
            response
        }
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
        // It may be appended to again: what is cached has to be asked for.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    }
    if status == StatusCode::OK || status == StatusCode::PARTIAL_CONTENT {
        headers.insert(header::CONTENT_TYPE, content_type(key, default_type));
    }
    sandbox(headers);
    Ok(response)
}

/// Evaluates what depends on our own entity tag (RFC 9110 section 13) and copies the rest for tower-http, which has
/// tags of its own.
fn conditions(asked: &HeaderMap, tag: &str, live: bool, empty: bool, rest: &mut HeaderMap) -> Option<StatusCode> {
    let if_match = lists(asked, header::IF_MATCH, tag);
    if if_match == Some(false) {
        return Some(StatusCode::PRECONDITION_FAILED);
    }
    let if_none_match = lists(asked, header::IF_NONE_MATCH, tag);
    if if_none_match == Some(true) {
        return Some(StatusCode::NOT_MODIFIED);
    }
    let mut copy = |name: header::HeaderName| {
        if let Some(value) = asked.get(&name) {
            rest.insert(name, value.clone());
        }
    };
    if !live {
        // Dates say nothing about what grows by the millisecond.
        if if_match.is_none() {
            copy(header::IF_UNMODIFIED_SINCE);
        }
        if if_none_match.is_none() {
            copy(header::IF_MODIFIED_SINCE);
        }
    }
    // A date is no strong validator here: a range that depends on one is not given. Nor is one that can't be read: to
    // ignore it is what RFC 9110 section 14.2 asks for.
    let unchanged = asked.get(header::IF_RANGE).is_none_or(|value| value.as_bytes() == tag.as_bytes());
    if unchanged && asked.get(header::RANGE).is_some_and(is_one_range) {
        copy(header::RANGE);
    }
    // tower-http would answer with a first byte, which isn't there.
    (empty && rest.contains_key(header::RANGE)).then_some(StatusCode::RANGE_NOT_SATISFIABLE)
}

/// `bytes=N-M`, `bytes=N-` or `bytes=-N`.
fn is_one_range(value: &HeaderValue) -> bool {
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

async fn body(hub: &Arc<Hub>, key: &Key, stat: &Stat, request: Request<Empty<Bytes>>) -> Result<Response<OwnBody>> {
    #[cfg(target_os = "linux")]
    if !stat.state.is_open()
        && let Some(response) = file_body(hub, key, stat, &request).await?
    {
        return Ok(response);
    }
    let snapshot =
        Snapshot { hub: Arc::clone(hub), key: key.clone(), life: stat.life, len: stat.len, modified: stat.modified };
    let served = ServeDir::with_backend("", snapshot).oneshot(request).await;
    Ok(served.unwrap_or_else(|never| match never {}).map(boxed))
}

/// Through `ServeFile`, where the storage has a file. It opens by name, so it is given the name of our open handle:
/// what is served is what was looked up, whatever happens to the path meanwhile.
#[cfg(target_os = "linux")]
async fn file_body(
    hub: &Arc<Hub>,
    key: &Key,
    stat: &Stat,
    request: &Request<Empty<Bytes>>,
) -> Result<Option<Response<OwnBody>>> {
    use rustix::io::Errno;
    use std::os::fd::AsRawFd;

    use crate::error::{Error, ErrorKind};
    let Some(file) = hub.storage.file(key, stat.life).await? else { return Ok(None) };
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut service = tower_http::services::ServeFile::new(path);
    let response = match service.try_call(request.clone()).await {
        Ok(response) => response,
        // It would be no better the other way.
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::MFILE | Errno::NFILE)) => {
            return Err(Error::new(ErrorKind::Overloaded).with_source(error));
        }
        Err(_) => return Ok(None),
    };
    drop(file);
    // Where /proc is missing, the name of a handle leads nowhere.
    if response.status() == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    // A file that was appended to since is not what the stat told: the snapshot is exact.
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

/// By the key's extension, else the layer's default.
pub(crate) fn content_type(key: &Key, default: &HeaderValue) -> HeaderValue {
    match mime_guess::from_path(key.as_str()).first_raw() {
        None => default.clone(),
        // Without it a browser would take the text for Windows-1252.
        Some(text) if text.starts_with("text/") => {
            HeaderValue::try_from(format!("{text}; charset=utf-8")).unwrap_or_else(|_| default.clone())
        }
        Some(other) => HeaderValue::from_static(other),
    }
}

/// A resource at one length, as tower-http's file service sees a file.
#[derive(Clone)]
struct Snapshot {
    hub: Arc<Hub>,
    key: Key,
    life: Life,
    len: u64,
    modified: Option<SystemTime>,
}

struct SnapshotMeta {
    len: u64,
    modified: Option<SystemTime>,
}

impl Metadata for SnapshotMeta {
    fn is_dir(&self) -> bool {
        false
    }

    fn modified(&self) -> io::Result<SystemTime> {
        self.modified.ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    fn len(&self) -> u64 {
        self.len
    }
}

impl Snapshot {
    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { len: self.len, modified: self.modified }
    }
}

impl Backend for Snapshot {
    type File = SnapshotFile;
    type Metadata = SnapshotMeta;
    type OpenFuture = std::future::Ready<io::Result<SnapshotFile>>;
    type MetadataFuture = std::future::Ready<io::Result<SnapshotMeta>>;

    fn open(&self, _: PathBuf) -> Self::OpenFuture {
        std::future::ready(Ok(SnapshotFile { of: self.clone(), at: 0, reading: Mutex::new(Reading::Not) }))
    }

    fn metadata(&self, _: PathBuf) -> Self::MetadataFuture {
        std::future::ready(Ok(self.meta()))
    }
}

struct SnapshotFile {
    of: Snapshot,
    at: u64,
    /// Never locked, only looked into by its owner: tower-http asks for `Sync`.
    reading: Mutex<Reading>,
}

enum Reading {
    Not,
    Opening(BoxFuture<'static, Result<ByteStream>>),
    Open(ByteStream, Bytes),
}

impl AsyncRead for SnapshotFile {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let SnapshotFile { of, at, reading } = &mut *self;
        let reading = reading.get_mut().unwrap_or_else(PoisonError::into_inner);
        loop {
            match reading {
                Reading::Not if *at >= of.len => return Poll::Ready(Ok(())),
                Reading::Not => {
                    let (of, range) = (of.clone(), *at..of.len);
                    let opening = async move { of.hub.storage.read(&of.key, of.life, range).await };
                    *reading = Reading::Opening(Box::pin(opening));
                }
                Reading::Opening(opening) => {
                    let stream = ready!(opening.as_mut().poll(cx))?;
                    *reading = Reading::Open(stream, Bytes::new());
                }
                Reading::Open(stream, rest) => {
                    if rest.is_empty() {
                        match ready!(stream.as_mut().poll_next(cx)) {
                            Some(bytes) => *rest = bytes?,
                            None if *at == of.len => return Poll::Ready(Ok(())),
                            None => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                        }
                        continue;
                    }
                    let now = rest.len().min(buf.remaining());
                    buf.put_slice(&rest[..now]);
                    rest.advance(now);
                    *at += now as u64;
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncSeek for SnapshotFile {
    fn start_seek(mut self: Pin<&mut Self>, position: SeekFrom) -> io::Result<()> {
        let at = match position {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.of.len.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        self.reading = Mutex::new(Reading::Not);
        Ok(())
    }

    fn poll_complete(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Ok(self.at))
    }
}

impl File for SnapshotFile {
    type Metadata = SnapshotMeta;
    type MetadataFuture<'a> = std::future::Ready<io::Result<SnapshotMeta>>;

    fn metadata(&self) -> Self::MetadataFuture<'_> {
        std::future::ready(Ok(self.of.meta()))
    }
}
