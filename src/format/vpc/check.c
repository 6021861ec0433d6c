/* SPDX-License-Identifier: MIT */
/*
 * Check: both footers are there and the same, the header's checksum is right,
 * every block lies in the file, apart from the headers and from all others, and
 * begins with a bitmap.
 *
 * Repair drops entries that lead to no place where a block can be, makes whole
 * what the end of the file cuts off, with zeroes, and writes the footers anew.
 * Blocks that overlap stay: which of the two owners' data they hold, nobody
 * knows. Blocks from the end of the file move to places that no entry leads to
 * (close_up.c), and the end is cut off.
 *
 * Order of a repair's writes: entries and bitmaps, each of which only loses
 * what no reader could use; the header's first sector, with the checksum;
 * flush; then the footers as vpc_settle writes them.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/finding.h"
#include "format/vpc/vpc.h"

/* The file is looked at in windows of so many sectors, 512 GiB, with a bit for
 * each. */
enum { WINDOW = 1 << 30 };

struct vpc_checker {
    struct vpc *v;
    struct rhea_check *out;
    bool fix;
    uint64_t block_bytes; /* of a block with its bitmap */
    uint64_t last_end;    /* of the block looked at before */
    uint64_t footer_damage, cut_off;

    struct bitmap used; /* of this window */
    uint64_t window;    /* its first sector */
    uint64_t free_run;  /* sectors that nobody uses, up to this window */
};

/* --- Footers and header --- */

static const char *check_state_text(enum vpc_state state)
{
    return state == VPC_ABSENT ? "is not there" : "has a wrong checksum";
}

static void check_footers(struct vpc_checker *c)
{
    const struct vpc_found *found = &c->v->found;
    bool tail = found->tail.state == VPC_GOOD;
    bool head = found->head.state == VPC_GOOD;
    const char *fixed = c->fix ? "; written anew" : "";
    if (!tail)
        check_tell(c->out, true, "the footer at the end of the file %s%s",
                   check_state_text(found->tail.state), fixed);
    if (!head)
        check_tell(c->out, true, "the copy of the footer at the beginning %s%s",
                   check_state_text(found->head.state), fixed);
    bool differ = tail && head &&
                  memcmp(found->tail.bytes, found->head.bytes, VPC_FOOTER) != 0;
    if (differ)
        check_tell(c->out, true,
                   "the footer at the end of the file and its copy at the "
                   "beginning differ; the one at the end counts%s",
                   fixed);
    c->footer_damage = (uint64_t)!tail + !head + differ;
}

static int check_header(struct vpc_checker *c, struct rhea_error *err)
{
    struct vpc *v = c->v;
    if (!v->header_was_wrong)
        return 0;
    check_tell(c->out, true, "the dynamic disk header has a wrong checksum%s",
               c->fix ? "; corrected" : "");
    if (!c->fix) {
        c->out->corruptions++;
        return 0;
    }
    c->out->corruptions_fixed++;
    v->header_was_wrong = false;
    vpc_header_seal(v->header);
    return rhea_storage_write(v->base.storage, v->header, VPC_SECTOR,
                              v->header_at, err);
}

/* --- Entries --- */

static bool entry_is_valid(const struct vpc_checker *c, uint32_t entry,
                           uint64_t *start)
{
    const struct vpc *v = c->v;
    *start = (uint64_t)entry * VPC_SECTOR;
    return *start + v->bitmap_bytes < v->footer_at &&
           !vpc_is_used(v, *start, *start + c->block_bytes);
}

/* A footer was left where the bitmap should be. In a dynamic image all that
 * the block has is the guest's. */
static int check_bitmap(struct vpc_checker *c, uint64_t block, uint64_t start,
                        struct rhea_error *err)
{
    uint8_t bitmap[VPC_FOOTER];
    struct rhea_error why;
    if (rhea_storage_read(c->v->base.storage, bitmap, sizeof(bitmap), start,
                          &why)) {
        c->out->errors++;
        check_tell(c->out, true, "the bitmap of block %" PRIu64 ": %.160s",
                   block, why.text);
        return 0;
    }
    if (!vpc_footer_is_good(bitmap))
        return 0;
    bool fix = c->fix && c->v->type == VPC_DYNAMIC;
    check_tell(c->out, true,
               "block %" PRIu64 " begins with a footer, not with a bitmap%s",
               block, fix ? "; all its sectors count from now on" : "");
    if (!fix) {
        c->out->corruptions++;
        return 0;
    }
    c->out->corruptions_fixed++;
    return vpc_bitmap_fill(c->v, start, 0xff, err);
}

static int check_drop(struct vpc_checker *c, uint64_t block, uint64_t count,
                      uint32_t entry, struct rhea_error *err)
{
    check_tell(c->out, true,
               "%" PRIu64 " block(s) from %" PRIu64 " on: offset %" PRIu64
               " is none where a block can be%s",
               count, block, (uint64_t)entry * VPC_SECTOR,
               c->fix ? "; dropped" : "");
    c->out->lost += count;
    if (!c->fix) {
        c->out->corruptions += count;
        return 0;
    }
    c->out->corruptions_fixed += count;
    int ret = 0;
    for (uint64_t i = 0; i < count && !ret; i++)
        ret = vpc_bat_set(c->v, block + i, VPC_UNUSED, err);
    return ret;
}

