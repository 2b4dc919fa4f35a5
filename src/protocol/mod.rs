//! The protocol that server and client share: header names, the messages of `httpfstream.v1`, the start position of a
//! follower, and the encoding of bytes as server-sent events.

pub(crate) mod events;
pub(crate) mod headers;
pub(crate) mod messages;
mod start;

pub(crate) use self::start::StartPosition;

/// The name of the resumable WebSocket subprotocol.
pub(crate) const SUBPROTOCOL: &str = "httpfstream.v1";
