//! PUT, POST and PATCH: appending the body of a request, resumable uploads among them (protocol section 5).

mod head;

use std::sync::Arc;

use http::{HeaderValue, Method, Response, StatusCode, header, request};
use tokio_util::sync::CancellationToken;

use self::head::UploadHead;
use super::body::{self, BodyOptions, OnEnd};
use super::{AppendLimits, attach_request, problem_with_current_stat};
use crate::access::{Allowed, Verb};
use crate::body::{OwnBody, RequestBody};
use crate::error::{Error, ErrorKind, Result};
use crate::hub::{AttachRequest, Attached, Hub};
use crate::identity::Owner;
use crate::key::Key;
use crate::server::checks::{authorize, depends_on_another};
use crate::server::config::Options;
use crate::server::response::{describe, empty};
use crate::state::Stat;

/// Answers a PUT, POST or PATCH that appends its body. `request_body` is called once the append is accepted.
pub(crate) async fn upload(
    hub: &Arc<Hub>,
    options: &Options,
    key: Key,
    head: &request::Parts,
    request_body: impl FnOnce() -> RequestBody,
) -> Result<Response<OwnBody>> {
    options.origins.check(head)?;
    let UploadHead { parameters, on_end, resumable, body_len, final_len, min_len } = UploadHead::parse(head)?;
    let Allowed { key, left, principal } = authorize(options, Verb::Append, key, head).await?;
    let mut attach = attach_request(&parameters, principal.as_deref());
    attach.owner = attach.owner.or(resumable.then_some(Owner::ANYONE));
    let attached = match check(hub, options, &key, head, min_len, body_len, &mut attach).await {
        Ok(()) => hub.attach(&key, attach).await,
        Err(error) => Err(error),
    };
    let lease = match attached {
        Ok(Attached::Open { lease, .. }) => lease,
        Ok(Attached::Finished(stat)) => return Ok(success(StatusCode::OK, &stat, head)),
        Err(error) => return Ok(problem_with_current_stat(hub, &key, &error).await),
    };
    let creates = lease.resource().len() == 0 && head.method != Method::PATCH;
    let limits = AppendLimits::new(options, left);
    // A task of its own, which goes on to its end even if the client is gone or a layer outside has answered instead:
    // what has arrived is stored.
    let abandoned = CancellationToken::new();
    let _awaiting = abandoned.clone().drop_guard();
    let final_len = final_len.filter(|_| on_end == OnEnd::Finish);
    let body_options = BodyOptions { version: head.version, on_end, final_len, abandoned };
    let appending = body::append(Arc::clone(hub), request_body(), body_options, lease, limits);
    match hub.tasks.spawn(appending).await.map_err(Error::storage).flatten() {
        Ok(stat) => Ok(success(if creates { StatusCode::CREATED } else { StatusCode::OK }, &stat, head)),
        Err(error) => Ok(problem_with_current_stat(hub, &key, &error).await),
    }
}

/// Refuses what can be refused before the resource is opened: too many bytes, or a condition that is not met. A
/// condition that is met is carried over into `attach`, as the offset and life that the resource must still have when
/// it is opened.
async fn check(
    hub: &Arc<Hub>,
    options: &Options,
    key: &Key,
    head: &request::Parts,
    min_len: Option<u64>,
    body_len: Option<u64>,
    attach: &mut AttachRequest,
) -> Result<()> {
    if min_len.is_some_and(|len| len > options.max_resource) {
        return Err(ErrorKind::TooLarge.into());
    }
    let headers = &head.headers;
    let conditional = headers.contains_key(header::IF_MATCH)
        || headers.get_all(header::IF_NONE_MATCH).into_iter().any(|value| value != "*");
    let at_end = attach.offset.is_none() && body_len.is_some() && options.max_resource != u64::MAX;
    if !conditional && !at_end {
        return Ok(());
    }
    let Some(stat) = hub.stat(key).await? else {
        return if headers.contains_key(header::IF_MATCH) { Err(ErrorKind::Precondition.into()) } else { Ok(()) };
    };
    if at_end && body_len.is_some_and(|len| stat.len.saturating_add(len) > options.max_resource) {
        return Err(ErrorKind::TooLarge.into());
    }
    if conditional {
        if depends_on_another(headers, &stat) {
            return Err(ErrorKind::Precondition.into());
        }
        attach.offset = attach.offset.or(Some(stat.len));
        attach.life = attach.life.or(Some(stat.life));
    }
    Ok(())
}

fn success(status: StatusCode, stat: &Stat, head: &request::Parts) -> Response<OwnBody> {
    let mut response = empty(status);
    let headers = response.headers_mut();
    describe(headers, stat);
    if status == StatusCode::CREATED {
        // Relative, since a router may have stripped a prefix from the path. With `./`, since the name may have a
        // colon.
        let path = head.uri.path();
        let name = path.rsplit('/').next().unwrap_or(path);
        if let Ok(location) = HeaderValue::try_from(format!("./{name}")) {
            headers.insert(header::LOCATION, location);
        }
    }
    response
}
