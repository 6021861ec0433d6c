/* SPDX-License-Identifier: MIT */
/*
 * Check: the log has been replayed, both headers and both region tables are
 * whole, each entry of the BAT means something, what it leads to lies inside of
 * the file and belongs to nobody else.
 *
 * Repair replays the log, or gives one up that is damaged; writes damaged
 * copies anew; and sets entries to "not present" that lead where no block can
 * be. Where blocks overlap, nobody knows whose data it is. Free space is no
 * fault in a VHDX file (2.1), and programs leave some before the first block;
 * what is behind that, and used by nobody, was left by a crash: it is a leak,
 * and cut off at the end of the file.
 *
 * Order of a repair's writes: the log's (log.c, log_write.c). The file is cut
 * off only when the log is not in use, for otherwise a replay would find it too
 * short.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/finding.h"
#include "format/vhdx/vhdx.h"

struct vhdx_checker {
    struct vhdx *v;
    struct rhea_check *out;
    struct bitmap used; /* MiB of the file */
    bool fix;           /* errors */
    bool has_blocks;
    uint64_t next; /* block at which to report progress */
};

static void check_count(struct vhdx_checker *c, bool fixed)
{
    if (fixed)
        c->out->corruptions_fixed++;
    else
        c->out->corruptions++;
}

/* --- The log, headers, region tables --- */

static int check_replay(struct vhdx_checker *c, unsigned fix,
                        struct rhea_error *err)
{
    struct vhdx *v = c->v;
    check_tell(c->out, true,
               "the log has %" PRIu32 " changes that are not in their "
               "places%s",
               v->replay.n, fix ? "; replayed" : "");
    check_count(c, fix);
    if (!fix)
        return 0;
    int ret = vhdx_log_replay(v, &v->replay, err);
    if (ret)
        return ret;
    rhea_storage_close(v->overlay);
    v->overlay = NULL;
    v->image = v->tables.storage = v->base.storage;
    table_drop(&v->tables);
    v->blocks.writable = true;
    return rhea_storage_size(v->image, &v->blocks.file_end, err);
}

static int check_torn(struct vhdx_checker *c, struct rhea_error *err)
{
    struct vhdx *v = c->v;
    check_tell(c->out, true, "the log is damaged%s",
               c->fix ? "; given up" : "");
    check_count(c, c->fix);
    if (!c->fix)
        return 0;
    v->replay.torn = false;
    int ret = vhdx_begin(v, false, err);
    memset(v->header.log_guid, 0, UUID_BYTES);
    return ret ? ret : vhdx_headers_write(v, err);
}

static int check_log(struct vhdx_checker *c, unsigned fix,
                     struct rhea_error *err)
{
    if (c->v->overlay)
        return check_replay(c, fix, err);
    return c->v->replay.torn && !c->v->replay.n ? check_torn(c, err) : 0;
}

static int check_header(struct vhdx_checker *c, struct rhea_error *err)
{
    if (!c->v->other_bad)
        return 0;
    check_tell(c->out, true, "one of the two headers is damaged%s",
               c->fix ? "; written anew" : "");
    check_count(c, c->fix);
    if (!c->fix)
        return 0;
    int ret = vhdx_begin(c->v, false, err);
    return !ret && c->v->other_bad ? vhdx_headers_write(c->v, err) : ret;
}

static int check_write_regions(struct vhdx *v, struct rhea_error *err)
{
    enum { SECTORS = VHDX_REGIONS_BYTES / VHDX_LOG_SECTOR };
    bool first_bad = v->bad_regions & 1;
    uint64_t from = first_bad ? VHDX_REGIONS_2 : VHDX_REGIONS_1;
    uint64_t to = first_bad ? VHDX_REGIONS_1 : VHDX_REGIONS_2;
    struct vhdx_patch patches[SECTORS];
    RHEA_AUTO_FREE uint8_t *b = malloc(VHDX_REGIONS_BYTES);
    if (!b)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret =
        rhea_storage_read_padded(v->image, b, VHDX_REGIONS_BYTES, from, err);
    for (unsigned i = 0; i < SECTORS; i++)
        patches[i] = (struct vhdx_patch){
            .offset = to + i * VHDX_LOG_SECTOR,
            .bytes = b + i * VHDX_LOG_SECTOR,
        };
    if (!ret)
        ret = vhdx_begin(v, false, err);
    if (!ret)
        ret = vhdx_log_write(v, patches, SECTORS, err);
    v->bad_regions = ret ? v->bad_regions : 0;
    return ret;
}

