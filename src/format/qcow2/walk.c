/* SPDX-License-Identifier: MIT */
/*
 * Every host range that the image refers to, for those who must know what is
 * free: header, active tables, everything the active tables lead to (also past
 * the virtual size), refcount structures; and what snapshots, bitmaps and an
 * encryption header own, as "other". Data that snapshots share with the active
 * tables, or have for themselves, is reported as "other" too, so with
 * snapshots a range may come twice.
 */
#include <errno.h>
#include <inttypes.h>

#include "format/qcow2/qcow2.h"

/* Tables on their way from the disk while one is looked at. */
#define WALK_AHEAD 256

struct walk {
    struct qcow2 *q;
    rhea_use_fn *fn;
    void *opaque;
    uint8_t *table;        /* one cluster */
    uint64_t host, length; /* data not yet reported */
    struct bitmap seen;    /* clusters of L2 tables of snapshots */
};

int qcow2_table_load(struct qcow2 *q, uint64_t host, uint32_t n,
                     uint64_t **table, struct rhea_error *err)
{
    uint64_t *t = malloc((size_t)n * 8 + !n);
    int r;

    if (!t)
        return rhea_error_set(err, ENOMEM, "out of memory for a table");
    r = n ? rhea_storage_read_padded(q->f.storage, t, (size_t)n * 8, host, err)
          : 0;
    if (r < 0) {
        free(t);
        return r;
    }
    for (uint32_t i = 0; i < n; i++)
        t[i] = be64toh(t[i]);
    *table = t;
    return 0;
}

static int walk_report(struct walk *w, enum rhea_use use, uint64_t host,
                       uint64_t length, const char *what,
                       struct rhea_error *err)
{
    if (!length)
        return 0;
    length = align_up(length, w->q->cluster_size);
    /* The last cluster of a file may be cut short. */
    if (!qcow2_in_file(w->q, host + length - w->q->cluster_size))
        return rhea_error_set(
            err, EIO, "the %s at 0x%" PRIx64 " lies past the end of the file",
            what, host);
    return w->fn(w->opaque, use, host, length, err);
}

static int walk_flush_data(struct walk *w, struct rhea_error *err)
{
    uint64_t host = w->host, length = w->length;

    w->length = 0;
    return length ? w->fn(w->opaque, RHEA_USE_DATA, host, length, err) : 0;
}

static int walk_data(struct walk *w, uint64_t host, struct rhea_error *err)
{
    int r;

    if (w->length && w->host + w->length == host) {
        w->length += w->q->cluster_size;
        return 0;
    }
    r = walk_flush_data(w, err);
    w->host = host;
    w->length = w->q->cluster_size;
    return r;
}

static int walk_compressed(struct walk *w, uint64_t entry,
                           struct rhea_error *err)
{
    uint64_t host, length;

    qcow2_compressed_place(w->q, entry, &host, &length);
    return w->fn(w->opaque, RHEA_USE_COMPRESSED, host, length, err);
}

static int walk_l2_entry(struct walk *w, uint64_t guest, struct qcow2_entry e,
                         struct rhea_error *err)
{
    struct qcow2 *q = w->q;
    uint64_t host = e.entry & QCOW2_OFFSET_MASK;
    int r = qcow2_entry_check(q, guest, e, err);

    if (r < 0)
        return r;
    if (e.entry & QCOW2_COMPRESSED)
        return walk_compressed(w, e.entry, err);
    if (!host)
        return 0;
    if (!qcow2_in_file(q, host))
        return rhea_error_set(err, EIO,
                              "the cluster reserved for guest offset 0x%" PRIx64
                              ", at 0x%" PRIx64
                              ", lies past the end of the file",
                              guest, host);
    return walk_data(w, host, err);
}

/* Whether E is plain data right after what is gathered: then it needs no other
 * check. */
