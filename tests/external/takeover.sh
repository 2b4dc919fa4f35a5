#!/usr/bin/env bash
# A ghost connection that goes on sending, against its own reconnect, against a stranger. `takeover.sh [ROUNDS]`; the full
# campaign is 1000 rounds.
. "$(dirname "$0")/lib.sh"

fault_30_one_winner_and_no_mixed_bytes() {
    cd "$repo"
    HTTPFSTREAM_TAKEOVERS=$rounds cargo test --quiet --all-features --test v1 ghosts -- --nocapture 2>&1 | tee "$work/out"
    grep -q '^takeover: ' "$work/out" || fail "no summary"
}

rounds=${1:-100}
run_checks
