//! The configuration of a layer.

use std::time::Duration;

use http::HeaderValue;

use crate::access::Authorize;
use crate::server::intent::Rules;
use crate::server::origins::Origins;

#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) rules: Rules,
    pub(crate) read_only: bool,
    pub(crate) authorize: Option<Authorize>,
    pub(crate) origins: Origins,
    pub(crate) timeouts: Timeouts,
    pub(crate) max_message: u64,
    pub(crate) max_resource: u64,
    pub(crate) max_wait: Duration,
    pub(crate) content_type: HeaderValue,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rules: Rules::default(),
            read_only: false,
            authorize: None,
            origins: Origins::default(),
            timeouts: Timeouts::default(),
            max_message: 16 * 1024 * 1024,
            max_resource: u64::MAX,
            max_wait: Duration::from_secs(60),
            content_type: HeaderValue::from_static("text/plain; charset=utf-8"),
        }
    }
}

/// Timeouts of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    pub(crate) ping: Duration,
    pub(crate) silence: Duration,
    pub(crate) stall: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { ping: Duration::from_secs(30), silence: Duration::from_secs(600), stall: Duration::from_secs(60) }
    }
}
