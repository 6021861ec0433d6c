/* SPDX-License-Identifier: MIT */
/*
 * The bits of persistent bitmaps, the tables that lead to them, and changes of
 * all that (the spec, "Bitmap table", "Bitmap data").
 *
 * Order of a change: bits, tables and directory go to clusters taken for them;
 * these and their refcounts become durable (qcow2_sync); the header switches
 * to the new directory, which is durable when that returns (bitmap_header.c);
 * only then the old directory, tables and bits are released, by the rules of
 * sync.c. So a crash leaves either the old bitmaps or the new ones, and at
 * worst leaks. Clusters with bits are never written a second time.
 */
#include <errno.h>
#include <inttypes.h>

#include "format/qcow2/bitmap.h"

#define DATA_ENTRY_RESERVED 0xff000000000001feULL
#define DATA_ALL_ONES 1ULL
/* Clusters of bits that are asked for, and written, at a time. */
#define DATA_RUN_BYTES (1U << 20)

int qcow2_bitmap_check_table(const struct qcow2 *q,
                             const struct qcow2_bitmap *b,
                             struct rhea_error *err)
{
    uint64_t bytes = qcow2_bitmap_bytes(q->f.size, b->granularity_bits);

    if (b->flags & QCOW2_BITMAP_IN_USE ||
        b->n_table == div_up(bytes, q->cluster_size))
        return 0;
    return rhea_error_set(err, EINVAL,
                          "the table of bitmap '%s' does not fit the image's "
                          "size",
                          b->name);
}

int qcow2_bitmap_check_data(const struct qcow2 *q, const struct qcow2_bitmap *b,
                            uint32_t index, uint64_t entry,
                            struct rhea_error *err)
{
    uint64_t data = entry & QCOW2_OFFSET_MASK;

    if (!(entry & DATA_ENTRY_RESERVED) && !(data && entry & DATA_ALL_ONES) &&
        is_aligned(data, q->cluster_size))
        return 0;
    return rhea_error_set(err, EINVAL,
                          "entry %" PRIu32 " of the bitmap table at 0x%" PRIx64
                          ", 0x%" PRIx64 ", is damaged",
                          index, b->table, entry);
}

int qcow2_bitmap_read(struct qcow2 *q, const struct qcow2_bitmap *b,
                      uint8_t *bits, uint64_t n, struct rhea_error *err)
{
    RHEA_AUTO_FREE uint64_t *table = NULL;
    uint64_t tail = div_up(q->f.size, 1ULL << b->granularity_bits) % 8;
    int r = qcow2_bitmap_check_table(q, b, err);

    if (r < 0)
        return r;
    if (!qcow2_table_in_file(q, b->table, b->n_table * 8ULL))
        return rhea_error_set(err, EIO,
                              "the table of bitmap '%s' lies past the end of "
                              "the file",
                              b->name);
    r = qcow2_table_load(q, b->table, b->n_table, &table, err);
    for (uint32_t i = 0; r == 0 && i < b->n_table; i++) {
        uint64_t from = (uint64_t)i << q->cluster_bits;
        uint64_t len = RHEA_MIN(q->cluster_size, n - from);
        uint64_t data = table[i] & QCOW2_OFFSET_MASK;

        r = qcow2_bitmap_check_data(q, b, i, table[i], err);
        if (r < 0)
            break;
        if (data)
            r = rhea_storage_read(q->f.storage, bits + from, len, data, err);
        else if (table[i] & DATA_ALL_ONES)
            memset(bits + from, 0xff, len);
    }
    if (r == 0 && n && tail)
        bits[n - 1] &= (uint8_t)((1U << tail) - 1);
    return r;
}

static int data_note(struct qcow2_bitmap_ranges *to, uint64_t cluster,
                     uint64_t count)
{
    struct qcow2_bitmap_range *last = to->n ? &to->items[to->n - 1] : NULL;

    if (last && last->cluster + last->count == cluster) {
        last->count += count;
        return 0;
    }
    if (to->n == to->max) {
        size_t max = RHEA_MAX(64, to->max * 2);
        struct qcow2_bitmap_range *more =
            realloc(to->items, max * sizeof(*more));

        if (!more)
            return -ENOMEM;
        to->items = more;
        to->max = max;
    }
    to->items[to->n++] = (struct qcow2_bitmap_range){cluster, count};
    return 0;
}

