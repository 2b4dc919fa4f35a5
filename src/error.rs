//! The one error type, and the only place that maps errors to HTTP statuses, problem types and close codes.

use std::borrow::Cow;
use std::fmt;

use http::{HeaderValue, StatusCode};

/// A boxed error, as the tower ecosystem has it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, with the underlying error if there is one.
///
/// Every fallible call of this crate returns it, including those of storages and of the client. Match on
/// [`kind`](Error::kind); the [`Display`](fmt::Display) text is for people and may change.
///
/// With the feature `axum` a handler can return `Result<_, httpfstream::Error>`; elsewhere
/// [`to_response`](Error::to_response) makes the response.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    detail: Option<Cow<'static, str>>,
    source: Option<BoxError>,
    challenges: Vec<HeaderValue>,
}

/// The cause of an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request contradicts itself or is malformed.
    BadRequest,
    /// The path can't name a resource: `..`, an empty segment, control characters, bytes that are not UTF-8.
    BadPath,
    /// The path, or one segment of it, is too long to be stored.
    PathTooLong,
    /// There is no such resource, or not in the life that was asked for.
    NotFound,
    /// Somebody else is appending to the resource.
    Busy,
    /// The resource exists, and the call wanted to create it.
    Exists,
    /// The resource is sealed: it can never be appended to again.
    Sealed,
    /// Something that is not a resource occupies the path: a folder, a FIFO, or a resource at a parent of the path.
    Conflict,
    /// A later takeover or a delete ended this appender; none of its further bytes are stored.
    Fenced,
    /// An earlier failure or a cancelled call ended this appender. Open the resource again to learn its length.
    Poisoned,
    /// The requested position is past the end of the resource.
    PastEnd,
    /// A condition of the request (`If-Match` and the like) doesn't hold.
    Precondition,
    /// The resource was deleted and created again since: it has another [life](crate::Life) than the request names.
    Life,
    /// The resource doesn't end at the offset that the appender names.
    Offset,
    /// A message or the resource would be larger than the limit.
    TooLarge,
    /// The disk, the quota or the memory cap is full. Nothing of the failed append was stored.
    Full,
    /// The request carries no valid credentials.
    Unauthorized,
    /// The credentials don't allow this, or the request comes from a foreign web page.
    Forbidden,
    /// The method doesn't go with the verb.
    MethodNotAllowed,
    /// The request must be a WebSocket upgrade, and is not.
    UpgradeRequired,
    /// A body with this content type or content coding can't be appended.
    MediaType,
    /// The response needs a newer version of HTTP: over HTTP/1.0 an interrupted body looks like a complete one.
    HttpVersion,
    /// The upgrade asks for another version of the WebSocket protocol than 13.
    WebSocketVersion,
    /// The HTTP server can't upgrade this connection.
    NotUpgradable,
    /// A limit of the server is reached (connections, followers, file descriptors). Try again later.
    Overloaded,
    /// The server is shutting down.
    ShuttingDown,
    /// The peer broke the protocol.
    Protocol,
    /// The peer stopped answering or reading.
    TimedOut,
    /// Client: the connection could not be made, or broke.
    Connection,
    /// The resource's appender was lost: all stored bytes were read, but they are not the whole.
    Interrupted,
    /// Client: the server answered with a redirect. It is not followed, because credentials would leak.
    Redirect,
    /// Client: the server answered with an unexpected status.
    Status,
    /// The storage failed.
    Storage,
    /// Client: after a broken connection the resource is not as this appender left it, so it is unknown whether the last
    /// bytes are stored.
    Diverged,
}

impl Error {
    /// An error of this kind, with the kind's default text.
    pub fn new(kind: ErrorKind) -> Self {
        Self { kind, detail: None, source: None, challenges: Vec::new() }
    }

