#!/usr/bin/env bash
# Python's `websockets`, an implementation that has nothing in common with ours, against the built server.
. "$(dirname "$0")/lib.sh"

venv=${HTTPFSTREAM_VENV:-$repo/target/external-venv}
if ! "$venv/bin/python" -c 'import websockets.asyncio.client' 2>/dev/null; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check 'websockets>=14,<17'
fi
mkdir "$work/root"
start_server "$work/root"
current=python_websockets.py
timeout 120 "$venv/bin/python" "$(dirname "$0")/python_websockets.py" "$url" "$work/root"
