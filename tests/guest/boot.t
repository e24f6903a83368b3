#!/bin/bash
# A stock Debian kernel boots from a qcow2 overlay that platter-run serves, with
# more disks beside it; what it writes is there after a restart, the images are
# clean, and neither a kill nor a signal in the middle of writes corrupts them.
# Runs on this machine's KVM or, without one, in the outer VM: never skipped.
cd "$(dirname "$0")/../.." || exit 1
. tests/tap.sh
B=${B:-build}
PATH=$PATH:/sbin:/usr/sbin
img=$B/platter-img oracle=build/oracle/bin/qemu-img
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
# Show a file as diagnostics.
diag() { sed 's/^/# /' "$1" | tail -n "${2:-30}"; }
sum() { sha256sum < "$1" | cut -d' ' -f1; }
bail() { echo "Bail out! $*"; exit 1; }

# the disks: an overlay twice as large as its base, raw, read-only qcow2, small clusters
tools/rootfs.sh "$dir/base.raw" 48M tests/guest/boot-guest-init || bail "no root file system"
tools/initrd.sh "$dir/initrd" tools/guest-initrd-init virtio_pci virtio_blk || bail "no initrd"
$img convert -f raw -O qcow2 "$dir/base.raw" "$dir/base.qcow2" || bail "convert"
rm "$dir/base.raw"
$img create -q -f qcow2 -b base.qcow2 -F qcow2 "$dir/overlay.qcow2" 96M || bail "create"
truncate -s 32M "$dir/data.raw"
head -c 3000000 /dev/urandom > "$dir/fixed.raw"
truncate -s 8M "$dir/fixed.raw"
$img convert -f raw -O qcow2 "$dir/fixed.raw" "$dir/fixed.qcow2" || bail "convert"
$img create -q -f qcow2 -o cluster_size=4k "$dir/small.qcow2" 64M || bail "create"
echo "test.size=196608 test.fixed=$(sum "$dir/fixed.raw")" > "$dir/args"
base=$(sum "$dir/base.qcow2") fixed=$(sum "$dir/fixed.qcow2")

tools/with-kvm.sh -t 850 -w "$dir" tests/guest/boot-inside.sh "$dir" >"$dir/log" 2>&1
ok $? "the runs took place ($(sed -n '/^kvm:/{s///p;q}' "$dir/log"))" || diag "$dir/log"

# the guest's own verdicts
for phase in write read; do
    want=$(grep -cE '^ *(is |ok|.*; ok )' <(sed -n "/^$phase)/,/;;\$/p" tests/guest/boot-guest-init))
    seen=0
    while read -r line; do
        seen=$((seen + 1))
        case $line in "ok "*) ok 0 "guest, $phase: ${line#ok }" ;; *) ok 1 "guest, $phase: ${line#not ok }" ;; esac
    done < <(tr -d '\r' < "$dir/console.$phase" | grep -E '^(not )?ok ')
    [ "$seen" = $((want + 1)) ]
    ok $? "guest, $phase: said all it had to say ($seen of $((want + 1)))" ||
        { diag "$dir/console.$phase"; diag "$dir/log.$phase"; }
done
[ "$(cat "$dir/status.write")" = 3 ]
ok $? "a guest's reset ends platter-run with status 3 ($(cat "$dir/status.write"))" || diag "$dir/log.write"
[ "$(cat "$dir/status.read")" = 0 ]
ok $? "a guest's power-off ends platter-run with status 0 ($(cat "$dir/status.read"))" || diag "$dir/log.read"
[ "$(cat "$dir/status.KILL")" = 137 ] && grep -q 'storm begins' "$dir/console.KILL"
ok $? "killed while the guest was writing" || diag "$dir/console.KILL"
[ "$(cat "$dir/status.TERM")" = 143 ] && grep -q 'storm begins' "$dir/console.TERM"
ok $? "SIGTERM while the guest was writing: status 143 ($(cat "$dir/status.TERM"))" || diag "$dir/console.TERM"

# the images
[ "$(sum "$dir/base.qcow2")" = "$base" ]; ok $? "the base is what it was"
[ "$(sum "$dir/fixed.qcow2")" = "$fixed" ]; ok $? "the read-only image is what it was"
for image in overlay.TERM small.TERM; do
    $img check "$dir/$image.qcow2" >"$dir/out" 2>&1; ok $? "platter-img check after SIGTERM: $image clean" || diag "$dir/out"
    $oracle check "$dir/$image.qcow2" >"$dir/out" 2>&1; ok $? "qemu-img check after SIGTERM: $image clean" || diag "$dir/out"
done
for image in overlay.KILL small.KILL; do
    $oracle check --output=json "$dir/$image.qcow2" >"$dir/out" 2>&1
    rc=$?
    [ $rc = 0 ] || { [ $rc = 3 ] && ! grep -q '"corruptions"' "$dir/out"; }
    ok $? "qemu-img check after the kill: $image has leaks at most (status $rc)" || diag "$dir/out"
done
$img convert -f qcow2 -O raw "$dir/overlay.KILL.qcow2" "$dir/after.raw"
e2fsck -fy "$dir/after.raw" >"$dir/out" 2>&1
[ $? -le 1 ]; ok $? "the file system survived the kill" || diag "$dir/out"
for f in files.sum vdb.sum vdd.sum; do debugfs -R "dump /root/$f $dir/$f" "$dir/after.raw"; done 2>/dev/null
[ "$(tail -c +$((37 * 4096 + 1)) "$dir/data.raw" | head -c 4194304 | sha256sum)" = "$(cat "$dir/vdb.sum")" ]
ok $? "the raw file holds what the guest wrote to that disk"
debugfs -R "rdump /root/files $dir" "$dir/after.raw" 2>/dev/null
(cd "$dir/files" && sha256sum --quiet -c ../files.sum) >"$dir/out" 2>&1
ok $? "the guest's files, read out of the overlay, have the guest's checksums" || diag "$dir/out"
tap_end
