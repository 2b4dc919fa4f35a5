//! Hostile paths: fault cases 1 to 9.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Server, fs_layer, serve, soon, stores, tree};

/// Every request with a verb to this path gets this status, and leaves nothing.
async fn refused(server: &Server, path: &str, status: u16) {
    for verb in ["APPEND", "FOLLOW"] {
        let by_query = format!("{path}?verb={verb}");
        assert_eq!(server.upgrade(&by_query, &[]).await.0.status, status, "{verb} {path}");
        assert_eq!(server.upgrade_bare(path, &[("X-Verb", verb)]).await.0.status, status, "{verb} {path} by header");
    }
    assert_eq!(server.get(&format!("{path}?verb=FOLLOW")).await.status, status, "plain FOLLOW {path}");
}

/// A GET or DELETE without a verb goes on to the inner service.
async fn passes(server: &Server, path: &str) {
    for method in ["GET", "DELETE"] {
        let answer = server.request(method, path, &[]).await;
        assert_eq!((answer.status, answer.text().as_str()), (404, "nothing here"), "{method} {path}");
    }
}

async fn write(server: &Server, path: &str, bytes: &str) {
    let mut appender = server.append(path).await;
    appender.send_text(bytes).await;
    appender.send_close(1000).await;
    assert_eq!(appender.to_end().await, (vec![], Some(1000)), "{path}");
}

#[tokio::test]
async fn fault_01_dot_dot_in_any_spelling_is_400() {
    for store in stores() {
        let server = serve(store.layer.clone()).await;
        for path in [
            "/..",
            "/../x",
            "/a/../b",
            "/a/..",
            "/%2e%2e/x",
            "/%2E%2e/x",
            "/.%2e/x",
            "/%2e./x",
            "/..%2fx",
            "/%2e%2e%2fx",
            "/..%5cx",
            "/%2e%2e%5Cx",
            "/a%2f..%2f..%2fx",
            "/.",
            "/%2e",
            "/a/%2e/b",
        ] {
            refused(&server, path, 400).await;
            passes(&server, path).await;
        }
        // Decoded once: this is a name, and a harmless one.
        write(&server, "/%252e%252e/x", "1").await;
        assert_eq!(server.streams.stat("%2e%2e/x").await.unwrap().unwrap().len, 1);
        store.holds_only(&["%2e%2e/x"]);
    }
}

#[tokio::test]
async fn fault_02_one_resource_has_one_path() {
    for store in stores() {
        let server = serve(store.layer.clone()).await;
        for path in ["//", "/a//b", "//a", "/a/./b", "/./a", "/a%2Fb", "/a%2fb", "/a/b/", "/a/", "/a/b%2f"] {
            refused(&server, path, 400).await;
            passes(&server, path).await;
        }
        // Spellings that percent-decode to one key are one resource, with one lease.
        let held = server.append("/a/b").await;
        for path in ["/a/%62", "/%61/b", "/%61/%62"] {
            assert_eq!(server.upgrade(&format!("{path}?verb=APPEND"), &[]).await.0.status, 409, "{path}");
        }
        drop(held);
        assert_eq!(server.at_rest("a/b").await, None);
        store.holds_only(&[]);
    }
}

#[tokio::test]
async fn fault_03_control_characters_and_bad_encodings_are_400() {
    for store in stores() {
        let server = serve(store.layer.clone()).await;
        for path in [
            "/a%00b",
            "/%00",
            "/a%0ab",
            "/a%0d%0ab",
            "/a%1fb",
            "/a%7fb",
            "/a%c2%80b",
            "/a%",
            "/a%2",
            "/a%zz",
            "/a%+1",
            "/%ff",
            "/%c3%28",
            "/%ed%a0%80",
            "/%c0%ae%c0%ae/x",
            "/a%e2%82",
        ] {
            refused(&server, path, 400).await;
            passes(&server, path).await;
        }
        store.holds_only(&[]);
    }
}

#[tokio::test]
async fn fault_04_too_long_is_414() {
    for store in stores() {
        let server = serve(store.layer.clone()).await;
        let long = "x".repeat(256);
        let deep = "/x".repeat(2049);
        // 86 characters of three bytes are one byte too many, however they are counted.
        let wide = "%E2%82%AC".repeat(86);
        for path in
            [format!("/{long}"), format!("/a/{long}/b"), deep, format!("/{wide}"), format!("/{}", "%78".repeat(20_000))]
        {
            refused(&server, &path, 414).await;
            passes(&server, &path).await;
        }
        store.holds_only(&[]);
        // The longest that are allowed are stored.
        let name = "x".repeat(255);
        write(&server, &format!("/{name}"), "1").await;
        assert_eq!(server.get(&format!("/{name}")).await.text(), "1");
        let wide = "%E2%82%AC".repeat(85);
        write(&server, &format!("/{wide}"), "2").await;
        assert_eq!(server.get(&format!("/{wide}")).await.text(), "2");
        let deep = format!("/{}", "y".repeat(255)).repeat(16);
        assert_eq!(deep.len(), 1 + 4095);
        write(&server, &deep, "3").await;
        assert_eq!(server.get(&deep).await.text(), "3");
        assert_eq!(server.request("DELETE", &deep, &[]).await.status, 204);
        store.holds_only(&[&name, &"€".repeat(85)]);
    }
}

