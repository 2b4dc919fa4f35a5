//! Appending: one loop stores what a [`Source`] delivers, be it a WebSocket (protocol sections 3 and 4) or the body of
//! a request (section 5).

pub(crate) mod body;
mod read_ahead;
#[cfg(all(test, unix))]
mod tests;
pub(crate) mod upload;
pub(crate) mod websocket;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_core::future::BoxFuture;
use http::Response;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::read_ahead::{MAX_READ_AHEAD, ReadAhead};
use super::checks::{deadline, expired, expiry};
use super::config::{Options, Timeouts};
use super::parameters::Parameters;
use super::response::problem_with_stat;
use crate::body::OwnBody;
use crate::buffer::ByteQueue;
use crate::error::{Error, ErrorKind, Result};
use crate::hub::{AttachRequest, Hub, Lease};
use crate::identity::Owner;
use crate::key::Key;
use crate::protocol::messages;
use crate::state::End;
use crate::storage::Open;
use crate::websocket::keepalive::{Keepalive, KeepaliveAction};

/// About how many bytes make one append at most: one write, and one wake of the followers.
const BATCH: usize = 256 * 1024;

/// How long the loop goes on storing what has arrived once the server stops or the request is abandoned.
const DRAIN_TIME: Duration = Duration::from_millis(200);

/// Once this many bytes of acknowledgements are queued, nothing more is read until the peer has taken them.
const MAX_QUEUED_ACKS: usize = 4 * 1024;

/// Bounds of one append request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AppendLimits {
    pub(crate) timeouts: Timeouts,
    /// The largest message, in bytes.
    pub(crate) max_message: u64,
    /// The largest resource, in bytes.
    pub(crate) max_resource: u64,
    /// When the grant expires.
    pub(crate) until: Option<Instant>,
}

impl AppendLimits {
    /// The layer's limits, for a grant that is valid for `left`.
    fn new(options: &Options, left: Option<Duration>) -> Self {
        Self {
            timeouts: options.timeouts,
            max_message: options.max_message,
            max_resource: options.max_resource,
            until: deadline(left),
        }
    }

    /// How many bytes fit into a resource that has `len` already.
    fn room(self, len: u64) -> u64 {
        self.max_resource.saturating_sub(len)
    }
}

/// Why the append loop ended.
pub(crate) enum AppendEnd {
    /// The appender declared the resource complete.
    Finished(End),
    /// The upload goes on in another request.
    Parked,
    /// The peer closed the WebSocket with this code, which the reply repeats.
    ClosedByPeer(u16),
    /// The peer broke the protocol: a close code and reason.
    ProtocolError(u16, String),
    /// The lease was revoked, the grant expired, a limit was exceeded, or the storage failed.
    Failed(Error),
    /// The server is shutting down.
    ShuttingDown,
    /// The connection is gone, so there is nobody to answer.
    Disconnected,
}

/// What a [`Source`] delivers.
pub(crate) enum Input {
    Data(ByteQueue),
    Ended(AppendEnd),
    /// A sign of life that carries no data.
    Nothing,
}

/// Where the bytes of an append come from: one implementation for each transport.
pub(crate) trait Source {
    /// The next input: all data that has arrived, up to about `most` bytes.
    ///
    /// Cancel safe.
    async fn input(&mut self, most: usize) -> Input;

    /// Whether message boundaries don't matter, so that more may be read while the storage is still busy with the
    /// previous append.
    fn is_stream(&self) -> bool;

    /// A token that is cancelled once nobody waits for the response, for sources that have one.
    fn abandoned(&self) -> Option<CancellationToken> {
        None
    }

    /// A counter that grows with each sign of life.
    fn activity(&self) -> u64;

    /// Whether the peer answers pings.
    fn answers_pings(&self) -> bool;

    /// Queues a ping, if the peer answers them.
    fn ping(&mut self);

    /// The queue for acknowledgements, if the peer takes any.
    fn acks(&mut self) -> Option<&mut ByteQueue>;

    /// Flushes the queued acknowledgements. ([`input`](Self::input) flushes them too, but doesn't bound the queue.)
    async fn send_acks(&mut self, limit: Duration) -> std::io::Result<()>;
}

