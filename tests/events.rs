//! Server-sent events (protocol section 5): what an `EventSource` makes of them is the resource, byte by byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::wrong_self_convention)]

mod common;

use std::time::Duration;

use common::plain::{BOTH, Http, Live, ask, problem};
use common::{Answer, Server, Store, memory_layer, pattern, pipe, serve, soon, stores};
use data_encoding::BASE64;
use httpfstream::{Appender, AppenderId, HttpFStreamLayer, Streams};
use httpfstream::{State, storage::MemoryStorage};
use serde_json::{Value, json};

const ACCEPT: (&str, &str) = ("accept", "text/event-stream");

/// An event as a page gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Event {
    name: String,
    data: String,
    id: String,
}

impl Event {
    fn json(&self) -> Value {
        assert_eq!(self.name, "state", "{self:?}");
        serde_json::from_str(&self.data).unwrap()
    }

    /// The bytes of the resource that it tells.
    fn bytes(&self) -> Vec<u8> {
        match &*self.name {
            "" => self.data.clone().into_bytes(),
            "base64" => BASE64.decode(self.data.as_bytes()).unwrap(),
            "state" => Vec::new(),
            other => panic!("nobody sends an event {other:?}"),
        }
    }

    fn offset(&self) -> u64 {
        self.id.split(':').nth(1).unwrap().parse().unwrap()
    }
}

/// What the HTML standard, section 9.2.6, makes of a stream; a field that is not known is a failure here.
#[derive(Default)]
struct Parser {
    /// Bytes of lines that have not ended.
    rest: Vec<u8>,
    begun: bool,
    name: String,
    data: String,
    id: String,
    comments: usize,
    retry: Option<u64>,
}

impl Parser {
    /// The events that are complete now.
    fn push(&mut self, bytes: &[u8]) -> Vec<Event> {
        self.rest.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.rest.iter().position(|b| matches!(b, b'\r' | b'\n')) {
            if self.rest[end] == b'\r' && end + 1 == self.rest.len() {
                break;
            }
            let ends = if self.rest[end..].starts_with(b"\r\n") { 2 } else { 1 };
            let line: Vec<u8> = self.rest.drain(..end + ends).take(end).collect();
            let mut line = String::from_utf8(line).expect("an event stream is UTF-8");
            if !std::mem::replace(&mut self.begun, true) {
                line = line.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(line);
            }
            events.extend(self.line(&line));
        }
        events
    }

    fn line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            let (name, mut data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
            data.pop()?;
            return Some(Event { name, data, id: self.id.clone() });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => self.comments += 1,
            "event" => self.name = value.to_owned(),
            "data" => self.data += &format!("{value}\n"),
            "id" if !value.contains('\0') => self.id = value.to_owned(),
            "retry" => self.retry = Some(value.parse().unwrap()),
            other => panic!("a field {other:?} was forged"),
        }
        None
    }
}

/// An `EventSource` that a test asks for one event after the other.
struct Source {
    live: Live,
    parser: Parser,
    got: std::collections::VecDeque<Event>,
}

impl Source {
    async fn open(server: &Server, http: Http, target: &str, headers: &[(&str, &str)]) -> Self {
        let headers = [&[ACCEPT][..], headers].concat();
        let live = ask(server.addr, http, target, &headers).await;
        assert_eq!(live.status, 200, "{target} {headers:?}");
        assert_eq!(live.header("content-type"), Some("text/event-stream"));
        Self { live, parser: Parser::default(), got: Default::default() }
    }

    async fn next(&mut self) -> Event {
        while self.got.is_empty() {
            let byte = self.live.bytes(1).await;
            self.got.extend(self.parser.push(&byte));
        }
        self.got.pop_front().unwrap()
    }

    /// Events until so many bytes of the resource have come; the states in between too.
    async fn data(&mut self, len: usize) -> Vec<Event> {
        let (mut events, mut at) = (Vec::new(), 0);
        while at < len {
            let event = self.next().await;
            at += event.bytes().len();
            events.push(event);
        }
        assert_eq!(at, len, "{events:?}");
        events
    }

