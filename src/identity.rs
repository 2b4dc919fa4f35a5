//! The identity of an appender: its secret name, and the hash of it that is stored.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::error::{Error, ErrorKind, Result};

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
/// The characters that 128 random bits need.
const SHORTEST: usize = 22;
const LONGEST: usize = 128;

/// The secret name of an appender (`Appender-Id` on the wire). An appender that presents it again may continue where the
/// one before it was.
///
/// It is 22 to 128 characters of `A-Z a-z 0-9 - _` with at least 128 random bits, so that nobody can guess it. It is a
/// credential: [`Debug`](fmt::Debug) doesn't show it, and storages keep only a hash.
///
/// ```
/// use httpfstream::AppenderId;
///
/// let id = AppenderId::random()?;
/// assert_eq!(id.as_str().parse::<AppenderId>()?, id);
/// assert!("too-short".parse::<AppenderId>().is_err());
/// # Ok::<(), httpfstream::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct AppenderId(Box<str>);

impl AppenderId {
    /// A new id of 144 random bits.
    ///
    /// # Errors
    /// [`Storage`](ErrorKind::Storage) if the system's random source fails.
    pub fn random() -> Result<Self> {
        let mut bits = [0; 24];
        getrandom::fill(&mut bits).map_err(Error::storage)?;
        Ok(Self(bits.iter().map(|bits| char::from(ALPHABET[usize::from(bits % 64)])).collect()))
    }

    /// The id itself, for the wire or for a file that only its owner can read.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AppenderId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if (SHORTEST..=LONGEST).contains(&text.len()) && text.bytes().all(|byte| ALPHABET.contains(&byte)) {
            return Ok(Self(text.into()));
        }
        Err(Error::new(ErrorKind::BadRequest).with_detail("an appender id has 22 to 128 characters of A-Z a-z 0-9 - _"))
    }
}

impl fmt::Debug for AppenderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AppenderId(…)")
    }
}

/// The appender that a resource is kept for if it is lost: a hash of an [`AppenderId`] and of the principal that the
/// application named.
///
/// Owners are compared in constant time.
#[derive(Clone, Copy)]
pub struct Owner([u8; 32]);

impl Owner {
    /// The owner of a resumable upload without an id: any appender without an id may continue it.
    pub const ANYONE: Self = Self([0; 32]);

    /// The owner for an id, and for a principal if there is one ([`Grant::principal`](crate::Grant::principal)).
    pub fn new(id: &AppenderId, principal: Option<&str>) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"httpfstream appender\0");
        hash.update(id.as_str());
        if let Some(principal) = principal {
            hash.update(b"\0");
            hash.update(principal);
        }
        Self(hash.finalize().into())
    }

    /// The owner that a storage has kept as these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes for a storage to keep.
    pub const fn to_bytes(self) -> [u8; 32] {
        self.0
    }
}

impl PartialEq for Owner {
    fn eq(&self, other: &Self) -> bool {
        std::hint::black_box(self.0.iter().zip(&other.0).fold(0, |differs, (a, b)| differs | (a ^ b))) == 0
    }
}

impl Eq for Owner {}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Owner(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_random_checked_and_hidden() {
        let (one, two) = (AppenderId::random().unwrap(), AppenderId::random().unwrap());
        assert_ne!(one, two);
        assert_eq!(one.as_str().parse::<AppenderId>().unwrap(), one);
        assert_eq!(format!("{one:?} {:?}", Owner::new(&one, None)), "AppenderId(…) Owner(…)");
        for bad in ["", &"a".repeat(21), &"a".repeat(129), &format!("{}=", "a".repeat(30)), &"é".repeat(20)] {
            assert_eq!(bad.parse::<AppenderId>().unwrap_err().kind(), ErrorKind::BadRequest, "{bad}");
        }
    }

    #[test]
    fn an_owner_is_its_id_and_its_principal() {
        let (one, two) = (AppenderId::random().unwrap(), AppenderId::random().unwrap());
        assert_eq!(Owner::new(&one, Some("ann")), Owner::new(&one, Some("ann")));
        for other in [Owner::new(&two, Some("ann")), Owner::new(&one, Some("bob")), Owner::new(&one, None)] {
            assert_ne!(Owner::new(&one, Some("ann")), other);
        }
    }
}
