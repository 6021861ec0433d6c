/* SPDX-License-Identifier: MIT */
/*
 * Check: each cluster is referenced once, offsets lie where a cluster can be
 * (spec, "Consistency checking"). Repair sets what cannot be an offset to 0.
 * Clusters used twice cannot be repaired here: which of the two owners' data
 * they hold, nobody knows. Leaks at the end of the file are cut off; those
 * inside stay, the format has no list of free clusters.
 *
 * Order of a repair's writes: L2 pieces as they are found, L1 pieces, flush,
 * then the header without NEED_CHECK, flush. Each piece only loses entries that
 * no reader could use, so that any subset of them is as good as before.
 */
#include <errno.h>
#include <inttypes.h>

#include "base/bitmap.h"
#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/finding.h"
#include "format/qed.h"

struct qed_checker {
    struct qed *q;
    struct rhea_check *out;
    struct bitmap used;
    bool fix;
    uint64_t last_data; /* of this L2 table; 0: none yet */
};

/* Mark LENGTH bytes of clusters; how many of them were marked before. */
static uint64_t check_mark(struct qed_checker *c, uint64_t offset,
                           uint64_t length)
{
    uint64_t first = offset >> c->q->cluster_bits;
    uint64_t count = length >> c->q->cluster_bits;
    uint64_t twice = bitmap_any(&c->used, first, count)
                         ? bitmap_count(&c->used, first, count)
                         : 0;
    bitmap_set(&c->used, first, count);
    c->out->corruptions += twice;
    if (twice)
        check_tell(c->out, true,
                   "the cluster at offset %" PRIu64
                   " is used more than once (%" PRIu64 " of %" PRIu64
                   " clusters)",
                   offset, twice, count);
    return twice;
}

static void check_invalid(struct qed_checker *c, const char *what,
                          uint64_t offset)
{
    check_tell(c->out, true, "%s at offset %" PRIu64 ", where none can be%s",
               what, offset, c->fix ? "; dropped" : "");
    if (c->fix)
        c->out->corruptions_fixed++;
    else
        c->out->corruptions++;
}

/* One entry of an L2 table; true where it was dropped. */
static bool check_entry(struct qed_checker *c, uint64_t *entry)
{
    uint64_t offset = le64toh(*entry);
    if (offset == QED_UNALLOCATED || offset == QED_ZERO)
        return false;
    c->out->allocated_clusters++;
    if (c->last_data && c->last_data + c->q->cluster_size != offset)
        c->out->fragmented_clusters++;
    c->last_data = offset;
    if (qed_range_valid(c->q, offset, c->q->cluster_size)) {
        check_mark(c, offset, c->q->cluster_size);
        return false;
    }
    check_invalid(c, "a data cluster", offset);
    *entry = 0;
    return c->fix;
}

/* Write the piece that SCAN has read and the check changed. */
static int check_write_piece(struct qed_checker *c, struct qed_scan *scan,
                             struct rhea_error *err)
{
    return rhea_storage_write(c->q->base.storage, scan->entries,
                              scan->n_entries * sizeof(uint64_t),
                              scan->position, err);
}

/* Reading errors are counted, not returned: the check goes on. Writing errors
 * end it. */
static int check_l2(struct qed_checker *c, struct qed_scan *scan,
                    uint64_t table, struct rhea_error *err)
{
    c->last_data = 0;
    qed_scan_start(scan, table);
    for (;;) {
        struct rhea_error why;
        if (qed_scan_next(scan, &why)) {
            c->out->errors++;
            check_tell(c->out, true,
                       "the L2 table at offset %" PRIu64 ": %.160s", table,
                       why.text);
            return 0;
        }
        if (!scan->n_entries)
            return 0;
        bool changed = false;
        for (uint32_t i = 0; i < scan->n_entries; i++)
            changed |= check_entry(c, &scan->entries[i]);
        if (changed) {
            int ret = check_write_piece(c, scan, err);
            if (ret)
                return ret;
        }
    }
}

/* One entry of the L1 table. */
static int check_l1_entry(struct qed_checker *c, struct qed_scan *l2,
                          uint64_t *entry, bool *changed,
                          struct rhea_error *err)
{
    uint64_t table = le64toh(*entry);
    if (table == 0)
        return 0;
    if (!qed_range_valid(c->q, table, c->q->table_bytes)) {
        check_invalid(c, "an L2 table", table);
        *entry = 0;
        *changed = c->fix;
        return 0;
    }
    /* Entered twice, it would only repeat what it said the first time. */
    if (check_mark(c, table, c->q->table_bytes))
        return 0;
    return check_l2(c, l2, table, err);
}

