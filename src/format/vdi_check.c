/* SPDX-License-Identifier: MIT */
/*
 * Check: each entry of the table leads to a block inside the file, and to one
 * of its own; the header's count lies past all of them. vdi_repair.c mends what
 * is found.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/finding.h"
#include "format/vdi_check.h"

static void check_bad(struct vdi_checker *c, uint32_t index, uint32_t number,
                      const char *what)
{
    check_tell(c->out, true,
               "guest offset %" PRIu64 " is in block %" PRIu32 ", %s",
               (uint64_t)index * c->v->head.block_size, number, what);
}

static void check_entry(struct vdi_checker *c, uint32_t index, uint32_t number)
{
    if (!vdi_is_inside(c->v, index, number)) {
        check_bad(c, index, number, "which is past the end of the file");
        c->n_lost++;
        c->out->lost++;
        return;
    }
    c->out->allocated_clusters++;
    if (c->last != UINT64_MAX && number != c->last + 1)
        c->out->fragmented_clusters++;
    c->last = number;
    if (bitmap_get(&c->used, number)) {
        check_bad(c, index, number, "which is used more than once");
        c->n_shared++;
        return;
    }
    if (number >= c->v->head.blocks) {
        check_bad(c, index, number, "more than there can be");
        c->n_high++;
    }
    bitmap_set(&c->used, number, 1);
}

/* Many entries that are all 0. Only the one of the disk's last block may need
 * less of block 0 than the others do. */
static void check_hole(struct vdi_checker *c, uint32_t index, uint32_t n)
{
    uint64_t last = (c->v->base.size - 1) / c->v->head.block_size;
    if (c->v->base.size && last >= index && last - index < n) {
        check_entry(c, (uint32_t)last, 0);
        n--;
        index += last == index;
    }
    if (!n)
        return;
    check_entry(c, index, 0);
    if (!--n)
        return;
    check_bad(c, index, 0, "as is much that follows");
    if (vdi_is_inside(c->v, index, 0)) {
        c->out->allocated_clusters += n;
        c->n_shared += n;
    } else {
        c->out->lost += n;
        c->n_lost += n;
    }
}

static int check_table(struct vdi_checker *c, struct vdi_scan *scan,
                       struct rhea_error *err)
{
    int ret = vdi_scan_next(scan, err);
    while (!ret && scan->n) {
        rhea_progress_report(c->out->progress, "check", scan->first,
                             c->v->head.blocks);
        if (rhea_progress_cancelled(c->out->progress))
            return rhea_error_set(err, ECANCELED, "the check was stopped");
        if (scan->hole)
            check_hole(c, scan->first, scan->n);
        for (uint32_t i = 0; !scan->hole && i < scan->n; i++) {
            uint32_t number = le32toh(scan->entries[i]);
            if (vdi_is_block(number))
                check_entry(c, scan->first + i, number);
        }
        ret = vdi_scan_next(scan, err);
    }
    return ret;
}

/* What the header counts. */
static void check_head(struct vdi_checker *c)
{
    const struct vdi_head *h = &c->v->head;
    uint64_t end = bitmap_end(&c->used);
    if (h->count < RHEA_MIN(end, h->blocks))
        check_tell(c->out, true,
                   "the header counts %" PRIu32 " blocks in the file, but "
                   "there are %" PRIu64 ": the next one would replace another",
                   h->count, end);
    else if (h->count > h->blocks)
        check_tell(c->out, true,
                   "the header counts %" PRIu32 " blocks in the file, of "
                   "%" PRIu32 " that can be",
                   h->count, h->blocks);
    else
        return;
    c->bad_count = true;
}

static uint64_t check_leaks(struct vdi_checker *c)
{
    const struct vdi_head *h = &c->v->head;
    uint64_t there = RHEA_MAX(vdi_room(c->v), RHEA_MIN(h->count, h->blocks));
    uint64_t n_used = bitmap_count(&c->used, 0, c->used.n_bits);
    uint64_t leaks = there > n_used ? there - n_used : 0;
    c->out->image_end = vdi_end(c->v, bitmap_end(&c->used));
    if (leaks)
        check_tell(c->out, false,
                   "%" PRIu64 " blocks of the file are used by nobody", leaks);
    return leaks;
}

/* Mend what FIX says, and tell how much is left. */
static int check_mend(struct vdi_checker *c, unsigned fix,
                      struct rhea_error *err)
{
    uint64_t bad = c->n_lost + c->n_shared + c->n_high + c->bad_count;
    c->out->corruptions += bad;
    if (bad && (fix & RHEA_FIX_ERRORS)) {
        int ret = vdi_repair_errors(c, err);
        if (ret)
            return ret;
        uint64_t left = c->n_shared_left;
        c->out->corruptions -= bad - left;
        c->out->corruptions_fixed += bad - left;
        bad = left;
    }
    uint64_t leaks = check_leaks(c);
    c->out->leaks += leaks;
    if (!leaks || bad || !(fix & RHEA_FIX_LEAKS))
        return 0;
    int ret = vdi_repair_leaks(c, err);
    if (ret)
        return ret;
    c->out->leaks -= leaks;
    c->out->leaks_fixed += leaks;
    return 0;
}

static int check_run(struct vdi_checker *c, unsigned fix,
                     struct rhea_error *err)
{
    struct vdi *v = c->v;
    struct vdi_scan scan = {0};
    int ret = rhea_storage_size(v->base.storage, &v->file_size, err);
    uint64_t bits = RHEA_MAX(RHEA_MIN(vdi_room(v), VDI_ZERO), v->head.blocks);
    if (!ret)
        ret = bitmap_init(&c->used, bits, err);
    if (!ret)
        ret = vdi_scan_init(&scan, v, err);
    if (!ret)
        ret = check_table(c, &scan, err);
    vdi_scan_finish(&scan);
    if (!ret) {
        check_head(c);
        ret = check_mend(c, fix, err);
    }
    bitmap_finish(&c->used);
    return ret;
}

int vdi_check(struct rhea_format *f, unsigned fix, struct rhea_check *check,
              struct rhea_error *err)
{
    struct vdi *v = (struct vdi *)f;
    struct vdi_checker c = {.v = v, .out = check, .last = UINT64_MAX};
    if (fix && !v->repairable)
        return rhea_error_set(err, EACCES,
                              "cannot repair: the image is open for reading "
                              "only");
    check->total_clusters = v->head.blocks;
    RHEA_LOCKED(&v->blocks.lock);
    int ret = 0;
    if (v->blocks.writable)
        ret = blocks_change_begin(&v->blocks, err);
    if (!ret)
        ret = check_run(&c, fix, err);
    /* The blocks have other numbers. */
    if (!ret && fix && v->blocks.writable)
        ret = vdi_open_write(v, err);
    return ret;
}
