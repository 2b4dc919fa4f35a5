//! The layer: what an application configures.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use tower::Layer;

use crate::access::Verb;
use crate::access::{Access, Authorize, Denied, Grant};
use crate::hub::Hub;
use crate::server::config::Options;
use crate::service::HttpFStream;
use crate::storage::Storage;
use crate::streams::Streams;

/// Bounds of what times can be set to: longer ones mean never.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// Adds appending to and following of resources to a service.
///
/// By itself it takes only WebSocket upgrades that carry a verb, so that an application's own routes can't be shadowed
/// by a stored resource; [`prefix`](Self::prefix) or [`plain_http`](Self::plain_http) turns on the rest.
/// [Mounting](crate::docs::mounting) tells where to put it, and in which order with other layers.
///
/// # Who may append
/// Anybody who reaches it, unless [`authorize`](Self::authorize) says otherwise. Foreign web pages are refused in any
/// case, see [`allow_origins`](Self::allow_origins).
///
/// ```
/// # #[cfg(unix)] fn main() -> httpfstream::Result<()> {
/// use axum::{Router, routing::get};
/// use httpfstream::{HttpFStreamLayer, storage::FsStorage};
///
/// # let dir = tempfile::tempdir().unwrap(); let path = dir.path().join("logs");
/// let logs = HttpFStreamLayer::new(FsStorage::open(path)?).prefix("/streams");
/// let app: Router = Router::new().route("/", get(|| async { "my application" })).layer(logs);
/// # let _ = app; Ok(()) }
/// # #[cfg(not(unix))] fn main() {}
/// ```
#[derive(Clone)]
#[must_use = "a layer does nothing before it is applied to a service"]
pub struct HttpFStreamLayer {
    hub: Arc<Hub>,
    options: Options,
}

impl HttpFStreamLayer {
    /// A layer over a storage.
    pub fn new<T: Storage>(storage: T) -> Self {
        Self::from_streams(Streams::new(storage))
    }

    /// A layer over resources that others use as well: a public one that follows and an internal one that appends, say.
    pub fn from_streams(streams: Streams) -> Self {
        Self { hub: streams.hub, options: Options::default() }
    }

    /// The in-process side of the same resources.
    pub fn streams(&self) -> Streams {
        Streams { hub: Arc::clone(&self.hub) }
    }

    /// Takes only requests below this path, and turns [`plain_http`](Self::plain_http) on for them. The rest of the path
    /// is the resource's key: with `/streams`, `/streams/a/b` is `a/b`.
    ///
    /// Matched on segment boundaries, before any percent-decoding. Don't set it where a router strips the prefix itself
    /// (axum's `nest_service`).
    ///
    /// Default: everywhere, without plain HTTP.
    pub fn prefix(mut self, prefix: &str) -> Self {
        let prefix = prefix.trim_end_matches('/');
        let slash = if prefix.is_empty() || prefix.starts_with('/') { "" } else { "/" };
        self.options.rules.prefix = format!("{slash}{prefix}").into();
        self.options.rules.plain = true;
        self
    }

    /// Whether requests without a WebSocket upgrade are taken as well: GET and HEAD of a resource that exists, DELETE
    /// of one, and the verbs. Requests for what doesn't exist go on to the inner service.
    ///
    /// Default: `false`; `true` with a [`prefix`](Self::prefix).
    pub fn plain_http(mut self, on: bool) -> Self {
        self.options.rules.plain = on;
        self
    }

    /// What a WebSocket upgrade without a verb means: to append or to follow (nothing else goes over one).
    ///
    /// Default: it is not ours, and goes on to the inner service.
    pub fn default_verb(mut self, verb: Verb) -> Self {
        self.options.rules.default_verb = Some(verb);
        self
    }

    /// Refuses to append and to delete (403).
    ///
    /// Default: off.
    pub fn read_only(mut self) -> Self {
        self.options.read_only = true;
        self
    }

    /// Asks who may do what. Called for each request that is ours, before the storage is touched and before any
    /// upgrade; it gets the request's head with whatever layers outside put into its extensions.
    ///
    /// A plain GET or DELETE that is denied is answered so only if the resource (as the URL names it) exists; else it
    /// goes on to the inner service, as it would without the check. With [`Denied::NotFound`] it always does.
    ///
    /// Default: everybody may do everything.
    pub fn authorize<F, Fut>(mut self, check: F) -> Self
    where
        F: Fn(Access) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Grant, Denied>> + Send + 'static,
    {
        self.options.authorize = Some(Authorize::new(check));
        self
    }

    /// Which web pages, besides those of the request's own host, may open WebSockets and write: `https://app.example`,
    /// as browsers send it in `Origin`, or `*` for all. What is no browser sends no `Origin`, and is let in.
    ///
    /// Default: none.
    pub fn allow_origins<I>(mut self, origins: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.options.origins.allowed = origins.into_iter().map(|origin| origin.into().into()).collect();
        self
    }

    /// How often a peer over a WebSocket is pinged. An appender that is silent for two intervals is given up (looked at
    /// once an interval, so after two to three); one like the original's client, which can't answer, is not pinged.
    ///
    /// Default: 30 seconds. Zero is taken as one millisecond.
    pub fn ping_interval(mut self, every: Duration) -> Self {
        self.options.times.ping = every.clamp(SHORTEST, LONGEST);
        self
    }

    /// How long the silence of a peer is borne that isn't given up for missed pings: an appender that can't answer
    /// them, and a follower, which may have much to read before it comes to one. It may take up to twice as long until
    /// it is noticed.
    ///
    /// Default: 10 minutes.
    pub fn silence_timeout(mut self, limit: Duration) -> Self {
        self.options.times.silence = limit.clamp(SHORTEST, LONGEST);
        self
    }

    /// How long a follower may take nothing of what is to be sent to it, before it is closed (4002). A slow one is
    /// never closed, as long as it takes anything.
    ///
    /// Default: 60 seconds.
    pub fn stall_timeout(mut self, limit: Duration) -> Self {
        self.options.times.stall = limit.clamp(SHORTEST, LONGEST);
        self
    }

    /// The largest WebSocket message that is accepted, in bytes; an appender that sends a larger one is closed (1009).
    ///
    /// Default: 16 MiB. A message is held in memory until it is complete.
    pub fn max_message_size(mut self, bytes: u64) -> Self {
        self.options.max_message = bytes;
        self
    }

    /// The largest resource that can be appended to through this layer, in bytes; an appender that would exceed it is
    /// closed (1009).
    ///
    /// Default: no limit but the storage's.
    pub fn max_resource_size(mut self, bytes: u64) -> Self {
        self.options.max_resource = bytes;
        self
    }

    /// How long a follower may wait for an absent resource, at most, whatever it asks for (`wait`, in seconds).
    ///
    /// Default: 60 seconds.
    pub fn max_wait(mut self, limit: Duration) -> Self {
        self.options.max_wait = limit.min(LONGEST);
        self
    }

    /// The content type of a resource whose key has no known extension.
    ///
    /// Default: `text/plain; charset=utf-8`.
    pub fn default_content_type(mut self, value: HeaderValue) -> Self {
        self.options.content_type = value;
        self
    }
}

impl<S> Layer<S> for HttpFStreamLayer {
    type Service = HttpFStream<S>;

    fn layer(&self, inner: S) -> HttpFStream<S> {
        HttpFStream::layered(inner, Arc::clone(&self.hub), Arc::new(self.options.clone()))
    }
}

impl std::fmt::Debug for HttpFStreamLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpFStreamLayer").field("options", &self.options).finish_non_exhaustive()
    }
}
