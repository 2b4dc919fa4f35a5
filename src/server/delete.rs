//! Plain DELETE.

use std::sync::Arc;

use http::{Response, StatusCode, request};

use super::checks::{depends_on_another, existing, grant, writable};
use super::config::Options;
use super::response::{empty, problem};
use crate::access::{Allowed, Verb};
use crate::body::OwnBody;
use crate::error::ErrorKind;
use crate::hub::Hub;
use crate::key::Key;

/// Answers a DELETE without a verb. `None` if there is no such resource, or the application hides it.
pub(crate) async fn delete(
    hub: &Arc<Hub>,
    options: &Options,
    key: Key,
    head: &request::Parts,
) -> Option<Response<OwnBody>> {
    // Authorized before anything is looked up, so that a refusal doesn't reveal what exists.
    let key = match grant(options, Verb::Delete, key, head).await {
        Ok(Allowed { key, .. }) => key,
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => return Some(problem(&error)),
    };
    let deleted = match existing(hub.stat(&key).await)? {
        Err(error) => Err(error),
        Ok(stat) => match options.origins.check(head).and_then(|()| writable(options)) {
            Err(error) => Err(error),
            Ok(()) if depends_on_another(&head.headers, &stat) => Err(ErrorKind::Precondition.into()),
            Ok(()) => hub.delete(&key).await,
        },
    };
    Some(match deleted {
        Ok(()) => empty(StatusCode::NO_CONTENT),
        Err(error) => problem(&error),
    })
}
