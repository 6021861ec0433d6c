/* SPDX-License-Identifier: MIT */
/*
 * Refcounts, and the allocation of host clusters (the spec, "Host cluster
 * management"). All under the driver's lock.
 *
 * In memory the refcounts run ahead of the file, in one direction only: they
 * are raised here at once, and lowered only when no table on disk leads to the
 * cluster any more (qcow2_release, sync.c). So a refcount block may be written
 * at any time, and a crash can leak clusters but never leave one in use that
 * counts as free.
 *
 * A new block is one of the clusters that it counts, so making one never needs
 * another; it stands behind those that are allocated together with it, so that
 * these are in one piece. The table in memory is longer than the one on disk
 * once it is to grow; qcow2_refs_write then moves it.
 */
#include <errno.h>
#include <inttypes.h>

#include "format/qcow2/qcow2.h"

uint64_t qcow2_refcount_load(unsigned order, const uint8_t *block,
                             uint64_t index)
{
    switch (order) {
    case 3:
        return block[index];
    case 4:
        return load_be16(block + index * 2);
    case 5:
        return load_be32(block + index * 4);
    case 6:
        return load_be64(block + index * 8);
    default: {
        unsigned bits = 1U << order, shift = (index << order) & 7;

        return block[index << order >> 3] >> shift & ((1U << bits) - 1);
    }
    }
}

void qcow2_refcount_store(unsigned order, uint8_t *block, uint64_t index,
                          uint64_t value)
{
    switch (order) {
    case 3:
        block[index] = (uint8_t)value;
        break;
    case 4:
        store_be16(block + index * 2, (uint16_t)value);
        break;
    case 5:
        store_be32(block + index * 4, (uint32_t)value);
        break;
    case 6:
        store_be64(block + index * 8, value);
        break;
    default: {
        unsigned bits = 1U << order, shift = (index << order) & 7;
        uint8_t *at = &block[index << order >> 3];

        *at =
            (uint8_t)((*at & ~(((1U << bits) - 1) << shift)) | value << shift);
    }
    }
}

int qcow2_refs_load(struct qcow2 *q, struct rhea_error *err)
{
    uint32_t unit = RHEA_MIN(q->cluster_size, QCOW2_SLICE_MAX);
    int r;

    if (q->refs_loaded)
        return 0;
    q->reftable_size = q->reftable_clusters << (q->cluster_bits - 3);
    r = qcow2_table_load(q, q->reftable_offset, q->reftable_size, &q->reftable,
                         err);
    if (r == 0)
        r = qcow2_cache_init(&q->refs, q->f.storage, unit,
                             QCOW2_REF_CACHE_BYTES / unit, err);
    q->refs.read_event = "refblock_load";
    q->refs.write_event = "refblock_update_part";
    if (r < 0) {
        qcow2_refs_finish(q);
        return r;
    }
    q->free_hint = 0;
    q->reftable_dirty = false;
    q->refs_loaded = true;
    return 0;
}

void qcow2_refs_finish(struct qcow2 *q)
{
    free(q->reftable);
    q->reftable = NULL;
    q->reftable_size = 0;
    qcow2_cache_finish(&q->refs);
    q->refs_loaded = false;
}

/* The block that counts a cluster; 0 where there is none. */
static int refcount_block(struct qcow2 *q, uint64_t cluster, uint64_t *block,
                          struct rhea_error *err)
{
    uint64_t index = cluster >> q->block_bits;

    *block = index < q->reftable_size
                 ? q->reftable[index] & ~QCOW2_REFTABLE_RESERVED
                 : 0;
    if (!is_aligned(*block, q->cluster_size))
        return rhea_error_set(err, EIO,
                              "refcount table entry %" PRIu64 ", 0x%" PRIx64
                              ", is damaged; the image must be checked",
                              index, *block);
    return 0;
}

/* The same, to be written to: that must not make the file as long as a damaged
 * entry says. */
