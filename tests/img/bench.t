#!/usr/bin/env python3
"""platter-img bench against qemu-img bench."""
import os
import sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from differential import Suite

suite = Suite()
suite.table(r'''
    # reading
    bench -f raw -c 100 raw.img
    bench -q -f raw -c 100 raw.img
    bench -f raw -c 1000 -d 1 raw.img
    bench -f raw -c 1000 -d 2000 raw.img
    bench -f raw -c 100 -s 64k raw.img
    bench -f raw -c 100 -s 512 -S 1k raw.img
    bench -f raw -c 100 -S 0 raw.img
    bench -f raw -c 10 -o 123 raw.img
    bench -f raw -c 10 -o 1M raw.img
    bench -f raw -c 10 -o 1020k -s 8k raw.img
    bench -f raw -c 10 empty.img
    bench -f raw -c 0x10 --count=20 raw.img
    bench -f raw -c 1k raw.img
    bench -f raw -t none -c 10 raw.img
    bench -f raw -i threads -c 10 raw.img
    bench -f raw -i io_uring -c 10 raw.img
    bench -f raw -n -t none -c 10 raw.img
    bench -f raw --aio=native --cache=none -c 10 raw.img
    bench -c 100 c.qcow2
    bench -f qcow2 -c 100 comp.qcow2
    bench -c 100 onraw.qcow2
    bench -U -c 10 a.qcow2
    bench --image-opts -c 10 driver=qcow2,file.filename=a.qcow2
    @hold=w:a.qcow2 bench -c 10 a.qcow2

    # writing
    bench -f raw -w -c 100 raw.img
    bench -f raw -w -c 100 --pattern 65 raw.img
    bench -f raw -w -c 200 -d 8 --flush-interval 64 --pattern 1 raw.img
    bench -f raw -w -c 256 -d 8 --flush-interval 64 --pattern=0x2 raw.img
    bench -f raw -w -c 200 -d 8 --flush-interval 64 --no-drain raw.img
    bench -f raw -w -c 100 -t writethrough raw.img
    bench -f raw -w -c 100 -t unsafe raw.img
    bench -f qcow2 -w -c 100 --pattern 7 a.qcow2
    bench -f qcow2 -w -c 100 -d 16 --pattern 7 b.qcow2
    bench -f qcow2 -w -c 100 -s 65536 --pattern 9 new.qcow2
    bench -f qcow2 -w -c 100 -s 5000 -o 777 --pattern 9 c.qcow2
    bench -f raw -w -c 10 -o 1020k -s 8k raw.img
        files|
    @nobody bench -f raw -w -c 10 readonly.img

    # words
    bench
    bench raw.img raw.img
    bench gone
    bench -f bad raw.img
    bench -c 0 raw.img
    bench -c x raw.img
    bench -c -1 raw.img
    bench -c 2147483648 raw.img
    bench -d 0 raw.img
    bench -d x raw.img
    bench -s 0 raw.img
    bench -s x raw.img
    bench -s 3G raw.img
    bench -S x raw.img
    bench -S 3G raw.img
    bench -o x raw.img
    bench -o -1 raw.img
    bench -i foo raw.img
    bench -n raw.img
    bench -t foo raw.img
    bench --flush-interval 100 raw.img
    bench -w --flush-interval 8 raw.img
    bench -w --flush-interval x raw.img
    bench -w --pattern 300 raw.img
    bench -w --pattern x raw.img
    bench -Z raw.img
    ~help-text bench --help
        out| ^Run simple image benchmark
''')
suite.run()
