/* SPDX-License-Identifier: MIT */
/*
 * Check: entries of directories lead to tables, those of tables to grains, each
 * to one of its own, and both copies say the same.
 *
 * What can be told from the other copy is repaired from it. Where both copies
 * have a grain and differ, the first is right: it is what readers go by. Where
 * only one has a grain, it is taken: it was there when its entry was written.
 * Entries that no copy can mend are dropped. A grain whose place others are in,
 * too, gets a copy at the end of the file, so that the guest sees the same;
 * where a file would get out of proportion by that, it stays so, as do tables
 * that share their place.
 *
 * Order of a repair's writes: tables and directories as they are found to be
 * wrong, copies of grains and a flush before the tables that lead to them;
 * flush; the header. Each write only takes away what no reader could use, or
 * puts in what the other copy has, or what has the same contents, so that any
 * subset of them is as good as before. Unused grains at the file's end are cut
 * off last.
 */
#include "format/vmdk/check.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/vmdk/header.h"
#include "format/vmdk/sesparse.h"
#include "format/vmdk/stream.h"

enum { CHECK_UNIT = 4096, SCORED_TABLES = 256 };

RHEA_PRINTF(3, 0)
static void check_count(struct vmdk_checker *c, bool is_error, const char *fmt,
                        va_list args)
{
    char text[256];
    vsnprintf(text, sizeof(text), fmt, args);
    check_tell(c->out, is_error, "%s", text);
    c->out->corruptions_fixed += c->fix;
    c->out->corruptions += is_error && !c->fix;
    c->differ |= !is_error && !c->fix;
}

void check_mendable(struct vmdk_checker *c, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    check_count(c, true, fmt, args);
    va_end(args);
}

void check_differ(struct vmdk_checker *c, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    check_count(c, !c->x->h.unclean, fmt, args);
    va_end(args);
}

/* --- Directories --- */

/* Where the table of that index would be, in a file as everybody makes it:
 * tables follow their directory; 0: elsewhere. After a disk has shrunk, or in a
 * file made otherwise, another one may be there. */
static uint64_t check_usual_place(const struct vmdk_checker *c, unsigned copy,
                                  uint64_t index)
{
    const struct vmdk_header *h = &c->x->h;
    uint64_t bytes =
        align_up((uint64_t)h->table_entries * h->entry_size, VMDK_SECTOR);
    uint64_t directory = copy ? h->redundant : h->directory;
    uint64_t end = copy ? h->directory : h->overhead;
    uint64_t at =
        directory + align_up(h->n_tables * h->entry_size, VMDK_SECTOR);
    if (h->redundant >= h->directory ||
        !range_inside(at, h->n_tables * bytes, end))
        return 0;
    at += index * bytes;
    return c->places.words && (at + bytes) / VMDK_SECTOR <= c->places.n_bits &&
                   !bitmap_any(&c->places, at / VMDK_SECTOR,
                               bytes / VMDK_SECTOR)
               ? at
               : 0;
}

static int check_set_directory(struct vmdk_checker *c, unsigned copy,
                               uint64_t index, uint64_t table,
                               struct rhea_error *err)
{
    uint64_t directory = copy ? c->x->h.redundant : c->x->h.directory;
    uint8_t entry[sizeof(uint32_t)];
    store_le32(entry, (uint32_t)(table / VMDK_SECTOR));
    return rhea_storage_write(c->x->file, entry, sizeof(entry),
                              directory + index * sizeof(entry), err);
}

/* Table COPY is not there or nowhere, the other is: *AT becomes where it has
 * its place again, with the other's contents. */
