#!/bin/bash
# The outer VM is a faithful place to run a command: output, error output, exit
# status, environment and directory are passed on, /dev/kvm can make guests, only
# the promised directories can be written, the host's loopback is 10.0.2.2, a
# time limit ends it, and nothing is left behind.
cd "$(dirname "$0")/../.." || exit 1
. tests/tap.sh
tmp=$(mktemp -d)
server=
trap 'rm -rf "$tmp"; [ -z "$server" ] || kill $server 2>/dev/null' EXIT
tap_shows=("$tmp/out" "$tmp/err")
has() { grep -qxF -- "$1" "$tmp/out"; ok $? "$2"; }

# a loopback server of one file, on a port of its own choosing
echo "hello from the host's loopback" > "$tmp/hello"
(cd "$tmp" && exec python3 -u -m http.server --bind 127.0.0.1 0 >"$tmp/http" 2>&1) &
server=$!
for _ in $(seq 100); do grep -q 'port [0-9]' "$tmp/http" && break; sleep 0.1; done
port=$(sed -n 's/.*port \([0-9]*\).*/\1/p' "$tmp/http")

cat > "$tmp/probe" <<'PROBE'
echo "out here"
echo "err here" >&2
echo "env $GREETING, args <$1> <$2>, in $PWD"
python3 - <<'PY'
import fcntl, os
kvm = os.open("/dev/kvm", os.O_RDWR)
vm = fcntl.ioctl(kvm, 0xAE01, 0)        # KVM_CREATE_VM
vcpu = fcntl.ioctl(vm, 0xAE41, 0)       # KVM_CREATE_VCPU
print("kvm makes a vcpu" if vcpu >= 0 else "no vcpu")
PY
echo kept > "$2/kept"
echo lost > /tmp/lost-in-the-vm
(echo stray > tests/stray) 2>/dev/null || echo "tree is read-only"
exec 3<>/dev/tcp/10.0.2.2/$3 && printf 'GET /hello HTTP/1.0\r\n\r\n' >&3 && tail -n 1 <&3
exit 37
PROBE
GREETING="a b'c" tools/outer-vm.sh -t 120 -w "$tmp" bash "$tmp/probe" "x y" "$tmp" "$port" >"$tmp/out" 2>"$tmp/err"
[ $? = 37 ]; ok $? "the exit status is passed on"
has "out here" "output is passed on"
grep -qx "err here" "$tmp/err"; ok $? "error output is passed on, apart from output"
has "env a b'c, args <x y> <$tmp>, in $PWD" "environment, arguments and directory are passed on"
has "kvm makes a vcpu" "/dev/kvm works"
[ "$(cat "$tmp/kept" 2>/dev/null)" = kept ]; ok $? "what is written below -w is really written"
has "tree is read-only" "the rest of the machine's files cannot be written"
[ ! -e /tmp/lost-in-the-vm ] && [ ! -e tests/stray ]; ok $? "and was not"
has "hello from the host's loopback" "10.0.2.2 is this machine's loopback"

tools/outer-vm.sh -t 120 bash -c 'echo b > /proc/sysrq-trigger; sleep 60' >"$tmp/out" 2>"$tmp/err"
[ $? = 125 ] && grep -q 'the VM ended without running the command (status 0)' "$tmp/err"
ok $? "a VM that is reset is a failure of its own, status 125, and that is said"

SECONDS=0
tools/outer-vm.sh -t 8 sleep 300 >"$tmp/out" 2>"$tmp/err"
[ $? = 124 ] && [ $SECONDS -lt 60 ]; ok $? "a command that takes too long is stopped, with status 124"
grep -q 'not done within 8 seconds' "$tmp/err"; ok $? "and that is said"

tools/outer-vm.sh -t 120 sleep 300 >"$tmp/out" 2>"$tmp/err" &
vm=$!
for _ in $(seq 100); do
    job=$(sed -n 's/.*platter\.job=\([^ ]*\).*/\1/p' < <(ps -o args= --ppid "$(pgrep -d, -P $vm timeout)" 2>/dev/null))
    [ -n "$job" ] && break
    sleep 0.1
done
kill -TERM $vm
wait $vm
[ -n "$job" ] && [ ! -e "$job" ] && ! pgrep -f -- "$job" >"$tmp/out"
ok $? "stopped by a signal, it leaves neither processes nor files"
tap_end
