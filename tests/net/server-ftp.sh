# server-ftp.sh - an FTP server (pyftpdlib) for tests; sourced after servers.sh and
# server-nbd.sh.
#   FTP_PORT, FTPS_PORT       chosen when empty
# ftp_start DIR: DIR/www for everybody, DIR/home for joe (secretpass), by FTP and by FTPS with
# certificates in DIR/pki.  ftp_run DIR: the FTP one (again); its group is in DIR/ftp.pid, what
# it did in DIR/ftp.log.

FTP_PORT=${FTP_PORT:-}
FTPS_PORT=${FTPS_PORT:-}

ftp_run()
{
    net_spawn "$1/ftp.log" tests/net/ftp_server.py 127.0.0.1 "$FTP_PORT" "$1"
    echo "$NET_PID" >"$1/ftp.pid"
    net_wait_port "$FTP_PORT"
}

ftp_start()
{
    FTP_PORT=${FTP_PORT:-$(net_free_port)}
    FTPS_PORT=${FTPS_PORT:-$(net_free_port)}
    mkdir -p "$1/www" "$1/home" && net_certificates "$1/pki" || return 1
    net_spawn "$1/ftps.log" tests/net/ftp_server.py 127.0.0.1 "$FTPS_PORT" "$1" \
        "$1/pki/server-cert.pem" "$1/pki/server-key.pem"
    net_wait_port "$FTPS_PORT" && ftp_run "$1"
}
