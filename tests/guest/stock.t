#!/bin/bash
# Debian as it is: its cloud kernel with the initial RAM disk that its own
# initramfs-tools make (udev loads virtio by PCI id, scripts find and mount the
# root disk by its UUID) boots from a qcow2 overlay.
cd "$(dirname "$0")/../.." || exit 1
. tests/tap.sh
. tests/guest/ended.sh
B=${B:-build}
PATH=$PATH:/sbin:/usr/sbin
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
tap_shows=("$dir/out")

tests/stock-initrd.sh >"$dir/out" 2>&1
ok $? "Debian's initramfs-tools make an initial RAM disk for its kernel"
tools/rootfs.sh "$dir/base.raw" 48M tools/demo-guest-init >"$dir/out" 2>&1 &&
    "$B/platter-img" convert -f raw -O qcow2 "$dir/base.raw" "$dir/base.qcow2" >"$dir/out" 2>&1 &&
    "$B/platter-img" create -q -f qcow2 -b base.qcow2 -F qcow2 "$dir/overlay.qcow2" >"$dir/out" 2>&1
ok $? "an overlay on a base with a root file system"
uuid=$(dumpe2fs -h "$dir/base.raw" 2>/dev/null | sed -n 's/^Filesystem UUID: *//p')
tools/with-kvm.sh -t 800 -w "$dir" "$B/platter-run" --kernel build/kernel/vmlinuz \
    --initrd build/kernel/initrd.stock --append "console=ttyS0 root=UUID=$uuid ro panic=5 demo.token=stock" \
    --disk "$dir/overlay.qcow2,serial=ROOT" --memory 512M --cpus 2 </dev/null >"$dir/out" 2>&1
rc=$?
cp "$dir/out" "$dir/guest"
ok $rc "the guest boots and powers off$(ended $rc 0 "$dir/out" "$dir/out")"
for words in 'Starting systemd-udevd' 'guest: root: /dev/vda on / type ext4' 'guest: powering off'; do
    grep -aq "$words" "$dir/guest"; ok $? "its console says: $words"
done
build/oracle/bin/qemu-img check "$dir/overlay.qcow2" >"$dir/out" 2>&1
ok $? "qemu-img check finds the overlay clean"
tap_end
