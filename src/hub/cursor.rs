//! A follower's position in a resource, which moves on as the resource grows.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::progress::{Phase, Progress};
use super::{FollowerPermit, Hub, Resource};
use crate::buffer::ByteQueue;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::protocol::StartPosition;
use crate::state::{Life, Stat, State};
use crate::storage::{ByteStream, stream};

/// How many bytes are read at once to find lines.
const LINE_SCAN_CHUNK: u64 = 64 * 1024;
/// How far back from the end lines are looked for. Bounds what one request can cost.
const LINE_SCAN_LIMIT: u64 = 16 * 1024 * 1024;
/// How many bytes a follower takes from the tail at once. A stalled follower holds that much memory, and more where the bytes
/// are copied into events.
pub(super) const MAX_STEP: u64 = 128 * 1024;
/// How long a follower waits before it retries a read that the storage was too busy for.
const READ_RETRY_DELAY: Duration = Duration::from_secs(1);

/// A follower's position in a resource, and how it reads on from there.
pub(crate) struct Cursor {
    hub: Arc<Hub>,
    key: Key,
    life: Life,
    at: u64,
    progress: watch::Receiver<Progress>,
    /// The resource if it is open in this process, for its tail.
    resource: Option<Arc<Resource>>,
    /// A running read from the storage, and the offset at which it ends.
    reading: Option<(ByteStream, u64)>,
    /// The phase that was last returned as a step.
    phase: Phase,
    /// Counts this follower.
    _permit: Option<FollowerPermit>,
}

/// What a follower gets next.
#[derive(Debug)]
pub(crate) enum Step {
    Data(ByteQueue),
    /// The appender was lost, parked the resource, or is back.
    State(State),
    /// All bytes were returned, and the resource is closed in this state.
    End(State),
    /// The resource was cut off: no more bytes can be had, though its appender had not ended.
    Cut(ErrorKind),
}

impl Cursor {
    pub(super) fn open(hub: &Arc<Hub>, resource: &Arc<Resource>) -> Self {
        let progress = resource.subscribe();
        let (key, life) = (resource.key.clone(), resource.life);
        Self::new(Arc::clone(hub), key, life, progress, Some(Arc::clone(resource)))
    }

    /// A cursor on a closed resource.
    pub(super) fn closed(hub: &Arc<Hub>, key: &Key, stat: &Stat) -> Self {
        let (_, progress) = watch::channel(Progress { len: stat.len, phase: Phase::Ended(stat.state) });
        Self::new(Arc::clone(hub), key.clone(), stat.life, progress, None)
    }

    pub(super) fn new(
        hub: Arc<Hub>,
        key: Key,
        life: Life,
        progress: watch::Receiver<Progress>,
        resource: Option<Arc<Resource>>,
    ) -> Self {
        let phase = progress.borrow().phase;
        Self { hub, key, life, at: 0, progress, resource, reading: None, phase, _permit: None }
    }

    pub(super) fn with_permit(self, permit: FollowerPermit) -> Self {
        Self { _permit: Some(permit), ..self }
    }

    /// Moves to the position that the follower begins at.
    pub(crate) async fn start(&mut self, from: StartPosition) -> Result<()> {
        let len = self.len();
        self.at = match from {
            StartPosition::Beginning => 0,
            StartPosition::Offset(at) if at > len => return Err(ErrorKind::PastEnd.into()),
            StartPosition::Offset(at) => at,
            StartPosition::Tail(bytes) => len.saturating_sub(bytes),
            StartPosition::Lines(lines) => self.lines_before(len, lines).await?,
        };
        Ok(())
    }

