#!/bin/bash
# info and check behind walls: what they have to open they can, with --no-sandbox they say
# the same, and a file that the rules do not let be written is left alone.
# What the walls keep out is tests/unit/walls.c's.
cd "$(dirname "$0")/../.." || exit 1
. tests/tap.sh
img=$PWD/${B:-build}/platter-img io=$PWD/${B:-build}/platter-io
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp" || exit 1
tap_shows=(out err)
# same NAME WORD...: with and without the sandbox the same, and success
same()
{
    local name=$1 c=$2
    shift 2
    "$img" "$c" "$@" >out 2>err && "$img" "$c" --no-sandbox "$@" >out2 2>err2 &&
        cmp -s out out2 && cmp -s err err2
    ok $? "$name"
}

mkdir far near
"$img" create -q -f raw far/base.raw 1M
"$img" create -q -f qcow2 -F raw -b "$tmp/far/base.raw" near/mid.qcow2
"$img" create -q -f qcow2 -F qcow2 -b ../near/mid.qcow2 far/top.qcow2
same 'a chain over several directories' info -b far/top.qcow2
same 'the same, checked' check far/top.qcow2
same 'file: and a name without directory' info file:far/top.qcow2
(cd far && exec "$img" check top.qcow2 >/dev/null 2>"$tmp/err")
ok $? 'an image in the working directory'
same 'options' info --image-opts driver=qcow2,file.filename=far/top.qcow2
same 'options of two files' check --image-opts \
    "driver=qcow2,file.filename=far/top.qcow2,backing.driver=qcow2,backing.file.filename=$tmp/near/mid.qcow2"
same 'a json: name' info -b 'json:{"driver": "qcow2", "file": {"driver": "file", "filename": "far/top.qcow2"}}'
walls() { "$img" inspect --output=json "$@" | grep -c '"time limit"'; }
[ "$(walls far/top.qcow2) $(walls --no-sandbox far/top.qcow2)" = '1 0' ] &&
    [ "$(walls --image-opts driver=qcow2,file.filename=far/top.qcow2)" = 1 ] &&
    [ "$(walls 'json:{"driver": "qcow2", "file.filename": "far/top.qcow2"}')" = 1 ]
ok $? 'inspect says whether it had walls'
cp far/top.qcow2 ./a:b.qcow2
cp far/top.qcow2 ./file:x
same 'a path with a colon' info --image-opts driver=qcow2,file.filename=a:b.qcow2
[ "$(walls --image-opts driver=qcow2,file.filename=a:b.qcow2)" = 1 ]
ok $? 'it has its walls'
same 'a path that looks like file:' info --image-opts driver=qcow2,file.driver=file,file.filename=file:x
ln -s far/top.qcow2 link.qcow2
same 'a symbolic link' info link.qcow2

"$img" create -q -f vmdk -o subformat=twoGbMaxExtentFlat far/flat.vmdk 3M
same 'extents' info far/flat.vmdk
same 'extents, the format given' info -f vmdk far/flat.vmdk
"$img" create -q -f qcow2 -o data_file="$tmp/far/data.raw" near/ext.qcow2 1M
same 'info of an image with a data file' info near/ext.qcow2
same 'its check opens the data file' check near/ext.qcow2
before=$(md5sum far/data.raw)
"$img" check -r all near/ext.qcow2 >out 2>err
status=$?
if "$img" inspect --output=json near/mid.qcow2 | grep -q '"landlock"'; then
    [ $status = 1 ] && grep -q "data.raw.*Permission denied" err && [ "$(md5sum far/data.raw)" = "$before" ]
    ok $? 'a repair does not write to files of other directories that an image names'
else
    tap_skip "a repair and files of other directories" "no landlock"
fi
"$img" check -r all --no-sandbox near/ext.qcow2 >out 2>err
ok $? 'unless told to'
"$img" create -q -f qcow2 -o data_file=here.raw here.qcow2 1M
"$img" check -r all here.qcow2 >out 2>err
ok $? 'a data file beside the image may be opened for writing'

"$img" create -q -f qcow2 leak.qcow2 1M
"$io" -f qcow2 -c 'write 0 256k' leak.qcow2 >/dev/null
printf '\0\0\0\0\0\0\0\0' | dd of=leak.qcow2 bs=1 seek=$((4 * 65536)) conv=notrunc status=none
"$img" check leak.qcow2 >/dev/null 2>&1
[ $? = 3 ] && "$img" check -r all leak.qcow2 >out 2>err && "$img" check leak.qcow2 >/dev/null 2>&1
ok $? 'a repair writes to the image'

printf 'luks' > pw
if "$img" create -q --object secret,id=s,file=pw -f luks -o key-secret=s,iter-time=10 l.luks 1M 2>err; then
    same 'an encrypted image' info l.luks
else
    tap_skip "an encrypted image" "no libgcrypt"
fi
"$img" info missing.qcow2 >out 2>err
[ $? = 1 ] && grep -q "missing.qcow2': No such file or directory" err
ok $? 'a file that is not there'
"$img" info far >out 2>err
[ $? = 1 ] && grep -q "requires 'far' to be a regular file" err
ok $? 'a directory'
(ulimit -t 50; "$img" info far/top.qcow2 >out 2>err)
ok $? 'limits of the caller that are lower stay'
tap_end
