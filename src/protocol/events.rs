//! Server-sent events (the HTML standard, section 9.2), from which the exact bytes can be put together again.

use std::str::from_utf8;

use bytes::{BufMut, Bytes, BytesMut};
use data_encoding::BASE64;

use crate::protocol::messages as control;
use crate::state::{Life, State};
use crate::websocket::text::incomplete_suffix;

/// The most bytes in one event, unless one character is longer.
const MAX_EVENT: usize = 64 * 1024;

/// How long a browser waits before it connects again, in milliseconds. By themselves they wait for up to five seconds.
pub(crate) const RETRY: &str = "retry: 1000\n\n";

/// Makes events of a resource's bytes.
pub(crate) struct Encoder {
    life: Life,
    /// Behind the last byte that was told.
    at: u64,
    /// The first bytes of a character whose rest has not arrived: at most three.
    held: Vec<u8>,
}

impl Encoder {
    pub(crate) fn new(life: Life, at: u64) -> Self {
        Self { life, at, held: Vec::new() }
    }

    /// What a follower is told first.
    pub(crate) fn begin(&self, state: State) -> Bytes {
        let mut out = BytesMut::from(RETRY);
        self.told(&mut out, &control::following(self.at, self.life, state), "");
        out.freeze()
    }

    /// The appender was lost, or is back. What is held back is the same whether it comes before or after.
    pub(crate) fn state(&self, state: State) -> Bytes {
        let mut out = BytesMut::new();
        self.told(&mut out, &control::state(state), "");
        out.freeze()
    }

    /// The end. One who has seen the end of an interrupted resource shows it by another id, or else couldn't be told from
    /// one who hasn't; at the end of a finished one there is nothing more to be told in either case.
    pub(crate) fn end(&mut self, state: State) -> Bytes {
        let mut out = BytesMut::new();
        if !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            self.base64(&mut out, &held);
        }
        let seen = if state == State::Interrupted { ":interrupted" } else { "" };
        self.told(&mut out, &control::ended(state, self.at), seen);
        out.freeze()
    }

    /// The next bytes. Empty if there is no whole character yet.
    pub(crate) fn data(&mut self, pieces: &[Bytes]) -> Bytes {
        let joined;
        let mut rest: &[u8] = match pieces {
            [piece] if self.held.is_empty() => piece,
            _ => {
                let mut all = std::mem::take(&mut self.held);
                pieces.iter().for_each(|piece| all.extend_from_slice(piece));
                joined = all;
                &joined
            }
        };
        let whole = rest.len() - incomplete_suffix(rest);
        self.held = rest[whole..].to_vec();
        rest = &rest[..whole];
        let mut out = BytesMut::with_capacity(rest.len() + rest.len() / 8 + 256);
        while !rest.is_empty() {
            let (now, is_text) = first_run(rest);
            if is_text {
                self.text(&mut out, now);
            } else {
                self.base64(&mut out, now);
            }
            rest = &rest[now.len()..];
        }
        out.freeze()
    }

    /// `text` is UTF-8 without CR. The data of an event is its lines, joined by line feeds again.
    fn text(&mut self, out: &mut BytesMut, text: &[u8]) {
        self.at += text.len() as u64;
        self.id(out, "");
        for line in text.split(|byte| *byte == b'\n') {
            out.put_slice(b"data: ");
            out.put_slice(line);
            out.put_u8(b'\n');
        }
        out.put_u8(b'\n');
    }

    fn base64(&mut self, out: &mut BytesMut, bytes: &[u8]) {
        self.at += bytes.len() as u64;
        out.put_slice(b"event: base64\n");
        self.id(out, "");
        out.put_slice(b"data: ");
        // In whole groups of three, so that the pieces join.
        for group in bytes.chunks(3 * 1024) {
            out.put_slice(BASE64.encode(group).as_bytes());
        }
        out.put_slice(b"\n\n");
    }

    fn told(&self, out: &mut BytesMut, message: &str, seen: &str) {
        out.put_slice(b"event: state\n");
        self.id(out, seen);
        out.put_slice(format!("data: {message}\n\n").as_bytes());
    }

    fn id(&self, out: &mut BytesMut, seen: &str) {
        out.put_slice(format!("id: {}:{}{seen}\n", self.life, self.at).as_bytes());
    }
}

/// The first lines that can be told in one event, and whether as text. Lines that can and lines that can't go into
/// events of their own.
fn first_run(bytes: &[u8]) -> (&[u8], bool) {
    let mut run = 0;
    let mut kind = None;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let is_text = is_text(line);
        if kind.is_some_and(|kind| kind != is_text) || (run > 0 && run + line.len() > MAX_EVENT) {
            break;
        }
        kind = Some(is_text);
        run += line.len();
    }
    let is_text = kind.unwrap_or(true);
    if run > MAX_EVENT {
        // One long line.
        run = MAX_EVENT;
        if is_text {
            run -= incomplete_suffix(&bytes[..run]);
        }
    }
    (&bytes[..run], is_text)
}

