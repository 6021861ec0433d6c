/* SPDX-License-Identifier: MIT */
/*
 * Carries a round's moves out, in the order that tidy.h states: copy, flush,
 * switch, flush.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "inplace/tidy.h"

#define APPLY_WRITEBACK (UINT64_C(8) << 20)

struct applier {
    struct tidy *t;
    uint64_t to;         /* host offset of the table's new place; 0: none */
    uint64_t from;       /* of its old place */
    uint64_t highest;    /* host offset in the table's new state */
    bool changed;        /* some entry of the table changes */
    struct bitmap dirty; /* L2 tables that stay and change */
};

static int apply_check_cancel(const struct tidy *t, struct rhea_error *err)
{
    if (rhea_progress_cancelled(t->progress))
        return rhea_error_set(err, ECANCELED, "stopped as asked");
    return 0;
}

/* Let the disk begin with what is copied, long before the flush. */
static void apply_count(struct tidy *t, uint64_t bytes)
{
    t->waiting += bytes;
    if (t->waiting < APPLY_WRITEBACK)
        return;
    t->waiting = 0;
    rhea_storage_writeback(t->storage, 0,
                           t->file_clusters << t->layout.cluster_bits);
}

/* A pointer's value after this round. */
static uint64_t apply_pointer(const struct tidy *t, uint64_t value)
{
    const struct layout *l = &t->layout;
    uint64_t host = layout_host(l, value);
    if (!host)
        return value;
    uint64_t from = host >> l->cluster_bits;
    uint64_t to = tidy_target(t, from);
    return to == from ? value
                      : (value & ~l->offset_mask) | to << l->cluster_bits;
}

/* --- copy -------------------------------------------------------------- */

/* Copy bytes; holes of a sparse file stay holes. */
static int apply_copy_bytes(struct tidy *t, uint64_t from, uint64_t to,
                            uint64_t len, struct rhea_error *err)
{
    while (len) {
        bool hole = false;
        uint64_t n = RHEA_MIN(len, TIDY_BUFFER);
        int ret = apply_check_cancel(t, err);
        if (!ret)
            ret = rhea_storage_extent(t->storage, from, n, &hole, &n, err);
        if (!ret && hole)
            ret = tidy_zero(t, to, n, true, err);
        if (!ret && !hole)
            ret = tidy_read(t, t->buffer, n, from, err);
        if (!ret && !hole)
            ret = tidy_write(t, t->buffer, n, to, err);
        if (ret)
            return ret;
        from += n;
        to += n;
        len -= n;
    }
    return 0;
}

static int apply_copy_plain(struct tidy *t, struct rhea_error *err)
{
    unsigned bits = t->layout.cluster_bits;
    for (size_t i = 0; i < t->n_moves;) {
        const struct move *first = &t->moves[i];
        size_t run = 1;
        if (!first->plain) {
            i++;
            continue;
        }
        while (i + run < t->n_moves && first[run].plain &&
               first[run].from == first->from + run &&
               first[run].to == first->to + run)
            run++;
        int ret = apply_copy_bytes(t, first->from << bits, first->to << bits,
                                   run << bits, err);
        if (ret)
            return ret;
        apply_count(t, run << bits);
        i += run;
        rhea_progress_report(t->progress, "tidy", i, t->n_moves);
    }
    return 0;
}

/* *TOP becomes at least the highest host offset that the entries then have. */
static bool apply_change_entries(const struct tidy *t, uint8_t *entries,
                                 uint64_t n, uint64_t *top)
{
    const struct layout *l = &t->layout;
    uint64_t lowest = t->moves[0].from << l->cluster_bits;
    uint64_t highest = t->moves[t->n_moves - 1].from << l->cluster_bits;
    bool changed = false;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t value = layout_get(l, entries + i * 8);
        uint64_t host = layout_host(l, value);
        if (host >= lowest && host <= highest) {
            uint64_t now = apply_pointer(t, value);
            if (now != value) {
                layout_put(l, entries + i * 8, now);
                host = layout_host(l, now);
                changed = true;
            }
        }
        if (host > *top)
            *top = host;
    }
    return changed;
}

/* A slice of an L2 table: to its new place, or only noted if it changes. */
static int apply_copy_slice(struct tidy *t, void *opaque, uint64_t host,
                            uint8_t *entries, uint64_t n,
                            struct rhea_error *err)
{
    struct applier *a = opaque;
    if (t->data_moves)
        a->changed |= apply_change_entries(t, entries, n, &a->highest);
    if (!a->to)
        return 0;
    apply_count(t, n * sizeof(uint64_t));
    return tidy_write(t, entries, n * sizeof(uint64_t),
                      a->to + (host - a->from), err);
}

