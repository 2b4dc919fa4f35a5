//! Everything in one process: a server, an appender, and followers that join before, during and after.
//!
//! ```sh
//! cargo run --example quickstart --features client
//! ```
//!
//! Without the feature `client` the part over the network is left out.
use std::time::Duration;

use axum::{Router, routing::get};
use httpfstream::storage::FsStorage;
use httpfstream::{BoxError, HttpFStreamLayer, Streams};
use tokio::net::TcpListener;
use tokio::time::sleep;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let dir = tempfile::tempdir()?;
    let layer = HttpFStreamLayer::new(FsStorage::open(dir.path())?).mount("/streams");
    let streams = layer.streams();
    let app = Router::new().route("/", get(|| async { "an application of its own\n" })).layer(layer);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/streams", listener.local_addr()?);
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    println!("serving {} at {url}", dir.path().display());

    println!("\nin this process, without a socket:");
    in_process(&streams).await?;
    println!("  on disk: {:?}", std::fs::read_to_string(dir.path().join("greeting.txt"))?);

    #[cfg(feature = "client")]
    {
        println!("\nover the network:");
        network::run(&url).await?;
    }
    #[cfg(not(feature = "client"))]
    println!("\nwith --features client the same follows over the network");

    println!("\nwhat is stored:");
    let mut all = streams.list("");
    while let Some(entry) = futures_util::StreamExt::next(&mut all).await {
        let (key, stat) = entry?;
        println!("  {key}: {} bytes, {}", stat.len, stat.state);
    }
    streams.shutdown(Duration::from_secs(1)).await;
    server.abort();
    Ok(())
}

async fn in_process(streams: &Streams) -> Result<(), BoxError> {
    let mut out = streams.open_append("greeting.txt").create_new().await?;
    let early = tokio::spawn(read(streams.clone(), "early"));
    out.append("Hello, ").await?;
    sleep(Duration::from_millis(50)).await;
    let late = tokio::spawn(read(streams.clone(), "late"));
    sleep(Duration::from_millis(50)).await;
    out.append("world").await?;
    // Dropping the appender instead would tell its followers that it was lost.
    let len = out.finish().await?;
    for follower in [early, late] {
        assert_eq!(follower.await??, b"Hello, world");
    }
    println!("  stored: {len} bytes");
    Ok(())
}

/// Follows to the end.
async fn read(streams: Streams, name: &str) -> httpfstream::Result<Vec<u8>> {
    let mut follower = streams.follow("greeting.txt").await?;
    let mut all = Vec::new();
    while let Some(chunk) = follower.next_chunk().await? {
        println!("  the {name} follower got {:?}", String::from_utf8_lossy(&chunk.bytes));
        all.extend_from_slice(&chunk.bytes);
    }
    Ok(all)
}

#[cfg(feature = "client")]
mod network {
    use std::time::Duration;

    use httpfstream::{BoxError, ErrorKind, client};
    use tokio::time::sleep;

    pub(crate) async fn run(url: &str) -> Result<(), BoxError> {
        let url = format!("{url}/build.log");
        let absent = client::follow(&*url).await.map(drop).map_err(|error| error.kind());
        println!("  before anybody appended: {absent:?}");
        assert_eq!(absent, Err(ErrorKind::NotFound));

        let mut build = client::open_append(&*url).await?;
        let early = tokio::spawn(read(url.clone(), "early"));
        build.append("compiling\n").await?;
        sleep(Duration::from_millis(100)).await;
        let late = tokio::spawn(read(url.clone(), "late"));
        let busy = client::open_append(&*url).await.map(drop).map_err(|error| error.kind());
        println!("  a second appender: {busy:?}");
        assert_eq!(busy, Err(ErrorKind::Busy));
        sleep(Duration::from_millis(100)).await;
        build.append("testing\n").await?;
        sleep(Duration::from_millis(100)).await;
        build.append("ok\n").await?;
        // Returns when the server has stored and synced everything.
        build.finish().await?;
        for follower in [early, late] {
            assert_eq!(follower.await??, b"compiling\ntesting\nok\n");
        }
        // Finished: the same call is answered with a plain 200.
        assert_eq!(read(url.clone(), "last").await?, b"compiling\ntesting\nok\n");

        let mut lost = client::open_append(&*format!("{url}.lost")).await?;
        lost.append("compil").await?;
        let follower = tokio::spawn(read(format!("{url}.lost"), "unlucky"));
        sleep(Duration::from_millis(100)).await;
        drop(lost);
        let told = follower.await?.map_err(|error| error.kind());
        println!("  the appender was lost, the follower is told: {told:?}");
        assert_eq!(told, Err(ErrorKind::Interrupted));
        Ok(())
    }

    async fn read(url: String, name: &str) -> httpfstream::Result<Vec<u8>> {
        let mut follower = client::follow(&*url).await?;
        let mut all = Vec::new();
        while let Some(chunk) = follower.next_chunk().await? {
            println!("  the {name} follower got {:?}", String::from_utf8_lossy(&chunk.bytes));
            all.extend_from_slice(&chunk.bytes);
        }
        Ok(all)
    }
}
