/* SPDX-License-Identifier: MIT */
/*
 * Consistency: everything that refers to host clusters is gone through, and
 * the references are compared with the refcounts. Counts are QEMU's, so that
 * scripts get the same answer from both.
 *
 * Order of writes in a repair: refcounts (each change only makes them right;
 * none depends on another), flush; COPIED flags and L2 entries, flush; at last
 * the dirty and corrupt bits go. A new refcount structure is switched to as
 * repair.c states.
 */
#include <errno.h>
#include <inttypes.h>

#include "format/qcow2/check.h"

int qcow2_tally_reserve(struct qcow2_tally *t, uint64_t n,
                        struct rhea_error *err)
{
    uint64_t old = (t->room << t->order) / 8, size;
    uint8_t *counts;

    if (n <= t->room)
        return 0;
    n = align_up(n, 64);
    size = (n << t->order) / 8;
    /* What calloc gives is resident only where it is written to. */
    counts = t->counts ? realloc(t->counts, size) : calloc(1, size);
    if (!counts)
        return rhea_error_set(
            err, ENOMEM,
            "out of memory for the refcounts of %" PRIu64 " clusters", n);
    if (t->counts)
        memset(counts + old, 0, size - old);
    t->counts = counts;
    t->room = n;
    return 0;
}

int qcow2_check_unsee(struct qcow2_checker *c)
{
    bitmap_finish(&c->seen);
    c->repeats = 0;
    return bitmap_init(&c->seen, c->tally.n, c->err);
}

bool qcow2_check_seen(struct qcow2_checker *c, uint64_t host)
{
    uint64_t cluster = host >> c->q->cluster_bits;

    if (cluster < c->seen.n_bits && !bitmap_get(&c->seen, cluster)) {
        bitmap_set(&c->seen, cluster, 1);
        return false;
    }
    return ++c->repeats > QCOW2_REPEATS_MAX;
}

/* Count a reference to each cluster of a range. */
static int qcow2_check_refer(struct qcow2_checker *c, uint64_t host,
                             uint64_t length)
{
    struct qcow2 *q = c->q;
    struct qcow2_tally *t = &c->tally;
    uint64_t first = host >> q->cluster_bits, last;
    int r;

    if (!length)
        return 0;
    /* Less than a cluster may be missing from the end of the file. */
    if (host + length >= c->file_size &&
        host + length - c->file_size >= q->cluster_size) {
        qcow2_check_corruption(c,
                               "%" PRIu64 " bytes at 0x%" PRIx64
                               " are in use, but past the end of the file",
                               length, host);
        return 0;
    }
    last = (host + length - 1) >> q->cluster_bits;
    r = qcow2_tally_reserve(t, last + 1, c->err);
    if (r < 0)
        return r;
    t->n = RHEA_MAX(t->n, last + 1);
    for (uint64_t i = first; i <= last; i++) {
        uint64_t n = qcow2_tally_get(t, i);

        if (n < t->max) {
            qcow2_refcount_store(t->order, t->counts, i, n + 1);
            continue;
        }
        c->result->corruptions++;
        /* A small file can have very many of these. */
        if (c->overflows++ < QCOW2_OVERFLOWS_TOLD)
            check_tell(c->result, true,
                       "cluster %" PRIu64
                       " has more references than a refcount can hold",
                       i);
    }
    return 0;
}

int qcow2_check_guard(struct qcow2_checker *c, uint64_t host)
{
    if (!qcow2_overlaps(c->q, &c->core, host, c->q->cluster_size))
        return 0;
    c->result->errors++;
    return rhea_error_set(c->err, EIO,
                          "what counts as an L2 table, at 0x%" PRIx64
                          ", is the place of another part of the image, which "
                          "a repair would write over",
                          host);
}

static int check_refer(void *opaque, uint64_t host, uint64_t length,
                       struct rhea_error *err)
{
    (void)err;
    return qcow2_check_refer(opaque, host, length);
}

