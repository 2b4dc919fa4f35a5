//! The start position of a follower.

/// Where a follower begins to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum StartPosition {
    /// At the first byte.
    #[default]
    Beginning,
    /// At this byte.
    Offset(u64),
    /// This many bytes before the end.
    Tail(u64),
    /// This many lines before the end.
    Lines(u64),
}
