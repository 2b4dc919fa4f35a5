//! The programs over connections that break, and started again.

use std::path::Path;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::peer::{BINARY, LIFE, Server, TEXT, close, frame, within};
#[cfg(unix)]
use crate::programs::signal;
use crate::programs::{APPEND, FOLLOW, end, start};

fn record_of(file: &Path) -> Option<String> {
    std::fs::read_to_string(format!("{}.httpfstream", file.display())).ok()
}

#[tokio::test]
async fn append_survives_a_restart_of_the_server() {
    let server = Server::new().await;
    let mut child = start(APPEND, &["-v", &server.url]);
    let mut stdin = child.stdin.take().unwrap();
    let mut peer = server.accept().await;
    peer.attach(0, false).await;
    stdin.write_all(b"one ").await.unwrap();
    assert_eq!(peer.data(4).await, b"one ");
    peer.send(close(1001, "")).await;
    drop(peer);
    stdin.write_all(b"two").await.unwrap();
    drop(stdin);
    let mut peer = server.accept().await;
    peer.attach(2, true).await;
    assert_eq!(peer.data(5).await, b"e two");
    peer.finish(7).await;
    let (code, _, said) = end(child).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("trying again") && said.ends_with("(sent 7 bytes)\n"), "{said}");
}

#[tokio::test]
async fn retry_for_zero_gives_up_at_once() {
    let server = Server::new().await;
    for program in [APPEND, FOLLOW] {
        let child = start(program, &["--retry-for=0", &server.url]);
        let mut peer = server.accept().await;
        match program {
            APPEND => peer.attach(0, false).await,
            _ => peer.begin(0, "live").await,
        }
        drop(peer);
        let (code, _, said) = end(child).await;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.lines().count() == 1 && server.is_left_alone().await, "{said}");
    }
}

