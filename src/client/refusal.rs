//! A response that refuses the request, as an error.

use std::time::Duration;

use bytes::Buf;
use http::header::{self, HeaderMap};
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::error::{Error, ErrorKind};

/// How much of a refusal's body is read, in bytes.
const MAX_BODY: usize = 4 * 1024;
/// The time limit for reading a refusal's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// How much of a server's text is repeated in an error, in characters.
const MAX_TEXT: usize = 300;

pub(super) async fn refusal(response: Response<Incoming>) -> Error {
    let (head, body) = response.into_parts();
    let status = head.status;
    if status.is_redirection() {
        let location = head.headers.get(header::LOCATION).map(|value| String::from_utf8_lossy(value.as_bytes()));
        let location = location.map_or("elsewhere".into(), |location| printable(&location));
        let detail = format!("the server redirects to {location} ({status}), which is not followed");
        return Error::new(ErrorKind::Redirect).with_detail(detail);
    }
    let body = read_beginning(body).await;
    let text = String::from_utf8_lossy(&body);
    let problem: Value = match media_type(&head.headers).as_str() {
        "application/problem+json" | "application/json" => serde_json::from_slice(&body).unwrap_or_default(),
        "text/plain" => json!({ "detail": text.lines().next() }),
        _ => Value::Null,
    };
    let (problem, detail) = (problem["type"].as_str().unwrap_or_default(), problem["detail"].as_str());
    let problem = problem.rsplit(['/', ':', '#']).next().unwrap_or_default();
    let kind = kind(status, problem, &head.headers);
    let detail = match detail.map(printable).filter(|detail| !detail.is_empty()) {
        Some(detail) => format!("the server answered {status}: {detail}"),
        None => format!("the server answered {status}"),
    };
    Error::new(kind).with_detail(detail)
}

/// The kind for a status. `problem` is the last part of the problem's type (RFC 9457), which distinguishes the causes of
/// one status.
fn kind(status: StatusCode, problem: &str, headers: &HeaderMap) -> ErrorKind {
    match (status.as_u16(), problem) {
        (400, "bad-path") => ErrorKind::BadPath,
        (400, _) => ErrorKind::BadRequest,
        (401, _) => ErrorKind::Unauthorized,
        (403, _) => ErrorKind::Forbidden,
        (404, _) => ErrorKind::NotFound,
        (405, _) => ErrorKind::MethodNotAllowed,
        (408, _) => ErrorKind::TimedOut,
        (409, "sealed") => ErrorKind::Sealed,
        (409, "exists") => ErrorKind::Exists,
        (409, "conflict") => ErrorKind::Conflict,
        (409, "fenced") => ErrorKind::Fenced,
        (409, "offset") => ErrorKind::Offset,
        (409, _) => ErrorKind::Busy,
        (412, "life") => ErrorKind::Life,
        (412, _) => ErrorKind::Precondition,
        (413, _) => ErrorKind::TooLarge,
        (414, _) => ErrorKind::PathTooLong,
        (416, _) => ErrorKind::PastEnd,
        (426, _) if headers.get(header::SEC_WEBSOCKET_VERSION).is_some_and(|version| version != "13") => {
            ErrorKind::WebSocketVersion
        }
        (426, _) => ErrorKind::UpgradeRequired,
        (429, _) => ErrorKind::Overloaded,
        (500, "storage") => ErrorKind::Storage,
        (501, _) => ErrorKind::NotUpgradable,
        // From a proxy that can't reach the server.
        (502 | 504, _) => ErrorKind::Connection,
        (503, "shutting-down") => ErrorKind::ShuttingDown,
        (503, _) => ErrorKind::Overloaded,
        (507, _) => ErrorKind::Full,
        _ => ErrorKind::Status,
    }
}

fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Reads the body's beginning within the limits. A cut body is good enough to explain an error.
async fn read_beginning(mut body: Incoming) -> Vec<u8> {
    let mut read = Vec::new();
    let reading = async {
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(mut data) = frame.into_data() else { return };
            let room = MAX_BODY - read.len();
            read.extend_from_slice(&data.copy_to_bytes(data.len().min(room)));
            if read.len() == MAX_BODY {
                return;
            }
        }
    };
    let _ = timeout(BODY_TIMEOUT, reading).await;
    read
}

/// A peer's text made safe to show: one line of limited length without control characters, which could steer a terminal.
pub(super) fn printable(text: &str) -> String {
    let line: String = text.chars().take(MAX_TEXT).map(|c| if c.is_control() { ' ' } else { c }).collect();
    line.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_of_this_crate_keep_their_kind() {
        // Kinds that share a problem type become the type's first one.
        let cases = [
            (ErrorKind::BadRequest, ErrorKind::BadRequest),
            (ErrorKind::BadPath, ErrorKind::BadPath),
            (ErrorKind::PathTooLong, ErrorKind::PathTooLong),
            (ErrorKind::NotFound, ErrorKind::NotFound),
            (ErrorKind::Busy, ErrorKind::Busy),
            (ErrorKind::Exists, ErrorKind::Exists),
            (ErrorKind::Sealed, ErrorKind::Sealed),
            (ErrorKind::Conflict, ErrorKind::Conflict),
            (ErrorKind::Fenced, ErrorKind::Fenced),
            (ErrorKind::PastEnd, ErrorKind::PastEnd),
            (ErrorKind::TooLarge, ErrorKind::TooLarge),
            (ErrorKind::Full, ErrorKind::Full),
            (ErrorKind::Unauthorized, ErrorKind::Unauthorized),
            (ErrorKind::Forbidden, ErrorKind::Forbidden),
            (ErrorKind::MethodNotAllowed, ErrorKind::MethodNotAllowed),
            (ErrorKind::UpgradeRequired, ErrorKind::UpgradeRequired),
            (ErrorKind::NotUpgradable, ErrorKind::NotUpgradable),
            (ErrorKind::Overloaded, ErrorKind::Overloaded),
            (ErrorKind::ShuttingDown, ErrorKind::ShuttingDown),
            (ErrorKind::Storage, ErrorKind::Storage),
            (ErrorKind::Life, ErrorKind::Life),
            (ErrorKind::Offset, ErrorKind::Offset),
            (ErrorKind::Precondition, ErrorKind::Precondition),
        ];
        for (sent, expected) in cases {
            assert_eq!(kind(sent.status(), sent.problem(), &HeaderMap::new()), expected, "{sent:?}");
        }
    }

    #[test]
    fn a_servers_text_cannot_steer_a_terminal() {
        assert_eq!(printable("\x1b[2Ja\r\nb\u{9b}c "), "[2Ja  b c");
        assert_eq!(printable(&"é".repeat(1000)).chars().count(), MAX_TEXT);
    }
}
