/* SPDX-License-Identifier: MIT */
/*
 * Check: tables and clusters lie inside the file and belong to one entry alone.
 * No two may share a sector but compressed ones, which never change.
 *
 * Repair: an entry that cannot be right becomes 0, since what it led to is lost
 * already; a cluster that shares its place is copied to one of its own at the
 * file's end, so that the guest sees the same. Tables that share their place
 * cannot be repaired. Where a file would more than double by copies, as only
 * one made for it would, clusters stay shared. What nobody uses at the end of
 * the file is cut off.
 *
 * Order of writes: that of the tables' cache; copies are in the file before the
 * entries that lead to them. The end is cut off after a flush of the entries.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/copy.h"
#include "format/finding.h"
#include "format/qcow1.h"

struct checker {
    struct qcow1 *q;
    struct rhea_check *out;
    unsigned fix;
    struct bitmap all;   /* sectors that something is in */
    struct bitmap whole; /* of them, those of clusters and tables */
    struct bitmap seen;  /* first sectors of tables that were looked through */
    uint64_t clusters;   /* of the disk */
    uint64_t last;       /* where the cluster before lies; 0: nowhere */
    struct copy_budget budget;
    bool copied;
    bool punch; /* what nobody uses inside of the file */
};

static void check_count(struct checker *c, bool fixed)
{
    if (fixed)
        c->out->corruptions_fixed++;
    else
        c->out->corruptions++;
}

static bool check_fixes(const struct checker *c)
{
    return c->fix & RHEA_FIX_ERRORS;
}

/* Mark a range. False: others have a part of it, which only compressed data,
 * names and the L1 table may share with each other. */
static bool check_mark(struct checker *c, uint64_t host, uint64_t length,
                       bool whole)
{
    uint64_t first = host / QCOW1_SECTOR;
    uint64_t end = RHEA_MIN(div_up(host + length, QCOW1_SECTOR), c->all.n_bits);
    uint64_t n = end > first ? end - first : 0;
    bool taken = bitmap_any(whole ? &c->all : &c->whole, first, n);
    bitmap_set(&c->all, first, n);
    if (whole)
        bitmap_set(&c->whole, first, n);
    return !taken;
}

/* --- Clusters --- */

/* Where the data of ENTRY is. */
static struct qcow1_packed check_data(const struct checker *c, uint64_t entry)
{
    return entry & QCOW1_COMPRESSED
               ? qcow1_unpack(c->q, entry)
               : (struct qcow1_packed){entry, c->q->cluster_size};
}

/* Give what the guest has in CLUSTER, by ENTRY, a place of its own. */
static int check_copy(struct checker *c, uint64_t cluster, uint64_t entry,
                      struct rhea_error *err)
{
    struct qcow1 *q = c->q;
    struct rhea_storage *storage = q->base.storage;
    struct qcow1_packed p = check_data(c, entry);
    uint64_t to;
    int ret = rhea_storage_size(storage, &to, err);
    to = align_up(to, q->cluster_size);
    if (!ret)
        ret = copy_range(storage, p.host, to, p.length, true, err);
    if (!ret)
        ret = rhea_storage_truncate(storage, to + p.length, err);
    if (ret)
        return ret;
    c->copied = true;
    return qcow1_l2_set(q, cluster, 1, entry - p.host + to, 0, err);
}

static int check_shared(struct checker *c, uint64_t cluster, uint64_t entry,
                        struct rhea_error *err)
{
    struct qcow1_packed p = check_data(c, entry);
    bool fix = false;
    int ret = check_fixes(c) ? copy_budget_take(&c->budget, c->q->base.storage,
                                                p.host, p.length, &fix, err)
                             : 0;
    if (ret)
        return ret;
    check_tell(c->out, true,
               "guest offset %" PRIu64 ", by entry 0x%" PRIx64
               ", shares its place in the file%s",
               cluster << c->q->cluster_bits, entry,
               fix              ? "; copied"
               : check_fixes(c) ? COPY_REFUSED
                                : "");
    check_count(c, fix);
    return fix ? check_copy(c, cluster, entry, err) : 0;
}

static int check_invalid(struct checker *c, uint64_t cluster, uint64_t entry,
                         struct rhea_error *err)
{
    bool fix = check_fixes(c);
    check_tell(c->out, true,
               "guest offset %" PRIu64 " cannot be where the entry 0x%" PRIx64
               " says%s",
               cluster << c->q->cluster_bits, entry, fix ? "; dropped" : "");
    check_count(c, fix);
    c->out->lost++;
    return fix ? qcow1_l2_set(c->q, cluster, 1, 0, 0, err) : 0;
}

