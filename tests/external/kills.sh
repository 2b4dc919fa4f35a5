#!/usr/bin/env bash
# The server is killed at each system call of its bookkeeping, by strace.
. "$(dirname "$0")/lib.sh"

fault_39_a_kill_at_any_system_call_loses_nothing_that_was_answered() {
    timeout 300 python3 "$(dirname "$0")/kills.py" "$bin/httpfstream-server" "$(command -v strace)" "$work"
}

run_checks
