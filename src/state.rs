//! What can be known of a resource: its life, its state, its length.

use std::fmt;
use std::time::SystemTime;

use crate::error::{ErrorKind, Result};
use crate::identity::Owner;
#[cfg(doc)]
use crate::storage::Append;

/// One life of a resource, from its creation to its deletion: an opaque token that never repeats.
///
/// Bytes of one life at one offset never change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Life(u128);

impl Life {
    /// A life from 128 bits that the storage chooses. It must never use them for another life of the same key.
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// A random life.
    ///
    /// # Errors
    /// [`Storage`](ErrorKind::Storage) if the system's random source fails.
    pub fn random() -> Result<Self> {
        let mut bits = [0; 16];
        getrandom::fill(&mut bits).map_err(crate::Error::storage)?;
        Ok(Self(u128::from_be_bytes(bits)))
    }

    /// The 128 bits.
    pub const fn to_bits(self) -> u128 {
        self.0
    }
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl std::str::FromStr for Life {
    type Err = crate::Error;

    /// The inverse of [`Display`](fmt::Display): 32 lowercase hexadecimal digits.
    fn from_str(text: &str) -> Result<Self> {
        let digits = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let bits = u128::from_str_radix(text, 16).ok().filter(|_| digits);
        let malformed = || crate::Error::new(ErrorKind::BadRequest).with_detail("a life is 32 hexadecimal digits");
        bits.map(Self).ok_or_else(malformed)
    }
}

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Life({self})")
    }
}

/// The state of a resource.
///
/// A resource is open while it is live, lost or parked, and closed once it is finished, interrupted or sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// An appender is attached.
    Live,
    /// The appender was lost and may come back: see [`Append::claim`].
    Lost,
    /// The appender left it open between two requests and will come back. Only this process knows this state: for the storage
    /// it is live, and after a restart it is lost.
    Parked,
    /// The last appender ended cleanly. The resource may be appended to again.
    Finished,
    /// The last appender was lost and did not come back. The resource may be appended to again.
    Interrupted,
    /// Finished for good: it can't be appended to.
    Sealed,
}

impl State {
    /// The name on the wire, as in the `Stream-State` header.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Lost => "lost",
            Self::Parked => "parked",
            Self::Finished => "finished",
            Self::Interrupted => "interrupted",
            Self::Sealed => "sealed",
        }
    }

    /// Whether the resource is whole: finished or sealed.
    pub const fn is_complete(self) -> bool {
        matches!(self, Self::Finished | Self::Sealed)
    }

    /// Whether more may be appended without a new appender: live, lost or parked.
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Live | Self::Lost | Self::Parked)
    }
}

impl std::str::FromStr for State {
    type Err = crate::Error;

    /// The inverse of [`as_str`](Self::as_str).
    fn from_str(name: &str) -> Result<Self> {
        let all = [Self::Live, Self::Lost, Self::Parked, Self::Finished, Self::Interrupted, Self::Sealed];
        let found = all.into_iter().find(|state| state.as_str() == name);
        found.ok_or_else(|| crate::Error::new(ErrorKind::BadRequest).with_detail("there is no such state"))
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is known of a resource at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stat {
    /// The life of the resource.
    pub life: Life,
    /// The committed length in bytes.
    pub len: u64,
    /// Its state.
    pub state: State,
    /// When bytes were last appended, if the storage knows.
    pub modified: Option<SystemTime>,
    /// The owner that [claimed](Append::claim) the resource and appended last in this life, if the storage keeps it.
    pub owner: Option<Owner>,
}

impl Stat {
    /// A stat without a modification time.
    pub const fn new(life: Life, len: u64, state: State) -> Self {
        Self { life, len, state, modified: None, owner: None }
    }

    /// Adds the modification time.
    #[must_use]
    pub const fn with_modified(mut self, at: Option<SystemTime>) -> Self {
        self.modified = at;
        self
    }

    /// Adds the owner.
    #[must_use]
    pub const fn with_owner(mut self, owner: Option<Owner>) -> Self {
        self.owner = owner;
        self
    }
}

/// How an appender ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum End {
    /// Cleanly: the resource is finished.
    Finished,
    /// Cleanly and for good: the resource is sealed.
    Sealed,
    /// The source of the bytes was lost and will not come back. A resource that was opened but not appended to stays as
    /// it was; one that was [lost](State::Lost) is interrupted from now on.
    Interrupted,
}

impl End {
    /// The state that this end leaves behind.
    pub const fn state(self) -> State {
        match self {
            Self::Finished => State::Finished,
            Self::Sealed => State::Sealed,
            Self::Interrupted => State::Interrupted,
        }
    }
}
