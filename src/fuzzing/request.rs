//! Complete requests to the whole layer, without sockets.

use bytes::Bytes;
use http::header;
use http_body_util::{BodyExt, Full};
use tower::ServiceExt;

use super::{Input, intent, run};
use crate::HttpFStream;
use crate::error::ErrorKind;
use crate::storage::MemoryStorage;

/// The contents of the resource before the request.
const STORED: &[u8] = b"one\ntwo\r\n\xe2\x82\xac\n\xff";

/// The layer answers every request without an upgrade, never with an internal error, and only with bytes that are
/// stored. Afterwards the resource holds its former contents, and possibly a prefix of the request's body.
pub fn request(data: &[u8]) -> bool {
    let mut input = Input(data);
    let (kind, len) = (input.byte(), input.byte());
    let body = input.take(len.into());
    let Some(request) = intent::request(input.0) else { return false };
    run(async {
        let service = HttpFStream::new(MemoryStorage::new(1 << 20));
        let streams = service.streams();
        let mut appender = streams.open_append("a").await.expect("an appender");
        appender.append(STORED).await.expect("to append");
        // Finished, sealed, interrupted or live.
        let live = match kind % 4 {
            0 => appender.finish().await.map(|_| None),
            1 => appender.seal().await.map(|_| None),
            2 => {
                drop(appender);
                tokio::task::yield_now().await;
                Ok(None)
            }
            _ => Ok(Some(appender)),
        };
        let live = live.expect("an end");
        let request = request.map(|()| Full::new(Bytes::copy_from_slice(body)));
        let (method, wants) = (request.method().clone(), request.uri().path() == "/a");
        let conditional = request.headers().keys().any(|name| name.as_str().starts_with("if-"));
        let Ok(response) = service.oneshot(request).await;
        let (head, answer) = response.into_parts();
        let status = head.status.as_u16();
        // 501 answers an upgrade on a connection that can't be upgraded.
        assert!(status < 500 || matches!(status, 501 | 505), "{head:?}");
        assert!(status != 304 || conditional, "{head:?}");
        // The body of a live resource ends when the resource does.
        drop(live);
        let read = answer.collect().await.map(|read| read.to_bytes());
        let is_events = head.headers.get(header::CONTENT_TYPE).is_some_and(|value| value == "text/event-stream");
        if let (Ok(read), true, 200 | 206) = (&read, wants && method == http::Method::GET && !is_events, status) {
            let multipart =
                head.headers.get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"multipart"));
            assert!(multipart || STORED.windows(read.len().max(1)).any(|part| part == read) || read.is_empty());
        }
        let mut appended = false;
        match streams.follow("a").await {
            Ok(mut follower) => {
                let mut stored = Vec::new();
                while let Ok(Some(chunk)) = follower.next_chunk().await {
                    stored.extend_from_slice(&chunk.bytes);
                }
                let rest = stored.strip_prefix(STORED);
                // Nothing here deletes and recreates the resource.
                let rest = rest.expect("the former contents");
                assert!(body.starts_with(rest), "{rest:?} was appended");
                appended = !rest.is_empty();
            }
            Err(error) => {
                assert_eq!((error.kind(), method.as_str()), (ErrorKind::NotFound, "DELETE"));
                assert_eq!(status, 204);
            }
        }
        appended || (status == 206 && read.is_ok())
    })
}