    /// Replaces the text. It may be sent to peers, so it must not contain secrets or paths of the server.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds the underlying error. It is logged, and never sent to peers.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds a challenge: a `WWW-Authenticate` header of the response, if its status is 401 (RFC 9110 section 11.6.1). Without
    /// one it is `Bearer`.
    #[must_use]
    pub fn with_challenge(mut self, challenge: HeaderValue) -> Self {
        self.challenges.push(challenge);
        self
    }

    /// An error of the storage ([`ErrorKind::Storage`]) with the underlying error.
    pub fn storage(source: impl Into<BoxError>) -> Self {
        Self::new(ErrorKind::Storage).with_source(source)
    }

    /// The cause.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The text for people, without the underlying errors.
    pub fn detail(&self) -> &str {
        match &self.detail {
            Some(detail) => detail,
            None => self.kind.sentence(),
        }
    }

    pub(crate) fn challenges(&self) -> &[HeaderValue] {
        &self.challenges
    }

    /// The HTTP status of a response to a request that failed with this error.
    pub fn status(&self) -> StatusCode {
        self.kind.status()
    }

    /// Whether the same call may succeed later although the caller changes nothing.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::Busy
                | ErrorKind::Full
                | ErrorKind::Overloaded
                | ErrorKind::ShuttingDown
                | ErrorKind::TimedOut
                | ErrorKind::Connection
        )
    }
}

