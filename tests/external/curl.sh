#!/usr/bin/env bash
# What curl sees of the built server, on real sockets.
. "$(dirname "$0")/lib.sh"

websocket=(--http1.1 -H "Connection: Upgrade" -H "Upgrade: websocket" -H "Sec-WebSocket-Version: 13"
    -H "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")

# Expects a WebSocket, which curl can't use: it waits, and is stopped.
expect_101() {
    status=$(curl -sS --max-time 0.5 -o "$work/body" -D "$work/head" -w '%{http_code}' "$@" 2>"$work/curl.err") || true
    [ "$status" = 101 ] || fail "status $status, expected 101: curl $*"
    has_header 'sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK\+xOo='
}

nothing_stored() {
    [ ! -e "$work/root/$1" ] || fail "$1 was created"
}

mkdir "$work/root"
start_server "$work/root" -v
main_url=$url

# A resource that stays live: its appender reads a pipe that is open here.
mkfifo "$work/input"
exec 7<>"$work/input"
background "$bin/httpfstream-append" "$url/logs/live.txt" <"$work/input"
appender=$pid
printf 'one ' >&7
live_has() { [ "$(curl -sS --max-time 5 "$url/logs/live.txt")" = "$1" ]; }
eventually live_has 'one '

# And one that is finished.
seq 1000 >"$work/numbers"
"$bin/httpfstream-append" "$url/logs/numbers.txt" <"$work/numbers"
size=$(stat -c %s "$work/numbers")

check_absent_is_404() {
    expect 404 "$url/none"
    expect 404 "$url/none?verb=FOLLOW"
    has_header 'content-type: application/problem\+json'
    expect 404 -I "$url/none"
    expect 404 "${websocket[@]}" -H "X-Verb: FOLLOW" "$url/none"
}

check_live_is_a_snapshot() {
    printf 'two ' >&7
    eventually live_has 'one two '
    expect 200 "$url/logs/live.txt"
    is_body 'one two '
    has_header 'stream-state: live'
    has_header 'upload-offset: 8'
    has_header 'cache-control: no-store'
    has_no_header last-modified
}

check_head_is_a_get_without_body() {
    expect 200 -I "$url/logs/live.txt"
    has_header 'content-length: 8'
    expect 200 -I "$url/logs/numbers.txt"
    has_header "content-length: $size"
    has_header 'stream-state: finished'
    has_header 'content-type: text/plain(; ?charset=utf-8)?'
}

check_finished_is_whole_with_and_without_verb() {
    expect 200 "$url/logs/numbers.txt"
    cmp "$work/numbers" "$work/body"
    expect 200 "$url/logs/numbers.txt?verb=FOLLOW"
    cmp "$work/numbers" "$work/body"
    expect 200 "${websocket[@]}" -H "X-Verb: FOLLOW" "$url/logs/numbers.txt"
    cmp "$work/numbers" "$work/body"
}

check_without_a_verb_the_method_says_what_is_meant() {
    expect 201 -T "$work/numbers" "$url/put.log"
    expect 200 "$url/put.log"
    cmp "$work/numbers" "$work/body"
    expect 201 --data-binary "@$work/numbers" -H 'Content-Type: text/plain' "$url/posted.log"
    expect 200 "${websocket[@]}" "$url/posted.log"
    cmp "$work/numbers" "$work/body"
    # A replayed PUT is refused, and changes nothing.
    expect 409 -T "$work/numbers" "$url/put.log"
    expect 204 -X DELETE "$url/put.log"
    expect 404 "$url/put.log"
}

fault_15_ranges() {
    expect 206 -r 10-19 "$url/logs/numbers.txt"
    cmp <(tail -c +11 "$work/numbers" | head -c 10) "$work/body"
    has_header "content-range: bytes 10-19/$size"
    expect 206 -r -5 "$url/logs/numbers.txt"
    cmp <(tail -c 5 "$work/numbers") "$work/body"
    head -c 1234 "$work/numbers" >"$work/part"
    curl -sS --max-time 10 -C - -o "$work/part" "$url/logs/numbers.txt"
    cmp "$work/numbers" "$work/part"
    expect 416 -r "$size-" "$url/logs/numbers.txt"
    has_header "content-range: bytes \*/$size"
    expect 206 -r 4- "$url/logs/live.txt"
    is_body 'two '
    expect 416 -r 8- "$url/logs/live.txt"
}

