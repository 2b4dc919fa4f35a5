//! The in-process side: append, follow and serve without a socket.

mod append;
mod builder;
mod events;
mod follow;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use tokio::io::AsyncRead;

use crate::body::ResponseBody;
#[cfg(doc)]
use crate::error::ErrorKind;
use crate::error::{BoxError, Error, Result};
#[cfg(doc)]
use crate::hub::Event;
use crate::hub::Hub;
#[cfg(doc)]
use crate::identity::AppenderId;
use crate::key::Key;
use crate::server::config::Options;
use crate::server::dispatch::serve;
use crate::state::Stat;
use crate::storage::{EntryStream, Storage};

pub use self::append::{AppendRequest, Appender};
pub use self::builder::StreamsBuilder;
pub use self::events::Events;
pub use self::follow::{FollowRequest, Follower};

/// How long connections that were aborted at the end of a shutdown's grace may take to end.
const ABORT_TIMEOUT: Duration = Duration::from_secs(1);

/// All resources of one storage, for use inside the process.
///
/// Clones are handles on the same resources. A [layer](crate::HttpFStreamLayer) has one
/// ([`streams`](crate::HttpFStreamLayer::streams)), and several layers can be built over one
/// ([`from_streams`](crate::HttpFStreamLayer::from_streams)).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> httpfstream::Result<()> {
/// use httpfstream::{Streams, storage::MemoryStorage};
///
/// let streams = Streams::new(MemoryStorage::new(1 << 20));
/// let mut out = streams.open_append("chat/42").create_new().await?;
/// let mut follower = streams.follow("chat/42").await?;
/// out.append("Hello, ").await?;
/// out.append("world").await?;
/// out.finish().await?;
///
/// let mut all = Vec::new();
/// while let Some(chunk) = follower.next_chunk().await? {
///     all.extend_from_slice(&chunk.bytes);
/// }
/// assert_eq!(all, b"Hello, world");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Streams {
    pub(crate) hub: Arc<Hub>,
}

impl Streams {
    /// All resources of this storage, with the default configuration.
    pub fn new<S: Storage>(storage: S) -> Self {
        Self::builder(storage).build()
    }

    /// Configures the handle.
    pub fn builder<S: Storage>(storage: S) -> StreamsBuilder {
        StreamsBuilder::new(storage)
    }

