#!/usr/bin/env python3
"""http-faults.t - web servers that cut, stall, refuse, lie, redirect and change the file:
the right bytes or an error, never mixed data.  N8-N12, N14 and their like."""
import os
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import faultlib
import outages
from faultlib import Web, proxied
import tap

K = 1024
SIZE = 4 << 20
faultlib.isolate()
work = tempfile.TemporaryDirectory()
FILE = os.path.join(work.name, "disk.raw")
with open(FILE, "wb") as out:
    for i in range(SIZE // (64 * K)):
        out.write(bytes([i + 1]) * (64 * K))


def disk(*commands):
    return Web(FILE, *commands)


def opened(url, *opts, env=None, image=True):
    """platter-img info: (status, all that it says)"""
    args = [url] if not opts else ["--image-opts", ",".join(
        ("driver=raw,file.driver=http,file.url=" + url,) + tuple("file." + o for o in opts))]
    r = subprocess.run([tap.IMG, "info", *args], capture_output=True, text=True, timeout=30,
                       env=dict(os.environ, **(env or {})), check=False)
    return r.returncode, r.stdout + r.stderr


def n11_down(s, p, io):
    """N11: cut after every few bytes of an answer: a read resumes"""
    for i, at in enumerate(range(0, 700, 23)):
        p.do("cut-next down %d -" % at)
        p.do("cut")
        io.good("read -P %d %dk 4k" % (i + 1, 64 * i))
    for at in (1000, 70000, 300000, 1000000):
        p.do("cut-next down %d -" % at)
        p.do("cut")
        io.good("read -P 33 2M 64k")
        io.good("read -q 0 1M")
    assert s.counts()["bytes"] < 30 * SIZE


def n11_large(s, p, io):
    """N11: a large read goes on where it broke off"""
    before = s.counts()["bytes"]
    p.do("cut-next down 900000 900000 900000 900000")
    p.do("cut")
    io.good("read -q 0 1M")
    io.good("read -P 17 1M 64k")
    assert s.counts()["bytes"] - before < 3 << 20, s.counts()


n11_large.args = ("connections=1",)


def busy(s, p, io):
    """N5: 503 and 429 are asked again"""
    s.do("status 503 2")
    io.good("read -P 3 128k 64k", 20)
    s.do("status 429 1")
    io.good("read -P 4 192k 64k", 20)


def gone(s, p, io):
    """404 later on: EIO with a line, and the file may come back"""
    s.do("status 404 1")
    io.bad("read 128k 64k", "failed: No such file|failed: Input/output")
    assert "error: 404" in io.text, io.text
    io.good("read -P 3 128k 64k")


def honest_part(s, p, io):
    """N7: an answer with less than was asked for: the rest is asked for"""
    s.do("lie part 3")
    io.good("read -q 0 1M")
    s.do("lie part 3")
    io.good("read -P 33 2M 64k")


def cut_short(s, p, io):
    """N7: fewer bytes than the header says: the rest is asked for"""
    s.do("lie short 2")
    io.good("read -P 33 2M 64k", 20)


def changes(how, words="has changed"):
    def test(s, p, io):
        io.good("read -P 1 0 4k")
        s.do(how)
        io.bad("read 2M 4k", "Input/output error")
        assert words in io.text, io.text
        io.bad("read 3M 4k", "Input/output error")
        io.bad("read 0 4k", "Input/output error")       # also what is cached
        assert io.text.count(words) == 1, io.text
    test.__doc__ = "N14: the file changes under us (%s): an error, and it stays one" % how
    return test


def liar(what, words):
    def test(s, p, io):
        s.do("lie %s 1" % what)
        io.bad("read 2M 4k", "failed: ")
        assert words in io.text, io.text
        io.good("read -P 33 2M 64k")
    test.__doc__ = "N8: an answer that is not what was asked for (%s) is an error" % what
    return test


def too_much(s, p, io):
    """N8: more bytes than were asked for: noticed, and none of them taken"""
    s.do("lie more 1")
    io.good("read -P 33 2M 64k")
    io.good("read -P 34 2112k 64k")
    assert "more than it was asked for" in io.text, io.text


def cached(s, p, io):
    """4 KiB reads cost a request for many of them; a repetition none"""
    before = s.counts()["requests"]
    for i in range(256):
        io.do("read -q %dk 4k" % (4 * i))
    first = s.counts()["requests"] - before
    for i in range(256):
        io.do("read -q %dk 4k" % (4 * i))
    assert first <= 16, first
    assert s.counts()["requests"] == before + first
    assert s.counts()["bytes"] < 2 << 20


def credentials():
    """user and password from URL, option, file, environment; never printed; cookies"""
    pw = os.path.join(work.name, "pw")
    with open(pw, "w", encoding="ascii") as f:
        f.write("secretpass\n")
    with disk("user joe:secretpass") as s:
        texts = []
        for url, opts, env, want in (
                (s.url(), (), {}, 1), (s.url(user="joe:wrong"), (), {}, 1),
                (s.url(user="joe:secretpass"), (), {}, 0),
                (s.url(), ("username=joe", "password-file=" + pw), {}, 0),
                (s.url(user="joe"), (), {"PLATTER_HTTP_PASSWORD": "secretpass"}, 0),
                (s.url(), (), {"PLATTER_HTTP_USERNAME": "joe",
                               "PLATTER_HTTP_PASSWORD": "secretpass"}, 0)):
            status, text = opened(url, *opts, env=env)
            assert status == want, (url, opts, env, text)
            texts.append(text)
        assert not any("secretpass" in t or "wrong" in t for t in texts), texts
        assert "error: 401" in texts[0] and "error: 401" in texts[1], texts
    with disk("cookie a=b") as s:
        assert opened(s.url())[0] == 1
        assert opened(s.url(), "cookie=a=b")[0] == 0


def redirects():
    """redirects are followed, but not for ever, not elsewhere; others get no credentials"""
    with disk() as s, disk("redirect http://127.0.0.1:%d/x" % s.port) as r:
        assert opened(r.url(user="joe:pw"))[0] == 0
        assert s.counts()["secrets"] == 0, s.counts()
        assert r.counts()["redirects"] == 1, r.counts()     # remembered
        for to, words in (("http://127.0.0.1:%d/y" % r.port, "redirects"),
                          ("ftp://127.0.0.1/x", "ftp"), ("file:///etc/passwd", "file"),
                          ("http://127.0.0.1:1/x", "127.0.0.1 port 1")):
            r.do("redirect " + to)
            status, text = opened(r.url())
            assert status == 1 and words in text, (to, text)
            assert r.counts()["redirects"] < 30


tap.attempt_all(*(proxied(disk, fn) for fn in (
    n11_down, n11_large) + outages.CASES + (
    busy, gone, honest_part, cut_short, changes('etag "two"'),
    changes("modified Tue, 24 Nov 2026 11:00:00 GMT"), changes("lie total 1"),
    changes("lie whole 1"), liar("range", "another range"), too_much,
    liar("gzip", "encoded"), liar("norange", "'range'"), cached)), credentials, redirects)
tap.finish()
