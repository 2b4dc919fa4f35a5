//! Peers that hang, files that change underneath, and shutdown: fault cases 30, 31, 33, 37, 41 and 44.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use common::{Frame, HANDSHAKE, Raw, fs_layer, log, memory_layer, pattern, pipe, serve, soon, stores};
use httpfstream::{ErrorKind, HttpFStreamLayer, Streams};
use httpfstream::{
    State,
    storage::{FsStorage, MemoryStorage},
};
use tokio::io::AsyncReadExt;

/// Longer than any test waits: what ends before this has passed ended by itself.
const NEVER: Duration = Duration::from_secs(3600);

/// A layer over files whose followers read the files, not a cache.
fn uncached(dir: &Path) -> HttpFStreamLayer {
    let streams = Streams::builder(FsStorage::open(dir).unwrap()).tail_cache(0).build();
    HttpFStreamLayer::from_streams(streams).plain_http(true)
}

#[tokio::test(start_paused = true)]
async fn fault_30_an_appender_that_stops_answering_pings_is_freed() {
    let layer = memory_layer().ping_interval(Duration::from_secs(30));
    let streams = layer.streams();
    let mut appender = pipe(&layer);
    assert_eq!(appender.upgrade("/a?verb=APPEND", &[("User-Agent", "test")]).await.status, 101);
    appender.send_text("x").await;
    // As long as it answers, it may be silent for hours.
    for _ in 0..500 {
        match appender.frame_within(NEVER).await {
            Frame::Ping(payload) => appender.send_frame(0x8a, &payload).await,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(streams.stat("a").await.unwrap().unwrap().state, State::Live);
    // Then it falls silent.
    let mut follower = streams.follow("a").await.unwrap();
    assert_eq!(follower.next_chunk().await.unwrap().as_deref(), Some(&b"x"[..]));
    assert_eq!(follower.next_chunk().await.unwrap_err().kind(), ErrorKind::Interrupted);
    let mut again = streams.append("a").await.unwrap();
    assert_eq!(again.append("y").await.unwrap(), 2);
}

#[tokio::test]
async fn fault_31_a_stalled_follower_is_closed_and_nobody_else_notices() {
    for store in stores() {
        let server = serve(store.layer.stall_timeout(Duration::from_millis(1500))).await;
        const PIECE: usize = 64 * 1024;
        const PIECES: usize = 300;
        let data = pattern(0, PIECES * PIECE);
        let mut appender = server.append("/a").await;
        appender.send_frame(0x82, &data[..PIECE]).await;
        let mut stalled = server.follow("/a").await;
        assert!(stalled.data(1).await.len() <= PIECE);
        let mut good = server.follow("/a").await;
        let reading = tokio::spawn(async move { good.to_end().await });
        // From here on it takes nothing, and this is far more than sockets hold.
        for piece in data[PIECE..].chunks(PIECE) {
            appender.send_frame(0x82, piece).await;
        }
        appender.send_close(1000).await;
        assert_eq!(appender.to_end().await, (vec![], Some(1000)), "the appender didn't wait");
        drop(appender);
        let (got, code) = soon("the good follower", reading).await.unwrap();
        assert!(got == data && code == Some(1000), "{}: {} {code:?}", store.name, got.len());
        // The last connection that the server has is the stalled one. It ends long before the grace is over.
        soon("the stalled follower to be closed", server.streams.shutdown(NEVER)).await;
        let (rest, code) = stalled.to_end().await;
        assert!(rest.len() < (PIECES - 1) * PIECE, "it was not stalled");
        assert!(matches!(code, Some(4002) | None), "{}: {code:?} is no honest end", store.name);
    }
}

#[tokio::test(start_paused = true)]
async fn fault_31_a_slow_follower_that_takes_anything_is_not_closed() {
    let layer = memory_layer().stall_timeout(Duration::from_secs(60)).silence_timeout(NEVER * 24);
    let data = pattern(0, 1 << 20);
    let mut appender = layer.streams().append("a").await.unwrap();
    appender.append(data.clone()).await.unwrap();
    let mut slow = pipe(&layer);
    assert_eq!(slow.upgrade("/a?verb=FOLLOW", &[]).await.status, 101);
    // It takes a little once in 50 seconds, for hours.
    for _ in 0..500 {
        tokio::time::sleep(Duration::from_secs(50)).await;
        let mut little = [0; 1000];
        let n = slow.stream.read(&mut little).await.unwrap();
        slow.buf.extend_from_slice(&little[..n]);
    }
    appender.finish().await.unwrap();
    let (got, code) = slow.to_end().await;
    assert!(got == data && code == Some(1000), "{} {code:?}", got.len());
    // One that takes nothing is closed after the timeout and not before.
    let mut appender = layer.streams().append("a").await.unwrap();
    appender.append("more").await.unwrap();
    let mut stalled = pipe(&layer);
    assert_eq!(stalled.upgrade("/a?verb=FOLLOW", &[]).await.status, 101);
    tokio::time::sleep(Duration::from_secs(100)).await;
    let (got, code) = stalled.to_end().await;
    assert!(got.len() < data.len() && matches!(code, None | Some(4002)), "{} {code:?}", got.len());
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn fault_31_stalled_followers_cost_no_memory_each() {
    fn resident() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }
    let (layer, _dir) = fs_layer();
    let server = serve(layer).await;
    let mut appender = server.streams.append("a").await.unwrap();
    appender.append("x").await.unwrap();
    let mut stalled = Vec::new();
    for _ in 0..50 {
        stalled.push(server.follow("/a").await);
    }
    let before = resident();
    let piece = bytes::Bytes::from(pattern(0, 256 * 1024));
    for _ in 0..256 {
        // 64 MiB, which would be 3,200 if each of them had a queue.
        appender.append(piece.clone()).await.unwrap();
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 400 << 20, "grown by {} MiB", grown >> 20);
    appender.finish().await.unwrap();
}

#[tokio::test]
async fn fault_33_a_file_truncated_outside_is_1011_for_all() {
    for cached in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let layer = match cached {
            true => HttpFStreamLayer::new(FsStorage::open(dir.path()).unwrap()).plain_http(true),
            false => uncached(dir.path()),
        };
        let server = serve(layer).await;
        let mut appender = server.append("/a").await;
        appender.send_text("0123456789").await;
        let mut early = server.follow("/a").await;
        assert_eq!(early.data(10).await, b"0123456789");
        let old = server.get("/a").await.header("etag").unwrap().to_owned();
        let file = std::fs::OpenOptions::new().write(true).open(dir.path().join("a")).unwrap();
        file.set_len(4).unwrap();
        let late = match cached {
            true => None,
            // Who reads the file finds out at once.
            false => Some(server.follow("/a").await.to_end().await),
        };
        if let Some(late) = late {
            assert_eq!(late, (vec![], Some(1011)));
            // A GET is refused or cut, and in any case gets nothing that isn't in the file.
            let mut raw = Raw::connect(server.addr).await;
            raw.send_head("GET", "/a", &[], "Connection: close\r\n").await;
            let _ = soon("the end", raw.stream.read_to_end(&mut raw.buf)).await;
            let answer = String::from_utf8_lossy(&raw.buf).into_owned();
            assert!(!answer.contains("456789") && !answer.contains('\0'), "{answer:?}");
        }
        appender.send_text("never").await;
        assert_eq!(appender.to_end().await, (vec![], Some(1011)));
        assert_eq!(early.to_end().await, (vec![], Some(1011)));
        server.at_rest("a").await;
        // What is left is there, as interrupted; in a new life when it is appended to, for bytes were lost.
        let answer = server.get("/a").await;
        assert_eq!((answer.text().as_str(), answer.header("stream-state")), ("0123", Some("interrupted")));
        assert_ne!(answer.header("etag").unwrap()[..33], old[..33], "a new life");
        let mut again = server.append("/a").await;
        again.send_text("!").await;
        again.send_close(1000).await;
        assert_eq!(again.to_end().await.1, Some(1000));
        let answer = server.get("/a").await;
        assert_eq!(answer.text(), "0123!");
        assert_ne!(answer.header("etag").unwrap()[..33], old[..33], "a new life");
    }
}

#[tokio::test]
async fn fault_33_a_file_deleted_outside_is_1011_for_all() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(uncached(dir.path())).await;
    let mut appender = server.append("/d/a").await;
    appender.send_text("0123456789").await;
    let mut early = server.follow("/d/a").await;
    assert_eq!(early.data(10).await, b"0123456789");
    std::fs::remove_file(dir.path().join("d/a")).unwrap();
    assert_eq!(server.follow("/d/a").await.to_end().await, (vec![], Some(1011)));
    appender.send_text("never").await;
    assert_eq!(appender.to_end().await, (vec![], Some(1011)));
    assert_eq!(early.to_end().await, (vec![], Some(1011)));
    assert_eq!(server.at_rest("d/a").await, None);
    // The name is free again.
    let mut again = server.append("/d/a").await;
    again.send_text("new").await;
    again.send_close(1000).await;
    assert_eq!(again.to_end().await.1, Some(1000));
    assert_eq!(server.get("/d/a").await.text(), "new");
}