static int refcount_own_block(struct qcow2 *q, uint64_t cluster,
                              uint64_t *block, struct rhea_error *err)
{
    int r = refcount_block(q, cluster, block, err);

    if (r == 0 && *block && !qcow2_in_file(q, *block))
        return rhea_error_set(err, EIO,
                              "the refcount block at 0x%" PRIx64
                              " lies past the end of the file; the image must "
                              "be checked",
                              *block);
    return r;
}

/* The slice of BLOCK with the refcount of CLUSTER, and the index in it. */
static int refcount_slice(struct qcow2 *q, uint64_t block, uint64_t cluster,
                          struct qcow2_slice **slice, uint64_t *index,
                          struct rhea_error *err)
{
    uint64_t in = cluster & ((1ULL << q->block_bits) - 1);
    uint64_t byte = in << q->refcount_order >> 3;
    uint64_t start = align_down(byte, q->refs.unit);

    *index = in - (start << 3 >> q->refcount_order);
    return qcow2_cache_get(&q->refs, block + start, slice, err);
}

int qcow2_refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *refcount,
                       struct rhea_error *err)
{
    struct qcow2_slice *slice;
    uint64_t block, index;
    int r = refcount_block(q, cluster, &block, err);

    *refcount = 0;
    if (r < 0 || !block)
        return r;
    r = refcount_slice(q, block, cluster, &slice, &index, err);
    if (r == 0)
        *refcount = qcow2_refcount_load(q->refcount_order, slice->data, index);
    return r;
}

static int refcount_add_one(struct qcow2 *q, uint64_t cluster, int64_t addend,
                            struct rhea_error *err)
{
    struct qcow2_slice *slice;
    uint64_t block, index, old;
    int r = refcount_own_block(q, cluster, &block, err);

    if (r < 0)
        return r;
    if (!block)
        return rhea_error_set(err, EIO,
                              "cluster %" PRIu64 " is in use but not counted; "
                              "the image must be checked",
                              cluster);
    r = refcount_slice(q, block, cluster, &slice, &index, err);
    if (r < 0)
        return r;
    old = qcow2_refcount_load(q->refcount_order, slice->data, index);
    if (addend > 0 ? old > q->refcount_max - (uint64_t)addend
                   : old < -(uint64_t)addend)
        return rhea_error_set(
            err, addend > 0 ? EINVAL : EIO,
            addend > 0 ? "cluster %" PRIu64 " has as many references as the "
                         "image can count"
                       : "cluster %" PRIu64 " has fewer references counted "
                         "than it has; the image must be checked",
            cluster);
    qcow2_refcount_store(q->refcount_order, slice->data, index,
                         old + (uint64_t)addend);
    qcow2_cache_dirty(&q->refs, slice);
    if (old + (uint64_t)addend == 0)
        q->free_hint = RHEA_MIN(q->free_hint, cluster);
    return 0;
}

int qcow2_refcount_add(struct qcow2 *q, uint64_t cluster, uint64_t count,
                       int64_t addend, struct rhea_error *err)
{
    for (uint64_t i = 0; i < count; i++) {
        int r = refcount_add_one(q, cluster + i, addend, err);

        if (r < 0) {
            /* All or none, so that the caller need not know how far it got. */
            while (i--)
                (void)refcount_add_one(q, cluster + i, -addend, NULL);
            return r;
        }
    }
    return 0;
}

/* A cluster that counts as free must not be one that tables live in: then the
 * refcounts are wrong, and using it would destroy the image. */
static int refcount_check_overlap(struct qcow2 *q, uint64_t cluster,
                                  uint64_t count, struct rhea_error *err)
{
    if (cluster >= q->tables.n_bits)
        return 0;
    count = RHEA_MIN(count, q->tables.n_bits - cluster);
    if (!bitmap_any(&q->tables, cluster, count))
        return 0;
    return rhea_error_set(err, EIO,
                          "the refcounts are wrong: cluster %" PRIu64
                          " counts as free, but holds a table of the image; "
                          "the image must be checked",
                          cluster);
}

static int refcount_grow_table(struct qcow2 *q, uint64_t entries,
                               struct rhea_error *err)
{
    /* More than needed: it has to move each time. */
    uint64_t more = RHEA_MIN(entries + entries / 2,
                             RHEA_MAX(entries, QCOW2_MAX_REFTABLE_BYTES / 8));
    uint64_t size = align_up(more * 8, q->cluster_size) / 8;
    uint64_t *table;