    /// The rest, and whether the body ended cleanly.
    async fn to_end(mut self) -> (Vec<Event>, bool) {
        let (rest, clean) = self.live.to_end().await;
        self.got.extend(self.parser.push(&rest));
        (self.got.into(), clean)
    }
}

fn bytes(events: &[Event]) -> Vec<u8> {
    events.iter().flat_map(Event::bytes).collect()
}

/// Each id is of this life, and says where its event ends.
fn check_ids(events: &[Event], life: &str, from: u64) {
    let mut at = from;
    for event in events {
        at += event.bytes().len() as u64;
        let id = event.id.strip_suffix(":interrupted").unwrap_or(&event.id);
        assert_eq!(id, format!("{life}:{at}"), "{event:?}");
    }
}

async fn open(server: &Server, key: &str, data: impl Into<bytes::Bytes>) -> Appender {
    let mut out = server.streams.open_append(key).await.unwrap();
    out.append(data).await.unwrap();
    out
}

async fn get(server: &Server, target: &str, last: &str) -> Answer {
    server.request("GET", target, &[ACCEPT, ("Last-Event-ID", last)]).await
}

async fn until_state(server: &Server, key: &str, state: State) {
    soon("the state", async {
        while server.streams.stat(key).await.unwrap().is_none_or(|stat| stat.state != state) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn text_is_told_line_by_line_and_the_end_is_an_event() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        for http in BOTH {
            let key = format!("{http:?}.log");
            let mut out = open(&server, &key, "one\ntwo\n").await;
            let life = out.life().to_string();
            let mut source = Source::open(&server, http, &format!("/{key}?verb=FOLLOW"), &[]).await;
            for (header, value) in [
                ("cache-control", "no-store, no-transform"),
                ("x-accel-buffering", "no"),
                ("content-encoding", "identity"),
                ("stream-state", "live"),
                ("stream-life", &life),
                ("stream-offset", "0"),
                ("x-content-type-options", "nosniff"),
            ] {
                assert_eq!(source.live.header(header), Some(value), "{name} {http:?} {header}");
            }
            let first = source.next().await;
            assert_eq!(first.json(), json!({"offset": 0, "life": life, "state": "live"}), "{name} {http:?}");
            assert_eq!(first.id, format!("{life}:0"));
            assert_eq!(
                source.next().await,
                Event { name: "".into(), data: "one\ntwo\n".into(), id: format!("{life}:8") }
            );
            // Each as it is said.
            out.append("th").await.unwrap();
            assert_eq!(source.next().await, Event { name: "".into(), data: "th".into(), id: format!("{life}:10") });
            out.append("ree").await.unwrap();
            assert_eq!(source.next().await, Event { name: "".into(), data: "ree".into(), id: format!("{life}:13") });
            out.finish().await.unwrap();
            let (rest, clean) = source.to_end().await;
            assert!(clean && rest.len() == 1, "{rest:?}");
            assert_eq!(rest[0].json(), json!({"state": "finished", "length": 13}));
            assert_eq!(rest[0].id, format!("{life}:13"));
            // At rest it is the same in one go.
            let (rest, clean) = Source::open(&server, http, &format!("/{key}?verb=FOLLOW"), &[]).await.to_end().await;
            assert!(clean && bytes(&rest) == b"one\ntwo\nthree", "{name}");
            assert_eq!(rest[0].json(), json!({"offset": 0, "life": life, "state": "finished"}));
            assert_eq!(rest.last().unwrap().json(), json!({"state": "finished", "length": 13}));
        }
    }
}

#[tokio::test]
async fn any_bytes_in_any_pieces_are_put_together_again() {
    let nasty: &[u8] = b"\nid: x\n\ndata: y\r\r\n\r\nevent: state\ndata: {}\n\n:\nretry: 1\n\xef\xbb\xbf\0 \n  \n\xff\xfe\n\xe2\x82\xac\xe2\x82\n\xf0\x9f\x98\x80\r";
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        for size in [1, 2, 3, 5, 7, nasty.len()] {
            let http = BOTH[size % 2];
            let key = format!("{size}");
            let mut out = open(&server, &key, nasty[..size].to_vec()).await;
            let life = out.life().to_string();
            let target = format!("/{key}?verb=FOLLOW");
            let early = Source::open(&server, http, &target, &[]).await;
            let reading = tokio::spawn(early.to_end());
            for piece in nasty[size..].chunks(size) {
                out.append(piece.to_vec()).await.unwrap();
                tokio::task::yield_now().await;
            }
            out.finish().await.unwrap();
            let late = Source::open(&server, http, &target, &[]).await.to_end().await;
            for (events, clean) in [reading.await.unwrap(), late] {
                assert!(clean && bytes(&events) == nasty, "{name} {size}: {events:?}");
                check_ids(&events, &life, 0);
                // A first state and a last one, and none that was appended.
                let states = events.iter().filter(|event| event.name == "state").count();
                assert_eq!(states, 2, "{name} {size}: {events:?}");
                for event in events {
                    assert!(!event.data.contains('\r') && event.data.len() < 100);
                }
            }
        }
    }
}