#[tokio::test]
async fn fault_33_a_finish_over_a_truncated_file_is_no_finish() {
    for delete in [false, true] {
        let (layer, dir) = fs_layer();
        let server = serve(layer).await;
        let mut appender = server.append("/a").await;
        appender.send_text("0123456789").await;
        let mut follower = server.follow("/a").await;
        assert_eq!(follower.data(10).await, b"0123456789");
        match delete {
            true => std::fs::remove_file(dir.path().join("a")).unwrap(),
            false => std::fs::write(dir.path().join("a"), "0123").unwrap(),
        }
        appender.send_close(1000).await;
        assert_eq!(appender.to_end().await, (vec![], Some(1011)));
        assert_eq!(follower.to_end().await, (vec![], Some(1011)));
    }
}

#[tokio::test]
async fn fault_33_a_file_replaced_outside_is_not_spliced() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(uncached(dir.path())).await;
    let mut appender = server.append("/a").await;
    appender.send_text("old").await;
    let mut early = server.follow("/a").await;
    assert_eq!(early.data(3).await, b"old");
    std::fs::write(dir.path().join("other"), "another file, and a longer one").unwrap();
    std::fs::rename(dir.path().join("other"), dir.path().join("a")).unwrap();
    assert_eq!(server.follow("/a").await.to_end().await, (vec![], Some(1011)));
    appender.send_text("never").await;
    assert_eq!(appender.to_end().await, (vec![], Some(1011)));
    assert_eq!(early.to_end().await, (vec![], Some(1011)));
    server.at_rest("a").await;
    assert_eq!(server.get("/a").await.text(), "another file, and a longer one");
}

