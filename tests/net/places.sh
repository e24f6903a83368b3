# places.sh - where images can be, for tests that do the same at each: sourced after
# net_isolate.  places_start DIR PLACE... starts the servers they need and exports, for
# what reads it (tests/matrix/place.py, tests/unit/scribble.c by tests/net/scribble.t):
#   PLATTER_PLACES      the names, in order
#   PLACE_NAME_URL      a file's URL, "%s" where its name is
#   PLACE_NAME_DIR      a folder here that has the same files
#   PLACE_NAME_FIXED    not empty: its files are "1" to "4", exist and have this size
#   PLACE_NAME_SCHEME   for --backing-urls
#   PLACE_NAME_READONLY not empty: images get into the folder, not by the URL
# places_stop ends them all.  A new place is one function place_NAME.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/server-nfs.sh"
. "$here/server-iscsi.sh"
. "$here/server-gluster.sh"
. "$here/server-nbd.sh"
. "$here/server-http.sh"

PLACES_FIXED=${PLACES_FIXED:-64M}
PLACES_LUNS=${PLACES_LUNS:-4}
PLACES_TARGET=iqn.2026-01.test:place

# place NAME URL DIR SCHEME [FIXED]
place()
{
    export "PLACE_$1_URL=$2" "PLACE_$1_DIR=$3" "PLACE_$1_SCHEME=$4" "PLACE_$1_FIXED=${5-}"
    export PLATTER_PLACES="${PLATTER_PLACES:+$PLATTER_PLACES }$1"
}

place_nfs3()
{
    nfs_start "$1" && place nfs3 "$(nfs_url %s)" "$1/export" nfs
}

# A server of its own that speaks nothing else.
place_nfs4()
{
    local NFS_PORT='' MOUNT_PORT='' NFS_DIR NFS_ARGS NFS_PROTOCOLS=4
    nfs_start "$1" && place nfs4 "$(nfs4_url %s)" "$1/export" nfs
}

place_iscsi()
{
    local i
    iscsi_start "$1" && iscsi_target 1 $PLACES_TARGET || return 1
    for ((i = 1; i <= PLACES_LUNS; i++)); do
        truncate -s "$PLACES_FIXED" "$1/$i" && iscsi_lun 1 $i "$1/$i" || return 1
    done
    place iscsi "$(iscsi_url $PLACES_TARGET %s)" "$1" iscsi "$PLACES_FIXED"
}

# nbdkit serves a folder, each file as an export.
place_nbd()
{
    local i T=$1
    for i in 1 2 3; do
        truncate -s "$PLACES_FIXED" "$1/$i" || return 1
    done
    nbd_kit file dir="$1" && place nbd "$(nbd_url %s)" "$1" nbd "$PLACES_FIXED"
}

place_http()
{
    http_start "$1" && place http "http://$HTTP_HOST:$HTTP_PORT/%s" "$1/www" http &&
        export PLACE_http_READONLY=yes
}

# The same way to a server of its own, whose certificate is checked.
place_https()
{
    local HTTP_PORT='' HTTPS_PORT=''
    http_start "$1" && place https "https://localhost:$HTTPS_PORT/%s" "$1/www" https &&
        export PLACE_https_READONLY=yes CURL_CA_BUNDLE=$1/pki/ca-cert.pem
}

place_gluster()
{
    gluster_start && gluster_volume v0 &&
        place gluster "gluster://$GLUSTER_HOST/v0/%s" "$(gluster_brick_dir v0)" gluster
}

place_gluster3()
{
    [ -n "${PLACE_gluster_URL-}" ] || gluster_start
    gluster_volume v3 3 &&
        place gluster3 "gluster://$GLUSTER_HOST/v3/%s" "$(gluster_brick_dir v3)" gluster
}

places_start()
{
    local dir=$1 name
    shift
    if net_host; then
        NFS_HOST=$NET_HOST ISCSI_HOST=$NET_HOST NBD_HOST=$NET_HOST
    fi
    for name; do
        mkdir -p "$dir/$name"
        "place_$name" "$dir/$name" || { echo "Bail out! no servers for $name"; exit 1; }
    done
}

places_stop()
{
    net_stop_all
}

# place_url NAME FILE; place_dir NAME
place_url() { local v=PLACE_$1_URL; printf "${!v}\\n" "$2"; }
place_dir() { local v=PLACE_$1_DIR; echo "${!v}"; }
