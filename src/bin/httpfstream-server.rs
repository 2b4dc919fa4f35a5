//! Serves resources in a folder, for appending and following.

mod server;
mod shared;

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io::{self, IsTerminal};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::exit;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use clap::Parser;
use clap::builder::NonEmptyStringValueParser;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use httpfstream::storage::FsStorage;
use httpfstream::{BoxError, Durability, Grant, HttpFStream, HttpFStreamLayer, NotFound, Streams};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, lookup_host};
use tower::{Layer, Service};

use self::server::connections::{Connections, Counted, Requests, Shares, raise_descriptors};
use self::server::{Body, full, token};
use self::shared::exit::{FAILED, FINISHED};

const PROGRAM: &str = "httpfstream-server";
/// The grace period of a shutdown, which has to end within ten seconds.
const GRACE: Duration = Duration::from_secs(7);
/// How long a reader may accept no data. The kernel counts from its first probe of a closed window, which opens again
/// when about half of the reader's buffer is free (measured); so a reader whose buffer is full has to read that much
/// within this time.
#[cfg(target_os = "linux")]
const STALL: Duration = Duration::from_secs(600);
/// The interval of HTTP/2 pings.
const PING: Duration = Duration::from_secs(30);
/// The most concurrent streams of an HTTP/2 connection.
const STREAMS: u32 = 100;
/// The most bytes of a response that are buffered for an HTTP/2 stream whose client doesn't read.
const SEND_BUFFER: usize = 64 * 1024;
/// The flow-control window of an HTTP/2 stream: how many bytes a client may send that weren't read yet.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The limit of followers of all resources, unless `--max-followers` is larger.
const TOTAL_FOLLOWERS: usize = 50_000;

/// Serves resources in a folder. They can be appended to, and followed while they grow.
///
/// Exit codes: 0 shut down (SIGTERM, SIGINT), 1 failed, 2 wrong usage.
#[derive(Parser, Debug)]
#[command(name = PROGRAM, version)]
struct Args {
    /// The data folder. Created if it is missing.
    #[arg(long, env = "HTTPFSTREAM_ROOT", default_value = "httpfstream-data")]
    root: PathBuf,

    /// The address to listen on. Without a host (`:8080`), all interfaces.
    #[arg(long, env = "HTTPFSTREAM_HTTP", default_value = "127.0.0.1:8080", value_name = "HOST:PORT")]
    http: String,

    /// Require this token: as a bearer token, or as the password of any user with HTTP Basic.
    #[arg(long, env = "HTTPFSTREAM_TOKEN", hide_env_values = true, value_parser = NonEmptyStringValueParser::new())]
    token: Option<String>,

    /// Refuse appends and deletes.
    #[arg(long, env = "HTTPFSTREAM_READ_ONLY")]
    read_only: bool,

    /// Serve a listing of the resources at each path that ends with a slash.
    #[arg(long, env = "HTTPFSTREAM_LISTING")]
    listing: bool,

    /// Allow web pages of this origin (`https://app.example`) to append and follow, besides this server's own; `*`
    /// allows all. Can be repeated.
    #[arg(long, env = "HTTPFSTREAM_ALLOW_ORIGIN", value_delimiter = ',', value_name = "ORIGIN")]
    allow_origin: Vec<String>,

    /// When listening on loopback, accept requests with this name in `Host`; `*` accepts all. Can be repeated.
    ///
    /// By default only loopback names are accepted, because a web page could point its own name here (DNS rebinding).
    #[arg(long, env = "HTTPFSTREAM_ALLOW_HOST", value_delimiter = ',', value_name = "NAME")]
    allow_host: Vec<String>,

