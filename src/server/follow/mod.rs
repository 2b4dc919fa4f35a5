//! Following: over a WebSocket, or by the body of a response.

pub(crate) mod body;
pub(crate) mod dialect;
mod group;
mod response_body;
pub(crate) mod websocket;

use std::sync::Arc;
use std::time::Duration;

use super::config::Options;
use crate::error::{ErrorKind, Result};
use crate::hub::{Found, Hub};
use crate::key::Key;

/// What there is to follow, waited for as long as was asked for.
pub(crate) async fn find(hub: &Arc<Hub>, options: &Options, key: &Key, wait: Option<Duration>) -> Result<Found> {
    let found = match wait.map(|wait| wait.min(options.max_wait)) {
        None | Some(Duration::ZERO) => hub.follow(key).await?,
        Some(limit) => hub.follow_when_created(key, limit).await?,
    };
    match found.ok_or(ErrorKind::NotFound)? {
        // New work is refused while shutting down, reading what is at rest is none.
        Found::Open(_) if hub.shutting_down.is_cancelled() => Err(ErrorKind::ShuttingDown.into()),
        found => Ok(found),
    }
}
