#!/usr/bin/env python3
"""bad_web.py - a web server for tests, with ranges, that misbehaves when told to.

  bad_web.py LISTEN FILE [COMMAND]...   a port on 127.0.0.1; 0: any.  Prints "ready PORT";
                                        commands also on stdin, a line each, answered by "ok"
  etag TEXT | -          what it says; -: none
  modified TEXT | -
  status N COUNT         the next COUNT requests are answered with that status
  lie WHAT COUNT         the next COUNT answers: range (another start), total (another size),
                         whole (200 with everything), short (fewer bytes than the header
                         says), part (a shorter range, honestly), more (too many bytes),
                         gzip (an encoding), norange (206 without a range)
  user NAME:PASSWORD     asks for it (Basic)
  cookie TEXT            403 without it
  redirect URL | -       everything is there
  counts                 requests and bytes so far, as JSON
"""
import base64
import http.server
import json
import os
import socketserver
import sys
import threading

LOCK = threading.RLock()


class Web:
    data = b""
    etag, modified = '"one"', "Tue, 24 Nov 2026 10:00:00 GMT"
    status = (0, 0)
    lie = ("", 0)
    user = cookie = redirect = None
    counts = {"requests": 0, "bytes": 0, "redirects": 0, "secrets": 0}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", headers=()):
        self.send_response(status)
        for k, v in headers:
            self.send_header(k, v)
        if not any(k == "Content-Length" for k, _ in headers):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refused(self):
        if Web.redirect:
            Web.counts["redirects"] += 1
            self.answer(302, headers=[("Location", Web.redirect)])
        elif Web.status[1]:
            Web.status = (Web.status[0], Web.status[1] - 1)
            self.answer(Web.status[0])
        elif Web.user and self.headers.get("Authorization") != \
                "Basic " + base64.b64encode(Web.user.encode()).decode():
            self.answer(401, headers=[("WWW-Authenticate", 'Basic realm="x"')])
        elif Web.cookie and self.headers.get("Cookie") != Web.cookie:
            self.answer(403)
        else:
            return False
        return True

    def do_GET(self):
        with LOCK:
            Web.counts["requests"] += 1
            Web.counts["secrets"] += bool(self.headers.get("Authorization") or
                                          self.headers.get("Cookie"))
            if self.refused():
                return
            lie, left = Web.lie
            Web.lie = (lie, max(left - 1, 0))
            lie = lie if left else ""
        wanted = self.headers.get("Range")
        size = len(Web.data)
        if not wanted or lie == "whole":
            self.answer(200, Web.data)
            return
        start, end = (int(x) for x in wanted.split("=")[1].split("-"))
        end = min(end, size - 1)
        if start >= size:
            self.answer(416, headers=[("Content-Range", "bytes */%d" % size)])
            return
        if lie == "part":
            end = start + (end - start) // 2
        body = Web.data[start:end + 1]
        Web.counts["bytes"] += len(body)
        headers = [(k, v) for k, v in (("ETag", Web.etag), ("Last-Modified", Web.modified)) if v]
        if lie != "norange":
            headers.append(("Content-Range", "bytes %d-%d/%d" % (
                start + (7 if lie == "range" else 0), end + (7 if lie == "range" else 0),
                size + (4096 if lie == "total" else 0))))
        if lie == "gzip":
            headers.append(("Content-Encoding", "gzip"))
        if lie == "more":
            body += b"x" * 1000
        if lie == "short":
            headers.append(("Content-Length", str(len(body))))
            body = body[:len(body) // 2]
            self.close_connection = True
        self.answer(206, body, headers)

    do_HEAD = do_GET


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_):
        """Cut connections are what this is for."""



def command(line):
    w = line.strip().split(None, 1)
    value = w[1] if len(w) > 1 else ""
    if w[0] in ("etag", "modified", "redirect"):
        setattr(Web, w[0], None if value == "-" else value)
    elif w[0] in ("user", "cookie"):
        setattr(Web, w[0], value)
    elif w[0] == "status":
        Web.status = tuple(int(x) for x in value.split())
    elif w[0] == "lie":
        what, n = value.split()
        Web.lie = (what, int(n))
    elif w[0] == "counts":
        return json.dumps(Web.counts)
    else:
        return "unknown command: " + line
    return "ok"


def main():
    with open(sys.argv[2], "rb") as f:
        Web.data = f.read()
    for line in sys.argv[3:]:
        command(line)
    s = Server(("127.0.0.1", int(sys.argv[1])), Handler)
    threading.Thread(target=s.serve_forever, daemon=True).start()
    print("ready", s.server_address[1], flush=True)
    for line in sys.stdin:
        if line.strip():
            with LOCK:
                text = command(line)
            print(text, flush=True)
    os._exit(0)


main()
