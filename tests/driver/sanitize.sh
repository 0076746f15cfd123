#!/usr/bin/env bash
# The C code under AddressSanitizer and UndefinedBehaviorSanitizer. Any report, in whatever process, fails the run.
#
#     PYTHON=python tests/driver/sanitize.sh      a Python with setuptools, cffi, greenlet, pytest and hypothesis
#
# Works on copies of the tree in a temporary directory, never in the checkout:
#
#  1. stress.c with every driver: no Python, so LeakSanitizer too;
#  2. the driver's tests on a fully sanitized extension: no greenlet switches there;
#  3. the rest of the suite that drives the C code, with --param asan-stack=0: greenlet copies stacks, which the
#     sanitizer takes for an underflow (its other checks stay on).
#
# In 2 and 3 leaks are not looked for: CPython keeps what it has allocated. In 3 the tests of resident memory are left
# out: freed memory stays in the sanitizer's quarantine; and the one that preloads a malloc of its own. assert() is on in all three.
# The compiler must be gcc: the extension is loaded by a Python that knows nothing of the sanitizers, so libasan is
# preloaded, and libstdc++ with it, or libasan does not find the C++ exceptions of greenlet.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
python=$(command -v "$python")
cc=${CC:-cc}
seeds=${SEEDS:-60}
began=$SECONDS

work=$(mktemp -d "${TMPDIR:-/tmp}/sanitize.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/reports"

preload=
for library in libasan.so libubsan.so libstdc++.so.6; do
    path=$("$cc" -print-file-name="$library")
    [ "$path" != "$library" ] || { echo "sanitize: $cc has no $library (gcc and its libasan are needed)" >&2; exit 1; }
    preload+=" $path"
done

flags="-g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -UNDEBUG"
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
failed=()

say() { printf '\n--- %s (%d s)\n' "$1" $((SECONDS - began)); }

# Copy the tree and build the extension in it.
build() {
    local folder=$work/$1
    mkdir "$folder"
    tar -c --exclude=__pycache__ --exclude='*.so' setup.py pyproject.toml README.md LICENSE fibers tests examples |
        tar -x -C "$folder"
    (cd "$folder" && FIBERS_STAND_IN=1 FIBERS_CFLAGS="$2" FIBERS_LDFLAGS="$2" "$python" setup.py -q build_ext --inplace) \
        >"$work/$1.log" 2>&1 || { cat "$work/$1.log"; echo "sanitize: $1 did not build" >&2; return 1; }
}

# Run Python on one of the builds. log_path: a report of a child, whose output a test may swallow, is found too.
sanitized() {
    local folder=$work/$1
    shift
    (cd "$folder" && env LD_PRELOAD="${preload# }" PYTHONPATH="$folder" PYTHONMALLOC=malloc PYTHONDONTWRITEBYTECODE=1 \
        ASAN_OPTIONS="detect_leaks=0:handle_segv=2:detect_stack_use_after_return=0:log_path=$work/reports/report" \
        UBSAN_OPTIONS="$UBSAN_OPTIONS:log_path=$work/reports/report" "$python" "$@")
}

say "building"
build contract "$flags" & contract=$!
build suite "$flags --param asan-stack=0" & suite=$!
"$cc" -std=gnu11 -Wall -Wextra -Werror ${flags} -pthread -Ifibers/driver -Itests/driver/kqueue -DFIBERS_EPOLL -DFIBERS_KQUEUE \
    tests/driver/stress.c tests/driver/kqueue/kqueue_over_epoll.c \
    fibers/driver/{core,uring,readiness,workers,file,epoll,kqueue,sim,simnet}.c -o "$work/stress" -luring
wait "$contract"
wait "$suite"
for name in contract suite; do
    where=$(sanitized "$name" -c 'import fibers.driver; print(fibers.driver.binding.__file__)')
    [ "${where#"$work/$name/"}" != "$where" ] || { echo "sanitize: not the sanitized build: $where" >&2; exit 1; }
done

for driver in uring epoll kqueue sim; do
    say "stress: $driver, $seeds seeds"
    for ((seed = 1; seed <= seeds; seed++)); do
        timeout 120 "$work/stress" "$driver" "$seed" 10000 >>"$work/stress.log" 2>&1 ||
            { failed+=("stress $driver $seed"); tail -n 40 "$work/stress.log"; break; }
    done
    tail -n 1 "$work/stress.log"
done

say "the driver's tests"
sanitized contract -m pytest -q -p no:cacheprovider tests/driver --ignore tests/driver/test_stress.py ||
    failed+=("tests/driver")

say "the suite"
suite_tests=()
for name in fiber scope timeout grace run native net receives races net_races transfer fs fs_file tls monkey monkey_races monkey_regressions; do
    suite_tests+=("tests/test_$name.py")
done
sanitized suite -m pytest -q -p no:cacheprovider -k "not memory_stays_flat and not finds_no_memory" "${suite_tests[@]}" || failed+=("the suite")

say "reports"
for report in "$work"/reports/*; do
    [ -e "$report" ] || continue
    head -n 60 "$report"
    failed+=("a sanitizer's report")
done

if [ ${#failed[@]} -gt 0 ]; then
    printf 'sanitize: FAILED: %s\n' "${failed[@]}" >&2
    exit 1
fi
echo "sanitize: clean, $((SECONDS - began)) s"
