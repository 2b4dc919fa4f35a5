//! Probe.
#![allow(clippy::unwrap_used, clippy::expect_used, unused)]
mod common;
use common::plain::*;
use common::*;
use httpfstream::storage::*;
use httpfstream::*;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn one(
    server: &Server,
    http: Http,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &'static str,
) -> Answer {
    let response = Client::new(server.addr, http).await.send(method, target, headers, full(body)).await.unwrap();
    Live::of(response).whole().await
}

#[tokio::test]
async fn etag_of_put() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        let put = one(&server, Http::One, "PUT", "/a?verb=APPEND", &[], "x").await;
        let tag = put.header("etag").unwrap().to_owned();
        println!("{name}: put {tag} get {:?}", server.get("/a").await.header("etag"));
        let again = one(&server, Http::One, "POST", "/a?verb=APPEND", &[("if-match", &tag)], "x").await;
        println!("{name}: if-match {again:?}");
        let park = one(&server, Http::One, "POST", "/b", &[("upload-complete", "?0")], "x").await;
        let tag = park.header("etag").unwrap().to_owned();
        println!("{name}: park {tag} get {:?}", server.get("/b").await.header("etag"));
    }
}

#[tokio::test]
async fn plain_post_continues_parked_and_is_cut() {
    let server = serve(memory_layer()).await;
    one(&server, Http::One, "POST", "/b", &[("upload-complete", "?0")], "x").await;
    let up = Upload::begin(server.addr, Http::Two, "POST", "/b?verb=APPEND", &[]).await;
    up.send("y").await;
    while server.streams.stat("b").await.unwrap().unwrap().len != 2 {
        tokio::task::yield_now().await;
    }
    up.cut().await;
    let s = server.at_rest("b").await;
    println!("plain post cut on parked: {:?}", s);
}

#[tokio::test]
async fn upload_length_counted_twice() {
    let server = serve(memory_layer().max_resource_size(10)).await;
    println!(
        "{:?}",
        one(&server, Http::One, "POST", "/b", &[("upload-complete", "?0"), ("upload-length", "8")], "1234").await
    );
    println!(
        "{:?}",
        one(&server, Http::One, "POST", "/b", &[("upload-complete", "?1"), ("upload-length", "8")], "5678").await
    );
}

#[tokio::test]
async fn far_grant() {
    let far = SystemTime::UNIX_EPOCH + Duration::from_secs(i64::MAX as u64);
    let server = serve(memory_layer().authorize(move |_| async move { Ok(Grant::new().until(far)) })).await;
    let r = Client::new(server.addr, Http::One).await.send("PUT", "/a?verb=APPEND", &[], full("x")).await;
    println!("far grant {:?}", r.map(|r| r.status()));
    println!("state {:?}", server.streams.stat("a").await);
}

#[tokio::test]
async fn get_append_h2() {
    let server = serve(memory_layer()).await;
    println!("{:?}", one(&server, Http::Two, "GET", "/a?verb=APPEND", &[], "").await);
}

#[tokio::test]
async fn trailers() {
    let server = serve(memory_layer()).await;
    let mut raw = Raw::connect(server.addr).await;
    raw.send_head("PUT", "/a", &[("x-verb", "append"), ("transfer-encoding", "chunked"), ("trailer", "x-y")], "").await;
    raw.send(b"3\r\nabc\r\n0\r\nx-y: z\r\n\r\n").await;
    println!("{:?} {:?}", raw.read_head().await, server.get("/a").await);
}

fn h2frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut f = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    f.push(kind);
    f.push(flags);
    f.extend(stream.to_be_bytes());
    f.extend(payload);
    f
}
fn lit(name: &str, value: &str) -> Vec<u8> {
    let mut h = vec![0u8, name.len() as u8];
    h.extend(name.bytes());
    h.push(value.len() as u8);
    h.extend(value.bytes());
    h
}