    if (size > QCOW2_MAX_REFTABLE_BYTES / 8)
        return rhea_error_set(err, EFBIG,
                              "the image's file cannot grow any further: its "
                              "refcount table would be larger than %u bytes",
                              QCOW2_MAX_REFTABLE_BYTES);
    table = realloc(q->reftable, size * 8);
    if (!table)
        return rhea_error_set(err, ENOMEM, "out of memory");
    memset(table + q->reftable_size, 0, (size - q->reftable_size) * 8);
    q->reftable = table;
    q->reftable_size = (uint32_t)size;
    return 0;
}

/* Make CLUSTER, which is free, the block that counts it and its neighbours. */
static int refcount_new_block(struct qcow2 *q, uint64_t cluster,
                              struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *zero = calloc(1, q->cluster_size);
    uint64_t index = cluster >> q->block_bits,
             host = cluster << q->cluster_bits;
    int r = 0;

    if (!zero)
        return rhea_error_set(err, ENOMEM, "out of memory");
    rhea_storage_event(q->f.storage, "refblock_alloc");
    if (index >= q->reftable_size)
        r = refcount_grow_table(q, index + 1, err);
    if (r == 0)
        r = refcount_check_overlap(q, cluster, 1, err);
    if (r < 0)
        return r;
    rhea_storage_event(q->f.storage, "refblock_alloc_write");
    r = rhea_storage_write(q->f.storage, zero, q->cluster_size, host, err);
    if (r < 0)
        return r;
    qcow2_cache_forget(&q->refs, host, q->cluster_size);
    q->reftable[index] = host;
    r = refcount_add_one(q, cluster, 1, err);
    if (r < 0) {
        q->reftable[index] = 0;
        return r;
    }
    q->reftable_dirty = true;
    q->fresh = RHEA_MAX(q->fresh, host + q->cluster_size);
    return 0;
}

/* The first free cluster from FIRST on, and how many from there on are free,
 * at most COUNT, in the block that counts FIRST. *FREE is 0: none. */
static int refcount_find_in_block(struct qcow2 *q, uint64_t *first,
                                  uint64_t count, uint64_t *free_run,
                                  struct rhea_error *err)
{
    uint64_t end =
        align_down(*first, 1ULL << q->block_bits) + (1ULL << q->block_bits);
    uint64_t block, cluster = *first;
    int r = refcount_own_block(q, cluster, &block, err);

    *free_run = 0;
    if (r < 0)
        return r;
    if (!block) {
        *free_run = RHEA_MIN(count, end - cluster);
        return 0;
    }
    while (cluster < end && *free_run < count) {
        struct qcow2_slice *slice;
        uint64_t index, n = q->refs.unit * 8ULL >> q->refcount_order;

        r = refcount_slice(q, block, cluster, &slice, &index, err);
        if (r < 0)
            return r;
        for (; index < n && *free_run < count; index++, cluster++) {
            if (qcow2_refcount_load(q->refcount_order, slice->data, index)) {
                if (*free_run)
                    return 0;
            } else if (!(*free_run)++) {
                *first = cluster;
            }
        }
    }
    if (!*free_run)
        *first = end;
    return 0;
}

/* A run of *GOT free clusters from FIRST on reaches into clusters that no block
 * counts: make one, and more of the run, at most COUNT. *GOT is 0 afterwards
 * where the block has taken the only cluster there was. */
static int refcount_reach(struct qcow2 *q, uint64_t first, uint64_t count,
                          uint64_t *got, struct rhea_error *err)
{
    uint64_t per_block = 1ULL << q->block_bits, block, start = first, room;
    int r = refcount_own_block(q, first, &block, err);

    if (r == 0 && block) {
        start = first + *got;
        if (*got == count || start & (per_block - 1) ||
            start >= QCOW2_MAX_HOST >> q->cluster_bits)
            return 0;
        r = refcount_own_block(q, start, &block, err);
    }
    if (r < 0 || block)
        return r;
    room = per_block - 1 - (start & (per_block - 1));
    room = RHEA_MIN(room, count - (start - first));
    r = refcount_new_block(q, start + room, err);
    *got = start - first + room;
    return r;
}

