#!/bin/bash
# iscsi.t - LUNs of a real target (tgtd): every command that makes sense on one, block
# sizes, provisioning, CHAP, digests, sessions, and a target killed under load.
cd "$(dirname "$0")/../.."
. tests/net/servers.sh
net_isolate "$0" "$@"
. tests/net/server-iscsi.sh

T=$(mktemp -d)
trap 'iscsi_kill; net_stop_all; rm -rf "$T"' EXIT
D=iqn.2026-01.test:d

setup()
{
    iscsi_start "$T/srv" && iscsi_target 1 $D || return 1
    truncate -s 64M "$T/lun1" "$T/lun2" "$T/lun3" "$T/lun4"
    iscsi_lun 1 1 "$T/lun1" && iscsi_lun 1 2 "$T/lun2" 4096 && iscsi_lun 1 3 "$T/lun3" &&
        iscsi_lun 1 4 "$T/lun4" && iscsi_thin 1 3 || return 1
    iscsi_adm --mode logicalunit --op update --tid 1 --lun 4 --params readonly=1
}

rw()
{
    run 0 "$IO" -f raw -c 'write -P 1 0 4M' -c 'write -P 2 1000 3000' -c 'write -f -P 3 8M 64k' \
        -c flush -c 'read -P 1 0 1000' -c 'read -P 2 1000 3000' -c 'read -P 1 4000 100k' \
        -c 'write -z 1M 512k' -c 'read -P 0 1M 512k' -c 'read -P 1 1536k 512k' \
        -c 'writev -P 5 5M 512 1k 70k' -c 'readv -P 5 5M 512 1k 70k' -c length "$1" &&
        grep -q '64 MiB' "$T/out"
}

same_as() { cmp -n 1000 "$1" <(head -c 1000 /dev/zero | tr '\0' '\1'); }

info()
{
    run 0 "$IMG" info "$(iscsi_url $D 1)" && grep -q 'virtual size: 64 MiB' "$T/out"
}

convert_to()
{
    run 0 "$IMG" convert -n -f raw -O raw "$T/src" "$1" &&
        cmp -n 41943040 "$T/src" "$2" && run 0 "$IMG" compare -f raw -F raw "$T/src" "$1"
}

convert_from()
{
    run 0 "$IMG" convert -f raw -O raw "$(iscsi_url $D 1)" "$T/back" && cmp "$T/lun1" "$T/back"
}

create()
{
    run 0 "$IO" -f raw -c 'write -P 9 0 64k' "$(iscsi_url $D 1)" &&
        run 0 "$IMG" create -f raw "$(iscsi_url $D 1)" 10M &&
        run 0 "$IO" -f raw -c 'read -P 0 0 512' "$(iscsi_url $D 1)" &&
        run 1 "$IMG" create -f raw "$(iscsi_url $D 1)" 65M && grep -q 'Cannot grow' "$T/out" &&
        run 1 "$IMG" resize -f raw "$(iscsi_url $D 1)" 65M && grep -q 'Cannot' "$T/out"
}

# 64 MiB of LUN take what fits, then the guest is told; the image stays consistent.
qcow2_on()
{
    run 0 "$IMG" create -f qcow2 "$1" 1G &&
        run 0 "$IO" -f qcow2 -c 'write -P 6 900M 8M' -c 'write -P 7 0 100k' -c flush "$1" &&
        run 0 "$IO" -f qcow2 -c 'read -P 6 900M 8M' -c 'read -P 7 0 100k' \
            -c 'read -P 0 100k 1M' "$1" &&
        run 0 "$IMG" check "$1" &&
        run 1 "$IO" -f qcow2 -c 'write -P 8 100M 80M' "$1" &&
        grep -q 'No space left' "$T/out" &&
        run 0 "$IO" -f qcow2 -c 'read -P 6 900M 8M' -c 'read -P 7 0 100k' "$1" || return 1
    "$IMG" check "$1"
    [ $? = 0 ] || [ $? = 3 ]
}

overlay()
{
    run 0 "$IMG" create -f qcow2 -F raw -b "$(iscsi_url $D 1)" "$T/over.qcow2" || return 1
    run 1 "$IMG" map "$T/over.qcow2" && grep -q 'allow its protocol' "$T/out" &&
        run 1 "$IMG" --backing-urls nfs map "$T/over.qcow2" &&
        run 0 "$IMG" --backing-urls nfs,iscsi map "$T/over.qcow2" &&
        run 0 "$IO" -f raw -c 'write -P 1 0 128k' "$(iscsi_url $D 1)" &&
        run 0 "$IO" --backing-urls iscsi -f qcow2 -c 'write -P 2 64k 4k' -c 'read -P 1 0 64k' \
            -c 'read -P 2 64k 4k' -c 'read -P 1 68k 60k' "$T/over.qcow2" &&
        run 0 "$IO" -f raw -c 'read -P 1 0 128k' "$(iscsi_url $D 1)"
}

