//! The WebSocket handshake on the server's side, over HTTP/1.1 and HTTP/2.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Response, StatusCode, header, request};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;

use crate::body::{OwnBody, full};
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::SUBPROTOCOL;
use crate::server::intent::Upgrade;

/// How long the server may take to hand over the connection. It does so at once, unless a layer outside replaced the
/// response or the server doesn't complete upgrades.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);

/// A handshake that was checked and can be answered.
pub(crate) struct AcceptedUpgrade {
    response: Response<OwnBody>,
    on_upgrade: Option<OnUpgrade>,
}

impl AcceptedUpgrade {
    /// Checks the handshake (RFC 6455 section 4.2, RFC 8441 section 5). The upgrade may still be refused afterwards.
    pub(crate) fn check(upgrade: Upgrade, head: &mut request::Parts) -> Result<Self> {
        let response = match upgrade {
            Upgrade::Http1 => {
                if head.headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
                    return Err(ErrorKind::WebSocketVersion.into());
                }
                // RFC 6455 section 11.3: each of the two headers appears at most once.
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

    /// Selects the resumable subprotocol in the response.
    pub(crate) fn select_v1(mut self) -> Self {
        self.response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
        self
    }

    /// The response that grants the upgrade, and the connection that follows it.
    ///
    /// Fails where the server can't upgrade, so it is called before the 101 is sent. (`hyper::upgrade::on` would return
    /// a future that fails only afterwards.)
    pub(crate) fn split(self) -> Result<(Response<OwnBody>, PendingUpgrade)> {
        Ok((self.response, PendingUpgrade(self.on_upgrade.ok_or(ErrorKind::NotUpgradable)?)))
    }
}

/// The headers that tungstenite checks. It expects a single `Connection` header, where a request may have several.
fn handshake_headers(headers: &HeaderMap) -> HeaderMap {
    let mut picked = HeaderMap::with_capacity(4);
    for name in [header::SEC_WEBSOCKET_KEY, header::SEC_WEBSOCKET_VERSION] {
        if let Some(value) = headers.get(&name) {
            picked.insert(name, value.clone());
        }
    }
    // The intent was derived from these two, so they are known to ask for a WebSocket.
    picked.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    picked.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    picked
}

/// A connection that the server is about to hand over.
pub(crate) struct PendingUpgrade(OnUpgrade);

impl PendingUpgrade {
    /// Waits for the connection. `None`, which is logged, if the upgrade fails.
    pub(crate) async fn connection(self) -> Option<TokioIo<Upgraded>> {
        match tokio::time::timeout(UPGRADE_TIMEOUT, self.0).await {
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
