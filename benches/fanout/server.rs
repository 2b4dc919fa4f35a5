//! The servers that are measured: the layer, and the least that could do the same.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt;
use httpfstream::{HttpFStreamLayer, storage::FsStorage};

/// Serves until stdin ends.
pub fn run(role: &str, size: usize) {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap());
    match role {
        "layer" => layer(listener),
        "floor" => floor(&listener, size),
        other => panic!("{other} is no server"),
    }
}

/// The layer over files, as an application has it. One thread, as there is one core.
fn layer(listener: TcpListener) {
    listener.set_nonblocking(true).unwrap();
    // Threads stay, so that their CPU time can still be asked for at the end.
    let keep = Duration::from_secs(3600);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().thread_keep_alive(keep).build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let app = Router::new().layer(HttpFStreamLayer::new(FsStorage::open(dir.path()).unwrap()).plain_http(true));
    runtime.block_on(async {
        // As the floor does, and as mounting.md tells: else Nagle's algorithm decides the latency.
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
        axum::serve(listener, app).await.unwrap();
    });
}

/// No HTTP, no storage, no tasks: what has arrived becomes one frame, which is encoded once and written to each socket.
fn floor(listener: &TcpListener, size: usize) {
    let mut appender = accept(listener);
    let mut followers: Vec<_> = (0..super::FOLLOWERS).map(|_| accept(listener)).collect();
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