    /// Opens a resource for appending, at its end or as a new one, once it is awaited. Conditions can be set before.
    ///
    /// # Errors
    /// [`Busy`](ErrorKind::Busy) if there is another appender; [`Sealed`](ErrorKind::Sealed);
    /// [`BadPath`](ErrorKind::BadPath) and [`PathTooLong`](ErrorKind::PathTooLong) as [`Key::new`];
    /// [`Overloaded`](ErrorKind::Overloaded) if too many resources are open; [`ShuttingDown`](ErrorKind::ShuttingDown); the
    /// errors of the storage.
    pub fn open_append<K>(&self, key: K) -> AppendRequest
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        AppendRequest::new(self.clone(), key.try_into().map_err(Error::from))
    }

    /// Appends everything that `reader` yields to a resource, and finishes it. Returns the number of bytes.
    ///
    /// Bytes are appended as they arrive.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> httpfstream::Result<()> {
    /// # use httpfstream::{Streams, storage::MemoryStorage};
    /// # let streams = Streams::new(MemoryStorage::new(1 << 20));
    /// assert_eq!(streams.append("greeting.txt", &b"Hello, world"[..]).await?, 12);
    /// # Ok(()) }
    /// ```
    ///
    /// # Cancel safety
    /// Not cancel safe: the resource is left interrupted, as when an [`Appender`] is dropped.
    ///
    /// # Errors
    /// As [`open_append`](Self::open_append), [`Appender::append_reader`] and [`Appender::finish`]. Some of the bytes may have
    /// been appended.
    pub async fn append<K, R>(&self, key: K, reader: R) -> Result<u64>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
        R: AsyncRead,
    {
        let mut appender = self.open_append(key).await?;
        let appended = appender.append_reader(reader).await?;
        appender.finish().await?;
        Ok(appended)
    }

    /// Follows a resource, once it is awaited: the stored bytes, those that are appended, and the end. The start can be set
    /// before.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if it is absent; [`PastEnd`](ErrorKind::PastEnd), [`Life`](ErrorKind::Life) by what
    /// the request sets; otherwise as [`open_append`](Self::open_append).
    pub fn follow<K>(&self, key: K) -> FollowRequest
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        FollowRequest::new(self.clone(), key.try_into().map_err(Error::from))
    }

    /// How many follow a resource in this process, including those that wait for it.
    ///
    /// # Errors
    /// As [`Key::new`].
    pub fn followers<K>(&self, key: K) -> Result<usize>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        Ok(self.hub.follower_count(&key.try_into()?))
    }

    /// Starts the [grace period](StreamsBuilder::grace) of the resources that an earlier process left lost. The first use of
    /// any resource does this too: call it at the start, so that they don't wait on an idle server.
    ///
    /// # Errors
    /// [`Storage`](ErrorKind::Storage) and the like if the storage can't list them.
    pub async fn recover(&self) -> Result<()> {
        self.hub.recover().await
    }

    /// What is known of a resource; `None` if it is absent.
    ///
    /// # Errors
    /// The errors of the storage.
    pub async fn stat<K>(&self, key: K) -> Result<Option<Stat>>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        self.hub.stat(&key.try_into()?).await
    }

    /// Lists the resources whose key starts with `prefix` (empty: all), in any order, if the storage can list.
    pub fn list(&self, prefix: &str) -> EntryStream {
        self.hub.storage.list(prefix)
    }

    /// Deletes a resource. Its appender is fenced, and its followers are disconnected.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if it is absent; the errors of the storage.
    pub async fn delete<K>(&self, key: K) -> Result<()>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        self.hub.delete(&key.try_into()?).await
    }

    /// Serves one resource for reading, from a route of the application's own: GET, HEAD and FOLLOW, over a WebSocket or
    /// without. A WebSocket upgrade without a verb follows. An absent resource is 404, writing is refused (403), and so is an
    /// unknown verb (400).
    ///
    /// There is no authorization: the route does that before. Web pages of other sites are refused.
    ///
    /// This is the short form of [`HttpFStreamLayer::serve`](crate::HttpFStreamLayer::serve), which takes all that a layer can
    /// be configured with: CORS, limits, content type, authorization, and writing.
    ///
    /// The request must be the one that the server has made, because its extensions hold the upgrade.
    ///
    /// ```
    /// use axum::extract::{Path, Request, State};
    /// use axum::response::IntoResponse;
    /// use httpfstream::Streams;
    ///
    /// async fn log(State(streams): State<Streams>, Path(id): Path<u64>, request: Request) -> impl IntoResponse {
    ///     streams.serve(format!("builds/{id}.log"), request).await
    /// }
    /// ```
    pub async fn serve<K, B>(&self, key: K, request: Request<B>) -> Response<ResponseBody>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let options = Options { read_only: true, ..Options::default() };
        serve(&self.hub, &options, key.try_into().map_err(Error::from), request).await.map(ResponseBody::own)
    }

    /// Listens for what happens to resources from now on. A listener that falls behind gets [`Event::Missed`] with the number
    /// of events that it missed; nobody waits for it.
    pub fn events(&self) -> Events {
        Events::new(self.hub.subscribe())
    }

    /// Resolves when [`shutdown`](Self::shutdown) begins.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub fn shutting_down(&self) -> impl Future<Output = ()> + Send + use<> {
        self.hub.shutting_down.clone().cancelled_owned()
    }

    /// Shuts down gracefully, and returns when all connections have ended.
    ///
    /// New work is refused from now on. Appenders over sockets are ended: what they have sent in full is stored and synced,
    /// and their followers get it. The resource is interrupted, or, if its appender gave an [`AppenderId`], lost: after the
    /// next start it is kept during its grace period. In-process appenders are notified by [`Appender::closed`], and may go on
    /// to their finish. Each [`Appender`] that is kept and not ended is waited for, even one whose resource was deleted. After
    /// `grace` everything that is still open is aborted, and given one more second.
    ///
    /// Neither hyper nor axum knows of upgraded connections, so call this beside their own graceful shutdown.
    ///
    /// # Cancel safety
    /// If the future is dropped, new work stays refused, and nothing is aborted.
    pub async fn shutdown(&self, grace: Duration) {
        let hub = &self.hub;
        hub.shutting_down.cancel();
        hub.tasks.close();
        hub.leases.close();
        let done = async {
            // The end of the last lease may still be running as a task, and so may an append that was admitted just before.
            while !(hub.leases.is_empty() && hub.tasks.is_empty()) {
                hub.leases.wait().await;
                hub.tasks.wait().await;
            }
        };
        if tokio::time::timeout(grace, done).await.is_err() {
            hub.cut_all();
            hub.aborting.cancel();
            // A storage that hangs is not waited for.
            let _ = tokio::time::timeout(ABORT_TIMEOUT, hub.tasks.wait()).await;
        }
    }
}

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streams").finish_non_exhaustive()
    }
}
