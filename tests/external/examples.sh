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
    eventually grep -qE 'http://127\.0\.0\.1:[0-9]+/' "$work/axum.log"
    url=$(grep -oE 'http://127\.0\.0\.1:[0-9]+' "$work/axum.log" | head -n 1)
    expect 200 "$url/"
    local id
    id=$(curl -sS --max-time 10 -d hello "$url/chat")
    timeout 30 "$bin/httpfstream-follow" "$url/streams/chat/$id" >"$work/chat"
    grep -q 'You said “hello”.*that is all I can say about it\.$' "$work/chat"
    expect 200 "$url/streams/chat/$id"
    cmp "$work/chat" "$work/body"
    # Appending is the application's.
    if echo x | "$bin/httpfstream-append" "$url/streams/chat/$id" 2>/dev/null; then fail "anybody appends"; fi
    expect 401 "$url/builds/7"
    expect 200 -H 'Authorization: Bearer sesame' "$url/builds/7"
    grep -q '^step 1 of 600$' "$work/body"
    expect 404 "$url/streams/builds/7"
    kill -TERM "$pid"
    expect_exit 0 "$pid" 10
}

run_checks
