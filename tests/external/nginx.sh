#!/usr/bin/env bash
# Debian's nginx in front of the built server, with the lines of src/docs/operating.md: what is live stays live. Nothing is
# timed but nginx's own timeouts: each line has to be seen before the next one is sent.
. "$(dirname "$0")/lib.sh"

PATH=$PATH:/usr/sbin
command -v nginx >/dev/null || fail "there is no nginx: apt-get install nginx-light"

h1=--http1.1 h2=--http2-prior-knowledge

sed -n '/^```nginx$/,/^```$/p' "$repo/src/docs/operating.md" | sed '1d;$d' >"$work/lines"
[ -s "$work/lines" ] || fail "src/docs/operating.md has no lines for nginx"

# Starts nginx with these lines of a server, where the page's stand for the addresses. Around them stands what would spoil
# everything that the lines don't set: short timeouts, small bodies, compression of all. Sets `$proxy`, `$proxy2` (which speaks
# HTTP/2) and `$nginx`.
proxies=0
start_nginx() {
    proxies=$((proxies + 1))
    local dir=$work/nginx$proxies
    mkdir -p "$dir"
    {
        # A worker of another user can't reach the folder.
        if [ "$(id -u)" = 0 ]; then echo 'user root;'; fi
        cat <<-END
		daemon off;
		worker_processes 1;
		pid $dir/pid;
		error_log $dir/error.log info;
		events { worker_connections 256; }
		http {
		    access_log off;
		    client_body_temp_path $dir/body;
		    proxy_temp_path $dir/proxy;
		    fastcgi_temp_path $dir/fastcgi;
		    uwsgi_temp_path $dir/uwsgi;
		    scgi_temp_path $dir/scgi;
		    types { text/plain txt; }
		    gzip on;
		    gzip_proxied any;
		    gzip_min_length 0;
		    gzip_types *;
		    client_max_body_size 1k;
		    client_body_timeout 1s;
		    proxy_read_timeout 1s;
		    proxy_send_timeout 1s;
		END
        sed -e "s/listen 80;/listen 127.0.0.1:PORT1; listen 127.0.0.1:PORT2 http2;/" -e "s/127\.0\.0\.1:8080/$addr/"
        echo '}'
    } >"$dir/template"
    # Ports of the system's choosing: nginx takes over sockets that are open, as when it is upgraded.
    background python3 - "$dir" <<-'END'
		import os, pathlib, socket, sys
		folder = pathlib.Path(sys.argv[1])
		text, sockets = (folder / "template").read_text(), [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
		for at, one in enumerate(sockets, 1):
		    text = text.replace(f"PORT{at}", str(one.getsockname()[1]))
		    one.set_inheritable(True)
		(folder / "conf").write_text(text)
		(folder / "ports").write_text(" ".join(str(one.getsockname()[1]) for one in sockets) + "\n")
		os.environ["NGINX"] = "".join(f"{one.fileno()};" for one in sockets)
		os.execvp("nginx", ["nginx", "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "conf")])
	END
    nginx=$pid
    eventually test -s "$dir/ports"
    read -r proxy proxy2 <"$dir/ports"
    proxy=http://127.0.0.1:$proxy proxy2=http://127.0.0.1:$proxy2
    eventually answers "$proxy/none" 404
}

stop_nginx() {
    kill -TERM "$nginx"
    expect_exit 0 "$nginx"
    nginx=
}

# Killed, it would leave its worker behind.
clean_up_gently() {
    local code=$?
    trap - ERR
    set +e
    if [ -n "${nginx:-}" ]; then
        kill -TERM "$nginx" 2>/dev/null
        wait "$nginx"
    fi
    (exit "$code")
    clean_up
}
trap clean_up_gently EXIT

answers() { [ "$(curl -sS --max-time 2 -o "$work/ignored" -w '%{http_code}' "$1")" = "$2" ]; }

send_to() {
    rm -f "$work/input"
    mkfifo "$work/input"
    exec 7<>"$work/input"
    background "$@" <"$work/input" >"$work/answer" 2>"$work/append.log"
    appender=$pid
}

follow_to() { background "${@:2}" >"$work/$1.out" 2>>"$work/follow.log"; }
curl_follow() { follow_to "$1" curl -sSN --max-time 40 --compressed -D "$work/$1.head" "${@:2}"; }

shows() { [ "$(cat "$work/$1.out")" = "$2" ]; }
stored_is() { [ "$(curl -sS --max-time 10 "$1")" = "$2" ]; }

# Those who follow `$1`, in every way, through nginx.
followers=(plain plain2 events socket)
follow_all() {
    pids=()
    curl_follow plain $h1 "$proxy/$1?verb=FOLLOW&wait=20"
    pids+=("$pid")
    curl_follow plain2 $h2 "$proxy2/$1?verb=FOLLOW&wait=20"
    pids+=("$pid")
    curl_follow events -H 'Accept: text/event-stream' "$proxy/$1?verb=FOLLOW&wait=20"
    pids+=("$pid")
    follow_to socket "$bin/httpfstream-follow" --wait "$proxy/$1"
    pids+=("$pid")
}

# Sends three lines; each is seen by all followers, and at the origin, before the next is sent.
each_line_is_seen() {
    local line seen=
    for line in one two three; do
        echo $line >&7
        seen+=${seen:+$'\n'}$line
        eventually stored_is "$url/$1" "$seen"
        for follower in plain plain2 socket; do eventually shows $follower "$seen"; done
        eventually grep -qx "data: $line" "$work/events.out"
    done
}

all_end_well() {
    exec 7>&-
    expect_exit 0 "$appender"
    for pid in "${pids[@]}"; do expect_exit 0 "$pid"; done
    for follower in plain plain2 socket; do shows $follower $'one\ntwo\nthree'; done
}

mkdir "$work/root"
start_server "$work/root" --grace=1 --allow-host=example.com
start_nginx <"$work/lines"
head -c 12000000 /dev/urandom >"$work/big"

check_a_streaming_put_is_live_through_it() {
    follow_all put.txt
    send_to curl -sS --max-time 40 $h1 -T - "$proxy/put.txt?verb=APPEND"
    each_line_is_seen put.txt
    all_end_well
}

check_a_streaming_put_over_http2_is_live_through_it() {
    follow_all put2.txt
    send_to curl -sS --max-time 40 $h2 -T - "$proxy2/put2.txt?verb=APPEND"
    each_line_is_seen put2.txt
    all_end_well
}

check_a_websocket_is_live_through_it() {
    follow_all socket.txt
    send_to "$bin/httpfstream-append" "$proxy/socket.txt"
    each_line_is_seen socket.txt
    all_end_well
}

check_many_bytes_go_through_both_ways() {
    curl_follow big "$proxy/big?verb=FOLLOW&wait=20"
    local one=$pid
    curl_follow big2 $h2 "$proxy2/big?verb=FOLLOW&wait=20"
    local two=$pid
    expect 201 -T "$work/big" "$proxy/big?verb=APPEND"
    expect_exit 0 "$one"
    expect_exit 0 "$two"
    cmp "$work/big" "$work/big.out"
    cmp "$work/big" "$work/big2.out"
    # Of what is at rest too, compressed, as a download and in parts.
    expect 200 -H 'Accept-Encoding: gzip' "$proxy/put.txt"
    has_header 'content-encoding: gzip'
    [ "$(gunzip <"$work/body")" = $'one\ntwo\nthree' ]
    expect 200 "$proxy/big"
    cmp "$work/big" "$work/body"
    expect 206 -r 5-9 "$proxy/big"
    cmp <(head -c 10 "$work/big" | tail -c 5) "$work/body"
}

check_quiet_streams_outlast_what_nginx_bears_otherwise() {
    follow_all quiet
    send_to curl -sS --max-time 40 -T - "$proxy/quiet?verb=APPEND"
    echo one >&7
    eventually shows plain one
    # Longer than the second that stands around the lines.
    sleep 2.5
    for pid in "$appender" "${pids[@]}"; do kill -0 "$pid" || fail "cut: $(cat "$work/append.log" "$work/follow.log")"; done
    echo two >&7
    eventually shows plain $'one\ntwo'
    echo three >&7
    all_end_well
}

fault_24_a_cut_is_seen_as_one_through_it() {
    follow_all cut
    send_to curl -sS --max-time 40 -T - "$proxy/cut?verb=APPEND"
    echo one >&7
    for follower in plain plain2 socket; do eventually shows $follower one; done
    eventually grep -qx 'data: one' "$work/events.out"
    kill -KILL "$appender"
    exec 7>&-
    expect_exit 137 "$appender"
    expect_exit 18 "${pids[0]}"
    expect_exit 92 "${pids[1]}"
    expect_exit 0 "${pids[2]}"
    grep -q '"state":"interrupted"' "$work/events.out"
    expect_exit 3 "${pids[3]}"
    for follower in plain plain2 socket; do shows $follower one; done
}

fault_29_a_refusal_comes_through_it() {
    send_to curl -sS --max-time 40 -T - "$proxy/busy?verb=APPEND"
    echo one >&7
    eventually stored_is "$url/busy" one
    # nginx resets what it has answered over HTTP/2, which curl 7.88 takes for a failure.
    expect 409 -T "$work/big" "$proxy/busy?verb=APPEND"
    grep -q 'urn:httpfstream:problem:busy' "$work/body"
    exec 7>&-
    expect_exit 0 "$appender"
}

fault_17_the_site_is_known_by_its_own_name() {
    local site=example.com:${proxy##*:}
    local page=(--connect-to "$site:127.0.0.1:${proxy##*:}" "http://$site/page?verb=APPEND")
    expect 201 -H "Origin: http://$site" --data-binary x "${page[@]}"
    expect 403 -H "Origin: http://evil.example" --data-binary x "${page[@]}"
    status=$(curl -sS --max-time 0.5 -o "$work/ignored" -w '%{http_code}' -H "Origin: http://$site" $h1 \
        -H "Connection: Upgrade" -H "Upgrade: websocket" -H "Sec-WebSocket-Version: 13" \
        -H "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==" "${page[@]}" 2>"$work/trace") || true
    [ "$status" = 101 ] || fail "status $status"
    # On loopback the server wants to be told of it.
    expect 421 -H 'Host: other.example' "$proxy/page"
}

fault_44_a_stop_is_seen_as_a_cut() {
    follow_all term
    send_to curl -sS --max-time 40 -T - "$proxy/term?verb=APPEND"
    echo one >&7
    for follower in plain plain2 socket; do eventually shows $follower one; done
    kill -TERM "$server"
    expect_exit 0 "$server" 11
    expect_exit 18 "${pids[0]}"
    expect_exit 92 "${pids[1]}"
    expect_exit 18 "${pids[2]}"
    exec 7>&-
    expect_exit 0 "$appender"
    kill -KILL "${pids[3]}"
    expect_exit 137 "${pids[3]}"
    stop_nginx
    start_server "$work/root" --grace=1
}

check_without_http_1_1_a_live_body_says_what_to_do() {
    sed '/proxy_http_version/d' "$work/lines" >"$work/old"
    start_nginx <"$work/old"
    send_to "$bin/httpfstream-append" "$url/old"
    echo one >&7
    eventually stored_is "$url/old" one
    expect 505 "$proxy/old?verb=FOLLOW"
    grep -qF 'proxy_http_version 1.1;' "$work/body"
    exec 7>&-
    expect_exit 0 "$appender"
    expect 200 "$proxy/old?verb=FOLLOW"
    is_body one
    stop_nginx
}

check_what_the_other_lines_are_for() {
    local line
    without() {
        grep -q "$1" "$work/lines" || fail "the page lacks $1"
        sed "/$1/d" "$work/lines" >"$work/less"
        start_nginx <"$work/less"
    }
    without proxy_request_buffering
    send_to curl -sS --max-time 40 -T - "$proxy/gathered?verb=APPEND"
    echo one >&7
    sleep 0.5
    expect 404 "$url/gathered"
    exec 7>&-
    expect_exit 0 "$appender"
    stored_is "$url/gathered" one
    stop_nginx
    without client_max_body_size
    expect 413 -T "$work/big" "$proxy/large?verb=APPEND"
    stop_nginx
    without client_body_timeout
    send_to curl -sS --max-time 40 -T - "$proxy/timed?verb=APPEND"
    echo one >&7
    curl_follow timed "$proxy/timed?verb=FOLLOW&wait=20"
    expect_exit 18 "$pid"
    exec 7>&-
    await_exit "$appender" 20
    stop_nginx
    without proxy_read_timeout
    send_to "$bin/httpfstream-append" "$url/read"
    echo one >&7
    curl_follow read "$proxy/read?verb=FOLLOW&wait=20"
    expect_exit 18 "$pid"
    exec 7>&-
    expect_exit 0 "$appender"
    stop_nginx
    for line in 'Upgrade $http_upgrade' 'Connection $conn'; do
        without "$line"
        expect 426 $h1 -H "Connection: Upgrade" -H "Upgrade: websocket" -H "Sec-WebSocket-Version: 13" \
            -H "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==" "$proxy/ws?verb=APPEND"
        stop_nginx
    done
}

run_checks
