//! What happens to resources, for listeners inside the process.

use crate::key::Key;
use crate::state::{Life, Stat};
#[cfg(doc)]
use crate::streams::Streams;

/// What happened to a resource, for whoever archives, indexes or bills: see [`Streams::events`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The first bytes of a resource are committed.
    Created {
        /// The resource.
        key: Key,
        /// Its life.
        life: Life,
    },
    /// An appender ended cleanly; everything is durable.
    Finished {
        /// The resource.
        key: Key,
        /// How it stands.
        stat: Stat,
    },
    /// An appender was lost.
    Interrupted {
        /// The resource.
        key: Key,
        /// How it stands.
        stat: Stat,
    },
    /// A resource was deleted.
    Deleted {
        /// The resource.
        key: Key,
    },
    /// The member was too slow and missed this many events; [`list`](Streams::list) tells how things stand.
    Missed(u64),
}
