//! Following.

use std::time::Duration;

use futures_util::StreamExt as _;
use http_body_util::BodyExt as _;
use httpfstream::client::{self, Client, Follower};
use httpfstream::{Error, ErrorKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::peer::{BINARY, CLOSE, PING, PONG, TEXT, answer, close, frame, serve, within};

/// Everything up to the end, and how it ended, asked twice.
async fn read(follower: &mut Follower) -> (Vec<u8>, Result<(), Error>) {
    let mut data = Vec::new();
    loop {
        match within(follower.next_chunk()).await {
            Ok(Some(chunk)) => {
                assert!(!chunk.bytes.is_empty());
                data.extend_from_slice(&chunk.bytes);
                assert_eq!((chunk.next_offset, follower.offset()), (data.len() as u64, data.len() as u64));
            }
            Ok(None) => {
                assert!(within(follower.next_chunk()).await.unwrap().is_none());
                return (data, Ok(()));
            }
            Err(error) => {
                assert_eq!(within(follower.next_chunk()).await.unwrap_err().kind(), error.kind());
                return (data, Err(error));
            }
        }
    }
}

async fn follow(url: &str) -> (Vec<u8>, Result<(), Error>) {
    read(&mut within(client::follow(url)).await.unwrap()).await
}

/// Follows what a server sends after its 101, up to the client's end.
async fn follow_frames(sent: Vec<u8>) -> (Vec<u8>, Result<(), ErrorKind>) {
    let (url, _) = serve(async move |mut peer| {
        peer.upgrade("").await;
        peer.send(sent).await;
        within(peer.io.shutdown()).await.unwrap();
        peer.drain().await;
    })
    .await;
    let (data, end) = follow(&url).await;
    (data, end.map_err(|error| error.kind()))
}

#[tokio::test]
async fn a_200_is_read_whole() {
    let body: Vec<u8> = (0..300_000u32).map(|i| (i * 7) as u8).collect();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    let url = answer([head.as_bytes(), &body].concat()).await;
    let mut follower = within(client::follow(url)).await.unwrap();
    assert!(!follower.is_live());
    let (data, end) = read(&mut follower).await;
    assert!(data == body && end.is_ok());

    let (data, end) = follow(&answer("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await).await;
    assert!(data.is_empty() && end.is_ok());
    let chunked =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nX-Trailer: y\r\n\r\n";
    let (data, end) = follow(&answer(chunked).await).await;
    assert!(data == b"abcde" && end.is_ok());
}

#[tokio::test]
async fn a_200_larger_than_memory_should_be_is_not_buffered() {
    const ALL: usize = 1 << 30;
    let (url, task) = serve(async |mut peer| {
        peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {ALL}\r\n\r\n")).await;
        let block = vec![b'x'; 1 << 16];
        let mut sent = 0;
        // Stops where nobody reads any more: pending means that all buffers are full.
        while let Ok(Ok(n)) = tokio::time::timeout(Duration::from_millis(300), peer.io.write(&block)).await {
            sent += n;
        }
        sent
    })
    .await;
    let mut follower = within(client::follow(url)).await.unwrap();
    assert!(within(follower.next_chunk()).await.unwrap().is_some());
    assert!(within(task).await.unwrap() < 64 << 20);
}

#[tokio::test]
async fn a_cut_body_is_an_error_after_all_bytes() {
    for cut in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabcde",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\nabcde",
        // Without a length an end can't be told from a cut.
        "HTTP/1.1 200 OK\r\n\r\nabcde",
        "HTTP/1.0 200 OK\r\n\r\nabcde",
    ] {
        let (data, end) = follow(&answer(cut).await).await;
        assert_eq!(data, b"abcde", "{cut}");
        assert_eq!(end.unwrap_err().kind(), ErrorKind::Connection, "{cut}");
    }
}

#[tokio::test]
async fn an_interrupted_200_is_read_whole_and_ends_so() {
    let url = answer("HTTP/1.1 200 OK\r\nStream-State: interrupted\r\nContent-Length: 5\r\n\r\nabcde").await;
    let (data, end) = follow(&url).await;
    assert_eq!((data, end.unwrap_err().kind()), (b"abcde".to_vec(), ErrorKind::Interrupted));
    let url = answer("HTTP/1.1 200 OK\r\nStream-State: finished\r\nContent-Length: 5\r\n\r\nabcde").await;
    assert!(follow(&url).await.1.is_ok());
}

#[tokio::test]
async fn text_binary_and_fragments_are_all_data() {
    let mut sent = Vec::new();
    sent.extend(frame(0x80 | TEXT, b"te\xff\xfext "));
    sent.extend(frame(0x80 | TEXT, b""));
    sent.extend(frame(0x80 | BINARY, b"\0binary "));
    sent.extend(frame(TEXT, b"frag"));
    sent.extend(frame(0x80 | PING, b"between"));
    sent.extend(frame(0, b"men"));
    sent.extend(frame(0x80, b"ts"));
    sent.extend(frame(0x80 | BINARY, &vec![b'.'; 70_000]));
    sent.extend(close(1000, "bye"));
    let (data, end) = follow_frames(sent).await;
    let mut expected = b"te\xff\xfext \0binary fragments".to_vec();
    expected.extend(vec![b'.'; 70_000]);
    assert!(data == expected, "{} bytes", data.len());
    assert_eq!(end, Ok(()));
}

#[tokio::test]
async fn pieces_are_handed_out_before_the_message_ends() {
    let (go, went) = tokio::sync::oneshot::channel::<()>();
    let (url, task) = serve(async move |mut peer| {
        peer.upgrade("").await;
        peer.send([&[0x80 | BINARY, 127][..], &(1u64 << 40).to_be_bytes(), b"first"].concat()).await;
        within(went).await.unwrap();
        peer.send(b"second").await;
        peer.drain().await;
    })
    .await;
    let mut follower = within(client::follow(url)).await.unwrap();
    assert!(follower.is_live());
    assert_eq!(within(follower.next_chunk()).await.unwrap().unwrap().bytes, "first");
    go.send(()).unwrap();
    assert_eq!(within(follower.next_chunk()).await.unwrap().unwrap().bytes, "second");
    // Dropping it ends the connection at once.
    drop(follower);
    within(task).await.unwrap();
}

#[tokio::test]
async fn close_codes_tell_the_end_from_everything_else() {
    for (code, end) in [
        (1000, Ok(())),
        (1001, Err(ErrorKind::ShuttingDown)),
        (1002, Err(ErrorKind::Protocol)),
        (1008, Err(ErrorKind::BadRequest)),
        (1009, Err(ErrorKind::TooLarge)),
        (1011, Err(ErrorKind::Interrupted)),
        (1013, Err(ErrorKind::Overloaded)),
        (4001, Err(ErrorKind::Fenced)),
        (4002, Err(ErrorKind::TimedOut)),
        (4003, Err(ErrorKind::Forbidden)),
        (4999, Err(ErrorKind::Connection)),
        (1005, Err(ErrorKind::Protocol)),
    ] {
        let sent = [frame(0x80 | TEXT, b"data"), close(code, "why")].concat();
        assert_eq!(follow_frames(sent).await, (b"data".to_vec(), end), "{code}");
    }
    let nameless = [frame(0x80 | TEXT, b"data"), frame(0x80 | CLOSE, b"")].concat();
    assert_eq!(follow_frames(nameless).await, (b"data".to_vec(), Err(ErrorKind::Connection)));
}

#[tokio::test]
async fn the_close_reason_is_told_and_answered() {
    let (url, task) = serve(async |mut peer| {
        peer.upgrade("").await;
        peer.send(close(1011, "the disk is full\u{1b}[2J")).await;
        peer.frame().await
    })
    .await;
    let (_, end) = follow(&url).await;
    let error = end.unwrap_err();
    assert!(error.detail().contains("1011: the disk is full [2J"), "{error}");
    assert_eq!(within(task).await.unwrap(), (CLOSE, 1011u16.to_be_bytes().to_vec()));
}

#[tokio::test]
async fn an_end_without_close_is_no_end() {
    let connection = Err(ErrorKind::Connection);
    assert_eq!(follow_frames(frame(0x80 | TEXT, b"data")).await, (b"data".to_vec(), connection));
    assert_eq!(follow_frames(frame(TEXT, b"data")).await, (b"data".to_vec(), connection));
    assert_eq!(follow_frames(vec![0x80 | TEXT, 9, b'd']).await, (b"d".to_vec(), connection));
    assert_eq!(follow_frames(vec![]).await, (vec![], connection));
}

#[tokio::test]
async fn a_server_that_breaks_the_protocol_is_left() {
    for bad in [
        vec![0x80 | TEXT, 0x81, 1, 2, 3, 4, b'x'],
        vec![0xc0 | TEXT, 1, b'x'],
        vec![0x83, 1, b'x'],
        frame(0x80, b"continues nothing"),
        frame(0x80 | PING, &[0; 126]),
        frame(PING, b"x"),
    ] {
        let sent = [frame(0x80 | TEXT, b"data"), bad.clone()].concat();
        assert_eq!(follow_frames(sent).await, (b"data".to_vec(), Err(ErrorKind::Protocol)), "{bad:?}");
    }
    let huge = [&[0x80 | BINARY, 127][..], &(1u64 << 63).to_be_bytes()].concat();
    assert!(follow_frames(huge).await.1.is_err());
}

#[tokio::test]
async fn the_message_limit_holds() {
    let (url, task) = serve(async |mut peer| {
        peer.upgrade("").await;
        peer.send([frame(0x80 | BINARY, &[b'x'; 10]), frame(0x80 | BINARY, &[b'y'; 11])].concat()).await;
        peer.frame().await
    })
    .await;
    let client = Client::builder().max_message_size(10).build().unwrap();
    let mut follower = within(client.follow(url)).await.unwrap();
    let (data, end) = read(&mut follower).await;
    assert_eq!((data, end.unwrap_err().kind()), (vec![b'x'; 10], ErrorKind::TooLarge));
    assert_eq!(within(task).await.unwrap(), (CLOSE, 1009u16.to_be_bytes().to_vec()));
}

#[tokio::test]
async fn pings_are_answered_while_the_user_is_idle() {
    let (url, task) = serve(async |mut peer| {
        peer.upgrade("Stream-State: live\r\n").await;
        for n in 0..100u8 {
            peer.send(frame(0x80 | PING, &[n; 125])).await;
            assert_eq!(peer.frame().await, (PONG, vec![n; 125]));
        }
    })
    .await;
    let follower = within(client::follow(url)).await.unwrap();
    within(task).await.unwrap();
    drop(follower);
}

#[tokio::test]
async fn a_user_who_does_not_read_stops_the_reading() {
    let (url, task) = serve(async |mut peer| {
        peer.upgrade("").await;
        let block = frame(0x80 | BINARY, &vec![b'x'; 1 << 16]);
        let mut sent = 0;
        while let Ok(Ok(n)) = tokio::time::timeout(Duration::from_millis(300), peer.io.write(&block)).await {
            sent += n;
        }
        sent
    })
    .await;
    let _follower = within(client::follow(url)).await.unwrap();
    assert!(within(task).await.unwrap() < 64 << 20);
}

#[tokio::test]
async fn a_silent_server_of_ours_is_asked_and_then_given_up() {
    let (url, task) = serve(async |mut peer| {
        peer.upgrade("Stream-State: live\r\n").await;
        peer
    })
    .await;
    let mut follower = within(client::follow(url)).await.unwrap();
    let mut peer = within(task).await.unwrap();
    // From here on nothing but the silence takes time. (A limit of our own would end first.)
    tokio::time::pause();
    let error = follower.next_chunk().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    tokio::time::resume();
    assert_eq!(peer.frame().await, (PING, vec![]));
}

#[tokio::test]
async fn next_chunk_is_cancel_safe() {
    let (url, _task) = serve(async |mut peer| {
        peer.upgrade("").await;
        for n in 0..200u8 {
            peer.send(frame(0x80 | BINARY, &[n])).await;
            tokio::task::yield_now().await;
        }
        peer.send(close(1000, "")).await;
        peer.drain().await;
    })
    .await;
    let mut follower = within(client::follow(url)).await.unwrap();
    let mut data = Vec::new();
    within(async {
        loop {
            tokio::select! {
                biased;
                chunk = follower.next_chunk() => match chunk.unwrap() {
                    Some(chunk) => data.extend_from_slice(&chunk.bytes),
                    None => break,
                },
                () = tokio::task::yield_now() => {}
            }
        }
    })
    .await;
    assert_eq!(data, (0..200).collect::<Vec<u8>>());
}

#[tokio::test]
async fn reading_with_any_buffer_gives_the_same_bytes() {
    // Frames of many sizes, written in slices of many sizes, read into buffers of many sizes.
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    for round in 0..20 {
        let (mut expected, mut sent) = (Vec::new(), Vec::new());
        for _ in 0..random(40) {
            let len = if random(4) == 0 { random(70_000) } else { random(20) };
            let payload: Vec<u8> = (0..len).map(|_| random(256) as u8).collect();
            sent.extend(frame(0x80 | if random(2) == 0 { TEXT } else { BINARY }, &payload));
            if random(5) == 0 {
                sent.extend(frame(0x80 | PING, b"ping"));
            }
            expected.extend(payload);
        }
        sent.extend(close(1000, ""));
        let mut cuts = Vec::new();
        let mut rest = &sent[..];
        while !rest.is_empty() {
            let (cut, behind) = rest.split_at((1 + random(30_000)).min(rest.len()));
            cuts.push(cut.to_vec());
            rest = behind;
        }
        let (url, _task) = serve(async move |mut peer| {
            peer.upgrade("").await;
            for cut in cuts {
                peer.send(cut).await;
                tokio::task::yield_now().await;
            }
            peer.drain().await;
        })
        .await;
        let mut follower = within(client::follow(url)).await.unwrap();
        let mut data = Vec::new();
        loop {
            // Now and then a chunk in between: both ways may be mixed.
            if random(10) == 0 {
                match within(follower.next_chunk()).await.unwrap() {
                    Some(chunk) => data.extend_from_slice(&chunk.bytes),
                    None => break,
                }
                continue;
            }
            let mut buf = vec![0; 1 + random(if round % 2 == 0 { 7 } else { 5000 })];
            match within(follower.read(&mut buf)).await.unwrap() {
                0 => break,
                n => data.extend_from_slice(&buf[..n]),
            }
            assert_eq!(follower.offset(), data.len() as u64);
        }
        assert!(data == expected, "round {round}");
    }
}

#[tokio::test]
async fn a_follower_is_a_stream_whose_error_is_its_last_item() {
    for (state, expected) in [("finished", None), ("interrupted", Some(ErrorKind::Interrupted))] {
        let head = format!("HTTP/1.1 200 OK\r\nStream-State: {state}\r\nContent-Length: 6\r\n\r\nabcdef");
        let mut follower = within(client::follow(answer(head).await)).await.unwrap();
        // What an AsyncRead has begun to take, a stream goes on with.
        let mut first = [0; 2];
        within(follower.read_exact(&mut first)).await.unwrap();
        let mut items = within(follower.collect::<Vec<_>>()).await;
        let error = expected.map(|kind| assert_eq!(items.pop().unwrap().unwrap_err().kind(), kind));
        assert_eq!(error.is_some(), expected.is_some());
        let chunks: Vec<_> = items.into_iter().map(Result::unwrap).collect();
        assert_eq!(chunks.last().unwrap().next_offset, 6);
        assert_eq!(chunks.iter().flat_map(|chunk| chunk.bytes.clone()).collect::<Vec<u8>>(), b"cdef");
    }
}

#[tokio::test]
async fn a_follower_is_a_body_that_fails_where_the_follower_does() {
    for (state, expected) in [("finished", None), ("interrupted", Some(ErrorKind::Interrupted))] {
        let head = format!("HTTP/1.1 200 OK\r\nStream-State: {state}\r\nContent-Length: 6\r\n\r\nabcdef");
        let mut body = within(client::follow(answer(head).await)).await.unwrap().into_body();
        let (mut data, mut ended) = (Vec::new(), None);
        while let Some(frame) = within(body.frame()).await {
            match frame {
                Ok(frame) => data.extend(frame.into_data().unwrap()),
                Err(error) => ended = Some(error.kind()),
            }
        }
        assert_eq!((&*data, ended), (&b"abcdef"[..], expected));
    }
}

#[tokio::test]
async fn io_errors_hold_the_typed_error() {
    let url = answer("HTTP/1.1 200 OK\r\nStream-State: interrupted\r\nContent-Length: 3\r\n\r\nabc").await;
    let mut follower = within(client::follow(url)).await.unwrap();
    let mut data = Vec::new();
    let error = within(follower.read_to_end(&mut data)).await.unwrap_err();
    assert_eq!(data, b"abc");
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    assert_eq!(error.downcast::<Error>().unwrap().kind(), ErrorKind::Interrupted);
}
