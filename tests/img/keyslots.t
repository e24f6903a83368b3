#!/usr/bin/env python3
"""Passwords that amend adds and removes: qemu-img opens what it should and no more, and
the reverse; for luks and for encrypted qcow2."""
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tap import IMG, QEMU_IMG, enter_place, finish, img, ok, run  # noqa: E402

SECRETS = [w for i, p in (('s', 'abc'), ('t', 'def'), ('u', 'third'))
           for w in ('--object', 'secret,id=%s,data=%s' % (i, p))]
enter_place('keyslots')


class Image:
    def __init__(self, fmt):
        self.fmt, self.prefix = fmt, 'encrypt.' if fmt == 'qcow2' else ''
        options = '%skey-secret=s,%siter-time=1' % (self.prefix, self.prefix)
        if fmt == 'qcow2':
            options += ',encrypt.format=luks'
        img('create', '-q', *SECRETS, '-f', fmt, '-o', options, 'image', '256k')

    def opts(self, secret):
        return ['--image-opts', 'driver=%s,file.filename=image,%skey-secret=%s'
                % (self.fmt, self.prefix, secret)]

    def opens(self, secret):
        """By both programs alike?"""
        said = [run(p, 'map', *SECRETS, '--output=json', *self.opts(secret)).returncode == 0
                for p in (IMG, QEMU_IMG)]
        return said[0] if said[0] == said[1] else 'ours %s, theirs %s' % tuple(said)

    def amend(self, program, secret, options, *more):
        options = ','.join(self.prefix + o for o in options.split(','))
        return run(program, 'amend', *SECRETS, *more, *self.opts(secret), '-o', options)

    def active(self):
        info = json.loads(img('info', '--output=json', 'image').stdout)
        data = info['format-specific']['data']
        slots = (data['encrypt'] if self.fmt == 'qcow2' else data)['slots']
        return [i for i, s in enumerate(slots) if s['active']]


def check(image, name, amended, slots, status=0, **opens):
    got = {k: image.opens(k) for k in opens}
    ok(amended.returncode == status and image.active() == slots and got == opens,
       '%s: %s' % (image.fmt, name), amended.stderr, 'slots %s' % image.active(), got)


for fmt in ('luks', 'qcow2'):
    im = Image(fmt)
    check(im, 'a second password', im.amend(IMG, 's', 'state=active,new-secret=t,iter-time=1'),
          [0, 1], s=True, t=True, u=False)
    check(im, 'a third in slot 7, by the second', im.amend(
        IMG, 't', 'state=active,new-secret=u,keyslot=7,iter-time=1'), [0, 1, 7],
        s=True, t=True, u=True)
    check(im, 'one that matches a password goes', im.amend(IMG, 'u', 'state=inactive,old-secret=s'),
          [1, 7], s=False, t=True, u=True)
    check(im, 'one goes by its number', im.amend(IMG, 't', 'state=inactive,keyslot=7'), [1],
          s=False, t=True, u=False)
    check(im, 'the last one stays', im.amend(IMG, 't', 'state=inactive,keyslot=1'), [1], status=1,
          t=True)
    check(im, 'what qemu-img adds', im.amend(QEMU_IMG, 't',
                                             'state=active,new-secret=s,keyslot=3,iter-time=1'),
          [1, 3], s=True, t=True)
    check(im, 'an active slot is overwritten with --force', im.amend(
        IMG, 's', 'state=active,new-secret=u,keyslot=1,iter-time=1', '--force'), [1, 3],
        s=True, t=False, u=True)
    im.amend(IMG, 'u', 'state=inactive,keyslot=3')
    check(im, 'the last one goes with --force', im.amend(IMG, 'u', 'state=inactive,keyslot=1',
                                                         '--force'), [], s=False, t=False, u=False)
finish()
