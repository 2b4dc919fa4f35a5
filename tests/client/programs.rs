//! The programs, run as they are.

use std::process::{ExitStatus, Stdio};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

use crate::peer::{CLOSE, TEXT, answer, close, frame, serve, within};

pub(crate) const APPEND: &str = env!("CARGO_BIN_EXE_httpfstream-append");
pub(crate) const FOLLOW: &str = env!("CARGO_BIN_EXE_httpfstream-follow");

pub(crate) fn start(program: &str, args: &[&str]) -> Child {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HTTPFSTREAM_")) {
        command.env_remove(name);
    }
    command.env("HTTPFSTREAM_TOKEN", "t0ken");
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command.spawn().unwrap()
}

/// How it ended, and what it printed to stdout and stderr.
pub(crate) async fn end(child: Child) -> (Option<i32>, Vec<u8>, String) {
    let output = within(child.wait_with_output()).await.unwrap();
    (output.status.code(), output.stdout, String::from_utf8(output.stderr).unwrap())
}

#[tokio::test]
async fn append_takes_the_originals_command_line() {
    let (url, task) = serve(async |mut peer| {
        peer.upgrade("").await;
        let got = peer.data_until_close(TEXT).await;
        peer.send(close(1000, "")).await;
        peer.drain().await;
        (peer.head, got)
    })
    .await;
    let mut child = start(APPEND, &["-v", "-H", "X-A: b c", &url]);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"two\nlines").await.unwrap();
    drop(stdin);
    let (code, out, said) = end(child).await;
    assert_eq!((code, out), (Some(0), vec![]), "{said}");
    let lines: Vec<_> = said.lines().collect();
    let [first, fallback, last] = lines[..] else { panic!("{said}") };
    assert_eq!(first, format!("appending from stdin to {url}"));
    assert!(fallback.contains("doesn't speak httpfstream.v1"), "{fallback}");
    assert_eq!(last, format!("finished appending to {url} (sent 9 bytes)"));
    let (head, got) = within(task).await.unwrap();
    assert_eq!(got, (b"two\nlines".to_vec(), 1000));
    assert!(head.contains("authorization: Bearer t0ken\r\n") && head.contains("x-a: b c\r\n"), "{head}");
}

#[tokio::test]
async fn append_sends_a_prompt_without_a_newline_at_once() {
    let (url, task) = serve(async |mut peer| {
        peer.upgrade("").await;
        peer.frame().await
    })
    .await;
    let mut child = start(APPEND, &[&url]);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"name? ").await.unwrap();
    // Stdin stays open.
    assert_eq!(within(task).await.unwrap(), (TEXT, b"name? ".to_vec()));
    // The connection was lost: said at once, although stdin says nothing.
    let (code, _, said) = end(child).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.starts_with("httpfstream-append: could not append to ") && said.lines().count() == 1, "{said}");
    drop(stdin);
}

#[tokio::test]
async fn append_fails_if_the_end_is_not_confirmed() {
    for (confirmation, word) in
        [(close(1011, "no space left"), "no space left"), (vec![], "before the server confirmed")]
    {
        let (url, _task) = serve(async move |mut peer| {
            peer.upgrade("").await;
            peer.data_until_close(TEXT).await;
            peer.send(confirmation).await;
        })
        .await;
        let mut child = start(APPEND, &[&url]);
        child.stdin.take().unwrap().write_all(b"data").await.unwrap();
        let (code, _, said) = end(child).await;
        assert_eq!(code, Some(1));
        assert!(said.contains(word) && said.lines().count() == 1, "{said}");
    }
}

#[cfg(unix)]
pub(crate) async fn signal(child: &Child, name: &str) {
    let pid = child.id().unwrap().to_string();
    assert!(within(Command::new("kill").args([name, &pid]).status()).await.unwrap().success());
}

