//! The client against servers that send anything.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::Value;

use super::peer::{LIFE, PeerEvent, Response, Script, ScriptedPeer, decode, set_servers};
use super::{Input, run};
use crate::client::Client;
use crate::error::ErrorKind;
use crate::state::State;

/// The largest message that the client accepts, in bytes.
const MAX_MESSAGE: u64 = 100_000;
const STATUSES: [u16; 16] = [200, 204, 302, 400, 401, 403, 404, 408, 409, 412, 413, 416, 426, 500, 503, 999];
const TYPES: [&str; 4] = ["application/problem+json", "text/plain", "application/json", "text/html"];

/// The kind of a server, as its response shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ServerKind {
    /// It accepts the subprotocol.
    V1,
    /// It speaks the original's dialect, with headers that only our server sends.
    Confirming,
    /// It speaks the original's dialect.
    Original,
    /// It doesn't upgrade, or sends an arbitrary response.
    Other,
}

/// The servers of one input, and the events that each sends over its WebSocket.
fn servers(input: &mut Input<'_>) -> (VecDeque<ScriptedPeer>, Vec<(ServerKind, Vec<PeerEvent>)>) {
    let (mut peers, mut servers) = (VecDeque::new(), Vec::new());
    while !input.is_empty() && peers.len() < 4 {
        let (kind, step) = (input.byte(), input.byte());
        let (server, response, script) = match kind % 8 {
            0..=3 => (
                ServerKind::V1,
                Response::Upgrade("Sec-WebSocket-Protocol: httpfstream.v1\r\n"),
                Script::parse(input, false),
            ),
            4 => (
                ServerKind::Confirming,
                Response::Upgrade("Stream-State: live\r\nUpload-Offset: 9\r\n"),
                Script::parse(input, false),
            ),
            5 => (ServerKind::Original, Response::Upgrade(""), Script::parse(input, false)),
            6 => {
                let status = STATUSES[usize::from(kind >> 4)];
                let kind = input.byte();
                let (media, chunked) = (TYPES[usize::from(kind % 4)], kind & 4 != 0);
                let len = usize::from(input.byte()) << (kind >> 5);
                let len =
                    if chunked { "Transfer-Encoding: chunked".to_owned() } else { format!("Content-Length: {len}") };
                let head = format!(
                    "HTTP/1.1 {status} x\r\nContent-Type: {media}\r\n{len}\r\nStream-State: interrupted\r\n\r\n"
                );
                let body = input.take(input.0.len());
                (ServerKind::Other, Response::Raw([head.as_bytes(), body].concat()), Script::default())
            }
            _ => {
                let len = input.byte();
                let head = input.take(usize::from(len) << 2).to_vec();
                (ServerKind::Other, Response::Raw(head), Script::default())
            }
        };
        servers.push((server, decode(&script.bytes, false, MAX_MESSAGE)));
        peers.push_back(ScriptedPeer::new(script, Some(response), step));
    }
    (peers, servers)
}

/// A client that retries, but not for ever.
fn client() -> Client {
    let builder = Client::builder().retry_for(Duration::from_secs(60)).max_message_size(MAX_MESSAGE);
    builder.retry_delays(Duration::from_secs(1), Duration::from_secs(30)).build().expect("a client")
}

/// Runs a future with these servers in the place of the network.
fn with_servers<F: Future>(peers: VecDeque<ScriptedPeer>, future: F) -> F::Output {
    set_servers(Some(peers));
    let output = run(async {
        let output = future.await;
        // Lets connections finish closing.
        tokio::time::sleep(Duration::from_secs(60)).await;
        output
    });
    set_servers(None);
    output
}

/// A follower returns each byte that servers sent once, and reports an end only if a server did.
pub fn client_follow(data: &[u8]) -> bool {
    let mut input = Input(data);
    let options = input.byte();
    let (peers, servers) = servers(&mut input);
    let skip = u64::from(options & 3);
    let mut request = client().follow("http://h/x");
    if skip > 0 {
        request = request.offset(skip);
    }
    if options & 4 != 0 {
        request = request.wait(Duration::from_secs(100));
    }
    let (read, begin, end) = with_servers(peers, async {
        let mut follower = match request.await {
            Ok(follower) => follower,
            Err(error) => return (Vec::new(), None, Err(error.kind())),
        };
        let begin = follower.offset();
        let mut read = Vec::new();
        let end = loop {
            match follower.next_chunk().await {
                Ok(Some(chunk)) => {
                    assert!(!chunk.bytes.is_empty());
                    read.extend_from_slice(&chunk.bytes);
                    assert_eq!(chunk.next_offset - begin, read.len() as u64);
                }
                Ok(None) => break Ok(follower.state()),
                Err(error) => break Err(error.kind()),
            }
        };
        // The result stays the same.
        assert_eq!(follower.next_chunk().await.map_err(|error| error.kind()).map(|_| ()), end.map(|_| ()));
        (read, Some(begin), end)
    });
    // Servers that refused the follower are skipped.
    let began = servers.iter().position(|(kind, _)| *kind != ServerKind::Other);
    let Some((first, (kind, events))) = began.map(|at| (at, &servers[at])) else {
        return !read.is_empty();
    };
    match kind {
        // The data may come from this server or from a plain response before it: that can't be decided here.
        ServerKind::Other => {}
        _ if first > 0 => {}
        ServerKind::V1 => {
            // A follower that began here takes nothing from servers of another kind.
            let connections =
                servers.iter().filter(|(kind, _)| *kind == ServerKind::V1).map(|(_, events)| sent(events));
            let (mut whole, mut ends) = (Vec::new(), vec![(0, false)]);
            for (data, end) in connections {
                whole.extend_from_slice(&data);
                ends.push((whole.len(), end == Some(begin.unwrap_or(0) + whole.len() as u64)));
            }
            assert!(whole.starts_with(&read));
            let here = ends.iter().filter(|(len, _)| *len == read.len());
            assert!(here.clone().next().is_some(), "{} bytes of {ends:?}", read.len());
            assert!(end.is_err() && end != Err(ErrorKind::Interrupted) || here.clone().any(|(_, ended)| *ended));
        }
        ServerKind::Confirming | ServerKind::Original => {
            let mut whole = Vec::new();
            events.iter().for_each(|event| {
                if let PeerEvent::Part { payload, .. } = event {
                    whole.extend_from_slice(payload)
                }
            });
            let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(whole.len());
            assert!(read == whole[skipped..]);
            let clean =
                matches!(events.last(), Some(PeerEvent::Close { code: Some(1000), .. })) && skipped as u64 == skip;
            assert_eq!(end.is_ok(), clean, "{end:?}");
        }
    }
    end.is_ok() && !read.is_empty() && servers.len() > 1
}

