# SPDX-License-Identifier: MIT
"""
Tidying after a conversion in place had no place for tables of several
clusters where single tables stood everywhere (first-level tables of large
QCOW2 disks with small clusters), where tables were most of the image (QED with
table_size=16), or when surplus reference counts went. It then took room that
nobody had planned, or gave up with clusters left past the end.

Each of these goes through in no more room than --dry-run says, and leaves no
leak.
"""
import os
import shutil
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "../lib"))
import images  # noqa: E402
import judge   # noqa: E402
import tap     # noqa: E402
from judge import require  # noqa: E402

TOP = tempfile.mkdtemp(prefix="rhea-room-")


def make(fmt, size, options, *writes):
    path = os.path.join(TOP, "image")
    images.run("qemu-img", "create", "-q", "-f", fmt, "-o", options, path,
               size)
    commands = []
    for write in writes:
        commands += ["-c", "write -q " + write]
    images.run("qemu-io", "-f", fmt, *commands, path)
    images.copy_sparse(path, path + ".before")
    return path


def convert(path, source, target, *options):
    plan = judge.plan(path, target, options)
    limit = os.path.getsize(path) + plan["extra"]
    judge.convert_inplace(path, target, options, limit=limit)
    judge.check(path, target)
    judge.compare(path + ".before", source, path, target)
    require(os.path.getsize(path) <= plan["final-file-size"],
            "it is larger than planned")


def a_long_first_level_table_finds_a_place():
    for writes in (["-P 1 0 4k"], ["-P 1 0 64k", "-P 2 10M 64k"],
                   ["-P 1 0 64k", "-P 2 30G 300k", "-P 3 60G 1M"]):
        path = make("qcow2", "100G", "cluster_size=4k", *writes)
        convert(path, "qcow2", "qed")
        convert(path, "qcow2", "qcow2")


def tables_that_are_most_of_the_image_find_a_place():
    for writes in (["-P 1 0 4k"], ["-P 1 0 4k", "-P 2 1G 12k"],
                   ["-P 1 0 20k", "-P 2 1G 4k", "-P 3 2G 4k"]):
        for table in (2, 4, 8, 16):
            path = make("qcow2", "3G", "cluster_size=16k", *writes)
            convert(path, "qcow2", "qed", "table_size=%d" % table)


def surplus_reference_counts_go():
    path = make("qed", "1G", "cluster_size=4M,table_size=2", "-P 1 0 12k",
                "-P 2 512M 12k")
    convert(path, "qed", "qcow2", "cluster_size=512", "refcount_bits=64")


if __name__ == "__main__":
    try:
        CODE = tap.main([a_long_first_level_table_finds_a_place,
                         tables_that_are_most_of_the_image_find_a_place,
                         surplus_reference_counts_go])
    finally:
        shutil.rmtree(TOP, ignore_errors=True)
    sys.exit(CODE)