/* Where entries stay as they are, a table that moves is as good as data. */
static int apply_copy_whole_l2(struct tidy *t, bool *done,
                               struct rhea_error *err)
{
    const struct layout *l = &t->layout;
    struct move *moves = malloc((l->l1_entries + 1) * sizeof(*moves));
    size_t n = 0;
    int ret = 0;

    *done = false;
    for (uint64_t i = 0; moves && i < l->l1_entries; i++) {
        uint64_t from = layout_host(l, t->l1[i]) >> l->cluster_bits;
        uint64_t to = from ? tidy_target(t, from) : 0;
        if (to != from)
            moves[n++] = (struct move){
                .from = from, .to = to, .count = (uint32_t)l->l2_clusters};
    }
    if (moves && tidy_copy_pays(t, moves, n)) {
        *done = true;
        ret = tidy_copy(t, moves, n, err);
    }
    free(moves);
    return ret;
}

static int apply_copy_l2(struct applier *a, struct rhea_error *err)
{
    struct tidy *t = a->t;
    const struct layout *l = &t->layout;
    uint64_t lowest = t->moves[0].from << l->cluster_bits;
    if (!t->data_moves) {
        bool done;
        int ret = apply_copy_whole_l2(t, &done, err);
        if (ret || done)
            return ret;
    }
    for (uint64_t i = 0; i < l->l1_entries; i++) {
        uint64_t from = layout_host(l, t->l1[i]) >> l->cluster_bits;
        if (!from)
            continue;
        uint64_t to = tidy_target(t, from);
        if (to == from && (!t->data_moves || t->highest[i] < lowest))
            continue;
        a->from = from << l->cluster_bits;
        a->to = to == from ? 0 : to << l->cluster_bits;
        a->changed = false;
        a->highest = 0;
        int ret = apply_check_cancel(t, err);
        if (!ret)
            ret = tidy_each_slice(t, i, apply_copy_slice, a, err);
        if (ret)
            return ret;
        if (t->data_moves)
            t->highest[i] = a->highest;
        if (a->changed && !a->to)
            bitmap_set(&a->dirty, i, 1);
    }
    return 0;
}

/* A whole table of pointers in its new state, at its new place. */
static int apply_copy_table(struct tidy *t, const uint64_t *table, uint64_t n,
                            uint64_t host, uint64_t clusters,
                            struct rhea_error *err)
{
    const struct layout *l = &t->layout;
    uint64_t from = host >> l->cluster_bits, to = tidy_target(t, from);
    if (to == from)
        return 0;

    uint64_t length = clusters << l->cluster_bits;
    uint64_t bytes = n * sizeof(uint64_t);
    RHEA_AUTO_FREE uint8_t *out = malloc(bytes + 1);
    if (!out)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (uint64_t i = 0; i < n; i++)
        layout_put(l, out + i * 8, apply_pointer(t, table[i]));
    int ret = 0;
    if (bytes < length)
        ret = tidy_zero(t, (to << l->cluster_bits) + bytes, length - bytes,
                        false, err);
    if (!ret && bytes)
        ret = tidy_write(t, out, bytes, to << l->cluster_bits, err);
    apply_count(t, length);
    return ret;
}

static int apply_copy(struct applier *a, struct rhea_error *err)
{
    struct tidy *t = a->t;
    const struct layout *l = &t->layout;
    int ret = 0;
    if (l->has_refcounts)
        ret = tidy_claim(t, err);
    if (!ret)
        ret = apply_copy_plain(t, err);
    if (!ret)
        ret = apply_copy_l2(a, err);
    if (!ret)
        ret = apply_copy_table(t, t->l1, l->l1_entries, l->l1_offset,
                               l->l1_clusters, err);
    if (!ret && l->has_refcounts)
        ret = apply_copy_table(t, t->reftable, t->refblocks, l->reftable_offset,
                               l->reftable_clusters, err);
    if (!ret)
        ret = rhea_storage_flush(t->storage, err);
    return ret;
}

/* --- switch ------------------------------------------------------------ */

/* Write back those sectors of a table that differ from what was read. */
static int apply_write_changes(struct tidy *t, uint64_t host,
                               const uint8_t *old, const uint8_t *now,
                               uint64_t len, struct rhea_error *err)
{
    for (uint64_t at = 0; at < len;) {
        uint64_t end = at;
        while (end < len &&
               memcmp(old + end, now + end, RHEA_MIN(len - end, SECTOR)))
            end += RHEA_MIN(len - end, SECTOR);
        if (end == at) {
            at += SECTOR;
            continue;
        }
        int ret = tidy_write(t, now + at, end - at, host + at, err);
        if (ret)
            return ret;
        at = end;
    }
    return 0;
}

