//! Appending by the body of a request, resumable uploads among them (protocol section 5).

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header, request};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::AppendLimits;
use super::body::{self, BodyOptions, OnEnd};
use crate::access::{Allowed, Verb};
use crate::body::{OwnBody, RequestBody, full};
use crate::error::{Error, ErrorKind, Result};
use crate::hub::{AttachRequest, Attached, Hub};
use crate::identity::Owner;
use crate::key::Key;
use crate::protocol::headers::{UPLOAD_COMPLETE, UPLOAD_DRAFT, UPLOAD_LENGTH};
use crate::server::checks::{authorize, depends_on_another};
use crate::server::config::Options;
use crate::server::intent::{is_media_type, is_partial_upload};
use crate::server::parameters::{Parameters, bad, digits, malformed};
use crate::server::response::{describe, problem_with_stat};
use crate::state::Stat;
use crate::storage::Open;

/// What the head of such a request asks for.
#[derive(Debug, PartialEq, Eq)]
struct Upload {
    parameters: Parameters,
    then: OnEnd,
    /// Whoever sends it knows how to go on after a cut.
    resumable: bool,
    /// How long the resource will be at least, as far as that can be told.
    length: Option<u64>,
    /// How much this body adds to it, if it says so.
    more: Option<u64>,
    /// How long it will be in the end, if that was told.
    whole: Option<u64>,
}

impl Upload {
    fn of(head: &request::Parts) -> Result<Self> {
        let headers = &head.headers;
        // It looks like a WebSocket whose upgrade was lost on its way.
        if head.method == Method::GET {
            return Err(ErrorKind::UpgradeRequired.into());
        }
        check_media(&head.method, headers)?;
        if headers.contains_key(header::CONTENT_RANGE) {
            // RFC 9110 section 14.5 asks for this where it isn't understood.
            return Err(bad("a `Content-Range` can't be written: say `Upload-Offset`".to_owned()));
        }
        let mut parameters = Parameters::to_append(head)?;
        if headers.contains_key("upload-incomplete") {
            // What it says is the contrary.
            return Err(bad(
                "`Upload-Incomplete` is of a draft that is not spoken here: say `Upload-Complete`".to_owned()
            ));
        }
        let draft = headers.contains_key(UPLOAD_DRAFT);
        let complete = match headers.get(UPLOAD_COMPLETE).map(HeaderValue::as_bytes) {
            None => None,
            Some(b"?1") => Some(true),
            Some(b"?0") => Some(false),
            Some(_) => return Err(malformed("Upload-Complete")),
        };
        match head.method {
            // A whole resource, and the creation of an upload: nothing may be there.
            Method::PUT => parameters.offset = parameters.offset.or(Some(0)),
            Method::POST if draft => parameters.offset = parameters.offset.or(Some(0)),
            Method::PATCH if parameters.offset.is_none() => {
                return Err(bad("a PATCH has to say its `Upload-Offset`".to_owned()));
            }
            _ => {}
        }
        let told = |name: HeaderName| match headers.get(&name) {
            None => Ok(None),
            Some(value) => value.to_str().ok().and_then(digits).map(Some).ok_or_else(|| malformed(name.as_str())),
        };
        let more = told(header::CONTENT_LENGTH)?;
        let body = more.map(|len| len.saturating_add(parameters.offset.unwrap_or(0)));
        let whole = told(UPLOAD_LENGTH)?;
        Ok(Self {
            length: body.max(whole),
            more,
            whole,
            then: if complete == Some(false) { OnEnd::Park } else { OnEnd::Finish },
            resumable: complete.is_some() || draft || head.method == Method::PATCH,
            parameters,
        })
    }
}

/// What is stored is what is sent, so what is sent has to be what is meant.
fn check_media(method: &Method, headers: &HeaderMap) -> Result<()> {
    let refuse = |why| Err(Error::new(ErrorKind::MediaType).with_detail(why));
    let coded = headers.get_all(header::CONTENT_ENCODING).into_iter().any(|coding| coding != "identity");
    if coded {
        return refuse("a body with a `Content-Encoding` can't be appended: send it as it is");
    }
    let media = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    if media.is_some_and(|media| is_media_type(media, "multipart/form-data")) {
        return refuse(
            "a form can't be appended: send the bytes as they are (curl: `-T FILE` or `--data-binary @FILE`)",
        );
    }
    // Early drafts had no type of their own, and browsers then send the file's.
    if *method == Method::PATCH && !is_partial_upload(headers) && !headers.contains_key(UPLOAD_DRAFT) {
        return refuse("a PATCH that appends has the `Content-Type` application/partial-upload");
    }
    Ok(())
}

