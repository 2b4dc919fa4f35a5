#!/usr/bin/env bash
# Following and appending with nothing but curl: live bodies, server-sent events, request bodies, parking (protocol
# sections 5 to 7). Nothing is timed: each line has to be seen before the next one is sent.
. "$(dirname "$0")/lib.sh"

h1=--http1.1 h2=--http2-prior-knowledge

# Appends what is written to descriptor 7 with a request's body; its id is in `$appender`. What it was answered is in
# `$work/answer`, and behind that the status.
send_to() {
    rm -f "$work/input"
    mkfifo "$work/input"
    exec 7<>"$work/input"
    background curl -sS --max-time 50 -w '%{http_code}' -T - "${@:2}" "$1" \
        <"$work/input" >"$work/answer" 2>"$work/append.log"
    appender=$pid
}

# Ends the body. The appender has to be answered with this status.
send_end() {
    exec 7>&-
    expect_exit 0 "$appender"
    answered "$1"
}

kill_sender() {
    kill -KILL "$appender"
    exec 7>&-
    expect_exit 137 "$appender"
}

answered() { [ "$(tail -c 3 "$work/answer")" = "$1" ] || fail "answer $(cat "$work/answer"), expected $1"; }

# Starts a follower that writes to `$work/$1.out`, its answer's head to `$work/$1.head`; its id is in `$pid`.
follow_to() {
    : >"$work/$1.head"
    background curl -sSN --max-time 50 -D "$work/$1.head" "${@:2}" >"$work/$1.out" 2>>"$work/follow.log"
}

shows() { [ "$(cat "$work/$1.out")" = "$2" ]; }
is_answered() { grep -q . "$work/$1.head"; }
stored_is() { [ "$(curl -sS --max-time 10 "$1")" = "$2" ]; }
head_of() { curl -sSI --max-time 10 "$1" | tr -d '\r' | sed -n "s/^$2: //Ip"; }
is_state() { [ "$(head_of "$1" stream-state)" = "$2" ]; }
has_size() { [ "$(head_of "$1" upload-offset)" = "$2" ]; }
has_problem() {
    has_header 'content-type: application/problem\+json'
    grep -q "\"type\":\"urn:httpfstream:problem:$1\"" "$work/body" || fail "no problem $1: $(cat "$work/body")"
    grep -q '"detail":"[^"]' "$work/body" || fail "it says nothing: $(cat "$work/body")"
}
# The data of the events that have come, as far as they are text, without line feeds at the end.
told() { grep -v '^data: {' "$work/$1.out" | sed -n 's/^data: //p'; }
tells() { [ "$(told "$1")" = "$2" ]; }
last_id() { sed -n 's/^id: //p' "$work/$1.out" | tail -n 1; }

mkdir "$work/root"
start_server "$work/root" --grace=1
main_url=$url
head -c 12000000 /dev/urandom >"$work/big"

check_each_line_is_seen_before_the_next_is_sent() {
    local up down line seen pids
    for up in $h1 $h2; do
        send_to "$url/lines$up?verb=APPEND" $up
        seen=
        pids=()
        for down in $h1 $h2 events; do
            follow_to "$down" "$url/lines$up?verb=FOLLOW&wait=20" \
                $([ $down = events ] && echo '-HAccept:text/event-stream' || echo $down)
            pids+=("$pid")
        done
        for line in one two three; do
            echo $line >&7
            seen+=${seen:+$'\n'}$line
            for down in $h1 $h2; do eventually shows "$down" "$seen"; done
            # A line feed at the end of an event's data is an empty line behind it.
            eventually grep -qx "data: $line" "$work/events.out"
            grep -qi '^stream-state: live' "$work/$down.head"
        done
        for pid in "${pids[@]}"; do kill -0 "$pid" || fail "a follower ended"; done
        send_end 201
        for pid in "${pids[@]}"; do expect_exit 0 "$pid"; done
        for down in $h1 $h2; do shows "$down" "$seen"; done
        is_state "$url/lines$up" finished
        stored_is "$url/lines$up" "$seen"
        # Without line ends too, as prompts have none.
        send_to "$url/lines$up?verb=APPEND&offset=14" $up
        follow_to prompt "$url/lines$up?verb=FOLLOW&offset=14" --retry 0
        printf 'pro' >&7
        eventually stored_is "$url/lines$up" "$seen"$'\npro'
        printf 'mpt>' >&7
        eventually stored_is "$url/lines$up" "$seen"$'\nprompt>'
        send_end 200
    done
}

