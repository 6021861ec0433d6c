#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
Images that other programs wrote are read to the bytes that these meant, and
damaged ones, and those whose parent is missing, are refused.

The images are no part of the project. They are in the folder that RHEA_SAMPLES
names or in ../shared/samples beside the source tree; without it the test is
skipped. INDEX.tsv in there says what each is, and what another tool read out of
it; EXPECTED below says so where the index does not, or another tool is wrong.

A format is covered once its name is in FORMATS.
"""
import bz2
import collections
import csv
import gzip
import hashlib
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
import tap  # noqa: E402  pylint: disable=wrong-import-position

RHEA = os.environ["RHEA_IMG"]

# Names as in the index. Where rhea-img calls a format by another name, that.
FORMATS = {
    "raw": "raw",
    "qcow2": "qcow2",
    "qcow": "qcow",
    "luks": "luks",
    "parallels": "parallels",
    "vmdk": "vmdk",
    "vhdx": "vhdx",
    "vhd": "vpc",
}

UNPACK = {".bz2": bz2.open, ".gz": gzip.open, ".xz": lzma.open}

# What a sample is to do. SHA256: of the guest's bytes. REFUSED: a pattern that
# the message matches. SIZE: of the disk, where its bytes are not compared.
# SECRET: the text, or the file beside the image, of its passphrase.
Expected = collections.namedtuple(
    "Expected", "sha256 refused size secret", defaults=(None,) * 4)

# By path, and for what is in an archive by path:member. The bytes of LUKS
# images: those of compatimage are QEMU's, those of compatv10image were decrypted
# by openssl with the key that cryptsetup tells; in the set each holds a FAT of
# one serial number (FAT_SERIAL), which no wrong key would show.
EXPECTED = {
    # The descriptor of a bundle, without the file that it describes.
    "parallels/hfsplus.hdd/DiskDescriptor.xml": Expected(
        refused=r"hfsplus\.hdd\.0\..*No such file"),
    # What QEMU reads once it has replayed the log.
    "vhdx/iotest-dirtylog-10G-4M.vhdx.bz2": Expected(
        sha256="179cefe8b0587f123393eedf2aa7aa8d25798591178e6bc3950a09762f38f96f"),
    "vhdx/vhdx-log-replay.vhdx.gz": Expected(
        sha256="3ba3b309425b7ff5e8e0199edceed95226250f880c53b24e8eae93865f3fad5e"),
    "luks/compatimage.img.xz": Expected(
        secret="compatkey",
        sha256="7428e8f2436882a07eb32765086f5c899474c08b5576f556b573d2aabdf923e8"),
    "luks/compatv10image.img.xz": Expected(
        secret="compatkey",
        sha256="653c841dcef99d47a93752cdf7bf01145b061902c4a457a61198405fdfe9971c"),
    "luks/valid_header_file.xz": Expected(size=0),
    "luks/luks2_valid_hdr.img.xz": Expected(refused="version 2"),
    "luks/luks2_keyslot_unassigned.img.xz": Expected(refused="version 2"),
    # It has only the second of the two headers of LUKS2.
    "luks/blkid-luks2-pv.img.xz": Expected(refused="no LUKS header"),
    "luks/luks2_invalid_cipher.img.xz": Expected(refused="version 2"),
    "luks/luks2_header_requirements.tar.xz": Expected(refused="version 2"),
    "luks/luks1-images.tar.xz": Expected(secret="@keyfile1"),
    "luks/luks1-images.tar.xz:luks1_aes-lrw-plain64-sha1.img":
        Expected(refused="lrw"),
    "luks/luks1-images.tar.xz:luks1_aes-xts-essiv-wp256-whirlpool.img":
        Expected(refused="wp256"),
}
FAT_SERIAL = (0x27, bytes.fromhex("bebaadde"))


class Sample:
    """One image: a row of the index, or a member of the archive that is one."""

    def __init__(self, row, path, name, expected):
        self.row, self.path, self.name = row, path, name
        self.expected = expected
        self.format = FORMATS[row["format"]]


def samples_folder():
    folder = os.environ.get("RHEA_SAMPLES") or os.path.join(
        os.environ["RHEA_SOURCE"], "..", "shared", "samples")
    return folder if os.path.exists(os.path.join(folder, "INDEX.tsv")) else None


def read_index(folder):
    with open(os.path.join(folder, "INDEX.tsv"), encoding="utf-8",
              newline="") as f:
        rows = list(csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [r for r in rows if r["format"] in FORMATS]


def file_digest(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        for piece in iter(lambda: f.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def unpacked(folder, row, scratch):
    """The sample as a file that can be opened; without its packing."""
    path = os.path.join(folder, row["path"])
    stem, extension = os.path.splitext(path)
    if extension not in UNPACK:
        return path
    target = os.path.join(scratch, os.path.basename(stem))
    with UNPACK[extension](path) as packed, open(target, "wb") as f:
        shutil.copyfileobj(packed, f)
    return target


def from_index(row):
    """What the index says of a sample that EXPECTED does not name."""
    said = row["raw_contents_hash(which tool)"]
    hashes = set(re.findall(r"sha256=([0-9a-f]{64})",
                            said + " " + row["second_tool"]))
    size = re.match(r"virtual (\d+) bytes", said)
    if len(hashes) == 1:
        return Expected(sha256=hashes.pop())
    if len(hashes) > 1 or "FAILS" in said or "damaged" in row["notes"]:
        return Expected(refused=".")
    if size:
        return Expected(size=int(size.group(1)))
    return None


def members(folder, row, path):
    """The images in an archive, unpacked beside it."""
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            if member.isfile():
                member.name = os.path.basename(member.name)
                archive.extract(member, os.path.dirname(path))
        names = [m.name for m in archive.getmembers()
                 if m.isfile() and m.size >= 4096 and m.name != "keyfile1"]
    for name in sorted(names):
        full = row["path"] + ":" + name
        expected = EXPECTED.get(full, EXPECTED.get(row["path"]))
        yield Sample(row, os.path.join(os.path.dirname(path), name), full,
                     expected)


def samples(folder, row, scratch):
    path = unpacked(folder, row, scratch)
    if path.endswith(".tar"):
        yield from members(folder, row, path)
    else:
        yield Sample(row, path, row["path"],
                     EXPECTED.get(row["path"]) or from_index(row))


def image(sample, guest=True):
    """How rhea-img is told which image. With GUEST, by options and with the
    secret, where it has one."""
    secret = sample.expected.secret
    if not secret or not guest:
        return ["-f", sample.format, "--", sample.path]
    what = "data=" + secret
    if secret.startswith("@"):
        what = "file=" + os.path.join(os.path.dirname(sample.path), secret[1:])
    return ["--object", "secret,id=s," + what, "--image-opts", "--",
            "driver=%s,key-secret=s,file.filename=%s" % (sample.format,
                                                         sample.path)]


def rhea(*args):
    return subprocess.run([RHEA, *args], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, check=False)


def require(truth, text):
    if not truth:
        raise tap.judge.Failure(text)


def succeed(*args):
    done = rhea(*args)
    require(done.returncode == 0, "%s: %s" % (" ".join(args), done.stderr))
    return done


def refused(sample, scratch):
    target = os.path.join(scratch, "guest")
    done = rhea("convert", "-O", "raw", *image(sample), target)
    require(done.returncode == 1, "%s: exit code %d, not refused"
            % (sample.name, done.returncode))
    require(done.stderr.startswith("rhea-img: ") and
            re.search(sample.expected.refused, done.stderr),
            "%s: %s" % (sample.name, done.stderr))


def contents(sample, scratch):
    target = os.path.join(scratch, "guest")
    succeed("convert", "-O", "raw", *image(sample), target)
    if sample.expected.sha256:
        found = file_digest(target)
        require(found == sample.expected.sha256,
                "%s: the guest's bytes have the hash %s" % (sample.name, found))
        return
    offset, want = FAT_SERIAL
    with open(target, "rb") as f:
        f.seek(offset)
        found = f.read(len(want))
    require(found == want, "%s: no such file system in it" % sample.name)


def looked_at(sample):
    """What needs no passphrase, and what is the same whoever asks."""
    info = json.loads(succeed("info", "--output=json",
                              *image(sample, guest=False)).stdout)
    require(info["format"] == sample.format, "%s: format %s"
            % (sample.name, info["format"]))
    if sample.expected.size is not None:
        require(info["virtual-size"] == sample.expected.size,
                "%s: a disk of %d bytes" % (sample.name, info["virtual-size"]))
    return info


def judge_sample(sample, scratch):
    require(sample.expected, "%s: nothing says what is in it" % sample.name)
    if sample.expected.refused:
        refused(sample, scratch)
        return
    info = looked_at(sample)
    if sample.expected.sha256 or sample.expected.secret:
        contents(sample, scratch)
    elif not info.get("encrypted"):
        succeed("map", "--output=json", *image(sample))


def judge_row(folder, row):
    """All that a row of the index stands for."""
    path = os.path.join(folder, row["path"])
    require(file_digest(path) == row["file_sha256"],
            "%s is not the file that the index tells of" % path)
    with tempfile.TemporaryDirectory(prefix="rhea-samples-") as scratch:
        count = 0
        for sample in samples(folder, row, scratch):
            judge_sample(sample, scratch)
            count += 1
        require(count, "%s: no image in it" % path)


def main():
    folder = samples_folder()
    if not folder:
        print("1..0 # SKIP no folder of samples: RHEA_SAMPLES names none, and "
              "there is no ../shared/samples")
        return 0
    rows = read_index(folder)
    results = tap.Tap(len(rows))
    for row in rows:
        results.run(row["path"], judge_row, folder, row)
    return results.exit_code()


sys.exit(main())
