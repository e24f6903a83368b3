#!/bin/bash
# The part of endings.t that needs KVM: consoles and exit statuses go to DIR.
#   endings-inside.sh DIR
cd "$(dirname "$0")/../.." || exit 1
dir=$1

boot() # NAME KERNEL-WORDS [OPTION]...
{
    local name=$1 words=$2
    shift 2
    timeout -s USR1 -k 5 300 "${B:-build}/platter-run" --kernel build/kernel/vmlinuz --initrd "$dir/initrd" \
        --append "console=ttyS0 panic=-1 cryptomgr.notests $words" "$@" > "$dir/console.$name" 2>&1
    echo $? > "$dir/status.$name"
}

# Types one line once the guest listens.
typist()
{
    until grep -aq 'guest: listening' "$dir/console.input" 2>/dev/null; do sleep 0.5; done
    sleep 1
    echo 'typed-line-that-is-longer-than-the-sixteen-bytes-of-a-fifo'
    sleep 60                        # end of input is not what is tested
}

# Two at a time: the outer VM has two CPUs.
{
    boot poweroff "test.end=poweroff" --cpus 3 --memory 3584M </dev/null
    boot reboot-kbd "quiet reboot=k test.end=reboot" </dev/null
    boot reboot-triple "quiet reboot=t test.end=reboot" </dev/null
    boot panic "quiet test.end=panic" --cpus 2 </dev/null
} &
{
    boot reboot-acpi "quiet test.end=reboot" --cpus 2 </dev/null
    boot reboot-pci "quiet reboot=p test.end=reboot" </dev/null
    typist > >(boot input "quiet test.end=input") & typist=$!
    until [ -s "$dir/status.input" ]; do sleep 0.5; done
    kill $typist
} &
wait
