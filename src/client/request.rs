//! The opening handshake, by an HTTP/1.1 upgrade (RFC 6455 section 4.1) or an extended CONNECT over HTTP/2 (RFC 8441
//! section 5).

use std::fmt::{Display, Write as _};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::task::AbortOnDropHandle;

use super::builder::{Settings, Version as VersionChoice};
use super::connect::Connection;
use super::http2::{RequestFailed, StreamSlot, cause};
use super::pool::{Pool, Transport};
use super::refusal::refusal;
use super::url::Target;
use crate::error::{BoxError, Error, ErrorKind, Result};
use crate::identity::AppenderId;
use crate::protocol::headers::{APPENDER_ID, STREAM_STATE, UPLOAD_OFFSET, X_VERB};
use crate::state::State;
use crate::websocket::Conn;
use crate::websocket::frame::Role;

/// The resumable subprotocol.
const V1: HeaderValue = HeaderValue::from_static(crate::protocol::SUBPROTOCOL);

/// On how many connections a request is sent that an HTTP/2 server has left unprocessed.
const MAX_TRIES: usize = 3;

pub(super) type WebSocket = Conn<Socket>;

/// An upgraded connection, or a stream of a shared HTTP/2 connection.
#[derive(Debug)]
pub(super) struct Socket {
    io: TokioIo<Upgraded>,
    _slot: Option<StreamSlot>,
}

/// The operation that a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Append,
    Follow,
}

/// The parameters of a request beside its verb.
#[derive(Debug, Clone, Default)]
pub(super) struct Parameters {
    query: String,
    id: Option<HeaderValue>,
    /// Added to the time limit for the response.
    extra_time: Duration,
}

impl Parameters {
    /// Adds a query parameter. The value must need no escapes.
    pub(super) fn set(&mut self, name: &str, value: impl Display) {
        let separator = if self.query.is_empty() { "" } else { "&" };
        // Writing to a string can't fail.
        let _ = write!(self.query, "{separator}{name}={value}");
    }

    /// Sets the appender's id. It is a credential, so it goes into a header, marked as sensitive, rather than into the
    /// URL.
    pub(super) fn set_id(&mut self, id: &AppenderId) -> Result<()> {
        let mut value = HeaderValue::from_str(id.as_str()).map_err(malformed)?;
        value.set_sensitive(true);
        self.id = Some(value);
        Ok(())
    }

    /// Extends the time limit for the response.
    pub(super) fn extend_timeout(&mut self, by: Duration) {
        self.extra_time = by;
    }
}

/// The protocol that a server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `httpfstream.v1`.
    V1,
    /// The original's, spoken by a server of this crate: it answers pings, and its responses have `Stream-State`.
    Compat,
    /// The original's, spoken by the original's server as far as is known.
    Original,
}

/// A response that grants the request.
#[expect(clippy::large_enum_variant, reason = "one per connection, and destructured at once")]
pub(super) enum Accepted {
    /// The connection is a WebSocket now. `length` is the resource's, if the response has it. `closed` is its state
    /// if it can't grow any more, which happens over HTTP/2 only: over HTTP/1.1 a closed resource comes in a body.
    WebSocket { conn: WebSocket, dialect: Dialect, length: Option<u64>, closed: Option<State> },
    /// A 200 with the closed resource in its body, which is read only while the driver lives.
    Body { response: Response<Incoming>, driver: AbortOnDropHandle<()> },
}

/// Connects, sends the request, and checks the response.
pub(super) async fn send(
    settings: &Arc<Settings>,
    target: &Target,
    verb: Verb,
    parameters: &Parameters,
) -> Result<Accepted> {
    let headers = settings.headers().await?;
    let limit = settings.response_timeout.saturating_add(parameters.extra_time);
    let mut tries = 0;
    loop {
        tries += 1;
        let headers = headers.clone();
        let slot = match Box::pin(Pool::acquire(settings, target)).await? {
            Transport::Http1(connection) => {
                return http1(settings, target, verb, parameters, headers, connection).await;
            }
            Transport::Http2(slot) => slot,
        };
        let request = request(headers, target, verb, parameters, None)?;
        let exchange = async {
            match slot.send(request).await {
                Ok(response) if response.status() == StatusCode::OK => Ok(Ok(response)),
                Ok(response) => Ok(Err(refusal(response).await)),
                Err(failed) => Err(failed),
            }
        };
        let Ok(result) = timeout(limit, exchange).await else {
            // Probably the whole connection is stuck.
            slot.retire();
            return Err(timed_out(limit));
        };
        let response = match result {
            Ok(response) => response?,
            Err(RequestFailed { error, connection_lost, unprocessed, http1_required }) => {
                let fall_back = http1_required && settings.version == VersionChoice::Negotiated;
                if fall_back {
                    settings.pool.set_http1_only(target);
                }
                // A reused connection may have been dead for long, and a follow is idempotent.
                let repeatable = connection_lost && verb == Verb::Follow && !slot.is_first;
                if tries < MAX_TRIES && (fall_back || unprocessed || repeatable) {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "sending the request again on another connection"
                    );
                    continue;
                }
                return Err(request_error(error));
            }
        };
        let dialect = dialect(response.headers())?;
        return upgraded(settings, response, dialect, Some(slot)).await;
    }
}

