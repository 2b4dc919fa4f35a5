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
//! # Ends
//! A clean end is told apart from everything else. [`Follower`] ends without an error only if the server said that the
//! resource is finished; [`Appender::finish`] succeeds only if the server confirmed it. A connection that breaks, a
//! body that is cut short and an appender that was lost are errors, always.
//!
//! # Runtime
//! Everything here has to be called within a tokio runtime with I/O and time enabled; open connections live in tasks
//! of that runtime.

mod appender;
mod builder;
mod close;
mod connect;
mod follower;
mod pipe;
mod problem;
mod refusal;
mod request;
#[cfg(feature = "tls")]
mod tls;
mod url;

use std::fmt;
use std::sync::Arc;

use http::Uri;
use tokio::io::AsyncRead;

use self::builder::Settings;
use self::request::{Answer, Verb};
use self::url::Target;
use crate::error::{BoxError, Error, ErrorKind, Result};

pub use self::appender::Appender;
pub use self::builder::ClientBuilder;
pub use self::follower::{Chunk, Follower};

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

/// Opens the resource at `url` for appending.
///
/// As [`Client::open_append`], with the defaults.
///
/// # Errors
/// As [`Client::open_append`].
pub async fn open_append<U>(url: U) -> Result<Appender>
where
    U: TryInto<Uri>,
    U::Error: Into<BoxError>,
{
    Client::new()?.open_append(url).await
}

/// Follows the resource at `url` from its first byte to its end.
///
/// As [`Client::follow`], with the defaults.
///
/// # Errors
/// As [`Client::follow`].
pub async fn follow<U>(url: U) -> Result<Follower>
where
    U: TryInto<Uri>,
    U::Error: Into<BoxError>,
{
    Client::new()?.follow(url).await
}

/// Appends to streams and follows them, with its own credentials and limits.
///
/// Cloning is cheap, and clones share everything. Each call makes its own connection, which lives as long as the
/// stream.
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

    /// Opens the resource for appending. It exists and is live once this returns.
    ///
    /// # Errors
    /// - [`BadRequest`](ErrorKind::BadRequest): the URL can't be used, or the server found the request malformed.
    /// - [`Connection`](ErrorKind::Connection), [`TimedOut`](ErrorKind::TimedOut): the server can't be reached or
    ///   doesn't answer.
    /// - [`Protocol`](ErrorKind::Protocol): it answers, but not as RFC 6455 section 4 has it.
    /// - [`Busy`](ErrorKind::Busy): somebody else is appending; [`Sealed`](ErrorKind::Sealed): nobody can any more.
    /// - [`Redirect`](ErrorKind::Redirect), [`Unauthorized`](ErrorKind::Unauthorized),
    ///   [`Forbidden`](ErrorKind::Forbidden) and whatever else the server answered;
    ///   [`Status`](ErrorKind::Status) where the answer means nothing here.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection; the resource may have been opened nevertheless, and is then
    /// interrupted.
    pub async fn open_append<U>(&self, url: U) -> Result<Appender>
    where
        U: TryInto<Uri>,
        U::Error: Into<BoxError>,
    {
        let target = Target::new(url)?;
        match request::send(&self.settings, &target, Verb::Append).await? {
            Answer::Upgraded { conn, ours } => Ok(Appender::start(conn, ours)),
            Answer::Plain { .. } => Err(Error::new(ErrorKind::Status)
                .with_detail("the server answered 200 to an APPEND instead of upgrading the connection")),
        }
    }

    /// Follows the resource from its first byte: what is stored, what arrives, and the end.
    ///
    /// # Errors
    /// As [`open_append`](Self::open_append); [`NotFound`](ErrorKind::NotFound) if there is no such resource.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection, and nothing else happens.
    pub async fn follow<U>(&self, url: U) -> Result<Follower>
    where
        U: TryInto<Uri>,
        U::Error: Into<BoxError>,
    {
        let target = Target::new(url)?;
        Ok(match request::send(&self.settings, &target, Verb::Follow).await? {
            Answer::Upgraded { conn, ours } => Follower::live(conn, ours),
            Answer::Plain { response, driver } => Follower::plain(response, driver),
        })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}
