#!/bin/bash
# gluster-faults.t - what becomes of an image on Gluster when bricks, glusterd and the
# volume's options change under it, and which error reaches the user.
cd "$(dirname "$0")/../.." || exit 1
. tests/net/servers.sh
. tests/net/server-gluster.sh
net_isolate "$0" "$@"
export PATH=$PWD/${B:-build}:$PATH

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
gluster_start
gluster_volume v0
gluster_volume v3 3
U=gluster://$GLUSTER_HOST/v0
U3=gluster://$GLUSTER_HOST/v3

# io_open ARGS: platter-io as a coprocess, on an image of 64 MiB.
# io COMMAND: its answer in $OUT, fails when there is none within 60 s.  io_close: its status.
io_open()
{
    # shellcheck disable=SC2086
    coproc IO { exec platter-io -t writeback $1 2>&1; }
    IO_ID=$IO_PID
    exec {IO_OUT}<&"${IO[0]}" {IO_IN}>&"${IO[1]}"       # bash closes its own when it ends
    eval "exec ${IO[1]}>&-"
}
io()
{
    local line
    OUT=
    printf '%s\nlength\n' "$1" >&"$IO_IN"
    while read -r -t 60 line <&"$IO_OUT"; do
        while [ "${line#platter-io> }" != "$line" ]; do line=${line#platter-io> }; done
        [ "$line" != "64 MiB" ] || return 0
        OUT+=$line$'\n'
    done
    echo "no answer to '$1' after: $OUT"
    return 1
}
io_close()
{
    exec {IO_IN}>&-
    cat <&"$IO_OUT"
    wait "$IO_ID"
    local r=$?
    [ $r = 0 ] || echo "platter-io ended with $r"
    return $r
}
# The same after failures that were meant.
io_end()
{
    io_close >/dev/null || true
}
# The command succeeds / fails saying TEXT.
good()
{
    io "$1" || return 1
    case $OUT in *ailed* | *rror* | *verification*) echo "$1: $OUT"; return 1 ;; esac
}
bad()
{
    io "$2" || return 1
    case $OUT in *"$1"*) ;; *) echo "$2: not '$1' but: $OUT"; return 1 ;; esac
}
# Write patterns FROM..TO-1, each to a place of its own, some by many requests at once,
# flushing now and then; check them all.
load()
{
    local i
    for ((i = $1; i < $2; i++)); do
        good "aio_write -q -P $i ${i}M 700k" && good "aio_write -q -P $i $((i * 1024 + 700))k 4k" ||
            return 1
        ((i % 5)) || { good aio_flush && good flush || return 1; }
    done
    good aio_flush && good flush
}
verify()
{
    local i
    for ((i = $1; i < $2; i++)); do
        good "read -q -P $i ${i}M 704k" || return 1
    done
}
# Bricks of a volume that are not running, started.
# VOLUME: comes back when all of its bricks serve.
restart_bricks()
{
    local i
    gluster_ctl volume start "$1" force >/dev/null
    for i in $(seq 120); do
        gluster_ctl volume status "$1" detail | sed -n 's/^Online *: //p' > "$tmp/online"
        ! grep -qv Y "$tmp/online" && [ -s "$tmp/online" ] && return
        sleep 0.5
    done
}

brick_killed_replica()
{
    platter-img create -q -f raw $U3/n24.raw 64M || return 1
    io_open "-f raw $U3/n24.raw" && load 1 10 || return 1
    kill -KILL "$(gluster_brick_pid v3 1)"
    load 10 25 && verify 1 25 || return 1
    restart_bricks v3
    load 25 35 && verify 1 35 && io_close
}
tap_ok "N24: one brick of a replica killed: goes on" brick_killed_replica

quorum_lost()
{
    platter-img create -q -f raw "$U3/n25.raw" 64M || return 1
    io_open "-f raw $U3/n25.raw?reconnect=2" && load 1 6 || return 1
    kill -KILL "$(gluster_brick_pid v3 0)" "$(gluster_brick_pid v3 1)"
    bad "Input/output error" "write -P 99 1M 64k" &&
        bad "Input/output error" "write -P 99 50M 4k" ||
        return 1
    restart_bricks v3
    sleep 6
    good "write -P 1 1M 64k" && load 6 12 && verify 1 12 && io_end
}
tap_ok "N25: quorum lost: EIO after reconnect= seconds, then it recovers" quorum_lost

