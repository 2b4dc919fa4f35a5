//! Tests against a scripted peer.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::read::LARGE_READ;
use super::{Conn, Message, Streamed};
use crate::budget::Budget;
use crate::buffer::{ByteQueue, Segments};
use crate::websocket::frame::{Kind, Role, put_header};

/// The I/O of a connection to a scripted peer.
#[derive(Debug, Default)]
struct Peer {
    /// The results of the next reads; an empty one is the end of the stream. After the last, reads are pending.
    reads: VecDeque<io::Result<Vec<u8>>>,
    /// The number of bytes that writes still take before they are pending. `None`: writes take 0 bytes, which is an
    /// error.
    room: Option<usize>,
    written: Vec<u8>,
    /// Flushes are pending, as with TLS that buffers what is written.
    buffers: bool,
}

impl AsyncRead for Peer {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(mut read) = self.reads.pop_front().transpose()? else { return Poll::Pending };
        let rest = read.split_off(read.len().min(buf.remaining()));
        if !rest.is_empty() {
            self.reads.push_front(Ok(rest));
        }
        buf.put_slice(&read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Peer {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Some(room) = &mut self.room else { return Poll::Ready(Ok(0)) };
        let taken = buf.len().min(*room);
        *room -= taken;
        self.written.extend_from_slice(&buf[..taken]);
        if taken > 0 { Poll::Ready(Ok(taken)) } else { Poll::Pending }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.buffers { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A server's connection to a peer that sends these reads and takes any write.
fn conn(reads: impl IntoIterator<Item = Vec<u8>>) -> Conn<Peer> {
    let reads = reads.into_iter().map(Ok).collect();
    Conn::new(Peer { reads, room: Some(usize::MAX), ..Peer::default() }, Role::Server, 1 << 20)
}

/// A client's frame with a mask of zeros.
fn frame(first: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let mut out = BytesMut::new();
    put_header(&mut out, Kind::Binary, payload.len(), Some([0; 4]));
    out[0] = first;
    out.extend_from_slice(payload);
    out.to_vec()
}

const BINARY: u8 = 0x82;
const TEXT: u8 = 0x81;
const PONG: u8 = 0x8a;
const CLOSE: u8 = 0x88;
/// The first frame of a BINARY message, and its last.
const BEGIN: u8 = 0x02;
const END: u8 = 0x80;

fn one_read(frames: &[Vec<u8>]) -> [Vec<u8>; 1] {
    [frames.concat()]
}

/// Pings whose pongs take this many bytes altogether.
fn pings(pong_bytes: usize) -> Vec<Vec<u8>> {
    let mut lens = vec![125; pong_bytes / 127];
    lens.extend((pong_bytes % 127).checked_sub(2));
    lens.into_iter().map(|len| frame(0x89, vec![b'p'; len])).collect()
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Pending,
    Data(Vec<u8>),
    Text(Vec<u8>),
    Other(String),
}

fn data(bytes: impl AsRef<[u8]>) -> Outcome {
    Outcome::Data(bytes.as_ref().to_vec())
}

fn other(inbound: &str) -> Outcome {
    Outcome::Other(inbound.to_owned())
}

fn inbound(conn: &mut Conn<Peer>) -> Outcome {
    match conn.poll_inbound(&mut Context::from_waker(Waker::noop())) {
        Poll::Pending => Outcome::Pending,
        Poll::Ready(inbound) => Outcome::Other(format!("{inbound:?}")),
    }
}

fn message(conn: &mut Conn<Peer>, max_len: usize) -> Outcome {
    match conn.poll_message(&mut Context::from_waker(Waker::noop()), max_len) {
        Poll::Pending => Outcome::Pending,
        Poll::Ready(Message::Data(mut queue)) => Outcome::Data(queue.take_all().concat()),
        Poll::Ready(Message::Other(inbound)) => Outcome::Other(format!("{inbound:?}")),
    }
}

fn streamed(conn: &mut Conn<Peer>, max_len: usize) -> Outcome {
    match conn.poll_streamed(&mut Context::from_waker(Waker::noop()), max_len) {
        Poll::Pending => Outcome::Pending,
        Poll::Ready(Streamed::Data(mut queue)) => Outcome::Data(queue.take_all().concat()),
        Poll::Ready(Streamed::Text(text)) => Outcome::Text(text),
        Poll::Ready(Streamed::Other(inbound)) => Outcome::Other(format!("{inbound:?}")),
    }
}

/// Both ways to receive BINARY messages.
const RECEIVERS: [fn(&mut Conn<Peer>, usize) -> Outcome; 2] = [message, streamed];

/// The next batch, and the number of allocations that it took.
fn message_with_allocations(conn: &mut Conn<Peer>) -> (Segments, u64) {
    let cx = &mut Context::from_waker(Waker::noop());
    let mut taken = Segments::new();
    let counted = allocation_counter::measure(|| {
        if let Poll::Ready(Message::Data(mut queue)) = conn.poll_message(cx, 1 << 20) {
            taken = queue.take_all();
        }
    });
    (taken, counted.count_total)
}

#[test]
fn a_small_message_is_read_into_one_allocation() {
    for len in [6, 125, 126, 4000] {
        let (taken, allocations) = message_with_allocations(&mut conn(one_read(&[frame(BINARY, vec![b'x'; len])])));
        assert_eq!((taken.len(), taken[0].len()), (1, len));
        assert_eq!(allocations, 1, "{len}");
    }
}

#[test]
fn a_small_part_of_a_read_keeps_no_buffer_alive() {
    let (small, pongs) = (frame(BINARY, "12345678"), vec![frame(PONG, ""); 100].concat());
    for (read_large, frames) in [
        (false, [pongs.clone(), small.clone()]),
        (false, [small.clone(), frame(BEGIN, vec![b'x'; 3000])]),
        (true, [pongs, small.clone()]),
        (true, [Vec::new(), small]),
    ] {
        let mut taken = Segments::new();
        let counted = allocation_counter::measure(|| {
            let mut conn = conn(one_read(&frames));
            conn.read_large = read_large;
            while taken.is_empty() {
                taken = message_with_allocations(&mut conn).0;
            }
        });
        assert_eq!((taken.concat(), counted.bytes_current), (b"12345678".to_vec(), 8));
    }
}

#[test]
fn large_reads_reuse_their_buffer_and_release_it_when_idle() {
    let mut conn = conn([frame(BINARY, vec![b'x'; 5000]), frame(BINARY, vec![b'x'; 5000])]);
    conn.read_large = true;
    assert_eq!(message(&mut conn, 1), data([b'x'; 5000]));
    assert!(conn.read_large && conn.read_buf.capacity() > LARGE_READ / 2);
    assert_eq!(message(&mut conn, 1), data([b'x'; 5000]));
    assert_eq!(message(&mut conn, 1), Outcome::Pending);
    assert_eq!(conn.read_buf.capacity(), 0);
}

#[test]
fn data_is_batched_and_the_event_behind_it_is_returned_next() {
    for receive in RECEIVERS {
        let close = frame(CLOSE, b"\x03\xe8bye");
        let frames = [frame(BINARY, "a"), frame(PONG, ""), frame(BEGIN, "b"), frame(END, "c"), close];
        let mut conn = conn(one_read(&frames));
        assert_eq!(receive(&mut conn, 100), data("abc"));
        assert_eq!(receive(&mut conn, 100), other("Close(Some(1000))"));
        assert_eq!(conn.close_reason(), "bye");
        assert_eq!(receive(&mut conn, 100), Outcome::Pending);
        assert_eq!(conn.activity(), 1);
        conn.io.reads.extend([Ok(frame(PONG, "")), Ok(Vec::new())]);
        assert_eq!(receive(&mut conn, 100), other("Pong"));
        assert_eq!(receive(&mut conn, 100), other("Eof { between_messages: true }"));
    }
}

#[test]
fn a_batch_is_limited_but_holds_at_least_one_message() {
    let frames = [frame(BINARY, [b'a'; 10]), frame(BEGIN, [b'b'; 4]), frame(END, [b'c'; 6])];
    let (first, second) = ([b'a'; 10], [&[b'b'; 4][..], &[b'c'; 6]].concat());
    let mut all = conn(one_read(&frames));
    assert_eq!(message(&mut all, 20), data([&first[..], &second].concat()));
    for max_len in [19, 10, 1] {
        let mut each = conn(one_read(&frames));
        assert_eq!(message(&mut each, max_len), data(first), "{max_len}");
        assert_eq!(message(&mut each, max_len), data(&second), "{max_len}");
        assert_eq!(message(&mut each, max_len), Outcome::Pending);
    }
    // Streamed data ignores message boundaries.
    let mut stream = conn(one_read(&frames));
    assert_eq!(streamed(&mut stream, 14), data([&first[..], b"bbbb"].concat()));
    assert_eq!(streamed(&mut stream, 14), data(b"cccccc"));
}

/// A message that fills a small read, after which the reader expects more.
static LONG: [u8; 20_000] = [b'l'; 20_000];

#[test]
fn after_a_full_read_a_batch_reads_on() {
    for receive in RECEIVERS {
        let reads = || [frame(BINARY, LONG), frame(BINARY, "a"), frame(BINARY, "b")];
        let max_len = LONG.len() + 64 * 1024;
        let mut conn = conn(reads());
        assert_eq!(receive(&mut conn, max_len), data([&LONG[..], b"a"].concat()));
        assert_eq!(conn.activity(), 3, "two reads for the long message");
        // That read was not full, so the batch ended.
        assert_eq!(receive(&mut conn, max_len), data("b"));
        assert_eq!(conn.activity(), 4);
        conn.io.reads.extend(reads().map(Ok));
        assert_eq!(receive(&mut conn, max_len - 1), data(LONG), "there is no room for another large read");
        assert_eq!(receive(&mut conn, max_len), data("a"));
    }
}

#[test]
fn an_end_behind_a_batch_is_returned_next() {
    for receive in RECEIVERS {
        for (rest, expected) in [("", "Eof { between_messages: true }"), ("\u{2}", "Eof { between_messages: false }")] {
            let mut conn = conn([[frame(BINARY, LONG), rest.into()].concat(), Vec::new()]);
            assert_eq!(receive(&mut conn, 1 << 20), data(LONG));
            assert_eq!(conn.activity(), 2, "an end is no activity");
            assert_eq!(receive(&mut conn, 1 << 20), other(expected));
        }
        let mut conn = conn([frame(BINARY, LONG)]);
        conn.io.reads.push_back(Err(io::ErrorKind::ConnectionReset.into()));
        assert_eq!(receive(&mut conn, 1 << 20), data(LONG));
        assert_eq!(receive(&mut conn, 1 << 20), other("Broken(Kind(ConnectionReset))"));
    }
    let mut cut = conn([frame(BEGIN, "a"), Vec::new()]);
    assert_eq!(message(&mut cut, 1), other("Eof { between_messages: false }"));
}

#[test]
fn reading_stops_while_over_4_kib_of_pongs_are_queued() {
    let mut flood = pings(4096);
    flood.extend([frame(0x89, ""), frame(CLOSE, "")]);
    let mut conn = conn(flood);
    conn.io.room = Some(0);
    assert_eq!(inbound(&mut conn), Outcome::Pending);
    assert_eq!((conn.io.reads.len(), conn.out().len()), (1, 4098));
    conn.io.room = Some(usize::MAX);
    assert_eq!(inbound(&mut conn), other("Close(None)"));
    assert_eq!(conn.io.written.len(), 4098);
    conn.io.reads.extend(pings(4096).into_iter().map(Ok));
    conn.io.room = Some(0);
    assert_eq!(inbound(&mut conn), Outcome::Pending);
    assert!(conn.io.reads.is_empty(), "written pongs no longer count");
}

#[test]
fn a_batch_stops_reading_for_queued_pongs_too() {
    for receive in RECEIVERS {
        for (pong_bytes, expected) in [(4096, data([&LONG[..], b"a"].concat())), (4098, data(LONG))] {
            let mut conn = conn([[vec![frame(BINARY, LONG)], pings(pong_bytes)].concat().concat(), frame(BINARY, "a")]);
            conn.io.room = Some(0);
            assert_eq!(receive(&mut conn, 1 << 20), expected, "{pong_bytes}");
            assert_eq!(conn.out().len(), pong_bytes);
        }
    }
}

#[test]
fn streamed_text_is_returned_whole_and_limited_to_16_kib() {
    let text = |len: usize| [frame(0x01, vec![b't'; len - 9000]), frame(END, [b't'; 9000])].concat();
    let mut conn = conn([frame(BINARY, "a"), text(16 * 1024), frame(TEXT, ""), text(16 * 1024 + 1)]);
    assert_eq!(streamed(&mut conn, 100), data("a"));
    assert_eq!(streamed(&mut conn, 100), Outcome::Text(vec![b't'; 16 * 1024]));
    assert_eq!(streamed(&mut conn, 100), Outcome::Text(Vec::new()));
    let Outcome::Other(refusal) = streamed(&mut conn, 100) else { panic!("not refused") };
    assert!(refusal.contains("1009"), "{refusal}");
}

#[test]
fn fault_43_a_message_is_charged_beyond_64_kib_until_the_next_call() {
    let budget = Budget::new(1000);
    let free = |bytes| {
        let mut share = budget.reservation();
        share.grow(bytes) && !share.grow(1)
    };
    let begin = frame(BEGIN, vec![b'm'; 64 * 1024 - 1]);
    let mut conn = conn([begin.clone(), frame(0x00, "m")]).with_budget(&budget);
    assert_eq!(message(&mut conn, 1), Outcome::Pending);
    assert!(free(1000));
    conn.io.reads.push_back(Ok(frame(0x00, [b'm'; 600])));
    assert_eq!(message(&mut conn, 1), Outcome::Pending);
    assert!(free(400));
    conn.io.reads.push_back(Ok(frame(END, "")));
    assert_eq!(message(&mut conn, 1), data(vec![b'm'; 64 * 1024 + 600]));
    assert!(free(400), "the message is still in memory");
    assert_eq!(message(&mut conn, 1), Outcome::Pending);
    assert!(free(1000));
    // A refusal comes after the data before it, if there is any.
    let large = [begin, frame(0x00, [b'm'; 1002])].concat();
    conn.io.reads.push_back(Ok(frame(BINARY, LONG)));
    conn.io.reads.push_back(Ok(large.clone()));
    assert_eq!(message(&mut conn, 1 << 20), data(LONG));
    for _ in 0..2 {
        let Outcome::Other(refusal) = message(&mut conn, 1 << 20) else { panic!("not refused") };
        assert!(refusal.contains("1013"), "{refusal}");
        conn.message = ByteQueue::default();
        conn.arriving.as_mut().unwrap().clear();
        conn.io.reads.push_back(Ok(frame(0x00, vec![b'm'; 64 * 1024 + 1001])));
    }
}

#[test]
fn only_payloads_of_at_least_half_a_large_read_are_shared() {
    for (len, copied) in [(10_000, true), (32 * 1024 - 1, true), (32 * 1024, false), (60_000, false)] {
        let payload = Bytes::from(vec![0; len]);
        let mut conn = conn([]);
        assert!(conn.store_fragment(&payload).is_none());
        assert_eq!((payload.is_unique(), conn.message.len()), (copied, len));
    }
}

#[test]
fn is_flushed_once_the_io_has_flushed() {
    let mut conn = conn([frame(0x89, "p")]);
    assert!(conn.is_flushed());
    conn.queue(Kind::Text, b"t");
    assert!(!conn.is_flushed());
    conn.io.buffers = true;
    assert_eq!(inbound(&mut conn), Outcome::Pending);
    assert!(conn.out().is_empty() && !conn.is_flushed());
    conn.io.buffers = false;
    assert_eq!(inbound(&mut conn), Outcome::Pending);
    assert!(conn.is_flushed());
    assert_eq!(conn.io.written, [0x81, 1, b't', 0x8a, 1, b'p']);
}

#[test]
fn write_shared_queues_what_the_socket_does_not_take() {
    let cx = &mut Context::from_waker(Waker::noop());
    let segments = [Bytes::from(vec![b'a'; 3]), Bytes::from(vec![b'b'; 9_000]), Bytes::from_static(b"c")];
    let all = segments.concat();
    for frame in [&segments[..], &segments[..1]] {
        let all = frame.concat();
        for room in [all.len(), all.len() - 1, 5.min(all.len() - 1), 3, 2, 0] {
            let mut conn = conn([]);
            conn.io.room = Some(room);
            assert_eq!(conn.write_shared(cx, frame), room == all.len(), "{room} of {}", all.len());
            assert_eq!((conn.io.written.len(), conn.out().len()), (room, all.len() - room));
            // The next frame goes behind the queue.
            assert!(!conn.write_shared(cx, &[Bytes::from_static(b"next")]));
            conn.io.room = Some(usize::MAX);
            assert_eq!(inbound(&mut conn), Outcome::Pending);
            assert!(conn.io.written == [&all[..], b"next"].concat() && conn.is_flushed(), "{room}");
        }
    }
    // Behind a queue that isn't empty, and on a socket that takes no more writes.
    let mut conn = conn([]);
    conn.queue(Kind::Ping, b"");
    assert!(conn.write_shared(cx, &segments));
    assert_eq!(conn.io.written, [&[0x89, 0], &all[..]].concat());
    conn.io.room = None;
    assert!(!conn.write_shared(cx, &segments) && conn.out().len() == all.len());
    // Bytes that TLS buffers are not flushed.
    conn = self::conn([]);
    conn.io.buffers = true;
    assert!(!conn.write_shared(cx, &segments) && conn.out().is_empty() && !conn.is_flushed());
}

// The paused clock advances when no task can run.
#[tokio::test(start_paused = true)]
async fn a_flush_writes_everything_and_fails_when_a_step_stalls() {
    let stall = Duration::from_secs(10);
    let mut conn = conn([]);
    for _ in 0..100 {
        conn.queue(Kind::Binary, &[0; 1000]);
    }
    conn.flush(stall).await.unwrap();
    assert_eq!((conn.io.written.len(), conn.is_flushed()), (100 * 1004, true));
    for (room, buffers, kind) in [
        (Some(5), false, io::ErrorKind::TimedOut),
        (Some(6), true, io::ErrorKind::TimedOut),
        (None, false, io::ErrorKind::WriteZero),
    ] {
        (conn.io.room, conn.io.buffers) = (room, buffers);
        conn.queue(Kind::Binary, &[0; 4]);
        let start = tokio::time::Instant::now();
        assert_eq!(conn.flush(stall).await.unwrap_err().kind(), kind);
        assert_eq!(start.elapsed() >= stall, kind == io::ErrorKind::TimedOut);
        conn.out = ByteQueue::default();
    }
}

#[tokio::test(start_paused = true)]
async fn a_close_frame_is_sent_and_the_rest_is_read() {
    let (ours, mut theirs) = tokio::io::duplex(1024);
    let hour = Duration::from_secs(3600);
    let closing = tokio::spawn(Conn::new(ours, Role::Server, 1).close(1000, "bye", hour));
    theirs.write_all(&[0; 10_000]).await.unwrap();
    let mut got = Vec::new();
    theirs.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"\x88\x05\x03\xe8bye");
    assert!(!closing.is_finished());
    drop(theirs);
    closing.await.unwrap();
    // Closing is limited in time.
    let (ours, _theirs) = tokio::io::duplex(1024);
    let start = tokio::time::Instant::now();
    Conn::new(ours, Role::Server, 1).close(1000, "bye", hour).await;
    assert_eq!(start.elapsed().as_secs(), 3600);
}
