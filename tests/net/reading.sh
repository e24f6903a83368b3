# reading.sh - what holds for images on any server that they are only read from: sourced after
# servers.sh by http.t and ftp.t.  $H is the URL of the folder, here $T/www, $SCHEME its scheme.

# The images, and an empty file.
reading_images()
{
    make_source "$T/www/disk.raw" &&
        "$ORACLE/qemu-img" convert -f raw -O qcow2 "$T/www/disk.raw" "$T/www/disk.qcow2" &&
        "$ORACLE/qemu-img" convert -c -f raw -O qcow2 "$T/www/disk.raw" "$T/www/small.qcow2" &&
        : >"$T/www/empty"
}

reading_like_qemu_img()
{
    local s=$SCHEME
    same info "$H/disk.raw" && same info --output=json "$H/disk.qcow2" && same info "$H/none" &&
        same info "$H/empty" && same info $s://127.0.0.1:1/x && same info $s:foo &&
        same info "$s:///x" && same info --image-opts "driver=${s}s,url=$H/disk.raw" &&
        same info --image-opts "driver=$s,url=$H/disk.raw" && same info --image-opts driver=$s &&
        same info --image-opts "driver=$s,url=$H/disk.raw,readahead=100" &&
        same info --image-opts "driver=$s,url=$H/disk.raw,foo=1" &&
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

overlay()
{
    run 0 "$IMG" create -f qcow2 -F qcow2 -b "$H/disk.qcow2" "$T/over.qcow2" &&
        run 1 "$IMG" map "$T/over.qcow2" && grep -q 'allow its protocol' "$T/out" &&
        run 0 "$IO" --backing-urls $SCHEME -f qcow2 -c 'write -P 2 64k 4k' -c 'read -P 2 64k 4k' \
            "$T/over.qcow2" &&
        run 0 "$IMG" --backing-urls $SCHEME convert -O raw "$T/over.qcow2" "$T/back" &&
        cmp -i 69632 "$T/www/disk.raw" "$T/back" || return 1
    # What an image on a server names beside itself is looked for there.
    "$IMG" create -q -f qcow2 -F qcow2 -b disk.qcow2 "$T/www/over.qcow2" &&
        run 0 "$IMG" compare "$H/over.qcow2" "$T/www/disk.qcow2"
}

# What it is called aside: qemu-img shows options, too.
same_but_name()
{
    same "$@" >"$T/diff" && return
    ! grep '^status' "$T/diff" && ! grep '^[<>]' "$T/diff" | grep -v '^[<>] image: \|^[<>]     filename: '
}

# reading_live COMMAND: $H/live is open (as LIVE says), a part of it has been read; then
# COMMAND, and a read of another part.  What platter-io says is in $T/out.
LIVE=()
reading_live()
{
    cp "$T/www/disk.raw" "$T/www/live" && rm -f "$T/cmd" && mkfifo "$T/cmd" || return 1
    [ ${#LIVE[@]} -gt 0 ] || LIVE=(-f raw "$H/live")
    "$IO" -r "${LIVE[@]}" <"$T/cmd" >"$T/out" 2>&1 &
    local pid=$!
    exec 7>"$T/cmd"
    echo 'read 0 4k' >&7
    sleep 1
    "$@" 7>&-
    echo 'read 10M 4k' >&7
    exec 7>&-
    wait $pid
    cat "$T/out"
}

# By one that ends before or behind what is read.
replaced()
{
    local size
    for size in 5M 25M; do
        reading_live truncate -s $size "$T/www/live"
        grep -q 'has changed on the server' "$T/out" && grep -q 'Input/output error' "$T/out" || return 1
    done
}

tls()
{
    local u=${SCHEME}s://localhost:$1/disk.qcow2 o
    o=driver=qcow2,file.driver=${SCHEME}s,file.url=$u
    run 1 "$IMG" info "$u" && grep -qi 'certificate' "$T/out" &&
        run 0 env CURL_CA_BUNDLE="$T/pki/ca-cert.pem" "$IMG" info "$u" &&
        run 1 env CURL_CA_BUNDLE="$T/pki/other/ca-cert.pem" "$IMG" info "$u" &&
        run 0 "$IMG" info --image-opts "$o,file.sslverify=off" &&
        run 0 "$IMG" info --image-opts "$o,file.cacert=$T/pki/ca-cert.pem" &&
        run 0 env CURL_CA_BUNDLE="$T/pki/ca-cert.pem" "$IMG" compare "$u" "$T/www/disk.qcow2"
}

no_module()
{
    run 0 env PLATTER_MODULES=/nowhere "$IMG" info "$T/www/disk.qcow2" &&
        run 1 env PLATTER_MODULES=/nowhere "$IMG" info "$H/disk.raw" &&
        grep -q "driver for protocol '$SCHEME' is not installed" "$T/out"
}