static void check_cut_off(struct vpc_checker *c, uint64_t block, uint64_t end)
{
    check_tell(c->out, true,
               "the end of the file cuts off the last %" PRIu64
               " bytes of block %" PRIu64 "%s",
               end - c->v->footer_at, block,
               c->fix ? "; zeroes from now on" : "");
    c->cut_off++;
}

static int check_entry(void *opaque, uint64_t block, uint64_t count,
                       uint32_t entry, struct rhea_error *err)
{
    struct vpc_checker *c = opaque;
    struct vpc *v = c->v;
    uint64_t start;
    rhea_progress_report(c->out->progress, "check", block, v->entries);
    if (rhea_progress_cancelled(c->out->progress))
        return rhea_error_set(err, ECANCELED, "the check was stopped");
    if (!entry_is_valid(c, entry, &start))
        return check_drop(c, block, count, entry, err);
    uint64_t end = start + c->block_bytes;
    if (end > v->footer_at)
        check_cut_off(c, block, end);
    if (block >= vpc_blocks(v))
        return 0;
    c->out->allocated_clusters++;
    uint64_t next = vpc_place_data(c->last_end, v->block_size, v->bitmap_bytes);
    if (c->last_end && c->last_end != start && next != start + v->bitmap_bytes)
        c->out->fragmented_clusters++;
    c->last_end = end;
    return check_bitmap(c, block, start, err);
}

/* --- Who uses which sector --- */

/* The part of [START, END), bytes, that is in this window, in sectors of it. */
static bool window_clip(const struct vpc_checker *c, uint64_t start,
                        uint64_t end, uint64_t *first, uint64_t *count)
{
    uint64_t from = RHEA_MAX(start / VPC_SECTOR, c->window);
    uint64_t to = RHEA_MIN(div_up(end, VPC_SECTOR), c->window + c->used.n_bits);
    *first = from - c->window;
    *count = to > from ? to - from : 0;
    return *count;
}

static int check_mark_entry(void *opaque, uint64_t block, uint64_t count,
                            uint32_t entry, struct rhea_error *err)
{
    struct vpc_checker *c = opaque;
    uint64_t start, first, n;
    (void)count;
    (void)err;
    if (!entry_is_valid(c, entry, &start) ||
        !window_clip(c, start, start + c->block_bytes, &first, &n))
        return 0;
    if (bitmap_any(&c->used, first, n)) {
        c->out->corruptions++;
        check_tell(c->out, true,
                   "block %" PRIu64 " at offset %" PRIu64
                   " overlaps another block",
                   block, start);
    }
    bitmap_set(&c->used, first, n);
    return 0;
}

/* Room for whole blocks, between others, that nobody uses. */
static void check_count_free(struct vpc_checker *c)
{
    uint64_t sectors = c->block_bytes / VPC_SECTOR;
    for (uint64_t at = 0; at < c->used.n_bits;) {
        uint64_t used = bitmap_find(&c->used, at, true);
        c->free_run += used - at;
        if (used == c->used.n_bits)
            break;
        c->out->leaks += c->free_run / sectors;
        c->free_run = 0;
        at = bitmap_find(&c->used, used, false);
    }
}

static int check_window(struct vpc_checker *c, struct rhea_error *err)
{
    const struct vpc *v = c->v;
    for (unsigned i = 0; i < v->n_parts; i++) {
        uint64_t first, n;
        if (window_clip(c, v->parts[i].start, v->parts[i].end, &first, &n))
            bitmap_set(&c->used, first, n);
    }
    int ret = vpc_bat_scan(v, check_mark_entry, c, err);
    if (!ret)
        check_count_free(c);
    return ret;
}

static int check_overlaps(struct vpc_checker *c, struct rhea_error *err)
{
    /* No block begins past what 32 bits can number. */
    uint64_t sectors = RHEA_MIN(div_up(c->v->found.file_size, VPC_SECTOR),
                                VPC_UNUSED + c->block_bytes / VPC_SECTOR);
    int ret = 0;
    for (c->window = 0; c->window < sectors && !ret; c->window += WINDOW) {
        ret = bitmap_init(&c->used, RHEA_MIN(sectors - c->window, WINDOW), err);
        if (!ret)
            ret = check_window(c, err);
        bitmap_finish(&c->used);
    }
    return ret;
}

/* --- Repair --- */

/* What the end of the file holds of a block that it cuts off is data up to the
 * footer, which is none of the block's. */
static int check_complete_blocks(struct vpc_checker *c, struct rhea_error *err)
{
    struct vpc *v = c->v;
    if (!c->cut_off || v->found.file_size <= v->footer_at)
        return 0;
    return rhea_storage_zero(v->base.storage, v->footer_at,
                             v->found.file_size - v->footer_at, false, err);
}

