#!/usr/bin/python3
"""ftp_server.py - an FTP server (pyftpdlib) for tests.

  ftp_server.py HOST PORT FOLDER [CERTIFICATE KEY]
                 everybody reads FOLDER/www; joe, with the password secretpass, FOLDER/home.
                 With a certificate TLS from the first byte on, as ftps: wants it.
In the environment: FTP_WITHOUT, commands that it does not know; FTP_CLIENTS, how many it
takes from one address.  What it does is said on stdout.
"""
import logging
import os
import sys

from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler, TLS_DTPHandler, TLS_FTPHandler
from pyftpdlib.servers import FTPServer

READ = "elr"


class Data(TLS_DTPHandler):
    def readable(self):
        # pyftpdlib takes a client that begins TLS before it asks for the file for one that
        # has gone.
        return self._ssl_accepting or super().readable()


class Ftps(TLS_FTPHandler):
    dtp_handler = Data
    tls_control_required = tls_data_required = True

    def handle(self):
        self.secure_connection(self.ssl_context)

    def handle_ssl_established(self):
        super().handle()


def main():
    host, port, folder = sys.argv[1:4]
    logging.basicConfig(level=logging.INFO, stream=sys.stdout)
    users = DummyAuthorizer()
    users.add_anonymous(folder + "/www", perm=READ)
    users.add_user("joe", "secretpass", folder + "/home", perm=READ)
    handler = FTPHandler
    if len(sys.argv) > 4:
        handler = Ftps
        handler.certfile, handler.keyfile = sys.argv[4:6]
    handler.authorizer = users
    handler.auth_failed_timeout = 0
    handler.proto_cmds = {name: command for name, command in handler.proto_cmds.items()
                          if name not in os.environ.get("FTP_WITHOUT", "").split()}
    server = FTPServer((host, int(port)), handler)
    server.max_cons_per_ip = int(os.environ.get("FTP_CLIENTS", "0"))
    server.serve_forever()


main()