/* Take COUNT clusters, in one piece with WHOLE, else at least one. */
static int data_take(struct qcow2_bitmap_change *c, uint64_t count, bool whole,
                     uint64_t *cluster, uint64_t *got, struct rhea_error *err)
{
    struct qcow2 *q = c->q;
    bool fresh;
    int r = qcow2_alloc(q, count, cluster, got, &fresh, err);

    if (r == 0 && whole && *got < count) {
        r = qcow2_refcount_add(q, *cluster, *got, -1, err);
        if (r == 0)
            r = qcow2_alloc_table(q, count, cluster, err);
        *got = count;
    }
    /* Without a note it would be a leak, should the change fail. */
    if (r == 0)
        (void)data_note(&c->taken, *cluster, *got);
    return r;
}

static bool data_zero(const uint8_t *p, uint64_t len)
{
    return !len || (!p[0] && !memcmp(p, p + 1, len - 1));
}

/* Write COUNT clusters of bits, which are N bytes at FROM, behind which there
 * are zeroes. */
static int data_write(struct qcow2 *q, const uint8_t *from, uint64_t n,
                      uint64_t host, uint64_t count, struct rhea_error *err)
{
    uint64_t whole =
        align_down(RHEA_MIN(n, count << q->cluster_bits), q->cluster_size);
    RHEA_AUTO_FREE uint8_t *last = NULL;
    int r = 0;

    if (whole)
        r = rhea_storage_write(q->f.storage, from, whole, host, err);
    if (r < 0 || whole == count << q->cluster_bits)
        return r;
    last = calloc(1, q->cluster_size);
    if (!last)
        return rhea_error_set(err, ENOMEM, "out of memory");
    memcpy(last, from + whole, n - whole);
    return rhea_storage_write(q->f.storage, last, q->cluster_size, host + whole,
                              err);
}

/* Store the bits, and their places in TABLE (as on disk). */
static int data_store_bits(struct qcow2_bitmap_change *c, uint64_t *table,
                           const uint8_t *bits, uint64_t n,
                           struct rhea_error *err)
{
    struct qcow2 *q = c->q;
    uint64_t unit = q->cluster_size, n_table = div_up(n, unit);
    uint64_t most = RHEA_MAX(1, DATA_RUN_BYTES / unit);

    for (uint64_t i = 0; i < n_table;) {
        uint64_t run = 0, cluster, got;
        int r;

        while (run < most && i + run < n_table &&
               !data_zero(bits + (i + run) * unit,
                          RHEA_MIN(unit, n - (i + run) * unit)))
            run++;
        if (!run) {
            i++;
            continue;
        }
        r = data_take(c, run, false, &cluster, &got, err);
        if (r == 0)
            r = data_write(q, bits + i * unit, n - i * unit,
                           cluster << q->cluster_bits, got, err);
        if (r < 0)
            return r;
        for (uint64_t k = 0; k < got; k++)
            table[i + k] = htobe64((cluster + k) << q->cluster_bits);
        i += got;
    }
    return 0;
}

int qcow2_bitmap_change_begin(struct qcow2_bitmap_change *c, struct qcow2 *q,
                              struct rhea_error *err)
{
    *c = (struct qcow2_bitmap_change){.q = q};
    return qcow2_bitmap_list_load(q, &c->list, err);
}

int qcow2_bitmap_change_store(struct qcow2_bitmap_change *c,
                              struct qcow2_bitmap *b, const uint8_t *bits,
                              uint64_t n, struct rhea_error *err)
{
    struct qcow2 *q = c->q;
    uint64_t n_table = div_up(n, q->cluster_size), cluster, got;
    uint64_t count = div_up(n_table * 8, q->cluster_size);
    RHEA_AUTO_FREE uint64_t *table = calloc(count, q->cluster_size);
    int r = 0;

    /* A directory's entry leads to a table of at least one entry. */
    if (!n_table)
        return rhea_error_set(err, EINVAL,
                              "an image of 0 bytes cannot have bitmaps");
    if (!table)
        return rhea_error_set(err, ENOMEM, "out of memory");
    if (bits)
        r = data_store_bits(c, table, bits, n, err);
    if (r == 0)
        r = data_take(c, count, true, &cluster, &got, err);
    if (r == 0)
        r = rhea_storage_write(q->f.storage, table, count << q->cluster_bits,
                               cluster << q->cluster_bits, err);
    if (r < 0)
        return r;
    qcow2_bitmap_change_drop(c, b);
    b->table = cluster << q->cluster_bits;
    b->n_table = (uint32_t)n_table;
    return 0;
}

