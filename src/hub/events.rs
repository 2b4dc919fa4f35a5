//! What happens to resources, for subscribers inside the process.

use crate::key::Key;
use crate::state::{Life, Stat};
#[cfg(doc)]
use crate::streams::Streams;

/// What happened to a resource, for archiving, indexing or billing: see [`Streams::events`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The first bytes of a resource were committed.
    Created {
        /// The resource.
        key: Key,
        /// Its life.
        life: Life,
    },
    /// An appender finished or sealed a resource; all its bytes are durable.
    Finished {
        /// The resource.
        key: Key,
        /// Its length and state.
        stat: Stat,
    },
    /// An appender was lost and did not come back.
    Interrupted {
        /// The resource.
        key: Key,
        /// Its length and state.
        stat: Stat,
    },
    /// A resource was deleted.
    Deleted {
        /// The resource.
        key: Key,
    },
    /// The subscriber was too slow and missed this many events. [`list`](Streams::list) shows the current state.
    Missed(u64),
}
