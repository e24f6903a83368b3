#!/bin/bash
# rootfs.sh - make a raw image of a small ext4 root file system: a static
# busybox with all its commands, /etc, and the given script as /sbin/init.
#   tools/rootfs.sh OUT SIZE INIT [FILE]...     FILEs go to /root
# Needs neither root nor a mount: mke2fs fills the file system itself.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: rootfs.sh OUT SIZE INIT [FILE]..." >&2; exit 2; }
out=$1 size=$2 init=$3
shift 3
PATH=$PATH:/sbin:/usr/sbin
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT

mkdir -p "$tree"/{bin,dev,etc,mnt,proc,root,run,sbin,sys,tmp,usr/bin,usr/sbin,var}
chmod 1777 "$tree/tmp"
cp "$(command -v busybox)" "$tree/bin/busybox"
busybox --list-full | while read -r path; do
    path=${path#usr/}
    [ "$path" = bin/busybox ] || [ "$path" = sbin/init ] || ln -sf /bin/busybox "$tree/$path"
done
echo guest > "$tree/etc/hostname"
echo 'root:x:0:0:root:/root:/bin/sh' > "$tree/etc/passwd"
echo 'root:x:0:' > "$tree/etc/group"
echo '/dev/vda / ext4 defaults 0 1' > "$tree/etc/fstab"
install -m 755 "$init" "$tree/sbin/init"
for file; do cp "$file" "$tree/root/"; done
rm -f "$out"
truncate -s "$size" "$out"
mke2fs -q -t ext4 -L root -E root_owner=0:0 -d "$tree" "$out"
