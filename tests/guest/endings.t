#!/bin/bash
# endings.t - how Debian's stock kernel ends itself, and with what exit code
# platter-run follows: every reset method it knows, power-off, a panic; several
# CPUs; memory above 4 GiB; typed input through the serial FIFO.
cd "$(dirname "$0")/../.." || exit 1
export B=${B:-build}
dir=build/endings.$$
trap 'rm -rf "$dir"' EXIT
mkdir -p "$dir"

count=0
result() # NAME OK
{
    count=$((count + 1))
    [ "$2" = 0 ] && echo "ok $count - $1" || { echo "not ok $count - $1"; failed=1; }
}
has() { grep -aq -- "$2" "$dir/console.$1"; }

tools/initrd.sh "$dir/initrd" tests/guest/endings-guest-init || exit 1
tools/with-kvm.sh -t 850 tests/guest/endings-inside.sh "$dir" 2>"$dir/err" </dev/null
rc=$?
sed 's/^/# /' "$dir/err"
result "the runs ended" "$rc"

while read -r name want; do
    got=$(cat "$dir/status.$name" 2>/dev/null)
    [ "$got" = "$want" ]; rc=$?
    result "$name: platter-run ends with $want" "$rc"
    [ "$rc" = 0 ] || { echo "# got '$got'"; tail -5 "$dir/console.$name" | sed 's/^/# /'; }
done <<'EOF'
poweroff 0
reboot-acpi 3
reboot-kbd 3
reboot-pci 3
reboot-triple 4
panic 3
input 0
EOF
has poweroff 'guest: cpus 3 sockets 1 cores 3'
result "three CPUs are three cores of one socket" $?
has poweroff 'guest: memory above 4 GiB'
result "memory beyond 3 GiB is above 4 GiB" $?
# QEMU's emulated AMD-V does not intercept XSETBV: one warning that is not ours.
! has poweroff 'BUG:\|\[Firmware Bug\]' &&
    [ "$(grep -ac 'cut here' "$dir/console.poweroff")" = \
      "$(grep -ac 'XSAVE consistency problem' "$dir/console.poweroff")" ]
result "the kernel finds no fault with the machine" $?
has input 'guest: heard typed-line-that-is-longer-than-the-sixteen-bytes-of-a-fifo'
result "a typed line longer than the FIFO arrives whole" $?
echo "1..$count"
exit "${failed:-0}"
