/* SPDX-License-Identifier: MIT */
/*
 * A snapshot table in which every entry has the extra data that version 3
 * requires (the spec, "Snapshots"); a version 2 image that was turned into one
 * of version 3 may lack it.
 *
 * Order: the refcounts of its clusters and the new table, flush; the header's
 * count and pointer (within one sector), flush; then the old table is free.
 */
#include <errno.h>

#include "format/qcow2/qcow2.h"

enum {
    FIX_HEADER = 40,
    FIX_REQUIRED = 16, /* large VM state size, disk size */
    FIX_KNOWN = 24,    /* and instruction count */
};

uint32_t qcow2_snapshots_incomplete(const struct qcow2 *q)
{
    uint32_t n = 0;

    for (uint32_t i = 0; q->version >= 3 && i < q->n_snapshots; i++)
        n += q->snapshots[i].extra_size < FIX_REQUIRED;
    return n;
}

/* One entry from OLD to NEW, both zero beyond what they hold. */
static void fix_entry(const struct qcow2 *q, const uint8_t *old, uint8_t *new,
                      uint64_t *old_size, uint64_t *new_size)
{
    uint32_t extra = load_be32(old + 36);
    uint32_t names = (uint32_t)load_be16(old + 12) + load_be16(old + 14);
    uint32_t more = RHEA_MAX(extra, FIX_KNOWN);

    memcpy(new, old, FIX_HEADER + extra);
    store_be32(new + 36, more);
    if (extra < 8)
        store_be64(new + FIX_HEADER, load_be32(old + 32));
    if (extra < 16)
        store_be64(new + FIX_HEADER + 8, q->f.size);
    if (extra < 24)
        store_be64(new + FIX_HEADER + 16, UINT64_MAX); /* none was counted */
    memcpy(new + FIX_HEADER + more, old + FIX_HEADER + extra, names);
    *old_size = align_up(FIX_HEADER + extra + names, 8);
    *new_size = align_up(FIX_HEADER + more + names, 8);
}

/* The new table, malloc'd in whole clusters. */
static int fix_build(struct qcow2 *q, uint8_t **table, uint64_t *length,
                     struct rhea_error *err)
{
    uint64_t room = q->snapshots_length + q->n_snapshots * 32ULL + 8;
    RHEA_AUTO_FREE uint8_t *old = calloc(1, q->snapshots_length + 8);
    uint64_t from = 0, to = 0, old_size, new_size;
    int r;

    *table = calloc(1, align_up(room, q->cluster_size));
    if (!old || !*table)
        return rhea_error_set(err, ENOMEM, "out of memory");
    r = rhea_storage_read_padded(q->f.storage, old, q->snapshots_length,
                                 q->snapshots_offset, err);
    for (uint32_t i = 0; r == 0 && i < q->n_snapshots; i++) {
        fix_entry(q, old + from, *table + to, &old_size, &new_size);
        from += old_size;
        to += new_size;
    }
    *length = to;
    return r;
}

int qcow2_snapshots_complete(struct qcow2 *q, struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *table = NULL;
    uint64_t length = 0, count, cluster, old = q->snapshots_offset;
    uint64_t old_count = div_up(q->snapshots_length, q->cluster_size);
    uint8_t pointer[12];
    int r = fix_build(q, &table, &length, err);

    if (r < 0)
        return r;
    count = div_up(length, q->cluster_size);
    r = qcow2_alloc_table(q, count, &cluster, err);
    if (r == 0)
        r = rhea_storage_write(q->f.storage, table, count << q->cluster_bits,
                               cluster << q->cluster_bits, err);
    if (r == 0)
        r = qcow2_refs_write(q, err); /* ends with a flush */
    if (r < 0)
        return r;
    store_be32(pointer, q->n_snapshots);
    store_be64(pointer + 4, cluster << q->cluster_bits);
    r = rhea_storage_write(q->f.storage, pointer, sizeof(pointer),
                           QCOW2_AT_SNAPSHOTS, err);
    if (r == 0)
        r = rhea_storage_flush(q->f.storage, err);
    if (r < 0)
        return r;
    q->snapshots_offset = cluster << q->cluster_bits;
    r = qcow2_refcount_add(q, old >> q->cluster_bits, old_count, -1, err);
    if (r == 0)
        r = qcow2_refs_write(q, err);
    return r == 0 ? qcow2_snapshots_read(q, err) : r;
}