impl ErrorKind {
    fn sentence(self) -> &'static str {
        match self {
            Self::BadRequest => "the request is malformed or contradicts itself",
            Self::BadPath => "this path can't name a resource",
            Self::PathTooLong => "the path, or a segment of it, is too long",
            Self::NotFound => "there is no such resource",
            Self::Busy => "somebody else is appending to this resource",
            Self::Exists => "the resource exists already",
            Self::Sealed => "the resource is sealed and can't be appended to",
            Self::Conflict => "something that is not a resource is in the way of this path",
            Self::Fenced => "another appender took over, or the resource was deleted",
            Self::Poisoned => "this appender failed or was cancelled before; open the resource anew",
            Self::PastEnd => "the position is past the end of the resource",
            Self::Precondition => "a condition of the request is not met",
            Self::Life => "the resource is in another life: its bytes are not those that were seen before",
            Self::Offset => "the resource does not end at the offset that the appender names",
            Self::TooLarge => "the message or the resource is over the size limit",
            Self::Full => "the storage is full",
            Self::Unauthorized => "credentials are missing or not valid",
            Self::Forbidden => "this is not allowed",
            Self::MethodNotAllowed => "this method doesn't go with the verb",
            Self::UpgradeRequired => {
                "this needs a WebSocket upgrade, and none arrived: the client didn't ask for one, or a proxy in between removed the Upgrade header"
            }
            Self::MediaType => "a body of this type or coding can't be appended",
            Self::HttpVersion => {
                "this is live, and HTTP/1.0 can't tell its end from a cut: ask with HTTP/1.1 or later (for nginx: `proxy_http_version 1.1;`)"
            }
            Self::WebSocketVersion => "only version 13 of the WebSocket protocol is spoken here",
            Self::NotUpgradable => "the server can't upgrade this connection to WebSocket",
            Self::Overloaded => "the server is overloaded",
            Self::ShuttingDown => "the server is shutting down",
            Self::Protocol => "the peer broke the protocol",
            Self::TimedOut => "the peer stopped responding",
            Self::Connection => "the connection failed",
            Self::Interrupted => "the appender was lost: the data ends here, but is not whole",
            Self::Redirect => "the server redirects elsewhere, which is not followed",
            Self::Status => "the server gave an unexpected answer",
            Self::Storage => "the storage failed",
            Self::Diverged => {
                "the resource is not as this appender left it: whether its last bytes are stored is unknown"
            }
        }
    }

    /// The last part of the problem type's URI (RFC 9457): stable, one for each cause that a peer can act on.
    pub(crate) fn problem(self) -> &'static str {
        match self {
            Self::BadRequest | Self::Protocol | Self::Redirect | Self::Status => "bad-request",
            Self::BadPath => "bad-path",
            Self::PathTooLong => "path-too-long",
            Self::NotFound => "not-found",
            Self::Busy => "busy",
            Self::Exists => "exists",
            Self::Sealed => "sealed",
            Self::Conflict => "conflict",
            Self::Fenced => "fenced",
            Self::PastEnd => "past-end",
            Self::Precondition => "precondition",
            Self::Life => "life",
            Self::Offset => "offset",
            Self::TooLarge => "too-large",
            Self::Full => "full",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "not-allowed",
            Self::MethodNotAllowed => "method",
            Self::UpgradeRequired | Self::WebSocketVersion => "upgrade-required",
            Self::NotUpgradable => "not-upgradable",
            Self::MediaType => "media-type",
            Self::HttpVersion => "http-version",
            Self::TimedOut => "timeout",
            Self::Overloaded => "overloaded",
            Self::ShuttingDown => "shutting-down",
            Self::Poisoned | Self::Connection | Self::Interrupted | Self::Storage | Self::Diverged => "storage",
        }
    }

    /// The HTTP status of a response to a request that failed with this error.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::BadRequest | Self::BadPath | Self::Protocol => StatusCode::BAD_REQUEST,
            Self::PathTooLong => StatusCode::URI_TOO_LONG,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Busy | Self::Exists | Self::Sealed | Self::Conflict | Self::Fenced | Self::Offset => {
                StatusCode::CONFLICT
            }
            Self::PastEnd => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::Precondition | Self::Life => StatusCode::PRECONDITION_FAILED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Full => StatusCode::INSUFFICIENT_STORAGE,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::UpgradeRequired | Self::WebSocketVersion => StatusCode::UPGRADE_REQUIRED,
            Self::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::HttpVersion => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::NotUpgradable => StatusCode::NOT_IMPLEMENTED,
            Self::Overloaded | Self::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            Self::TimedOut => StatusCode::REQUEST_TIMEOUT,
            Self::Poisoned
            | Self::Connection
            | Self::Interrupted
            | Self::Redirect
            | Self::Status
            | Self::Storage
            | Self::Diverged => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The WebSocket close code (RFC 6455 section 7.4, and our own from 4000) for a connection that ends with this error.
    pub(crate) fn close_code(self) -> u16 {
        match self {
            Self::ShuttingDown => 1001,
            Self::Protocol | Self::WebSocketVersion => 1002,
            Self::BadRequest | Self::BadPath | Self::PathTooLong | Self::MethodNotAllowed => 1008,
            Self::TooLarge => 1009,
            Self::Overloaded => 1013,
            Self::Fenced | Self::Busy => 4001,
            Self::TimedOut => 4002,
            Self::Unauthorized | Self::Forbidden => 4003,
            Self::NotFound
            | Self::Exists
            | Self::Sealed
            | Self::Conflict
            | Self::Poisoned
            | Self::PastEnd
            | Self::Precondition
            | Self::Life
            | Self::Offset
            | Self::Full
            | Self::UpgradeRequired
            | Self::MediaType
            | Self::HttpVersion
            | Self::NotUpgradable
            | Self::Connection
            | Self::Interrupted
            | Self::Redirect
            | Self::Status
            | Self::Storage
            | Self::Diverged => 1011,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.detail())
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sentence())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|s| &**s as _)
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self::new(kind)
    }
}

impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match error.kind {
            ErrorKind::NotFound => Io::NotFound,
            ErrorKind::Exists => Io::AlreadyExists,
            ErrorKind::Unauthorized | ErrorKind::Forbidden => Io::PermissionDenied,
            ErrorKind::Full => Io::StorageFull,
            ErrorKind::Busy => Io::ResourceBusy,
            ErrorKind::TimedOut => Io::TimedOut,
            ErrorKind::Connection => Io::ConnectionAborted,
            ErrorKind::Interrupted => Io::UnexpectedEof,
            ErrorKind::BadRequest | ErrorKind::BadPath => Io::InvalidInput,
            _ => Io::Other,
        };
        Self::new(kind, error)
    }
}