static int check_regions(struct vhdx_checker *c, struct rhea_error *err)
{
    if (!c->v->bad_regions)
        return 0;
    check_tell(c->out, true, "one of the two region tables is damaged%s",
               c->fix ? "; written anew" : "");
    check_count(c, c->fix);
    return c->fix ? check_write_regions(c->v, err) : 0;
}

/* --- The block allocation table --- */

/* Mark LENGTH bytes, of which the file may end before. */
static void check_mark(struct vhdx_checker *c, const char *what,
                       uint64_t offset, uint64_t length)
{
    uint64_t first = offset / VHDX_MIB;
    uint64_t last = RHEA_MIN(div_up(offset + length, VHDX_MIB), c->used.n_bits);
    if (first >= last)
        return;
    if (bitmap_any(&c->used, first, last - first)) {
        check_tell(c->out, true,
                   "%s at offset %" PRIu64 " overlaps another one or tables",
                   what, offset);
        c->out->corruptions++;
    }
    bitmap_set(&c->used, first, last - first);
}

static int check_fix_entry(struct vhdx_checker *c, const struct vhdx_entry *e,
                           uint64_t to, struct rhea_error *err)
{
    int ret = vhdx_begin(c->v, true, err);
    return ret ? ret : vhdx_bat_set(c->v, e->place, to, err);
}

static int check_invalid(struct vhdx_checker *c, const struct vhdx_entry *e,
                         const char *why, bool fix, uint64_t to,
                         struct rhea_error *err)
{
    check_tell(c->out, true,
               "the %s of guest offset %" PRIu64 " has entry 0x%" PRIx64
               ", which %s%s",
               e->is_bitmap ? "sector bitmap" : "block",
               e->block << c->v->block_bits, e->entry, why,
               fix ? "; repaired" : "");
    check_count(c, fix);
    return fix ? check_fix_entry(c, e, to, err) : 0;
}

static int check_progress(struct vhdx_checker *c, uint64_t block,
                          struct rhea_error *err)
{
    if (block < c->next)
        return 0;
    c->next = block + 4096;
    rhea_progress_report(c->out->progress, "check", block, vhdx_blocks(c->v));
    return rhea_progress_cancelled(c->out->progress)
               ? rhea_error_set(err, ECANCELED, "the check was stopped")
               : 0;
}

/* What leads to bytes of the file. */
static int check_place(struct vhdx_checker *c, const struct vhdx_entry *e,
                       struct rhea_error *err)
{
    struct vhdx *v = c->v;
    uint64_t host = e->entry & VHDX_BAT_OFFSET;
    uint64_t length = e->is_bitmap ? VHDX_BITMAP_BYTES : v->metadata.block_size;
    if (!range_inside(host, vhdx_entry_used(v, e), v->blocks.file_end))
        return check_invalid(c, e, "leads past the end of the file", c->fix, 0,
                             err);
    if (vhdx_is_taken(v, host, length))
        return check_invalid(c, e, "leads to tables", c->fix, 0, err);
    c->has_blocks = true;
    check_mark(c, e->is_bitmap ? "a sector bitmap" : "a block", host, length);
    return 0;
}

/* A partially present block has a bitmap. */
static int check_partial(struct vhdx_checker *c, const struct vhdx_entry *e,
                         struct rhea_error *err)
{
    uint64_t place;
    if (!vhdx_is_child(c->v))
        return check_invalid(c, e, "only a child can have", false, 0, err);
    if (vhdx_bits_place(c->v, e->block, &place, NULL))
        return check_invalid(c, e, "needs a sector bitmap that is not there",
                             false, 0, err);
    return 0;
}

static int check_entry(void *opaque, const struct vhdx_entry *e,
                       struct rhea_error *err)
{
    struct vhdx_checker *c = opaque;
    uint64_t state = e->entry & VHDX_BAT_STATE;
    uint64_t reserved = e->entry & ~(VHDX_BAT_OFFSET | VHDX_BAT_STATE);
    int ret = check_progress(c, e->block, err);
    if (!ret && reserved)
        ret = check_invalid(c, e, "has bits that mean nothing", c->fix,
                            e->entry & ~reserved, err);
    if (ret)
        return ret;
    if (state == VHDX_FULLY_PRESENT && e->is_bitmap && !vhdx_is_child(c->v))
        return check_invalid(c, e, "only a child can have", c->fix, 0, err);
    if (state == VHDX_PARTIALLY_PRESENT && !e->is_bitmap)
        ret = check_partial(c, e, err);
    if (!ret && (state == VHDX_FULLY_PRESENT ||
                 (state == VHDX_PARTIALLY_PRESENT && !e->is_bitmap)))
        return check_place(c, e, err);
    if (ret || state == VHDX_NOT_PRESENT ||
        (!e->is_bitmap &&
         (state <= VHDX_UNMAPPED || state == VHDX_UNMAPPED_OLD)))
        return ret;
    return check_invalid(c, e, "means nothing", c->fix, 0, err);
}

