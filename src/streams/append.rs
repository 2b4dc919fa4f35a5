//! Appending inside the process.

use std::fmt;
use std::future::{Future, IntoFuture, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::task::JoinHandle;

use super::Streams;
use crate::error::{Error, ErrorKind, Result};
use crate::hub::{AttachRequest, Attached, Lease, LeaseWatch};
use crate::identity::{AppenderId, Owner};
use crate::key::Key;
use crate::state::{End, Life};
use crate::storage::Open;
#[cfg(doc)]
use crate::{hub::Durability, streams::StreamsBuilder};

/// How much is read from a source, or taken from a write, at once, in bytes.
const READ: usize = 64 * 1024;
/// With less room than this, in bytes, a read gets a new buffer. Small reads share one: what they yield may be kept by
/// the tail or the storage, and keeps the whole buffer alive.
const MIN_READ: usize = 8 * 1024;

/// A resource about to be opened for appending: see [`Streams::open_append`]. Await it.
///
/// # Cancel safety
/// Dropping the future leaves the resource as it was.
#[derive(Debug)]
#[must_use = "nothing is opened before this is awaited"]
pub struct AppendRequest {
    streams: Streams,
    key: Result<Key>,
    attach: AttachRequest,
    id: Option<AppenderId>,
}

impl AppendRequest {
    pub(super) fn new(streams: Streams, key: Result<Key>) -> Self {
        Self { streams, key, attach: AttachRequest::new(Open::Continue), id: None }
    }

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

    /// Only in this life, else [`Life`](ErrorKind::Life). An appender that is known by its id continues in a new life too.
    pub fn life(mut self, life: Life) -> Self {
        self.attach.life = Some(life);
        self
    }

    /// Names the appender, so that it can come back: if it is lost (dropped, or its process died), the resource is kept for
    /// this id during the [grace period](StreamsBuilder::grace). An appender that presents the id again is admitted at once,
    /// and the one before it is [`Fenced`](ErrorKind::Fenced).
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
                Attached::Open { lease, resumed } => Ok(Appender::new(self.streams, lease, resumed)),
                // Only a request that names a finish is answered with one.
                Attached::Finished(_) => Err(ErrorKind::Poisoned.into()),
            }
        })
    }
}

