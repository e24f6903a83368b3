# server-nbd.sh - NBD servers for tests; sourced after servers.sh.
#   NBD_PORT              chosen when empty
#   NBD_HOST              127.0.0.1 when empty

NBD_PORT=${NBD_PORT:-}

# nbd_qemu FILE ARGUMENT...: qemu-nbd exports a raw file as "disk" until it is ended.
nbd_qemu()
{
    local file=$1
    shift
    NBD_PORT=${NBD_PORT:-$(net_free_port)}
    net_spawn "$file.log" "$ORACLE/qemu-nbd" -f raw -x disk -b 127.0.0.1 -p "$NBD_PORT" -t "$@" \
        "$file"
    echo "$NET_PID" >"$file.pid"
    net_wait_port "$NBD_PORT"
}

# nbd_kit ARGUMENT...: nbdkit on the port.
nbd_kit()
{
    NBD_PORT=${NBD_PORT:-$(net_free_port)}
    net_spawn "$T/nbdkit.log" nbdkit -f -i "${NBD_HOST:-127.0.0.1}" -p "$NBD_PORT" "$@"
    net_wait_port "$NBD_PORT"
}

# The server that was started last, and its port is free again.
nbd_end()
{
    net_end "$NET_PID" KILL
    net_wait_free "$NBD_PORT"
}

nbd_url()
{
    echo "nbd://${NBD_HOST:-127.0.0.1}:$NBD_PORT/${1-disk}"
}

# net_certificates DIR: a throw-away CA, a server's certificate for localhost and
# 127.0.0.1, and in DIR/other another CA that signed nothing.
net_certificates()
{
    mkdir -p "$1" "$1/other"
    local who
    printf 'cn = "throw-away CA"\nca\ncert_signing_key\nexpiration_days = 2\n' >"$1/ca.info"
    printf '%s\n' 'cn = "localhost"' 'dns_name = "localhost"' 'ip_address = "127.0.0.1"' \
        tls_www_server encryption_key signing_key 'expiration_days = 2' >"$1/server.info"
    for who in "$1" "$1/other"; do
        certtool --generate-privkey --ecc --outfile "$who/ca-key.pem" &&
            certtool --generate-self-signed --load-privkey "$who/ca-key.pem" \
                --template "$1/ca.info" --outfile "$who/ca-cert.pem" || return 1
    done
    certtool --generate-privkey --ecc --outfile "$1/server-key.pem" &&
        certtool --generate-certificate --load-ca-certificate "$1/ca-cert.pem" \
            --load-ca-privkey "$1/ca-key.pem" --load-privkey "$1/server-key.pem" \
            --template "$1/server.info" --outfile "$1/server-cert.pem"
}
