# server-gluster.sh - a glusterd with volumes for one test; sourced after servers.sh, whose
# net_isolate the test has called.
#
#   gluster_start               glusterd, in private folders
#   gluster_volume v0           a plain volume;  gluster_volume v3 3: replica 3
#   gluster_ctl ARG...          the gluster command, asking nothing
#   gluster_brick_pid v0 [N]    process id of the N-th brick (0)
#   gluster_brick_dir v0 [N]    and its folder
#
# Clients ask glusterd's well-known port for the bricks' ones, and its folders are fixed, so
# name spaces are needed here: without them the test is skipped.  Nothing of it stays when
# it ends, however it ends: the kernel kills what is in the process id name space, and
# takes the mounts away.  Bricks are in memory.

GLUSTER_HOST=$NET_HOST       # glusterd refuses 127.x.x.x for bricks
GLUSTER_DIR=/run/platter-gluster    # on the tmpfs of net_isolate

gluster_start()
{
    local d
    if [ "${NET_ISOLATED-}" != 1 ]; then
        # In CI nothing is skipped.
        [ -z "${CI-}" ] || { echo "Bail out! no right to make name spaces"; exit 1; }
        echo "1..0 # SKIP no right to make name spaces"
        exit 0
    fi
    command -v glusterd >/dev/null || { echo "Bail out! glusterd is not installed"; exit 1; }
    net_host
    for d in /var/lib/glusterd /var/run/gluster /var/log/glusterfs; do
        mkdir -p $d
        mount -t tmpfs -o size=64m none $d
    done
    mkdir -p $GLUSTER_DIR
    gluster_glusterd
}

gluster_glusterd()
{
    glusterd -p /var/run/gluster/glusterd.pid
    local i
    for i in $(seq 50); do
        gluster_ctl volume list >/dev/null 2>&1 && return 0
        sleep 0.2
    done
    echo "Bail out! glusterd does not answer"
    tail -20 /var/log/glusterfs/glusterd.log | sed 's/^/# /'
    exit 1
}

gluster_ctl()
{
    gluster --mode=script "$@" 2>&1
}

# NAME [REPLICAS [SIZE]]: SIZE, of each brick, for volumes that get full.
gluster_volume()
{
    local name=$1 count=${2:-1} size=${3-} i bricks=
    for i in $(seq 0 $((count - 1))); do
        mkdir -p "$GLUSTER_DIR/$name.$i"
        [ -z "$size" ] || mount -t tmpfs -o size="$size" none "$GLUSTER_DIR/$name.$i"
        mkdir -p "$GLUSTER_DIR/$name.$i/brick"
        bricks="$bricks $GLUSTER_HOST:$GLUSTER_DIR/$name.$i/brick"
    done
    local replica=
    [ "$count" = 1 ] || replica="replica $count"
    # shellcheck disable=SC2086
    gluster_ctl volume create "$name" $replica $bricks force >/dev/null &&
        gluster_ctl volume start "$name" >/dev/null ||
        { echo "Bail out! no volume $name"; exit 1; }
}

gluster_brick_dir()
{
    echo "$GLUSTER_DIR/$1.${2:-0}/brick"
}

gluster_brick_pid()
{
    cat "/var/run/gluster/vols/$1/$GLUSTER_HOST$(gluster_brick_dir "$1" "${2:-0}" | tr / -).pid"
}