/// The one appender of a resource.
///
/// Only [`finish`](Self::finish) and [`seal`](Self::seal) end the resource cleanly. Dropping the appender means that it was
/// lost: the resource is interrupted, or kept during the grace period if the appender has an
/// [id](AppendRequest::appender_id).
///
/// # Cancellation
/// [`append`](Self::append) is not cancel safe. Don't use it as a branch of `tokio::select!`: let the branch be what the bytes
/// come from, and append in its handler. [`closed`](Self::closed) is cancel safe, and tells when going on makes no sense.
///
/// ```
/// # use httpfstream::{ErrorKind, Streams, storage::MemoryStorage};
/// # async fn next_word() -> Option<String> { None }
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> httpfstream::Result<()> {
/// # let streams = Streams::new(MemoryStorage::new(1 << 20));
/// let mut out = streams.open_append("chat/42").create_new().await?;
/// loop {
///     tokio::select! {
///         word = next_word() => match word {
///             Some(word) => out.append(word).await?,
///             None => break,
///         },
///         // The server stops (the text so far can be finished), or the resource was deleted (it can't).
///         error = out.closed() => match error.kind() {
///             ErrorKind::ShuttingDown => break,
///             _ => return Err(error),
///         },
///     };
/// }
/// out.finish().await?;
/// # Ok(()) }
/// ```
///
/// # As an [`AsyncWrite`]
/// A write takes over at most 64 KiB, which are then appended whether or not the appender is polled again, even if it is
/// dropped. A flush waits until everything that was written is committed. A shutdown is [`finish`](Self::finish).
///
/// Errors contain an [`Error`] ([`io::Error::downcast`] returns it). The error of a write may be reported by the next call of
/// any kind, [`append`](Self::append) and [`finish`](Self::finish) included: that call has then done nothing else.
pub struct Appender {
    streams: Streams,
    watch: LeaseWatch,
    resumed: bool,
    activity: Activity,
}

/// What an appender is doing.
enum Activity {
    Idle(Lease),
    /// A write over [`AsyncWrite`] that has not completed; it returns the lease. A task, because a writer need not poll
    /// the appender between two writes: the bytes would reach no follower, and the write could keep its turn at the
    /// storage from others.
    Writing(JoinHandle<(Lease, Result<u64>)>),
    /// A shutdown over [`AsyncWrite`].
    Finishing(JoinHandle<Result<()>>),
    /// It has ended, this way.
    Ended(Result<(), ErrorKind>),
}

async fn append(lease: &mut Lease, data: Bytes) -> Result<u64> {
    lease.give_way().await;
    let len = lease.append(&[data]).await?;
    if lease.syncs_each_append() {
        lease.sync().await?;
    }
    Ok(len)
}

impl Appender {
    fn new(streams: Streams, lease: Lease, resumed: bool) -> Self {
        Self { streams, watch: lease.watch(), resumed, activity: Activity::Idle(lease) }
    }

    /// Appends bytes and returns the length of the resource with them. The bytes are then committed, and on their way to all
    /// followers.
    ///
    /// # Cancel safety
    /// Not cancel safe: if the future is dropped, a part of the bytes may be committed, and the appender can't be used any
    /// more. See [the type](Self#cancellation) for what to do instead.
    ///
    /// # Errors
    /// [`Full`](ErrorKind::Full): nothing was stored, and the appender goes on. After any other error the appender has ended:
    /// [`Fenced`](ErrorKind::Fenced), [`Poisoned`](ErrorKind::Poisoned), [`ShuttingDown`](ErrorKind::ShuttingDown),
    /// [`Storage`](ErrorKind::Storage).
    pub async fn append(&mut self, data: impl Into<Bytes>) -> Result<u64> {
        append(self.lease().await?, data.into()).await
    }

    /// Appends everything that `reader` yields, up to its end, as it arrives. Returns the number of bytes.
    ///
    /// Finish the resource afterwards, or append more.
    ///
    /// # Cancel safety
    /// Not cancel safe: some of what was read may be lost.
    ///
    /// # Errors
    /// As [`append`](Self::append), and as soon as the appender has [closed](Self::closed), even while `reader` has nothing to
    /// yield. [`Interrupted`](ErrorKind::Interrupted) if `reader` fails, with its error as the source.
    pub async fn append_reader<R: AsyncRead>(&mut self, reader: R) -> Result<u64> {
        let (mut reader, closed) = (pin!(reader), self.closed());
        let mut closed = pin!(closed);
        let mut buf = BytesMut::new();
        let mut total = 0;
        loop {
            if buf.capacity() < MIN_READ {
                buf.reserve(READ);
            }
            let read = tokio::select! {
                biased;
                error = &mut closed => return Err(error),
                read = reader.read_buf(&mut buf) => read.map_err(|error| {
                    Error::new(ErrorKind::Interrupted).with_detail("the data to append can't be read").with_source(error)
                })?,
            };
            if read == 0 {
                return Ok(total);
            }
            self.append(buf.split().freeze()).await?;
            total += read as u64;
        }
    }

    /// Makes what was appended survive a power loss, as far as the [`Durability`] asks for it, and returns the length that
    /// does.
    ///
    /// # Cancel safety
    /// Cancel safe: the sync itself continues.
    ///
    /// # Errors
    /// After any error the appender has ended, and bytes that were not durable before may be lost.
    pub async fn sync(&mut self) -> Result<u64> {
        self.lease().await?.sync().await
    }

    /// Resolves when appending makes no more sense, with the reason: [`Fenced`](ErrorKind::Fenced) if another appender took
    /// over or the resource was deleted, [`Storage`](ErrorKind::Storage) if the storage failed, and
    /// [`ShuttingDown`](ErrorKind::ShuttingDown) as soon as [`Streams::shutdown`] begins. In the last case the appender may
    /// still append and finish until the grace of the shutdown is over.
    ///
    /// The future doesn't borrow the appender. Once the appender itself has ended the resource, it resolves with `Fenced`.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub fn closed(&self) -> impl Future<Output = Error> + Send + use<> {
        let closed = self.watch.closed();
        async { closed.await.into() }
    }

    /// Whether the last byte of the resource, when it was opened, came from an appender with the same
    /// [id](AppendRequest::appender_id). [`offset`](Self::offset) is then where that appender was.
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Where the next byte goes: the committed length of the resource. A write over [`AsyncWrite`] counts once it is flushed.
    pub fn offset(&self) -> u64 {
        self.watch.resource().len()
    }

    /// The life of the resource.
    pub fn life(&self) -> Life {
        self.watch.resource().life
    }

    /// How many follow the resource in this process, so that work that nobody watches can be stopped.
    pub fn followers(&self) -> usize {
        self.streams.hub.follower_count(&self.watch.resource().key)
    }

    /// Ends the resource cleanly: everything is made durable, the followers see the end. Returns the final length, also after
    /// a shutdown over [`AsyncWrite`].
    ///
    /// # Cancel safety
    /// Once polled, the finish completes even if the future is dropped, unless a write over [`AsyncWrite`] has to complete
    /// first. Flush before.
    ///
    /// # Errors
    /// As [`append`](Self::append). [`Full`](ErrorKind::Full) only for bytes of a write over [`AsyncWrite`] that were not
    /// flushed: the resource would lack them, so it is interrupted.
    pub async fn finish(self) -> Result<u64> {
        self.end(End::Finished).await
    }

    /// Ends the resource for good: as [`finish`](Self::finish), and nobody can append to it any more.
    ///
    /// # Cancel safety
    /// As [`finish`](Self::finish).
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub async fn seal(self) -> Result<u64> {
        self.end(End::Sealed).await
    }

    async fn end(mut self, end: End) -> Result<u64> {
        if end == End::Finished && matches!(self.activity, Activity::Finishing(_) | Activity::Ended(Ok(()))) {
            poll_fn(|cx| self.poll_finish(cx)).await?;
            return Ok(self.offset());
        }
        self.lease().await?;
        match self.activity {
            Activity::Idle(lease) => Ok(lease.finish(end).await?.len),
            _ => Err(ErrorKind::Poisoned.into()),
        }
    }

    /// The lease, once a write that was begun over [`AsyncWrite`] has completed.
    ///
    /// Cancel safe.
    async fn lease(&mut self) -> Result<&mut Lease> {
        poll_fn(|cx| self.poll_written(cx)).await?;
        match &mut self.activity {
            Activity::Idle(lease) => Ok(lease),
            Activity::Ended(Err(kind)) => Err((*kind).into()),
            _ => Err(ErrorKind::Poisoned.into()),
        }
    }

    /// Completes the write that was begun over [`AsyncWrite`], if there is one.
    fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let Activity::Writing(writing) = &mut self.activity else { return Poll::Ready(Ok(())) };
        match ready!(Pin::new(writing).poll(cx)) {
            Ok((lease, written)) => {
                self.activity = Activity::Idle(lease);
                Poll::Ready(written.map(drop))
            }
            Err(panicked) => {
                self.activity = Activity::Ended(Err(ErrorKind::Storage));
                Poll::Ready(Err(Error::storage(panicked)))
            }
        }
    }

    /// Finishes the resource. Once that is done or has failed, it returns the same outcome again.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        ready!(self.poll_written(cx))?;
        loop {
            match &mut self.activity {
                Activity::Finishing(finishing) => {
                    let ended = ready!(Pin::new(finishing).poll(cx));
                    let ended = ended.unwrap_or_else(|panicked| Err(Error::storage(panicked)));
                    self.activity = Activity::Ended(ended.as_ref().map_err(Error::kind).copied());
                    return Poll::Ready(ended);
                }
                Activity::Ended(ended) => return Poll::Ready(ended.map_err(Error::from)),
                Activity::Idle(_) | Activity::Writing(_) => {}
            }
            if let Activity::Idle(lease) =
                std::mem::replace(&mut self.activity, Activity::Ended(Err(ErrorKind::Poisoned)))
            {
                let runtime = lease.runtime().clone();
                let finishing = async move { lease.finish(End::Finished).await.map(drop) };
                self.activity = Activity::Finishing(runtime.spawn(finishing));
            }
        }
    }
}

