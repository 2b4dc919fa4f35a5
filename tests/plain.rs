//! Plain GET and HEAD: ranges, conditions, content types: fault cases 15 (ranges) and 18.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Answer, Server, fs_layer, pattern, serve, soon, stores};
use http::HeaderValue;
use tokio::io::AsyncReadExt;

async fn write(server: &Server, key: &str, bytes: impl Into<Vec<u8>>) {
    let mut appender = server.streams.open_append(key).await.unwrap();
    appender.append(bytes.into()).await.unwrap();
    appender.finish().await.unwrap();
}

fn range(answer: &Answer) -> (u16, &[u8], Option<&str>) {
    (answer.status, &answer.body, answer.header("content-range"))
}

async fn get(server: &Server, target: &str, headers: &[(&str, &str)]) -> Answer {
    server.request("GET", target, headers).await
}

#[tokio::test]
async fn fault_15_ranges_are_exact_or_416() {
    for store in stores() {
        let server = serve(store.layer).await;
        // Once finished and once live: the same answers.
        write(&server, "finished.txt", pattern(0, 100_000)).await;
        let mut live = server.streams.open_append("live.txt").await.unwrap();
        live.append(pattern(0, 100_000)).await.unwrap();
        for key in ["/finished.txt", "/live.txt"] {
            let cut = |from: u64, to: u64| pattern(from, (to - from) as usize);
            for (asked, from, to) in [
                ("bytes=0-0", 0, 1),
                ("bytes=10-19", 10, 20),
                ("bytes=65530-65550", 65_530, 65_551),
                ("bytes=99999-", 99_999, 100_000),
                ("bytes=99000-100000", 99_000, 100_000),
                ("bytes=99000-18446744073709551615", 99_000, 100_000),
                ("bytes=-1", 99_999, 100_000),
            ] {
                let answer = get(&server, key, &[("Range", asked)]).await;
                let told = format!("bytes {from}-{}/100000", to - 1);
                assert_eq!(range(&answer), (206, &cut(from, to)[..], Some(&*told)), "{} {key} {asked}", store.name);
            }
            for past in ["bytes=100000-", "bytes=100000-100001", "bytes=18446744073709551615-"] {
                let answer = get(&server, key, &[("Range", past)]).await;
                assert_eq!(range(&answer), (416, &b""[..], Some("bytes */100000")), "{} {key} {past}", store.name);
            }
            let all = pattern(0, 100_000);
            for odd in [
                "bytes=-0",
                "bytes=5-2",
                "bytes=--5",
                "bytes=-5-",
                "bytes=18446744073709551616-",
                "bytes=a-b",
                "bytes=",
                "bytes",
                "bytes=0x1-",
                "bytes=1-2-3",
                "bytes=+1-",
                "lines=1-2",
                "",
                "bytes=0-1,99-",
                "bytes=-200000",
                "bytes=0-0,200000-200001",
            ] {
                let answer = get(&server, key, &[("Range", odd)]).await;
                match answer.status {
                    // RFC 9110 section 14.2: what makes no sense may be ignored …
                    200 => assert!(answer.body == all, "{} {key} {odd:?}", store.name),
                    // … or answered by what it may have meant: more than there is from the end is all there is.
                    206 => assert!(odd == "bytes=-200000" && answer.body == all, "{} {key} {odd:?}", store.name),
                    status => assert!([400, 416].contains(&status), "{} {key} {odd:?}: {answer:?}", store.name),
                }
            }
            let head = server.request("HEAD", key, &[("Range", "bytes=10-19")]).await;
            assert_eq!((head.header("content-length"), head.body.len()), (Some("10"), 0));
        }
    }
}

#[tokio::test]
async fn fault_74_more_than_there_is_from_the_end_is_all() {
    for store in stores() {
        let server = serve(store.layer).await;
        write(&server, "finished.txt", pattern(0, 1000)).await;
        let mut live = server.streams.open_append("live.txt").await.unwrap();
        live.append(pattern(0, 1000)).await.unwrap();
        for suffix in ["1000", "1001", "18446744073709551615", "18446744073709551616", "99999999999999999999"] {
            for key in ["/finished.txt", "/live.txt", "/finished.txt?verb=FOLLOW"] {
                let answer = get(&server, key, &[("Range", &format!("bytes=-{suffix}"))]).await;
                let told = (206, &pattern(0, 1000)[..], Some("bytes 0-999/1000"));
                assert_eq!(range(&answer), told, "{} {key} {suffix}", store.name);
            }
        }
        live.finish().await.unwrap();
    }
}

