/* SPDX-License-Identifier: MIT */
/*
 * Reference counts while tidying. Every count is 0 or 1. A cluster's count is
 * 1, durably, before anything refers to it, and becomes 0 only when nothing
 * has referred to it since the last flush: a crash leaves leaks, never a
 * cluster in use that counts as free.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "inplace/tidy.h"

/* One refcount block in memory. */
struct counts {
    struct tidy *t;
    uint8_t *block;
    uint64_t index; /* of the block; UINT64_MAX: none is loaded */
    bool changed;
};

static int counts_init(struct counts *c, struct tidy *t, struct rhea_error *err)
{
    *c = (struct counts){.t = t, .index = UINT64_MAX};
    c->block = malloc(t->layout.cluster_size);
    if (!c->block)
        return rhea_error_set(err, ENOMEM, "out of memory");
    return 0;
}

static int counts_store(struct counts *c, struct rhea_error *err)
{
    if (!c->changed)
        return 0;
    c->changed = false;
    return tidy_write(c->t, c->block, c->t->layout.cluster_size,
                      c->t->reftable[c->index], err);
}

static int counts_load(struct counts *c, uint64_t index, struct rhea_error *err)
{
    if (c->index == index)
        return 0;
    int ret = counts_store(c, err);
    if (ret)
        return ret;
    if (index >= c->t->refblocks || !c->t->reftable[index])
        return rhea_error_set(err, EINVAL,
                              "the image's reference counts do not cover the "
                              "whole file; run check -r all");
    c->index = index;
    return tidy_read(c->t, c->block, c->t->layout.cluster_size,
                     c->t->reftable[index], err);
}

static bool counts_is_zero(const struct counts *c, uint64_t i)
{
    unsigned order = c->t->layout.refcount_order;
    if (order < 3) {
        unsigned shift = (unsigned)(i << order) % 8;
        unsigned mask = (1u << (1u << order)) - 1;
        return !(c->block[(i << order) / 8] >> shift & mask);
    }
    size_t width = (size_t)1 << (order - 3);
    static const uint8_t zero[8];
    return !memcmp(c->block + i * width, zero, width);
}

static void counts_set(struct counts *c, uint64_t i, bool one)
{
    unsigned order = c->t->layout.refcount_order;
    c->changed = true;
    if (order < 3) {
        unsigned shift = (unsigned)(i << order) % 8;
        unsigned mask = ((1u << (1u << order)) - 1) << shift;
        uint8_t *byte = &c->block[(i << order) / 8];
        *byte = (uint8_t)((*byte & ~mask) | (unsigned)one << shift);
        return;
    }
    size_t width = (size_t)1 << (order - 3);
    memset(c->block + i * width, 0, width);
    c->block[(i + 1) * width - 1] = one;
}

int tidy_claim(struct tidy *t, struct rhea_error *err)
{
    struct counts c;
    uint64_t per_block = layout_refblock_entries(&t->layout);
    int ret = counts_init(&c, t, err);
    for (size_t i = 0; !ret && i < t->n_moves; i++) {
        const struct move *m = &t->moves[i];
        for (uint64_t at = m->to; !ret && at < m->to + m->count; at++) {
            ret = counts_load(&c, at / per_block, err);
            if (!ret && counts_is_zero(&c, at % per_block))
                counts_set(&c, at % per_block, true);
        }
    }
    if (!ret)
        ret = counts_store(&c, err);
    free(c.block);
    return ret;
}

/* In the block that the end of the file lies in, clear what is past it, or
 * only say whether there is anything. */
static int counts_clear_last(struct tidy *t, bool clear, bool *any,
                             struct rhea_error *err)
{
    struct counts c;
    uint64_t per_block = layout_refblock_entries(&t->layout);
    uint64_t index = t->n_used / per_block;
    *any = false;
    if (index >= t->refblocks || !t->reftable[index] ||
        t->n_used % per_block == 0)
        return 0;

    int ret = counts_init(&c, t, err);
    if (!ret)
        ret = counts_load(&c, index, err);
    for (uint64_t i = t->n_used % per_block; !ret && i < per_block; i++) {
        if (counts_is_zero(&c, i))
            continue;
        *any = true;
        if (clear)
            counts_set(&c, i, false);
    }
    if (!ret)
        ret = counts_store(&c, err);
    free(c.block);
    return ret;
}