static int check_restore_table(struct vmdk_checker *c, unsigned copy,
                               uint64_t index, uint64_t at[2],
                               struct rhea_error *err)
{
    size_t bytes = (size_t)c->x->h.table_entries * c->x->h.entry_size;
    uint64_t place = check_usual_place(c, copy, index);
    int ret = 0;
    (at[copy] ? check_mendable : check_differ)(
        c, "grain table %" PRIu64 " cannot be found by the %s grain directory",
        index, copy ? "second" : "first");
    at[copy] = 0;
    if (!c->fix)
        return 0;
    if (place) {
        ret = rhea_storage_read_padded(c->x->file, c->tables[copy], bytes,
                                       at[!copy], err);
        if (!ret)
            ret = rhea_storage_write(c->x->file, c->tables[copy], bytes, place,
                                     err);
    }
    at[copy] = place ? place : at[!copy];
    return ret ? ret : check_set_directory(c, copy, index, at[copy], err);
}

/* The places of tables INDEX as they are to be gone by; 0: none. */
static int check_directories(struct vmdk_checker *c, uint64_t index,
                             uint64_t at[2], struct rhea_error *err)
{
    struct vmdk_extent *x = c->x;
    bool good[2] = {true, true};
    unsigned copies = x->h.redundant ? 2 : 1;
    int ret = 0;
    at[0] = at[1] = 0;
    for (unsigned i = 0; i < copies && !ret; i++)
        ret = vmdk_directory_entry(x, i ? x->h.redundant : x->h.directory,
                                   index, &at[i], &good[i], err);
    for (unsigned i = 0; i < copies && !ret; i++) {
        bool other = copies == 2 && good[!i] && at[!i];
        if (good[i] && (at[i] || !other))
            continue;
        if (other) {
            ret = check_restore_table(c, i, index, at, err);
        } else {
            check_mendable(c,
                           "grain table %" PRIu64 " would be at offset "
                           "%" PRIu64 ", where none can be",
                           index, at[i]);
            c->out->lost += x->h.table_entries;
            at[i] = 0;
            ret = c->fix ? check_set_directory(c, i, index, 0, err) : 0;
        }
    }
    return ret;
}

static int check_one_table(struct vmdk_checker *c, uint64_t index,
                           struct rhea_error *err)
{
    uint64_t bytes = (uint64_t)c->x->h.table_entries * c->x->h.entry_size;
    uint64_t at[2];
    int ret = check_directories(c, index, at, err);
    for (unsigned i = 0; i < 2 && !ret; i++)
        if (at[i])
            check_use(c, at[i], bytes);
    if (ret || (!at[0] && !at[1]))
        return ret;
    if (!at[0]) {
        at[0] = at[1];
        at[1] = 0;
    }
    return check_table(c, index, at, err);
}

/* Mark grain table INDEX, in either copy; those that share their place are told
 * of. */
static void check_mark_table(struct vmdk_checker *c, uint64_t index,
                             uint64_t table)
{
    uint64_t bytes = (uint64_t)c->x->h.table_entries * c->x->h.entry_size;
    uint64_t first = table / VMDK_SECTOR;
    uint64_t end =
        RHEA_MIN(div_up(table + bytes, VMDK_SECTOR), c->places.n_bits);
    check_use(c, table, bytes);
    if (!c->places.words || first >= end)
        return;
    if (bitmap_any(&c->places, first, end - first)) {
        c->shared_tables = true;
        c->out->corruptions++;
        check_tell(c->out, true,
                   "grain table %" PRIu64 " is at offset %" PRIu64
                   " of the file, where other metadata are, too",
                   index, table);
    }
    bitmap_set(&c->places, first, end - first);
}

/* All tables, before grains are looked at: none may be where a table is. */
static int check_mark_tables(struct vmdk_checker *c, struct rhea_error *err)
{
    struct vmdk_extent *x = c->x;
    int ret = 0;
    for (uint64_t i = 0; i < x->h.n_tables && !ret; i++) {
        uint64_t at[2] = {0, 0}, none = vmdk_no_tables(x, i);
        bool good[2] = {false, false};
        if (none) {
            i += none - 1;
            continue;
        }
        ret = vmdk_directory_entry(x, x->h.directory, i, &at[0], &good[0], err);
        if (!ret && x->h.redundant)
            ret = vmdk_directory_entry(x, x->h.redundant, i, &at[1], &good[1],
                                       err);
        for (unsigned copy = 0; copy < 2 && !ret; copy++)
            if (good[copy] && at[copy] && (!copy || at[1] != at[0]))
                check_mark_table(c, i, at[copy]);
    }
    return ret;
}

