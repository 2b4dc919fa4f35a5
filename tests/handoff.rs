//! The step from stored to live bytes, under stress: many followers join while an appender writes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Frame, HANDSHAKE, Raw, Server, client_frame, fs_layer, memory_layer, pattern, serve, soon};
use tokio::io::AsyncReadExt;
use tokio::sync::watch;

const FOLLOWERS: usize = 200;
/// Messages a second.
const RATE: u32 = 2000;

/// One run at a time: each needs two file descriptors for each follower, and many systems give a process 1,024.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A follower that compares as it reads: it must get every byte from the start, once.
async fn follow_and_compare(server: &Server, by_header: bool, expected: &[u8]) {
    let mut raw = Raw::connect(server.addr).await;
    let headers: &[(&str, &str)] = if by_header { &[("X-Verb", "FOLLOW")] } else { &[("User-Agent", "test")] };
    raw.send_head("GET", "/log?verb=FOLLOW", headers, HANDSHAKE).await;
    let answer = raw.read_head().await;
    let mut at = 0;
    if answer.status == 200 {
        // The appender was done already.
        let mut body = std::mem::take(&mut raw.buf);
        while body.len() < expected.len() {
            assert!(soon("the body", raw.stream.read_buf(&mut body)).await.unwrap() > 0);
        }
        assert!(body == expected, "the plain body differs");
        return;
    }
    assert_eq!(answer.status, 101);
    loop {
        match raw.frame().await {
            Frame::Text(payload) | Frame::Binary(payload) => {
                let end = at + payload.len();
                assert!(expected.get(at..end) == Some(&payload[..]), "bytes {at}..{end} differ");
                at = end;
            }
            Frame::Ping(_) => {}
            Frame::Close(code, _) => {
                assert_eq!((code, at), (Some(1000), expected.len()));
                return;
            }
            other => panic!("{other:?} after {at} bytes"),
        }
    }
}

/// A small generator, so that a run can be repeated.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    *state >> 33
}

async fn handoff(server: Server, size: usize, messages: usize, binary: bool) {
    let _turn = TURN.lock().await;
    let expected: Arc<Vec<u8>> = Arc::new(match binary {
        true => pattern(0, size * messages),
        false => "päng €uro ".bytes().cycle().take(size * messages).collect(),
    });
    let server = Arc::new(server);
    let mut appender = server.append_as_original("/log").await;
    let (sent, seen) = watch::channel(0);
    let mut seed = size as u64;
    let mut followers = tokio::task::JoinSet::new();
    for number in 0..FOLLOWERS {
        // The last few may come when all is over.
        let joins_at = random(&mut seed) as usize % (messages + messages / 50);
        let (server, expected, mut seen) = (Arc::clone(&server), Arc::clone(&expected), seen.clone());
        followers.spawn(async move {
            let joins_at = joins_at.min(messages);
            soon("the appender to get there", seen.wait_for(|sent| *sent >= joins_at)).await.unwrap();
            follow_and_compare(&server, number % 2 == 0, &expected).await;
        });
    }
    let mut pace = tokio::time::interval(Duration::from_secs(1) / RATE);
    for (number, message) in expected.chunks(size).enumerate() {
        pace.tick().await;
        appender.send(&client_frame(if binary { 0x82 } else { 0x81 }, message)).await;
        sent.send_replace(number + 1);
    }
    drop(appender);
    while let Some(joined) = followers.join_next().await {
        joined.unwrap();
    }
}

/// Messages of a run: enough to last a second, bounded by what a test may take.
fn messages(size: usize) -> usize {
    let all: usize = std::env::var("HANDOFF_BYTES").map_or(8 << 20, |bytes| bytes.parse().unwrap());
    (all / size).clamp(100, RATE as usize)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_27_200_followers_join_at_2000_messages_a_second_of_64_bytes() {
    let (layer, _dir) = fs_layer();
    handoff(serve(layer).await, 64, messages(64), true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_27_200_followers_join_at_2000_messages_a_second_of_1_kib() {
    let (layer, _dir) = fs_layer();
    handoff(serve(layer).await, 1024, messages(1024), false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_27_200_followers_join_at_2000_messages_a_second_of_16_kib() {
    let (layer, _dir) = fs_layer();
    handoff(serve(layer).await, 16 * 1024, messages(16 * 1024), true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_27_200_followers_join_at_2000_messages_a_second_of_64_kib() {
    let (layer, _dir) = fs_layer();
    handoff(serve(layer).await, 64 * 1024, messages(64 * 1024), false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_27_200_followers_join_over_memory() {
    handoff(serve(memory_layer()).await, 1024, messages(1024), true).await;
}