#[tokio::test]
async fn fault_15_an_empty_resource_has_no_range() {
    for store in stores() {
        let server = serve(store.layer).await;
        server.streams.open_append("empty").await.unwrap().finish().await.unwrap();
        let answer = get(&server, "/empty", &[]).await;
        assert_eq!((answer.status, answer.body.len(), answer.header("content-length")), (200, 0, Some("0")));
        let answer = get(&server, "/empty", &[("Range", "bytes=0-")]).await;
        assert_eq!(range(&answer), (416, &b""[..], Some("bytes */0")), "{} {answer:?}", store.name);
        assert_eq!(get(&server, "/empty", &[("Range", "bytes=-1")]).await.status, 416);
    }
}

#[tokio::test]
async fn fault_15_a_range_of_what_is_live_does_not_run_ahead() {
    for store in stores() {
        let server = serve(store.layer).await;
        let mut live = server.streams.open_append("a").await.unwrap();
        live.append("0123456789").await.unwrap();
        let answer = get(&server, "/a", &[("Range", "bytes=5-")]).await;
        assert_eq!(range(&answer), (206, &b"56789"[..], Some("bytes 5-9/10")));
        assert_eq!(get(&server, "/a", &[("Range", "bytes=10-")]).await.status, 416);
        live.append("a").await.unwrap();
        let answer = get(&server, "/a", &[("Range", "bytes=10-")]).await;
        assert_eq!(range(&answer), (206, &b"a"[..], Some("bytes 10-10/11")));
    }
}

#[tokio::test]
async fn fault_18_stored_pages_can_not_script_the_site() {
    for store in stores() {
        let server = serve(store.layer).await;
        for key in ["x.html", "x.js", "x.svg", "x.txt", "x", "x.xhtml"] {
            write(&server, key, "<script>alert(1)</script>").await;
            let target = format!("/{key}");
            let tag = get(&server, &target, &[]).await.header("etag").unwrap().to_owned();
            let (follow, _) = server.upgrade(&format!("{target}?verb=FOLLOW"), &[]).await;
            assert_eq!(follow.status, 200);
            for answer in [
                get(&server, &target, &[]).await,
                get(&server, &format!("{target}?verb=FOLLOW"), &[]).await,
                follow,
                server.request("HEAD", &target, &[]).await,
                get(&server, &target, &[("Range", "bytes=0-5")]).await,
                get(&server, &target, &[("Range", "bytes=99-")]).await,
                get(&server, &target, &[("If-None-Match", &tag)]).await,
                get(&server, &target, &[("If-Match", "\"other\"")]).await,
            ] {
                assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{key} {answer:?}");
                assert_eq!(answer.header("content-security-policy"), Some("sandbox"), "{key} {answer:?}");
            }
        }
    }
}

#[tokio::test]
async fn fault_18_an_error_is_no_page_either() {
    let server = serve(common::memory_layer()).await;
    // What the client sent is not echoed, and what is answered is no page.
    let answer = server.upgrade("/%3Cscript%3E?verb=FOLLOW", &[]).await.0;
    assert_eq!((answer.status, answer.header("content-type")), (404, Some("application/problem+json")));
    assert!(!answer.text().contains("script"));
}