check_any_bytes_arrive_exactly() {
    local up down pids=()
    for up in $h1 $h2; do
        send_to "$url/big$up?verb=APPEND" $up
        for down in $h1 $h2; do
            follow_to "big$down" "$url/big$up?verb=FOLLOW&wait=20" $down
            pids+=("$pid")
        done
        cat "$work/big" >&7
        send_end 201
        for pid in "${pids[@]}"; do expect_exit 0 "$pid"; done
        for down in $h1 $h2; do cmp "$work/big" "$work/big$down.out"; done
        cmp "$work/big" "$work/root/big$up"
    done
}

check_a_killed_appender_cuts_its_followers_behind_the_last_byte() {
    send_to "$url/killed?verb=APPEND"
    printf 'half a wo' >&7
    eventually stored_is "$url/killed" 'half a wo'
    follow_to one "$url/killed?verb=FOLLOW" $h1
    local one=$pid
    follow_to two "$url/killed?verb=FOLLOW" $h2
    local two=$pid
    follow_to events "$url/killed?verb=FOLLOW" -H 'Accept: text/event-stream'
    local events=$pid
    eventually shows one 'half a wo'
    eventually shows two 'half a wo'
    kill_sender
    expect_exit 18 "$one"
    expect_exit 92 "$two"
    # The last event tells it.
    expect_exit 0 "$events"
    grep -qx 'data: {"state":"interrupted","length":9}' "$work/events.out"
    shows one 'half a wo'
    shows two 'half a wo'
    is_state "$url/killed" interrupted
    # Who comes later learns it from the head.
    expect 200 "$url/killed?verb=FOLLOW"
    has_header 'stream-state: interrupted'
    has_header 'upload-complete: \?0'
    is_body 'half a wo'
    # It can be gone on with.
    expect 200 --data-binary rd "$url/killed?verb=APPEND&offset=9"
    expect 200 "$url/killed?verb=FOLLOW"
    has_header 'stream-state: finished'
    is_body 'half a word'
}

# Over HTTP/1.1: curl 7.88 forgets what it holds back over HTTP/2 when the reset comes (see python_http.py for that).
check_a_slow_reader_gets_everything_before_the_abort() {
    send_to "$url/slow?verb=APPEND"
    printf x >&7
    eventually stored_is "$url/slow" x
    follow_to slow "$url/slow?verb=FOLLOW&offset=1" $h1 --limit-rate 4M
    local slow=$pid
    eventually is_answered slow
    cat "$work/big" >&7
    eventually has_size "$url/slow" 12000001
    kill_sender
    expect_exit 18 "$slow"
    cmp "$work/big" "$work/slow.out"
}

check_http_1_0_gets_only_what_can_not_be_cut() {
    send_to "$url/old?verb=APPEND"
    printf 'old' >&7
    eventually stored_is "$url/old" old
    expect 505 --http1.0 "$url/old?verb=FOLLOW"
    has_problem http-version
    grep -q 'HTTP/1.1' "$work/body"
    # A snapshot it can have.
    expect 200 --http1.0 "$url/old"
    is_body old
    send_end 201
    expect 200 --http1.0 "$url/old?verb=FOLLOW"
    is_body old
    has_header 'content-length: 3'
}

