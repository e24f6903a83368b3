#!/bin/bash
# commands.t - the commands of platter-img on images on NFS and gluster (files), and on iSCSI
# and NBD (where images are as large as they are): what they say and do is what they say and
# do with local files, and what qemu-img says about the same images on the same servers.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/servers.sh"
net_isolate "$0" "$@"
. "$here/places.sh"

T=$(mktemp -d "${TMPDIR:-/tmp}/platter-commands-XXXXXX")
D=$(mktemp -d /dev/shm/platter-commands-XXXXXX)
trap 'places_stop; rm -rf "$T" "$D"' EXIT
trap 'exit 1' INT TERM
PLACES=${COMMANDS_PLACES:-nfs3 iscsi nbd gluster}
there=() beside=()
places_start "$D" $PLACES
# QEMU's URLs name no ports: the portmapper tells.
[ "$NET_ISOLATED" != 1 ] || PLACE_nfs3_URL=${PLACE_nfs3_URL%%\?*}
MB=$((1 << 20))

# ---- the same twice -----------------------------------------------------------------------

# Names of the images "@1" to "@4" at the place (there) and of local files (beside); and what
# differs between the two: names (QEMU's of a LUN is a description), times, what the storage
# allocates, how long it is.
name_images()
{
    local i quote='s/[].*^$?+(){}|[]/\\&/g'
    PLAIN=()
    for i in 1 2 3 4; do
        there[i]=$(place_url "$PLACE" $i) beside[i]=$T/$PLACE/$i
        PLAIN+=(-e "s#$(sed "$quote" <<<"${there[i]}")#@$i#g" -e "s#${beside[i]}#@$i#g")
    done
    PLAIN+=(-e 's/qemu-img/platter-img/g' -e '/disk size:|"actual-size":|file length:/d'
            -e '/"virtual-size": [0-9]*,?$/d' -e 's/[0-9-]{10} [0-9:]{8}/DATE/g'
            -e 's/"date-(n?sec)": [0-9]+/"date-\1": N/' -e 's/^(Image compacted: ).*/\1/'
            -e 's/json:\{[^}]*"lun(\\?)": \\?"([1-4])\\?"[^}]*\}+/@\2/'
            -e '/is deprecated/d' -e 's/completed in [0-9.]+ seconds/completed/')
}
plain() { sed -E "${PLAIN[@]}"; }

# named HOW ARG...: into ARGS
named()
{
    local -n how=$1
    local a
    shift
    ARGS=()
    for a; do
        while [[ $a =~ ^(.*)@([1-4])(.*)$ ]]; do
            a=${BASH_REMATCH[1]}${how[BASH_REMATCH[2]]}${BASH_REMATCH[3]}
        done
        ARGS+=("$a")
    done
}

# said HOW PROGRAM ARG...: its words and status
said()
{
    named "$1" "${@:3}"
    timeout 60 "$2" "${ARGS[@]}" 2>&1
    echo "status $?"
}
ours() { said "$1" "$IMG" --backing-urls all "${@:2}"; }

# The same with a local file, word for word.
like_local()
{
    ours beside "$@" | plain >"$T/want"
    ours there "$@" | plain >"$T/got"
    diff "$T/want" "$T/got"
}
# The same as qemu-img says.  It takes 10 s to leave a gluster volume: there the status has
# to be that of a local file.
like_qemu()
{
    if ! [ -x "$ORACLE/qemu-img" ] || [ "$NET_ISOLATED" != 1 ] || [ "$PLACE" = gluster ]; then
        [ "$(ours beside "$@" | tail -1)" = "$(ours there "$@" | tail -1)" ]
        return
    fi
    said there "$ORACLE/qemu-img" "$@" | plain >"$T/want"
    ours there "$@" | plain >"$T/got"
    diff "$T/want" "$T/got"
}
# Both change theirs, and both are the same then: "@N FORMAT" first.
changes()
{
    local name=$1 fmt=$2
    shift 2
    like_local "$@" && same_content "$name" "$fmt"
}
same_content()
{
    named there "$1"
    local a=${ARGS[0]}
    named beside "$1"
    "$IMG" --backing-urls all compare -f "$2" -F "$2" "$a" "${ARGS[0]}"
}
write_both()
{
    local at
    for at in there beside; do
        named $at "$@"
        "$IO" --backing-urls all "${ARGS[@]}" >"$T/io" 2>&1 || { cat "$T/io"; return 1; }
    done
}

# ---- images to begin with -----------------------------------------------------------------

head -c $((3 * MB)) /dev/urandom >"$T/src.raw"
truncate -s 20M "$T/src.raw"
dd if=/dev/urandom of="$T/src.raw" bs=64k seek=200 count=20 conv=notrunc status=none
# A leaked cluster: a count of 1 for the 100th.
"$IMG" create -q -f qcow2 "$T/leak.qcow2" 20M
"$IO" -f qcow2 -c 'write -P 7 0 1M' "$T/leak.qcow2" >/dev/null
truncate -s 8M "$T/leak.qcow2"
printf '\0\1' | dd of="$T/leak.qcow2" bs=1 seek=$((131072 + 200)) conv=notrunc status=none

# ---- the commands ---------------------------------------------------------------------------

# "@1" becomes an empty qcow2 image, and "@2", "@3": raw ones, at places of fixed size.
make_room()
{
    local i n
    mkdir -p "$T/$PLACE"
    n=PLACE_${PLACE}_FIXED
    for i in 1 2 3 4; do
        rm -f "$T/$PLACE/$i"
        [ -z "${!n}" ] || truncate -s "$PLACES_FIXED" "$T/$PLACE/$i"
    done
    FIXED=${!n}
}

