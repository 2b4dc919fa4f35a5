#!/usr/bin/env bash
# The server and its clients are killed under load, by chance and at system calls. `crash.sh [KILLS] [SEED]`; the full
# campaign is 1000 kills.
. "$(dirname "$0")/lib.sh"

fault_39_kills_under_load_lose_and_repeat_nothing() {
    timeout $((120 + kills * 6)) python3 "$(dirname "$0")/crash.py" "$bin" "$(command -v strace)" "$work" "$kills" "$seed"
}

kills=${1:-20} seed=${2:-$RANDOM}
run_checks
