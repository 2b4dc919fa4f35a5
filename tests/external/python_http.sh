#!/usr/bin/env bash
# Python's `httpx` (over HTTP/1.1 and HTTP/2) and `aiohttp` against the built server, without a WebSocket.
. "$(dirname "$0")/lib.sh"

venv=${HTTPFSTREAM_HTTP_VENV:-$repo/target/external-http-venv}
if ! "$venv/bin/python" -c 'import aiohttp, h2, httpx' 2>/dev/null; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check 'httpx[http2]==0.28.1' 'h2==4.4.1' 'aiohttp==3.14.5'
fi
mkdir "$work/root"
start_server "$work/root" --grace=1
current=python_http.py
timeout 120 "$venv/bin/python" "$(dirname "$0")/python_http.py" "$url" "$work/root"
