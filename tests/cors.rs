//! What pages of other sites may do and read (protocol section 5): the Fetch standard's CORS.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use axum::Router;
use common::plain::{BOTH, Client, Http, Live, ask, full, problem};
use common::spy::Spy;
use common::{Answer, Server, Store, fs_layer, memory_layer, serve, serve_router, soon, stores};
use httpfstream::{Denied, HttpFStreamLayer};
use httpfstream::{State, storage::MemoryStorage};

const APP: &str = "https://app.example";
const EVIL: &str = "https://evil.example";
const FROM_APP: (&str, &str) = ("origin", APP);

async fn send(server: &Server, method: &str, target: &str, headers: &[(&str, &str)], body: &'static str) -> Answer {
    let response = Client::new(server.addr, Http::One).await.send(method, target, headers, full(body)).await.unwrap();
    Live::of(response).whole().await
}

/// What an answer allows: the origin, credentials, and what varies.
fn allowed(answer: &Answer) -> (Option<&str>, Option<&str>, Option<&str>) {
    (
        answer.header("access-control-allow-origin"),
        answer.header("access-control-allow-credentials"),
        answer.header("vary"),
    )
}

fn exposed(answer: &Answer) -> Vec<String> {
    let names = answer.header("access-control-expose-headers").unwrap_or_default();
    names.split(',').map(|name| name.trim().to_ascii_lowercase()).filter(|name| !name.is_empty()).collect()
}

const NAMED: (Option<&str>, Option<&str>, Option<&str>) = (Some(APP), Some("true"), Some("Origin"));
const NOTHING: (Option<&str>, Option<&str>, Option<&str>) = (None, None, Some("Origin"));

async fn finished(server: &Server, key: &str) {
    let mut out = server.streams.append(key).await.unwrap();
    out.append("stored").await.unwrap();
    out.finish().await.unwrap();
}

type Asked = (&'static str, &'static str, &'static [(&'static str, &'static str)], u16);

/// Every kind of answer that is ours: what it is, and the status it has.
const ASKED: [Asked; 17] = [
    ("GET", "/there", &[], 200),
    ("HEAD", "/there", &[], 200),
    ("GET", "/there", &[("range", "bytes=1-2")], 206),
    ("GET", "/there", &[("if-none-match", "*")], 304),
    ("GET", "/there", &[("range", "bytes=99-")], 416),
    ("GET", "/there?verb=FOLLOW&offset=2", &[], 200),
    ("GET", "/there?verb=FOLLOW", &[("accept", "text/event-stream")], 200),
    ("GET", "/there?verb=FOLLOW&offset=99", &[], 416),
    ("GET", "/none?verb=FOLLOW", &[], 404),
    ("GET", "/there?verb=FOLLOW&verb=APPEND", &[], 400),
    ("PUT", "/there?verb=APPEND", &[], 409),
    ("POST", "/there?verb=APPEND", &[("content-encoding", "gzip")], 415),
    ("POST", "/there?verb=APPEND", &[("if-match", "\"x\"")], 412),
    ("DELETE", "/there", &[("if-match", "\"x\"")], 412),
    ("DELETE", "/there?verb=APPEND", &[], 405),
    ("PUT", "/new?verb=APPEND", &[], 201),
    ("DELETE", "/new", &[], 204),
];

#[tokio::test]
async fn an_allowed_page_reads_every_answer_errors_too() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer.allow_origins([APP, "https://other.example"])).await;
        finished(&server, "there").await;
        for (method, target, headers, status) in ASKED {
            let headers = [headers, &[FROM_APP]].concat();
            let answer = send(&server, method, target, &headers, "x").await;
            assert_eq!(answer.status, status, "{name} {method} {target} {answer:?}");
            assert_eq!(allowed(&answer), NAMED, "{name} {method} {target}");
            let exposed = exposed(&answer);
            for header in [
                "stream-state",
                "stream-life",
                "stream-offset",
                "upload-offset",
                "upload-complete",
                "upload-length",
                "etag",
                "location",
                "content-range",
            ] {
                assert!(exposed.iter().any(|name| name == header), "{name} {method} {target}: {header}");
            }
        }
    }
}

#[tokio::test]
async fn for_all_origins_there_is_a_star_and_no_credentials() {
    let server = serve(memory_layer().allow_origins(["*"])).await;
    finished(&server, "there").await;
    for (method, target, headers, status) in ASKED {
        for origin in [APP, EVIL, "null"] {
            let headers = [headers, &[("origin", origin)]].concat();
            let answer = send(&server, method, target, &headers, "x").await;
            // What was done by the page before is done.
            let done = matches!((method, target), ("PUT", "/new?verb=APPEND") | ("DELETE", "/new"));
            assert!(answer.status == status || done, "{method} {target} {answer:?}");
            if answer.status != status {
                continue;
            }
            assert_eq!(allowed(&answer), (Some("*"), None, None), "{method} {target} {origin}");
            assert!(!exposed(&answer).is_empty());
        }
    }
}

