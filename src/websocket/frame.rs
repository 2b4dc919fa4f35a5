//! Decoding and encoding of frames, without I/O.

use std::borrow::Cow;
use std::io::Cursor;

use bytes::{Buf, Bytes, BytesMut};
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// The longest payload of a control frame (RFC 6455 section 5.5).
const MAX_CONTROL: u64 = 125;

/// An event in the bytes from a peer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A part of a message's payload, cut anywhere.
    Data {
        payload: Bytes,
        end: bool,
        /// Whether the message is TEXT: the opcode of its first frame says so.
        text: bool,
    },
    Ping(Bytes),
    Pong,
    /// A close frame, with its code if it has one.
    Close(Option<u16>),
}

/// A violation of the protocol, and the close code to answer with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProtocolError {
    pub(crate) code: u16,
    pub(crate) reason: Cow<'static, str>,
}

impl ProtocolError {
    fn protocol(reason: &'static str) -> Self {
        Self { code: 1002, reason: reason.into() }
    }
}

/// The decoding end of the connection: a server always gets masked frames, a client unmasked ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Server,
    Client,
}

/// Turns bytes into [`Event`]s. Holds no payload of messages itself.
#[derive(Debug)]
pub(crate) struct Decoder {
    role: Role,
    max_message: u64,
    /// The data frame whose payload is being decoded.
    frame: Option<DataFrame>,
    /// Whether a message has begun and not ended.
    in_message: bool,
    /// Whether that message is TEXT.
    text: bool,
    /// Payload length of the message's frames so far, as their headers declare it.
    message_len: u64,
    /// The reason in the peer's close frame: UTF-8, at most 123 bytes.
    close_reason: Bytes,
}

#[derive(Debug)]
struct DataFrame {
    remaining: u64,
    mask: Option<[u8; 4]>,
    last: bool,
}

impl Decoder {
    /// `max_message` limits the payload of a message, in bytes.
    pub(crate) fn new(role: Role, max_message: u64) -> Self {
        Self {
            role,
            max_message,
            frame: None,
            in_message: false,
            text: false,
            message_len: 0,
            close_reason: Bytes::new(),
        }
    }

    /// Whether the decoder is between two messages, so that an end here truncates nothing.
    pub(crate) fn between_messages(&self) -> bool {
        self.frame.is_none() && !self.in_message
    }

    /// The reason in the peer's close frame, or an empty string. This is untrusted text.
    pub(crate) fn close_reason(&self) -> &str {
        std::str::from_utf8(&self.close_reason).unwrap_or_default()
    }

    /// The next event, or `None` if `buf` needs more bytes. `take_buf` lets it take the whole buffer as payload,
    /// where the caller wouldn't reuse its memory.
    pub(crate) fn decode(&mut self, buf: &mut BytesMut, take_buf: bool) -> Result<Option<Event>, ProtocolError> {
        loop {
            if let Some(frame) = &mut self.frame {
                if frame.remaining > 0 && buf.is_empty() {
                    return Ok(None);
                }
                let take = frame.remaining.min(buf.len() as u64) as usize;
                // Taking the whole buffer avoids the reference-count allocation of `split_to`.
                let whole = take_buf && take == buf.len();
                let mut payload = if whole { std::mem::take(buf) } else { buf.split_to(take) };
                frame.remaining -= take as u64;
                if let Some(mask) = &mut frame.mask {
                    apply_mask(&mut payload, *mask);
                    mask.rotate_left(take % 4);
                }
                if frame.remaining > 0 {
                    return Ok(Some(Event::Data { payload: payload.freeze(), end: false, text: self.text }));
                }
                let end = frame.last;
                self.frame = None;
                if end {
                    self.in_message = false;
                    self.message_len = 0;
                }
                if end || take > 0 {
                    return Ok(Some(Event::Data { payload: payload.freeze(), end, text: self.text }));
                }
                continue;
            }
            let mut cursor = Cursor::new(&buf[..]);
            let parsed = FrameHeader::parse(&mut cursor).map_err(|_| ProtocolError::protocol("bad frame header"))?;
            let Some((header, len)) = parsed else { return Ok(None) };
            let header_len = cursor.position() as usize;
            self.check(&header)?;
            match header.opcode {
                OpCode::Control(control) => {
                    if len > MAX_CONTROL {
                        return Err(ProtocolError::protocol("control frame over 125 bytes"));
                    }
                    if ((buf.len() - header_len) as u64) < len {
                        return Ok(None);
                    }
                    buf.advance(header_len);
                    let mut payload = buf.split_to(len as usize);
                    if let Some(mask) = header.mask {
                        apply_mask(&mut payload, mask);
                    }
                    return self.control(control, payload.freeze()).map(Some);
                }
                OpCode::Data(data) => {
                    match data {
                        Data::Continue if !self.in_message => {
                            return Err(ProtocolError::protocol("continuation without a message"));
                        }
                        Data::Text | Data::Binary if self.in_message => {
                            return Err(ProtocolError::protocol("a message began inside another"));
                        }
                        Data::Continue => {}
                        Data::Text | Data::Binary => self.text = data == Data::Text,
                        Data::Reserved(_) => {}
                    }
                    let total = self.message_len.checked_add(len).filter(|total| *total <= self.max_message);
                    let Some(total) = total else {
                        return Err(ProtocolError { code: 1009, reason: "message over the size limit".into() });
                    };
                    buf.advance(header_len);
                    self.message_len = total;
                    self.in_message = true;
                    self.frame = Some(DataFrame { remaining: len, mask: header.mask, last: header.is_final });
                }
            }
        }
    }

