#!/bin/bash
# net-killed.t - the server of a guest's root disk is killed (-9) in the middle of the
# guest's checksummed writes, and started again: NFS, iSCSI, Gluster.  The guest notices
# nothing but a pause, and nothing that it has synced is missing.
# Runs on this machine's KVM or, without one, in the outer VM: never skipped.
cd "$(dirname "$0")/../.." || exit 1
. tests/net/servers.sh
net_isolate "$0" "$@"
. tests/net/places.sh
. tests/guest/net-lib.sh

dir=$(mktemp -d) servers=$(mktemp -d /dev/shm/platter-net-killed-XXXXXX)
trap 'places_stop; rm -rf "$dir" "$servers"' EXIT
trap 'exit 1' INT TERM
net_prepare
places_start "$servers" nfs3 iscsi gluster

# Patience: this machine may be slow, and the server away for longer than it would be.
patient='timeout=120&reconnect=600'
nfs="$(place_url nfs3 root.qcow2)&$patient" lun="$(place_url iscsi 1)?$patient"
gluster="$(place_url gluster root.raw)?$patient"
must $img convert -f raw -O qcow2 "$dir/root.raw" "$nfs"
must $img convert -n -f raw -O raw "$dir/root.raw" "$lun"
must $img convert -f raw -O raw "$dir/root.raw" "$gluster"
cat > "$dir/disks" <<END
nfs $nfs,format=qcow2
iscsi $lun,format=raw
gluster $gluster,format=raw
END

# NAME N: the guest has written N files.  Fails when it has ended.
guest_wrote()
{
    until tr -d '\r' < "$dir/console.$1" 2>/dev/null | grep -qx "load $2"; do
        [ ! -e "$dir/status.$1" ] || return 1
        sleep 0.2
    done
}
kill_nfs() { nfs_kill KILL; }
start_nfs() { nfs_run; }
kill_iscsi() { iscsi_kill; }
start_iscsi() { iscsi_run && iscsi_target 1 $PLACES_TARGET && iscsi_lun 1 1 "$(place_dir iscsi)/1"; }
kill_gluster() { kill -KILL "$(gluster_brick_pid v0)"; }
start_gluster() { gluster_ctl volume start v0 force >/dev/null; }

# Each twice: early, and again when the guest has gone on.
killer()
{
    local name=$1 at
    for at in 6 18; do
        guest_wrote "$name" $at && "kill_$name" && sleep 1.5 && "start_$name" || return 1
        echo "$at" >> "$dir/killed.$name"
    done
}
for name in nfs iscsi gluster; do
    killer $name > "$dir/killer.$name" 2>&1 &
done
run_guests 3 32

twice() { [ "$(wc -l < "$dir/killed.$1")" = 2 ] || { cat "$dir/killer.$1" "$dir/console.$1"; return 1; }; }
noticed() { [ "$(grep -c 'reconnecting' "$dir/log.$1")" -ge 1 ] || { cat "$dir/log.$1"; return 1; }; }
for name in nfs iscsi gluster; do
    tap_ok "$name: killed twice while the guest was writing" twice $name
    tap_ok "$name: platter-run has connected anew" noticed $name
done
judge nfs qcow2 "$nfs"
judge iscsi raw "$lun"
judge gluster raw "$gluster"
tap_end
