//! The layer: what an application configures.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Request, Response};
use http_body::Body;
use tower::Layer;

use crate::access::{Access, Authorize, Denied, Grant};
use crate::body::ResponseBody;
use crate::error::{BoxError, Error};
use crate::hub::Hub;
use crate::key::Key;
use crate::server::config::Options;
use crate::server::dispatch::serve;
use crate::service::HttpFStream;
use crate::storage::Storage;
use crate::streams::Streams;

/// The bounds of every time limit. The longest means never.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// Adds appending to and following of resources to a service.
///
/// Without a [`mount`](Self::mount) point it looks only at WebSocket upgrades that name a verb, so that a stored resource
/// can't shadow a route of the application. [Mounting](crate::docs::mounting) describes where to put the layer, and in which
/// order with other layers.
///
/// # Who may append
/// Everybody who can reach it, unless [`authorize`](Self::authorize) refuses. Web pages of other sites are refused in any
/// case, unless [`allow_origins`](Self::allow_origins) lists them.
///
/// ```
/// # #[cfg(unix)] fn main() -> httpfstream::Result<()> {
/// use axum::{Router, routing::get};
/// use httpfstream::{HttpFStreamLayer, storage::FsStorage};
///
/// # let dir = tempfile::tempdir().unwrap(); let path = dir.path().join("logs");
/// let logs = HttpFStreamLayer::new(FsStorage::open(path)?).mount("/streams");
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

    /// A layer over resources that other layers use as well: for example a public layer that follows and an internal one that
    /// appends.
    pub fn from_streams(streams: Streams) -> Self {
        Self { hub: streams.hub, options: Options::default() }
    }

    /// The in-process side of the same resources.
    pub fn streams(&self) -> Streams {
        Streams { hub: Arc::clone(&self.hub) }
    }

    /// Mounts the resources below this path: the layer looks at the requests below it, WebSocket upgrades and
    /// [plain HTTP](Self::plain_http) alike, and at no others. The rest of the path is the resource's key: with `/streams`,
    /// `/streams/a/b` is the resource `a/b`. With `/` every path names a resource.
    ///
    /// The path is matched by whole segments, before percent-decoding. Don't use it where a router strips the prefix
    /// itself (axum's `nest_service`); set [`plain_http`](Self::plain_http) there.
    ///
    /// Default: every path, but only WebSocket upgrades that name a verb.
    pub fn mount(mut self, path: &str) -> Self {
        let path = path.trim_end_matches('/');
        let slash = if path.is_empty() || path.starts_with('/') { "" } else { "/" };
        self.options.rules.mount = format!("{slash}{path}").into();
        self.options.rules.plain = true;
        self
    }

    /// Whether the layer also looks at requests that are no WebSocket upgrades: GET and HEAD of a resource that exists,
    /// DELETE of one, requests with a verb, and resumable uploads. Requests for an absent resource go on to the inner
    /// service.
    ///
    /// Without a mount point and with [`authorize`](Self::authorize), that function decides over each GET of the application
    /// whose path can be a key, and its refusal is the response: let it return [`Denied::NotFound`] for what is no stream.
    ///
    /// Default: `false`; [`mount`](Self::mount) sets it to `true`.
    pub fn plain_http(mut self, on: bool) -> Self {
        self.options.rules.plain = on;
        self
    }

    /// Whether a request without a verb means what its method says: GET and HEAD read, a WebSocket upgrade follows, and PUT,
    /// POST and PATCH append their body (a PATCH has the content type `application/partial-upload`). An unknown verb is then
    /// refused (400). Turn it on where no other service answers such requests, as in the standalone service
    /// [`HttpFStream::new`].
    ///
    /// Requests that are no upgrades are looked at only with a [`mount`](Self::mount) point or
    /// [`plain_http`](Self::plain_http).
    ///
    /// Default: `false`: upgrades, PUT, POST and PATCH without a verb and requests with an unknown verb go on to the inner
    /// service.
    pub fn verb_from_method(mut self, on: bool) -> Self {
        self.options.rules.verb_from_method = on;
        self
    }

    /// Whether appending and deleting is refused (403).
    ///
    /// Default: `false`.
    pub fn read_only(mut self, on: bool) -> Self {
        self.options.read_only = on;
        self
    }

    /// Decides who may do what. The function is called for each request that the layer answers, before anything is looked up
    /// and before any upgrade. It gets the head of the request, with the extensions that outer layers have set.
    ///
    /// A refusal is the response, whether the resource exists or not. The exception is [`Denied::NotFound`]: a plain GET, HEAD
    /// or DELETE then goes on to the inner service, as for an absent resource.
    ///
    /// Default: everybody may do everything.
    ///
    /// ```
    /// use httpfstream::{Access, Denied, Grant, HttpFStreamLayer, Verb, storage::MemoryStorage};
    ///
    /// let logs = HttpFStreamLayer::new(MemoryStorage::new(1 << 20)).mount("/logs").authorize(|access: Access| async move {
    ///     let token = access.head.headers.get("authorization");
    ///     match access.verb {
    ///         Verb::Follow => Ok(Grant::new()),
    ///         _ if token.is_some_and(|token| token == "Bearer sesame") => Ok(Grant::new()),
    ///         _ => Err(Denied::Unauthorized),
    ///     }
    /// });
    /// # let _ = logs;
    /// ```
    pub fn authorize<F, Fut>(mut self, check: F) -> Self
    where
        F: Fn(Access) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Grant, Denied>> + Send + 'static,
    {
        self.options.authorize = Some(Authorize::new(check));
        self
    }

    /// Web pages of which origins, besides those of the request's own host, may open WebSockets and write:
    /// `https://app.example`, as browsers send it in `Origin` (RFC 6454), or `*` for all. They may read responses too (CORS).
    /// Clients that are no browsers send no `Origin`, and are not restricted.
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

    /// How often a WebSocket peer is pinged. An appender that doesn't respond for two intervals is disconnected (this is
    /// checked once an interval, so it takes two to three). A client like the original's, which can't respond, is not pinged.
    ///
    /// Default: 30 seconds. The least is one millisecond.
    pub fn ping_interval(mut self, every: Duration) -> Self {
        self.options.timeouts.ping = every.clamp(SHORTEST, LONGEST);
        self
    }

    /// How long a peer may be silent that is not disconnected for missed pings: an appender that can't respond to them, and
    /// a follower, which may have much to read before it comes to one. It may take up to twice as long until the silence is
    /// noticed.
    ///
    /// Default: 10 minutes.
    pub fn silence_timeout(mut self, limit: Duration) -> Self {
        self.options.timeouts.silence = limit.clamp(SHORTEST, LONGEST);
        self
    }

    /// How long a follower may accept no bytes while some wait for it, before it is disconnected (close code 4002). A
    /// follower that reads slowly is not.
    ///
    /// Default: 60 seconds.
    pub fn stall_timeout(mut self, limit: Duration) -> Self {
        self.options.timeouts.stall = limit.clamp(SHORTEST, LONGEST);
        self
    }

    /// The largest WebSocket message that is accepted, in bytes. An appender that sends a larger one is disconnected (close
    /// code 1009).
    ///
    /// Default: 16 MiB. Without a subprotocol a message is held in memory until it is complete.
    pub fn max_message_size(mut self, bytes: u64) -> Self {
        self.options.max_message = bytes;
        self
    }

    /// The largest resource that can be appended to through this layer, in bytes. An appender that would exceed it is refused
    /// (413, or close code 1009).
    ///
    /// Default: no limit but the storage's.
    pub fn max_resource_size(mut self, bytes: u64) -> Self {
        self.options.max_resource = bytes;
        self
    }

    /// The longest time that a follower may wait for an absent resource, whatever it asks for (`wait`, in seconds).
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

    /// Answers a request for one resource, from a route of the application's own, with all that this layer is configured
    /// with: authorization, CORS, limits, content type. The path of the request is ignored, and so is
    /// [`mount`](Self::mount). A request without a verb means what its method says, as with
    /// [`verb_from_method`](Self::verb_from_method). An absent resource is 404.
    ///
    /// The request must be the one that the server has made, because its extensions hold the upgrade.
    ///
    /// ```
    /// use axum::extract::{Path, Request, State};
    /// use axum::response::IntoResponse;
    /// use httpfstream::HttpFStreamLayer;
    ///
    /// /// Answers `/builds/{id}/log`.
    /// async fn log(State(logs): State<HttpFStreamLayer>, Path(id): Path<u64>, request: Request) -> impl IntoResponse {
    ///     logs.serve(format!("builds/{id}.log"), request).await
    /// }
    /// ```
    pub async fn serve<K, B>(&self, key: K, request: Request<B>) -> Response<ResponseBody>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        serve(&self.hub, &self.options, key.try_into().map_err(Error::from), request).await.map(ResponseBody::own)
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
