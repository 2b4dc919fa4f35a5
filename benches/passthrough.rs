//! What a request that is not ours pays for the layer: beside the bare inner service, in the same run.
//!
//! `cargo bench --bench passthrough`. The target: under 100 ns over the bare service and no allocation where the head
//! alone tells that a request is foreign. (`tests/passthrough.rs` holds the allocations; times are only looked at.)
//!
//! The inner service drops the request and answers with an empty body: what every service does at the least. Making the
//! request is not measured.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::convert::Infallible;
use std::future::{Ready, ready};

use divan::{AllocProfiler, Bencher};
use futures_util::FutureExt;
use http::{Request, Response};
use http_body_util::Empty;
use httpfstream::{HttpFStreamLayer, storage};
use tokio::runtime::Runtime;
use tower::{Layer, Service};

#[global_allocator]
static ALLOC: AllocProfiler = AllocProfiler::system();

type Asked = Request<Empty<bytes::Bytes>>;

fn main() {
    divan::main();
}

#[derive(Clone)]
struct Inner;

impl Service<Asked> for Inner {
    type Response = Response<Empty<bytes::Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Asked) -> Self::Future {
        drop(request);
        ready(Ok(Response::new(Empty::new())))
    }
}

/// As a browser asks for something.
fn request() -> Asked {
    Request::builder()
        .uri("/api/users/42?fields=name,mail")
        .header("host", "app.example")
        .header("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0")
        .header("accept", "application/json")
        .header("accept-language", "en-US,en;q=0.5")
        .header("accept-encoding", "gzip, deflate, br")
        .header("cookie", "session=0123456789abcdef0123456789abcdef")
        .header("connection", "keep-alive")
        .header("referer", "https://app.example/users")
        .body(Empty::new())
        .unwrap()
}

fn bare_layer() -> HttpFStreamLayer {
    HttpFStreamLayer::new(storage::MemoryStorage::new(1 << 20))
}

/// Told by the head alone: the answer is there at the first poll.
mod by_head {
    use super::*;

    fn run<S>(bencher: Bencher<'_, '_>, mut service: S)
    where
        S: Service<Asked>,
    {
        bencher.with_inputs(request).bench_local_values(move |request| service.call(request).now_or_never());
    }

    #[divan::bench(sample_size = 16, sample_count = 2000)]
    fn a_bare_service(bencher: Bencher<'_, '_>) {
        run(bencher, Inner);
    }

    #[divan::bench(sample_size = 16, sample_count = 2000)]
    fn no_upgrade(bencher: Bencher<'_, '_>) {
        run(bencher, bare_layer().layer(Inner));
    }

    #[divan::bench(sample_size = 16, sample_count = 2000)]
    fn another_prefix(bencher: Bencher<'_, '_>) {
        run(bencher, bare_layer().mount("/streams").layer(Inner));
    }
}

/// A GET that might be for a resource, but there is none: the storage is asked, then the inner service.
mod served_get_falls_through {
    use super::*;

    fn run<S>(bencher: Bencher<'_, '_>, runtime: &Runtime, mut service: S)
    where
        S: Service<Asked>,
    {
        bencher.with_inputs(request).bench_local_values(move |request| runtime.block_on(service.call(request)));
    }

    fn runtime() -> Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    #[divan::bench(sample_size = 16, sample_count = 2000)]
    fn a_bare_service(bencher: Bencher<'_, '_>) {
        run(bencher, &runtime(), Inner);
    }

    #[divan::bench(sample_size = 16, sample_count = 2000)]
    fn over_memory(bencher: Bencher<'_, '_>) {
        run(bencher, &runtime(), bare_layer().plain_http(true).layer(Inner));
    }

    #[cfg(unix)]
    #[divan::bench(sample_size = 16, sample_count = 2000)]
    fn over_files(bencher: Bencher<'_, '_>) {
        let dir = tempfile::tempdir().unwrap();
        let layer = HttpFStreamLayer::new(storage::FsStorage::open(dir.path()).unwrap());
        run(bencher, &runtime(), layer.plain_http(true).layer(Inner));
    }
}