/* One L2 table as it is checked. */
struct check_table {
    uint64_t host;
    uint8_t *data;
    bool active;   /* else a snapshot's */
    uint64_t next; /* where the next data cluster would not be a fragment */
};

static void check_compressed(struct qcow2_checker *c,
                             const struct check_table *t, struct qcow2_entry e,
                             int *result)
{
    uint64_t host, length;

    if (e.entry & QCOW2_COPIED)
        qcow2_check_corruption(
            c, "compressed cluster 0x%" PRIx64 " has the COPIED flag", e.entry);
    e.entry &= ~QCOW2_COPIED;
    if (qcow2_external(c->q) || e.bitmap) {
        qcow2_check_corruption(c,
                               "compressed cluster 0x%" PRIx64
                               " cannot be in this kind of image or with "
                               "subclusters",
                               e.entry);
        return;
    }
    qcow2_compressed_place(c->q, e.entry, &host, &length);
    *result = qcow2_check_refer(c, host, length);
    if (t->active) {
        /* Fragmented by nature: they do not fill their clusters. */
        c->result->allocated_clusters++;
        c->result->compressed_clusters++;
        c->result->fragmented_clusters++;
    }
}

/* An entry that only reserves a place, and a wrong one: it becomes zeroes. */
static bool check_fix_reserved(struct qcow2_checker *c, struct check_table *t,
                               unsigned index, struct qcow2_entry e)
{
    struct qcow2 *q = c->q;
    size_t at = (size_t)index << q->entry_bits;
    int r;

    if (!(c->fix & RHEA_FIX_ERRORS) || !is_aligned(t->host, q->cluster_size))
        return false;
    store_be64(t->data + at, qcow2_extended(q) ? 0 : QCOW2_ZERO);
    if (qcow2_extended(q))
        store_be64(t->data + at + 8,
                   (e.bitmap | e.bitmap << 32) & QCOW2_ALL_ZERO);
    r = rhea_storage_write(q->f.storage, t->data + at, 1U << q->entry_bits,
                           t->host + at, NULL);
    if (r < 0) {
        c->result->errors++;
        return false;
    }
    c->result->corruptions--;
    c->result->corruptions_fixed++;
    return true;
}

static int check_standard(struct qcow2_checker *c, struct check_table *t,
                          unsigned index, struct qcow2_entry e)
{
    struct qcow2 *q = c->q;
    uint64_t host = e.entry & QCOW2_OFFSET_MASK;

    if (e.bitmap & e.bitmap >> 32 & QCOW2_ALL_ALLOCATED)
        qcow2_check_corruption(c,
                               "the subclusters of the cluster at 0x%" PRIx64
                               " contradict each other",
                               host);
    if (!is_aligned(host, q->cluster_size)) {
        bool data = qcow2_extended(q) ? e.bitmap & QCOW2_ALL_ALLOCATED
                                      : !(e.entry & QCOW2_ZERO);

        qcow2_check_corruption(
            c, "%s cluster at 0x%" PRIx64 " does not begin where clusters do",
            data ? "the data" : "the reserved", host);
        if (!data && c->fix & RHEA_FIX_ERRORS) {
            int r = qcow2_check_guard(c, t->host);

            if (r < 0)
                return r;
        }
        if (!data && check_fix_reserved(c, t, index, e))
            return 0;
    }
    if (t->active) {
        c->result->allocated_clusters++;
        if (t->next && host != t->next)
            c->result->fragmented_clusters++;
        t->next = host + q->cluster_size;
    }
    return qcow2_external(q) ? 0 : qcow2_check_refer(c, host, q->cluster_size);
}

