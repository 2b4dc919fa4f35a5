//! The original's dialect, end to end over real sockets (protocol section 3).
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Frame, fs_layer, memory_layer, pattern, serve, soon};
use httpfstream::State;

#[tokio::test]
async fn one_appends_others_follow_and_the_rest_is_a_plain_200() {
    let (layer, dir) = fs_layer();
    let server = serve(layer).await;
    assert_eq!(server.get("/logs/a.txt?verb=FOLLOW").await.status, 404);
    assert_eq!(server.get("/logs/a.txt").await.text(), "nothing here");

    let mut appender = server.append_as_original("/logs/a.txt").await;
    appender.send_text("one ").await;
    let mut early = server.follow_as_original("/logs/a.txt").await;
    assert_eq!(early.data(4).await, b"one ");
    appender.send_text("two ").await;
    appender.send_frame(0x82, b"three").await;
    assert_eq!(early.data(9).await, b"two three");
    assert_eq!(std::fs::read(dir.path().join("logs/a.txt")).unwrap(), b"one two three", "a plain file, at once");
    let mut late = server.follow("/logs/a.txt").await;
    assert_eq!(late.data(13).await, b"one two three");
    let live = server.get("/logs/a.txt").await;
    assert_eq!((live.status, live.text().as_str()), (200, "one two three"));
    assert_eq!(live.header("stream-state"), Some("live"));
    for (answer, status) in [
        (server.request("HEAD", "/logs/a.txt?verb=FOLLOW", &[]).await, 200),
        (server.upgrade("/logs/a.txt?verb=APPEND", &[]).await.0, 409),
    ] {
        assert_eq!((answer.status, answer.header("stream-state")), (status, Some("live")));
        assert_eq!(answer.header("upload-offset"), Some("13"));
    }

    drop(appender);
    for mut follower in [early, late] {
        assert_eq!(follower.frame().await, Frame::Close(Some(1000), String::new()));
    }
    let (answer, _) = server.upgrade_bare("/logs/a.txt", &[("X-Verb", "FOLLOW")]).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "one two three"));
    assert_eq!(answer.header("stream-state"), Some("finished"));
    assert_eq!(server.get("/logs/a.txt?verb=FOLLOW").await.text(), "one two three");
}

#[tokio::test]
async fn an_appender_that_closes_is_answered_when_everything_is_stored() {
    let server = serve(memory_layer()).await;
    let mut appender = server.append("/a").await;
    appender.send_text("x").await;
    appender.send_close(1000).await;
    assert_eq!(appender.to_end().await, (vec![], Some(1000)));
    let stat = server.streams.stat("a").await.unwrap().unwrap();
    assert_eq!((stat.len, stat.state), (1, State::Finished));
    let mut again = server.append("/a").await;
    again.send_text("y").await;
    again.send_frame(0x88, b"").await;
    assert_eq!(again.to_end().await, (vec![], Some(1000)));
    assert_eq!(server.get("/a").await.text(), "xy", "it continues at its end");
}

#[tokio::test]
async fn an_original_appender_that_says_nothing_at_all_finishes_nothing() {
    let server = serve(memory_layer()).await;
    let mut lost = server.append("/a").await;
    lost.send_text("not all").await;
    assert_eq!(server.follow("/a").await.data(7).await, b"not all");
    lost.reset();
    assert_eq!(server.at_rest("a").await.unwrap().state, State::Interrupted);
    // As one looks that never got its 101.
    drop(server.append_as_original("/a").await);
    let stat = server.at_rest("a").await.unwrap();
    assert_eq!((stat.len, stat.state), (7, State::Interrupted));
    // One that has appended nothing else says so by a frame, or makes an empty resource as the original does.
    let mut said = server.append_as_original("/a").await;
    said.send_text("").await;
    drop(said);
    assert_eq!(server.at_rest("a").await.unwrap().state, State::Finished);
    drop(server.append_as_original("/b").await);
    let stat = soon("an empty resource", async {
        loop {
            match server.streams.stat("b").await.unwrap() {
                Some(stat) if stat.state != State::Live => return stat,
                _ => tokio::task::yield_now().await,
            }
        }
    });
    assert_eq!(stat.await.state, State::Finished);
}

#[tokio::test]
async fn the_original_appender_loses_nothing() {
    let (layer, _dir) = fs_layer();
    let server = serve(layer).await;
    let data = pattern(0, 3_000_000);
    let mut appender = server.append_as_original("/big").await;
    let mut follower = server.follow_as_original("/big").await;
    // It writes frames of 10 KiB, never reads, and closes TCP without a close frame.
    for chunk in data.chunks(10 * 1024) {
        appender.send_text(chunk).await;
    }
    drop(appender);
    let (got, code) = follower.to_end().await;
    assert!(got == data, "{} of {} bytes", got.len(), data.len());
    assert_eq!(code, Some(1000));
    assert!(server.get("/big").await.body == data);
}
