#!/usr/bin/env python3
"""bench.py - the speed bars: platter-img against qemu-img 10, run by turns.

Usage: tools/bench.py [-r ROUNDS] [-k PATTERN] [-d DIR] [-n] [-l]
  -r ROUNDS   rounds a row (default 9); each round runs both, ours first in odd
              rounds, the peer first in even ones
  -k PATTERN  only rows whose name matches this regular expression
  -d DIR      where images go (default: a new directory under /dev/shm)
  -n          do not rewrite the table in docs/performance.md
  -l          list the rows and leave
Environment: B, the build directory (default build).

A row's time is the wall time of the whole command, but for the read rows: there
it is the time that the command itself prints ("Run completed in ..."), which
leaves out opening the image.  Each converted image is compared with its source
by the peer in the first round: a wrong result has no speed.

Rows of network storage run with the servers of tests/net/places.sh, all of it in a
network name space of its own; where that is not allowed they are left out.
"""
import argparse
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DOC = os.path.join(TOP, "docs", "performance.md")
BEGIN = "<!-- bench: begin (written by tools/bench.py) -->"
END = "<!-- bench: end -->"
MIB = 1 << 20
GIB = 1 << 30


class Tool:
    def __init__(self, name, path, env=None):
        self.name, self.path, self.env = name, path, env

    def run(self, *args, cwd=None):
        return subprocess.run([self.path, *map(str, args)], cwd=cwd, env=self.env,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def must(self, *args, cwd=None):
        p = self.run(*args, cwd=cwd)
        if p.returncode != 0:
            sys.exit(f"bench: {self.name} {' '.join(map(str, args))}: exit status "
                     f"{p.returncode}\n{p.stdout}{p.stderr}")
        return p


def find_peer():
    """The unpacked program itself: its wrapper script would cost it a shell."""
    root = os.path.join(TOP, "build", "oracle", "root", "usr")
    path = os.path.join(root, "bin", "qemu-img")
    if not os.path.exists(path):
        subprocess.run([os.path.join(TOP, "tests", "oracle.sh")], check=True)
    lib = os.path.join(root, "lib", "x86_64-linux-gnu")
    env = dict(os.environ, QEMU_MODULE_DIR=os.path.join(lib, "qemu"))
    if subprocess.run([path, "--version"], stdout=subprocess.DEVNULL,
                      stderr=subprocess.DEVNULL).returncode != 0:
        env["LD_LIBRARY_PATH"] = lib
    return Tool("qemu-img", path, env), Tool("qemu-io", os.path.join(root, "bin", "qemu-io"), env)


class Images:
    """Test images, made on first use by the peer, each by its name."""

    def __init__(self, directory, peer, peer_io):
        self.dir, self.peer, self.io = directory, peer, peer_io
        self.made = {}

    def path(self, name):
        if name not in self.made:
            self.made[name] = os.path.join(self.dir, name)
            getattr(self, "make_" + name.replace(".", "_").replace("-", "_"))(self.made[name])
        return self.made[name]

    def make_quarter_raw(self, path):
        self.make_random_raw(path, GIB // 4)

    def make_random_raw(self, path, size=GIB):
        with open(path, "wb") as f:
            for _ in range(size // MIB):
                f.write(os.urandom(MIB))

    def make_half_raw(self, path):
        """Every other MiB is a hole, every fourth quarter of the data written zeros."""
        with open(path, "wb") as f:
            f.truncate(GIB)
            for i in range(0, GIB // MIB, 2):
                f.seek(i * MIB)
                f.write(bytes(MIB) if i % 8 == 6 else os.urandom(MIB))

    def make_sparse_raw(self, path):
        self.peer.must("create", "-q", "-f", "raw", path, "64G")

    def make_sparse_qcow2(self, path):
        self.peer.must("create", "-q", "-f", "qcow2", path, "64G")

    def make_meta_qcow2(self, path):
        self.peer.must("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, "1T")

    def make_meta4k_qcow2(self, path):
        self.peer.must("create", "-q", "-f", "qcow2", "-o",
                       "preallocation=metadata,cluster_size=4k", path, "64G")

    def to_qcow2(self, source, path, *options):
        self.peer.must("convert", "-f", "raw", "-O", "qcow2", *options, self.path(source), path)

    def make_random_qcow2(self, path):
        self.to_qcow2("random.raw", path)

    def make_half_qcow2(self, path):
        self.to_qcow2("half.raw", path)

    def make_text_raw(self, path):
        """What compresses to about a third: words."""
        rng = random.Random(1)
        words = [rng.randbytes(3 + i % 6).hex() for i in range(4000)]
        with open(path, "wb") as f:
            while f.tell() < 128 * MIB:
                f.write(" ".join(rng.choices(words, k=20000)).encode())
            f.truncate(128 * MIB)

    def make_zlib_qcow2(self, path):
        self.to_qcow2("text.raw", path, "-c")

    def make_tree_raw(self, path):
        """A file system of what distributions install; about a third is text."""
        tree = "/usr/share"
        used = int(subprocess.run(["du", "-sxk", tree], check=True, stdout=subprocess.PIPE,
                                  text=True).stdout.split()[0])
        subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, path,
                        f"{used * 5 // 4 + 65536}k"], check=True)

    def make_treezlib_qcow2(self, path):
        self.to_qcow2("tree.raw", path, "-c")

    def make_treezstd_qcow2(self, path):
        self.to_qcow2("tree.raw", path, "-c", "-o", "compression_type=zstd")

    def make_small_qcow2(self, path):
        self.peer.must("create", "-q", "-f", "qcow2", path, "1G")

    def make_chain10_qcow2(self, path):
        self.make_chain(path, 10)

    def make_chain100_qcow2(self, path):
        self.make_chain(path, 100)

    def make_chain(self, path, depth, size=256 * MIB, cluster=65536):
        """Each cluster belongs to one layer, by chance."""
        rng = random.Random(depth)
        owner = [rng.randrange(depth) for _ in range(size // cluster)]
        below = None
        for layer in range(depth):
            name = path if layer == depth - 1 else f"{path}.{layer}"
            back = ["-b", below, "-F", "qcow2"] if below else []
            self.peer.must("create", "-q", "-f", "qcow2", *back, name, size)
            cmds = []
            for i, o in enumerate(owner):
                if o == layer:
                    cmds += ["-c", f"write -q -P {1 + i % 255} {i * cluster} {cluster}"]
            if cmds:
                self.io.must("-f", "qcow2", *cmds, name)
            below = name


class Row:
    """One measured command.  args(images, out) gives its arguments; out is a file
    that does not exist before each run.  ours: arguments that only platter-img has."""

    def __init__(self, name, bar, args, printed=False, check=None, place=None, ours=()):
        self.name, self.bar, self.args, self.printed, self.check = name, bar, args, printed, check
        self.place, self.ours = place, list(ours)

    def once(self, tool, images, out):
        args = self.args(images, out)
        if tool is not images.peer:
            args[1:1] = self.ours
        if os.path.exists(out):
            os.unlink(out)
        start = time.perf_counter()
        p = tool.must(*args)
        taken = time.perf_counter() - start
        if self.printed:
            taken = float(re.search(r"Run completed in ([0-9.]+) seconds", p.stdout).group(1))
        return taken


def convert_row(label, source, target_format, bar):
    fmt = source.rsplit(".", 1)[1]

    def args(images, out):
        return ["convert", "-f", fmt, "-O", target_format, images.path(source), out]

    def check(images, out):
        images.peer.must("compare", "-q", "-f", fmt, "-F", target_format,
                         images.path(source), out)
        if target_format == "qcow2":
            images.peer.must("check", "-q", "-f", "qcow2", out)
    return Row(label, bar, args, check=check)


def compress_row(kind, level=None):
    """level: the one the peer uses, which has no option for it; None: our own default."""
    def args(images, out):
        return ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", f"compression_type={kind}",
                images.path("tree.raw"), out]

    def check(images, out):
        images.peer.must("compare", "-q", "-f", "raw", "-F", "qcow2", images.path("tree.raw"), out)
        images.peer.must("check", "-q", "-f", "qcow2", out)
        ours, peers = (os.path.getsize(p) for p in (out, images.path(f"tree{kind}.qcow2")))
        if ours > peers:
            sys.exit(f"bench: {kind}: {ours} bytes, the peer needs {peers}")
    at = f" level {level}" if level else ""
    return Row(f"convert -c raw to qcow2, {kind}{at}, file system", 2.0, args, check=check,
               ours=["-o", f"compression_level={level}"] if level else ())


def read_row(label, source, count, bar, depth=64):
    fmt = source.rsplit(".", 1)[1]

    def args(images, out):
        return ["bench", "-f", fmt, "-c", count, "-d", depth, "-s", 4096, images.path(source)]
    return Row(label, bar, args, printed=True)


class Place:
    """Network storage, as tests/net/places.sh describes it in the environment."""

    def __init__(self, name):
        self.name = name
        self.made = set()

    def get(self, key):
        return os.environ[f"PLACE_{self.name}_{key}"]

    def url(self, file):
        """QEMU takes none of the arguments that say which ports; the portmapper knows them."""
        return (self.get("URL") % (file if not self.get("FIXED") else 1)).split("?")[0]

    def local(self, file):
        return os.path.join(self.get("DIR"), file if not self.get("FIXED") else "1")

    def filled(self, images, source):
        """The URL of an image there that is the same as a local one."""
        if source not in self.made:
            self.made.add(source)
            images.peer.must("convert", *self.onto(), "-f", "raw", "-O", "raw",
                             images.path(source), self.url(source))
        return self.url(source)

    def onto(self):
        return ["-n"] if self.get("FIXED") else []


def to_place_row(label, place, source, bar):
    def args(images, out):
        place.made.clear()              # a LUN is overwritten
        return ["convert", *place.onto(), "-f", "raw", "-O", "raw", images.path(source),
                place.url("out.raw")]

    def check(images, out):
        images.peer.must("compare", "-q", "-f", "raw", "-F", "raw", images.path(source),
                         place.local("out.raw"))
    return Row(label, bar, args, check=check, place=place)


def from_place_row(label, place, source, bar):
    def args(images, out):
        return ["convert", "-f", "raw", "-O", "raw", place.filled(images, source), out]

    def check(images, out):
        images.peer.must("compare", "-q", "-f", "raw", "-F", "raw", images.path(source), out)
    return Row(label, bar, args, check=check, place=place)


def place_rows():
    r = []
    for name, said in (("nfs3", "NFS"), ("iscsi", "iSCSI"), ("gluster", "Gluster")):
        p = Place(name)
        r.append(to_place_row(f"convert to {said}, 1 GiB", p, "random.raw", 1.11))
        r.append(from_place_row(f"convert from {said}, 1 GiB", p, "random.raw", 1.11))
        r.append(Row(f"read 4 KiB, depth 64, {said}", 1.0, lambda i, o, p=p: [
            "bench", "-f", "raw", "-c", 50000, "-d", 64, "-s", 4096, p.filled(i, "random.raw")],
            printed=True, place=p))
    r.append(to_place_row("convert to Gluster, 256 MiB", p, "quarter.raw", 10.0))
    r.append(Row("info, Gluster", 100.0, lambda i, o: [
        "info", "-f", "raw", p.filled(i, "quarter.raw")], place=p))
    return r


def rows():
    r = []
    for content, label in (("random", "1 GiB random"), ("half", "1 GiB half-sparse"),
                           ("sparse", "64 GiB all-sparse")):
        r.append(convert_row(f"convert raw to qcow2, {label}", content + ".raw", "qcow2", 1.0))
        r.append(convert_row(f"convert qcow2 to raw, {label}", content + ".qcow2", "raw", 1.0))
        r.append(convert_row(f"convert qcow2 to qcow2, {label}", content + ".qcow2", "qcow2", 1.0))
    r.append(Row("compare raw with qcow2, 1 GiB random", 1.0, lambda i, o: [
        "compare", "-f", "raw", "-F", "qcow2", i.path("random.raw"), i.path("random.qcow2")]))
    r.append(Row("check qcow2, 1 GiB random", 1.0, lambda i, o: [
        "check", "-f", "qcow2", i.path("random.qcow2")]))
    r.append(Row("check qcow2, 1 TiB of metadata", 3.0, lambda i, o: [
        "check", "-f", "qcow2", i.path("meta.qcow2")]))
    r.append(Row("check qcow2, 64 GiB of metadata, 4 KiB clusters", 4.0, lambda i, o: [
        "check", "-f", "qcow2", i.path("meta4k.qcow2")]))
    r.append(convert_row("convert 100-deep chain to raw, 256 MiB", "chain100.qcow2", "raw", 2.0))
    r.append(convert_row("convert 100-deep chain to qcow2, 256 MiB", "chain100.qcow2", "qcow2",
                         2.0))
    for kind in ("zlib", "zstd"):
        r.append(compress_row(kind))
        r.append(compress_row(kind, {"zlib": 6, "zstd": 3}[kind]))
        r.append(convert_row(f"convert qcow2 to raw, {kind}-compressed file system",
                             f"tree{kind}.qcow2", "raw", 2.0))
    r.append(read_row("read 4 KiB, depth 64, raw", "random.raw", 250000, 2.0))
    r.append(read_row("read 4 KiB, depth 64, qcow2", "random.qcow2", 250000, 2.0))
    r.append(read_row("read 4 KiB, depth 64, 10-deep chain", "chain10.qcow2", 65536, 3.0))
    r.append(read_row("read 4 KiB, depth 64, 100-deep chain", "chain100.qcow2", 32768, 30.0))
    r.append(read_row("read 4 KiB in order, depth 1, zlib-compressed", "zlib.qcow2", 16384, 10.0,
                      depth=1))
    r += place_rows()
    r.append(Row("info, small qcow2", 2.0, lambda i, o: ["info", i.path("small.qcow2")]))
    r.append(Row("create, small qcow2", 2.0, lambda i, o: ["create", "-q", "-f", "qcow2", o, "1G"]))
    return r


def with_servers(chosen):
    """Run again where the servers are, if a chosen row wants them."""
    wanted = dict.fromkeys(r.place.name for r in chosen if r.place)
    if not wanted or "PLATTER_PLACES" in os.environ:
        return chosen
    if subprocess.run(["unshare", "--net", "--pid", "--mount", "--fork", "true"],
                      stderr=subprocess.DEVNULL).returncode:
        print("bench: no right to make name spaces: without the rows of network storage")
        return [r for r in chosen if not r.place]
    os.environ.update(PLACES_FIXED=str(GIB), PLACES_LUNS="1")
    script = os.path.join(TOP, "tests", "net", "with-places.sh")
    os.execv(script, [script, *wanted, "--", os.path.abspath(__file__), *sys.argv[1:]])


def measure(row, ours, peer, images, rounds):
    times = {ours.name: [], peer.name: []}
    out = os.path.join(images.dir, "out")
    row.args(images, out)                   # make what it needs first
    for n in range(rounds):
        for tool in (ours, peer) if n % 2 == 0 else (peer, ours):
            times[tool.name].append(row.once(tool, images, out))
            if n == 0 and tool is ours and row.check:
                row.check(images, out)
            if os.path.exists(out):
                os.unlink(out)
    return statistics.median(times[ours.name]), statistics.median(times[peer.name])


def seconds(t):
    return f"{t:.3f} s" if t >= 0.1 else f"{t * 1000:.2f} ms"


def cpu_name():
    with open("/proc/cpuinfo") as f:
        for line in f:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return "unknown processor"


def table(results, rounds, peer):
    version = peer.must("--version").stdout.split()[2]
    lines = [BEGIN, "",
             f"Medians of {rounds} rounds, both programs by turns, images on tmpfs; "
             f"qemu-img {version}; {os.cpu_count()} CPUs, {cpu_name()}, Linux {os.uname().release}; "
             f"{time.strftime('%Y-%m-%d')}.", "",
             "| what | platter-img | qemu-img | times as fast | bar | |",
             "|---|---:|---:|---:|---:|---|"]
    for row, ours, theirs in results:
        ratio = theirs / ours if ours else float("inf")
        lines.append(f"| {row.name} | {seconds(ours)} | {seconds(theirs)} | {ratio:.2f} | "
                     f"{row.bar:g} | {'ok' if ratio >= row.bar else 'MISS'} |")
    return lines + ["", END]


def rewrite(lines):
    with open(DOC) as f:
        text = f.read()
    if BEGIN not in text or END not in text:
        sys.exit(f"bench: {DOC} has lost its markers")
    head, rest = text.split(BEGIN, 1)
    tail = rest.split(END, 1)[1]
    with open(DOC, "w") as f:
        f.write(head + "\n".join(lines) + tail)


def touch_memory(directory):
    """A virtual machine may get its memory only as it is used: the first rows must not pay for
    that."""
    path = os.path.join(directory, "memory")
    with open(path, "wb") as f:
        for _ in range(6 * GIB // MIB):
            f.write(bytes(MIB))
    os.unlink(path)


def main():
    ap = argparse.ArgumentParser(add_help=True)
    ap.add_argument("-r", type=int, default=9)
    ap.add_argument("-k", default="")
    ap.add_argument("-d")
    ap.add_argument("-n", action="store_true")
    ap.add_argument("-l", action="store_true")
    a = ap.parse_args()
    chosen = [r for r in rows() if re.search(a.k, r.name)]
    if a.l:
        print("\n".join(f"{r.bar:5g}  {r.name}" for r in chosen))
        return 0
    chosen = with_servers(chosen)
    build = os.path.join(TOP, os.environ.get("B", "build"))
    ours = Tool("platter-img", os.path.join(build, "platter-img"))
    peer, peer_io = find_peer()
    directory = a.d or tempfile.mkdtemp(prefix="platter-bench-", dir="/dev/shm")
    os.makedirs(directory, exist_ok=True)
    results, misses = [], 0
    try:
        if not a.d:
            touch_memory(directory)
        images = Images(directory, peer, peer_io)
        for row in chosen:
            t_ours, t_peer = measure(row, ours, peer, images, a.r)
            ratio = t_peer / t_ours if t_ours else float("inf")
            ok = ratio >= row.bar
            misses += not ok
            results.append((row, t_ours, t_peer))
            print(f"{row.name:50} {seconds(t_ours):>10} {seconds(t_peer):>10} {ratio:8.2f} "
                  f">= {row.bar:g} {'ok' if ok else 'MISS'}", flush=True)
    finally:
        if not a.d:
            shutil.rmtree(directory, ignore_errors=True)
    if not a.n and not a.k:
        rewrite(table(results, a.r, peer))
    print(f"bench: {len(results) - misses} of {len(results)} bars met")
    return 0


if __name__ == "__main__":
    sys.exit(main())