static int apply_switch_slice(struct tidy *t, void *opaque, uint64_t host,
                              uint8_t *entries, uint64_t n,
                              struct rhea_error *err)
{
    uint8_t *old = opaque;
    memcpy(old, entries, n * sizeof(uint64_t));
    uint64_t top = 0;
    if (!apply_change_entries(t, entries, n, &top))
        return 0;
    return apply_write_changes(t, host, old, entries, n * sizeof(uint64_t),
                               err);
}

static int apply_switch_l2(struct applier *a, struct rhea_error *err)
{
    struct tidy *t = a->t;
    RHEA_AUTO_FREE uint8_t *old = malloc(TIDY_BUFFER);
    if (!old)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (uint64_t i = bitmap_find(&a->dirty, 0, true); i < t->layout.l1_entries;
         i = bitmap_find(&a->dirty, i + 1, true)) {
        int ret = tidy_each_slice(t, i, apply_switch_slice, old, err);
        if (ret)
            return ret;
    }
    return 0;
}

/* Change the pointers of a table that stays in place. */
static int apply_switch_table(struct tidy *t, const uint64_t *table, uint64_t n,
                              uint64_t host, struct rhea_error *err)
{
    const struct layout *l = &t->layout;
    uint64_t from = host >> l->cluster_bits;
    if (tidy_target(t, from) != from)
        return 0;

    uint8_t old[SECTOR], now[SECTOR];
    uint64_t per_sector = SECTOR / sizeof(uint64_t);
    for (uint64_t at = 0; at < n; at += per_sector) {
        uint64_t count = RHEA_MIN(n - at, per_sector);
        for (uint64_t i = 0; i < count; i++) {
            layout_put(l, old + i * 8, table[at + i]);
            layout_put(l, now + i * 8, apply_pointer(t, table[at + i]));
        }
        if (!memcmp(old, now, count * 8))
            continue;
        int ret = tidy_write(t, now, count * 8, host + at * 8, err);
        if (ret)
            return ret;
    }
    return 0;
}

static int apply_switch_header(struct tidy *t, struct rhea_error *err)
{
    struct layout *l = &t->layout;
    uint64_t l1 = l->l1_offset, reftable = l->reftable_offset;
    l->l1_offset = tidy_target(t, l1 >> l->cluster_bits) << l->cluster_bits;
    if (l->has_refcounts)
        l->reftable_offset = tidy_target(t, reftable >> l->cluster_bits)
                             << l->cluster_bits;
    if (l->l1_offset == l1 && l->reftable_offset == reftable)
        return 0;

    uint8_t sector[SECTOR];
    int ret = tidy_read(t, sector, SECTOR, 0, err);
    if (ret)
        return ret;
    l->ops->repoint(l, sector);
    return tidy_write(t, sector, SECTOR, 0, err);
}

static int apply_switch(struct applier *a, struct rhea_error *err)
{
    struct tidy *t = a->t;
    const struct layout *l = &t->layout;
    int ret = apply_switch_l2(a, err);
    if (!ret)
        ret = apply_switch_table(t, t->l1, l->l1_entries, l->l1_offset, err);
    if (!ret && l->has_refcounts)
        ret = apply_switch_table(t, t->reftable, t->refblocks,
                                 l->reftable_offset, err);
    if (!ret)
        ret = apply_switch_header(t, err);
    if (!ret)
        ret = rhea_storage_flush(t->storage, err);
    return ret;
}

/* The round is durable: keep what the scan found up to date. */
static void apply_settle(struct tidy *t)
{
    for (uint64_t i = 0; i < t->layout.l1_entries; i++)
        t->l1[i] = apply_pointer(t, t->l1[i]);
    for (uint64_t i = 0; i < t->refblocks; i++)
        t->reftable[i] = apply_pointer(t, t->reftable[i]);
    for (size_t i = 0; i < t->n_moves; i++)
        bitmap_clear(&t->used, t->moves[i].from, t->moves[i].count);
    for (size_t i = 0; i < t->n_moves; i++) {
        const struct move *m = &t->moves[i];
        bitmap_set(&t->used, m->to, m->count);
        if (m->plain)
            continue;
        bitmap_clear(&t->tables, m->from, m->count);
        bitmap_set(&t->tables, m->to, m->count);
    }
    t->n_moves = 0;
    t->end = bitmap_end(&t->used);
}

int tidy_apply(struct tidy *t, struct rhea_error *err)
{
    if (!t->n_moves)
        return 0;
    struct applier a = {.t = t};
    int ret = bitmap_init(&a.dirty, t->layout.l1_entries, err);
    if (!ret)
        ret = apply_copy(&a, err);
    if (!ret)
        ret = apply_switch(&a, err);
    if (!ret)
        apply_settle(t);
    bitmap_finish(&a.dirty);
    return ret;
}
