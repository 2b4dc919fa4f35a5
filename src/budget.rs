//! A shared resource budget.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A limit on a shared quantity: bytes, connections, followers.
#[derive(Debug)]
pub(crate) struct Budget {
    free: AtomicUsize,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { free: AtomicUsize::new(limit) })
    }

    /// An empty reservation.
    pub(crate) fn reservation(self: &Arc<Self>) -> Reservation {
        Reservation { budget: Arc::clone(self), amount: 0 }
    }
}

/// A share of a [`Budget`], returned when dropped.
pub(crate) struct Reservation {
    budget: Arc<Budget>,
    amount: usize,
}

impl Reservation {
    /// Reserves `amount` more. Returns whether the budget had it; otherwise nothing changes.
    pub(crate) fn grow(&mut self, amount: usize) -> bool {
        // Relaxed: the counter guards no other memory.
        let relaxed = Ordering::Relaxed;
        let reserved = self.budget.free.fetch_update(relaxed, relaxed, |free| free.checked_sub(amount)).is_ok();
        self.amount += if reserved { amount } else { 0 };
        reserved
    }

    /// Grows to at least `total`. Returns whether the budget had it; otherwise nothing changes.
    pub(crate) fn grow_to(&mut self, total: usize) -> bool {
        self.grow(total.saturating_sub(self.amount))
    }

    /// Moves the whole amount to another reservation of the same budget.
    pub(crate) fn move_to(&mut self, other: &mut Self) {
        other.amount += std::mem::take(&mut self.amount);
    }

    /// Returns the whole amount to the budget.
    pub(crate) fn clear(&mut self) {
        self.budget.free.fetch_add(std::mem::take(&mut self.amount), Ordering::Relaxed);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.clear();
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reservation").field(&self.amount).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_43_returned_amounts_can_be_reserved_again() {
        let budget = Budget::new(10);
        let (mut one, mut two) = (budget.reservation(), budget.reservation());
        assert!(one.grow(6) && two.grow(4) && !two.grow(1));
        one.clear();
        assert!(two.grow(6) && !one.grow(1), "everything that was returned, and no more");
        drop(two);
        assert!(one.grow(10) && !one.grow(usize::MAX));
        drop(one);
        assert_eq!(budget.free.load(Ordering::Relaxed), 10);
    }
}