#[tokio::test]
async fn content_types_come_from_the_extension_else_from_the_layer() {
    for store in stores() {
        let server = serve(store.layer.clone()).await;
        for (key, expected) in [
            ("a", "text/plain; charset=utf-8"),
            ("a.log.nonsense", "text/plain; charset=utf-8"),
            ("a.txt", "text/plain; charset=utf-8"),
            ("a.html", "text/html; charset=utf-8"),
            ("a.JSON", "application/json"),
            ("a.png", "image/png"),
            ("d.png/a", "text/plain; charset=utf-8"),
        ] {
            write(&server, key, "x").await;
            for method in ["GET", "HEAD"] {
                let answer = server.request(method, &format!("/{key}"), &[]).await;
                assert_eq!(answer.header("content-type"), Some(expected), "{} {key}", store.name);
            }
        }
        let other = serve(store.layer.default_content_type(HeaderValue::from_static("application/x-log"))).await;
        assert_eq!(other.get("/a").await.header("content-type"), Some("application/x-log"));
        assert_eq!(other.get("/a.txt").await.header("content-type"), Some("text/plain; charset=utf-8"));
    }
}

#[tokio::test]
async fn head_tells_what_get_would() {
    for store in stores() {
        let server = serve(store.layer).await;
        write(&server, "a.txt", pattern(0, 70_000)).await;
        let mut live = server.streams.open_append("live").await.unwrap();
        live.append("123").await.unwrap();
        for (target, len, state) in [("/a.txt", "70000", "finished"), ("/live", "3", "live")] {
            let (get, head) = (server.get(target).await, server.request("HEAD", target, &[]).await);
            assert_eq!((head.status, head.body.len()), (200, 0));
            for name in ["content-length", "content-type", "etag", "stream-state", "upload-offset", "cache-control"] {
                assert_eq!(head.header(name), get.header(name), "{} {target} {name}", store.name);
                assert!(head.header(name).is_some(), "{name}");
            }
            assert_eq!(head.header("content-length"), Some(len));
            assert_eq!(head.header("upload-offset"), Some(len));
            assert_eq!(head.header("stream-state"), Some(state));
        }
        assert_eq!(server.request("HEAD", "/absent", &[]).await.status, 404);
    }
}

#[tokio::test]
async fn the_etag_tells_lives_and_lengths_apart() {
    for store in stores() {
        let server = serve(store.layer).await;
        let tag = async |key: &str| server.get(key).await.header("etag").unwrap().to_owned();
        write(&server, "a", "one").await;
        let first = tag("/a").await;
        assert!(first.starts_with('"') && first.ends_with('"'), "strong: {first}");
        assert_eq!(tag("/a").await, first);
        write(&server, "a", "two").await;
        let longer = tag("/a").await;
        assert_ne!(longer, first);
        server.streams.delete("a").await.unwrap();
        write(&server, "a", "onetwo").await;
        let another_life = tag("/a").await;
        assert_ne!(another_life, longer, "the same bytes, but another life");

        let list = format!("\"x\", W/{another_life}");
        for (name, value, status) in [
            ("If-None-Match", &*another_life, 304),
            ("If-None-Match", &list, 304),
            ("If-None-Match", "*", 304),
            ("If-None-Match", &longer, 200),
            ("If-Match", &another_life, 200),
            ("If-Match", "*", 200),
            ("If-Match", &longer, 412),
            // A weak tag never matches strongly (RFC 9110 section 13.1.1).
            ("If-Match", &format!("W/{another_life}"), 412),
        ] {
            for method in ["GET", "HEAD"] {
                let answer = server.request(method, "/a", &[(name, value)]).await;
                assert_eq!(answer.status, status, "{} {method} {name}: {value}", store.name);
                assert_eq!(answer.header("etag"), Some(&*another_life));
                let body: &[u8] = if status == 200 && method == "GET" { b"onetwo" } else { b"" };
                assert_eq!(answer.body, body);
            }
        }
    }
}

#[tokio::test]
async fn if_range_splices_no_two_lives() {
    for store in stores() {
        let server = serve(store.layer).await;
        write(&server, "a", "0123456789").await;
        let answer = server.get("/a").await;
        let tag = answer.header("etag").unwrap().to_owned();
        let date = answer.header("last-modified").map(str::to_owned);
        let asked = async |if_range: &str| {
            let answer = get(&server, "/a", &[("Range", "bytes=5-"), ("If-Range", if_range)]).await;
            (answer.status, answer.text())
        };
        assert_eq!(asked(&tag).await, (206, "56789".into()));
        assert_eq!(asked(&format!("W/{tag}")).await, (200, "0123456789".into()));
        assert_eq!(asked("\"other\"").await, (200, "0123456789".into()));
        if let Some(date) = date {
            assert_eq!(asked(&date).await, (200, "0123456789".into()), "a date is no strong validator");
        }
        server.streams.delete("a").await.unwrap();
        write(&server, "a", "abcdefghij").await;
        assert_eq!(asked(&tag).await, (200, "abcdefghij".into()));
    }
}

