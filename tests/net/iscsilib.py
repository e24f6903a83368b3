"""iscsilib.py - how the tests with fakeiscsi.py run platter-io."""
import os
import subprocess
import time
from faultlib import IO
import tap

tests = []
# Builds with sanitizers are slower, machines busy; the bounds in tests are for the policy.
SLACK = float(os.environ.get('SLACK', 6))


def test(f):
    tests.append(f)
    return f


def io(url, *cmds, env=None, limit=50, flags=()):
    words = [w for c in cmds for w in ('-c', c)]
    start = time.monotonic()
    r = subprocess.run([IO, '-f', 'raw', '-t', 'writeback', *flags, *words, url],
                       capture_output=True, text=True, timeout=limit, env=dict(os.environ, **(env or {})))
    r.took = time.monotonic() - start
    assert r.returncode in (0, 1), 'status %d: %s' % (r.returncode, r.stderr)
    return r


def ok(r):
    assert r.returncode == 0, 'failed: %s %s' % (r.stdout, r.stderr)
    return r


def failed(r, *words):
    assert r.returncode == 1, 'did not fail: %s %s' % (r.stdout, r.stderr)
    for w in words:
        assert w in r.stdout + r.stderr, '%r is not in: %s %s' % (w, r.stdout, r.stderr)
    return r


def on_medium(t, off, pattern, n):
    assert t.medium[off:off + n] == bytes([pattern]) * n, 'the medium does not have it'


def main():
    tap.attempt_all(*tests)
    tap.finish()
