#!/bin/bash
# endings.t - how Debian's stock kernel ends itself, and with what exit code
# platter-run follows: every reset method it knows, power-off, a panic; several
# CPUs; memory above 4 GiB; typed input through the serial FIFO.
cd "$(dirname "$0")/../.." || exit 1
. tests/tap.sh
. tests/guest/ended.sh
export B=${B:-build}
dir=build/endings.$$
trap 'rm -rf "$dir"' EXIT
mkdir -p "$dir"

has() { grep -aq -- "$2" "$dir/console.$1"; }

tools/initrd.sh "$dir/initrd" tests/guest/endings-guest-init || exit 1
tools/with-kvm.sh -t 850 tests/guest/endings-inside.sh "$dir" 2>"$dir/err" </dev/null
rc=$?
sed 's/^/# /' "$dir/err"
ok "$rc" "the runs ended"

while read -r name want; do
    got=$(cat "$dir/status.$name" 2>/dev/null)
    [ "$got" = "$want" ]; rc=$?
    ok "$rc" "$name: platter-run ends with $want$(ended "$got" "$want" "$dir/console.$name" "$dir/console.$name")" ||
        tail -n 20 "$dir/console.$name" | sed 's/^/# /'
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
ok $? "three CPUs are three cores of one socket"
has poweroff 'guest: memory above 4 GiB'
ok $? "memory beyond 3 GiB is above 4 GiB"
! has poweroff 'BUG:\|\[Firmware Bug\]\|cut here'
ok $? "the kernel finds no fault with the machine"
has input 'guest: heard typed-line-that-is-longer-than-the-sixteen-bytes-of-a-fifo'
ok $? "a typed line longer than the FIFO arrives whole"
tap_end