/* The blocks that count N clusters come first; how many are there past them? */
static uint64_t counts_blocks_past(const struct tidy *t, uint64_t n,
                                   uint64_t *first)
{
    uint64_t found = 0;
    *first = layout_refblocks(&t->layout, n);
    for (uint64_t i = *first; i < t->refblocks; i++)
        found += t->reftable[i] != 0;
    return found;
}

static uint64_t counts_surplus_blocks(const struct tidy *t, uint64_t *first)
{
    return counts_blocks_past(t, t->n_used, first);
}

uint64_t tidy_counts_final(const struct tidy *t, uint64_t *shrinks_to)
{
    const struct layout *l = &t->layout;
    uint64_t n = t->n_used, table = l->reftable_clusters;
    while (l->has_refcounts) {
        uint64_t first, less = counts_blocks_past(t, n, &first);
        table = layout_reftable_clusters(l, first);
        if (l->reftable_clusters > table)
            less += l->reftable_clusters - table;
        if (t->n_used - less == n)
            break;
        n = t->n_used - less; /* which may make more of them surplus */
    }
    *shrinks_to = l->has_refcounts && l->reftable_clusters > table ? table : 0;
    return n - *shrinks_to;
}

static uint64_t counts_table_needed(const struct tidy *t)
{
    return layout_reftable_clusters(&t->layout,
                                    layout_refblocks(&t->layout, t->n_used));
}

int tidy_counts_done(struct tidy *t, bool *done, struct rhea_error *err)
{
    uint64_t first;
    bool any;
    *done = true;
    if (!t->layout.has_refcounts)
        return 0;
    int ret = counts_clear_last(t, false, &any, err);
    *done = !ret && !any && !counts_surplus_blocks(t, &first) &&
            t->layout.reftable_clusters == counts_table_needed(t);
    return ret;
}

/* Forget the blocks that only count clusters past the end. Their own clusters
 * become gaps, which keep their counts. */
static int counts_drop_blocks(struct tidy *t, uint64_t first,
                              struct rhea_error *err)
{
    uint64_t n = t->refblocks - first;
    RHEA_AUTO_FREE uint64_t *zeroes = calloc(n + 1, sizeof(uint64_t));
    if (!zeroes)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (uint64_t i = first; i < t->refblocks; i++) {
        if (!t->reftable[i])
            continue;
        bitmap_clear(&t->used, t->reftable[i] >> t->layout.cluster_bits, 1);
        t->reftable[i] = 0;
        t->n_used--;
    }
    return tidy_write(t, zeroes, n * sizeof(uint64_t),
                      t->layout.reftable_offset + first * 8, err);
}

static int counts_shrink_table(struct tidy *t, struct rhea_error *err)
{
    uint8_t sector[SECTOR];
    int ret = tidy_read(t, sector, SECTOR, 0, err);
    if (ret)
        return ret;
    struct layout *l = &t->layout;
    uint64_t needed = counts_table_needed(t);
    uint64_t surplus = l->reftable_clusters - needed;
    uint64_t at = (l->reftable_offset >> l->cluster_bits) + needed;
    l->reftable_clusters = needed;
    t->refblocks = (needed << l->cluster_bits) / sizeof(uint64_t);
    bitmap_clear(&t->used, at, surplus);
    bitmap_clear(&t->tables, at, surplus);
    t->n_used -= surplus;
    t->layout.ops->repoint(&t->layout, sector);
    return tidy_write(t, sector, SECTOR, 0, err);
}

int tidy_clear_counts(struct tidy *t, bool *again, struct rhea_error *err)
{
    uint64_t first;
    bool any;
    uint64_t surplus = counts_surplus_blocks(t, &first);

    *again = false;
    int ret = counts_clear_last(t, true, &any, err);
    if (!ret && surplus) {
        *again = true;
        ret = counts_drop_blocks(t, first, err);
    } else if (!ret && t->layout.reftable_clusters > counts_table_needed(t)) {
        /* Only once its surplus entries are durably zero. */
        *again = true;
        ret = counts_shrink_table(t, err);
    }
    if (!ret)
        ret = rhea_storage_flush(t->storage, err);
    t->end = bitmap_end(&t->used);
    t->n_final = tidy_counts_final(t, &t->shrinks_to);
    return ret;
}
