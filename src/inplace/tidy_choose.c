/* SPDX-License-Identifier: MIT */
/*
 * Which objects move where. With N clusters in use, everything at or past N
 * has to go into a gap below N, and there are exactly as many gap clusters as
 * clusters past N.
 *
 * Single clusters fit into any gap. A block, that is a table of several
 * clusters, needs a run of them; where there is none, a window is made: the
 * single clusters in it move to other gaps in this round, and the block into
 * the window in the next. A block that lies across N steps aside first.
 *
 * Blocks have to end before n_final, which is less than N where reference
 * counts will go once nothing is left past N: then only single clusters move
 * again, and no block has to step aside to where nothing is counted any more.
 *
 * A refcount table that will shrink may be longer than all that stays. What
 * stays of it is its beginning, which goes to n_final (or any place before);
 * its end lies past that, where other surplus clusters are until they go.
 *
 * Where blocks below n_final leave no window, they all step aside, and the
 * single clusters leave a zone as long as all blocks together. It is one run
 * in the next round, or, where gaps are short, in the one after it; so then
 * every block finds its place.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "inplace/tidy.h"

struct chooser {
    struct tidy *t;
    struct bitmap fixed;     /* where blocks may end: the header, blocks, and
                                where blocks go in this round */
    uint64_t gap;            /* no gap below here */
    uint64_t run, run_count; /* no run of run_count gaps below `run` */
    uint64_t aside;          /* next free cluster behind everything */
    uint64_t window;         /* the next window ends at or below here */
    bool full;               /* no more moves in this round */
};

/* An object of several clusters that has to leave its place. */
struct block {
    uint64_t from;
    uint64_t count;
};

static int choose_add(struct tidy *t, uint64_t from, uint64_t to,
                      uint64_t count, bool plain, struct rhea_error *err)
{
    if (t->n_moves == t->max_moves) {
        size_t max = t->max_moves ? t->max_moves * 2 : 1024;
        struct move *moves = realloc(t->moves, max * sizeof(*moves));
        if (!moves)
            return rhea_error_set(err, ENOMEM, "out of memory");
        t->moves = moves;
        t->max_moves = max;
    }
    t->moves[t->n_moves++] = (struct move){
        .from = from, .to = to, .count = (uint32_t)count, .plain = plain};
    /* Chosen places are no gaps any more, nor room for a window. */
    bitmap_set(&t->used, to, count);
    if (!plain)
        bitmap_set(&t->tables, to, count);
    return 0;
}

/* As choose_add, for a block. */
static int choose_add_block(struct chooser *c, const struct block *b,
                            uint64_t to, struct rhea_error *err)
{
    if (to < c->fixed.n_bits)
        bitmap_set(&c->fixed, to, b->count);
    return choose_add(c->t, b->from, to, b->count, false, err);
}

/* The lowest run of COUNT gap clusters below n_final, which stands for "there
 * is none". */
static uint64_t choose_low_run(struct chooser *c, uint64_t count)
{
    const struct tidy *t = c->t;
    if (count < c->run_count)
        c->run = 0;
    c->run_count = count;
    c->run = bitmap_find(&t->used, c->run, false);
    while (c->run < t->n_final) {
        uint64_t end = bitmap_find(&t->used, c->run, true);
        if (RHEA_MIN(end, t->n_final) - c->run >= count)
            return c->run;
        c->run = bitmap_find(&t->used, end, false);
    }
    return t->n_final;
}

/* The highest one, for the L1 table: a QCOW2 file may end inside it. */
static uint64_t choose_high_run(const struct tidy *t, uint64_t count)
{
    uint64_t best = t->n_final;
    uint64_t at = bitmap_find(&t->used, 0, false);
    while (at < t->n_final) {
        uint64_t end = RHEA_MIN(bitmap_find(&t->used, at, true), t->n_final);
        if (end - at >= count)
            best = end - count;
        at = bitmap_find(&t->used, end, false);
    }
    return best;
}

/* The highest place below n_final for a window of COUNT clusters without
 * blocks; false when there is none. */
static bool choose_window(struct chooser *c, uint64_t count, uint64_t *at)
{
    while (c->window >= count) {
        uint64_t low = c->window - count;
        uint64_t block = bitmap_find(&c->fixed, low, true);
        if (block >= c->window) {
            *at = low;
            c->window = low;
            return true;
        }
        c->window = block;
    }
    return false;
}

