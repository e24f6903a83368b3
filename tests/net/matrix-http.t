#!/bin/bash
# matrix-http.t - the reading half of the format matrix (tests/matrix/theirs.t) over HTTP and
# HTTPS: images and their backing files that a web server has read as the local files do,
# map and check as qemu-img says.  PLATTER_MATRIX=full: every layout.
cd "$(dirname "$0")/../.." || exit 1
exec tests/net/with-places.sh http https -- tests/matrix/theirs.t
