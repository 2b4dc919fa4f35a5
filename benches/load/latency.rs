//! From an append to its arrival: beside the floor, and by WebSocket, by plain body and by server-sent events side by
//! side on one resource.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use super::measure::{self, Child, count, spread, table};
use super::peers::{Appender, Follower};

const SIZE: usize = 1024;
const PATH: &str = "/latency.txt";
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

/// Of the layer and of the floor in turn, for so many followers and messages a second.
pub async fn latency(smoke: bool) {
    // With the floor's median where peers were measured (shared/peers.md).
    let loads: &[(usize, u32, usize, Option<f64>)] = if smoke {
        &[(2, 200, 50, None)]
    } else {
        &[(1, 1000, 3000, Some(0.07)), (100, 200, 600, Some(1.1)), (1000, 20, 60, Some(12.0))]
    };
    let mut rows = Vec::new();
    for &(followers, rate, messages, known) in loads {
        let mut runs: [[Vec<f64>; 2]; 2] = Default::default();
        for _ in 0..if smoke { 1 } else { 5 } {
            for layer in [false, true] {
                let child = if layer { Child::layer() } else { Child::floor(followers, SIZE) };
                let mut times = one_run(&child, &[Way::Socket], followers, rate, messages).await.swap_remove(0);
                times.sort();
                let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
                runs[usize::from(layer)][0].push(at(50));
                runs[usize::from(layer)][1].push(at(99));
            }
        }
        let [floor, layer] = runs;
        rows.push(vec![
            count(followers),
            rate.to_string(),
            spread(&layer[0], 3),
            spread(&floor[0], 3),
            measure::to_floor(&layer[0], &floor[0], known),
            spread(&layer[1], 1),
            spread(&floor[1], 1),
        ]);
    }
    table(
        "From an append of 1 KiB to its arrival, in ms; median of five runs in turn (least–most)",
        &["Followers", "Messages/s", "p50", "floor", "to the floor", "p99", "floor"],
        &rows,
    );
}

/// Each way, for so many followers of each and so many messages a second.
pub async fn ways(smoke: bool) {
    let loads: &[(usize, u32, usize)] =
        if smoke { &[(2, 200, 50)] } else { &[(1, 1000, 5000), (33, 200, 1000), (333, 20, 100)] };
    let mut rows = Vec::new();
    for &(each, rate, messages) in loads {
        let all = one_run(&Child::layer(), &WAYS, each, rate, messages).await;
        let mut socket = None;
        for (way, mut times) in WAYS.into_iter().zip(all) {
            times.sort();
            let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
            let socket = *socket.get_or_insert(at(50));
            let mut row = vec![(each * WAYS.len()).to_string(), rate.to_string(), way.name().to_owned()];
            row.extend([50, 90, 99].map(|percent| format!("{:.3}", at(percent))));
            row.push(format!("{:.2}×", at(50) / socket));
            rows.push(row);
        }
    }
    table(
        "From an append of 1 KiB to its arrival, in ms, all three ways at once on one resource",
        &["Followers", "Messages/s", "Way", "p50", "p90", "p99", "p50 to the WebSocket's"],
        &rows,
    );
}

/// How long each message took to each follower, for each way.
async fn one_run(child: &Child, ways: &[Way], each: usize, rate: u32, messages: usize) -> Vec<Vec<Duration>> {
    let data: Arc<[u8]> = measure::text(SIZE * messages).into();
    let sent: Sent = Arc::default();
    let mut appender = Appender::open(child.addr, PATH).await;
    let mut followers = tokio::task::JoinSet::new();
    // By turns, so that none of the ways comes first everywhere.
    for _ in 0..each {
        for &way in ways {
            let follower = Timed::open(child.addr, way, PATH, SIZE, Arc::clone(&data), Arc::clone(&sent)).await;
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
    let mut all = vec![Vec::new(); ways.len()];
    while let Some(done) = followers.join_next().await {
        let (way, times) = done.expect("each follower gets every byte and the end");
        all[way as usize].extend(times);
    }
    assert!(all.iter().all(|times| times.len() == each * messages));
    all
}

/// A follower that notes when each message has come.
pub struct Timed {
    reader: Reader,
    size: usize,
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
    pub async fn open(addr: SocketAddr, way: Way, path: &str, size: usize, data: Arc<[u8]>, sent: Sent) -> Self {
        Self { reader: Reader::open(addr, way, path).await, size, data, sent, times: Vec::new() }
    }

    /// Reads up to this offset.
    pub async fn reach(&mut self, offset: usize) {
        self.reader.reach(&self.data, offset).await;
    }

    /// Reads to the end and checks every byte on the way.
    pub async fn whole(mut self) -> Vec<Duration> {
        loop {
            let (at, ended) = self.reader.step(&self.data).await;
            let now = Instant::now();
            while (self.times.len() + 1) * self.size <= at {
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