check_followers_begin_where_they_ask_to() {
    send_to "$url/begin?verb=APPEND"
    printf 'one\ntwo\nthree\n' >&7
    eventually stored_is "$url/begin" $'one\ntwo\nthree'
    local life names=() pids=()
    life=$(head_of "$url/begin" stream-life)
    begin() {
        follow_to "$1" "${@:2}"
        names+=("$1")
        pids+=("$pid")
        eventually is_answered "$1"
    }
    begin offset "$url/begin?verb=FOLLOW&offset=8&life=$life"
    begin tail "$url/begin?verb=FOLLOW&tail=6"
    begin lines "$url/begin?verb=FOLLOW&lines=1"
    begin range "$url/begin?verb=FOLLOW" -r 8-
    begin unbounded "$url/begin?verb=FOLLOW" -r 8-9007199254740991
    begin suffix "$url/begin?verb=FOLLOW" -r -6
    begin end "$url/begin?verb=FOLLOW&offset=14" $h2
    begin from-end "$url/begin?verb=FOLLOW" -r 14- $h2
    local name
    for name in range unbounded suffix; do
        head -n 1 "$work/$name.head" | grep -q ' 206'
        grep -qi '^content-range: bytes 8-9007199254740991/\*' "$work/$name.head"
    done
    head -n 1 "$work/from-end.head" | grep -q ' 206'
    grep -qi '^content-range: bytes 14-9007199254740991/\*' "$work/from-end.head"
    for name in offset tail lines range; do
        head -n 1 "$work/$name.head" | grep -q ' 20[06]'
        grep -qi '^stream-offset: 8' "$work/$name.head"
        eventually shows "$name" three
    done
    # A closed range of what is stored needs no waiting.
    expect 206 "$url/begin?verb=FOLLOW" -r 4-6
    is_body two
    has_header 'content-range: bytes 4-6/14'
    expect 416 "$url/begin?verb=FOLLOW&offset=15"
    has_problem past-end
    expect 416 "$url/begin?verb=FOLLOW" -r 15-
    expect 412 "$url/begin?verb=FOLLOW&life=0123456789abcdef0123456789abcdef"
    has_problem life
    expect 400 "$url/begin?verb=FOLLOW&offset=1&tail=1"
    has_problem bad-request
    expect 400 "$url/begin?verb=FOLLOW&offset=-1"
    expect 400 "$url/begin?verb=FOLLOW&lines=1" -r 0-
    # HEAD is the head of all that, and does not wait.
    expect 200 -I "$url/begin?verb=FOLLOW&offset=8"
    has_header 'stream-offset: 8'
    has_header 'stream-state: live'
    has_header 'upload-offset: 14'
    has_header 'cache-control: no-store, no-transform'
    has_header 'x-accel-buffering: no'
    has_header 'content-encoding: identity'
    has_no_header content-length
    expect 206 -I -r 8- "$url/begin?verb=FOLLOW"
    has_header 'content-range: bytes 8-9007199254740991/\*'
    printf 'four' >&7
    send_end 201
    for pid in "${pids[@]}"; do expect_exit 0 "$pid"; done
    for name in "${names[@]}"; do
        if [[ $name = *end ]]; then shows "$name" four; else shows "$name" $'three\nfour'; fi
    done
}

check_absent_things_can_be_waited_for() {
    expect 404 "$url/late?verb=FOLLOW&wait=1"
    has_problem not-found
    local up pids=() wait
    follow_to query "$url/late?verb=FOLLOW&wait=20"
    pids+=("$pid")
    follow_to prefer "$url/late?verb=FOLLOW" -H 'Prefer: wait=20' $h2
    pids+=("$pid")
    follow_to events "$url/late?verb=FOLLOW&wait=20" -H 'Accept: text/event-stream'
    pids+=("$pid")
    send_to "$url/late?verb=APPEND"
    printf here >&7
    eventually shows query here
    eventually shows prefer here
    eventually tells events here
    send_end 201
    for pid in "${pids[@]}"; do expect_exit 0 "$pid"; done
}

