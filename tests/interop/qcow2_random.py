#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Random qcow2 images, QEMU's tools against this project's driver.

    qcow2_random.py IMGTOOL [-s SEED] [-n COUNT] [-k] [-p PART]

Parts: read (QEMU writes, the driver reads, maps, walks and checks), write (the
driver creates and writes, QEMU checks and compares), mixed (the driver writes
to QEMU's images with snapshots, bitmaps and backing files), repair (both check
damaged images, the driver repairs them). Every case prints its seed when it
fails; -k keeps its files.
"""
import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile

IMGTOOL = None


class Failed(Exception):
    pass


def run(*args, fail=True):
    p = subprocess.run([str(a) for a in args], stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE, text=True)
    if fail and p.returncode:
        raise Failed('%s: %s%s' % (' '.join(map(str, args)), p.stdout,
                                   p.stderr))
    return p


def tool(image, *commands, below=None, fail=True):
    pre = ['-b', below] if below else []
    return run(IMGTOOL, *pre, 'qcow2', image, *commands, fail=fail)


def qemu_io(image, commands):
    """Some commands may fail, as compressed writes over data do."""
    args = []
    for c in commands:
        args += ['-c', c]
    run('qemu-io', '-f', 'qcow2', *args, image, fail=False)


def same(a, b, what):
    with open(a, 'rb') as x, open(b, 'rb') as y:
        at = 0
        while True:
            p, q = x.read(1 << 20), y.read(1 << 20)
            if p != q:
                for i in range(min(len(p), len(q))):
                    if p[i] != q[i]:
                        raise Failed('%s: differs at %d' % (what, at + i))
                raise Failed('%s: lengths differ' % what)
            if not p:
                return
            at += len(p)


CHECK_KEYS = ('corruptions', 'leaks', 'check-errors', 'total-clusters',
              'allocated-clusters', 'fragmented-clusters',
              'compressed-clusters', 'image-end-offset')


def qemu_check(image):
    p = run('qemu-img', 'check', '--output=json', '-f', 'qcow2', image,
            fail=False)
    if not p.stdout:
        return None
    return {k: json.loads(p.stdout).get(k, 0) for k in CHECK_KEYS}


def our_check(image, command='check'):
    p = tool(image, command, fail=False)
    if p.returncode:
        return None
    d = dict(l.split() for l in p.stdout.splitlines())
    return {k: int(d[k]) for k in CHECK_KEYS}


def is_damaged(image):
    """QEMU 7.2 now and then puts data into a cluster that already holds
    compressed data; such images are no subject here."""
    check = qemu_check(image)
    return not check or check['corruptions'] > 0


def assert_clean(image, leaks=False):
    c = qemu_check(image)
    if not c or c['corruptions'] or c['check-errors'] or (
            c['leaks'] and not leaks):
        raise Failed('qemu-img check is not content: %s' % c)


def random_options(rng):
    bits = rng.choice([9, 10, 11, 12, 13, 14, 15, 16, 16, 16, 17, 18, 20, 21])
    options = {'cluster_size': 1 << bits}
    if rng.random() < .15:
        options['compat'] = '0.10'
    else:
        options['refcount_bits'] = rng.choice([1, 2, 4, 8, 16, 16, 32, 64])
        if rng.random() < .3:
            options['lazy_refcounts'] = 'on'
        if rng.random() < .5:
            options['compression_type'] = 'zstd'
        if bits >= 14 and rng.random() < .5:
            options['extended_l2'] = 'on'
    if rng.random() < .25:
        options['preallocation'] = rng.choice(['metadata', 'falloc', 'full'])
    return options


def random_size(rng, options, most=48 << 20):
    cluster = options['cluster_size']
    size = rng.randint(1, 60) * rng.choice([512, 4096, 65536, 1 << 20])
    return max(512, min(size, cluster * 6000, most) // 512 * 512)


def option_list(options):
    return ','.join('%s=%s' % o for o in options.items())


def random_writes(rng, options, size, count, discard=True):
    cluster = options['cluster_size']
    commands = []
    for _ in range(count):
        at = rng.randrange(0, size, 512)
        n = min(size - at, max(512, rng.randint(1, 3 * cluster) // 512 * 512))
        kind = rng.random()
        if kind < .55:
            commands.append('write -P %d %d %d' % (rng.randint(1, 255), at, n))
        elif kind < .65:
            commands.append('write -z %d %d' % (at, n))
        elif kind < .72:
            commands.append('write -z -u %d %d' % (at, n))
        elif kind < .8:
            if discard:
                commands.append('discard %d %d' % (at, n))
        else:
            at = at // cluster * cluster
            n = min(size - at, cluster)
            commands.append('write -c -P %d %d %d' %
                            (rng.randint(1, 255), at, n))
    return commands


def compare_map(image, size):
    qemu = json.loads(run('qemu-img', 'map', '--output=json', '-f', 'qcow2',
                          image).stdout)
    theirs, ours = {}, {}
    for e in qemu:
        if e['depth']:
            continue
        # A run may end with the file, within a sector.
        first = e['start'] // 512 * 512
        for s in range(first, e['start'] + e['length'], 512):
            if e['data'] and 'offset' in e:
                theirs[s] = e['offset'] + s - e['start']
            elif e['data']:
                theirs[s] = 'compressed'
            elif e['zero'] and e.get('present', True):
                theirs[s] = 'zero'
    for line in tool(image, 'map').stdout.splitlines():
        start, n, kind, host = line.split()
        start, n, host = int(start), int(n), int(host)
        if kind == 'none':
            continue
        for s in range(start, start + n, 512):
            ours[s] = host + s - start if kind == 'data' else kind
    if theirs != ours:
        for s in range(0, size, 512):
            if theirs.get(s) != ours.get(s):
                raise Failed('map differs at %d: %s, ours %s' %
                             (s, theirs.get(s), ours.get(s)))


def check_walk(image, cluster, snapshots=False):
    """What walk reports is just what is counted."""
    used = {}
    for line in tool(image, 'walk').stdout.splitlines():
        use, host, n = line.split()
        for c in range(int(host) // cluster, (int(host) + int(n) - 1) //
                       cluster + 1):
            used.setdefault(c, []).append(use)
    for c, uses in used.items():
        if len(uses) > 1 and set(uses) != {'compressed'} and not snapshots:
            raise Failed('walk: cluster %d is %s' % (c, uses))
    check = qemu_check(image)
    total = check['image-end-offset'] // cluster
    if not check['leaks'] and (max(used) + 1 != total):
        raise Failed('walk ends at cluster %d of %d' % (max(used) + 1, total))
    return used


def assert_same_check(image):
    theirs, ours = qemu_check(image), our_check(image)
    if theirs != ours:
        raise Failed('check: qemu-img says %s, ours says %s' % (theirs, ours))


def case_read(rng, folder):
    options = random_options(rng)
    image, a, b = (os.path.join(folder, n) for n in ('a.qcow2', 'a', 'b'))
    size = random_size(rng, options)
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', option_list(options),
        image, size)
    qemu_io(image, random_writes(rng, options, size, rng.randint(0, 40)))
    if is_damaged(image):
        return
    run('qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', image, a)
    tool(image, 'dump', b)
    same(a, b, 'dump of ' + option_list(options))
    compare_map(image, size)
    check_walk(image, options['cluster_size'])
    assert_same_check(image)


INFO_KEYS = ('compat', 'compression-type', 'lazy-refcounts', 'refcount-bits',
             'corrupt', 'extended-l2')


def compare_info(a, b):
    def facts(image):
        i = json.loads(run('qemu-img', 'info', '--output=json', image).stdout)
        data = i['format-specific']['data']
        return ([i['virtual-size'], i['cluster-size'],
                 i.get('backing-filename'), i.get('backing-filename-format')] +
                [data.get(k) for k in INFO_KEYS])
    if facts(a) != facts(b):
        raise Failed('info: %s, ours %s' % (facts(b), facts(a)))
    ours = dict(l.split(' ', 1) for l in tool(a, 'info').stdout.splitlines())
    theirs = json.loads(run('qemu-img', 'info', '--output=json', a).stdout)
    data = theirs['format-specific']['data']
    for k in INFO_KEYS:
        if k in data and str(data[k]).lower() != ours.get(k):
            raise Failed('info of %s: %s, ours %s' % (k, data[k], ours.get(k)))


def our_writes(rng, options, size, count):
    cluster = options['cluster_size']
    commands = []
    for _ in range(count):
        at = rng.randrange(0, size)
        n = max(1, min(size - at, rng.randint(1, 3 * cluster)))
        kind = rng.random()
        if kind < .5:
            commands += ['fill', at, n, rng.randint(1, 1 << 30)]
        elif kind < .65:
            commands += ['zero', at, n]
        elif kind < .8:
            commands += ['unmap', at, n]
        elif kind < .95:
            at = at // cluster * cluster
            commands += ['compress', at, min(size - at, cluster),
                         rng.randint(1, 1 << 30)]
        else:
            commands += ['flush']
    return commands


def random_base(rng, folder, options):
    """A backing file, or None."""
    if rng.random() < .7 or (options.get('preallocation') and
                             'extended_l2' not in options):
        return None
    base = os.path.join(folder, 'base' * rng.choice([1, 20]))
    if options['cluster_size'] < 2048:
        base = os.path.join(folder, 'base')
    with open(base, 'wb') as f:
        f.write(rng.randbytes(rng.randint(1, 2000) * 512))
    return base


def case_write(rng, folder):
    options = random_options(rng)
    image, ref, a, b, src = (os.path.join(folder, n) for n in (
        'a.qcow2', 'ref.qcow2', 'a', 'b', 'src'))
    size = random_size(rng, options)
    base = random_base(rng, folder, options)
    tool(image, 'create', size,
         *(['-b', base, '-f', 'raw'] if base else []),
         *['%s=%s' % o for o in options.items()])
    assert_clean(image)
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', option_list(options),
        *(['-b', base, '-F', 'raw'] if base else []), ref, size)
    compare_info(image, ref)
    compare_info(ref, image)
    run('qemu-img', 'compare', '-f', 'qcow2', '-F', 'qcow2', image, ref)
    if rng.random() < .3 and not base:
        with open(src, 'wb') as f:
            for _ in range(0, size, 4096):
                f.write(rng.randbytes(100) * 40 + bytes(96)
                        if rng.random() < .7 else bytes(4096))
            f.truncate(size)
        tool(image, rng.choice(['copy', 'pack']), src)
        run('qemu-img', 'compare', '-f', 'raw', '-F', 'qcow2', src, image)
        assert_clean(image)
    threads = rng.choice([1, 1, 4])
    tool(image, *our_writes(rng, options, size, rng.randint(0, 25)), 'random',
         rng.randint(0, 1 << 30), rng.randint(0, 150), threads, below=base)
    assert_clean(image)
    run('qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', image, a)
    same(a, image + '.expect', 'written with ' + option_list(options))
    tool(image, 'dump', b, below=base)
    same(a, b, 'read back')
    compare_map(image, size)
    check_walk(image, options['cluster_size'])
    assert_same_check(image)
    # QEMU goes on with it, then the driver again.
    qemu_io(image, random_writes(rng, options, size, 10))
    assert_clean(image)
    tool(image, 'random', rng.randint(0, 1 << 30), 50, threads, below=base)
    assert_clean(image)
    run('qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', image, a)
    same(a, image + '.expect', 'second turn with ' + option_list(options))


def case_mixed(rng, folder):
    options = random_options(rng)
    if options.get('refcount_bits') == 1:
        options['refcount_bits'] = 2
    options.pop('preallocation', None)
    image, base, a, b = (os.path.join(folder, n) for n in (
        'a.qcow2', 'base', 'a', 'b'))
    size = random_size(rng, options)
    backed = rng.random() < .6
    args = []
    if backed:
        base_size = rng.choice([size, size, max(512, size // 2 // 512 * 512)])
        with open(base, 'wb') as f:
            f.write(rng.randbytes(base_size))
        args = ['-b', base, '-F', 'raw']
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', option_list(options),
        *args, image, size)
    qemu_io(image, random_writes(rng, options, size, 15))
    bitmap = options.get('compat') != '0.10' and rng.random() < .4
    if bitmap:
        run('qemu-img', 'bitmap', '--add', '-g', 65536, image, 'b0')
    snapshots = []
    for i in range(rng.choice([0, 1, 1, 2])):
        name = 's%d' % i
        # Compressed clusters may share theirs with as many as can be counted.
        if run('qemu-img', 'snapshot', '-c', name, image,
               fail=False).returncode:
            run('qemu-img', 'check', '-r', 'all', image, fail=False)
            break
        snap = os.path.join(folder, name)
        run('qemu-img', 'convert', '-f', 'qcow2', '-l', name, '-O', 'raw',
            image, snap)
        snapshots.append(name)
        qemu_io(image, random_writes(rng, options, size, 5))
    if is_damaged(image):
        return
    for _ in range(2):
        below = base if backed else None
        tool(image, *our_writes(rng, options, size, rng.randint(0, 10)),
             'random', rng.randint(0, 1 << 30), rng.randint(0, 80),
             rng.choice([1, 3]), below=below)
        assert_clean(image)
        assert_same_check(image)
        run('qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', image, a)
        same(a, image + '.expect', 'mixed with ' + option_list(options))
        compare_map(image, size)
        check_walk(image, options['cluster_size'], bool(snapshots))
        for name in snapshots:
            run('qemu-img', 'convert', '-f', 'qcow2', '-l', name, '-O', 'raw',
                image, a)
            same(a, os.path.join(folder, name), 'snapshot ' + name)
        qemu_io(image, random_writes(rng, options, size, 5))
    if bitmap:
        info = json.loads(run('qemu-img', 'info', '--output=json', image)
                          .stdout)
        maps = info['format-specific']['data'].get('bitmaps', [])
        if len(maps) != 1 or maps[0]['flags'] != ['auto']:
            raise Failed('the bitmap is not kept: %s' % maps)
    for name in snapshots:
        run('qemu-img', 'snapshot', '-d', name, image)
        assert_clean(image)


def damage(rng, image, options):
    """Change refcounts, COPIED flags and entries; guest data stays."""
    cluster = options['cluster_size']
    with open(image, 'r+b') as f:
        head = f.read(104)
        end = f.seek(0, 2)

        def be64(at):
            f.seek(at)
            return int.from_bytes(f.read(8), 'big')

        def put(at, value, n=8):
            f.seek(at)
            f.write(value.to_bytes(n, 'big'))

        l1_size = int.from_bytes(head[36:40], 'big')
        l1 = int.from_bytes(head[40:48], 'big')
        table = int.from_bytes(head[48:56], 'big')
        used = [i for i in range(l1_size) if be64(l1 + 8 * i)]
        entry = 16 if 'extended_l2' in options else 8
        for _ in range(rng.randint(1, 4)):
            kind = rng.random()
            block = be64(table)
            if (kind < .45 and block and block % cluster == 0 and
                    block + cluster <= end):
                at = block + rng.randrange(
                    0, min(cluster, end // cluster *
                           options.get('refcount_bits', 16) // 8 + 1))
                f.seek(at)
                old = f.read(1)[0]
                f.seek(at)
                f.write(bytes([rng.choice([0, old ^ 1, old + 1 & 255, old])]))
            elif kind < .55 and used:
                i = rng.choice(used)
                put(l1 + 8 * i, be64(l1 + 8 * i) ^ 1 << 63)
            elif kind < .8 and used:
                l2 = be64(l1 + 8 * rng.choice(used)) & 0xfffffffffffe00
                at = l2 + entry * rng.randrange(cluster // entry)
                e = be64(at)
                if e and not e >> 62 & 1:
                    put(at, e ^ 1 << 63)
            elif kind < .85:
                put(table, 0)
            elif kind < .9:
                put(table, be64(table) + cluster)
            elif kind < .93:
                put(table + 8, end // cluster * cluster + 10 * cluster)
            elif options.get('compat') != '0.10':
                put(72, int.from_bytes(head[72:80], 'big') | 1)


def case_repair(rng, folder):
    options = random_options(rng)
    image, a, b, copy = (os.path.join(folder, n) for n in (
        'a.qcow2', 'a', 'b', 'copy.qcow2'))
    size = random_size(rng, options, 8 << 20)
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', option_list(options),
        image, size)
    qemu_io(image, random_writes(rng, options, size, rng.randint(0, 20)))
    if rng.random() < .3 and options.get('refcount_bits') != 1:
        if run('qemu-img', 'snapshot', '-c', 's', image,
               fail=False).returncode:
            run('qemu-img', 'check', '-r', 'all', image, fail=False)
        qemu_io(image, random_writes(rng, options, size, 5))
    tool(image, 'dump', a)
    damage(rng, image, options)
    assert_same_check(image)
    shutil.copy(image, copy)
    p = tool(image, rng.choice(['leaks', 'fix']), fail=False)
    if p.returncode == 0:
        left = our_check(image)
        theirs = qemu_check(image)
        if left != theirs:
            raise Failed('after a repair: %s, ours %s' % (theirs, left))
    tool(image, 'fix')
    run('qemu-img', 'check', '-r', 'all', '-f', 'qcow2', copy, fail=False)
    ours, theirs = qemu_check(image), qemu_check(copy)
    for k in ('corruptions', 'check-errors', 'leaks'):
        if ours[k] > (theirs or ours)[k]:
            raise Failed('repaired: %s, ours %s' % (theirs, ours))
    if ours['corruptions']:
        return
    tool(image, 'dump', b)
    same(a, b, 'repaired')
    tool(image, 'random', 1, 20, 1)
    # A count past the end of the file is no leak until the file gets there.
    assert_clean(image, leaks=True)


PARTS = {'read': case_read, 'write': case_write, 'mixed': case_mixed,
         'repair': case_repair}


def main():
    global IMGTOOL
    parser = argparse.ArgumentParser()
    parser.add_argument('imgtool')
    parser.add_argument('-s', '--seed', type=int, default=1)
    parser.add_argument('-n', '--count', type=int, default=15)
    parser.add_argument('-k', '--keep', action='store_true')
    parser.add_argument('-p', '--part', action='append', choices=PARTS)
    args = parser.parse_args()
    for program in ('qemu-img', 'qemu-io'):
        if not shutil.which(program):
            print('no %s' % program)
            return 77
    IMGTOOL = os.path.abspath(args.imgtool)
    failed = 0
    for part in args.part or PARTS:
        for seed in range(args.seed, args.seed + args.count):
            folder = tempfile.mkdtemp(prefix='rhea-qcow2-')
            try:
                PARTS[part](random.Random('%s %d' % (part, seed)), folder)
            except Failed as e:
                print('-p %s -s %d -n 1 failed: %s' % (part, seed, e))
                failed += 1
                if args.keep:
                    print('files are in', folder)
                    return 1
            shutil.rmtree(folder)
        print('%s: done' % part)
    return failed > 0


if __name__ == '__main__':
    sys.exit(main())