#[tokio::test]
#[cfg(unix)]
async fn fault_45_ctrl_c_finishes_and_awaits_the_confirmation() {
    for name in ["-INT", "-TERM"] {
        for (confirmation, code) in [(close(1000, ""), 0), (close(1011, ""), 1), (vec![], 1)] {
            let (got_data, data_got) = oneshot::channel();
            let (url, task) = serve(async move |mut peer| {
                peer.upgrade("").await;
                assert_eq!(peer.frame().await, (TEXT, b"data".to_vec()));
                got_data.send(()).unwrap();
                let rest = peer.data_until_close(TEXT).await;
                peer.send(confirmation).await;
                within(peer.io.shutdown()).await.unwrap();
                peer.drain().await;
                rest
            })
            .await;
            let mut child = start(APPEND, &[&url]);
            let mut stdin = child.stdin.take().unwrap();
            stdin.write_all(b"data").await.unwrap();
            within(data_got).await.unwrap();
            signal(&child, name).await;
            // Stdin is open to the last.
            let (ended, _, said) = end(child).await;
            assert_eq!(ended, Some(code), "{said}");
            drop(stdin);
            assert_eq!(within(task).await.unwrap(), (vec![], 1000));
        }
    }
}

#[tokio::test]
#[cfg(unix)]
async fn fault_45_a_second_ctrl_c_stops_at_once() {
    let (closing, close_seen) = oneshot::channel();
    let (url, task) = serve(async move |mut peer| {
        peer.upgrade("").await;
        assert_eq!(peer.frame().await.1, b"data");
        closing.send(()).unwrap();
        assert_eq!(peer.frame().await.0, CLOSE);
        // Never confirmed.
        peer.drain().await;
    })
    .await;
    let mut child = start(APPEND, &[&url]);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"data").await.unwrap();
    within(close_seen).await.unwrap();
    signal(&child, "-INT").await;
    // The first one may not have been taken in when the second comes; so come until it ends.
    let status = loop {
        tokio::select! {
            status = within(child.wait()) => break status.unwrap(),
            () = tokio::time::sleep(std::time::Duration::from_millis(200)) => signal(&child, "-INT").await,
        }
    };
    assert_eq!(status.code(), Some(3));
    within(task).await.unwrap();
}

#[tokio::test]
#[cfg(unix)]
async fn fault_45_ctrl_c_before_the_server_answered_stops() {
    let (asked, was_asked) = oneshot::channel();
    let (url, _task) = serve(async move |mut peer| {
        asked.send(()).unwrap();
        peer.drain().await;
    })
    .await;
    let child = start(APPEND, &[&url]);
    within(was_asked).await.unwrap();
    signal(&child, "-INT").await;
    assert_eq!(end(child).await.0, Some(3));
}