#[tokio::test]
async fn large_binary_and_long_lines_come_out_exact() {
    let server = serve(memory_layer()).await;
    let long = format!("{}\nshort\n{}", "€".repeat(200_000), "x".repeat(300_000)).into_bytes();
    for (key, data) in [("binary", pattern(0, 1_000_000)), ("long", long)] {
        for http in BOTH {
            let key = format!("{key}{http:?}");
            let out = open(&server, &key, data.clone()).await;
            let source = Source::open(&server, http, &format!("/{key}?verb=FOLLOW"), &[]).await;
            let life = out.life().to_string();
            out.finish().await.unwrap();
            let (events, clean) = source.to_end().await;
            assert!(clean && bytes(&events) == data, "{key}");
            check_ids(&events, &life, 0);
            if key.starts_with("long") {
                assert!(events.iter().all(|event| event.name != "base64"), "no character is cut: {key}");
            }
        }
    }
}

#[tokio::test]
async fn a_character_whose_rest_never_comes_is_told_at_the_end() {
    let server = serve(memory_layer()).await;
    for end in [State::Finished, State::Sealed, State::Interrupted] {
        let key = end.as_str();
        let mut out = open(&server, key, "a").await;
        let mut source = Source::open(&server, Http::One, &format!("/{key}?verb=FOLLOW"), &[]).await;
        source.data(1).await;
        out.append(&b"\xe2\x82"[..]).await.unwrap();
        match end {
            State::Finished => drop(out.finish().await.unwrap()),
            State::Sealed => drop(out.seal().await.unwrap()),
            _ => drop(out),
        }
        let (rest, clean) = source.to_end().await;
        assert!(clean && bytes(&rest) == b"\xe2\x82", "{rest:?}");
        assert_eq!(rest.last().unwrap().json(), json!({"state": end.as_str(), "length": 3}));
    }
}

