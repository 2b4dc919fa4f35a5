//! Bytes in pieces, ready for one vectored write, and never many more pieces than bytes are worth.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};
use smallvec::{SmallVec, smallvec};

/// ByteQueue smaller than this are copied together: cheaper than a slice each, and a small slice can't keep a large
/// buffer alive.
const SMALL: usize = 8 * 1024;
/// Small pieces are gathered up to about this size.
const GATHER: usize = 32 * 1024;

/// What was taken out of a queue: most often one piece, which costs no allocation of its own.
pub(crate) type Segments = SmallVec<[Bytes; 1]>;

/// A queue of bytes that copies small pieces and shares large ones.
#[derive(Debug, Default)]
pub(crate) struct ByteQueue {
    /// Empty if nothing is done.
    front: Bytes,
    /// What is done behind that.
    more: VecDeque<Bytes>,
    open: BytesMut,
    len: usize,
}

impl ByteQueue {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn push(&mut self, piece: Bytes) {
        if piece.len() < SMALL {
            self.push_small(&piece);
        } else {
            self.push_shared(piece);
        }
    }

    /// As [`push`](Self::push), of what is somebody else's.
    pub(crate) fn push_ref(&mut self, piece: &Bytes) {
        if piece.len() < SMALL {
            self.push_small(piece);
        } else {
            self.push_shared(piece.clone());
        }
    }

    /// Copies a piece, so that it keeps no buffer alive.
    pub(crate) fn push_small(&mut self, piece: &[u8]) {
        if self.open.len() >= GATHER {
            // What is left of the buffer is as large again when it grows.
            let open = self.open.split().freeze();
            self.push_done(open);
        }
        self.len += piece.len();
        self.open.extend_from_slice(piece);
    }

    /// Adds a piece as it is, with the buffer that it is a part of.
    pub(crate) fn push_shared(&mut self, piece: Bytes) {
        self.len += piece.len();
        self.seal();
        self.push_done(piece);
    }

    /// Makes room for a header and for what is pushed behind it, if that is copied: what fits needs one allocation.
    pub(crate) fn reserve(&mut self, header: usize, payload: usize) {
        let additional = header + if payload < SMALL { payload } else { 0 };
        if self.open.capacity() == 0 {
            // Not a byte more, as it may for very few.
            self.open = BytesMut::with_capacity(additional);
        }
        self.open.reserve(additional);
    }

    /// Adds what these pieces hold from `start` to `end` to another queue.
    pub(crate) fn copy_range(&self, mut start: usize, mut end: usize, into: &mut ByteQueue) {
        for piece in self.done() {
            if end == 0 {
                return;
            }
            let (from, to) = (start.min(piece.len()), end.min(piece.len()));
            if to - from >= SMALL {
                into.push_shared(piece.slice(from..to));
            } else if from < to {
                into.push_small(&piece[from..to]);
            }
            start -= from;
            end -= to;
        }
        if start < end {
            into.push_small(&self.open[start..end]);
        }
    }

    /// Drops whole pieces from the front until no more than `cap` bytes are left, and says how many went.
    pub(crate) fn trim(&mut self, cap: usize) -> usize {
        let mut dropped = 0;
        while self.len > cap {
            let front = match self.pop_front() {
                Some(front) => front.len(),
                None => std::mem::take(&mut self.open).len(),
            };
            self.len -= front;
            dropped += front;
        }
        dropped
    }

    /// Appends through `write`, which may only add to the buffer it is given.
    pub(crate) fn write_with(&mut self, write: impl FnOnce(&mut BytesMut)) {
        let before = self.open.len();
        write(&mut self.open);
        self.len += self.open.len() - before;
    }

    /// Adds another queue's pieces behind these.
    pub(crate) fn append(&mut self, other: &mut ByteQueue) {
        for piece in other.take_all() {
            self.push(piece);
        }
    }

    /// Takes everything out.
    pub(crate) fn take_all(&mut self) -> Segments {
        self.seal();
        self.len = 0;
        match (std::mem::take(&mut self.front), std::mem::take(&mut self.more)) {
            (front, _) if front.is_empty() => Segments::new(),
            (front, more) if more.is_empty() => smallvec![front],
            (front, mut more) => {
                more.push_front(front);
                Segments::from_vec(more.into())
            }
        }
    }

    pub(crate) fn into_all(mut self) -> Segments {
        self.take_all()
    }

    fn done(&self) -> impl Iterator<Item = &Bytes> {
        (!self.front.is_empty()).then_some(&self.front).into_iter().chain(&self.more)
    }

    fn push_done(&mut self, piece: Bytes) {
        if self.front.is_empty() {
            self.front = piece;
        } else if !piece.is_empty() {
            self.more.push_back(piece);
        }
    }

    fn pop_front(&mut self) -> Option<Bytes> {
        let next = self.more.pop_front().unwrap_or_default();
        Some(std::mem::replace(&mut self.front, next)).filter(|front| !front.is_empty())
    }

    fn seal(&mut self) {
        if self.open.is_empty() {
            return;
        }
        // Of a buffer that goes whole nobody has to count who has parts of it, which would be another allocation.
        let whole = self.open.len() == self.open.capacity();
        let open = if whole { std::mem::take(&mut self.open) } else { self.open.split() };
        self.push_done(open.freeze());
    }
}

