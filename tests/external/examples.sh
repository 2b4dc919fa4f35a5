#!/usr/bin/env bash
# The examples run, and do what they say.
. "$(dirname "$0")/lib.sh"

examples=$bin/examples

check_quickstart_runs_to_its_end() {
    timeout 60 "$examples/quickstart" >"$work/quickstart.log"
    grep -q 'over the network' "$work/quickstart.log"
}

check_custom_storage_runs_to_its_end() {
    timeout 60 "$examples/custom_storage" >"$work/custom.log"
    [ -s "$work/custom.log" ]
}

check_axum_answers_a_chat_and_guards_its_builds() {
    background "$examples/axum" 127.0.0.1:0 >"$work/axum.log"
    local example=$pid
    eventually grep -qE 'http://127\.0\.0\.1:[0-9]+/' "$work/axum.log"
    url=$(grep -oE 'http://127\.0\.0\.1:[0-9]+' "$work/axum.log" | head -n 1)
    expect 200 "$url/"
    expect 200 "$url/follow.js"
    local id own='Cookie: session=me'
    id=$(curl -sS --max-time 10 -H "$own" -d hello "$url/chat")
    timeout 30 "$bin/httpfstream-follow" -H "$own" "$url/chats/$id" >"$work/chat"
    grep -q 'You said “hello”.*that is all I can say about it\.$' "$work/chat"
    expect 200 -H "$own" "$url/chats/$id"
    cmp "$work/chat" "$work/body"
    # Each session has chats of its own, and their history.
    expect 401 "$url/chats/$id"
    expect 404 -H 'Cookie: session=you' "$url/chats/$id"
    expect 200 -H "$own" "$url/chat"
    [ "$(cat "$work/body")" = "$id" ] || fail "the history is $(cat "$work/body")"
    # Appending is the application's.
    if echo x | "$bin/httpfstream-append" -H "$own" "$url/chats/$id" 2>/dev/null; then fail "anybody appends"; fi
    # A stop keeps the text as a finished stream, whether a user asks for it or the server stops.
    id=$(curl -sS --max-time 10 -H "$own" -d more "$url/chat")
    expect 202 -H "$own" -X POST "$url/chat/$id/stop"
    timeout 30 "$bin/httpfstream-follow" -H "$own" "$url/chats/$id" >"$work/chat"
    [ "$(wc -c <"$work/chat")" -lt 60 ] || fail "it goes on: $(cat "$work/chat")"
    id=$(curl -sS --max-time 10 -H "$own" -d 'at the end' "$url/chat")
    background "$bin/httpfstream-follow" -H "$own" "$url/chats/$id" >"$work/chat"
    local follower=$pid
    eventually grep -q You "$work/chat"
    expect 401 "$url/builds/7"
    expect 200 -H 'Authorization: Bearer sesame' "$url/builds/7"
    grep -q '^step 1 of 600$' "$work/body"
    expect 404 -H "$own" "$url/chats/builds/7"
    kill -TERM "$example"
    expect_exit 0 "$example" 10
    expect_exit 0 "$follower" 10
}

# Starts an example, and sets `$url` to where it listens.
start_example() {
    background "$examples/$1" "${@:2}" >"$work/$1.log"
    eventually grep -qE '(http://)?127\.0\.0\.1:[0-9]+' "$work/$1.log"
    url=http://$(grep -oE '127\.0\.0\.1:[0-9]+' "$work/$1.log" | head -n 1)
}

# Stops it while somebody follows and somebody appends, and sees to it that both are told: a cut, with all that was there.
stop_while_followed() {
    mkfifo "$work/in"
    exec 7<>"$work/in"
    background curl -sS "${@:2}" -T - "$url/streams/$1?verb=APPEND" <"$work/in" >"$work/appended"
    local appender=$pid
    echo "as far as it came" >&7
    eventually curl -sf "${@:2}" "$url/streams/$1"
    background curl -sSN "${@:2}" "$url/streams/$1?verb=FOLLOW" >"$work/followed" 2>/dev/null
    local follower=$pid
    eventually grep -q 'as far as it came' "$work/followed"
    kill -TERM "$example"
    expect_exit 0 "$example" 10
    exec 7>&-
    await_exit "$follower" 10
    [ "$exited" -ne 0 ] || fail "a cut looks like an end"
    await_exit "$appender" 10
    rm "$work/in"
    grep -q stopped "$work"/*.log
}

check_hyper_serves_each_version_and_stops_in_order() {
    local mode http
    for mode in http1 http2 auto; do
        for http in --http1.1 --http2-prior-knowledge; do
            case $mode$http in http1--http2* | http2--http1*) continue ;; esac
            start_example hyper "$mode" 127.0.0.1:0
            example=$pid
            expect 200 $http "$url/"
            is_body "my application"
            expect 404 $http "$url/elsewhere"
            is_body "nothing here"
            seq 1000 >"$work/numbers"
            expect 201 $http -T "$work/numbers" "$url/streams/log.txt?verb=APPEND"
            expect 200 $http "$url/streams/log.txt?verb=FOLLOW"
            cmp "$work/numbers" "$work/body"
            if [ "$http" = --http1.1 ]; then
                # Over WebSockets.
                "$bin/httpfstream-append" "$url/streams/socket.txt" <"$work/numbers"
                timeout 30 "$bin/httpfstream-follow" "$url/streams/socket.txt" | cmp - "$work/numbers"
            fi
            stop_while_followed cut.txt $http
        done
    done
    if "$examples/hyper" http3 2>/dev/null; then fail "http3 is no mode"; fi
}

check_tonic_has_grpc_and_streams_on_one_port() {
    start_example tonic 127.0.0.1:0
    example=$pid
    # A request of no service: the whole server. Its answer is a message of two bytes, and trailers.
    printf '\0\0\0\0\0' >"$work/empty"
    local grpc=(--http2-prior-knowledge -H 'content-type: application/grpc' -H 'te: trailers' --data-binary)
    expect 200 "${grpc[@]}" "@$work/empty" "$url/grpc.health.v1.Health/Check"
    printf '\0\0\0\0\2\10\1' | cmp - "$work/body"
    has_header 'grpc-status: 0'
    # The state of a build, as long as it runs; and its log, over both versions and a WebSocket.
    printf '\0\0\0\0\12\12\10builds/7' >"$work/of_build"
    background curl -sSN "${grpc[@]}" "@$work/of_build" -D "$work/watched.head" -o "$work/watched" "$url/grpc.health.v1.Health/Watch"
    local watcher=$pid
    eventually sh -c "printf '\\0\\0\\0\\0\\2\\10\\1' | cmp - '$work/watched'"
    expect 200 "$url/streams/builds/7"
    grep -q '^step 1 of 600$' "$work/body"
    seq 1000 >"$work/numbers"
    "$bin/httpfstream-append" "$url/streams/socket.txt" <"$work/numbers"
    timeout 30 "$bin/httpfstream-follow" "$url/streams/socket.txt" | cmp - "$work/numbers"
    stop_while_followed cut.txt --http2-prior-knowledge
    # The call that ran meanwhile is over too. (Whether this curl takes its trailers, or takes the server's GOAWAY before
    # them for an end, is a matter of luck; the matrix of hosts sees them.)
    await_exit "$watcher" 10
}

run_checks
