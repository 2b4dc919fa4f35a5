//! Bytes as text: frames for the original's followers and for browsers, and server-sent events.

use bytes::Bytes;
use data_encoding::BASE64;

use super::Input;
use super::peer::{PeerEvent, decode};
use crate::buffer::ByteQueue;
use crate::protocol::events::Encoder;
use crate::state::{Life, State};
use crate::websocket::text::Framer;

/// Bytes in segments of any size are restored exactly from the frames or the events.
pub fn text(data: &[u8]) -> bool {
    let mut input = Input(data);
    let (kind, repeat) = (input.byte(), input.byte());
    let (mut segments, mut len) = (Vec::new(), 0);
    if kind & 0x40 != 0 {
        // Valid text, cut anywhere.
        let text = String::from_utf8_lossy(input.take(usize::MAX));
        segments.extend(text.as_bytes().chunks(1 + usize::from(repeat % 9)).map(Bytes::copy_from_slice));
    }
    while !input.is_empty() && len < 80_000 {
        let size = input.byte();
        let segment = input.take(size.into());
        // One segment may be larger than the largest frame or event.
        let times = if repeat == 255 && segments.len() == 1 { 600 } else { 1 };
        segments.push(Bytes::from(segment.repeat(times)));
        len += segment.len() * times;
    }
    let whole = segments.concat();
    // How many segments are encoded at once.
    let together = 1 + usize::from(kind >> 5 & 1);
    match kind % 3 {
        0 | 1 => check_frames(&segments, together, &whole, kind % 3 == 0),
        _ => check_events(&segments, together, &whole),
    }
    whole.len() > 1000 && std::str::from_utf8(&whole).is_err()
}

fn check_frames(segments: &[Bytes], together: usize, whole: &[u8], original: bool) {
    let mut framer = Framer::new(original);
    let mut out = ByteQueue::default();
    for pair in segments.chunks(together) {
        framer.push(pair.to_vec().into(), &mut out);
    }
    framer.end(&mut out);
    let valid = std::str::from_utf8(whole).is_ok();
    let (mut joined, mut binary) = (Vec::new(), false);
    for event in decode(&out.take_all().concat(), false, u64::MAX) {
        match event {
            PeerEvent::Part { text, payload, end: true } => {
                assert!(!payload.is_empty());
                assert!(!valid || text && std::str::from_utf8(&payload).is_ok(), "a character was cut");
                assert!(!original || text && payload.len() <= 10 * 1024);
                if !original {
                    assert!(!text || !binary && std::str::from_utf8(&payload).is_ok());
                    binary |= !text;
                }
                joined.extend_from_slice(&payload);
            }
            PeerEvent::Eof { between: true } => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(joined == whole);
    assert!(original || !binary || std::str::from_utf8(whole).is_err());
}

fn check_events(segments: &[Bytes], together: usize, whole: &[u8]) {
    let life = Life::from_bits(7);
    let mut encoder = Encoder::new(life, 5);
    let mut stream = encoder.begin(State::Live).to_vec();
    for pair in segments.chunks(together) {
        stream.extend_from_slice(&encoder.data(pair));
    }
    stream.extend_from_slice(&encoder.end(State::Finished));
    let stream = String::from_utf8(stream).expect("a stream of events is UTF-8");
    let (mut joined, mut ended) = (Vec::new(), false);
    // No line of data ends with CR, so that an empty line is the only end of an event.
    assert!(!stream.contains('\r'));
    let valid = std::str::from_utf8(whole).is_ok() && !whole.contains(&b'\r');
    let prefix = format!("{life}:");
    let (mut name, mut data, mut id) = ("", None::<String>, "");
    for line in stream.split('\n') {
        let (field, value) = line.split_once(": ").unwrap_or((line, ""));
        match field {
            "event" => name = value,
            "id" => id = value,
            "data" => match &mut data {
                None => data = Some(value.to_owned()),
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
            },
            "retry" => assert_eq!((name, value, joined.len()), ("", "1000", 0)),
            "" => {
                // The end of an event.
                let Some(data) = data.take() else { continue };
                assert!(!ended);
                match name {
                    "" => joined.extend_from_slice(data.as_bytes()),
                    "base64" if valid => panic!("text was encoded as base64"),
                    "base64" => joined.extend(BASE64.decode(data.as_bytes()).expect("base64")),
                    "state" => ended = data.contains("finished"),
                    other => panic!("a forged event {other:?}"),
                }
                let at = id.strip_prefix(&*prefix).expect("the life");
                assert_eq!(at.parse(), Ok(5 + joined.len()));
                (name, id) = ("", "");
            }
            other => panic!("a forged field {other:?}"),
        }
    }
    assert!(ended && joined == whole);
}