static int check_entry(struct qcow2_checker *c, struct check_table *t,
                       unsigned index, struct qcow2_entry e)
{
    bool external_zero = qcow2_external(c->q) && e.entry & QCOW2_COPIED;
    int r = 0;

    if (e.entry & QCOW2_COMPRESSED) {
        check_compressed(c, t, e, &r);
        return r;
    }
    if (e.entry & QCOW2_L2_RESERVED)
        qcow2_check_corruption(
            c, "L2 entry 0x%" PRIx64 " has reserved bits set", e.entry);
    if (e.entry & QCOW2_ZERO && (c->q->version < 3 || qcow2_extended(c->q)))
        qcow2_check_corruption(c,
                               "L2 entry 0x%" PRIx64
                               " has a zero flag, which this kind of image "
                               "does not know",
                               e.entry);
    if (e.entry & QCOW2_OFFSET_MASK || external_zero) {
        /* At offset 0 a zero cluster is but a zero cluster. */
        if (!(e.entry & QCOW2_OFFSET_MASK) && !qcow2_extended(c->q) &&
            e.entry & QCOW2_ZERO)
            return 0;
        return check_standard(c, t, index, e);
    }
    if (e.bitmap & QCOW2_ALL_ALLOCATED)
        qcow2_check_corruption(c,
                               "subclusters of an unallocated cluster count "
                               "as allocated (L2 table at 0x%" PRIx64 ")",
                               t->host);
    return 0;
}

static int check_l2_table(struct qcow2_checker *c, struct check_table *t)
{
    struct qcow2 *q = c->q;
    int r = rhea_storage_read_padded(q->f.storage, t->data, q->cluster_size,
                                     t->host, c->err);

    if (r < 0) {
        c->result->errors++;
        return r;
    }
    /* Fragments are counted within a table. */
    t->next = 0;
    for (unsigned i = 0; r == 0 && i < 1U << q->l2_bits; i++) {
        const uint8_t *at = t->data + ((size_t)i << q->entry_bits);
        struct qcow2_entry e = {load_be64(at),
                                qcow2_extended(q) ? load_be64(at + 8) : 0};

        if (e.entry || e.bitmap)
            r = check_entry(c, t, i, e);
    }
    return r;
}

static int check_l1_entry(struct qcow2_checker *c, struct check_table *t,
                          uint64_t entry)
{
    struct qcow2 *q = c->q;
    int r;

    if (entry & QCOW2_L1_RESERVED)
        qcow2_check_corruption(
            c, "L1 entry 0x%" PRIx64 " has reserved bits set", entry);
    t->host = entry & QCOW2_OFFSET_MASK;
    r = qcow2_check_refer(c, t->host, q->cluster_size);
    if (r < 0)
        return r;
    if (!is_aligned(t->host, q->cluster_size))
        qcow2_check_corruption(
            c, "the L2 table at 0x%" PRIx64 " does not begin where clusters do",
            t->host);
    return qcow2_check_seen(c, t->host) ? 0 : check_l2_table(c, t);
}

static int check_l1_table(struct qcow2_checker *c, uint64_t host, uint32_t n,
                          bool active)
{
    RHEA_AUTO_FREE uint64_t *l1 = NULL;
    struct check_table t = {.data = c->l2, .active = active};
    int r;

    r = qcow2_check_refer(c, host, (uint64_t)n * 8);
    if (r == 0)
        r = qcow2_check_unsee(c);
    if (r == 0)
        r = qcow2_table_load(c->q, host, n, &l1, c->err);
    if (r < 0)
        return r;
    for (uint32_t i = 0; r == 0 && i < n; i++) {
        if (active && i % 16 == 0)
            rhea_progress_report(c->result->progress, "check", i, n);
        if (rhea_progress_cancelled(c->result->progress))
            return rhea_error_set(c->err, ECANCELED, "stopped as asked");
        if (l1[i])
            r = check_l1_entry(c, &t, l1[i]);
    }
    return r;
}

