#!/usr/bin/env bash
# Headless Chromium against the built server: the follow module, plain HTTP, the viewer, the listing. With `--screenshots`
# also the pictures of the documentation are taken anew; other arguments choose the checks with this in their name.
. "$(dirname "$0")/lib.sh"

for tool in chromium node npm; do
    command -v "$tool" >/dev/null || fail "no $tool; on Debian: apt-get install -y chromium nodejs npm"
done
# It drives the browser that is there; it brings none.
mkdir "$work/node"
npm install --silent --no-audit --no-fund --prefix "$work/node" playwright-core@1.65.1
current=browser.mjs
export HOME=$work
CHROMIUM=$(command -v chromium) timeout 400 node "$(dirname "$0")/browser.mjs" "$bin" "$work" "$repo" "$@"
