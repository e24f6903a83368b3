#!/usr/bin/env python3
"""Every subcommand and option that qemu-img's --help names is taken here, or stands as
missing in the table "Line by line" of docs/compatibility.md; and the table has a row for
each.   options.t --table: print the table as it should be, notes of the old one kept."""
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tap import IMG as OURS, QEMU_IMG as THEIRS, ROOT, finish, ok, run  # noqa: E402

DOC = os.path.join(ROOT, 'docs/compatibility.md')
HEADING = '## Line by line'
TOKEN = re.compile(r'(?<![\w-])(--[a-z][a-z-]+|-[a-zA-Z])(?![\w])')
# Mistakes in QEMU's text: the option is called something else.
WRONG = {('amend', '--progres'): '--progress', ('check', '-u'): '-U'}
# In the manual page, but not in --help.
MORE = {'convert': ['--image-opts'], 'dd': ['--object'], 'measure': ['--object', '-o', '--output'],
        'amend': ['-o', '--object'], 'bench': ['-U'], 'snapshot': ['-l', '-c', '-a', '-d']}


def text(program, *words):
    p = run(program, *words)
    return p.stdout + p.stderr


def right(command, token):
    return WRONG.get((command, token), token)


def groups(command, page):
    """The options as the page names them: each a list of ways to write it."""
    found, seen = [], set()
    for line in page.splitlines():
        if re.match(r' {1,3}-', line):
            tag = re.split(r'  +| (?=[a-z])', line.strip())[0]
            names = [right(command, t) for t in TOKEN.findall(tag)]
        elif re.match(r'  [a-z]+=', line):
            names = [line.strip().split('=')[0] + '=']
        else:
            continue
        names = [n for n in names if n not in seen]
        seen.update(names)
        if names:
            found.append(names)
    for token in TOKEN.findall(page) + MORE.get(command, []):
        token = right(command, token)
        if token not in seen:
            seen.add(token)
            found.append([token])
    return found


def is_taken(command, option, program=OURS):
    if option.endswith('='):
        words = [option + '1']
        return 'unrecognized operand' not in text(program, command, *words)
    said = text(program, *([command] if command else []), option)
    return not re.search(r'unrecognized option|invalid option|Command not found', said)


def old_notes():
    notes = {}
    for line in open(DOC).read().partition(HEADING)[2].splitlines():
        cells = [c.strip() for c in line.strip('|').split('|')]
        if len(cells) == 3 and cells[0] not in ('command', '---'):
            notes[cells[0].strip('`'), cells[1]] = cells[2]
    return notes


def wanted():
    top = text(THEIRS, '--help')
    rows = [('', ['-h', '--help']), ('', ['-V', '--version']), ('', ['-T', '--trace'])]
    for command in re.findall(r'^  ([a-z]+) - ', top, re.M):
        for names in groups(command, text(THEIRS, command, '--help')):
            names = [n for n in names if is_taken(command, n, THEIRS)]  # not all it says is true
            rows += [(command, names)] if names else []
    return rows


def cell(names):
    return ', '.join('`%s`' % n for n in names)


def print_table():
    notes = old_notes()
    print('| command | option | here |\n| --- | --- | --- |')
    for command, names in wanted():
        missing = [n for n in names if not is_taken(command, n)]
        note = notes.get((command, cell(names)), 'same')
        if missing:
            note = 'missing'
        elif note == 'missing':
            note = 'same'
        print('| %s | %s | %s |' % ('`%s`' % command if command else '', cell(names), note))


def main():
    if sys.argv[1:] == ['--table']:
        return print_table()
    notes, rows = old_notes(), wanted()
    commands = sorted({c for c, _ in rows})
    for command in commands:
        why = []
        for names in (names for c, names in rows if c == command):
            note = notes.get((command, cell(names)))
            missing = [o for o in names if not is_taken(command, o)]
            if note is None:
                why.append('the table has no row for ' + cell(names))
            elif missing and note != 'missing':
                why.append('not taken: ' + cell(missing))
            elif note == 'missing' and not missing:
                print('# %s %s is there by now: run options.t --table' % (command, cell(names)))
        ok(not why, command or 'options before the command', *why)
    stale = [k for k in notes if k not in {(c, cell(names)) for c, names in rows}]
    ok(not stale, 'the table has no rows of its own', *stale)
    finish()


main()