static bool walk_goes_on(const struct walk *w, struct qcow2_entry e)
{
    uint64_t end = w->host + w->length;

    return w->length && (e.entry & ~QCOW2_COPIED) == end &&
           end < w->q->file_size && !(e.bitmap & e.bitmap >> 32);
}

static int walk_l2_table(struct walk *w, uint64_t guest, uint64_t host,
                         struct rhea_error *err)
{
    struct qcow2 *q = w->q;
    int r;

    r = rhea_storage_read_padded(q->f.storage, w->table, q->cluster_size, host,
                                 err);
    for (size_t i = 0; r == 0 && i < (1ULL << q->l2_bits); i++) {
        const uint8_t *at = w->table + (i << q->entry_bits);
        struct qcow2_entry e = {load_be64(at),
                                qcow2_extended(q) ? load_be64(at + 8) : 0};

        /* Most entries are empty, or go on where the one before ends. */
        if (walk_goes_on(w, e))
            w->length += q->cluster_size;
        else if (e.entry || e.bitmap)
            r = walk_l2_entry(w, guest, e, err);
        guest += q->cluster_size;
    }
    return r;
}

static int walk_active(struct walk *w, struct rhea_error *err)
{
    struct qcow2 *q = w->q;
    int r = walk_report(w, RHEA_USE_TABLE, q->l1_offset,
                        (uint64_t)q->l1_size * 8, "L1 table", err);

    for (uint32_t i = 0, ahead = 0; r == 0 && i < q->l1_size; i++) {
        uint64_t host = q->l1[i] & QCOW2_OFFSET_MASK;

        for (; ahead < q->l1_size && ahead < i + WALK_AHEAD; ahead++) {
            uint64_t next = q->l1[ahead] & QCOW2_OFFSET_MASK;
            if (next)
                rhea_storage_prefetch(q->f.storage, next, q->cluster_size);
        }
        if (!q->l1[i])
            continue;
        r = qcow2_l1_entry_check(q, i, q->l1[i], err);
        if (r < 0 || !host)
            continue;
        r = w->fn(w->opaque, RHEA_USE_TABLE, host, q->cluster_size, err);
        if (r == 0)
            r = walk_l2_table(w, (uint64_t)i << qcow2_l1_shift(q), host, err);
    }
    if (r == 0)
        r = walk_flush_data(w, err);
    return r;
}

static int walk_refcounts(struct walk *w, struct rhea_error *err)
{
    struct qcow2 *q = w->q;
    RHEA_AUTO_FREE uint64_t *table = NULL;
    uint32_t n = q->reftable_clusters << (q->cluster_bits - 3);
    int r;

    r = walk_report(w, RHEA_USE_TABLE, q->reftable_offset, (uint64_t)n * 8,
                    "refcount table", err);
    if (r == 0)
        r = qcow2_table_load(q, q->reftable_offset, n, &table, err);
    for (uint32_t i = 0; r == 0 && table && i < n; i++) {
        if (!table[i])
            continue;
        if (!is_aligned(table[i], q->cluster_size))
            return rhea_error_set(err, EIO,
                                  "refcount table entry %" PRIu32 ", 0x%" PRIx64
                                  ", is damaged",
                                  i, table[i]);
        r = walk_report(w, RHEA_USE_TABLE, table[i], q->cluster_size,
                        "refcount block", err);
    }
    return r;
}

static int walk_other(void *opaque, uint64_t host, uint64_t length,
                      struct rhea_error *err)
{
    return walk_report(opaque, RHEA_USE_OTHER, host, length,
                       "part of a snapshot or bitmap", err);
}

/* Whether a snapshot's L2 table was gone through before: most are shared, and
 * a small file could claim to share one very often. */
static bool walk_seen(struct walk *w, uint64_t host)
{
    uint64_t cluster = host >> w->q->cluster_bits;

    if (cluster >= w->seen.n_bits)
        return false;
    if (bitmap_get(&w->seen, cluster))
        return true;
    bitmap_set(&w->seen, cluster, 1);
    return false;
}

