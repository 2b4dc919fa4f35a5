//! Encoding of bytes as server-sent events (HTML standard, section 9.2), from which a client can restore the exact
//! bytes.

use std::str::from_utf8;

use bytes::{BufMut, Bytes, BytesMut};
use data_encoding::BASE64;

use crate::protocol::messages as control;
use crate::state::{Life, State};
use crate::websocket::text::incomplete_suffix;

/// The largest payload of an event, in bytes.
const MAX_EVENT: usize = 64 * 1024;

/// Sets the time before a browser reconnects to one second. Their own default is up to five seconds.
pub(crate) const RETRY: &str = "retry: 1000\n\n";

/// Encodes the bytes and the states of a resource as events.
pub(crate) struct Encoder {
    life: Life,
    /// The offset behind the last byte that was encoded.
    offset: u64,
    /// The first bytes of a character whose rest has not arrived: at most three.
    incomplete: Vec<u8>,
}

impl Encoder {
    /// An encoder for the bytes of this life, from `offset` on.
    pub(crate) fn new(life: Life, offset: u64) -> Self {
        Self { life, offset, incomplete: Vec::new() }
    }

    /// The retry time and the first event.
    pub(crate) fn begin(&self, state: State) -> Bytes {
        let mut out = BytesMut::from(RETRY);
        self.state_event(&mut out, &control::following(self.offset, self.life, state), "");
        out.freeze()
    }

    /// An event for a change of state: the appender was lost, or is back. An incomplete character stays held back,
    /// which may come before or after this event.
    pub(crate) fn state(&self, state: State) -> Bytes {
        let mut out = BytesMut::new();
        self.state_event(&mut out, &control::state(state), "");
        out.freeze()
    }

    /// The last events. The end of an interrupted resource has an id of its own, so that a client that reconnects after
    /// it can be told from one that never got it; for a finished resource that makes no difference.
    pub(crate) fn end(&mut self, state: State) -> Bytes {
        let mut out = BytesMut::new();
        if !self.incomplete.is_empty() {
            let incomplete = std::mem::take(&mut self.incomplete);
            self.base64(&mut out, &incomplete);
        }
        let id_suffix = if state == State::Interrupted { ":interrupted" } else { "" };
        self.state_event(&mut out, &control::ended(state, self.offset), id_suffix);
        out.freeze()
    }

    /// Events for the next bytes; none while they are only a part of a character.
    pub(crate) fn data(&mut self, segments: &[Bytes]) -> Bytes {
        let joined;
        let mut rest: &[u8] = match segments {
            [segment] if self.incomplete.is_empty() => segment,
            _ => {
                let mut all = std::mem::take(&mut self.incomplete);
                segments.iter().for_each(|segment| all.extend_from_slice(segment));
                joined = all;
                &joined
            }
        };
        let whole = rest.len() - incomplete_suffix(rest);
        self.incomplete = rest[whole..].to_vec();
        rest = &rest[..whole];
        let mut out = BytesMut::with_capacity(rest.len() + rest.len() / 8 + 256);
        while !rest.is_empty() {
            let (run, is_text) = first_run(rest);
            if is_text {
                self.text(&mut out, run);
            } else {
                self.base64(&mut out, run);
            }
            rest = &rest[run.len()..];
        }
        out.freeze()
    }

    /// Writes an event of text, which has to be UTF-8 without CR. The parser joins the `data` lines by line feeds.
    fn text(&mut self, out: &mut BytesMut, text: &[u8]) {
        self.offset += text.len() as u64;
        self.id(out, "");
        for line in text.split(|byte| *byte == b'\n') {
            out.put_slice(b"data: ");
            out.put_slice(line);
            out.put_u8(b'\n');
        }
        out.put_u8(b'\n');
    }

    /// Writes an event of bytes that are not text.
    fn base64(&mut self, out: &mut BytesMut, bytes: &[u8]) {
        self.offset += bytes.len() as u64;
        out.put_slice(b"event: base64\n");
        self.id(out, "");
        out.put_slice(b"data: ");
        // In multiples of three bytes, so that the encoded chunks join without padding.
        for group in bytes.chunks(3 * 1024) {
            out.put_slice(BASE64.encode(group).as_bytes());
        }
        out.put_slice(b"\n\n");
    }

