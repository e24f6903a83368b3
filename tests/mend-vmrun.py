#!/usr/bin/env python3
"""mend-vmrun.py - takes a fault of QEMU's emulated AMD-V out of an unpacked qemu-system-x86_64.

  mend-vmrun.py PROGRAM     again, if it likes; exit status 1, and nothing changed: not the code
                            that is known

The fault: helper_vmrun() (target/i386/tcg/sysemu/svm_helper.c, QEMU 10.0) delivers the interrupt
that KVM injects, and leaves its vector in cs->exception_index.  When cpu_handle_interrupt()
finds exit_request set before the guest's next exit, without an interrupt that it can take
(another thread sets the two one after the other), cpu_handle_exception() takes the vector for an
exception and delivers it once more, though the guest has its interrupts off: the timer's handler
is entered while it holds a lock, and the guest hangs.  Two guests at once under "-accel
tcg,thread=single": five of eight; under thread=multi it is rare.

The store of the vector serves nobody, do_interrupt_x86_hardirq() has it as an argument.  It
becomes a no-op where the code around it is, to the byte, what it has to be:
    error_code = ...; exception_index = vector; exception_is_int = 0; exception_next_eip = -1;
    log if wanted; do_interrupt_x86_hardirq(env, vector, 1)
"""
import os
import re
import struct
import sys

NOP = b"\x66\x0f\x1f\x44\0\0"
CODE = re.compile(
    rb"\x44\x89\xab(?P<error_code>....)"            # mov %r13d, error_code(%rbx)
    rb"(?P<store>\x89\xb3....|" + NOP + rb")"       # mov %esi, exception_index(%rbx)
    rb"\xc7\x83....\0\0\0\0"                        # movl $0, exception_is_int(%rbx)
    rb"\x48\xc7\x83....\xff\xff\xff\xff"            # movq $-1, exception_next_eip(%rbx)
    rb"\xf6\x05....\x02\x0f\x85...."                # testb $2, qemu_loglevel; jne
    rb"\xba\x01\0\0\0\x48\x89\xdf"                  # mov $1, %edx; mov %rbx, %rdi
    rb"\xe8(?P<call>....)", re.S)                   # call


def symbols(data):
    """name: (offset in the file, length, address) of the functions that an ELF64 program exports"""
    phoff, = struct.unpack_from("<Q", data, 32)
    shoff, = struct.unpack_from("<Q", data, 40)
    phentsize, phnum, shentsize, shnum = struct.unpack_from("<4H", data, 54)
    loads = []
    for i in range(phnum):
        kind, _, off, addr, _, size = struct.unpack_from("<IIQQQQ", data, phoff + i * phentsize)
        if kind == 1:
            loads.append((addr, off, size))
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, shoff + i * shentsize)
                for i in range(shnum)]
    found = {}
    for _, kind, _, _, off, size, link, _, _, entsize in sections:
        if kind != 11:                  # SHT_DYNSYM
            continue
        names = sections[link][4]
        for at in range(off, off + size, entsize):
            name, info, _, _, addr, length = struct.unpack_from("<IBBHQQ", data, at)
            for start, file_off, n in loads:
                if info & 15 == 2 and start <= addr < start + n:
                    end = data.index(b"\0", names + name)
                    found[data[names + name:end].decode()] = (addr - start + file_off, length, addr)
    return found


def store_at(data):
    """Where the store is in the file, or None."""
    table = symbols(data)
    if "helper_vmrun" not in table or "do_interrupt_x86_hardirq" not in table:
        return None
    start, length, address = table["helper_vmrun"]
    hits = list(CODE.finditer(data, start, start + length))
    if len(hits) != 1:
        return None
    after = hits[0].end() - start + address
    if after + struct.unpack("<i", hits[0]["call"])[0] != table["do_interrupt_x86_hardirq"][2]:
        return None
    return hits[0].start("store")


def main():
    path = sys.argv[1]
    with open(path, "rb") as f:
        data = f.read()
    at = store_at(data)
    if at is None:
        return 1
    with open(path + ".new", "wb") as f:
        f.write(data[:at] + NOP + data[at + len(NOP):])
    os.chmod(path + ".new", 0o755)
    os.rename(path + ".new", path)
    return 0


sys.exit(main())