static int check_snapshots(struct qcow2_checker *c)
{
    struct qcow2 *q = c->q;
    int r = 0;

    if (qcow2_external(q) && q->n_snapshots)
        qcow2_check_corruption(c, "an image with an external data file has "
                                  "snapshots");
    for (uint32_t i = 0; r == 0 && i < q->n_snapshots; i++) {
        const struct qcow2_snapshot *s = &q->snapshots[i];

        if (!is_aligned(s->l1_offset, q->cluster_size) ||
            s->l1_offset > (uint64_t)INT64_MAX ||
            s->l1_size > QCOW2_MAX_L1_BYTES / 8)
            qcow2_check_corruption(c,
                                   "the L1 table of snapshot %" PRIu32
                                   " has an impossible offset or size",
                                   i);
        else
            r = check_l1_table(c, s->l1_offset, s->l1_size, false);
    }
    if (r == 0)
        r = qcow2_check_refer(c, q->snapshots_offset, q->snapshots_length);
    return r;
}

static int check_refcount_blocks(struct qcow2_checker *c)
{
    static const char outside[] = "lies past the end of the file";
    struct qcow2 *q = c->q;
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < q->reftable_size; i++) {
        uint64_t host = q->reftable[i];
        const char *wrong = NULL;

        if (!host)
            continue;
        if (!is_aligned(host, q->cluster_size))
            wrong = "is damaged";
        else if (host >> q->cluster_bits >= c->tally.n)
            wrong = outside;
        else
            r = qcow2_check_refer(c, host, q->cluster_size);
        if (r == 0 && !wrong &&
            qcow2_tally_get(&c->tally, host >> q->cluster_bits) != 1)
            wrong = "is used for something else as well";
        if (wrong) {
            qcow2_check_corruption(
                c, "refcount block %" PRIu32 ", 0x%" PRIx64 ", %s", i, host,
                wrong);
            /* One that counts nothing in use does no harm. */
            if (wrong != outside || c->fix & RHEA_FIX_ERRORS)
                c->rebuild = true;
        }
    }
    return r;
}

int qcow2_check_tally(struct qcow2_checker *c)
{
    struct qcow2 *q = c->q;
    struct qcow2_tally *t = &c->tally;
    int r;

    if (!c->l2)
        c->l2 = malloc(q->cluster_size);
    if (!c->l2)
        return rhea_error_set(c->err, ENOMEM, "out of memory");
    r = rhea_storage_size(q->f.storage, &c->file_size, c->err);
    if (r < 0)
        return r;
    q->file_size = c->file_size;
    t->n = div_up(c->file_size, q->cluster_size);
    if (t->n > INT32_MAX)
        return rhea_error_set(c->err, EFBIG,
                              "the file has too many clusters to be checked");
    free(t->counts);
    t->counts = NULL;
    t->room = 0;
    t->order = RHEA_MIN(q->refcount_order, 4);
    t->max = RHEA_MIN(q->refcount_max, UINT16_MAX);
    r = qcow2_tally_reserve(t, t->n + 2, c->err);
    if (r == 0)
        r = qcow2_check_refer(c, 0, q->cluster_size);
    if (r == 0)
        r = check_l1_table(c, q->l1_offset, q->l1_size, true);
    if (r == 0)
        r = check_snapshots(c);
    if (r == 0)
        r = qcow2_check_refer(c, q->reftable_offset,
                              (uint64_t)q->reftable_clusters
                                  << q->cluster_bits);
    if (r == 0)
        r = qcow2_check_refer(c, q->crypto_offset, q->crypto_length);
    if (r == 0)
        r = qcow2_bitmaps_walk(q, check_refer, c, c->err);
    return r == 0 ? check_refcount_blocks(c) : r;
}

/* Where the table goes on further than any reader takes, its end goes: the
 * header's count is lowered, and what those snapshots had is then leaked. */
static int check_shorten_table(struct qcow2_checker *c,
                               struct qcow2_table_repair *repair)
{
    struct qcow2 *q = c->q;
    bool fix = c->fix & RHEA_FIX_ERRORS;
    int r;