/// A CR can't be told apart from the end of a line there.
fn is_text(line: &[u8]) -> bool {
    !line.contains(&b'\r') && from_utf8(line).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `EventSource` makes of a stream: (event, data, last event id), by the standard's own steps.
    fn parse(stream: &[u8]) -> Vec<(String, String, String)> {
        let text = from_utf8(stream).unwrap();
        let (mut events, mut name, mut data, mut id) = (Vec::new(), String::new(), String::new(), String::new());
        let mut rest = text;
        while !rest.is_empty() {
            let end = rest.find(['\r', '\n']).expect("a stream ends with a line end");
            let line = &rest[..end];
            rest = rest[end..].strip_prefix("\r\n").unwrap_or(&rest[end + 1..]);
            if line.is_empty() {
                if !data.is_empty() {
                    data.pop();
                    events.push((std::mem::take(&mut name), std::mem::take(&mut data), id.clone()));
                }
                (name, data) = Default::default();
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => name = value.to_owned(),
                "data" => data = data + value + "\n",
                "id" => id = value.to_owned(),
                "" | "retry" => {}
                other => panic!("a forged field {other:?}"),
            }
        }
        events
    }

    fn told(chunks: &[&[u8]], end: State) -> (Vec<u8>, Vec<(String, String, String)>) {
        let life = Life::from_bits(7);
        let mut encoder = Encoder::new(life, 100);
        let mut stream = encoder.begin(State::Live).to_vec();
        for chunk in chunks {
            stream.extend_from_slice(&encoder.data(&[Bytes::copy_from_slice(chunk)]));
        }
        stream.extend_from_slice(&encoder.end(end));
        let events = parse(&stream);
        let (mut bytes, mut at) = (Vec::new(), 100);
        for (name, data, id) in &events {
            let more = match &**name {
                "" => data.clone().into_bytes(),
                "base64" => BASE64.decode(data.as_bytes()).unwrap(),
                "state" => Vec::new(),
                other => panic!("a forged event {other:?}"),
            };
            at += more.len();
            assert!(more.len() <= MAX_EVENT);
            assert_eq!(id.strip_suffix(":interrupted").unwrap_or(id), &format!("{life}:{at}"));
            bytes.extend(more);
        }
        (bytes, events)
    }

    #[test]
    fn text_is_told_as_it_is() {
        let (bytes, events) = told(&[b"one\ntwo", b"\n", b" three\n\n"], State::Finished);
        assert_eq!(bytes, b"one\ntwo\n three\n\n");
        let data: Vec<&str> = events.iter().filter(|e| e.0.is_empty()).map(|e| &*e.1).collect();
        assert_eq!(data, ["one\ntwo", "\n", " three\n\n"]);
        assert_eq!(events[0].1, format!(r#"{{"offset":100,"life":"{}","state":"live"}}"#, Life::from_bits(7)));
        let last = events.last().unwrap();
        assert_eq!((&*last.0, &*last.1), ("state", r#"{"state":"finished","length":116}"#));
        assert!(told(&[b"x"], State::Interrupted).1.last().unwrap().2.ends_with(":101:interrupted"));
    }

    #[test]
    fn any_bytes_in_any_pieces_come_out_as_they_went_in() {
        let nasty: &[u8] = b"\nid: x\n\ndata: y\r\r\n\r\nevent: z\n:\n\xef\xbb\xbf\0 \n  \n\xff\xfe\n\xe2\x82\xac\xe2\x82\n\xf0\x9f\x98\x80";
        for size in 1..=nasty.len() {
            let chunks: Vec<&[u8]> = nasty.chunks(size).collect();
            assert_eq!(told(&chunks, State::Sealed).0, nasty, "{size}");
        }
        // Every pair of bytes that means something to the format, at every place.
        let odd = [b'\r', b'\n', b':', b' ', b'd', 0, 0xc3, 0xa9, 0xff];
        for a in odd {
            for b in odd {
                for c in odd {
                    assert_eq!(told(&[&[a, b], &[c]], State::Finished).0, [a, b, c]);
                }
            }
        }
    }

    #[test]
    fn long_events_are_cut_at_line_ends_and_between_characters() {
        let lines = "0123456789abcde\n".repeat(20_000);
        let (bytes, events) = told(&[lines.as_bytes()], State::Finished);
        assert_eq!(bytes, lines.as_bytes());
        assert!(events.iter().filter(|e| e.0.is_empty()).all(|e| e.1.ends_with('\n')));
        let long = "€".repeat(100_000);
        let (bytes, events) = told(&[long.as_bytes()], State::Finished);
        assert_eq!(bytes, long.as_bytes());
        assert!(events.iter().all(|e| e.0 != "base64"));
    }

    #[test]
    fn what_is_no_text_spares_the_lines_beside_it() {
        let (bytes, events) = told(&[b"a\nb\r\nc\xff\nd\ne\n"], State::Finished);
        assert_eq!(bytes, b"a\nb\r\nc\xff\nd\ne\n");
        let names: Vec<(&str, &str)> = events.iter().map(|e| (&*e.0, &*e.1)).collect();
        assert_eq!(names[1..4], [("", "a\n"), ("base64", "Yg0KY/8K"), ("", "d\ne\n")]);
    }
}
