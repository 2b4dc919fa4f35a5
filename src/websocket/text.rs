//! Framing of bytes as text for followers without a subprotocol: where to split, and when to switch to BINARY.

use std::str::from_utf8;

use bytes::{Buf, Bytes, BytesMut};

use super::frame::{Kind, header_len, put_header};
use crate::buffer::{ByteQueue, Segments};

/// The largest frame for the original's follower, which loses what exceeds its read buffer, in bytes.
const MAX_ORIGINAL_FRAME: usize = 10 * 1024;
/// The largest frame for other followers, in bytes. Larger frames save nothing.
const MAX_FRAME: usize = 256 * 1024;

/// Frames a resource's bytes for a follower without a subprotocol (protocol section 3).
#[derive(Debug)]
pub(crate) struct Framer {
    text: Text,
    /// The first bytes of a character whose rest has not arrived: at most three.
    incomplete: Vec<u8>,
}

/// When frames are TEXT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Text {
    /// Always, in small frames: the follower gave its verb in `X-Verb`, as the original's client does.
    Always,
    /// While the bytes are UTF-8: the follower gave its verb in the query, as a browser does.
    WhileValid,
    /// No more: the bytes were not UTF-8.
    No,
}

impl Framer {
    /// `original`: the follower gave its verb in a header.
    pub(crate) fn new(original: bool) -> Self {
        Self { text: if original { Text::Always } else { Text::WhileValid }, incomplete: Vec::new() }
    }

    /// The state that decides how the next bytes are framed, unless a part of a character is held back.
    pub(crate) fn text(&self) -> Option<Text> {
        self.incomplete.is_empty().then_some(self.text)
    }

    /// A framer in this state that holds nothing back.
    pub(crate) fn with(text: Text) -> Self {
        Self { text, incomplete: Vec::new() }
    }

    /// Writes the bytes to `out` as frames. Holds back an incomplete character at the end.
    pub(crate) fn push(&mut self, mut data: Segments, out: &mut ByteQueue) {
        if !(self.incomplete.is_empty() && data.len() == 1) {
            // The boundaries of segments mean nothing, so small segments are joined into one frame.
            let mut joined = ByteQueue::default();
            joined.push(Bytes::from(std::mem::take(&mut self.incomplete)));
            for segment in data {
                joined.push(segment);
            }
            data = joined.take_all();
        }
        for mut segment in data {
            if !self.incomplete.is_empty() {
                let mut joined = BytesMut::with_capacity(self.incomplete.len() + segment.len());
                joined.extend_from_slice(&self.incomplete);
                joined.extend_from_slice(&segment);
                self.incomplete.clear();
                segment = joined.freeze();
            }
            self.push_segment(segment, out);
        }
    }

    /// Writes what was held back, since the data ends inside a character.
    pub(crate) fn end(&mut self, out: &mut ByteQueue) {
        if !self.incomplete.is_empty() {
            if self.text == Text::WhileValid {
                self.text = Text::No;
            }
            let incomplete = Bytes::from(std::mem::take(&mut self.incomplete));
            self.frame(incomplete, out);
        }
    }

    fn push_segment(&mut self, mut segment: Bytes, out: &mut ByteQueue) {
        if self.text == Text::WhileValid {
            match from_utf8(&segment) {
                Ok(_) => {}
                Err(error) => {
                    let valid = segment.split_to(error.valid_up_to());
                    self.frames(valid, out);
                    if error.error_len().is_none() {
                        self.incomplete = segment.to_vec();
                        return;
                    }
                    self.text = Text::No;
                }
            }
        } else if self.text == Text::Always {
            let whole = segment.len() - incomplete_suffix(&segment);
            self.incomplete = segment.split_off(whole).to_vec();
        }
        self.frames(segment, out);
    }

    fn frames(&self, mut payload: Bytes, out: &mut ByteQueue) {
        let max = if self.text == Text::Always { MAX_ORIGINAL_FRAME } else { MAX_FRAME };
        while payload.len() > max {
            let cut = if self.text == Text::No { max } else { max - incomplete_suffix(&payload[..max]) };
            let part = payload.split_to(cut);
            self.frame(part, out);
        }
        if payload.has_remaining() {
            self.frame(payload, out);
        }
    }

    fn frame(&self, payload: Bytes, out: &mut ByteQueue) {
        let kind = if self.text == Text::No { Kind::Binary } else { Kind::Text };
        out.reserve(header_len(payload.len()), payload.len());
        out.write_with(|buf| put_header(buf, kind, payload.len(), None));
        out.push(payload);
    }
}