/* The room that nobody uses comes together at the end of the file. */
static int check_close_up(struct vpc_checker *c, struct rhea_error *err)
{
    bool done;
    int ret = vpc_close_up(c->v, &done, err);
    if (!ret)
        ret = vpc_find_data_end(c->v, err);
    if (!ret && done)
        c->out->leaks = 0;
    return ret;
}

/* Whole blocks behind the last one in use are cut off with the footer's move;
 * a footer that is where it should be is left there. */
static int check_finish(struct vpc_checker *c, unsigned fix,
                        struct rhea_error *err)
{
    struct vpc *v = c->v;
    int ret = table_write_back(&v->table, err);
    if (!ret)
        ret = vpc_find_data_end(v, err);
    bool damaged = c->out->corruptions || c->out->errors;
    bool errors = c->footer_damage || c->cut_off;
    if (!ret && (fix & RHEA_FIX_LEAKS) && c->out->leaks && !damaged && !errors)
        ret = check_close_up(c, err);
    uint64_t tail = v->footer_at > v->data_end
                        ? (v->footer_at - v->data_end) / c->block_bytes
                        : 0;
    c->out->image_end = v->data_end;
    if (!ret && !damaged &&
        ((c->fix && errors) || ((fix & RHEA_FIX_LEAKS) && tail && !errors))) {
        ret = check_complete_blocks(c, err);
        if (!ret)
            ret = vpc_settle(v, err);
        if (ret)
            return ret;
        c->out->corruptions_fixed += c->footer_damage + c->cut_off;
        c->out->leaks_fixed += tail;
        tail = 0;
    } else {
        c->out->corruptions += c->footer_damage + c->cut_off;
    }
    c->out->leaks += tail;
    if (c->out->leaks)
        check_tell(c->out, false,
                   "there is room for %" PRIu64 " blocks that nobody uses",
                   c->out->leaks);
    return ret ? ret : fix ? rhea_storage_flush(v->base.storage, err) : 0;
}

static int check_run(struct vpc_checker *c, unsigned fix,
                     struct rhea_error *err)
{
    int ret = table_write_back(&c->v->table, err);
    check_footers(c);
    if (!ret)
        ret = check_header(c, err);
    if (!ret)
        ret = vpc_bat_scan(c->v, check_entry, c, err);
    if (!ret)
        ret = table_write_back(&c->v->table, err);
    if (!ret)
        ret = check_overlaps(c, err);
    if (!ret)
        ret = check_finish(c, fix, err);
    return ret;
}

/* A wrong checksum may be what is wrong with the header, or it tells of what
 * is. Then what there is does not go with what the header says. */
static int check_trust_header(const struct vpc_checker *how,
                              struct rhea_error *err)
{
    struct rhea_check found = {.progress = how->out->progress};
    struct vpc_checker c = {
        .v = how->v, .out = &found, .block_bytes = how->block_bytes};
    int ret = check_run(&c, 0, err);
    if (ret || found.corruptions == 1 + c.footer_damage)
        return ret;
    return rhea_error_set(err, EINVAL,
                          "the dynamic disk header has a wrong checksum, and "
                          "by what it says the blocks cannot be where they "
                          "are: it is damaged, and nothing was repaired");
}

/* All there is to a fixed image is the footer by which it was opened. */
static int check_fixed(struct vpc_checker *c, struct rhea_error *err)
{
    struct vpc *v = c->v;
    const struct vpc_copy *tail = &v->found.tail;
    uint64_t end = tail->at + tail->length;
    c->out->image_end = end;
    if (end == v->found.file_size)
        return 0;
    check_tell(c->out, true,
               "the footer is at offset %" PRIu64 ", and behind it are %" PRIu64
               " bytes of nothing%s",
               tail->at, v->found.file_size - end, c->fix ? "; cut off" : "");
    if (!c->fix) {
        c->out->corruptions++;
        return 0;
    }
    c->out->corruptions_fixed++;
    return vpc_mend_fixed(v, err);
}

int vpc_check(struct rhea_format *f, unsigned fix, struct rhea_check *check,
              struct rhea_error *err)
{
    struct vpc *v = vpc_of(f);
    struct vpc_checker c = {
        .v = v,
        .out = check,
        .fix = fix & RHEA_FIX_ERRORS,
        .block_bytes = (uint64_t)v->block_size + v->bitmap_bytes,
    };
    if (fix && !v->blocks.writable)
        return rhea_error_set(err, EACCES,
                              "cannot repair: the image is open for reading "
                              "only");
    RHEA_LOCKED(&v->blocks.lock);
    if (v->type == VPC_FIXED)
        return check_fixed(&c, err);
    check->total_clusters = vpc_blocks(v);
    int ret = fix && v->header_was_wrong ? check_trust_header(&c, err) : 0;
    return ret ? ret : check_run(&c, fix, err);
}
