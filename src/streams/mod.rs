//! The in-process side: append, follow and serve without a socket.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use tokio::sync::broadcast;

use crate::access::Verb;
use crate::body::RequestBody;
use crate::body::ResponseBody;
use crate::buffer::Segments;
use crate::error::{Error, ErrorKind, Result};
use crate::hub::{AttachRequest, Attached, Config, Cursor, Durability, Event, Found, Hub, Lease, Limits, Step};
use crate::identity::{AppenderId, Owner};
use crate::key::Key;
use crate::protocol::StartPosition;
use crate::server::config::Options;
use crate::server::dispatch::dispatch;
use crate::server::intent::Intent;
use crate::server::response::problem;
use crate::state::{End, Life, Stat, State};
use crate::storage::erased::Guarded;
use crate::storage::{EntryStream, Open, Storage};

/// How long what was cut at the end of a shutdown's grace may take to go.
const LAST_STEP: Duration = Duration::from_secs(1);

/// More would be for ever.
const LONGEST_GRACE: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// Events as they happen: see [`Streams::events`].
#[derive(Debug)]
pub struct Events(broadcast::Receiver<Event>);

impl Events {
    /// The next event; `None` once the last [`Streams`] handle is gone.
    ///
    /// # Cancel safety
    /// Cancel safe: no event is lost.
    pub async fn next(&mut self) -> Option<Event> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Event::Missed(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// Configures [`Streams`].
pub struct StreamsBuilder {
    make: Box<dyn FnOnce(Config) -> Hub + Send>,
    config: Config,
}

impl StreamsBuilder {
    /// How many of a live resource's last bytes are kept in memory, so that followers need not read them from the
    /// storage. While more than that comes within a second it is up to four times as much for each follower, and sixteen
    /// times at most. Zero turns the cache off.
    ///
    /// Default: 64 KiB.
    #[must_use]
    pub fn tail_cache(mut self, bytes: usize) -> Self {
        self.config.tail_cache = bytes;
        self
    }

    /// When committed bytes are made to survive a power loss.
    ///
    /// Default: `Durability::Interval` of one second.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.config.durability = durability;
        self
    }

    /// How long a resource waits for its lost appender, if that gave an [`AppenderId`] and so can come back. Until then
    /// nobody else can append, and followers wait. Counted anew after a restart.
    ///
    /// Default: 30 seconds.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.config.grace = grace.min(LONGEST_GRACE);
        self
    }

    /// How long a resource may be [parked](State::Parked) between two request bodies before it is interrupted. Whoever
    /// uploads can go on after that too; only its followers have been told an end.
    ///
    /// Default: 10 minutes.
    #[must_use]
    pub fn parking_timeout(mut self, limit: Duration) -> Self {
        self.config.parking_timeout = limit.min(LONGEST_GRACE);
        self
    }

    /// How many resources may be appended to at once: those that are live, and those that are kept for their appender
    /// ([lost](State::Lost), [parked](State::Parked)). One more is refused ([`Overloaded`](ErrorKind::Overloaded), over
    /// HTTP 503 with `Retry-After`); whoever comes back to what is kept for it is always let in. With
    /// [`FsStorage`](crate::storage::FsStorage) each holds up to two file descriptors.
    ///
    /// Default: 10,000.
    #[must_use]
    pub fn max_appends(mut self, count: usize) -> Self {
        self.config.limits.appends = count;
        self
    }

    /// How many may follow one resource at once, those who [wait](FollowRequest::wait) for it included. One more is refused
    /// ([`Overloaded`](ErrorKind::Overloaded), over HTTP 503 with `Retry-After`). What is at rest and downloaded in one
    /// piece isn't followed.
    ///
    /// Default: 10,000.
    #[must_use]
    pub fn max_followers(mut self, count: usize) -> Self {
        self.config.limits.followers = count;
        self
    }

    /// As [`max_followers`](Self::max_followers), over all resources.
    ///
    /// Default: 50,000.
    #[must_use]
    pub fn max_total_followers(mut self, count: usize) -> Self {
        self.config.limits.total_followers = count;
        self
    }

