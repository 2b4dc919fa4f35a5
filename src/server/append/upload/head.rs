//! The head of an upload: what it asks for, parsed without I/O.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header, request};

use super::super::body::OnEnd;
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::headers::{UPLOAD_COMPLETE, UPLOAD_DRAFT, UPLOAD_LENGTH};
use crate::server::intent::{is_media_type, is_partial_upload};
use crate::server::parameters::{Parameters, bad_request, malformed, unsigned};

/// What the head of an upload asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct UploadHead {
    pub(super) parameters: Parameters,
    pub(super) on_end: OnEnd,
    /// The client can resume after a cut.
    pub(super) resumable: bool,
    /// The length of this body, if it is announced.
    pub(super) body_len: Option<u64>,
    /// The length that the resource has in the end, if it is announced.
    pub(super) final_len: Option<u64>,
    /// The least length that the resource will have, as far as the head tells.
    pub(super) min_len: Option<u64>,
}

impl UploadHead {
    pub(super) fn parse(head: &request::Parts) -> Result<Self> {
        let headers = &head.headers;
        // Most likely a WebSocket handshake whose upgrade was lost on its way.
        if head.method == Method::GET {
            return Err(ErrorKind::UpgradeRequired.into());
        }
        check_media(&head.method, headers)?;
        if headers.contains_key(header::CONTENT_RANGE) {
            // RFC 9110 section 14.5 asks for a 400 where a `Content-Range` isn't supported.
            return Err(bad_request("a `Content-Range` can't be written: say `Upload-Offset`".to_owned()));
        }
        let mut parameters = Parameters::for_append(head)?;
        if headers.contains_key("upload-incomplete") {
            // Early drafts of resumable uploads have this header, with the opposite meaning.
            return Err(bad_request(
                "`Upload-Incomplete` is of a draft that is not spoken here: say `Upload-Complete`".to_owned(),
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
            // A PUT of a whole resource and the creation of an upload begin at 0: the resource must have no bytes yet.
            Method::PUT => parameters.offset = parameters.offset.or(Some(0)),
            Method::POST if draft => parameters.offset = parameters.offset.or(Some(0)),
            Method::PATCH if parameters.offset.is_none() => {
                return Err(bad_request("a PATCH has to say its `Upload-Offset`".to_owned()));
            }
            _ => {}
        }
        let length = |name: HeaderName| match headers.get(&name) {
            None => Ok(None),
            Some(value) => value.to_str().ok().and_then(unsigned).map(Some).ok_or_else(|| malformed(name.as_str())),
        };
        let body_len = length(header::CONTENT_LENGTH)?;
        let final_len = length(UPLOAD_LENGTH)?;
        let len_after_body = body_len.map(|len| len.saturating_add(parameters.offset.unwrap_or(0)));
        Ok(Self {
            body_len,
            final_len,
            min_len: len_after_body.max(final_len),
            on_end: if complete == Some(false) { OnEnd::Park } else { OnEnd::Finish },
            resumable: complete.is_some() || draft || head.method == Method::PATCH,
            parameters,
        })
    }
}

/// Refuses bodies that stand for other bytes than their own, since a body is stored as it is.
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
    // Early drafts had no media type of their own, and browsers then send the file's.
    if *method == Method::PATCH && !is_partial_upload(headers) && !headers.contains_key(UPLOAD_DRAFT) {
        return refuse("a PATCH that appends has the `Content-Type` application/partial-upload");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &str, headers: &[(&str, &str)]) -> Result<UploadHead> {
        let mut request = http::Request::builder().method(method).uri("/a");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        UploadHead::parse(&request.body(()).unwrap().into_parts().0)
    }

    fn refusal(method: &str, headers: &[(&str, &str)]) -> ErrorKind {
        parse(method, headers).unwrap_err().kind()
    }

    const PATCH: (&str, &str) = ("content-type", "application/partial-upload");

    #[test]
    fn put_and_created_uploads_begin_at_zero() {
        let offset = |method, headers: &[_]| parse(method, headers).unwrap().parameters.offset;
        assert_eq!(offset("PUT", &[]), Some(0));
        assert_eq!(offset("PUT", &[("upload-offset", "7")]), Some(7));
        assert_eq!(offset("POST", &[]), None);
        assert_eq!(offset("POST", &[("upload-draft-interop-version", "6")]), Some(0));
        assert_eq!(offset("PATCH", &[PATCH, ("upload-offset", "7")]), Some(7));
        assert_eq!(refusal("PATCH", &[PATCH]), ErrorKind::BadRequest);
        assert_eq!(refusal("GET", &[]), ErrorKind::UpgradeRequired);
    }

    #[test]
    fn upload_complete_says_what_the_end_of_the_body_means() {
        let meaning = |headers: &[_]| {
            let UploadHead { on_end, resumable, .. } = parse("POST", headers).unwrap();
            (on_end, resumable)
        };
        assert_eq!(meaning(&[]), (OnEnd::Finish, false));
        assert_eq!(meaning(&[("upload-complete", "?1")]), (OnEnd::Finish, true));
        assert_eq!(meaning(&[("upload-complete", "?0")]), (OnEnd::Park, true));
        assert_eq!(refusal("POST", &[("upload-incomplete", "?1")]), ErrorKind::BadRequest);
        for odd in ["1", "?2", "", "true", "?0;a"] {
            assert_eq!(refusal("POST", &[("upload-complete", odd)]), ErrorKind::BadRequest, "{odd}");
        }
    }

    #[test]
    fn the_least_length_follows_from_offset_body_and_announcement() {
        let min_len = |method, headers: &[_]| parse(method, headers).unwrap().min_len;
        assert_eq!(min_len("PUT", &[]), None);
        assert_eq!(min_len("PUT", &[("content-length", "5")]), Some(5));
        assert_eq!(min_len("POST", &[("content-length", "5"), ("upload-offset", "7")]), Some(12));
        assert_eq!(min_len("POST", &[("content-length", "5"), ("upload-length", "100")]), Some(100));
        assert_eq!(
            min_len("POST", &[("content-length", "5"), ("upload-offset", "18446744073709551615")]),
            Some(u64::MAX)
        );
        assert_eq!(refusal("POST", &[("upload-length", "-1")]), ErrorKind::BadRequest);
    }

    #[test]
    fn bodies_that_stand_for_other_bytes_are_refused() {
        for (method, headers) in [
            ("POST", &[("content-type", "multipart/form-data; boundary=x")][..]),
            ("PUT", &[("content-encoding", "gzip")]),
            ("PATCH", &[("upload-offset", "0")]),
            ("PATCH", &[("upload-offset", "0"), ("content-type", "text/plain")]),
        ] {
            assert_eq!(refusal(method, headers), ErrorKind::MediaType, "{method} {headers:?}");
        }
        assert_eq!(refusal("PUT", &[("content-range", "bytes 0-1/2")]), ErrorKind::BadRequest);
        for headers in [
            &[("content-type", "application/x-www-form-urlencoded")][..],
            &[("content-encoding", "identity")],
            &[("content-type", "text/plain; charset=utf-8")],
        ] {
            assert!(parse("POST", headers).is_ok(), "{headers:?}");
        }
        let draft = [("upload-draft-interop-version", "5"), ("upload-offset", "0"), ("content-type", "text/plain")];
        assert!(parse("PATCH", &draft).is_ok());
    }
}
