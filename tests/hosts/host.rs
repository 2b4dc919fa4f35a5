//! The hosts, each with the layer and with the same small application.

use std::net::SocketAddr;

use axum::Router;
use axum::routing::{any, get, post};
use httpfstream::{HttpFStreamLayer, NotFound, Streams};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic_health::server::HealthReporter;
use tower::Layer;

use crate::common::plain::Http;
use crate::common::{Server, serve_router, stores};

/// A host that runs.
pub(crate) struct Host {
    pub(crate) server: Server,
    /// The versions of HTTP that it speaks.
    pub(crate) speaks: &'static [Http],
    /// What its gRPC service tells of.
    pub(crate) health: HealthReporter,
    _dir: tempfile::TempDir,
}

/// What the streams are below, in each host.
pub(crate) const BASE: &str = "/logs";

const BOTH: &[Http] = &[Http::One, Http::Two];

/// By the name that the documentation's table gives it.
pub(crate) async fn host(name: &str) -> Host {
    let [_, files] = stores();
    let streams = files.layer.streams();
    let (health, service) = tonic_health::server::health_reporter();
    // Where the path is whole, and where the host has stripped it.
    let prefixed = HttpFStreamLayer::from_streams(streams.clone()).mount(BASE);
    let stripped = HttpFStreamLayer::from_streams(streams.clone()).plain_http(true).verb_from_method(true);
    // gRPC is a part of the application, so that every host shows that its trailers pass.
    let grpc = || Routes::from(Router::new()).add_service(service.clone()).into_axum_router();
    let routes = || grpc().route("/", get(|| async { "inner" })).route("/echo", post(|body: String| async { body }));
    let app = || routes().fallback(nothing_here);
    let inner = |fallback: bool| {
        let nested = Router::new().route("/page", get(|| async { "nested" }));
        if fallback { nested.fallback(nothing_here) } else { nested }
    };
    let served = streams.clone();
    let (server, speaks) = match name {
        "hyper `http1`, `.with_upgrades()`" => {
            (hyper(Conn::Http1 { upgrades: true }, prefixed, app(), streams).await, &BOTH[..1])
        }
        "hyper `http1` without it" => {
            (hyper(Conn::Http1 { upgrades: false }, prefixed, app(), streams).await, &BOTH[..1])
        }
        "hyper `http2`, `.enable_connect_protocol()`" => {
            (hyper(Conn::Http2 { connect: true }, prefixed, app(), streams).await, &BOTH[1..])
        }
        "hyper `http2` without it" => {
            (hyper(Conn::Http2 { connect: false }, prefixed, app(), streams).await, &BOTH[1..])
        }
        "hyper-util `auto`, with both" => (hyper(Conn::Auto, prefixed, app(), streams).await, BOTH),
        "tonic's transport, `.layer`" => (tonic_transport(false, prefixed, app(), streams).await, &BOTH[1..]),
        "tonic's transport, `.accept_http1(true)`" => (tonic_transport(true, prefixed, app(), streams).await, BOTH),
        axum => {
            let router =
                match axum {
                    "axum `layer`" => app().layer(prefixed),
                    "axum `nest`, the layer outside" => app().nest(BASE, inner(false)).layer(prefixed),
                    "axum `nest`, the layer inside" => app().nest(BASE, inner(false).layer(stripped)),
                    "the same, with a fallback inside" => app().nest(BASE, inner(true).layer(stripped)),
                    "axum `nest_service`" => app().nest_service(BASE, stripped.layer(NotFound)),
                    "axum `route_layer`" => app().route_layer(prefixed),
                    "the same, on a route that matches" => {
                        routes().route("/logs/{*key}", any(nothing_here)).route_layer(prefixed).fallback(nothing_here)
                    }
                    "axum `fallback_service`" => routes().fallback_service(prefixed.layer(NotFound)),
                    "axum `route_service`, with the prefix" => {
                        app().route_service("/logs/{*key}", prefixed.layer(NotFound))
                    }
                    "tonic, `into_axum_router().layer`" => {
                        let routes = Routes::new(service.clone()).into_axum_router();
                        let own = routes
                            .route("/", get(|| async { "inner" }))
                            .route("/echo", post(|body: String| async { body }));
                        own.layer(prefixed)
                    }
                    "`Streams::serve` in an axum handler" => {
                        app().route(
                            "/logs/{key}",
                            any(
                                |axum::extract::Path(key): axum::extract::Path<String>,
                                 request: axum::extract::Request| async move {
                                    served.serve(key, request).await
                                },
                            ),
                        )
                    }
                    other => panic!("no host is called {other}"),
                };
            (serve_router(router, streams).await, BOTH)
        }
    };
    Host { server, speaks, health, _dir: files.into_dir().unwrap() }
}

async fn nothing_here() -> (http::StatusCode, &'static str) {
    (http::StatusCode::NOT_FOUND, "nothing here")
}

#[derive(Clone, Copy)]
enum Conn {
    Http1 { upgrades: bool },
    Http2 { connect: bool },
    Auto,
}

/// hyper alone, with the layer around the application as around any tower service.
async fn hyper(conn: Conn, layer: HttpFStreamLayer, app: Router, streams: Streams) -> Server {
    let service = TowerToHyperService::new(layer.layer(app));
    listen(streams, move |stream| {
        let (io, service) = (TokioIo::new(stream), service.clone());
        async move {
            match conn {
                Conn::Http1 { upgrades: true } => {
                    let _ =
                        hyper::server::conn::http1::Builder::new().serve_connection(io, service).with_upgrades().await;
                }
                Conn::Http1 { upgrades: false } => {
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
                }
                Conn::Http2 { connect } => {
                    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    if connect {
                        builder.enable_connect_protocol();
                    }
                    let _ = builder.serve_connection(io, service).await;
                }
                Conn::Auto => {
                    let mut builder = auto::Builder::new(TokioExecutor::new());
                    builder.http2().enable_connect_protocol();
                    let _ = builder.serve_connection_with_upgrades(io, service).await;
                }
            }
        }
    })
    .await
}

/// Serves each connection as told.
async fn listen<F, Fut>(streams: Streams, serve: F) -> Server
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let (listener, addr) = listener().await;
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            connections.spawn(serve(stream));
        }
    });
    Server::of(addr, streams, task)
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

async fn tonic_transport(http1: bool, layer: HttpFStreamLayer, app: Router, streams: Streams) -> Server {
    let (listener, addr) = listener().await;
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let serving = tonic::transport::Server::builder().accept_http1(http1).layer(layer).add_routes(Routes::from(app));
    Server::of(addr, streams, tokio::spawn(async move { serving.serve_with_incoming(incoming).await.unwrap() }))
}