#[tokio::test]
async fn a_foreign_page_may_read_nothing_and_write_nothing() {
    for store in stores() {
        let server = serve(store.layer.clone().allow_origins([APP])).await;
        finished(&server, "there").await;
        let before = server.streams.stat("there").await.unwrap();
        for (method, target, headers, status) in ASKED {
            for origin in [EVIL, "null", "https://app.example.evil.example", "http://app.example"] {
                let headers = [headers, &[("origin", origin)]].concat();
                let answer = send(&server, method, target, &headers, "x").await;
                let writes = method != "GET" && method != "HEAD";
                match (writes, target) {
                    // Contradictions and wrong methods are told to anybody; there is no resource to delete.
                    (true, "/there?verb=APPEND") if method == "DELETE" => assert_eq!(answer.status, 405),
                    (true, "/new") => assert_eq!(answer.status, 404),
                    (true, _) => {
                        assert_eq!((answer.status, &*problem(&answer)), (403, "not-allowed"), "{method} {target}");
                    }
                    (false, _) => {
                        assert_eq!(answer.status, status, "{method} {target}: the browser keeps it to itself")
                    }
                }
                if (method, target) != ("DELETE", "/new") {
                    assert_eq!(allowed(&answer), NOTHING, "{method} {target} {origin}");
                }
                assert!(exposed(&answer).is_empty());
            }
        }
        assert_eq!(server.streams.stat("there").await.unwrap(), before);
        store.holds_only(&["there"]);
        // What is no page is no page's concern, but what it gets may be cached for one.
        let answer = send(&server, "GET", "/there", &[], "").await;
        assert_eq!(allowed(&answer), NOTHING);
        // The same host's pages write, and need no headers.
        let own = format!("http://{}", server.addr);
        let answer = send(&server, "POST", "/there?verb=APPEND", &[("origin", &own)], "!").await;
        assert_eq!((answer.status, allowed(&answer)), (200, NOTHING));
    }
}

#[tokio::test]
async fn without_allowed_origins_nothing_is_said_of_them() {
    let server = serve(memory_layer()).await;
    finished(&server, "there").await;
    for headers in [&[][..], &[FROM_APP]] {
        for (method, target) in [("GET", "/there"), ("GET", "/there?verb=FOLLOW"), ("GET", "/none?verb=FOLLOW")] {
            let answer = send(&server, method, target, headers, "").await;
            assert_eq!(allowed(&answer), (None, None, None), "{method} {target}");
        }
        assert_eq!(send(&server, "PUT", "/new?verb=APPEND", &[FROM_APP], "x").await.status, 403);
    }
}

#[tokio::test]
async fn a_live_body_and_its_events_are_read_across_sites() {
    let server = serve(memory_layer().allow_origins([APP])).await;
    for http in BOTH {
        let key = format!("{http:?}");
        let mut out = server.streams.append(&*key).await.unwrap();
        out.append("one").await.unwrap();
        for accept in ["*/*", "text/event-stream"] {
            let headers = [FROM_APP, ("accept", accept)];
            let live = ask(server.addr, http, &format!("/{key}?verb=FOLLOW"), &headers).await;
            assert_eq!(live.header("access-control-allow-origin"), Some(APP), "{accept}");
            assert_eq!(live.header("access-control-allow-credentials"), Some("true"));
            assert_eq!(live.header("vary"), Some("Origin"));
        }
    }
}

async fn preflight(server: &Server, target: &str, headers: &[(&str, &str)]) -> Answer {
    server.request("OPTIONS", target, headers).await
}

