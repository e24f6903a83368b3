# net-lib.sh - what net-boot.t and net-killed.t share; sourced.  $dir is the test's.

. tests/guest/ended.sh
B=${B:-build}
PATH=$PATH:/sbin:/usr/sbin
img=$B/platter-img oracle=build/oracle/bin/qemu-img
urls=

must() { "$@" || { echo "Bail out! $*"; exit 1; }; }

net_prepare()
{
    [ "${NET_ISOLATED-}" = 1 ] || { echo "Bail out! no right to make name spaces"; exit 1; }
    must tools/rootfs.sh "$dir/root.raw" 48M tests/guest/net-guest-init
    must tools/initrd.sh "$dir/initrd" tools/guest-initrd-init virtio_pci virtio_blk
    must tests/oracle.sh
    must tests/kernel.sh
}

# run_guests AT-ONCE FILES: those of $dir/disks.
run_guests()
{
    tools/with-kvm.sh -m 3072 -t 850 -w "$dir" tests/guest/net-inside.sh "$dir" "$1" "$2" > "$dir/ran" 2>&1
    local rc=$?
    ok "$rc" "the guests ran$(ended "$rc" 0 "$dir/ran")" || sed 's/^/# /' "$dir/ran"
}

console_says() { tr -d '\r' < "$dir/console.$1" | grep -qF "$2" || { tail -n 20 "$dir/console.$1" "$dir/log.$1"; return 1; }; }
no_complaint() { ! tr -d '\r' < "$dir/console.$1" | grep '^not ok'; }

# What the guest wrote, taken out of the image, against the guest's own checksums.
holds_files()
{
    rm -rf "$dir/out"
    mkdir "$dir/out"
    # shellcheck disable=SC2086
    $img $urls convert -f "$2" -O raw "$3" "$dir/out/raw" || return 1
    e2fsck -fn "$dir/out/raw" || return 1
    debugfs -R "dump /root/files.sum $dir/out/sum" "$dir/out/raw" 2>/dev/null
    debugfs -R "rdump /root/files $dir/out" "$dir/out/raw" 2>/dev/null
    [ "$(wc -l < "$dir/out/sum")" -ge 8 ] && (cd "$dir/out/files" && sha256sum --quiet -c ../sum)
}

# A copy, for qemu-img, which is not to open what the image names.
oracle_check()
{
    $img convert -f raw -O raw "$1" "$dir/copy" && $oracle rebase -u -f qcow2 -b '' "$dir/copy" &&
        $oracle check -f qcow2 "$dir/copy"
}

# judge NAME FORMAT IMAGE
judge()
{
    local status
    status=$(cat "$dir/status.$1" 2>/dev/null)
    [ "$status" = 0 ]
    ok $? "$1: the guest powers off$(ended "$status" 0 "$dir/log.$1" "$dir/console.$1")"
    tap_ok "$1: it has mounted its root disk" console_says "$1" "ok the root disk is mounted for writing"
    tap_ok "$1: it reads back what it wrote" console_says "$1" "files read back from the disk are what was written"
    tap_ok "$1: it has come to its end" console_says "$1" "ok the root disk is put to rest"
    tap_ok "$1: it complains of nothing" no_complaint "$1"
    tap_ok "$1: its files are in the image, whose file system is clean" holds_files "$@"
    if [ "$2" = qcow2 ]; then
        # shellcheck disable=SC2086
        tap_ok "$1: platter-img check" $img $urls check -f qcow2 "$3"
        tap_ok "$1: qemu-img check" oracle_check "$3"
    fi
}
