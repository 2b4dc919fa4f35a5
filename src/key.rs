//! The name of a resource, parsed once at the edge.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use percent_encoding::percent_decode_str;

use crate::error::{Error, ErrorKind, Result};

/// The longest key, in bytes.
const MAX_KEY: usize = 4096;
/// The longest segment of a key, in bytes: the limit of most file systems.
const MAX_SEGMENT: usize = 255;
/// The most segments of a key: for each a folder has to be created and made durable.
const MAX_SEGMENTS: usize = 128;

/// The name of a resource: `logs/build-7.txt`.
///
/// # Invariants
/// - One or more segments joined by single `/`, none at either end.
/// - No segment is empty, `.` or `..`, is longer than 255 bytes, or holds `\`, NUL or another control character.
/// - At most 4,096 bytes of UTF-8, and 128 segments.
///
/// So a key is a relative path that can't leave its folder, and two different keys never name the same path (on a
/// case-sensitive file system).
///
/// Cloning is cheap.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// A key of this name, without percent-decoding and without normalization.
    ///
    /// # Errors
    /// [`BadPath`](ErrorKind::BadPath) or [`PathTooLong`](ErrorKind::PathTooLong) where the invariants don't hold.
    pub fn new(name: &str) -> Result<Self> {
        if name.len() > MAX_KEY {
            return Err(ErrorKind::PathTooLong.into());
        }
        for (depth, segment) in name.split('/').enumerate() {
            if segment.is_empty() {
                return Err(bad("the path has an empty segment, or a slash at its end"));
            }
            if segment == "." || segment == ".." {
                return Err(bad("the path has a segment `.` or `..`"));
            }
            if segment.len() > MAX_SEGMENT || depth >= MAX_SEGMENTS {
                return Err(ErrorKind::PathTooLong.into());
            }
            if segment.chars().any(|c| c == '\\' || c.is_control()) {
                return Err(bad("the path has a backslash or a control character"));
            }
        }
        Ok(Self(name.into()))
    }

    /// The key that the path of a URL names, with or without its leading slash, percent-decoded once.
    ///
    /// An encoded slash is refused, so that each resource has one path.
    ///
    /// # Errors
    /// As [`Key::new`]; also for a stray percent sign and for bytes that are not UTF-8.
    pub fn from_url_path(path: &str) -> Result<Self> {
        // A path that decodes to an allowed key is not longer. Checked first, so that a huge path costs nothing.
        if path.len() > 3 * MAX_KEY + 1 {
            return Err(ErrorKind::PathTooLong.into());
        }
        let path = path.strip_prefix('/').unwrap_or(path);
        if !path.contains('%') {
            return Self::new(path);
        }
        let mut rest = path;
        while let Some(at) = rest.find('%') {
            let (Some(high), Some(low)) = (rest.as_bytes().get(at + 1), rest.as_bytes().get(at + 2)) else {
                return Err(bad("the path has a stray percent sign"));
            };
            if !high.is_ascii_hexdigit() || !low.is_ascii_hexdigit() {
                return Err(bad("the path has a stray percent sign"));
            }
            if *high == b'2' && low.eq_ignore_ascii_case(&b'f') {
                return Err(bad("the path has an encoded slash"));
            }
            rest = &rest[at + 3..];
        }
        let decoded = percent_decode_str(path).decode_utf8().map_err(|_| bad("the path is not UTF-8"))?;
        Self::new(&decoded)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name's segments, outermost first.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/')
    }
}

fn bad(why: &'static str) -> Error {
    Error::new(ErrorKind::BadPath).with_detail(why)
}

impl FromStr for Key {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Self::new(s)
    }
}

impl TryFrom<&str> for Key {
    type Error = Error;

    fn try_from(s: &str) -> Result<Self> {
        Self::new(s)
    }
}

impl TryFrom<String> for Key {
    type Error = Error;

    fn try_from(s: String) -> Result<Self> {
        Self::new(&s)
    }
}

impl TryFrom<&String> for Key {
    type Error = Error;

    fn try_from(s: &String) -> Result<Self> {
        Self::new(s)
    }
}

impl TryFrom<&Key> for Key {
    type Error = Error;

    fn try_from(key: &Key) -> Result<Self> {
        Ok(key.clone())
    }
}

impl AsRef<str> for Key {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(path: &str) -> Option<ErrorKind> {
        Key::from_url_path(path).err().map(|e| e.kind())
    }

    #[test]
    fn plain_paths_become_keys() {
        assert_eq!(Key::from_url_path("/a/b.txt").unwrap().as_str(), "a/b.txt");
        assert_eq!(Key::from_url_path("/a%20b/%C3%A9").unwrap().as_str(), "a b/é");
        assert_eq!(Key::from_url_path("/..a/b..").unwrap().as_str(), "..a/b..");
        assert_eq!(Key::from_url_path("/%2525").unwrap().as_str(), "%25", "decoded once, not twice");
        assert_eq!(Key::new("a%2Fb").unwrap().as_str(), "a%2Fb", "a name is not decoded");
        let key = Key::new("a b").unwrap();
        assert_eq!(
            (key.as_ref(), key.to_string(), format!("{key:?}")),
            ("a b", "a b".to_owned(), "\"a b\"".to_owned())
        );
    }

    #[test]
    fn odd_paths_are_refused() {
        for path in [
            "/",
            "",
            "//",
            "/a//b",
            "/a/./b",
            "/a/../b",
            "/..",
            "/a/",
            "/%2e%2e/x",
            "/%2e%2e%2fx",
            "/..%5cx",
            "/a\\b",
            "/a%2Fb",
            "/a%2fb",
            "/a%00b",
            "/a%0Ab",
            "/a%7Fb",
            "/a%",
            "/a%2",
            "/a%zz",
            "/a%ff",
            "/%C3%28",
            "/%+1",
        ] {
            assert_eq!(kind(path), Some(ErrorKind::BadPath), "{path:?}");
        }
        assert_eq!(kind(&format!("/{}", "x".repeat(256))), Some(ErrorKind::PathTooLong));
        assert_eq!(kind(&format!("/{}", "x".repeat(255))), None);
        assert_eq!(kind(&"/x".repeat(129)), Some(ErrorKind::PathTooLong));
        assert_eq!(kind(&"/x".repeat(128)), None);
        let long = format!("/{}", "x".repeat(254)).repeat(16);
        assert_eq!(kind(&long), None);
        assert_eq!(kind(&format!("{long}/{}", "x".repeat(20))), Some(ErrorKind::PathTooLong));
        // The same in three times as many characters.
        assert_eq!(kind(&long.replace('x', "%78")), None);
        assert_eq!(kind(&"/%78".repeat(4000)), Some(ErrorKind::PathTooLong));
        // What can't be a key for its length alone is not looked at.
        assert_eq!(kind(&format!("/{}", "%zz".repeat(4096))), Some(ErrorKind::BadPath));
        assert_eq!(kind(&format!("/{}x", "%zz".repeat(4096))), Some(ErrorKind::PathTooLong));
    }
}
