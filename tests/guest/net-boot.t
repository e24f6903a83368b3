#!/bin/bash
# net-boot.t - Debian's stock kernel with its root disk on network storage, served by
# platter-run alone: raw and qcow2, by NFSv3 and NFSv4, on a LUN, on a replicated Gluster
# volume, and overlays that stand on images elsewhere.  It mounts, writes, syncs, reads
# back, powers off; the images are clean after, and hold what it wrote.
# Runs on this machine's KVM or, without one, in the outer VM: never skipped.
cd "$(dirname "$0")/../.." || exit 1
. tests/net/servers.sh
net_isolate "$0" "$@"
. tests/net/places.sh
. tests/guest/net-lib.sh

dir=$(mktemp -d) servers=$(mktemp -d /dev/shm/platter-net-boot-XXXXXX)
trap 'places_stop; rm -rf "$dir" "$servers"' EXIT
trap 'exit 1' INT TERM
net_prepare
places_start "$servers" nfs3 nfs4 iscsi gluster3

# Patience: an emulated machine may be slow.
patient='timeout=120&reconnect=120'
at() { local url; url=$(place_url "$1" "$2"); case $url in *\?*) echo "$url&$patient" ;; *) echo "$url?$patient" ;; esac; }
nfs=$(at nfs3 root.raw) nfs4=$(at nfs4 root.qcow2) lun=$(at iscsi 1) gluster=$(at gluster3 root.qcow2)
base=$(at nfs3 base.qcow2) bottom=$(at iscsi 2) middle=$(at gluster3 middle.qcow2)
top=$(at nfs3 top.qcow2)
must $img convert -f raw -O raw "$dir/root.raw" "$nfs"
must $img convert -f raw -O qcow2 "$dir/root.raw" "$nfs4"
must $img convert -n -f raw -O raw "$dir/root.raw" "$lun"
must $img convert -f raw -O qcow2 "$dir/root.raw" "$gluster"
must $img convert -f raw -O qcow2 "$dir/root.raw" "$base"
must $img create -q -f qcow2 -b "$base" -F qcow2 "$dir/overlay.qcow2"
must $img convert -n -f raw -O raw "$dir/root.raw" "$bottom"
must $img create -q -f qcow2 -b "$bottom" -F raw "$middle"
must $img --backing-urls iscsi create -q -f qcow2 -b "$middle" -F qcow2 "$top"
urls="--backing-urls nfs,gluster,iscsi"
lower() { sha256sum "$(place_dir nfs3)/base.qcow2" "$(place_dir gluster3)/middle.qcow2" "$(place_dir iscsi)/2"; }
lower > "$dir/lower"

cat > "$dir/disks" <<END
nfs-raw $nfs,format=raw
nfs-qcow2 $nfs4,format=qcow2
iscsi-raw $lun,format=raw
gluster-qcow2 $gluster,format=qcow2
overlay-on-nfs $dir/overlay.qcow2,format=qcow2,backing-urls=nfs
nfs-on-gluster-on-iscsi $top,format=qcow2,backing-urls=all
END
run_guests 2 12

judge nfs-raw raw "$nfs"
judge nfs-qcow2 qcow2 "$nfs4"
judge iscsi-raw raw "$lun"
judge gluster-qcow2 qcow2 "$gluster"
judge overlay-on-nfs qcow2 "$dir/overlay.qcow2"
judge nfs-on-gluster-on-iscsi qcow2 "$top"
tap_ok "the images below the overlays are what they were" sha256sum -c --quiet "$dir/lower"
tap_end
