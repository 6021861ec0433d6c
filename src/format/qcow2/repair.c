/* SPDX-License-Identifier: MIT */
/*
 * A new refcount structure, made from what was found to be in use. All of it
 * goes to clusters that nothing refers to, the old structure included (as far
 * as it could be read), so that until the switch the image is as it was.
 *
 * Order: blocks and table, flush; the header's pointer to the table (within
 * one sector), flush.
 */
#include <errno.h>
#include <inttypes.h>

#include "format/qcow2/check.h"

struct rebuild {
    struct qcow2_checker *c;
    uint64_t per_block; /* refcounts in a block */
    uint64_t *table;    /* host offsets of the blocks */
    uint64_t n_table;   /* its entries, whole clusters of them */
    uint64_t table_at;  /* cluster; 0: not placed */
    uint64_t hint;      /* no free cluster below */
};

/* COUNT clusters in a row that nothing refers to; they then count as used. */
static int rebuild_take(struct rebuild *b, uint64_t count, uint64_t *cluster)
{
    struct qcow2_tally *t = &b->c->tally;
    uint64_t at = b->hint, run = 0;
    int r;

    for (; run < count && at < t->n; at++)
        run = qcow2_tally_get(t, at) ? 0 : run + 1;
    at -= run;
    r = qcow2_tally_reserve(t, at + count, b->c->err);
    if (r < 0)
        return r;
    t->n = RHEA_MAX(t->n, at + count);
    for (uint64_t i = 0; i < count; i++)
        qcow2_refcount_store(t->order, t->counts, at + i, 1);
    if (count == 1)
        b->hint = at + 1;
    *cluster = at;
    return 0;
}

static bool rebuild_block_used(const struct rebuild *b, uint64_t block)
{
    const struct qcow2_tally *t = &b->c->tally;
    uint64_t at = block * b->per_block;
    uint64_t end = RHEA_MIN(at + b->per_block, t->n);

    for (; at < end; at++)
        if (qcow2_tally_get(t, at))
            return true;
    return false;
}

static int rebuild_grow_table(struct rebuild *b, uint64_t n)
{
    uint64_t per_cluster = b->c->q->cluster_size / 8;
    uint64_t *table;

    n = div_up(n, per_cluster) * per_cluster;
    if (n <= b->n_table)
        return 0;
    if (n > QCOW2_MAX_REFTABLE_BYTES / 8)
        return rhea_error_set(b->c->err, EFBIG,
                              "the new refcount table would be too large");
    table = realloc(b->table, n * 8);
    if (!table)
        return rhea_error_set(b->c->err, ENOMEM, "out of memory");
    memset(table + b->n_table, 0, (n - b->n_table) * 8);
    b->table = table;
    b->n_table = n;
    return 0;
}

/* Give a place to every block that counts anything and has none. *ADDED: how
 * many there were. */
static int rebuild_place_blocks(struct rebuild *b, unsigned *added)
{
    *added = 0;
    /* Taking a cluster may make the file, and so the loop, longer. */
    for (uint64_t i = 0; i * b->per_block < b->c->tally.n; i++) {
        uint64_t cluster = 0;
        int r;

        if ((i < b->n_table && b->table[i]) || !rebuild_block_used(b, i))
            continue;
        r = rebuild_grow_table(b, i + 1);
        if (r == 0)
            r = rebuild_take(b, 1, &cluster);
        if (r < 0 || !b->table)
            return r;
        b->table[i] = cluster << b->c->q->cluster_bits;
        ++*added;
    }
    return 0;
}

/* Until all that is placed is counted by a block that is placed. */
static int rebuild_place(struct rebuild *b)
{
    struct qcow2_tally *t = &b->c->tally;
    uint64_t per_cluster = b->c->q->cluster_size / 8, size = 0;
    unsigned added;
    int r;

    do {
        r = rebuild_place_blocks(b, &added);
        if (r < 0)
            return r;
        if (added || b->table_at == 0 || size != b->n_table) {
            if (b->table_at && size != b->n_table) {
                /* It has grown too long for its place. */
                for (uint64_t i = 0; i < size / per_cluster; i++)
                    qcow2_refcount_store(t->order, t->counts, b->table_at + i,
                                         0);
                b->hint = RHEA_MIN(b->hint, b->table_at);
                b->table_at = 0;
            }
            if (!b->table_at) {
                size = b->n_table;
                r = rebuild_take(b, size / per_cluster, &b->table_at);
                if (r < 0)
                    return r;
                added = 1;
            }
        }
    } while (added);
    return 0;
}

static int rebuild_write_block(struct rebuild *b, uint64_t i, uint8_t *block)
{
    struct qcow2_checker *c = b->c;
    struct qcow2 *q = c->q;

    memset(block, 0, q->cluster_size);
    for (uint64_t k = 0; k < b->per_block; k++) {
        uint64_t at = i * b->per_block + k;

        if (at < c->tally.n)
            qcow2_refcount_store(q->refcount_order, block, k,
                                 qcow2_tally_get(&c->tally, at));
    }
    return rhea_storage_write(q->f.storage, block, q->cluster_size, b->table[i],
                              c->err);
}

static int rebuild_switch(struct rebuild *b)
{
    struct qcow2 *q = b->c->q;
    uint64_t host = b->table_at << q->cluster_bits;
    uint64_t clusters = b->n_table * 8 >> q->cluster_bits;
    uint8_t sector[512];
    int r = rhea_storage_flush(q->f.storage, b->c->err);

    if (r == 0)
        r = rhea_storage_read_padded(q->f.storage, sector, sizeof(sector), 0,
                                     b->c->err);
    if (r < 0)
        return r;
    store_be64(sector + QCOW2_AT_REFTABLE_OFFSET, host);
    store_be32(sector + QCOW2_AT_REFTABLE_CLUSTERS, (uint32_t)clusters);
    /* The new blocks may have another width (amend_refcounts.c). */
    if (q->version >= 3)
        store_be32(sector + QCOW2_AT_REFCOUNT_ORDER, q->refcount_order);
    r = rhea_storage_write(q->f.storage, sector, sizeof(sector), 0, b->c->err);
    if (r == 0)
        r = rhea_storage_flush(q->f.storage, b->c->err);
    if (r < 0)
        return r;
    q->reftable_offset = host;
    q->reftable_clusters = (uint32_t)clusters;
    qcow2_refs_finish(q);
    return qcow2_refs_load(q, b->c->err);
}

static int rebuild_write(struct rebuild *b)
{
    struct qcow2 *q = b->c->q;
    RHEA_AUTO_FREE uint8_t *block = malloc(q->cluster_size);
    RHEA_AUTO_FREE uint64_t *table = malloc(b->n_table * 8);
    int r = 0;

    if (!block || !table)
        return rhea_error_set(b->c->err, ENOMEM, "out of memory");
    for (uint64_t i = 0; r == 0 && i < b->n_table; i++) {
        table[i] = htobe64(b->table[i]);
        if (b->table[i])
            r = rebuild_write_block(b, i, block);
    }
    if (r == 0)
        r = rhea_storage_write(q->f.storage, table, b->n_table * 8,
                               b->table_at << q->cluster_bits, b->c->err);
    return r < 0 ? r : rebuild_switch(b);
}

int qcow2_refs_rebuild(struct qcow2_checker *c)
{
    struct rebuild b = {
        .c = c, .per_block = 1ULL << c->q->block_bits, .hint = 1};
    int r;

    check_tell(c->result, false, "Rebuilding refcount structure");
    r = rebuild_place(&b);
    if (r == 0)
        r = rebuild_write(&b);
    free(b.table);
    return r;
}
