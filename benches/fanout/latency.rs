//! From an append to its arrival, by WebSocket, by plain body and by server-sent events, side by side on one resource.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use super::measure::{self, Child};
use super::peers::{Appender, Follower};

const SIZE: usize = 1024;
/// How much longer the others may take than the WebSocket, in the middle.
const MOST: f64 = 1.3;
pub const WAYS: [Way; 3] = [Way::Socket, Way::Body, Way::Events];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Socket,
    Body,
    Events,
}

impl Way {
    pub fn name(self) -> &'static str {
        match self {
            Self::Socket => "WebSocket",
            Self::Body => "body",
            Self::Events => "events",
        }
    }
}

/// When each message was sent.
type Sent = Arc<Mutex<Vec<Instant>>>;

/// Prints the latency of each way, for so many followers of each and so many messages a second.
pub async fn latency(smoke: bool) {
    println!("from an append of {SIZE} B to its arrival, in ms, all three ways at once on one resource");
    println!(
        "{:>10} {:>8} {:>10} {:>8} {:>8} {:>8} {:>10}",
        "followers", "msg/s", "way", "p50", "p90", "p99", "p50 ratio"
    );
    let loads: &[(usize, u32, usize)] =
        if smoke { &[(2, 200, 50)] } else { &[(1, 1000, 5000), (33, 200, 1000), (333, 20, 100)] };
    for (followers, rate, messages) in loads.iter().copied() {
        one_run(followers, rate, messages, smoke).await;
    }
}

async fn one_run(each: usize, rate: u32, messages: usize, smoke: bool) {
    let child = Child::start("layer", SIZE);
    let data: Arc<[u8]> = measure::text(SIZE * messages).into();
    let sent: Sent = Arc::default();
    let mut appender = Appender::open(child.addr, "/latency.txt").await;
    let mut followers = tokio::task::JoinSet::new();
    // By turns, so that none of the ways comes first everywhere.
    for _ in 0..each {
        for way in WAYS {
            let follower = Timed::open(child.addr, way, Arc::clone(&data), Arc::clone(&sent)).await;
            followers.spawn(async move { (way, follower.whole().await) });
        }
    }
    let start = Instant::now();
    for (i, message) in (0..).zip(data.chunks(SIZE)) {
        sleep_until(start + Duration::from_secs(1) * i / rate).await;
        sent.lock().unwrap().push(Instant::now());
        appender.send(message).await;
    }
    appender.finish().await;
    let mut all = WAYS.map(|_| Vec::new());
    while let Some(done) = followers.join_next().await {
        let (way, times) = done.expect("each follower gets every byte and the end");
        all[way as usize].extend(times);
    }
    let mut socket = None;
    for (way, mut times) in WAYS.into_iter().zip(all) {
        assert_eq!(times.len(), each * messages);
        times.sort();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
        let socket = *socket.get_or_insert(at(50));
        println!(
            "{:>10} {:>8} {:>10} {:>8.3} {:>8.3} {:>8.3} {:>9.2}x",
            each * WAYS.len(),
            rate,
            way.name(),
            at(50),
            at(90),
            at(99),
            at(50) / socket
        );
        assert!(smoke || at(50) <= MOST * socket, "{} takes more than {MOST} times as long", way.name());
    }
}

/// A follower that notes when each message has come.
struct Timed {
    reader: Reader,
    data: Arc<[u8]>,
    sent: Sent,
    times: Vec<Duration>,
}

/// A follower that comes one way or the other.
pub enum Reader {
    Socket(Follower),
    Http(Http),
}

impl Reader {
    pub async fn open(addr: SocketAddr, way: Way, path: &str) -> Self {
        match way {
            Way::Socket => Self::Socket(Follower::open(addr, path).await),
            way => Self::Http(Http::open(addr, path, way == Way::Events).await),
        }
    }

