//! What [`Streams`] are configured with.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::Streams;
use crate::hub::{Config, Durability, Hub, Limits};
use crate::storage::Storage;
use crate::storage::erased::Guarded;
#[cfg(doc)]
use crate::{
    error::ErrorKind,
    identity::AppenderId,
    state::State,
    storage::{FsStorage, FsStorageBuilder},
    streams::FollowRequest,
};

/// Longer times mean for ever.
const LONGEST: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// Configures [`Streams`].
///
/// ```
/// use std::time::Duration;
///
/// use httpfstream::{Durability, HttpFStreamLayer, Streams, storage::MemoryStorage};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let streams = Streams::builder(MemoryStorage::new(1 << 30))
///     .durability(Durability::Acked)
///     .grace(Duration::from_secs(60))
///     .max_followers_per_resource(1000)
///     .build();
/// let layer = HttpFStreamLayer::from_streams(streams).mount("/streams");
/// # let _ = layer; }
/// ```
pub struct StreamsBuilder {
    make: Box<dyn FnOnce(Config) -> Hub + Send>,
    config: Config,
}

impl StreamsBuilder {
    pub(super) fn new<S: Storage>(storage: S) -> Self {
        let config = Config {
            tail_cache: 64 * 1024,
            durability: Durability::default(),
            grace: Duration::from_secs(30),
            parking_timeout: Duration::from_secs(600),
            limits: Limits::default(),
            storage_timeout: Duration::from_secs(60),
        };
        let make =
            Box::new(move |config: Config| Hub::new(Box::new(Guarded::new(storage, config.storage_timeout)), config));
        Self { make, config }
    }

    /// How many of the last bytes of a live resource are kept in memory, so that followers need not read them from the
    /// storage. While more than this arrives within a second, four times as much is kept for each follower, up to sixteen
    /// times. Zero turns the cache off.
    ///
    /// Default: 64 KiB.
    #[must_use]
    pub fn tail_cache(mut self, bytes: usize) -> Self {
        self.config.tail_cache = bytes;
        self
    }

    /// When committed bytes are made to survive a power loss.
    ///
    /// Default: [`Durability::Interval`] of one second.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.config.durability = durability;
        self
    }

    /// How long a resource is kept for its lost appender, if the appender gave an [`AppenderId`] and so can come back. Until
    /// then nobody else can append, and followers wait. After a restart the time starts again.
    ///
    /// Default: 30 seconds.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.config.grace = grace.min(LONGEST);
        self
    }

    /// How long a resource may be [parked](State::Parked) between two request bodies before it is interrupted. The uploader
    /// can continue after that too, but the followers have seen an end.
    ///
    /// Default: 10 minutes.
    #[must_use]
    pub fn parking_timeout(mut self, limit: Duration) -> Self {
        self.config.parking_timeout = limit.min(LONGEST);
        self
    }

    /// How many resources may be open for appending at once: live, or kept for their appender ([lost](State::Lost),
    /// [parked](State::Parked)). One more is refused ([`Overloaded`](ErrorKind::Overloaded), over HTTP 503 with
    /// `Retry-After`). An appender that comes back to a resource that is kept for it is always admitted. With [`FsStorage`]
    /// each open resource takes up to two file descriptors.
    ///
    /// Default: 10,000.
    #[must_use]
    pub fn max_open_resources(mut self, count: usize) -> Self {
        self.config.limits.appends = count;
        self
    }

    /// How many may follow one resource at once, including those that [wait](FollowRequest::wait) for it. One more is refused
    /// ([`Overloaded`](ErrorKind::Overloaded), over HTTP 503 with `Retry-After`). Downloads of closed resources don't count.
    ///
    /// Default: 10,000.
    #[must_use]
    pub fn max_followers_per_resource(mut self, count: usize) -> Self {
        self.config.limits.followers = count;
        self
    }

    /// How many may follow at once, over all resources: see
    /// [`max_followers_per_resource`](Self::max_followers_per_resource).
    ///
    /// Default: 50,000.
    #[must_use]
    pub fn max_followers_total(mut self, count: usize) -> Self {
        self.config.limits.total_followers = count;
        self
    }

    /// How many bytes of incomplete WebSocket messages may be held in memory, over all appenders that use no subprotocol:
    /// what they send is stored message by message. Each of them may hold 64 KiB in any case. An appender whose message finds
    /// no more room is disconnected (close code 1013). Small messages, the subprotocol and request bodies are never held.
    ///
    /// Default: 256 MiB. A message larger than this is never accepted.
    #[must_use]
    pub fn max_buffered_message_bytes(mut self, bytes: usize) -> Self {
        self.config.limits.incomplete = bytes;
        self
    }

    /// How long one call of the storage may take: a single read, append or sync. A call that takes longer fails, for its
    /// resource only: with 503 if nothing was begun, else with 500, and over a WebSocket with close code 1011. Nobody else
    /// gets the resource before the call has ended.
    ///
    /// This needs a storage whose calls don't block the threads of the runtime. With [`FsStorage`] one append in the whole
    /// process may block one, unless [`inline_appends`](FsStorageBuilder::inline_appends) forbids it: its appender gets a
    /// response only when the file system continues. Every other call that hangs occupies a thread of the blocking pool, even
    /// after its timeout; the number of such threads is bounded.
    ///
    /// Default: 60 seconds; at least one millisecond.
    #[must_use]
    pub fn storage_timeout(mut self, limit: Duration) -> Self {
        self.config.storage_timeout = limit.max(Duration::from_millis(1));
        self
    }

    /// Makes the handle.
    pub fn build(self) -> Streams {
        Streams { hub: Arc::new((self.make)(self.config)) }
    }
}

impl fmt::Debug for StreamsBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamsBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}
