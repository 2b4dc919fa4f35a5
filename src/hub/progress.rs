//! How far a live resource has come, and the cache of its last bytes.

use bytes::Bytes;

use crate::buffer::ByteQueue;
use crate::error::ErrorKind;
use crate::state::State;

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

/// How much larger than at rest the tail may be while much is appended, for each follower …
const FOR_EACH: usize = 4;
/// … and for all.
const FOR_ALL: usize = 16;

/// The last bytes of a live resource. A cache: what it lacks is read from the storage.
///
/// While much is appended it holds more, for those who have not taken it yet: else each follower of messages that are larger
/// than the tail would read every one from the storage. (`load -- fanout --load 100,262144,60,20`: 134 and 144 CPU s per
/// million deliveries with 64 KiB alone, 84 and 100 with this, 57 and 65 the floor.) FollowerCounts that are further behind
/// read by themselves: sharing what they read, and taking turns piece by piece, were tried and gave nothing, as they are
/// too far apart by then.
#[derive(Debug)]
pub(super) struct Tail {
    start: u64,
    pieces: ByteQueue,
    /// What is kept when nobody appends.
    rest: usize,
    /// How much came since it was looked at.
    came: usize,
}

impl Tail {
    pub(super) fn new(start: u64, rest: usize) -> Self {
        Self { start, pieces: ByteQueue::default(), rest, came: 0 }
    }

    /// Adds what so many followers want.
    pub(super) fn push(&mut self, data: &[Bytes], followers: usize) {
        for data in data {
            self.came = self.came.saturating_add(data.len());
            self.pieces.push_ref(data);
        }
        let times = followers.saturating_mul(FOR_EACH).clamp(1, FOR_ALL);
        self.start += self.pieces.trim(self.rest.saturating_mul(times)) as u64;
    }

    /// Whether it holds more than it does at rest.
    pub(super) fn is_large(&self) -> bool {
        self.pieces.len() > self.rest
    }

    /// Gives back what is only kept while much is appended, once no more has come since the last call than it holds at rest;
    /// whether it has.
    pub(super) fn cool(&mut self) -> bool {
        if std::mem::take(&mut self.came) > self.rest {
            return false;
        }
        self.settle();
        true
    }

    /// Holds no more than at rest.
    pub(super) fn settle(&mut self) {
        self.start += self.pieces.trim(self.rest) as u64;
    }

    /// The bytes of a range, if all of them are here.
    pub(super) fn get(&self, from: u64, to: u64) -> Option<ByteQueue> {
        let start = usize::try_from(from.checked_sub(self.start)?).ok()?;
        let end = usize::try_from(to.checked_sub(self.start)?).ok().filter(|end| *end <= self.pieces.len())?;
        let mut found = ByteQueue::default();
        found.reserve(0, end - start);
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
            tail.push(std::slice::from_ref(&data), 0);
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

    #[test]
    fn what_is_kept_for_followers_goes_when_nothing_comes() {
        for (followers, most) in [(0, 10_000), (1, 40_000), (3, 120_000), (4, 160_000), (usize::MAX, 160_000)] {
            let mut tail = Tail::new(0, 10_000);
            assert!(!tail.is_large());
            for _ in 0..100 {
                tail.push(&[Bytes::from(vec![b'x'; 9_000])], followers);
            }
            let held = tail.pieces.len();
            assert!(held <= most && held + 9_000 > most, "{held} for {followers}");
            assert_eq!(tail.is_large(), followers > 0);
            assert!(!tail.cool() && tail.pieces.len() == held, "much came");
            // A little that comes all the time doesn't keep it.
            tail.push(&[Bytes::from_static(b"x")], followers);
            assert!(tail.cool() && !tail.is_large());
            assert_eq!(tail.start + tail.pieces.len() as u64, 900_001);
        }
    }
}
