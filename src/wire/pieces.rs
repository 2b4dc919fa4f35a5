//! Bytes in pieces, ready for one vectored write, and never many more pieces than bytes are worth.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

/// Pieces smaller than this are copied together: cheaper than a slice each, and a small slice can't keep a large
/// buffer alive.
const SMALL: usize = 8 * 1024;
/// Small pieces are gathered up to about this size.
const GATHER: usize = 32 * 1024;

/// A queue of bytes that copies small pieces and shares large ones.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    done: VecDeque<Bytes>,
    open: BytesMut,
    len: usize,
}

impl Pieces {
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
            self.len += piece.len();
            self.seal();
            self.done.push_back(piece);
        }
    }

    /// Copies a piece, so that it keeps no buffer alive.
    pub(crate) fn push_small(&mut self, piece: &[u8]) {
        if self.open.len() >= GATHER {
            self.seal();
        }
        self.len += piece.len();
        self.open.extend_from_slice(piece);
    }

    /// Adds what these pieces hold from `start` to `end` to another queue.
    pub(crate) fn copy_range(&self, mut start: usize, mut end: usize, into: &mut Pieces) {
        for piece in &self.done {
            if end == 0 {
                return;
            }
            let (from, to) = (start.min(piece.len()), end.min(piece.len()));
            if to - from >= SMALL {
                into.push(piece.slice(from..to));
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
            let front = match self.done.pop_front() {
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
    pub(crate) fn append(&mut self, other: &mut Pieces) {
        for piece in other.take_all() {
            self.push(piece);
        }
    }

    /// Takes everything out.
    pub(crate) fn take_all(&mut self) -> Vec<Bytes> {
        self.seal();
        self.len = 0;
        std::mem::take(&mut self.done).into()
    }

    fn seal(&mut self) {
        if !self.open.is_empty() {
            let open = self.open.split().freeze();
            self.done.push_back(open);
        }
    }
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        self.done.front().map_or(&self.open[..], |piece| &piece[..])
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.len, "advanced past the end");
        self.len -= count;
        while let Some(front) = self.done.front_mut() {
            if count < front.len() {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.done.pop_front();
        }
        self.open.advance(count);
        if self.len == 0 {
            // An idle connection keeps no buffer.
            self.open = BytesMut::new();
            self.done = VecDeque::new();
        }
    }

    fn chunks_vectored<'a>(&'a self, out: &mut [IoSlice<'a>]) -> usize {
        let open = (!self.open.is_empty()).then_some(&self.open[..]);
        let pieces = self.done.iter().map(|piece| &piece[..]).chain(open);
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
        let mut pieces = Pieces::default();
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
        let mut pieces = Pieces::default();
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
    fn some() -> (Pieces, Vec<u8>) {
        let all: Vec<u8> = (0..30_000u32).map(|i| (i / 7) as u8).collect();
        let mut pieces = Pieces::default();
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
                let mut copy = Pieces::default();
                copy.push_small(b"before");
                pieces.copy_range(start, end, &mut copy);
                assert_eq!(copy.len(), 6 + end - start, "{start}..{end}");
                assert!(copy.take_all().concat()[6..] == all[start..end], "{start}..{end}");
            }
        }
        // What is large is shared.
        let mut copy = Pieces::default();
        pieces.copy_range(9_500, 9_500 + 8 * 1024, &mut copy);
        assert_eq!(copy.chunk().as_ptr(), pieces.done[3].as_ptr());
    }

    #[test]
    fn whole_pieces_are_dropped_from_the_front() {
        let (mut pieces, all) = some();
        for (cap, dropped) in [(30_000, 0), (29_999, 5), (21_000, 8_995), (20_999, 500), (1_000, 19_500), (999, 1_000)]
        {
            assert_eq!(pieces.trim(cap), dropped, "{cap}");
            let mut left = Pieces::default();
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
