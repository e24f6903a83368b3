"""alike.py - what random.t and arguments.t share: a command line through a program, and what
differs between two directories after it: which files there are, and of each image what
`qemu-img map`, `check`, `info` and `compare` say of it."""
import difflib
import hashlib
import json
import os
import re
import stat
import subprocess

from tap import IMG, IO, QEMU_IMG, QEMU_IO

PROGRAMS = {"ours": {"qemu-img": IMG, "qemu-io": IO},
            "theirs": {"qemu-img": QEMU_IMG, "qemu-io": QEMU_IO}}
MASKS = [(r"[0-9]+ ops; .*", "N ops; T"), (r"disk size: .*", "disk size: X"),
         (r'"actual-size": [0-9]+', '"actual-size": N'), (r"#block[0-9]+", "#blockN"),
         (r'"date-(n?sec)": [0-9]+', r'"date-\1": N'), (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "DATE"),
         (r"(?:/[^\s']*/)?(?:qemu|platter)-(img|io)\b", r"PROGRAM-\1"),
         (r"cid: [0-9]+", "cid: N"), (r'("(?:parent-)?cid"): [0-9]+', r"\1: N")]
PLACES = [(r'"offset": [0-9]+', '"offset": N'), (r"Image end offset: .*", "Image end offset: N"),
          (r'"image-end-offset": [0-9]+', '"image-end-offset": N'),
          (r"file length: .*", "file length: X"), (r"[0-9.]+% fragmented", "N% fragmented"),
          (r"(Leaked cluster) [0-9]+ ", r"\1 N "), (r',\n *"fragmented-clusters": [0-9]+', ""),
          (r'"virtual-size": [0-9]+(?=,\s*"filename": "[^"]*",\s*"format": "file")',
           '"virtual-size": N'),
          (r"^(0x\w+ +0x\w+ +)0x\w+", r"\1N")]


digests = {}                            # by path


def masked(text, masks):
    for pattern, instead in masks:
        text = re.sub(pattern, instead, text, flags=re.M)
    return text


def compared(ours, theirs):
    return "\n".join(list(difflib.unified_diff(theirs.splitlines(), ours.splitlines(), "theirs", "ours", lineterm="", n=2))[:40])


def execute(where, who, words):
    env = dict(os.environ, LC_ALL="C", TZ="UTC")
    p = subprocess.run([PROGRAMS[who][words[0]], *words[1:]], cwd=where, env=env, timeout=120,
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return "%s\nexit status %d" % (p.stdout.decode(errors="replace"), p.returncode)


def digest(path):
    """Of length and data, without reading holes."""
    size, at, h = os.stat(path).st_size, 0, hashlib.sha256()
    h.update(b"%d" % size)
    with open(path, "rb", buffering=0) as f:
        while at < size:
            try:
                at = os.lseek(f.fileno(), at, os.SEEK_DATA) // 65536 * 65536
            except OSError:
                break
            block = os.pread(f.fileno(), 65536, at)
            if block.strip(b"\0"):
                h.update(b"%d" % at + block.rstrip(b"\0"))
            at += 65536
    return h.hexdigest()


def merged(text):
    """A map of which the places are not compared: neighbours that only they kept apart are one."""
    try:
        extents = json.loads(text.rsplit("\nexit", 1)[0])
    except ValueError:
        return text
    out = []
    for e in extents:
        e.pop("offset", None)
        kind = {k: v for k, v in e.items() if k not in ("start", "length")}
        if out and out[-1][0] == kind:
            out[-1][1] = e["start"] + e["length"]
        else:
            out.append([kind, e["start"] + e["length"]])
    return "\n".join(map(str, out))


def looked_at(where, name, story):
    """What QEMU says of an image."""
    places = story.places
    if name == "data":
        return ""
    if name in story.loose:
        return execute(where, "theirs", ["qemu-img", "check", "-q", name]).splitlines()[-1]
    head = open(os.path.join(where, name), "rb").read(4)
    fmt = ["-f", "raw"] if name == "base" and head != b"QFI\xfb" else []
    found = execute(where, "theirs", ["qemu-img", "map", "--output=json", *fmt, name])
    if not places:
        found = merged(found)
    masks = MASKS + ([] if places else PLACES)
    for what in ("check", "info"):
        found += masked(execute(where, "theirs", ["qemu-img", what, "--output=json", name]), masks)
    return found


def is_fixed_vhd(path):
    with open(path, "rb") as f:
        f.seek(max(os.path.getsize(path) - 512, 0))
        last = f.read(8)
        f.seek(0)
        return last == b"conectix" != f.read(8)


def is_image(path):
    """Whether it may differ in what no tool can foretell: dates, unique numbers."""
    with open(path, "rb") as f:
        f.seek(max(os.path.getsize(path) - 512, 0))
        if f.read(8) == b"conectix":
            return True
        f.seek(0)
        return f.read(4) in (b"QFI\xfb", b"KDMV", b"vhdx", b"<<< ", b"cone", b"With", b"LUKS", b"# Di")


def files(where):
    """Every file's digest, kept while the file is as it was; of a directory and the like its kind."""
    out = {}
    for name in os.listdir(where):
        path = os.path.join(where, name)
        s = os.lstat(path)
        if not stat.S_ISREG(s.st_mode):
            out[name] = stat.S_IFMT(s.st_mode)
            continue
        as_it_is = s.st_ino, s.st_size, s.st_mtime_ns
        if digests.get(path, (None,))[0] != as_it_is:
            digests[path] = as_it_is, digest(path)
        out[name] = digests[path][1]
    return out


def difference(dirs, story, seen):
    ours, theirs = (files(dirs[w]) for w in ("ours", "theirs"))
    if set(ours) != set(theirs):
        return "files\n ours   %s\n theirs %s" % (sorted(ours), sorted(theirs))
    for name in sorted(ours):
        if ours[name] == theirs[name] or seen.get(name) == (ours[name], theirs[name]):
            continue
        seen[name] = ours[name], theirs[name]
        a, b = (os.path.join(dirs[w], name) for w in ("ours", "theirs"))
        if not is_image(a) and not is_image(b) and name != "data":
            return "%s: other bytes" % name
        one, two = (looked_at(dirs[w], name, story) for w in ("ours", "theirs"))
        if one != two:
            return name + "\n" + compared(one, two)
        if name == "data":
            continue
        # A fixed vhd is recognised by nobody: its footer, with the date, would be content.
        formats = ["-f", "vpc", "-F", "vpc"] if is_fixed_vhd(a) and is_fixed_vhd(b) else []
        same = execute(dirs["ours"], "theirs", ["qemu-img", "compare", *formats, name, b])
        if not same.endswith("exit status 0") and "Could not open" not in same and "Error while reading" not in same:
            return "%s: content: %s" % (name, same)
    return None


def excused(words, said, story):
    """Only the places differ, which are not compared."""
    return words[1] == "map" and not story.places and (
        "--output=json" not in words or merged(said["ours"]) == merged(said["theirs"]))
