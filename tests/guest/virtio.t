#!/bin/bash
# The virtio-blk driver of a stock Debian kernel against our device: queues and
# vectors, cache modes, discard, resets under load, removal and rescan.  Runs on
# this machine's KVM or, without one, in the outer VM: never skipped.
cd "$(dirname "$0")/../.." || exit 1
. tests/tap.sh
B=${B:-build}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
diag() { sed 's/^/# /' "$1" | tail -n 40; }

tools/initrd.sh "$dir/initrd" tests/guest/virtio-guest-init virtio_pci virtio_blk ||
    { echo "Bail out! no initrd"; exit 1; }
truncate -s 64M "$dir/disk.raw"

tools/with-kvm.sh -t 700 -w "$dir" timeout -k 5 600 "$B/platter-run" --kernel build/kernel/vmlinuz \
    --initrd "$dir/initrd" --append "console=ttyS0 quiet" --disk "$dir/disk.raw,format=raw" \
    --memory 256M --cpus 2 --console "file:$dir/console" </dev/null >"$dir/log" 2>&1
ok $? "the guest powered off" || diag "$dir/log"

while read -r line; do
    case $line in "ok "*) ok 0 "guest: ${line#ok }" ;; *) ok 1 "guest: ${line#not ok }" ;; esac
done < <(tr -d '\r' < "$dir/console" | grep -E '^(not )?ok ')
want=$(grep -v '()' tests/guest/virtio-guest-init | grep -cE '^is |^ok |; ok \$')
[ $tap_n = $((want + 1)) ] && grep -q "that is all" "$dir/console"
ok $? "the guest said all it had to say ($((tap_n - 1)) of $want)" || diag "$dir/console"
! grep -q "needs a reset" "$dir/log"
ok $? "the device never found a fault in the driver" || diag "$dir/log"
tap_end