/* --- Leaks --- */

/* In blocks, since that is what they are counted in. */
static uint64_t check_blocks(const struct vhdx_checker *c, uint64_t n_mib)
{
    return div_up(n_mib * VHDX_MIB, c->v->metadata.block_size);
}

static int check_cut_off(struct vhdx_checker *c, uint64_t end,
                         struct rhea_error *err)
{
    struct vhdx *v = c->v;
    int ret = vhdx_begin(v, false, err);
    if (!ret)
        ret = table_write_back(&v->tables, err);
    if (!ret)
        ret = vhdx_log_close(v, err);
    if (!ret)
        ret = rhea_storage_truncate(v->base.storage, end, err);
    if (ret)
        return ret;
    vhdx_gaps_forget(v);
    v->blocks.file_end = end;
    v->blocks.grown = 0;
    return 0;
}

static int check_leaks(struct vhdx_checker *c, unsigned fix,
                       struct rhea_error *err)
{
    uint64_t end = bitmap_end(&c->used);
    uint64_t leaks = check_blocks(c, c->used.n_bits - end);
    /* Others leave some room behind the tables of new images. */
    if (!c->has_blocks || (c->v->metadata.flags & VHDX_P_FIXED) || !leaks)
        return 0;
    bool cut =
        (fix & RHEA_FIX_LEAKS) && !c->out->corruptions && !c->out->errors;
    check_tell(c->out, false,
               "%" PRIu64 " blocks at the end are used by nobody%s", leaks,
               cut ? "; cut off" : "");
    if (!cut) {
        c->out->leaks += leaks;
        return 0;
    }
    c->out->leaks_fixed += leaks;
    return check_cut_off(c, end * VHDX_MIB, err);
}

/* --- All of it --- */

static int check_init_used(struct vhdx_checker *c, struct rhea_error *err)
{
    struct vhdx *v = c->v;
    uint64_t size;
    int ret = rhea_storage_size(v->image, &size, err);
    /* What the file holds behind its last whole MiB is nobody's. */
    if (!ret)
        ret = bitmap_init(&c->used, size / VHDX_MIB, err);
    if (ret)
        return ret;
    check_mark(c, "the header", 0, VHDX_SECTION_END);
    for (size_t i = 0; i < v->n_taken; i++)
        check_mark(c, "a region", v->taken[i].offset, v->taken[i].length);
    return 0;
}

static int check_finish(struct vhdx_checker *c, struct rhea_error *err)
{
    int ret = table_write_back(&c->v->tables, err);
    if (!ret)
        ret = vhdx_log_close(c->v, err);
    return ret ? ret : rhea_storage_flush(c->v->base.storage, err);
}

static int check_run(struct vhdx_checker *c, unsigned fix,
                     struct rhea_error *err)
{
    int ret = check_log(c, fix, err);
    if (!ret)
        ret = check_header(c, err);
    if (!ret)
        ret = check_regions(c, err);
    if (!ret)
        ret = check_init_used(c, err);
    if (!ret)
        ret = vhdx_bat_walk(c->v, check_entry, c, err);
    if (!ret && !c->out->errors)
        ret = check_leaks(c, fix, err);
    if (!ret && fix)
        ret = check_finish(c, err);
    bitmap_finish(&c->used);
    return ret;
}

int vhdx_check(struct rhea_format *f, unsigned fix, struct rhea_check *check,
               struct rhea_error *err)
{
    struct vhdx *v = (struct vhdx *)f;
    struct vhdx_checker c = {
        .v = v,
        .out = check,
        .fix = fix & RHEA_FIX_ERRORS,
    };
    if (fix && !v->may_write)
        return rhea_error_set(err, EACCES,
                              "cannot repair: the image is open for reading "
                              "only");
    RHEA_LOCKED(&v->blocks.lock);
    if (v->blocks.failed)
        return rhea_error_set(err, EIO,
                              "an earlier write to the image failed, and its "
                              "state is not known");
    int ret = table_write_back(&v->tables, err);
    return ret ? ret : check_run(&c, fix, err);
}