async fn http1(
    settings: &Settings,
    target: &Target,
    verb: Verb,
    parameters: &Parameters,
    headers: HeaderMap,
    connection: Connection,
) -> Result<Accepted> {
    let Connection { mut sender, driver } = connection;
    let key = generate_key();
    let request = request(headers, target, verb, parameters, Some(&key))?;
    let limit = settings.response_timeout.saturating_add(parameters.extra_time);
    let exchange = async {
        let response = sender.send_request(request).await.map_err(request_error)?;
        match response.status() {
            StatusCode::SWITCHING_PROTOCOLS | StatusCode::OK => Ok(response),
            _ => Err(refusal(response).await),
        }
    };
    let response = timeout(limit, exchange).await.map_err(|_| timed_out(limit)).flatten()?;
    if response.status() == StatusCode::OK {
        return Ok(Accepted::Body { response, driver });
    }
    check_upgrade(response.headers(), &key)?;
    let dialect = dialect(response.headers())?;
    upgraded(settings, response, dialect, None).await
}

async fn upgraded(
    settings: &Settings,
    response: Response<Incoming>,
    dialect: Dialect,
    slot: Option<StreamSlot>,
) -> Result<Accepted> {
    let header = |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let length = header(UPLOAD_OFFSET).and_then(|length| length.parse().ok());
    let state: Option<State> = header(STREAM_STATE).and_then(|state| state.parse().ok());
    let closed = state.filter(|state| !state.is_open());
    let io = TokioIo::new(hyper::upgrade::on(response).await.map_err(request_error)?);
    let conn = Conn::new(Socket { io, _slot: slot }, Role::Client, settings.max_message_size);
    Ok(Accepted::WebSocket { conn, dialect, length, closed })
}

/// Builds the request: an HTTP/1.1 upgrade with this `key`, or an extended CONNECT without one.
fn request(
    mut headers: HeaderMap,
    target: &Target,
    verb: Verb,
    parameters: &Parameters,
    key: Option<&str>,
) -> Result<Request<Empty<bytes::Bytes>>> {
    let verb = match verb {
        Verb::Append => "APPEND",
        Verb::Follow => "FOLLOW",
    };
    headers.insert(X_VERB, HeaderValue::from_static(verb));
    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, V1);
    if let Some(id) = &parameters.id {
        headers.insert(APPENDER_ID, id.clone());
    }
    let path = match (parameters.query.as_str(), target.path.query()) {
        ("", _) => target.path.clone(),
        (query, None) => PathAndQuery::try_from(format!("{}?{query}", target.path)).map_err(malformed)?,
        (query, Some(_)) => PathAndQuery::try_from(format!("{}&{query}", target.path)).map_err(malformed)?,
    };
    let mut request = Request::new(Empty::new());
    if let Some(key) = key {
        headers.insert(header::HOST, target.authority.clone());
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::try_from(key).map_err(malformed)?);
        *request.uri_mut() = Uri::from(path);
    } else {
        *request.method_mut() = Method::CONNECT;
        *request.version_mut() = Version::HTTP_2;
        request.extensions_mut().insert(Protocol::from_static("websocket"));
        let uri = Uri::builder().scheme(if target.tls { "https" } else { "http" });
        *request.uri_mut() =
            uri.authority(target.authority.as_bytes()).path_and_query(path).build().map_err(malformed)?;
    }
    *request.headers_mut() = headers;
    Ok(request)
}

fn timed_out(limit: Duration) -> Error {
    Error::new(ErrorKind::TimedOut).with_detail(format!("the server did not answer within {limit:?}"))
}

fn malformed(error: impl Into<BoxError>) -> Error {
    Error::new(ErrorKind::BadRequest).with_detail("the request is malformed").with_source(error)
}

/// Checks that a 101 is a WebSocket server's response to this very request (RFC 6455 section 4.1).
fn check_upgrade(headers: &HeaderMap, key: &str) -> Result<()> {
    if !has_token(headers, &header::UPGRADE, "websocket") || !has_token(headers, &header::CONNECTION, "upgrade") {
        return reject("the server switched to a protocol other than WebSocket");
    }
    let mut accepts = headers.get_all(header::SEC_WEBSOCKET_ACCEPT).iter();
    match (accepts.next(), accepts.next()) {
        (Some(accept), None) if accept.as_bytes() == derive_accept_key(key.as_bytes()).as_bytes() => Ok(()),
        (None, _) => reject("the server's upgrade has no Sec-WebSocket-Accept"),
        _ => reject("the server's upgrade has a wrong Sec-WebSocket-Accept"),
    }
}

/// The protocol that the server chose, which must be one that was offered.
fn dialect(headers: &HeaderMap) -> Result<Dialect> {
    if headers.contains_key(header::SEC_WEBSOCKET_EXTENSIONS) {
        return reject("the server's upgrade has an extension that was not offered");
    }
    let mut protocols = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    match (protocols.next(), protocols.next()) {
        (None, _) if headers.contains_key(STREAM_STATE) => Ok(Dialect::Compat),
        (None, _) => Ok(Dialect::Original),
        (Some(protocol), None) if protocol == V1 => Ok(Dialect::V1),
        _ => reject("the server's upgrade has a subprotocol that was not offered"),
    }
}

fn reject<T>(why: &'static str) -> Result<T> {
    Err(Error::new(ErrorKind::Protocol).with_detail(why))
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(token))
}

fn request_error(error: hyper::Error) -> Error {
    // A protocol error of HTTP/2 is permanent, whichever side found it.
    let violation = cause(&error).is_some_and(|cause| {
        matches!(cause.reason(), Some(h2::Reason::PROTOCOL_ERROR | h2::Reason::HTTP_1_1_REQUIRED))
    });
    let (kind, detail) = match error.is_parse() || violation {
        true => (ErrorKind::Protocol, "the head of the server's response is too large, or not HTTP"),
        false => (ErrorKind::Connection, "the connection broke before the server answered"),
    };
    Error::new(kind).with_detail(detail).with_source(error)
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
