//! The client: append to a resource and follow one, from any Rust program.
//!
//! ```no_run
//! # async fn example() -> httpfstream::Result<()> {
//! use httpfstream::client;
//!
//! // Appends everything, and returns once the server has confirmed the end.
//! client::append("http://localhost:8080/log.txt", &b"hello\n"[..]).await?;
//!
//! // What is stored and what is appended, up to the end.
//! let mut log = client::follow("http://localhost:8080/log.txt").await?;
//! while let Some(chunk) = log.next_chunk().await? {
//!     println!("{} bytes up to offset {}", chunk.bytes.len(), chunk.next_offset);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The free functions use a [`Client`] with the defaults. Build one with [`Client::builder`] to set credentials, time
//! limits or private certificates.
//!
//! # URLs
//! `http` and `ws` mean the same, and so do `https` and `wss`, which need the feature `tls`. A user name or password in
//! the URL is an error, since URLs end up in logs: send credentials as headers ([`ClientBuilder::header_provider`]).
//! Redirects are never followed, since they would receive the credentials.
//!
//! # HTTP/2
//! Over TLS the server picks the version (ALPN, RFC 7301). If it picks HTTP/2, all streams of one [`Client`] to one host
//! and port share a connection (RFC 8441): as many as the server allows at once, at most 1,000, before the client opens a
//! further connection. If the server picks HTTP/2 but allows no WebSockets over it, the client falls back to HTTP/1.1,
//! where each stream has its own connection. In clear text it always uses HTTP/1.1, unless
//! [`http2_prior_knowledge`](ClientBuilder::http2_prior_knowledge) is set. Everything else is the same in both versions.
//!
//! A follower that isn't read doesn't hold up the streams that share its connection: each has a window of 1 MiB of its
//! own, which also bounds its memory, beside the chunks that were received for it. In the other direction the windows are
//! the server's choice: if it lets a single append use up the connection's window, an append that it stores slowly holds
//! up the others. The connection closes after its last stream. When it breaks, all its streams reconnect over one new
//! connection.
//!
//! # Broken connections
//! Appenders and followers survive broken connections and restarts of the server, with no byte lost or repeated, if the
//! server speaks `httpfstream.v1`. They try to reconnect for two minutes by default ([`ClientBuilder::retry_for`]). With a
//! server that speaks only the original's dialect they fail with their first connection: see
//! [`Appender::is_resumable`] and [`Follower::is_resumable`]. An event of the `tracing` crate reports it, too.
//!
//! # Ends
//! A [`Follower`] ends without an error only if the server said that the resource is finished, and [`Appender::finish`]
//! succeeds only if the server confirmed it. A connection that breaks for good, a body that is cut short and an appender
//! that was lost are always errors.
//!
//! # Runtime
//! Everything here must be called within a tokio runtime with I/O and time enabled. Open connections live in tasks of
//! that runtime.

mod append;
#[cfg(test)]
mod autobahn;
mod builder;
mod close;
mod connect;
mod control;
mod follow;
mod http2;
mod pool;
mod refusal;
mod request;
mod retry;
#[cfg(feature = "tls")]
mod tls;
mod url;

use std::fmt;
use std::sync::Arc;

use http::Uri;
use tokio::io::AsyncRead;

use self::builder::Settings;
use self::url::Target;
use crate::error::{BoxError, Result};

pub use self::append::{AppendRequest, Appender};
pub use self::builder::ClientBuilder;
pub use self::follow::{FollowRequest, Follower};

/// Appends everything `reader` yields to the resource at `url`, and finishes it.
///
/// [`Client::append`] with the defaults.
///
/// # Errors
/// As [`Client::append`].
pub async fn append<U, R>(url: U, reader: R) -> Result<u64>
where
    U: TryInto<Uri>,
    U::Error: Into<BoxError>,
    R: AsyncRead,
{
    Client::new()?.append(url, reader).await
}

/// Opens the resource at `url` for appending, once it is awaited.
///
/// [`Client::open_append`] with the defaults.
///
/// # Errors
/// As [`Client::open_append`].
pub fn open_append<U>(url: U) -> AppendRequest
where
    U: TryInto<Uri>,
    U::Error: Into<BoxError>,
{
    AppendRequest::new(Client::new().and_then(|client| client.resolve(url)))
}

/// Follows the resource at `url` up to its end, once it is awaited.
///
/// [`Client::follow`] with the defaults.
///
/// # Errors
/// As [`Client::follow`].
pub fn follow<U>(url: U) -> FollowRequest
where
    U: TryInto<Uri>,
    U::Error: Into<BoxError>,
{
    FollowRequest::new(Client::new().and_then(|client| client.resolve(url)))
}

