#!/bin/bash
# oracle.sh - QEMU 10 from bookworm-backports, unpacked under build/oracle and
# installed nowhere: the oracle of the image tests, and the machine emulator of
# the outer VM (tools/outer-vm.sh).
#
# Leaves build/oracle/bin/{qemu-img,qemu-io,qemu-nbd,qemu-storage-daemon,qemu-system-x86_64},
# and virtiofsd (Debian 12's own: QEMU 10 has none any more), wrappers that run the unpacked programs with their unpacked libraries.
# Quick when they are there already.  Prints nothing then.
set -euo pipefail
cd "$(dirname "$0")/.."

out=$PWD/build/oracle
# A changed mend needs a QEMU without the old one.
stamp=$out/version.$(cksum < tests/mend-vmrun.py | cut -d' ' -f1)
want="qemu-utils qemu-block-extra qemu-system-x86"

if [ -e "$stamp" ] && "$out/bin/qemu-img" --version >/dev/null 2>&1; then
    exit 0
fi

. tools/apt-private.sh
mkdir -p build
exec 9>build/.oracle.lock
flock 9                         # two test runs at once: the second finds it done
if [ -e "$stamp" ] && "$out/bin/qemu-img" --version >/dev/null 2>&1; then
    exit 0
fi

echo "oracle: fetching QEMU from bookworm-backports into build/oracle"
apt_private_init
rm -rf "$out" build/apt/cache/archives/*.deb
# shellcheck disable=SC2086
apt_private_get -q -y --download-only -t bookworm-backports install $want \
    >build/apt/oracle.log 2>&1 || {
    cat build/apt/oracle.log >&2
    apt_private_fail "cannot fetch QEMU 10"
}
mkdir -p "$out/root" "$out/bin"
for deb in build/apt/cache/archives/*.deb; do
    dpkg-deb -x "$deb" "$out/root"
done
rm -f build/apt/cache/archives/*.deb

# QEMU 10 has no virtiofsd any more; Debian 12's own (7.2) serves it well.
rm -rf build/apt/fs
mkdir -p build/apt/fs
old=$(apt_private_cache madison qemu-system-common | awk '$3 ~ /^1:7\./ { print $3; exit }')
(cd build/apt/fs && apt_private_get -q download "qemu-system-common=$old" >../fs.log 2>&1) || {
    cat build/apt/fs.log >&2
    apt_private_fail "cannot fetch virtiofsd (qemu-system-common $old)"
}
dpkg-deb --fsys-tarfile build/apt/fs/*.deb | tar -x -C build/apt/fs ./usr/lib/qemu/virtiofsd
mv build/apt/fs/usr/lib/qemu/virtiofsd "$out/root/usr/bin/virtiofsd"
rm -rf build/apt/fs

lib=usr/lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || gcc -print-multiarch)
for prog in qemu-img qemu-io qemu-nbd qemu-storage-daemon qemu-system-x86_64 virtiofsd; do
    [ -x "$out/root/usr/bin/$prog" ] || continue
    data=
    [ "$prog" = qemu-system-x86_64 ] &&
        data="-L \"\$root/usr/share/qemu\" -L \"\$root/usr/share/seabios\" -L \"\$root/usr/lib/ipxe/qemu\""
    cat > "$out/bin/$prog" <<WRAP
#!/bin/sh
# Made by tests/oracle.sh
root=$out/root
export QEMU_MODULE_DIR="\$root/$lib/qemu"
LD_LIBRARY_PATH="\$root/$lib:\$root/${lib#usr/}:\$root/$lib/pulseaudio\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}" \\
    exec "\$root/usr/bin/$prog" $data "\$@"
WRAP
    chmod +x "$out/bin/$prog"
done
"$out/bin/qemu-img" --version | sed -n 's/^qemu-img version //p' > "$stamp.new"
grep -q '^10\.' "$stamp.new" || apt_private_fail "expected QEMU 10, got $(cat "$stamp.new")"
"$out/bin/qemu-system-x86_64" --version >/dev/null ||
    apt_private_fail "the unpacked qemu-system-x86_64 does not run"
tests/mend-vmrun.py "$out/root/usr/bin/qemu-system-x86_64" ||
    echo "oracle: mend-vmrun.py does not know this QEMU: a guest in the outer VM may hang now and then" >&2
mv "$stamp.new" "$stamp"
echo "oracle: qemu-img $(cat "$stamp")"