impl Buf for ByteQueue {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        if self.front.is_empty() { &self.open } else { &self.front }
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.len, "advanced past the end");
        self.len -= count;
        while !self.front.is_empty() {
            if count < self.front.len() {
                self.front.advance(count);
                return;
            }
            count -= self.front.len();
            self.pop_front();
        }
        self.open.advance(count);
        if self.len == 0 {
            // An idle connection keeps no buffer.
            self.open = BytesMut::new();
            self.more = VecDeque::new();
        }
    }

    fn chunks_vectored<'a>(&'a self, out: &mut [IoSlice<'a>]) -> usize {
        let open = (!self.open.is_empty()).then_some(&self.open[..]);
        let pieces = self.done().map(|piece| &piece[..]).chain(open);
        let mut filled = 0;
        for (slot, piece) in out.iter_mut().zip(pieces) {
            *slot = IoSlice::new(piece);
            filled += 1;
        }
        filled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_and_bounds_the_count() {
        let mut pieces = ByteQueue::default();
        let mut expected = Vec::new();
        for i in 0..50_000u32 {
            let size = if i % 5000 == 0 { SMALL + i as usize } else { (i % 3) as usize };
            let piece = Bytes::from(vec![i as u8; size]);
            expected.extend_from_slice(&piece);
            pieces.push(piece);
        }
        assert_eq!(pieces.len(), expected.len());
        let mut slices = [IoSlice::new(&[]); 64];
        assert!(pieces.chunks_vectored(&mut slices) <= 21);
        let mut got = Vec::new();
        while pieces.has_remaining() {
            let take = pieces.chunk().len().min(777);
            got.extend_from_slice(&pieces.chunk()[..take]);
            pieces.advance(take);
        }
        assert!(got == expected);
        assert!(pieces.is_empty() && pieces.take_all().is_empty());
    }

    #[test]
    fn small_pieces_are_copied_together_and_large_ones_shared() {
        let (small, large) = (Bytes::from(vec![1; 8 * 1024 - 1]), Bytes::from(vec![2; 8 * 1024]));
        let mut pieces = ByteQueue::default();
        assert!(pieces.is_empty());
        for _ in 0..6 {
            pieces.push(small.clone());
        }
        pieces.push(large.clone());
        pieces.push(small.clone());
        assert!(small.is_unique() && !large.is_unique() && !pieces.is_empty());
        let parts = [5 * small.len(), small.len(), large.len(), small.len()];
        let mut slices = [IoSlice::new(&[]); 5];
        assert_eq!(pieces.chunks_vectored(&mut slices), 4);
        assert_eq!(slices.map(|slice| slice.len()), [parts[0], parts[1], parts[2], parts[3], 0]);
        assert_eq!(pieces.chunks_vectored(&mut slices[..2]), 2);
        assert_eq!(pieces.take_all().iter().map(Bytes::len).collect::<Vec<_>>(), parts);
        assert_eq!(pieces.chunks_vectored(&mut [IoSlice::new(&[])]), 0);
    }

    /// Small ones, a large one, and some that are open still: bytes that count.
    fn some() -> (ByteQueue, Vec<u8>) {
        let all: Vec<u8> = (0..30_000u32).map(|i| (i / 7) as u8).collect();
        let mut pieces = ByteQueue::default();
        for range in [0..5, 5..9_000, 9_000..9_500, 9_500..29_000] {
            pieces.push(Bytes::copy_from_slice(&all[range]));
        }
        pieces.write_with(|buf| buf.extend_from_slice(&all[29_000..29_900]));
        pieces.write_with(|buf| buf.extend_from_slice(&all[29_900..]));
        assert_eq!(pieces.len(), all.len());
        (pieces, all)
    }

    #[test]
    fn any_range_can_be_copied() {
        let (pieces, all) = some();
        let cuts = [0, 1, 5, 6, 8_999, 9_000, 9_400, 9_500, 20_000, 29_000, 29_001, 30_000];
        for start in cuts {
            for end in cuts.into_iter().filter(|end| *end >= start) {
                let mut copy = ByteQueue::default();
                copy.push_small(b"before");
                pieces.copy_range(start, end, &mut copy);
                assert_eq!(copy.len(), 6 + end - start, "{start}..{end}");
                assert!(copy.take_all().concat()[6..] == all[start..end], "{start}..{end}");
            }
        }
        // What is large is shared.
        let mut copy = ByteQueue::default();
        pieces.copy_range(9_500, 9_500 + 8 * 1024, &mut copy);
        assert_eq!(copy.chunk().as_ptr(), pieces.more[2].as_ptr());
    }

    #[test]
    fn whole_pieces_are_dropped_from_the_front() {
        let (mut pieces, all) = some();
        for (cap, dropped) in [(30_000, 0), (29_999, 5), (21_000, 8_995), (20_999, 500), (1_000, 19_500), (999, 1_000)]
        {
            assert_eq!(pieces.trim(cap), dropped, "{cap}");
            let mut left = ByteQueue::default();
            pieces.copy_range(0, pieces.len(), &mut left);
            assert!(left.take_all().concat() == all[all.len() - pieces.len()..], "{cap}");
        }
        assert!(pieces.is_empty());
    }

    #[test]
    fn one_queue_goes_behind_another() {
        let ((mut one, all), (mut other, _)) = (some(), some());
        one.append(&mut other);
        assert!(other.is_empty() && one.len() == 2 * all.len());
        assert!(one.take_all().concat() == all.repeat(2));
    }
}