#[tokio::test]
async fn fault_05_symlinks_are_neither_read_nor_written() {
    let (layer, dir) = fs_layer();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "secret").unwrap();
    std::fs::create_dir(dir.path().join("inside")).unwrap();
    std::fs::write(dir.path().join("inside/file"), "inside").unwrap();
    symlink(outside.path().join("secret"), dir.path().join("file")).unwrap();
    symlink(outside.path().join("new"), dir.path().join("dangling")).unwrap();
    symlink(outside.path(), dir.path().join("folder")).unwrap();
    symlink("inside/file", dir.path().join("within")).unwrap();
    symlink("/", dir.path().join("slash")).unwrap();
    let server = serve(layer).await;
    for path in
        ["/file", "/dangling", "/folder/secret", "/folder/new", "/folder/deep/new", "/within", "/slash/etc/passwd"]
    {
        refused(&server, path, 404).await;
        passes(&server, path).await;
        assert_eq!(server.streams.stat(&path[1..]).await.unwrap(), None, "{path}");
    }
    assert_eq!(tree(outside.path()), ["secret"]);
    assert_eq!(std::fs::read_to_string(outside.path().join("secret")).unwrap(), "secret");
    let listed = list(&server).await;
    assert_eq!(listed, ["inside/file"]);
    assert_eq!(server.get("/inside/file").await.text(), "inside");
}

async fn list(server: &Server) -> Vec<String> {
    use futures_util::TryStreamExt;
    let mut keys: Vec<String> = server.streams.list("").map_ok(|(key, _)| key.to_string()).try_collect().await.unwrap();
    keys.sort();
    keys
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_05_a_swap_race_leaves_the_outside_alone() {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let (layer, dir) = fs_layer();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("x"), "secret").unwrap();
    std::fs::create_dir(dir.path().join("d")).unwrap();
    std::fs::write(dir.path().join("d/x"), "public").unwrap();
    symlink(outside.path(), dir.path().join("link")).unwrap();
    let server = serve(layer).await;
    let stop = Arc::new(AtomicBool::new(false));
    let (link, folder) = (dir.path().join("link"), dir.path().join("d"));
    let swap = move || renameat_with(CWD, &link, CWD, &folder, RenameFlags::EXCHANGE);
    if swap().is_err() {
        eprintln!("not run: this file system can't exchange two names");
        return;
    }
    let swapper = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                swap().unwrap();
            }
        })
    };
    let mut public = 0;
    for round in 0..200 {
        let answer = server.get("/d/x").await;
        assert_ne!(answer.text(), "secret", "round {round}");
        assert!([200, 404].contains(&answer.status), "{answer:?}");
        public += usize::from(answer.text() == "public");
        let (answer, mut appender) = server.upgrade(&format!("/d/new{round}?verb=APPEND"), &[]).await;
        if answer.status == 101 {
            appender.send_text("written").await;
            appender.send_close(1000).await;
            let _ = appender.to_end().await;
        } else {
            assert_eq!(answer.status, 404, "{answer:?}");
        }
    }
    stop.store(true, Ordering::Relaxed);
    swapper.join().unwrap();
    assert!(public > 0 && public < 200, "{public} of 200: no race was run");
    assert_eq!(tree(outside.path()), ["x"]);
    assert_eq!(std::fs::read_to_string(outside.path().join("x")).unwrap(), "secret");
}

#[tokio::test]
async fn fault_06_a_hard_link_has_no_second_appender() {
    let (layer, dir) = fs_layer();
    let server = serve(layer).await;
    write(&server, "/a", "1").await;
    std::fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
    let mut appender = server.append("/a").await;
    appender.send_text("2").await;
    assert_eq!(server.follow("/a").await.data(2).await, b"12");
    assert_eq!(server.upgrade("/b?verb=APPEND", &[]).await.0.status, 409);
    appender.send_text("3").await;
    appender.send_close(1000).await;
    assert_eq!(appender.to_end().await.1, Some(1000));
    // One after the other is no harm.
    write(&server, "/b", "4").await;
    assert_eq!(server.get("/a").await.text(), "1234");
    // Also while the first one has written nothing yet.
    let _held = server.append("/b").await;
    assert_eq!(server.upgrade("/a?verb=APPEND", &[]).await.0.status, 409);
}