/// The data of a connection up to its end or failure, and the final length if the server reported the end.
fn sent(events: &[PeerEvent]) -> (Vec<u8>, Option<u64>) {
    let (mut data, mut message, mut begun) = (Vec::new(), Vec::new(), false);
    for event in events {
        match event {
            PeerEvent::Part { text: false, payload, .. } if begun => data.extend_from_slice(payload),
            PeerEvent::Part { text: true, payload, end } => {
                message.extend_from_slice(payload);
                if message.len() > 16 * 1024 {
                    break;
                }
                if *end {
                    let parsed: Value = serde_json::from_slice(&message).unwrap_or_default();
                    let state: Option<State> = parsed["state"].as_str().and_then(|state| state.parse().ok());
                    let Some(state) = state else { break };
                    message.clear();
                    if !begun {
                        begun = parsed["offset"].is_u64() && parsed["life"].is_string();
                        if !begun {
                            break;
                        }
                    } else if parsed.get("offset").is_some() || !state.is_open() {
                        return (data, parsed["length"].as_u64().filter(|_| parsed.get("offset").is_none()));
                    } else if parsed.get("length").is_some_and(|length| length.as_i64().is_none_or(|n| n < 0)) {
                        break;
                    }
                }
            }
            PeerEvent::Ping(_) | PeerEvent::Pong(_) => {}
            _ => break,
        }
    }
    (data, None)
}

/// An appender accepts no impossible acknowledgement, and reports success only if a server confirmed the end.
pub fn client_append(data: &[u8]) -> bool {
    let mut input = Input(data);
    let (options, len) = (input.byte(), input.byte());
    let (peers, servers) = servers(&mut input);
    let mut request = client().open_append("http://h/x");
    if options & 1 != 0 {
        request = request.appender_id("abcdefghijklmnopqrstuv".parse().expect("an id"));
        request = request.resume(LIFE.parse().expect("a life"), u64::from(options >> 4));
    }
    let seal = options & 2 != 0;
    let ended = with_servers(peers, async {
        let mut appender = request.await.map_err(|error| error.kind())?;
        let begin = appender.offset();
        for part in vec![7; len.into()].chunks(100) {
            let next = appender.append(part.to_vec()).await.map_err(|error| error.kind())?;
            assert_eq!(next, appender.offset());
            assert!(appender.acknowledged() <= appender.offset());
            if options & 8 != 0 {
                let durable = appender.sync().await.map_err(|error| error.kind())?;
                assert_eq!(durable, appender.acknowledged());
                assert!(!appender.is_resumable() || durable == appender.offset());
            }
        }
        let end = appender.offset();
        assert_eq!(end - begin, u64::from(len));
        let length =
            if seal { appender.seal().await } else { appender.finish().await }.map_err(|error| error.kind())?;
        assert_eq!(length, end);
        Ok::<u64, ErrorKind>(end)
    });
    let Ok(end) = ended else { return false };
    let confirmed = servers.iter().any(|(kind, events)| match kind {
        ServerKind::V1 => {
            let mut text = Vec::new();
            events.iter().any(|event| match event {
                PeerEvent::Part { text: true, payload, end: last } => {
                    text.extend_from_slice(payload);
                    let message = last.then(|| serde_json::from_slice::<Value>(&std::mem::take(&mut text)).ok());
                    let message = message.flatten().unwrap_or_default();
                    message["finished"] == true && message["ack"] == end
                }
                _ => false,
            })
        }
        ServerKind::Confirming | ServerKind::Original => {
            !seal && matches!(events.last(), Some(PeerEvent::Close { code: Some(1000), .. }))
        }
        ServerKind::Other => false,
    });
    assert!(confirmed, "finished without a confirmation");
    end > 0
}
