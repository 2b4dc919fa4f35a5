#!/usr/bin/env bash
# tus-js-client, a client of resumable uploads that has nothing in common with ours, against the built server, through a
# proxy that cuts its connections.
. "$(dirname "$0")/lib.sh"

modules=${HTTPFSTREAM_NODE_MODULES:-$repo/target/external-npm}
client=$modules/node_modules/tus-js-client
if ! grep -q '"version": "4.3.1"' "$client/package.json" 2>/dev/null; then
    mkdir -p "$modules"
    npm install --silent --no-fund --no-audit --no-save --prefix "$modules" tus-js-client@4.3.1
fi
mkdir "$work/root"
start_server "$work/root" --grace=3
current=tus.mjs
timeout 120 node "$(dirname "$0")/tus.mjs" "$url" "$work/root" "$client/lib.esm/node/index.js"
