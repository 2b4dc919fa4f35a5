//! WebSocket (RFC 6455) on tungstenite's frame headers and handshake, with frames of our own.
//!
//! # Why not `WebSocketStream`
//! The original's clients send arbitrary bytes as TEXT, which tungstenite's reader refuses; it buffers whole
//! messages, allocates 128 KiB per connection, and copies what it writes. This codec takes bytes as they are, hands
//! payload on as it arrives, allocates nothing for an idle connection, and writes a frame's header and its pieces
//! with one `writev`.

#[cfg(test)]
pub(crate) mod autobahn;
pub(crate) mod conn;
pub(crate) mod frame;
pub(crate) mod keepalive;
pub(crate) mod text;

pub(crate) use self::conn::{Conn, Inbound, Message, Streamed};