static bool choose_is_shrinking(const struct tidy *t, uint64_t from)
{
    return t->shrinks_to &&
           from == t->layout.reftable_offset >> t->layout.cluster_bits;
}

/* Where a block has to end. */
static uint64_t choose_limit(const struct tidy *t, const struct block *b)
{
    return t->n_final + (choose_is_shrinking(t, b->from) ? b->count : 0);
}

/* Gather the tables of several clusters that reach past where they have to end,
 * or ALL of them; and the L1 table in any case where it lies past N. */
static int choose_blocks(const struct tidy *t, bool all, struct block **out,
                         size_t *n, struct rhea_error *err)
{
    const struct layout *l = &t->layout;
    size_t max = 0;
    free(*out);
    *out = NULL;
    *n = 0;
    /* The L1 table is the first, since it has a preference. */
    for (uint64_t i = 0; i < l->l1_entries + 2; i++) {
        uint64_t host, count = l->l2_clusters;
        if (i == 0) {
            host = l->l1_offset;
            count = l->l1_clusters;
        } else if (i == 1) {
            host = l->reftable_offset;
            count = l->reftable_clusters;
        } else {
            host = layout_host(l, t->l1[i - 2]);
        }
        const struct block b = {host >> l->cluster_bits, count};
        if (!host || (!all && b.from + count <= choose_limit(t, &b)) ||
            (count == 1 && (i || b.from < t->n_used)))
            continue;
        if (*n == max) {
            max = max ? max * 2 : 64;
            struct block *p = realloc(*out, max * sizeof(*p));
            if (!p)
                return rhea_error_set(err, ENOMEM, "out of memory");
            *out = p;
        }
        (*out)[(*n)++] = b;
    }
    return 0;
}

/* Note where blocks stand, for windows. */
static int choose_fix_blocks(struct chooser *c, struct rhea_error *err)
{
    const struct tidy *t = c->t;
    uint64_t limit = t->n_final;
    if (t->shrinks_to)
        limit += t->layout.reftable_clusters;
    struct block *blocks = NULL;
    size_t n;
    int ret = bitmap_init(&c->fixed, limit, err);
    if (!ret)
        ret = choose_blocks(t, true, &blocks, &n, err);
    if (ret)
        return ret;

    bitmap_set(&c->fixed, 0, 1);
    for (size_t i = 0; i < n; i++) {
        uint64_t end = RHEA_MIN(blocks[i].from + blocks[i].count, limit);
        if (blocks[i].from < end)
            bitmap_set(&c->fixed, blocks[i].from, end - blocks[i].from);
    }
    free(blocks);
    return 0;
}

static int choose_aside(struct chooser *c, const struct block *b,
                        struct rhea_error *err)
{
    if (c->aside + b->count > c->t->used.n_bits)
        return rhea_error_set(err, EBUSY,
                              "the tables of the image find no place");
    int ret = choose_add_block(c, b, c->aside, err);
    c->aside += b->count;
    return ret;
}

/* What leaves the windows, which are themselves listed by their ends. */
struct leaving {
    uint64_t *clusters;
    size_t n, max;
    struct block *windows;
    size_t n_windows;
};

/* Turn [at, at + count) into a window: the single clusters in it go elsewhere,
 * and its gaps are not for others. */
static int choose_clear_window(struct chooser *c, uint64_t at, uint64_t count,
                               struct leaving *leaving, struct rhea_error *err)
{
    for (uint64_t i = at; i < at + count; i++) {
        if (!bitmap_get(&c->t->used, i) || bitmap_get(&c->fixed, i))
            continue;
        if (leaving->n == leaving->max) {
            size_t max = leaving->max ? leaving->max * 2 : 256;
            uint64_t *p = realloc(leaving->clusters, max * sizeof(*p));
            if (!p)
                return rhea_error_set(err, ENOMEM, "out of memory");
            leaving->clusters = p;
            leaving->max = max;
        }
        leaving->clusters[leaving->n++] = i;
    }
    bitmap_set(&c->t->used, at, count);
    leaving->windows[leaving->n_windows++] =
        (struct block){.from = at, .count = count};
    return 0;
}

/* For a refcount table that shrinks, behind all other blocks. */
static int choose_place_shrinking(struct chooser *c, const struct block *b,
                                  struct leaving *leaving,
                                  struct rhea_error *err)
{
    struct tidy *t = c->t;
    uint64_t to = t->n_final, end = to + b->count;
    if (bitmap_find(&t->used, to, true) >= end)
        return choose_add_block(c, b, to, err);
    if (b->from < t->n_used)
        return choose_aside(c, b, err);
    /* The L1 table, if it lies there, has to leave first. */
    if (bitmap_find(&c->fixed, to, true) < end)
        return 0;
    return choose_clear_window(c, to, b->count, leaving, err);
}

