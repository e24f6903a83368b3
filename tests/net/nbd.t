#!/bin/bash
# nbd.t - exports of real servers (qemu-nbd, nbdkit): every command that makes sense on one,
# block status, several connections, Unix sockets, TLS, and a server killed under writes.
cd "$(dirname "$0")/../.."
. tests/net/servers.sh
net_isolate "$0" "$@"
. tests/net/server-nbd.sh

T=$(mktemp -d)
trap 'net_stop_all; rm -rf "$T"' EXIT

rw()
{
    run 0 "$IO" -f raw -d unmap -c 'write -P 1 0 4M' -c 'write -P 2 1000 3000' \
        -c 'write -f -P 3 8M 64k' -c flush -c 'read -P 1 0 1000' -c 'read -P 2 1000 3000' \
        -c 'read -P 1 4000 100k' -c 'write -z 1M 512k' -c 'read -P 0 1M 512k' \
        -c 'read -P 1 1536k 512k' -c 'write -z -u 2M 64k' -c 'discard 3M 64k' \
        -c 'read -P 0 2M 64k' -c 'writev -P 5 5M 512 1k 70k' -c 'readv -P 5 5M 512 1k 70k' \
        -c length "$1" && grep -q '64 MiB' "$T/out"
}

convert_to() { run 0 "$IMG" convert -n -f raw -O raw "$T/src" "$1" && cmp -n 41943040 "$T/src" "$T/lun"; }

convert_from()
{
    run 0 "$IMG" convert -f raw -O raw "$1" "$T/back" && cmp "$T/lun" "$T/back" &&
        run 0 "$IMG" compare -f raw -F raw "$1" "$T/lun" &&
        run 0 "$IMG" dd -f raw -O raw bs=1M count=20 "if=$1" "of=$T/dd" &&
        cmp -n 20971520 "$T/dd" "$T/lun"
}

like_qemu_img()
{
    local u o
    u=$(nbd_url) o=driver=nbd,server.type=inet,server.host=127.0.0.1,server.port=$NBD_PORT
    same info "$u" && same info "nbd:127.0.0.1:$NBD_PORT:exportname=disk" &&
        same info --output=json -f raw "$u" && same info --image-opts "$o,export=disk" &&
        same info "$(nbd_url none)" && same info nbd://127.0.0.1:1/x && same info nbd:foo &&
        same info 'nbd+unix:///x?socket=/nowhere' && same info nbd:unix:/nowhere &&
        same info "$u?foo=1" && same info --image-opts "$o,export=disk,foo=1" &&
        same info --image-opts driver=nbd,export=x && same map --output=json -f raw "$u" &&
        same map -f raw "$u" && same create -f raw "$u" 65M && same resize -f raw "$u" 65M &&
        same info nbd://no.such.host.invalid/x
}

create()
{
    run 0 "$IO" -f raw -c 'write -P 9 0 64k' "$(nbd_url)" &&
        run 0 "$IMG" create -f raw "$(nbd_url)" 10M &&
        run 0 "$IO" -f raw -c 'read -P 0 0 512' "$(nbd_url)" &&
        run 0 "$IMG" create -f qcow2 "$(nbd_url)" 1G &&
        run 0 "$IO" -f qcow2 -c 'write -P 6 900M 8M' -c 'write -P 7 0 100k' -c flush \
            "$(nbd_url)" && run 0 "$IMG" check "$(nbd_url)" &&
        run 1 "$IO" -f qcow2 -c 'write -P 8 100M 80M' "$(nbd_url)" &&
        grep -q 'No space left' "$T/out" && run 0 "$IO" -f qcow2 -c 'read -P 6 900M 8M' "$(nbd_url)"
}

overlay()
{
    run 0 "$IMG" create -f qcow2 -F raw -b "$(nbd_url)" "$T/over.qcow2" &&
        run 1 "$IMG" map "$T/over.qcow2" && grep -q 'allow its protocol' "$T/out" &&
        run 0 "$IMG" --backing-urls nbd map "$T/over.qcow2"
}

