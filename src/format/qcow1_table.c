/* SPDX-License-Identifier: MIT */
/*
 * The tables, through one cache (table.h), and where the guest's bytes are.
 *
 * Order of writes: the guest's data has been written before its entry is put
 * into the cache, and the file has grown by a new L2 table, all zeroes, before
 * its L1 entry is. The cache flushes and then writes whatever sectors of tables
 * have changed, in any order: a table without its entries says that nothing is
 * allocated. An entry never straddles a sector.
 */
#include <errno.h>
#include <inttypes.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format/qcow1.h"

enum {
    TABLE_CACHE = 8 << 20, /* for 4 GiB of clusters of 4 KiB */
    PAGE_MIN = 4 << 10,
    PAGE_MAX = QCOW1_SECTOR * TABLE_PAGE_SECTORS,
    /* Tables that one lookup goes through: it holds the lock, and the next one
     * goes on from there. */
    MAP_SPANS = 1024,
};

int qcow1_table_init(struct qcow1 *q, struct rhea_error *err)
{
    const struct table_how how = {
        .page_bytes =
            (uint32_t)RHEA_MIN(RHEA_MAX(q->l2_bytes, PAGE_MIN), PAGE_MAX),
        .cache_bytes = TABLE_CACHE,
    };
    return table_init(&q->tables, q->base.storage, &how, err);
}

struct qcow1_packed qcow1_unpack(const struct qcow1 *q, uint64_t entry)
{
    unsigned shift = 63 - q->cluster_bits;
    return (struct qcow1_packed){
        .host = entry & ((UINT64_C(1) << shift) - 1),
        .length = entry >> shift & (q->cluster_size - 1),
    };
}

static bool ranges_meet(uint64_t a, uint64_t a_end, uint64_t b, uint64_t b_end)
{
    return a < b_end && b < a_end;
}

/* Whether a cluster, or a table, can be there. */
static bool qcow1_range_valid(const struct qcow1 *q, uint64_t host,
                              uint64_t length)
{
    return range_inside(host, length, qcow1_file_end(q)) &&
           host >= QCOW1_HEADER &&
           !ranges_meet(host, host + length, q->l1_offset, qcow1_l1_end(q));
}

bool qcow1_entry_valid(const struct qcow1 *q, uint64_t cluster, uint64_t entry)
{
    if (entry & QCOW1_COMPRESSED) {
        struct qcow1_packed p = qcow1_unpack(q, entry);
        return p.length && qcow1_range_valid(q, p.host, p.length);
    }
    /* The last one need not be there as a whole. */
    uint64_t offset = cluster << q->cluster_bits, need = q->cluster_size;
    if (offset < q->base.size)
        need = RHEA_MIN(need, q->base.size - offset);
    return is_aligned(entry, QCOW1_SECTOR) && qcow1_range_valid(q, entry, need);
}

uint64_t qcow1_table_left(const struct qcow1 *q, uint64_t cluster)
{
    uint64_t n = UINT64_C(1) << q->l2_bits;
    return n - (cluster & (n - 1));
}

static uint64_t table_l1_place(const struct qcow1 *q, uint64_t cluster)
{
    return q->l1_offset + (cluster >> q->l2_bits) * QCOW1_ENTRY;
}

static uint64_t table_l2_place(const struct qcow1 *q, uint64_t table,
                               uint64_t cluster)
{
    uint64_t mask = (UINT64_C(1) << q->l2_bits) - 1;
    return table + (cluster & mask) * QCOW1_ENTRY;
}

int qcow1_l1_raw(struct qcow1 *q, uint64_t cluster, uint64_t *table,
                 struct rhea_error *err)
{
    const uint8_t *bytes;
    uint32_t len;
    int ret =
        table_get(&q->tables, table_l1_place(q, cluster), &bytes, &len, err);
    if (!ret)
        *table = load_be64(bytes);
    return ret;
}

bool qcow1_table_valid(const struct qcow1 *q, uint64_t table)
{
    return is_aligned(table, QCOW1_SECTOR) &&
           qcow1_range_valid(q, table, q->l2_bytes);
}

int qcow1_l1_get(struct qcow1 *q, uint64_t cluster, uint64_t *table,
                 struct rhea_error *err)
{
    int ret = qcow1_l1_raw(q, cluster, table, err);
    if (ret)
        return ret;
    if (*table && !qcow1_table_valid(q, *table))
        return rhea_error_set(err, EIO,
                              "the image is damaged: the L2 table of guest "
                              "offset %" PRIu64 " cannot be at offset %" PRIu64
                              " of the file",
                              cluster << q->cluster_bits, *table);
    return 0;
}

int qcow1_l1_set(struct qcow1 *q, uint64_t cluster, uint64_t table,
                 struct rhea_error *err)
{
    uint8_t *bytes;
    int ret = table_change(&q->tables, table_l1_place(q, cluster), QCOW1_ENTRY,
                           &bytes, err);
    if (!ret)
        store_be64(bytes, table);
    return ret;
}

int qcow1_l2_set(struct qcow1 *q, uint64_t cluster, uint64_t count,
                 uint64_t entry, uint64_t step, struct rhea_error *err)
{
    uint64_t table;
    int ret = qcow1_l1_get(q, cluster, &table, err);
    for (uint64_t i = 0; i < count && !ret; i++) {
        uint8_t *bytes;
        ret = table_change(&q->tables, table_l2_place(q, table, cluster + i),
                           QCOW1_ENTRY, &bytes, err);
        if (!ret)
            store_be64(bytes, entry + i * step);
    }
    return ret;
}

