#!/bin/bash
# matrix-nbd.t - the format matrix (tests/matrix/ours.t, theirs.t) on NBD exports, with what
# was there before still on them.  PLATTER_MATRIX=full: every layout.
cd "$(dirname "$0")/../.." || exit 1
exec tests/net/with-places.sh nbd -- tests/net/in-turn.sh tests/matrix/ours.t tests/matrix/theirs.t
