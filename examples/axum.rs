//! A chat in an axum application. Its answers are streams: they are live in the page, survive a reload, can be stopped without
//! losing the text, and stay as history. Beside it a build log on a route with its own authorization.
//!
//! ```sh
//! cargo run --example axum --features axum                      # on a free port
//! cargo run --example axum --features axum -- 127.0.0.1:8080
//! ```
use std::collections::HashMap;
use std::env;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use httpfstream::storage::FsStorage;
use httpfstream::{Access, Appender, BoxError, Denied, ErrorKind, FOLLOW_JS, Grant, HttpFStreamLayer, Key, Streams};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

#[derive(Clone)]
struct App {
    streams: Streams,
    /// The answers that are being written, by key, with what stops them.
    running: Arc<Mutex<HashMap<String, CancellationToken>>>,
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let dir = tempfile::tempdir()?;
    // Pages follow below /chats. Only the handlers below append.
    let chats =
        HttpFStreamLayer::new(FsStorage::open(dir.path())?).mount("/chats").read_only(true).authorize(own_chats);
    let app = App { streams: chats.streams(), running: Arc::default() };
    let streams = app.streams.clone();
    let routes = Router::new()
        .route("/", get(page))
        .route("/follow.js", get(([(header::CONTENT_TYPE, "text/javascript")], FOLLOW_JS)))
        .route("/chat", get(history).post(ask))
        .route("/chat/{id}/stop", post(stop))
        .route("/builds/{id}", get(build))
        .with_state(app);

    tokio::spawn(fake_build(streams.clone()));
    let address = env::args().nth(1).unwrap_or("127.0.0.1:0".to_owned());
    let listener = TcpListener::bind(address).await?;
    let url = format!("http://{}", listener.local_addr()?);
    println!("the chat:     {url}/");
    println!(
        "with curl:    curl -N -b session=me {url}/chats/$(curl -s -b session=me -d hello {url}/chat)?verb=FOLLOW"
    );
    println!("a build log:  curl -H 'Authorization: Bearer sesame' {url}/builds/7");

    let mut terminate = signal(SignalKind::terminate())?;
    axum::serve(listener, routes.layer(chats))
        .with_graceful_shutdown(async move {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            println!("stopping");
            // axum knows nothing of upgraded connections. The answers that are being written end within this time.
            streams.shutdown(Duration::from_secs(5)).await;
        })
        .await?;
    println!("stopped");
    Ok(())
}

/// The session of a request: a cookie of letters and digits.
fn session(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|value| value.split(';')).map(str::trim);
    let session = pairs.find_map(|pair| pair.strip_prefix("session="))?;
    session.bytes().all(|byte| byte.is_ascii_alphanumeric()).then_some(session).filter(|name| !name.is_empty())
}

fn key(headers: &HeaderMap, id: &str) -> httpfstream::Result<Key> {
    let session = session(headers).ok_or(ErrorKind::Unauthorized)?;
    Key::new(&format!("chat/{session}/{id}"))
}

/// `/chats/7` is the seventh chat of the request's own session.
async fn own_chats(access: Access) -> Result<Grant, Denied> {
    Ok(Grant::new().key(key(&access.head.headers, access.key.as_str())?))
}

/// The page, with a new session unless the browser has one.
async fn page(headers: HeaderMap) -> Response {
    let mut response = Html(PAGE).into_response();
    if session(&headers).is_none()
        && let Ok(id) = httpfstream::AppenderId::random()
    {
        let name: String = id.as_str().chars().filter(char::is_ascii_alphanumeric).collect();
        let cookie = HeaderValue::try_from(format!("session={name}; HttpOnly; SameSite=Lax; Path=/"));
        response.headers_mut().extend(cookie.map(|cookie| (header::SET_COOKIE, cookie)));
    }
    response
}

/// The ids of the session's chats, oldest first.
async fn history(State(app): State<App>, headers: HeaderMap) -> httpfstream::Result<String> {
    let prefix = format!("chat/{}/", session(&headers).ok_or(ErrorKind::Unauthorized)?);
    let mut list = app.streams.list(&prefix);
    let mut ids = Vec::new();
    while let Some(entry) = poll_fn(|cx| list.as_mut().poll_next(cx)).await {
        ids.extend(entry?.0.as_str().strip_prefix(&prefix).map(str::to_owned));
    }
    ids.sort();
    Ok(ids.join("\n"))
}

