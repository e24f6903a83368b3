#!/bin/bash
# kernel.sh - Debian's stock cloud kernel (linux-image-cloud-amd64), unpacked
# under build/kernel and installed nowhere: what guest tests and the demo boot,
# and what the outer VM runs.
#
# Leaves build/kernel/{vmlinuz,config,version} and build/kernel/lib/modules/VERSION.
# Quick when they are there already.  Prints nothing then.
set -euo pipefail
cd "$(dirname "$0")/.."

out=$PWD/build/kernel
[ -e "$out/version" ] && exit 0

. tools/apt-private.sh
mkdir -p build
exec 9>build/.kernel.lock
flock 9
[ -e "$out/version" ] && exit 0

echo "kernel: fetching Debian's linux-image-cloud-amd64 into build/kernel"
apt_private_init
pkg=$(apt_private_cache depends --important linux-image-cloud-amd64 |
      sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -n 1)
[ -n "$pkg" ] || apt_private_fail "linux-image-cloud-amd64 not found"
rm -rf "$out" build/apt/kernel
mkdir -p "$out" build/apt/kernel
(cd build/apt/kernel && apt_private_get -q download "$pkg" >../kernel.log 2>&1) || {
    cat build/apt/kernel.log >&2
    apt_private_fail "cannot fetch $pkg"
}
dpkg-deb -x build/apt/kernel/*.deb "$out"
rm -rf build/apt/kernel
ver=$(ls "$out/lib/modules")
mv "$out/boot/vmlinuz-$ver" "$out/vmlinuz"
mv "$out/boot/config-$ver" "$out/config"
"$(command -v depmod || echo true)" -b "$out" "$ver"
echo "$ver" > "$out/version"
echo "kernel: $ver"