#[tokio::test]
async fn rst_codes() {
    for (code, len) in [(0u32, None), (8, None), (0, Some("100")), (5, None)] {
        let server = serve(memory_layer()).await;
        let mut raw = Raw::connect(server.addr).await;
        raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        raw.send(&h2frame(4, 0, 0, &[])).await;
        raw.send(&h2frame(4, 1, 0, &[])).await;
        let mut block =
            [lit(":method", "POST"), lit(":scheme", "http"), lit(":path", "/a?verb=APPEND"), lit(":authority", "x")]
                .concat();
        if let Some(len) = len {
            block.extend(lit("content-length", len));
        }
        raw.send(&h2frame(1, 4, 1, &block)).await;
        raw.send(&h2frame(0, 0, 1, b"half")).await;
        while server.streams.stat("a").await.unwrap().is_none_or(|s| s.len != 4) {
            tokio::task::yield_now().await;
        }
        raw.send(&h2frame(3, 0, 1, &code.to_be_bytes())).await;
        println!("rst {code} length {len:?}: {:?}", server.at_rest("a").await.unwrap().state);
    }
}

/// An IO that isn't vectored.
struct Flat(tokio::io::DuplexStream);
impl tokio::io::AsyncRead for Flat {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        b: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_read(cx, b)
    }
}
impl tokio::io::AsyncWrite for Flat {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        b: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.0).poll_write(cx, b)
    }
    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn flat_io() {
    use tower::Layer;
    for len in [100_000usize, 300_000, 1_000_000] {
        let layer = memory_layer();
        let mut out = layer.streams().append("a").await.unwrap();
        out.append(pattern(0, len)).await.unwrap();
        let (ours, theirs) = tokio::io::duplex(16 * 1024);
        let svc = tower::service_fn(|_: http::Request<hyper::body::Incoming>| async {
            Ok::<_, std::convert::Infallible>(http::Response::new(http_body_util::Full::from("inner")))
        });
        let service = hyper_util::service::TowerToHyperService::new(layer.layer(svc));
        tokio::spawn(async move {
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(hyper_util::rt::TokioIo::new(Flat(theirs)), service)
                .await;
        });
        let mut raw = Raw { stream: ours, buf: vec![] };
        raw.send_head("GET", "/a?verb=FOLLOW", &[], "").await;
        raw.read_head().await;
        drop(out);
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut got = 0;
        let end = loop {
            match raw.chunk().await {
                Ok(Some(c)) => got += c.len(),
                e => break e,
            }
        };
        println!("flat {len}: got {got} {end:?}");
    }
}

#[tokio::test]
async fn hard_cut() {
    for http in BOTH {
        let server = serve(memory_layer()).await;
        let mut out = server.streams.append("a").await.unwrap();
        out.append(pattern(0, 1)).await.unwrap();
        let mut r = ask(server.addr, http, "/a?verb=FOLLOW", &[]).await;
        r.bytes(1).await;
        out.append(pattern(1, 300_000)).await.unwrap();
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        server.streams.shutdown(Duration::from_millis(30)).await;
        let (d, c) = r.to_end().await;
        println!("hard cut {http:?}: {} {c}", d.len());
    }
}

#[tokio::test]
async fn refused_big() {
    let server = serve(memory_layer()).await;
    let mut out = server.streams.append("a").await.unwrap();
    out.append("x").await.unwrap();
    for len in [100_000, 1_000_000, 20_000_000] {
        let mut raw = Raw::connect(server.addr).await;
        raw.send_head("PUT", "/a?verb=APPEND", &[("content-length", &len.to_string())], "").await;
        let sent = raw.stream.write_all(&vec![0; len]).await;
        let mut b = Vec::new();
        let r = raw.stream.read_to_end(&mut b).await;
        println!("{len}: sent {sent:?}, read {r:?} {:?}", String::from_utf8_lossy(&b).lines().next());
    }
}
