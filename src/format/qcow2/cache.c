/* SPDX-License-Identifier: MIT */
/*
 * A write-back cache of table slices: bounded memory, found by host offset,
 * the least recently used one goes first. The caller holds the driver's lock.
 *
 * A dirty slice is written only by qcow2_cache_write, or when there is no clean
 * one left to replace; what must be durable before that is its owner's
 * business (make_room).
 */
#include <errno.h>

#include "format/qcow2/qcow2.h"

int qcow2_cache_init(struct qcow2_cache *c, struct rhea_storage *storage,
                     uint32_t unit, unsigned capacity, struct rhea_error *err)
{
    *c = (struct qcow2_cache){.storage = storage,
                              .unit = unit,
                              .capacity = capacity,
                              .n_buckets = 16};
    while (c->n_buckets < capacity)
        c->n_buckets *= 2;
    c->slices = calloc(capacity, sizeof(*c->slices));
    c->buckets = calloc(c->n_buckets, sizeof(*c->buckets));
    if (!c->slices || !c->buckets) {
        qcow2_cache_finish(c);
        return rhea_error_set(err, ENOMEM, "out of memory");
    }
    return 0;
}

void qcow2_cache_finish(struct qcow2_cache *c)
{
    if (c->slices)
        for (unsigned i = 0; i < c->n_slices; i++)
            free(c->slices[i].data);
    free(c->slices);
    free(c->buckets);
    *c = (struct qcow2_cache){0};
}

static struct qcow2_slice **cache_bucket(struct qcow2_cache *c, uint64_t host)
{
    uint64_t n = host / c->unit;

    return &c->buckets[(n ^ n >> 16) & (c->n_buckets - 1)];
}

static void cache_unchain(struct qcow2_cache *c, struct qcow2_slice *slice)
{
    struct qcow2_slice **at = cache_bucket(c, slice->host);

    while (*at && *at != slice)
        at = &(*at)->chain;
    if (*at)
        *at = slice->chain;
    slice->chain = NULL;
}

static void cache_unlink(struct qcow2_cache *c, struct qcow2_slice *slice)
{
    if (c->newest == slice)
        c->newest = slice->older == slice ? NULL : slice->older;
    slice->newer->older = slice->older;
    slice->older->newer = slice->newer;
}

/* Make SLICE, which is in no list, the newest, so that newest->newer is the
 * oldest. */
static void cache_link(struct qcow2_cache *c, struct qcow2_slice *slice)
{
    if (!c->newest) {
        slice->newer = slice->older = slice;
    } else {
        slice->older = c->newest;
        slice->newer = c->newest->newer;
        slice->newer->older = slice;
        c->newest->newer = slice;
    }
    c->newest = slice;
}

/* Empty slices keep the impossible offset, and so are never found. */
#define CACHE_NOWHERE UINT64_MAX

static void cache_drop(struct qcow2_cache *c, struct qcow2_slice *slice)
{
    if (slice->host == CACHE_NOWHERE)
        return;
    cache_unchain(c, slice);
    if (slice->dirty)
        c->n_dirty--;
    slice->dirty = false;
    slice->host = CACHE_NOWHERE;
}

static int cache_write_one(struct qcow2_cache *c, struct qcow2_slice *slice,
                           struct rhea_error *err)
{
    int r;

    if (c->write_event)
        rhea_storage_event(c->storage, c->write_event);
    r = rhea_storage_write(c->storage, slice->data, c->unit, slice->host, err);
    if (r < 0)
        return r;
    slice->dirty = false;
    c->n_dirty--;
    return 0;
}

/* A slice that may be filled anew, in no list; NULL with *RESULT set. */
static struct qcow2_slice *cache_take(struct qcow2_cache *c, int *result,
                                      struct rhea_error *err)
{
    struct qcow2_slice *slice;

    *result = 0;
    if (c->n_slices < c->capacity) {
        slice = &c->slices[c->n_slices];
        slice->data = malloc(c->unit);
        if (!slice->data) {
            *result = rhea_error_set(err, ENOMEM, "out of memory");
            return NULL;
        }
        slice->host = CACHE_NOWHERE;
        c->n_slices++;
        return slice;
    }
    if (c->n_dirty == c->n_slices && c->make_room) {
        *result = c->make_room(c->opaque, err);
        if (*result < 0)
            return NULL;
    }
    slice = c->newest->newer;
    while (slice->dirty && slice != c->newest && c->make_room)
        slice = slice->newer;
    if (slice->dirty) {
        *result = cache_write_one(c, slice, err);
        if (*result < 0)
            return NULL;
    }
    cache_drop(c, slice);
    cache_unlink(c, slice);
    return slice;
}

int qcow2_cache_get(struct qcow2_cache *c, uint64_t host,
                    struct qcow2_slice **out, struct rhea_error *err)
{
    struct qcow2_slice *slice;
    int r;

    for (slice = *cache_bucket(c, host); slice; slice = slice->chain) {
        if (slice->host == host) {
            if (c->newest != slice) {
                cache_unlink(c, slice);
                cache_link(c, slice);
            }
            *out = slice;
            return 0;
        }
    }
    slice = cache_take(c, &r, err);
    if (!slice)
        return r;
    if (c->read_event)
        rhea_storage_event(c->storage, c->read_event);
    r = rhea_storage_read_padded(c->storage, slice->data, c->unit, host, err);
    if (r == 0) {
        slice->host = host;
        slice->chain = *cache_bucket(c, host);
        *cache_bucket(c, host) = slice;
    }
    cache_link(c, slice);
    *out = slice;
    return r;
}

void qcow2_cache_dirty(struct qcow2_cache *c, struct qcow2_slice *slice)
{
    if (!slice->dirty)
        c->n_dirty++;
    slice->dirty = true;
}

static int cache_compare(const void *a, const void *b)
{
    const struct qcow2_slice *const *x = a, *const *y = b;

    return (*x)->host < (*y)->host ? -1 : (*x)->host > (*y)->host;
}

int qcow2_cache_write(struct qcow2_cache *c, struct rhea_error *err)
{
    RHEA_AUTO_FREE struct qcow2_slice **order = NULL;
    unsigned n = 0;

    if (!c->n_dirty)
        return 0;
    order = malloc(c->n_dirty * sizeof(*order));
    if (!order)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (unsigned i = 0; i < c->n_slices; i++)
        if (c->slices[i].dirty)
            order[n++] = &c->slices[i];
    qsort(order, n, sizeof(*order), cache_compare);
    for (unsigned i = 0; i < n; i++) {
        int r = cache_write_one(c, order[i], err);
        if (r < 0)
            return r;
    }
    return 0;
}

void qcow2_cache_forget(struct qcow2_cache *c, uint64_t host, uint64_t len)
{
    for (unsigned i = 0; i < c->n_slices; i++)
        if (c->slices[i].host - host < len)
            cache_drop(c, &c->slices[i]);
}

void qcow2_cache_clear(struct qcow2_cache *c)
{
    for (unsigned i = 0; i < c->n_slices; i++)
        cache_drop(c, &c->slices[i]);
}