int qcow1_entry_get(struct qcow1 *q, uint64_t cluster, uint64_t *entry,
                    struct rhea_error *err)
{
    const uint8_t *bytes;
    uint32_t len;
    uint64_t table;
    *entry = 0;
    int ret = qcow1_l1_get(q, cluster, &table, err);
    if (ret || !table)
        return ret;
    ret = table_get(&q->tables, table_l2_place(q, table, cluster), &bytes, &len,
                    err);
    if (!ret)
        *entry = load_be64(bytes);
    return ret;
}

/* --- Where guest bytes are --- */

/* What the tables say from a cluster on: that COUNT of them have no table, or
 * as many entries, big endian, valid until the next call. */
struct span {
    const uint8_t *entries; /* NULL: no table */
    uint64_t count;         /* never 0 */
};

/* How many L1 entries from that of CLUSTER on, at most WANT, are 0; that one
 * is. */
static int span_absent(struct qcow1 *q, uint64_t cluster, uint64_t want,
                       uint64_t *count, struct rhea_error *err)
{
    const uint8_t *bytes;
    uint32_t len;
    uint64_t at = table_l1_place(q, cluster), n = 0;
    int ret = table_get(&q->tables, at, &bytes, &len, err);
    if (ret)
        return ret;
    uint64_t end = RHEA_MIN(want, len / QCOW1_ENTRY);
    while (n < end && load_be64(bytes + n * QCOW1_ENTRY) == 0)
        n++;
    if (n == len / QCOW1_ENTRY && n < want)
        n += table_zero_run(&q->tables, at + n * QCOW1_ENTRY,
                            (want - n) * QCOW1_ENTRY) /
             QCOW1_ENTRY;
    *count = n;
    return 0;
}

static int span_get(struct qcow1 *q, uint64_t cluster, uint64_t want,
                    struct span *span, struct rhea_error *err)
{
    uint64_t table, left = qcow1_table_left(q, cluster);
    uint32_t len;
    int ret = qcow1_l1_get(q, cluster, &table, err);
    if (ret)
        return ret;
    if (!table) {
        uint64_t absent = 1;
        if (want > left)
            ret = span_absent(q, cluster, ((want - left - 1) >> q->l2_bits) + 2,
                              &absent, err);
        *span = (struct span){
            .count = RHEA_MIN(want, left + ((absent - 1) << q->l2_bits))};
        return ret;
    }
    ret = table_get(&q->tables, table_l2_place(q, table, cluster),
                    &span->entries, &len, err);
    span->count = RHEA_MIN(want, RHEA_MIN(left, len / QCOW1_ENTRY));
    return ret;
}

/* How many entries of SPAN go on as a run whose next entry is NEXT. */
static uint64_t span_run(const struct span *span, uint64_t next, uint64_t step)
{
    uint64_t i = 0;
    if (!span->entries)
        return next == 0 ? span->count : 0;
    while (i < span->count &&
           load_be64(span->entries + i * QCOW1_ENTRY) == next) {
        next += step;
        i++;
    }
    return i;
}

/* The run of at most WANT clusters that begins with CLUSTER. */
static int map_run(struct qcow1 *q, uint64_t cluster, uint64_t want,
                   uint64_t *first, uint64_t *count, struct rhea_error *err)
{
    struct span span;
    int ret = span_get(q, cluster, want, &span, err);
    if (ret)
        return ret;
    *first = span.entries ? load_be64(span.entries) : 0;
    *count = 1;
    if (*first && !qcow1_entry_valid(q, cluster, *first))
        return rhea_error_set(err, EIO,
                              "the image is damaged: guest offset %" PRIu64
                              " cannot be where the entry 0x%" PRIx64 " says",
                              cluster << q->cluster_bits, *first);
    if (*first & QCOW1_COMPRESSED)
        return 0;
    uint64_t step = *first ? q->cluster_size : 0, n = 0;
    for (unsigned i = 0; i < MAP_SPANS; i++) {
        uint64_t more = span_run(&span, *first + n * step, step);
        n += more;
        if (more < span.count || n >= want)
            break;
        /* A fault further on is the next lookup's. */
        if (span_get(q, cluster + n, want - n, &span, NULL))
            break;
    }
    /* And so is what lies where nothing can be. */
    while (step && n > 1 &&
           (!qcow1_range_valid(q, *first, (n - 1) << q->cluster_bits) ||
            !qcow1_entry_valid(q, cluster + n - 1, *first + (n - 1) * step)))
        n /= 2;
    *count = n;
    return 0;
}

int qcow1_map_locked(struct blocks *b, uint64_t offset, uint64_t len,
                     struct rhea_extent *extent, struct rhea_error *err)
{
    struct qcow1 *q = (struct qcow1 *)b->format;
    uint64_t cluster = offset >> q->cluster_bits;
    uint64_t skip = offset & (q->cluster_size - 1);
    uint64_t want = ((offset + len - 1) >> q->cluster_bits) - cluster + 1;
    uint64_t entry = 0, count = 0;
    int ret = map_run(q, cluster, want, &entry, &count, err);
    if (ret)
        return ret;
    *extent = (struct rhea_extent){
        .kind = RHEA_EXTENT_UNALLOCATED,
        .length = RHEA_MIN(len, (count << q->cluster_bits) - skip),
    };
    if (!entry)
        return 0;
    extent->has_host = true;
    extent->storage = b->storage;
    if (entry & QCOW1_COMPRESSED) {
        struct qcow1_packed p = qcow1_unpack(q, entry);
        extent->kind = RHEA_EXTENT_COMPRESSED;
        extent->host = p.host;
        extent->stored_length = p.length;
        return 0;
    }
    extent->kind = q->crypt_method ? RHEA_EXTENT_ENCRYPTED : RHEA_EXTENT_DATA;
    extent->host = entry + skip;
    extent->stored_length = extent->length;
    return 0;
}
