//! What server and client both speak: header names, the messages of `httpfstream.v1`, where a follow begins, and how bytes
//! become server-sent events.

pub(crate) mod events;
pub(crate) mod headers;
pub(crate) mod messages;
mod start;

pub(crate) use self::start::StartPosition;

/// The name of the resumable WebSocket subprotocol.
pub(crate) const SUBPROTOCOL: &str = "httpfstream.v1";
