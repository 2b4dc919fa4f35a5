# Sourced by the scripts beside it: a server on a free port, checks, and cleaning up.
#
# Each function named `check_…` or `fault_NN_…` (the case in tests/README.md that it covers) is one check; `run_checks` runs
# all of them in the order they are written in. A command that fails fails the script. Everything waits for a bounded
# time, on events that can be seen from outside.

set -euo pipefail
shopt -s inherit_errexit

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# Where the built programs are: `cargo build --all-features --bins` puts them there.
bin=${HTTPFSTREAM_BIN:-${CARGO_TARGET_DIR:-$repo/target}/debug}
work=$(mktemp -d)
current="(before the first check)"
started=()

clean_up() {
    local code=$?
    trap - EXIT
    if [ "$code" -ne 0 ]; then
        echo "FAILED ($code): $(basename "$0"): $current" >&2
        tail -n 8 "$work"/*.log >&2 2>/dev/null || true
    fi
    for pid in "${started[@]}"; do
        # Only what this script started, and only if it still runs.
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    rm -rf "$work"
    exit "$code"
}
trap clean_up EXIT
trap 'echo "$(basename "${BASH_SOURCE[0]}"):$LINENO: $BASH_COMMAND" >&2' ERR

fail() {
    echo "$current: $*" >&2
    exit 1
}

# Runs a program in the background; its process id is in `$pid`. It does not get our ends of pipes (7 to 9).
background() {
    # Without `<&0` a background command reads /dev/null.
    "$@" <&0 7>&- 8>&- 9>&- &
    pid=$!
    started+=("$pid")
}

# Waits until a command succeeds, 20 seconds at most.
eventually() {
    local i
    for i in $(seq 400); do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.05
    done
    fail "waited in vain for: $*"
}

# Waits for a process to end, so many seconds at most; its exit code is in `$exited`.
await_exit() {
    local i
    for i in $(seq $(($2 * 20))); do
        if ! kill -0 "$1" 2>/dev/null; then break; fi
        sleep 0.05
    done
    if kill -0 "$1" 2>/dev/null; then fail "process $1 still runs after $2 s"; fi
    exited=0
    wait "$1" 2>/dev/null || exited=$?
}

# Expects a process to end with this code within so many seconds.
expect_exit() {
    await_exit "$2" "${3:-20}"
    [ "$exited" = "$1" ] || fail "exit code $exited, expected $1"
}

# Starts a server on a root with more flags, at a port of the system's choosing. Sets `$url`, `$addr` and `$server`.
servers=0
start_server() {
    servers=$((servers + 1))
    local log=$work/server$servers.log
    background "$bin/httpfstream-server" "-root=$1" -http=127.0.0.1:0 "${@:2}" 2>"$log"
    server=$pid
    server_log=$log
    eventually grep -qE 'http://127\.0\.0\.1:[0-9]+' "$log"
    url=$(grep -oE 'http://127\.0\.0\.1:[0-9]+' "$log" | head -n 1)
    addr=${url#http://}
}

# Asks with curl; head and body are in `$work/head` and `$work/body`, the status in `$status`.
ask() {
    status=$(curl -sS --max-time 10 -o "$work/body" -D "$work/head" -w '%{http_code}' "$@")
}

# Expects a status of what curl is asked with.
expect() {
    ask "${@:2}"
    [ "$status" = "$1" ] || fail "status $status, expected $1: curl ${*:2} ($(head -c 300 "$work/body"))"
}

# Expects a header in the last answer, as a pattern for the whole line.
has_header() {
    tr -d '\r' <"$work/head" | grep -qiE "^$1\$" || fail "no header $1 in: $(cat "$work/head")"
}

has_no_header() {
    if tr -d '\r' <"$work/head" | grep -qiE "^$1:"; then fail "header $1 in: $(cat "$work/head")"; fi
}

is_body() {
    [ "$(cat "$work/body")" = "$1" ] || fail "body $(head -c 300 "$work/body"), expected $1"
}

run_checks() {
    local passed=0
    for current in $(grep -oE '^(check|fault_[0-9]{2})_[a-z0-9_]+\(\)' "$0" | tr -d '()'); do
        "$current"
        echo "ok $current"
        passed=$((passed + 1))
    done
    current="(after the last check)"
    [ "$passed" -gt 0 ] || fail "no checks"
    echo "$(basename "$0"): $passed passed, 0 failed"
}

[ -x "$bin/httpfstream-server" ] || fail "no programs in $bin; build them: cargo build --all-features --bins"
