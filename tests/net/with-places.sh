#!/bin/bash
# with-places.sh - run a command where the servers of some places run (places.sh), in
# name spaces of its own, and stop them:
#   tests/net/with-places.sh [-d DIR] PLACE... -- COMMAND [ARG]...
# DIR is for the servers' files (default: a new one on tmpfs).
here=$(cd "$(dirname "$0")" && pwd)
. "$here/servers.sh"
net_isolate "$0" "$@"
. "$here/places.sh"

dir=
[ "$1" != -d ] || { dir=$2; shift 2; }
names=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    names+=("$1")
    shift
done
shift
# NFS wants file handles: tmpfs and ext4 have them, overlayfs does not always.
made=$(mktemp -d "${dir:-/dev/shm}/platter-places-XXXXXX") || exit 1
trap 'places_stop; rm -rf "$made"' EXIT
trap 'exit 1' INT TERM
places_start "$made" "${names[@]}"
"$@"
