//! A storage of one's own, with nothing but the crate's public API: the storage is `log.rs`, this tries it and exits.
//!
//! ```sh
//! cargo run --example custom_storage
//! cargo test --example custom_storage --features conformance
//! ```
//!
//! The second tests the storage contract, clause by clause (`conformance.rs`).
use std::time::Duration;

use httpfstream::{BoxError, ErrorKind, Streams};

#[cfg(all(test, feature = "conformance"))]
mod conformance;
mod log;
use log::LogStorage;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("streams.log");

    println!("one appends, one follows:");
    let streams = Streams::new(LogStorage::open(&path)?);
    let mut out = streams.open_append("greetings/1").create_new().await?;
    let mut follower = streams.follow("greetings/1").await?;
    let following = tokio::spawn(async move {
        let mut all = Vec::new();
        while let Some(chunk) = follower.next_chunk().await? {
            all.extend_from_slice(&chunk.bytes);
        }
        Ok::<_, httpfstream::Error>(all)
    });
    for word in ["all in ", "one ", "file"] {
        println!("  {} bytes", out.append(word).await?);
    }
    let second = streams.open_append("greetings/1").await.map(drop).map_err(|error| error.kind());
    println!("  a second appender: {second:?}");
    assert_eq!(second, Err(ErrorKind::Busy));
    out.finish().await?;
    let all = following.await??;
    println!("  the follower read {:?}, and then the end", String::from_utf8_lossy(&all));
    assert_eq!(all, b"all in one file");

    println!("one is lost, one is sealed, one comes and goes without a byte, one is deleted:");
    let mut lost = streams.open_append("lost").await?;
    lost.append("half of it").await?;
    drop(lost);
    let mut sealed = streams.open_append("sealed").await?;
    sealed.append("for good").await?;
    sealed.seal().await?;
    drop(streams.open_append("untouched").await?);
    let mut deleted = streams.open_append("deleted").await?;
    deleted.append("not for long").await?;
    streams.delete("deleted").await?;
    let fenced = deleted.append("too late").await.map_err(|error| error.kind());
    println!("  its appender: {fenced:?}");
    assert_eq!(fenced, Err(ErrorKind::Fenced));

    // When this returns nothing runs any more, and the file's lock goes with the last handle.
    streams.shutdown(Duration::from_secs(1)).await;
    drop((streams, deleted));
    let whole = std::fs::read(&path)?;
    println!("opened again, after a crash that tore a record behind the {} bytes of the log:", whole.len());
    std::fs::write(&path, [&whole[..], b"0123456789abcdef data 00 100 greetings/1\nnot a hundred bytes"].concat())?;
    let streams = Streams::new(LogStorage::open(&path)?);
    for key in ["greetings/1", "lost", "sealed", "untouched", "deleted"] {
        match streams.stat(key).await? {
            Some(stat) => println!("  {key}: {} bytes, {}", stat.len, stat.state),
            None => println!("  {key}: absent"),
        }
    }
    let mut again = streams.open_append("greetings/1").await?;
    again.append(", and on").await?;
    again.finish().await?;
    let mut follower = streams.follow("greetings/1").await?;
    let mut all = Vec::new();
    while let Some(chunk) = follower.next_chunk().await? {
        all.extend_from_slice(&chunk.bytes);
    }
    println!("  greetings/1 went on: {:?}", String::from_utf8_lossy(&all));
    assert_eq!(all, b"all in one file, and on");
    Ok(())
}
