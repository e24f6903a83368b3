# servers.sh - what the tests with real servers share; sourced by tests/net/*.t and by
# the server-NAME.sh beside it.
#
# Sets $B, $IMG and $IO, the programs under test, and $ORACLE, where QEMU's are.
# net_isolate "$0" "$@" runs the rest of the test in network, process and mount
# namespaces of its own where that is allowed: its ports are nobody else's, and its end
# ends everything it started, however it ends.  Where it is not allowed the test runs in
# the open; then servers take free ports and net_stop_all (trap EXIT) ends their groups.

B=${B:-build}
IMG=$B/platter-img IO=$B/platter-io
for ORACLE in "${ORACLE:-}" "$B/oracle/bin" build/oracle/bin; do
    [ -x "$ORACLE/qemu-img" ] && break
done

net_isolate()
{
    [ -z "${NET_ISOLATED:-}" ] || return 0
    local try=(unshare --net --pid --mount --fork --kill-child --mount-proc)
    if "${try[@]}" sh -c 'mount -t tmpfs none /run && ip link set lo up' 2>/dev/null; then
        NET_ISOLATED=1 exec "${try[@]}" sh -c \
            'mount -t tmpfs none /run; ip link set lo up; exec "$0" "$@"' "$@"
    fi
    export NET_ISOLATED=no
}

# An address of the isolated test that is no loopback one: net_host makes it.
NET_HOST=10.71.0.1
net_host()
{
    [ "${NET_ISOLATED-}" = 1 ] || return 1
    ip addr show dev lo | grep -qF "$NET_HOST/" || ip addr add "$NET_HOST/32" dev lo
}

NET_GROUPS=()

# net_spawn LOG COMMAND...: in a process group of its own; its pid in $NET_PID.
net_spawn()
{
    local log=$1
    shift
    setsid "$@" >"$log" 2>&1 </dev/null &
    NET_PID=$!
    NET_GROUPS+=("$NET_PID")
}

# Zombies do not count: their parent may be another shell of the test.
net_group_lives() { ps -o stat= -g "$1" | grep -qv '^Z'; }

# net_end PID [SIGNAL]: its whole group, and wait.
net_end()
{
    kill "-${2:-TERM}" -- "-$1" 2>/dev/null || kill "-${2:-TERM}" "$1" 2>/dev/null
    local i
    for ((i = 0; i < 100; i++)); do
        net_group_lives "$1" || break
        sleep 0.05
    done
    kill -KILL -- "-$1" 2>/dev/null
    # In a subshell wait would wait for any child: this one is not its own.
    [ "$BASHPID" != $$ ] || wait "$1" 2>/dev/null
    return 0
}

net_stop_all()
{
    local pid
    for pid in "${NET_GROUPS[@]}"; do
        kill -CONT -- "-$pid" 2>/dev/null
        net_end "$pid"
    done
    NET_GROUPS=()
}

# net_listens PORT: without connecting.
net_listens()
{
    local hex
    hex=$(printf ':%04X' "$1")
    awk -v p="$hex" '$4 == "0A" && index($2, p) == length($2) - 4 { found = 1 }
                     END { exit !found }' /proc/net/tcp /proc/net/tcp6
}

# net_wait_port PORT [SECONDS]
net_wait_port()
{
    local i
    for ((i = 0; i < ${2:-20} * 20; i++)); do
        net_listens "$1" && return 0
        sleep 0.05
    done
    echo "# nothing listens on port $1" >&2
    return 1
}

# net_wait_free PORT: until nobody listens there.
net_wait_free()
{
    local i
    for ((i = 0; i < 100; i++)); do
        net_listens "$1" || return 0
        sleep 0.05
    done
    echo "# port $1 is still taken" >&2
    return 1
}

# A port that nobody listens on; below the range of outgoing connections.
net_free_port()
{
    local port
    while :; do
        port=$((20000 + RANDOM % 12000))
        net_listens "$port" || { echo "$port"; return; }
    done
}

. "$(dirname "${BASH_SOURCE[0]}")/../tap.sh"

# ---- commands; $T is the test's folder ---------------------------------------------------

# run STATUS COMMAND...: what it says also in $T/out.
run()
{
    local want=$1
    shift
    timeout 50 "$@" >"$T/out" 2>&1
    local got=$?
    cat "$T/out"
    [ $got = "$want" ] || { echo "status $got, not $want: $*"; return 1; }
}

# fails_with TEXT COMMAND...: fails, and says TEXT.
fails_with()
{
    local text=$1 out
    shift
    out=$("$@" 2>&1) && { echo "it succeeded: $out"; return 1; }
    case $out in *"$text"*) ;; *) echo "it said: $out"; return 1 ;; esac
}

# same ARGUMENT...: platter-img and qemu-img say the same (here in $T/got) and end alike:
# $STATUS.  That QEMU calls gluster deprecated we do not say.
same()
{
    timeout 50 "$ORACLE/qemu-img" "$@" 2>&1 | grep -v "'gluster' is deprecated" |
        sed 's/qemu-img/platter-img/' >"$T/want"
    local want=${PIPESTATUS[0]}
    timeout 50 "$IMG" "$@" >"$T/got" 2>&1
    STATUS=$?
    sed -i -E 's/ after [0-9]+ ms/ after N ms/' "$T/want" "$T/got"
    [ "$want" = "$STATUS" ] || { echo "status $STATUS, not $want: $*"; return 1; }
    diff "$T/want" "$T/got"
}

# make_source FILE: data, zeros, data: 40 MiB.
make_source()
{
    head -c 9000000 /dev/urandom >"$1" && truncate -s 30M "$1" && head -c 10485760 /dev/urandom >>"$1"
}

# killed_under_writes URL FILE KILL START: the server of a raw image of at least 48 MiB, here
# FILE, dies (the command KILL) in the middle of writes and is started again (START); then
# everything is there.
killed_under_writes()
{
    local i cmds=()
    for ((i = 0; i < 48; i++)); do
        cmds+=(-c "write -P $((i + 1)) ${i}M 1M" -c 'sleep 40')
        [ $((i % 8)) = 7 ] && cmds+=(-c flush)
    done
    timeout 50 "$IO" -f raw "${cmds[@]}" -c flush "$1" >"$T/out" 2>&1 &
    local pid=$!
    sleep 0.7
    $3
    sleep 0.5
    $4 || return 1
    wait $pid || { echo "status $?"; grep -v "^[0-9]* .iB" "$T/out"; return 1; }
    grep 'reconnecting' "$T/out" && grep 'connected again' "$T/out" || return 1
    cmds=()
    for ((i = 0; i < 48; i++)); do
        cmds+=(-c "read -P $((i + 1)) ${i}M 1M")
    done
    run 0 "$IO" -f raw "${cmds[@]}" "$2"
}

# net_within SECONDS COMMAND...: fails when it takes longer; the command's status else.
net_within()
{
    timeout -k 5 "$@"
}
