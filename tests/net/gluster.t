#!/bin/bash
# gluster.t - images on a plain Gluster volume: names, every kind of request, creating,
# converting, sizes, holes, locks (N31), and what happens when a command ends.
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
D=$(gluster_brick_dir v0)

create()
{
    platter-img create -q -f qcow2 $U/a.qcow2 1G && platter-img create -q -f raw $U/a.raw 64M &&
        [ "$(stat -c %s "$D/a.raw")" = 67108864 ] && platter-img check -q $U/a.qcow2 &&
        [ $(($(stat -c %s "$D/a.qcow2") % 512)) = 0 ]
}
tap_ok "create makes images" create

requests()
{
    platter-io -f raw -c "write -P 1 0 1M" -c "write -P 2 1001 77" -c "write -P 3 5M 3000001" \
        -c "read -P 1 0 1001" -c "read -P 2 1001 77" -c "read -P 3 5M 3000001" -c flush \
        -c "writev -P 4 20M 512 1000 70000" -c "readv -P 4 20M 70000 512 1000" \
        -c "read -P 0 30M 4M" $U/a.raw &&
    cmp -n 67108864 "$D/a.raw" <(python3 - <<'P'
import sys
b = bytearray(64 << 20)
b[0:1 << 20] = b'\1' * (1 << 20)
b[1001:1078] = b'\2' * 77
b[5 << 20:(5 << 20) + 3000001] = b'\3' * 3000001
b[20 << 20:(20 << 20) + 71512] = b'\4' * 71512
sys.stdout.buffer.write(b)
P
)
}
tap_ok "reads and writes of any size and place; the brick has the bytes" requests

zeroes()
{
    local before after
    platter-io -f raw -c "write -P 7 32M 8M" $U/a.raw || return 1
    before=$(stat -c %b "$D/a.raw")
    platter-io -f raw -c "write -z 33M 1M" -c "write -z -u 34M 2M" -c "discard 36M 1M" \
        -c "read -P 7 32M 1M" -c "read -P 0 33M 4M" -c "read -P 7 37M 3M" $U/a.raw || return 1
    after=$(stat -c %b "$D/a.raw")
    [ $((before - after)) -ge 6144 ] || { echo "blocks $before, then $after"; return 1; }
}
tap_ok "zeroes and discards; the brick gives the space back" zeroes

grows()
{
    platter-img create -q -f raw $U/g.raw 1M && platter-img resize -q -f raw $U/g.raw 3M &&
        [ "$(stat -c %s "$D/g.raw")" = 3145728 ] &&
        platter-img resize -q --shrink -f raw $U/g.raw 2M &&
        [ "$(stat -c %s "$D/g.raw")" = 2097152 ] &&
        platter-img resize -q --preallocation=falloc -f raw $U/g.raw 8M &&
        [ "$(stat -c %b "$D/g.raw")" -ge $((6 * 2048)) ] &&
        platter-img create -q -f raw -o preallocation=full $U/p.raw 4M &&
        [ "$(stat -c %b "$D/p.raw")" -ge $((4 * 2048)) ]
}
tap_ok "resize, shrink, preallocation" grows

holes()
{
    platter-img create -q -f raw $U/h.raw 16M &&
        platter-io -f raw -c "write -P 1 4M 1M" -c "write -P 1 10M 64k" $U/h.raw &&
        platter-img map --output=json -f raw $U/h.raw > "$tmp/map" &&
        python3 - "$tmp/map" <<'P'
import json, sys
got = [(x["start"], x["length"], x["data"]) for x in json.load(open(sys.argv[1]))]
M = 1 << 20
want = [(0, 4 * M, False), (4 * M, M, True), (5 * M, 5 * M, False), (10 * M, 65536, True),
        (10 * M + 65536, 6 * M - 65536, False)]
assert got == want, got
P
}
tap_ok "map finds the holes" holes

convert()
{
    python3 -c 'import random, sys
random.seed(1)
for i in range(24):
    sys.stdout.buffer.write(random.randbytes(1 << 20) if i % 3 else bytes(1 << 20))' > "$tmp/s.raw"
    platter-img convert -f raw -O qcow2 "$tmp/s.raw" $U/c.qcow2 &&
        platter-img convert -f qcow2 -O raw $U/c.qcow2 $U3/c.raw &&
        platter-img convert -f raw -O raw $U3/c.raw "$tmp/d.raw" &&
        cmp "$tmp/s.raw" "$tmp/d.raw" && platter-img check -q $U/c.qcow2 &&
        cmp "$tmp/s.raw" "$(gluster_brick_dir v3 2)/c.raw" &&
        platter-img create -q -f raw $U/n.raw 24M &&
        platter-img convert -n -f raw -O raw "$tmp/s.raw" $U/n.raw &&
        platter-img compare -q -f raw -F raw "$tmp/s.raw" $U/n.raw
}
tap_ok "convert to, between and from volumes; with -n too" convert

