//! From an intent to a response. Each handler checks the request first, then turns to the storage, and upgrades the
//! connection last.

use std::sync::Arc;

use http::{HeaderValue, Method, Response, header, request};
use http_body::Body;

use super::append::upload::upload;
use super::append::websocket::append;
use super::config::Options;
use super::cors;
use super::delete::delete;
use super::follow::{body, websocket};
use super::intent::Intent;
use super::read::read;
use super::response::problem;
use crate::access::Verb;
use crate::body::{OwnBody, RequestBody, full};
use crate::error::ErrorKind;
use crate::hub::Hub;

/// Answers a request that is ours. `None` if it names no verb and there is no such resource, so that the inner service
/// answers. `request_body` is called only once the body will be appended.
pub(crate) async fn dispatch(
    hub: &Arc<Hub>,
    options: &Options,
    intent: Intent,
    head: &mut request::Parts,
    request_body: &mut (dyn FnMut() -> RequestBody + Send),
) -> Option<Response<OwnBody>> {
    let mut response = dispatch_any(hub, options, intent, head, request_body).await?;
    if head.method == Method::HEAD {
        // hyper drops the body of a response to HEAD over HTTP/1.1, but would send it over HTTP/2.
        if let Some(len @ 1..) = response.body().size_hint().exact() {
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(len));
        }
        *response.body_mut() = full("");
    }
    cors::expose(&options.origins, head, response.headers_mut());
    Some(response)
}

/// Calls the intent's handler.
async fn dispatch_any(
    hub: &Arc<Hub>,
    options: &Options,
    intent: Intent,
    head: &mut request::Parts,
    request_body: &mut (dyn FnMut() -> RequestBody + Send),
) -> Option<Response<OwnBody>> {
    let response = match intent {
        Intent::Pass => return None,
        Intent::Refuse(error) => Err(error),
        Intent::MethodNotAllowed { allow } => {
            let mut response = problem(&ErrorKind::MethodNotAllowed.into());
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
            Ok(response)
        }
        Intent::WebSocket { verb: Verb::Append, key, upgrade, .. } => append(hub, options, key, upgrade, head).await,
        Intent::WebSocket { key, upgrade, by_header, .. } => {
            websocket::follow(hub, options, key, upgrade, by_header, head).await
        }
        Intent::Http { verb: Verb::Follow, key } => body::follow(hub, options, key, head).await,
        Intent::Http { key, .. } => upload(hub, options, key, head, request_body).await,
        Intent::Preflight => cors::preflight(&options.origins, head),
        Intent::Read { key } => return read(hub, options, key, head).await,
        Intent::Delete { key } => return delete(hub, options, key, head).await,
    };
    Some(response.unwrap_or_else(|error| problem(&error)))
}
