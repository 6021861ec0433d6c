/* SPDX-License-Identifier: MIT */
/*
 * Another L1 table in the place of the active one.
 *
 * Order: its clusters' refcounts and the table, flush; the header's pointer to
 * it with its length and the virtual size (within one sector), flush; then the
 * old table is free. So the image has the old table or the new one, and after a
 * crash at worst the clusters of the other are leaked.
 */
#include <errno.h>
#include <inttypes.h>

#include "format/qcow2/qcow2.h"

static int l1_write(struct qcow2 *q, const uint64_t *l1, uint32_t n,
                    uint64_t host, struct rhea_error *err)
{
    uint64_t bytes = align_up((uint64_t)n * 8, q->cluster_size);
    RHEA_AUTO_FREE uint64_t *table = calloc(1, bytes);

    if (!table)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (uint32_t i = 0; i < n; i++)
        table[i] = htobe64(l1[i]);
    return rhea_storage_write(q->f.storage, table, bytes, host, err);
}

int qcow2_l1_store(struct qcow2 *q, const uint64_t *l1, uint32_t n,
                   uint64_t *host, struct rhea_error *err)
{
    int r;

    rhea_storage_event(q->f.storage, "l1_grow_alloc_table");
    r = qcow2_alloc_run(q, (uint64_t)n * 8, host, err);
    if (r < 0 || !n)
        return r;
    rhea_storage_event(q->f.storage, "l1_grow_write_table");
    r = l1_write(q, l1, n, *host, err);
    if (r < 0)
        (void)qcow2_refcount_add(q, *host >> q->cluster_bits,
                                 div_up((uint64_t)n * 8, q->cluster_size), -1,
                                 NULL);
    return r;
}

static int l1_switch(struct qcow2 *q, uint64_t host, uint32_t n, uint64_t size,
                     struct rhea_error *err)
{
    uint8_t fields[QCOW2_AT_REFTABLE_OFFSET - QCOW2_AT_SIZE];
    int r;

    store_be64(fields, size);
    store_be32(fields + (QCOW2_AT_CRYPT - QCOW2_AT_SIZE), q->crypt_method);
    store_be32(fields + (QCOW2_AT_L1_SIZE - QCOW2_AT_SIZE), n);
    store_be64(fields + (QCOW2_AT_L1_OFFSET - QCOW2_AT_SIZE), host);
    rhea_storage_event(q->f.storage, "l1_grow_activate_table");
    r = rhea_storage_write(q->f.storage, fields, sizeof(fields), QCOW2_AT_SIZE,
                           err);
    if (r == 0)
        r = rhea_storage_flush(q->f.storage, err);
    return qcow2_fail(q, r);
}

int qcow2_l1_replace(struct qcow2 *q, const uint64_t *l1, uint32_t n,
                     uint64_t size, struct rhea_error *err)
{
    uint64_t host, old = q->l1_offset >> q->cluster_bits;
    uint64_t old_count = div_up((uint64_t)q->l1_size * 8, q->cluster_size);
    RHEA_AUTO_FREE uint64_t *copy = malloc((size_t)n * 8 + 8);
    struct bitmap dirty = {0};
    int r;

    if (!copy)
        return rhea_error_set(err, ENOMEM, "out of memory");
    if (n)
        memcpy(copy, l1, (size_t)n * 8);
    r = bitmap_init(&dirty, div_up(n, 64) + 1, err);
    if (r == 0)
        r = qcow2_l1_store(q, l1, n, &host, err);
    if (r == 0) {
        r = qcow2_fail(q, rhea_storage_flush(q->f.storage, err));
        if (r == 0)
            r = qcow2_fail(q, qcow2_refs_write(q, err));
        if (r == 0)
            r = l1_switch(q, host, n, size, err);
    }
    if (r < 0) {
        bitmap_finish(&dirty);
        return r;
    }
    bitmap_finish(&q->l1_dirty);
    q->l1_dirty = dirty;
    free(q->l1);
    q->l1 = rhea_steal(copy);
    q->l1_offset = host;
    q->l1_size = n;
    q->l1_needed = (uint32_t)div_up(size, 1ULL << qcow2_l1_shift(q));
    q->f.size = size;
    return qcow2_release(q, old, old_count, true, err);
}