    /// How many bytes of incomplete WebSocket messages may be held in memory, over all appenders without a subprotocol: what
    /// they send is stored message by message. Each may hold 64 KiB in any case. An appender for whose message there is
    /// no more room is closed (1013); what is sent in smaller messages, over the subprotocol or in the body of a request
    /// is never held.
    ///
    /// Default: 256 MiB. A message larger than this never fits.
    #[must_use]
    pub fn max_incomplete(mut self, bytes: usize) -> Self {
        self.config.limits.incomplete = bytes;
        self
    }

    /// How long one call of the storage may take, a single read, append or sync. One that takes longer fails, for this
    /// resource only: whoever asked is told that the storage does not answer (503, or close code 1011). Nobody else gets
    /// the resource before the call has ended.
    ///
    /// That takes a storage whose calls hang without blocking the runtime's threads. Of
    /// [`FsStorage`](crate::storage::FsStorage)'s one may, in the whole process, if it isn't
    /// [told not to](crate::storage::FsStorageBuilder::inline_appends): the appender that it belongs to is answered only once
    /// the file system goes on. Each of its calls that hangs holds a thread of the blocking pool, also once it has been
    /// answered; their number is bounded.
    ///
    /// Default: 60 seconds; at least a millisecond.
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
/// let mut out = streams.append("chat/42").create_new().await?;
/// let mut follower = streams.follow("chat/42").await?;
/// out.append("Hello, ").await?;
/// out.append("world").await?;
/// out.finish().await?;
///
/// let mut all = Vec::new();
/// while let Some(bytes) = follower.next_chunk().await? {
///     all.extend_from_slice(&bytes);
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
        StreamsBuilder { make, config }
    }

    /// Opens a resource for appending, at its end or as a new one: await what this returns.
    ///
    /// # Errors
    /// [`Busy`](ErrorKind::Busy) if somebody else appends; [`Sealed`](ErrorKind::Sealed);
    /// [`BadPath`](ErrorKind::BadPath) and [`PathTooLong`](ErrorKind::PathTooLong) as [`Key::new`];
    /// [`ShuttingDown`](ErrorKind::ShuttingDown); what the storage says.
    pub fn append<K>(&self, key: K) -> AppendRequest
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        let attach = AttachRequest::new(Open::Continue);
        AppendRequest { streams: self.clone(), key: key.try_into().map_err(Error::from), attach, id: None }
    }

    /// Follows a resource: what is stored, then what is appended, to the end. Await what this returns.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); otherwise as [`append`](Self::append).
    pub fn follow<K>(&self, key: K) -> FollowRequest
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        FollowRequest {
            streams: self.clone(),
            key: key.try_into().map_err(Error::from),
            from: StartPosition::Beginning,
            life: None,
            wait: Duration::ZERO,
        }
    }

    /// Gives the resources that an earlier process left lost their [grace](StreamsBuilder::grace), counted from now. The
    /// first use of any resource does it too: call this at the start, so that an idle server doesn't keep them waiting.
    ///
    /// # Errors
    /// [`Storage`](ErrorKind::Storage) and the like: the storage can't tell which ones these are.
    pub async fn recover(&self) -> Result<()> {
        self.hub.recover().await
    }

    /// What is known of a resource; `None` if it is absent.
    ///
    /// # Errors
    /// Those of the storage.
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

    /// Deletes a resource. Its appender is fenced; its followers are cut.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if it is absent.
    pub async fn delete<K>(&self, key: K) -> Result<()>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        self.hub.delete(&key.try_into()?).await
    }

    /// Serves one resource from a route of the application's own: GET, HEAD and FOLLOW, over a WebSocket or without. An
    /// upgrade without a verb follows; an absent resource is 404; whatever would change something is refused.
    ///
    /// Nobody is asked whether this is allowed: that is the route's to do, before. Foreign web pages are refused as in
    /// [`HttpFStreamLayer::allow_origins`](crate::HttpFStreamLayer::allow_origins).
    ///
    /// The request has to be the server's own, extensions and all: the upgrade is in there.
    pub async fn serve<B>(&self, key: impl AsRef<str>, request: Request<B>) -> Response<ResponseBody> {
        let mut options = Options { read_only: true, ..Options::default() };
        options.rules.plain = true;
        options.rules.default_verb = Some(Verb::Follow);
        let intent = match Key::new(key.as_ref()) {
            Ok(key) => match options.rules.intent_for(&request, || Ok(key.clone())) {
                // A verb that is not ours, of the route's own perhaps.
                Intent::Pass if matches!(*request.method(), Method::GET | Method::HEAD) => Intent::Read { key },
                // A method that means nothing here.
                Intent::Pass => Intent::MethodNotAllowed { allow: "GET, HEAD" },
                intent => intent,
            },
            Err(error) => Intent::Refuse(error),
        };
        let (mut head, _) = request.into_parts();
        // Nothing here takes a body.
        let mut body = RequestBody::default;
        let response = match dispatch(&self.hub, &options, intent, &mut head, &mut body).await {
            Some(response) => response,
            None => problem(&ErrorKind::NotFound.into()),
        };
        response.map(ResponseBody::own)
    }

    /// Tells what happens to resources from now on. A listener that falls behind is told how much it
    /// [missed](Event::Missed); nobody waits for it.
    pub fn events(&self) -> Events {
        Events(self.hub.subscribe())
    }

    /// Shuts down in good order and returns when all connections have ended.
    ///
    /// At once nothing new is let in, and appenders over sockets are ended: what they sent in full is stored and
    /// synced, and their followers get it. The resource is interrupted, or, if its appender gave an [`AppenderId`], lost:
    /// the next start gives it its grace. In-process appenders may go on to their finish.
    /// After `grace` everything that still runs is cut, and given one more second.
    ///
    /// Neither hyper nor axum knows of upgraded connections: call this beside their own graceful shutdown.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the first step done and skips the cut.
    pub async fn shutdown(&self, grace: Duration) {
        let hub = &self.hub;
        hub.shutting_down.cancel();
        hub.tasks.close();
        hub.leases.close();
        let done = async {
            // The last lease's end may still be running as a task, and one that was let in at the last moment too.
            while !(hub.leases.is_empty() && hub.tasks.is_empty()) {
                hub.leases.wait().await;
                hub.tasks.wait().await;
            }
        };
        if tokio::time::timeout(grace, done).await.is_err() {
            hub.cut_all();
            hub.aborting.cancel();
            // A storage that hangs is left behind.
            let _ = tokio::time::timeout(LAST_STEP, hub.tasks.wait()).await;
        }
    }
}

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streams").finish_non_exhaustive()
    }
}

