#!/usr/bin/env python3
"""scripts.t - whole scripts, as people have them, run twice: once with qemu-img and qemu-io,
once with ours in their place under the same names.  What they print has to be the same, line
for line, but for what no two runs share (times, space on disk, node numbers).

A script is tests/img/scripts/NAME.  Its lines are printed as they are read (bash -v), so a
difference is shown under the command that made it.  A comment "# offsets" in it says that
where clusters come to lie in the file is not compared: the allocators differ; "# details"
that what our messages add to QEMU's (docs/compatibility.md, `more-detail`) is left out.
A script that cannot have what it needs says so in its last line and exits with 77.
"""
import difflib
import os
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tap import BUILD, ORACLE, ROOT, finish, ok, skip           # noqa: E402

HERE = os.path.join(ROOT, "tests", "img", "scripts")

ALWAYS = [
    (r"[0-9]+ ops; .*", "N ops; T"),
    (r"disk size: .*", "disk size: X"),
    (r'"actual-size": [0-9]+', '"actual-size": N'),
    (r"#block[0-9]+", "#blockN"),
    (r"line [0-9]+: *[0-9]+ (Killed|Aborted)", r"line N: \1"),
    (r"(^|')/\S*/(qemu-(?:img|io))", r"\1\2"),
]
OFFSETS = [
    (r', "offset": [0-9]+', ""),
    (r"^(0x\w+ +0x\w+ +)0x\w+", r"\1N"),
    (r"Image end offset: .*", "Image end offset: N"),
    (r"file length: .*", "file length: X"),
    (r'"virtual-size": [0-9]+', '"virtual-size": N'),
    (r"[0-9.]+% fragmented", "N% fragmented"),
]
DETAILS = [(r"(invalid|too large)( \(.*\)|: [0-9]+ entries)$", r"\1")]


def join_extents(text):
    """Extents of a map that only their places kept apart become one."""
    text = re.sub(r'^\[?({ "start": )[0-9]+, "length": [0-9]+(.*?)[],]*$', r"\1N\2", text,
                  flags=re.M)
    lines = text.split("\n")
    return "\n".join(l for i, l in enumerate(lines) if not i or l != lines[i - 1])


def run(script, tools, filters):
    with tempfile.TemporaryDirectory() as tmp:
        binaries, work = os.path.join(tmp, "bin"), os.path.join(tmp, "work")
        os.mkdir(binaries)
        os.mkdir(work)
        for name, path in tools.items():
            # Not a link: the peer is a script that wants its own name.
            with open(os.path.join(binaries, name), "w", encoding="ascii") as f:
                f.write(f'#!/bin/bash\nexec -a {name} {path} "$@"\n')
            os.chmod(os.path.join(binaries, name), 0o755)
        env = dict(os.environ, PATH=binaries + ":" + os.environ["PATH"], LC_ALL="C", TZ="UTC")
        p = subprocess.run(["bash", "-v", script], cwd=work, env=env, timeout=300,
                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT)
    text = p.stdout.decode(errors="replace")
    for pattern, instead in filters:
        text = re.sub(pattern, instead, text, flags=re.M)
    if OFFSETS[0] in filters:
        text = join_extents(text)
    return p.returncode == 77, text.splitlines()


def main():
    ours = {n: os.path.join(BUILD, p) for n, p in (("qemu-img", "platter-img"), ("qemu-io", "platter-io"))}
    peer = {n: os.path.join(ORACLE, n) for n in ours}
    names = sys.argv[1:] or sorted(os.listdir(HERE))
    for name in names:
        script = os.path.join(HERE, name)
        with open(script, encoding="utf-8") as f:
            text = f.read()
        filters = ALWAYS + [f for word, more in (("offsets", OFFSETS), ("details", DETAILS))
                            if re.search(f"^# {word}$", text, re.M) for f in more]
        (skipped, want), (skipped_too, got) = (run(script, t, filters) for t in (peer, ours))
        if skipped or skipped_too:
            skip(name, (want if skipped else got)[-1])
            continue
        diff = list(difflib.unified_diff(want, got, "qemu-img", "platter-img", lineterm=""))
        ok(not diff, f"{name}: the same lines", *diff[:60])
    finish()


if __name__ == "__main__":
    main()
