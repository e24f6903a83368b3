#!/usr/bin/env python3
"""README.md promises only what runs: each "$ command" in its ```console blocks
is run, in order, in a directory of its own, and must print what stands below it.
"..." stands for anything in a line, and on a line of its own for any lines.

readme.t --fill prints README.md with the output as it is now."""
import os
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tap import BUILD, ROOT, finish, ok                         # noqa: E402


def parts(text):
    """README.md as a list of ("text", lines) and ("command", line, output lines)."""
    inside = False
    for line in text.splitlines():
        if line.startswith("```"):
            inside = line == "```console"
            yield ["text", line]
        elif inside and line.startswith("$ "):
            yield ["command", line[2:], []]
        elif inside:
            yield ["output", line]
        else:
            yield ["text", line]


def gather(text):
    out = []
    for p in parts(text):
        if p[0] == "output":
            assert out and out[-1][0] == "command", "output without a command: " + p[1]
            out[-1][2].append(p[1])
        else:
            out.append(p)
    return out


def matches(want, got):
    pattern = ""
    for line in want:
        if line == "...":
            pattern += r"(?:[^\n]*\n)*?"
        else:
            pattern += ".*?".join(re.escape(p) for p in line.split("...")) + r"\n"
    return re.fullmatch(pattern, got) is not None


def execute(command, where):
    env = dict(os.environ, PATH=BUILD + ":" + os.environ["PATH"], COLUMNS="80")
    p = subprocess.run(["bash", "-c", command], cwd=where, env=env, stdin=subprocess.DEVNULL,
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    return p.stdout.decode(errors="replace")


with open(os.path.join(ROOT, "README.md")) as f:
    items = gather(f.read())
fill = sys.argv[1:] == ["--fill"]
with tempfile.TemporaryDirectory() as where:
    for item in items:
        if item[0] == "text":
            if fill:
                print(item[1])
            continue
        got = execute(item[1], where)
        if fill:
            print("$ " + item[1])
            keep = matches(item[2], got)
            print("\n".join(item[2]) + "\n" * bool(item[2]) if keep else got, end="")
            continue
        ok(matches(item[2], got), item[1].replace("#", "\\#"), "README.md says:", *item[2],
           "but it prints:", *got.splitlines()[:30])
if not fill:
    finish()
