//! How far an open resource has come.

use crate::error::ErrorKind;
use crate::state::State;

/// The committed length, which followers wait for, and the phase of the resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) len: u64,
    pub(crate) phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// An appender is attached.
    Live,
    /// The appender was lost and may come back.
    Lost,
    /// The appender left the resource open and will come back.
    Parked,
    /// The appender ended; this is the resource's final state.
    Ended(State),
    /// The resource was cut off before its appender ended: the storage failed, the resource was deleted, or the server
    /// shuts down.
    Cut(ErrorKind),
}

impl Phase {
    /// Whether more bytes may come.
    pub(crate) fn is_open(self) -> bool {
        matches!(self, Self::Live | Self::Lost | Self::Parked)
    }

    /// The state that is reported. A cut resource is reported as lost.
    pub(crate) fn state(self) -> State {
        match self {
            Self::Live => State::Live,
            Self::Lost | Self::Cut(_) => State::Lost,
            Self::Parked => State::Parked,
            Self::Ended(state) => state,
        }
    }
}
