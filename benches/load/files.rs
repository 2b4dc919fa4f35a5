//! Reading what is there already, joining in the middle, and memory over a long append.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::measure::{self, Child, count, median, spread, table};
use super::peers::{Appender, Follower};

/// A finished file to many readers, and a live one to many that catch up.
pub async fn files(smoke: bool) {
    let (readers, size, rounds) = if smoke { (5, 1 << 20, 1) } else { (100, 16 << 20, 5) };
    let data: Arc<[u8]> = measure::text(size).into();
    let gb = (readers * size) as f64 / 1e9;
    let [mut bare, mut finished, mut live]: [Vec<f64>; 3] = Default::default();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("log.txt");
    std::fs::write(&file, &data).unwrap();
    for _ in 0..rounds {
        let child = Child::start(&["files", file.to_str().unwrap()]);
        bare.push(read_all(&child, readers, &data).await / gb);

        let child = Child::layer();
        let mut appender = Appender::open(child.addr, "/log.txt").await;
        appender.send_some(&data, 64 * 1024, None).await;
        let mut first = Follower::open(child.addr, "/log.txt").await;
        first.reach(&data, size).await;
        live.push(catch_up(&child, readers, &data).await / gb);
        appender.finish().await;
        finished.push(read_all(&child, readers, &data).await / gb);
    }
    let ratio = |of: &[f64]| format!("{:.2}×", median(of) / median(&bare));
    table(
        &format!("{} MiB to {readers} readers at once: the server's CPU s per GB, {rounds} runs in turn", size >> 20),
        &["", "CPU s per GB", "to ServeFile"],
        &[
            vec!["tower-http's ServeFile alone".to_owned(), spread(&bare, 3), String::new()],
            vec!["a finished resource by GET".to_owned(), spread(&finished, 3), ratio(&finished)],
            vec!["a live one by WebSocket, from its start".to_owned(), spread(&live, 3), ratio(&live)],
        ],
    );
}

async fn read_all(child: &Child, readers: usize, data: &Arc<[u8]>) -> f64 {
    let before = child.cpu();
    let mut reading = tokio::task::JoinSet::new();
    for _ in 0..readers {
        reading.spawn(get(child.addr, Arc::clone(data)));
    }
    while let Some(done) = reading.join_next().await {
        done.expect("each reader gets every byte");
    }
    child.cpu() - before
}

async fn get(addr: SocketAddr, data: Arc<[u8]>) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let head = format!("GET /log.txt HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut buf = Vec::with_capacity(256 * 1024);
    let end = loop {
        assert!(stream.read_buf(&mut buf).await.unwrap() > 0, "an answer");
        if let Some(end) = buf.windows(4).position(|w| w == b"\r\n\r\n") {
            break end + 4;
        }
    };
    assert!(buf.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&buf[..end]));
    buf.drain(..end);
    let mut at = 0;
    loop {
        assert!(data[at..].starts_with(&buf), "other bytes than were stored");
        at += buf.len();
        buf.clear();
        if stream.read_buf(&mut buf).await.unwrap() == 0 {
            break;
        }
    }
    assert_eq!(at, data.len(), "bytes are missing");
}

async fn catch_up(child: &Child, readers: usize, data: &Arc<[u8]>) -> f64 {
    let before = child.cpu();
    let mut reading = tokio::task::JoinSet::new();
    for _ in 0..readers {
        let (addr, data) = (child.addr, Arc::clone(data));
        reading.spawn(async move { Follower::open(addr, "/log.txt").await.reach(&data, data.len()).await });
    }
    while let Some(done) = reading.join_next().await {
        done.expect("each follower gets every byte");
    }
    child.cpu() - before
}

