//! The parts of the hot path by themselves: frames in and out, and a cursor that follows an appender in the process.
//!
//! `cargo bench --bench hot`. A message more is what counts, so everything is given for each message (`item`) and byte.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, dead_code)]

use bytes::{Bytes, BytesMut};
use divan::counter::{BytesCount, ItemsCount};
use divan::{AllocProfiler, Bencher, black_box};

// The codec is private to the crate, and made so that it stands alone.
#[allow(unused_imports)]
#[path = "../src/buffer.rs"]
mod buffer;
#[allow(unused_imports)]
#[path = "../src/websocket/frame.rs"]
mod frame;

#[global_allocator]
static ALLOC: AllocProfiler = AllocProfiler::system();

const SIZES: [usize; 3] = [64, 1024, 64 * 1024];

fn main() {
    divan::main();
}

/// As many messages as make up one large read.
fn messages(size: usize) -> usize {
    (256 * 1024 / size).max(1)
}

mod codec {
    use super::buffer::ByteQueue;
    use super::frame::{Decoder, Event, Kind, Role, apply_mask, put_header};
    use super::*;

    /// What a client sends, unmasked and cut into messages.
    #[divan::bench(args = SIZES)]
    fn decode(bencher: Bencher<'_, '_>, size: usize) {
        let mut sent = BytesMut::new();
        for i in 0..messages(size) {
            let mask = (i as u32).wrapping_mul(0x9e37_79b9).to_ne_bytes();
            put_header(&mut sent, Kind::Binary, size, Some(mask));
            let start = sent.len();
            sent.resize(start + size, b'x');
            apply_mask(&mut sent[start..], mask);
        }
        bencher
            .counter(ItemsCount::new(messages(size)))
            .counter(BytesCount::new(messages(size) * size))
            .with_inputs(|| (Decoder::new(Role::Server, u64::MAX), sent.clone()))
            .bench_local_values(|(mut decoder, mut buf)| {
                let mut got = 0;
                while let Some(Event::Data { payload, .. }) = decoder.decode(&mut buf, false).unwrap() {
                    got += black_box(payload).len();
                }
                assert_eq!(got, messages(size) * size);
            });
    }

    /// What a follower is sent: a header, and the bytes as they are.
    #[divan::bench(args = SIZES)]
    fn encode(bencher: Bencher<'_, '_>, size: usize) {
        let payload = Bytes::from(vec![b'x'; size]);
        bencher.counter(ItemsCount::new(1usize)).bench_local(|| {
            let mut out = ByteQueue::default();
            out.write_with(|buf| put_header(buf, Kind::Binary, size, None));
            out.push(payload.clone());
            black_box(&out);
        });
    }
}

mod cursor {
    use httpfstream::Streams;
    use httpfstream::storage::{FsStorage, MemoryStorage, Storage};

    use super::*;

    /// One append, and its arrival at one follower.
    fn follow(bencher: Bencher<'_, '_>, storage: impl Storage, size: usize) {
        // Two threads: else files are written by the blocking pool.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let data = Bytes::from(vec![b'x'; size]);
        let (mut appender, mut follower) = runtime.block_on(async {
            let streams = Streams::new(storage);
            let appender = streams.append("log").await.unwrap();
            (appender, streams.follow("log").await.unwrap())
        });
        bencher.counter(ItemsCount::new(1usize)).counter(BytesCount::new(size)).bench_local(|| {
            runtime.block_on(async {
                appender.append(data.clone()).await.unwrap();
                let mut got = 0;
                while got < size {
                    got += follower.next_chunk().await.unwrap().unwrap().len();
                }
                assert_eq!(got, size);
            });
        });
    }

    #[divan::bench(args = SIZES, max_time = 1)]
    fn over_memory(bencher: Bencher<'_, '_>, size: usize) {
        follow(bencher, MemoryStorage::new(64 << 30), size);
    }

    #[cfg(unix)]
    #[divan::bench(args = SIZES, max_time = 1)]
    fn over_files(bencher: Bencher<'_, '_>, size: usize) {
        let dir = tempfile::tempdir().unwrap();
        follow(bencher, FsStorage::open(dir.path()).unwrap(), size);
    }
}