#[tokio::test]
async fn whoever_comes_back_with_any_event_id_goes_on_there() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        let text = "one\r\n\u{1f600} two\nthree\n\n\0\n";
        let mut out = Some(open(&server, "a", "").await);
        let life = out.as_ref().unwrap().life().to_string();
        let mut whole = Source::open(&server, Http::One, "/a?verb=FOLLOW", &[]).await;
        let mut ids = vec![whole.next().await];
        // Many events, some of them in the middle of characters.
        for piece in text.as_bytes().chunks(2) {
            out.as_mut().unwrap().append(piece.to_vec()).await.unwrap();
        }
        ids.extend(whole.data(text.len()).await);
        assert!(ids.len() > 2 && bytes(&ids) == text.as_bytes(), "{name}: {ids:?}");
        for rest in [false, true] {
            if rest {
                out.take().unwrap().seal().await.unwrap();
            }
            for event in &ids {
                let at = event.offset() as usize;
                // Whatever the query says about where to begin.
                for query in ["", "&offset=1", "&tail=0", "&lines=1"] {
                    if rest && at == text.len() {
                        let answer = get(&server, &format!("/a?verb=FOLLOW{query}"), &event.id).await;
                        assert_eq!((answer.status, answer.body.len()), (204, 0), "{name} {event:?}");
                        assert_eq!(answer.header("stream-state"), Some("sealed"));
                        continue;
                    }
                    let last = [("last-event-id", &*event.id)];
                    let mut source = Source::open(&server, Http::Two, &format!("/a?verb=FOLLOW{query}"), &last).await;
                    let state = if rest { "sealed" } else { "live" };
                    assert_eq!(source.next().await.json(), json!({"offset": at, "life": life, "state": state}));
                    let told = source.data(text.len() - at).await;
                    assert_eq!(bytes(&told), &text.as_bytes()[at..], "{name} {event:?} {query}");
                    check_ids(&told, &life, at as u64);
                }
            }
        }
    }
}

#[tokio::test]
async fn fault_73_an_event_id_in_the_query_resumes() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        let out = open(&server, "a", "0123456789").await;
        let life = out.life();
        for (query, headers, from) in [
            (format!("lastEventId={life}:4"), vec![], 4),
            (format!("Last-Event-ID={life}%3A4"), vec![], 4),
            (format!("lastEventId={life}:4&Last-Event-ID={life}:4"), vec![], 4),
            // `EventSource` updates only the header when it connects again.
            (format!("lastEventId={life}:4"), vec![("last-event-id", format!("{life}:7"))], 7),
            // Before the first event there is no id.
            ("lastEventId=".to_owned(), vec![], 0),
            (format!("lastEventId={life}:4"), vec![("last-event-id", String::new())], 4),
            ("lastEventId=&tail=3".to_owned(), vec![], 7),
        ] {
            let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, &**value)).collect();
            let target = format!("/a?verb=FOLLOW&{query}");
            let mut source = Source::open(&server, Http::One, &target, &headers).await;
            assert_eq!(source.next().await.json()["offset"], from, "{name} {query}");
            assert_eq!(bytes(&source.data(10 - from).await), b"0123456789"[from..], "{name} {query}");
        }
        for query in ["lastEventId=x", "Last-Event-ID=7", &format!("lastEventId={life}:4&lastEventId={life}:5")] {
            let answer = server.request("GET", &format!("/a?verb=FOLLOW&{query}"), &[ACCEPT]).await;
            assert_eq!((answer.status, &*problem(&answer)), (400, "bad-request"), "{name} {query}");
        }
        // Only events have ids.
        out.finish().await.unwrap();
        assert_eq!(server.get("/a?verb=FOLLOW&lastEventId=x").await.text(), "0123456789");
    }
}

