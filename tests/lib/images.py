# SPDX-License-Identifier: MIT
"""
Makes QCOW2 and QED images of every sort, by QEMU's tools where they can and by
hand where they cannot, from a seed: the same seed makes the same image.

    image = make(seed, folder)          # of any sort
    image = make(seed, folder, sort)    # one of SORTS

Images hold little data, at most about max_data bytes, so that hundreds of
them can be made and converted in a minute. In a folder of its own each.
"""
import os
import random
import shutil

import images_qcow2
import images_qed
from image_parts import MIB, Image, ToolError, copy_sparse, no_core, run
from images_qed import qed_capacity

__all__ = ["MIB", "SORTS", "Image", "ToolError", "copy_sparse", "make",
           "no_core", "qed_capacity", "run", "target_options"]

SORTS = {
    "qcow2-plain": images_qcow2.qcow2_plain,
    "qcow2-backed": images_qcow2.qcow2_backed,
    "qcow2-small-clusters": images_qcow2.qcow2_small_clusters,
    "qcow2-refcounts": images_qcow2.qcow2_refcounts,
    "qcow2-lazy-dirty": images_qcow2.qcow2_lazy_dirty,
    "qcow2-crashed": images_qcow2.qcow2_crashed,
    "qcow2-compressed": images_qcow2.qcow2_compressed,
    "qcow2-zstd": images_qcow2.qcow2_zstd,
    "qcow2-subclusters": images_qcow2.qcow2_subclusters,
    "qcow2-preallocated": images_qcow2.qcow2_preallocated,
    "qcow2-zero-clusters": images_qcow2.qcow2_zero_clusters,
    "qcow2-resized": images_qcow2.qcow2_resized,
    "qcow2-snapshotted": images_qcow2.qcow2_snapshotted,
    "qcow2-amended": images_qcow2.qcow2_amended,
    "qcow2-losses": images_qcow2.qcow2_losses,
    "qcow2-trailing": images_qcow2.qcow2_trailing,
    "qcow2-empty": images_qcow2.qcow2_empty,
    "qcow2-huge": images_qcow2.qcow2_huge,
    "qed-plain": images_qed.qed_plain,
    "qed-backed": images_qed.qed_backed,
    "qed-need-check": images_qed.qed_need_check,
    "qed-large-clusters": images_qed.qed_large_clusters,
    "qed-trailing": images_qed.qed_trailing,
    "qed-zero-clusters": images_qed.qed_zero_clusters,
    "qed-empty": images_qed.qed_empty,
    "qed-by-hand": images_qed.qed_by_hand,
    "qed-table-1": images_qed.qed_table_1,
    "qed-gaps": images_qed.qed_gaps,
    "qcow2-gaps": images_qcow2.qcow2_gaps,
}


def marked_corrupt(path):
    """Whether QEMU, which made the image, has marked it corrupt: it does not
    get along with some mixtures of compressed and other writes."""
    with open(path, "rb") as f:
        head = f.read(80)
    return head[:8] == b"QFI\xfb\0\0\0\3" and bool(head[79] & 2)


def make(seed, folder, sort=None, max_data=2 * MIB, effort=1, largest=None):
    """Make image number SEED in FOLDER, which is emptied first. Without SORT
    the sorts take turns. EFFORT: how many times as much is done to it. LARGEST:
    a limit of the disk's size, so that it is compared quickly."""
    names = list(SORTS)
    if sort is None:
        sort = names[seed % len(names)]
    for attempt in range(1000):
        rng = random.Random("%s %d %d" % (sort, seed, attempt))
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        image = Image(rng, folder, sort.split("-")[0], max_data, effort)
        image.text = [sort, "seed=%d" % seed]
        SORTS[sort](image)
        on_disk = os.stat(image.path).st_blocks * 512
        if not marked_corrupt(image.path) and (
                not largest or (image.size <= largest and
                                on_disk <= 8 * max_data)):
            break
    image.keep_guest()
    return image


def target_options(rng, image):
    """Options for the conversion of IMAGE that are not the defaults."""
    if image.prefers:
        return image.prefers
    options = []
    if image.other == "qcow2":
        v3 = rng.random() < 0.7
        options.append("compat=%s" % ("1.1" if v3 else "0.10"))
        if v3 and rng.random() < 0.6:
            options.append("refcount_bits=%d"
                           % rng.choice([1, 2, 4, 8, 16, 32, 64]))
        if v3 and rng.random() < 0.3:
            options.append("lazy_refcounts=on")
        if rng.random() < 0.4:
            # Smaller than the source's: clusters are split. Larger: all is
            # put together anew.
            sizes = [c for c in (512, 4096, 65536, 2 * MIB)
                     if image.size <= c * c // 8 * (100 << 10) and
                     (not image.backing or c >= 4096)]
            if sizes:
                options.append("cluster_size=%d" % rng.choice(sizes))
        return options

    cluster = image.cluster_size
    if rng.random() < 0.4:
        cluster = rng.choice([4096, 16384, 65536, 1 << 20])
        options.append("cluster_size=%d" % cluster)
    cluster = max(cluster, 4096)
    sizes = [t for t in (2, 4, 8, 16)
             if image.size <= qed_capacity(cluster, t) < 1 << 64]
    if rng.random() < 0.6 and sizes:
        options.append("table_size=%d" % rng.choice(sizes))
    elif image.size > qed_capacity(cluster, 16):
        return []
    return options
