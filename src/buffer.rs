//! A queue of bytes in few segments, ready for one vectored write.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};
use smallvec::{SmallVec, smallvec};

/// Segments smaller than this are copied together, in bytes: that is cheaper than a slice each, and a small slice can't
/// keep a large buffer alive.
const SMALL: usize = 8 * 1024;
/// The approximate size up to which small segments are copied together, in bytes.
const COALESCE: usize = 32 * 1024;

/// The contents of a queue. Most often this is one segment, which is stored inline.
pub(crate) type Segments = SmallVec<[Bytes; 1]>;

/// A queue of bytes that copies small segments and shares large ones.
#[derive(Debug, Default)]
pub(crate) struct ByteQueue {
    /// The first frozen segment; empty if there is none. It is apart from the others so that a queue of one segment
    /// needs no allocation.
    first: Bytes,
    /// The other frozen segments.
    rest: VecDeque<Bytes>,
    /// The last segment, to which small ones are still added.
    tail: BytesMut,
    len: usize,
}

impl ByteQueue {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a segment.
    pub(crate) fn push(&mut self, segment: Bytes) {
        if segment.len() < SMALL {
            self.push_small(&segment);
        } else {
            self.push_shared(segment);
        }
    }

    /// Like [`push`](Self::push), but takes a reference, so that only a shared segment is cloned.
    pub(crate) fn push_ref(&mut self, segment: &Bytes) {
        if segment.len() < SMALL {
            self.push_small(segment);
        } else {
            self.push_shared(segment.clone());
        }
    }

    /// Adds a copy of these bytes, which keeps no other buffer alive.
    pub(crate) fn push_small(&mut self, bytes: &[u8]) {
        if self.tail.len() >= COALESCE {
            // `split` leaves the rest of the capacity; beyond it the buffer grows to its former size again.
            let tail = self.tail.split().freeze();
            self.push_frozen(tail);
        }
        self.len += bytes.len();
        self.tail.extend_from_slice(bytes);
    }

    /// Adds a segment without a copy, which keeps its whole buffer alive.
    pub(crate) fn push_shared(&mut self, segment: Bytes) {
        self.len += segment.len();
        self.freeze_tail();
        self.push_frozen(segment);
    }

    /// Reserves space for a header and for the payload that is pushed behind it, so that both take one allocation if
    /// the payload is small. Lengths are in bytes.
    pub(crate) fn reserve(&mut self, header: usize, payload: usize) {
        let additional = header + if payload < SMALL { payload } else { 0 };
        if self.tail.capacity() == 0 {
            // Exactly that many: `reserve` would round a small number up.
            self.tail = BytesMut::with_capacity(additional);
        }
        self.tail.reserve(additional);
    }

    /// Adds the bytes from `start` to `end` to another queue.
    pub(crate) fn copy_range(&self, mut start: usize, mut end: usize, into: &mut ByteQueue) {
        for segment in self.frozen() {
            if end == 0 {
                return;
            }
            let (from, to) = (start.min(segment.len()), end.min(segment.len()));
            if to - from >= SMALL {
                into.push_shared(segment.slice(from..to));
            } else if from < to {
                into.push_small(&segment[from..to]);
            }
            start -= from;
            end -= to;
        }
        if start < end {
            into.push_small(&self.tail[start..end]);
        }
    }

    /// Drops whole segments from the front until at most `max_len` bytes are left. Returns the number of dropped bytes.
    pub(crate) fn trim(&mut self, max_len: usize) -> usize {
        let mut dropped = 0;
        while self.len > max_len {
            let segment = match self.pop_first() {
                Some(segment) => segment.len(),
                None => std::mem::take(&mut self.tail).len(),
            };
            self.len -= segment;
            dropped += segment;
        }
        dropped
    }

    /// Appends through `write`, which may only append to its buffer.
    pub(crate) fn write_with(&mut self, write: impl FnOnce(&mut BytesMut)) {
        let before = self.tail.len();
        write(&mut self.tail);
        self.len += self.tail.len() - before;
    }

    /// Moves another queue's contents to the end of this one.
    pub(crate) fn append(&mut self, other: &mut ByteQueue) {
        for segment in other.take_all() {
            self.push(segment);
        }
    }

    /// Takes the contents out.
    pub(crate) fn take_all(&mut self) -> Segments {
        self.freeze_tail();
        self.len = 0;
        match (std::mem::take(&mut self.first), std::mem::take(&mut self.rest)) {
            (first, _) if first.is_empty() => Segments::new(),
            (first, rest) if rest.is_empty() => smallvec![first],
            (first, mut rest) => {
                rest.push_front(first);
                Segments::from_vec(rest.into())
            }
        }
    }

    /// The contents.
    pub(crate) fn into_all(mut self) -> Segments {
        self.take_all()
    }

    fn frozen(&self) -> impl Iterator<Item = &Bytes> {
        (!self.first.is_empty()).then_some(&self.first).into_iter().chain(&self.rest)
    }

    fn push_frozen(&mut self, segment: Bytes) {
        if self.first.is_empty() {
            self.first = segment;
        } else if !segment.is_empty() {
            self.rest.push_back(segment);
        }
    }

    fn pop_first(&mut self) -> Option<Bytes> {
        let next = self.rest.pop_front().unwrap_or_default();
        Some(std::mem::replace(&mut self.first, next)).filter(|first| !first.is_empty())
    }

    /// Ends the last segment, so that nothing is added to it any more.
    fn freeze_tail(&mut self) {
        if self.tail.is_empty() {
            return;
        }
        // Taking the whole buffer avoids the reference-count allocation of `split`.
        let whole = self.tail.len() == self.tail.capacity();
        let tail = if whole { std::mem::take(&mut self.tail) } else { self.tail.split() };
        self.push_frozen(tail.freeze());
    }
}