static int check_tables(struct vmdk_checker *c, struct rhea_error *err)
{
    const struct vmdk_header *h = &c->x->h;
    int ret = 0;
    for (uint64_t i = 0; i < h->n_tables && !ret; i++) {
        if (i % 64 == 0)
            rhea_progress_report(
                c->out->progress, "check",
                c->x->start +
                    RHEA_MIN(i * h->table_entries * h->grain_size, c->x->size),
                c->x->image->base.size);
        if (rhea_progress_cancelled(c->out->progress))
            return rhea_error_set(err, ECANCELED, "the check was stopped");
        uint64_t none = vmdk_no_tables(c->x, i);
        if (none)
            i += none - 1;
        else
            ret = check_one_table(c, i, err);
    }
    return ret;
}

/* --- The header --- */

static int check_write_header(struct vmdk_checker *c, struct rhea_error *err)
{
    struct vmdk_extent *x = c->x;
    uint8_t p[HOSTED_HEADER_BYTES];
    int ret = rhea_storage_flush(x->file, err);
    if (!ret)
        ret = rhea_storage_read(x->file, p, sizeof(p), 0, err);
    if (ret)
        return ret;
    x->h.one_directory = false;
    x->h.flags &= ~(uint32_t)HOSTED_F_REDUNDANT;
    store_le64(p + HOSTED_H_DIRECTORY, x->h.directory / VMDK_SECTOR);
    store_le32(p + HOSTED_H_FLAGS, x->h.flags);
    ret = rhea_storage_write(x->file, p, sizeof(p), 0, err);
    return ret ? ret : rhea_storage_flush(x->file, err);
}

/* The header counts. If it has lost a bit, what is behind the end that it tells
 * of is not to be cut off. */
static void check_capacity(struct vmdk_checker *c)
{
    const struct vmdk *v = c->x->image;
    const struct descriptor *d = &v->descriptor;
    uint64_t size = align_up(c->x->h.capacity, c->x->h.grain_size);
    if (v->n_extents != 1 || !d->n_extents ||
        d->extents->sectors <= size / VMDK_SECTOR)
        return;
    c->out->corruptions++;
    check_tell(c->out, true,
               "the header says that the disk has %" PRIu64
               " bytes, the descriptor that it has %" PRIu64,
               c->x->h.capacity, d->extents->sectors * VMDK_SECTOR);
}

static int check_header(struct vmdk_checker *c, struct rhea_error *err)
{
    check_capacity(c);
    if (!c->x->h.one_directory)
        return 0;
    check_mendable(c, "one of the two grain directories cannot be where the "
                      "header says");
    return c->fix ? check_write_header(c, err) : 0;
}

/* How many entries of a copy of the tables lead into the file, less those that
 * cannot be right. */
static int check_score(struct vmdk_checker *c, uint64_t directory,
                       int64_t *score, struct rhea_error *err)
{
    struct vmdk_extent *x = c->x;
    size_t bytes = (size_t)x->h.table_entries * x->h.entry_size;
    uint64_t n = RHEA_MIN(x->h.n_tables, (uint64_t)SCORED_TABLES);
    *score = 0;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t at;
        bool good;
        int ret = vmdk_directory_entry(x, directory, i, &at, &good, err);
        if (ret)
            return ret;
        /* In front, it is a directory with a damaged entry. */
        *score -= !good && directory >= x->h.overhead;
        if (!good || !at || vmdk_is_hole(x, at, bytes) ||
            rhea_storage_read_padded(x->file, c->tables[0], bytes, at, NULL))
            continue;
        /* Nobody has to write the entries behind the disk's end. */
        uint64_t left =
            div_up(x->h.capacity, x->h.grain_size) - i * x->h.table_entries;
        size_t end = (size_t)RHEA_MIN(left, (uint64_t)x->h.table_entries) *
                     x->h.entry_size;
        for (size_t k = 0; k < end; k += x->h.entry_size) {
            struct vmdk_grain g;
            if (!vmdk_grain_decode(x, c->tables[0] + k, &g))
                *score -= 1;
            else if (g.has_host)
                *score += g.host < x->file_size ? 1 : -1;
        }
    }
    return 0;
}

