//! The names of the protocol's own headers.

use http::HeaderName;

pub(crate) const X_VERB: HeaderName = HeaderName::from_static("x-verb");
pub(crate) const APPENDER_ID: HeaderName = HeaderName::from_static("appender-id");
pub(crate) const UPLOAD_OFFSET: HeaderName = HeaderName::from_static("upload-offset");
pub(crate) const UPLOAD_COMPLETE: HeaderName = HeaderName::from_static("upload-complete");
pub(crate) const UPLOAD_LENGTH: HeaderName = HeaderName::from_static("upload-length");
/// The draft version of resumable uploads that a client speaks.
pub(crate) const UPLOAD_DRAFT: HeaderName = HeaderName::from_static("upload-draft-interop-version");
/// The media type of a PATCH that appends.
pub(crate) const PARTIAL_UPLOAD: &str = "application/partial-upload";

/// The offset of the first byte of a follower's body.
pub(crate) const STREAM_OFFSET: HeaderName = HeaderName::from_static("stream-offset");
pub(crate) const STREAM_STATE: HeaderName = HeaderName::from_static("stream-state");
pub(crate) const STREAM_LIFE: HeaderName = HeaderName::from_static("stream-life");
