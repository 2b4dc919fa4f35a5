//! The echo endpoint for the Autobahn test suite, which `tests/external/autobahn.sh` runs on the codec of this crate.
//! The server around it is in `server/autobahn.rs`, the client in `client/autobahn.rs`.
//!
//! The endpoint refuses TEXT that isn't UTF-8, as section 6 of the suite requires. The layer accepts any bytes as TEXT.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use super::frame::Kind;
use super::{Conn, Inbound};

const TIMEOUT: Duration = Duration::from_secs(30);
/// The suite sends up to 16 MiB.
pub(crate) const MAX_MESSAGE: u64 = 64 << 20;

/// Receives messages until the peer closes, and echoes each if `reply` is set. Returns the last message.
pub(crate) async fn echo<IO: AsyncRead + AsyncWrite + Unpin>(mut conn: Conn<IO>, reply: bool) -> Vec<u8> {
    let mut message = Vec::new();
    let mut last = Vec::new();
    // Length of the prefix of the message that is known to be UTF-8.
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
                    last = std::mem::take(&mut message);
                    checked = 0;
                    if reply {
                        conn.queue(if text { Kind::Text } else { Kind::Binary }, &last);
                        if conn.flush(TIMEOUT).await.is_err() {
                            return last;
                        }
                    }
                    continue;
                }
                (1007, "not UTF-8".into())
            }
            Inbound::Pong => continue,
            Inbound::Close(code) => (code.unwrap_or(1000), "".into()),
            Inbound::ProtocolError { code, reason } => (code, reason),
            Inbound::Eof { .. } | Inbound::Broken(_) => return last,
        };
        conn.close(code, &reason, TIMEOUT).await;
        return last;
    }
}
