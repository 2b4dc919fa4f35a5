//! The cache of an open resource's last bytes.

use bytes::Bytes;

use crate::buffer::ByteQueue;

/// While a resource grows quickly, its tail may grow by this many base sizes for each follower …
const GROWTH_PER_FOLLOWER: usize = 4;
/// … up to this many altogether.
const MAX_GROWTH: usize = 16;

/// The last bytes of an open resource. A cache: bytes that it lacks are read from the storage.
///
/// While much is appended the tail grows beyond its base size, for followers that are a little behind: otherwise each
/// follower of messages larger than the tail would read every message from the storage. (`load -- fanout --load
/// 100,262144,60,20`: 134 and 144 CPU s per million deliveries with 64 KiB alone, 84 and 100 with a growing tail; 57 and 65
/// are the floor.) Followers that are further behind read from the storage, each by itself. Sharing those reads and
/// scheduling the followers piece by piece were tried and gained nothing: by then the followers are too far apart.
#[derive(Debug)]
pub(super) struct Tail {
    /// The offset of the first cached byte.
    start: u64,
    bytes: ByteQueue,
    /// How many bytes are kept while little is appended.
    base_size: usize,
    /// How many bytes were pushed since the last [`trim_if_quiet`](Self::trim_if_quiet).
    recently_pushed: usize,
}

impl Tail {
    /// An empty tail at the end of a resource.
    pub(super) fn new(start: u64, base_size: usize) -> Self {
        Self { start, bytes: ByteQueue::default(), base_size, recently_pushed: 0 }
    }

    /// Adds appended bytes. The number of followers decides how many of the older ones are kept.
    pub(super) fn push(&mut self, data: &[Bytes], followers: usize) {
        for data in data {
            self.recently_pushed = self.recently_pushed.saturating_add(data.len());
            self.bytes.push_ref(data);
        }
        let growth = followers.saturating_mul(GROWTH_PER_FOLLOWER).clamp(1, MAX_GROWTH);
        self.start += self.bytes.trim(self.base_size.saturating_mul(growth)) as u64;
    }

    /// Whether the tail holds more than its base size.
    pub(super) fn is_enlarged(&self) -> bool {
        self.bytes.len() > self.base_size
    }

    /// Trims the tail unless more than its base size was pushed since the last call. Returns whether it was trimmed.
    pub(super) fn trim_if_quiet(&mut self) -> bool {
        if std::mem::take(&mut self.recently_pushed) > self.base_size {
            return false;
        }
        self.trim();
        true
    }

    /// Trims the tail to its base size.
    pub(super) fn trim(&mut self) {
        self.start += self.bytes.trim(self.base_size) as u64;
    }

    /// The bytes of a range, if all of them are cached.
    pub(super) fn get(&self, from: u64, to: u64) -> Option<ByteQueue> {
        let start = usize::try_from(from.checked_sub(self.start)?).ok()?;
        let end = usize::try_from(to.checked_sub(self.start)?).ok().filter(|end| *end <= self.bytes.len())?;
        let mut found = ByteQueue::default();
        found.reserve(0, end - start);
        self.bytes.copy_range(start, end, &mut found);
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn get_returns_exact_ranges_or_nothing() {
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
            assert!(tail.bytes.len() <= 50_000);
            assert!(tail.get(len, len + 1).is_none());
        }
    }

    #[test]
    fn an_enlarged_tail_is_trimmed_once_little_is_appended() {
        for (followers, most) in [(0, 10_000), (1, 40_000), (3, 120_000), (4, 160_000), (usize::MAX, 160_000)] {
            let mut tail = Tail::new(0, 10_000);
            assert!(!tail.is_enlarged());
            for _ in 0..100 {
                tail.push(&[Bytes::from(vec![b'x'; 9_000])], followers);
            }
            let held = tail.bytes.len();
            assert!(held <= most && held + 9_000 > most, "{held} for {followers}");
            assert_eq!(tail.is_enlarged(), followers > 0);
            assert!(!tail.trim_if_quiet() && tail.bytes.len() == held, "much was pushed");
            // A steady trickle doesn't keep the tail enlarged.
            tail.push(&[Bytes::from_static(b"x")], followers);
            assert!(tail.trim_if_quiet() && !tail.is_enlarged());
            assert_eq!(tail.start + tail.bytes.len() as u64, 900_001);
        }
    }
}
