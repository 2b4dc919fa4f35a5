//! The WebSocket handshake on the server's side, over HTTP/1.1 and HTTP/2.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Response, StatusCode, header, request};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;

use crate::body::{OwnBody, full};
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::SUBPROTOCOL as V1;
use crate::server::intent::Upgrade;

/// How long the connection may take to change hands. It takes none, unless something outside replaced our answer or
/// the server doesn't complete upgrades.
const PATIENCE: Duration = Duration::from_secs(10);

/// An upgrade that was checked and can be granted.
pub(crate) struct AcceptedUpgrade {
    response: Response<OwnBody>,
    on_upgrade: Option<OnUpgrade>,
}

impl AcceptedUpgrade {
    /// Checks the handshake (RFC 6455 section 4.2, RFC 8441 section 5). Nothing is promised to the client yet.
    pub(crate) fn check(upgrade: Upgrade, head: &mut request::Parts) -> Result<Self> {
        let response = match upgrade {
            Upgrade::Http1 => {
                if head.headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
                    return Err(ErrorKind::WebSocketVersion.into());
                }
                // RFC 6455 section 11.3: neither may be given more than once.
                let twice = |name| head.headers.get_all(name).iter().nth(1).is_some();
                if twice(header::SEC_WEBSOCKET_KEY) || twice(header::SEC_WEBSOCKET_VERSION) {
                    return Err(Error::new(ErrorKind::BadRequest).with_detail("bad WebSocket handshake"));
                }
                let mut request = http::Request::new(());
                *request.method_mut() = head.method.clone();
                *request.version_mut() = head.version;
                *request.headers_mut() = handshake_headers(&head.headers);
                create_response_with_body(&request, || full("")).map_err(|failed| {
                    Error::new(ErrorKind::BadRequest).with_detail("bad WebSocket handshake").with_source(failed)
                })?
            }
            Upgrade::Http2 => {
                if head.headers.get(header::SEC_WEBSOCKET_VERSION).is_some_and(|version| version != "13") {
                    return Err(ErrorKind::WebSocketVersion.into());
                }
                let mut response = Response::new(full(""));
                *response.status_mut() = StatusCode::OK;
                response
            }
        };
        Ok(Self { response, on_upgrade: head.extensions.remove::<OnUpgrade>() })
    }

    /// Answers that the resumable subprotocol is spoken.
    pub(crate) fn speak_v1(mut self) -> Self {
        self.response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(V1));
        self
    }

    /// The answer, and the connection to come.
    ///
    /// Parameters for before a 101 is given: `hyper::upgrade::on` hands out a future that fails where there is none.
    pub(crate) fn split(self) -> Result<(Response<OwnBody>, PendingUpgrade)> {
        Ok((self.response, PendingUpgrade(self.on_upgrade.ok_or(ErrorKind::NotUpgradable)?)))
    }
}

/// What tungstenite looks at. It takes one `Connection` header, where there may be several.
fn handshake_headers(headers: &HeaderMap) -> HeaderMap {
    let mut picked = HeaderMap::with_capacity(4);
    for name in [header::SEC_WEBSOCKET_KEY, header::SEC_WEBSOCKET_VERSION] {
        if let Some(value) = headers.get(&name) {
            picked.insert(name, value.clone());
        }
    }
    // The request's intent has been told by these two already.
    picked.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    picked.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    picked
}

/// A connection that is about to change hands.
pub(crate) struct PendingUpgrade(OnUpgrade);

impl PendingUpgrade {
    /// The connection; `None`, logged, if it never comes.
    pub(crate) async fn wait(self) -> Option<TokioIo<Upgraded>> {
        match tokio::time::timeout(PATIENCE, self.0).await {
            Ok(Ok(upgraded)) => Some(TokioIo::new(upgraded)),
            Ok(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(
                    error,
                    "an upgrade failed after it was granted: does the server complete upgrades (hyper: `with_upgrades`)?"
                );
                None
            }
            Err(_) => {
                tracing::warn!(
                    "an upgrade was granted and never completed: does a layer outside replace the response?"
                );
                None
            }
        }
    }
}
