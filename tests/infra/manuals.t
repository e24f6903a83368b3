#!/bin/bash
# Man pages and bash completions are made from --help, so they name every command and
# option there is; groff and bash have nothing to complain about.
cd "$(dirname "$0")/../.." || exit 1
. tests/tap.sh
b=${B:-build}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
tap_shows=("$tmp/out")
page() { groff -man -Tascii -ww -rLL=200n "$b/man/$1.1" 2>"$tmp/warnings" | sed 's/.\x08//g; s/\x1b\[[0-9;]*m//g'; }

for c in $("$b/platter-img" --help | sed -n 's/^  \([a-z]*\) - .*/\1/p'); do
    page "platter-img-$c" > "$tmp/page"
    "$b/platter-img" "$c" --help | grep -E '^  (-|[A-Za-z]+=)' | sed 's/^ *//' > "$tmp/options"
    {
        cat "$tmp/warnings"
        while read -r line; do
            grep -qF -e "$line" "$tmp/page" || echo "missing: $line"
        done < "$tmp/options"
        for s in NAME SYNOPSIS OPTIONS 'SEE ALSO'; do
            grep -qx "$s" "$tmp/page" || echo "no section $s"
        done
        [ -s "$tmp/options" ] || echo "no options in --help"
    } > "$tmp/out"
    [ ! -s "$tmp/out" ]
    ok $? "platter-img-$c(1) has what --help says"
    page platter-img > "$tmp/page"
    grep -q "platter-img-$c(1)" "$tmp/page" 2>"$tmp/out"
    ok $? "platter-img(1) refers to it"
done
for p in platter-run platter-io; do
    page $p > "$tmp/page"
    "$b/$p" --help | grep -oE -e '--[a-z-]+' | sort -u | while read -r o; do
        grep -qF -e "$o" "$tmp/page" || echo "missing: $o"
    done > "$tmp/out"
    cat "$tmp/warnings" >> "$tmp/out"
    [ ! -s "$tmp/out" ] && [ -s "$tmp/page" ]
    ok $? "$p(1) has what --help says"
done

# complete WORD...: what bash would offer for the last word
complete_words()
{
    bash -c 'source "$1/completions/$2" || exit 1
        COMP_WORDS=("${@:2}"); COMP_CWORD=$(($# - 2))
        f=$(complete -p "$2" | sed "s/.*-F \([^ ]*\) .*/\1/")
        "$f"; printf "%s\n" "${COMPREPLY[@]}"' bash "$b" "$@" 2>&1 | sort | tr '\n' ' '; echo
}
offers()        # WANT NAME WORD...
{
    local want=$1 name=$2
    shift 2
    complete_words "$@" > "$tmp/out"
    [ "$(cat "$tmp/out")" = "$want " ]
    ok $? "completion: $name"
}
touch "$tmp/disk.qcow2"
offers 'create' 'a command' platter-img cre
offers 'raw' 'a format' platter-img create -f ra
offers 'human json' 'a choice' platter-img info --output ''
offers 'json' 'a choice behind =' platter-img info --output = js
offers '--force-share --format' 'long options' platter-img snapshot --fo
offers 'none' 'a cache mode' platter-img convert -t no
offers "$tmp/disk.qcow2" 'file names' platter-img info "$tmp/di"
offers "$tmp/disk.qcow2" 'file names after options' platter-img info -f raw -U "$tmp/di"
offers '--kernel' 'platter-run' platter-run --kern
offers 'writeback writethrough' 'platter-io' platter-io --cache write
tap_end
