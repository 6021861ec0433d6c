/* SPDX-License-Identifier: MIT */
/* All tables from end to end: for checks, and for whoever must know of every
 * cluster that the image refers to. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format/qed.h"

enum {
    SCAN_BYTES = 1 << 20,
    /* Tables on their way from the disk while one is looked at. */
    WALK_AHEAD = 512,
};

int qed_scan_init(struct qed_scan *scan, struct qed *q, struct rhea_error *err)
{
    uint32_t bytes = (uint32_t)RHEA_MIN(q->table_bytes, SCAN_BYTES);
    *scan = (struct qed_scan){.q = q,
                              .capacity = bytes / (uint32_t)sizeof(uint64_t)};
    scan->entries = malloc(bytes);
    return scan->entries ? 0 : rhea_error_set(err, ENOMEM, "out of memory");
}

void qed_scan_finish(struct qed_scan *scan)
{
    free(scan->entries);
    scan->entries = NULL;
}

void qed_scan_start(struct qed_scan *scan, uint64_t table)
{
    scan->table = scan->position = table;
    scan->end = table + scan->q->table_bytes;
    scan->n_entries = 0;
    /* Only a table of several pieces is worth asking for holes at once. */
    scan->was_zero = scan->q->table_bytes > SCAN_BYTES;
}

int qed_scan_next(struct qed_scan *scan, struct rhea_error *err)
{
    scan->position += scan->n_entries * sizeof(uint64_t);
    scan->n_entries = 0;
    if (scan->was_zero && scan->position < scan->end)
        scan->position +=
            align_down(table_zero_run(&scan->q->tables, scan->position,
                                      scan->end - scan->position),
                       sizeof(uint64_t));
    if (scan->position >= scan->end)
        return 0;

    uint64_t bytes =
        RHEA_MIN(scan->end - scan->position, scan->capacity * sizeof(uint64_t));
    int ret = rhea_storage_read(scan->q->base.storage, scan->entries,
                                (size_t)bytes, scan->position, err);
    if (ret)
        return ret;
    scan->n_entries = (uint32_t)(bytes / sizeof(uint64_t));
    scan->was_zero = true;
    for (uint32_t i = 0; i < scan->n_entries && scan->was_zero; i++)
        scan->was_zero = scan->entries[i] == 0;
    return 0;
}

/* A walk, and the run of data clusters it has not reported yet. */
struct walk {
    struct qed *q;
    rhea_use_fn *fn;
    void *opaque;
    uint64_t run, run_length;
};

static int walk_flush(struct walk *w, struct rhea_error *err)
{
    if (!w->run_length)
        return 0;
    uint64_t length = w->run_length;
    w->run_length = 0;
    return w->fn(w->opaque, RHEA_USE_DATA, w->run, length, err);
}

static int walk_cluster(struct walk *w, uint64_t entry, struct rhea_error *err)
{
    if (!qed_range_valid(w->q, entry, w->q->cluster_size))
        return rhea_error_set(err, EIO,
                              "the image is damaged: an L2 table refers to "
                              "offset %" PRIu64
                              " of the file, where no cluster can be",
                              entry);
    if (w->run_length && w->run + w->run_length == entry) {
        w->run_length += w->q->cluster_size;
        return 0;
    }
    int ret = walk_flush(w, err);
    w->run = entry;
    w->run_length = w->q->cluster_size;
    return ret;
}

static int walk_l2(struct walk *w, struct qed_scan *scan, uint64_t table,
                   struct rhea_error *err)
{
    /* The table first: whoever finds it used twice stops before its clusters
     * are all reported again. */
    int ret = walk_flush(w, err);
    if (!ret)
        ret = w->fn(w->opaque, RHEA_USE_TABLE, table, w->q->table_bytes, err);
    if (ret)
        return ret;

    qed_scan_start(scan, table);
    for (;;) {
        ret = qed_scan_next(scan, err);
        if (ret || !scan->n_entries)
            return ret;
        for (uint32_t i = 0; i < scan->n_entries; i++) {
            uint64_t entry = le64toh(scan->entries[i]);
            if (entry == QED_UNALLOCATED || entry == QED_ZERO)
                continue;
            /* Most entries go on where the one before ends. */
            if (w->run_length && entry == w->run + w->run_length &&
                entry < w->q->blocks.file_end) {
                w->run_length += w->q->cluster_size;
                continue;
            }
            ret = walk_cluster(w, entry, err);
            if (ret)
                return ret;
        }
    }
}

/* Small tables come whole; of large ones the first piece will do. */
static void walk_prefetch(struct walk *w, uint64_t table)
{
    if (table && qed_range_valid(w->q, table, w->q->table_bytes))
        rhea_storage_prefetch(w->q->base.storage, table,
                              RHEA_MIN(w->q->table_bytes, SCAN_BYTES));
}

static int walk_tables(struct walk *w, struct qed_scan *l1, struct qed_scan *l2,
                       struct rhea_error *err)
{
    qed_scan_start(l1, w->q->l1_offset);
    for (;;) {
        int ret = qed_scan_next(l1, err);
        if (ret)
            return ret;
        if (!l1->n_entries)
            return walk_flush(w, err);
        for (uint32_t i = 0, ahead = 0; i < l1->n_entries; i++) {
            uint64_t table = le64toh(l1->entries[i]);
            for (; ahead < l1->n_entries && ahead < i + WALK_AHEAD; ahead++)
                walk_prefetch(w, le64toh(l1->entries[ahead]));
            if (table == 0)
                continue;
            if (!qed_range_valid(w->q, table, w->q->table_bytes))
                return rhea_error_set(err, EIO,
                                      "the image is damaged: the L1 table "
                                      "refers to offset %" PRIu64
                                      " of the file, where no L2 table can be",
                                      table);
            ret = walk_l2(w, l2, table, err);
            if (ret)
                return ret;
        }
    }
}

int qed_walk(struct rhea_format *f, rhea_use_fn *fn, void *opaque,
             struct rhea_error *err)
{
    struct walk w = {.q = (struct qed *)f, .fn = fn, .opaque = opaque};
    pthread_mutex_lock(&w.q->blocks.lock);
    int ret = table_write_back(&w.q->tables, err);
    pthread_mutex_unlock(&w.q->blocks.lock);
    if (ret)
        return ret;

    struct qed_scan l1 = {0}, l2 = {0};
    ret = qed_scan_init(&l1, w.q, err);
    if (!ret)
        ret = qed_scan_init(&l2, w.q, err);
    if (!ret)
        ret = fn(opaque, RHEA_USE_HEADER, 0, w.q->header_bytes, err);
    if (!ret)
        ret = fn(opaque, RHEA_USE_TABLE, w.q->l1_offset, w.q->table_bytes, err);
    if (!ret)
        ret = walk_tables(&w, &l1, &l2, err);
    qed_scan_finish(&l1);
    qed_scan_finish(&l2);
    return ret;
}
