/* SPDX-License-Identifier: MIT */
/*
 * The references that the tree of an L1 table makes: to its L2 tables, and to
 * all that their entries lead to, compressed clusters with each cluster they
 * touch. They are counted first, so that an operation that cannot succeed
 * writes nothing.
 */
#include <errno.h>
#include <inttypes.h>

#include "format/qcow2/qcow2.h"

void qcow2_tree_free(struct qcow2_tree *tree)
{
    free(tree->counts);
    *tree = (struct qcow2_tree){0};
}

static int tree_refer(const struct qcow2 *q, struct qcow2_tree *tree,
                      uint64_t host, uint64_t length, struct rhea_error *err)
{
    uint64_t first = host >> q->cluster_bits;
    uint64_t last = (host + length - 1) >> q->cluster_bits;

    for (uint64_t i = first; i <= last; i++) {
        if (i >= tree->n || tree->counts[i] == UINT16_MAX)
            return rhea_error_set(
                err, EIO,
                "the tables refer to cluster %" PRIu64
                " %s; the image must be checked",
                i, i < tree->n ? "too often" : "past the end of the file");
        tree->counts[i]++;
    }
    return 0;
}

static int tree_count_entry(struct qcow2 *q, struct qcow2_tree *tree,
                            uint64_t guest, struct qcow2_entry e,
                            struct rhea_error *err)
{
    uint64_t host = e.entry & QCOW2_OFFSET_MASK, length = q->cluster_size;
    int r = qcow2_entry_check(q, guest, e, err);

    if (r < 0)
        return r;
    if (e.entry & QCOW2_COMPRESSED)
        qcow2_compressed_place(q, e.entry, &host, &length);
    else if (!host)
        return 0;
    if (qcow2_overlaps(q, &q->tables, host, length))
        return rhea_error_set(err, EIO,
                              "an L2 entry leads to 0x%" PRIx64
                              ", where the image has its tables; the image "
                              "must be checked",
                              host);
    return tree_refer(q, tree, host, length, err);
}

static int tree_count_table(struct qcow2 *q, struct qcow2_tree *tree,
                            uint64_t guest, uint64_t host, uint8_t *table,
                            struct rhea_error *err)
{
    int r = rhea_storage_read_padded(q->f.storage, table, q->cluster_size, host,
                                     err);

    for (size_t i = 0; r == 0 && i < (size_t)1 << q->l2_bits; i++) {
        const uint8_t *at = table + (i << q->entry_bits);
        struct qcow2_entry e = {load_be64(at),
                                qcow2_extended(q) ? load_be64(at + 8) : 0};

        if (e.entry || e.bitmap)
            r = tree_count_entry(q, tree, guest, e, err);
        guest += q->cluster_size;
    }
    return r;
}

static int tree_count_all(struct qcow2 *q, struct qcow2_tree *tree,
                          const uint64_t *l1, uint32_t n,
                          struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *table = malloc(q->cluster_size);
    struct bitmap seen = {0};
    int r;

    if (!table)
        return rhea_error_set(err, ENOMEM, "out of memory");
    /* Where no L2 table can be. */
    r = qcow2_note_core(q, &seen, err);
    for (uint32_t i = 0; r == 0 && i < n; i++) {
        uint64_t host = l1[i] & QCOW2_OFFSET_MASK, at = host >> q->cluster_bits;

        r = qcow2_l1_entry_check(q, i, l1[i], err);
        if (r < 0 || !host)
            continue;
        /* Else a small file could keep this busy for days. */
        if (at >= seen.n_bits || bitmap_get(&seen, at)) {
            r = rhea_error_set(err, EIO,
                               "an L1 entry leads to 0x%" PRIx64
                               ", which is used for something else as well; "
                               "the image must be checked",
                               host);
            continue;
        }
        bitmap_set(&seen, at, 1);
        r = tree_refer(q, tree, host, 1, err);
        if (r == 0)
            r = tree_count_table(q, tree, (uint64_t)i << qcow2_l1_shift(q),
                                 host, table, err);
    }
    bitmap_finish(&seen);
    return r;
}

static int tree_check_one(struct qcow2 *q, uint64_t cluster, uint16_t count,
                          int addend, struct rhea_error *err)
{
    uint64_t refcount;
    int r = qcow2_refcount_get(q, cluster, &refcount, err);

    if (r < 0)
        return r;
    if (refcount < count)
        return rhea_error_set(err, EIO,
                              "cluster %" PRIu64 " has refcount %" PRIu64
                              " but at least %u references; the image must be "
                              "checked",
                              cluster, refcount, count);
    if (addend > 0 && refcount > q->refcount_max - count)
        return rhea_error_set(err, EINVAL,
                              "cluster %" PRIu64 " has %" PRIu64
                              " references, and refcounts of %u bits cannot "
                              "count %u more",
                              cluster, refcount, 1U << q->refcount_order,
                              count);
    return 0;
}