static int check_entry(struct checker *c, uint64_t cluster, uint64_t entry,
                       struct rhea_error *err)
{
    struct qcow1 *q = c->q;
    bool packed = entry & QCOW1_COMPRESSED;
    struct qcow1_packed p = check_data(c, entry);
    if (!qcow1_entry_valid(q, cluster, entry))
        return check_invalid(c, cluster, entry, err);
    c->out->allocated_clusters++;
    c->out->compressed_clusters += packed;
    if (!packed && c->last && p.host != c->last + q->cluster_size)
        c->out->fragmented_clusters++;
    c->last = packed ? 0 : p.host;
    return check_mark(c, p.host, p.length, !packed)
               ? 0
               : check_shared(c, cluster, entry, err);
}

/* The clusters from CLUSTER on, as far as its table goes. What cannot be read
 * is counted, and the check goes on. */
static int check_l2(struct checker *c, uint64_t cluster, struct rhea_error *err)
{
    uint64_t n =
        RHEA_MIN(qcow1_table_left(c->q, cluster), c->clusters - cluster);
    c->last = 0;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t entry;
        struct rhea_error why;
        if (qcow1_entry_get(c->q, cluster + i, &entry, &why)) {
            c->out->errors++;
            check_tell(c->out, true,
                       "the L2 table of guest offset %" PRIu64 ": %.160s",
                       cluster << c->q->cluster_bits, why.text);
            return 0;
        }
        int ret = entry ? check_entry(c, cluster + i, entry, err) : 0;
        if (ret)
            return ret;
    }
    return 0;
}

/* --- Tables --- */

typedef int check_fn(struct checker *c, uint64_t cluster, uint64_t table,
                     struct rhea_error *err);

/* FN for each entry of the L1 table that is not 0, with the first cluster. */
static int check_l1(struct checker *c, check_fn *fn, struct rhea_error *err)
{
    struct qcow1 *q = c->q;
    uint64_t n = div_up(c->clusters, UINT64_C(1) << q->l2_bits);
    for (uint64_t i = 0; i < n;) {
        uint64_t table, cluster = i << q->l2_bits;
        int ret = qcow1_l1_raw(q, cluster, &table, err);
        if (!ret && table) {
            rhea_progress_report(c->out->progress, "check", i, n);
            if (rhea_progress_cancelled(c->out->progress))
                return rhea_error_set(err, ECANCELED, "the check was stopped");
            ret = fn(c, cluster, table, err);
        }
        if (ret)
            return ret;
        i++;
        if (!table && i < n)
            i += table_zero_run(&q->tables, q->l1_offset + i * QCOW1_ENTRY,
                                (n - i) * QCOW1_ENTRY) /
                 QCOW1_ENTRY;
    }
    return 0;
}

/* First all tables, which go before what may lie in the same place. */
static int check_place(struct checker *c, uint64_t cluster, uint64_t table,
                       struct rhea_error *err)
{
    struct qcow1 *q = c->q;
    bool valid = qcow1_table_valid(q, table);
    if (valid && check_mark(c, table, q->l2_bytes, true))
        return 0;
    bool fix = !valid && check_fixes(c);
    check_tell(
        c->out, true,
        "the L2 table of guest offset %" PRIu64 " at offset %" PRIu64 " %s%s",
        cluster << q->cluster_bits, table,
        valid ? "shares its place" : "cannot be there", fix ? "; dropped" : "");
    check_count(c, fix);
    c->out->lost += valid ? 0 : UINT64_C(1) << q->l2_bits;
    return fix ? qcow1_l1_set(q, cluster, 0, err) : 0;
}

/* Entered twice, a table would only repeat what it said the first time. */
static int check_enter(struct checker *c, uint64_t cluster, uint64_t table,
                       struct rhea_error *err)
{
    if (!qcow1_table_valid(c->q, table) ||
        bitmap_get(&c->seen, table / QCOW1_SECTOR))
        return 0;
    bitmap_set(&c->seen, table / QCOW1_SECTOR, 1);
    return check_l2(c, cluster, err);
}

/* --- Leaks --- */

/* What compressed clusters took that were written anew lies in the middle of
 * the file, is of no use to the format, and is no sign of a fault. */