check_events_are_resumed_and_end_with_204() {
    send_to "$url/events?verb=APPEND"
    printf 'one\ntwo\n' >&7
    eventually stored_is "$url/events" $'one\ntwo'
    local life events=(-H 'Accept: text/event-stream')
    life=$(head_of "$url/events" stream-life)
    follow_to first "$url/events?verb=FOLLOW" "${events[@]}"
    local first=$pid
    eventually tells first $'one\ntwo'
    grep -qi '^content-type: text/event-stream' "$work/first.head"
    grep -qxF "data: {\"offset\":0,\"life\":\"$life\",\"state\":\"live\"}" "$work/first.out"
    [ "$(last_id first)" = "$life:8" ] || fail "$(last_id first)"
    # A reader that was cut comes back, whatever its address says about where to begin.
    kill -KILL "$first"
    expect_exit 137 "$first"
    follow_to second "$url/events?verb=FOLLOW&offset=1" "${events[@]}" -H "Last-Event-ID: $life:8"
    local second=$pid
    eventually grep -q '"offset":8' "$work/second.out"
    printf 'three \xc3\xa4\n' >&7
    eventually tells second 'three ä'
    printf 'no text: \xff\xfe\r\n' >&7
    eventually grep -qx "data: $(printf 'no text: \xff\xfe\r\n' | base64)" "$work/second.out"
    send_end 201
    expect_exit 0 "$second"
    grep -qx 'event: base64' "$work/second.out"
    tail -n 3 "$work/second.out" | grep -qx 'data: {"state":"finished","length":30}' || fail "$(cat "$work/second.out")"
    expect 204 "${events[@]}" -H "Last-Event-ID: $(last_id second)" "$url/events?verb=FOLLOW"
    expect 200 "${events[@]}" -H "Last-Event-ID: $life:4" "$url/events?verb=FOLLOW"
    grep -qx 'data: two' "$work/body"
    expect 412 "${events[@]}" -H "Last-Event-ID: 0123456789abcdef0123456789abcdef:4" "$url/events?verb=FOLLOW"
    expect 416 "${events[@]}" -H "Last-Event-ID: $life:31" "$url/events?verb=FOLLOW"
    expect 400 "${events[@]}" -H "Last-Event-ID: 4" "$url/events?verb=FOLLOW"
}

check_an_interrupted_end_is_told_once() {
    send_to "$url/told?verb=APPEND"
    printf 'one' >&7
    eventually stored_is "$url/told" one
    kill_sender
    eventually is_state "$url/told" interrupted
    local events=(-H 'Accept: text/event-stream') id
    id=$(head_of "$url/told" stream-life):3
    expect 200 "${events[@]}" -H "Last-Event-ID: $id" "$url/told?verb=FOLLOW"
    grep -qx 'data: {"state":"interrupted","length":3}' "$work/body"
    expect 204 "${events[@]}" -H "Last-Event-ID: $id:interrupted" "$url/told?verb=FOLLOW"
    expect 200 --data-binary ' two' "$url/told?verb=APPEND"
    expect 200 "${events[@]}" -H "Last-Event-ID: $id:interrupted" "$url/told?verb=FOLLOW"
    grep -qx 'data:  two' "$work/body"
}

check_a_replayed_put_is_409_and_a_post_appends() {
    expect 201 -T "$work/big" "$url/put?verb=APPEND"
    has_header 'upload-offset: 12000000'
    has_header 'upload-complete: \?1'
    has_header 'stream-state: finished'
    has_header 'location: \./put'
    expect 409 -T "$work/big" "$url/put?verb=APPEND"
    has_problem offset
    has_header 'upload-offset: 12000000'
    cmp "$work/big" "$work/root/put"
    expect 200 --data-binary $'more\n' "$url/put?verb=APPEND"
    has_header 'upload-offset: 12000005'
    expect 409 --data-binary x "$url/put?verb=APPEND&offset=5"
    expect 409 --data-binary x "$url/put?verb=APPEND" -H 'Upload-Offset: 5'
    expect 409 --data-binary x "$url/put?verb=APPEND" -H 'If-None-Match: *'
    has_problem exists
    expect 412 --data-binary x "$url/put?verb=APPEND" -H 'If-Match: "other"'
    has_problem precondition
    expect 200 --data-binary x "$url/put?verb=APPEND" -H "If-Match: $(head_of "$url/put" etag)"
    [ "$(tail -c 6 "$work/root/put")" = $'more\nx' ]
    # An empty one is one too.
    expect 201 -T /dev/null "$url/empty?verb=APPEND"
    expect 200 "$url/empty?verb=FOLLOW"
    has_header 'content-length: 0'
    expect 204 -X DELETE "$url/empty"
    expect 404 "$url/empty?verb=FOLLOW"
}