chain()
{
    platter-img create -q -f qcow2 -b c.qcow2 -F qcow2 $U/o2.qcow2 &&
        platter-img compare -q $U/o2.qcow2 $U/c.qcow2 &&
        platter-io -f qcow2 -c "write -P 9 1M 64k" -c "read -P 9 1M 64k" -c "read -P 0 0 1M" \
            $U/o2.qcow2
}
tap_ok "an overlay whose backing file has a relative name" chain

names()
{
    local server=driver=gluster,volume=v0,path=a.raw
    platter-img info -f raw gluster+tcp://$GLUSTER_HOST:24007/v0/a.raw &&
        platter-img info -f raw "gluster+unix:///v0/a.raw?socket=/var/run/glusterd.socket" &&
        platter-img info -f raw "$U//a.raw?debug=9&logfile=$tmp/log" && [ -s "$tmp/log" ] &&
        platter-img info "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"gluster\",\"volume\":\"v0\",
            \"path\":\"/a.raw\",\"server\":[{\"type\":\"inet\",\"host\":\"$GLUSTER_HOST\",
            \"port\":\"24007\"}]}}" > "$tmp/info" &&
        grep -q "^image: $U/a.raw$" "$tmp/info" &&
        platter-img info --image-opts \
            $server,server.0.type=inet,server.0.host=10.71.0.2,server.0.port=1,server.1.type=unix,server.1.path=/var/run/glusterd.socket
}
tap_ok "names: URLs of every kind, options, the second server when the first is not there" names

errors()
{
    fails_with "No such file or directory" platter-img info $U/none.raw &&
        fails_with "Gluster volume 'nov' at $GLUSTER_HOST" platter-img info \
            gluster://$GLUSTER_HOST/nov/x &&
        fails_with "Gluster volume 'v0' at 127.0.0.9" platter-img info gluster://127.0.0.9:1/v0/x &&
        fails_with "needs a volume and a path" platter-img info gluster://$GLUSTER_HOST/v0 &&
        fails_with "unknown parameter 'x'" platter-img info "$U/a.raw?x=1" &&
        fails_with "and no host" platter-img info "gluster+unix://h/v0/a.raw?socket=/x" &&
        fails_with "Parameter 'host' is missing" platter-img info --image-opts \
            driver=gluster,volume=v0,path=a,server.0.type=inet,server.0.host=h,server.1.type=inet &&
        mkdir -p "$D/dir" && fails_with "regular file" platter-img info $U/dir
}
tap_ok "errors name the server, the volume and the cause" errors

silent()
{
    local i out
    for i in $(seq 40); do
        out=$(platter-img info $U/a.qcow2 2>&1 >/dev/null) && [ -z "$out" ] ||
            { echo "run $i: $out"; return 1; }
        platter-img info $U/none 2>/dev/null; [ $? = 1 ] || { echo "run $i: not 1"; return 1; }
    done
}
tap_ok "80 commands end with the right status, silently" silent

quick()
{
    local before=${EPOCHREALTIME/./} after
    platter-io -f raw -c "write -P 3 0 1M" -c flush $U/a.raw || return 1
    after=${EPOCHREALTIME/./}
    echo "took $(((after - before) / 1000)) ms"
    [ $((after - before)) -lt 5000000 ]
}
tap_ok "nobody waits ten seconds for the end" quick

# Hold an image as $1 says (platter-io's arguments) while the rest is run.
while_held()
{
    local opts=$1 line pid r
    shift
    # shellcheck disable=SC2086
    coproc HOLD { exec stdbuf -oL platter-io $opts -c "write -P 1 0 512" -c "length" -c "sleep 20000" 2>&1; }
    pid=$HOLD_PID
    while read -r -t 20 line <&"${HOLD[0]}"; do
        [[ $line != wrote* ]] || break
    done
    "$@"
    r=$?
    kill -KILL "$pid" 2>/dev/null
    wait "$pid" 2>/dev/null
    return $r
}

locked()
{
    while_held "-f qcow2 $U/a.qcow2" fails_with 'Failed to get "write" lock' \
        platter-io -c "write 0 512" $U/a.qcow2 &&
    while_held "-f qcow2 $U/a.qcow2" fails_with 'lock' \
        platter-img create -q -f qcow2 $U/a.qcow2 1M &&
    while_held "-f qcow2 $U/a.qcow2" platter-img info -U $U/a.qcow2 &&
    platter-io -c "write 0 512" -c "length" $U/a.qcow2
}
tap_ok "N31: two writers on one image: the second is refused, until the first dies" locked

locked3()
{
    platter-img create -q -f qcow2 $U3/l.qcow2 16M &&
    while_held "-f qcow2 $U3/l.qcow2" fails_with 'Failed to get "write" lock' \
        platter-io -c "write 0 512" $U3/l.qcow2 &&
    platter-io -c "write 0 512" $U3/l.qcow2
}
tap_ok "N31: on a replica too" locked3

tap_end