check_conditions() {
    expect 200 "$url/logs/numbers.txt"
    local etag date
    etag=$(tr -d '\r' <"$work/head" | sed -n 's/^etag: //Ip')
    date=$(tr -d '\r' <"$work/head" | sed -n 's/^last-modified: //Ip')
    expect 304 -H "If-None-Match: $etag" "$url/logs/numbers.txt"
    expect 304 -H "If-Modified-Since: $date" "$url/logs/numbers.txt"
    expect 200 -H 'If-None-Match: "other"' "$url/logs/numbers.txt"
    expect 412 -H 'If-Match: "other"' "$url/logs/numbers.txt"
    expect 206 -H "If-Range: $etag" -r 0-0 "$url/logs/numbers.txt"
    expect 200 -H 'If-Range: "other"' -r 0-0 "$url/logs/numbers.txt"
    expect 200 "$url/logs/live.txt"
    etag=$(tr -d '\r' <"$work/head" | sed -n 's/^etag: //Ip')
    expect 304 -H "If-None-Match: $etag" "$url/logs/live.txt"
    printf 'three' >&7
    eventually live_has 'one two three'
    expect 200 -H "If-None-Match: $etag" "$url/logs/live.txt"
}

fault_18_stored_pages_can_not_script_the_site() {
    printf '<script>alert(1)</script>' | "$bin/httpfstream-append" "$url/page.html"
    expect 200 "$url/page.html"
    has_header 'x-content-type-options: nosniff'
    has_header 'content-security-policy: sandbox'
    has_header 'content-type: text/html; ?charset=utf-8'
}

fault_12_append_without_an_upgrade_is_426() {
    expect 426 "$url/plain?verb=APPEND"
    has_header 'upgrade: websocket'
    grep -qi proxy "$work/body"
    expect 426 -H "X-Verb: APPEND" "$url/plain"
    # A proxy that strips `Upgrade`.
    expect 426 -H "Connection: Upgrade" "$url/plain?verb=APPEND"
    nothing_stored plain
}

fault_29_a_second_appender_is_409() {
    expect 409 "${websocket[@]}" "$url/logs/live.txt?verb=APPEND"
    expect 409 "${websocket[@]}" -H "X-Verb: APPEND" "$url/logs/live.txt"
    live_has 'one two three'
}

fault_11_bad_handshakes_are_never_101() {
    local base=(--http1.1 -i -N -H "Connection: Upgrade" -H "Upgrade: websocket")
    local key=(-H "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==") version=(-H "Sec-WebSocket-Version: 13")
    local target="$url/handshake?verb=APPEND"
    expect 400 "${base[@]}" "${version[@]}" "$target"
    expect 400 "${base[@]}" "${version[@]}" -H "Sec-WebSocket-Key: short" "$target"
    expect 400 "${base[@]}" "${version[@]}" -H "Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!==" "$target"
    expect 426 "${base[@]}" "${key[@]}" -H "Sec-WebSocket-Version: 8" "$target"
    has_header 'sec-websocket-version: 13'
    ask "${base[@]}" "${key[@]}" "$target"
    [[ $status = 4* ]] || fail "status $status without a version"
    ask --http1.0 -H "Connection: Upgrade" -H "Upgrade: websocket" "${key[@]}" "${version[@]}" "$target"
    [[ $status = 4* ]] || fail "status $status over HTTP/1.0"
    nothing_stored handshake
}

fault_26_compression_is_declined() {
    expect_101 "${websocket[@]}" -H "Sec-WebSocket-Extensions: permessage-deflate" "$url/logs/live.txt?verb=FOLLOW"
    has_no_header sec-websocket-extensions
}