check_parts_are_parked_between_requests() {
    local more=(-H 'Upload-Complete: ?0')
    expect 201 "${more[@]}" --data-binary 'one ' "$url/parts?verb=APPEND"
    has_header 'stream-state: parked'
    has_header 'upload-complete: \?0'
    is_state "$url/parts" parked
    follow_to one "$url/parts?verb=FOLLOW"
    local one=$pid
    follow_to two "$url/parts?verb=FOLLOW" $h2
    local two=$pid
    eventually shows one 'one '
    expect 200 "${more[@]}" --data-binary 'two ' "$url/parts?verb=APPEND"
    eventually shows one 'one two '
    expect 409 "${more[@]}" -X PATCH -H 'Content-Type: application/partial-upload' -H 'Upload-Offset: 4' \
        --data-binary 'three ' "$url/parts"
    has_header 'upload-offset: 8'
    expect 200 "${more[@]}" -X PATCH -H 'Content-Type: application/partial-upload' -H 'Upload-Offset: 8' \
        --data-binary 'three ' "$url/parts"
    eventually shows two 'one two three '
    kill -0 "$one" && kill -0 "$two"
    # The last one is known by not saying that it isn't, or by saying so.
    expect 200 -H 'Upload-Complete: ?1' --data-binary end "$url/parts?verb=APPEND"
    has_header 'stream-state: finished'
    expect_exit 0 "$one"
    expect_exit 0 "$two"
    shows one 'one two three end'
    shows two 'one two three end'
}

check_a_resumable_upload_is_gone_on_with_after_a_cut() {
    local secret=0123456789abcdefghijkl_A
    send_to "$url/resumed?verb=APPEND" -H "Appender-Id: $secret"
    head -c 5000000 "$work/big" >&7
    eventually has_size "$url/resumed" 5000000
    follow_to resumed "$url/resumed?verb=FOLLOW"
    local follower=$pid
    kill_sender
    eventually is_state "$url/resumed" lost
    # Nobody else meanwhile.
    expect 409 --data-binary x "$url/resumed?verb=APPEND"
    has_problem busy
    tail -c +5000001 "$work/big" >"$work/rest"
    expect 200 -T "$work/rest" "$url/resumed?verb=APPEND&offset=5000000" -H "Appender-Id: $secret"
    expect_exit 0 "$follower"
    cmp "$work/big" "$work/resumed.out"
    # One that doesn't come back is given up after its grace.
    send_to "$url/given-up?verb=APPEND" -H "Appender-Id: $secret"
    printf x >&7
    eventually stored_is "$url/given-up" x
    follow_to given "$url/given-up?verb=FOLLOW"
    follower=$pid
    eventually shows given x
    kill_sender
    expect_exit 18 "$follower"
    is_state "$url/given-up" interrupted
}