impl Buf for ByteQueue {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        if self.first.is_empty() { &self.tail } else { &self.first }
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.len, "advanced past the end");
        self.len -= count;
        while !self.first.is_empty() {
            if count < self.first.len() {
                self.first.advance(count);
                return;
            }
            count -= self.first.len();
            self.pop_first();
        }
        self.tail.advance(count);
        if self.len == 0 {
            // An idle connection holds no buffer.
            self.tail = BytesMut::new();
            self.rest = VecDeque::new();
        }
    }

    fn chunks_vectored<'a>(&'a self, out: &mut [IoSlice<'a>]) -> usize {
        let tail = (!self.tail.is_empty()).then_some(&self.tail[..]);
        let segments = self.frozen().map(|segment| &segment[..]).chain(tail);
        let mut filled = 0;
        for (slot, segment) in out.iter_mut().zip(segments) {
            *slot = IoSlice::new(segment);
            filled += 1;
        }
        filled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept_and_the_number_of_segments_limited() {
        let mut queue = ByteQueue::default();
        let mut expected = Vec::new();
        for i in 0..50_000u32 {
            let size = if i % 5000 == 0 { SMALL + i as usize } else { (i % 3) as usize };
            let segment = Bytes::from(vec![i as u8; size]);
            expected.extend_from_slice(&segment);
            queue.push(segment);
        }
        assert_eq!(queue.len(), expected.len());
        let mut slices = [IoSlice::new(&[]); 64];
        assert!(queue.chunks_vectored(&mut slices) <= 21);
        let mut got = Vec::new();
        while queue.has_remaining() {
            let take = queue.chunk().len().min(777);
            got.extend_from_slice(&queue.chunk()[..take]);
            queue.advance(take);
        }
        assert!(got == expected);
        assert!(queue.is_empty() && queue.take_all().is_empty());
    }

    #[test]
    fn small_segments_are_copied_together_and_large_ones_shared() {
        let (small, large) = (Bytes::from(vec![1; 8 * 1024 - 1]), Bytes::from(vec![2; 8 * 1024]));
        let mut queue = ByteQueue::default();
        assert!(queue.is_empty());
        for _ in 0..6 {
            queue.push(small.clone());
        }
        queue.push(large.clone());
        queue.push(small.clone());
        assert!(small.is_unique() && !large.is_unique() && !queue.is_empty());
        let lens = [5 * small.len(), small.len(), large.len(), small.len()];
        let mut slices = [IoSlice::new(&[]); 5];
        assert_eq!(queue.chunks_vectored(&mut slices), 4);
        assert_eq!(slices.map(|slice| slice.len()), [lens[0], lens[1], lens[2], lens[3], 0]);
        assert_eq!(queue.chunks_vectored(&mut slices[..2]), 2);
        assert_eq!(queue.take_all().iter().map(Bytes::len).collect::<Vec<_>>(), lens);
        assert_eq!(queue.chunks_vectored(&mut [IoSlice::new(&[])]), 0);
    }

    /// A queue of small segments, a large one, and some in the tail; and its bytes, which vary with their position.
    fn example() -> (ByteQueue, Vec<u8>) {
        let all: Vec<u8> = (0..30_000u32).map(|i| (i / 7) as u8).collect();
        let mut queue = ByteQueue::default();
        for range in [0..5, 5..9_000, 9_000..9_500, 9_500..29_000] {
            queue.push(Bytes::copy_from_slice(&all[range]));
        }
        queue.write_with(|buf| buf.extend_from_slice(&all[29_000..29_900]));
        queue.write_with(|buf| buf.extend_from_slice(&all[29_900..]));
        assert_eq!(queue.len(), all.len());
        (queue, all)
    }

    #[test]
    fn any_range_can_be_copied() {
        let (queue, all) = example();
        let cuts = [0, 1, 5, 6, 8_999, 9_000, 9_400, 9_500, 20_000, 29_000, 29_001, 30_000];
        for start in cuts {
            for end in cuts.into_iter().filter(|end| *end >= start) {
                let mut copy = ByteQueue::default();
                copy.push_small(b"before");
                queue.copy_range(start, end, &mut copy);
                assert_eq!(copy.len(), 6 + end - start, "{start}..{end}");
                assert!(copy.take_all().concat()[6..] == all[start..end], "{start}..{end}");
            }
        }
        // Large segments are shared.
        let mut copy = ByteQueue::default();
        queue.copy_range(9_500, 9_500 + 8 * 1024, &mut copy);
        assert_eq!(copy.chunk().as_ptr(), queue.rest[2].as_ptr());
    }

    #[test]
    fn whole_segments_are_dropped_from_the_front() {
        let (mut queue, all) = example();
        for (max_len, dropped) in
            [(30_000, 0), (29_999, 5), (21_000, 8_995), (20_999, 500), (1_000, 19_500), (999, 1_000)]
        {
            assert_eq!(queue.trim(max_len), dropped, "{max_len}");
            let mut left = ByteQueue::default();
            queue.copy_range(0, queue.len(), &mut left);
            assert!(left.take_all().concat() == all[all.len() - queue.len()..], "{max_len}");
        }
        assert!(queue.is_empty());
    }

    #[test]
    fn a_queue_is_appended_to_another() {
        let ((mut one, all), (mut other, _)) = (example(), example());
        one.append(&mut other);
        assert!(other.is_empty() && one.len() == 2 * all.len());
        assert!(one.take_all().concat() == all.repeat(2));
    }
}
