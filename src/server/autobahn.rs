//! An echo server for the Autobahn test suite, built on the handshake and the codec that appenders and followers use.

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;

use super::handshake::AcceptedUpgrade;
use super::intent::Upgrade;
use crate::websocket::Conn;
use crate::websocket::autobahn::{MAX_MESSAGE, echo};
use crate::websocket::frame::Role;

#[tokio::test]
#[ignore = "serves tests/external/autobahn.sh until its standard input ends"]
async fn serve() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("listening on {}", listener.local_addr().unwrap());
    let accepting = tokio::spawn(async move {
        loop {
            let (io, _) = listener.accept().await.unwrap();
            let upgrade = service_fn(async |request: http::Request<hyper::body::Incoming>| {
                let (mut head, _) = request.into_parts();
                let (response, pending) = AcceptedUpgrade::check(Upgrade::Http1, &mut head)?.split()?;
                tokio::spawn(async move {
                    if let Some(io) = pending.connection().await {
                        echo(Conn::new(io, Role::Server, MAX_MESSAGE), true).await;
                    }
                });
                Ok::<_, crate::Error>(response)
            });
            let serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), upgrade);
            tokio::spawn(serving.with_upgrades());
        }
    });
    tokio::io::stdin().read_to_end(&mut Vec::new()).await.unwrap();
    accepting.abort();
}