/* What one snapshot's tables lead to. */
static int walk_snapshot(struct walk *w, const struct qcow2_snapshot *s,
                         struct rhea_error *err)
{
    struct qcow2 *q = w->q;
    RHEA_AUTO_FREE uint64_t *l1 = NULL;
    int r;

    if (s->l1_size > QCOW2_MAX_L1_BYTES / 8 ||
        !is_aligned(s->l1_offset, q->cluster_size) ||
        s->l1_offset > QCOW2_MAX_HOST)
        return rhea_error_set(err, EINVAL, "a snapshot's L1 table is damaged");
    r = walk_other(w, s->l1_offset, (uint64_t)s->l1_size * 8, err);
    if (r == 0)
        r = qcow2_table_load(q, s->l1_offset, s->l1_size, &l1, err);
    for (uint32_t i = 0; r == 0 && l1 && i < s->l1_size; i++) {
        uint64_t host = l1[i] & QCOW2_OFFSET_MASK;

        if (!host || walk_seen(w, host))
            continue;
        r = qcow2_l1_entry_check(q, i, l1[i], err);
        if (r == 0)
            r = walk_other(w, host, q->cluster_size, err);
        if (r == 0)
            r = walk_l2_table(w, (uint64_t)i << qcow2_l1_shift(q), host, err);
    }
    return r == 0 ? walk_flush_data(w, err) : r;
}

struct walk_as_other {
    rhea_use_fn *fn;
    void *opaque;
};

static int walk_rename(void *opaque, enum rhea_use use, uint64_t host,
                       uint64_t length, struct rhea_error *err)
{
    struct walk_as_other *as = opaque;

    (void)use;
    return as->fn(as->opaque, RHEA_USE_OTHER, host, length, err);
}

static int walk_others(struct walk *w, struct rhea_error *err)
{
    struct qcow2 *q = w->q;
    struct walk_as_other as = {w->fn, w->opaque};
    struct walk inner = *w;
    int r = 0;

    inner.fn = walk_rename;
    inner.opaque = &as;
    if (q->n_snapshots && !q->snapshots)
        r = qcow2_snapshots_read(q, err);
    if (r == 0)
        r = walk_other(w, q->snapshots_offset, q->snapshots_length, err);
    if (r == 0 && q->n_snapshots)
        r = bitmap_init(&inner.seen, div_up(q->file_size, q->cluster_size),
                        err);
    for (uint32_t i = 0; r == 0 && i < q->n_snapshots; i++)
        r = walk_snapshot(&inner, &q->snapshots[i], err);
    bitmap_finish(&inner.seen);
    if (r == 0)
        r = walk_other(w, q->crypto_offset, q->crypto_length, err);
    if (r == 0)
        r = qcow2_bitmaps_walk(q, walk_other, w, err);
    return r;
}

int qcow2_walk(struct rhea_format *f, rhea_use_fn *fn, void *opaque,
               struct rhea_error *err)
{
    struct qcow2 *q = qcow2_of(f);
    RHEA_AUTO_FREE uint8_t *table = malloc(q->cluster_size);
    struct walk w = {.q = q, .fn = fn, .opaque = opaque, .table = table};
    int r = 0;

    if (!table)
        return rhea_error_set(err, ENOMEM, "out of memory");
    if (qcow2_external(q))
        return rhea_error_set(err, ENOTSUP,
                              "the image keeps its data in another file");

    RHEA_LOCKED(&q->lock);
    /* The tables are read from the file. */
    if (q->write_ready)
        r = qcow2_sync(q, err);
    if (r == 0)
        r = fn(opaque, RHEA_USE_HEADER, 0, q->cluster_size, err);
    if (r == 0)
        r = walk_active(&w, err);
    if (r == 0)
        r = walk_refcounts(&w, err);
    if (r == 0)
        r = walk_others(&w, err);
    return r;
}
