#!/bin/bash
# initrd.sh - make an initial RAM disk for the kernel in build/kernel: a static
# busybox, an init script, and kernel modules with what they depend on.
#   tools/initrd.sh OUT INIT MODULE...
# INIT is a script for busybox sh.  It finds the modules in load order in
# /modules.order ("for m in $(cat /modules.order); do insmod $m; done").
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
kernel=$top/build/kernel

[ $# -ge 2 ] || { echo "usage: initrd.sh OUT INIT MODULE..." >&2; exit 2; }
out=$1 init=$2
shift 2
ver=$(cat "$kernel/version")
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT

mkdir -p "$tree"/{bin,dev,proc,sys,tmp,mnt,lib}
cp "$(command -v busybox)" "$tree/bin/busybox"
ln -s busybox "$tree/bin/sh"
install -m 755 "$init" "$tree/init"
: > "$tree/modules.order"
for mod; do
    # Prints "insmod PATH" for each dependency first, "builtin NAME" for none.
    modprobe -d "$kernel" -S "$ver" --show-depends "$mod"
done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' | while read -r ko; do
    cp "$ko" "$tree/lib/"
    echo "/lib/${ko##*/}" >> "$tree/modules.order"
done
mkdir -p "$(dirname "$out")"
(cd "$tree" && find . -print0 | LC_ALL=C sort -z |
    cpio --quiet --null -o -H newc --owner=+0:+0 --reproducible) > "$out.new"
mv "$out.new" "$out"
