/* SPDX-License-Identifier: MIT */
/*
 * The guest's writes, by the engine in blocks.h. Order of writes:
 *   1. before the first change, the header with a new modification UUID; flush.
 *      Whoever was made over the image as it was can tell from then on;
 *   2. new blocks, whole, where the file had ended;
 *   3. the header with the number of blocks in the file, flush, and then the
 *      table's entries (table_write in vdi_table.c).
 * Other programs put the next block where that number says, so at no moment may
 * the table lead there. After a crash the number can be too high: then some
 * blocks are nobody's. They are found when the image is opened for writing, and
 * given out before the file grows, emptied; so there are never more of them
 * than the table has entries, which VirtualBox would refuse.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/copy.h"
#include "format/vdi.h"

enum { ZERO_ENTRIES = 64 << 10 /* set in one go, with the lock held */ };

static struct vdi *vdi_of(struct blocks *b)
{
    return (struct vdi *)b->format;
}

static int write_begin(struct blocks *b, struct rhea_error *err)
{
    struct vdi *v = vdi_of(b);
    if (v->renewed)
        return 0;
    int ret = guid_new(v->head.uuid[VDI_MODIFIED], err);
    if (!ret)
        ret = vdi_head_write(&v->head, b->storage, err);
    if (!ret)
        ret = rhea_storage_flush(b->storage, err);
    v->renewed = !ret;
    return ret;
}

/* A block that nobody uses, between those in use. -ENOENT: there is none. */
static int write_fill_gap(struct vdi *v, uint32_t *number,
                          struct rhea_error *err)
{
    uint64_t gap =
        v->has_gaps ? bitmap_find(&v->used, v->next_gap, false) : v->count;
    v->has_gaps = gap < v->used.n_bits && gap < v->count;
    if (!v->has_gaps)
        return -ENOENT;
    int ret = rhea_storage_zero(v->base.storage, vdi_end(v, gap), v->stride,
                                true, err);
    if (ret)
        return ret;
    bitmap_set(&v->used, gap, 1);
    *number = v->next_gap = (uint32_t)gap;
    return 0;
}

static int write_place(struct blocks *b, uint64_t block, uint64_t *count,
                       uint64_t *host, struct rhea_error *err)
{
    struct vdi *v = vdi_of(b);
    uint32_t number;
    (void)block;
    int ret = write_fill_gap(v, &number, err);
    if (!ret) {
        *count = 1;
        *host = vdi_host(v, number);
        return 0;
    }
    if (ret != -ENOENT)
        return ret;

    uint32_t left = v->head.blocks - v->count;
    if (v->count >= v->head.blocks)
        return rhea_error_set(err, ENOSPC,
                              "earlier writes failed and left blocks unused: "
                              "the image must be closed and opened again");
    *count = RHEA_MIN(*count, v->head.extra ? 1 : left);
    ret = blocks_extend(b, *count * v->stride, host, err);
    if (ret)
        return ret;
    *host += v->head.extra;
    v->count += (uint32_t)*count;
    return 0;
}

static int write_link(struct blocks *b, const struct blocks_piece *piece,
                      struct rhea_error *err)
{
    struct vdi *v = vdi_of(b);
    uint64_t number = (piece->host - v->head.data) / v->stride;
    int ret = 0;
    for (uint64_t i = 0; i < piece->count && !ret; i++)
        ret = vdi_entry_set(v, (uint32_t)(piece->block + i),
                            (uint32_t)(number + i), err);
    return ret;
}

static int write_zero(struct blocks *b, uint64_t block, uint64_t *count,
                      struct rhea_error *err)
{
    int ret = 0;
    *count = RHEA_MIN(*count, ZERO_ENTRIES);
    for (uint64_t i = 0; i < *count && !ret; i++)
        ret = vdi_entry_set(vdi_of(b), (uint32_t)(block + i), VDI_ZERO, err);
    return ret;
}

static int write_back(struct blocks *b, struct rhea_error *err)
{
    return table_write_back(&vdi_of(b)->table, err);
}

const struct blocks_ops vdi_blocks_ops = {
    .map = vdi_map_locked,
    .begin = write_begin,
    .place = write_place,
    .link = write_link,
    .zero = write_zero,
    .write_back = write_back,
};

int vdi_copy_block(struct vdi *v, uint32_t from, uint32_t to,
                   struct rhea_error *err)
{
    return copy_range(v->base.storage, vdi_end(v, from), vdi_end(v, to),
                      v->stride, false, err);
}

/* Enter N entries from INDEX on, which follow each other in the table; ENTRIES
 * NULL: all are 0. */
static int write_note_used(struct vdi *v, uint32_t index,
                           const uint32_t *entries, uint32_t n,
                           struct rhea_error *err)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t number = entries ? le32toh(entries[i]) : 0;
        if (!vdi_is_block(number))
            continue;
        bool ok =
            number < v->used.n_bits && vdi_is_inside(v, index + i, number);
        if (!ok || bitmap_get(&v->used, number))
            return rhea_error_set(
                err, EIO,
                "the image is damaged: block %" PRIu32 ", where guest offset "
                "%" PRIu64 " is said to be, %s; repair it with 'check -r all'",
                number, (uint64_t)(index + i) * v->head.block_size,
                ok ? "is used twice" : "cannot be there");
        bitmap_set(&v->used, number, 1);
    }
    return 0;
}

int vdi_open_write(struct vdi *v, struct rhea_error *err)
{
    struct vdi_scan scan;
    bitmap_finish(&v->used);
    int ret = bitmap_init(&v->used, RHEA_MIN(vdi_room(v), v->head.blocks), err);
    if (ret)
        return ret;
    ret = vdi_scan_init(&scan, v, err);
    if (!ret)
        ret = vdi_scan_next(&scan, err);
    while (!ret && scan.n) {
        ret = write_note_used(v, scan.first, scan.hole ? NULL : scan.entries,
                              scan.n, err);
        if (!ret)
            ret = vdi_scan_next(&scan, err);
    }
    vdi_scan_finish(&scan);
    if (ret)
        return ret;
    v->count = (uint32_t)bitmap_end(&v->used);
    v->has_gaps = bitmap_count(&v->used, 0, v->count) < v->count;
    v->next_gap = 0;
    v->blocks.file_end = vdi_end(v, v->count);
    v->blocks.grown = 0;
    v->blocks.writable = true;
    return 0;
}
