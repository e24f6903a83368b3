#!/bin/bash
# nfs.t - images on a real NFS server (nfs-ganesha, FSAL VFS) by NFSv3 and NFSv4: created,
# converted to and from, compared, resized, checked; killed and stopped under load (N1, N9).
here=$(cd "$(dirname "$0")" && pwd)
. "$here/servers.sh"
net_isolate "$0" "$@"
. "$here/server-nfs.sh"

T=$(mktemp -d "${TMPDIR:-/tmp}/platter-nfs-XXXXXX")
# The server wants file handles: tmpfs and ext4 have them, overlayfs does not always.
D=$(mktemp -d /dev/shm/platter-nfs-XXXXXX)
trap 'nfs_stop; rm -rf "$T" "$D"' EXIT
trap 'exit 1' INT TERM

nfs_start "$D" || { echo "1..1"; echo "not ok 1 - nfs-ganesha starts"; exit 1; }

head -c 20000000 /dev/urandom > "$T/src.raw"
truncate -s 64M "$T/src.raw"

in_folder() { [ "$(stat -c %s "$D/export/$1")" = "$2" ]; }
on_server() { cmp "$T/src.raw" "$D/export/$1"; }
json_size() { "$IMG" info --output=json "$1" | grep -q "\"virtual-size\": $2"; }

for v in 3 4; do
    [ $v = 3 ] && url=nfs_url || url=nfs4_url
    p="NFSv$v:"
    a=$($url "a$v.raw") q=$($url "q$v.qcow2")
    tap_ok "$p create" "$IMG" create -q -f raw "$a" 10M
    tap_ok "$p the file is there" in_folder "a$v.raw" 10485760
    tap_ok "$p create again empties it" bash -c \
        "'$IO' -f raw -c 'write -P 9 0 4k' '$a' && '$IMG' create -q -f raw '$a' 11M &&
         '$IO' -f raw -c 'read -P 0 0 4k' '$a'"
    tap_ok "$p resize" "$IMG" resize -q -f raw "$a" 12M
    tap_ok "$p resize --shrink" "$IMG" resize -q -f raw --shrink "$a" 3M
    tap_ok "$p the size is the server's" in_folder "a$v.raw" 3145728
    tap_ok "$p odd offsets and lengths" "$IO" -f raw -c 'write -P 5 1001 2000001' \
        -c 'read -P 5 1001 2000001' -c 'read -P 0 0 1001' -c 'flush' \
        -c 'writev -P 6 2500001 77 512 4096' -c 'readv -P 6 2500001 77 512 4096' "$a"
    tap_ok "$p FUA" "$IO" -f raw -c 'write -f -P 7 4k 8k' -c 'read -P 7 4k 8k' "$a"
    tap_ok "$p zeroes" "$IO" -f raw -c 'write -z 4k 4k' -c 'read -P 0 4k 4k' -c 'read -P 7 8k 4k' "$a"
    tap_ok "$p convert raw to raw" "$IMG" convert -f raw -O raw "$T/src.raw" "$($url "r$v.raw")"
    tap_ok "$p the bytes are on the server" on_server "r$v.raw"
    tap_ok "$p convert raw to qcow2" "$IMG" convert -f raw -O qcow2 "$T/src.raw" "$q"
    tap_ok "$p check" "$IMG" check -q "$q"
    tap_ok "$p compare" "$IMG" compare -q -f raw -F qcow2 "$T/src.raw" "$q"
    tap_ok "$p convert back" "$IMG" convert -f qcow2 -O raw "$q" "$T/back.raw"
    tap_ok "$p what comes back is what went" cmp "$T/src.raw" "$T/back.raw"
    tap_ok "$p info" json_size "$q" 67108864
    tap_ok "$p info of a symbolic link's target" bash -c \
        "ln -sf 'q$v.qcow2' '$D/export/link$v' && '$IMG' info '$($url "link$v")' | grep -q 'format: qcow2'"
    tap_ok "$p no such file" fails_with "No such file or directory" "$IMG" info "$($url nothing)"
    tap_ok "$p a folder is no image" bash -c "mkdir -p '$D/export/folder'; ! '$IMG' info '$($url folder)'"
    tap_ok "$p one connection, eight" bash -c \
        "'$IMG' compare -q -f raw -F qcow2 '$T/src.raw' '$($url "q$v.qcow2" connections=1)' &&
         '$IMG' compare -q -f raw -F qcow2 '$T/src.raw' '$($url "q$v.qcow2" connections=8)'"
