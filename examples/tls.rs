//! A page that appends and follows with `WebSocket`, over https: HTTP/2 and HTTP/1.1, whichever the browser chooses.
//!
//! ```sh
//! cargo run --example tls --features tls                         # https://localhost:8443, certificate of its own
//! cargo run --example tls --features tls -- 127.0.0.1:0 http/1.1 # on a free port, without HTTP/2
//! ```
use std::convert::Infallible;
use std::env;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use httpfstream::storage::FsStorage;
use httpfstream::{BoxError, HttpFStreamLayer};
use hyper::body::Incoming;
use hyper::service::service_fn as hyper_service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tower::{Layer, service_fn};

const PAGE: &str = include_str!("tls.html");

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let address = env::args().nth(1).unwrap_or("127.0.0.1:8443".to_owned());
    // What the browser may choose from, the best first.
    let mut protocols: Vec<String> = env::args().skip(2).collect();
    if protocols.is_empty() {
        protocols = vec!["h2".to_owned(), "http/1.1".to_owned()];
    }
    let acceptor = TlsAcceptor::from(Arc::new(tls(&protocols)?));

    let dir = tempfile::tempdir()?;
    let logs = HttpFStreamLayer::new(FsStorage::open(dir.path())?).mount("/streams");
    let service = TowerToHyperService::new(logs.layer(service_fn(application)));

    let listener = TcpListener::bind(address).await?;
    println!("https://localhost:{}", listener.local_addr()?.port());
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Too many open files, say: the others go on.
                eprintln!("{error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let (acceptor, service) = (acceptor.clone(), service.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            // So that one sees how a browser comes.
            let seen = hyper_service_fn(move |request: Request<Incoming>| {
                println!("{:?} {} {}", request.version(), request.method(), request.uri().path());
                hyper::service::Service::call(&service, request)
            });
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new());
            // WebSockets over HTTP/2 (RFC 8441) need this.
            builder.http2().enable_connect_protocol();
            let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), seen).await;
        });
    }
}

/// A certificate of its own: a browser has to be told to trust it.
fn tls(protocols: &[String]) -> Result<ServerConfig, BoxError> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    Ok(config)
}

/// Gets every request that isn't the layer's.
async fn application(request: Request<Incoming>) -> Result<Response<String>, Infallible> {
    let mut response = Response::new(PAGE.to_owned());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    if request.uri().path() != "/" {
        *response.status_mut() = StatusCode::NOT_FOUND;
        *response.body_mut() = "nothing here\n".to_owned();
    }
    Ok(response)
}
