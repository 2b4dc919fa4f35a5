//! httpfstream
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

#[cfg(feature = "client")]
pub mod client;
pub mod error;
pub mod key;
pub mod storage;
#[allow(dead_code)]
mod wire;

pub use crate::error::{BoxError, Error, ErrorKind, Result};
pub use crate::key::Key;
/// Durability
pub struct Durability;
