//! Echo endpoints for the Autobahn test suite, which `tests/external/autobahn.sh` runs: the same handshake and the same
//! codec as an appender's and a follower's connection.
//!
//! One thing is the endpoint's own: it refuses TEXT that isn't UTF-8, as the suite's section 6 wants it. The layer
//! takes text as bytes, whatever they are.

use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use super::frame::{Kind, Role};
use super::{Conn, Inbound};
use crate::intent::Upgrade;
use crate::upgrade::Granted;

const PATIENCE: Duration = Duration::from_secs(30);
/// The suite sends up to 16 MiB.
pub(crate) const MAX_MESSAGE: u64 = 64 << 20;

/// Says back every message, until the peer closes. Gives the last one, if that was all.
pub(crate) async fn echo<IO: AsyncRead + AsyncWrite + Unpin>(mut conn: Conn<IO>, back: bool) -> Vec<u8> {
    let mut message = Vec::new();
    let mut whole = Vec::new();
    // So many bytes of the message are whole characters.
    let mut checked = 0;
    loop {
        let (code, reason) = match conn.inbound().await {
            Inbound::Data { payload, end, text } => {
                message.extend_from_slice(&payload);
                let mut valid = true;
                if text {
                    match std::str::from_utf8(&message[checked..]) {
                        Ok(rest) => checked += rest.len(),
                        Err(error) => {
                            checked += error.valid_up_to();
                            valid = error.error_len().is_none() && !end;
                        }
                    }
                }
                if valid && !end {
                    continue;
                }
                if valid {
                    whole = std::mem::take(&mut message);
                    checked = 0;
                    if back {
                        conn.put(if text { Kind::Text } else { Kind::Binary }, &whole);
                        if conn.flush(PATIENCE).await.is_err() {
                            return whole;
                        }
                    }
                    continue;
                }
                (1007, "not UTF-8".into())
            }
            Inbound::Pong => continue,
            Inbound::Close(code) => (code.unwrap_or(1000), "".into()),
            Inbound::Breach { code, reason } => (code, reason),
            Inbound::Eof { .. } | Inbound::Broken(_) => return whole,
        };
        conn.close(code, &reason, PATIENCE).await;
        return whole;
    }
}

#[tokio::test]
#[ignore = "serves tests/external/autobahn.sh until its standard input ends"]
async fn serve() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("listening on {}", listener.local_addr().unwrap());
    let accepting = tokio::spawn(async move {
        loop {
            let (io, _) = listener.accept().await.unwrap();
            let answer = service_fn(async |request: http::Request<hyper::body::Incoming>| {
                let (mut head, _) = request.into_parts();
                let (response, pending) = Granted::check(Upgrade::Http1, &mut head)?.split()?;
                tokio::spawn(async move {
                    if let Some(io) = pending.wait().await {
                        echo(Conn::new(io, Role::Server, MAX_MESSAGE), true).await;
                    }
                });
                Ok::<_, crate::Error>(response)
            });
            let serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), answer);
            tokio::spawn(serving.with_upgrades());
        }
    });
    tokio::io::stdin().read_to_end(&mut Vec::new()).await.unwrap();
    accepting.abort();
}
