//! The client against servers that are scripted byte for byte.
#![cfg(feature = "client")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "client/peer.rs"]
#[allow(dead_code)]
mod peer;

#[path = "client/append.rs"]
mod append;
#[path = "client/follow.rs"]
mod follow;
#[path = "client/handshake.rs"]
mod handshake;
#[cfg(feature = "tls")]
#[path = "client/tls.rs"]
mod tls;
