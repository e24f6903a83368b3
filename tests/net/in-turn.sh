#!/bin/bash
# in-turn.sh COMMAND... - several TAP tests as one: their results numbered through.
{
    for test; do
        bash -c "$test" || echo "status $? $test"
    done
} | awk '
    /^(not )?ok [0-9]+ / { bad += /^not/; sub(/ok [0-9]+/, "ok " ++n); print; fflush(); seen++; next }
    /^1\.\.[0-9]+$/ { sub(/1\.\./, ""); planned += $0; next }
    /^status / { ended = ended "# " $0 "\n"; next }
    { print; fflush() }
    END { printf "%s", ended; print "1.." planned; exit bad || ended || seen != planned }'