    /// The maximum size of a resource, in bytes.
    #[arg(
        long,
        env = "HTTPFSTREAM_MAX_RESOURCE_SIZE",
        value_name = "BYTES",
        default_value_t = u64::MAX,
        hide_default_value = true
    )]
    max_resource_size: u64,

    /// When bytes survive a power loss: once the resource is finished (`process`), within a second (`interval`), or
    /// before they are acknowledged (`acked`). With the last two, acknowledged bytes always survive. A killed server
    /// loses none.
    #[arg(long, env = "HTTPFSTREAM_DURABILITY", value_enum, default_value_t = Policy::Interval)]
    durability: Policy,

    /// How long a resource is reserved for its lost appender, in seconds. Nobody else can append until then.
    #[arg(long, env = "HTTPFSTREAM_GRACE", value_name = "SECONDS", default_value_t = 30)]
    grace: u64,

    /// How long a resource stays open between two request bodies (`Upload-Complete: ?0`), in seconds.
    #[arg(long, env = "HTTPFSTREAM_PARKING_TIMEOUT", value_name = "SECONDS", default_value_t = 600)]
    parking_timeout: u64,

    /// The maximum number of connections. Any more are answered with 503 and closed.
    ///
    /// Default: half of the process's file descriptors (`ulimit -Hn`); the others are for files.
    #[arg(long, env = "HTTPFSTREAM_MAX_CONNECTIONS", value_name = "N")]
    max_connections: Option<usize>,

    /// The maximum number of followers of one resource. Any more are answered with 503.
    #[arg(long, env = "HTTPFSTREAM_MAX_FOLLOWERS", value_name = "N", default_value_t = 10_000)]
    max_followers: usize,

    /// Time limit for the head of a request, and for an idle connection, in seconds. (Between two requests over HTTP/2
    /// a connection may be idle for four times as long.)
    #[arg(long, env = "HTTPFSTREAM_HEAD_TIMEOUT", value_name = "SECONDS", default_value_t = 30,
        value_parser = clap::value_parser!(u32).range(1..))]
    head_timeout: u32,

    /// Time limit for one call of the file system, in seconds. A request that waits longer fails.
    #[arg(long, env = "HTTPFSTREAM_STORAGE_TIMEOUT", value_name = "SECONDS", default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(1..))]
    storage_timeout: u64,

    /// Log each request.
    #[arg(short, long)]
    verbose: bool,
}

#[derive(clap::ValueEnum, Debug, Clone, Copy)]
enum Policy {
    Process,
    Interval,
    Acked,
}

impl From<Policy> for Durability {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Process => Self::Process,
            Policy::Interval => Self::default(),
            Policy::Acked => Self::Acked,
        }
    }
}

fn main() {
    let args: Args = shared::args::parse();
    let level = if args.verbose { "httpfstream=debug,httpfstream_server=debug" } else { "warn" };
    let filter = tracing_subscriber::EnvFilter::try_from_env("HTTPFSTREAM_LOG").unwrap_or_else(|_| level.into());
    let colours = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colours).init();
    // At least two workers, so that one is free while the other waits for a disk.
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if std::thread::available_parallelism().is_ok_and(|cores| cores.get() < 2) {
        runtime.worker_threads(2);
    }
    let ran = runtime.enable_all().build().map_err(BoxError::from).and_then(|runtime| {
        let ran = runtime.block_on(run(args));
        // After a second signal the process must not wait for a disk.
        runtime.shutdown_background();
        ran
    });
    exit(match ran {
        Ok(()) => FINISHED,
        Err(error) => {
            eprintln!("{PROGRAM}: {}", shared::exit::causes(&*error));
            FAILED
        }
    })
}

