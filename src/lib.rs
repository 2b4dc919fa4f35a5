//! httpfstream
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

#[cfg(feature = "client")]
pub mod client;
pub mod docs;
pub mod error;
pub mod key;
pub mod storage;

mod access;
mod answer;
mod append;
mod body;
mod follow;
mod future;
mod hub;
mod intent;
mod layer;
mod options;
mod respond;
mod serve;
mod service;
mod socket;
mod streams;
mod upgrade;
#[cfg_attr(not(feature = "client"), allow(dead_code))]
mod wire;

pub use crate::access::{Access, Denied, Grant};
pub use crate::body::ResponseBody;
pub use crate::error::{BoxError, Error, ErrorKind, Result};
pub use crate::future::ResponseFuture;
pub use crate::intent::Verb;
pub use crate::key::Key;
pub use crate::layer::HttpFStreamLayer;
pub use crate::service::{HttpFStream, NotFound};
pub use crate::streams::{AppendRequest, Appender, Durability, Event, Events, Follower, Streams, StreamsBuilder};