    if (q->n_snapshots > QCOW2_MAX_SNAPSHOTS && fix) {
        repair->discarded = q->n_snapshots - QCOW2_MAX_SNAPSHOTS;
        q->n_snapshots = QCOW2_MAX_SNAPSHOTS;
    }
    if (q->n_snapshots > QCOW2_MAX_SNAPSHOTS ||
        !is_aligned(q->snapshots_offset, q->cluster_size) ||
        q->snapshots_offset > (uint64_t)INT64_MAX - QCOW2_MAX_SNAPSHOT_TABLE)
        return rhea_error_set(c->err, EINVAL,
                              "the snapshot table's place or size is "
                              "impossible");
    r = qcow2_snapshots_read_repair(q, fix ? repair : NULL, c->err);
    if (r < 0 || !repair->discarded)
        return r;
    check_tell(c->result, false,
               "Removing %" PRIu32
               " snapshots that lie past the table's limits",
               repair->discarded);
    r = qcow2_snapshots_write_count(q, c->err);
    if (r == 0)
        c->result->corruptions_fixed += repair->discarded;
    return r;
}

static int check_snapshot_table(struct qcow2_checker *c)
{
    struct qcow2 *q = c->q;
    struct qcow2_table_repair repair = {0};
    uint32_t incomplete;
    int r = check_shorten_table(c, &repair);

    if (r < 0) {
        c->result->errors++;
        return r;
    }
    if (repair.cut)
        check_tell(c->result, false,
                   "Cutting off extra data of %" PRIu32
                   " snapshots that have too much",
                   repair.cut);
    incomplete = qcow2_snapshots_incomplete(q, q->version);
    if (incomplete)
        check_tell(c->result, true,
                   "%" PRIu32 " snapshots lack data that this version requires",
                   incomplete);
    c->table_faults = incomplete + repair.cut;
    return 0;
}

/* Make a new refcount structure and count all again with it; what is found
 * then was told before. */
static int check_rebuild(struct qcow2_checker *c)
{
    struct rhea_check *res = c->result, old = *res;
    unsigned fix = c->fix;
    uint64_t errors;
    int r = qcow2_refs_rebuild(c);

    if (r < 0) {
        res->errors++;
        return r;
    }
    res->corruptions = res->leaks = 0;
    res->allocated_clusters = res->fragmented_clusters =
        res->compressed_clusters = 0;
    res->finding = NULL;
    c->rebuild = false;
    c->fix = 0;
    r = qcow2_check_tally(c);
    c->fix = fix;
    errors = res->corruptions;
    res->finding = old.finding;
    /* The old structure is a leak now. */
    if (r == 0)
        r = qcow2_check_compare(c, fix & RHEA_FIX_LEAKS);
    res->leaks_fixed = old.leaks_fixed;
    if (old.corruptions > errors)
        res->corruptions_fixed += old.corruptions - errors;
    if (old.leaks > res->leaks)
        res->leaks_fixed += old.leaks - res->leaks;
    return r;
}

static int check_refcounts(struct qcow2_checker *c)
{
    struct rhea_check before;
    int r = qcow2_check_tally(c);

    if (r < 0)
        return r;
    before = *c->result;
    r = qcow2_check_compare(c, 0);
    if (r < 0 || !c->fix)
        return r;
    if (c->rebuild && c->fix & RHEA_FIX_ERRORS)
        return check_rebuild(c);
    if (c->rebuild) {
        c->result->errors++;
        return rhea_error_set(c->err, EIO,
                              "the refcounts must be built anew, which a "
                              "repair of leaks alone does not do");
    }
    if (c->result->leaks || c->result->corruptions) {
        *c->result = before;
        r = qcow2_check_compare(c, c->fix);
    }
    return r;
}

/* Once the refcounts are right, a place for a new table can be found. Where the
 * table lies past the end of the file, that is the one corruption it mends. */
