//! The control messages of `httpfstream.v1` (protocol section 4).

use serde_json::Value;

use crate::buffer::ByteQueue;
use crate::state::{End, Life, State};
use crate::websocket::frame::{Kind, put_header};

/// Queues a TEXT message from the server.
pub(crate) fn queue(out: &mut ByteQueue, message: &str) {
    out.write_with(|buf| {
        put_header(buf, Kind::Text, message.len(), None);
        buf.extend_from_slice(message.as_bytes());
    });
}

/// The server's first message to an appender.
pub(crate) fn appending(offset: u64, life: Life, resumed: bool) -> String {
    format!(r#"{{"offset":{offset},"life":"{life}","resumed":{resumed}}}"#)
}

pub(crate) fn ack(len: u64) -> String {
    format!(r#"{{"ack":{len}}}"#)
}

pub(crate) fn finished(len: u64) -> String {
    format!(r#"{{"ack":{len},"finished":true}}"#)
}

/// The server's first message to a follower.
pub(crate) fn following(offset: u64, life: Life, state: State) -> String {
    format!(r#"{{"offset":{offset},"life":"{life}","state":"{state}"}}"#)
}

pub(crate) fn state(state: State) -> String {
    format!(r#"{{"state":"{state}"}}"#)
}

pub(crate) fn ended(state: State, len: u64) -> String {
    format!(r#"{{"state":"{state}","length":{len}}}"#)
}

/// Parses an appender's message, of which there is one so far: the finish. `None` for anything else.
pub(crate) fn finish(message: &[u8]) -> Option<End> {
    let message: Value = serde_json::from_slice(message).ok()?;
    let message = message.as_object()?;
    message.get("finish")?.as_bool().filter(|finish| *finish)?;
    match message.get("seal") {
        None | Some(Value::Bool(false)) => Some(End::Finished),
        Some(Value::Bool(true)) => Some(End::Sealed),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_finish_is_recognized() {
        assert_eq!(finish(br#" {"x":[{}], "finish" : true} "#), Some(End::Finished));
        assert_eq!(finish(br#"{"finish":true,"seal":false}"#), Some(End::Finished));
        assert_eq!(finish(br#"{"seal":true,"finish":true}"#), Some(End::Sealed));
        for unknown in
            ["", "{}", "[]", "null", r#"{"finish":false}"#, r#"{"finish":1}"#, r#"{"seal":true}"#, "{\"finish\":true"]
        {
            assert_eq!(finish(unknown.as_bytes()), None, "{unknown}");
        }
        assert_eq!(finish(br#"{"finish":true,"seal":"yes"}"#), None);
        assert_eq!(finish(b"\xff\xfe"), None);
        assert_eq!(finish("[".repeat(16_000).as_bytes()), None, "as deep as a message can be");
    }
}
