//! The server's control messages in `httpfstream.v1`: JSON in TEXT messages.

use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};
use crate::state::{Life, State};

/// The longest control message, in bytes.
const MAX_MESSAGE: usize = 16 * 1024;
/// The largest offset that is accepted, so that sums of offsets and lengths can't overflow.
const MAX_OFFSET: u64 = i64::MAX as u64;

/// Assembles a message from its fragments.
#[derive(Debug, Default)]
pub(super) struct MessageBuffer {
    message: Vec<u8>,
}

impl MessageBuffer {
    /// Adds a fragment. Returns the message if that was its `end`.
    pub(super) fn push(&mut self, fragment: &[u8], end: bool) -> Result<Option<Vec<u8>>> {
        if fragment.len() > MAX_MESSAGE - self.message.len() {
            return Err(violation("a control message of more than 16 KiB"));
        }
        self.message.extend_from_slice(fragment);
        Ok(end.then(|| std::mem::take(&mut self.message)))
    }
}

/// A message to an appender.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ToAppender {
    /// The next byte goes to `offset`. `resumed`: the byte before it is this appender's own.
    Attached { offset: u64, life: Life, resumed: bool },
    /// Everything before this offset is durable.
    Ack(u64),
    /// The resource has ended at this length.
    Finished(u64),
}

impl ToAppender {
    pub(super) fn parse(message: &[u8]) -> Result<Self> {
        let object = object(message)?;
        match (offset(&object, "ack")?, offset(&object, "offset")?) {
            (Some(length), _) => match object.get("finished") {
                None | Some(Value::Bool(false)) => Ok(Self::Ack(length)),
                Some(Value::Bool(true)) => Ok(Self::Finished(length)),
                Some(_) => Err(unknown()),
            },
            (None, Some(offset)) => match object.get("resumed") {
                Some(Value::Bool(resumed)) => Ok(Self::Attached { offset, life: life(&object)?, resumed: *resumed }),
                _ => Err(unknown()),
            },
            (None, None) => Err(unknown()),
        }
    }
}

/// A message to a follower.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ToFollower {
    /// Data begins at `offset`.
    Begin { offset: u64, life: Life, state: State },
    /// The state changed, and the resource is still open.
    Open(State),
    /// The resource ended in this state, at this length.
    End { state: State, length: u64 },
}

impl ToFollower {
    pub(super) fn parse(message: &[u8]) -> Result<Self> {
        let object = object(message)?;
        let state: State =
            object.get("state").and_then(Value::as_str).and_then(|name| name.parse().ok()).ok_or_else(unknown)?;
        match (offset(&object, "offset")?, offset(&object, "length")?) {
            (Some(offset), _) => Ok(Self::Begin { offset, life: life(&object)?, state }),
            (None, _) if state.is_open() => Ok(Self::Open(state)),
            (None, Some(length)) => Ok(Self::End { state, length }),
            (None, None) => Err(unknown()),
        }
    }
}

fn object(message: &[u8]) -> Result<Map<String, Value>> {
    serde_json::from_slice(message)
        .map_err(|error| violation("a control message that isn't a JSON object").with_source(error))
}

fn offset(object: &Map<String, Value>, name: &str) -> Result<Option<u64>> {
    match object.get(name) {
        None => Ok(None),
        Some(value) => match value.as_u64().filter(|offset| *offset <= MAX_OFFSET) {
            Some(offset) => Ok(Some(offset)),
            None => Err(unknown()),
        },
    }
}

fn life(object: &Map<String, Value>) -> Result<Life> {
    object.get("life").and_then(Value::as_str).and_then(|digits| digits.parse().ok()).ok_or_else(unknown)
}

fn unknown() -> Error {
    violation("a control message that httpfstream.v1 doesn't know")
}

/// The error for a server that broke `httpfstream.v1` by sending `what`.
pub(super) fn violation(what: &'static str) -> Error {
    Error::new(ErrorKind::Protocol).with_detail(format!("the server broke httpfstream.v1: it sent {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: &str = "000000000000000000000000000000ff";

    #[test]
    fn messages_are_distinguished_and_unknown_members_ignored() {
        let life = Life::from_bits(255);
        let attached = format!(r#"{{"offset":7,"life":"{LIFE}","resumed":true,"new":[1]}}"#);
        assert_eq!(
            ToAppender::parse(attached.as_bytes()).unwrap(),
            ToAppender::Attached { offset: 7, life, resumed: true }
        );
        assert_eq!(ToAppender::parse(br#" { "ack" : 0 } "#).unwrap(), ToAppender::Ack(0));
        assert_eq!(ToAppender::parse(br#"{"ack":9,"finished":true}"#).unwrap(), ToAppender::Finished(9));
        let begin = format!(r#"{{"offset":7,"life":"{LIFE}","state":"lost"}}"#);
        assert_eq!(
            ToFollower::parse(begin.as_bytes()).unwrap(),
            ToFollower::Begin { offset: 7, life, state: State::Lost }
        );
        assert_eq!(ToFollower::parse(br#"{"state":"live"}"#).unwrap(), ToFollower::Open(State::Live));
        assert_eq!(
            ToFollower::parse(br#"{"state":"sealed","length":3}"#).unwrap(),
            ToFollower::End { state: State::Sealed, length: 3 }
        );
    }

    #[test]
    fn anything_else_is_a_violation() {
        let long = format!(r#"{{"offset":1,"life":"{LIFE}0","resumed":true}}"#);
        let upper = format!(r#"{{"offset":1,"life":"{}","state":"live","resumed":true}}"#, LIFE.to_uppercase());
        let deep = "[".repeat(MAX_MESSAGE);
        for text in [
            "",
            "{",
            "null",
            "[]",
            "{}",
            r#"{"ack":-1}"#,
            r#"{"ack":1.5}"#,
            r#"{"ack":"1"}"#,
            r#"{"ack":9223372036854775808}"#,
            r#"{"ack":1e400}"#,
            r#"{"ack":1,"finished":1}"#,
            r#"{"offset":1,"life":"x","resumed":true,"state":"live"}"#,
            r#"{"offset":1,"resumed":true,"state":"live"}"#,
            r#"{"state":"paused"}"#,
            r#"{"state":"finished"}"#,
            r#"{"ack":1} {}"#,
            &long,
            &upper,
            &deep,
        ] {
            let (appender, follower) = (ToAppender::parse(text.as_bytes()), ToFollower::parse(text.as_bytes()));
            assert_eq!(appender.unwrap_err().kind(), ErrorKind::Protocol, "{text}");
            assert_eq!(follower.unwrap_err().kind(), ErrorKind::Protocol, "{text}");
        }
        assert!(ToAppender::parse(b"{\"ack\":1,\"\xff\":0}").is_err());
    }

    #[test]
    fn a_message_is_assembled_up_to_its_limit() {
        let mut buffer = MessageBuffer::default();
        assert_eq!(buffer.push(b"ab", false).unwrap(), None);
        assert_eq!(buffer.push(b"c", true).unwrap().unwrap(), b"abc");
        assert_eq!(buffer.push(&[b' '; MAX_MESSAGE], true).unwrap().unwrap().len(), MAX_MESSAGE);
        buffer.push(&[b' '; MAX_MESSAGE], false).unwrap();
        assert_eq!(buffer.push(b" ", true).unwrap_err().kind(), ErrorKind::Protocol);
    }
}
