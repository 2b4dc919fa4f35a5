//! Names with unusual characters, and listing by prefix.

use super::tools::{all, bytes, collect, key, write};
use crate::state::{End, State};
use crate::storage::{Append, Open, Storage};

async fn listed<S: Storage>(storage: &S, prefix: &str) -> String {
    let found = collect(storage.list(prefix)).await.unwrap();
    let mut found: Vec<String> = found.into_iter().map(|(key, _)| key.to_string()).collect();
    found.sort();
    found.join(" ")
}

/// [`Storage::list`] returns exactly the keys with the prefix, whatever their state, with their stats.
pub async fn list_returns_the_keys_with_the_prefix<S: Storage>(one: S, two: S) {
    for name in ["a", "ab", "b/a", "b/c/d", "bc", "ü/ö"] {
        write(&one, &key(name), name, End::Finished).await;
    }
    write(&one, &key("lost"), "x", End::Interrupted).await;
    let mut live = one.open(&key("b/live"), Open::Continue).await.unwrap();
    live.append(&bytes("x")).await.unwrap();
    assert_eq!(listed(&two, "").await, "a ab b/a b/c/d b/live bc lost ü/ö");
    assert_eq!(listed(&two, "a").await, "a ab");
    assert_eq!(listed(&two, "b").await, "b/a b/c/d b/live bc");
    assert_eq!(listed(&two, "b/").await, "b/a b/c/d b/live");
    assert_eq!(listed(&two, "b/c").await, "b/c/d");
    assert_eq!(listed(&two, "b/c/d").await, "b/c/d");
    assert_eq!(listed(&two, "b/c/d/").await, "");
    assert_eq!(listed(&two, "ü").await, "ü/ö");
    assert_eq!(listed(&two, "nothing").await, "");
    let stats = collect(two.list("")).await.unwrap();
    for (key, stat) in stats {
        let expected = match key.as_str() {
            "lost" => State::Interrupted,
            "b/live" => State::Live,
            _ => State::Finished,
        };
        assert_eq!(stat.state, expected, "{key}");
        assert_eq!(Some(stat.life), two.stat(&key).await.unwrap().map(|stat| stat.life), "{key}");
        assert_eq!(stat.len, if stat.state == State::Finished { key.as_str().len() as u64 } else { 1 }, "{key}");
    }
    live.finish(End::Finished).await.unwrap();
}

/// Names that differ only in case, in their Unicode normalization or in characters that are special elsewhere are
/// different resources.
pub async fn names_are_distinct<S: Storage>(one: S, two: S) {
    let names =
        ["a", "A", "a b", " a", "a%20b", "a%2Fb", "..a", "a..", "ä", "a\u{308}", "é/è", "-", "~", "*", "?", "$x"];
    for (at, name) in names.into_iter().enumerate() {
        write(&one, &key(name), &at.to_string(), End::Finished).await;
    }
    for (at, name) in names.into_iter().enumerate() {
        assert_eq!(all(&two, &key(name)).await.0, at.to_string().as_bytes(), "{name}");
    }
}
