#!/usr/bin/env bash
# Connections cut through a proxy of the tests' own: resets, ends, half-open ones, black holes, one byte at a time; in the
# middle and during the finish. `network.sh [CUTS] [SEED]`; the full campaign is 200 cuts.
. "$(dirname "$0")/lib.sh"

fault_32_cut_connections_are_resumed_exactly() {
    cd "$repo"
    HTTPFSTREAM_CUTS=${cuts:-20} HTTPFSTREAM_SEED=${seed:-$RANDOM$RANDOM} \
        cargo test --quiet --all-features --test network -- --nocapture 2>&1 | tee "$work/out"
    grep -q '^network: .* all exact' "$work/out" || fail "no summary"
}

cuts=${1:-} seed=${2:-}
run_checks