fault_29_a_second_appender_is_refused_before_it_sends() {
    send_to "$url/busy?verb=APPEND"
    printf mine >&7
    eventually stored_is "$url/busy" mine
    expect 409 -v --stderr "$work/trace" --expect100-timeout 10 -H 'Expect: 100-continue' -T "$work/big" \
        "$url/busy?verb=APPEND"
    has_problem busy
    grep -qi '^> expect: 100-continue' "$work/trace"
    if grep -q '^< HTTP/1.1 100' "$work/trace"; then fail "it was told to go on"; fi
    # Where nobody asks, it sends until it has the answer, and gets it.
    local version body
    for version in $h1 $h2; do
        for body in /dev/null "$work/big" "$work/big"; do
            expect 409 $version -H 'Expect:' -T "$body" "$url/busy?verb=APPEND"
            has_problem busy
        done
        expect 415 $version -H 'Expect:' -F "file=@$work/big" "$url/form?verb=APPEND"
        expect 405 $version -H 'Expect:' -T "$work/big" "$url/busy?verb=FOLLOW"
    done
    # What is taken is asked for.
    expect 201 -v --stderr "$work/trace" --expect100-timeout 10 -H 'Expect: 100-continue' -T "$work/big" \
        "$url/idle?verb=APPEND"
    grep -q '^< HTTP/1.1 100' "$work/trace"
    # And not what can be refused by its head.
    uploaded() {
        status=$(curl -sS --max-time 10 -o "$work/body" -D "$work/head" -w '%{size_upload} %{http_code}' \
            --expect100-timeout 10 -H 'Expect: 100-continue' "$@")
    }
    uploaded -T "$work/big" "$url/idle?verb=APPEND"
    [ "$status" = '0 409' ] || fail "$status"
    uploaded -T "$work/big" "$url/busy?verb=APPEND"
    [ "$status" = '0 409' ] || fail "$status"
    uploaded -F "file=@$work/big" "$url/form?verb=APPEND"
    [ "$status" = '0 415' ] || fail "$status"
    send_end 201
    [ "$(cat "$work/root/busy")" = mine ]
}

fault_43_too_large_is_413() {
    mkdir "$work/small"
    start_server "$work/small" --max-resource-size=1000
    head -c 1000 "$work/big" >"$work/fits"
    head -c 1001 "$work/big" >"$work/large"
    expect 413 -T "$work/large" "$url/large?verb=APPEND"
    has_problem too-large
    [ ! -e "$work/small/large" ] || fail "created"
    expect 413 -H 'Upload-Complete: ?0' -H 'Upload-Length: 1001' --data-binary x "$url/large"
    [ ! -e "$work/small/large" ] || fail "created"
    expect 201 -T "$work/fits" "$url/fits?verb=APPEND"
    expect 413 --data-binary x "$url/fits?verb=APPEND"
    cmp "$work/fits" "$work/small/fits"
    is_state "$url/fits" finished
    # Without a length it is known in the middle.
    send_to "$url/grows?verb=APPEND"
    cat "$work/fits" >&7
    eventually has_size "$url/grows" 1000
    follow_to grows "$url/grows?verb=FOLLOW"
    eventually is_answered grows
    printf x >&7
    exec 7>&-
    expect_exit 18 "$pid"
    expect_exit 0 "$appender"
    answered 413
    cmp "$work/fits" "$work/grows.out"
    is_state "$url/grows" interrupted
    url=$main_url
}

check_what_can_not_be_meant_is_refused() {
    local partial=(-X PATCH -H 'Content-Type: application/partial-upload')
    expect 415 -F file=@"$work/big" "$url/odd?verb=APPEND"
    has_problem media-type
    expect 415 -H 'Content-Encoding: gzip' -T "$work/big" "$url/odd?verb=APPEND"
    has_problem media-type
    expect 415 -X PATCH -H 'Upload-Offset: 0' --data-binary x "$url/odd?verb=APPEND"
    has_problem media-type
    has_header 'accept-patch: application/partial-upload'
    expect 400 "${partial[@]}" --data-binary x "$url/odd"
    has_problem bad-request
    # curl's own way to continue an upload.
    expect 400 -C 5 -T "$work/big" "$url/odd?verb=APPEND"
    has_problem bad-request
    grep -q Upload-Offset "$work/body"
    expect 400 -H 'Upload-Complete: yes' --data-binary x "$url/odd"
    expect 400 -H 'Upload-Offset: -1' --data-binary x "$url/odd?verb=APPEND"
    expect 400 -H 'Upload-Offset: 1' --data-binary x "$url/odd?verb=APPEND&offset=2"
    expect 400 -H 'Appender-Id: short' --data-binary x "$url/odd?verb=APPEND"
    expect 400 --data-binary x "$url/odd?verb=APPEND" -H 'X-Verb: FOLLOW'
    has_problem bad-request
    expect 400 --path-as-is --data-binary x "$url/a/../odd?verb=APPEND"
    has_problem bad-path
    expect 405 --data-binary x "$url/odd?verb=FOLLOW"
    has_problem method
    has_header 'allow: GET, HEAD'
    expect 426 "$url/odd?verb=APPEND"
    has_problem upgrade-required
    expect 403 -H 'Origin: http://evil.example' --data-binary x "$url/odd?verb=APPEND"
    has_problem not-allowed
    expect 400 --data-binary x "$url/odd?verb=WRITE"
    [ ! -e "$work/root/odd" ] || fail "created"
}

