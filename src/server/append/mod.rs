//! Appending: the loop that stores what a [`Source`] gives, over a WebSocket (protocol sections 3 and 4) or from the body
//! of a request (section 5).

mod ahead;
pub(crate) mod body;
#[cfg(all(test, unix))]
mod tests;
pub(crate) mod upload;
pub(crate) mod websocket;

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_core::future::BoxFuture;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::ahead::{AHEAD, ReadAhead};
use super::checks::{expired, expiry};
use super::config::Times;
use crate::buffer::ByteQueue;
use crate::error::{Error, ErrorKind, Result};
use crate::hub::{Hub, Lease};
use crate::protocol::messages;
use crate::state::End;
use crate::websocket::keepalive::{Keepalive, KeepaliveAction};

/// At most about as many bytes are read into one append: one write, one wake.
const BATCH: usize = 256 * 1024;

/// How long what a sender has sent by the time of a shutdown may take to be stored.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A peer that takes no acknowledgements is not listened to once so many bytes of them wait.
const MAX_UNTOLD: usize = 4 * 1024;

/// What an appender may do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AppendLimits {
    pub(crate) times: Times,
    pub(crate) max_message: u64,
    pub(crate) max_resource: u64,
    pub(crate) until: Option<Instant>,
}

impl AppendLimits {
    /// How much may be added to a resource of this length.
    fn room(self, len: u64) -> u64 {
        self.max_resource.saturating_sub(len)
    }
}

/// How an appender ended.
pub(crate) enum AppendEnd {
    /// The appender says that this was all.
    Finished(End),
    /// The appender says that more will come in another request.
    Parked,
    /// Answer its close with the same code.
    ClosedByPeer(u16),
    /// It broke the protocol.
    ProtocolError(u16, String),
    /// It can't go on.
    Failed(Error),
    /// The server stops.
    ShuttingDown,
    /// There is nobody to tell.
    Disconnected,
}

/// Where an appender's bytes come from.
pub(crate) trait Source {
    /// What it says next; as much of it at once as has arrived, but not much more than `most` bytes.
    ///
    /// Cancel safe.
    async fn input(&mut self, most: usize) -> Input;

    /// Whether what it gives is a stream of bytes, of which more can be asked for while the storage still has what it gave
    /// before.
    fn is_stream(&self) -> bool;

    /// Cancelled when nobody waits for its answer any more, if anybody ever does.
    fn left(&self) -> Option<CancellationToken> {
        None
    }

    /// Counts its signs of life.
    fn activity(&self) -> u64;

    /// Whether it can be asked for a sign of life.
    fn answers_pings(&self) -> bool;

    /// Asks for one, if it can be asked.
    fn ping(&mut self);

    /// Where acknowledgements go, if it takes any.
    fn acks(&mut self) -> Option<&mut ByteQueue>;

    /// Sends acknowledgements that wait. (They go by themselves with the next input, but not without bound.)
    async fn send_acks(&mut self, limit: Duration) -> std::io::Result<()>;
}

/// What has been made durable, and what the appender knows of it.
struct Acks {
    told: u64,
    syncing: Option<BoxFuture<'static, Result<u64>>>,
}

impl Acks {
    /// Begins a sync if there is something to sync and none runs.
    fn begin(&mut self, lease: &Lease) {
        if self.syncing.is_none() && self.told < lease.resource().len() {
            self.syncing = Some(lease.sync());
        }
    }

    /// The length up to which everything is durable, once the sync that runs is done.
    ///
    /// Cancel safe.
    async fn next(acks: &mut Option<Self>) -> Result<u64> {
        let Some(acks) = acks else { return std::future::pending().await };
        let Some(syncing) = &mut acks.syncing else { return std::future::pending().await };
        let synced = syncing.await;
        acks.syncing = None;
        synced
    }
}