/*
 * The header may lead to anything that lies in the file. Where most of what one
 * directory's tables say cannot be right, and of the other's can, they are no
 * tables, and nothing is to be mended by them, nor written to them.
 */
static int check_copies(struct vmdk_checker *c, struct rhea_error *err)
{
    struct vmdk_header *h = &c->x->h;
    int64_t score = 0, score_copy = 0;
    /* One that was not closed may have entries that nothing was written for. */
    if (!h->redundant || h->compressed || h->unclean)
        return 0;
    int ret = check_score(c, h->directory, &score, err);
    if (!ret)
        ret = check_score(c, h->redundant, &score_copy, err);
    if (ret || (score < 0) == (score_copy < 0))
        return ret;
    if (score < 0)
        h->directory = h->redundant;
    h->redundant = 0;
    h->one_directory = true;
    return 0;
}

/* COWD: writers would go over what is behind. */
static int check_free_sector(struct vmdk_checker *c, struct rhea_error *err)
{
    uint8_t p[sizeof(uint32_t)];
    uint64_t end = div_up(c->end, VMDK_SECTOR);
    if (c->x->kind != VMDK_COWD || c->x->h.free_sector >= end)
        return 0;
    check_mendable(c,
                   "the header says that free space begins at sector %" PRIu64
                   ", and grains reach to %" PRIu64,
                   c->x->h.free_sector, end);
    if (!c->fix)
        return 0;
    c->x->h.free_sector = end;
    store_le32(p, (uint32_t)end);
    return rhea_storage_write(c->x->file, p, sizeof(p), COWD_H_FREE_SECTOR,
                              err);
}

/* --- Leaks --- */

/* Whole grains of which no part is used, before unit END. What is free between
 * metadata is no grain's. */
static uint64_t check_count_free(const struct vmdk_checker *c, uint64_t end)
{
    uint64_t units = RHEA_MAX(c->x->h.grain_size / c->unit, (uint64_t)1);
    uint64_t from = RHEA_MIN(c->x->h.overhead / c->unit, end), n = 0;
    from = bitmap_find(&c->used, from, false);
    while (from < end) {
        uint64_t to = RHEA_MIN(bitmap_find(&c->used, from, true), end);
        uint64_t first = div_up(from, units), last = to / units;
        n += last > first ? last - first : 0;
        from = bitmap_find(&c->used, to, false);
    }
    return n;
}

int vmdk_check_leaks(struct vmdk_checker *c, unsigned fix,
                     struct rhea_error *err)
{
    struct vmdk_extent *x = c->x;
    /* ESX makes room before it is needed. */
    if (x->h.compressed || x->kind != VMDK_HOSTED)
        return 0;
    uint64_t size = x->h.grain_size, total = c->used.n_bits;
    uint64_t end = RHEA_MIN(bitmap_end(&c->used), total);
    /* A file that ends before its metadata is one that was cut off. */
    uint64_t cut = div_up(RHEA_MAX(end * c->unit, x->h.overhead), size) * size;
    uint64_t leaks = check_count_free(c, end);
    uint64_t tail =
        total * c->unit > cut ? div_up(total * c->unit - cut, size) : 0;
    if (tail && (fix & RHEA_FIX_LEAKS) && !c->out->corruptions &&
        !c->out->errors) {
        int ret = rhea_storage_truncate(x->file, cut, err);
        if (ret)
            return ret;
        x->blocks.file_end = x->blocks.grown = x->file_size = cut;
        c->out->leaks_fixed += tail;
        tail = 0;
    }
    c->out->leaks += leaks + tail;
    if (leaks + tail)
        check_tell(c->out, false, "%" PRIu64 " grains are used by nobody",
                   leaks + tail);
    return 0;
}

