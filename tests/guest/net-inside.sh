#!/bin/bash
# The part of net-boot.t and net-killed.t that needs KVM: boots a guest from each disk of
# DIR/disks ("NAME DISK-ARGUMENT" a line), at most AT-ONCE of them at a time, and leaves
# consoles and exit statuses in DIR.
#   net-inside.sh DIR AT-ONCE FILES
cd "$(dirname "$0")/../.." || exit 1
dir=$1 at_once=$2 files=$3

boot()
{
    timeout -s USR1 -k 5 600 "${B:-build}/platter-run" --kernel build/kernel/vmlinuz --initrd "$dir/initrd" \
        --append "console=ttyS0 quiet root=/dev/vda ro test.files=$files" --disk "$2" \
        --memory 256M --console "file:$dir/console.$1" </dev/null >"$dir/log.$1" 2>&1
    echo $? > "$dir/status.$1"
}

while read -r name disk; do
    while [ "$(jobs -rp | wc -l)" -ge "$at_once" ]; do wait -n; done
    boot "$name" "$disk" &
done < "$dir/disks"
wait
