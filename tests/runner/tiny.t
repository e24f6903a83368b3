#!/usr/bin/env python3
"""tiny.t - platter-run from the command line to its exit code, with guests of a
few bytes: a bzImage whose 64-bit entry point prints, powers off, resets, crashes.

They run wherever /dev/kvm opens, even where it interprets every instruction, and
in the outer VM where it does not.
"""
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time

if not os.access("/dev/kvm", os.R_OK | os.W_OK):
    outer = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tools/outer-vm.sh")
    print("# /dev/kvm does not open here: in the outer VM", flush=True)
    os.execv(outer, [outer, "-t", "600", sys.executable, os.path.abspath(__file__)])

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tap import BUILD, finish, ok, own_place                    # noqa: E402

RUN = os.path.join(BUILD, "platter-run")
tmp = own_place("tiny")


def bzimage(code, name="kernel"):
    """A file that passes as a kernel; code starts at its 64-bit entry point."""
    payload = b"\x90" * 0x200 + code
    payload += bytes(-len(payload) % 16)
    head = bytearray(1024)
    head[0x1f1] = 1
    struct.pack_into("<I", head, 0x1f4, len(payload) // 16)
    struct.pack_into("<H", head, 0x1fe, 0xaa55)
    head[0x201] = 0x6a
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<HI", head, 0x206, 0x20f, 0)
    head[0x211] = 1                                     # loaded high
    struct.pack_into("<I", head, 0x22c, 0x7fffffff)     # initrd_addr_max
    struct.pack_into("<H", head, 0x236, 1)              # has a 64-bit entry
    struct.pack_into("<I", head, 0x238, 2047)           # cmdline_size
    struct.pack_into("<QI", head, 0x258, 0x200000, 0x10000)
    path = os.path.join(tmp, name)
    with open(path, "wb") as f:
        f.write(head + payload)
    return path


def outb(port, value):
    """mov dx, port; mov al, value; out dx, al"""
    return b"\x66\xba" + struct.pack("<H", port) + b"\xb0" + bytes([value]) + b"\xee"


def outw(port, value):
    return b"\x66\xba" + struct.pack("<H", port) + b"\x66\xb8" + struct.pack("<H", value) + \
        b"\x66\xef"


def say(text):
    return b"".join(outb(0x3f8, c) for c in text.encode())


POWER_OFF = outw(0x604, 0x3400)
HANG = b"\xeb\xfe"
# Wait for a byte on the line and send it back, for ever, until it is 'q'.
ECHO = bytes.fromhex("66bafd03" "ec" "a801" "74fb" "66baf803" "ec" "ee" "3c71" "75ed")


def run(code, *args, **kw):
    return subprocess.run([RUN, "--kernel", bzimage(code), "--memory", "8M", *args],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
                          **kw)


def exits(name, code, status, out=None, err=None, *args):
    r = run(code, *args)
    good = r.returncode == status and (out is None or r.stdout == out) and \
        (err is None or err in r.stderr) and len(r.stderr.splitlines()) <= 2
    ok(good, name, f"status {r.returncode}\n{r.stdout}\n{r.stderr}")


def start(*args):
    return subprocess.Popen([RUN, "--kernel", os.path.join(tmp, "kernel"), "--memory", "8M", *args],
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


def read_until(fd, what, seconds=30):
    got, end = b"", time.monotonic() + seconds
    while what not in got and time.monotonic() < end:
        if select.select([fd], [], [], 0.2)[0]:
            try:
                data = os.read(fd, 4096)
            except OSError:
                break
            if not data:
                break
            got += data
    return got


def waiting_in(fd):
    return struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0]


def endings():
    exits("power-off through ACPI S5 is 0, and the console is on stdout",
          say("hi\n") + POWER_OFF, 0, "hi\n", "")
    exits("the reset register is 3", outb(0xcf9, 6) + HANG, 3, "", "asked for a reset")
    exits("the keyboard controller's reset is 3", outb(0x64, 0xfe) + HANG, 3)
    exits("port 0x92 is 3", outb(0x92, 1) + HANG, 3)
    exits("a triple fault is 4", b"\x0f\x0b", 4, "", "triple fault")
    exits("nothing runs on after power-off", POWER_OFF + say("zombie") + HANG, 0, "")
    exits("several CPUs that were never started stop as well", POWER_OFF, 0, "", "",
          "--cpus", "4")


def accesses():
    # lea rsi, text; mov ecx, 20; mov dx, COM1; rep outsb
    text = b"twenty bytes at once"
    off = POWER_OFF + HANG
    exits("string output is all of its bytes", b"\x48\x8d\x35" +
          struct.pack("<i", 11 + len(off)) + b"\xb9" + struct.pack("<I", len(text)) +
          b"\x66\xba\xf8\x03" + b"\xf3\x6e" + off + text, 0, text.decode(), "")
    # mov rax, [nowhere]; inc rax; add al, 'Y'; out COM1, al; mov [nowhere], rax
    for where in (0xd0000000, 0xfdfffffc, 0xfffffff8):
        exits(f"eight bytes at {where:#x}, where nothing is, are ones; writes are dropped",
              b"\x48\xa1" + struct.pack("<Q", where) + b"\x48\xff\xc0\x04Y\x66\xba\xf8\x03\xee" +
              b"\x48\xa3" + struct.pack("<Q", where) + POWER_OFF, 0, "Y", "")
    # for (edx = 0; edx < 65536; edx++) in al, dx; in eax, dx
    sweep = bytes.fromhex("31d2" "ec" "ed" "ffc2" "81fa00000100" "75f4")
    exits("reading every port, 1 and 4 bytes wide, is survived", sweep + say("ok") + POWER_OFF, 0,
          "ok", "")


def consoles():
    path = os.path.join(tmp, "log")
    exits("--console file: writes there", say("to the file") + POWER_OFF, 0, "", "",
          "--console", f"file:{path}")
    ok(open(path).read() == "to the file", "and the file has it")
    exits("--console none drops it", say("x") + POWER_OFF, 0, "", "", "--console", "none")
    exits("a console file that cannot be made is 1", POWER_OFF, 1, "", "console file",
          "--console", f"file:{tmp}/no/such")
    bzimage(ECHO + POWER_OFF)
    r = subprocess.run([RUN, "--kernel", os.path.join(tmp, "kernel"), "--memory", "8M"],
                       input=b"ping\x01xq", capture_output=True, timeout=60)
    ok(r.returncode == 0 and r.stdout == b"ping\x01xq",
       "a pipe's bytes reach the guest, and Ctrl-a is nothing special there", r)
    with open("/dev/full", "w") as full:
        bzimage(say("lost") + POWER_OFF)
        r = subprocess.run([RUN, "--kernel", os.path.join(tmp, "kernel"), "--memory", "8M"],
                           stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE,
                           timeout=60)
        ok(r.returncode == 0 and r.stderr.count(b"\n") == 1,
           "a console that cannot be written is reported once; the guest runs on", r)


def signals():
    bzimage(say("up") + HANG)
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        p = start()
        read_until(p.stdout.fileno(), b"up")
        p.send_signal(sig)
        ok(p.wait(20) == 128 + sig, f"{sig.name} ends a busy guest: {128 + sig}", p.returncode)
    bzimage(say("A" * 64) * 80 + HANG)
    p = start()
    fcntl.fcntl(p.stdout.fileno(), 1031, 4096)          # F_SETPIPE_SZ; and nobody reads
    end = time.monotonic() + 30
    while waiting_in(p.stdout.fileno()) < 4096 and time.monotonic() < end:
        time.sleep(0.05)
    p.send_signal(signal.SIGTERM)
    ok(p.wait(20) == 143, "SIGTERM ends a guest whose console nobody reads", p.returncode)


def reports():
    img = os.path.join(tmp, "reported.raw")
    with open(img, "wb") as f:
        f.truncate(1 << 20)
    bzimage(say("up") + HANG)
    p = start("--cpus", "2", "--disk", f"{img},format=raw,id=root")
    read_until(p.stdout.fileno(), b"up")
    for n in range(2):
        p.send_signal(signal.SIGUSR1)
        want = ("vCPU 0: running at rip 0x2", "interrupts off, no interrupt waits",
                "vCPU 1: not started", "disk root: 0 requests in flight")
        got = b""
        while got.count(b"\n") < 3 and (more := read_until(p.stderr.fileno(), b"\n")):
            got += more
        ok(all(w in got.decode() for w in want) and got.count(b"\n") == 3 and p.poll() is None,
           f"SIGUSR1 says what CPUs and disks are doing ({n + 1})", got)
    p.send_signal(signal.SIGTERM)
    ok(p.wait(20) == 143, "and the guest runs on", p.returncode)
    bzimage(ECHO + POWER_OFF)
    p = subprocess.Popen([RUN, "--kernel", os.path.join(tmp, "kernel"), "--memory", "8M"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    p.stdin.write(b"up")
    p.stdin.flush()
    read_until(p.stdout.fileno(), b"up")
    for n in range(200):
        p.send_signal(signal.SIGUSR1)
        time.sleep(0.002)
    p.stdin.write(b"q")
    p.stdin.flush()
    try:
        code = p.wait(20)
    except subprocess.TimeoutExpired:
        p.kill()
        code = "hangs"
    ok(code == 0, "also when it leaves for its devices all the time", code)


def terminal():
    bzimage(say("up\n") + HANG)
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(RUN, [RUN, "--kernel", os.path.join(tmp, "kernel"), "--memory", "8M"])
    got = read_until(fd, b"up")
    raw = termios.tcgetattr(fd)
    ok(not raw[3] & (termios.ICANON | termios.ECHO | termios.ISIG), "the terminal is raw", raw)
    os.write(fd, b"\x03\x01h")
    got += read_until(fd, b"this help")
    ok(b"Ctrl-a x" in got, "Ctrl-a h shows help, Ctrl-c goes to the guest", got)
    os.write(fd, b"\x01x")
    status = os.waitpid(pid, 0)[1]
    ok(os.waitstatus_to_exitcode(status) == 7, "Ctrl-a x is 7", status)


def terminal_is_restored():
    for name, sig, code in (("Ctrl-a x", None, 7), ("SIGTERM", signal.SIGTERM, 143),
                            ("SIGABRT", signal.SIGABRT, -signal.SIGABRT)):
        master, slave = pty.openpty()
        before = termios.tcgetattr(slave)
        p = subprocess.Popen([RUN, "--kernel", os.path.join(tmp, "kernel"), "--memory", "8M"],
                             stdin=slave, stdout=slave, stderr=slave)
        read_until(master, b"up")
        changed = termios.tcgetattr(slave) != before
        if sig:
            p.send_signal(sig)
        else:
            os.write(master, b"\x01x")
        p.wait(20)
        ok(changed and p.returncode == code and termios.tcgetattr(slave) == before,
           f"the terminal is as it was after {name}", p.returncode)
        os.close(master)
        os.close(slave)


def terminal_after_a_stop():
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    p = subprocess.Popen([RUN, "--kernel", os.path.join(tmp, "kernel"), "--memory", "8M"],
                         stdin=slave, stdout=slave, stderr=slave)
    read_until(master, b"up")
    raw = termios.tcgetattr(slave)
    p.send_signal(signal.SIGSTOP)
    termios.tcsetattr(slave, termios.TCSANOW, before)   # as a shell does
    p.send_signal(signal.SIGCONT)
    end = time.monotonic() + 10
    while termios.tcgetattr(slave) != raw and time.monotonic() < end:
        time.sleep(0.05)
    ok(raw != before and termios.tcgetattr(slave) == raw,
       "the terminal is raw again after a stop and a continue")
    os.write(master, b"\x01x")
    ok(p.wait(20) == 7 and termios.tcgetattr(slave) == before, "and restored at the end",
       p.returncode)
    os.close(master)
    os.close(slave)


def reboot():
    p = subprocess.Popen([RUN, "--kernel", bzimage(say("boot ") + outb(0xcf9, 6) + HANG),
                          "--memory", "8M", "--reboot"], stdin=subprocess.DEVNULL,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    got = read_until(p.stdout.fileno(), b"boot boot boot boot boot ")
    p.send_signal(signal.SIGTERM)
    code = p.wait(20)
    ok(got.startswith(b"boot boot boot boot boot ") and code in (143, -signal.SIGTERM),
       "--reboot starts the guest again until a signal", (got, code))


def refusals():
    def refuse(name, status, text, *args):
        r = subprocess.run([RUN, *args], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                           timeout=60)
        lines = r.stderr.splitlines()
        ok(r.returncode == status and r.stdout == "" and 1 <= len(lines) <= 2 and
           lines[0].startswith("platter-run: ") and text in lines[0], name, r)

    good = bzimage(POWER_OFF)
    refuse("no kernel named is 2", 2, "no kernel")
    refuse("an unknown option is 2", 2, "--bogus", "--bogus")
    refuse("a kernel that is not there is 1", 1, "No such file", "--kernel", f"{tmp}/none")
    refuse("a kernel that is none is 1", 1, "not a Linux bzImage", "--kernel", sys.executable)
    refuse("an initrd that is not there is 1", 1, "No such file", "--kernel", good, "--initrd",
           f"{tmp}/none")
    refuse("a disk that is not there is 1, and named", 1, f"disk {tmp}/none", "--kernel", good,
           "--memory", "8M", "--disk", f"{tmp}/none")
    guess = os.path.join(tmp, "guess.img")
    with open(guess, "wb") as f:
        f.truncate(1 << 20)
    refuse("a raw disk whose format is guessed is not written to", 1, "probing guessed raw",
           "--kernel", good, "--memory", "8M", "--disk", guess)
    refuse("a kernel that needs more memory is 1", 1, "at least", "--kernel",
           bzimage(bytes(9 << 20), "big"), "--memory", "8M")


def disks():
    img = os.path.join(tmp, "disk.raw")
    with open(img, "wb") as f:
        f.truncate(1 << 20)
    exits("a disk is opened and closed", POWER_OFF, 0, "", "", "--disk", f"{img},format=raw")
    exits("31 disks fit", POWER_OFF, 0, "", "",
          *(a for i in range(31) for a in ("--disk", f"{img},format=raw,readonly")))
    broken = ("--disk", f"driver=fault,op=close,errno=ENOSPC,file.filename={img},id=broken")
    exits("an error at close is 6, and names the disk", POWER_OFF, 6, "", "disk broken: ", *broken)
    exits("whatever the guest's end was", b"\x0f\x0b", 6, "", "disk broken: ", *broken)
    slow_disks(img)
    bzimage(say("up") + HANG)
    p = start("--disk", f"{img},format=raw")
    read_until(p.stdout.fileno(), b"up")
    r = subprocess.run([RUN, "--kernel", os.path.join(tmp, "kernel"), "--memory", "8M", "--disk",
                        f"{img},format=raw"], stdin=subprocess.DEVNULL, capture_output=True,
                       text=True, timeout=60)
    ok(r.returncode == 1 and "lock" in r.stderr, "a disk in use by another guest is refused", r)
    p.send_signal(signal.SIGTERM)
    ok(p.wait(20) == 143, "and the other guest ends as usual", p.returncode)


def slow_disks(img):
    bzimage(say("up") + HANG)
    p = start("--disk", f"driver=delay,op=flush,us=2000000,file.filename={img}")
    read_until(p.stdout.fileno(), b"up")
    begun = time.monotonic()
    p.send_signal(signal.SIGTERM)
    ok(p.wait(20) == 143 and time.monotonic() - begun > 1.5,
       "SIGTERM waits until the disk is flushed", p.returncode)
    bzimage(say("up") + POWER_OFF)
    p = start("--disk", f"driver=delay,op=flush,us=2000000,file.filename={img}")
    read_until(p.stdout.fileno(), b"up")
    time.sleep(0.5)
    p.send_signal(signal.SIGTERM)
    ok(p.wait(20) == 0, "a signal while the disk is closed after power-off changes nothing",
       p.returncode)
    bzimage(say("up") + HANG)
    p = start("--disk", f"driver=delay,op=flush,us=60000000,file.filename={img}")
    read_until(p.stdout.fileno(), b"up")
    p.send_signal(signal.SIGTERM)
    time.sleep(1)
    waiting = p.poll() is None
    p.send_signal(signal.SIGTERM)
    ok(waiting and p.wait(20) == -signal.SIGTERM, "a second SIGTERM does not wait", p.returncode)
    p = start("--disk", f"file.driver=delay,file.op=read,file.us=60000000,"
              f"file.file.filename={img},readonly")
    time.sleep(1)
    p.send_signal(signal.SIGTERM)
    ok(p.wait(20) == -signal.SIGTERM, "SIGTERM while a dead disk is opened ends at once",
       p.returncode)


r = subprocess.run([RUN, "--check-host"], capture_output=True, text=True, timeout=120)
ok(r.returncode in (0, 1) and r.stdout.startswith(("Yes: ", "No: ")) and r.stderr == "" and
   (r.returncode == 0) == r.stdout.startswith("Yes"), "--check-host says yes or no, and why", r)
r = subprocess.run([RUN, "--help"], capture_output=True, text=True)
ok(r.returncode == 0 and "Exit status:" in r.stdout, "--help says the exit codes", r)
for part in (endings, accesses, consoles, signals, reports, terminal, terminal_is_restored,
             terminal_after_a_stop, reboot, refusals, disks):
    part()
finish()
