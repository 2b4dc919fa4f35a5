#!/usr/bin/env bash
# Many connections, floods, slow heads and too few file descriptors, against the built server. Prints what memory it took.
# `limits.sh COUNT` makes so many connections (10,000 by default), and needs as many file descriptors (`ulimit -Hn`).
. "$(dirname "$0")/lib.sh"

count=${1:-10000}
current="what this needs"
command -v python3 >/dev/null || fail "no python3"
# Root may have more.
need=$((count + 1000))
[ "$(ulimit -Hn)" = unlimited ] || [ "$(ulimit -Hn)" -ge "$need" ] || ulimit -Hn "$need" 2>/dev/null || true

limits() {
    timeout 300 python3 "$(dirname "$0")/limits.py" "$1" "$bin/httpfstream-server" "$work" "$count"
}

fault_43_many_connections_and_every_follower_gets_every_byte() {
    limits many
}

fault_43_a_connection_too_many_is_told_so() {
    limits connections
}

fault_38_too_few_file_descriptors_harm_nobody() {
    limits files
}

fault_16_slow_heads_are_ended() {
    limits slow
}

fault_16_endless_heads_are_refused() {
    limits heads
}

fault_16_resets_and_floods_over_http2_harm_nobody() {
    limits resets
}

fault_31_stalled_streams_over_http2_hold_little() {
    limits stalled
}

fault_23_floods_of_tiny_frames_take_no_memory() {
    limits frames_flood
}

fault_21_large_messages_take_no_more_than_their_budget() {
    limits giants
}

run_checks
