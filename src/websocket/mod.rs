//! WebSocket (RFC 6455): a codec of our own on tungstenite's frame headers and handshake.
//!
//! # Why not `WebSocketStream`
//! The original's clients send arbitrary bytes as TEXT, which tungstenite's reader refuses; it also buffers whole
//! messages, allocates 128 KiB per connection, and copies what it writes. This codec accepts any bytes, returns
//! payload as it arrives, allocates nothing for an idle connection, and writes a frame's header and payload with one
//! `writev`.

#[cfg(test)]
pub(crate) mod autobahn;
pub(crate) mod conn;
pub(crate) mod frame;
pub(crate) mod keepalive;
pub(crate) mod text;

pub(crate) use self::conn::{Conn, Inbound, Message, Streamed};