/* 1 where there is no place at all. */
static int choose_place_block(struct chooser *c, const struct block *b,
                              struct leaving *leaving, struct rhea_error *err)
{
    struct tidy *t = c->t;
    bool is_l1 = b->from == t->layout.l1_offset >> t->layout.cluster_bits;
    uint64_t to =
        is_l1 ? choose_high_run(t, b->count) : choose_low_run(c, b->count);
    if (to < t->n_final)
        return choose_add_block(c, b, to, err);
    if (choose_is_shrinking(t, b->from))
        return choose_place_shrinking(c, b, leaving, err);
    if (b->from < t->n_used)
        return choose_aside(c, b, err);
    if (choose_window(c, b->count, &to))
        return choose_clear_window(c, to, b->count, leaving, err);
    return 1;
}

/* The old places of blocks are not to be taken for single clusters past N. */
static void choose_hide_blocks(struct tidy *t, const struct block *blocks,
                               size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t from = RHEA_MAX(blocks[i].from, t->n_used);
        uint64_t end = blocks[i].from + blocks[i].count;
        if (from < end)
            bitmap_clear(&t->used, from, end - from);
    }
}

static int choose_single(struct chooser *c, uint64_t from,
                         struct rhea_error *err)
{
    struct tidy *t = c->t;
    c->gap = bitmap_find(&t->used, c->gap, false);
    if (c->gap >= t->n_used || t->n_moves >= TIDY_MOVES_MAX) {
        c->full = true;
        return 0;
    }
    bool plain = !bitmap_get(&t->tables, from);
    return choose_add(t, from, c->gap, 1, plain, err);
}

/* Choosing is done: what was only reserved for later is as it was. */
static void choose_restore(struct tidy *t, const struct block *blocks, size_t n,
                           const struct leaving *leaving)
{
    for (size_t i = 0; i < leaving->n_windows; i++)
        bitmap_clear(&t->used, leaving->windows[i].from,
                     leaving->windows[i].count);
    for (size_t i = 0; i < leaving->n; i++)
        bitmap_set(&t->used, leaving->clusters[i], 1);
    for (size_t i = 0; i < n; i++)
        bitmap_set(&t->used, blocks[i].from, blocks[i].count);
}

static int choose_singles(struct chooser *c, const struct leaving *leaving,
                          struct rhea_error *err)
{
    const struct bitmap *used = &c->t->used;
    uint64_t end = c->t->end;
    int ret = 0;
    for (size_t i = 0; !ret && !c->full && i < leaving->n; i++)
        ret = choose_single(c, leaving->clusters[i], err);
    for (uint64_t i = bitmap_find(used, c->t->n_used, true);
         !ret && !c->full && i < end; i = bitmap_find(used, i + 1, true))
        ret = choose_single(c, i, err);
    return ret;
}

static int choose_compare(const void *a, const void *b)
{
    const struct move *x = a, *y = b;
    return x->from < y->from ? -1 : x->from > y->from;
}

uint64_t tidy_target(const struct tidy *t, uint64_t from)
{
    size_t low = 0, high = t->n_moves;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (t->moves[middle].from < from)
            low = middle + 1;
        else
            high = middle;
    }
    if (low < t->n_moves && t->moves[low].from == from)
        return t->moves[low].to;
    return from;
}

uint64_t tidy_left(const struct tidy *t)
{
    const struct layout *l = &t->layout;
    uint64_t left = t->end > t->n_used
                        ? bitmap_count(&t->used, t->n_used, t->end - t->n_used)
                        : 0;
    /* Only QCOW2 has n_final less than N, and only these blocks. */
    const struct block blocks[] = {
        {l->l1_offset >> l->cluster_bits, l->l1_clusters},
        {l->reftable_offset >> l->cluster_bits, l->reftable_clusters},
    };
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(blocks); i++) {
        uint64_t from = RHEA_MAX(blocks[i].from, choose_limit(t, &blocks[i]));
        uint64_t end = RHEA_MIN(blocks[i].from + blocks[i].count, t->n_used);
        if (from < end && blocks[i].count > 1)
            left += end - from;
    }
    return left;
}