dirty_bitmap()
{
    local o=driver=nbd,server.type=unix,server.path=$T/bm.sock,export=b
    "$ORACLE/qemu-img" create -q -f qcow2 "$T/bm.qcow2" 4M &&
        "$ORACLE/qemu-img" bitmap --add --enable "$T/bm.qcow2" b0 &&
        "$ORACLE/qemu-io" -c 'write 1M 64k' "$T/bm.qcow2" >"$T/out" || return 1
    net_spawn "$T/bm.log" "$ORACLE/qemu-nbd" -f qcow2 -r -B b0 -x b -k "$T/bm.sock" -t "$T/bm.qcow2"
    local i
    for ((i = 0; i < 100; i++)); do [ -S "$T/bm.sock" ] && break; sleep 0.05; done
    same map --output=json --image-opts "$o,x-dirty-bitmap=qemu:dirty-bitmap:b0" &&
        run 1 "$IMG" info --image-opts "$o,x-dirty-bitmap=qemu:dirty-bitmap:no" &&
        grep -q 'requested x-dirty-bitmap qemu:dirty-bitmap:no not found' "$T/out" &&
        same info "nbd+unix:///b?socket=$T/bm.sock" && same info "nbd:unix:$T/bm.sock:exportname=b" &&
        run 1 "$IO" -f raw -c 'write 0 4k' "nbd+unix:///b?socket=$T/bm.sock"
}

kit()
{
    nbd_kit memory 64M && rw "nbd://127.0.0.1:$NBD_PORT" &&
        run 0 "$IMG" convert -n -f raw -O raw "$T/src" "nbd://127.0.0.1:$NBD_PORT?connections=4" &&
        run 0 "$IMG" compare -f raw -F raw "$T/src" "nbd://127.0.0.1:$NBD_PORT?connections=4"
}

# 4096-byte blocks and little at once; no flush, no zeroes, no trim.
kit_blocks()
{
    nbd_kit --filter=blocksize-policy memory 64M blocksize-minimum=4096 \
        blocksize-preferred=8192 blocksize-maximum=64k blocksize-error-policy=error &&
        rw "nbd://127.0.0.1:$NBD_PORT"
}

kit_plain()
{
    nbd_kit --filter=nozero memory 64M zeromode=none &&
        rw "nbd://127.0.0.1:$NBD_PORT" && NBD_PORT= && nbd_kit --no-sr memory 64M &&
        rw "nbd://127.0.0.1:$NBD_PORT"
}

tls()
{
    local c=$T/pki u
    net_certificates "$c" && mkdir -p "$c/empty" || return 1
    nbd_kit --tls=require --tls-certificates="$c" memory 64M || return 1
    u=nbds://localhost:$NBD_PORT
    run 0 "$IMG" info "$u/?tls-certificates=$c" && rw "$u/?tls-certificates=$c" &&
        run 0 "$IMG" info "nbds://127.0.0.1:$NBD_PORT/?tls-certificates=$c" &&
        run 1 "$IMG" info "$u/?tls-certificates=$c/other" && grep -qi 'certificate' "$T/out" &&
        run 1 "$IMG" info "$u/?tls-certificates=$c/empty" && grep -q 'ca-cert.pem' "$T/out" &&
        run 1 "$IMG" info "$u/" && grep -q 'needs tls-creds' "$T/out" &&
        run 0 "$IMG" info "$u/?tls-verify-peer=off" &&
        run 1 "$IMG" info "nbd://localhost:$NBD_PORT" &&
        run 1 "$IMG" info "nbds+unix:///?socket=$T/x&tls-certificates=$c" &&
        grep -q 'cannot be checked over a Unix socket' "$T/out" &&
        run 1 "$IMG" info "$u/?tls-certificates=$c&tls-hostname=example.com" &&
        grep -q "tls-hostname must be 'localhost'" "$T/out" &&
        run 0 "$IMG" info --image-opts "driver=nbd,host=localhost,port=$NBD_PORT,tls-certificates=$c"
}

psk()
{
    psktool -u joe -p "$T/keys.psk" >"$T/out" 2>&1 && echo "joe:00112233" >"$T/wrong.psk" || return 1
    nbd_kit --tls=require --tls-psk="$T/keys.psk" memory 64M &&
        run 0 "$IMG" info "nbds://joe@127.0.0.1:$NBD_PORT/?tls-psk-file=$T/keys.psk" &&
        run 1 "$IMG" info "nbds://joe@127.0.0.1:$NBD_PORT/?tls-psk-file=$T/wrong.psk" &&
        run 1 "$IMG" info "nbds://jim@127.0.0.1:$NBD_PORT/?tls-psk-file=$T/keys.psk"
}

