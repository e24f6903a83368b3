# servers.sh - what the tests with real servers share; sourced by tests/net/*.t and by
# the server-NAME.sh beside it.
#
# net_isolate "$0" "$@" runs the rest of the test in network, process and mount
# namespaces of its own where that is allowed: its ports are nobody else's, and its end
# ends everything it started, however it ends.  Where it is not allowed the test runs in
# the open; then servers take free ports and net_stop_all (trap EXIT) ends their groups.

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

# A port that nobody listens on; below the range of outgoing connections.
net_free_port()
{
    local port
    while :; do
        port=$((20000 + RANDOM % 12000))
        net_listens "$port" || { echo "$port"; return; }
    done
}

# ---- TAP ------------------------------------------------------------------------------

tap_n=0
tap_failed=0
# tap_ok NAME COMMAND...: passes if the command succeeds; its output when it does not.
tap_ok()
{
    local name=$1 out
    shift
    tap_n=$((tap_n + 1))
    if out=$("$@" 2>&1); then
        echo "ok $tap_n - $name"
    else
        tap_failed=$((tap_failed + 1))
        echo "not ok $tap_n - $name"
        printf '%s\n' "$out" | tail -25 | sed 's/^/# /'
    fi
}

tap_end()
{
    echo "1..$tap_n"
    [ "$tap_failed" = 0 ]
}

# net_within SECONDS COMMAND...: fails when it takes longer; the command's status else.
net_within()
{
    timeout -k 5 "$@"
}
