//! The layer in a server of hyper alone, for HTTP/1.1, for HTTP/2, or for whichever a client speaks.
//!
//! ```sh
//! cargo run --example hyper                              # both, on a free port
//! cargo run --example hyper -- http2 127.0.0.1:8080      # HTTP/2 only, in clear text
//! ```
use std::convert::Infallible;
use std::env;
use std::pin::{Pin, pin};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use httpfstream::storage::FsStorage;
use httpfstream::{BoxError, HttpFStreamLayer};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::{Layer, service_fn};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let speaks = env::args().nth(1).unwrap_or("auto".to_owned());
    if !["http1", "http2", "auto"].contains(&&*speaks) {
        return Err("usage: hyper [http1|http2|auto] [HOST:PORT]".into());
    }
    let address = env::args().nth(2).unwrap_or("127.0.0.1:0".to_owned());

    let dir = tempfile::tempdir()?;
    let logs = HttpFStreamLayer::new(FsStorage::open(dir.path())?).mount("/streams");
    let streams = logs.streams();
    let service = TowerToHyperService::new(logs.layer(service_fn(application)));

    let listener = TcpListener::bind(address).await?;
    let url = format!("http://{}", listener.local_addr()?);
    let curl = if speaks == "http2" { "curl --http2-prior-knowledge" } else { "curl" };
    println!("append:  {curl} -T - '{url}/streams/log.txt?verb=APPEND'");
    println!("follow:  {curl} -N '{url}/streams/log.txt?verb=FOLLOW'");

    let mut terminate = signal(SignalKind::terminate())?;
    // Connections are taken while the streams end: their last readers may still come.
    let mut stopped = pin!(async {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        println!("stopping");
        // hyper knows nothing of upgraded connections.
        streams.shutdown(Duration::from_secs(5)).await;
    });
    let (connections, stop) = (TaskTracker::new(), CancellationToken::new());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stopped => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Too many open files, say: the others go on.
                eprintln!("{error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Nagle's algorithm would hold small pieces back.
        let _ = stream.set_nodelay(true);
        let (io, service, stop) = (TokioIo::new(stream), service.clone(), stop.clone());
        match &*speaks {
            "http1" => {
                // Without a timer, a head may take for ever.
                let connection = http1::Builder::new().timer(TokioTimer::new()).serve_connection(io, service);
                // WebSockets over HTTP/1.1 need this …
                let connection = connection.with_upgrades();
                connections.spawn(run(connection, stop, |connection| connection.graceful_shutdown()));
            }
            "http2" => {
                let mut builder = http2::Builder::new(TokioExecutor::new());
                // … and over HTTP/2 this.
                builder.enable_connect_protocol();
                let connection = builder.serve_connection(io, service);
                connections.spawn(run(connection, stop, |connection| connection.graceful_shutdown()));
            }
            _ => {
                let mut builder = auto::Builder::new(TokioExecutor::new());
                builder.http1().timer(TokioTimer::new());
                builder.http2().enable_connect_protocol();
                let connection = builder.serve_connection_with_upgrades(io, service).into_owned();
                connections.spawn(run(connection, stop, |connection| connection.graceful_shutdown()));
            }
        }
    }
    drop(listener);
    // What is left are plain requests, which may come to their ends.
    stop.cancel();
    connections.close();
    let _ = tokio::time::timeout(Duration::from_secs(5), connections.wait()).await;
    println!("stopped");
    Ok(())
}

/// Runs a connection to its end; once the server stops, to the end of what is under way.
async fn run<C: Future>(connection: C, stop: CancellationToken, finish: fn(Pin<&mut C>)) {
    let mut connection = pin!(connection);
    // One that breaks is its client's business.
    tokio::select! {
        _ = &mut connection => return,
        () = stop.cancelled() => finish(connection.as_mut()),
    }
    connection.await;
}

/// Gets every request that isn't the layer's.
async fn application(request: Request<Incoming>) -> Result<Response<String>, Infallible> {
    let mut response = Response::new("my application\n".to_owned());
    if request.uri().path() != "/" {
        *response.status_mut() = StatusCode::NOT_FOUND;
        *response.body_mut() = "nothing here\n".to_owned();
    }
    Ok(response)
}
