//! What an appender may store, and what it leaves when it stores nothing.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Frame, client_frame, fs_layer, memory_layer, serve, soon};
use std::future::IntoFuture;
use std::time::{Duration, SystemTime};

use httpfstream::State;
use httpfstream::{Denied, ErrorKind, Event, Grant};

#[tokio::test]
async fn messages_that_fit_are_stored_before_the_one_that_does_not() {
    let server = serve(memory_layer().max_resource_size(10)).await;
    let mut appender = server.append("/a").await;
    // In one segment, so that they arrive as one batch.
    let three = [client_frame(0x82, b"1234"), client_frame(0x82, b"5678"), client_frame(0x82, b"9012")].concat();
    appender.send(&three).await;
    assert_eq!(appender.to_end().await.1, Some(1009));
    server.at_rest("a").await;
    let got = server.get("/a").await;
    assert_eq!((got.text().as_str(), got.header("stream-state")), ("12345678", Some("interrupted")));
    let mut exact = server.append("/b").await;
    exact
        .send(&[client_frame(0x82, b"1234567"), client_frame(0x82, b"890"), client_frame(0x88, &[3, 232])].concat())
        .await;
    assert_eq!(exact.to_end().await.1, Some(1000));
    assert_eq!(server.get("/b").await.text(), "1234567890");
}

#[tokio::test]
async fn an_appender_that_is_lost_without_a_byte_changes_nothing_and_tells_nobody() {
    let (layer, _dir) = fs_layer();
    let server = serve(layer).await;
    let mut out = server.streams.append("a").await.unwrap();
    out.append("all of it").await.unwrap();
    out.finish().await.unwrap();
    let mut events = server.streams.events();

    let lost = server.append("/a").await;
    let mut follower = server.follow("/a").await;
    assert_eq!(follower.data(9).await, b"all of it");
    drop(lost);
    assert_eq!(follower.frame().await, Frame::Close(Some(1000), String::new()), "it is finished, as it was");

    let lost = server.append("/new").await;
    let mut follower = server.follow("/new").await;
    drop(lost);
    assert_eq!(follower.to_end().await, (vec![], Some(1011)), "there never was anything to finish");
    assert_eq!(server.at_rest("new").await, None);

    server.streams.delete("a").await.unwrap();
    let event = soon("an event", events.next()).await.unwrap();
    assert!(matches!(&event, Event::Deleted { key } if key.as_str() == "a"), "{event:?}");
}

#[tokio::test]
async fn an_in_process_follower_is_told_again_and_again() {
    let (layer, _dir) = fs_layer();
    let streams = layer.streams();
    let mut out = streams.append("a").await.unwrap();
    let mut follower = streams.follow("a").await.unwrap();
    out.append("half").await.unwrap();
    drop(out);
    assert_eq!(follower.next_chunk().await.unwrap().as_deref(), Some(&b"half"[..]));
    for _ in 0..2 {
        assert_eq!(follower.next_chunk().await.unwrap_err().kind(), ErrorKind::Interrupted);
    }
    assert_eq!(follower.offset(), 4);
}

#[tokio::test]
async fn what_is_hidden_looks_like_what_is_absent() {
    let layer = memory_layer().authorize(|_| async { Err(Denied::NotFound) });
    let server = serve(layer).await;
    let mut out = server.streams.append("a").await.unwrap();
    out.append("secret").await.unwrap();
    out.finish().await.unwrap();
    for method in ["GET", "HEAD", "DELETE"] {
        let (there, absent) = (server.request(method, "/a", &[]).await, server.request(method, "/b", &[]).await);
        assert_eq!((there.status, there.text()), (absent.status, absent.text()), "{method}");
    }
    assert_eq!(server.get("/a?verb=FOLLOW").await.status, 404);
}

