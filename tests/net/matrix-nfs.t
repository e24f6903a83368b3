#!/bin/bash
# matrix-nfs.t - the format matrix (tests/matrix/ours.t, theirs.t) over NFSv3, and over NFSv4
# to a server that speaks nothing else.  PLATTER_MATRIX=full: every layout.
cd "$(dirname "$0")/../.." || exit 1
exec tests/net/with-places.sh nfs3 nfs4 -- tests/net/in-turn.sh tests/matrix/ours.t tests/matrix/theirs.t
