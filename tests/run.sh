#!/bin/bash
# run.sh - everything under prove: the unit test programs and tests/*/*.t.
#   B=build tests/run.sh [TEST]...       only these
# A test still running after TEST_LIMIT seconds (1800) is killed and has failed.
# Two run at a time.  Ends with prove's totals and its exit status.
set -euo pipefail
cd "$(dirname "$0")/.."
export B=${B:-build}
export ORACLE=$PWD/build/oracle/bin     # qemu-img 10 and company

# A leak or a finding is a failed test, whatever the program would have returned.
export ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=0:exitcode=99
export UBSAN_OPTIONS=print_stacktrace=1
export LSAN_OPTIONS=suppressions=$PWD/tests/lsan.supp:print_suppressions=0

if [ $# -gt 0 ]; then
    tests=("$@")
else
    shopt -s nullglob
    tests=()
    for src in tests/unit/*.c; do
        src=${src##*/}
        tests+=("$B/tests/unit/${src%.c}")
    done
    tests+=(tests/*/*.t)
fi
exec prove --timer --failures --comments -j "${JOBS:-2}" --exec "timeout -k 10 ${TEST_LIMIT:-1800}" "${tests[@]}"