/// A resource about to be opened: see [`Streams::append`]. Await it.
#[derive(Debug)]
#[must_use = "nothing is opened before this is awaited"]
pub struct AppendRequest {
    streams: Streams,
    key: Result<Key>,
    attach: AttachRequest,
    id: Option<AppenderId>,
}

impl AppendRequest {
    /// Only if the resource is absent, else [`Exists`](ErrorKind::Exists).
    pub fn create_new(mut self) -> Self {
        self.attach.how = Open::Create;
        self
    }

    /// Only if the resource ends here, else [`Offset`](ErrorKind::Offset).
    pub fn offset(mut self, offset: u64) -> Self {
        self.attach.offset = Some(offset);
        self
    }

    /// Only in this life, else [`Life`](ErrorKind::Life); an appender that is known by its id goes on in a new life too.
    pub fn life(mut self, life: Life) -> Self {
        self.attach.life = Some(life);
        self
    }

    /// Who appends, so that it can come back: if the appender is lost (dropped, or its process died) the resource waits
    /// for this id, for the [grace](StreamsBuilder::grace). Whoever shows it again is let in at once, and the appender
    /// before it is [`Fenced`](ErrorKind::Fenced).
    pub fn appender_id(mut self, id: AppenderId) -> Self {
        self.id = Some(id);
        self
    }
}