# QEMU's objects say where certificates and keys are.  (qemu-img checks a certificate's
# key usage, which a throw-away one does not have: it is asked without, and by key.)
creds()
{
    local o=driver=nbd,server.type=inet,server.host=localhost,server.port
    local x=tls-creds-x509,endpoint=client,id=t0,dir=$T/pki
    nbd_kit --tls=require --tls-certificates="$T/pki" memory 64M || return 1
    o=$o=$NBD_PORT,tls-creds=t0
    run 0 "$IMG" info --object "$x" --image-opts "$o" &&
        same info --object "$x" --image-opts "$o" &&
        run 0 "$IO" --object "$x" -c 'write -P 3 0 64k' -c 'read -P 3 0 64k' --image-opts "driver=raw,file.$(
            sed 's/,/,file./g' <<<"$o")" &&
        run 0 "$IMG" info --object "{\"qom-type\":\"tls-creds-x509\",\"id\":\"t0\",\"dir\":\"$T/pki\"}" \
            "json:{\"driver\":\"nbd\",\"server\":{\"type\":\"inet\",\"host\":\"localhost\",\"port\":\"$NBD_PORT\"},\"tls-creds\":\"t0\"}" &&
        run 0 "$IMG" info --object "$x" --image-opts "$o,tls-hostname=localhost" &&
        run 1 "$IMG" info --object "$x/other" --image-opts "$o" && grep -qi certificate "$T/out" &&
        run 0 "$IMG" info --object "$x/other,verify-peer=off" --image-opts "$o" &&
        run 1 "$IMG" info --object "$x" --image-opts "${o/localhost/127.0.0.1},tls-hostname=example.com" &&
        NBD_PORT= && nbd_kit --tls=require --tls-psk="$T/keys.psk" memory 64M || return 1
    o=driver=nbd,server.type=inet,server.host=127.0.0.1,server.port=$NBD_PORT,tls-creds=t0
    same info --object "tls-creds-psk,id=t0,dir=$T,username=joe" --image-opts "$o" &&
        grep -q '64 MiB' "$T/got"
}

restart() { nbd_qemu "$T/lun" -e 8; }
kill_it() { net_end "$(cat "$T/lun.pid")" KILL; }

open_timeout()
{
    local port
    port=$(net_free_port)
    { sleep 1; NBD_PORT=$port exec nbdkit -f -i 127.0.0.1 -p "$port" memory 64M; } \
        >"$T/late.log" 2>&1 </dev/null &
    local pid=$!
    run 0 "$IMG" info --image-opts "driver=nbd,host=127.0.0.1,port=$port,open-timeout=20"
    local r=$?
    kill $pid
    wait $pid
    return $r
}

no_module()
{
    run 0 env PLATTER_MODULES=/nowhere "$IMG" info "$T/src" &&
        run 1 env PLATTER_MODULES=/nowhere "$IMG" info nbd://127.0.0.1/x &&
        grep -q "driver for protocol 'nbd' is not installed" "$T/out"
}

tap_ok "a source" make_source "$T/src"
truncate -s 64M "$T/lun"
nbd_qemu "$T/lun" -e 8 >"$T/setup" 2>&1
QEMU_PORT=$NBD_PORT
tap_ok "reads, writes, zeroes, discards, flush on qemu-nbd" rw "$(nbd_url)"
tap_ok "text, JSON, status, refusals as qemu-img's" like_qemu_img
tap_ok "convert -n to an export" convert_to "$(nbd_url)"
tap_ok "convert -n over several connections" convert_to "$(nbd_url)?connections=4"
tap_ok "convert, compare, dd from an export" convert_from "$(nbd_url)"
tap_ok "create clears the start; qcow2 on an export, up to its end" create
tap_ok "an export as a backing file needs leave" overlay
tap_ok "a server killed and restarted under writes" killed_under_writes "$(nbd_url)" "$T/lun" kill_it restart
NBD_PORT=
tap_ok "a bitmap's context; a read-only export; Unix sockets" dirty_bitmap
tap_ok "nbdkit, several connections" kit
NBD_PORT=
tap_ok "nbdkit with 4096-byte blocks, 64 KiB at once" kit_blocks
NBD_PORT=
tap_ok "nbdkit without zeroes and FUA; without structured replies" kit_plain
NBD_PORT=
tap_ok "TLS: certificates are checked, or it is refused" tls
NBD_PORT=
tap_ok "TLS with pre-shared keys" psk
NBD_PORT=
tap_ok "TLS as QEMU names it: tls-creds-x509 and tls-creds-psk objects" creds
tap_ok "open-timeout waits for a server" open_timeout
tap_ok "without the module nothing else suffers" no_module
tap_end
