//! Following: over a WebSocket, or in the body of a response.

pub(crate) mod body;
mod dialect;
mod group;
mod response_body;
#[cfg(test)]
mod tests;
pub(crate) mod websocket;

use std::sync::Arc;
use std::time::Duration;

use super::config::Options;
use crate::error::{ErrorKind, Result};
use crate::hub::{Found, Hub};
use crate::key::Key;

/// Looks up the resource to follow, and waits up to `wait` for it to be created.
async fn find(hub: &Arc<Hub>, options: &Options, key: &Key, wait: Option<Duration>) -> Result<Found> {
    let found = match wait.map(|wait| wait.min(options.max_wait)) {
        None | Some(Duration::ZERO) => hub.follow(key).await?,
        Some(limit) => hub.follow_when_created(key, limit).await?,
    };
    match found.ok_or(ErrorKind::NotFound)? {
        // A shutdown refuses new work, and reading a closed resource is none.
        Found::Open(_) if hub.shutting_down.is_cancelled() => Err(ErrorKind::ShuttingDown.into()),
        found => Ok(found),
    }
}