static int check_fix_snapshots(struct qcow2_checker *c)
{
    struct qcow2 *q = c->q;
    bool lost = q->snapshots_length && !qcow2_in_file(q, q->snapshots_offset);
    int r;

    if (!c->table_faults)
        return 0;
    if (!(c->fix & RHEA_FIX_ERRORS) || c->result->errors ||
        c->result->corruptions > lost) {
        c->result->corruptions += c->table_faults;
        return 0;
    }
    r = qcow2_snapshots_complete(q, c->err);
    if (r < 0) {
        c->result->corruptions += c->table_faults;
        c->result->errors++;
        return r;
    }
    c->result->corruptions = 0;
    c->result->corruptions_fixed += c->table_faults;
    /* What shared a cluster with the old table has it alone now. */
    r = qcow2_check_copied(c);
    return r == 0 ? rhea_storage_flush(q->f.storage, c->err) : r;
}

/* All is in order, so the bits that said otherwise go. */
static int check_mark_clean(struct qcow2_checker *c)
{
    struct qcow2 *q = c->q;
    uint64_t bits = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT;

    if (!(q->incompatible & bits) || c->result->errors ||
        c->result->corruptions)
        return 0;
    q->incompatible &= ~bits;
    return qcow2_header_write_features(q, c->err);
}

/* What others keep beside the image is not right any more once it is changed
 * (the spec, "autoclear_features"). */
static int check_announce(struct qcow2_checker *c)
{
    struct qcow2 *q = c->q;

    if (!c->fix || q->version < 3 || !(q->autoclear & ~QCOW2_AUTOCLEAR_KNOWN))
        return 0;
    q->autoclear &= QCOW2_AUTOCLEAR_KNOWN;
    return qcow2_header_write_features(q, c->err);
}

static int check_run(struct qcow2_checker *c)
{
    struct qcow2 *q = c->q;
    int r = check_announce(c);

    if (r == 0)
        r = check_snapshot_table(c);

    c->result->total_clusters = div_up(q->f.size, q->cluster_size);
    if (r == 0)
        r = qcow2_refs_load(q, c->err);
    if (r == 0 && c->fix)
        r = qcow2_note_core(q, &c->core, c->err);
    if (r == 0)
        r = check_refcounts(c);
    if (r == 0 && c->fix)
        r = qcow2_refs_write(q, c->err);
    if (r == 0)
        r = qcow2_check_copied(c);
    if (r == 0)
        c->result->image_end = (c->highest + 1) << q->cluster_bits;
    if (r == 0 && c->fix)
        r = rhea_storage_flush(q->f.storage, c->err);
    if (r == 0)
        r = check_fix_snapshots(c);
    if (r == 0 && c->fix)
        r = check_mark_clean(c);
    return r;
}

void qcow2_check_finish(struct qcow2_checker *c)
{
    bitmap_finish(&c->seen);
    bitmap_finish(&c->core);
    free(c->tally.counts);
    free(c->l2);
}

int qcow2_check_locked(struct qcow2 *q, unsigned fix, struct rhea_check *check,
                       struct rhea_error *err)
{
    struct qcow2_checker c = {.q = q, .result = check, .fix = fix, .err = err};
    int r;

    qcow2_cache_clear(&q->l2);
    qcow2_refs_finish(q);
    r = check_run(&c);
    qcow2_check_finish(&c);
    /* What is in memory may not be what is on disk any more. */
    qcow2_cache_clear(&q->l2);
    qcow2_refs_finish(q);
    return fix ? qcow2_fail(q, r) : r;
}

int qcow2_check(struct rhea_format *f, unsigned fix, struct rhea_check *check,
                struct rhea_error *err)
{
    struct qcow2 *q = qcow2_of(f);
    int r = 0;

    RHEA_LOCKED(&q->lock);
    if (fix && !(q->flags & RHEA_FORMAT_WRITE))
        return rhea_error_set(err, EBADF, "the image is open read-only");
    if (q->failed)
        return rhea_error_set(err, EIO, "an earlier error came in between");
    if (q->write_ready) {
        r = qcow2_bitmaps_settle(q, err);
        if (r == 0)
            r = qcow2_sync_all(q, err);
        if (r < 0)
            return r;
        qcow2_write_reset(q);
    }
    return qcow2_check_locked(q, fix, check, err);
}