/// PUT, POST or PATCH that appends its body.
pub(crate) async fn upload(
    hub: &Arc<Hub>,
    options: &Options,
    key: Key,
    head: &request::Parts,
    request_body: impl FnOnce() -> RequestBody,
) -> Result<Response<OwnBody>> {
    options.origins.check(head)?;
    let Upload { parameters, then, resumable, length, more, whole } = Upload::of(head)?;
    let Allowed { key, left, principal } = authorize(options, Verb::Append, key, head).await?;
    let by_id = parameters.appender.map(|id| Owner::new(&id, principal.as_deref()));
    let mut attach = AttachRequest {
        how: if parameters.create { Open::Create } else { Open::Continue },
        owner: by_id.or(resumable.then_some(Owner::ANYONE)),
        offset: parameters.offset,
        life: parameters.life,
        finish: parameters.finish,
    };
    let attached = match check(hub, options, &key, head, (length, more), &mut attach).await {
        Ok(()) => hub.attach(&key, attach).await,
        Err(error) => Err(error),
    };
    let lease = match attached {
        Ok(Attached::Open { lease, .. }) => lease,
        Ok(Attached::Finished(stat)) => return Ok(done(&stat, StatusCode::OK, head)),
        Err(error) => return Ok(problem_with_stat(&error, hub.stat(&key).await.ok().flatten())),
    };
    let began = lease.resource().len() == 0 && head.method != Method::PATCH;
    let limits = AppendLimits {
        times: options.times,
        max_message: options.max_message,
        max_resource: options.max_resource,
        until: left.map(|left| Instant::now() + left),
    };
    // A task of its own: what has arrived is stored even if the client goes away meanwhile, or a layer outside has given
    // another answer. OnEnd it comes to its end.
    let left = CancellationToken::new();
    let _answering = left.clone().drop_guard();
    let taking = BodyOptions { version: head.version, then, length: whole.filter(|_| then == OnEnd::Finish), left };
    let appending = body::append(Arc::clone(hub), request_body(), taking, lease, limits);
    match hub.tasks.spawn(appending).await.map_err(Error::storage).flatten() {
        Ok(stat) => Ok(done(&stat, if began { StatusCode::CREATED } else { StatusCode::OK }, head)),
        Err(error) => Ok(problem_with_stat(&error, hub.stat(&key).await.ok().flatten())),
    }
}

/// What can be refused before anything is opened. Pins the resource as it is found, if the request depends on that.
async fn check(
    hub: &Arc<Hub>,
    options: &Options,
    key: &Key,
    head: &request::Parts,
    (length, more): (Option<u64>, Option<u64>),
    attach: &mut AttachRequest,
) -> Result<()> {
    if length.is_some_and(|length| length > options.max_resource) {
        return Err(ErrorKind::TooLarge.into());
    }
    let headers = &head.headers;
    let conditional = headers.contains_key(header::IF_MATCH)
        || headers.get_all(header::IF_NONE_MATCH).into_iter().any(|value| value != "*");
    let at_end = attach.offset.is_none() && more.is_some() && options.max_resource != u64::MAX;
    if !conditional && !at_end {
        return Ok(());
    }
    let Some(stat) = hub.stat(key).await? else {
        return if headers.contains_key(header::IF_MATCH) { Err(ErrorKind::Precondition.into()) } else { Ok(()) };
    };
    if at_end && more.is_some_and(|more| stat.len.saturating_add(more) > options.max_resource) {
        return Err(ErrorKind::TooLarge.into());
    }
    if conditional {
        if depends_on_another(headers, &stat) {
            return Err(ErrorKind::Precondition.into());
        }
        // It has to be so still when it is opened.
        attach.offset = attach.offset.or(Some(stat.len));
        attach.life = attach.life.or(Some(stat.life));
    }
    Ok(())
}

