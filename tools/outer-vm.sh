#!/bin/bash
# outer-vm.sh - run a command in a virtual machine that has a working /dev/kvm,
# on a machine that has none: QEMU emulates a CPU with AMD-V (TCG), Debian's
# cloud kernel with kvm-amd runs on it.  Slow, but KVM for real.
#
#   tools/outer-vm.sh [-m MIB] [-t SECONDS] [-w DIR]... COMMAND [ARG]...
#
# The command runs as root in the current directory and sees this machine's file
# tree (virtiofs), read-only except for build/ and each DIR (-w).  /tmp, /var/tmp,
# /run and /dev/shm are the VM's own, in its memory.
# Its environment, output, error output and exit status are passed on; it has no
# input.  The VM's network reaches this machine's loopback servers at 10.0.2.2.
# Exit status 124: not done within the time limit (-t, default 600 s); 125: the
# VM itself failed.  Nothing is left running or lying about in any case.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
here=$PWD

usage() { echo "usage: outer-vm.sh [-m MIB] [-t SECONDS] [-w DIR]... COMMAND..." >&2; exit 2; }

mem=2048 limit=600 live=("$top/build")
while getopts m:t:w: opt; do
    case $opt in
    m) mem=$OPTARG ;;
    t) limit=$OPTARG ;;
    w) live+=("$(cd "$OPTARG" && pwd -P)") ;;
    *) usage ;;
    esac
done
shift $((OPTIND - 1))
[ $# -ge 1 ] || usage

"$top/tests/oracle.sh" >&2
"$top/tests/kernel.sh" >&2

mkdir -p "$top/build/outer-vm"
job=$(mktemp -d "$top/build/outer-vm/job.XXXXXX")
pids=()
cleanup()
{
    local p
    for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$job"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

printf '%s\n' "ro $top" "ro $here" "${live[@]/#/rw }" > "$job/dirs"
{
    export -p
    printf 'cd %q\nexec' "$here"
    printf ' %q' "$@"
    echo
} > "$job/run"
"$top/tools/initrd.sh" "$job/initrd" "$top/tools/outer-vm-init" \
    kvm-amd virtio_pci virtio_console virtio_net virtio-rng virtiofs

fs=("$top/build/oracle/bin/virtiofsd" -f -o source=/ -o sandbox=chroot -o cache=auto
    --socket-path="$job/fs.sock")
if [ "$(id -u)" != 0 ]; then
    # Root in a user namespace of one's own is enough to serve what one can read,
    # but may not drop groups, so virtiofsd has to believe that there are none.
    echo 'int getgroups(int n, unsigned *list) { return 0; }' |
        "${CC:-gcc}" -w -shared -fPIC -o "$job/groups.so" -x c -
    fs=(unshare --user --map-root-user --mount
        sh -c 'mount -t tmpfs run /run && LD_PRELOAD=$1 && export LD_PRELOAD && shift && exec "$@"'
        sh "$job/groups.so" "${fs[@]}")
fi

# Without XSAVE, since the emulated AMD-V does not intercept a guest's XSETBV: KVM would not know
# what state to keep for the guest.  Five-level paging makes every nested page walk longer.
# One thread for both CPUs: with a thread each, one guest in forty dies (docs/runner.md).
SECONDS=0 vm_status=0
"${fs[@]}" >"$job/fs.log" 2>&1 &
pids+=($!)
for _ in $(seq 100); do [ -S "$job/fs.sock" ] && break; sleep 0.05; done
mkfifo "$job/out" "$job/err"
cat "$job/out" & cat_out=$!
cat "$job/err" >&2 & cat_err=$!
timeout -k 5 "$limit" "$top/build/oracle/bin/qemu-system-x86_64" \
    -M q35 -nodefaults -no-user-config -display none -no-reboot \
    -accel tcg,thread=single -cpu max,-xsave,-la57 -smp 2 -m "$mem" \
    -object memory-backend-memfd,id=mem,size="${mem}M",share=on -numa node,memdev=mem \
    -kernel "$top/build/kernel/vmlinuz" -initrd "$job/initrd" \
    -append "console=ttyS0 quiet panic=-1 platter.job=$job" \
    -chardev file,id=console,path="$job/console" -serial chardev:console \
    -chardev socket,id=fs,path="$job/fs.sock" -device vhost-user-fs-pci,chardev=fs,tag=host \
    -chardev file,id=out,path="$job/out" -chardev file,id=err,path="$job/err" \
    -device virtio-serial-pci -device virtserialport,chardev=out,name=out \
    -device virtserialport,chardev=err,name=err \
    -netdev user,id=net -device virtio-net-pci,netdev=net,romfile= \
    -device virtio-rng-pci -d cpu_reset -D "$job/reset.log" </dev/null >"$job/qemu.log" 2>&1 &
vm=$!
pids+=($vm $cat_out $cat_err)
wait $vm || vm_status=$?

if [ ! -s "$job/status" ]; then
    if [ $SECONDS -ge "$limit" ]; then
        echo "outer-vm: not done within $limit seconds, stopped: $*" >&2
        exit 124
    fi
    echo "outer-vm: the VM ended without running the command (status $vm_status)" >&2
    tail -q -n 20 "$job/qemu.log" "$job/console" >&2 || true
    grep -A 24 'Triple fault' "$job/reset.log" >&2 || true
    exit 125
fi
wait $cat_out $cat_err || true
exit "$(cat "$job/status")"
