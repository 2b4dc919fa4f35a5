//! A position in a resource that moves on as the resource grows. This is all that following is.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::{FollowerPermit, Hub, Phase, Progress, Resource};
use crate::buffer::ByteQueue;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::protocol::StartPosition;
use crate::state::{Life, Stat, State};
use crate::storage::{ByteStream, stream};

/// A follower's place.
pub(crate) struct Cursor {
    hub: Arc<Hub>,
    key: Key,
    life: Life,
    at: u64,
    progress: watch::Receiver<Progress>,
    /// For the tail, where this process has one.
    resource: Option<Arc<Resource>>,
    /// A read that goes on, and where it ends.
    reading: Option<(ByteStream, u64)>,
    /// As it was told last.
    phase: Phase,
    /// Counts it.
    _permit: Option<FollowerPermit>,
}

/// How much is read at once to find lines.
const LINES_READ: u64 = 64 * 1024;
/// How far back lines are looked for: each request may cost that much.
const LINES_BACK: u64 = 16 * 1024 * 1024;
/// What a follower takes from the tail at once: it holds that much where it stalls, and more where it is copied into events.
pub(super) const STEP: u64 = 128 * 1024;
/// How long a follower waits where the storage has no room for a read at the moment.
const ROOM: Duration = Duration::from_secs(1);

/// What a cursor found next.
#[derive(Debug)]
pub(crate) enum Step {
    Data(ByteQueue),
    /// The appender was lost, has parked the resource, or is back.
    State(State),
    /// That was all, and the resource is now in this state.
    End(State),
    /// That is all that can be had, but not the end.
    Cut(ErrorKind),
}

impl Cursor {
    pub(super) fn live(hub: &Arc<Hub>, resource: &Arc<Resource>) -> Self {
        let progress = resource.subscribe();
        let (key, life) = (resource.key.clone(), resource.life);
        Self::new(Arc::clone(hub), key, life, progress, Some(Arc::clone(resource)))
    }

    /// A cursor over a resource that nobody appends to.
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

    /// Moves to where the follower wants to begin.
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

    /// Where the last lines before `end` begin, or as many of them as lie within reach. What stands behind the last line
    /// feed is a line too; of a longer one than that, its end is all there is.
    async fn lines_before(&mut self, end: u64, lines: u64) -> Result<u64> {
        if lines == 0 {
            return Ok(end);
        }
        let reach = end.saturating_sub(LINES_BACK);
        let (mut found, mut upto) = (0, end);
        let mut first = None;
        while upto > reach {
            let from = upto.saturating_sub(LINES_READ).max(reach);
            let mut bytes = self.hub.storage.read(&self.key, self.life, from..upto).await?;
            let mut window = Vec::with_capacity((upto - from) as usize);
            while let Some(piece) = stream::next(&mut bytes).await {
                window.extend_from_slice(&piece?);
            }
            for at in
                window.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| from + at as u64)
            {
                // The line feed at the very end closes the last line, it doesn't begin one.
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
        Ok(if reach == 0 { 0 } else { first.unwrap_or(reach) })
    }

    /// Where it is.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// How the resource stands, as far as the cursor has told.
    pub(crate) fn state(&self) -> State {
        self.phase.state()
    }

    pub(crate) fn life(&self) -> Life {
        self.life
    }

    /// The committed length at this moment.
    pub(crate) fn len(&self) -> u64 {
        self.progress.borrow().len
    }

    /// Whether it has told all there is of a resource of which more may come.
    pub(crate) fn is_idle(&self) -> bool {
        self.reading.is_none() && self.is_idle_at(self.at)
    }

    /// The same of one that has come to this place without a read.
    pub(crate) fn is_idle_at(&self, at: u64) -> bool {
        let Progress { len, phase } = *self.progress.borrow();
        at == len && phase == self.phase && phase.is_open()
    }

    /// The resource, if it is this process that tells of its growth.
    pub(crate) fn resource(&self) -> Option<&Arc<Resource>> {
        self.resource.as_ref()
    }

    /// What lies before this was told by others.
    pub(crate) fn skip_to(&mut self, at: u64) {
        self.at = at;
    }

    /// The next bytes, as soon as there are any, or the end.
    ///
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
                            _ => "the storage gave other than what was asked for",
                        };
                        return Err(Error::storage(source));
                    }
                }
            }
            let Progress { len, phase } = *self.progress.borrow_and_update();
            if self.at < len {
                let upto = len.min(self.at.saturating_add(STEP));
                let cached = self.resource.as_ref().and_then(|resource| resource.held().tail.get(self.at, upto));
                if let Some(pieces) = cached {
                    self.at = upto;
                    return Ok(Step::Data(pieces));
                }
                match self.hub.storage.read(&self.key, self.life, self.at..len).await {
                    Ok(bytes) => self.reading = Some((bytes, len)),
                    // Out of file descriptors, say. It is no worse off than one that is slow.
                    Err(error) if error.kind() == ErrorKind::Overloaded => tokio::time::sleep(ROOM).await,
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