quorum_waits()
{
    platter-img create -q -f raw "$U3/n25b.raw" 64M || return 1
    io_open "-f raw $U3/n25b.raw" && load 1 6 || return 1
    kill -KILL "$(gluster_brick_pid v3 0)" "$(gluster_brick_pid v3 1)"
    (sleep 3; restart_bricks v3) &
    load 6 16 && verify 1 16 && io_close
}
tap_ok "N25: quorum lost for less: nobody notices" quorum_waits

brick_restarted()
{
    platter-img create -q -f raw "$U/n1.raw" 64M || return 1
    io_open "-f raw $U/n1.raw" && load 1 6 || return 1
    kill -KILL "$(gluster_brick_pid v0)"
    (sleep 2; restart_bricks v0) &
    load 6 16 && verify 1 16 || return 1
    # Once more, idle.
    kill -KILL "$(gluster_brick_pid v0)"
    sleep 1
    restart_bricks v0
    load 16 26 && verify 1 26 && io_close
}
tap_ok "N1: the only brick killed and restarted under load: no error, nothing lost" brick_restarted

lock_survives()
{
    platter-img create -q -f qcow2 "$U/lock.qcow2" 64M || return 1
    io_open "-f qcow2 $U/lock.qcow2" && good "write -P 1 0 64k" || return 1
    # Nothing is in flight meanwhile: no request notices.
    kill -KILL "$(gluster_brick_pid v0)"
    sleep 1
    restart_bricks v0
    good "sleep 7000" || return 1
    platter-io -c "write 0 512" "$U/lock.qcow2" > "$tmp/out" 2>&1 &&
        { echo "not refused"; return 1; }
    grep -q 'Failed to get "write" lock' "$tmp/out" && good "write -P 2 64k 64k" && good flush &&
        io_close
}
tap_ok "N31: the image locks are taken again after an outage" lock_survives

glusterd_killed()
{
    platter-img create -q -f raw "$U/n28.raw" 64M || return 1
    io_open "-f raw $U/n28.raw" && load 1 6 || return 1
    kill -KILL "$(cat /var/run/gluster/glusterd.pid)"
    load 6 16 && sleep 4 && load 16 26 && verify 1 26 || return 1
    gluster_glusterd
    load 26 30 && verify 1 30 && io_close
}
tap_ok "N28: glusterd gone, bricks alive: goes on" glusterd_killed

option_changed()
{
    platter-img create -q -f raw "$U3/n29.raw" 64M || return 1
    io_open "-f raw $U3/n29.raw" && load 1 6 || return 1
    gluster_ctl volume set v3 performance.io-cache on >/dev/null
    load 6 16 || return 1
    gluster_ctl volume set v3 performance.write-behind off >/dev/null
    gluster_ctl volume set v3 performance.open-behind off >/dev/null
    load 16 30 && verify 1 30 && io_close
}
tap_ok "N29: volume options changed under load (graph switches): goes on" option_changed

brick_full()
{
    gluster_volume vs 1 12m
    gluster_ctl volume set vs storage.reserve 0 >/dev/null
    platter-img create -q -f raw "gluster://$GLUSTER_HOST/vs/a.raw" 64M || return 1
    io_open "-f raw gluster://$GLUSTER_HOST/vs/a.raw" && good "write -P 1 0 4M" || return 1
    bad "No space left on device" "write -P 2 4M 32M" || return 1
    good "read -P 1 0 4M" && good "discard 4M 32M" && good "write -P 3 4M 1M" && good flush &&
        good "read -P 3 4M 1M" && io_end
}
tap_ok "N30: brick full: ENOSPC exactly, and room made is used" brick_full

