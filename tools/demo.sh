#!/bin/bash
# demo.sh - make demo: Debian's stock kernel boots from a qcow2 overlay that
# Platter serves; then Platter shows that what the guest wrote is in the overlay
# and that the base image is what it was.  Leaves everything in build/demo.
set -euo pipefail
cd "$(dirname "$0")/.."
export B=${B:-build}
PATH=$PATH:/sbin:/usr/sbin
dir=build/demo
img=$B/platter-img

step() { printf '\n== %s\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }
fail() { echo "demo: FAILED: $*" >&2; exit 1; }

tests/kernel.sh
rm -rf $dir
mkdir -p $dir

step "A base image with a small ext4 root file system"
tools/rootfs.sh $dir/base.raw 64M tools/demo-guest-init
tools/initrd.sh $dir/initrd tools/guest-initrd-init virtio_pci virtio_blk
run $img convert -f raw -O qcow2 $dir/base.raw $dir/base.qcow2
rm $dir/base.raw
base_before=$(sha256sum < $dir/base.qcow2)

step "An overlay on it"
run $img create -q -f qcow2 -b base.qcow2 -F qcow2 $dir/overlay.qcow2
run $img info --backing-chain $dir/overlay.qcow2
overlay_before=$(stat -c %s $dir/overlay.qcow2)

step "Debian's kernel $(cat build/kernel/version), unmodified, boots from the overlay"
token=$(od -An -N8 -tx1 /dev/urandom | tr -d ' \n')
tools/with-kvm.sh -t 300 "$B/platter-run" --kernel build/kernel/vmlinuz --initrd $dir/initrd \
    --append "console=ttyS0 quiet root=/dev/vda ro demo.token=$token" \
    --disk $dir/overlay.qcow2 --memory 512M --cpus 2 </dev/null | tee $dir/console ||
    fail "platter-run ended with status ${PIPESTATUS[0]}"
grep -q '^guest: powering off' $dir/console || fail "the guest did not get to its end"

step "What the guest wrote is in the overlay"
echo "overlay: $overlay_before bytes before, $(stat -c %s $dir/overlay.qcow2) now"
run $img check $dir/overlay.qcow2
echo "parts of the disk that come from the overlay (depth 0) and from the base (depth 1):"
$img map --output=json $dir/overlay.qcow2 | python3 -c '
import json, sys
total = {}
for e in json.load(sys.stdin):
    if e["data"]:
        total[e["depth"]] = total.get(e["depth"], 0) + e["length"]
for depth in sorted(total):
    print("  depth %d: %8d KiB of data" % (depth, total[depth] // 1024))
sys.exit(0 if total.get(0) and total.get(1) else 1)' || fail "no data in one of the layers"
run $img convert -f qcow2 -O raw $dir/overlay.qcow2 $dir/after.raw
run $img convert -f qcow2 -O raw $dir/base.qcow2 $dir/before.raw
e2fsck -fn $dir/after.raw >$dir/e2fsck.log 2>&1 || { cat $dir/e2fsck.log; fail "the guest's file system is damaged"; }
echo "/root/from-the-guest, read out of the overlay by debugfs:"
debugfs -R 'cat /root/from-the-guest' $dir/after.raw 2>/dev/null | tee $dir/from-the-guest | sed 's/^/    /'
grep -q "token $token" $dir/from-the-guest || fail "the guest's words are not in the overlay"
(cd $dir && for f in noise noise.sha256; do debugfs -R "dump /root/$f $f" after.raw; done) 2>/dev/null
(cd $dir && run sha256sum -c noise.sha256) || fail "the noise is not what the guest wrote"

step "The base is what it was"
rc=0
run $img compare $dir/base.qcow2 $dir/overlay.qcow2 || rc=$?
[ $rc = 1 ] || fail "base and overlay should differ in content (compare: $rc)"
[ -z "$(debugfs -R 'cat /root/from-the-guest' $dir/before.raw 2>/dev/null)" ] ||
    fail "the guest's file is in the base"
echo "base.qcow2 before: ${base_before%% *}"
base_after=$(sha256sum < $dir/base.qcow2)
echo "base.qcow2 after:  ${base_after%% *}"
[ "$base_before" = "$base_after" ] || fail "the base has changed"
rm -f $dir/after.raw $dir/before.raw
printf '\ndemo: done. The images are in %s; see README.md for what to do with them.\n' $dir
