/* SPDX-License-Identifier: MIT */
/*
 * QED's tables, by slices through a bounded write-back cache.
 *
 * Order of writes (qed_write_back). The guest's data has been written before
 * its entry is put into the cache, and the file has grown by a new L2 table,
 * all zeroes, before its L1 entry is; then
 *   1. flush: data, new tables and the file's size are durable;
 *   2. write the slices, L2 and L1.
 * So at every moment each entry in the file is 0, 1 or the offset of something
 * whose contents are durable, whichever of the slices survive: a new L2 table
 * without its entries says that nothing is allocated. An entry never straddles
 * a sector. The worst that a crash leaves are clusters that nobody refers to.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format/qed.h"

enum { SECTOR_ENTRIES = 512 / sizeof(uint64_t) };

int qed_cache_init(struct qed *q, struct rhea_error *err)
{
    q->cache.n_sets = QED_CACHE_BYTES / QED_CACHE_WAYS / q->slice_bytes;
    q->cache.slices =
        calloc(q->cache.n_sets * QED_CACHE_WAYS, sizeof(*q->cache.slices));
    if (!q->cache.slices)
        return rhea_error_set(err, ENOMEM, "out of memory");
    return 0;
}

void qed_cache_finish(struct qed *q)
{
    if (!q->cache.slices)
        return;
    for (size_t i = 0; i < q->cache.n_sets * QED_CACHE_WAYS; i++)
        free(q->cache.slices[i].entries);
    free(q->cache.slices);
    q->cache.slices = NULL;
}

void qed_cache_drop(struct qed *q)
{
    for (size_t i = 0; i < q->cache.n_sets * QED_CACHE_WAYS; i++)
        q->cache.slices[i].offset = 0;
}

static void slice_clean(struct qed *q, struct qed_slice *slice)
{
    if (slice->dirty_to)
        q->cache.n_dirty--;
    slice->dirty_from = slice->dirty_to = 0;
}

static void slice_dirty(struct qed *q, struct qed_slice *slice, uint32_t from,
                        uint32_t to)
{
    if (!slice->dirty_to) {
        q->cache.n_dirty++;
        slice->dirty_from = from;
    }
    slice->dirty_from = RHEA_MIN(slice->dirty_from, from);
    slice->dirty_to = RHEA_MAX(slice->dirty_to, to);
}

/* Write what has changed of the slices, by sectors. */
static int cache_write_dirty(struct qed *q, struct rhea_error *err)
{
    for (size_t i = 0; i < q->cache.n_sets * QED_CACHE_WAYS; i++) {
        struct qed_slice *slice = &q->cache.slices[i];
        if (!slice->dirty_to)
            continue;
        uint64_t from = align_down(slice->dirty_from, SECTOR_ENTRIES);
        uint64_t to = align_up(slice->dirty_to, SECTOR_ENTRIES);
        rhea_storage_event(q->base.storage, "l2_update");
        int ret =
            rhea_storage_write(q->base.storage, slice->entries + from,
                               (size_t)(to - from) * sizeof(uint64_t),
                               slice->offset + from * sizeof(uint64_t), err);
        if (ret)
            return ret;
        slice_clean(q, slice);
    }
    return 0;
}

int qed_write_back(struct qed *q, struct rhea_error *err)
{
    if (!q->cache.n_dirty)
        return 0;
    if (q->failed)
        return rhea_error_set(err, EIO,
                              "an earlier write to the image's tables failed");
    int ret = rhea_storage_flush(q->base.storage, err);
    if (!ret)
        ret = cache_write_dirty(q, err);
    if (ret)
        q->failed = true;
    return ret;
}

/* A place for a new slice of this set: the empty or least recently used one,
 * clean ones first. NULL with *RET set on failure. */
static struct qed_slice *cache_evict(struct qed *q, struct qed_slice *set,
                                     int *ret, struct rhea_error *err)
{
    struct qed_slice *victim = NULL;
    for (unsigned i = 0; i < QED_CACHE_WAYS; i++) {
        if (set[i].dirty_to)
            continue;
        if (!victim || set[i].offset == 0 || set[i].used < victim->used)
            victim = &set[i];
        if (victim->offset == 0)
            break;
    }
    if (!victim) {
        *ret = qed_write_back(q, err);
        if (*ret)
            return NULL;
        victim = set;
    }
    victim->offset = 0;
    if (!victim->entries)
        victim->entries = malloc(q->slice_bytes);
    if (!victim->entries) {
        *ret = rhea_error_set(err, ENOMEM, "out of memory");
        return NULL;
    }
    return victim;
}

/* The slice that begins at OFFSET of the file. */
static int cache_get(struct qed *q, uint64_t offset, struct qed_slice **out,
                     struct rhea_error *err)
{
    /* Multiplied, since tables tend to stand at regular distances. */
    uint64_t hash = offset / q->slice_bytes * 0x9e3779b97f4a7c15u >> 32;
    struct qed_slice *set =
        q->cache.slices + hash % q->cache.n_sets * QED_CACHE_WAYS;
    q->cache.clock++;
    for (unsigned i = 0; i < QED_CACHE_WAYS; i++) {
        if (set[i].offset == offset) {
            set[i].used = q->cache.clock;
            *out = &set[i];
            return 0;
        }
    }

    int ret = 0;
    struct qed_slice *slice = cache_evict(q, set, &ret, err);
    if (!slice)
        return ret;
    rhea_storage_event(q->base.storage, "l2_load");
    /* A table just allocated may not have made the file grow yet. */
    ret = rhea_storage_read_padded(q->base.storage, slice->entries,
                                   q->slice_bytes, offset, err);
    if (ret)
        return ret;
    slice->offset = offset;
    slice->used = q->cache.clock;
    *out = slice;
    return 0;
}