/// Appends to resources and follows them, with its own credentials and limits.
///
/// Clones are cheap and share everything, also the HTTP/2 connections (see [the module](self#http2)).
#[derive(Clone)]
pub struct Client {
    settings: Arc<Settings>,
}

impl Client {
    /// A client with the defaults, which are documented at [`ClientBuilder`].
    ///
    /// # Errors
    /// None so far.
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// Configures a client.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::new()
    }

    /// Appends everything `reader` yields, and finishes the resource. Returns the number of bytes.
    ///
    /// Bytes are sent as they are read, without waiting for more. It succeeds only after the server has confirmed that it
    /// has everything, and fails as soon as the append does, even while `reader` yields nothing.
    ///
    /// # Errors
    /// As [`open_append`](Self::open_append), [`Appender::append_reader`] and [`Appender::finish`]. Some of the bytes
    /// may have been appended.
    ///
    /// # Cancel safety
    /// Not cancel safe: the resource is left interrupted, as when an [`Appender`] is dropped.
    pub async fn append<U, R>(&self, url: U, reader: R) -> Result<u64>
    where
        U: TryInto<Uri>,
        U::Error: Into<BoxError>,
        R: AsyncRead,
    {
        let mut appender = self.open_append(url).await?;
        let sent = appender.append_reader(reader).await?;
        appender.finish().await?;
        Ok(sent)
    }

    /// Opens the resource for appending once the returned [`AppendRequest`] is awaited. Set its options before.
    ///
    /// ```no_run
    /// # async fn example() -> httpfstream::Result<()> {
    /// # let client = httpfstream::client::Client::new()?;
    /// let mut log = client.open_append("http://localhost:8080/log.txt").create_new().await?;
    /// log.append("hello\n").await?;
    /// log.finish().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// - [`BadRequest`](crate::ErrorKind::BadRequest): the URL can't be used, or the server found the request malformed.
    /// - [`Connection`](crate::ErrorKind::Connection), [`TimedOut`](crate::ErrorKind::TimedOut): the server can't be reached or
    ///   doesn't respond in time.
    /// - [`Protocol`](crate::ErrorKind::Protocol): its response isn't one of RFC 6455 section 4, or it doesn't speak
    ///   `httpfstream.v1`, which an option needs.
    /// - [`Busy`](crate::ErrorKind::Busy): somebody else is appending; [`Sealed`](crate::ErrorKind::Sealed): nobody can append any more.
    /// - [`Exists`](crate::ErrorKind::Exists), [`Offset`](crate::ErrorKind::Offset), [`Life`](crate::ErrorKind::Life),
    ///   [`Diverged`](crate::ErrorKind::Diverged): the resource is not what an option asks for.
    /// - [`Redirect`](crate::ErrorKind::Redirect), [`Unauthorized`](crate::ErrorKind::Unauthorized),
    ///   [`Forbidden`](crate::ErrorKind::Forbidden) and others, by the status of the server's response;
    ///   [`Status`](crate::ErrorKind::Status) if it has no meaning here.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection. The resource may have been opened nevertheless; then it is lost.
    pub fn open_append<U>(&self, url: U) -> AppendRequest
    where
        U: TryInto<Uri>,
        U::Error: Into<BoxError>,
    {
        AppendRequest::new(self.resolve(url))
    }

    /// Follows the resource once the returned [`FollowRequest`] is awaited: what is stored, what is appended, and the
    /// end. Set where to start before.
    ///
    /// ```no_run
    /// # async fn example() -> httpfstream::Result<()> {
    /// # let client = httpfstream::client::Client::new()?;
    /// let mut log = client.follow("http://localhost:8080/log.txt").lines(10).await?;
    /// while let Some(chunk) = log.next_chunk().await? {
    ///     println!("{} bytes up to offset {}", chunk.bytes.len(), chunk.next_offset);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`open_append`](Self::open_append); [`NotFound`](crate::ErrorKind::NotFound) if there is no such resource,
    /// [`PastEnd`](crate::ErrorKind::PastEnd) if it ends before the requested offset.
    ///
    /// # Cancel safety
    /// Cancel safe: dropping the future closes the connection.
    pub fn follow<U>(&self, url: U) -> FollowRequest
    where
        U: TryInto<Uri>,
        U::Error: Into<BoxError>,
    {
        FollowRequest::new(self.resolve(url))
    }

    fn resolve<U>(&self, url: U) -> Result<(Arc<Settings>, Target)>
    where
        U: TryInto<Uri>,
        U::Error: Into<BoxError>,
    {
        Ok((Arc::clone(&self.settings), Target::new(url)?))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}
