//! The request and the check of its answer: the opening handshake of RFC 6455 section 4.1.

use std::fmt::{Display, Write as _};
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
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
use crate::error::{BoxError, Error, ErrorKind, Result};
use crate::id::AppenderId;
use crate::wire::Conn;
use crate::wire::frame::Role;

/// What a server of ours says about the resource in every answer, and the original's never does.
pub(super) const STREAM_STATE: HeaderName = HeaderName::from_static("stream-state");
const X_VERB: HeaderName = HeaderName::from_static("x-verb");
const UPLOAD_OFFSET: HeaderName = HeaderName::from_static("upload-offset");
const APPENDER_ID: HeaderName = HeaderName::from_static("appender-id");
/// The resumable subprotocol.
const V1: HeaderValue = HeaderValue::from_static(crate::asked::V1);

pub(super) type WebSocket = Conn<TokioIo<Upgraded>>;

/// What is asked of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Append,
    Follow,
}

/// What is asked beside the verb.
#[derive(Debug, Clone, Default)]
pub(super) struct Options {
    query: String,
    id: Option<HeaderValue>,
    /// How much longer than usual the answer may take.
    patience: Duration,
}

impl Options {
    /// Adds an option. Its value needs no escapes in a query.
    pub(super) fn set(&mut self, name: &str, value: impl Display) {
        let separator = if self.query.is_empty() { "" } else { "&" };
        // Writing to a string can't fail.
        let _ = write!(self.query, "{separator}{name}={value}");
    }

    /// Names the appender. It is a credential, so it goes where no log looks.
    pub(super) fn set_id(&mut self, id: &AppenderId) -> Result<()> {
        let mut value = HeaderValue::from_str(id.as_str()).map_err(malformed)?;
        value.set_sensitive(true);
        self.id = Some(value);
        Ok(())
    }

    /// Grants the server more time for its answer.
    pub(super) fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }
}

/// Whose protocol a server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `httpfstream.v1`.
    Resumable,
    /// The original's, by a server of ours.
    Ours,
    /// The original's, by its own server for all that is known.
    Original,
}

/// A server's consent.
#[expect(clippy::large_enum_variant, reason = "one per connection, and taken apart at once")]
pub(super) enum Answer {
    /// The connection is a WebSocket now. `length` is the resource's, where the answer's head tells it.
    Upgraded { conn: WebSocket, dialect: Dialect, length: Option<u64> },
    /// 200: the resource is in the body. Reading it needs the driver.
    Plain { response: Response<Incoming>, driver: AbortOnDropHandle<()> },
}

/// Connects, asks, and checks the answer.
pub(super) async fn send(settings: &Settings, target: &Target, verb: Verb, options: &Options) -> Result<Answer> {
    let key = generate_key();
    let request = request(settings.headers().await?, target, verb, options, &key)?;
    let Connection { mut sender, driver } = connect(settings, target).await?;
    let limit = settings.response_timeout.saturating_add(options.patience);
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
    let dialect = check_upgrade(response.headers(), &key)?;
    let length = response.headers().get(UPLOAD_OFFSET).and_then(|length| length.to_str().ok()?.parse().ok());
    let upgraded = hyper::upgrade::on(response).await.map_err(broken)?;
    let conn = Conn::new(TokioIo::new(upgraded), Role::Client, settings.max_message_size);
    Ok(Answer::Upgraded { conn, dialect, length })
}

fn request(
    mut headers: HeaderMap,
    target: &Target,
    verb: Verb,
    options: &Options,
    key: &str,
) -> Result<Request<Empty<bytes::Bytes>>> {
    let verb = match verb {
        Verb::Append => "APPEND",
        Verb::Follow => "FOLLOW",
    };
    headers.insert(header::HOST, target.authority.clone());
    headers.insert(X_VERB, HeaderValue::from_static(verb));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::try_from(key).map_err(malformed)?);
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, V1);
    if let Some(id) = &options.id {
        headers.insert(APPENDER_ID, id.clone());
    }
    let path = match (options.query.as_str(), target.path.query()) {
        ("", _) => target.path.clone(),
        (options, None) => PathAndQuery::try_from(format!("{}?{options}", target.path)).map_err(malformed)?,
        (options, Some(_)) => PathAndQuery::try_from(format!("{}&{options}", target.path)).map_err(malformed)?,
    };
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = Uri::from(path);
    *request.headers_mut() = headers;
    Ok(request)
}

fn malformed(error: impl Into<BoxError>) -> Error {
    Error::new(ErrorKind::BadRequest).with_detail("the request is malformed").with_source(error)
}

/// Refuses a 101 that a WebSocket server would not have sent for this very request.
fn check_upgrade(headers: &HeaderMap, key: &str) -> Result<Dialect> {
    let refused = |why: &'static str| Err::<Dialect, _>(Error::new(ErrorKind::Protocol).with_detail(why));
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
    let mut protocols = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    match (protocols.next(), protocols.next()) {
        (None, _) if headers.contains_key(STREAM_STATE) => Ok(Dialect::Ours),
        (None, _) => Ok(Dialect::Original),
        (Some(protocol), None) if protocol == V1 => Ok(Dialect::Resumable),
        _ => refused("the server's upgrade has a subprotocol that was not asked for"),
    }
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
