#!/bin/bash
# http.t - images on a real web server (nginx), over HTTP and HTTPS: every command that
# reads, QEMU's options and words, the number of requests, overlays.
cd "$(dirname "$0")/../.."
. tests/net/servers.sh
net_isolate "$0" "$@"
. tests/net/server-nbd.sh
. tests/net/server-http.sh

B=${B:-build}
IMG=$B/platter-img IO=$B/platter-io
for ORACLE in "${ORACLE:-}" "$B/oracle/bin" build/oracle/bin; do
    [ -x "$ORACLE/qemu-img" ] && break
done
T=$(mktemp -d)
trap 'net_stop_all; rm -rf "$T"' EXIT
PORT=$(net_free_port) HTTP_PORT=$PORT HTTPS_PORT=$(net_free_port)
H=http://127.0.0.1:$PORT
export HOME=$T

setup()
{
    echo 'joe:{PLAIN}secretpass' >"$T/pw"
    http_start "$T" "
        location /norange/ { alias $T/www/; max_ranges 0; }
        location /secret/ { alias $T/www/; auth_basic x; auth_basic_user_file $T/pw; }
        location /biscuit/ {
            alias $T/www/;
            if (\$http_cookie != \"key=secretcookie\") { return 403; }
        }
        location /moved/ { return 302 $H/disk.raw; }" || return 1
    head -c 9000000 /dev/urandom >"$T/www/disk.raw" && truncate -s 20M "$T/www/disk.raw" &&
        head -c 10485760 /dev/urandom >>"$T/www/disk.raw" &&
        "$ORACLE/qemu-img" convert -f raw -O qcow2 "$T/www/disk.raw" "$T/www/disk.qcow2" &&
        "$ORACLE/qemu-img" convert -c -f raw -O qcow2 "$T/www/disk.raw" "$T/www/small.qcow2" &&
        : >"$T/www/empty"
}

# run STATUS COMMAND...: output in $T/out.
run()
{
    local want=$1
    shift
    timeout 50 "$@" >"$T/out" 2>&1
    local got=$?
    cat "$T/out"
    [ $got = "$want" ] || { echo "status $got, not $want: $*"; return 1; }
}

# The same command line through qemu-img: the same text and status.
same()
{
    timeout 30 "$ORACLE/qemu-img" "$@" 2>&1 | sed 's/qemu-img/platter-img/' >"$T/want"
    local want=${PIPESTATUS[0]} got
    timeout 30 "$IMG" "$@" >"$T/got" 2>&1
    got=$?
    [ "$want" = "$got" ] || { echo "status $got, not $want: $*"; return 1; }
    diff "$T/want" "$T/got"
}

like_qemu_img()
{
    same info "$H/disk.raw" && same info --output=json "$H/disk.qcow2" && same info "$H/none" &&
        same info "$H/empty" && same info "$H/norange/disk.raw" &&
        same info "$H/secret/disk.raw" && same info "$H/moved/disk.raw" &&
        same info http://127.0.0.1:1/x && same info http:foo && same info http:///x &&
        same info --image-opts "driver=https,url=$H/disk.raw" &&
        same info --image-opts "driver=http,url=$H/disk.raw" &&
        same info --image-opts driver=http &&
        same info --image-opts "driver=http,url=$H/disk.raw,readahead=100" &&
        same info --image-opts "driver=http,url=$H/disk.raw,foo=1" &&
        same map --output=json "$H/disk.qcow2" && same check "$H/disk.qcow2" &&
        same create -f raw "$H/new" 10M && same resize -f raw "$H/disk.raw" 10M &&
        same measure -O qcow2 -f raw "$H/disk.raw"
}

converts()
{
    local name
    for name in disk.raw disk.qcow2 small.qcow2; do
        run 0 "$IMG" convert -O raw "$H/$name" "$T/back" && cmp "$T/www/disk.raw" "$T/back" || return 1
    done
    run 0 "$IMG" compare -f raw "$H/disk.raw" "$H/small.qcow2" &&
        run 0 "$IMG" dd -f raw -O raw bs=1M skip=3 count=20 "if=$H/disk.raw" "of=$T/dd" &&
        cmp -i 3145728:0 -n 17825792 "$T/www/disk.raw" "$T/dd"
}

requests() { wc -l <"$T/access"; }

few_requests()
{
    local before
    before=$(requests)
    run 0 "$IMG" info "$H/disk.qcow2" && [ $(($(requests) - before)) -le 3 ] || return 1
    before=$(requests)
    run 0 "$IMG" bench -f qcow2 -d 16 -c 4096 "$H/disk.qcow2" || return 1
    echo "$(($(requests) - before)) requests for 4096 reads of 4 KiB"
    [ $(($(requests) - before)) -le 150 ]
}

overlay()
{
    run 0 "$IMG" create -f qcow2 -F qcow2 -b "$H/disk.qcow2" "$T/over.qcow2" &&
        run 1 "$IMG" map "$T/over.qcow2" && grep -q 'allow its protocol' "$T/out" &&
        run 0 "$IO" --backing-urls http -f qcow2 -c 'write -P 2 64k 4k' -c 'read -P 2 64k 4k' \
            "$T/over.qcow2" &&
        run 0 "$IMG" --backing-urls http convert -O raw "$T/over.qcow2" "$T/back" &&
        cmp -i 69632 "$T/www/disk.raw" "$T/back" || return 1
    # What an image on a server names beside itself is looked for there.
    "$IMG" create -q -f qcow2 -F qcow2 -b disk.qcow2 "$T/www/over.qcow2" &&
        run 0 "$IMG" compare "$H/over.qcow2" "$T/www/disk.qcow2"
}

tls()
{
    local u=https://localhost:$HTTPS_PORT/disk.qcow2 o
    o=driver=qcow2,file.driver=https,file.url=$u
    run 1 "$IMG" info "$u" && grep -qi 'certificate' "$T/out" &&
        run 0 env CURL_CA_BUNDLE="$T/pki/ca-cert.pem" "$IMG" info "$u" &&
        run 1 env CURL_CA_BUNDLE="$T/pki/other/ca-cert.pem" "$IMG" info "$u" &&
        run 0 "$IMG" info --image-opts "$o,file.sslverify=off" &&
        run 0 "$IMG" info --image-opts "$o,file.cacert=$T/pki/ca-cert.pem" &&
        run 0 env CURL_CA_BUNDLE="$T/pki/ca-cert.pem" "$IMG" compare "$u" "$T/www/disk.qcow2"
}

netrc()
{
    run 0 "$IMG" info "http://joe:secretpass@127.0.0.1:$PORT/secret/disk.raw" &&
        ! grep -q secretpass "$T/out" &&
        echo "machine 127.0.0.1 login joe password secretpass" >"$T/.netrc" && chmod 600 "$T/.netrc" &&
        run 0 "$IMG" info "$H/secret/disk.raw" && rm "$T/.netrc"
}

# What it is called aside: qemu-img shows options, too.
same_but_name()
{
    same "$@" >"$T/diff" && return
    ! grep '^status' "$T/diff" && ! grep '^[<>]' "$T/diff" | grep -v '^[<>] image: \|^[<>]     filename: '
}

# QEMU's way: objects hold passwords and cookies.
secrets()
{
    local o=driver=http,url=$H s=secret,id=s0,data
    same_but_name info --object $s=secretpass --image-opts "$o/secret/disk.raw,username=joe,password-secret=s0" &&
        same_but_name info --object $s=secretpass --image-opts \
            "driver=qcow2,file.driver=http,file.url=$H/secret/disk.qcow2,file.username=joe,file.password-secret=s0" &&
        same_but_name info --object $s=wrong --image-opts "$o/secret/disk.raw,username=joe,password-secret=s0" &&
        same_but_name info --object "$s=key=secretcookie" --image-opts "$o/biscuit/disk.raw,cookie-secret=s0" &&
        same_but_name info --image-opts "$o/biscuit/disk.raw" &&
        run 0 "$IMG" info --image-opts "$o/biscuit/disk.raw,cookie=key=secretcookie" &&
        run 1 "$IMG" info --image-opts "$o/biscuit/none,cookie=key=secretcookie" &&
        ! grep -q secretcookie "$T/out" &&
        same_but_name info --object $s=secretpass "json:{\"driver\":\"http\",\"url\":\"$H/secret/disk.raw\",\
\"username\":\"joe\",\"password-secret\":\"s0\",\"readahead\":\"64k\",\"timeout\":7}"
}

# nginx's ETag is made of time and size.
replaced()
{
    cp "$T/www/disk.raw" "$T/www/live" && mkfifo "$T/cmd" || return 1
    "$IO" -r -f raw "$H/live" <"$T/cmd" >"$T/out" 2>&1 &
    local pid=$!
    exec 7>"$T/cmd"
    echo 'read 0 4k' >&7
    sleep 1
    truncate -s 25M "$T/www/live"
    echo 'read 10M 4k' >&7
    exec 7>&-
    wait $pid
    cat "$T/out"
    grep -q 'has changed on the server' "$T/out" && grep -q 'Input/output error' "$T/out"
}

no_module()
{
    run 0 env PLATTER_MODULES=/nowhere "$IMG" info "$T/www/disk.qcow2" &&
        run 1 env PLATTER_MODULES=/nowhere "$IMG" info "$H/disk.raw" &&
        grep -q "driver for protocol 'http' is not installed" "$T/out"
}

tap_ok "a web server" setup
tap_ok "text, JSON, refusals as qemu-img's" like_qemu_img
tap_ok "convert, compare, dd of raw, qcow2 and compressed" converts
tap_ok "info and small reads cost few requests" few_requests
tap_ok "an overlay on a web server's image needs leave; a relative name is beside it" overlay
tap_ok "HTTPS: certificates are checked" tls
tap_ok "a user in the URL; ~/.netrc" netrc
tap_ok "QEMU's password-secret and cookie-secret" secrets
tap_ok "N14: a file that is replaced is noticed" replaced
tap_ok "without the module nothing else suffers" no_module
tap_end