#[tokio::test]
async fn options_of_append_are_asked_for() {
    let server = Server::new().await;
    let mut child = start(APPEND, &["--create", "-offset", "0", "--seal", &server.url]);
    drop(child.stdin.take());
    let mut peer = server.accept().await;
    assert_eq!((peer.option("create"), peer.option("offset")), (Some("1"), Some("0")));
    peer.attach(0, false).await;
    assert_eq!(peer.frame().await, (TEXT, br#"{"finish":true,"seal":true}"#.to_vec()));
    peer.confirm(0).await;
    assert_eq!(end(child).await.0, Some(0));
}

#[tokio::test]
async fn a_killed_append_of_a_file_goes_on_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log.txt");
    std::fs::write(&file, "0123456789").unwrap();
    let server = Server::new().await;
    let args = ["--resume", file.to_str().unwrap(), "--create", &server.url];

    let mut child = start(APPEND, &args);
    let mut peer = server.accept().await;
    let id = peer.header("appender-id").unwrap().to_owned();
    assert_eq!(peer.option("create"), Some("1"));
    // It is kept before anything is known or sent.
    assert!(record_of(&file).unwrap().contains(&id));
    peer.attach(100, false).await;
    assert_eq!(peer.data(10).await, b"0123456789");
    assert!(record_of(&file).unwrap().contains(LIFE));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let kept = std::fs::metadata(folder.path().join("log.txt.httpfstream")).unwrap();
        assert_eq!(kept.permissions().mode() & 0o777, 0o600);
    }
    within(child.kill()).await.unwrap();
    drop(peer);

    // Four bytes of it were stored.
    let mut child = start(APPEND, &args);
    let mut peer = server.accept().await;
    assert_eq!((peer.header("appender-id"), peer.option("life")), (Some(&*id), Some(LIFE)));
    assert_eq!(peer.option("create"), None);
    peer.attach(104, true).await;
    assert_eq!(peer.data(6).await, b"456789");
    assert_eq!(peer.frame().await.0, TEXT);
    within(child.kill()).await.unwrap();
    drop(peer);

    // Killed before the answer: nothing is opened again if it was finished.
    let child = start(APPEND, &args);
    let mut peer = server.accept().await;
    assert_eq!((peer.option("finish"), peer.option("life")), (Some("110"), Some(LIFE)));
    peer.upgrade_v1().await;
    peer.confirm(110).await;
    let (code, _, said) = end(child).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(record_of(&file).unwrap().contains("finishing"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[tokio::test]
async fn a_file_is_not_appended_where_that_would_splice() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log.txt");
    let server = Server::new().await;
    let record = |acknowledged: u32| {
        let id = "i".repeat(30);
        format!("url {}\nbase 5\nacknowledged {acknowledged}\nid {id}\nlife {LIFE}\n", server.url)
    };
    for (acknowledged, offset, resumed, word) in [
        // Somebody else appended in between, or cut it.
        (5, 8, false, "somebody else"),
        (7, 6, true, "as this appender left it"),
        // The file was cut.
        (5, 50, true, "is shorter"),
    ] {
        std::fs::write(&file, "0123456789").unwrap();
        std::fs::write(folder.path().join("log.txt.httpfstream"), record(acknowledged)).unwrap();
        let child = start(APPEND, &["--resume", file.to_str().unwrap(), &server.url]);
        let mut peer = server.accept().await;
        peer.attach(offset, resumed).await;
        let (code, _, said) = end(child).await;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(word) && said.lines().count() == 1, "{said}");
    }
    // The record is another's.
    let child = start(APPEND, &["--resume", file.to_str().unwrap(), "http://127.0.0.1:1/other"]);
    let (code, _, said) = end(child).await;
    assert!(code == Some(1) && said.contains("belongs to"), "{said}");
}

#[tokio::test]
#[cfg(unix)]
async fn fault_45_a_growing_file_goes_on_until_ctrl_c() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log.txt");
    std::fs::write(&file, "one ").unwrap();
    let server = Server::new().await;
    let args = ["--resume", file.to_str().unwrap(), "--follow-file", &server.url];
    let grow = |more: &str| {
        use std::io::Write as _;
        std::fs::OpenOptions::new().append(true).open(&file).unwrap().write_all(more.as_bytes()).unwrap();
    };

    // SIGTERM leaves the rest for later.
    let child = start(APPEND, &args);
    let mut peer = server.accept().await;
    peer.attach(0, false).await;
    assert_eq!(peer.data(4).await, b"one ");
    grow("two ");
    assert_eq!(peer.data(4).await, b"two ");
    signal(&child, "-TERM").await;
    // It waits for what it sent.
    peer.say(r#"{"ack":8}"#).await;
    let (code, _, said) = end(child).await;
    assert_eq!(code, Some(3), "{said}");
    assert!(record_of(&file).unwrap().contains("acknowledged 8"));

    // Ctrl-C ends it with what is there.
    grow("three ");
    let child = start(APPEND, &args);
    let mut peer = server.accept().await;
    peer.attach(8, true).await;
    assert_eq!(peer.data(6).await, b"three ");
    signal(&child, "-INT").await;
    peer.finish(14).await;
    let (code, _, said) = end(child).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(record_of(&file).unwrap().contains("finishing"));
}

#[tokio::test]
async fn follow_survives_a_restart_of_the_server() {
    let server = Server::new().await;
    let mut child = start(FOLLOW, &["--tail", "5", &server.url]);
    let mut peer = server.accept().await;
    assert_eq!(peer.option("tail"), Some("5"));
    peer.begin(10, "live").await;
    peer.send(frame(0x80 | BINARY, b"first ")).await;
    let mut got = [0; 6];
    within(child.stdout.as_mut().unwrap().read_exact(&mut got)).await.unwrap();
    peer.send(close(1001, "")).await;
    drop(peer);
    let mut peer = server.accept().await;
    assert_eq!(peer.option("offset"), Some("16"));
    peer.begin(16, "live").await;
    peer.send(frame(0x80 | BINARY, b"second")).await;
    peer.say(r#"{"state":"interrupted","length":22}"#).await;
    let (code, out, said) = end(child).await;
    assert_eq!((code, &*out), (Some(3), &b"second"[..]), "{said}");
}

#[tokio::test]
async fn follow_goes_on_with_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("copy.txt");
    let server = Server::new().await;
    let args = ["--offset", "10", "--output", file.to_str().unwrap(), &server.url];

    let mut child = start(FOLLOW, &args);
    let mut peer = server.accept().await;
    peer.begin(10, "live").await;
    peer.send(frame(0x80 | BINARY, b"first ")).await;
    within(async {
        while !std::fs::read(&file).is_ok_and(|held| held == b"first ") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    within(child.kill()).await.unwrap();
    drop(peer);

    let child = start(FOLLOW, &args);
    let mut peer = server.accept().await;
    assert_eq!((peer.option("offset"), peer.option("life")), (Some("16"), Some(LIFE)));
    peer.begin(16, "finished").await;
    peer.send(frame(0x80 | BINARY, b"second")).await;
    peer.say(r#"{"state":"finished","length":22}"#).await;
    let (code, out, said) = end(child).await;
    assert_eq!((code, &*out), (Some(0), &b""[..]), "{said}");
    assert_eq!(std::fs::read(&file).unwrap(), b"first second");

    // It became another resource: nothing is spliced.
    let child = start(FOLLOW, &args);
    server.accept().await.refuse_with("412 Precondition Failed", "life").await;
    let (code, _, said) = end(child).await;
    assert!(code == Some(1) && said.contains("412"), "{said}");
    // Nor without knowing what it holds.
    std::fs::remove_file(folder.path().join("copy.txt.httpfstream")).unwrap();
    let (code, _, said) = end(start(FOLLOW, &args)).await;
    assert!(code == Some(1) && said.contains("no record"), "{said}");
    assert_eq!(std::fs::read(&file).unwrap(), b"first second");
    assert!(server.is_left_alone().await);
}

#[tokio::test]
async fn wait_takes_a_number_or_none() {
    let server = Server::new().await;
    for (flag, wait) in [("--wait", "30"), ("-wait", "30"), ("--wait=5", "5"), ("-wait=5", "5")] {
        let child = start(FOLLOW, &[flag, &server.url]);
        let mut peer = server.accept().await;
        assert_eq!(peer.option("wait"), Some(wait), "{flag}");
        peer.begin(0, "finished").await;
        peer.say(r#"{"state":"finished","length":0}"#).await;
        assert_eq!(end(child).await.0, Some(0));
    }
    let (code, _, _) = end(start(FOLLOW, &["--tail=1", "--lines=1", &server.url])).await;
    assert_eq!(code, Some(2));
}
