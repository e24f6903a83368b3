"""faultlib.py - what the tests with misbehaving servers share: TAP, platter-io and qemu-io
held open while the server is told what to do, and the fake server itself."""
import json
import os
import pty
import re
import select
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
B = os.environ.get("B", "build")
IO = os.path.abspath(os.path.join(B, "platter-io"))
IMG = os.path.abspath(os.path.join(B, "platter-img"))


def oracle(name):
    for base in (os.environ.get("ORACLE", ""), os.path.join(B, "oracle/bin"), "build/oracle/bin"):
        path = os.path.join(base, name)
        if base and os.access(path, os.X_OK):
            return os.path.abspath(path)
    return None


def isolate():
    """Run again in network, process and mount namespaces of its own, where that is allowed:
    ports are nobody else's, and the test's end ends all its children.  True if it is so."""
    if "NET_ISOLATED" in os.environ:
        return os.environ["NET_ISOLATED"] == "1"
    cmd = ["unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
    try:
        if not subprocess.run(cmd + ["ip", "link", "set", "lo", "up"], check=False,
                              stderr=subprocess.DEVNULL).returncode:
            os.environ["NET_ISOLATED"] = "1"
            os.execvp(cmd[0], cmd + ["sh", "-c", 'mount -t tmpfs none /run; '
                                     'ip link set lo up; exec "$0" "$@"', sys.executable] +
                      sys.argv)
    except OSError:
        pass
    os.environ["NET_ISOLATED"] = "no"
    return False


class Tap:
    def __init__(self):
        self.n = self.failed = 0

    def ok(self, good, name, why=""):
        self.n += 1
        print("%sok %d - %s" % ("" if good else "not ", self.n, name), flush=True)
        if not good:
            self.failed += 1
            for line in str(why).splitlines()[-25:]:
                print("#", line)
        return good

    def skip(self, name, why):
        self.n += 1
        print("ok %d - %s # SKIP %s" % (self.n, name, why), flush=True)

    def run(self, fn):
        """A test function: its docstring names it, an exception fails it."""
        try:
            fn()
            self.ok(True, fn.__doc__)
        except Exception as e:              # pylint: disable=broad-except
            self.ok(False, fn.__doc__, "%s: %s" % (type(e).__name__, e))

    def end(self):
        print("1..%d" % self.n)
        sys.exit(1 if self.failed else 0)


class Child:
    """A helper of this folder that takes commands on stdin; .port is where it listens."""
    asks = ("counts", "count")

    def __init__(self, program, *args):
        self.p = subprocess.Popen([sys.executable, os.path.join(HERE, program)] +
                                  [str(a) for a in args], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True)
        self.port = int(self.p.stdout.readline().split()[1])

    def do(self, line):
        self.p.stdin.write(line + "\n")
        self.p.stdin.flush()
        answer = self.p.stdout.readline().strip()
        assert answer == "ok" or line in self.asks, answer
        return answer

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.p.kill()
        self.p.wait()
        self.p.stdin.close()
        self.p.stdout.close()


class Proxy(Child):
    def __init__(self, target, *commands):
        super().__init__("proxy.py", 0, target, *commands)

    def connections(self):
        return int(self.do("count").split()[0])


class Fake(Child):
    """An NFS server."""

    def __init__(self, size, *commands):
        super().__init__("fake_nfs.py", 0, size, *commands)

    def url(self, *args, port=None):
        return "nfs://127.0.0.1/export/disk?" + "&".join(
            ["nfsport=%d" % (port or self.port), "mountport=%d" % self.port] + list(args))

    def counts(self):
        return json.loads(self.do("counts"))

    def content(self, which="save"):
        with tempfile.NamedTemporaryFile() as f:
            self.do("%s %s" % (which, f.name))
            return f.read()


class Io:
    """platter-io or qemu-io with its commands typed one at a time."""

    def __init__(self, url, *args, program=IO, fmt="raw"):
        master, slave = pty.openpty()
        self.fd = master
        self.p = subprocess.Popen([program, *(["-f", fmt] if fmt else []), *args, url], stdin=subprocess.PIPE,
                                  stdout=slave, stderr=slave)
        os.close(slave)
        self.text = ""
        self.pause = 0.3 if "qemu" in program else 0    # it wants lines one by one
        self.do("length")

    def read_until(self, pattern, timeout):
        end = time.monotonic() + timeout
        got = ""
        while not re.search(pattern, got):
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.fd], [], [], left)[0]:
                raise AssertionError("no answer in %g s: %r" % (timeout, got))
            try:
                part = os.read(self.fd, 65536).decode(errors="replace")
            except OSError:
                part = ""
            if not part:
                raise AssertionError("it has ended: %r" % got)
            got += part
            self.text += part
        return got

    def do(self, command, timeout=20):
        """The output of one command."""
        for line in (command, "read -P 0 0 0"):
            self.p.stdin.write((line + "\n").encode())
            self.p.stdin.flush()
            time.sleep(self.pause)
        return self.read_until(r"read 0/0 bytes[^\n]*\n[^\n]*sec", timeout).split("read 0/0")[0]

    def good(self, command, timeout=20):
        out = self.do(command, timeout)
        said = [line for line in out.splitlines() if not line.startswith("platter-io: ")]
        assert not re.search("fail|error", "\n".join(said), re.I), out
        return out

    def bad(self, command, words, timeout=20):
        out = self.do(command, timeout)
        assert re.search(words, out), out
        return out

    def end(self, timeout=30):
        self.p.stdin.close()
        got = ""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    part = os.read(self.fd, 65536).decode(errors="replace")
                except OSError:
                    break
                got += part
            elif self.p.poll() is not None:
                break
        self.text += got
        return self.p.wait(timeout), got

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.p.poll() is None:
            self.p.kill()
        self.p.wait()
        os.close(self.fd)