uint64_t tidy_aside(const struct tidy *t)
{
    const struct layout *l = &t->layout;
    uint64_t count = l->l2_clusters, past = 0, below = 0;
    if (!tidy_left(t))
        return 0;
    if (count == 1)
        return (l->l1_clusters > 1 ? l->l1_clusters : 0) +
               (l->reftable_clusters > 1 ? l->reftable_clusters : 0);
    for (uint64_t i = 0; i < l->l1_entries; i++) {
        uint64_t from = layout_host(l, t->l1[i]) >> l->cluster_bits;
        if (from && from + count > t->n_used)
            past++;
        else if (from)
            below++;
    }
    if (l->l1_offset >> l->cluster_bits >= t->n_used)
        past++;
    else
        below++;
    return layout_aside(count, past, below, t->n_used - 1 - below * count);
}

/* Places for the blocks in the way; 1 where there is none for one of them. */
static int choose_round(struct chooser *c, struct leaving *leaving,
                        const struct block *blocks, size_t n,
                        struct rhea_error *err)
{
    int ret = 0;
    choose_hide_blocks(c->t, blocks, n);
    for (size_t i = 0; !ret && i < n; i++)
        ret = choose_place_block(c, &blocks[i], leaving, err);
    return ret ? ret : choose_singles(c, leaving, err);
}

/* The round in which blocks make room for all of them. */
static int choose_make_room(struct chooser *c, struct leaving *leaving,
                            const struct block *blocks, size_t n,
                            struct rhea_error *err)
{
    struct tidy *t = c->t;
    uint64_t total = 0, end = t->n_final;
    int ret = 0;
    choose_hide_blocks(t, blocks, n);
    for (size_t i = 0; i < n; i++) {
        total += blocks[i].count;
        end = RHEA_MAX(end, choose_limit(t, &blocks[i]));
    }
    for (size_t i = 0; !ret && i < n; i++) {
        if (blocks[i].from < end)
            ret = choose_aside(c, &blocks[i], err);
    }
    if (!ret && total > end)
        ret =
            rhea_error_set(err, EBUSY, "the tables of the image find no place");
    if (!ret)
        ret = choose_clear_window(c, end - total, total, leaving, err);
    return ret ? ret : choose_singles(c, leaving, err);
}

/* Choose for the blocks that have to move, or to make room; all bitmaps are
 * then as they were, but for where the chosen moves go. */
static int choose_with(struct tidy *t, bool make_room, struct rhea_error *err)
{
    struct chooser c = {.t = t, .aside = t->end, .window = t->n_final};
    struct leaving leaving = {0};
    struct block *blocks = NULL;
    size_t n = 0;

    t->n_moves = 0;
    int ret = choose_fix_blocks(&c, err);
    if (!ret)
        ret = choose_blocks(t, make_room, &blocks, &n, err);
    leaving.windows = calloc(n + 1, sizeof(leaving.windows[0]));
    if (!ret && !leaving.windows)
        ret = rhea_error_set(err, ENOMEM, "out of memory");
    if (!ret)
        ret = make_room ? choose_make_room(&c, &leaving, blocks, n, err)
                        : choose_round(&c, &leaving, blocks, n, err);
    choose_restore(t, blocks, n, &leaving);
    bitmap_finish(&c.fixed);
    free(leaving.clusters);
    free(leaving.windows);
    free(blocks);
    return ret;
}

/* Whether some cluster moves that L2 tables point to: all that hold no
 * pointers do, but for blocks of reference counts. */
static bool choose_moves_data(const struct tidy *t)
{
    uint64_t n = 0;
    for (size_t i = 0; i < t->n_moves; i++)
        n += t->moves[i].plain;
    for (uint64_t i = 0; i < t->refblocks; i++) {
        uint64_t from = t->reftable[i] >> t->layout.cluster_bits;
        n -= from && tidy_target(t, from) != from;
    }
    return n > 0;
}

int tidy_choose(struct tidy *t, struct rhea_error *err)
{
    int ret = choose_with(t, false, err);
    if (ret == 1) {
        for (size_t i = 0; i < t->n_moves; i++) {
            bitmap_clear(&t->used, t->moves[i].to, t->moves[i].count);
            bitmap_clear(&t->tables, t->moves[i].to, t->moves[i].count);
        }
        ret = choose_with(t, true, err);
    }
    if (t->n_moves)
        qsort(t->moves, t->n_moves, sizeof(t->moves[0]), choose_compare);
    t->data_moves = choose_moves_data(t);
    return ret;
}