/// Followers that come all at once while much is appended: how long each takes to have all there was when it asked.
pub async fn joiners(smoke: bool) {
    const SIZE: usize = 1024;
    let (joiners, rate, seconds) = if smoke { (5, 500, 1) } else { (200, 2000, 6) };
    let messages = rate as usize * seconds;
    let data: Arc<[u8]> = measure::text(SIZE * messages).into();
    let child = Child::layer();
    let mut appender = Appender::open(child.addr, "/log.txt").await;
    let sent = Arc::new(AtomicUsize::new(0));
    let appending = tokio::spawn({
        let (data, sent) = (Arc::clone(&data), Arc::clone(&sent));
        async move {
            let start = Instant::now();
            for (i, message) in (0..).zip(data.chunks(SIZE)) {
                tokio::time::sleep_until(start + Duration::from_secs(1) * i / rate).await;
                appender.send(message).await;
                sent.fetch_add(SIZE, Ordering::Relaxed);
            }
            appender.finish().await;
        }
    });
    tokio::time::sleep(Duration::from_secs(seconds as u64) / 2).await;
    let mut joining = tokio::task::JoinSet::new();
    for _ in 0..joiners {
        let (addr, data, sent) = (child.addr, Arc::clone(&data), Arc::clone(&sent));
        joining.spawn(async move {
            let (asked, there) = (Instant::now(), sent.load(Ordering::Relaxed));
            let mut follower = Follower::open(addr, "/log.txt").await;
            follower.reach(&data, there).await;
            let took = asked.elapsed().as_secs_f64() * 1e3;
            follower.whole(data).await;
            (took, there)
        });
    }
    let (mut took, mut there) = (Vec::new(), 0);
    while let Some(done) = joining.join_next().await {
        let (ms, bytes) = done.expect("each follower gets every byte and the end");
        took.push(ms);
        there = there.max(bytes);
    }
    appending.await.unwrap();
    table(
        &format!("{joiners} join at once while {} messages of 1 KiB a second come", count(rate as usize)),
        &["Stored by then", "until each has it: ms, median (least–most)"],
        &[vec![format!("{:.1} MiB", there as f64 / f64::from(1 << 20)), spread(&took, 0)]],
    );
}

/// The server's memory while much is appended to one resource.
pub async fn memory(smoke: bool) {
    let (piece, pieces) = if smoke { (8 << 20, 4) } else { (64 << 20, 160) };
    let data = measure::text(piece);
    let dir = tempfile::tempdir().unwrap();
    let child = Child::layer_at(dir.path(), 0);
    let mut appender = Appender::open(child.addr, "/log.txt").await;
    // From the first piece on; what the server makes once for all is not counted.
    let mut rss = Vec::new();
    for _ in 0..pieces {
        appender.send_some(&data, 64 * 1024, None).await;
        rss.push(child.rss());
    }
    appender.finish().await;
    let mut file = std::fs::File::open(dir.path().join("log.txt")).unwrap();
    let mut read = vec![0; piece];
    for _ in 0..pieces {
        file.read_exact(&mut read).unwrap();
        assert!(read == data, "other bytes than were sent");
    }
    assert_eq!(file.read(&mut read).unwrap(), 0);
    // Least squares over the second half.
    let half = &rss[pieces / 2..];
    let (n, mean) = (half.len() as f64, half.iter().sum::<f64>() / half.len() as f64);
    let middle = (n - 1.0) / 2.0;
    let over: f64 = half.iter().enumerate().map(|(i, rss)| (i as f64 - middle) * (rss - mean)).sum();
    let under: f64 = (0..half.len()).map(|i| (i as f64 - middle).powi(2)).sum();
    let slope = over / under / piece as f64 * 1e9;
    table(
        &format!("Memory over {:.1} GB appended to one resource", (piece * pieces) as f64 / 1e9),
        &["RSS at first, KiB", "in the middle", "at the end", "slope of the second half, KiB for each GB"],
        &[vec![
            format!("{:.0}", rss[0]),
            format!("{:.0}", rss[pieces / 2]),
            format!("{:.0}", rss[pieces - 1]),
            format!("{slope:.1}"),
        ]],
    );
}
