#!/bin/bash
# make install puts programs, libraries and the header where DESTDIR and PREFIX
# say; the programs run from there, and a program builds against what is there.
cd "$(dirname "$0")/../.." || exit 1
. tests/tap.sh
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
tap_shows=("$tmp/out")

unset MAKEFLAGS MFLAGS
make install DESTDIR="$tmp/stage" PREFIX=/opt/platter >"$tmp/out" 2>&1
ok $? "make install DESTDIR= PREFIX= succeeds"
top=$tmp/stage/opt/platter
(cd "$tmp/stage" && find . -type f -o -type l) >"$tmp/out"
! grep -v '^\./opt/platter/' "$tmp/out"
ok $? "nothing lands outside the prefix"
for bin in platter-img platter-run platter-io; do
    "$top/bin/$bin" --help >"$tmp/out" 2>&1
    ok $? "$bin runs from where it is installed"
done
for f in man/man1/platter-img.1 man/man1/platter-img-convert.1 man/man1/platter-run.1 \
         man/man1/platter-io.1 bash-completion/completions/platter-img; do
    test -s "$top/share/$f" 2>"$tmp/out"
    ok $? "share/$f is installed"
done
cat > "$tmp/user.c" <<'C'
#include <platter/block.h>
#include <stdio.h>
int main(void)
{
    uint64_t size = 0;
    puts(blk_build_info());
    return blk_parse_size("3M", &size) == 0 && size == 3 << 20 ? 0 : 1;
}
C
san=${SAN:+-fsanitize=address,undefined}
gcc $san -I"$top/include" -o "$tmp/shared" "$tmp/user.c" -L"$top/lib" -lplatter >"$tmp/out" 2>&1 &&
    LD_LIBRARY_PATH=$top/lib "$tmp/shared" >>"$tmp/out" 2>&1
ok $? "a program builds and runs with the shared library"
# What the static library needs beside itself its pkg-config file says.
package() { PKG_CONFIG_PATH=$top/lib/pkgconfig pkg-config --define-variable=prefix="$top" "$@" platter; }
flags=$(package --static --cflags --libs 2>"$tmp/out") &&
    gcc $san -o "$tmp/static" "$tmp/user.c" ${flags/-lplatter/"$top/lib/libplatter.a"} >"$tmp/out" 2>&1 &&
    "$tmp/static" >>"$tmp/out" 2>&1
ok $? "a program builds and runs with the static library, as pkg-config says"
tap_end