#[tokio::test]
async fn fault_33_a_body_under_way_over_a_truncated_file_is_cut_and_not_filled_with_zeros() {
    let (layer, dir) = fs_layer();
    let server = serve(layer).await;
    let data = pattern(0, 16 << 20);
    std::fs::write(dir.path().join("a"), &data).unwrap();
    let mut raw = Raw::connect(server.addr).await;
    raw.send_head("GET", "/a", &[], "Connection: close\r\n").await;
    assert_eq!(raw.read_head().await.header("content-length"), Some(&*data.len().to_string()));
    std::fs::OpenOptions::new().write(true).open(dir.path().join("a")).unwrap().set_len(100).unwrap();
    let mut body = std::mem::take(&mut raw.buf);
    // The connection ends short of what was announced, cleanly or not.
    let _ = soon("the cut", raw.stream.read_to_end(&mut body)).await;
    assert!(body.len() < data.len() && body == data[..body.len()], "{} bytes", body.len());
}

/// Runs one of the tests here in a process of its own, where the variable is set.
fn child(exe: &Path, test: &str, root: &Path, user: Option<u32>) -> Output {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(exe);
    command.args([test, "--exact", "--nocapture", "--include-ignored"]).env("FAULT_ROOT", root).current_dir("/");
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    command.output().unwrap()
}

