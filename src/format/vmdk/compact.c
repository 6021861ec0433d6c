/* SPDX-License-Identifier: MIT */
/*
 * Grains move from the end of a file to places that nobody uses any more.
 *
 * Order of writes: that nobody uses them is durable; copies of grains; flush;
 * their entries; flush; the end is cut off. An entry leads to the old place or
 * to a whole copy at any time.
 */
#include "base/checked.h"
#include "format/copy.h"
#include "format/vmdk/check.h"
#include "format/vmdk/resize.h"

struct compact {
    struct vmdk_extent *x;
    struct bitmap *used;
    uint64_t unit;
    uint64_t limit; /* where the file ends if there is no hole left */
    uint64_t slot;  /* the next place to look at */
};

static bool compact_is_free(const struct compact *c, uint64_t at)
{
    uint64_t units = c->x->h.grain_size / c->unit;
    uint64_t first = at / c->unit;
    return first + units <= c->used->n_bits &&
           !bitmap_any(c->used, first, units);
}

/* Whatever is in use, in whole grains. */
static uint64_t compact_limit(const struct compact *c, uint64_t start)
{
    uint64_t size = c->x->h.grain_size, n = 0, at = start;
    while (at < c->x->file_size) {
        uint64_t used = at / c->unit;
        used = used < c->used->n_bits ? bitmap_find(c->used, used, true) : used;
        if (used >= c->used->n_bits)
            break;
        at = RHEA_MAX(at, used * c->unit / size * size) + size;
        n++;
    }
    return start + n * size;
}

/* A grain that is behind the limit gets a place before it. */
static int compact_move(struct compact *c, uint64_t grain, uint64_t host,
                        struct rhea_error *err)
{
    struct vmdk_extent *x = c->x;
    uint64_t size = x->h.grain_size;
    while (c->slot + size <= c->limit && !compact_is_free(c, c->slot))
        c->slot += size;
    if (c->slot + size > c->limit)
        return 0;
    int ret = copy_range(x->file, host, c->slot, size, false, err);
    if (!ret)
        ret = vmdk_sparse_set(x, grain, 1, (uint32_t)(c->slot / VMDK_SECTOR), 0,
                              err);
    c->slot += size;
    return ret;
}

/* COUNT grains from GRAIN on, which follow each other from HOST on. */
static int compact_run(struct compact *c, uint64_t grain, uint64_t count,
                       uint64_t host, struct rhea_error *err)
{
    uint64_t size = c->x->h.grain_size;
    uint64_t stay = c->limit > host ? (c->limit - host) / size : 0;
    int ret = 0;
    for (uint64_t i = stay; !ret && i < count; i++)
        ret = compact_move(c, grain + i, host + i * size, err);
    return ret;
}

static int compact_grains(struct compact *c, struct rhea_error *err)
{
    struct vmdk_extent *x = c->x;
    uint64_t size = x->h.grain_size;
    int ret = 0;
    for (uint64_t at = 0; !ret && at < x->size;) {
        struct rhea_extent e = {0};
        ret = x->blocks.ops->map(&x->blocks, at, x->size - at, &e, err);
        if (!ret && e.kind == RHEA_EXTENT_DATA)
            ret =
                compact_run(c, at / size, div_up(e.length, size), e.host, err);
        at = vmdk_skip_tables(x, at + e.length);
    }
    if (!ret)
        ret = table_write_back(&x->table, err);
    return ret ? ret : rhea_storage_flush(x->file, err);
}

int vmdk_compact(struct vmdk_extent *x, struct rhea_error *err)
{
    struct rhea_check found = {0};
    struct vmdk_checker checker = {.x = x, .out = &found};
    uint64_t size = x->h.grain_size;
    int ret = vmdk_check_pass(&checker, err);
    struct compact c = {
        .x = x,
        .used = &checker.used,
        .unit = checker.unit,
        .slot = div_up(x->h.overhead, size) * size,
    };
    bool sound = !ret && !found.corruptions && !found.errors;
    if (sound) {
        c.limit = compact_limit(&c, c.slot);
        ret = compact_grains(&c, err);
    }
    vmdk_check_finish(&checker);
    if (ret || !sound)
        return ret;
    /* Once more, of what is now. */
    found = (struct rhea_check){0};
    checker = (struct vmdk_checker){.x = x, .out = &found};
    ret = vmdk_check_pass(&checker, err);
    if (!ret)
        ret = vmdk_check_leaks(&checker, RHEA_FIX_LEAKS, err);
    vmdk_check_finish(&checker);
    return ret;
}
