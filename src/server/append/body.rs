//! A request's body as a source of the append loop (protocol section 5).

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::Version;
use http_body::Body;
use tokio_util::sync::CancellationToken;

use super::{AppendEnd, AppendLimits, Input, Source, appending};
use crate::body::{RequestBody, drain};
use crate::buffer::ByteQueue;
use crate::error::{Error, ErrorKind, Result};
use crate::hub::{Hub, Lease};
use crate::state::{End, Stat};

/// A request's body.
struct BodySource {
    body: RequestBody,
    heard: u64,
    ended: Option<AppendEnd>,
    /// It has given its end, and must not be asked again.
    over: bool,
    /// What its clean end means.
    then: OnEnd,
    /// It came over HTTP/2: see [`is_whole`](Self::is_whole).
    http2: bool,
    left: CancellationToken,
}

/// How a request's body is to be taken.
#[derive(Debug)]
pub(crate) struct BodyOptions {
    pub(crate) version: Version,
    pub(crate) then: OnEnd,
    /// How long the resource has to be when it is finished, if that was told.
    pub(crate) length: Option<u64>,
    /// Cancelled when nobody waits for the answer any more.
    pub(crate) left: CancellationToken,
}

impl BodySource {
    /// Whether a body that gives no more was all that was meant.
    ///
    /// hyper takes a stream that was reset without an error for one that has ended, as is right for an answer (RFC 9113
    /// section 8.1). That is how Envoy resets when its own client has gone. But then it doesn't say that the stream
    /// ended.
    fn is_whole(&self) -> bool {
        self.body.size_hint().lower() == 0 && (!self.http2 || self.body.is_end_stream())
    }

    fn end(&mut self, ended: AppendEnd) {
        self.ended = Some(ended);
        self.over = true;
    }
}

/// What the end of a request's body means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnEnd {
    Finish,
    Park,
}

impl Source for BodySource {
    async fn input(&mut self, most: usize) -> Input {
        let mut gathered = ByteQueue::default();
        std::future::poll_fn(|cx| {
            // Nothing gathered is ever kept over a wait.
            while self.ended.is_none() && gathered.len() < most.max(1) {
                match Pin::new(&mut self.body).poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => {
                        self.heard += 1;
                        if let Ok(data) = frame.into_data() {
                            gathered.push(data);
                        }
                    }
                    Poll::Ready(Some(Err(error))) => {
                        tracing::debug!(error = &*error as &dyn std::error::Error, "a body was cut");
                        self.end(AppendEnd::Disconnected);
                    }
                    Poll::Ready(None) if !self.is_whole() => {
                        tracing::debug!("a body ended without saying that this was all");
                        self.end(AppendEnd::Disconnected);
                    }
                    Poll::Ready(None) => {
                        self.end(match self.then {
                            OnEnd::Finish => AppendEnd::Finished(End::Finished),
                            OnEnd::Park => AppendEnd::Parked,
                        });
                    }
                    Poll::Pending if gathered.is_empty() => return Poll::Pending,
                    Poll::Pending => break,
                }
            }
            Poll::Ready(())
        })
        .await;
        match self.ended.take_if(|_| gathered.is_empty()) {
            Some(ended) => Input::Ended(ended),
            None => Input::Data(gathered),
        }
    }

    fn is_stream(&self) -> bool {
        true
    }

    fn left(&self) -> Option<CancellationToken> {
        Some(self.left.clone())
    }

    fn activity(&self) -> u64 {
        self.heard
    }

    fn answers_pings(&self) -> bool {
        false
    }

    fn ping(&mut self) {}

    fn acks(&mut self) -> Option<&mut ByteQueue> {
        None
    }

    async fn send_acks(&mut self, _: Duration) -> std::io::Result<()> {
        Ok(())
    }
}

/// Appends a request's body. Everything is durable when this returns.
pub(crate) async fn append(
    hub: Arc<Hub>,
    body: RequestBody,
    taking: BodyOptions,
    mut lease: Lease,
    limits: AppendLimits,
) -> Result<Stat> {
    let BodyOptions { version, then, length, left } = taking;
    let mut source =
        BodySource { body, heard: 0, ended: None, over: false, then, http2: version == Version::HTTP_2, left };
    let ended = appending(&hub, &mut source, &mut lease, limits).await;
    if matches!(ended, AppendEnd::Failed(_) | AppendEnd::ShuttingDown) && !source.over {
        drain(source.body);
    }
    match ended {
        AppendEnd::Finished(_) if length.is_some_and(|length| length != lease.resource().len()) => {
            Err(Error::new(ErrorKind::BadRequest)
                .with_detail("the resource is not as long as its `Upload-Length` says"))
        }
        AppendEnd::Finished(end) => lease.finish(end).await,
        AppendEnd::Parked => lease.park().await,
        AppendEnd::Failed(error) => Err(error),
        AppendEnd::ShuttingDown => {
            lease.stop().await;
            Err(ErrorKind::ShuttingDown.into())
        }
        AppendEnd::Disconnected | AppendEnd::ClosedByPeer(_) | AppendEnd::ProtocolError(..) => {
            Err(Error::new(ErrorKind::BadRequest).with_detail("the body was cut"))
        }
    }
}