int qcow2_tree_count(struct qcow2 *q, struct qcow2_tree *tree,
                     const uint64_t *l1, uint32_t n, int addend,
                     struct rhea_error *err)
{
    int r = rhea_storage_size(q->f.storage, &q->file_size, err);

    if (r < 0)
        return r;
    tree->n = div_up(q->file_size, q->cluster_size);
    tree->counts = calloc(tree->n + 1, sizeof(*tree->counts));
    if (!tree->counts)
        return rhea_error_set(err, ENOMEM, "out of memory");
    r = tree_count_all(q, tree, l1, n, err);
    for (uint64_t i = 0; r == 0 && i < tree->n; i++)
        if (tree->counts[i])
            r = tree_check_one(q, i, tree->counts[i], addend, err);
    return r;
}

int qcow2_tree_raise(struct qcow2 *q, const struct qcow2_tree *tree,
                     struct rhea_error *err)
{
    for (uint64_t i = 0; i < tree->n; i++) {
        int r = tree->counts[i]
                    ? qcow2_refcount_add(q, i, 1, tree->counts[i], err)
                    : 0;

        if (r < 0) {
            while (i--)
                if (tree->counts[i])
                    (void)qcow2_refcount_add(q, i, 1, -tree->counts[i], NULL);
            return r;
        }
    }
    return 0;
}

void qcow2_tree_lower(struct qcow2 *q, const struct qcow2_tree *tree)
{
    for (uint64_t i = 0; i < tree->n; i++)
        if (tree->counts[i])
            (void)qcow2_refcount_add(q, i, 1, -tree->counts[i], NULL);
}

int qcow2_tree_release(struct qcow2 *q, const struct qcow2_tree *tree,
                       struct rhea_error *err)
{
    for (uint64_t i = 0; i < tree->n; i++) {
        for (unsigned k = 0; k < tree->counts[i]; k++) {
            int r = qcow2_release(q, i, 1, true, err);

            if (r < 0)
                return r;
        }
    }
    return 0;
}

/* What an entry is with the flag that its cluster's refcount calls for; as it
 * is where that cannot be told. */
static uint64_t flags_entry(struct qcow2 *q, uint64_t entry)
{
    uint64_t host = entry & QCOW2_OFFSET_MASK, refcount;

    if (!host || !is_aligned(host, q->cluster_size) ||
        qcow2_refcount_get(q, host >> q->cluster_bits, &refcount, NULL) < 0)
        return entry;
    return refcount == 1 ? entry | QCOW2_COPIED : entry & ~QCOW2_COPIED;
}

static int flags_table(struct qcow2 *q, uint64_t host, struct rhea_error *err)
{
    for (uint64_t at = 0; at < q->cluster_size; at += q->l2.unit) {
        struct qcow2_slice *slice;
        int r = qcow2_cache_get(&q->l2, host + at, &slice, err);

        if (r < 0)
            return r;
        for (unsigned i = 0; i < qcow2_slice_entries(q); i++) {
            struct qcow2_entry e = qcow2_entry_get(q, slice, i);
            uint64_t entry = e.entry;

            if (entry & QCOW2_COMPRESSED)
                continue;
            e.entry = flags_entry(q, entry);
            if (e.entry != entry)
                qcow2_entry_set(q, slice, i, e);
        }
    }
    return 0;
}

int qcow2_flags_update(struct qcow2 *q, struct rhea_error *err)
{
    struct bitmap seen = {0};
    int r = bitmap_init(&seen, div_up(q->file_size, q->cluster_size), err);

    for (uint32_t i = 0; r == 0 && i < q->l1_size; i++) {
        uint64_t host = q->l1[i] & QCOW2_OFFSET_MASK, at, entry;

        /* What is damaged is left alone. */
        if (!host || qcow2_l1_entry_check(q, i, q->l1[i], NULL) < 0)
            continue;
        at = host >> q->cluster_bits;
        if (at >= seen.n_bits || bitmap_get(&seen, at))
            continue;
        bitmap_set(&seen, at, 1);
        entry = flags_entry(q, q->l1[i]);
        if (entry != q->l1[i])
            qcow2_l1_set(q, i, entry);
        r = flags_table(q, host, err);
    }
    bitmap_finish(&seen);
    return r;
}
