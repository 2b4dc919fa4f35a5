//! gRPC, WebSockets and plain HTTP on one port: a tonic service with the layer around it, served by axum.
//!
//! ```sh
//! cargo run --example tonic                      # on a free port
//! cargo run --example tonic -- 127.0.0.1:8080
//! ```
//!
//! The gRPC service is tonic's own health check, so that nothing has to be generated: `Check` is unary, `Watch` streams.
//! It tells how the builds are whose logs are the streams.
//!
//! tonic's own transport (`tonic::transport::Server`) would pass the calls on just so, but never completes an upgrade.
use std::env;
use std::time::Duration;

use axum::serve::ListenerExt;
use httpfstream::storage::FsStorage;
use httpfstream::{BoxError, HttpFStreamLayer, Streams};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, health_reporter};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let dir = tempfile::tempdir()?;
    let logs = HttpFStreamLayer::new(FsStorage::open(dir.path())?).mount("/streams");
    let streams = logs.streams();

    let (mut health, service) = health_reporter();
    let app = Routes::new(service).into_axum_router().layer(logs);

    let build = tokio::spawn(build(streams.clone(), health.clone()));
    let address = env::args().nth(1).unwrap_or("127.0.0.1:0".to_owned());
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    println!("the log:     curl -N 'http://{address}/streams/builds/7?verb=FOLLOW'");
    println!("a WebSocket: httpfstream-follow http://{address}/streams/builds/7");
    println!("its state:   grpcurl -plaintext -d '{{\"service\":\"builds/7\"}}' {address} grpc.health.v1.Health/Watch");

    let mut terminate = signal(SignalKind::terminate())?;
    // tonic's transport would set this by itself.
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    let stopping = CancellationToken::new();
    let stopped = stopping.clone();
    let serving = axum::serve(listener, app).with_graceful_shutdown(async move {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        println!("stopping");
        // axum knows nothing of upgraded connections, and waits for streaming calls, which end with what they watch.
        streams.shutdown(Duration::from_secs(1)).await;
        build.abort();
        for service in ["", "builds/7"] {
            health.clear_service_status(service).await;
        }
        stopping.cancel();
    });
    tokio::select! {
        served = serving.into_future() => served?,
        // It waits for everybody who still sends a body, too.
        () = async { stopped.cancelled().await; sleep(Duration::from_secs(5)).await } => {}
    }
    println!("stopped");
    Ok(())
}

/// A build that takes ten minutes.
async fn build(streams: Streams, health: HealthReporter) -> httpfstream::Result<()> {
    let mut out = streams.open_append("builds/7").await?;
    health.set_service_status("builds/7", ServingStatus::Serving).await;
    for step in 1..=600 {
        out.append(format!("step {step} of 600\n")).await?;
        sleep(Duration::from_secs(1)).await;
    }
    health.set_service_status("builds/7", ServingStatus::NotServing).await;
    out.finish().await.map(drop)
}
