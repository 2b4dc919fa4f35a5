//! The request and the check of its answer: the opening handshake of RFC 6455 section 4.1, or of RFC 8441 section 5.

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

use super::builder::{Settings, Version as Allowed};
use super::connect::Connection;
use super::http2::{Place, Unanswered, cause};
use super::pool::{Pool, Via};
use super::refusal::refusal;
use super::url::Target;
use crate::error::{BoxError, Error, ErrorKind, Result};
use crate::identity::AppenderId;
use crate::state::State;
use crate::websocket::Conn;
use crate::websocket::frame::Role;

/// What a server of ours says about the resource in every answer, and the original's never does.
pub(super) const STREAM_STATE: HeaderName = HeaderName::from_static("stream-state");
const X_VERB: HeaderName = HeaderName::from_static("x-verb");
const UPLOAD_OFFSET: HeaderName = HeaderName::from_static("upload-offset");
const APPENDER_ID: HeaderName = HeaderName::from_static("appender-id");
/// The resumable subprotocol.
const V1: HeaderValue = HeaderValue::from_static(crate::protocol::SUBPROTOCOL);

/// On how many connections a request is tried that a server of HTTP/2 has left untouched.
const TRIES: usize = 3;

pub(super) type WebSocket = Conn<Socket>;

/// A connection of one's own, or a stream of a shared one.
#[derive(Debug)]
pub(super) struct Socket {
    io: TokioIo<Upgraded>,
    _place: Option<Place>,
}

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
    /// The connection is a WebSocket now. `length` is the resource's, where the answer's head tells it, and so is
    /// `ended` if nothing will come after what is there: which over HTTP/1.1 would be in a body.
    Upgraded { conn: WebSocket, dialect: Dialect, length: Option<u64>, ended: Option<State> },
    /// 200: the resource is in the body. Reading it needs the driver.
    Plain { response: Response<Incoming>, driver: AbortOnDropHandle<()> },
}

/// Connects, asks, and checks the answer.
pub(super) async fn send(settings: &Arc<Settings>, target: &Target, verb: Verb, options: &Options) -> Result<Answer> {
    let headers = settings.headers().await?;
    let limit = settings.response_timeout.saturating_add(options.patience);
    let mut tries = 0;
    loop {
        tries += 1;
        let headers = headers.clone();
        let place = match Box::pin(Pool::via(settings, target)).await? {
            Via::Http1(connection) => return http1(settings, target, verb, options, headers, connection).await,
            Via::Http2(place) => place,
        };
        let request = request(headers, target, verb, options, None)?;
        let exchange = async {
            match place.send(request).await {
                Ok(response) if response.status() == StatusCode::OK => Ok(Ok(response)),
                Ok(response) => Ok(Err(refusal(response).await)),
                Err(unanswered) => Err(unanswered),
            }
        };
        let Ok(answered) = timeout(limit, exchange).await else {
            // As like as not it is the connection that is stuck.
            place.retire();
            return Err(unanswered(limit));
        };
        let response = match answered {
            Ok(response) => response?,
            Err(Unanswered { error, lost, untouched, http1 }) => {
                let fall_back = http1 && settings.version == Allowed::Negotiated;
                if fall_back {
                    settings.pool.wants_http1(target);
                }
                // A connection that others had before may have been dead for long, and to follow changes nothing.
                let harmless = lost && verb == Verb::Follow && !place.first;
                if tries < TRIES && (fall_back || untouched || harmless) {
                    tracing::debug!(error = &error as &dyn std::error::Error, "asking again on another connection");
                    continue;
                }
                return Err(broken(error));
            }
        };
        let dialect = dialect(response.headers())?;
        return upgraded(settings, response, dialect, Some(place)).await;
    }
}

