"""faultlib.py - what the tests with misbehaving servers share: platter-io and qemu-io
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
sys.path.insert(0, os.path.dirname(HERE))
from tap import IO                                              # noqa: E402


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

    def wait_for(self, op, count, timeout):
        """Until so many calls of it were executed; False: they were not."""
        end = time.monotonic() + timeout
        while self.counts().get(op, 0) < count:
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

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


class Server(Child):
    """url(ARG..., port=PORT) is its disk's, where a proxy listens or it itself."""
    writes = True
    tries = 8                   # outages.n12_count: connections, at the most

    def counts(self):
        return json.loads(self.do("counts"))

    def content(self, which="save"):
        with tempfile.NamedTemporaryFile() as f:
            self.do("%s %s" % (which, f.name))
            return f.read()

    def disk(self, *args, port=None, flags=()):
        return Io(self.url(*args, port=port), *flags)


class Fake(Server):
    """An NFS server."""

    def __init__(self, size, *commands):
        super().__init__("fake_nfs.py", 0, size, *commands)

    def url(self, *args, port=None):
        return "nfs://127.0.0.1/export/disk?" + "&".join(
            ["nfsport=%d" % (port or self.port), "mountport=%d" % self.port] + list(args))


class Nbd(Server):
    def __init__(self, size, *commands):
        super().__init__("fake_nbd.py", 0, size, *commands)

    def url(self, *args, port=None):
        return "nbd://127.0.0.1:%d/x" % (port or self.port) + ("?" + "&".join(args) if args else "")


class Web(Server):
    writes = False
    tries = 12

    def __init__(self, file, *commands):
        super().__init__("bad_web.py", 0, file, *commands)

    def url(self, port=None, user=""):
        return "http://%s127.0.0.1:%d/disk.raw" % (user and user + "@", port or self.port)

    def options(self, *args, port=None):
        """For --image-opts: its URLs have no arguments of ours."""
        return ",".join(("driver=raw,file.driver=http,file.url=" + self.url(port),) +
                        tuple("file." + a for a in args))

    def disk(self, *args, port=None, flags=()):
        return Io(self.options(*args, port=port), "--image-opts", "-r", *flags, fmt=None)


def proxied(server, fn, *args):
    """A test: fn(s, p, io) with a new server (fn.commands for it), a proxy before it, and a
    disk through them: URL arguments args and fn.args, platter-io's fn.flags."""
    def test():
        with server(*getattr(fn, "commands", ())) as s, Proxy(s.port) as p:
            with s.disk(*args, *getattr(fn, "args", ()), port=p.port,
                        flags=getattr(fn, "flags", ())) as io:
                fn(s, p, io)
                assert "verification failed" not in io.text, io.text
    test.__doc__, test.__name__ = fn.__doc__, fn.__name__
    return test


class Io:
    """platter-io or qemu-io with its commands typed one at a time."""

    def __init__(self, url, *args, program=IO, fmt="raw"):
        master, slave = pty.openpty()
        self.fd = master
        # Not writethrough, the default: what a flush does is to be seen.
        cache = ["-t", "writeback"] if program == IO else []
        self.p = subprocess.Popen([program, *(["-f", fmt] if fmt else []), *cache, *args, url],
                                  stdin=subprocess.PIPE, stdout=slave, stderr=slave)
        os.close(slave)
        self.text = ""
        self.said = ""
        # qemu-io forgets a line that comes with the one before it: wait for its prompt.
        self.prompt = "qemu-io> " if "qemu" in program else ""
        self.read_until(self.prompt, 20)
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

    def start(self, *commands):
        """Type them, and what finish() waits for."""
        self.said = ""
        for i, line in enumerate(commands + ("read -P 0 0 0",)):
            if i:
                self.said += self.read_until(self.prompt, 20)
            self.p.stdin.write((line + "\n").encode())
            self.p.stdin.flush()

    def finish(self, timeout=20):
        """The output of what was started."""
        end = r"read 0/0 bytes[^\n]*\n[^\n]*sec[\s\S]*" + self.prompt
        return (self.said + self.read_until(end, timeout)).split("read 0/0")[0]

    def do(self, command, timeout=20):
        """The output of one command."""
        self.start(command)
        return self.finish(timeout)

    def good(self, command, timeout=20):
        out = self.do(command, timeout)
        said = [line for line in out.replace("platter-io> ", "").splitlines()
                if not line.startswith("platter-io: ")]
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