static int check_leaks(struct checker *c, struct rhea_error *err)
{
    struct qcow1 *q = c->q;
    uint64_t end = RHEA_MIN(bitmap_end(&c->all) * QCOW1_SECTOR, q->file_size);
    uint64_t used = align_up(end, q->cluster_size);
    uint64_t tail =
        q->file_size > used ? div_up(q->file_size - used, q->cluster_size) : 0;
    c->out->image_end = end;
    if (!tail)
        return 0;
    check_tell(c->out, false,
               "%" PRIu64 " clusters at the file's end are used by nobody",
               tail);
    if (!(c->fix & RHEA_FIX_LEAKS) || c->copied || c->out->corruptions ||
        c->out->errors) {
        c->out->leaks += tail;
        return 0;
    }
    c->out->leaks_fixed += tail;
    return rhea_storage_truncate(q->base.storage, end, err);
}

static void check_punch(const struct checker *c)
{
    const struct bitmap *all = &c->all;
    uint64_t end = bitmap_end(all);
    for (uint64_t at = 0; at < end;) {
        uint64_t from = bitmap_find(all, at, false);
        if (from >= end)
            break;
        at = bitmap_find(all, from, true);
        /* The file is no worse where this fails. */
        rhea_storage_zero(c->q->base.storage, from * QCOW1_SECTOR,
                          (at - from) * QCOW1_SECTOR, true, NULL);
    }
}

/* --- All of it --- */

static int check_init(struct checker *c, struct rhea_error *err)
{
    struct qcow1 *q = c->q;
    int ret = rhea_storage_size(q->base.storage, &q->file_size, err);
    uint64_t bits = div_up(q->file_size, QCOW1_SECTOR);
    if (!ret)
        ret = copy_budget_init(&c->budget, q->base.storage, err);
    if (!ret)
        ret = bitmap_init(&c->all, bits, err);
    if (!ret)
        ret = bitmap_init(&c->whole, bits, err);
    if (!ret)
        ret = bitmap_init(&c->seen, bits, err);
    if (ret)
        return ret;
    c->clusters = div_up(q->base.size, q->cluster_size);
    c->out->total_clusters = c->clusters;
    check_mark(c, 0, QCOW1_HEADER, false);
    check_mark(c, q->l1_offset, q->l1_size * QCOW1_ENTRY, false);
    if (q->backing_length)
        check_mark(c, q->backing_offset, q->backing_length, false);
    return 0;
}

static int check_run(struct checker *c, struct rhea_error *err)
{
    struct qcow1 *q = c->q;
    int ret = check_init(c, err);
    if (!ret)
        ret = check_l1(c, check_place, err);
    if (!ret)
        ret = check_l1(c, check_enter, err);
    if (!ret)
        ret = table_write_back(&q->tables, err);
    if (!ret && c->fix)
        ret = rhea_storage_flush(q->base.storage, err);
    if (!ret && !c->out->errors)
        ret = check_leaks(c, err);
    if (!ret && c->punch && !c->out->errors && !c->out->corruptions)
        check_punch(c);
    /* What was cut off or became a hole may be a table next. */
    table_drop(&q->tables);
    if (!ret && c->fix)
        ret = rhea_storage_flush(q->base.storage, err);
    if (!ret)
        ret = rhea_storage_size(q->base.storage, &q->file_size, err);
    bitmap_finish(&c->all);
    bitmap_finish(&c->whole);
    bitmap_finish(&c->seen);
    return ret;
}

static int check_all(struct checker *c, struct rhea_error *err)
{
    struct qcow1 *q = c->q;
    int ret = check_run(c, err);
    if (!ret && q->blocks.writable) {
        q->blocks.file_end = align_up(q->file_size, QCOW1_SECTOR);
        q->blocks.grown = 0;
    }
    return ret;
}

int qcow1_check(struct rhea_format *f, unsigned fix, struct rhea_check *check,
                struct rhea_error *err)
{
    struct qcow1 *q = qcow1_of(f);
    struct checker c = {.q = q, .out = check, .fix = fix};
    if (fix && !q->repairable)
        return rhea_error_set(err, EACCES,
                              "cannot repair: the image is open for reading "
                              "only");
    RHEA_LOCKED(&q->blocks.lock);
    int ret = 0;
    if (q->blocks.writable)
        ret = blocks_change_begin(&q->blocks, err);
    return ret ? ret : check_all(&c, err);
}

int qcow1_give_back(struct qcow1 *q, struct rhea_error *err)
{
    struct rhea_check ignored = {0};
    struct checker c = {
        .q = q, .out = &ignored, .fix = RHEA_FIX_LEAKS, .punch = true};
    return check_all(&c, err);
}