    fn state_event(&self, out: &mut BytesMut, message: &str, id_suffix: &str) {
        out.put_slice(b"event: state\n");
        self.id(out, id_suffix);
        out.put_slice(format!("data: {message}\n\n").as_bytes());
    }

    fn id(&self, out: &mut BytesMut, id_suffix: &str) {
        out.put_slice(format!("id: {}:{}{id_suffix}\n", self.life, self.offset).as_bytes());
    }
}

/// The first lines that fit into one event, and whether it is an event of text. Lines of text and other lines go into
/// separate events.
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
        // A single long line.
        run = MAX_EVENT;
        if is_text {
            run -= incomplete_suffix(&bytes[..run]);
        }
    }
    (&bytes[..run], is_text)
}

/// Whether a line can go into an event of text, where a CR would end the line.
fn is_text(line: &[u8]) -> bool {
    !line.contains(&b'\r') && from_utf8(line).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses a stream as `EventSource` does, by the steps of the standard: (event, data, last event id).
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

    fn encode(chunks: &[&[u8]], end: State) -> (Vec<u8>, Vec<(String, String, String)>) {
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
    fn text_is_encoded_as_text() {
        let (bytes, events) = encode(&[b"one\ntwo", b"\n", b" three\n\n"], State::Finished);
        assert_eq!(bytes, b"one\ntwo\n three\n\n");
        let data: Vec<&str> = events.iter().filter(|e| e.0.is_empty()).map(|e| &*e.1).collect();
        assert_eq!(data, ["one\ntwo", "\n", " three\n\n"]);
        assert_eq!(events[0].1, format!(r#"{{"offset":100,"life":"{}","state":"live"}}"#, Life::from_bits(7)));
        let last = events.last().unwrap();
        assert_eq!((&*last.0, &*last.1), ("state", r#"{"state":"finished","length":116}"#));
        assert!(encode(&[b"x"], State::Interrupted).1.last().unwrap().2.ends_with(":101:interrupted"));
    }

    #[test]
    fn any_bytes_in_any_chunks_are_restored() {
        let nasty: &[u8] = b"\nid: x\n\ndata: y\r\r\n\r\nevent: z\n:\n\xef\xbb\xbf\0 \n  \n\xff\xfe\n\xe2\x82\xac\xe2\x82\n\xf0\x9f\x98\x80";
        for size in 1..=nasty.len() {
            let chunks: Vec<&[u8]> = nasty.chunks(size).collect();
            assert_eq!(encode(&chunks, State::Sealed).0, nasty, "{size}");
        }
        // All combinations of bytes that are special in the format.
        let odd = [b'\r', b'\n', b':', b' ', b'd', 0, 0xc3, 0xa9, 0xff];
        for a in odd {
            for b in odd {
                for c in odd {
                    assert_eq!(encode(&[&[a, b], &[c]], State::Finished).0, [a, b, c]);
                }
            }
        }
    }

    #[test]
    fn long_events_are_cut_at_line_ends_and_between_characters() {
        let lines = "0123456789abcde\n".repeat(20_000);
        let (bytes, events) = encode(&[lines.as_bytes()], State::Finished);
        assert_eq!(bytes, lines.as_bytes());
        assert!(events.iter().filter(|e| e.0.is_empty()).all(|e| e.1.ends_with('\n')));
        let long = "€".repeat(100_000);
        let (bytes, events) = encode(&[long.as_bytes()], State::Finished);
        assert_eq!(bytes, long.as_bytes());
        assert!(events.iter().all(|e| e.0 != "base64"));
    }

    #[test]
    fn lines_beside_binary_ones_stay_text() {
        let (bytes, events) = encode(&[b"a\nb\r\nc\xff\nd\ne\n"], State::Finished);
        assert_eq!(bytes, b"a\nb\r\nc\xff\nd\ne\n");
        let names: Vec<(&str, &str)> = events.iter().map(|e| (&*e.0, &*e.1)).collect();
        assert_eq!(names[1..4], [("", "a\n"), ("base64", "Yg0KY/8K"), ("", "d\ne\n")]);
    }
}