fn done(stat: &Stat, status: StatusCode, head: &request::Parts) -> Response<OwnBody> {
    let mut response = Response::new(full(""));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    describe(headers, stat);
    if status == StatusCode::CREATED {
        // Relative, since a router may have taken a prefix off; `./` for a name with a colon.
        let path = head.uri.path();
        let name = path.rsplit('/').next().unwrap_or(path);
        if let Ok(location) = HeaderValue::try_from(format!("./{name}")) {
            headers.insert(header::LOCATION, location);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload(method: &str, query: &str, headers: &[(&str, &str)]) -> Result<Upload> {
        let mut request = http::Request::builder().method(method).uri(format!("/a?{query}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Upload::of(&request.body(()).unwrap().into_parts().0)
    }

    fn refused(method: &str, query: &str, headers: &[(&str, &str)]) -> ErrorKind {
        upload(method, query, headers).unwrap_err().kind()
    }

    const PATCH: (&str, &str) = ("content-type", "application/partial-upload");

    #[test]
    fn methods_begin_where_they_should() {
        let begins = |method, headers: &[_]| upload(method, "", headers).unwrap().parameters.offset;
        assert_eq!(begins("PUT", &[]), Some(0));
        assert_eq!(begins("PUT", &[("upload-offset", "7")]), Some(7));
        assert_eq!(begins("POST", &[]), None);
        assert_eq!(begins("POST", &[("upload-draft-interop-version", "6")]), Some(0));
        assert_eq!(begins("PATCH", &[PATCH, ("upload-offset", "7")]), Some(7));
        assert_eq!(refused("PATCH", "", &[PATCH]), ErrorKind::BadRequest);
        assert_eq!(refused("GET", "", &[]), ErrorKind::UpgradeRequired);
    }

    #[test]
    fn what_the_end_of_the_body_means() {
        let means = |headers: &[_]| {
            let Upload { then, resumable, .. } = upload("POST", "", headers).unwrap();
            (then, resumable)
        };
        assert_eq!(means(&[]), (OnEnd::Finish, false));
        assert_eq!(means(&[("upload-complete", "?1")]), (OnEnd::Finish, true));
        assert_eq!(means(&[("upload-complete", "?0")]), (OnEnd::Park, true));
        assert_eq!(refused("POST", "", &[("upload-incomplete", "?1")]), ErrorKind::BadRequest);
        for odd in ["1", "?2", "", "true", "?0;a"] {
            assert_eq!(refused("POST", "", &[("upload-complete", odd)]), ErrorKind::BadRequest, "{odd}");
        }
    }

    #[test]
    fn lengths_are_told_where_they_can_be() {
        let length = |method, headers: &[_]| upload(method, "", headers).unwrap().length;
        assert_eq!(length("PUT", &[]), None);
        assert_eq!(length("PUT", &[("content-length", "5")]), Some(5));
        assert_eq!(length("POST", &[("content-length", "5"), ("upload-offset", "7")]), Some(12));
        assert_eq!(length("POST", &[("content-length", "5"), ("upload-length", "100")]), Some(100));
        assert_eq!(
            length("POST", &[("content-length", "5"), ("upload-offset", "18446744073709551615")]),
            Some(u64::MAX)
        );
        assert_eq!(refused("POST", "", &[("upload-length", "-1")]), ErrorKind::BadRequest);
    }

    #[test]
    fn what_would_not_be_stored_as_it_is_meant_is_refused() {
        for (method, headers) in [
            ("POST", &[("content-type", "multipart/form-data; boundary=x")][..]),
            ("PUT", &[("content-encoding", "gzip")]),
            ("PATCH", &[("upload-offset", "0")]),
            ("PATCH", &[("upload-offset", "0"), ("content-type", "text/plain")]),
        ] {
            assert_eq!(refused(method, "", headers), ErrorKind::MediaType, "{method} {headers:?}");
        }
        assert_eq!(refused("PUT", "", &[("content-range", "bytes 0-1/2")]), ErrorKind::BadRequest);
        for headers in [
            &[("content-type", "application/x-www-form-urlencoded")][..],
            &[("content-encoding", "identity")],
            &[("content-type", "text/plain; charset=utf-8")],
        ] {
            assert!(upload("POST", "", headers).is_ok(), "{headers:?}");
        }
        let draft = [("upload-draft-interop-version", "5"), ("upload-offset", "0"), ("content-type", "text/plain")];
        assert!(upload("PATCH", "", &draft).is_ok());
    }
}
