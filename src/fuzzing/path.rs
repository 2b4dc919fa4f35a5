//! Paths and keys.

use std::path::{Component, Path};

use http::{Request, Uri};

use crate::error::ErrorKind;
use crate::key::Key;
use crate::server::intent::{Intent, Rules};

/// A path becomes the key that its decoded characters spell, or is refused because of them. A request for the path
/// reaches that key, behind a prefix at segment boundaries only.
pub fn path(data: &[u8]) -> bool {
    let Some((&prefix, path)) = data.split_first() else { return false };
    let path = String::from_utf8_lossy(path);
    check_key(&path, Key::new(&path).map_err(|error| error.kind()), Some(path.as_bytes()));
    let bare = path.strip_prefix('/').unwrap_or(&path);
    let decoded = decode(bare);
    let key = Key::from_url_path(&path).map_err(|error| error.kind());
    check_key(&path, key.clone(), decoded.as_deref());
    if let Ok(key) = &key {
        // A resource has one path, apart from redundant escapes: here all characters are escaped.
        let escaped: String = key.segments().map(escape).collect::<Vec<_>>().join("/");
        assert_eq!(Key::from_url_path(&escaped).expect("its own path").as_str(), key.as_str());
    }
    let (Ok(uri), true) = (Uri::try_from(&*path), path.starts_with('/')) else { return false };
    let prefix = ["", "/a", "/a/b", "/\u{e9}"][usize::from(prefix % 4)];
    let rules = Rules { mount: prefix.into(), plain: true, verb_from_method: false };
    let request = Request::builder().uri(uri.clone()).body(()).expect("a request");
    let path = uri.path();
    let rest = match path.split_at_checked(prefix.len()) {
        Some((start, rest)) if start == prefix && rest.starts_with('/') => Some(rest),
        _ => None,
    };
    let expected = rest.and_then(|rest| Key::from_url_path(rest).ok());
    let has_verb = uri.query().is_some_and(|query| query.contains("verb") || query.contains('%'));
    match rules.intent(&request) {
        _ if has_verb => {}
        Intent::Read { key } => assert_eq!(Some(key), expected),
        Intent::Pass => assert_eq!(expected, None),
        other => panic!("{other:?}"),
    }
    key.is_ok_and(|key| key.as_str() != bare) && !prefix.is_empty() && expected.is_some()
}

/// Checks the verdict on a name; `decoded` is `None` if it can't be decoded.
fn check_key(path: &str, verdict: Result<Key, ErrorKind>, decoded: Option<&[u8]>) {
    let name = decoded.and_then(|decoded| std::str::from_utf8(decoded).ok());
    let good = name.is_some_and(|name| {
        let segments: Vec<&str> = name.split('/').collect();
        name.len() <= 4096
            && segments.len() <= 128
            && segments.iter().all(|segment| (1..=255).contains(&segment.len()) && *segment != "." && *segment != "..")
            && !name.chars().any(|c| c == '\\' || matches!(c, '\0'..='\x1f' | '\x7f'..='\u{9f}'))
    });
    match verdict {
        Ok(key) => {
            assert!(good, "{path:?} became {key:?}");
            assert_eq!(Some(key.as_str()), name);
            // As a path it is below the root, with one component per segment.
            let components: Vec<_> = Path::new(key.as_str()).components().collect();
            assert_eq!(components.len(), key.segments().count());
            assert!(components.iter().all(|component| matches!(component, Component::Normal(_))));
        }
        Err(ErrorKind::PathTooLong) => assert!(!good && path.len() > 255, "{path:?}"),
        Err(ErrorKind::BadPath) => assert!(!good, "{path:?}"),
        Err(other) => panic!("{other:?}"),
    }
}

/// Decodes percent escapes. `None` for a malformed escape or an escaped slash.
fn decode(path: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::new();
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?].map(|digit| char::from(digit).to_digit(16));
                match (digits[0]? * 16 + digits[1]?) as u8 {
                    b'/' => return None,
                    byte => byte,
                }
            }
            byte => byte,
        });
    }
    Some(decoded)
}

fn escape(segment: &str) -> String {
    segment.bytes().map(|byte| format!("%{byte:02X}")).collect()
}
