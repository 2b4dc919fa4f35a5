//! The server's close frame, as an error.

use std::borrow::Cow;

use super::refusal::printable;
use super::request::Verb;
use crate::error::{Error, ErrorKind};

/// The error for a close frame of the server (RFC 6455 section 7.4, and our own codes from 4000) that is not the
/// expected clean end.
pub(super) fn close_error(code: Option<u16>, reason: &str, verb: Verb) -> Error {
    let (kind, meaning) = match (code, verb) {
        (Some(1000), Verb::Append) => (ErrorKind::Connection, "the server ended the append of its own accord"),
        (Some(1001 | 1012), _) => (ErrorKind::ShuttingDown, "the server is shutting down"),
        (Some(1002 | 1003 | 1007), _) => (ErrorKind::Protocol, "the server says that the client broke the protocol"),
        (Some(1008), _) => (ErrorKind::BadRequest, "the server says that this violates its policy"),
        (Some(1009), _) => (ErrorKind::TooLarge, "the message or the resource is over the server's size limit"),
        (Some(1011), Verb::Append) => (ErrorKind::Storage, "the server could not store the data"),
        (Some(1011), Verb::Follow) => (
            ErrorKind::Interrupted,
            "the appender was lost or the server failed: the data ends here, but is incomplete",
        ),
        (Some(1013), _) => (ErrorKind::Overloaded, "the server is overloaded"),
        (Some(4001), _) => (ErrorKind::Fenced, "another appender took over, or the resource was deleted"),
        (Some(4002), _) => (ErrorKind::TimedOut, "the server found this client too slow"),
        (Some(4003), _) => (ErrorKind::Forbidden, "this is not allowed, or no longer"),
        _ => (ErrorKind::Connection, "the server closed the connection"),
    };
    let reason = printable(reason);
    let detail = match (code, reason.is_empty()) {
        (None, _) => format!("{meaning} without giving a reason"),
        (Some(code), true) => format!("{meaning} (close code {code})"),
        (Some(code), false) => format!("{meaning} (close code {code}: {reason})"),
    };
    Error::new(kind).with_detail(detail)
}

/// An error that every later call returns again: the first time with its source, then without.
#[derive(Debug)]
pub(super) struct Failure {
    kind: ErrorKind,
    detail: Cow<'static, str>,
    original: Option<Error>,
}

impl Failure {
    pub(super) fn error(&mut self) -> Error {
        self.original.take().unwrap_or_else(|| Error::new(self.kind).with_detail(self.detail.clone()))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { kind: error.kind(), detail: error.detail().to_owned().into(), original: Some(error) }
    }
}
