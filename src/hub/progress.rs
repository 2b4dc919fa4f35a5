//! How far a live resource has come, and the cache of its last bytes.

use bytes::Bytes;

use crate::error::ErrorKind;
use crate::storage::State;
use crate::wire::pieces::Pieces;

/// The one number that followers wait for, and how the resource stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) len: u64,
    pub(crate) phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// An appender is attached.
    Live,
    /// The appender was lost, and may come back.
    Lost,
    /// The appender has left it open, and will come back.
    Parked,
    /// The appender ended, this way.
    Ended(State),
    /// Nobody knows what was to come: the storage failed, the resource was deleted, or the server stops.
    Cut(ErrorKind),
}

impl Phase {
    /// Whether more may come.
    pub(crate) fn is_open(self) -> bool {
        matches!(self, Self::Live | Self::Lost | Self::Parked)
    }

    /// As it is told; what was cut is as if its appender had been lost.
    pub(crate) fn state(self) -> State {
        match self {
            Self::Live => State::Live,
            Self::Lost | Self::Cut(_) => State::Lost,
            Self::Parked => State::Parked,
            Self::Ended(state) => state,
        }
    }
}

/// The last bytes of a live resource. A cache: what it lacks is read from the storage.
#[derive(Debug)]
pub(super) struct Tail {
    start: u64,
    pieces: Pieces,
    cap: usize,
}

impl Tail {
    pub(super) fn new(start: u64, cap: usize) -> Self {
        Self { start, pieces: Pieces::default(), cap }
    }

    pub(super) fn push(&mut self, data: &[Bytes]) {
        for data in data {
            self.pieces.push(data.clone());
        }
        self.start += self.pieces.trim(self.cap) as u64;
    }

    /// The bytes of a range, if all of them are here.
    pub(super) fn get(&self, from: u64, to: u64) -> Option<Pieces> {
        let start = usize::try_from(from.checked_sub(self.start)?).ok()?;
        let end = usize::try_from(to.checked_sub(self.start)?).ok().filter(|end| *end <= self.pieces.len())?;
        let mut found = Pieces::default();
        self.pieces.copy_range(start, end, &mut found);
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_gives_exact_ranges_or_nothing() {
        let mut tail = Tail::new(100, 50_000);
        let mut all = vec![0; 100];
        for i in 0..400u32 {
            let data = Bytes::from(vec![i as u8; (i as usize * 97) % 20_000]);
            all.extend_from_slice(&data);
            tail.push(std::slice::from_ref(&data));
            let len = all.len() as u64;
            for back in [0, 1, 700, 9_000, 30_000, 49_000, 60_000] {
                let from = len.saturating_sub(back);
                for to in [from, (from + len) / 2, len] {
                    if let Some(mut found) = tail.get(from, to) {
                        assert!(found.take_all().concat() == all[from as usize..to as usize], "{from}..{to} of {len}");
                    } else {
                        assert!(back > 20_000 || from < 100, "{from}..{to} of {len} should be cached");
                    }
                }
            }
            assert!(tail.pieces.len() <= 50_000);
            assert!(tail.get(len, len + 1).is_none());
        }
    }
}
