//! The client against servers that are scripted byte for byte.
#![cfg(feature = "client")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
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
#[path = "client/http2.rs"]
mod http2;
#[cfg(feature = "cli")]
#[path = "client/programs.rs"]
pub(crate) mod programs;
#[path = "client/resume_append.rs"]
mod resume_append;
#[path = "client/resume_follow.rs"]
mod resume_follow;
#[cfg(feature = "cli")]
#[path = "client/resume_programs.rs"]
mod resume_programs;
#[cfg(feature = "tls")]
#[path = "client/tls.rs"]
mod tls;
