# server-nfs.sh - rpcbind and nfs-ganesha (FSAL VFS, NFSv3 and NFSv4) for tests; sourced
# after servers.sh.  nfs_start DIR exports DIR/export as /export.
#   NFS_PORT MOUNT_PORT   chosen when empty
#   NFS_HOST              what URLs say
#   NFS_PROTOCOLS         "4": a server of NFSv4 only, which rpcbind does not know
#   NFS_ARGS              URL arguments for these ports

NFS_PORT=${NFS_PORT:-}
MOUNT_PORT=${MOUNT_PORT:-}
NFS_HOST=${NFS_HOST:-127.0.0.1}
NFS_PROTOCOLS=${NFS_PROTOCOLS:-3, 4}

# Ganesha wants to register; without -h, which would bind the wildcard only twice over.
nfs_rpcbind()
{
    net_listens 111 && return 0
    net_spawn "$1/rpcbind.log" rpcbind -f -w
    NFS_RPCBIND=$NET_PID
    net_wait_port 111
}

nfs_config()
{
    cat <<CONF
NFS_CORE_PARAM {
    NFS_Port = $NFS_PORT;
    MNT_Port = $MOUNT_PORT;
    Enable_NLM = false;
    Enable_RQUOTA = false;
    Protocols = $NFS_PROTOCOLS;
    Plugins_Dir = /usr/lib/$(gcc -print-multiarch)/ganesha;
}
NFSv4 { Graceless = true; RecoveryBackend = fs; RecoveryRoot = $1/recovery; Minor_Versions = 0, 1; }
EXPORT {
    Export_Id = 77;
    Path = $1/export;
    Pseudo = /export;
    Access_Type = RW;
    Squash = None;
    SecType = sys;
    ${NFS_EXPORT_EXTRA:-}
    FSAL { Name = VFS; }
}
LOG { Default_Log_Level = EVENT; }
CONF
}

# nfs_start DIR: DIR must be on a file system with file handles (tmpfs has them).
nfs_start()
{
    NFS_DIR=$1
    mkdir -p "$1/export" "$1/recovery"
    NFS_PORT=${NFS_PORT:-$(net_free_port)}
    MOUNT_PORT=${MOUNT_PORT:-$(net_free_port)}
    NFS_ARGS="nfsport=$NFS_PORT&mountport=$MOUNT_PORT"
    [ "$NFS_PROTOCOLS" = 4 ] || nfs_rpcbind "$1" || return 1
    nfs_config "$1" > "$1/ganesha.conf"
    nfs_run
}

# (Again) with the configuration there is.
nfs_run()
{
    net_spawn "$NFS_DIR/ganesha.out" ganesha.nfsd -F -f "$NFS_DIR/ganesha.conf" \
        -L "$NFS_DIR/ganesha.log" -p "$NFS_DIR/ganesha.pid"
    echo "$NET_PID" > "$NFS_DIR/group"      # a file: tests restart it in subshells
    net_wait_port "$NFS_PORT" || { tail -5 "$NFS_DIR/ganesha.log" | sed 's/^/# /' >&2; return 1; }
}

nfs_signal() { kill "-$1" -- "-$(cat "$NFS_DIR/group")"; }
nfs_kill() { net_end "$(cat "$NFS_DIR/group")" "${1:-KILL}"; }
# For the trap: the one that runs now, too.
nfs_stop()
{
    [ -z "${NFS_DIR:-}" ] || [ ! -e "$NFS_DIR/group" ] || nfs_kill KILL
    net_stop_all
}

# nfs_url FILE [ARG...]: the file's name, arguments with "&" in front or not.
nfs_url()
{
    local file=$1 IFS='&'
    shift
    local args="$NFS_ARGS${*:+&$*}"
    echo "nfs://$NFS_HOST$NFS_DIR/export/$file?$args"
}

# The same in NFSv4, where the export is /export.
nfs4_url()
{
    local file=$1 IFS='&'
    shift
    local args="version=4&$NFS_ARGS${*:+&$*}"
    echo "nfs://$NFS_HOST/export/$file?$args"
}