static int check_l1(struct qed_checker *c, struct qed_scan *l1,
                    struct qed_scan *l2, struct rhea_error *err)
{
    check_mark(c, c->q->l1_offset, c->q->table_bytes);
    qed_scan_start(l1, c->q->l1_offset);
    for (;;) {
        int ret = qed_scan_next(l1, err);
        if (ret || !l1->n_entries)
            return ret;
        rhea_progress_report(c->out->progress, "check",
                             l1->position - l1->table, c->q->table_bytes);
        if (rhea_progress_cancelled(c->out->progress))
            return rhea_error_set(err, ECANCELED, "the check was stopped");
        bool changed = false;
        for (uint32_t i = 0; i < l1->n_entries; i++) {
            ret = check_l1_entry(c, l2, &l1->entries[i], &changed, err);
            if (ret)
                return ret;
        }
        if (changed) {
            ret = check_write_piece(c, l1, err);
            if (ret)
                return ret;
        }
    }
}

/* Count what nobody refers to; cut it off where it ends the file. */
static int check_leaks(struct qed_checker *c, unsigned fix,
                       struct rhea_error *err)
{
    struct qed *q = c->q;
    uint64_t first = q->header_bytes >> q->cluster_bits;
    uint64_t total = q->blocks.file_end >> q->cluster_bits;
    uint64_t end = RHEA_MAX(bitmap_end(&c->used), first);

    c->out->image_end = end << q->cluster_bits;
    c->out->leaks += end - first - bitmap_count(&c->used, first, end - first);
    uint64_t tail = total - end;
    if (tail && (fix & RHEA_FIX_LEAKS) && !c->out->corruptions &&
        !c->out->errors) {
        int ret =
            rhea_storage_truncate(q->base.storage, c->out->image_end, err);
        if (ret)
            return ret;
        q->blocks.file_end = c->out->image_end;
        q->blocks.grown = 0;
        c->out->leaks_fixed += tail;
        tail = 0;
    }
    c->out->leaks += tail;
    if (c->out->leaks)
        check_tell(c->out, false, "%" PRIu64 " clusters are used by nobody",
                   c->out->leaks);
    return 0;
}

/* What was unclean is repaired now, if nothing is left. */
static int check_mark_clean(struct qed_checker *c, struct rhea_error *err)
{
    struct qed *q = c->q;
    int ret = rhea_storage_flush(q->base.storage, err);
    if (ret || c->out->corruptions || c->out->errors ||
        !(q->features & QED_F_NEED_CHECK))
        return ret;
    q->features &= ~(uint64_t)QED_F_NEED_CHECK;
    ret = qed_write_features(q, err);
    if (!ret)
        ret = rhea_storage_flush(q->base.storage, err);
    return ret;
}

static int check_run(struct qed_checker *c, unsigned fix,
                     struct rhea_error *err)
{
    struct qed *q = c->q;
    struct qed_scan l1 = {0}, l2 = {0};
    int ret = table_write_back(&q->tables, err);
    if (!ret)
        ret = bitmap_init(&c->used, q->blocks.file_end >> q->cluster_bits, err);
    if (!ret)
        ret = qed_scan_init(&l1, q, err);
    if (!ret)
        ret = qed_scan_init(&l2, q, err);
    if (!ret)
        ret = check_l1(c, &l1, &l2, err);
    if (!ret && !c->out->errors)
        ret = check_leaks(c, fix, err);
    if (!ret && fix)
        ret = check_mark_clean(c, err);
    qed_scan_finish(&l1);
    qed_scan_finish(&l2);
    bitmap_finish(&c->used);
    table_drop(&q->tables);
    return ret;
}

int qed_check(struct rhea_format *f, unsigned fix, struct rhea_check *check,
              struct rhea_error *err)
{
    struct qed *q = (struct qed *)f;
    struct qed_checker c = {.q = q, .out = check, .fix = fix & RHEA_FIX_ERRORS};
    if (fix && !q->blocks.writable)
        return rhea_error_set(err, EACCES,
                              "cannot repair: the image is open for reading "
                              "only");
    check->total_clusters = qed_clusters(q);
    RHEA_LOCKED(&q->blocks.lock);
    return check_run(&c, fix, err);
}