#[tokio::test]
async fn event_source_is_told_to_stop_where_there_is_no_more_and_only_there() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        for end in ["finished", "sealed", "interrupted"] {
            let target = format!("/{end}?verb=FOLLOW");
            let out = open(&server, end, "12345").await;
            let life = out.life().to_string();
            let last = format!("{life}:5");
            let status = async |last: &str| get(&server, &target, last).await.status;
            // While it is open, its end is no reason to stop.
            let headers = [("last-event-id", &*last)];
            let mut source = Source::open(&server, Http::One, &target, &headers).await;
            assert_eq!(source.next().await.json(), json!({"offset": 5, "life": life, "state": "live"}));
            match end {
                "finished" => drop(out.finish().await.unwrap()),
                "sealed" => drop(out.seal().await.unwrap()),
                _ => drop(out),
            }
            let (told, clean) = source.to_end().await;
            let told = told.last().unwrap();
            assert!(clean, "{name}");
            assert_eq!(told.json(), json!({"state": end, "length": 5}));
            // Who has seen the end stops.
            assert_eq!(status(&told.id).await, 204, "{name} {end} {told:?}");
            assert_eq!(told.id.ends_with(":interrupted"), end == "interrupted");
            // Who has all bytes of an interrupted one and not its end gets that.
            let expected = if end == "interrupted" { 200 } else { 204 };
            assert_eq!(status(&last).await, expected, "{name} {end}");
            if end == "interrupted" {
                let (rest, _) = Source::open(&server, Http::Two, &target, &headers).await.to_end().await;
                assert_eq!(rest.last().unwrap(), told);
                // Appended to again it goes on, and he who has seen its end comes back in vain no more.
                let mut out = server.streams.open_append(end).await.unwrap();
                out.append("67").await.unwrap();
                let headers = [("last-event-id", &*told.id)];
                let mut source = Source::open(&server, Http::One, &target, &headers).await;
                assert_eq!(source.next().await.json(), json!({"offset": 5, "life": life, "state": "live"}));
                assert_eq!(bytes(&source.data(2).await), b"67");
                drop(out);
                server.at_rest(end).await;
                assert_eq!(status(&told.id).await, 200, "{name}: there is more than it has seen");
            } else {
                // Told interrupted once, and finished since without another byte: that it is told.
                let seen = format!("{life}:5:interrupted");
                let headers = [("last-event-id", &*seen)];
                let (rest, _) = Source::open(&server, Http::One, &target, &headers).await.to_end().await;
                assert_eq!(rest.last().unwrap(), told);
            }
            for (last, expected, kind) in [
                (format!("{life}:9"), 416, "past-end"),
                (format!("{}:5", "0".repeat(32)), 412, "life"),
                (life.clone(), 400, "bad-request"),
                (format!("{life}:"), 400, "bad-request"),
                (format!("{life}:-1"), 400, "bad-request"),
                (format!("{life}:5:finished"), 400, "bad-request"),
                (format!("{life}:5:interrupted:x"), 400, "bad-request"),
                ("5".to_owned(), 400, "bad-request"),
                (format!("{life}:99999999999999999999"), 400, "bad-request"),
            ] {
                let answer = get(&server, &target, &last).await;
                assert_eq!((answer.status, &*problem(&answer)), (expected, kind), "{name} {end} {last}");
            }
            // Without an id (or with the empty one of a page that has got no event) it begins at the start.
            for headers in [&[][..], &[("last-event-id", "")]] {
                let source = Source::open(&server, Http::One, &target, headers).await;
                let (all, _) = source.to_end().await;
                assert_eq!(&bytes(&all)[..5], b"12345", "{name} {end}");
            }
        }
        // An id means nothing to who asks for bytes.
        let answer = server.request("GET", "/sealed?verb=FOLLOW", &[("Last-Event-ID", "x")]).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "12345"));
    }
}

#[tokio::test]
async fn where_to_begin_is_asked_as_for_bytes() {
    let server = serve(memory_layer()).await;
    let out = open(&server, "a", "one\ntwo\nthree\n").await;
    let life = out.life();
    for (query, from) in
        [("", 0), ("&offset=4", 4), ("&tail=6", 8), ("&lines=2", 4), (&*format!("&offset=4&life={life}"), 4)]
    {
        let mut source = Source::open(&server, Http::Two, &format!("/a?verb=FOLLOW{query}"), &[]).await;
        assert_eq!(source.next().await.json()["offset"], from, "{query}");
        assert_eq!(bytes(&source.data(14 - from).await), &b"one\ntwo\nthree\n"[from..], "{query}");
    }
    for (query, status) in
        [("&offset=15", 416), ("&offset=1&tail=1", 400), (&*format!("&life={}", "0".repeat(32)), 412)]
    {
        assert_eq!(get(&server, &format!("/a?verb=FOLLOW{query}"), "").await.status, status, "{query}");
    }
    assert_eq!(get(&server, "/none?verb=FOLLOW", "").await.status, 404);
    // Others don't get events, whatever else they take.
    for accept in ["*/*", "text/*", "text/event-streams", "text/html, application/json"] {
        let answer = server.request("HEAD", "/a?verb=FOLLOW", &[("Accept", accept)]).await;
        assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"), "{accept}");
    }
    for accept in ["text/event-stream", "text/html, Text/Event-Stream;q=0.5"] {
        let answer = server.request("HEAD", "/a?verb=FOLLOW", &[("Accept", accept)]).await;
        assert_eq!(answer.header("content-type"), Some("text/event-stream"), "{accept}");
    }
    // Without a verb it is a GET.
    let answer = server.request("GET", "/a", &[ACCEPT]).await;
    assert_eq!(
        (answer.header("content-type"), &*answer.text()),
        (Some("text/plain; charset=utf-8"), "one\ntwo\nthree\n")
    );
}