raw_commands()
{
    if [ -n "$FIXED" ]; then
        tap_ok "$PLACE: convert -n to raw" like_local convert -n -f raw -O raw "$T/src.raw" @2
        tap_ok "$PLACE: resize of raw: as in qemu-img" like_qemu resize -f raw @2 80M
    else
        tap_ok "$PLACE: create raw" like_local create -f raw @2 5M
        tap_ok "$PLACE: convert to raw" changes @2 raw convert -f raw -O raw "$T/src.raw" @2
        tap_ok "$PLACE: resize raw" changes @2 raw resize -f raw @2 24M
        tap_ok "$PLACE: resize raw, without --shrink" like_local resize -f raw @2 20M
        tap_ok "$PLACE: resize --shrink raw" changes @2 raw resize --shrink -f raw @2 20M
    fi
    tap_ok "$PLACE: info raw" like_qemu info -f raw @2
    tap_ok "$PLACE: map raw" like_qemu map -f raw --output=json @2
    tap_ok "$PLACE: compare raw" like_qemu compare -f raw -F raw "$T/src.raw" @2
    tap_ok "$PLACE: dd into a file" like_local dd -f raw -O raw bs=64k count=100 skip=3 if=@2 "of=$T/dd.raw"
    tap_ok "$PLACE: bench" like_local bench -f raw -c 32 -d 8 -s 4096 @2
    tap_ok "$PLACE: bench -w" like_local bench -w -f raw -c 32 -d 8 -s 4096 --pattern=5 --flush-interval=8 @2
}

qcow2_commands()
{
    local n=()
    [ -z "$FIXED" ] || n=(-n)
    tap_ok "$PLACE: create qcow2" like_local create -f qcow2 @1 20M
    tap_ok "$PLACE: convert to qcow2" changes @1 qcow2 convert "${n[@]}" -f raw -O qcow2 "$T/src.raw" @1
    tap_ok "$PLACE: info" like_qemu info @1
    tap_ok "$PLACE: info, JSON" like_qemu info --output=json @1
    tap_ok "$PLACE: check" like_qemu check @1
    tap_ok "$PLACE: map, JSON" like_qemu map --output=json @1
    tap_ok "$PLACE: compare" like_qemu compare -f raw -F qcow2 "$T/src.raw" @1
    tap_ok "$PLACE: digest" like_local digest @1
    tap_ok "$PLACE: convert back" bash -c '"$0" convert -f qcow2 -O raw "$1" "$2" && cmp "$2" "$3"' \
        "$IMG" "${there[1]}" "$T/back.raw" "$T/src.raw"
    tap_ok "$PLACE: resize" changes @1 qcow2 resize @1 +4M
    tap_ok "$PLACE: snapshot -c" like_local snapshot -c s1 @1
    tap_ok "$PLACE: write" write_both -f qcow2 -c "write -P 9 1M 3M" -c "write -z 5M 64k" @1
    tap_ok "$PLACE: snapshot -l" like_qemu snapshot -l @1
    tap_ok "$PLACE: snapshot -a" changes @1 qcow2 snapshot -a s1 @1
    tap_ok "$PLACE: snapshot -d" changes @1 qcow2 snapshot -d s1 @1
    tap_ok "$PLACE: bitmap --add" like_local bitmap --add -g 65536 @1 b0
    tap_ok "$PLACE: bitmap, two of them" like_local bitmap --add --disable --merge b0 @1 b1
    tap_ok "$PLACE: write below a bitmap" write_both -f qcow2 -c "write -P 3 2M 128k" @1
    tap_ok "$PLACE: info of bitmaps" like_qemu info @1
    tap_ok "$PLACE: bitmap --remove" changes @1 qcow2 bitmap --remove @1 b0
    tap_ok "$PLACE: amend" changes @1 qcow2 amend -f qcow2 -o lazy_refcounts=on @1
    tap_ok "$PLACE: check after all this" like_qemu check @1
}

chain_commands()
{
    tap_ok "$PLACE: create with a backing file there" like_local create -f qcow2 -b @1 -F qcow2 @3
    tap_ok "$PLACE: write to the overlay" write_both -f qcow2 -c "write -P 4 3M 1M" @3
    tap_ok "$PLACE: info --backing-chain" like_qemu info --backing-chain @3
    tap_ok "$PLACE: map of a chain" like_qemu map --output=json @3
    tap_ok "$PLACE: commit" like_local commit -f qcow2 @3
    tap_ok "$PLACE: what was committed" same_content @1 qcow2
    tap_ok "$PLACE: write to it once more" write_both -f qcow2 -c "write -P 5 6M 1M" @3
    tap_ok "$PLACE: rebase to none" changes @3 qcow2 rebase -f qcow2 -b "" @3
    tap_ok "$PLACE: rebase -u" like_local rebase -u -f qcow2 -b @1 -F qcow2 @3
    tap_ok "$PLACE: the chain is as it was" same_content @3 qcow2
    tap_ok "$PLACE: compact" changes @1 qcow2 compact @1
    tap_ok "$PLACE: check after compact" like_qemu check @1
}

repair_commands()
{
    local n=()
    if [ -n "$FIXED" ]; then
        n=(-n)
        truncate -s "$PLACES_FIXED" "${beside[3]}"
    fi
    tap_ok "$PLACE: a damaged image" like_local convert "${n[@]}" -f raw -O raw "$T/leak.qcow2" @3
    tap_ok "$PLACE: check of it" like_qemu check -f qcow2 @3
    tap_ok "$PLACE: check -r" like_local check -f qcow2 -r leaks @3
    tap_ok "$PLACE: check after the repair" like_qemu check -f qcow2 @3
}

for PLACE in $PLACES; do
    make_room
    name_images
    raw_commands
    qcow2_commands
    chain_commands
    repair_commands
done
tap_end
