//! The macro that generates the tests, and the list of all of them.

/// Generates a module with tests of each clause of the [storage contract](crate::storage#the-contract), and in it a module
/// `synced` with the same tests where each append is followed by a sync.
///
/// The expression is an async closure that creates an empty store and returns two handles on it, which stand for two nodes,
/// and a guard that lives as long as the test, or `()`. `without` names a [group](crate::storage::conformance#groups) to
/// leave out, with the reason: its tests are ignored then. See [`conformance`](crate::storage::conformance).
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

/// Implements [`storage_conformance`] and [`clauses`].
#[doc(hidden)]
#[macro_export]
macro_rules! __storage_conformance {
    // The only list of all tests. `$then` is the rule to apply to each group.
    (@each $then:ident $with:tt) => {
        $crate::__storage_conformance! { @$then contract $with
            clause_1_of_many_opens_one_succeeds
            clause_1_appenders_never_overlap
            clause_1_create_continue_and_takeover
            clause_1_a_cancelled_open_leaves_the_resource_free
            clause_2_a_takeover_fences
            clause_2_a_takeover_waits_for_calls_in_flight
            clause_2_a_delete_fences
            clause_2_a_fenced_appender_cannot_change_a_sealed_resource
            clause_2_calls_of_a_fenced_appender_have_no_effect
            clause_2_racing_takeovers_keep_exactly_the_acknowledged_bytes
            clause_3_committed_bytes_are_visible_on_every_handle
            clause_3_handles_that_take_turns_see_each_others_bytes
            clause_4_ranges_are_exact
            clause_4_ranges_are_exact_while_it_grows
            clause_4_another_life_is_not_found
            clause_4_a_life_never_repeats
            clause_4_a_file_holds_the_committed_bytes
            clause_5_a_cancelled_append_leaves_a_prefix
            clause_5_slices_are_appended_in_order
            clause_6_a_dropped_appender_interrupts
            clause_6_dropping_and_reopening_loses_nothing
            clause_6_opening_without_appending_changes_nothing
            clause_7_ends_and_reopens
            clause_7_a_cancelled_finish_ends_or_interrupts
            clause_7_a_finish_is_atomic
            follow_reports_growth_and_the_end
            follow_begins_at_the_given_length
            follow_through_a_burst_reaches_every_byte
            follow_fails_when_the_life_is_over
            hub_followers_get_every_byte_and_the_end
            hub_followers_get_the_error_of_a_lost_or_deleted_resource
        }
        $crate::__storage_conformance! { @$then owners $with
            clause_6_a_claimed_resource_is_lost_with_its_owner
            clause_6_opening_without_appending_keeps_a_lost_resource_lost
            clause_6_the_owner_is_that_of_the_last_append
            clause_7_a_lost_resource_can_be_ended
            clause_7_the_owner_is_known_after_the_end
            lost_lists_exactly_the_lost_resources
        }
        $crate::__storage_conformance! { @$then listing $with list_returns_the_keys_with_the_prefix }
        $crate::__storage_conformance! { @$then names $with names_are_distinct }
        $crate::__storage_conformance! { @$then cap $with clause_5_full_stores_nothing }
    };

    (@known owners) => {};
    (@known listing) => {};
    (@known names) => {};
    (@known cap) => {};
    (@known $other:ident) => {
        compile_error!(concat!("not a group that can be left out: ", stringify!($other)));
    };

    (@collect $group:ident ($all:ident) $($clause:ident)*) => {
        $all.extend([$(Clause {
            name: stringify!($clause),
            group: stringify!($group),
            check: |one, two| Box::pin($clause(one, two)),
        }),*]);
    };

    // Checks whether a group is among those left out. One rule for each, since identifiers can be compared only as patterns.
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
