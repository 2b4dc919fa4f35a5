#!/usr/bin/env bash
# File systems with ways of their own: names that differ in case only, devices, names that are swapped under the server.
# Needs root, FUSE, and ntfs-3g for a file system that folds case.
. "$(dirname "$0")/lib.sh"

folding=$work/folding

# What is mounted is left so where the script below is killed.
unmount() {
    local code=$?
    set +e
    stop_servers
    if mountpoint -q "$folding"; then eventually umount "$folding"; fi
    (exit "$code")
    clean_up
}
trap unmount EXIT

stop_servers() {
    local server
    for server in "${servers_up[@]}"; do
        kill -KILL "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    done
    servers_up=()
}
servers_up=()

current="what this needs"
[ "$(uname)" = Linux ] || fail "only Linux mounts such file systems"
[ "$(id -u)" = 0 ] || fail "only root can mount, and make devices"
[ -e /dev/fuse ] || fail "no /dev/fuse"
for tool in mkntfs lowntfs-3g curl python3; do
    command -v "$tool" >/dev/null || fail "no $tool; on Debian: apt-get install -y ntfs-3g curl python3"
done

# A live append from the pipe at 7: curl's process is in `$pid`.
append_live() {
    rm -f "$work/pipe"
    mkfifo "$work/pipe"
    # Opened both ways it doesn't wait for the other side.
    exec 7<>"$work/pipe"
    background curl -sS -T - "$1" <"$work/pipe" >"$work/append.out" 2>&1
    printf 'one ' >&7
    eventually has_text "$1" 'one '
}

has_text() {
    [ "$(curl -sS --max-time 10 "${1%%\?*}")" = "$2" ]
}

# Expects that nobody else can append to what is live, whatever it is called: neither at once nor after a takeover.
refuses_a_second_appender() {
    expect 409 -T "$repo/Cargo.toml" "$1?verb=APPEND"
    grep -q 'appending' "$work/body" || fail "$(cat "$work/body")"
    expect 409 --http1.1 -H 'Connection: Upgrade' -H 'Upgrade: websocket' -H 'Sec-WebSocket-Version: 13' \
        -H 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==' "$1?verb=APPEND"
}

check_a_file_system_that_folds_case_is_there() {
    mkdir "$folding"
    truncate -s 64M "$work/image"
    mkntfs -q -F "$work/image" 2>/dev/null
    lowntfs-3g -o ignore_case "$work/image" "$folding"
    echo folded >"$folding/Name"
    [ "$(cat "$folding/nAME")" = folded ] || fail "this file system doesn't fold case"
    rm "$folding/name"
    start_server "$folding/root"
    servers_up+=("$server")
}

fault_06_a_name_in_another_case_has_no_second_appender() {
    local appender
    append_live "$url/Folder/Log.txt?verb=APPEND"
    appender=$pid
    local alias
    for alias in Folder/log.txt folder/Log.txt FOLDER/LOG.TXT; do
        refuses_a_second_appender "$url/$alias"
    done
    printf 'two' >&7
    exec 7>&-
    expect_exit 0 "$appender"
    has_text "$url/Folder/Log.txt" 'one two' || fail "$(curl -sS "$url/Folder/Log.txt")"
    # One after the other is no harm: the file has the bytes of both.
    ask -X POST -T - "$url/Folder/LOG.txt?verb=APPEND" < <(printf ' three')
    [[ $status = 20? ]] || fail "status $status"
    has_text "$url/Folder/Log.txt" 'one two three' || fail "$(curl -sS "$url/Folder/Log.txt")"
}

fault_06_a_first_append_by_two_names_is_one() {
    local appender
    append_live "$url/fresh?verb=APPEND"
    appender=$pid
    refuses_a_second_appender "$url/FRESH"
    # A child below it, by another of its names.
    expect 409 -T "$repo/Cargo.toml" "$url/Fresh/child?verb=APPEND"
    exec 7>&-
    expect_exit 0 "$appender"
    has_text "$url/fresh" 'one ' || fail "$(curl -sS "$url/fresh")"
}

fault_09_the_bookkeeping_has_no_other_case() {
    local name
    for name in .HTTPFSTREAM .Httpfstream/lock .httpFStream/new/x; do
        expect 404 "$url/$name?verb=FOLLOW"
        expect 404 -T "$repo/Cargo.toml" "$url/$name?verb=APPEND"
        expect 404 -X DELETE "$url/$name"
    done
}

fault_39_what_was_live_on_such_a_file_system_is_interrupted_by_a_kill() {
    append_live "$url/Killed?verb=APPEND"
    kill -KILL "$server"
    wait "$server" 2>/dev/null || true
    exec 7>&-
    start_server "$folding/root"
    servers_up+=("$server")
    expect 200 -I "$url/Killed"
    has_header 'stream-state: interrupted'
    has_text "$url/killed" 'one ' || fail "$(curl -sS "$url/killed")"
}

fault_07_devices_are_409_and_never_read() {
    stop_servers
    mkdir "$work/root"
    mknod "$work/root/zero" c 1 5
    mknod "$work/root/console" c 5 1
    mknod "$work/root/loop" b 7 0
    mkfifo "$work/root/fifo"
    start_server "$work/root"
    servers_up+=("$server")
    local name
    for name in zero console loop fifo; do
        expect 409 "$url/$name?verb=FOLLOW"
        expect 409 -T "$repo/Cargo.toml" "$url/$name?verb=APPEND"
        expect 409 -T "$repo/Cargo.toml" "$url/$name/child?verb=APPEND"
        # Without a verb it is not ours.
        expect 404 "$url/$name"
        expect 404 -X DELETE "$url/$name"
        [ -e "$work/root/$name" ] || fail "$name is gone"
    done
}

# For some seconds a folder is now a folder, now a link to one outside, while it is read from and appended to.
fault_05_names_that_are_swapped_lead_nowhere() {
    mkdir "$work/outside" "$work/root/d"
    echo secret >"$work/outside/x"
    echo public >"$work/root/d/x"
    ln -s "$work/outside" "$work/root/link"
    cat >"$work/swap.py" <<'PYTHON'
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
a, b = (os.fsencode(os.path.join(sys.argv[1], name)) for name in ("d", "link"))
while True:
    if libc.renameat2(-100, a, -100, b, 2):
        sys.exit(os.strerror(ctypes.get_errno()))
PYTHON
    background python3 "$work/swap.py" "$work/root"
    local swapper=$pid round read=0 refused=0
    for round in $(seq 60); do
        ask "$url/d/x"
        case $status in
        200) is_body public && read=$((read + 1)) ;;
        404) refused=$((refused + 1)) ;;
        *) fail "status $status" ;;
        esac
        ask -T "$repo/Cargo.toml" "$url/d/new$round?verb=APPEND"
        case $status in 200 | 201 | 204 | 404) ;; *) fail "status $status: $(cat "$work/body")" ;; esac
        ask -X DELETE "$url/d/new$round"
    done
    kill -0 "$swapper" || fail "the names were not swapped"
    [ "$read" -gt 0 ] && [ "$refused" -gt 0 ] || fail "$read read, $refused refused: no race was run"
    [ "$(ls "$work/outside")" = x ] && [ "$(cat "$work/outside/x")" = secret ] || fail "outside: $(ls "$work/outside")"
    echo "    $read of 60 were read, $refused led nowhere"
}

run_checks
