//! Reading ahead: taking more from a stream while the storage is still busy with the previous append.

use std::future::Future;
use std::pin::Pin;

use super::{AppendLimits, BATCH, Input, Source, batch_size};
use crate::budget::Reservation;
use crate::buffer::ByteQueue;
use crate::error::Result;
use crate::hub::Hub;

/// How many bytes are read ahead at most, to be appended in one go. The storage is waiting for a disk then, and a call
/// on the pool of blocking threads costs more than the write itself.
pub(super) const MAX_READ_AHEAD: usize = 4 * BATCH;

/// Input that was read while the storage was busy.
pub(super) struct ReadAhead {
    data: ByteQueue,
    /// What followed the data: an end, or more data than fits into the resource. Nothing is read behind it.
    after: Option<Input>,
    /// Memory for the data and for what is being appended, from a budget that all appenders share.
    memory: Reservation,
}

impl ReadAhead {
    pub(super) fn new(hub: &Hub) -> Self {
        Self { data: ByteQueue::default(), after: None, memory: hub.read_ahead_budget.reservation() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.data.is_empty() && self.after.is_none()
    }

    /// The next input: what was read ahead, else from the source.
    ///
    /// Cancel safe.
    pub(super) async fn input<S: Source>(&mut self, source: &mut S, most: usize) -> Input {
        if !self.data.is_empty() {
            return Input::Data(std::mem::take(&mut self.data));
        }
        match self.after.take() {
            Some(input) => input,
            None => source.input(most).await,
        }
    }

    /// Reads ahead until `appending` is done, which makes the resource `upto` bytes long.
    pub(super) async fn fill<S: Source>(
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
                || self.after.is_some()
                || self.data.len() > limit / 4 * 3
                || !self.memory.grow_to(2 * limit)
            {
                return appending.await;
            }
            let input = tokio::select! {
                biased;
                appended = &mut appending => return appended,
                input = source.input(batch_size(room).min(limit - self.data.len())) => input,
            };
            match input {
                // Data that is too much for the resource stays apart, so that it is refused alone.
                Input::Data(mut pieces) if pieces.len() as u64 <= room => self.data.append(&mut pieces),
                Input::Nothing => {}
                other => self.after = Some(other),
            }
        }
    }

    /// Gives the memory back if no data is left.
    pub(super) fn release_if_empty(&mut self) {
        if self.data.is_empty() {
            self.memory.clear();
        }
    }
}