    fn check(&self, header: &FrameHeader) -> Result<(), ProtocolError> {
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(ProtocolError::protocol("reserved bits are set"));
        }
        match (self.role, header.mask) {
            (Role::Server, None) => return Err(ProtocolError::protocol("a client's frame is not masked")),
            (Role::Client, Some(_)) => return Err(ProtocolError::protocol("a server's frame is masked")),
            _ => {}
        }
        if matches!(header.opcode, OpCode::Control(_)) && !header.is_final {
            return Err(ProtocolError::protocol("fragmented control frame"));
        }
        Ok(())
    }

    fn control(&mut self, control: Control, mut payload: Bytes) -> Result<Event, ProtocolError> {
        match control {
            Control::Ping => Ok(Event::Ping(payload)),
            Control::Pong => Ok(Event::Pong),
            Control::Close => match payload.len() {
                0 => Ok(Event::Close(None)),
                1 => Err(ProtocolError::protocol("close frame of one byte")),
                _ => {
                    let code = payload.get_u16();
                    // RFC 6455 section 7.4: all others are reserved, or must not be sent.
                    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                        return Err(ProtocolError::protocol("close code that must not be sent"));
                    }
                    if std::str::from_utf8(&payload).is_err() {
                        return Err(ProtocolError { code: 1007, reason: "close reason is not UTF-8".into() });
                    }
                    self.close_reason = payload;
                    Ok(Event::Close(Some(code)))
                }
            },
            Control::Reserved(_) => Err(ProtocolError::protocol("reserved opcode")),
        }
    }
}

/// The kind of a frame to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Binary,
    Ping,
    Pong,
    Close,
}

/// Appends the header of an unfragmented frame.
pub(crate) fn put_header(buf: &mut BytesMut, kind: Kind, len: usize, mask: Option<[u8; 4]>) {
    let opcode = match kind {
        Kind::Text => OpCode::Data(Data::Text),
        Kind::Binary => OpCode::Data(Data::Binary),
        Kind::Ping => OpCode::Control(Control::Ping),
        Kind::Pong => OpCode::Control(Control::Pong),
        Kind::Close => OpCode::Control(Control::Close),
    };
    let header = FrameHeader { is_final: true, opcode, mask, ..FrameHeader::default() };
    let mut bytes = [0; 14];
    let mut cursor = Cursor::new(&mut bytes[..]);
    // A header has at most 14 bytes, so this can't fail.
    let written = header.format(len as u64, &mut cursor).map(|()| cursor.position() as usize);
    buf.extend_from_slice(&bytes[..written.unwrap_or(0)]);
}

/// The length of an unmasked frame's header, in bytes.
pub(crate) fn header_len(payload: usize) -> usize {
    match payload {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => 10,
    }
}

/// The payload of a close frame. The reason is truncated to fit into a control frame.
pub(crate) fn close_payload(code: u16, reason: &str) -> Bytes {
    let mut end = reason.len().min(MAX_CONTROL as usize - 2);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let mut payload = Vec::with_capacity(2 + end);
    payload.extend_from_slice(&code.to_be_bytes());
    payload.extend_from_slice(&reason.as_bytes()[..end]);
    payload.into()
}