impl AsyncWrite for Appender {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_written(cx))?;
        let mut lease = match std::mem::replace(&mut self.activity, Activity::Ended(Err(ErrorKind::Poisoned))) {
            Activity::Idle(lease) => lease,
            other => {
                let kind = if let Activity::Ended(Err(kind)) = &other { *kind } else { ErrorKind::Poisoned };
                self.activity = other;
                return Poll::Ready(Err(Error::from(kind).into()));
            }
        };
        let taken = data.len().min(READ);
        let data = Bytes::copy_from_slice(&data[..taken]);
        let runtime = lease.runtime().clone();
        let mut writing = Box::pin(async move {
            let written = append(&mut lease, data).await;
            (lease, written)
        });
        // Most writes complete at once, and need no task.
        match writing.as_mut().poll(cx) {
            Poll::Ready((lease, written)) => {
                self.activity = Activity::Idle(lease);
                Poll::Ready(written.map(|_| taken).map_err(Into::into))
            }
            Poll::Pending => {
                self.activity = Activity::Writing(runtime.spawn(writing));
                Poll::Ready(Ok(taken))
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_written(cx).map_err(Into::into)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_finish(cx).map_err(Into::into)
    }
}

impl fmt::Debug for Appender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Appender").field("key", &self.watch.resource().key).finish_non_exhaustive()
    }
}