check_a_download_of_a_live_one_is_gone_on_with() {
    local part=$work/part
    send_to "$url/part?verb=APPEND"
    head -c 3000000 "$work/big" >&7
    eventually has_size "$url/part" 3000000
    background curl -sSN --max-time 50 -o "$part" "$url/part?verb=FOLLOW"
    eventually cmp -s -n 3000000 "$work/big" "$part"
    kill -KILL "$pid"
    expect_exit 137 "$pid"
    background curl -sSN --max-time 50 -C - -o "$part" "$url/part?verb=FOLLOW"
    head -c 6000000 "$work/big" | tail -c +3000001 >&7
    eventually cmp -s -n 6000000 "$work/big" "$part"
    # The stream is cut; the reader that goes on where it was cut has all of it in the end.
    kill_sender
    expect_exit 18 "$pid"
    send_to "$url/part?verb=APPEND&offset=6000000"
    head -c 7000000 "$work/big" | tail -c +6000001 >&7
    eventually has_size "$url/part" 7000000
    background curl -sSN --max-time 50 -C - -o "$part" "$url/part?verb=FOLLOW"
    tail -c +7000001 "$work/big" >&7
    eventually cmp -s "$work/big" "$part"
    send_end 200
    expect_exit 0 "$pid"
    cmp "$work/big" "$part"
    # Once more there is nothing left.
    local code=0
    curl -sSN --max-time 10 -C - -o "$part" "$url/part?verb=FOLLOW" || code=$?
    cmp "$work/big" "$part"
    [ "$code" = 0 ] || fail "exit code $code"
}

fault_44_sigterm_ends_bodies_behind_the_last_byte() {
    mkdir "$work/stopped"
    start_server "$work/stopped"
    follow_to waiting "$url/nothing?verb=FOLLOW&wait=30" --trace-ascii "$work/trace"
    local waiting=$pid
    eventually grep -q 'GET /nothing' "$work/trace"
    send_to "$url/term?verb=APPEND"
    cat "$work/big" >&7
    eventually has_size "$url/term" 12000000
    follow_to one "$url/term?verb=FOLLOW" $h1
    local one=$pid
    follow_to two "$url/term?verb=FOLLOW" $h2
    local two=$pid
    follow_to events "$url/term?verb=FOLLOW&offset=12000000" -H 'Accept: text/event-stream'
    local events=$pid
    # One that takes nothing must not hold it up.
    exec 8<>"/dev/tcp/127.0.0.1/${url##*:}"
    printf 'GET /term?verb=FOLLOW HTTP/1.1\r\nHost: %s\r\n\r\n' "$addr" >&8
    eventually cmp -s "$work/big" "$work/one.out"
    eventually cmp -s "$work/big" "$work/two.out"
    eventually grep -q state "$work/events.out"
    kill -TERM "$server"
    expect_exit 0 "$server" 11
    exec 8>&-
    expect_exit 18 "$one"
    # curl 7.88 says the one or the other where the reset and the connection's end come together.
    await_exit "$two" 20
    [[ $exited = 92 || $exited = 18 ]] || fail "exit code $exited"
    expect_exit 18 "$events"
    cmp "$work/big" "$work/one.out"
    cmp "$work/big" "$work/two.out"
    cmp "$work/big" "$work/stopped/term"
    if grep -q '"length"' "$work/events.out"; then fail "an end was told"; fi
    expect_exit 0 "$waiting"
    head -n 1 "$work/waiting.head" | grep -q ' 503'
    exec 7>&-
    expect_exit 0 "$appender"
    answered 503
    url=$main_url
}

run_checks
