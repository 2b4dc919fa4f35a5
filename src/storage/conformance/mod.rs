//! Tests of the [storage contract](super#the-contract), for implementors of [`Storage`]. Feature `conformance`.
//!
//! [`storage_conformance!`](crate::storage_conformance) generates the tests of each clause, with and without a sync after
//! each append. It needs a closure that creates an empty store with two handles, which stand for two nodes:
//!
//! ```no_run,test_harness
//! # use httpfstream::storage::MemoryStorage as MyStorage;
//! // tests/conformance.rs
//! httpfstream::storage_conformance! {
//!     mod my_storage {
//!         async || {
//!             let one = MyStorage::new(64 << 20);
//!             let two = one.clone(); // or another connection to the same place
//!             (one, two, ()) // third: a guard that lives as long as the test, such as a temporary folder
//!         };
//!         without owners = "the backend can't store them";
//!         without listing = "the backend can't";
//!     }
//! }
//! ```
//!
//! `cargo test` then lists the tests, those of a group that was left out as ignored, with the reason. Each test has its
//! own store and a time limit, and needs neither a runtime nor another dependency. Random choices are made from a seed
//! that a failed test prints; `HTTPFSTREAM_CONFORMANCE_SEED` sets it.
//!
//! [`clauses`] lists the same tests for other test runners, and each one is a function below.
//!
//! # Groups
//!
//! | Group | Tests | May be left out by a storage that |
//! |---|---|---|
//! | `contract` | exclusive appenders, fencing, visibility, lives, cancellation, ends, follows, followers of [`Streams`](crate::Streams) | (never) |
//! | `owners` | [`claim`](super::Append::claim), [`Storage::lost`] | stores no owners |
//! | `listing` | [`Storage::list`] | can't list |
//! | `names` | names with unusual characters | refuses some names |
//! | `cap` | [`Full`](crate::ErrorKind::Full) | holds more than a few hundred MiB |
//!
//! # What they do not check
//!
//! - That synced bytes survive a power loss, and committed ones a killed process. A storage on a disk needs tests that cut
//!   its power (as `tests/power.rs` and `tests/external/power.sh` of this crate do).
//! - The state of a store that is opened again after a restart.
//! - Errors of a backend (clause 5), except cancelled calls and `Full`.
//! - Two real nodes, unless the two handles are on two.
//! - A backend that hangs (clause 8), which is handled above the storage.
//!
//! The tests themselves are tested with stores that are broken on purpose, at least one for each clause.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests: a panic is how they fail")]

use std::fmt;
use std::time::Duration;

use futures_core::future::BoxFuture;

use super::Storage;

mod committed;
mod dropped;
mod ends;
mod exclusive;
mod failure;
mod fenced;
mod follow;
mod hub;
mod lives;
mod macros;
mod names;
mod owners;
mod synced;
mod tools;

pub use self::committed::{
    clause_3_committed_bytes_are_visible_on_every_handle, clause_3_handles_that_take_turns_see_each_others_bytes,
};
pub use self::dropped::{
    clause_6_a_dropped_appender_interrupts, clause_6_dropping_and_reopening_loses_nothing,
    clause_6_opening_without_appending_changes_nothing,
};
pub use self::ends::{
    clause_7_a_cancelled_finish_ends_or_interrupts, clause_7_a_finish_is_atomic, clause_7_ends_and_reopens,
};
pub use self::exclusive::{
    clause_1_a_cancelled_open_leaves_the_resource_free, clause_1_appenders_never_overlap,
    clause_1_create_continue_and_takeover, clause_1_of_many_opens_one_succeeds,
};
pub use self::failure::{
    clause_5_a_cancelled_append_leaves_a_prefix, clause_5_full_stores_nothing, clause_5_slices_are_appended_in_order,
};
pub use self::fenced::{
    clause_2_a_delete_fences, clause_2_a_fenced_appender_cannot_change_a_sealed_resource, clause_2_a_takeover_fences,
    clause_2_a_takeover_waits_for_calls_in_flight, clause_2_calls_of_a_fenced_appender_have_no_effect,
    clause_2_racing_takeovers_keep_exactly_the_acknowledged_bytes,
};
pub use self::follow::{
    follow_begins_at_the_given_length, follow_fails_when_the_life_is_over, follow_reports_growth_and_the_end,
    follow_through_a_burst_reaches_every_byte,
};
pub use self::hub::{
    hub_followers_get_every_byte_and_the_end, hub_followers_get_the_error_of_a_lost_or_deleted_resource,
};
pub use self::lives::{
    clause_4_a_file_holds_the_committed_bytes, clause_4_a_life_never_repeats, clause_4_another_life_is_not_found,
    clause_4_ranges_are_exact, clause_4_ranges_are_exact_while_it_grows,
};
pub use self::names::{list_returns_the_keys_with_the_prefix, names_are_distinct};
pub use self::owners::{
    clause_6_a_claimed_resource_is_lost_with_its_owner, clause_6_opening_without_appending_keeps_a_lost_resource_lost,
    clause_6_the_owner_is_that_of_the_last_append, clause_7_a_lost_resource_can_be_ended,
    clause_7_the_owner_is_known_after_the_end, lost_lists_exactly_the_lost_resources,
};
pub use self::synced::{Synced, SyncedAppend};

/// The time limit of one test.
const LONGEST: Duration = Duration::from_secs(300);

/// One test, for other test runners than [`storage_conformance!`](crate::storage_conformance).
pub struct Clause<S> {
    name: &'static str,
    group: &'static str,
    check: fn(S, S) -> BoxFuture<'static, ()>,
}

impl<S: Storage> Clause<S> {
    /// The name of its function.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The name of its [group](self#groups).
    pub fn group(&self) -> &'static str {
        self.group
    }

    /// Runs the test with two handles on one empty store. Needs a tokio runtime with its timer enabled.
    ///
    /// # Panics
    /// If the storage violates the clause, or hangs.
    pub async fn check(&self, one: S, two: S) {
        limited((self.check)(one, two)).await;
    }
}

impl<S> fmt::Debug for Clause<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clause").field("name", &self.name).field("group", &self.group).finish_non_exhaustive()
    }
}

/// All tests that [`storage_conformance!`](crate::storage_conformance) generates.
pub fn clauses<S: Storage>() -> Vec<Clause<S>> {
    let mut all = Vec::new();
    crate::__storage_conformance! { @each collect (all) }
    all
}

async fn limited(clause: impl Future<Output = ()>) {
    tokio::time::timeout(LONGEST, clause).await.expect("the clause takes too long");
}

/// Runs a test on a new store. For the macro.
#[doc(hidden)]
pub fn run<S, G>(make: impl AsyncFnOnce() -> (S, S, G), clause: impl AsyncFnOnce(S, S)) {
    // Two threads, so that races can happen.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(limited(async {
        let (one, two, guard) = make().await;
        clause(one, two).await;
        drop(guard);
    }));
}

/// As [`run`], with a sync after each append.
#[doc(hidden)]
pub fn run_synced<S, G>(make: impl AsyncFnOnce() -> (S, S, G), clause: impl AsyncFnOnce(Synced<S>, Synced<S>)) {
    run(
        async || {
            let (one, two, guard) = make().await;
            (Synced(one), Synced(two), guard)
        },
        clause,
    );
}
