//! A request's body as a source of the append loop (protocol section 5).

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::Version;
use http_body::Body;
use tokio_util::sync::CancellationToken;

use super::{AppendEnd, AppendLimits, Input, Source, append_from};
use crate::body::{RequestBody, drain};
use crate::buffer::ByteQueue;
use crate::error::{Error, ErrorKind, Result};
use crate::hub::{Hub, Lease};
use crate::state::{End, Stat};

/// How a request's body is appended.
#[derive(Debug)]
pub(crate) struct BodyOptions {
    pub(crate) version: Version,
    pub(crate) on_end: OnEnd,
    /// The length that the resource must have when it is finished, if the request announced it.
    pub(crate) final_len: Option<u64>,
    /// Cancelled once nobody waits for the response.
    pub(crate) abandoned: CancellationToken,
}

/// What the clean end of a body means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnEnd {
    Finish,
    Park,
}

/// Appends a request's body. Everything is durable when this returns `Ok`.
pub(crate) async fn append(
    hub: Arc<Hub>,
    body: RequestBody,
    options: BodyOptions,
    mut lease: Lease,
    limits: AppendLimits,
) -> Result<Stat> {
    let BodyOptions { version, on_end, final_len, abandoned } = options;
    let http2 = version == Version::HTTP_2;
    let mut source = BodySource { body, activity: 0, end: None, exhausted: false, on_end, http2, abandoned };
    let end = append_from(&hub, &mut source, &mut lease, limits).await;
    if matches!(end, AppendEnd::Failed(_) | AppendEnd::ShuttingDown) && !source.exhausted {
        drain(source.body);
    }
    match end {
        AppendEnd::Finished(_) if final_len.is_some_and(|len| len != lease.resource().len()) => {
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

struct BodySource {
    body: RequestBody,
    /// Counts the frames that arrived.
    activity: u64,
    /// How the body ended, until the append loop has taken it.
    end: Option<AppendEnd>,
    /// The body has ended and must not be polled again.
    exhausted: bool,
    on_end: OnEnd,
    /// It came over HTTP/2: see [`is_complete`](Self::is_complete).
    http2: bool,
    abandoned: CancellationToken,
}

impl BodySource {
    /// Whether a body that has no more frames was sent as a whole.
    ///
    /// hyper takes a stream that was reset with NO_ERROR for one that has ended, which is right for a response (RFC
    /// 9113 section 8.1). Envoy resets like that when its own client is gone. `is_end_stream` is false then.
    fn is_complete(&self) -> bool {
        self.body.size_hint().lower() == 0 && (!self.http2 || self.body.is_end_stream())
    }

    fn set_end(&mut self, end: AppendEnd) {
        self.end = Some(end);
        self.exhausted = true;
    }
}

impl Source for BodySource {
    async fn input(&mut self, most: usize) -> Input {
        let mut gathered = ByteQueue::default();
        std::future::poll_fn(|cx| {
            // Cancel safe: never pending with something gathered.
            while self.end.is_none() && gathered.len() < most.max(1) {
                match Pin::new(&mut self.body).poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => {
                        self.activity += 1;
                        if let Ok(data) = frame.into_data() {
                            gathered.push(data);
                        }
                    }
                    Poll::Ready(Some(Err(error))) => {
                        tracing::debug!(error = &*error as &dyn std::error::Error, "a request body failed");
                        self.set_end(AppendEnd::Disconnected);
                    }
                    Poll::Ready(None) if !self.is_complete() => {
                        tracing::debug!("a request body ended before it was complete");
                        self.set_end(AppendEnd::Disconnected);
                    }
                    Poll::Ready(None) => {
                        self.set_end(match self.on_end {
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
        match self.end.take_if(|_| gathered.is_empty()) {
            Some(end) => Input::Ended(end),
            None => Input::Data(gathered),
        }
    }

    fn is_stream(&self) -> bool {
        true
    }

    fn abandoned(&self) -> Option<CancellationToken> {
        Some(self.abandoned.clone())
    }

    fn activity(&self) -> u64 {
        self.activity
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