int qcow2_alloc(struct qcow2 *q, uint64_t count, uint64_t *cluster,
                uint64_t *got, bool *fresh, struct rhea_error *err)
{
    uint64_t first = q->free_hint, end = q->fresh, host;
    int r;

    rhea_storage_event(q->f.storage, "cluster_alloc");
    for (;;) {
        if (first >= QCOW2_MAX_HOST >> q->cluster_bits)
            return rhea_error_set(err, EFBIG,
                                  "the image's file is as large as it can be");
        r = refcount_find_in_block(q, &first, count, got, err);
        if (r == 0 && *got)
            r = refcount_reach(q, first, count, got, err);
        if (r < 0)
            return r;
        if (*got)
            break;
    }
    r = refcount_check_overlap(q, first, *got, err);
    if (r == 0)
        r = qcow2_refcount_add(q, first, *got, 1, err);
    if (r < 0)
        return r;
    host = first << q->cluster_bits;
    *fresh = host >= end;
    q->fresh = RHEA_MAX(q->fresh, host + (*got << q->cluster_bits));
    q->free_hint = first + *got;
    *cluster = first;
    return 0;
}

/* Count clusters after all blocks that there are, the table first and then the
 * blocks that this takes, which may be more than one. */
static int refcount_append_table(struct qcow2 *q, uint64_t count,
                                 uint64_t *cluster, struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *zero = calloc(1, q->cluster_size);
    uint64_t per_block = 1ULL << q->block_bits, blocks = 1, first = 0, start;
    int r = 0;

    if (!zero)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (uint64_t i = 0; i < q->reftable_size; i++)
        if (q->reftable[i])
            first = i + 1;
    while (blocks * per_block < count + blocks)
        blocks++;
    start = first * per_block;
    if (first + blocks > q->reftable_size)
        r = refcount_grow_table(q, first + blocks, err);
    for (uint64_t i = 0; r == 0 && i < blocks; i++) {
        uint64_t host = (start + count + i) << q->cluster_bits;

        rhea_storage_event(q->f.storage, "refblock_alloc_write_blocks");
        r = rhea_storage_write(q->f.storage, zero, q->cluster_size, host, err);
        qcow2_cache_forget(&q->refs, host, q->cluster_size);
        q->reftable[first + i] = r < 0 ? 0 : host;
    }
    if (r == 0)
        r = qcow2_refcount_add(q, start, count + blocks, 1, err);
    q->fresh = RHEA_MAX(q->fresh, (start + count + blocks) << q->cluster_bits);
    if (r < 0) {
        /* Blocks that do not count themselves must not reach the file. */
        for (uint64_t i = 0; i < blocks && first + i < q->reftable_size; i++)
            q->reftable[first + i] = 0;
        qcow2_cache_forget(&q->refs, (start + count) << q->cluster_bits,
                           blocks << q->cluster_bits);
        return r;
    }
    q->reftable_dirty = true;
    *cluster = start;
    return 0;
}

int qcow2_alloc_table(struct qcow2 *q, uint64_t count, uint64_t *cluster,
                      struct rhea_error *err)
{
    uint64_t last = q->reftable_size, first, end, run;
    int r;

    while (last && !q->reftable[last - 1])
        last--;
    end = last << q->block_bits;
    first = last ? (last - 1) << q->block_bits : 0;
    while (first < end) {
        r = refcount_find_in_block(q, &first, count, &run, err);
        if (r < 0)
            return r;
        if (run == count) {
            *cluster = first;
            q->fresh = RHEA_MAX(q->fresh, (first + count) << q->cluster_bits);
            r = refcount_check_overlap(q, first, count, err);
            return r < 0 ? r : qcow2_refcount_add(q, first, count, 1, err);
        }
        first += run;
    }
    return refcount_append_table(q, count, cluster, err);
}

