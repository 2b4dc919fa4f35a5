//! Tests of the [storage contract](super#the-contract), for whoever implements [`Storage`]. Feature `conformance`.
//!
//! [`storage_conformance!`](crate::storage_conformance) makes one test of each clause, with and without syncs in
//! between. What has to be written is how to make an empty store with two handles, which stand for two nodes:
//!
//! ```no_run,test_harness
//! # use httpfstream::storage::MemoryStorage as MyStorage;
//! // tests/conformance.rs
//! httpfstream::storage_conformance! {
//!     mod my_storage {
//!         async || {
//!             let one = MyStorage::new(64 << 20);
//!             let two = one.clone(); // or another connection to the same place
//!             (one, two, ()) // third: what has to live as long as the test, such as a temporary folder
//!         };
//!         without owners = "the backend has no place for them";
//!         without listing = "the backend can't";
//!     }
//! }
//! ```
//!
//! `cargo test` then shows a test for each clause, and for those of a group that was left out that they are ignored, and
//! why. Each test has a store of its own and a time limit; it needs no runtime and no further dependency. Random
//! choices are made from a seed that a failed test prints; `HTTPFSTREAM_CONFORMANCE_SEED` sets it.
//!
//! [`clauses`] lists the same for those who run tests by other means, and each is a function of its own below.
//!
//! # Groups
//!
//! | Group | Clauses of | May be left out by a storage that |
//! |---|---|---|
//! | `contract` | exclusive appenders, fencing, visibility, lives, cancellation, ends, follows, followers of [`Streams`](crate::Streams) | nobody |
//! | `owners` | [`claim`](super::Append::claim), [`Storage::lost`] | keeps no owners |
//! | `listing` | [`Storage::list`] | can't list |
//! | `names` | names with unusual characters | refuses some names |
//! | `cap` | [`Full`](crate::ErrorKind::Full) | is not full at some hundred MiB |
//!
//! # What it does not check
//!
//! - That what was synced survives a power loss and what was committed a killed process: whoever has a disk has to cut
//!   its power (`tests/power.rs` and `tests/external/power.sh` of this crate do).
//! - What a store looks like when it is opened again after a restart.
//! - Errors of a backend (clause 5), but for cancelled calls and `Full`.
//! - Two real nodes, unless the two handles are that.
//! - A backend that hangs (clause 8), which is the hub's to bear.
//!
//! That it can fail is tried with stores that are broken on purpose, at least one for each clause.
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
    clause_3_committed_is_visible_on_every_handle, clause_3_handles_that_take_turns_see_each_other,
};
pub use self::dropped::{
    clause_6_dropped_and_reopened_loses_nothing, clause_6_dropped_is_interrupted, clause_6_untouched_is_as_it_was,
};
pub use self::ends::{
    clause_7_a_finish_is_atomic, clause_7_a_finish_that_is_dropped_is_one_or_the_other, clause_7_ends_and_reopens,
};
pub use self::exclusive::{
    clause_1_a_cancelled_open_leaves_it_free, clause_1_create_continue_and_takeover,
    clause_1_of_many_opens_one_succeeds, clause_1_whoever_is_let_in_is_alone,
};
pub use self::failure::{
    clause_5_a_cancelled_append_leaves_a_prefix, clause_5_full_leaves_nothing,
    clause_5_slices_are_appended_in_order_and_large_ones_too,
};
pub use self::fenced::{
    clause_2_a_delete_fences, clause_2_a_takeover_fences, clause_2_a_takeover_waits_for_what_is_in_flight,
    clause_2_racing_takeovers_keep_exactly_what_they_acknowledged, clause_2_the_fenced_can_do_no_harm_after_the_end,
    clause_2_zombies_have_no_effect,
};
pub use self::follow::{
    follow_begins_where_it_is_told, follow_fails_when_the_life_is_over, follow_tells_of_growth_and_of_the_end,
    follow_through_a_burst_leads_to_every_byte,
};
pub use self::hub::{hub_followers_are_told_of_a_cut, hub_followers_get_every_byte_and_the_end};
pub use self::lives::{
    clause_4_a_file_holds_what_is_committed, clause_4_a_life_never_repeats, clause_4_another_life_is_not_found,
    clause_4_ranges_are_exact, clause_4_ranges_are_exact_while_it_grows,
};
pub use self::names::{list_has_the_prefix, names_are_told_apart};
pub use self::owners::{
    clause_6_an_untouched_release_leaves_the_lost_lost, clause_6_claimed_and_dropped_is_lost_with_its_owner,
    clause_6_the_owner_is_whoever_appended_last, clause_7_a_lost_one_ends_as_it_is_told,
    clause_7_who_ended_it_is_known, lost_lists_exactly_the_lost,
};
pub use self::synced::{Synced, SyncedAppend};

/// How long one clause may take on one store.
const LONGEST: Duration = Duration::from_secs(300);

/// One clause, for whoever runs tests by other means than [`storage_conformance!`](crate::storage_conformance).
pub struct Clause<S> {
    name: &'static str,
    group: &'static str,
    check: fn(S, S) -> BoxFuture<'static, ()>,
}

impl<S: Storage> Clause<S> {
    /// The name, which is that of its function.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The [group](self#groups).
    pub fn group(&self) -> &'static str {
        self.group
    }

    /// Checks the clause on two handles on one store that is empty. Needs a tokio runtime with its timer.
    ///
    /// # Panics
    /// If the storage doesn't keep the clause, or hangs.
    pub async fn check(&self, one: S, two: S) {
        limited((self.check)(one, two)).await;
    }
}

impl<S> fmt::Debug for Clause<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clause").field("name", &self.name).field("group", &self.group).finish_non_exhaustive()
    }
}

/// All clauses, as [`storage_conformance!`](crate::storage_conformance) tests them.
pub fn clauses<S: Storage>() -> Vec<Clause<S>> {
    let mut all = Vec::new();
    crate::__storage_conformance! { @each collect (all) }
    all
}

async fn limited(clause: impl Future<Output = ()>) {
    tokio::time::timeout(LONGEST, clause).await.expect("the clause takes too long");
}

/// Runs a clause on a store that is made for it. For the macro.
#[doc(hidden)]
pub fn run<S, G>(make: impl AsyncFnOnce() -> (S, S, G), clause: impl AsyncFnOnce(S, S)) {
    // Two threads: what races has to be able to.
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
