#!/bin/bash
# scribble.t - random writes, zeroes, discards and reads agree with a model (tests/unit/scribble.c)
# on images at each kind of network storage: all cluster sizes, over raw and qcow2 bases
# there, opened again and checked in between.  SCRIBBLE_OPS: operations an image.
cd "$(dirname "$0")/../.." || exit 1
export B=${B:-build} SCRIBBLE_OPS=${SCRIBBLE_OPS:-2500} SCRIBBLE_ONLY='clusters_of_*'
export PLATTER_MODULES=$PWD/$B/modules
runs=()
places=(nfs3 nfs4 iscsi gluster nbd)
for place in "${places[@]}"; do
    runs+=("SCRIBBLE_PLACE=$place $B/tests/unit/scribble")
done
exec tests/net/with-places.sh "${places[@]}" -- tests/net/in-turn.sh "${runs[@]}"
