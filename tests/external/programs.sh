#!/usr/bin/env bash
# The three programs together, with the original's command lines.
. "$(dirname "$0")/lib.sh"

# Starts an appender that reads what is written to descriptor 7; its id is in `$appender`.
type_to() {
    rm -f "$work/typed"
    mkfifo "$work/typed"
    exec 7<>"$work/typed"
    background "$bin/httpfstream-append" "${@:2}" "$1" <"$work/typed" 2>>"$work/append.log"
    appender=$pid
}

# Starts a follower that writes to `$work/$2`; its id is in `$pid`.
follow_to() {
    background "$bin/httpfstream-follow" -v "$1" >"$work/$2" 2>>"$work/follow.log"
}

# What is stored of a resource, as bytes.
stored() { curl -sS --max-time 10 "$1"; }
stored_is() { [ "$(stored "$1" | sha256sum)" = "$(sha256sum <"$2")" ]; }
stored_bytes() { [ "$(stored "$1" | wc -c)" -ge "$2" ]; }
has_first() { head -c "$1" "$work/big" | cmp - "$work/$2"; }
shows() { [ "$(cat "$work/$1")" = "$2" ]; }
state_of() { curl -sSI --max-time 10 "$1" | tr -d '\r' | sed -n 's/^stream-state: //Ip'; }
is_state() { [ "$(state_of "$1")" = "$2" ]; }

# Starts the server again, where those who are still there find it. It waits for them for a second, or as long as is said.
restart_server() {
    servers=$((servers + 1))
    server_log=$work/server$servers.log
    background "$bin/httpfstream-server" "-root=$work/root" "-http=$addr" "--grace=${1:-1}" 2>"$server_log"
    server=$pid
    eventually grep -qF "$url" "$server_log"
}

mkdir "$work/root"
# Not longer than a second does anybody wait for an appender that was killed.
start_server "$work/root" --grace=1
# Any bytes. Where a part ends that is waited for stands a letter: what may be the beginning of a character is held back
# until its rest or the end comes.
head -c 8000000 /dev/urandom >"$work/big"
for at in 1999999 2999999; do printf x | dd of="$work/big" bs=1 "seek=$at" conv=notrunc status=none; done

check_help_version_and_usage() {
    local program code
    for program in server follow append; do
        "$bin/httpfstream-$program" --help | grep -qi usage
        "$bin/httpfstream-$program" -help | grep -qi usage
        "$bin/httpfstream-$program" --version | grep -q "^httpfstream-$program [0-9]"
        code=0
        "$bin/httpfstream-$program" --no-such-flag </dev/null 2>/dev/null || code=$?
        [ "$code" = 2 ] || fail "httpfstream-$program exits $code on wrong usage"
    done
    code=0
    "$bin/httpfstream-follow" 2>/dev/null || code=$?
    [ "$code" = 2 ] || fail "httpfstream-follow exits $code without a URL"
}

check_the_banner_says_where_and_how() {
    grep -qF "$url" "$server_log"
    grep -qF "$work/root" "$server_log"
    grep -q httpfstream-append "$server_log"
    grep -q httpfstream-follow "$server_log"
}

check_a_pipe_of_any_bytes_arrives_whole() {
    type_to "$url/big.bin" -v
    head -c 1000000 "$work/big" >&7
    eventually stored_bytes "$url/big.bin" 1
    follow_to "$url/big.bin" big.1
    local first=$pid
    follow_to "$url/big.bin" big.2
    local second=$pid
    tail -c +1000001 "$work/big" >&7
    exec 7>&-
    expect_exit 0 "$appender"
    expect_exit 0 "$first"
    expect_exit 0 "$second"
    follow_to "$url/big.bin" big.late
    expect_exit 0 "$pid"
    cmp "$work/big" "$work/big.1"
    cmp "$work/big" "$work/big.2"
    cmp "$work/big" "$work/big.late"
    cmp "$work/big" "$work/root/big.bin"
}

check_what_is_typed_slowly_is_seen_at_once() {
    # No line ends: prompts and progress bars.
    type_to "$url/typed.txt" -v
    printf 'one ' >&7
    eventually stored_bytes "$url/typed.txt" 4
    follow_to "$url/typed.txt" typed.out
    eventually shows typed.out 'one '
    printf 'two\r' >&7
    eventually shows typed.out $'one two\r'
    printf 'three' >&7
    eventually shows typed.out $'one two\rthree'
    exec 7>&-
    expect_exit 0 "$appender"
    expect_exit 0 "$pid"
}

