/* SPDX-License-Identifier: MIT */
/*
 * QED's tables, through a cache of pages (table.h).
 *
 * Order of writes. The guest's data has been written before its entry is put
 * into the cache, and the file has grown by a new L2 table, all zeroes, before
 * its L1 entry is; the cache flushes before it writes any of them. So at every
 * moment each entry in the file is 0, 1 or the offset of something whose
 * contents are durable, whichever of the sectors survive: a new L2 table
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

/* The bytes of entry INDEX of the table at TABLE, and how many entries there
 * are up to the page's end. Pages are no larger than clusters, so none holds
 * parts of two tables. */
static int entries_get(struct qed *q, uint64_t table, uint64_t index,
                       const uint64_t **entries, uint32_t *n,
                       struct rhea_error *err)
{
    const uint8_t *bytes = NULL;
    uint32_t len = 0;
    int ret = table_get(&q->tables, table + index * sizeof(uint64_t), &bytes,
                        &len, err);
    /* Aligned, as the page and the entry's offset in it are. */
    *entries = (const void *)bytes;
    *n = len / (uint32_t)sizeof(uint64_t);
    return ret;
}

static int entry_set(struct qed *q, uint64_t table, uint64_t index,
                     uint64_t entry, struct rhea_error *err)
{
    uint8_t *bytes;
    int ret = table_change(&q->tables, table + index * sizeof(uint64_t),
                           sizeof(uint64_t), &bytes, err);
    if (!ret)
        store_le64(bytes, entry);
    return ret;
}

static uint64_t table_l1_index(const struct qed *q, uint64_t cluster)
{
    return cluster >> q->entry_bits;
}

static uint64_t table_l2_index(const struct qed *q, uint64_t cluster)
{
    return cluster & (((uint64_t)1 << q->entry_bits) - 1);
}

uint64_t qed_table_left(const struct qed *q, uint64_t cluster)
{
    return ((uint64_t)1 << q->entry_bits) - table_l2_index(q, cluster);
}

int qed_l1_get(struct qed *q, uint64_t cluster, uint64_t *entry,
               struct rhea_error *err)
{
    const uint64_t *entries;
    uint32_t n;
    int ret = entries_get(q, q->l1_offset, table_l1_index(q, cluster), &entries,
                          &n, err);
    if (ret)
        return ret;
    *entry = le64toh(*entries);
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
    return entry_set(q, q->l1_offset, table_l1_index(q, cluster), entry, err);
}

int qed_l2_set(struct qed *q, uint64_t cluster, uint64_t count, uint64_t entry,
               uint64_t step, struct rhea_error *err)
{
    uint64_t table;
    int ret = qed_l1_get(q, cluster, &table, err);
    for (uint64_t i = 0; !ret && i < count; i++, entry += step)
        ret = entry_set(q, table, table_l2_index(q, cluster + i), entry, err);
    return ret;
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
    const uint64_t *entries;
    uint32_t left;
    int ret = entries_get(q, q->l1_offset, index, &entries, &left, err);
    if (ret)
        return ret;
    uint64_t n = 0;
    uint64_t end = RHEA_MIN(want, left);
    while (n < end && entries[n] == 0)
        n++;
    if (n < want && n == left)
        n += table_zero_run(&q->tables,
                            q->l1_offset + (index + n) * sizeof(uint64_t),
                            (want - n) * sizeof(uint64_t)) /
             sizeof(uint64_t);
    *count = n;
    return 0;
}

/* Entries of a page that are all 0, and those behind it that are in a hole. */
static void span_extend_zeroes(struct qed *q, uint64_t table, uint64_t index,
                               uint64_t want, struct qed_span *span)
{
    uint64_t next = index + span->count;
    uint64_t per_table = (uint64_t)1 << q->entry_bits;
    uint64_t limit = RHEA_MIN(want - span->count, per_table - next);
    uint64_t run =
        limit ? table_zero_run(&q->tables, table + next * sizeof(uint64_t),
                               limit * sizeof(uint64_t))
              : 0;
    if (run >= sizeof(uint64_t)) {
        span->entries = NULL;
        span->count += run / sizeof(uint64_t);
    }
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

    uint32_t left;
    ret = entries_get(q, table, index, &span->entries, &left, err);
    if (ret)
        return ret;
    span->count = left;
    if (want > left && entries_zero(span->entries, left))
        span_extend_zeroes(q, table, index, want, span);
    span->count = RHEA_MIN(want, span->count);
    return 0;
}
