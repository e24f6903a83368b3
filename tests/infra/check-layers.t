#!/bin/bash
# check-layers must pass the tree as it is, and must fail on each kind of
# violation planted in a copy of it.
cd "$(dirname "$0")/../.." || exit 1
. tests/tap.sh
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

out=$(tools/check-layers); rc=$?
ok $rc "the tree keeps to the layer order"
[ $rc = 0 ] || sed 's/^/# /' <<< "$out"

# FILE INCLUDE: a file that includes this must be reported by name and line.
planted()
{
    rm -rf "$tmp/tree"
    mkdir "$tmp/tree"
    cp -r --parents $(git ls-files -- '*.h') "$tmp/tree" 2>/dev/null ||
        cp -r block img formats protocols tools vmm-shim "$tmp/tree" 2>/dev/null
    mkdir -p "$tmp/tree/$(dirname "$1")"
    printf '/* planted */\n#include "%s"\n' "$2" > "$tmp/tree/$1"
    out=$(tools/check-layers "$tmp/tree")
    [ $? = 1 ] && grep -q "^$1:2: must not include " <<< "$out"
    ok $? "reported: $1 includes $2"
}
planted block/planted.c formats/qcow2/qcow2.h
planted block/planted.h protocols/file_int.h
planted block/planted.c img/img.h
planted formats/planted.c protocols/file_int.h
planted formats/planted/l2.c formats/qcow2/qcow2.h
planted formats/planted.c block/internal.h
planted protocols/planted.c protocols/file_int.h
planted protocols/planted_ops.c file_int.h
planted protocols/planted.c formats/raw.h
planted protocols/planted.c ../formats/raw.h
planted img/planted.c block/driver.h
planted img/planted.c formats/qcow2/qcow2.h
planted tools/planted.c block/internal.h
planted tools/planted.c img/img.h
planted vmm-shim/planted.c block/driver.h
planted vmm-shim/planted.h protocols/file_int.h

# and what is in order passes
mkdir -p "$tmp/good/protocols"
echo '#include "block/driver.h"' > "$tmp/good/protocols/x.c"
echo '#include "x_int.h"' > "$tmp/good/protocols/x_ops.c"
: > "$tmp/good/protocols/x_int.h"
tools/check-layers "$tmp/good" >/dev/null
ok $? "a driver may include driver.h and its own header"
tap_end