done

tap_ok "the arguments of libnfs and QEMU are taken" "$IMG" info -f raw \
    "$(nfs_url a3.raw uid=0 gid=0 tcp-syncnt=2 readahead=65536 debug=0 version=3 dircache=0)"
tap_ok "an unknown argument is refused" fails_with "Unknown NFS parameter name: colour" "$IMG" info \
    "$(nfs_url a3.raw colour=red)"
chmod 777 "$D/export"
tap_ok "uid and gid are the file's owner's" bash -c \
    "'$IMG' create -q -f raw '$(nfs_url mine uid=12345 gid=54321)' 1M &&
     [ \"\$(stat -c %u:%g '$D/export/mine')\" = 12345:54321 ]"
truncate -s 1M "$D/export/roots"
chmod 600 "$D/export/roots"
tap_ok "uid: the server's refusal is the user's" fails_with "Permission denied" \
    "$IO" -f raw -c 'read 0 4k' "$(nfs_url roots uid=12345 gid=12345)"
tap_ok "--image-opts as QEMU has them" "$IMG" info --image-opts \
    "driver=raw,file.driver=nfs,file.server.type=inet,file.server.host=127.0.0.1,file.path=$D/export/a3.raw,file.nfsport=$NFS_PORT,file.mountport=$MOUNT_PORT"
tap_ok "ports found by the portmapper" "$IMG" info -f raw "nfs://127.0.0.1$D/export/a3.raw"
tap_ok "nobody listens: at once, naming host and cause" net_within 5 bash -c \
    "! '$IMG' info 'nfs://127.0.0.1/x/y?nfsport=1&mountport=1' 2>&1 | tee /dev/stderr | grep -vq nfs://127.0.0.1/x/y"

# ---- N1, N9: the server goes away under load ------------------------------------------------

# Writes for some seconds with flushes between, everything read back at the end.
load()
{
    local i args=()
    for ((i = 0; i < 40; i++)); do
        args+=(-c "write -q -P $((i % 250 + 1)) ${i}M 1M" -c "write -q -P 255 $((i * 1024 + 512))k 4k")
        [ $((i % 8)) = 7 ] && args+=(-c flush)
        args+=(-c "sleep 50")
    done
    args+=(-c flush)
    for ((i = 0; i < 40; i++)); do
        args+=(-c "read -q -P $((i % 250 + 1)) ${i}M 512k" -c "read -q -P 255 $((i * 1024 + 512))k 4k")
    done
    "$IO" -f raw "${args[@]}" "$1" > "$T/load.out" 2>&1 && ! grep -qE '^(read|write|flush|Pattern)' "$T/load.out"
}
server_dies()
{
    "$IMG" create -q -f raw "$1" 64M || return 1
    load "$1" &
    local pid=$! i
    for i in 1 2; do
        sleep 0.7
        nfs_kill KILL
        sleep 0.3
        nfs_run || return 1
    done
    wait $pid || { head -12 "$T/load.out"; return 1; }
    grep -q reconnecting "$T/load.out" || { echo "the server's death went unnoticed"; return 1; }
}
server_stops()
{
    "$IMG" create -q -f raw "$1" 64M || return 1
    load "$1" &
    local pid=$!
    sleep 0.7
    nfs_signal STOP
    sleep 4
    nfs_signal CONT
    wait $pid || { head -12 "$T/load.out"; return 1; }
}
tap_ok "N1: NFSv3: the server killed twice under a write load: nothing lost" server_dies "$(nfs_url n1.raw timeout=10)"
tap_ok "N1: NFSv4: the server killed twice under a write load: nothing lost" server_dies "$(nfs4_url n1v4.raw timeout=10)"
tap_ok "N9: the server stopped for 4 s with timeout=1" server_stops "$(nfs_url n9.raw timeout=1)"
tap_ok "N9: the server stopped for 4 s with timeout=1, NFSv4" server_stops "$(nfs4_url n9v4.raw timeout=1)"

tap_end
