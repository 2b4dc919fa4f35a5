//! How the original's followers are given bytes as text: where to cut, and when it is no text.

use std::str::from_utf8;

use bytes::{Buf, Bytes, BytesMut};

use super::frame::{Kind, header_len, put_header};
use crate::buffer::{ByteQueue, Segments};

/// The original's follower loses what is longer than its read buffer.
const MAX_ORIGINAL_FRAME: usize = 10 * 1024;
/// A frame to anybody else. Larger frames save nothing.
const MAX_FRAME: usize = 256 * 1024;

/// Frames a resource's bytes for a follower without a subprotocol (protocol section 3).
#[derive(Debug)]
pub(crate) struct Framer {
    text: Text,
    /// The first bytes of a character whose rest has not arrived: at most three.
    held: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Text {
    /// The verb came by `X-Verb`, as from the original's client: always text, in small frames.
    Always,
    /// The verb came by query, as from a browser: text while the bytes are UTF-8.
    WhileValid,
    /// It was not UTF-8.
    No,
}

impl Framer {
    /// `original` if the follower gave its verb by header.
    pub(crate) fn new(original: bool) -> Self {
        Self { text: if original { Text::Always } else { Text::WhileValid }, held: Vec::new() }
    }

    /// Where nothing is held back, this is all that tells how the next bytes are framed.
    pub(crate) fn text(&self) -> Option<Text> {
        self.held.is_empty().then_some(self.text)
    }

    /// In this state, with nothing held back.
    pub(crate) fn with(text: Text) -> Self {
        Self { text, held: Vec::new() }
    }

    /// Puts the bytes into `out` as frames; holds back a character that isn't complete yet.
    pub(crate) fn push(&mut self, mut data: Segments, out: &mut ByteQueue) {
        if !(self.held.is_empty() && data.len() == 1) {
            // Bytes have no boundaries: small pieces become one frame.
            let mut pieces = ByteQueue::default();
            pieces.push(Bytes::from(std::mem::take(&mut self.held)));
            for piece in data {
                pieces.push(piece);
            }
            data = pieces.take_all();
        }
        for mut piece in data {
            if !self.held.is_empty() {
                let mut joined = BytesMut::with_capacity(self.held.len() + piece.len());
                joined.extend_from_slice(&self.held);
                joined.extend_from_slice(&piece);
                self.held.clear();
                piece = joined.freeze();
            }
            self.push_piece(piece, out);
        }
    }

    /// Puts what was held back: the data has ended inside a character.
    pub(crate) fn end(&mut self, out: &mut ByteQueue) {
        if !self.held.is_empty() {
            if self.text == Text::WhileValid {
                self.text = Text::No;
            }
            let held = Bytes::from(std::mem::take(&mut self.held));
            self.frame(held, out);
        }
    }

    fn push_piece(&mut self, mut piece: Bytes, out: &mut ByteQueue) {
        if self.text == Text::WhileValid {
            match from_utf8(&piece) {
                Ok(_) => {}
                Err(error) => {
                    let valid = piece.split_to(error.valid_up_to());
                    self.frames(valid, out);
                    if error.error_len().is_none() {
                        self.held = piece.to_vec();
                        return;
                    }
                    self.text = Text::No;
                }
            }
        } else if self.text == Text::Always {
            let whole = piece.len() - incomplete(&piece);
            self.held = piece.split_off(whole).to_vec();
        }
        self.frames(piece, out);
    }

    fn frames(&self, mut piece: Bytes, out: &mut ByteQueue) {
        let max = if self.text == Text::Always { MAX_ORIGINAL_FRAME } else { MAX_FRAME };
        while piece.len() > max {
            let cut = if self.text == Text::No { max } else { max - incomplete(&piece[..max]) };
            let part = piece.split_to(cut);
            self.frame(part, out);
        }
        if piece.has_remaining() {
            self.frame(piece, out);
        }
    }

    fn frame(&self, payload: Bytes, out: &mut ByteQueue) {
        let kind = if self.text == Text::No { Kind::Binary } else { Kind::Text };
        out.reserve(header_len(payload.len()), payload.len());
        out.write_with(|buf| put_header(buf, kind, payload.len(), None));
        out.push(payload);
    }
}

/// How many bytes at the end are the beginning of a character that is not complete; 0 where they are no UTF-8 at all.
pub(crate) fn incomplete(bytes: &[u8]) -> usize {
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
    fn original_clients_get_text_even_if_it_is_none() {
        let bytes: Vec<u8> = (0..60_000u32).map(|i| ((i * 31) >> 3) as u8).collect();
        for cut in [1, 7, 60_000] {
            let chunks: Vec<&[u8]> = bytes.chunks(cut).collect();
            let got = frames(&mut Framer::new(true), &chunks);
            assert_eq!(joined(&got), bytes);
            assert!(got.iter().all(|f| f.0 && f.1.len() <= MAX_ORIGINAL_FRAME));
        }
    }

    #[test]
    fn browsers_get_text_until_it_is_none() {
        let got = frames(&mut Framer::new(false), &["aé".as_bytes(), b"\xe2\x82", b"\xac", b"b\xffc", b"d"]);
        let expected: [(bool, &[u8]); 5] =
            [(true, "aé".as_bytes()), (true, "€".as_bytes()), (true, b"b"), (false, b"\xffc"), (false, b"d")];
        assert_eq!(got, expected.map(|(t, p)| (t, p.to_vec())));
        let cut = frames(&mut Framer::new(false), &[b"x\xe2\x82"]);
        assert_eq!(cut, [(true, b"x".to_vec()), (false, b"\xe2\x82".to_vec())]);
    }

    #[test]
    fn frames_are_as_large_as_they_may_be() {
        let lens = |original, bytes: Vec<u8>| -> Vec<usize> {
            frames(&mut Framer::new(original), &[&bytes]).iter().map(|frame| frame.1.len()).collect()
        };
        assert_eq!(lens(true, vec![b'x'; 10_241]), [10_240, 1]);
        assert_eq!(lens(false, vec![b'x'; 262_145]), [262_144, 1]);
        // Only one beginning of a character is held back, and one behind which more would fit is no reason to cut.
        let odd = [&[b'x'; 10_238][..], b"\xe2\x82\xe2\x82"].concat();
        assert_eq!(lens(true, odd), [10_240, 2]);
    }

    #[test]
    fn only_the_beginning_of_a_character_is_incomplete() {
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
            assert_eq!(incomplete(bytes), expected, "{bytes:?}");
        }
    }
}