    /// The offset at which the last `lines` lines before `end` begin, or as many of them as lie within
    /// [`LINE_SCAN_LIMIT`]. Bytes after the last line feed are a line too. A line longer than the limit is cut at its
    /// beginning.
    async fn lines_before(&mut self, end: u64, lines: u64) -> Result<u64> {
        if lines == 0 {
            return Ok(end);
        }
        let limit = end.saturating_sub(LINE_SCAN_LIMIT);
        let (mut found, mut upto) = (0, end);
        let mut first = None;
        while upto > limit {
            let from = upto.saturating_sub(LINE_SCAN_CHUNK).max(limit);
            let mut bytes = self.hub.storage.read(&self.key, self.life, from..upto).await?;
            let mut window = Vec::with_capacity((upto - from) as usize);
            while let Some(piece) = stream::next(&mut bytes).await {
                window.extend_from_slice(&piece?);
            }
            for at in
                window.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| from + at as u64)
            {
                // A line feed at the very end closes the last line; none begins after it.
                if at + 1 < end {
                    found += 1;
                    first = Some(at + 1);
                    if found == lines {
                        return Ok(at + 1);
                    }
                }
            }
            upto = from;
        }
        Ok(if limit == 0 { 0 } else { first.unwrap_or(limit) })
    }

    /// The position: the offset of the next byte.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// The resource's state, as of the last step.
    pub(crate) fn state(&self) -> State {
        self.phase.state()
    }

    pub(crate) fn life(&self) -> Life {
        self.life
    }

    /// The resource's committed length.
    pub(crate) fn len(&self) -> u64 {
        self.progress.borrow().len
    }

    /// Whether the follower has caught up with a resource that is still open.
    pub(crate) fn is_idle(&self) -> bool {
        self.reading.is_none() && self.is_idle_at(self.at)
    }

    /// As [`is_idle`](Self::is_idle), for a follower that others moved on to this position.
    pub(crate) fn is_idle_at(&self, at: u64) -> bool {
        let Progress { len, phase } = *self.progress.borrow();
        at == len && phase == self.phase && phase.is_open()
    }

    /// The resource, if it is open in this process.
    pub(crate) fn resource(&self) -> Option<&Arc<Resource>> {
        self.resource.as_ref()
    }

    /// Moves on past bytes that the idle group has written to the follower.
    pub(crate) fn skip_to(&mut self, at: u64) {
        self.at = at;
    }

    /// Waits for the next bytes, a change of state, or the end.
    ///
    /// # Cancel safety
    /// Cancel safe: no byte is lost.
    pub(crate) async fn next(&mut self) -> Result<Step> {
        loop {
            if let Some((bytes, end)) = &mut self.reading {
                let (next, end) = (stream::next(bytes).await, *end);
                match next {
                    Some(Ok(bytes)) if bytes.len() as u64 <= end - self.at => {
                        self.at += bytes.len() as u64;
                        let mut pieces = ByteQueue::default();
                        pieces.push(bytes);
                        return Ok(Step::Data(pieces));
                    }
                    None if self.at == end => self.reading = None,
                    failed => {
                        self.reading = None;
                        let source = match failed {
                            Some(Err(error)) => return Err(error),
                            _ => "the storage returned more or fewer bytes than were requested",
                        };
                        return Err(Error::storage(source));
                    }
                }
            }
            let Progress { len, phase } = *self.progress.borrow_and_update();
            if self.at < len {
                let upto = len.min(self.at.saturating_add(MAX_STEP));
                let cached = self.resource.as_ref().and_then(|resource| resource.lock().tail.get(self.at, upto));
                if let Some(pieces) = cached {
                    self.at = upto;
                    return Ok(Step::Data(pieces));
                }
                match self.hub.storage.read(&self.key, self.life, self.at..len).await {
                    Ok(bytes) => self.reading = Some((bytes, len)),
                    // Out of file descriptors, for example. To the follower this is no worse than a slow read.
                    Err(error) if error.kind() == ErrorKind::Overloaded => tokio::time::sleep(READ_RETRY_DELAY).await,
                    Err(error) => return Err(error),
                }
                continue;
            }
            let before = std::mem::replace(&mut self.phase, phase);
            match phase {
                phase if phase.is_open() && before != phase => return Ok(Step::State(phase.state())),
                Phase::Live | Phase::Lost | Phase::Parked => {}
                Phase::Ended(state) => return Ok(Step::End(state)),
                Phase::Cut(kind) => return Ok(Step::Cut(kind)),
            }
            if self.progress.changed().await.is_err() {
                return Ok(Step::Cut(ErrorKind::Storage));
            }
        }
    }
}
