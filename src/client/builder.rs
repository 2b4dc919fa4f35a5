//! What a client can be told.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::Client;
use super::pool::Pool;
use super::retry::Retry;
use crate::error::{BoxError, Error, ErrorKind, Result};

type Headers = Pin<Box<dyn Future<Output = Result<HeaderMap, BoxError>> + Send>>;

/// What all connections of a client share.
pub(super) struct Settings {
    headers: HeaderMap,
    provider: Option<Box<dyn Fn() -> Headers + Send + Sync>>,
    pub(super) connect_timeout: Duration,
    pub(super) response_timeout: Duration,
    pub(super) silence_timeout: Duration,
    pub(super) max_message_size: u64,
    pub(super) max_unacknowledged: usize,
    pub(super) retry: Retry,
    pub(super) version: Version,
    pub(super) pool: Pool,
    #[cfg(feature = "tls")]
    pub(super) tls: super::tls::Tls,
}

/// Which HTTP is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// What the server picks by ALPN; HTTP/1.1 in clear text.
    Negotiated,
    Http1,
    Http2,
}

impl Settings {
    /// The user's headers for one connection.
    pub(super) async fn headers(&self) -> Result<HeaderMap> {
        let mut headers = self.headers.clone();
        if let Some(provider) = &self.provider {
            let fresh = provider().await.map_err(|error| {
                Error::new(ErrorKind::Unauthorized).with_detail("the header provider failed").with_source(error)
            })?;
            for name in fresh.keys() {
                check_name(name)?;
            }
            headers.extend(fresh);
        }
        Ok(headers)
    }
}

/// Builds a [`Client`].
///
/// ```
/// use http::{HeaderMap, HeaderValue, header};
/// use httpfstream::client::Client;
///
/// # fn main() -> httpfstream::Result<()> {
/// let client = Client::builder()
///     .header_provider(async || {
///         let token = "fresh from somewhere";
///         let mut headers = HeaderMap::new();
///         headers.insert(header::AUTHORIZATION, HeaderValue::try_from(format!("Bearer {token}"))?);
///         Ok::<_, http::Error>(headers)
///     })
///     .build()?;
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct ClientBuilder {
    settings: Settings,
    error: Option<Error>,
}

impl ClientBuilder {
    pub(super) fn new() -> Self {
        let mut headers = HeaderMap::new();
        let agent = HeaderValue::from_static(concat!("httpfstream/", env!("CARGO_PKG_VERSION")));
        headers.insert(header::USER_AGENT, agent);
        Self {
            settings: Settings {
                headers,
                provider: None,
                connect_timeout: Duration::from_secs(10),
                response_timeout: Duration::from_secs(60),
                silence_timeout: Duration::from_secs(90),
                max_message_size: i64::MAX as u64,
                max_unacknowledged: 16 * 1024 * 1024,
                retry: Retry::default(),
                version: Version::Negotiated,
                pool: Pool::default(),
                #[cfg(feature = "tls")]
                tls: super::tls::Tls::default(),
            },
            error: None,
        }
    }

    /// A closure that is asked for headers before each connection of a stream, shared or not, for credentials that
    /// expire. Default: none.
    ///
    /// Its headers replace those of the same name from [`header`](Self::header). If it fails, so does the call that
    /// needed the connection, with the kind [`Unauthorized`](ErrorKind::Unauthorized), and a stream that needed a new
    /// one ends: what may pass has to be tried again in here.
    pub fn header_provider<F, Fut, E>(mut self, provider: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<HeaderMap, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.settings.provider = Some(Box::new(move || {
            let headers = provider();
            Box::pin(async move { headers.await.map_err(Into::into) })
        }));
        self
    }

    /// A header of every request, beside those of the same name. Default: only `User-Agent`.
    ///
    /// The headers of the handshake itself (`Host`, `X-Verb`, `Connection`, `Sec-WebSocket-Key` and the like) can't be
    /// set: [`build`](Self::build) fails then.
    pub fn header<K, V>(mut self, name: K, value: V) -> Self
    where
        K: TryInto<HeaderName>,
        K::Error: Into<BoxError>,
        V: TryInto<HeaderValue>,
        V::Error: Into<BoxError>,
    {
        let added = parse(name, "a header's name is malformed").and_then(|name| {
            check_name(&name)?;
            let mut value: HeaderValue = parse(value, "a header's value is malformed")?;
            // As like as not it is a credential.
            value.set_sensitive(true);
            self.settings.headers.append(name, value);
            Ok(())
        });
        self.note(added);
        self
    }

    /// The `User-Agent` of every request. Default: `httpfstream/` and this crate's version.
    pub fn user_agent<V>(mut self, value: V) -> Self
    where
        V: TryInto<HeaderValue>,
        V::Error: Into<BoxError>,
    {
        let set = parse(value, "the user agent is malformed").map(|value| {
            self.settings.headers.insert(header::USER_AGENT, value);
        });
        self.note(set);
        self
    }