async fn run(args: Args) -> Result<(), BoxError> {
    let storage = FsStorage::open(&args.root)
        .map_err(|error| format!("{}: {}", args.root.display(), shared::exit::causes(&error)))?;
    let listener = listen(&args.http).await.map_err(|error| format!("can't listen on {}: {error}", args.http))?;
    let addr = listener.local_addr()?;

    let shares = Shares::of(raise_descriptors(), args.max_connections);
    let streams = Streams::builder(storage)
        .durability(args.durability.into())
        .grace(Duration::from_secs(args.grace))
        .parking_timeout(Duration::from_secs(args.parking_timeout))
        .max_open_resources(shares.appends)
        .max_followers_per_resource(args.max_followers)
        .max_followers_total(args.max_followers.max(TOTAL_FOLLOWERS))
        .storage_timeout(Duration::from_secs(args.storage_timeout))
        .build();
    streams.recover().await?;
    let token: Option<Arc<str>> = args.token.clone().map(Into::into);
    let mut layer = HttpFStreamLayer::from_streams(streams.clone())
        .mount("/")
        .verb_from_method(true)
        .read_only(args.read_only)
        .allow_origins(args.allow_origin.clone())
        .max_resource_size(args.max_resource_size);
    if let Some(token) = &token {
        let token = Arc::clone(token);
        layer = layer.authorize(move |access| {
            let carries = token::carries(&access.head.headers, &token);
            async move { if carries { Ok(Grant::new()) } else { Err(token::required().into()) } }
        });
    }
    let server = Server {
        service: layer.layer(Fallback { token: token.clone() }),
        streams: streams.clone(),
        listing: args.listing,
        hosts: addr.ip().is_loopback().then(|| args.allow_host.clone().into()),
        token,
        head_timeout: Duration::from_secs(args.head_timeout.into()),
    };
    banner(&args, addr);

    // Installed before the first connection, so that no signal is missed.
    let mut signals = Signals::new()?;
    let graceful = GracefulShutdown::new();
    let connections = Connections::new(shares.connections);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true);
                    // hyper doesn't poll a response body while its reader accepts nothing, so only the kernel can
                    // detect it.
                    #[cfg(target_os = "linux")]
                    let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, STALL.as_millis() as u32);
                    if let Some(stream) = connections.admit(stream) {
                        server.clone().connection(stream, &graceful);
                    }
                }
                Err(error) => {
                    // Most often the process is out of file descriptors. Open connections continue, and free theirs
                    // when they end.
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            () = signals.next() => break,
        }
    }
    drop(listener);
    eprintln!("{PROGRAM}: stopping; a second signal stops at once");
    tokio::select! {
        // One grace period for both: `Streams::shutdown` ends the layer's connections, `GracefulShutdown` plain
        // downloads.
        _ = async {
            tokio::join!(streams.shutdown(GRACE), tokio::time::timeout(GRACE, graceful.shutdown()))
        } => Ok(()),
        () = signals.next() => Err("stopped at once; data that was not synced may be lost in a power failure".into()),
    }
}

#[derive(Clone)]
struct Server {
    service: HttpFStream<Fallback>,
    /// For the viewer and the listing.
    streams: Streams,
    listing: bool,
    /// On loopback: the names that `Host` may have besides the loopback names.
    hosts: Option<Arc<[String]>>,
    token: Option<Arc<str>>,
    head_timeout: Duration,
}

/// Answers the requests that no page and no resource answers.
#[derive(Clone)]
struct Fallback {
    token: Option<Arc<str>>,
}

impl Service<Request<Incoming>> for Fallback {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        // Without the token not even that there is nothing is revealed.
        if !token::permits(self.token.as_deref(), request.headers()) {
            return ready(Ok(token::required().to_response().map(BodyExt::boxed_unsync)));
        }
        let Ok(response) = NotFound.call(request).into_inner();
        ready(Ok(response.map(full)))
    }
}

