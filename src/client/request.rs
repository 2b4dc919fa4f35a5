//! The request and the check of its answer: the opening handshake of RFC 6455 section 4.1.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::task::AbortOnDropHandle;

use super::builder::Settings;
use super::connect::{Connection, connect};
use super::refusal::refusal;
use super::url::Target;
use crate::error::{Error, ErrorKind, Result};
use crate::wire::Conn;
use crate::wire::frame::Role;

/// What a server of ours says about the resource in every answer, and the original's never does.
pub(super) const STREAM_STATE: HeaderName = HeaderName::from_static("stream-state");
const X_VERB: HeaderName = HeaderName::from_static("x-verb");

/// What is asked of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Append,
    Follow,
}

/// A server's consent.
pub(super) enum Answer {
    /// The connection is a WebSocket now; `ours` if the server is not the original's.
    Upgraded { conn: Conn<TokioIo<Upgraded>>, ours: bool },
    /// 200: the resource is in the body. Reading it needs the driver.
    Plain { response: Response<Incoming>, driver: AbortOnDropHandle<()> },
}

/// Connects, asks, and checks the answer.
pub(super) async fn send(settings: &Settings, target: &Target, verb: Verb) -> Result<Answer> {
    let key = generate_key();
    let request = request(settings.headers().await?, target, verb, &key)?;
    let Connection { mut sender, driver } = connect(settings, target, verb).await?;
    let limit = settings.response_timeout;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        match response.status() {
            StatusCode::SWITCHING_PROTOCOLS | StatusCode::OK => Ok(response),
            _ => Err(refusal(response).await),
        }
    };
    let response = match timeout(limit, exchange).await {
        Ok(response) => response?,
        Err(_) => {
            let detail = format!("the server did not answer within {limit:?}");
            return Err(Error::new(ErrorKind::TimedOut).with_detail(detail));
        }
    };
    if response.status() == StatusCode::OK {
        return Ok(Answer::Plain { response, driver });
    }
    check_upgrade(response.headers(), &key)?;
    let ours = response.headers().contains_key(STREAM_STATE);
    let upgraded = hyper::upgrade::on(response).await.map_err(broken)?;
    let conn = Conn::new(TokioIo::new(upgraded), Role::Client, settings.max_message_size);
    Ok(Answer::Upgraded { conn, ours })
}

fn request(mut headers: HeaderMap, target: &Target, verb: Verb, key: &str) -> Result<Request<Empty<bytes::Bytes>>> {
    let malformed = |error: http::Error| {
        Error::new(ErrorKind::BadRequest).with_detail("the request is malformed").with_source(error)
    };
    let verb = match verb {
        Verb::Append => "APPEND",
        Verb::Follow => "FOLLOW",
    };
    headers.insert(header::HOST, target.authority.clone());
    headers.insert(X_VERB, HeaderValue::from_static(verb));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::try_from(key).map_err(|error| malformed(error.into()))?);
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = Uri::from(target.path.clone());
    *request.headers_mut() = headers;
    Ok(request)
}

/// Refuses a 101 that a WebSocket server would not have sent for this very request.
fn check_upgrade(headers: &HeaderMap, key: &str) -> Result<()> {
    let refused = |why: &'static str| Err(Error::new(ErrorKind::Protocol).with_detail(why));
    if !has_token(headers, &header::UPGRADE, "websocket") || !has_token(headers, &header::CONNECTION, "upgrade") {
        return refused("the server switched to something else than WebSocket");
    }
    let mut accepts = headers.get_all(header::SEC_WEBSOCKET_ACCEPT).iter();
    match (accepts.next(), accepts.next()) {
        (Some(accept), None) if accept.as_bytes() == derive_accept_key(key.as_bytes()).as_bytes() => {}
        (None, _) => return refused("the server's upgrade has no Sec-WebSocket-Accept"),
        _ => return refused("the server's upgrade has a wrong Sec-WebSocket-Accept"),
    }
    if headers.contains_key(header::SEC_WEBSOCKET_EXTENSIONS) {
        return refused("the server's upgrade has an extension that was not asked for");
    }
    if headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL) {
        return refused("the server's upgrade has a subprotocol that was not asked for");
    }
    Ok(())
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(token))
}

fn broken(error: hyper::Error) -> Error {
    let (kind, detail) = if error.is_parse() {
        (ErrorKind::Protocol, "the head of the server's answer is too large, or not HTTP")
    } else {
        (ErrorKind::Connection, "the connection broke before the server answered")
    };
    Error::new(kind).with_detail(detail).with_source(error)
}
