//! What making bytes durable costs, at the level of `FsStorage` and through the whole server; the folder is made in
//! `$DURABILITY_DIR`, else where temporary files are. A disk that lies about its syncs makes all of this look good.
//!
//!     cargo bench --features client --bench durability
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use httpfstream::storage::{Append, End, FsStorage, Open, Storage};
use httpfstream::{Durability, HttpFStreamLayer, Key, Streams, client};

/// A sync that somebody waits for.
type BoxedSync = <<FsStorage as Storage>::Appender as Append>::Sync;

fn key(name: &str, at: usize) -> Key {
    Key::new(&format!("{name}/{at}")).unwrap()
}

/// Creates, appends 1 KiB and finishes, again and again, so many at a time; how often per second.
async fn create_and_finish(storage: &FsStorage, name: &str, at_a_time: usize, each: usize) -> f64 {
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for at in 0..at_a_time {
        let (storage, name) = (storage.clone(), format!("{name}-{at}"));
        tasks.spawn(async move {
            for at in 0..each {
                let mut append = storage.open(&key(&name, at), Open::Create).await.unwrap();
                append.append(&[Bytes::from_static(&[b'x'; 1024])]).await.unwrap();
                append.finish(End::Finished).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    (at_a_time * each) as f64 / began.elapsed().as_secs_f64()
}

/// Appends 64 bytes to each and waits for a sync of all; how long that takes, of the best of some rounds.
async fn sync_all(appenders: Vec<impl Append>, rounds: usize) -> Duration {
    let mut appenders = appenders;
    let mut best = Duration::MAX;
    for _ in 0..rounds {
        let began = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for mut append in appenders.drain(..) {
            tasks.spawn(async move {
                append.append(&[Bytes::from_static(&[b'x'; 64])]).await.unwrap();
                append.sync().await.unwrap();
                append
            });
        }
        appenders = tasks.join_all().await;
        best = best.min(began.elapsed());
    }
    best
}

/// Appends pieces of 64 KiB for a while, while another task syncs without a pause, or not; MiB per second, the longest
/// append and the number of syncs.
async fn stream(storage: &FsStorage, at: usize, syncing: bool, pieces: u32) -> (f64, Duration, u64) {
    let mut append = storage.open(&key("stream", at), Open::Create).await.unwrap();
    let piece = [Bytes::from(vec![b'x'; 64 * 1024])];
    append.append(&piece).await.unwrap();
    let (asking, mut asked) = tokio::sync::mpsc::channel::<BoxedSync>(1);
    let syncs = tokio::spawn(async move {
        let mut syncs = 0u64;
        while let Some(sync) = asked.recv().await {
            sync.await.unwrap();
            syncs += 1;
        }
        syncs
    });
    let mut longest = Duration::ZERO;
    let began = Instant::now();
    for _ in 0..pieces {
        let one = Instant::now();
        append.append(&piece).await.unwrap();
        longest = longest.max(one.elapsed());
        if syncing && let Ok(permit) = asking.try_reserve() {
            permit.send(append.sync());
        }
    }
    let took = began.elapsed();
    drop(asking);
    let syncs = syncs.await.unwrap();
    drop(append);
    (f64::from(pieces) / 16.0 / took.as_secs_f64(), longest, syncs)
}

/// Appends messages of 64 KiB through the client and the server, on loopback, and finishes; MiB per second until all of it
/// is acknowledged, and until it is finished.
async fn append_over_sockets(durability: Durability, at: usize, dir: &Path, pieces: u32) -> [f64; 2] {
    let storage = FsStorage::open(dir.join(format!("sockets-{at}"))).unwrap();
    let streams = Streams::builder(storage).durability(durability).build();
    let app = axum::Router::new().layer(HttpFStreamLayer::from_streams(streams.clone()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/log", listener.local_addr().unwrap());
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    let piece = Bytes::from(vec![b'x'; 64 * 1024]);
    let mut out = client::open_append(url).await.unwrap();
    let began = Instant::now();
    for _ in 0..pieces {
        out.append(piece.clone()).await.unwrap();
    }
    out.sync().await.unwrap();
    let acknowledged = began.elapsed();
    // This syncs in any case.
    out.finish().await.unwrap();
    let finished = began.elapsed();
    assert_eq!(streams.stat("log").await.unwrap().unwrap().len, u64::from(pieces) * 64 * 1024);
    streams.delete("log").await.unwrap();
    server.abort();
    [acknowledged, finished].map(|took| f64::from(pieces) / 16.0 / took.as_secs_f64())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let dir = match std::env::var_os("DURABILITY_DIR") {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    };
    let dir = dir.unwrap();
    let storage = FsStorage::open(dir.path()).unwrap();

    // Run as a test it only shows that it runs.
    let whole = std::env::args().any(|arg| arg == "--bench");
    let (times, many_appenders, pieces) = if whole { (20, 1000, 8192) } else { (2, 100, 64) };
    let one = create_and_finish(&storage, "one", 1, 10 * times).await;
    let many = create_and_finish(&storage, "many", 64, times).await;
    println!("create, 1 KiB, finish: {one:.0}/s one by one, {many:.0}/s of 64 at a time ({:.1} times)", many / one);

    let open = async |of: usize| {
        let mut appenders = Vec::new();
        for at in 0..of {
            let mut append = storage.open(&key(&format!("sync-{of}"), at), Open::Create).await.unwrap();
            append.append(&[Bytes::from_static(b"x")]).await.unwrap();
            append.sync().await.unwrap();
            appenders.push(append);
        }
        appenders
    };
    let one = sync_all(open(1).await, 20).await;
    let many = sync_all(open(many_appenders).await, 5).await;
    let ratio = many.as_secs_f64() / one.as_secs_f64();
    println!("append 64 B and sync: one {one:.2?}, {many_appenders} at once {many:.2?} ({ratio:.0} times)");

    let mut best = [(0.0, Duration::MAX, 0); 2];
    for round in 0..6 {
        let syncing = round % 2 == 1;
        let got = stream(&storage, round, syncing, pieces).await;
        storage.delete(&key("stream", round)).await.unwrap();
        if got.0 > best[usize::from(syncing)].0 {
            best[usize::from(syncing)] = got;
        }
    }
    let [(without, longest, _), (with, longest_with, syncs)] = best;
    println!(
        "appends of 64 KiB: {without:.0} MiB/s without syncs (longest {longest:.2?}), {with:.0} with {syncs} \
         (longest {longest_with:.2?}): {:.0} %",
        100.0 * with / without
    );

    let mut rates = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
    for round in 0..if whole { 24 } else { 2 } {
        let durability = if round % 2 == 1 { Durability::Acked } else { Durability::Process };
        let got = append_over_sockets(durability, round, dir.path(), pieces).await;
        for (rates, got) in rates[round % 2].iter_mut().zip(got) {
            rates.push(got);
        }
    }
    let [without, with] = rates;
    for ((what, without), with) in ["acknowledged", "finished"].into_iter().zip(without).zip(with) {
        let ([low, without, high], [low_with, with, high_with]) = (spread(without), spread(with));
        println!(
            "messages of 64 KiB over sockets until all is {what}: {without:.0} MiB/s without syncs ({low:.0}–{high:.0}), \
             {with:.0} with ({low_with:.0}–{high_with:.0}): {:.0} % of the medians",
            100.0 * with / without
        );
    }
}

/// The lowest, the median and the highest.
fn spread(mut of: Vec<f64>) -> [f64; 3] {
    of.sort_by(f64::total_cmp);
    [of[0], of[of.len() / 2], of[of.len() - 1]]
}
