#!/bin/bash
# stock-initrd.sh - the initial RAM disk that Debian itself would make for the
# kernel in build/kernel: initramfs-tools with its defaults and udev, unpacked
# with what it needs under build/, run there by chroot, installed nowhere.
# Leaves build/kernel/initrd.stock.  Quick when it is there already.
set -euo pipefail
cd "$(dirname "$0")/.."

tests/kernel.sh
out=$PWD/build/kernel/initrd.stock
[ -e "$out" ] && exit 0
. tools/apt-private.sh
exec 9>build/.stock-initrd.lock
flock 9
[ -e "$out" ] && exit 0

echo "stock-initrd: making Debian's own initial RAM disk with initramfs-tools"
apt_private_init
work=$PWD/build/apt/initrd
root=$work/root
rm -rf "$work"
mkdir -p "$work/lists" "$work/debs/partial" "$root"
trap 'rm -rf "$work"' EXIT
: > "$work/status"              # nothing is installed: everything needed is fetched
apt_private_get -q -y --download-only -o Dir::State::status="$work/status" \
    -o Dir::Cache::archives="$work/debs" install \
    initramfs-tools busybox zstd base-files bash dash debianutils diffutils e2fsprogs findutils \
    grep gzip hostname libc-bin mawk mount sed util-linux >"$work/log" 2>&1 || {
    cat "$work/log" >&2
    apt_private_fail "cannot fetch initramfs-tools"
}
for deb in "$work"/debs/*.deb; do dpkg-deb -x "$deb" "$root"; done

# What these packages' scripts would do at installation.
ln -sf dash "$root/bin/sh"
ln -sf mawk "$root/usr/bin/awk"
mkdir -p "$root"/{tmp,proc,sys,dev,run,var/tmp} "$root/lib/modules"
ver=$(cat build/kernel/version)
cp -r "build/kernel/lib/modules/$ver" "$root/lib/modules/"
cp build/kernel/config "$root/boot/config-$ver"

make="export PATH=/usr/sbin:/usr/bin:/sbin:/bin; depmod $ver && mkinitramfs -o /initrd $ver"
if [ "$(id -u)" = 0 ]; then
    mknod -m 666 "$root/dev/null" c 1 3
    chroot "$root" /bin/sh -c "$make"
else
    unshare --map-root-user --mount \
        sh -c 'mount --rbind /dev "$1/dev" && exec chroot "$1" /bin/sh -c "$2"' sh "$root" "$make"
fi
mv "$root/initrd" "$out"