#[tokio::test]
async fn dates_count_for_what_is_at_rest_and_not_for_what_is_live() {
    for store in stores() {
        let server = serve(store.layer).await;
        write(&server, "a", "x").await;
        let date = server.get("/a").await.header("last-modified").unwrap().to_owned();
        let old = "Thu, 01 Jan 1998 00:00:00 GMT";
        assert_eq!(get(&server, "/a", &[("If-Modified-Since", &date)]).await.status, 304);
        assert_eq!(get(&server, "/a", &[("If-Modified-Since", old)]).await.status, 200);
        assert_eq!(get(&server, "/a", &[("If-Unmodified-Since", old)]).await.status, 412);
        // A tag that doesn't match decides, whatever the date says (RFC 9110 section 13.1.3).
        let both = [("If-Modified-Since", &*date), ("If-None-Match", "\"other\"")];
        assert_eq!(get(&server, "/a", &both).await.status, 200);

        let mut live = server.streams.open_append("a").await.unwrap();
        live.append("y").await.unwrap();
        let answer = get(&server, "/a", &[("If-Modified-Since", "Thu, 01 Jan 2099 00:00:00 GMT")]).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "xy"));
        assert_eq!(answer.header("last-modified"), None);
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
}

#[tokio::test]
async fn a_finished_resource_that_is_appended_to_while_it_is_sent_ends_where_it_was_announced() {
    for store in stores() {
        let server = serve(store.layer).await;
        let data = pattern(0, 8_000_000);
        write(&server, "a", data.clone()).await;
        let mut raw = common::Raw::connect(server.addr).await;
        raw.send_head("GET", "/a", &[], "Connection: close\r\n").await;
        let answer = raw.read_head().await;
        assert_eq!(answer.header("content-length"), Some("8000000"));
        // The socket can't hold it all, so the body is still being read when more comes.
        write(&server, "a", "more").await;
        let mut body = std::mem::take(&mut raw.buf);
        soon("the body", raw.stream.read_to_end(&mut body)).await.unwrap();
        assert!(body == data, "{}: {} bytes", store.name, body.len());
    }
}

#[tokio::test]
async fn over_http2_too_it_ends_where_it_was_announced() {
    use http_body_util::BodyExt;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    for store in stores() {
        let server = serve(store.layer).await;
        let data = pattern(0, 4_000_000);
        write(&server, "a", data.clone()).await;
        let stream = tokio::net::TcpStream::connect(server.addr).await.unwrap();
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (mut client, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::get(format!("http://{}/a", server.addr));
        let request = request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
        let response = soon("an answer", client.send_request(request)).await.unwrap();
        assert_eq!(response.headers()["content-length"], "4000000");
        // The window is small: most of the body is yet to be read from the store.
        write(&server, "a", pattern(0, 100_000)).await;
        let body = soon("the body", response.into_body().collect()).await.unwrap().to_bytes();
        assert!(body == data, "{}: {} bytes", store.name, body.len());
    }
}

#[tokio::test]
async fn a_file_dropped_in_is_served() {
    let (layer, dir) = fs_layer();
    let server = serve(layer).await;
    std::fs::create_dir(dir.path().join("d")).unwrap();
    std::fs::write(dir.path().join("d/ü ?.txt"), "dropped").unwrap();
    let answer = server.get("/d/%C3%BC%20%3F.txt").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "dropped"));
    assert_eq!(answer.header("stream-state"), Some("finished"));
    let mut follower = server.streams.follow("d/ü ?.txt").await.unwrap();
    assert_eq!(follower.next_chunk().await.unwrap().unwrap().bytes, "dropped");
    assert_eq!(follower.next_chunk().await.unwrap(), None);
}
