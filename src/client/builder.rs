//! The configuration of a client.

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

/// The configuration and the pool that all streams of a client share.
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

/// The HTTP versions that the client may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// The one that the server picks by ALPN; HTTP/1.1 in clear text.
    Negotiated,
    Http1,
    Http2,
}

impl Settings {
    /// The user's headers for one request.
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

/// Configures a [`Client`].
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

    /// Calls this for headers before each request, the first one of a stream and those that reconnect it: for
    /// credentials that expire. Default: none.
    ///
    /// Its headers replace those of the same name from [`header`](Self::header). If it fails, opening a stream fails with
    /// [`Unauthorized`](ErrorKind::Unauthorized), and so does a stream that reconnects. It is not called again then, so
    /// it has to retry transient failures itself.
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

    /// Adds a header to every request, beside those of the same name. Default: only `User-Agent`.
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
            // It may well be a credential.
            value.set_sensitive(true);
            self.settings.headers.append(name, value);
            Ok(())
        });
        self.keep_error(added);
        self
    }

    /// Sets the `User-Agent` of every request. Default: `httpfstream/` and this crate's version.
    pub fn user_agent<V>(mut self, value: V) -> Self
    where
        V: TryInto<HeaderValue>,
        V::Error: Into<BoxError>,
    {
        let set = parse(value, "the user agent is malformed").map(|value| {
            self.settings.headers.insert(header::USER_AGENT, value);
        });
        self.keep_error(set);
        self
    }

    /// Limits the time for the host's lookup, connecting and the TLS handshake together. Default: 10 s.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.settings.connect_timeout = limit;
        self
    }

    /// Limits the time for the server's response to a request, once connected. Default: 60 s.
    ///
    /// The time that a follower [waits](super::FollowRequest::wait) for an absent resource is added. Raise the limit if
    /// the URL itself asks the server to wait. The stream behind the response is not limited: it may be silent for days.
    pub fn response_timeout(mut self, limit: Duration) -> Self {
        self.settings.response_timeout = limit;
        self
    }

    /// Gives up the connection of an open stream after this much silence. The server is pinged each third of that time,
    /// an HTTP/2 connection each sixth. The original's server can't answer pings, so this doesn't apply to it. From 6 ms
    /// to a day. Default: 90 s.
    pub fn silence_timeout(mut self, limit: Duration) -> Self {
        self.settings.silence_timeout = limit.clamp(Duration::from_millis(6), Duration::from_secs(24 * 60 * 60));
        self
    }

    /// Limits the size of a server's WebSocket message, in bytes. Default: the protocol's own limit, 2^63 - 1.
    ///
    /// Messages are handed out in chunks as they arrive, so large ones cost no memory.
    pub fn max_message_size(mut self, bytes: u64) -> Self {
        self.settings.max_message_size = bytes.min(i64::MAX as u64);
        self
    }

    /// Limits how many unacknowledged bytes an [`Appender`](super::Appender) buffers, to send them again after a broken
    /// connection. At the limit it accepts no more until the server acknowledges some. At least 1. Default: 16 MiB.
    pub fn max_unacknowledged(mut self, bytes: usize) -> Self {
        self.settings.max_unacknowledged = bytes.max(1);
        self
    }

    /// Limits the time for which a stream whose connection broke tries to reconnect without progress. Progress is an
    /// acknowledgement, data, or a connection that lasts for the [longest delay](Self::retry_delays). After the limit the
    /// stream fails with the last attempt's error. Zero never reconnects, [`Duration::MAX`] never gives up. Default:
    /// 120 s.
    ///
    /// Only transient errors are retried: broken and refused connections, timeouts, servers that shut down (1001), failed
    /// (1011) or are overloaded (503). The first connection of a stream is not retried: opening it fails at once.
    pub fn retry_for(mut self, limit: Duration) -> Self {
        self.settings.retry.limit = limit;
        self
    }

    /// Sets the delay before the first attempt to reconnect, and the longest delay, from 1 ms to a day. The delay doubles
    /// from attempt to attempt. Each is extended by a random part of itself, so that a thousand clients don't reconnect
    /// at the same moment. Default: 100 ms and 5 s, so that none exceeds 10 s.
    pub fn retry_delays(mut self, first: Duration, longest: Duration) -> Self {
        let range = Duration::from_millis(1)..=Duration::from_secs(24 * 60 * 60);
        let first = first.clamp(*range.start(), *range.end());
        self.settings.retry.first = first;
        self.settings.retry.longest = longest.clamp(first, *range.end());
        self
    }

    /// Uses HTTP/1.1 only, with a connection for each stream. Default: over TLS also HTTP/2 if the server picks it (see
    /// [the module](super#http2)), in clear text HTTP/1.1.
    pub fn http1_only(mut self) -> Self {
        self.settings.version = Version::Http1;
        self
    }

    /// Uses HTTP/2 only, also in clear text, where it can't be negotiated (RFC 9113 section 3.3). Streams fail with
    /// [`Protocol`](ErrorKind::Protocol) if the server doesn't speak it, or allows no WebSockets over it (RFC 8441).
    /// Default: see [`http1_only`](Self::http1_only); the last of the two calls counts.
    pub fn http2_prior_knowledge(mut self) -> Self {
        self.settings.version = Version::Http2;
        self
    }

    /// Trusts these root certificates beside the system's: the contents of a PEM file, or one certificate in DER.
    /// Default: the system's only.
    #[cfg(feature = "tls")]
    pub fn root_certificate(mut self, certificate: impl AsRef<[u8]>) -> Self {
        let added = self.settings.tls.add_roots(certificate.as_ref());
        self.keep_error(added);
        self
    }

    /// Builds the client.
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
    fn keep_error(&mut self, result: Result<()>) {
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

/// Rejects the headers of the handshake, and those that would change the request's framing or destination.
fn check_name(name: &HeaderName) -> Result<()> {
    let reserved = name.as_str().starts_with("sec-websocket-")
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
    if !reserved {
        return Ok(());
    }
    Err(Error::new(ErrorKind::BadRequest).with_detail(format!("the client sets the header {name} itself")))
}
