//! From a request to its response.

pub(crate) mod append;
#[cfg(test)]
mod autobahn;
pub(crate) mod checks;
pub(crate) mod config;
mod cors;
mod delete;
pub(crate) mod dispatch;
pub(crate) mod follow;
mod handshake;
pub(crate) mod intent;
pub(crate) mod origins;
pub(crate) mod parameters;
pub(crate) mod read;
pub(crate) mod response;