#[tokio::test]
#[cfg(unix)]
async fn a_killed_append_sends_no_close_frame() {
    let (got_data, data_got) = oneshot::channel();
    let (url, task) = serve(async move |mut peer| {
        peer.upgrade("").await;
        assert_eq!(peer.frame().await.1, b"data");
        got_data.send(()).unwrap();
        peer.try_frame().await.unwrap_err().kind()
    })
    .await;
    let mut child = start(APPEND, &[&url]);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"data").await.unwrap();
    within(data_got).await.unwrap();
    within(child.kill()).await.unwrap();
    // To a server of ours that is a lost appender.
    assert_eq!(within(task).await.unwrap(), std::io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn follow_prints_everything_and_ends() {
    let (url, _task) = serve(async |mut peer| {
        peer.upgrade("").await;
        peer.send([frame(0x80 | TEXT, b"some \xff "), frame(0x80 | TEXT, b"data"), close(1000, "")].concat()).await;
        peer.drain().await;
    })
    .await;
    let (code, out, said) = end(start(FOLLOW, &["-v=true", &url])).await;
    assert_eq!((code, out), (Some(0), b"some \xff data".to_vec()));
    assert!(said.starts_with(&format!("following data at {url} (ctrl-C to exit)\n")), "{said}");
    assert!(said.ends_with("\nfinished following (read 11 bytes)\n") && said.lines().count() == 3, "{said}");
}

#[tokio::test]
async fn follow_prints_what_comes_while_it_comes() {
    let (go, went) = oneshot::channel::<()>();
    let (url, _task) = serve(async move |mut peer| {
        peer.upgrade("").await;
        peer.send(frame(0x80 | TEXT, b"prompt> ")).await;
        within(went).await.unwrap();
        peer.send(close(1000, "")).await;
        peer.drain().await;
    })
    .await;
    let mut child = start(FOLLOW, &[&url]);
    let mut got = [0; 8];
    within(child.stdout.as_mut().unwrap().read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"prompt> ");
    go.send(()).unwrap();
    assert_eq!(end(child).await.0, Some(0));
}

#[tokio::test]
async fn exit_codes_tell_interrupted_and_absent() {
    let interrupted = "HTTP/1.1 200 OK\r\nStream-State: interrupted\r\nContent-Length: 4\r\n\r\ndata";
    let (code, out, said) = end(start(FOLLOW, &["-v", &answer(interrupted).await])).await;
    assert_eq!((code, out), (Some(3), b"data".to_vec()), "{said}");
    let (url, _task) = serve(async |mut peer| {
        peer.upgrade("").await;
        peer.send([frame(0x80 | TEXT, b"data"), close(1011, "")].concat()).await;
        peer.drain().await;
    })
    .await;
    let (code, out, _) = end(start(FOLLOW, &[&url])).await;
    assert_eq!((code, out), (Some(3), b"data".to_vec()));

    let absent = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
    for program in [FOLLOW, APPEND] {
        let (code, out, said) = end(start(program, &[&answer(absent).await])).await;
        assert_eq!((code, out), (Some(4), vec![]), "{said}");
        assert!(said.contains("404 Not Found") && said.lines().count() == 1, "{said}");
    }
    let cut = "HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\ndata";
    let (code, out, _) = end(start(FOLLOW, &[&answer(cut).await])).await;
    assert_eq!((code, out), (Some(1), b"data".to_vec()));
}

#[tokio::test]
async fn wrong_usage_is_2_and_help_is_0() {
    for program in [FOLLOW, APPEND] {
        for args in [
            &[][..],
            &["not a url"],
            &["localhost:8080/x"],
            &["-nonsense", "http://h/"],
            &["-H", "x", "http://h/"],
            &["--offset=-1", "http://h/"],
            &["--offset"],
            &["--retry-for=x", "http://h/"],
        ] {
            let (code, _, said) = end(start(program, args)).await;
            assert_eq!(code, Some(2), "{args:?}: {said}");
            assert!(!said.contains("t0ken"), "{said}");
        }
        for flag in ["-h", "-help", "--help", "-version", "--version"] {
            let (code, out, _) = end(start(program, &[flag])).await;
            assert_eq!(code, Some(0), "{flag}");
            assert!(!out.is_empty() && !String::from_utf8(out).unwrap().contains("t0ken"));
        }
    }
}

#[tokio::test]
#[cfg(unix)]
async fn fault_45_a_closed_stdout_ends_follow_quietly() {
    // While data comes, and while none does.
    for busy in [true, false] {
        let (url, task) = serve(async move |mut peer| {
            peer.upgrade("").await;
            let line = frame(0x80 | TEXT, b"line\n");
            peer.send(&line).await;
            while busy && within(peer.io.write_all(&line)).await.is_ok() {}
            peer.drain().await;
        })
        .await;
        let mut child = start(FOLLOW, &[&url]);
        let mut line = String::new();
        within(BufReader::new(child.stdout.take().unwrap()).read_line(&mut line)).await.unwrap();
        assert_eq!(line, "line\n");
        let (code, _, said) = end(child).await;
        assert_eq!((code, said.as_str()), (Some(0), ""));
        within(task).await.unwrap();
    }
}

#[tokio::test]
#[cfg(unix)]
async fn ctrl_c_ends_follow() {
    use std::os::unix::process::ExitStatusExt as _;
    let (url, _task) = serve(async |mut peer| {
        peer.upgrade("").await;
        peer.send(frame(0x80 | TEXT, b"x")).await;
        peer.drain().await;
    })
    .await;
    let mut child = start(FOLLOW, &[&url]);
    within(child.stdout.as_mut().unwrap().read_u8()).await.unwrap();
    signal(&child, "-INT").await;
    let status: ExitStatus = within(child.wait()).await.unwrap();
    assert_eq!(status.signal(), Some(2));
}
