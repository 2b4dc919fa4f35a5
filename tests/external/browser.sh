#!/usr/bin/env bash
# Headless Chromium against the built server: the follow module, the viewer, the listing. With `--screenshots` also the
# pictures of the documentation are taken anew; other arguments choose the checks with this in their name.
. "$(dirname "$0")/lib.sh"

missing=()
command -v chromium >/dev/null || missing+=(chromium fonts-dejavu-core)
command -v npm >/dev/null || missing+=(nodejs npm)
if [ "${#missing[@]}" -gt 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}"
fi
# It drives the browser that is there; it brings none.
mkdir "$work/node"
npm install --silent --no-audit --no-fund --prefix "$work/node" playwright-core@1.65.1
current=browser.mjs
export HOME=$work
CHROMIUM=$(command -v chromium) timeout 400 node "$(dirname "$0")/browser.mjs" "$bin" "$work" "$repo" "$@"
