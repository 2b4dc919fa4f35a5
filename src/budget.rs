//! What there may be no more of, and who has how much of it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A number of things that there may be no more of.
#[derive(Debug)]
pub(crate) struct Budget {
    left: AtomicUsize,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(limit) })
    }

    /// Nothing of it yet.
    pub(crate) fn reservation(self: &Arc<Self>) -> Reservation {
        Reservation { of: Arc::clone(self), taken: 0 }
    }
}

/// A part of a [`Budget`], given back when dropped.
pub(crate) struct Reservation {
    of: Arc<Budget>,
    taken: usize,
}

impl Reservation {
    /// Takes so much more, if there is so much.
    pub(crate) fn grow(&mut self, more: usize) -> bool {
        // No other memory depends on the order.
        let taken = self.of.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(more));
        self.taken += if taken.is_ok() { more } else { 0 };
        taken.is_ok()
    }

    /// Sees to it that it has so much at least, if there is so much.
    pub(crate) fn grow_to(&mut self, least: usize) -> bool {
        self.grow(least.saturating_sub(self.taken))
    }

    /// Gives all that it has to another share of the same budget.
    pub(crate) fn move_to(&mut self, other: &mut Self) {
        other.taken += std::mem::take(&mut self.taken);
    }

    /// Gives everything back.
    pub(crate) fn clear(&mut self) {
        self.of.left.fetch_add(std::mem::take(&mut self.taken), Ordering::Relaxed);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.clear();
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reservation").field(&self.taken).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_43_what_is_given_back_can_be_taken_again() {
        let budget = Budget::new(10);
        let (mut one, mut two) = (budget.reservation(), budget.reservation());
        assert!(one.grow(6) && two.grow(4) && !two.grow(1));
        one.clear();
        assert!(two.grow(6) && !one.grow(1), "all of it, and no more");
        drop(two);
        assert!(one.grow(10) && !one.grow(usize::MAX));
        drop(one);
        assert_eq!(budget.left.load(Ordering::Relaxed), 10);
    }
}
