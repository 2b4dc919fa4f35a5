//! Clause 3: acknowledged bytes are visible everywhere.

use std::pin::pin;

use super::tools::{bytes, key, open, pattern, poll_times, read, soon};
use crate::state::{End, State};
use crate::storage::{Append, Open, Storage};

/// When an append returns, the other handle sees its bytes at once, by `stat` and by `read`. A sync returns at least the
/// length that was committed at its first poll, and appends continue while it runs. When a finish returns, the other handle
/// sees the same stat.
pub async fn clause_3_committed_bytes_are_visible_on_every_handle<S: Storage>(one: S, two: S) {
    let key = key("d/a");
    let mut appender = one.open(&key, Open::Create).await.unwrap();
    let mut len = 0;
    for size in [1usize, 0, 5, 100, 65_536, 1, 300_000] {
        let data = pattern(len, size);
        len += size as u64;
        assert_eq!(appender.append(&bytes(&data)).await.unwrap(), len);
        assert_eq!(appender.stat().len, len);
        let stat = two.stat(&key).await.unwrap().unwrap();
        assert_eq!((stat.len, stat.state, stat.life), (len, State::Live, appender.stat().life));
        assert!(read(&two, &key, stat.life, 0..len).await.unwrap() == pattern(0, len as usize), "{len}");
        assert_eq!(appender.sync().await.unwrap(), len);
    }
    // A sync covers the bytes that are committed when it is first polled, and appends continue meanwhile.
    let sync = appender.sync();
    len = appender.append(&bytes(pattern(len, 7))).await.unwrap();
    let mut sync = pin!(sync);
    let synced = match poll_times(sync.as_mut(), 1).await {
        Some(synced) => synced.unwrap(),
        None => {
            appender.append(&bytes(pattern(len, 9))).await.unwrap();
            let synced = soon("a sync", sync).await.unwrap();
            len += 9;
            synced
        }
    };
    assert!(synced == len || synced == len - 9, "{synced} of {len}");
    assert!(read(&two, &key, appender.stat().life, 0..len).await.unwrap() == pattern(0, len as usize));
    let stat = appender.finish(End::Finished).await.unwrap();
    assert_eq!((stat.len, stat.state), (len, State::Finished));
    let seen = two.stat(&key).await.unwrap().unwrap();
    assert_eq!((seen.life, seen.len, seen.state), (stat.life, stat.len, stat.state));
}

/// Both handles append to one resource in turns: each sees the other's bytes at once, and continues after them.
pub async fn clause_3_handles_that_take_turns_see_each_others_bytes<S: Storage>(one: S, two: S) {
    let key = key("d/turns");
    let mut len = 0;
    let mut life = None;
    for turn in 0..20usize {
        let (writes, reads) = if turn % 2 == 0 { (&one, &two) } else { (&two, &one) };
        let mut appender = open(writes, &key, Open::Continue).await;
        assert_eq!(appender.stat().len, len, "{turn}");
        let size = turn * 1000;
        assert_eq!(appender.append(&bytes(pattern(len, size))).await.unwrap(), len + size as u64, "{turn}");
        len += size as u64;
        if turn % 3 == 0 {
            assert_eq!(appender.sync().await.unwrap(), len, "{turn}");
        }
        let ended = appender.finish(End::Finished).await.unwrap();
        assert_eq!((ended.len, ended.state), (len, State::Finished), "{turn}");
        let life = *life.get_or_insert(ended.life);
        let stat = reads.stat(&key).await.unwrap().expect("it exists");
        assert_eq!((stat.life, stat.len, stat.state), (life, len, State::Finished), "{turn}");
        assert!(read(reads, &key, life, 0..len).await.unwrap() == pattern(0, len as usize), "{turn}");
    }
}