#[tokio::test]
async fn states_are_told_in_order_as_they_happen() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer).await;
        for http in BOTH {
            let key = format!("{http:?}");
            let id = AppenderId::random().unwrap();
            let mut out = server.streams.open_append(&*key).appender_id(id.clone()).await.unwrap();
            out.append("a").await.unwrap();
            let mut source = Source::open(&server, http, &format!("/{key}?verb=FOLLOW"), &[]).await;
            source.data(1).await;
            drop(out);
            assert_eq!(source.next().await.json(), json!({"state": "lost"}), "{name} {http:?}");
            let mut out = server.streams.open_append(&*key).appender_id(id.clone()).await.unwrap();
            assert_eq!(source.next().await.json(), json!({"state": "live"}), "{name} {http:?}");
            out.append("b").await.unwrap();
            assert_eq!(bytes(&source.data(1).await), b"b");
            drop(out);
            assert_eq!(source.next().await.json(), json!({"state": "lost"}), "{name} {http:?}");
            // One that comes while it is lost is told so first; parked is told too.
            let mut late = Source::open(&server, http, &format!("/{key}?verb=FOLLOW&tail=0"), &[]).await;
            assert_eq!(late.next().await.json()["state"], "lost");
            let headers = [("Appender-Id", id.as_str()), ("Upload-Complete", "?0"), ("Content-Length", "0")];
            let parked = server.request("POST", &format!("/{key}?verb=APPEND"), &headers).await;
            assert_eq!(parked.status, 200, "{parked:?}");
            for source in [&mut source, &mut late] {
                // The one in between may be over before it is looked at.
                let mut told = source.next().await.json();
                if told["state"] == "live" {
                    told = source.next().await.json();
                }
                assert_eq!(told, json!({"state": "parked"}), "{name} {http:?}");
            }
            let mut last = Source::open(&server, http, &format!("/{key}?verb=FOLLOW&tail=0"), &[]).await;
            assert_eq!(last.next().await.json()["state"], "parked");
            let out = server.streams.open_append(&*key).appender_id(id).await.unwrap();
            for source in [&mut source, &mut late, &mut last] {
                assert_eq!(source.next().await.json(), json!({"state": "live"}), "{name} {http:?}");
            }
            out.seal().await.unwrap();
            for source in [source, late, last] {
                let (told, clean) = source.to_end().await;
                assert_eq!((told.len(), clean), (1, true));
                assert_eq!(told[0].json(), json!({"state": "sealed", "length": 2}));
            }
        }
    }
}

#[tokio::test]
async fn a_body_that_is_cut_has_no_last_state() {
    for http in BOTH {
        for how in ["deleted", "stopped"] {
            let server = serve(memory_layer()).await;
            let mut out = open(&server, "a", "one").await;
            let mut source = Source::open(&server, http, "/a?verb=FOLLOW", &[]).await;
            source.data(3).await;
            out.append(&b"two\xe2"[..]).await.unwrap();
            source.data(3).await;
            match how {
                "deleted" => server.streams.delete("a").await.unwrap(),
                _ => server.streams.shutdown(Duration::from_millis(1)).await,
            }
            let (rest, clean) = source.to_end().await;
            assert_eq!((rest, clean), (vec![], false), "{http:?} {how}: half a character is not told");
        }
    }
}

