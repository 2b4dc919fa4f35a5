#!/usr/bin/env bash
# The fuzz targets of tests/fuzz (cargo-fuzz, libFuzzer). Each first shows that it gets somewhere with its corpus and that
# a finding is one; then it runs so many inputs: `fuzz.sh` a few, `fuzz.sh all` 10,000,000 each (hours), `fuzz.sh 500000
# frames text` so many of these. `fuzz.sh minimize` puts what was found interesting since into the corpora, minimized.
#
# Without a sanitizer: the crate has no `unsafe`, panics and wrong answers are what is looked for, and so any Rust will do.
set -euo pipefail
cd "$(dirname "$0")/../.."

runs=${1:-20000}
shift || true
targets=("$@")
[ "${#targets[@]}" -gt 0 ] || targets=(path intent request frames client_append client_follow text record root)
# The longest inputs, in bytes.
declare -A longest=([path]=4500 [intent]=600 [request]=800 [frames]=400 [client_append]=400 [client_follow]=400 [text]=128
    [record]=400 [root]=370)

command -v c++ >/dev/null || { echo "no C++ compiler, which libFuzzer needs; on Debian: apt-get install -y g++" >&2; exit 1; }
cargo fuzz --version 2>/dev/null || cargo install --quiet --locked --debug cargo-fuzz --version 0.13.2
cargo fuzz build --fuzz-dir tests/fuzz --sanitizer none --no-trace-compares --release
host=$(rustc -vV | sed -n 's/^host: //p')
bin=tests/fuzz/target/$host/release

fuzz() {
    local target=$1
    shift
    "$bin/$target" -max_len="${longest[$target]}" -timeout=20 -rss_limit_mb=1500 -print_final_stats=1 \
        -dict=tests/fuzz/words.dict -artifact_prefix="tests/fuzz/artifacts/$target/" "$@"
}

passed=0
for target in "${targets[@]}"; do
    log=tests/fuzz/target/$target.log
    new=tests/fuzz/target/corpus/$target
    corpus=tests/fuzz/corpus/$target
    # What is found interesting is kept beside the build. Findings stay in tests/fuzz/artifacts.
    mkdir -p "$new" "tests/fuzz/artifacts/$target"
    if [ "$runs" = minimize ]; then
        minimal=tests/fuzz/target/corpus/$target.minimal
        rm -rf "$minimal" && mkdir "$minimal"
        fuzz "$target" -set_cover_merge=1 -use_counters=0 "$minimal" "$corpus" "$new" >"$log" 2>&1
        rm -rf "$corpus" && mv "$minimal" "$corpus"
        echo "$target: $(find "$corpus" -type f | wc -l) inputs"
        continue
    fi
    # One that gets somewhere is a finding for once.
    if FUZZ_CANARY=1 "$bin/$target" -runs=0 -artifact_prefix="tests/fuzz/target/canary-" "$corpus" >"$log" 2>&1 ||
        ! grep -q '^canary$' "$log"; then
        echo "$target finds nothing, or not what it should: see $log" >&2
        exit 1
    fi
    count=$runs
    if [ "$runs" = all ]; then count=10000000; fi
    # Files and folders take their time.
    if [ "$target" = root ]; then count=$((count / 50)); fi
    if ! fuzz "$target" -runs="$((count + $(find "$corpus" "$new" -type f | wc -l)))" "$new" "$corpus" >"$log" 2>&1; then
        grep -vE '^#|# Uses' "$log" | tail -n 60 >&2
        echo "$target has found something: tests/fuzz/artifacts/$target" >&2
        exit 1
    fi
    echo "$target: $(grep -E 'DONE' "$log" | tail -n 1)"
    passed=$((passed + 1))
done
[ "$runs" = minimize ] || echo "fuzz.sh: $passed passed, 0 failed"
