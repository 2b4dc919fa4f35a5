//! Plain DELETE.

use std::sync::Arc;

use http::{Response, StatusCode, request};

use super::checks::{authorize, depends_on_another, existing, hidden};
use super::config::Options;
use super::response::problem;
use crate::access::{Allowed, Verb};
use crate::body::{OwnBody, full};
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
    let allowed = match options.origins.check(head) {
        Ok(()) => authorize(options, Verb::Delete, key.clone(), head).await,
        Err(error) => Err(error),
    };
    if hidden(&allowed) {
        return None;
    }
    let meant = allowed.as_ref().map_or(&key, |allowed| &allowed.key);
    let stat = match existing(hub.stat(meant).await)? {
        Ok(stat) => stat,
        Err(error) => return Some(problem(&error)),
    };
    let deleted = match allowed {
        Err(error) => Err(error),
        Ok(_) if depends_on_another(&head.headers, &stat) => Err(ErrorKind::Precondition.into()),
        Ok(Allowed { key, .. }) => hub.delete(&key).await,
    };
    Some(match deleted {
        Ok(()) => {
            let mut response = Response::new(full(""));
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        }
        Err(error) => problem(&error),
    })
}
