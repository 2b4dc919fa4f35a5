#!/usr/bin/env bash
# A file system that stops answering, under the server: frozen (fsfreeze), so that everything that would change it waits.
# Needs root for a mount.
. "$(dirname "$0")/lib.sh"

# What is mounted is left so where the script below is killed.
unmount() {
    local code=$?
    if mountpoint -q "$work/disk"; then
        fsfreeze -u "$work/disk" 2>/dev/null || true
        for pid in "${started[@]}"; do
            kill -KILL "$pid" 2>/dev/null || true
            wait "$pid" 2>/dev/null || true
        done
        umount "$work/disk" || true
    fi
    set +e
    (exit "$code")
    clean_up
}
trap unmount EXIT

current="what this needs"
[ "$(id -u)" = 0 ] || fail "only root can mount and freeze a file system"
for tool in python3 mkfs.ext4 fsfreeze; do
    command -v "$tool" >/dev/null || fail "no $tool"
done
truncate -s 300M "$work/image"
mkfs.ext4 -q "$work/image"
mkdir "$work/disk"
mount -o loop "$work/image" "$work/disk"

freeze() {
    timeout 300 python3 "$(dirname "$0")/freeze.py" "$1" "$addr" "$server" "$work/disk"
}

fault_34_a_frozen_file_system_holds_up_who_writes_and_nobody_else() {
    start_server "$work/disk/one" -storage-timeout=2 -grace=2
    freeze serves
}

fault_34_a_frozen_file_system_is_frozen_with_syncs_too() {
    start_server "$work/disk/two" -storage-timeout=2 -grace=2 -durability=acked
    freeze serves
}

fault_34_one_core_is_enough() {
    background taskset -c 0 "$bin/httpfstream-server" "-root=$work/disk/three" -http=127.0.0.1:0 -storage-timeout=2 -grace=2 2>"$work/server3.log"
    server=$pid
    eventually grep -qE 'http://127\.0\.0\.1:[0-9]+' "$work/server3.log"
    addr=$(grep -oE '127\.0\.0\.1:[0-9]+' "$work/server3.log" | head -n 1)
    freeze serves
}

fault_34_a_server_stops_over_a_frozen_file_system() {
    start_server "$work/disk/four"
    freeze stops
    await_exit "$server" 20
}

run_checks