thin()
{
    local url before after
    url=$(iscsi_url $D 3)
    run 0 "$IO" -f raw -d unmap -c 'write -P 1 0 8M' -c flush "$url" || return 1
    before=$(stat -c %b "$T/lun3")
    run 0 "$IO" -f raw -d unmap -c 'discard 1M 4M' -c flush -c 'read -P 0 1M 4M' \
        -c 'read -P 1 5M 3M' "$url" || return 1
    after=$(stat -c %b "$T/lun3")
    echo "$before blocks before, $after after"
    [ $((before - after)) -ge 8000 ]
}

# What is unmapped is known to be zero and stays so when zeros are copied to it.
thin_map()
{
    local url
    url=$(iscsi_url $D 3)
    run 0 "$IO" -f raw -d unmap -c 'discard 0 64M' -c 'write -P 1 4M 1M' \
        -c 'write -z -u 4160k 64k' -c flush "$url" &&
        run 0 "$IMG" map --output=json -f raw "$url" &&
        tr -d ' \n' <"$T/out" | grep -o '"start":[0-9]*,"length":[0-9]*\|"zero":[a-z]*' |
        paste -sd ' ' >"$T/map" && cat "$T/map" && cat >"$T/want" <<END &&
"start":0,"length":4194304 "zero":true "start":4194304,"length":65536 "zero":false \
"start":4259840,"length":65536 "zero":true "start":4325376,"length":917504 "zero":false \
"start":5242880,"length":61865984 "zero":true
END
        cmp "$T/map" <(tr -d '\\\n' <"$T/want"; echo) &&
        run 0 "$IMG" convert -n -f raw -O raw "$T/src" "$url" &&
        cmp -n 41943040 "$T/src" "$T/lun3" || return 1
    echo "$(stat -c %b "$T/lun3") blocks"
    [ "$(stat -c %b "$T/lun3")" -lt 45000 ]
}

readonly_lun()
{
    run 1 "$IO" -f raw -c 'write 0 4k' "$(iscsi_url $D 4)" &&
        run 0 "$IO" -r -f raw -c 'read -P 0 0 4k' "$(iscsi_url $D 4)"
}

options()
{
    local o="driver=iscsi,transport=tcp,portal=127.0.0.1:$ISCSI_PORT,target=$D,lun=1"
    run 0 "$IMG" info --image-opts "driver=raw,file.driver=iscsi,file.transport=tcp,\
file.portal=127.0.0.1:$ISCSI_PORT,file.target=$D,file.lun=1,\
file.initiator-name=iqn.2026-01.test:me,file.header-digest=none-crc32c,file.timeout=5" && run 0 "$IMG" info --image-opts "$o" &&
        run 1 "$IMG" info --image-opts "$o,nonsense=1"
}

errors()
{
    run 1 "$IMG" info "$(iscsi_url $D 77)" && grep -q 'LUN' "$T/out" &&
        run 1 "$IMG" info "$(iscsi_url iqn.2026-01.test:none 1)" &&
        grep -q "target 'iqn.2026-01.test:none'" "$T/out" &&
        run 1 "$IMG" info "iscsi://127.0.0.1:1/$D/1" && grep -q 'refused' "$T/out" &&
        run 1 "$IMG" info "iscsi://127.0.0.1/$D" && run 1 "$IMG" info "iscsi:///$D/1" &&
        run 1 "$IMG" info "$(iscsi_url $D 1)?sessions=0"
}

digest()
{
    run 0 "$IO" -f raw -c 'write -P 4 0 3M' -c flush -c 'read -P 4 0 3M' \
        "$(iscsi_url $D 1)?header-digest=crc32c"
}

sessions()
{
    "$IO" -f raw -c 'write -P 4 0 16M' -c 'read -P 4 0 16M' -c 'sleep 1500' \
        "$(iscsi_url $D 1)?sessions=3" >"$T/out" 2>&1 &
    local pid=$! n
    sleep 1
    n=$(iscsi_adm --mode target --op show | grep -c 'I_T nexus: ')
    wait $pid || { echo "status $?"; grep -v "^[0-9]* .iB" "$T/out"; return 1; }
    echo "$n sessions"
    [ "$n" = 3 ]
}

no_secret() { ! grep -q 'secretpass' "$T/out"; }

chap()
{
    local url
    iscsi_target 2 $D.chap && iscsi_lun 2 1 "$T/lun1" &&
        iscsi_adm --mode account --op new --user joe --password secretpass12 &&
        iscsi_adm --mode account --op bind --tid 2 --user joe || return 1
    url=$(iscsi_url $D.chap 1)
    run 1 "$IMG" info "$url" &&
        run 0 "$IMG" info "${url/\/\///\/joe%secretpass12@}" && no_secret &&
        run 1 "$IMG" info "${url/\/\///\/joe%secretpass13@}" && no_secret || return 1
    grep -qi 'authentication' "$T/out" || return 1
    LIBISCSI_CHAP_USERNAME=joe LIBISCSI_CHAP_PASSWORD=secretpass12 run 0 "$IMG" info "$url" &&
        echo secretpass12 >"$T/pw" && printf secretpass12 >"$T/pw12" &&
        run 0 "$IMG" info "${url/\/\///\/joe@}?password-file=$T/pw" &&
        run 0 "$IMG" info --image-opts "driver=iscsi,transport=tcp,portal=127.0.0.1:$ISCSI_PORT,target=$D.chap,\
lun=1,user=joe,password-file=$T/pw" && no_secret
}

