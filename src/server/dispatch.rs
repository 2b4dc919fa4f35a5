//! From an intent to a response. Each handler checks the request first, then turns to the storage, and upgrades the
//! connection last.

use std::sync::Arc;

use http::{HeaderValue, Method, Request, Response, header, request};
use http_body::Body;

use super::append::upload::upload;
use super::append::websocket::append;
use super::config::Options;
use super::cors;
use super::delete::delete;
use super::follow::{body, websocket};
use super::intent::{Intent, Rules};
use super::read::read;
use super::response::problem;
use crate::access::Verb;
use crate::body::{OwnBody, RequestBody, drain, full, request_body};
use crate::error::{BoxError, ErrorKind, Result};
use crate::hub::Hub;
use crate::key::Key;

/// Answers a request, or returns it as the error if the inner service has to answer it.
pub(crate) async fn respond<B>(
    hub: &Arc<Hub>,
    options: &Options,
    intent: Intent,
    request: Request<B>,
) -> Result<Response<OwnBody>, Request<B>>
where
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    let (mut head, body) = request.into_parts();
    let mut body = Some(body);
    let mut take_body = || body.take().map(request_body).unwrap_or_default();
    let response = dispatch(hub, options, intent, &mut head, &mut take_body).await;
    match (response, body) {
        (None, Some(body)) => Err(Request::from_parts(head, body)),
        (Some(response), body) => {
            // Polling a body behind `Expect` would send 100 Continue.
            let unread = response.status().is_success() || head.headers.contains_key(header::EXPECT);
            if let Some(body) = body.filter(|_| !unread) {
                drain(request_body(body));
            }
            Ok(response)
        }
        // Only an append takes the body, and it has a response.
        (None, None) => Ok(problem(&ErrorKind::NotFound.into())),
    }
}

/// Answers a request for one resource, whatever its path. A request without a verb means what its method says.
pub(crate) async fn serve<B>(
    hub: &Arc<Hub>,
    options: &Options,
    key: Result<Key>,
    request: Request<B>,
) -> Response<OwnBody>
where
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    let rules = Rules { plain: true, verb_from_method: true, ..Rules::default() };
    let intent = match key {
        Ok(key) => match rules.intent_for(&request, || Ok(key)) {
            Intent::Pass if options.read_only => Intent::MethodNotAllowed { allow: "GET, HEAD" },
            Intent::Pass => Intent::MethodNotAllowed { allow: "GET, HEAD, PUT, POST, PATCH, DELETE" },
            intent => intent,
        },
        Err(error) => Intent::Refuse(error),
    };
    respond(hub, options, intent, request).await.unwrap_or_else(|_| problem(&ErrorKind::NotFound.into()))
}

/// Answers what the intent names. `None`: the inner service answers, because there is no such resource and the request names
/// no verb. `request_body` is called only once the body will be appended.
async fn dispatch(
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