#[tokio::test]
async fn a_close_inside_a_message_is_no_clean_end_for_either_side() {
    let server = serve(memory_layer()).await;
    let mut appender = server.append("/a").await;
    appender.send_text("whole").await;
    appender.send_frame(0x01, b"half").await;
    appender.send_close(1000).await;
    assert_eq!(appender.to_end().await.1, Some(1002), "1000 would confirm it");
    assert_eq!(server.at_rest("a").await.unwrap().state, State::Interrupted);
    assert_eq!(server.get("/a").await.text(), "whole");
}

#[tokio::test]
async fn times_may_be_as_long_as_can_be_said() {
    let layer = memory_layer().ping_interval(Duration::MAX).silence_timeout(Duration::MAX).stall_timeout(Duration::MAX);
    let server = serve(layer).await;
    let (mut appender, mut bare) = (server.append("/a").await, server.append_as_original("/b").await);
    for appender in [&mut appender, &mut bare] {
        appender.send_text("x").await;
        appender.send_close(1000).await;
        assert_eq!(appender.to_end().await.1, Some(1000));
    }
}

#[tokio::test]
async fn fault_19_a_grant_that_is_over_gives_nothing() {
    let over = SystemTime::now() - Duration::from_secs(1);
    let server = serve(memory_layer().authorize(move |_| async move { Ok(Grant::new().until(over)) })).await;
    let mut out = server.streams.append("a").await.unwrap();
    out.append("secret").await.unwrap();
    for (answer, what) in [
        (server.upgrade("/a?verb=FOLLOW", &[]).await.0, "follow"),
        (server.upgrade("/b?verb=APPEND", &[]).await.0, "append"),
        (server.get("/a").await, "get"),
        (server.request("DELETE", "/a", &[]).await, "delete"),
    ] {
        assert_eq!(answer.status, 401, "{what}");
    }
}

#[tokio::test]
async fn a_delete_may_depend_on_what_is_deleted() {
    let server = serve(memory_layer()).await;
    let mut out = server.streams.append("a").await.unwrap();
    out.append("x").await.unwrap();
    out.finish().await.unwrap();
    let tag = server.get("/a").await.header("etag").unwrap().to_owned();
    assert_eq!(server.request("DELETE", "/a", &[("If-Match", "\"other\"")]).await.status, 412);
    assert_eq!(server.request("DELETE", "/a", &[("If-None-Match", &tag)]).await.status, 412);
    assert_eq!(server.request("DELETE", "/a", &[("If-Match", &tag)]).await.status, 204);
    assert_eq!(server.get("/a").await.status, 404);
}

#[cfg(unix)]
#[tokio::test]
async fn a_file_that_somebody_writes_over_has_another_tag() {
    let (layer, dir) = fs_layer();
    let server = serve(layer).await;
    let path = dir.path().join("a");
    std::fs::write(&path, "v1").unwrap();
    let tag = server.get("/a").await.header("etag").unwrap().to_owned();
    assert_eq!(server.request("GET", "/a", &[("If-None-Match", &tag)]).await.status, 304);
    // The same inode and length, at another time.
    std::fs::write(&path, "v2").unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(5)).unwrap();
    assert_eq!(server.request("GET", "/a", &[("If-None-Match", &tag)]).await.text(), "v2");
}

/// Deleting waits for an opening, instead of fencing an appender that goes on being live.
#[tokio::test]
async fn a_delete_leaves_no_ghost_of_an_appender_that_opens() {
    let (layer, _dir) = fs_layer();
    let streams = layer.streams();
    for _ in 0..50 {
        let mut out = streams.append("a").await.unwrap();
        out.append("old").await.unwrap();
        out.finish().await.unwrap();
        let (opened, deleted) = tokio::join!(streams.append("a").into_future(), streams.delete("a"));
        deleted.unwrap();
        if let Ok(mut opened) = opened
            && opened.append("x").await.is_ok()
        {
            // It came after the delete, and is all there is.
            assert_eq!(opened.finish().await.unwrap().len, 1);
            streams.delete("a").await.unwrap();
        }
        assert_eq!(streams.stat("a").await.unwrap(), None);
    }
}
