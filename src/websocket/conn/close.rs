//! The end of a connection.

use std::io;
use std::pin::{Pin, pin};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::Conn;
use crate::websocket::frame::{Kind, close_payload};

impl<IO: AsyncRead + AsyncWrite + Unpin> Conn<IO> {
    /// Closes the connection in order: sends a close frame and waits for the peer to close its side, all within
    /// `timeout`.
    ///
    /// Closing TCP with unread bytes in the socket would reset the connection and destroy what the peer has not
    /// read yet, so whatever still arrives is read and dropped.
    ///
    /// Boxed, so that idle connections don't carry this future's size.
    pub(crate) fn close(
        mut self,
        code: u16,
        reason: &str,
        timeout: Duration,
    ) -> Pin<Box<impl Future<Output = ()> + use<IO>>> {
        self.queue(Kind::Close, &close_payload(code, reason));
        self.shutdown(timeout)
    }

    /// Like [`close`](Self::close), but adds no close frame: one is queued already, or was sent.
    pub(crate) fn shutdown(self, timeout: Duration) -> Pin<Box<impl Future<Output = ()> + use<IO>>> {
        Box::pin(self.close_within(timeout))
    }

    async fn close_within(mut self, timeout: Duration) {
        // Nobody will take a partial message any more, and other connections may need its share of the budget.
        (self.message, self.read_buf) = Default::default();
        (self.arriving, self.handed_out) = (None, None);
        let closing = async {
            self.flush(timeout).await?;
            self.io.shutdown().await?;
            let mut sink = [0; 512];
            while self.io.read(&mut sink).await? > 0 {}
            Ok::<(), io::Error>(())
        };
        let _ = tokio::time::timeout(timeout, pin!(closing)).await;
    }
}