fsync_fails()
{
    local u=gluster://$GLUSTER_HOST/ve/a.raw first
    gluster_volume ve
    # A translator on the brick that makes calls fail; readlink: none of ours.
    gluster_ctl volume set ve debug.error-gen posix >/dev/null
    gluster_ctl volume set ve debug.error-failure 100 >/dev/null
    gluster_ctl volume set ve debug.error-fops readlink >/dev/null
    gluster_ctl volume stop ve >/dev/null && gluster_ctl volume start ve >/dev/null
    platter-img create -q -f raw "$u" 64M || return 1
    io_open "-f raw $u" && good "write -P 1 0 4M" && good flush || return 1
    gluster_ctl volume set ve debug.error-fops fsync >/dev/null
    sleep 1
    # The translator chooses the errno.
    good "write -P 2 0 64k" && bad "flush failed: " flush || return 1
    first=${OUT%$'\n'}
    gluster_ctl volume set ve debug.error-fops readlink >/dev/null
    sleep 1
    good "write -P 3 0 64k" && bad "$first" flush && bad "$first" flush ||
        return 1
    io_end
    # Opened anew it is as good as any.
    platter-io -f raw -c "write -P 4 0 64k" -c flush "$u"
}
tap_ok "N27: a failed fsync fails every later flush, with its errno" fsync_fails

# The replica is busy with other things when the program ends.
missed_noted()
{
    local i u=gluster://$GLUSTER_HOST/vm
    gluster_volume vm 2
    gluster_ctl volume set vm cluster.quorum-type none >/dev/null
    gluster_ctl volume set vm cluster.self-heal-daemon off >/dev/null
    for i in $(seq 20); do
        platter-img create -q -f raw "$u/$i.raw" 1M || return 1
    done
    kill -KILL "$(gluster_brick_pid vm 1)"
    sleep 1
    for i in $(seq 20); do
        for _ in 1 2 3 4; do
            timeout 0.4 sh -c 'while :; do :; done' &
        done
        platter-io -f raw -c "write -q -P 2 0 64k" "$u/$i.raw" || return 1
        python3 -c "
import os, sys
noted = os.getxattr(sys.argv[1], 'trusted.afr.vm-client-1')
sys.exit(noted[:4] == bytes(4))" "$(gluster_brick_dir vm 0)/$i.raw" || return 1
        wait $(jobs -p)
    done
    gluster_ctl volume stop vm >/dev/null
}
tap_ok "N26: when the program has ended it is noted which brick missed its writes" missed_noted

split_brain()
{
    local u=gluster://$GLUSTER_HOST/vb/a.raw o
    gluster_volume vb 2
    gluster_ctl volume set vb cluster.quorum-type none >/dev/null
    gluster_ctl volume set vb cluster.self-heal-daemon off >/dev/null
    for o in data metadata entry; do
        gluster_ctl volume set vb cluster.$o-self-heal off >/dev/null
    done
    platter-img create -q -f raw "$u" 64M && platter-io -f raw -c "write -q -P 1 0 1M" "$u" ||
        return 1
    # Each of the two takes a write that the other does not know of.
    kill -KILL "$(gluster_brick_pid vb 1)"
    sleep 1
    platter-io -f raw -c "write -q -P 2 0 64k" -c flush "$u" || return 1
    restart_bricks vb
    kill -KILL "$(gluster_brick_pid vb 0)"
    sleep 1
    platter-io -f raw -c "write -q -P 3 0 64k" -c flush "$u" || return 1
    restart_bricks vb
    for o in $(seq 30); do
        gluster_ctl volume heal vb info split-brain > "$tmp/heal"
        ! grep -q "split-brain: 1" "$tmp/heal" || break
        sleep 1
    done
    grep -q "split-brain: 1" "$tmp/heal" ||
        { echo "could not make a split brain"; cat "$tmp/heal"; return 1; }
    platter-io -f raw -r -c "read -P 2 0 64k" "$u" > "$tmp/out" 2>&1 && return 1
    cat "$tmp/out"
    grep -q "Input/output error" "$tmp/out"
}
tap_ok "N26: split brain: EIO, not one side's data" split_brain

tap_end