    /// Takes what comes next: how far the data has come, and whether that was the end.
    async fn step(&mut self, data: &[u8]) -> (usize, bool) {
        match self {
            Self::Socket(follower) => follower.step(data).await,
            Self::Http(http) => http.step(data).await,
        }
    }

    /// Reads up to this offset.
    pub async fn reach(&mut self, data: &[u8], offset: usize) {
        match self {
            Self::Socket(follower) => follower.reach(data, offset).await,
            Self::Http(http) => {
                while http.at < offset {
                    assert!(!http.step(data).await.1, "the end comes too early");
                }
                http.buf.shrink_to_fit();
            }
        }
    }
}

impl Timed {
    async fn open(addr: SocketAddr, way: Way, data: Arc<[u8]>, sent: Sent) -> Self {
        Self { reader: Reader::open(addr, way, "/latency.txt").await, data, sent, times: Vec::new() }
    }

    /// Reads to the end and checks every byte on the way.
    async fn whole(mut self) -> Vec<Duration> {
        loop {
            let (at, ended) = self.reader.step(&self.data).await;
            let now = Instant::now();
            while (self.times.len() + 1) * SIZE <= at {
                let sent = self.sent.lock().unwrap()[self.times.len()];
                self.times.push(now - sent);
            }
            if ended {
                assert_eq!(at, self.data.len(), "bytes are missing");
                return self.times;
            }
        }
    }
}

/// A body in chunks, as it is or as events.
pub struct Http {
    stream: TcpStream,
    buf: Vec<u8>,
    events: bool,
    /// What is left of an event that is not whole.
    event: Vec<u8>,
    at: usize,
}

impl Http {
    async fn open(addr: SocketAddr, path: &str, events: bool) -> Self {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let accept = if events { "text/event-stream" } else { "*/*" };
        let head = format!("GET {path}?verb=FOLLOW HTTP/1.1\r\nHost: {addr}\r\nAccept: {accept}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut buf = Vec::new();
        loop {
            if let Some(end) = buf.windows(4).position(|w| w == b"\r\n\r\n") {
                assert!(buf.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&buf));
                let buf = buf.split_off(end + 4);
                return Self { stream, buf, events, event: Vec::new(), at: 0 };
            }
            assert!(stream.read_buf(&mut buf).await.unwrap() > 0, "an answer");
        }
    }

    /// Takes what comes next: how far the data has come, and whether that was the end.
    async fn step(&mut self, data: &[u8]) -> (usize, bool) {
        self.buf.reserve(64 * 1024);
        assert!(self.stream.read_buf(&mut self.buf).await.unwrap() > 0, "a cut at {}", self.at);
        let mut from = 0;
        let mut ended = false;
        while let Some(line) = self.buf[from..].windows(2).position(|w| w == b"\r\n") {
            let len = std::str::from_utf8(&self.buf[from..from + line]).unwrap();
            let len = usize::from_str_radix(len, 16).unwrap();
            let start = from + line + 2;
            if self.buf.len() < start + len + 2 {
                break;
            }
            from = start + len + 2;
            ended = len == 0;
            let chunk = &self.buf[start..start + len];
            if self.events {
                self.event.extend_from_slice(chunk);
                while let Some(end) = self.event.windows(2).position(|w| w == b"\n\n") {
                    if !self.event.starts_with(b"event: ") && !self.event.starts_with(b"retry") {
                        let start = self.event.windows(6).position(|w| w == b"data: ").unwrap() + 6;
                        take(data, &mut self.at, &self.event[start..end]);
                    }
                    self.event.drain(..end + 2);
                }
            } else {
                take(data, &mut self.at, chunk);
            }
        }
        self.buf.drain(..from);
        (self.at, ended)
    }
}

fn take(data: &[u8], at: &mut usize, got: &[u8]) {
    let expected = data.get(*at..*at + got.len()).expect("no more than was sent");
    assert!(expected == got, "other bytes than were sent, behind {at}");
    *at += got.len();
}
