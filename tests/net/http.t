#!/bin/bash
# http.t - images on a real web server (nginx), over HTTP and HTTPS: every command that
# reads, QEMU's options and words, the number of requests, overlays.
cd "$(dirname "$0")/../.."
. tests/net/servers.sh
net_isolate "$0" "$@"
. tests/net/server-nbd.sh
. tests/net/server-http.sh
. tests/net/reading.sh

T=$(mktemp -d)
trap 'net_stop_all; rm -rf "$T"' EXIT
PORT=$(net_free_port) HTTP_PORT=$PORT HTTPS_PORT=$(net_free_port)
SCHEME=http H=http://127.0.0.1:$PORT
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
    reading_images
}

like_qemu_img()
{
    reading_like_qemu_img && same info "$H/norange/disk.raw" && same info "$H/secret/disk.raw" &&
        same info "$H/moved/disk.raw"
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

netrc()
{
    run 0 "$IMG" info "http://joe:secretpass@127.0.0.1:$PORT/secret/disk.raw" &&
        ! grep -q secretpass "$T/out" &&
        echo "machine 127.0.0.1 login joe password secretpass" >"$T/.netrc" && chmod 600 "$T/.netrc" &&
        run 0 "$IMG" info "$H/secret/disk.raw" && rm "$T/.netrc"
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

tap_ok "a web server" setup
tap_ok "text, JSON, refusals as qemu-img's" like_qemu_img
tap_ok "convert, compare, dd of raw, qcow2 and compressed" converts
tap_ok "info and small reads cost few requests" few_requests
tap_ok "an overlay on a web server's image needs leave; a relative name is beside it" overlay
tap_ok "HTTPS: certificates are checked" tls "$HTTPS_PORT"
tap_ok "a user in the URL; ~/.netrc" netrc
tap_ok "QEMU's password-secret and cookie-secret" secrets
tap_ok "N14: a file that is replaced is noticed" replaced
tap_ok "without the module nothing else suffers" no_module
tap_end