/// The length of an incomplete character at the end, in bytes; 0 if the end is not UTF-8 at all.
pub(crate) fn incomplete_suffix(bytes: &[u8]) -> usize {
    let tail = &bytes[bytes.len().saturating_sub(3)..];
    (1..=tail.len())
        .find(|back| {
            let start = &tail[tail.len() - back..];
            start[0] >= 0xc0 && matches!(from_utf8(start), Err(e) if e.valid_up_to() == 0 && e.error_len().is_none())
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::frame::{Decoder, Event, Role};
    use super::*;

    /// Frames as (is text, payload).
    fn frames(framer: &mut Framer, chunks: &[&[u8]]) -> Vec<(bool, Vec<u8>)> {
        let mut out = ByteQueue::default();
        for chunk in chunks {
            framer.push(smallvec::smallvec![Bytes::copy_from_slice(chunk)], &mut out);
        }
        framer.end(&mut out);
        let bytes: Vec<u8> = out.take_all().concat();
        let (mut at, mut got) = (0, Vec::new());
        while at < bytes.len() {
            let text = bytes[at] & 0x0f == 1;
            let mut decoder = Decoder::new(Role::Client, 1 << 30);
            let mut buf = BytesMut::from(&bytes[at..]);
            let Ok(Some(Event::Data { payload, end: true, .. })) = decoder.decode(&mut buf, false) else {
                panic!("no frame")
            };
            at = bytes.len() - buf.len();
            got.push((text, payload.to_vec()));
        }
        got
    }

    fn joined(frames: &[(bool, Vec<u8>)]) -> Vec<u8> {
        frames.iter().flat_map(|f| f.1.clone()).collect()
    }

    #[test]
    fn original_clients_get_small_text_on_character_boundaries() {
        let text = "€".repeat(20_000);
        for cut in [1, 2, 3, 10_240, 10_241, 30_001] {
            let chunks: Vec<&[u8]> = text.as_bytes().chunks(cut).collect();
            let got = frames(&mut Framer::new(true), &chunks);
            assert_eq!(joined(&got), text.as_bytes());
            for (is_text, payload) in &got {
                assert!(*is_text && payload.len() <= MAX_ORIGINAL_FRAME && from_utf8(payload).is_ok());
            }
        }
    }

    #[test]
    fn original_clients_get_text_even_if_it_is_not_utf8() {
        let bytes: Vec<u8> = (0..60_000u32).map(|i| ((i * 31) >> 3) as u8).collect();
        for cut in [1, 7, 60_000] {
            let chunks: Vec<&[u8]> = bytes.chunks(cut).collect();
            let got = frames(&mut Framer::new(true), &chunks);
            assert_eq!(joined(&got), bytes);
            assert!(got.iter().all(|f| f.0 && f.1.len() <= MAX_ORIGINAL_FRAME));
        }
    }

    #[test]
    fn browsers_get_text_until_it_is_not_utf8() {
        let got = frames(&mut Framer::new(false), &["aé".as_bytes(), b"\xe2\x82", b"\xac", b"b\xffc", b"d"]);
        let expected: [(bool, &[u8]); 5] =
            [(true, "aé".as_bytes()), (true, "€".as_bytes()), (true, b"b"), (false, b"\xffc"), (false, b"d")];
        assert_eq!(got, expected.map(|(t, p)| (t, p.to_vec())));
        let cut = frames(&mut Framer::new(false), &[b"x\xe2\x82"]);
        assert_eq!(cut, [(true, b"x".to_vec()), (false, b"\xe2\x82".to_vec())]);
    }

    #[test]
    fn frames_are_as_large_as_allowed() {
        let lens = |original, bytes: Vec<u8>| -> Vec<usize> {
            frames(&mut Framer::new(original), &[&bytes]).iter().map(|frame| frame.1.len()).collect()
        };
        assert_eq!(lens(true, vec![b'x'; 10_241]), [10_240, 1]);
        assert_eq!(lens(false, vec![b'x'; 262_145]), [262_144, 1]);
        // Only the last incomplete character is held back; one followed by other bytes doesn't split a frame.
        let odd = [&[b'x'; 10_238][..], b"\xe2\x82\xe2\x82"].concat();
        assert_eq!(lens(true, odd), [10_240, 2]);
    }

    #[test]
    fn only_the_start_of_a_character_is_incomplete() {
        for (bytes, expected) in [
            (&b""[..], 0),
            (b"a", 0),
            (b"\xc3", 1),
            ("é".as_bytes(), 0),
            (b"a\xe2\x82", 2),
            ("€".as_bytes(), 0),
            (b"\xf0\x9f\x98", 3),
            ("😀".as_bytes(), 0),
            (b"\x80", 0),
            (b"\xff", 0),
            (b"\xc3\x28", 0),
        ] {
            assert_eq!(incomplete_suffix(bytes), expected, "{bytes:?}");
        }
    }
}
