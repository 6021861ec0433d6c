/* SPDX-License-Identifier: MIT */
/*
 * Where tables are, so that damaged ones cannot make this driver write guest
 * data over them, or give their clusters back.
 */
#include <errno.h>
#include <inttypes.h>

#include "format/qcow2/qcow2.h"

/* Set the bits of a range, as far as the bitmap goes. */
static void overlap_note(const struct qcow2 *q, struct bitmap *b, uint64_t host,
                         uint64_t length)
{
    uint64_t first = host >> q->cluster_bits;
    uint64_t count = div_up(length, q->cluster_size);

    if (first < b->n_bits)
        bitmap_set(b, first, RHEA_MIN(count, b->n_bits - first));
}

int qcow2_note_core(const struct qcow2 *q, struct bitmap *b,
                    struct rhea_error *err)
{
    int r;

    bitmap_finish(b);
    r = bitmap_init(b, div_up(q->file_size, q->cluster_size), err);
    if (r < 0)
        return r;
    overlap_note(q, b, 0, 1);
    overlap_note(q, b, q->l1_offset, (uint64_t)q->l1_size * 8);
    overlap_note(q, b, q->reftable_offset,
                 (uint64_t)q->reftable_clusters << q->cluster_bits);
    overlap_note(q, b, q->snapshots_offset, q->snapshots_length);
    overlap_note(q, b, q->crypto_offset, q->crypto_length);
    for (uint32_t i = 0; i < q->reftable_size; i++)
        if (q->reftable[i])
            overlap_note(q, b, q->reftable[i], 1);
    for (uint32_t i = 0; q->snapshots && i < q->n_snapshots; i++)
        if (q->snapshots[i].l1_size <= QCOW2_MAX_L1_BYTES / 8)
            overlap_note(q, b, q->snapshots[i].l1_offset,
                         (uint64_t)q->snapshots[i].l1_size * 8);
    return 0;
}

int qcow2_note_tables(struct qcow2 *q, struct rhea_error *err)
{
    int r = qcow2_note_core(q, &q->tables, err);

    for (uint32_t i = 0; r == 0 && i < q->l1_size; i++)
        if (q->l1[i] & QCOW2_OFFSET_MASK)
            overlap_note(q, &q->tables, q->l1[i] & QCOW2_OFFSET_MASK, 1);
    return r;
}

bool qcow2_overlaps(const struct qcow2 *q, const struct bitmap *b,
                    uint64_t host, uint64_t length)
{
    uint64_t first = host >> q->cluster_bits;
    uint64_t last = (host + length - 1) >> q->cluster_bits;

    if (!length || first >= b->n_bits)
        return false;
    return bitmap_any(b, first, RHEA_MIN(last, b->n_bits - 1) - first + 1);
}

int qcow2_overlap_check(struct qcow2 *q, uint64_t host, uint64_t length,
                        struct rhea_error *err)
{
    bool marked = q->version >= 3;

    if (qcow2_external(q) || !qcow2_overlaps(q, &q->tables, host, length))
        return 0;
    /* What is in memory is not written any more: it may be as wrong. */
    if (marked && !(q->incompatible & QCOW2_INCOMPAT_CORRUPT)) {
        q->incompatible |= QCOW2_INCOMPAT_CORRUPT;
        (void)qcow2_header_write_features(q, NULL);
    }
    q->failed = true;
    return rhea_error_set(err, EIO,
                          "guest data is mapped to 0x%" PRIx64
                          ", where the image has its tables; the image %s and "
                          "must be checked",
                          host,
                          marked ? "is marked as corrupt now" : "is corrupt");
}