impl IntoFuture for AppendRequest {
    type Output = Result<Appender>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<Appender>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let owner = self.id.map(|id| Owner::new(&id, None));
            let attach = AttachRequest { owner, ..self.attach };
            match self.streams.hub.attach(&self.key?, attach).await? {
                Attached::Open { lease, resumed } => Ok(Appender { lease, resumed }),
                // Only a finish that is asked about is answered so.
                Attached::Finished(_) => Err(ErrorKind::Poisoned.into()),
            }
        })
    }
}

/// A resource about to be followed: see [`Streams::follow`]. Await it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> httpfstream::Result<()> {
/// # use httpfstream::{Streams, storage::MemoryStorage};
/// # let streams = Streams::new(MemoryStorage::new(1 << 20));
/// let mut out = streams.append("build.log").await?;
/// out.append("one\ntwo\nthree\n").await?;
/// let mut last = streams.follow("build.log").lines(2).await?;
/// assert_eq!(last.next_chunk().await?.unwrap(), "two\nthree\n");
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "nothing is followed before this is awaited"]
pub struct FollowRequest {
    streams: Streams,
    key: Result<Key>,
    from: StartPosition,
    life: Option<Life>,
    wait: Duration,
}

impl FollowRequest {
    /// From this byte on; past the end it is [`PastEnd`](ErrorKind::PastEnd).
    ///
    /// The last one of `offset`, [`tail`](Self::tail) and [`lines`](Self::lines) counts.
    pub fn offset(mut self, offset: u64) -> Self {
        self.from = StartPosition::Offset(offset);
        self
    }

    /// From this many bytes before the end.
    pub fn tail(mut self, bytes: u64) -> Self {
        self.from = StartPosition::Tail(bytes);
        self
    }

    /// From this many lines before the end. What stands behind the last line feed is a line too.
    pub fn lines(mut self, lines: u64) -> Self {
        self.from = StartPosition::Lines(lines);
        self
    }

    /// Only in this life, else [`Life`](ErrorKind::Life): for going on from an [`offset`](Self::offset).
    pub fn life(mut self, life: Life) -> Self {
        self.life = Some(life);
        self
    }

    /// Waits for an absent resource, for so long. Default: not at all.
    pub fn wait(mut self, limit: Duration) -> Self {
        self.wait = limit;
        self
    }
}

impl IntoFuture for FollowRequest {
    type Output = Result<Follower>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<Follower>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let (hub, key) = (&self.streams.hub, self.key?);
            let found = match self.wait {
                Duration::ZERO => hub.follow(&key).await?,
                limit => hub.follow_when_created(&key, limit).await?,
            };
            let mut cursor = match found.ok_or(ErrorKind::NotFound)? {
                Found::Open(cursor) | Found::Closed(cursor, _) => cursor,
            };
            if self.life.is_some_and(|life| life != cursor.life()) {
                return Err(ErrorKind::Life.into());
            }
            cursor.start(self.from).await?;
            let (offset, state) = (cursor.at(), cursor.state());
            Ok(Follower { cursor, ready: Segments::new().into_iter(), offset, state, ended: None })
        })
    }
}

/// The one appender of a resource.
///
/// [`finish`](Appender::finish) it: dropping it instead means that it was lost, and its followers are told so.
pub struct Appender {
    lease: Lease,
    resumed: bool,
}

impl Appender {
    /// Appends bytes and returns the resource's length. When this returns they are committed, and on their way to all
    /// followers.
    ///
    /// # Cancel safety
    /// Not cancel safe: a part of the bytes may be committed, and the appender can't be used any more.
    ///
    /// # Errors
    /// [`Full`](ErrorKind::Full): nothing was stored, and the appender goes on. After any other error it is at its end:
    /// [`Fenced`](ErrorKind::Fenced), [`Poisoned`](ErrorKind::Poisoned), [`ShuttingDown`](ErrorKind::ShuttingDown),
    /// [`Storage`](ErrorKind::Storage).
    pub async fn append(&mut self, data: impl Into<Bytes>) -> Result<u64> {
        self.lease.give_way().await;
        let len = self.lease.append(&[data.into()]).await?;
        if self.lease.syncs_each_append() {
            self.lease.sync().await?;
        }
        Ok(len)
    }