# QEMU's way: an object holds the password.
chap_secret()
{
    local o="driver=iscsi,transport=tcp,portal=127.0.0.1:$ISCSI_PORT,target=$D.chap,lun=1,user=joe"
    local s=secret,id=s0,data=secretpass12
    run 0 "$IMG" info --object "$s" --image-opts "$o,password-secret=s0" && no_secret &&
        run 0 "$IMG" info --object "secret,id=s0,file=$T/pw12" --image-opts "$o,password-secret=s0,\
initiator-name=iqn.2026-01.test:me,header-digest=crc32c,timeout=0" &&
        run 0 "$IMG" info --object "$s" "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"iscsi\",\
\"transport\":\"tcp\",\"portal\":\"127.0.0.1:$ISCSI_PORT\",\"target\":\"$D.chap\",\"lun\":1,\
\"user\":\"joe\",\"password-secret\":\"s0\"}}" && no_secret &&
        run 1 "$IMG" info --object "secret,id=s0,data=secretpass13" --image-opts "$o,password-secret=s0" &&
        no_secret && run 1 "$IMG" info --image-opts "$o,password-secret=s0" &&
        grep -q "No secret with id 's0'" "$T/out"
}

mutual_chap()
{
    local url
    iscsi_adm --mode account --op new --user srv --password serverpass12 &&
        iscsi_adm --mode account --op bind --tid 2 --user srv --outgoing || return 1
    url=$(iscsi_url $D.chap 1)
    url=${url/\/\///\/joe@}?password-file=$T/pw
    run 0 "$IMG" info "$url&target-user=srv&target-password=serverpass12" &&
        run 1 "$IMG" info "$url&target-user=srv&target-password=serverpass13" &&
        ! grep -q serverpass "$T/out"
}

restart() { iscsi_run && iscsi_target 1 $D && iscsi_lun 1 1 "$T/lun1"; }

# Stopped, not killed: shorter than the deadline nothing is lost and nothing is asked twice.
stopped()
{
    "$IO" -f raw -c 'write -P 1 0 8M' -c 'sleep 800' -c 'write -P 2 8M 8M' -c flush \
        "$(iscsi_url $D 1)" >"$T/out" 2>&1 &
    local pid=$!
    sleep 0.4
    kill -STOP -- "-$(cat "$T/srv/pid")"
    sleep 3
    kill -CONT -- "-$(cat "$T/srv/pid")"
    wait $pid || { echo "status $?"; grep -v "^[0-9]* .iB" "$T/out"; return 1; }
    ! grep reconnecting "$T/out" && run 0 "$IO" -f raw -c 'read -P 2 8M 8M' "$T/lun1"
}

setup >"$T/setup" 2>&1
tap_ok "tgtd is up" iscsi_adm --mode target --op show --tid 1
tap_ok "a source" make_source "$T/src"
tap_ok "reads, writes, zeroes, flush, 512-byte blocks" rw "$(iscsi_url $D 1)"
tap_ok "what was written is in the LUN's file" same_as "$T/lun1"
tap_ok "the same with 4096-byte blocks" rw "$(iscsi_url $D 2)"
tap_ok "the same with three sessions" rw "$(iscsi_url $D 1)?sessions=3"
tap_ok "info" info
tap_ok "convert -n to a LUN" convert_to "$(iscsi_url $D 1)" "$T/lun1"
tap_ok "convert -n to a LUN of 4096-byte blocks" convert_to "$(iscsi_url $D 2)" "$T/lun2"
tap_ok "convert from a LUN" convert_from
tap_ok "create clears the start; a LUN does not grow" create
tap_ok "qcow2 on a LUN, up to its end" qcow2_on "$(iscsi_url $D 1)"
tap_ok "qcow2 on a LUN of 4096-byte blocks" qcow2_on "$(iscsi_url $D 2)"
tap_ok "a LUN as a backing file needs leave" overlay
tap_ok "unmap gives space back" thin
tap_ok "block status of a thin LUN; zeros are not written to it" thin_map
tap_ok "a write protected LUN opens for reading only" readonly_lun
tap_ok "QEMU's option names" options
tap_ok "errors name server, target and cause" errors
tap_ok "header digest" digest
tap_ok "several sessions" sessions
tap_ok "CHAP; the password from URL, environment and file, never printed" chap
tap_ok "CHAP with QEMU's password-secret" chap_secret
tap_ok "mutual CHAP" mutual_chap
tap_ok "N9: the server stopped for 3 s" stopped
tap_ok "N1, N16: the server killed and restarted under writes: nothing lost" \
    killed_under_writes "$(iscsi_url $D 1)" "$T/lun1" iscsi_kill restart
tap_end
