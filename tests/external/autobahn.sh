#!/usr/bin/env bash
# The Autobahn test suite against echo endpoints on this crate's WebSocket codec: `src/server/autobahn.rs` as a server,
# `src/client/autobahn.rs` as a client. A sample by default; `autobahn.sh all` runs every case, for about ten minutes.
#
# The suite needs Python 2.7: of pyenv, or whatever `AUTOBAHN_PYTHON` names.
. "$(dirname "$0")/lib.sh"

venv=${AUTOBAHN_VENV:-$repo/target/autobahn-venv}
if ! "$venv/bin/wstest" --autobahnversion >/dev/null 2>&1; then
    python=${AUTOBAHN_PYTHON:-}
    for found in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/2.7.*/bin/python "$(command -v python2.7 || true)"; do
        if [ -z "$python" ] && [ -x "$found" ]; then python=$found; fi
    done
    [ -n "$python" ] || fail "no Python 2.7, which the Autobahn test suite needs; name one in AUTOBAHN_PYTHON"
    # The last versions for Python 2; the suite's own pins contradict each other. Not into that Python itself.
    "$python" -m pip install --quiet --disable-pip-version-check --target "$work/virtualenv" 'virtualenv<20.22' 2>"$work/pip.log"
    PYTHONPATH=$work/virtualenv "$python" -m virtualenv --quiet "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check autobahntestsuite==25.10.1 autobahn==0.10.9 \
        twisted==20.3.0 txaio==2.0.4 jinja2==2.11.3 klein==20.6.0 werkzeug==1.0.1 pyopenssl==21.0.0 \
        service_identity==21.1.0 unittest2==1.1.0 2>>"$work/pip.log"
fi

# By section: framing, pings, reserved bits, opcodes, fragmentation, some of UTF-8, closing, some of the sizes.
cases='"1.*", "2.*", "3.*", "4.*", "5.*", "6.1.*", "6.2.*", "6.3.*", "6.4.*", "6.22.*", "7.*", "9.1.1", "9.2.1", "9.7.1", "10.*", "13.1.1"'
if [ "${1:-}" = all ]; then cases='"*"'; fi

# Compiled before the clock runs.
cargo test --quiet --manifest-path "$repo/Cargo.toml" --all-features --lib --no-run

# One of the ignored tests; what it is given on standard input ends it.
endpoint() {
    cargo test --quiet --manifest-path "$repo/Cargo.toml" --all-features --lib -- --ignored --exact --nocapture "$1"
}

# Counts the outcomes. What fails, or is closed uncleanly or with a wrong code, fails the check; compression is declined.
summary() {
    python3 - "$@" <<'PYTHON'
import collections, json, sys

path, agent = sys.argv[1:]
results = json.load(open(path))[agent]
behaviour = collections.Counter(result["behavior"] for result in results.values())
closing = collections.Counter(result["behaviorClose"] for result in results.values())
print("autobahn %s: %d cases: %s; closing: %s" % (agent, len(results), dict(behaviour), dict(closing)))
bad = []
for case, result in sorted(results.items()):
    compression = case.split(".")[0] in ("12", "13")
    good = {"UNIMPLEMENTED"} if compression else {"OK", "INFORMATIONAL"}
    if result["behavior"] not in good or result["behaviorClose"] not in good | {"OK", "INFORMATIONAL"}:
        bad.append(case)
        print(case, result)
sys.exit(bool(bad) or len(results) < 100)
PYTHON
}

check_as_a_server() {
    local spec=$work/fuzzingclient.json
    mkfifo "$work/stop"
    endpoint server::autobahn::serve <"$work/stop" >"$work/endpoint.log" 2>&1 &
    started+=($!)
    # It ends with this script, however that ends.
    exec 8>"$work/stop"
    eventually grep -q 'listening on' "$work/endpoint.log"
    local at
    at=$(grep -oE '127\.0\.0\.1:[0-9]+' "$work/endpoint.log")
    cat >"$spec" <<JSON
{"outdir": "$work/server", "servers": [{"agent": "server", "url": "ws://$at"}],
 "cases": [$cases], "exclude-cases": [], "exclude-agent-cases": {}}
JSON
    (cd "$work" && timeout 1500 "$venv/bin/wstest" -m fuzzingclient -s "$spec") >"$work/wstest.log" 2>&1 8>&-
    exec 8>&-
    summary "$work/server/index.json" server
}

check_as_a_client() {
    local spec=$work/fuzzingserver.json port
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    cat >"$spec" <<JSON
{"outdir": "$work/client", "url": "ws://127.0.0.1:$port", "cases": [$cases], "exclude-cases": [], "exclude-agent-cases": {}}
JSON
    cd "$work"
    background "$venv/bin/wstest" -m fuzzingserver -s "$spec" -u 0 >"$work/wstest.log" 2>&1
    cd "$repo"
    eventually python3 -c "import socket; socket.create_connection(('127.0.0.1', $port)).close()"
    AUTOBAHN_SERVER=ws://127.0.0.1:$port timeout 1500 bash -c "$(declare -f endpoint); repo='$repo' endpoint client::autobahn::run_all_cases" \
        >"$work/endpoint.log" 2>&1 </dev/null
    summary "$work/client/index.json" client
}

run_checks
