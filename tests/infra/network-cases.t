#!/bin/bash
# Each fault of the network list, N1 to N31, has a test that is named after it.
cd "$(dirname "$0")/../.." || exit 1
for n in $(seq 31); do
    if grep -qE "[\"' ]N$n:" tests/net/*.t; then echo "ok $n - N$n"; else echo "not ok $n - N$n"; fi
done
echo "1..31"