/// Answers with the id of the stream that the answer is written to.
async fn ask(State(app): State<App>, headers: HeaderMap, prompt: String) -> httpfstream::Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let id = now.as_micros().to_string();
    let key = key(&headers, &id)?;
    // The stream is live from here on, and can be followed before its first byte.
    let out = app.streams.open_append(&key).create_new().await?;
    let stop = CancellationToken::new();
    app.running.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_string(), stop.clone());
    tokio::spawn(async move {
        if let Err(error) = answer(out, &prompt, stop).await {
            eprintln!("an answer was cut: {error}");
        }
        app.running.lock().unwrap_or_else(PoisonError::into_inner).remove(key.as_str());
    });
    Ok(id)
}

/// Writes an answer. However it is stopped, the text so far is kept, as a finished stream.
async fn answer(mut out: Appender, prompt: &str, stop: CancellationToken) -> httpfstream::Result<()> {
    let words = format!("You said “{}”. I am a small model, and that is all I can say about it.", prompt.trim());
    for word in words.split_inclusive(' ') {
        // `append` is not cancel safe, and so stands behind the select.
        tokio::select! {
            () = sleep(Duration::from_millis(100)) => {}
            () = stop.cancelled() => break,
            error = out.closed() => match error.kind() {
                // The server stops. There is time to finish.
                ErrorKind::ShuttingDown => break,
                // The stream was deleted, say.
                _ => return Err(error),
            },
        }
        out.append(word.to_owned()).await?;
    }
    out.finish().await.map(drop)
}

async fn stop(State(app): State<App>, headers: HeaderMap, Path(id): Path<String>) -> httpfstream::Result<StatusCode> {
    let key = key(&headers, &id)?;
    let running = app.running.lock().unwrap_or_else(PoisonError::into_inner);
    running.get(key.as_str()).ok_or(ErrorKind::NotFound)?.cancel();
    Ok(StatusCode::ACCEPTED)
}

/// One resource on a route of its own, which decides who may read it.
async fn build(State(app): State<App>, Path(id): Path<u64>, request: Request) -> Response {
    match request.headers().get(header::AUTHORIZATION) {
        Some(given) if given == "Bearer sesame" => {
            app.streams.serve(format!("builds/{id}"), request).await.into_response()
        }
        _ => httpfstream::Error::new(ErrorKind::Unauthorized).into_response(),
    }
}

async fn fake_build(streams: Streams) -> httpfstream::Result<()> {
    let mut out = streams.open_append("builds/7").await?;
    for step in 1..=600 {
        out.append(format!("step {step} of 600\n")).await?;
        tokio::select! {
            () = sleep(Duration::from_secs(1)) => {}
            // Dropping the appender leaves the log interrupted, which is what it is.
            error = out.closed() => return Err(error),
        }
    }
    out.finish().await.map(drop)
}

const PAGE: &str = r#"<!doctype html>
<meta charset="utf-8">
<title>chat</title>
<main></main>
<form><input name="prompt" value="hello" autofocus> <button>ask</button></form>
<script type="module">
import { follow } from '/follow.js';

const post = (url, body) => fetch(url, { method: 'POST', body });
async function show(id) {
  const chat = document.createElement('p'), text = new TextDecoder(), stop = document.createElement('button');
  document.querySelector('main').append(chat);
  stop.textContent = 'stop';
  stop.onclick = () => post(`/chat/${id}/stop`);
  for await (const event of follow(`/chats/${id}`)) {
    if (event.type === 'data') chat.append(text.decode(event.bytes, { stream: true }));
    else if (event.state === 'live') chat.after(stop);
    else if (event.end) { stop.remove(); if (event.state === 'interrupted') chat.append(' [cut off]'); }
  }
}
for (const id of (await (await fetch('/chat')).text()).split('\n')) if (id) show(id);
const form = document.querySelector('form');
form.onsubmit = async event => {
  event.preventDefault();
  show(await (await post('/chat', form.prompt.value)).text());
};
</script>
"#;