/* Drop a piece of a bitmap, unless a damaged one claims clusters of tables. */
static void data_drop(struct qcow2_bitmap_change *c, uint64_t host,
                      uint64_t length)
{
    const struct bitmap *tables = &c->q->tables;
    uint64_t first = host >> c->q->cluster_bits;
    uint64_t count = div_up(length, c->q->cluster_size);

    if (first < tables->n_bits &&
        bitmap_any(tables, first, RHEA_MIN(count, tables->n_bits - first)))
        return;
    (void)data_note(&c->dropped, first, count);
}

void qcow2_bitmap_change_drop(struct qcow2_bitmap_change *c,
                              const struct qcow2_bitmap *b)
{
    struct qcow2 *q = c->q;
    uint64_t bytes = b->n_table * 8ULL;
    RHEA_AUTO_FREE uint64_t *table = NULL;

    /* Whatever is damaged stays, and is a leak. */
    if (!b->table || !qcow2_table_in_file(q, b->table, bytes) ||
        qcow2_table_load(q, b->table, b->n_table, &table, NULL) < 0)
        return;
    data_drop(c, b->table, bytes);
    for (uint32_t i = 0; i < b->n_table; i++) {
        uint64_t data = table[i] & QCOW2_OFFSET_MASK;

        if (data && qcow2_in_file(q, data) &&
            qcow2_bitmap_check_data(q, b, i, table[i], NULL) == 0)
            data_drop(c, data, q->cluster_size);
    }
}

/* The new directory, in the file. */
static int data_write_directory(struct qcow2_bitmap_change *c, uint64_t *offset,
                                uint64_t *size, struct rhea_error *err)
{
    struct qcow2 *q = c->q;
    RHEA_AUTO_FREE uint8_t *dir = NULL;
    uint64_t cluster, got;
    int r = qcow2_bitmap_list_build(&c->list, &dir, size, err);

    *offset = 0;
    if (r < 0 || !*size)
        return r;
    r = data_take(c, div_up(*size, q->cluster_size), true, &cluster, &got, err);
    if (r < 0)
        return r;
    *offset = cluster << q->cluster_bits;
    return rhea_storage_write(q->f.storage, dir, *size, *offset, err);
}

int qcow2_bitmap_change_commit(struct qcow2_bitmap_change *c,
                               struct rhea_error *err)
{
    struct qcow2 *q = c->q;
    bool had = q->n_bitmaps && q->autoclear & QCOW2_AUTOCLEAR_BITMAPS;
    uint64_t old = q->bitmap_dir_offset,
             old_size = had ? q->bitmap_dir_size : 0;
    uint64_t offset, size;
    int r = data_write_directory(c, &offset, &size, err);

    if (r == 0)
        r = qcow2_sync(q, err);
    if (r == 0)
        r = qcow2_bitmaps_switch(q, c->list.n, offset, size, err);
    if (r < 0)
        return r;
    c->taken.n = 0;
    if (old_size)
        (void)data_note(&c->dropped, old >> q->cluster_bits,
                        div_up(old_size, q->cluster_size));
    for (size_t i = 0; r == 0 && i < c->dropped.n; i++)
        r = qcow2_release(q, c->dropped.items[i].cluster,
                          c->dropped.items[i].count, false, err);
    c->dropped.n = 0;
    return r;
}

void qcow2_bitmap_change_finish(struct qcow2_bitmap_change *c)
{
    /* Once a write of metadata failed, nobody knows what is on disk. */
    for (size_t i = 0; i < c->taken.n && !c->q->failed; i++)
        (void)qcow2_refcount_add(c->q, c->taken.items[i].cluster,
                                 c->taken.items[i].count, -1, NULL);
    free(c->taken.items);
    free(c->dropped.items);
    qcow2_bitmap_list_free(&c->list);
    *c = (struct qcow2_bitmap_change){0};
}
