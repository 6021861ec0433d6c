/* SPDX-License-Identifier: MIT */
/*
 * Unallocate everything: all L1 entries become 0, and what they led to loses a
 * reference, also where snapshots share it.
 *
 * Order: that of sync.c. Each L1 entry that reaches the disk makes a part of
 * the guest's bytes those of the backing file, in any order; what a table led
 * to is free only once the L1 table on disk does not lead there any more. At
 * last, with refcounts durable, the file's end that nobody uses is cut off.
 */
#include <errno.h>
#include <inttypes.h>

#include "format/qcow2/qcow2.h"

/* Give up what one L2 table leads to, and the table. It is read and checked
 * before its L1 entry goes. */
static int empty_table(struct qcow2 *q, uint32_t index, uint8_t *table,
                       struct rhea_error *err)
{
    uint64_t host = q->l1[index] & QCOW2_OFFSET_MASK;
    uint64_t guest = (uint64_t)index << qcow2_l1_shift(q);
    size_t n = (size_t)1 << q->l2_bits;
    int r = rhea_storage_read_padded(q->f.storage, table, q->cluster_size, host,
                                     err);

    for (size_t i = 0; r == 0 && i < n; i++)
        r = qcow2_entry_check(q, guest + ((uint64_t)i << q->cluster_bits),
                              qcow2_entry_load(q, table, i), err);
    if (r < 0)
        return r;
    qcow2_l1_set(q, index, 0);
    qcow2_cache_forget(&q->l2, host, q->cluster_size);
    for (size_t i = 0; r == 0 && i < n; i++)
        r = qcow2_entry_release(q, qcow2_entry_load(q, table, i), true, err);
    return r < 0 ? r : qcow2_release(q, host >> q->cluster_bits, 1, true, err);
}

int qcow2_tables_drop(struct qcow2 *q, uint32_t first, struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *table = malloc(q->cluster_size);
    struct bitmap seen = {0};
    int r;

    if (!table)
        return rhea_error_set(err, ENOMEM, "out of memory");
    r = bitmap_init(&seen, div_up(q->file_size, q->cluster_size), err);
    for (uint32_t i = first; r == 0 && i < q->l1_size; i++) {
        uint64_t at = (q->l1[i] & QCOW2_OFFSET_MASK) >> q->cluster_bits;

        r = qcow2_l1_entry_check(q, i, q->l1[i], err);
        if (r < 0 || !at)
            continue;
        /* Else a small file could make this take for ever. */
        if (at < seen.n_bits && bitmap_get(&seen, at)) {
            r = rhea_error_set(err, EIO,
                               "two L1 entries share an L2 table; the image "
                               "must be checked");
            continue;
        }
        if (at < seen.n_bits)
            bitmap_set(&seen, at, 1);
        r = empty_table(q, i, table, err);
    }
    bitmap_finish(&seen);
    return r;
}

int qcow2_make_empty(struct rhea_format *f, struct rhea_error *err)
{
    struct qcow2 *q = qcow2_of(f);
    int r;

    RHEA_LOCKED(&q->lock);
    if (q->autoclear & QCOW2_AUTOCLEAR_RAW_DATA)
        return rhea_error_set(err, ENOTSUP,
                              "an image whose data file is raw cannot be "
                              "emptied");
    r = qcow2_write_begin(q, err);
    qcow2_flight_wait(q, 0, UINT64_MAX);
    /* Tables are read past the cache. */
    if (r == 0)
        r = qcow2_sync(q, err);
    if (r == 0)
        r = qcow2_tables_drop(q, 0, err);
    if (r == 0)
        r = qcow2_sync(q, err);
    if (r == 0)
        r = qcow2_cut_end(q, err);
    return r;
}