int qcow2_refs_end(struct qcow2 *q, uint64_t *end, struct rhea_error *err)
{
    for (uint64_t i = q->reftable_size; i--;) {
        uint64_t first = i << q->block_bits, refcount = 0;

        if (!q->reftable[i])
            continue;
        for (uint64_t k = 1ULL << q->block_bits; k--;) {
            int r = qcow2_refcount_get(q, first + k, &refcount, err);

            if (r < 0)
                return r;
            if (refcount) {
                *end = first + k + 1;
                return 0;
            }
        }
    }
    *end = 0;
    return rhea_error_set(err, EIO,
                          "no cluster counts as used; the image must be "
                          "checked");
}

static int refcount_write_table(struct qcow2 *q, uint64_t host,
                                struct rhea_error *err)
{
    RHEA_AUTO_FREE uint64_t *table = malloc((size_t)q->reftable_size * 8);

    if (!table)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (uint32_t i = 0; i < q->reftable_size; i++)
        table[i] = htobe64(q->reftable[i]);
    return rhea_storage_write(q->f.storage, table, (size_t)q->reftable_size * 8,
                              host, err);
}

/* Order: new blocks and the table at its new place, flush; the header's
 * pointer (one sector), flush; then the old table is free. */
static int refcount_move_table(struct qcow2 *q, struct rhea_error *err)
{
    uint64_t old = q->reftable_offset >> q->cluster_bits, new = 0;
    uint32_t old_clusters = q->reftable_clusters, clusters;
    uint8_t pointer[12];
    int r;

    for (;;) {
        clusters = q->reftable_size >> (q->cluster_bits - 3);
        r = qcow2_alloc_table(q, clusters, &new, err);
        if (r < 0)
            return r;
        /* Counting the table may itself have made it longer. */
        if (q->reftable_size >> (q->cluster_bits - 3) == clusters)
            break;
        r = qcow2_refcount_add(q, new, clusters, -1, err);
        if (r < 0)
            return r;
    }
    r = qcow2_cache_write(&q->refs, err);
    rhea_storage_event(q->f.storage, "refblock_alloc_write_table");
    if (r == 0)
        r = refcount_write_table(q, new << q->cluster_bits, err);
    if (r == 0)
        r = rhea_storage_flush(q->f.storage, err);
    if (r < 0)
        return r;
    store_be64(pointer, new << q->cluster_bits);
    store_be32(pointer + 8, clusters);
    rhea_storage_event(q->f.storage, "refblock_alloc_switch_table");
    r = rhea_storage_write(q->f.storage, pointer, sizeof(pointer),
                           QCOW2_AT_REFTABLE_OFFSET, err);
    if (r == 0)
        r = rhea_storage_flush(q->f.storage, err);
    if (r < 0)
        return r;
    q->reftable_offset = new << q->cluster_bits;
    q->reftable_clusters = clusters;
    q->reftable_dirty = false;
    if (old < q->tables.n_bits)
        bitmap_clear(&q->tables, old,
                     RHEA_MIN(old_clusters, q->tables.n_bits - old));
    return qcow2_refcount_add(q, old, old_clusters, -1, err);
}

/* Order: blocks, flush; then the table's entries for new blocks, flush. */
int qcow2_refs_write(struct qcow2 *q, struct rhea_error *err)
{
    int r;

    if (!q->refs_loaded || (!q->refs.n_dirty && !q->reftable_dirty))
        return 0;
    if (q->reftable_size > q->reftable_clusters << (q->cluster_bits - 3)) {
        r = refcount_move_table(q, err);
        if (r < 0)
            return r;
    }
    r = qcow2_cache_write(&q->refs, err);
    if (r == 0)
        r = rhea_storage_flush(q->f.storage, err);
    if (r < 0 || !q->reftable_dirty)
        return r;
    rhea_storage_event(q->f.storage, "refblock_alloc_hookup");
    r = refcount_write_table(q, q->reftable_offset, err);
    if (r == 0)
        r = rhea_storage_flush(q->f.storage, err);
    if (r == 0)
        q->reftable_dirty = false;
    return r;
}
