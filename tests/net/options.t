#!/bin/bash
# options.t - QEMU's options of network storage, by --image-opts and json:, and what is wrong
# with them: the same words and status as qemu-img's, before anything is connected to.
cd "$(dirname "$0")/../.."
. tests/net/servers.sh
net_isolate "$0" "$@"

T=$(mktemp -d)
trap 'rm -rf "$T"' EXIT
echo 'joe:00112233' >"$T/keys.psk"
OBJECTS=(--object secret,id=s,data=x
         --object "tls-creds-psk,id=srv,dir=$T,endpoint=server"
         --object "tls-creds-psk,id=joe,dir=$T,username=joe")

same_error()
{
    same "$@" && [ $STATUS = 1 ] || { echo "no error, or another: $*"; return 1; }
}

# Each line of standard input as the image's options.
same_lines()
{
    local line bad=0
    while IFS= read -r line; do
        same_error info "${OBJECTS[@]}" --image-opts "$line" || { echo "with $line"; bad=1; }
    done
    return $bad
}

nbd_options()
{
    local a=driver=nbd,server.type=inet,server.host=127.0.0.1,server.port=1
    same_lines <<END
driver=nbd
driver=nbd,host=127.0.0.1,port=1,tls-creds=no
driver=nbd,host=127.0.0.1,port=1,tls-creds=s
driver=nbd,host=127.0.0.1,port=1,tls-creds=srv
driver=nbd,host=127.0.0.1,port=1,tls-creds=joe
driver=nbd,server.type=inet
driver=nbd,server.type=inet,server.host=x
driver=nbd,server.type=unix
driver=nbd,server.type=foo
driver=nbd,server.type=vsock,server.cid=1
driver=nbd,server.type=vsock,server.port=1
driver=nbd,server.host=x
driver=nbd,path=/x,port=1
driver=nbd,path=/x,host=y
driver=nbd,host=127.0.0.1,port=1,server.type=inet
$a
$a,server.foo=1
$a,server.numeric=on,server.to=5,server.keep-alive=on,server.ipv4=on,server.ipv6=on
$a,reconnect-delay=x
$a,reconnect-delay=5
$a,open-timeout=x
$a,tls-hostname=x
driver=nbd,server.type=unix,server.path=/none
END
}

iscsi_options()
{
    local a=driver=iscsi,transport=tcp,portal=127.0.0.1:1,target=x
    same_lines <<END
driver=iscsi
driver=iscsi,portal=127.0.0.1:1,target=x
driver=iscsi,transport=tcp,portal=127.0.0.1:1
driver=iscsi,transport=foo,portal=127.0.0.1:1,target=x
$a,password-secret=no,user=joe
$a,password-secret=joe,user=joe
$a,user=joe
$a,header-digest=foo
$a,header-digest=CRC32C
$a,lun=abc
$a,timeout=abc
END
}

nfs_options()
{
    local a=driver=nfs,server.type=inet,server.host=127.0.0.1
    same_lines <<END
driver=nfs
driver=nfs,host=127.0.0.1,path=/x/y
driver=nfs,server.type=inet
driver=nfs,server.host=127.0.0.1,path=/x/y
driver=nfs,server.type=foo,server.host=h,path=/x/y
$a
$a,path=/x/y,user=abc
$a,path=/x/y,debug=x
$a,path=/x/y,foo=1
driver=raw,file.$(sed 's/,/,file./g' <<<"$a"),file.path=/x/y,file.foo=1
END
}

gluster_options()
{
    local a=driver=gluster,volume=v,path=p
    same_lines <<END
driver=gluster
driver=gluster,volume=v
driver=gluster,path=p
$a
driver=gluster,path=p,server.0.type=inet,server.0.host=x,server.0.port=1
driver=gluster,volume=v,server.0.type=inet,server.0.host=x,server.0.port=1
$a,server.0.type=foo,server.0.host=x
$a,server.0.type=unix
$a,server.0.type=inet
$a,server.0.host=x
$a,server.1.type=inet,server.1.host=x,server.1.port=1
$a,server.0.type=inet,server.0.host=x,server.0.port=1,debug=x
END
}

http_options()
{
    local a=driver=$1,url=$1://127.0.0.1:1/x
    same_lines <<END
driver=$1
$a,username=u,password-secret=no
$a,username=u,password-secret=srv
$a,proxy-username=u,proxy-password-secret=no
$a,cookie-secret=no
$a,sslverify=maybe
$a,timeout=x
$a,timeout=10001
$a,timeout=99999999999
$a,readahead=5
END
}

# id= wrong, missing, taken twice; files that are not there.
objects()
{
    local o
    for o in tls-creds-x509,id=t0 tls-creds-x509,id=t0,foo=1 tls-creds-x509,dir=/x \
             tls-creds-x509,id=t0,dir=/nowhere tls-creds-x509,id=t0,endpoint=server,dir=/nowhere \
             tls-creds-x509,id=t0,dir=/x,endpoint=foo tls-creds-x509,id=t0,dir=/x,verify-peer=maybe \
             tls-creds-psk,id=t0 tls-creds-psk,id=t0,dir=/nowhere "tls-creds-psk,id=t0,dir=$T" \
             "tls-creds-psk,id=t0,dir=$T,username=jim" "tls-creds-psk,id=s,dir=$T,username=joe" \
             secret,id=joe,data=x tls-creds-x509,id=0 foo,id=t0; do
        same_error info "${OBJECTS[@]}" --object "$o" /dev/null || { echo "with $o"; return 1; }
    done
    for o in tls-creds-x509 tls-creds-psk secret; do
        "$ORACLE/qemu-img" info --object $o,help >"$T/want" &&
            "$IMG" info --object $o,help | diff "$T/want" - || return 1
    done
    "$IMG" info --object help | grep -q tls-creds-x509
}

# What is a protocol of QEMU's but none here says so.
others()
{
    local n
    for n in ssh://host/file rbd:pool/image iser://host/target/1; do
        "$IMG" info "$n" 2>&1 | grep -q "Unknown protocol '${n%%:*}'" &&
            "$IMG" info --image-opts "driver=${n%%:*},host=x" 2>&1 |
                grep -q "Unknown driver '${n%%:*}'" || { echo "$n"; return 1; }
    done
}

tap_ok "nbd" nbd_options
tap_ok "iscsi" iscsi_options
tap_ok "nfs" nfs_options
tap_ok "gluster" gluster_options
tap_ok "http" http_options http
tap_ok "ftp" http_options ftp
tap_ok "objects: secret, tls-creds-x509, tls-creds-psk" objects
tap_ok "ssh, rbd and iser are refused by name" others
tap_end