    /// How long finding the host, connecting and the TLS handshake may take together. Default: 10 s.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.settings.connect_timeout = limit;
        self
    }

    /// How long the server may take to answer the request, once connected. Default: 60 s.
    ///
    /// Raise it if the server is asked to wait for a resource for longer than that. It is no limit on the stream that
    /// comes then, which may be silent for days.
    pub fn response_timeout(mut self, limit: Duration) -> Self {
        self.settings.response_timeout = limit;
        self
    }

    /// How long a server of ours may be silent while a stream is open, before its connection is given up: it is pinged
    /// each third of that time, an HTTP/2 connection each sixth. At least 6 ms. Default: 90 s.
    pub fn silence_timeout(mut self, limit: Duration) -> Self {
        self.settings.silence_timeout = limit.clamp(Duration::from_millis(6), Duration::from_secs(24 * 60 * 60));
        self
    }

    /// The largest WebSocket message, in bytes, that is accepted from a server. Default: none but the protocol's own,
    /// 2^63 - 1.
    ///
    /// Messages are handed out in pieces as they arrive, so large ones cost no memory.
    pub fn max_message_size(mut self, bytes: u64) -> Self {
        self.settings.max_message_size = bytes.min(i64::MAX as u64);
        self
    }

    /// How many bytes an [`Appender`](super::Appender) keeps that the server has not acknowledged, so that it can send
    /// them again; then it takes no more until the server has caught up. At least 1. Default: 16 MiB.
    pub fn max_unacknowledged(mut self, bytes: usize) -> Self {
        self.settings.max_unacknowledged = bytes.max(1);
        self
    }

    /// For how long a stream whose connection broke tries to get on, counted from the break or from what moved last:
    /// an acknowledgement, data, or a connection that held for the [longest delay](Self::retry_delays). Then it fails
    /// with the last attempt's error. Zero never connects again, [`Duration::MAX`] never gives up. Default: 120 s.
    ///
    /// Only what may pass is tried again: broken and refused connections, time limits, servers that stop (1001),
    /// failed (1011), or are overloaded (503). The first connection of a stream is not: opening it fails at once.
    pub fn retry_for(mut self, limit: Duration) -> Self {
        self.settings.retry.limit = limit;
        self
    }

    /// The delay before the first new attempt, and the longest one, from 1 ms to a day: it doubles from attempt to
    /// attempt. Each is prolonged by a random part of itself, so that a thousand clients don't come back as one.
    /// Default: 100 ms and 5 s, so that none exceeds 10 s.
    pub fn retry_delays(mut self, first: Duration, longest: Duration) -> Self {
        let range = Duration::from_millis(1)..=Duration::from_secs(24 * 60 * 60);
        let first = first.clamp(*range.start(), *range.end());
        self.settings.retry.first = first;
        self.settings.retry.longest = longest.clamp(first, *range.end());
        self
    }

    /// Speaks HTTP/1.1 only, with a connection for each stream. Default: over TLS also HTTP/2, if the server wants it
    /// (see [the module](super#http2)), in clear text HTTP/1.1.
    pub fn http1_only(mut self) -> Self {
        self.settings.version = Version::Http1;
        self
    }

    /// Speaks HTTP/2 only, in clear text too, where nothing tells whether the server does (RFC 9113 section 3.3). A
    /// server that doesn't, or that allows no WebSockets over it (RFC 8441), is a [`Protocol`](ErrorKind::Protocol)
    /// error. Default: as for [`http1_only`](Self::http1_only), of which the last one counts.
    pub fn http2_prior_knowledge(mut self) -> Self {
        self.settings.version = Version::Http2;
        self
    }

    /// Trusts these certificates beside the system's: a PEM file's contents, or one certificate in DER.
    /// Default: the system's only.
    #[cfg(feature = "tls")]
    pub fn root_certificate(mut self, certificate: impl AsRef<[u8]>) -> Self {
        let added = self.settings.tls.add_roots(certificate.as_ref());
        self.note(added);
        self
    }

    /// The client.
    ///
    /// # Errors
    /// [`BadRequest`](ErrorKind::BadRequest): a header, the user agent or a certificate is malformed, or a header is
    /// not the user's to set.
    pub fn build(self) -> Result<Client> {
        match self.error {
            Some(error) => Err(error),
            None => Ok(Client { settings: Arc::new(self.settings) }),
        }
    }

    /// Keeps the first error for [`build`](Self::build).
    fn note(&mut self, result: Result<()>) {
        if let Err(error) = result {
            self.error.get_or_insert(error);
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").finish_non_exhaustive()
    }
}

impl fmt::Debug for ClientBuilder {
    /// Shows no header: they hold credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder").finish_non_exhaustive()
    }
}

fn parse<T, P>(value: T, bad: &'static str) -> Result<P>
where
    T: TryInto<P>,
    T::Error: Into<BoxError>,
{
    value.try_into().map_err(|error| Error::new(ErrorKind::BadRequest).with_detail(bad).with_source(error))
}

/// Refuses the headers that make the handshake, or that would change where the request ends.
fn check_name(name: &HeaderName) -> Result<()> {
    let ours = name.as_str().starts_with("sec-websocket-")
        || ["x-verb", "appender-id", "upload-offset"].contains(&name.as_str())
        || [
            header::HOST,
            header::CONNECTION,
            header::UPGRADE,
            header::CONTENT_LENGTH,
            header::TRANSFER_ENCODING,
            header::TE,
            header::TRAILER,
            header::EXPECT,
        ]
        .contains(name);
    if !ours {
        return Ok(());
    }
    Err(Error::new(ErrorKind::BadRequest).with_detail(format!("the client sets the header {name} itself")))
}