/* --- An extent --- */

/* A grain that begins where this is cannot be right. */
static void check_use_metadata(struct vmdk_checker *c, uint64_t at,
                               uint64_t bytes)
{
    uint64_t first = at / VMDK_SECTOR;
    uint64_t end = RHEA_MIN(div_up(at + bytes, VMDK_SECTOR), c->places.n_bits);
    check_use(c, at, bytes);
    if (c->places.words && first < end)
        bitmap_set(&c->places, first, end - first);
}

/* What the header leads to. */
static void check_use_places(struct vmdk_checker *c)
{
    const struct vmdk_header *h = &c->x->h;
    uint64_t directory = h->n_tables * h->entry_size;
    check_use_metadata(c, 0, VMDK_SECTOR);
    if (h->descriptor)
        check_use_metadata(c, h->descriptor, h->descriptor_size);
    check_use_metadata(c, h->directory, directory);
    if (h->redundant)
        check_use_metadata(c, h->redundant, directory);
}

/* The metadata in front, once the tables are known. The header says where it
 * ends, and it is not to be believed where it says more than that. */
static void check_use_front(struct vmdk_checker *c)
{
    const struct vmdk_extent *x = c->x;
    c->front = x->h.overhead;
    if (x->kind == VMDK_HOSTED && c->places.words)
        c->front =
            RHEA_MIN(c->front, align_up(bitmap_end(&c->places) * VMDK_SECTOR,
                                        x->h.grain_size));
    if (x->h.compressed)
        c->front = VMDK_SECTOR;
    check_use(c, 0, RHEA_MIN(c->front, x->file_size));
    c->lowest = UINT64_MAX;
}

/* Grains where the header says that metadata are: no program would write to
 * them. */
static int check_overhead(struct vmdk_checker *c, struct rhea_error *err)
{
    struct vmdk_header *h = &c->x->h;
    uint8_t p[sizeof(uint64_t)];
    bool wrong =
        c->x->kind == VMDK_HOSTED && !h->compressed && c->lowest < h->overhead;
    if (!wrong && h->overhead > c->x->file_size) {
        c->out->corruptions++;
        check_tell(c->out, true,
                   "the file is cut off: it ends at %" PRIu64 " and should be "
                   "at least %" PRIu64 " bytes long",
                   c->x->file_size, h->overhead);
    }
    if (!wrong)
        return 0;
    check_mendable(c,
                   "the header says that metadata end at offset %" PRIu64
                   ", and a grain is at %" PRIu64,
                   h->overhead, c->lowest);
    if (!c->fix)
        return 0;
    h->overhead = c->front;
    store_le64(p, h->overhead / VMDK_SECTOR);
    return rhea_storage_write(c->x->file, p, sizeof(p), HOSTED_H_OVERHEAD, err);
}

static int check_init(struct vmdk_checker *c, struct rhea_error *err)
{
    struct vmdk_extent *x = c->x;
    size_t bytes = (size_t)x->h.table_entries * x->h.entry_size;
    c->unit = x->h.grain_size % CHECK_UNIT ? VMDK_SECTOR : CHECK_UNIT;
    c->tables[0] = malloc(bytes);
    c->tables[1] = malloc(bytes);
    if (!c->tables[0] || !c->tables[1])
        return rhea_error_set(err, ENOMEM, "out of memory");
    if (x->h.compressed)
        return 0;
    int ret = check_copies(c, err);
    if (!ret)
        ret = bitmap_init(&c->used, div_up(x->file_size, c->unit), err);
    if (!ret)
        ret = bitmap_init(&c->places, div_up(x->file_size, VMDK_SECTOR), err);
    if (!ret && c->fix)
        ret = copy_budget_init(&c->budget, x->file, err);
    if (!ret)
        check_use_places(c);
    return ret;
}

