#!/bin/bash
# with-kvm.sh - run a command where KVM works: here, when this machine can run
# guests itself, else in the outer VM.  Says on standard error which it is.
#   tools/with-kvm.sh [-m MIB] [-t SECONDS] [-w DIR]... COMMAND [ARG]...
# Options as for tools/outer-vm.sh, which says what the command sees there.
# "platter-run --check-host" decides; PLATTER_KVM=host or =outer overrides.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)

case ${PLATTER_KVM-} in
host|outer) where=$PLATTER_KVM why="PLATTER_KVM=$PLATTER_KVM" ;;
*)
    if why=$("$top/${B:-build}/platter-run" --check-host 2>&1); then where=host; else where=outer; fi
    why=$(sed -n '1s/^[A-Za-z]*: *//p' <<< "$why") ;;
esac

opts=() limit=
while getopts m:t:w: opt; do
    opts+=("-$opt" "$OPTARG")
    [ "$opt" != t ] || limit=$OPTARG
done
shift $((OPTIND - 1))

if [ "$where" = host ]; then
    echo "kvm: this machine's own ($why)" >&2
    exec ${limit:+timeout -k 5 "$limit"} "$@"
fi
echo "kvm: not usable on this machine ($why)" >&2
echo "kvm: running in an outer VM with an emulated AMD-V CPU (QEMU TCG; slow, but KVM for real)" >&2
exec "$top/tools/outer-vm.sh" "${opts[@]}" "$@"
