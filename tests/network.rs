//! Connections that are cut in every way, through a proxy of our own: both ends stay byte-exact, exactly once.
//!
//! `HTTPFSTREAM_CUTS` (default 8) is how many cuts, `HTTPFSTREAM_SEED` where the random choices begin; what fails names its
//! seed. `tests/external/network.sh` runs the long form.
#![cfg(feature = "client")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{fs_layer, serve, within};
use httpfstream::ErrorKind;
use httpfstream::State;
use httpfstream::client::Client;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// How one connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// Both sides get a reset.
    Reset,
    /// Both sides get an end.
    End,
    /// The client gets a reset; the server hears nothing ever again.
    HalfOpen,
    /// Nothing gets through any more, in either direction, and nobody is told.
    Blackhole,
    /// One byte at a time, then a reset.
    Trickle,
}

const CUTS: [Cut; 5] = [Cut::Reset, Cut::End, Cut::HalfOpen, Cut::Blackhole, Cut::Trickle];

/// A small generator (xorshift), so that a seed reproduces the choices.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }
}

/// Passes connections on, and cuts each after so many bytes, until the cuts are used up.
struct Proxy {
    addr: SocketAddr,
    /// How many more may come now.
    cuts: Arc<AtomicU64>,
    /// From now on cuts come within few bytes: whoever appends is finishing.
    hasty: Arc<AtomicBool>,
    done: [Arc<AtomicU64>; 5],
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    async fn start(server: SocketAddr, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (cuts, hasty) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let done: [Arc<AtomicU64>; 5] = Default::default();
        let (left, hurry, counts) = (Arc::clone(&cuts), Arc::clone(&hasty), done.clone());
        let random = Arc::new(Mutex::new(Random(seed | 1)));
        let task = tokio::spawn(async move {
            // What nobody may hear of stays open as long as the proxy.
            let held = Arc::new(Mutex::new(Vec::new()));
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(server).await.unwrap();
                let (left, hurry, counts) = (Arc::clone(&left), Arc::clone(&hurry), counts.clone());
                let (random, held) = (Arc::clone(&random), Arc::clone(&held));
                tokio::spawn(async move {
                    let (cut, after) = {
                        let mut random = random.lock().unwrap();
                        let range = if hurry.load(Ordering::Relaxed) { 2_000 } else { 200_000 };
                        (random.below(5) as usize, random.below(range))
                    };
                    let (client, server, cut_off) = pass(client, server, CUTS[cut], after, &left).await;
                    if !cut_off {
                        return;
                    }
                    counts[cut].fetch_add(1, Ordering::Relaxed);
                    match CUTS[cut] {
                        Cut::Reset | Cut::Trickle => {
                            client.set_zero_linger().unwrap();
                            server.set_zero_linger().unwrap();
                        }
                        Cut::End => {}
                        Cut::HalfOpen => {
                            client.set_zero_linger().unwrap();
                            held.lock().unwrap().push(server);
                        }
                        Cut::Blackhole => held.lock().unwrap().extend([client, server]),
                    }
                });
            }
        });
        Self { addr, cuts, hasty, done, task }
    }

    fn total(&self) -> u64 {
        self.done.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    fn summary(&self) -> String {
        let counts =
            CUTS.iter().zip(&self.done).map(|(cut, count)| format!("{cut:?} {}", count.load(Ordering::Relaxed)));
        counts.collect::<Vec<_>>().join(", ")
    }
}

/// Passes bytes both ways until one side ends or `after` bytes have passed; says whether it was cut.
async fn pass(
    mut client: TcpStream,
    mut server: TcpStream,
    cut: Cut,
    after: u64,
    left: &AtomicU64,
) -> (TcpStream, TcpStream, bool) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut up, mut down) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
    let mut passed = 0;
    let mut trickled = 0;
    loop {
        // A dripping line lets some hundred bytes through before it breaks.
        let drips = cut == Cut::Trickle && passed >= after.saturating_sub(300);
        let most = if drips { 1 } else { 16 * 1024 };
        let (n, from_client) = tokio::select! {
            n = client.read(&mut up[..most]) => (n.unwrap_or(0), true),
            n = server.read(&mut down[..most]) => (n.unwrap_or(0), false),
        };
        if n == 0 {
            // Whoever ended, the other hears of it.
            return (client, server, false);
        }
        let room = after.saturating_sub(passed).min(n as u64) as usize;
        let takes =
            |left: &AtomicU64| left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok();
        let over = passed + n as u64 > after && takes(left);
        let n = if over { room } else { n };
        let written = match from_client {
            true => server.write_all(&up[..n]).await,
            false => client.write_all(&down[..n]).await,
        };
        passed += n as u64;
        trickled += u64::from(drips);
        if over || written.is_err() {
            return (client, server, over);
        }
        if trickled > 0 && trickled % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
}