/// The append loop: stores what the source delivers, until it ends or the server stops.
///
/// Not cancel safe: dropping it during an append poisons the lease.
pub(crate) async fn append_from<S: Source>(
    hub: &Hub,
    source: &mut S,
    lease: &mut Lease,
    limits: AppendLimits,
) -> AppendEnd {
    // Pinned outside the loop, so that each waiter registers once.
    let (revoked, abandoned) = (lease.revoked().clone(), source.abandoned());
    let abandoned = async {
        match &abandoned {
            Some(abandoned) => abandoned.cancelled().await,
            None => std::future::pending().await,
        }
    };
    let (mut revoked, mut stopping) = (pin!(revoked.cancelled()), pin!(hub.shutting_down.cancelled()));
    let mut abandoned = pin!(abandoned);
    let mut keepalive = match source.answers_pings() {
        false => Keepalive::new(limits.timeouts.silence, limits.timeouts.silence),
        true => Keepalive::new(limits.timeouts.ping, limits.timeouts.ping * 2),
    };
    let acknowledged = lease.resource().len();
    let mut acks = source.acks().map(|_| Acks { acknowledged, sync: None });
    let mut read_ahead = ReadAhead::new(hub);
    loop {
        if let Some(acks) = &mut acks {
            acks.start_sync(lease);
        }
        let most = batch_size(limits.room(lease.resource().len()));
        let input = tokio::select! {
            biased;
            () = &mut revoked => return failed(lease.revocation().into()),
            () = &mut stopping => break,
            () = &mut abandoned => break,
            () = expiry(limits.until) => return failed(expired()),
            synced = Acks::synced(&mut acks) => match (synced, &mut acks) {
                (Ok(len), Some(acks)) => {
                    let Some(out) = source.acks() else { continue };
                    if len > acks.acknowledged {
                        acks.acknowledged = len;
                        messages::queue(out, &messages::ack(len));
                    }
                    if out.len() > MAX_QUEUED_ACKS && source.send_acks(limits.timeouts.stall).await.is_err() {
                        return failed(ErrorKind::TimedOut.into());
                    }
                    continue;
                }
                (Err(error), _) => return failed(error),
                (Ok(_), None) => continue,
            },
            input = read_ahead.input(source, most) => input,
            () = keepalive.tick() => match keepalive.on_tick(source.activity()) {
                KeepaliveAction::GiveUp => return failed(ErrorKind::TimedOut.into()),
                KeepaliveAction::Ping => {
                    source.ping();
                    continue;
                }
            },
        };
        lease.give_way().await;
        let appended = match input {
            Input::Data(data) => {
                let data = data.into_all();
                let upto = lease.resource().len().saturating_add(total_len(&data));
                // The tail cache holds a batch; of a larger append, followers would have to read a part from the file.
                let limit = if lease.resource().is_followed() { BATCH } else { MAX_READ_AHEAD };
                let mut appending = pin!(append(lease, &limits, &data));
                let appended = match poll_fn(|cx| Poll::Ready(appending.as_mut().poll(cx))).await {
                    Poll::Ready(appended) => appended,
                    // Boxed, so that the loop doesn't carry this future's size: most appends complete at the first
                    // poll.
                    Poll::Pending => Box::pin(read_ahead.fill(source, appending, upto, limit, &limits)).await,
                };
                read_ahead.release_if_empty();
                appended
            }
            Input::Ended(end) => return end,
            Input::Nothing => Ok(()),
        };
        if let Err(error) = appended {
            return failed(error);
        }
    }
    // The server is stopping, or nobody waits for the response. What has arrived still counts, a finish above all, but
    // a sender that never pauses must not delay the shutdown.
    let stopped = Instant::now();
    loop {
        let late = stopped.elapsed() >= DRAIN_TIME && read_ahead.is_empty();
        let most = batch_size(limits.room(lease.resource().len()));
        let arrived = tokio::select! {
            biased;
            input = read_ahead.input(source, most) => Some(input),
            // Yields to the runtime once, since it may not have polled the socket yet.
            () = tokio::task::yield_now() => None,
        };
        match arrived {
            // An end still counts, however late: an append that took all the time may have been ahead of it.
            Some(Input::Data(_) | Input::Nothing) if late => break,
            None => break,
            Some(Input::Data(data)) => {
                if let Err(error) = append(lease, &limits, &data.into_all()).await {
                    return failed(error);
                }
            }
            Some(Input::Ended(end)) => return end,
            Some(Input::Nothing) => {}
        }
    }
    if hub.shutting_down.is_cancelled() { AppendEnd::ShuttingDown } else { AppendEnd::Disconnected }
}

/// The acknowledgements of a source that takes them.
struct Acks {
    /// The durable length that was last acknowledged.
    acknowledged: u64,
    /// The sync that is running.
    sync: Option<BoxFuture<'static, Result<u64>>>,
}

impl Acks {
    /// Starts a sync, unless one is running or there is nothing to acknowledge.
    fn start_sync(&mut self, lease: &Lease) {
        if self.sync.is_none() && self.acknowledged < lease.resource().len() {
            self.sync = Some(lease.sync());
        }
    }

    /// Waits for the running sync, which says how long the durable part is. Without one it waits forever.
    ///
    /// Cancel safe.
    async fn synced(acks: &mut Option<Self>) -> Result<u64> {
        let Some(acks) = acks else { return std::future::pending().await };
        let Some(sync) = &mut acks.sync else { return std::future::pending().await };
        let synced = sync.await;
        acks.sync = None;
        synced
    }
}

/// How many bytes to gather for one append. Where less than a batch fits into the resource, the messages that fit
/// become an append of their own, so that the one that doesn't is refused alone.
fn batch_size(room: u64) -> usize {
    usize::try_from(room).unwrap_or(usize::MAX).min(BATCH)
}

async fn append(lease: &mut Lease, limits: &AppendLimits, data: &[Bytes]) -> Result<()> {
    if total_len(data) > limits.room(lease.resource().len()) {
        return Err(ErrorKind::TooLarge.into());
    }
    lease.append(data).await.map(drop)
}

fn total_len(pieces: &[Bytes]) -> u64 {
    pieces.iter().map(|piece| piece.len() as u64).sum()
}

fn failed(error: Error) -> AppendEnd {
    if matches!(error.kind(), ErrorKind::Storage | ErrorKind::Full | ErrorKind::Overloaded) {
        tracing::error!(error = &error as &dyn std::error::Error, "appending failed");
    }
    AppendEnd::Failed(error)
}

/// What these parameters ask of the hub.
fn attach_request(parameters: &Parameters, principal: Option<&str>) -> AttachRequest {
    AttachRequest {
        how: if parameters.create { Open::Create } else { Open::Continue },
        owner: parameters.appender.as_ref().map(|id| Owner::new(id, principal)),
        offset: parameters.offset,
        life: parameters.life,
        finish: parameters.finish,
    }
}

/// A refusal that says how the resource stands, so that the client can go on from there.
async fn problem_with_current_stat(hub: &Arc<Hub>, key: &Key, error: &Error) -> Response<OwnBody> {
    problem_with_stat(error, hub.stat(key).await.ok().flatten())
}
