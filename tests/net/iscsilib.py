"""iscsilib.py - how the tests with fakeiscsi.py run platter-io and print TAP."""
import os
import subprocess
import sys
import time

B = os.environ.get('B', 'build')
IO = os.path.abspath(os.path.join(B, 'platter-io'))
tests = []
# Builds with sanitizers are slower, machines busy; the bounds in tests are for the policy.
SLACK = float(os.environ.get('SLACK', 6))


def test(f):
    tests.append(f)
    return f


def io(url, *cmds, env=None, limit=50, flags=()):
    words = [w for c in cmds for w in ('-c', c)]
    start = time.monotonic()
    r = subprocess.run([IO, '-f', 'raw', *flags, *words, url], capture_output=True, text=True,
                       timeout=limit, env=dict(os.environ, **(env or {})))
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
    only = sys.argv[1:]
    run = [f for f in tests if not only or f.__name__ in only]
    print('1..%d' % len(run))
    bad = 0
    for i, f in enumerate(run, 1):
        start = time.monotonic()
        try:
            f()
            word = 'ok'
        except Exception as e:
            word, bad = 'not ok', bad + 1
            for line in ('%s: %s' % (type(e).__name__, e))[-2000:].splitlines():
                print('# ' + line)
        print('%s %d - %s (%.1f s)' % (word, i, f.__doc__, time.monotonic() - start), flush=True)
    os._exit(bad != 0)
