//! Tower middleware for live, durable byte streams over HTTP.
//!
//! A **resource** is an append-only byte stream at a URL path. One appender at a time writes it, any number of followers
//! read it: first what is stored, then what arrives, then the end, and whether that was the end or a cut. Appenders and
//! followers come over WebSocket, with plain HTTP (request bodies, live response bodies, server-sent events), or from
//! inside the process. What is stored can be fetched with a plain GET.
//!
//! ```no_run
//! # #[cfg(unix)]
//! # #[tokio::main] async fn main() -> Result<(), httpfstream::BoxError> {
//! use axum::{Router, routing::get};
//! use httpfstream::{HttpFStreamLayer, storage::FsStorage};
//!
//! let logs = HttpFStreamLayer::new(FsStorage::open("./logs")?).mount("/streams");
//! let app = Router::new().route("/", get(|| async { "my application" })).layer(logs);
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
//! axum::serve(listener, app).await?;
//! # Ok(()) }
//! # #[cfg(not(unix))] fn main() {}
//! ```
//!
//! Now `make 2>&1 | curl -T - 'http://localhost:8080/streams/build.log?verb=APPEND'` appends, `curl -N` with
//! `?verb=FOLLOW` follows, and without a verb it gets what is stored. So do
//! `new WebSocket('ws://localhost:8080/streams/build.log?verb=FOLLOW')` and `EventSource`. Everybody may do that: see
//! [`authorize`](HttpFStreamLayer::authorize).
//!
//! # Where things are
//!
//! | | |
//! |---|---|
//! | [`HttpFStreamLayer`], [`HttpFStream`] | the layer, and the service that it makes |
//! | [`Access`], [`Grant`], [`Denied`] | who may do what |
//! | [`Streams`] | append, follow, list, delete, listen, serve and shut down in the process; [`Appender`], [`AppenderId`], [`Follower`], [`Chunk`], [`Events`] |
//! | [`storage`] | where bytes live: files, memory, or a storage of one's own, with its contract |
//! | [`Error`], [`ErrorKind`] | what went wrong |
//! | [`Key`] | the name of a resource |
//! | `client` (feature `client`) | append and follow from other programs |
//! | [`FOLLOW_JS`] | follow from web pages |
//! | [`docs`] | pages, from the [quick start](docs::quick_start) over [mounting](docs::mounting) and [the protocol](docs::protocol) to the [architecture](docs::architecture) |
//!
//! # How it works
//!
//! A resource is bytes in a [`storage`] plus one number, the committed length. The appender makes bytes committed and
//! then moves the number. A follower is an offset: it reads from there up to the number, writes that to its socket
//! as one piece, and waits for the number's next change. Nothing is queued per follower. So nobody waits for anybody,
//! nobody misses or repeats a byte, and a slow follower simply reads larger pieces later.
//!
//! It runs within tokio, with time enabled, as `#[tokio::main]` and every server has it.
//!
//! # Features
//!
//! None is on by default.
//!
//! - `client`: the client library, for `http` and `ws`.
//! - `tls`: `https` and `wss` for the client, with the system's root certificates.
//! - `conformance`: tests of the storage contract for those who implement a storage, `storage::conformance`.
//! - `axum`: [`Error`] is an `IntoResponse`, so handlers can return it.
//! - `cli`: the programs `httpfstream-server`, `httpfstream-append` and `httpfstream-follow`.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

#[cfg(feature = "client")]
pub mod client;
pub mod docs;
#[cfg(all(feature = "client", any(fuzzing, test)))]
#[doc(hidden)]
pub mod fuzzing;
pub mod storage;

mod access;
#[cfg(feature = "axum")]
mod axum;
mod body;
mod budget;
mod buffer;
mod chunk;
mod error;
mod future;
mod hub;
mod identity;
mod key;
mod layer;
mod protocol;
mod server;
mod service;
mod state;
mod streams;
mod web;
#[cfg_attr(not(feature = "client"), allow(dead_code))]
mod websocket;

pub use crate::access::{Access, Denied, Grant, Verb};
pub use crate::body::ResponseBody;
pub use crate::chunk::{Chunk, FollowBody, Update};
pub use crate::error::{BoxError, Error, ErrorKind, Result};
pub use crate::future::ResponseFuture;
pub use crate::hub::{Durability, Event};
pub use crate::identity::{AppenderId, Owner};
pub use crate::key::Key;
pub use crate::layer::HttpFStreamLayer;
pub use crate::service::{HttpFStream, NotFound};
pub use crate::state::{Life, Stat, State};
pub use crate::streams::{AppendRequest, Appender, Events, FollowRequest, Follower, Streams, StreamsBuilder};
pub use crate::web::FOLLOW_JS;

/// Tests the README's code.
#[cfg(all(doctest, unix, feature = "client"))]
#[doc = include_str!("../README.md")]
struct Readme;