fault_10_contradictions_and_unknown_verbs_are_400() {
    expect 400 "${websocket[@]}" -H "X-Verb: FOLLOW" "$url/odd?verb=APPEND"
    expect 400 "${websocket[@]}" "$url/odd?verb=APPEND&verb=FOLLOW"
    expect 400 "${websocket[@]}" "$url/odd?verb=SUBSCRIBE"
    grep -q 'APPEND or FOLLOW' "$work/body"
    expect 400 "$url/odd?verb=SUBSCRIBE"
    grep -q 'APPEND or FOLLOW' "$work/body"
    nothing_stored odd
}

fault_01_dot_dot_in_any_spelling() {
    local path
    for path in ../x a/../x %2e%2e/x a/%2E%2e/x ..%2fx ..%5cx 'a/..'; do
        expect 400 --path-as-is "${websocket[@]}" "$url/$path?verb=APPEND"
        expect 400 --path-as-is "$url/$path?verb=FOLLOW"
        expect 404 --path-as-is "$url/$path"
    done
    expect 404 --path-as-is "$url/../../../../../../etc/passwd"
    [ ! -e "$work/x" ] || fail "written outside of the root"
}

fault_02_one_resource_has_one_path() {
    local path
    for path in logs//live.txt logs/./live.txt logs%2Flive.txt logs/live.txt/; do
        ask --path-as-is "${websocket[@]}" "$url/$path?verb=APPEND"
        [[ $status = 400 || $status = 409 ]] || fail "status $status for $path"
    done
}

fault_03_nul_and_bad_encodings_are_400() {
    local path
    for path in a%00b a%01b a%7fb a%zzb a% a%f a%ff a%c3%28; do
        expect 400 "$url/$path?verb=FOLLOW"
        expect 400 "${websocket[@]}" "$url/$path?verb=APPEND"
        expect 404 "$url/$path"
    done
}

fault_04_too_long_is_414() {
    local long
    long=$(printf 'x%.0s' $(seq 256))
    expect 414 "${websocket[@]}" "$url/$long?verb=APPEND"
    expect 414 "$url/$(printf 'abcdefg/%.0s' $(seq 600))a?verb=FOLLOW"
    expect 404 "$url/$long"
}

fault_05_symlinks_do_not_lead_out() {
    mkdir "$work/outside"
    echo secret >"$work/outside/file"
    ln -s "$work/outside/file" "$work/root/link"
    ln -s "$work/outside" "$work/root/folder"
    local path
    for path in link folder/file folder/new; do
        expect 404 "$url/$path"
        expect 404 "$url/$path?verb=FOLLOW"
        expect 404 "${websocket[@]}" "$url/$path?verb=APPEND"
    done
    [ "$(ls "$work/outside")" = file ] && [ "$(cat "$work/outside/file")" = secret ]
}

fault_07_a_pipe_is_409_and_never_blocks() {
    mkfifo "$work/root/pipe"
    expect 409 "$url/pipe?verb=FOLLOW"
    expect 409 "${websocket[@]}" "$url/pipe?verb=APPEND"
    expect 409 "${websocket[@]}" "$url/logs?verb=APPEND"
    # The original listed the folder.
    ask "$url/logs?verb=FOLLOW"
    [[ $status = 4* ]] || fail "status $status for a folder"
    if grep -q numbers "$work/body"; then fail "a folder is listed"; fi
}

fault_08_a_child_of_a_resource_is_409() {
    expect 409 "${websocket[@]}" "$url/logs/numbers.txt/child/deep?verb=APPEND"
    nothing_stored logs/numbers.txt/child
}

fault_09_bookkeeping_is_404_for_every_verb() {
    [ -e "$work/root/.httpfstream/lock" ] || fail "the bookkeeping is elsewhere"
    local path
    for path in .httpfstream .httpfstream/lock .httpfstream/x %2ehttpfstream/lock; do
        expect 404 "$url/$path"
        expect 404 "$url/$path?verb=FOLLOW"
        expect 404 "${websocket[@]}" "$url/$path?verb=FOLLOW"
        expect 404 "${websocket[@]}" "$url/$path?verb=APPEND"
        expect 404 -X DELETE "$url/$path"
    done
}

