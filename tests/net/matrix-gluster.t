#!/bin/bash
# matrix-gluster.t - the format matrix (tests/matrix/ours.t, theirs.t) on a Gluster volume.
# PLATTER_MATRIX=full: every layout.
cd "$(dirname "$0")/../.." || exit 1
exec tests/net/with-places.sh gluster -- tests/net/in-turn.sh tests/matrix/ours.t tests/matrix/theirs.t
