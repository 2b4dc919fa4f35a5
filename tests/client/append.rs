//! Appending.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use httpfstream::ErrorKind;
use httpfstream::client;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;

use crate::peer::{BINARY, CLOSE, PING, PONG, TEXT, close, frame, serve, within};

#[tokio::test]
async fn the_originals_server_gets_text_and_ours_gets_binary() {
    for (extra, opcode) in [("", TEXT), ("Stream-State: live\r\n", BINARY)] {
        let (url, task) = serve(async move |mut peer| {
            peer.upgrade(extra).await;
            let got = peer.data_until_close(opcode).await;
            peer.send(close(1000, "")).await;
            peer.drain().await;
            got
        })
        .await;
        let sent = within(client::append(url, &b"not \xff UTF-8"[..])).await.unwrap();
        assert_eq!(sent, 11);
        assert_eq!(within(task).await.unwrap(), (b"not \xff UTF-8".to_vec(), 1000));
    }
}

#[tokio::test]
async fn append_returns_only_after_the_confirmation() {
    let (confirm, confirmed) = oneshot::channel();
    let (closing, close_seen) = oneshot::channel();
    let (url, _task) = serve(async move |mut peer| {
        peer.upgrade("").await;
        assert_eq!(peer.data_until_close(TEXT).await, (b"data".to_vec(), 1000));
        closing.send(()).unwrap();
        within(confirmed).await.unwrap();
        peer.send(close(1000, "")).await;
        peer.drain().await;
    })
    .await;
    let mut append = tokio::spawn(client::append(url, &b"data"[..]));
    within(close_seen).await.unwrap();
    // Everything is sent, nothing is confirmed.
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut append).await.is_err());
    confirm.send(()).unwrap();
    assert_eq!(within(append).await.unwrap().unwrap(), 4);
}

#[tokio::test]
async fn the_confirmation_is_read_by_its_code() {
    for (sent, kind) in [
        (close(1000, ""), None),
        (close(1011, "no space"), Some(ErrorKind::Storage)),
        (close(1009, ""), Some(ErrorKind::TooLarge)),
        (close(4001, ""), Some(ErrorKind::Fenced)),
        (close(4003, ""), Some(ErrorKind::Forbidden)),
        (close(1001, ""), Some(ErrorKind::ShuttingDown)),
        (close(1013, ""), Some(ErrorKind::Overloaded)),
        (frame(0x80 | CLOSE, b""), Some(ErrorKind::Connection)),
        (vec![], Some(ErrorKind::Connection)),
        (frame(0x80, b"bad"), Some(ErrorKind::Protocol)),
    ] {
        let (url, task) = serve({
            let sent = sent.clone();
            async move |mut peer| {
                peer.upgrade("").await;
                let got = peer.data_until_close(TEXT).await;
                peer.send(sent).await;
                within(peer.io.shutdown()).await.unwrap();
                peer.drain().await;
                got
            }
        })
        .await;
        let result = within(client::append(url, &b"data"[..])).await;
        assert_eq!(result.err().map(|error| error.kind()), kind, "{sent:?}");
        assert_eq!(within(task).await.unwrap(), (b"data".to_vec(), 1000));
    }
}

#[tokio::test]
async fn a_reset_instead_of_the_confirmation_is_an_error() {
    let (url, _task) = serve(async |mut peer| {
        peer.upgrade("").await;
        peer.data_until_close(TEXT).await;
        peer.io.set_zero_linger().unwrap();
    })
    .await;
    let error = within(client::append(url, &b"data"[..])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connection);
    assert!(error.detail().contains("confirmed"), "{error}");
}

#[tokio::test]
async fn an_appender_is_an_async_write() {
    let (url, task) = serve(async |mut peer| {
        peer.upgrade("").await;
        let first = peer.frame().await;
        let rest = peer.data_until_close(TEXT).await;
        peer.send(close(1000, "")).await;
        peer.drain().await;
        (first, rest)
    })
    .await;
    let mut appender = within(client::open_append(url)).await.unwrap();
    within(appender.flush()).await.unwrap();
    within(appender.write_all(b"one")).await.unwrap();
    within(appender.flush()).await.unwrap();
    within(appender.write_all(b"two")).await.unwrap();
    within(appender.append(Bytes::from_static(b"three"))).await.unwrap();
    within(appender.append(Bytes::new())).await.unwrap();
    within(appender.shutdown()).await.unwrap();
    within(appender.shutdown()).await.unwrap();
    assert!(within(appender.write_all(b"late")).await.is_err());
    let (first, rest) = within(task).await.unwrap();
    assert_eq!((first, rest), ((TEXT, b"one".to_vec()), (b"twothree".to_vec(), 1000)));
}