/// Masks or unmasks, which is the same operation (RFC 6455 section 5.3). Tungstenite's is private.
pub(crate) fn apply_mask(data: &mut [u8], mask: [u8; 4]) {
    let wide = u64::from_ne_bytes([mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3]]);
    let (words, rest) = data.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: [u8; 4] = [1, 2, 3, 4];

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![first];
        match payload.len() {
            n @ 0..=125 => out.push(0x80 | n as u8),
            n @ 126..=0xffff => {
                out.push(0x80 | 126);
                out.extend_from_slice(&(n as u16).to_be_bytes());
            }
            n => {
                out.push(0x80 | 127);
                out.extend_from_slice(&(n as u64).to_be_bytes());
            }
        }
        out.extend_from_slice(&MASK);
        out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(b, m)| b ^ m));
        out
    }

    /// Decodes the bytes in steps of this size. Returns the messages and the control events.
    fn run(input: &[u8], step: usize, max: u64) -> (Vec<Vec<u8>>, Vec<Event>, Result<(), ProtocolError>) {
        let (mut messages, mut controls, mut message) = (Vec::new(), Vec::new(), Vec::new());
        let mut decoder = Decoder::new(Role::Server, max);
        let mut buf = BytesMut::new();
        for chunk in input.chunks(step) {
            buf.extend_from_slice(chunk);
            loop {
                match decoder.decode(&mut buf, false) {
                    Ok(Some(Event::Data { payload, end, .. })) => {
                        message.extend_from_slice(&payload);
                        if end {
                            messages.push(std::mem::take(&mut message));
                        }
                    }
                    Ok(Some(event)) => controls.push(event),
                    Ok(None) => break,
                    Err(error) => return (messages, controls, Err(error)),
                }
            }
        }
        (messages, controls, Ok(()))
    }

    #[test]
    fn messages_are_decoded_in_chunks_of_any_size() {
        let long: Vec<u8> = (0..70_000u32).map(|i| (i * 7) as u8).collect();
        let mut input = frame(0x81, b"hello");
        input.extend(frame(0x82, &long));
        input.extend(frame(0x01, b"frag"));
        input.extend(frame(0x89, b"ping inside"));
        input.extend(frame(0x00, b""));
        input.extend(frame(0x80, b"ments"));
        input.extend(frame(0x82, b""));
        input.extend(frame(0x88, &[3, 232]));
        for step in [1, 2, 3, 7, 1000, 65536, usize::MAX] {
            let (messages, controls, result) = run(&input, step, 1 << 20);
            assert_eq!(result, Ok(()));
            assert_eq!(messages, [b"hello".to_vec(), long.clone(), b"fragments".to_vec(), vec![]], "step {step}");
            assert_eq!(controls, [Event::Ping("ping inside".into()), Event::Close(Some(1000))]);
        }
    }

    #[test]
    fn fault_20_protocol_errors_are_1002() {
        let long = frame(0x89, &[0; 126]);
        let mut nested = frame(0x01, b"a");
        nested.extend(frame(0x81, b"b"));
        let cases: [(&str, &[u8]); 9] = [
            ("unmasked", &[0x81, 0x01, b'a']),
            ("rsv1", &frame(0xc1, b"a")),
            ("rsv3", &frame(0x91, b"a")),
            ("opcode 3", &frame(0x83, b"a")),
            ("opcode 11", &frame(0x8b, b"a")),
            ("long ping", &long),
            ("fragmented ping", &frame(0x09, b"a")),
            ("continuation of nothing", &frame(0x80, b"a")),
            ("message inside a message", &nested),
        ];
        for (name, input) in cases {
            for step in [1, usize::MAX] {
                let (messages, _, result) = run(input, step, 1 << 20);
                assert_eq!(result.map_err(|error| error.code), Err(1002), "{name}");
                assert!(messages.is_empty(), "{name}");
            }
        }
        for payload in [&[3][..], &[3, 237], &[3, 236], &[0, 5]] {
            assert_eq!(run(&frame(0x88, payload), 99, 1).2.map_err(|error| error.code), Err(1002), "{payload:?}");
        }
        assert_eq!(run(&frame(0x88, &[3, 232, 0xff]), 99, 1).2.map_err(|error| error.code), Err(1007));
    }

    #[test]
    fn fault_21_too_large_is_1009_before_any_payload() {
        for len in [1u64 << 63, u64::MAX, 101] {
            let mut input = vec![0x82, 0x80 | 127];
            input.extend_from_slice(&len.to_be_bytes());
            input.extend_from_slice(&MASK);
            assert_eq!(run(&input, 3, 100).2.map_err(|error| error.code), Err(1009));
        }
        let mut split = frame(0x02, &[0; 60]);
        split.extend(frame(0x80, &[0; 41]));
        assert_eq!(run(&split, 9, 100).2.map_err(|error| error.code), Err(1009));
        assert_eq!(run(&split, 9, 101).2, Ok(()));
    }

    /// All events in the bytes, and whether they end between two messages.
    fn decode(role: Role, input: &[u8]) -> (Vec<Result<Event, ProtocolError>>, bool) {
        let mut decoder = Decoder::new(role, 1 << 20);
        let mut buf = BytesMut::from(input);
        let events = std::iter::from_fn(|| decoder.decode(&mut buf, false).transpose()).take(9).collect();
        (events, decoder.between_messages())
    }

    fn data(payload: &'static [u8], end: bool, text: bool) -> Result<Event, ProtocolError> {
        Ok(Event::Data { payload: Bytes::from_static(payload), end, text })
    }

    #[test]
    fn an_end_is_between_messages_or_inside_one() {
        assert_eq!(decode(Role::Server, b""), (vec![], true));
        assert_eq!(decode(Role::Server, &frame(0x82, b"whole")), (vec![data(b"whole", true, false)], true));
        // Only the header; a part of the frame; a part of the message.
        assert_eq!(decode(Role::Server, &frame(0x82, b"whole")[..6]), (vec![], false));
        assert_eq!(decode(Role::Server, &frame(0x81, b"whole")[..7]), (vec![data(b"w", false, true)], false));
        assert_eq!(decode(Role::Server, &frame(0x01, b"some")), (vec![data(b"some", false, true)], false));
        // An empty frame is no event unless it ends a message.
        assert_eq!(decode(Role::Server, &frame(0x02, b"")), (vec![], false));
        assert_eq!(decode(Role::Server, &frame(0x81, b"")), (vec![data(b"", true, true)], true));
        let fragments = [frame(0x01, b"te"), frame(0x80, b"xt"), frame(0x82, b"b")].concat();
        let events = vec![data(b"te", false, true), data(b"xt", true, true), data(b"b", true, false)];
        assert_eq!(decode(Role::Server, &fragments), (events, true));
    }

    #[test]
    fn control_frames_have_up_to_125_bytes() {
        let ping = frame(0x89, &[b'p'; 125]);
        assert_eq!(decode(Role::Server, &ping).0, [Ok(Event::Ping(Bytes::from(vec![b'p'; 125])))]);
        assert_eq!(decode(Role::Server, &ping[..130]).0, []);
        assert_eq!(decode(Role::Server, &frame(0x88, b"")).0, [Ok(Event::Close(None))]);
        let mut decoder = Decoder::new(Role::Server, 1);
        assert_eq!(
            decoder.decode(&mut BytesMut::from(&frame(0x88, b"\x03\xe8bye")[..]), false),
            Ok(Some(Event::Close(Some(1000))))
        );
        assert_eq!(decoder.close_reason(), "bye");
    }

    #[test]
    fn each_side_decodes_what_the_other_encodes() {
        for (mask, reads, other) in [(Some(MASK), Role::Server, Role::Client), (None, Role::Client, Role::Server)] {
            for (kind, event) in [
                (Kind::Text, data(b"hello", true, true)),
                (Kind::Binary, data(b"hello", true, false)),
                (Kind::Ping, Ok(Event::Ping(Bytes::from_static(b"hello")))),
                (Kind::Pong, Ok(Event::Pong)),
            ] {
                let mut buf = BytesMut::new();
                put_header(&mut buf, kind, 5, mask);
                let mut payload = *b"hello";
                apply_mask(&mut payload, mask.unwrap_or_default());
                buf.extend_from_slice(&payload);
                assert_eq!(decode(reads, &buf), (vec![event], true), "{kind:?}");
                // A server's frames are not masked, a client's are.
                let refused = decode(other, &buf).0.remove(0);
                assert_eq!(refused.map_err(|error| error.code), Err(1002), "{kind:?}");
            }
        }
    }

    #[test]
    fn close_reasons_are_cut_on_a_character_boundary() {
        let payload = close_payload(1011, &"é".repeat(100));
        assert_eq!(payload.len(), 2 + 122);
        assert!(std::str::from_utf8(&payload[2..]).is_ok());
    }
}
