#!/bin/bash
# The part of boot.t that needs KVM; runs where it works, leaves the consoles
# and exit statuses in DIR for the test to judge.
#   boot-inside.sh DIR
cd "$(dirname "$0")/../.." || exit 1
dir=$1

# PHASE CPUS: the command of one run, in $cmd
command_for()
{
    cmd=("${B:-build}/platter-run" --kernel build/kernel/vmlinuz --initrd "$dir/initrd"
         --append "console=ttyS0 quiet root=/dev/vda ro test.phase=$1 $(cat "$dir/args")"
         --disk "$dir/overlay.qcow2,format=qcow2"
         --disk "$dir/data.raw,format=raw,serial=DATA"
         --disk "$dir/fixed.qcow2,format=qcow2,readonly=on,serial=FIXED"
         --disk "$dir/small.qcow2,format=qcow2"
         --memory 384M --cpus "$2" --console "file:$dir/console.$1")
}

for phase in write read; do
    command_for $phase 2
    timeout -k 5 300 "${cmd[@]}" </dev/null >"$dir/log.$phase" 2>&1
    echo $? > "$dir/status.$phase"
done

# killed while the guest writes, then ended politely while it writes
for signal in KILL TERM; do
    command_for storm 1
    "${cmd[@]}" </dev/null >"$dir/log.storm" 2>&1 &
    pid=$!
    for _ in $(seq 300); do
        grep -q 'storm begins' "$dir/console.storm" 2>/dev/null && break
        sleep 0.2
    done
    sleep 1
    kill -$signal $pid
    wait $pid 2>/dev/null
    echo $? > "$dir/status.$signal"
    mv "$dir/console.storm" "$dir/console.$signal"
    cp "$dir/small.qcow2" "$dir/small.$signal.qcow2"
    cp "$dir/overlay.qcow2" "$dir/overlay.$signal.qcow2"
    # a kill may leave leaks; they must not count against the next end
    for image in overlay small; do
        "${B:-build}/platter-img" check -q -r leaks "$dir/$image.qcow2" >>"$dir/log.storm" 2>&1
    done
done
exit 0