#[tokio::test]
async fn a_preflight_for_what_is_ours_is_answered_and_touches_nothing() {
    let spy = Spy::new(MemoryStorage::new(1 << 20));
    let watch = spy.watch.clone();
    // Preflights carry no credentials, so nobody is asked for any.
    let layer = HttpFStreamLayer::new(spy).plain_http(true).allow_origins([APP]);
    let layer = layer.authorize(|_| async { Err(Denied::Unauthorized) });
    let server = serve(layer).await;
    let method = |method| ("access-control-request-method", method);
    let headers = |headers| ("access-control-request-headers", headers);
    for (target, asked) in [
        ("/a?verb=APPEND", &[method("PUT")][..]),
        ("/a?verb=APPEND", &[method("PATCH"), headers("content-type,upload-offset")]),
        ("/a?verb=FOLLOW", &[method("GET"), headers("authorization")]),
        ("/a", &[method("PUT"), headers("Upload-Complete")]),
        ("/a", &[method("GET"), headers("authorization, X-Verb")]),
        ("/a", &[method("POST"), headers("upload-draft-interop-version")]),
        ("/a", &[method("POST"), headers("appender-id")]),
    ] {
        let answer = preflight(&server, target, &[asked, &[FROM_APP]].concat()).await;
        assert_eq!((answer.status, answer.body.len()), (204, 0), "{target} {asked:?}");
        assert_eq!(allowed(&answer), NAMED, "{target}");
        let methods = answer.header("access-control-allow-methods").unwrap();
        for method in ["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"] {
            assert!(methods.split(", ").any(|allowed| allowed == method), "{methods}");
        }
        let wanted = asked.get(1).map(|(_, value)| *value);
        assert_eq!(answer.header("access-control-allow-headers"), wanted, "{target}");
        assert!(answer.header("access-control-max-age").is_some());
        // From anywhere else it is not allowed.
        for origin in [EVIL, "null"] {
            let answer = preflight(&server, target, &[asked, &[("origin", origin)]].concat()).await;
            assert_eq!((answer.status, allowed(&answer)), (403, NOTHING), "{target} {origin}");
            assert_eq!(answer.header("access-control-allow-methods"), None);
        }
    }
    let calls = watch.now();
    assert_eq!((calls.stats, calls.opens, calls.reads), (0, 0, 0));
    // For all, it is for all.
    let server = serve(memory_layer().allow_origins(["*"])).await;
    let answer = preflight(&server, "/a?verb=APPEND", &[("origin", EVIL), method("PUT")]).await;
    assert_eq!((answer.status, allowed(&answer)), (204, (Some("*"), None, None)));
    // For nobody, it is for nobody.
    let server = serve(memory_layer()).await;
    let answer = preflight(&server, "/a?verb=APPEND", &[FROM_APP, method("PUT")]).await;
    assert_eq!((answer.status, allowed(&answer)), (403, (None, None, None)));
}

#[tokio::test]
async fn other_preflights_reach_the_inner_service() {
    let inner = async |request: axum::extract::Request| format!("inner {}", request.method());
    let (files, _dir) = fs_layer();
    let bare = HttpFStreamLayer::new(MemoryStorage::new(1 << 20));
    for (name, layer) in [("files", files), ("bare", bare)] {
        let layer = layer.allow_origins([APP]);
        let streams = layer.streams();
        let server = serve_router(Router::new().fallback(inner).layer(layer), streams).await;
        let put = ("access-control-request-method", "PUT");
        let ours = ("access-control-request-headers", "upload-offset");
        let theirs = ("access-control-request-headers", "content-type, x-verbs, authorization");
        for (target, headers) in [
            ("/a", &[FROM_APP, put][..]),
            ("/a", &[FROM_APP, put, theirs]),
            ("/a", &[FROM_APP, ours]),
            ("/a", &[put, ours]),
            ("/a?verb=SUBSCRIBE", &[FROM_APP, put]),
        ] {
            let answer = preflight(&server, target, headers).await;
            assert_eq!((answer.status, &*answer.text()), (200, "inner OPTIONS"), "{name} {target} {headers:?}");
            assert_eq!(allowed(&answer), (None, None, None));
        }
        if name == "bare" {
            for (target, headers) in [("/a?verb=APPEND", &[FROM_APP, put][..]), ("/a", &[FROM_APP, put, ours])] {
                assert_eq!(preflight(&server, target, headers).await.text(), "inner OPTIONS");
            }
        }
        // What falls through is the inner service's to allow.
        let answer = send(&server, "GET", "/absent", &[FROM_APP], "").await;
        assert_eq!((&*answer.text(), allowed(&answer)), ("inner GET", (None, None, None)));
    }
}

#[tokio::test]
async fn an_allowed_page_uploads_and_an_event_source_follows() {
    for Store { name, layer, .. } in stores() {
        let server = serve(layer.allow_origins([APP])).await;
        let patch = [
            FROM_APP,
            ("upload-offset", "4"),
            ("upload-complete", "?1"),
            ("content-type", "application/partial-upload"),
        ];
        assert_eq!(send(&server, "POST", "/a", &[FROM_APP, ("upload-complete", "?0")], "four").await.status, 201);
        let live = ask(server.addr, Http::One, "/a?verb=FOLLOW", &[FROM_APP, ("accept", "text/event-stream")]).await;
        assert_eq!(send(&server, "PATCH", "/a", &patch, " more").await.status, 200, "{name}");
        let (told, clean) = soon("the end", live.to_end()).await;
        assert!(clean && String::from_utf8(told).unwrap().contains("data:  more"), "{name}");
        assert_eq!(server.streams.stat("a").await.unwrap().unwrap().state, State::Finished);
    }
}
