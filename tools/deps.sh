#!/bin/bash
# deps.sh - the Debian packages that Platter is built and tested with.
#   tools/deps.sh          install what is missing, with apt-get (root, or sudo)
#   tools/deps.sh build    the same, only what `make` needs
#   tools/deps.sh --check  install nothing; name what `make` lacks, exit 1 then
# Takes a few milliseconds when nothing is missing, and prints nothing then.
set -euo pipefail

build="gcc libc6-dev make pkg-config acpica-tools
       libjansson-dev zlib1g-dev libzstd-dev liburing-dev libdeflate-dev libbz2-dev libgcrypt20-dev libiscsi-dev libnfs-dev
       libglusterfs-dev libnbd-dev libcurl4-gnutls-dev"
# Unit tests and prove; python3 makes damaged images; the rest makes root file
# systems and initial RAM disks for guests, and reaches the mirror.
tests="libcmocka-dev perl python3 e2fsprogs busybox-static cpio kmod procps
       util-linux mount strace ca-certificates tgt nfs-ganesha nfs-ganesha-vfs rpcbind iproute2
       glusterfs-server groff-base nbdkit nginx-light gnutls-bin
       python3-pyftpdlib python3-openssl python3-libqcow python3-libvhdi python3-libvmdk 7zip"

missing()
{
    local p
    for p; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || echo "$p"
    done
}

case ${1-} in
--check)
    CC=${CC:-gcc}
    # What the compiler finds counts here, not where it came from.
    lack=
    command -v "${CC%% *}" >/dev/null || lack="$lack ${CC%% *}"
    command -v iasl >/dev/null || lack="$lack iasl"
    if command -v "${PKG_CONFIG:-pkg-config}" >/dev/null; then
        for lib in jansson zlib libzstd; do
            "${PKG_CONFIG:-pkg-config}" --exists $lib || lack="$lack $lib"
        done
    else
        lack="$lack pkg-config"
    fi
    [ -z "$lack" ] && exit 0
    echo "Platter cannot be built here yet, this is missing:$lack" >&2
    echo "On Debian 12, \"make deps\" installs everything that is needed." >&2
    exit 1 ;;
build) list=$build ;;
'') list="$build $tests" ;;
*) echo "usage: deps.sh [build|--check]" >&2; exit 2 ;;
esac

# shellcheck disable=SC2086
lack=$(missing $list)
[ -n "$lack" ] || exit 0
lack=$(echo $lack)

command -v apt-get >/dev/null || {
    echo "deps: missing: $lack" >&2
    echo "deps: there is no apt-get here; please install these (Debian's names) yourself" >&2
    exit 1
}
as_root=
if [ "$(id -u)" != 0 ]; then
    if sudo -n true 2>/dev/null || { [ -t 0 ] && command -v sudo >/dev/null; }; then
        as_root=sudo
    else
        echo "deps: missing: $lack" >&2
        echo "deps: neither root nor sudo here; please have somebody run:" >&2
        echo "    apt-get install $lack" >&2
        exit 1
    fi
fi

run()
{
    $as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -q -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@"
}

echo "deps: installing $lack"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { run update && run -y --no-install-recommends install $lack; } >"$log" 2>&1 </dev/null; then
    cat "$log" >&2
    echo "deps: apt-get could not install: $lack" >&2
    exit 1
fi
lack=$(missing $lack)
[ -z "$lack" ] || { cat "$log" >&2; echo "deps: still missing: $lack" >&2; exit 1; }