#[tokio::test]
async fn fault_07_what_is_no_file_is_409_and_never_blocks() {
    let (layer, dir) = fs_layer();
    std::fs::create_dir_all(dir.path().join("folder/sub")).unwrap();
    let fifo = std::process::Command::new("mkfifo").arg(dir.path().join("fifo")).status();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    let server = serve(layer).await;
    let mut paths = vec!["/folder", "/folder/sub", "/socket"];
    if fifo.is_ok_and(|made| made.success()) {
        paths.extend(["/fifo", "/fifo/child"]);
    }
    for path in paths {
        soon("an answer about what is no file", refused(&server, path, 409)).await;
        passes(&server, path).await;
    }
    assert_eq!(list(&server).await, [""; 0]);
}

#[tokio::test]
async fn fault_08_a_child_of_a_resource_is_409_and_leaves_no_folders() {
    let (layer, dir) = fs_layer();
    let server = serve(layer).await;
    write(&server, "/file", "1").await;
    std::fs::write(dir.path().join("dropped"), "in").unwrap();
    for path in ["/file/child", "/file/a/b/c", "/dropped/child"] {
        refused(&server, path, 409).await;
        passes(&server, path).await;
    }
    // The same while it is live, whether or not it has any bytes, and the other way round.
    let mut live = server.append("/live").await;
    assert_eq!(server.upgrade("/live/child?verb=APPEND", &[]).await.0.status, 409);
    live.send_text("1").await;
    assert_eq!(server.follow("/live").await.data(1).await, b"1");
    assert_eq!(server.upgrade("/live/child/x?verb=APPEND", &[]).await.0.status, 409);
    let mut deep = server.append("/a/b/c").await;
    for path in ["/a", "/a/b", "/a/b/c/d"] {
        assert_eq!(server.upgrade(&format!("{path}?verb=APPEND"), &[]).await.0.status, 409, "{path}");
    }
    deep.send_text("1").await;
    deep.send_close(1000).await;
    assert_eq!(deep.to_end().await.1, Some(1000));
    assert_eq!(server.upgrade("/a/b?verb=APPEND", &[]).await.0.status, 409);
    assert_eq!(tree(dir.path()), ["a/b/c", "dropped", "file", "live"]);
}

#[tokio::test]
async fn fault_08_a_sibling_folder_that_is_removed_meanwhile_is_no_fault_of_the_appender() {
    let (layer, dir) = fs_layer();
    let server = serve(layer).await;
    // Deleting the last resource of a folder removes the folder, at the moment another resource is made in it.
    let streams = server.streams.clone();
    for round in 0..150 {
        let mut first = streams.open_append("d/e/first").await.unwrap();
        first.append("x").await.unwrap();
        first.finish().await.unwrap();
        let mut second = streams.open_append("d/e/second").await.unwrap();
        let (deleted, appended) = tokio::join!(streams.delete("d/e/first"), second.append("y"));
        deleted.unwrap();
        appended.unwrap_or_else(|error| panic!("round {round}: {error:?}"));
        second.finish().await.unwrap();
        streams.delete("d/e/second").await.unwrap();
    }
    assert_eq!(tree(dir.path()), [""; 0]);
}

#[tokio::test]
async fn fault_09_bookkeeping_names_are_404_for_every_verb() {
    let (layer, dir) = fs_layer();
    let server = serve(layer).await;
    write(&server, "/real", "1").await;
    let before = everything(dir.path());
    for path in [
        "/.httpfstream",
        "/.httpfstream/lock",
        "/.httpfstream/records/x",
        "/.httpfstream/new/0",
        "/%2ehttpfstream/lock",
        "/.HTTPFSTREAM/lock",
        "/a/.httpfstream",
        "/a/.httpfstream/b",
    ] {
        refused(&server, path, 404).await;
        passes(&server, path).await;
    }
    assert_eq!(everything(dir.path()), before);
    assert_eq!(list(&server).await, ["real"]);
    // A name that only looks like it is an ordinary one.
    write(&server, "/.httpfstream2", "2").await;
    assert_eq!(server.get("/.httpfstream2").await.text(), "2");
}

fn everything(root: &Path) -> Vec<String> {
    let mut all = tree(&root.join(".httpfstream"));
    all.extend(tree(root));
    all
}