impl Server {
    fn connection(self, stream: Counted, graceful: &GracefulShutdown) {
        let head_timeout = self.head_timeout;
        let requests = Requests::new();
        let answering = requests.clone();
        let service = service_fn(move |request| {
            let (server, answering) = (self.clone(), answering.begin());
            async move {
                let upgrade = request.method() == Method::CONNECT;
                let response = server.answer(request).await?;
                if upgrade && response.status().is_success() {
                    // A WebSocket over HTTP/2. Its end isn't visible here; pings detect a dead client.
                    answering.forever();
                    return Ok::<_, Infallible>(response);
                }
                // The request counts as active until the end of its response body.
                Ok(response.map(|body| {
                    let counted = move |error| {
                        let _ = &answering;
                        error
                    };
                    body.map_err(counted).boxed_unsync()
                }))
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(head_timeout);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .enable_connect_protocol()
            .max_concurrent_streams(STREAMS)
            .max_send_buf_size(SEND_BUFFER)
            .initial_stream_window_size(STREAM_WINDOW)
            // Large enough that a slow append can't use up the window of the connection, which other streams share.
            .initial_connection_window_size(2 * STREAMS * STREAM_WINDOW);
        let watcher = graceful.watcher();
        tokio::spawn(async move {
            let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
            let connection = watcher.watch(connection);
            tokio::select! {
                ended = connection => {
                    if let Err(error) = ended {
                        tracing::debug!(error, "a connection failed");
                    }
                }
                () = requests.idle(head_timeout) => tracing::debug!("closing an idle connection"),
            }
        });
    }

    async fn answer(mut self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        // Without the query, which may hold a token.
        let line =
            tracing::enabled!(tracing::Level::DEBUG).then(|| format!("{} {}", request.method(), request.uri().path()));
        let head = request.method() == Method::HEAD;
        let mut response = if !self.knows(&request) {
            drain(request);
            let text =
                "this server listens on loopback and accepts requests only for loopback names; see --allow-host\n";
            let mut response = Response::new(full(text));
            *response.status_mut() = StatusCode::MISDIRECTED_REQUEST;
            response
        } else {
            match self.page(&request).await {
                Some(page) => page,
                None => self.service.call(request).await?.map(BodyExt::boxed_unsync),
            }
        };
        if head && let Some(len @ 1..) = response.body().size_hint().exact() {
            // hyper drops the body of an answer to HEAD only over HTTP/1.1.
            response.headers_mut().insert(header::CONTENT_LENGTH, len.into());
            *response.body_mut() = full("");
        }
        if let Some(line) = line {
            tracing::debug!(status = response.status().as_u16(), "{line}");
        }
        Ok(response)
    }

    /// A page, if the request asks for one and carries the token.
    async fn page(&self, request: &Request<Incoming>) -> Option<Response<Body>> {
        if !token::permits(self.token.as_deref(), request.headers()) {
            return None;
        }
        server::answer(request, &self.streams, self.listing).await
    }

    /// Whether the request's `Host` is allowed.
    fn knows(&self, request: &Request<Incoming>) -> bool {
        let Some(allowed) = &self.hosts else { return true };
        let host = match request.uri().authority() {
            Some(authority) => Some(authority.as_str()),
            None => request.headers().get(header::HOST).and_then(|host| host.to_str().ok()),
        };
        // HTTP/1.0 has no `Host`, and no browser speaks it.
        let Some(host) = host else { return true };
        let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
        let name = authority.host();
        let ip: Option<IpAddr> = name.trim_matches(['[', ']']).parse().ok();
        name.eq_ignore_ascii_case("localhost")
            || name.to_ascii_lowercase().ends_with(".localhost")
            || ip.is_some_and(|ip| ip.is_loopback())
            || allowed.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(name))
    }
}

/// Reads a refused body for up to two seconds, so that the client sees the answer. The layer does the same.
fn drain(request: Request<Incoming>) {
    let expects_continue = request.headers().contains_key(header::EXPECT);
    let mut body = request.into_body();
    if !expects_continue && !body.is_end_stream() {
        let draining = async move { while let Some(Ok(_)) = body.frame().await {} };
        tokio::spawn(tokio::time::timeout(Duration::from_secs(2), draining));
    }
}

/// Binds the address. As in Go, `:8080` is all interfaces, over IPv6 and IPv4 where the system has them.
async fn listen(address: &str) -> io::Result<TcpListener> {
    if let Some(port) = address.strip_prefix(':') {
        let port: u16 = port.parse().map_err(|_| io::Error::other("the port is not a number up to 65535"))?;
        let any: [IpAddr; 2] = [[0u16; 8].into(), [0u8; 4].into()];
        return TcpListener::bind(&any.map(|ip| SocketAddr::new(ip, port))[..]).await;
    }
    let addresses: Vec<SocketAddr> = lookup_host(address).await?.collect();
    TcpListener::bind(&addresses[..]).await
}

fn banner(args: &Args, addr: SocketAddr) {
    let public = !addr.ip().is_loopback();
    let base = match addr.ip().is_unspecified() {
        true => format!("http://localhost:{}", addr.port()),
        false => format!("http://{addr}"),
    };
    let root = std::fs::canonicalize(&args.root).unwrap_or_else(|_| Path::new(&args.root).to_owned());
    eprintln!(
        "{PROGRAM} {} is listening on {base}{}",
        env!("CARGO_PKG_VERSION"),
        if addr.ip().is_unspecified() { " (all interfaces)" } else { "" }
    );
    eprintln!("  data:    {}", root.display());
    eprintln!("  follow:  httpfstream-follow {base}/foo.txt");
    eprintln!("  append:  date | httpfstream-append {base}/foo.txt");
    eprintln!("  read:    curl {base}/foo.txt");
    eprintln!("  view:    {base}/foo.txt?view");
    match (public, &args.token) {
        (false, _) => {
            eprintln!("  only this machine can connect; to listen on all interfaces: --http=:{}", addr.port())
        }
        (true, None) if !args.read_only => {
            eprintln!("  anyone who can connect can append and delete: see --token and --read-only");
        }
        _ => {}
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
