//! Reading ahead: what a stream gives while the storage still has what it gave before.

use std::future::Future;
use std::pin::Pin;

use super::{AppendLimits, BATCH, Input, Source, batch};
use crate::budget::Reservation;
use crate::buffer::ByteQueue;
use crate::error::Result;
use crate::hub::Hub;

/// As much of a stream may be read ahead while the storage still has what came before, and is appended in one go after that:
/// the storage waits for a disk then, and a call in the pool of threads that block costs more than what it writes.
pub(super) const AHEAD: usize = 4 * BATCH;

/// What a stream gave while the storage still had what it gave before.
pub(super) struct ReadAhead {
    data: ByteQueue,
    /// What came behind that.
    then: Option<Input>,
    /// The memory for it and for what is being appended, in a budget that all appenders share.
    share: Reservation,
}

impl ReadAhead {
    pub(super) fn new(hub: &Hub) -> Self {
        Self { data: ByteQueue::default(), then: None, share: hub.read_ahead_budget.reservation() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.data.is_empty() && self.then.is_none()
    }

    /// What comes next. Cancel safe.
    pub(super) async fn input<S: Source>(&mut self, source: &mut S, most: usize) -> Input {
        if !self.data.is_empty() {
            return Input::Data(std::mem::take(&mut self.data));
        }
        match self.then.take() {
            Some(input) => input,
            None => source.input(most).await,
        }
    }

    /// Reads on until what came before that, up to this length of the resource, is appended.
    pub(super) async fn read_on<S: Source>(
        &mut self,
        source: &mut S,
        mut appending: Pin<&mut impl Future<Output = Result<()>>>,
        upto: u64,
        limit: usize,
        limits: &AppendLimits,
    ) -> Result<()> {
        loop {
            let room = limits.room(upto.saturating_add(self.data.len() as u64));
            if !source.is_stream()
                || self.then.is_some()
                || self.data.len() > limit / 4 * 3
                || !self.share.grow_to(2 * limit)
            {
                return appending.await;
            }
            let input = tokio::select! {
                biased;
                appended = &mut appending => return appended,
                input = source.input(batch(room).min(limit - self.data.len())) => input,
            };
            match input {
                // What is too much for the resource is refused by itself.
                Input::Data(mut pieces) if pieces.len() as u64 <= room => self.data.append(&mut pieces),
                Input::Nothing => {}
                other => self.then = Some(other),
            }
        }
    }

    /// Gives memory back if nothing is in it.
    pub(super) fn settle(&mut self) {
        if self.data.is_empty() {
            self.share.clear();
        }
    }
}