#[tokio::test]
async fn an_interrupted_end_is_told_and_the_body_ends_cleanly() {
    let streams = Streams::builder(MemoryStorage::new(1 << 20)).grace(Duration::from_millis(50)).build();
    let server = serve(HttpFStreamLayer::from_streams(streams).plain_http(true)).await;
    for http in BOTH {
        let key = format!("{http:?}");
        let mut out = server.streams.open_append(&*key).appender_id(AppenderId::random().unwrap()).await.unwrap();
        out.append("half").await.unwrap();
        let life = out.life().to_string();
        let source = Source::open(&server, http, &format!("/{key}?verb=FOLLOW"), &[]).await;
        drop(out);
        let (told, clean) = source.to_end().await;
        let [.., lost, end] = &told[..] else { panic!("{told:?}") };
        assert!(clean);
        assert_eq!(lost.json(), json!({"state": "lost"}));
        assert_eq!(end.json(), json!({"state": "interrupted", "length": 4}));
        assert_eq!(end.id, format!("{life}:4:interrupted"));
        until_state(&server, &key, State::Interrupted).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_comment_keeps_the_connection_alive() {
    let layer = memory_layer().ping_interval(Duration::from_secs(30));
    let mut out = layer.streams().open_append("a").await.unwrap();
    out.append("x").await.unwrap();
    let mut raw = pipe(&layer);
    raw.send_head("GET", "/a?verb=FOLLOW", &[ACCEPT], "").await;
    assert_eq!(raw.read_head().await.status, 200);
    let mut parser = Parser::default();
    let mut events = Vec::new();
    let begun = tokio::time::Instant::now();
    while parser.comments < 100 {
        events.extend(parser.push(&raw.chunk().await.unwrap().unwrap()));
    }
    assert_eq!(begun.elapsed().as_secs(), 3000, "one every 30 seconds");
    assert_eq!(bytes(&events), b"x");
    assert!(parser.retry.is_some(), "browsers would wait for seconds");
    out.append("y").await.unwrap();
    while bytes(&events) != b"xy" {
        events.extend(parser.push(&raw.chunk().await.unwrap().unwrap()));
    }
    out.finish().await.unwrap();
    while let Some(chunk) = raw.chunk().await.unwrap() {
        events.extend(parser.push(&chunk));
    }
    assert_eq!(events.last().unwrap().json(), json!({"state": "finished", "length": 2}));
}

#[tokio::test(start_paused = true)]
async fn bytes_have_no_keep_alive() {
    let layer = memory_layer().ping_interval(Duration::from_secs(30));
    let mut out = layer.streams().open_append("a").await.unwrap();
    out.append("x").await.unwrap();
    let mut raw = pipe(&layer);
    raw.send_head("GET", "/a?verb=FOLLOW", &[], "").await;
    assert_eq!(raw.read_head().await.status, 200);
    assert_eq!(raw.chunk().await, Ok(Some(b"x".to_vec())));
    tokio::time::sleep(Duration::from_secs(50 * 3600)).await;
    out.append("y").await.unwrap();
    assert_eq!(raw.chunk().await, Ok(Some(b"y".to_vec())), "after two days");
}

#[tokio::test]
async fn whoever_comes_while_the_server_stops_is_told_to_come_again() {
    let server = serve(memory_layer()).await;
    let mut appender = server.streams.open_append("a").await.unwrap();
    appender.append("x").await.unwrap();
    let streams = server.streams.clone();
    // It waits for the appender.
    let stopping = tokio::spawn(async move { streams.shutdown(Duration::from_secs(60)).await });
    soon("the shutdown to begin", async { while server.request("HEAD", "/a?verb=FOLLOW", &[]).await.status != 503 {} })
        .await;
    let answer = server.request("GET", "/a?verb=FOLLOW", &[("Accept", "text/event-stream")]).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/event-stream")));
    assert_eq!(answer.text(), "retry: 1000\n\n", "no event, no end: `EventSource` comes again");
    appender.finish().await.unwrap();
    soon("the shutdown", stopping).await.unwrap();
}