#[tokio::test]
async fn a_shutdown_error_holds_the_typed_error() {
    let (url, _task) = serve(async |mut peer| {
        peer.upgrade("").await;
        peer.data_until_close(TEXT).await;
        peer.send(close(1011, "the disk is full")).await;
        peer.drain().await;
    })
    .await;
    let mut appender = within(client::open_append(url)).await.unwrap();
    for _ in 0..2 {
        let error = within(appender.shutdown()).await.unwrap_err();
        let error = error.downcast::<httpfstream::Error>().unwrap();
        assert_eq!(error.kind(), ErrorKind::Storage);
        assert!(error.detail().contains("the disk is full"));
    }
}

#[tokio::test]
async fn a_dropped_appender_says_that_it_was_lost() {
    let (url, task) = serve(async |mut peer| {
        peer.upgrade("").await;
        let got = peer.data_until_close(TEXT).await;
        peer.send(close(1001, "")).await;
        peer.drain().await;
        got
    })
    .await;
    let mut appender = within(client::open_append(url)).await.unwrap();
    within(appender.append(Bytes::from_static(b"data"))).await.unwrap();
    drop(appender);
    assert_eq!(within(task).await.unwrap(), (b"data".to_vec(), 1001));
}

#[tokio::test]
async fn a_runtime_that_ends_sends_no_close_frame() {
    let (url, task) = serve(async |mut peer| {
        peer.upgrade("").await;
        assert_eq!(peer.frame().await, (TEXT, b"data".to_vec()));
        peer.try_frame().await.unwrap_err().kind()
    })
    .await;
    let client = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let appender = runtime.block_on(async {
            let mut appender = client::open_append(url).await.unwrap();
            appender.append(Bytes::from_static(b"data")).await.unwrap();
            appender.sync().await.unwrap();
            appender
        });
        drop(runtime);
        // Its task is gone: nothing hangs.
        let error = futures_util::future::FutureExt::now_or_never(appender.finish()).unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Connection);
    });
    within(client).await.unwrap();
    // To a server of ours that is a lost appender: this client would have said that it is done.
    assert_eq!(within(task).await.unwrap(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn pings_are_answered_while_the_user_is_idle() {
    let (url, task) = serve(async |mut peer| {
        peer.upgrade("").await;
        for n in 0..100u8 {
            peer.send(frame(0x80 | PING, &[n; 125])).await;
            assert_eq!(peer.frame().await, (PONG, vec![n; 125]));
        }
    })
    .await;
    let appender = within(client::open_append(url)).await.unwrap();
    within(task).await.unwrap();
    drop(appender);
}

#[tokio::test]
async fn a_server_that_does_not_read_stops_the_writing() {
    let (go, went) = oneshot::channel::<()>();
    let (url, task) = serve(async move |mut peer| {
        peer.upgrade("").await;
        within(went).await.unwrap();
        let got = peer.data_until_close(TEXT).await;
        peer.send(close(1000, "")).await;
        peer.drain().await;
        got
    })
    .await;
    let mut appender = within(client::open_append(url)).await.unwrap();
    let block: Vec<u8> = (0..10_000u32).map(|i| (i % 251) as u8).collect();
    let mut sent = Vec::new();
    // Stops once every buffer is full.
    while let Ok(n) = tokio::time::timeout(Duration::from_millis(300), appender.write(&block)).await {
        sent.extend_from_slice(&block[..n.unwrap()]);
        assert!(sent.len() < 64 << 20, "not bounded");
    }
    assert!(tokio::time::timeout(Duration::from_millis(10), appender.flush()).await.is_err());
    go.send(()).unwrap();
    within(appender.flush()).await.unwrap();
    within(appender.finish()).await.unwrap();
    let (got, code) = within(task).await.unwrap();
    assert!(got == sent && code == 1000);
}

#[tokio::test]
async fn a_flood_of_pings_to_a_stalled_writer_is_bounded() {
    let (stalled, is_stalled) = oneshot::channel::<()>();
    let (url, task) = serve(async move |mut peer| {
        peer.upgrade("").await;
        within(is_stalled).await.unwrap();
        let pings = frame(0x80 | PING, &[7; 125]).repeat(100);
        let mut sent = 0;
        while let Ok(n) = tokio::time::timeout(Duration::from_millis(300), peer.io.write(&pings)).await {
            sent += n.unwrap();
            assert!(sent < 64 << 20, "not bounded");
        }
        peer
    })
    .await;
    let mut appender = within(client::open_append(url)).await.unwrap();
    while let Ok(n) = tokio::time::timeout(Duration::from_millis(300), appender.write(&[0; 60_000])).await {
        n.unwrap();
    }
    stalled.send(()).unwrap();
    within(task).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_writes_coalesce_and_none_waits() {
    let (saw, seen) = oneshot::channel::<()>();
    let (url, task) = serve(async move |mut peer| {
        peer.upgrade("").await;
        assert_eq!(peer.frame().await, (TEXT, b"first".to_vec()));
        saw.send(()).unwrap();
        let (mut frames, mut bytes) = (0, 0);
        loop {
            match peer.frame().await {
                (CLOSE, _) => break,
                (_, payload) => {
                    frames += 1;
                    bytes += payload.len();
                }
            }
        }
        peer.send(close(1000, "")).await;
        peer.drain().await;
        (frames, bytes)
    })
    .await;
    let mut appender = within(client::open_append(url)).await.unwrap();
    // Leaves without a flush.
    within(appender.write_all(b"first")).await.unwrap();
    within(seen).await.unwrap();
    for _ in 0..200_000 {
        within(appender.write_all(b"x")).await.unwrap();
    }
    within(appender.finish()).await.unwrap();
    let (frames, bytes) = within(task).await.unwrap();
    assert_eq!(bytes, 200_000);
    assert!(frames < 50_000, "{frames} frames");
}

#[tokio::test]
async fn a_refusal_is_heard_while_writing() {
    // The server says why and never reads again: the client must not see only the reset.
    for polite in [true, false] {
        let (url, _task) = serve(async move |mut peer| {
            peer.upgrade("").await;
            let mut some = [0; 1000];
            within(peer.io.read_exact(&mut some)).await.unwrap();
            peer.send(close(1009, "too large")).await;
            if polite {
                peer.drain().await;
            }
        })
        .await;
        let error = within(client::append(url, tokio::io::repeat(b'x'))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    }
}

#[tokio::test]
async fn a_lost_connection_is_noticed_while_the_source_is_idle() {
    for (sent, kind) in [
        (close(4001, ""), ErrorKind::Fenced),
        (close(1000, ""), ErrorKind::Connection),
        (vec![], ErrorKind::Connection),
    ] {
        let (url, _task) = serve(async move |mut peer| {
            peer.upgrade("").await;
            peer.send(sent).await;
        })
        .await;
        let (_silent, reader) = tokio::io::duplex(1);
        let error = within(client::append(url, reader)).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
    }
}

#[tokio::test]
async fn a_source_that_fails_leaves_the_resource_interrupted() {
    let (url, task) = serve(async |mut peer| {
        peer.upgrade("").await;
        peer.data_until_close(TEXT).await
    })
    .await;
    let reader = broken_reader();
    let error = within(client::append(url, reader)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "broken source");
    assert_eq!(within(task).await.unwrap(), (b"begin".to_vec(), 1001));
}

/// Gives five bytes and then fails.
fn broken_reader() -> impl tokio::io::AsyncRead {
    struct Broken(bool);
    impl tokio::io::AsyncRead for Broken {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            buf: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            if std::mem::replace(&mut self.0, true) {
                return std::task::Poll::Ready(Err(io::Error::other("broken source")));
            }
            buf.put_slice(b"begin");
            std::task::Poll::Ready(Ok(()))
        }
    }
    Broken(false)
}
