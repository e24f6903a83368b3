# server-iscsi.sh - tgtd for tests, with a control channel of its own; sourced after
# servers.sh.  iscsi_start DIR, then iscsi_target and iscsi_lun; iscsi_url NAME LUN.
#   ISCSI_PORT            chosen when empty
#   ISCSI_HOST            the portal's address

ISCSI_PORT=${ISCSI_PORT:-}
ISCSI_HOST=${ISCSI_HOST:-127.0.0.1}

# iscsi_start DIR: a target daemon without targets.
iscsi_start()
{
    ISCSI_DIR=$1
    mkdir -p "$1"
    ISCSI_PORT=${ISCSI_PORT:-$(net_free_port)}
    export TGT_IPC_SOCKET=$1/tgtd
    iscsi_run
}

# (Again), with nothing configured.
iscsi_run()
{
    net_spawn "$ISCSI_DIR/tgtd.log" tgtd -f -C "$ISCSI_PORT" \
        --iscsi "portal=$ISCSI_HOST:$ISCSI_PORT"
    ISCSI_PID=$NET_PID
    echo "$ISCSI_PID" >"$ISCSI_DIR/pid"
    net_wait_port "$ISCSI_PORT" || return 1
    local i
    for ((i = 0; i < 100; i++)); do
        iscsi_adm --mode sys --op show >/dev/null 2>&1 && return 0
        sleep 0.05
    done
    return 1
}

iscsi_adm()
{
    tgtadm -C "$ISCSI_PORT" --lld iscsi "$@"
}

# iscsi_target TID NAME: for everybody.
iscsi_target()
{
    iscsi_adm --mode target --op new --tid "$1" -T "$2" &&
        iscsi_adm --mode target --op bind --tid "$1" -I ALL
}

# iscsi_lun TID LUN FILE [BLOCKSIZE]
iscsi_lun()
{
    iscsi_adm --mode logicalunit --op new --tid "$1" --lun "$2" -b "$3" \
        ${4:+--blocksize "$4"}
}

# iscsi_thin TID LUN: it can unmap from now on.
iscsi_thin()
{
    iscsi_adm --mode logicalunit --op update --tid "$1" --lun "$2" \
        --params thin_provisioning=1
}

iscsi_url()
{
    echo "iscsi://$ISCSI_HOST:$ISCSI_PORT/$1/$2"
}

# Killed, not asked to end.  Works in a subshell, too, which could not wait for it.
iscsi_kill()
{
    kill -KILL -- "-$(cat "$ISCSI_DIR/pid")" 2>/dev/null
    net_wait_free "$ISCSI_PORT"
    rm -f "$ISCSI_DIR"/tgtd.[0-9]*
}
