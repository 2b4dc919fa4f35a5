//! The macro that makes the tests, and the list of all clauses.

/// Makes a module with one test for each clause of the [storage contract](crate::storage#the-contract), and in it a
/// module `synced` with the same where each append is followed by a sync.
///
/// The expression is an async closure that makes an empty store: two handles on it that stand for two nodes, and what
/// has to live as long as the test, or `()`. `without` leaves out a [group](crate::storage::conformance#groups), by its
/// name and with the reason: its tests are then ignored. See [`conformance`](crate::storage::conformance).
#[macro_export]
macro_rules! storage_conformance {
    ($(#[$attribute:meta])* mod $name:ident { $make:expr; $(without $group:ident = $why:literal;)* }) => {
        $($crate::__storage_conformance! { @known $group })*
        $(#[$attribute])*
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            $crate::__storage_conformance! { @each tests (run [$($group $why)*] $make) }

            mod synced {
                #[allow(unused_imports)]
                use super::*;

                $crate::__storage_conformance! { @each tests (run_synced [$($group $why)*] $make) }
            }
        }
    };
}

/// What [`storage_conformance`] and [`clauses`] are made of.
#[doc(hidden)]
#[macro_export]
macro_rules! __storage_conformance {
    // The one list of all clauses: `$then` is done with each group.
    (@each $then:ident $with:tt) => {
        $crate::__storage_conformance! { @$then contract $with
            clause_1_of_many_opens_one_succeeds
            clause_1_whoever_is_let_in_is_alone
            clause_1_create_continue_and_takeover
            clause_1_a_cancelled_open_leaves_it_free
            clause_2_a_takeover_fences
            clause_2_a_takeover_waits_for_what_is_in_flight
            clause_2_a_delete_fences
            clause_2_the_fenced_can_do_no_harm_after_the_end
            clause_2_zombies_have_no_effect
            clause_2_racing_takeovers_keep_exactly_what_they_acknowledged
            clause_3_committed_is_visible_on_every_handle
            clause_3_handles_that_take_turns_see_each_other
            clause_4_ranges_are_exact
            clause_4_ranges_are_exact_while_it_grows
            clause_4_another_life_is_not_found
            clause_4_a_life_never_repeats
            clause_4_a_file_holds_what_is_committed
            clause_5_a_cancelled_append_leaves_a_prefix
            clause_5_slices_are_appended_in_order_and_large_ones_too
            clause_6_dropped_is_interrupted
            clause_6_dropped_and_reopened_loses_nothing
            clause_6_untouched_is_as_it_was
            clause_7_ends_and_reopens
            clause_7_a_finish_that_is_dropped_is_one_or_the_other
            clause_7_a_finish_is_atomic
            follow_tells_of_growth_and_of_the_end
            follow_begins_where_it_is_told
            follow_through_a_burst_leads_to_every_byte
            follow_fails_when_the_life_is_over
            hub_followers_get_every_byte_and_the_end
            hub_followers_are_told_of_a_cut
        }
        $crate::__storage_conformance! { @$then owners $with
            clause_6_claimed_and_dropped_is_lost_with_its_owner
            clause_6_an_untouched_release_leaves_the_lost_lost
            clause_6_the_owner_is_whoever_appended_last
            clause_7_a_lost_one_ends_as_it_is_told
            clause_7_who_ended_it_is_known
            lost_lists_exactly_the_lost
        }
        $crate::__storage_conformance! { @$then listing $with list_has_the_prefix }
        $crate::__storage_conformance! { @$then names $with names_are_told_apart }
        $crate::__storage_conformance! { @$then cap $with clause_5_full_leaves_nothing }
    };

    (@known owners) => {};
    (@known listing) => {};
    (@known names) => {};
    (@known cap) => {};
    (@known $other:ident) => {
        compile_error!(concat!("no group of clauses that can be left out: ", stringify!($other)));
    };

    (@collect $group:ident ($all:ident) $($clause:ident)*) => {
        $all.extend([$(Clause {
            name: stringify!($clause),
            group: stringify!($group),
            check: |one, two| Box::pin($clause(one, two)),
        }),*]);
    };

    // Whether this group is among those that were left out; identifiers can only be compared as patterns.
    (@tests owners ($run:ident [owners $why:literal $($rest:tt)*] $make:expr) $($clause:ident)*) => {
        $crate::__storage_conformance! { @emit $run [ignore = $why] ($make) $($clause)* }
    };
    (@tests listing ($run:ident [listing $why:literal $($rest:tt)*] $make:expr) $($clause:ident)*) => {
        $crate::__storage_conformance! { @emit $run [ignore = $why] ($make) $($clause)* }
    };
    (@tests names ($run:ident [names $why:literal $($rest:tt)*] $make:expr) $($clause:ident)*) => {
        $crate::__storage_conformance! { @emit $run [ignore = $why] ($make) $($clause)* }
    };
    (@tests cap ($run:ident [cap $why:literal $($rest:tt)*] $make:expr) $($clause:ident)*) => {
        $crate::__storage_conformance! { @emit $run [ignore = $why] ($make) $($clause)* }
    };
    (@tests $group:ident ($run:ident [$other:ident $why:literal $($rest:tt)*] $make:expr) $($clause:ident)*) => {
        $crate::__storage_conformance! { @tests $group ($run [$($rest)*] $make) $($clause)* }
    };
    (@tests $group:ident ($run:ident [] $make:expr) $($clause:ident)*) => {
        $crate::__storage_conformance! { @emit $run [] ($make) $($clause)* }
    };

    (@emit $run:ident $attribute:tt $make:tt $($clause:ident)*) => {
        $($crate::__storage_conformance! { @one $run $attribute $make $clause })*
    };
    (@one $run:ident [$($attribute:tt)+] ($make:expr) $clause:ident) => {
        #[test]
        #[$($attribute)+]
        fn $clause() {
            $crate::storage::conformance::$run($make, $crate::storage::conformance::$clause);
        }
    };
    (@one $run:ident [] ($make:expr) $clause:ident) => {
        #[test]
        fn $clause() {
            $crate::storage::conformance::$run($make, $crate::storage::conformance::$clause);
        }
    };
}
