//! Readers beside an appender, at the storage itself.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use bytes::Bytes;
use httpfstream::Key;
use httpfstream::storage::{Append, End, FsStorage, Open, Storage};

/// Seen once in a dozen runs of tests/external/programs.sh: a follower whose look at the file came before an append,
/// and whose look at the length came behind it, was told that somebody had cut the file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_grows_while_it_is_read_is_not_taken_for_a_cut_one() {
    let dir = tempfile::tempdir().unwrap();
    let storage = FsStorage::open(dir.path()).unwrap();
    let key = Key::new("a").unwrap();
    let mut out = storage.open(&key, Open::Create).await.unwrap();
    out.append(&[Bytes::from_static(b"x")]).await.unwrap();
    let life = out.stat().life;
    let (done, is_done) = tokio::sync::oneshot::channel();
    let reader = tokio::spawn({
        let (storage, key) = (storage.clone(), key.clone());
        async move {
            tokio::pin!(is_done);
            let mut reads = 0;
            while futures_util::poll!(&mut is_done).is_pending() {
                drop(storage.read(&key, life, 0..1).await.expect("nobody cut it"));
                reads += 1;
                tokio::task::yield_now().await;
            }
            reads
        }
    });
    for _ in 0..20_000 {
        out.append(&[Bytes::from_static(b"more")]).await.unwrap();
        tokio::task::yield_now().await;
    }
    done.send(()).unwrap();
    assert!(reader.await.unwrap() > 0);
    out.finish(End::Finished).await.unwrap();
}