async fn http1(
    settings: &Settings,
    target: &Target,
    verb: Verb,
    options: &Options,
    headers: HeaderMap,
    connection: Connection,
) -> Result<Answer> {
    let Connection { mut sender, driver } = connection;
    let key = generate_key();
    let request = request(headers, target, verb, options, Some(&key))?;
    let limit = settings.response_timeout.saturating_add(options.patience);
    let exchange = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        match response.status() {
            StatusCode::SWITCHING_PROTOCOLS | StatusCode::OK => Ok(response),
            _ => Err(refusal(response).await),
        }
    };
    let response = timeout(limit, exchange).await.map_err(|_| unanswered(limit)).flatten()?;
    if response.status() == StatusCode::OK {
        return Ok(Answer::Plain { response, driver });
    }
    check_upgrade(response.headers(), &key)?;
    let dialect = dialect(response.headers())?;
    upgraded(settings, response, dialect, None).await
}

async fn upgraded(
    settings: &Settings,
    response: Response<Incoming>,
    dialect: Dialect,
    place: Option<Place>,
) -> Result<Answer> {
    let told = |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let length = told(UPLOAD_OFFSET).and_then(|length| length.parse().ok());
    let state: Option<State> = told(STREAM_STATE).and_then(|state| state.parse().ok());
    let ended = state.filter(|state| !state.is_open());
    let io = TokioIo::new(hyper::upgrade::on(response).await.map_err(broken)?);
    let conn = Conn::new(Socket { io, _place: place }, Role::Client, settings.max_message_size);
    Ok(Answer::Upgraded { conn, dialect, length, ended })
}

/// The request, with `key` as an upgrade of HTTP/1.1, without as an extended CONNECT.
fn request(
    mut headers: HeaderMap,
    target: &Target,
    verb: Verb,
    options: &Options,
    key: Option<&str>,
) -> Result<Request<Empty<bytes::Bytes>>> {
    let verb = match verb {
        Verb::Append => "APPEND",
        Verb::Follow => "FOLLOW",
    };
    headers.insert(X_VERB, HeaderValue::from_static(verb));
    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
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

fn unanswered(limit: Duration) -> Error {
    Error::new(ErrorKind::TimedOut).with_detail(format!("the server did not answer within {limit:?}"))
}

fn malformed(error: impl Into<BoxError>) -> Error {
    Error::new(ErrorKind::BadRequest).with_detail("the request is malformed").with_source(error)
}

/// Refuses a 101 that a WebSocket server would not have sent for this very request.
fn check_upgrade(headers: &HeaderMap, key: &str) -> Result<()> {
    if !has_token(headers, &header::UPGRADE, "websocket") || !has_token(headers, &header::CONNECTION, "upgrade") {
        return refused("the server switched to something else than WebSocket");
    }
    let mut accepts = headers.get_all(header::SEC_WEBSOCKET_ACCEPT).iter();
    match (accepts.next(), accepts.next()) {
        (Some(accept), None) if accept.as_bytes() == derive_accept_key(key.as_bytes()).as_bytes() => Ok(()),
        (None, _) => refused("the server's upgrade has no Sec-WebSocket-Accept"),
        _ => refused("the server's upgrade has a wrong Sec-WebSocket-Accept"),
    }
}

/// What a server that consents will speak: it must be something that was asked for.
fn dialect(headers: &HeaderMap) -> Result<Dialect> {
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

fn refused<T>(why: &'static str) -> Result<T> {
    Err(Error::new(ErrorKind::Protocol).with_detail(why))
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(token))
}

fn broken(error: hyper::Error) -> Error {
    // What HTTP/2 calls an error of the protocol doesn't mend by itself, whoever found it.
    let breach = cause(&error).is_some_and(|cause| {
        matches!(cause.reason(), Some(h2::Reason::PROTOCOL_ERROR | h2::Reason::HTTP_1_1_REQUIRED))
    });
    let (kind, detail) = match error.is_parse() || breach {
        true => (ErrorKind::Protocol, "the head of the server's answer is too large, or not HTTP"),
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
