//! Connects to the server: TCP, TLS where the URL asks for it, and hyper's connection on top.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::builder::{Settings, Version};
use super::http2::{self, SharedConnection};
use super::url::Target;
use crate::error::{Error, ErrorKind, Result};

/// The largest head of a response that hyper buffers, in bytes.
pub(super) const MAX_HEAD: usize = 64 * 1024;
/// The most headers of a response.
const MAX_HEADERS: usize = 100;

/// A new connection.
pub(super) enum Connected {
    Http1(Connection),
    Http2(Arc<SharedConnection>),
}

/// An HTTP/1.1 connection for one request. A task runs it, and ends when `driver` is dropped.
pub(super) struct Connection {
    pub(super) sender: SendRequest<Empty<Bytes>>,
    pub(super) driver: AbortOnDropHandle<()>,
}

/// Connects within the time limit. `None` if the server picked HTTP/2 but allows no WebSockets over it.
pub(super) async fn connect(settings: &Settings, target: &Target, version: Version) -> Result<Option<Connected>> {
    let limit = settings.connect_timeout;
    match timeout(limit, Box::pin(start(settings, target, version, limit))).await {
        Ok(made) => made,
        Err(elapsed) => Err(failed(format!("no connection to {} within {limit:?}", target.host), elapsed)),
    }
}

async fn start(settings: &Settings, target: &Target, version: Version, limit: Duration) -> Result<Option<Connected>> {
    #[cfg(any(fuzzing, test))]
    if let Some(io) = crate::fuzzing::dial() {
        let io = io.map_err(|error| failed("the server can't be reached".to_owned(), error))?;
        return handshake(settings, io, version == Version::Http2).await;
    }
    let stream = tcp(target, limit).await.map_err(|error| {
        failed(format!("no connection to {} port {} could be made", target.host, target.port), error)
    })?;
    stream.set_nodelay(true).map_err(|error| failed("the connection can't be set up".to_owned(), error))?;
    #[cfg(feature = "tls")]
    if target.tls {
        let (stream, http2) = settings.tls.connect(&target.host, stream, version).await?;
        return handshake(settings, stream, http2 || version == Version::Http2).await;
    }
    handshake(settings, stream, version == Version::Http2).await
}

/// Tries the host's addresses in turn. Each gets an equal share of the remaining time, so that a dead address leaves
/// time for the others.
async fn tcp(target: &Target, limit: Duration) -> io::Result<TcpStream> {
    let start = Instant::now();
    let addresses: Vec<_> = lookup_host((target.host.as_str(), target.port)).await?.collect();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for (tried, address) in addresses.iter().enumerate() {
        let remaining = limit.saturating_sub(start.elapsed());
        let share = remaining / u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        last = match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error,
            Err(elapsed) => elapsed.into(),
        };
    }
    Err(last)
}

async fn handshake<IO>(settings: &Settings, io: IO, http2: bool) -> Result<Option<Connected>>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    if http2 {
        return Ok(http2::handshake(io, settings.silence_timeout).await?.map(Connected::Http2));
    }
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|error| failed("the connection can't be set up".to_owned(), error))?;
    let driver = tokio::spawn(async move {
        // An error also reaches the future of the response, or its body.
        let _ = connection.with_upgrades().await;
    });
    Ok(Some(Connected::Http1(Connection { sender, driver: AbortOnDropHandle::new(driver) })))
}

fn failed(what: String, source: impl Into<crate::error::BoxError>) -> Error {
    Error::new(ErrorKind::Connection).with_detail(what).with_source(source)
}