fn passed(output: &Output) {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn fault_37_permission_denied_is_told_with_its_cause_in_the_log() {
    const NOBODY: u32 = 65534;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    // Root may do everything, so this is done as somebody else then; from a copy, for the build may lie out of reach.
    let exe = dir.path().join("exe");
    std::fs::copy(std::env::current_exe().unwrap(), &exe).unwrap();
    std::fs::set_permissions(&exe, Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let probe = dir.path().join("probe");
    std::fs::write(&probe, "").unwrap();
    std::fs::set_permissions(&probe, Permissions::from_mode(0o000)).unwrap();
    let privileged = std::fs::File::open(&probe).is_ok();
    if privileged {
        std::os::unix::fs::chown(&root, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    passed(&child(&exe, "fault_37_child", &root, privileged.then_some(NOBODY)));
}

#[tokio::test]
#[ignore = "a part of fault_37, run by it as another user"]
async fn fault_37_child() {
    let Some(root) = std::env::var_os("FAULT_ROOT") else { return };
    let root = Path::new(&root);
    let mode = |name: &str, mode| std::fs::set_permissions(root.join(name), Permissions::from_mode(mode)).unwrap();
    let log = log::install();
    let denied = |log: &str| log.matches("Permission denied").count();
    let (layer, streams) = {
        let layer = HttpFStreamLayer::new(FsStorage::open(root).unwrap()).plain_http(true);
        (layer.clone(), layer.streams())
    };
    let server = serve(layer).await;
    std::fs::create_dir(root.join("sub")).unwrap();
    std::fs::write(root.join("sub/secret"), "x").unwrap();
    std::fs::write(root.join("sub/readonly"), "x").unwrap();
    std::fs::create_dir(root.join("closed")).unwrap();
    std::fs::write(root.join("closed/x"), "x").unwrap();
    mode("sub/secret", 0o000);
    mode("sub/readonly", 0o444);
    mode("closed", 0o000);
    mode("", 0o555);
    // What can't be read.
    for target in ["/sub/secret", "/closed/x"] {
        let before = denied(&log.text());
        for target in [target.to_owned(), format!("{target}?verb=FOLLOW")] {
            let answer = server.get(&target).await;
            assert!([403, 500].contains(&answer.status), "{target}: {answer:?}");
        }
        assert!(denied(&log.text()) > before, "{target}: the cause is in the log");
    }
    // What can't be written, and says so before the upgrade …
    for target in ["/sub/secret", "/sub/readonly", "/closed/y"] {
        let before = denied(&log.text());
        let (answer, _) = server.upgrade(&format!("{target}?verb=APPEND"), &[]).await;
        assert!([403, 500].contains(&answer.status), "{target}: {answer:?}");
        assert!(denied(&log.text()) > before, "{target}: the cause is in the log");
    }
    // … or at the first byte.
    let before = denied(&log.text());
    let (answer, mut appender) = server.upgrade("/new?verb=APPEND", &[]).await;
    if answer.status == 101 {
        appender.send_text("never").await;
        let (_, code) = appender.to_end().await;
        assert_eq!(code, Some(1011), "it is the storage that fails, nobody's credentials");
    } else {
        assert!([403, 500].contains(&answer.status), "{answer:?}");
    }
    assert!(denied(&log.text()) > before, "/new: the cause is in the log");
    server.at_rest("new").await;
    assert_eq!(server.get("/sub/readonly").await.text(), "x", "others are served");
    let mut other = streams.append("sub/other").await.unwrap();
    other.append("x").await.unwrap();
    other.finish().await.unwrap();
    // Nothing is left behind: once it is allowed it works.
    mode("", 0o755);
    let mut appender = server.append("/new").await;
    appender.send_text("written").await;
    appender.send_close(1000).await;
    assert_eq!(appender.to_end().await.1, Some(1000));
    assert_eq!(server.get("/new").await.text(), "written");

    // A root that can't be written is refused at the start.
    let closed = root.join("sub2");
    std::fs::create_dir(&closed).unwrap();
    mode("sub2", 0o555);
    let error = FsStorage::open(&closed).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("Permission denied"), "{source}");
}

#[tokio::test]
async fn fault_41_a_second_storage_on_one_root_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let storage = FsStorage::open(dir.path()).unwrap();
    assert_eq!(FsStorage::open(dir.path()).unwrap_err().kind(), ErrorKind::Busy);
    let clone = storage.clone();
    drop(storage);
    assert_eq!(FsStorage::open(dir.path()).unwrap_err().kind(), ErrorKind::Busy, "a clone holds it");
    // Also by another name of the folder.
    let link = dir.path().with_extension("link");
    std::os::unix::fs::symlink(dir.path(), &link).unwrap();
    let by_link = FsStorage::open(&link);
    std::fs::remove_file(&link).unwrap();
    assert_eq!(by_link.unwrap_err().kind(), ErrorKind::Busy);
    passed(&child(&std::env::current_exe().unwrap(), "fault_41_child", dir.path(), None));
    drop(clone);
    common::reopened(dir.path()).await;
}

#[tokio::test]
async fn fault_41_the_refused_one_leaves_the_owners_work_alone() {
    let dir = tempfile::tempdir().unwrap();
    let streams = Streams::new(FsStorage::open(dir.path()).unwrap());
    let mut appender = streams.append("a").await.unwrap();
    appender.append("x").await.unwrap();
    let waiting = streams.append("b").await.unwrap();
    FsStorage::open(dir.path()).unwrap_err();
    // Not settled, not cleaned up.
    appender.append("y").await.unwrap();
    assert_eq!(appender.finish().await.unwrap().state, State::Finished);
    waiting.finish().await.unwrap();
    assert_eq!(std::fs::read(dir.path().join("a")).unwrap(), b"xy");
    assert!(dir.path().join("b").exists());
}

#[test]
#[ignore = "a part of fault_41, run by it in a second process"]
fn fault_41_child() {
    let Some(root) = std::env::var_os("FAULT_ROOT") else { return };
    assert_eq!(FsStorage::open(root).unwrap_err().kind(), ErrorKind::Busy);
}

#[tokio::test]
async fn fault_44_shutdown_keeps_what_was_sent_and_tells_everybody() {
    for store in stores() {
        let server = serve(store.layer.clone()).await;
        let mut appender = server.append("/a").await;
        appender.send_text("in ").await;
        let mut follower = server.follow("/a").await;
        assert_eq!(follower.data(3).await, b"in ");
        // This may or may not be read before the shutdown begins, but it has arrived: see the pong.
        appender.send_text("time").await;
        appender.send_frame(0x01, b" and never this").await;
        appender.send_frame(0x89, b"").await;
        assert_eq!(appender.frame().await, Frame::Pong(vec![]));
        let streams = server.streams.clone();
        let told = async {
            assert_eq!(appender.to_end().await, (vec![], Some(1001)));
            drop(appender);
            let (tail, code) = follower.to_end().await;
            assert_eq!((&*tail, code), (&b"time"[..], Some(1011)), "protocol section 3");
            drop(follower);
        };
        soon("the shutdown", async { tokio::join!(streams.shutdown(NEVER), told) }).await;
        let stat = streams.stat("a").await.unwrap().unwrap();
        assert_eq!((stat.len, stat.state), (7, State::Interrupted));
        if let Some(root) = store.root() {
            assert_eq!(std::fs::read(root.join("a")).unwrap(), b"in time");
        }
    }
}

#[tokio::test]
async fn fault_44_a_finish_that_was_sent_before_is_answered_as_one() {
    for store in stores() {
        let server = serve(store.layer).await;
        for round in 0..20 {
            let key = format!("{round}");
            let (answer, mut appender) = server.upgrade(&format!("/{key}?verb=APPEND"), &[]).await;
            assert_eq!(answer.status, 101);
            appender.send_text("all").await;
            let mut follower = server.follow(&format!("/{key}")).await;
            assert_eq!(follower.data(3).await, b"all");
            appender.send_text(" of it").await;
            appender.send_close(1000).await;
            let told = async {
                assert_eq!(appender.to_end().await, (vec![], Some(1000)), "{round}");
                drop(appender);
                assert_eq!(follower.to_end().await, (b" of it".to_vec(), Some(1000)));
                drop(follower);
            };
            let streams = server.streams.clone();
            match round {
                // The system has it, though the server may not have read it.
                19 => drop(soon("the shutdown", async { tokio::join!(streams.shutdown(NEVER), told) }).await),
                _ => told.await,
            }
            assert_eq!(server.streams.stat(&*key).await.unwrap().unwrap().state, State::Finished);
        }
    }
}

#[tokio::test]
async fn fault_44_nothing_new_is_let_in() {
    for store in stores() {
        let server = serve(store.layer).await;
        let mut live = server.streams.append("live").await.unwrap();
        live.append("x").await.unwrap();
        let mut done = server.streams.append("done").await.unwrap();
        done.append("y").await.unwrap();
        done.finish().await.unwrap();
        let mut down = std::pin::pin!(server.streams.shutdown(NEVER));
        assert!(futures_util::poll!(&mut down).is_pending(), "an in-process appender is still there");
        for target in ["/new?verb=APPEND", "/live?verb=FOLLOW", "/done?verb=APPEND"] {
            assert_eq!(server.upgrade(target, &[]).await.0.status, 503, "{} {target}", store.name);
        }
        assert_eq!(server.streams.append("new").await.unwrap_err().kind(), ErrorKind::ShuttingDown);
        // What is at rest is read without any connection that lasts.
        assert_eq!(server.get("/done").await.text(), "y");
        // The appender may go on to its end, and then all is over.
        live.append("z").await.unwrap();
        assert_eq!(live.finish().await.unwrap().state, State::Finished);
        soon("the shutdown", down).await;
    }
}

#[tokio::test]
async fn fault_44_after_the_grace_everything_is_cut() {
    for store in stores() {
        let server = serve(store.layer).await;
        let mut live = server.streams.append("live").await.unwrap();
        live.append("x").await.unwrap();
        let mut follower = server.follow("/live").await;
        assert_eq!(follower.data(1).await, b"x");
        let mut inside = server.streams.follow("live").await.unwrap();
        assert!(inside.next_chunk().await.unwrap().is_some());
        // Never told that it was finished.
        let told = async {
            let (rest, code) = follower.to_end().await;
            assert!(rest.is_empty() && code == Some(1011), "{}: {code:?}", store.name);
            drop(follower);
        };
        let grace = Duration::from_millis(20);
        soon("the shutdown", async { tokio::join!(server.streams.shutdown(grace), told) }).await;
        assert_eq!(inside.next_chunk().await.unwrap_err().kind(), ErrorKind::ShuttingDown);
        assert_eq!(live.append("late").await.unwrap_err().kind(), ErrorKind::ShuttingDown);
        drop(live);
    }
}

#[tokio::test]
async fn fault_44_an_idle_follower_of_nothing_more_does_not_hold_it_up() {
    // Its appender is a socket that says nothing more, and another follower has stalled.
    let server = serve(memory_layer().stall_timeout(Duration::from_millis(100))).await;
    let mut appender = server.append("/a").await;
    let piece = pattern(0, 65536);
    for _ in 0..300 {
        appender.send_frame(0x82, &piece).await;
    }
    appender.send_frame(0x89, b"").await;
    assert_eq!(appender.frame().await, Frame::Pong(vec![]));
    let _stalled = server.follow("/a").await;
    let told = async { assert_eq!(appender.to_end().await.1, Some(1001)) };
    soon("the shutdown", async { tokio::join!(server.streams.shutdown(NEVER), told) }).await;
}

#[tokio::test]
async fn fault_44_a_connection_that_was_promised_and_never_came_leaves_no_lease() {
    // The server doesn't complete upgrades, as tonic's own: the appender must not be held for ever.
    use tower::{Layer, ServiceExt};
    let layer = HttpFStreamLayer::new(MemoryStorage::new(1 << 20)).plain_http(true);
    let streams = layer.streams();
    let mut request = http::Request::builder().uri("/a?verb=APPEND");
    for line in HANDSHAKE.trim_end().split("\r\n") {
        let (name, value) = line.split_once(": ").unwrap();
        request = request.header(name, value);
    }
    let body = http_body_util::Full::new(bytes::Bytes::new());
    let response = layer.layer(common::inner()).oneshot(request.body(body).unwrap()).await.unwrap();
    assert_eq!(response.status(), 501);
    streams.append("a").await.unwrap();
}