    /// Makes what was appended survive a power loss, as far as the [`Durability`] allows, and returns the length that
    /// does.
    ///
    /// # Cancel safety
    /// Cancel safe: the sync goes on, and nobody waits for it.
    ///
    /// # Errors
    /// The appender is at its end after any error, and what was not durable before may be gone.
    pub async fn sync(&mut self) -> Result<u64> {
        self.lease.sync().await
    }

    /// Whether the resource's last byte, as it was opened, came from this appender's
    /// [id](AppendRequest::appender_id): then [`len`](Self::len) tells how much of what it appended before is there.
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// The resource's committed length.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.lease.resource().len()
    }

    /// The life that is appended to.
    pub fn life(&self) -> Life {
        self.lease.resource().life
    }

    /// Ends the resource cleanly: syncs it, and tells its followers that this was all.
    ///
    /// # Cancel safety
    /// Once polled, the finish goes on even if the future is dropped.
    pub async fn finish(self) -> Result<Stat> {
        self.lease.finish(End::Finished).await
    }

    /// As [`finish`](Self::finish), and for good: nobody can append to it any more.
    ///
    /// # Cancel safety
    /// As [`finish`](Self::finish).
    pub async fn seal(self) -> Result<Stat> {
        self.lease.finish(End::Sealed).await
    }
}

impl fmt::Debug for Appender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Appender").field("key", &self.lease.resource().key).finish_non_exhaustive()
    }
}

/// A follower inside the process.
pub struct Follower {
    cursor: Cursor,
    ready: <Segments as IntoIterator>::IntoIter,
    offset: u64,
    state: State,
    ended: Option<Result<(), ErrorKind>>,
}

/// What a [`Follower`] is told next.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Update {
    /// Bytes.
    Data(Bytes),
    /// The appender was [lost](State::Lost), has [parked](State::Parked) the resource, or is [back](State::Live).
    State(State),
}

impl Follower {
    /// The next bytes, as soon as there are any; `None` at the clean end, however often it is called.
    ///
    /// # Cancel safety
    /// Cancel safe: no byte is lost.
    ///
    /// # Errors
    /// [`Interrupted`](ErrorKind::Interrupted) where the appender was lost: all bytes were handed out, but they are not
    /// the whole. [`NotFound`](ErrorKind::NotFound) if the resource was deleted;
    /// [`ShuttingDown`](ErrorKind::ShuttingDown); those of the storage.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        loop {
            match self.next_update().await? {
                Some(Update::Data(bytes)) => return Ok(Some(bytes)),
                Some(Update::State(_)) => {}
                None => return Ok(None),
            }
        }
    }

    /// As [`next_chunk`](Self::next_chunk), and also tells when the appender is lost or back, in order with the bytes.
    ///
    /// # Cancel safety
    /// As [`next_chunk`](Self::next_chunk).
    ///
    /// # Errors
    /// As [`next_chunk`](Self::next_chunk).
    pub async fn next_update(&mut self) -> Result<Option<Update>> {
        loop {
            if let Some(bytes) = self.ready.next() {
                self.offset += bytes.len() as u64;
                return Ok(Some(Update::Data(bytes)));
            }
            match self.ended {
                None => {}
                Some(Ok(())) => return Ok(None),
                Some(Err(kind)) => return Err(kind.into()),
            }
            match self.cursor.next().await? {
                Step::Data(mut pieces) => self.ready = pieces.take_all().into_iter(),
                Step::State(state) => {
                    self.state = state;
                    return Ok(Some(Update::State(state)));
                }
                Step::End(state) => {
                    self.state = state;
                    self.ended = Some(if state == State::Interrupted { Err(ErrorKind::Interrupted) } else { Ok(()) });
                }
                Step::Cut(kind) => self.ended = Some(Err(kind)),
            }
        }
    }

    /// How the resource stands, as far as this follower has come.
    pub fn state(&self) -> State {
        self.state
    }

    /// The offset of the next byte that will be handed out, from the resource's start.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The life that is followed.
    pub fn life(&self) -> Life {
        self.cursor.life()
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower").field("offset", &self.offset).field("ended", &self.ended).finish_non_exhaustive()
    }
}
