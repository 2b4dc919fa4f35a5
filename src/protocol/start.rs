//! Where a follow begins.

/// Where a follower begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum StartPosition {
    #[default]
    Beginning,
    /// At this byte.
    Offset(u64),
    /// This many bytes before the end.
    Tail(u64),
    /// This many lines before the end.
    Lines(u64),
}