int vmdk_check_pass(struct vmdk_checker *c, struct rhea_error *err)
{
    int ret = check_init(c, err);
    if (!ret)
        ret = check_header(c, err);
    if (!ret)
        ret = check_mark_tables(c, err);
    if (ret)
        return ret;
    check_use_front(c);
    ret = check_tables(c, err);
    if (!ret)
        ret = check_overhead(c, err);
    if (!ret)
        ret = check_free_sector(c, err);
    return ret;
}

void vmdk_check_finish(struct vmdk_checker *c)
{
    free(c->tables[0]);
    free(c->tables[1]);
    bitmap_finish(&c->used);
    bitmap_finish(&c->places);
    table_drop(&c->x->table);
    vmdk_forget_holes(c->x);
}

/* What was put right may be in the way of something else: look again, and keep
 * quiet of what was told already. */
static int check_again(struct vmdk_checker *c, struct rhea_error *err)
{
    struct rhea_check *out = c->out;
    const struct rhea_check told = *out;
    struct vmdk_extent *x = c->x;
    vmdk_check_finish(c);
    *out = (struct rhea_check){
        .corruptions_fixed = told.corruptions_fixed,
        .progress = told.progress,
    };
    *c = (struct vmdk_checker){.x = x, .out = out};
    int ret = vmdk_check_pass(c, err);
    out->finding = told.finding;
    out->opaque = told.opaque;
    return ret;
}

/* With the lock held. */
static int check_sparse(struct vmdk_extent *x, unsigned fix,
                        struct rhea_check *check, struct rhea_error *err)
{
    struct rhea_check found = {
        .finding = check->finding,
        .opaque = check->opaque,
        .progress = check->progress,
    };
    struct vmdk_checker c = {
        .x = x, .out = &found, .fix = fix & RHEA_FIX_ERRORS};
    int ret = fix ? blocks_change_begin(&x->blocks, err) : 0;
    if (!ret && x->h.cut_off)
        ret = vmdk_stream_recover(x, fix, check, err);
    if (ret || x->h.cut_off)
        return ret;
    ret = vmdk_check_pass(&c, err);
    if (!ret && found.corruptions_fixed)
        ret = check_again(&c, err);
    if (!ret && !found.errors)
        ret = vmdk_check_leaks(&c, fix, err);
    check_add(check, &found);
    check->total_clusters += div_up(x->size, x->h.grain_size);
    check->image_end = RHEA_MAX(check->image_end, c.end);
    vmdk_check_finish(&c);
    if (!fix)
        return ret;
    ret = blocks_change_end(&x->blocks, ret, err);
    /* It was not closed, but is sound. */
    if (!ret && x->h.unclean && !x->marked && !c.differ && !found.corruptions &&
        !found.errors)
        ret = vmdk_sparse_mark(x, false, err);
    return ret;
}

static int check_flat(const struct vmdk_extent *x, struct rhea_check *check,
                      struct rhea_error *err)
{
    uint64_t size;
    int ret = rhea_storage_size(x->file, &size, err);
    if (ret || range_inside(x->flat_offset, x->size, size))
        return ret;
    check->corruptions++;
    check_tell(check, true,
               "the file '%.160s' is cut off: it ends at %" PRIu64
               " and should be at least %" PRIu64 " bytes long",
               x->file->path ? x->file->path : "", size,
               x->flat_offset + x->size);
    return 0;
}

int vmdk_check(struct rhea_format *f, unsigned fix, struct rhea_check *check,
               struct rhea_error *err)
{
    struct vmdk *v = vmdk_of(f);
    int ret = 0;
    if (fix && !(v->flags & RHEA_FORMAT_WRITE))
        return rhea_error_set(err, EACCES,
                              "cannot repair: the image is open for reading "
                              "only");
    for (size_t i = 0; i < v->n_extents && !ret; i++) {
        struct vmdk_extent *x = &v->extents[i];
        if (x->has_blocks) {
            RHEA_LOCKED(&x->blocks.lock);
            ret = (x->se ? sesparse_check
                         : check_sparse)(x, x->writable ? fix : 0, check, err);
        } else if (x->kind == VMDK_FLAT) {
            ret = check_flat(x, check, err);
        }
    }
    return ret;
}
