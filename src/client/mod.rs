//! The client: append to a stream and follow one, from any Rust program.
//!
//! ```no_run
//! # async fn example() -> httpfstream::Result<()> {
//! use httpfstream::client;
//!
//! // Everything at once: returns once the server has confirmed the end.
//! client::append("http://localhost:8080/log.txt", &b"hello\n"[..]).await?;
//!
//! // Everything that is there and everything that comes, up to the end.
//! let mut log = client::follow("http://localhost:8080/log.txt").await?;
//! while let Some(chunk) = log.next_chunk().await? {
//!     println!("{} bytes up to offset {}", chunk.bytes.len(), chunk.next_offset);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The free functions use a [`Client`] with its defaults. Build one with [`Client::builder`] for credentials, time
//! limits or private certificates.
//!
//! # URLs
//! `http` and `ws` are the same, and so are `https` and `wss`, which need the feature `tls`. A user name or password
//! inside the URL is refused: URLs end up in logs. Send credentials as headers ([`ClientBuilder::header_provider`]).
//! Redirects are never followed, because the credentials would go to wherever they point.
//!
//! # HTTP/2
//! Over TLS the server picks (ALPN, RFC 7301), and if it picks HTTP/2, all streams of one [`Client`] to one host and port
//! share a connection (RFC 8441), as many as the server allows at once and at most 1,000; then there is a further one. A
//! server that picks HTTP/2 but allows no WebSockets over it is spoken to in HTTP/1.1, where each stream has its own
//! connection. In clear text that is so unless [`http2_prior_knowledge`](ClientBuilder::http2_prior_knowledge) is
//! chosen. Everything else is the same in both.
//!
//! Readers that take nothing don't hold up those that share their connection: each has 1 MiB of its own that the server
//! may send ahead, and that is the memory that it takes at most, beside what waits for the user. The other way, how much
//! the server accepts is the server's choice: where it lets a single append use up the connection, one that it doesn't
//! store fast enough holds up the others. The connection ends with its last stream; when it breaks, all that were on it
//! go on together on the next.
//!
//! # Broken connections
//! Appenders and followers survive them, and restarts of the server, with no byte lost or repeated, if the server speaks
//! `httpfstream.v1`. A new connection is tried for two minutes, or [as long as is wanted](ClientBuilder::retry_for).
//! Against a server that speaks only the original's dialect they work as well as that allows, and say so:
//! [`Appender::is_resumable`], [`Follower::is_resumable`], and an event of the `tracing` crate.
//!
//! # Ends
//! A clean end is told apart from everything else. [`Follower`] ends without an error only if the server said that the
//! resource is finished; [`Appender::finish`] succeeds only if the server confirmed it. A connection that breaks for
//! good, a body that is cut short and an appender that was lost are errors, always.
//!
//! # Runtime
//! Everything here has to be called within a tokio runtime with I/O and time enabled; open connections live in tasks
//! of that runtime.

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

/// Appends everything `reader` gives to the resource at `url`, and finishes it.
///
/// As [`Client::append`], with the defaults.
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
/// As [`Client::open_append`], with the defaults.
///
/// # Errors
/// As [`Client::open_append`].
pub fn open_append<U>(url: U) -> AppendRequest
where
    U: TryInto<Uri>,
    U::Error: Into<BoxError>,
{
    AppendRequest::new(Client::new().and_then(|client| client.at(url)))
}

/// Follows the resource at `url` up to its end, once it is awaited.
///
/// As [`Client::follow`], with the defaults.
///
/// # Errors
/// As [`Client::follow`].
pub fn follow<U>(url: U) -> FollowRequest
where
    U: TryInto<Uri>,
    U::Error: Into<BoxError>,
{
    FollowRequest::new(Client::new().and_then(|client| client.at(url)))
}

/// Appends to streams and follows them, with its own credentials and limits.
///
/// Cloning is cheap, and clones share everything, connections included where there are several streams on one (see
/// [the module](self#http2)).
#[derive(Clone)]
pub struct Client {
    settings: Arc<Settings>,
}

impl Client {
    /// A client with the defaults, which [`ClientBuilder`] names.
    ///
    /// # Errors
    /// None so far.
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// What a client can be told.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::new()
    }

    /// Appends everything `reader` gives, and finishes the resource. Returns the number of bytes.
    ///
    /// Bytes are sent as they are read, without waiting for more. It returns only after the server confirmed that it
    /// has everything, and as soon as the connection is lost, even while `reader` has nothing to give.
    ///
    /// # Errors
    /// As [`open_append`](Self::open_append), [`Appender::append_reader`] and [`Appender::finish`]. Some of the bytes
    /// may have been appended then.
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

    /// Opens the resource for appending, once it is awaited: what that depends on can be told before.
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
    ///   doesn't answer.
    /// - [`Protocol`](crate::ErrorKind::Protocol): it answers, but not as RFC 6455 section 4 has it, or it doesn't speak what
    ///   an option needs.
    /// - [`Busy`](crate::ErrorKind::Busy): somebody else is appending; [`Sealed`](crate::ErrorKind::Sealed): nobody can any more.
    /// - [`Exists`](crate::ErrorKind::Exists), [`Offset`](crate::ErrorKind::Offset), [`Life`](crate::ErrorKind::Life),
    ///   [`Diverged`](crate::ErrorKind::Diverged): the resource is not what an option asks for.
    /// - [`Redirect`](crate::ErrorKind::Redirect), [`Unauthorized`](crate::ErrorKind::Unauthorized),
    ///   [`Forbidden`](crate::ErrorKind::Forbidden) and whatever else the server answered;
    ///   [`Status`](crate::ErrorKind::Status) where the answer means nothing here.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection; the resource may have been opened nevertheless, and is then lost.
    pub fn open_append<U>(&self, url: U) -> AppendRequest
    where
        U: TryInto<Uri>,
        U::Error: Into<BoxError>,
    {
        AppendRequest::new(self.at(url))
    }

    /// Follows the resource, once it is awaited: what is stored, what arrives, and the end. Where to begin can be told
    /// before.
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
    /// [`PastEnd`](crate::ErrorKind::PastEnd) if it has not so many bytes.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection, and nothing else happens.
    pub fn follow<U>(&self, url: U) -> FollowRequest
    where
        U: TryInto<Uri>,
        U::Error: Into<BoxError>,
    {
        FollowRequest::new(self.at(url))
    }

    fn at<U>(&self, url: U) -> Result<(Arc<Settings>, Target)>
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
