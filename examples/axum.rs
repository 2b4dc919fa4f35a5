//! The layer in an axum application: a chat whose answers are streams, and a route with its own authorization.
//!
//! ```sh
//! cargo run --example axum                      # on a free port
//! cargo run --example axum -- 127.0.0.1:8080
//! ```
use std::env;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use httpfstream::storage::FsStorage;
use httpfstream::{BoxError, Denied, Grant, HttpFStreamLayer, Streams};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let dir = tempfile::tempdir()?;

    // The five lines. Everybody may follow the chats below /streams, nobody may append there: the handler does.
    let logs =
        HttpFStreamLayer::new(FsStorage::open(dir.path())?).mount("/streams").read_only(true).authorize(|access| {
            let is_chat = access.key.as_str().starts_with("chat/");
            async move { if is_chat { Ok(Grant::new()) } else { Err(Denied::NotFound) } }
        });
    let streams = logs.streams();
    let routes = Router::new()
        .route("/", get(|| async { Html(PAGE) }))
        .route("/chat", post(chat))
        .route("/builds/{id}", get(build));
    let app = routes.with_state(streams.clone()).layer(logs);

    tokio::spawn(fake_build(streams.clone()));
    let address = env::args().nth(1).unwrap_or("127.0.0.1:0".to_owned());
    let listener = TcpListener::bind(address).await?;
    let url = format!("http://{}", listener.local_addr()?);
    println!("the chat:     {url}/");
    println!("without it:   httpfstream-follow {url}/streams/chat/$(curl -s -d hello {url}/chat)");
    println!("a build log:  curl -H 'Authorization: Bearer sesame' {url}/builds/7");

    let mut terminate = signal(SignalKind::terminate())?;
    axum::serve(listener, app)
        .with_graceful_shutdown(async move {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            println!("stopping");
            // axum knows nothing of upgraded connections. Handlers that append may finish within this time.
            streams.shutdown(Duration::from_secs(5)).await;
        })
        .await?;
    println!("stopped");
    Ok(())
}

/// Answers with the number of a stream that the answer will come in.
async fn chat(State(streams): State<Streams>, prompt: String) -> Result<String, StatusCode> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let id = now.as_micros().to_string();
    let opened = streams.open_append(format!("chat/{id}")).create_new().await;
    // From here on the stream is live, and can be followed before its first byte.
    let mut out = opened.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    tokio::spawn(async move {
        let words = format!("You said “{}”. I am a small model, and that is all I can say about it.", prompt.trim());
        for word in words.split_inclusive(' ') {
            sleep(Duration::from_millis(100)).await;
            out.append(word.to_owned()).await?;
        }
        out.finish().await
    });
    Ok(id)
}

/// One resource on a route of its own. Who may read it is for this handler to say.
async fn build(State(streams): State<Streams>, Path(id): Path<u64>, request: Request) -> Response {
    match request.headers().get(header::AUTHORIZATION) {
        Some(given) if given == "Bearer sesame" => streams.serve(format!("builds/{id}"), request).await.into_response(),
        _ => (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")]).into_response(),
    }
}

async fn fake_build(streams: Streams) -> httpfstream::Result<()> {
    let mut out = streams.open_append("builds/7").await?;
    for step in 1..=600 {
        out.append(format!("step {step} of 600\n")).await?;
        sleep(Duration::from_secs(1)).await;
    }
    out.finish().await.map(drop)
}

const PAGE: &str = r#"<!doctype html>
<meta charset="utf-8">
<title>chat</title>
<form><input name="prompt" value="hello" autofocus> <button>ask</button></form>
<pre></pre>
<script>
const form = document.querySelector('form'), out = document.querySelector('pre');
form.onsubmit = async event => {
  event.preventDefault();
  const id = await (await fetch('/chat', { method: 'POST', body: form.prompt.value })).text();
  const path = '/streams/chat/' + id, utf8 = new TextDecoder();
  const socket = new WebSocket(location.origin.replace('http', 'ws') + path + '?verb=FOLLOW');
  socket.binaryType = 'arraybuffer';
  let open = false;
  socket.onopen = () => { open = true; out.textContent = ''; };
  // Text while the bytes are UTF-8, and binary from the first that isn't.
  socket.onmessage = ({ data }) => { out.append(typeof data === 'string' ? data : utf8.decode(data, { stream: true })); };
  socket.onclose = async ({ code }) => {
    // What nobody appends to any more is no WebSocket, but a plain answer.
    if (!open) out.textContent = await (await fetch(path)).text();
    else if (code !== 1000) out.append(' [cut off]');
  };
};
</script>
"#;
