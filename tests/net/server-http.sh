# server-http.sh - a web server (nginx) for tests; sourced after servers.sh and server-nbd.sh.
#   HTTP_PORT, HTTPS_PORT     chosen when empty
#   HTTP_HOST                 127.0.0.1 when empty
# http_start DIR [LOCATIONS]: DIR/www by HTTP and HTTPS, with certificates in DIR/pki, the
# log of requests in DIR/access, and further lines for the HTTP server's configuration.

HTTP_PORT=${HTTP_PORT:-}
HTTPS_PORT=${HTTPS_PORT:-}
HTTP_HOST=${HTTP_HOST:-127.0.0.1}

http_start()
{
    local d=$1
    chmod 755 "$d"
    HTTP_PORT=${HTTP_PORT:-$(net_free_port)}
    HTTPS_PORT=${HTTPS_PORT:-$(net_free_port)}
    mkdir -p "$d/www" && net_certificates "$d/pki" && cat >"$d/nginx.conf" <<END || return 1
daemon off; pid $d/pid; error_log $d/err; worker_processes 1; user root;
events { worker_connections 64; }
http {
    access_log $d/access; client_body_temp_path $d/n1; proxy_temp_path $d/n2;
    fastcgi_temp_path $d/n3; uwsgi_temp_path $d/n4; scgi_temp_path $d/n5;
    server { listen $HTTP_HOST:$HTTP_PORT; root $d/www; ${2-} }
    server {
        listen $HTTP_HOST:$HTTPS_PORT ssl; root $d/www;
        ssl_certificate $d/pki/server-cert.pem; ssl_certificate_key $d/pki/server-key.pem;
    }
}
END
    # Its worker changes into the server's user: root it stays, in a namespace of its own.
    net_spawn "$d/nginx.log" nginx -e "$d/err" -c "$d/nginx.conf"
    net_wait_port "$HTTP_PORT" && net_wait_port "$HTTPS_PORT"
}
