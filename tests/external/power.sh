#!/usr/bin/env bash
# Power is lost at random moments under a process that appends, on ext4 and on xfs: power.sh [CYCLES] [SEED].
# Needs root, loop devices, and the tools of both file systems. A full campaign has 100 cycles.
. "$(dirname "$0")/lib.sh"

cycles=${1:-5}
seed=${2:-$(date +%s)}

# What mounts is left mounted where the campaign itself is killed.
unmount() {
    local code=$?
    for kind in ext4 xfs; do
        if mountpoint -q "$work/$kind"; then umount "$work/$kind" || true; fi
    done
    set +e
    (exit "$code")
    clean_up
}
trap unmount EXIT

current="what this needs"
[ "$(uname)" = Linux ] || fail "only Linux can lose its power like this"
[ "$(id -u)" = 0 ] || fail "only root can mount and shut down file systems"
for tool in python3 unshare mkfs.ext4 mkfs.xfs; do
    command -v "$tool" >/dev/null || fail "no $tool; on Debian: apt-get install -y e2fsprogs xfsprogs util-linux python3"
done

# The newest build of tests/power.rs, made here if cargo is at hand.
child=${POWER_CHILD:-$(cd "$repo" && cargo test --all-features --test power --no-run 2>&1 |
    sed -n 's/.*Executable tests\/power.rs (\(.*\))/\1/p')}
child=$(cd "$repo" && realpath "$child")
[ -x "$child" ] || fail "no child to take the power from: $child"

campaign() {
    timeout $((120 + $2 * 30)) python3 "$(dirname "$0")/power.py" "$child" "$work" "$1" "$2" "$seed" "${@:3}"
}

# A campaign that can't tell a storage that lies from one that doesn't proves nothing.
must_find() {
    local kind
    for kind in ext4 xfs; do
        if campaign "$kind" 3 "$1" >"$work/found" 2>&1; then fail "$kind, seed $seed: $1 was not found out"; fi
        grep -qE "$2" "$work/found" || fail "$kind, seed $seed: $(cat "$work/found")"
    done
}

check_lies_are_found_out() {
    must_find lies 'bytes were durable, .* are there'
}

check_a_length_that_lies_is_found_out() {
    must_find same-boot 'are not those that were appended|bytes were durable'
}

fault_40_power_loss_on_ext4() {
    campaign ext4 "$cycles"
}

fault_40_power_loss_on_xfs() {
    campaign xfs "$cycles"
}

run_checks
