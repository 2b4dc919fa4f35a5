#!/usr/bin/env bash
# Disks that are full and disks that fail, under the server. Needs root for a small file system, and strace.
. "$(dirname "$0")/lib.sh"

# What is mounted is left so where the script below is killed.
unmount() {
    local code=$?
    if mountpoint -q "$work/small"; then umount "$work/small" || true; fi
    set +e
    (exit "$code")
    clean_up
}
trap unmount EXIT

current="what this needs"
[ "$(id -u)" = 0 ] || fail "only root can mount a small file system"
for tool in python3 strace; do
    command -v "$tool" >/dev/null || fail "no $tool"
done

disk() {
    timeout 900 python3 "$(dirname "$0")/disk.py" "$1" "$bin/httpfstream-server" "$(command -v strace)" "$work"
}

fault_35_a_full_disk_stops_the_appender_and_nothing_else() {
    disk full
}

fault_36_a_call_that_fails_is_answered_so_and_nothing_else_is_harmed() {
    disk errors
}

run_checks