/// The first connection of a stream is up to its user; a follower may ask for what is not there yet.
async fn again<R: IntoFuture<Output = httpfstream::Result<T>>, T>(open: impl Fn() -> R) -> T {
    loop {
        match open().await {
            Ok(opened) => return opened,
            Err(error) if error.is_retryable() || matches!(error.kind(), ErrorKind::PastEnd | ErrorKind::NotFound) => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_24_cut_connections_lose_and_repeat_nothing_in_either_direction() {
    let cuts = number("HTTPFSTREAM_CUTS", 8);
    let seed = number("HTTPFSTREAM_SEED", 0x5eed);
    within(Duration::from_secs(60 + 20 * cuts), "all cuts", campaign(cuts, seed)).await;
}

async fn campaign(cuts: u64, seed: u64) {
    let (layer, _dir) = fs_layer();
    let server = serve(layer).await;
    let proxy = Proxy::start(server.addr, seed).await;
    let client = Client::builder()
        .retry_for(Duration::from_secs(60))
        .retry_delays(Duration::from_millis(1), Duration::from_millis(50))
        .response_timeout(Duration::from_secs(1))
        .silence_timeout(Duration::from_millis(900))
        .build()
        .unwrap();
    let mut random = Random(seed.wrapping_mul(3) | 1);
    let (mut resources, mut bytes) = (0, 0);
    while proxy.total() < cuts {
        let url = format!("http://{}/r{resources}", proxy.addr);
        let data: Arc<Vec<u8>> = {
            let mut data = vec![0; 100_000 + random.below(700_000) as usize];
            for piece in data.chunks_mut(8) {
                let next = random.next().to_le_bytes();
                piece.copy_from_slice(&next[..piece.len()]);
            }
            data.into()
        };
        proxy.hasty.store(false, Ordering::Relaxed);
        proxy.cuts.store(5, Ordering::Relaxed);
        let id = httpfstream::AppenderId::random().unwrap();
        let mut out = again(|| client.open_append(&url).appender_id(id.clone())).await;
        let following: Vec<_> = [0, random.below(50_000), data.len() as u64]
            .into_iter()
            .map(|from| {
                let (client, url, data) = (client.clone(), url.clone(), Arc::clone(&data));
                tokio::spawn(async move {
                    // Not before there is something, so that the offset is there.
                    let wait = Duration::from_secs(1);
                    let mut follower = again(|| client.follow(&url).offset(from).wait(wait)).await;
                    let mut got = Vec::new();
                    while let Some(chunk) = follower.next_chunk().await.unwrap_or_else(|e| panic!("from {from}: {e:?}"))
                    {
                        got.extend_from_slice(&chunk.bytes);
                        assert_eq!(chunk.next_offset, from + got.len() as u64);
                    }
                    assert!(got == data[from as usize..], "a follower from {from} got other bytes");
                })
            })
            .collect();
        let mut at = 0;
        while at < data.len() {
            let take = (1 + random.below(30_000) as usize).min(data.len() - at);
            out.append(&data[at..at + take]).await.unwrap_or_else(|error| panic!("at {at}: {error:?}"));
            at += take;
        }
        proxy.hasty.store(true, Ordering::Relaxed);
        proxy.cuts.store(3, Ordering::Relaxed);
        let told = out.finish().await;
        told.unwrap_or_else(|error| panic!("finishing resource {resources}: {error:?}"));
        let stat = server.streams.stat(format!("r{resources}")).await.unwrap().unwrap();
        assert_eq!((stat.state, stat.len), (State::Finished, data.len() as u64));
        assert!(server.get(&format!("/r{resources}")).await.body == *data, "other bytes are stored");
        for follower in following {
            follower.await.unwrap();
        }
        resources += 1;
        bytes += data.len();
    }
    let total = proxy.total();
    println!(
        "network: {total} cuts, seed {seed}: {resources} resources, {bytes} bytes, 3 followers each, all exact; {}",
        proxy.summary()
    );
}