/* The slice and the place in it of entry INDEX of the table at TABLE. */
static int table_get(struct qed *q, uint64_t table, uint64_t index,
                     struct qed_slice **slice, uint32_t *at,
                     struct rhea_error *err)
{
    *at = (uint32_t)(index % q->slice_entries);
    return cache_get(q, table + (index - *at) * sizeof(uint64_t), slice, err);
}

static uint64_t table_l1_index(const struct qed *q, uint64_t cluster)
{
    return cluster >> q->entry_bits;
}

static uint64_t table_l2_index(const struct qed *q, uint64_t cluster)
{
    return cluster & (((uint64_t)1 << q->entry_bits) - 1);
}

int qed_l1_get(struct qed *q, uint64_t cluster, uint64_t *entry,
               struct rhea_error *err)
{
    struct qed_slice *slice;
    uint32_t at;
    int ret = table_get(q, q->l1_offset, table_l1_index(q, cluster), &slice,
                        &at, err);
    if (ret)
        return ret;
    *entry = le64toh(slice->entries[at]);
    if (*entry && !qed_range_valid(q, *entry, q->table_bytes))
        return rhea_error_set(err, EIO,
                              "the image is damaged: the L2 table of guest "
                              "offset %" PRIu64 " cannot be at offset %" PRIu64
                              " of the file",
                              cluster << q->cluster_bits, *entry);
    return 0;
}

int qed_l1_set(struct qed *q, uint64_t cluster, uint64_t entry,
               struct rhea_error *err)
{
    struct qed_slice *slice;
    uint32_t at;
    int ret = table_get(q, q->l1_offset, table_l1_index(q, cluster), &slice,
                        &at, err);
    if (ret)
        return ret;
    slice->entries[at] = htole64(entry);
    slice_dirty(q, slice, at, at + 1);
    return 0;
}

int qed_l2_set(struct qed *q, uint64_t cluster, uint64_t count, uint64_t entry,
               uint64_t step, struct rhea_error *err)
{
    uint64_t table;
    int ret = qed_l1_get(q, cluster, &table, err);
    if (ret)
        return ret;
    struct qed_slice *slice;
    uint32_t at;
    ret = table_get(q, table, table_l2_index(q, cluster), &slice, &at, err);
    if (ret)
        return ret;
    for (uint64_t i = 0; i < count; i++, entry += step)
        slice->entries[at + i] = htole64(entry);
    slice_dirty(q, slice, at, at + (uint32_t)count);
    return 0;
}

uint64_t qed_zero_run(struct qed *q, uint64_t offset, uint64_t len)
{
    bool hole;
    uint64_t run;
    struct rhea_error ignored;
    /* Where this cannot be told, the slices are read. */
    if (rhea_storage_extent(q->base.storage, offset, len, &hole, &run,
                            &ignored) ||
        !hole)
        return 0;
    return run;
}

static bool entries_zero(const uint64_t *entries, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        if (entries[i])
            return false;
    return true;
}

/* How many L1 entries from INDEX on, at most WANT, are 0. The entry at INDEX
 * is. */
static int span_absent(struct qed *q, uint64_t index, uint64_t want,
                       uint64_t *count, struct rhea_error *err)
{
    struct qed_slice *slice;
    uint32_t at;
    int ret = table_get(q, q->l1_offset, index, &slice, &at, err);
    if (ret)
        return ret;
    uint64_t n = 0;
    uint64_t end = RHEA_MIN(want, q->slice_entries - at);
    while (n < end && slice->entries[at + n] == 0)
        n++;
    if (n < want && at + n == q->slice_entries && !q->cache.n_dirty) {
        uint64_t run =
            qed_zero_run(q, q->l1_offset + (index + n) * sizeof(uint64_t),
                         (want - n) * sizeof(uint64_t));
        n += run / sizeof(uint64_t);
    }
    *count = n;
    return 0;
}

int qed_span_get(struct qed *q, uint64_t cluster, uint64_t want,
                 struct qed_span *span, struct rhea_error *err)
{
    uint64_t table;
    int ret = qed_l1_get(q, cluster, &table, err);
    if (ret)
        return ret;

    uint64_t index = table_l2_index(q, cluster);
    uint64_t per_table = (uint64_t)1 << q->entry_bits;
    if (table == 0) {
        uint64_t tables = (index + want - 1) / per_table + 1;
        uint64_t absent;
        ret = span_absent(q, table_l1_index(q, cluster), tables, &absent, err);
        if (ret)
            return ret;
        span->entries = NULL;
        span->count = RHEA_MIN(want, absent * per_table - index);
        return 0;
    }

    struct qed_slice *slice;
    uint32_t at;
    ret = table_get(q, table, index, &slice, &at, err);
    if (ret)
        return ret;
    span->entries = slice->entries + at;
    span->count = q->slice_entries - at;
    if (want > span->count && !q->cache.n_dirty &&
        entries_zero(span->entries, span->count)) {
        uint64_t next = index + span->count;
        uint64_t limit = RHEA_MIN(want - span->count, per_table - next);
        uint64_t run = limit ? qed_zero_run(q, table + next * sizeof(uint64_t),
                                            limit * sizeof(uint64_t))
                             : 0;
        if (run >= sizeof(uint64_t)) {
            span->entries = NULL;
            span->count += run / sizeof(uint64_t);
        }
    }
    span->count = RHEA_MIN(want, span->count);
    return 0;
}