fault_16_too_many_or_too_large_headers_are_refused() {
    local many=() i
    for i in $(seq 150); do many+=(-H "X-Header-$i: x"); done
    expect 431 "${many[@]}" "$url/logs/numbers.txt"
    local code=0
    for i in $(seq 80); do printf 'X-Large-%d: %08192d\n' "$i" 0; done >"$work/large"
    ask -H "@$work/large" "$url/logs/numbers.txt" 2>/dev/null || code=$?
    # The answer, or the connection's end while curl still sends.
    [[ ($code = 0 && $status = 431) || $code = 55 || $code = 56 ]] || fail "status $status, curl's $code, for 640 KiB"
    # Others live on, the appender too.
    live_has 'one two three'
}

fault_17_foreign_pages_are_403() {
    local origin verb
    for origin in http://evil.example null "http://$addr.evil.example" "http://127.0.0.1:1"; do
        for verb in APPEND FOLLOW; do
            expect 403 "${websocket[@]}" -H "Origin: $origin" "$url/foreign?verb=$verb"
        done
    done
    nothing_stored foreign
    expect 403 "${websocket[@]}" -H "Origin: http://evil.example" "$url/logs/live.txt?verb=FOLLOW"
    expect_101 "${websocket[@]}" -H "Origin: http://$addr" "$url/logs/live.txt?verb=FOLLOW"
}

fault_17_only_loopback_names_reach_a_loopback_server() {
    local host
    for host in evil.example "evil.example:${addr#*:}" 127.0.0.1.evil.example 10.0.0.1 ""; do
        ask -H "Host: $host" "$url/logs/numbers.txt"
        [[ $status = 421 || $status = 403 || ( -z $host && $status = 4* ) ]] || fail "status $status for host '$host'"
        if [ -z "$host" ]; then continue; fi
        ask "${websocket[@]}" -H "Host: $host" -H "Origin: http://$host" "$url/rebound?verb=APPEND"
        [[ $status = 421 || $status = 403 ]] || fail "status $status for a WebSocket at host '$host'"
    done
    nothing_stored rebound
    for host in localhost "localhost:${addr#*:}" "$addr" '[::1]'; do
        expect 200 -H "Host: $host" "$url/logs/numbers.txt"
    done
}

fault_19_a_token_is_asked_for_and_never_logged() {
    mkdir "$work/private"
    HTTPFSTREAM_TOKEN=hush-hush-7 start_server "$work/private" -v
    expect 401 "${websocket[@]}" "$url/a?verb=APPEND&token=query-secret"
    has_header 'www-authenticate: bearer.*'
    expect 401 "${websocket[@]}" -H "Authorization: Bearer wrong-secret" "$url/a?verb=FOLLOW"
    [ ! -e "$work/private/a" ] || fail "created without a token"
    echo hello | HTTPFSTREAM_TOKEN=hush-hush-7 "$bin/httpfstream-append" "$url/a"
    expect 200 -H "Authorization: Bearer hush-hush-7" "$url/a"
    is_body hello
    expect 401 "$url/a"
    if grep -E 'hush-hush|query-secret|wrong-secret' "$server_log"; then fail "a token is in the log"; fi
    url=$main_url
}

check_read_only_refuses_to_write() {
    mkdir "$work/public"
    echo hello >"$work/public/a"
    start_server "$work/public" --read-only
    expect 403 "${websocket[@]}" "$url/a?verb=APPEND"
    expect 403 -X DELETE "$url/a"
    # A file that was dropped in is a finished resource.
    expect 200 "$url/a"
    has_header 'stream-state: finished'
    url=$main_url
}

check_the_live_one_finished_well() {
    exec 7>&-
    expect_exit 0 "$appender"
    expect 200 "$url/logs/live.txt"
    is_body 'one two three'
    has_header 'stream-state: finished'
}

run_checks
