#!/bin/bash
# ftp.t - images on a real FTP server (pyftpdlib), over FTP and FTPS: every command that reads,
# QEMU's options and words, users, overlays; a file that changes, a server that goes away.
cd "$(dirname "$0")/../.."
. tests/net/servers.sh
net_isolate "$0" "$@"
. tests/net/server-nbd.sh
. tests/net/server-ftp.sh
. tests/net/reading.sh

T=$(mktemp -d)
trap 'net_stop_all; rm -rf "$T"' EXIT
FTP_PORT=$(net_free_port) FTPS_PORT=$(net_free_port)
SCHEME=ftp H=ftp://127.0.0.1:$FTP_PORT
export HOME=$T

setup() { mkdir -p "$T/www/sub" && reading_images && cp "$T/www/disk.qcow2" "$T/home/secret.qcow2"; }

folders()
{
    cp "$T/www/disk.qcow2" "$T/www/sub/a b.qcow2" &&
        run 0 "$IMG" compare "$H/sub/a%20b.qcow2" "$T/www/disk.qcow2" &&
        same info "$H/none/disk.qcow2" && same info "$H/sub"
}

# Block sizes and places of all kinds, from the server and from a local copy.
reads()
{
    local args=() at
    for at in 0 1 511 65535 9000000 31457281 41940000; do
        args+=(-c "read -v $at 3000")
    done
    args+=(-c "aio_read -q 0 1M" -c "aio_read -q 4M 2M" -c "aio_read -q 12M 64k" -c aio_flush)
    "$IO" -r -f raw "${args[@]}" "$T/www/disk.raw" | grep -v ops >"$T/want"
    "$IO" -r -f raw "${args[@]}" "$H/disk.raw" | grep -v ops >"$T/got"
    cmp "$T/want" "$T/got"
}

# Credentials: from the URL, options, a file, the environment, an object; ~/.netrc.
users()
{
    local u=ftp://127.0.0.1:$FTP_PORT/secret.qcow2 at=@127.0.0.1:$FTP_PORT/secret.qcow2
    local o=driver=qcow2,file.driver=ftp,file.url=$u s=secret,id=s0,data
    echo secretpass >"$T/pw"
    same info "$u" && run 0 "$IMG" info "ftp://joe:secretpass$at" && ! grep secretpass "$T/out" &&
        run 1 "$IMG" info "ftp://joe:wrong$at" && grep -q 'Access denied' "$T/out" &&
        ! grep wrong "$T/out" &&
        run 0 env PLATTER_HTTP_PASSWORD=secretpass "$IMG" info "ftp://joe$at" &&
        run 0 "$IMG" info --image-opts "$o,file.username=joe,file.password-file=$T/pw" &&
        same_but_name info --object $s=secretpass --image-opts "$o,file.username=joe,file.password-secret=s0" &&
        same_but_name info --object $s=wrong --image-opts "$o,file.username=joe,file.password-secret=s0" &&
        echo "machine 127.0.0.1 login joe password secretpass" >"$T/.netrc" && chmod 600 "$T/.netrc" &&
        run 0 "$IMG" info "$u" && rm "$T/.netrc"
}

# Of the same size, but newer.
touched()
{
    reading_live touch -d '+1 hour' "$T/www/live"
    grep -q 'has changed on the server' "$T/out" && grep -q 'Input/output error' "$T/out"
}

# Servers that know less, and one that takes one client at a time.
poor_servers()
{
    local FTP_PORT H i
    export FTP_WITHOUT FTP_CLIENTS
    for i in 1 2 3 4; do
        FTP_PORT=$(net_free_port) FTP_WITHOUT='' FTP_CLIENTS=0
        H=ftp://127.0.0.1:$FTP_PORT
        case $i in
        1) FTP_WITHOUT=SIZE; ftp_run "$T" && same info "$H/disk.qcow2" ;;
        2) FTP_WITHOUT=REST; ftp_run "$T" && run 1 "$IO" -r -f raw -c 'read 0 4k' -c 'read 2M 4k' "$H/disk.raw" &&
            grep 'read 4096/4096' "$T/out" && grep 'read failed' "$T/out" ;;
        3) FTP_WITHOUT='MDTM EPSV'; ftp_run "$T" && run 0 "$IMG" compare "$H/disk.qcow2" "$T/www/disk.qcow2" ;;
        4) FTP_CLIENTS=1; ftp_run "$T" && run 0 "$IMG" compare "$H/disk.qcow2" "$T/www/disk.qcow2" &&
            grep 'Too many connections' "$T/ftp.log" ;;
        esac || { echo "server $i"; return 1; }
        net_end "$NET_PID"
    done
}

end_server() { net_end "$(cat "$T/ftp.pid")" KILL; net_wait_free "$FTP_PORT"; }
restart_later() { end_server; (sleep 1.5; ftp_run "$T") >"$T/restart" 2>&1 & RESTART=$!; }

killed()
{
    reading_live restart_later && wait "$RESTART" || return 1
    grep reconnecting "$T/out" && grep 'connected again' "$T/out" && ! grep 'rror' "$T/out" || return 1
    # In the middle of a copy, however fast this machine is.
    "$IMG" convert -r 16M -f raw -O raw "$H/disk.raw" "$T/back" >"$T/out" 2>&1 &
    local pid=$!
    sleep 0.15
    restart_later
    wait $pid
    local r=$?
    cat "$T/out"
    wait "$RESTART"
    [ $r = 0 ] && cmp "$T/www/disk.raw" "$T/back"
}

# EIO when timeout and reconnect are over, and the program ends.
stopped()
{
    local start=$SECONDS pid LIVE
    pid=$(cat "$T/ftp.pid")
    LIVE=(--image-opts "driver=raw,file.driver=ftp,file.url=$H/live,file.timeout=1,file.reconnect=2")
    reading_live kill -STOP -- "-$pid"
    kill -CONT -- "-$pid"
    echo "after $((SECONDS - start)) s"
    grep reconnecting "$T/out" && grep 'Input/output error' "$T/out" && [ $((SECONDS - start)) -lt 10 ]
}

ftp_start "$T" >"$T/setup" 2>&1
tap_ok "an FTP server, images" setup
tap_ok "text, JSON, refusals as qemu-img's" reading_like_qemu_img
tap_ok "folders, names with blanks; what is not there" folders
tap_ok "reads of all sizes and places" reads
tap_ok "convert, compare, dd of raw, qcow2 and compressed" converts
tap_ok "an overlay on an FTP server's image needs leave; a relative name is beside it" overlay
tap_ok "FTPS: certificates are checked" tls "$FTPS_PORT"
tap_ok "users and passwords, never printed" users
tap_ok "N14: a file that is replaced is noticed" replaced
tap_ok "N14: a file of the same size but another time is noticed" touched
tap_ok "N1: the server is killed and restarted" killed
tap_ok "N9: the server is stopped: an error in time" stopped
tap_ok "servers without SIZE, REST, MDTM, EPSV; one that takes one client" poor_servers
tap_ok "without the module nothing else suffers" no_module
tap_end
