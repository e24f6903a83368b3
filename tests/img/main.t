#!/usr/bin/env python3
"""platter-img itself: what comes before a subcommand, against qemu-img."""
import os
import sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from differential import Suite

suite = Suite()
suite.table(r'''
    # no command
    ''
    bogus
    --foo
    -x
    -T
    --trace
    -x info raw.img

    # what differs on purpose
    ~help-text --help
        out| ^Commands:$
    ~help-text -h
        out| ^  create - Create an empty image$
    ~version -V
        out| ^IMG version \d+\.\d+\.\d+$
    ~help-text -hV --foo
        out| ^Standard options:
    ~version --version
        out| ^IMG version
    ~trace-events -T nothing_like_it info raw.img
        err| ^$
    ~trace-events --trace help
        out| ^$
        err| Not enough arguments
        status| 1
''')
suite.run()