pub(crate) async fn appending<S: Source>(
    hub: &Hub,
    source: &mut S,
    lease: &mut Lease,
    limits: AppendLimits,
) -> AppendEnd {
    // Polled again and again: who waits for each of them is known but once.
    let (lost, left) = (lease.revoked().clone(), source.left());
    let left = async {
        match &left {
            Some(left) => left.cancelled().await,
            None => std::future::pending().await,
        }
    };
    let (mut over, mut stops, mut left) = (pin!(lost.cancelled()), pin!(hub.shutting_down.cancelled()), pin!(left));
    let mut keepalive = match source.answers_pings() {
        false => Keepalive::new(limits.times.silence, limits.times.silence),
        true => Keepalive::new(limits.times.ping, limits.times.ping * 2),
    };
    let told = lease.resource().len();
    let mut acks = source.acks().map(|_| Acks { told, syncing: None });
    let mut ahead = ReadAhead::new(hub);
    loop {
        if let Some(acks) = &mut acks {
            acks.begin(lease);
        }
        let most = batch(limits.room(lease.resource().len()));
        let input = tokio::select! {
            biased;
            () = &mut over => return failed(lease.revocation().into()),
            () = &mut stops => break,
            () = &mut left => break,
            () = expiry(limits.until) => return failed(expired()),
            synced = Acks::next(&mut acks) => match (synced, &mut acks) {
                (Ok(len), Some(acks)) => {
                    let Some(out) = source.acks() else { continue };
                    if len > acks.told {
                        acks.told = len;
                        messages::queue(out, &messages::ack(len));
                    }
                    if out.len() > MAX_UNTOLD && source.send_acks(limits.times.stall).await.is_err() {
                        return failed(ErrorKind::TimedOut.into());
                    }
                    continue;
                }
                (Err(error), _) => return failed(error),
                (Ok(_), None) => continue,
            },
            input = ahead.input(source, most) => input,
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
                let upto = lease.resource().len().saturating_add(len(&data));
                // Followers find a batch in the tail, more than that they would read from the file.
                let limit = if lease.resource().is_followed() { BATCH } else { AHEAD };
                let mut appending = pin!(append(lease, &limits, &data));
                let appended = match poll_fn(|cx| Poll::Ready(appending.as_mut().poll(cx))).await {
                    Poll::Ready(appended) => appended,
                    // In a box: most have no use for the room.
                    Poll::Pending => Box::pin(ahead.read_on(source, appending, upto, limit, &limits)).await,
                };
                ahead.settle();
                appended
            }
            Input::Ended(ended) => return ended,
            Input::Nothing => Ok(()),
        };
        if let Err(error) = appended {
            return failed(error);
        }
    }
    // The server stops, or nobody waits for an answer any more. What has arrived by now still counts, a finish above all;
    // but a sender that doesn't pause must not hold the server up.
    let stopped = Instant::now();
    loop {
        let late = stopped.elapsed() >= LAST_WORDS && ahead.is_empty();
        let most = batch(limits.room(lease.resource().len()));
        let arrived = tokio::select! {
            biased;
            input = ahead.input(source, most) => Some(input),
            // Once around the runtime, for it may not have looked at the socket yet.
            () = tokio::task::yield_now() => None,
        };
        match arrived {
            // An end may have waited behind an append that took all the time.
            Some(Input::Data(_) | Input::Nothing) if late => break,
            None => break,
            Some(Input::Data(data)) => {
                if let Err(error) = append(lease, &limits, &data.into_all()).await {
                    return failed(error);
                }
            }
            Some(Input::Ended(ended)) => return ended,
            Some(Input::Nothing) => {}
        }
    }
    if hub.shutting_down.is_cancelled() { AppendEnd::ShuttingDown } else { AppendEnd::Disconnected }
}

/// What an appender did.
pub(crate) enum Input {
    Data(ByteQueue),
    Ended(AppendEnd),
    Nothing,
}

/// How much may be gathered where there is so much room: a batch ends before the message that is too much for the resource.
fn batch(room: u64) -> usize {
    usize::try_from(room).unwrap_or(usize::MAX).min(BATCH)
}

async fn append(lease: &mut Lease, limits: &AppendLimits, data: &[Bytes]) -> Result<()> {
    if len(data) > limits.room(lease.resource().len()) {
        return Err(ErrorKind::TooLarge.into());
    }
    lease.append(data).await.map(drop)
}

fn len(data: &[Bytes]) -> u64 {
    data.iter().map(|data| data.len() as u64).sum()
}

fn failed(error: Error) -> AppendEnd {
    if matches!(error.kind(), ErrorKind::Storage | ErrorKind::Full | ErrorKind::Overloaded) {
        tracing::error!(error = &error as &dyn std::error::Error, "appending failed");
    }
    AppendEnd::Failed(error)
}
