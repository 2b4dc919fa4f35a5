//! The servers that are measured: the layer, and the least that could do the same.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt;
use httpfstream::{HttpFStreamLayer, storage::FsStorage};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tower_http::services::ServeFile;

/// Serves until stdin ends.
pub fn run(args: &[String]) {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (port, number) = match args[..] {
        ["layer", port, _] => (port.parse().unwrap(), 0),
        [_, number, ..] => (0, number.parse().unwrap_or(0)),
        [_] => (0, 0),
        _ => panic!("{args:?} is no server"),
    };
    // As tokio binds it: a port can be had again at once.
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, port)).unwrap();
    println!("{}", listener.local_addr().unwrap());
    match args[..] {
        ["layer", _, root] => serve(listener, || layer(root.as_ref())),
        ["files", root] => serve(listener, || Router::new().fallback_service(ServeFile::new(root))),
        ["floor", _, size] => floor(&listener, number, size.parse().unwrap(), None),
        ["floor", _, size, root] => {
            let file = File::create_new(Path::new(root).join("log")).unwrap();
            floor(&listener, number, size.parse().unwrap(), Some(file));
        }
        ["relay"] => relay(listener, None),
        ["relay", root] => relay(listener, Some(root.as_ref())),
        _ => panic!("{args:?} is no server"),
    }
}

/// The layer over files, as an application has it.
fn layer(root: &Path) -> Router {
    Router::new().layer(HttpFStreamLayer::new(FsStorage::open(root).unwrap()).plain_http(true))
}

/// As many threads as tokio takes on the two cores that a machine has at the least; here they share one.
fn runtime() -> Runtime {
    // Threads stay, so that their CPU time can still be asked for at the end.
    let keep = Duration::from_secs(3600);
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().thread_keep_alive(keep).build().unwrap()
}

fn serve(listener: TcpListener, app: impl FnOnce() -> Router) {
    listener.set_nonblocking(true).unwrap();
    runtime().block_on(async {
        // As the floor does, and as mounting.md tells: else Nagle's algorithm decides the latency.
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
        axum::serve(listener, app()).await.unwrap();
    });
}

/// For each path an appender and a follower, and a task that hands on what comes, frame by frame; nothing else, but with a
/// root writes it to a file first.
fn relay(listener: TcpListener, root: Option<&Path>) {
    listener.set_nonblocking(true).unwrap();
    runtime().block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let mut waiting: HashMap<String, tokio::net::TcpStream> = HashMap::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut head).await.unwrap();
            }
            stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").await.unwrap();
            let target = String::from_utf8(head).unwrap().split(' ').nth(1).unwrap().to_owned();
            let (path, verb) = target.split_once("?verb=").unwrap();
            let Some(other) = waiting.remove(path) else {
                waiting.insert(path.to_owned(), stream);
                continue;
            };
            let (appender, follower) = if verb == "APPEND" { (stream, other) } else { (other, stream) };
            let file = root.map(|root| File::create_new(root.join(path.trim_start_matches('/'))).unwrap());
            tokio::spawn(hand_on(appender, follower, file));
        }
    });
}

async fn hand_on(mut appender: tokio::net::TcpStream, mut follower: tokio::net::TcpStream, mut file: Option<File>) {
    let (mut inbuf, mut out) = (Vec::with_capacity(16 * 1024), Vec::new());
    loop {
        let n = appender.read_buf(&mut inbuf).await.unwrap();
        let mut from = 0;
        let mut closing = n == 0;
        loop {
            let (header, len) = match inbuf[from..] {
                [0x88, ..] => {
                    closing = true;
                    break;
                }
                [_, len @ 0x80..=0xfd, ..] => (6, usize::from(len & 0x7f)),
                [_, 0xfe, a, b, ..] => (8, usize::from(u16::from_be_bytes([a, b]))),
                _ => break,
            };
            if inbuf.len() < from + header + len {
                break;
            }
            match len {
                0..=125 => out.extend([0x81, len as u8]),
                _ => out.extend([0x81, 126, (len >> 8) as u8, len as u8]),
            }
            out.extend_from_slice(&inbuf[from + header..from + header + len]);
            from += header + len;
        }
        inbuf.drain(..from);
        if let Some(file) = &mut file {
            file.write_all(&out).unwrap();
        }
        follower.write_all(&out).await.unwrap();
        out.clear();
        if closing {
            for peer in [&mut follower, &mut appender] {
                let _ = peer.write_all(&[0x88, 2, 0x03, 0xe8]).await;
                let _ = peer.shutdown().await;
            }
            return;
        }
    }
}

/// No HTTP, no storage, no tasks: what has arrived becomes one frame, which is encoded once and written to each socket;
/// before that to a file, if there is one.
fn floor(listener: &TcpListener, followers: usize, size: usize, mut file: Option<File>) {
    let mut appender = accept(listener);
    let mut followers: Vec<_> = (0..followers).map(|_| accept(listener)).collect();
    let header = {
        let mut frame = Vec::new();
        super::peers::put_frame(&mut frame, 0x81, &vec![0; size]);
        frame.len() - size
    };
    let mut inbuf = vec![0; 256 * 1024 + header + size];
    let mut filled = 0;
    let mut frame = Vec::new();
    loop {
        let n = appender.read(&mut inbuf[filled..]).unwrap();
        filled += n;
        let whole = filled / (header + size);
        let closing = inbuf[whole * (header + size)..filled].first() == Some(&0x88);
        if whole > 0 {
            frame.clear();
            frame.extend([0x81, 127]);
            frame.extend((whole as u64 * size as u64).to_be_bytes());
            for message in inbuf[..whole * (header + size)].chunks(header + size) {
                frame.extend_from_slice(&message[header..]);
            }
            if let Some(file) = &mut file {
                file.write_all(&frame).unwrap();
            }
            for follower in &mut followers {
                follower.write_all(&frame).unwrap();
            }
            inbuf.copy_within(whole * (header + size)..filled, 0);
            filled -= whole * (header + size);
        }
        if closing || n == 0 {
            break;
        }
    }
    for peer in followers.iter_mut().chain([&mut appender]) {
        peer.write_all(&[0x88, 2, 0x03, 0xe8]).unwrap();
        peer.shutdown(std::net::Shutdown::Write).unwrap();
    }
    std::thread::park();
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_nodelay(true).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").unwrap();
    stream
}