check_exit_codes_of_absent_busy_and_unreachable() {
    local code
    for program in "httpfstream-follow $url/none" "httpfstream-follow -v http://127.0.0.1:9/none"; do
        code=0
        "$bin"/$program </dev/null >"$work/out" 2>"$work/err.log" || code=$?
        case $program in
            *:9/*) [ "$code" = 1 ] || fail "exit code $code: $program" ;;
            *) [ "$code" = 4 ] || fail "exit code $code: $program" ;;
        esac
        [ ! -s "$work/out" ] || fail "prints something: $program"
        [ -s "$work/err.log" ] || fail "says nothing: $program"
    done
    type_to "$url/busy.txt"
    printf x >&7
    eventually stored_bytes "$url/busy.txt" 1
    code=0
    echo y | "$bin/httpfstream-append" "$url/busy.txt" 2>/dev/null || code=$?
    [ "$code" = 1 ] || fail "exit code $code of a second appender"
    exec 7>&-
    expect_exit 0 "$appender"
    [ "$(stored "$url/busy.txt")" = x ]
}

fault_24_a_killed_appender_is_interrupted_and_follow_exits_3() {
    type_to "$url/killed.txt"
    printf 'half a wo' >&7
    eventually stored_bytes "$url/killed.txt" 9
    follow_to "$url/killed.txt" killed.out
    eventually shows killed.out 'half a wo'
    kill -KILL "$appender"
    expect_exit 3 "$pid"
    exec 7>&-
    expect_exit 137 "$appender"
    shows killed.out 'half a wo'
    is_state "$url/killed.txt" interrupted
    follow_to "$url/killed.txt" killed.late
    expect_exit 3 "$pid"
    shows killed.late 'half a wo'
    # It can be appended to again, and is whole then.
    printf rd | "$bin/httpfstream-append" -v "$url/killed.txt" 2>/dev/null
    follow_to "$url/killed.txt" killed.whole
    expect_exit 0 "$pid"
    shows killed.whole 'half a word'
}

fault_41_a_second_server_on_the_root_is_refused() {
    local code=0
    timeout 10 "$bin/httpfstream-server" "-root=$work/root" -http=127.0.0.1:0 2>"$work/second.log" || code=$?
    [ "$code" = 1 ] || fail "exit code $code"
    grep -qF "$work/root" "$work/second.log"
    stored_is "$url/big.bin" "$work/big"
}

fault_45_a_closed_stdout_ends_follow_quietly() {
    type_to "$url/headed.txt"
    printf 'abcdef' >&7
    eventually stored_bytes "$url/headed.txt" 6
    mkfifo "$work/headed"
    exec 9<>"$work/headed"
    background "$bin/httpfstream-follow" "$url/headed.txt" >"$work/headed" 2>"$work/headed.err.log"
    head -c 3 <&9 >"$work/headed.out"
    # Nothing more is to be written when its reader goes.
    exec 9>&-
    expect_exit 0 "$pid" 5
    shows headed.out abc
    [ ! -s "$work/headed.err.log" ] || fail "says $(cat "$work/headed.err.log")"
    # Nor does it hold anybody up.
    printf 'ghi' >&7
    exec 7>&-
    expect_exit 0 "$appender"
    [ "$(stored "$url/headed.txt")" = abcdefghi ]
}

fault_45_ctrl_c_ends_append_with_everything_confirmed() {
    type_to "$url/stopped.txt" -v
    printf 'all of it' >&7
    eventually stored_bytes "$url/stopped.txt" 9
    printf ', this too' >&7
    kill -INT "$appender"
    expect_exit 0 "$appender"
    exec 7>&-
    is_state "$url/stopped.txt" finished
    [ "$(stored "$url/stopped.txt")" = 'all of it, this too' ]
}

check_both_survive_kill_9_of_the_server() {
    type_to "$url/crash.bin" -v
    head -c 3000000 "$work/big" >&7
    eventually stored_bytes "$url/crash.bin" 3000000
    follow_to "$url/crash.bin" crash.out
    local follower=$pid
    eventually has_first 3000000 crash.out
    kill -KILL "$server"
    expect_exit 137 "$server"
    # What is written while nobody listens is kept.
    head -c 4000000 "$work/big" | tail -c 1000000 >&7
    restart_server
    tail -c +4000001 "$work/big" >&7
    exec 7>&-
    expect_exit 0 "$appender"
    expect_exit 0 "$follower"
    cmp "$work/big" "$work/crash.out"
    cmp "$work/big" "$work/root/crash.bin"
    is_state "$url/crash.bin" finished
    stored_is "$url/big.bin" "$work/big"
}

check_without_a_server_both_give_up_in_time() {
    type_to "$url/alone.bin" --retry-for=1
    printf 'first' >&7
    eventually stored_bytes "$url/alone.bin" 5
    background "$bin/httpfstream-follow" --retry-for=1 "$url/alone.bin" >"$work/alone.out" 2>>"$work/follow.log"
    local follower=$pid
    eventually shows alone.out first
    kill -KILL "$server"
    expect_exit 137 "$server"
    expect_exit 1 "$follower"
    expect_exit 1 "$appender"
    exec 7>&-
    restart_server
    eventually is_state "$url/alone.bin" interrupted
    printf ', rest' | "$bin/httpfstream-append" "$url/alone.bin"
    [ "$(stored "$url/alone.bin")" = 'first, rest' ]
}

check_a_killed_append_of_a_growing_file_goes_on_exactly() {
    head -c 2000000 "$work/big" >"$work/grown"
    background "$bin/httpfstream-append" --resume "$work/grown" --follow-file --create "$url/grown.bin" 2>>"$work/append.log"
    eventually stored_bytes "$url/grown.bin" 1000000
    kill -KILL "$pid"
    expect_exit 137 "$pid"
    [ "$(stat -c %a "$work/grown.httpfstream")" = 600 ]
    # Past its grace too.
    eventually is_state "$url/grown.bin" interrupted
    head -c 5000000 "$work/big" | tail -c 3000000 >>"$work/grown"
    background "$bin/httpfstream-append" --resume "$work/grown" --follow-file --create "$url/grown.bin" 2>>"$work/append.log"
    eventually stored_bytes "$url/grown.bin" 3000000
    kill -TERM "$pid"
    expect_exit 3 "$pid"
    tail -c +5000001 "$work/big" >>"$work/grown"
    background "$bin/httpfstream-append" --resume "$work/grown" --follow-file "$url/grown.bin" 2>>"$work/append.log"
    eventually stored_bytes "$url/grown.bin" 8000000
    kill -INT "$pid"
    expect_exit 0 "$pid"
    stored_is "$url/grown.bin" "$work/big"
    is_state "$url/grown.bin" finished
    # Once more there is nothing left to do.
    "$bin/httpfstream-append" --resume "$work/grown" "$url/grown.bin"
}

fault_32_a_file_is_not_appended_behind_a_stranger() {
    head -c 100000 "$work/big" >"$work/torn"
    background "$bin/httpfstream-append" --resume "$work/torn" --follow-file "$url/torn.bin" 2>>"$work/append.log"
    eventually stored_bytes "$url/torn.bin" 100000
    kill -KILL "$pid"
    expect_exit 137 "$pid"
    eventually is_state "$url/torn.bin" interrupted
    echo stranger | "$bin/httpfstream-append" "$url/torn.bin"
    local code=0
    "$bin/httpfstream-append" --resume "$work/torn" "$url/torn.bin" 2>"$work/torn.err.log" || code=$?
    [ "$code" = 1 ] || fail "exit code $code"
    grep -q 'somebody else' "$work/torn.err.log"
    [ "$(stored "$url/torn.bin" | wc -c)" = 100009 ]
}

check_a_killed_follow_into_a_file_goes_on_exactly() {
    type_to "$url/kept.bin"
    head -c 3000000 "$work/big" >&7
    eventually stored_bytes "$url/kept.bin" 3000000
    background "$bin/httpfstream-follow" --output "$work/kept" "$url/kept.bin" 2>>"$work/follow.log"
    eventually has_first 3000000 kept
    kill -KILL "$pid"
    expect_exit 137 "$pid"
    tail -c +3000001 "$work/big" >&7
    exec 7>&-
    expect_exit 0 "$appender"
    "$bin/httpfstream-follow" --output "$work/kept" "$url/kept.bin"
    cmp "$work/big" "$work/kept"
    # Another life is nothing to go on with.
    curl -sS -f -X DELETE "$url/kept.bin"
    "$bin/httpfstream-append" "$url/kept.bin" <"$work/big"
    local code=0
    "$bin/httpfstream-follow" --output "$work/kept" "$url/kept.bin" 2>"$work/kept.err.log" || code=$?
    [ "$code" = 1 ] || fail "exit code $code"
    cmp "$work/big" "$work/kept"
}

check_follow_begins_where_it_is_told_to() {
    printf 'one\ntwo\nthree\nfour' | "$bin/httpfstream-append" --seal "$url/lines.txt"
    local code=0
    echo five | "$bin/httpfstream-append" "$url/lines.txt" 2>/dev/null || code=$?
    [ "$code" = 1 ] || fail "exit code $code: it is sealed"
    [ "$("$bin/httpfstream-follow" --offset 4 "$url/lines.txt")" = $'two\nthree\nfour' ]
    [ "$("$bin/httpfstream-follow" --tail 4 "$url/lines.txt")" = four ]
    [ "$("$bin/httpfstream-follow" -lines 2 "$url/lines.txt")" = $'three\nfour' ]
    code=0
    "$bin/httpfstream-follow" --offset 100 "$url/lines.txt" 2>/dev/null || code=$?
    [ "$code" = 1 ] || fail "exit code $code: past the end"
    # Absent things can be waited for.
    background "$bin/httpfstream-follow" --wait "$url/late.txt" >"$work/late.out" 2>>"$work/follow.log"
    local waiting=$pid
    code=0
    "$bin/httpfstream-follow" --wait=1 "$url/late.txt" 2>/dev/null || code=$?
    [ "$code" = 4 ] || fail "exit code $code"
    echo here | "$bin/httpfstream-append" --create --offset 0 "$url/late.txt"
    expect_exit 0 "$waiting"
    shows late.out here
    code=0
    echo again | "$bin/httpfstream-append" --create "$url/late.txt" 2>/dev/null || code=$?
    [ "$code" = 1 ] || fail "exit code $code: it exists"
}

fault_44_sigterm_ends_everything_in_good_order() {
    type_to "$url/term.bin"
    head -c 2000000 "$work/big" >&7
    eventually stored_bytes "$url/term.bin" 2000000
    follow_to "$url/term.bin" term.out
    local follower=$pid
    # A follower that reads nothing must not hold it up for longer.
    exec 8<>"/dev/tcp/127.0.0.1/${url##*:}"
    printf 'GET /term.bin?verb=FOLLOW HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n' "$addr" >&8
    printf 'Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n' >&8
    eventually has_first 2000000 term.out
    local from=$SECONDS
    kill -TERM "$server"
    expect_exit 0 "$server" 11
    [ $((SECONDS - from)) -le 10 ] || fail "takes $((SECONDS - from)) s"
    exec 8>&-
    has_first 2000000 term.out
    # They wait for the next one, which waits for them: they may try again only every few seconds by now.
    restart_server 30
    tail -c +2000001 "$work/big" >&7
    exec 7>&-
    expect_exit 0 "$appender"
    expect_exit 0 "$follower"
    cmp "$work/big" "$work/term.out"
    stored_is "$url/term.bin" "$work/big"
    is_state "$url/term.bin" finished
}

fault_44_a_second_sigterm_stops_at_once() {
    type_to "$url/twice.bin"
    cat "$work/big" >&7
    eventually stored_bytes "$url/twice.bin" 8000000
    exec 8<>"/dev/tcp/127.0.0.1/${url##*:}"
    printf 'GET /twice.bin?verb=FOLLOW HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n' "$addr" >&8
    printf 'Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n' >&8
    IFS= read -r -t 10 line <&8
    [[ $line = *101* ]] || fail "$line"
    kill -TERM "$server"
    eventually grep -q stopping "$server_log"
    # The stalled follower keeps it.
    sleep 1
    kill -0 "$server" || fail "nothing kept it"
    kill -TERM "$server"
    await_exit "$server" 2
    exec 7>&- 8>&-
    restart_server
    expect_exit 0 "$appender"
    stored_is "$url/twice.bin" "$work/big"
}

check_a_file_that_grew_after_its_finish_is_gone_on_with() {
    # As it is after a kill between the finish and its answer.
    printf 'first ' >"$work/later"
    background "$bin/httpfstream-append" --resume "$work/later" --follow-file "$url/later.txt"
    eventually stored_bytes "$url/later.txt" 6
    eventually grep -q 'acknowledged 6' "$work/later.httpfstream"
    cp "$work/later.httpfstream" "$work/kept"
    kill -INT "$pid"
    expect_exit 0 "$pid"
    { cat "$work/kept"; echo 'finishing 6'; } >"$work/later.httpfstream"
    printf 'second' >>"$work/later"
    "$bin/httpfstream-append" --resume "$work/later" "$url/later.txt"
    "$bin/httpfstream-append" --resume "$work/later" "$url/later.txt"
    stored_is "$url/later.txt" "$work/later"
}

check_an_idle_server_stops_at_once() {
    kill -TERM "$server"
    expect_exit 0 "$server" 2
    # And leaves nothing that keeps the next one out.
    start_server "$work/root"
    stored_is "$url/big.bin" "$work/big"
    kill -INT "$server"
    expect_exit 0 "$server" 2
}

check_the_environment_works_as_the_flags_do() {
    mkdir "$work/env"
    HTTPFSTREAM_ROOT=$work/env HTTPFSTREAM_HTTP=127.0.0.1:0 background "$bin/httpfstream-server" 2>"$work/env.log"
    eventually grep -q 'http://127.0.0.1:' "$work/env.log"
    [ -d "$work/env/.httpfstream" ]
    kill -TERM "$pid"
    expect_exit 0 "$pid" 2
}

run_checks
