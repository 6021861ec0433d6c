/* SPDX-License-Identifier: MIT */
/*
 * A smaller disk. Order of writes:
 *   1. one entry of the log has the size: from then on nobody looks behind it;
 *   2. the entries of blocks behind it, and of bitmaps that serve no other
 *      block, become "not present", through the log;
 *   3. flush; the headers say that the log is not in use;
 *   4. the file is cut off behind the last block, holes take the place of those
 *      between others, and what the last one has behind the disk's end becomes
 *      zeroes, so that it does not come back when the disk grows again, by
 *      whatever program.
 * A crash after step 1 leaves at worst entries that nobody follows, and places
 * in the file that nobody uses.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/bitmap.h"
#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/vhdx/vhdx.h"

struct shrink {
    struct vhdx *v;
    uint64_t size;               /* new */
    uint64_t blocks;             /* that are left */
    struct bitmap kept, dropped; /* MiB of the file. Both: the image is damaged,
                                    and a block that goes overlaps one that
                                    stays */
};

static int shrink_init(struct shrink *s, struct rhea_error *err)
{
    uint64_t n = s->v->blocks.file_end / VHDX_MIB;
    int ret = bitmap_init(&s->kept, n, err);
    return ret ? ret : bitmap_init(&s->dropped, n, err);
}

static void shrink_finish(struct shrink *s)
{
    bitmap_finish(&s->kept);
    bitmap_finish(&s->dropped);
}

static int shrink_put_size(const struct shrink *s, struct rhea_error *err)
{
    struct vhdx_edit edit = {.v = s->v};
    uint8_t size[8];
    store_le64(size, s->size);
    int ret =
        vhdx_edit_bytes(&edit, s->v->metadata.items[VHDX_ITEM_SIZE].offset,
                        size, sizeof(size), err);
    if (!ret)
        ret = vhdx_edit_write(&edit, true, err);
    vhdx_edit_finish(&edit);
    return ret;
}

static int shrink_entry(void *opaque, const struct vhdx_entry *e,
                        struct rhea_error *err)
{
    struct shrink *s = opaque;
    bool drop = e->block >= s->blocks;
    struct bitmap *b = drop ? &s->dropped : &s->kept;
    uint64_t first = (e->entry & VHDX_BAT_OFFSET) / VHDX_MIB;
    uint64_t end = first + vhdx_entry_length(s->v, e) / VHDX_MIB;
    if (first && first < b->n_bits)
        bitmap_set(b, first, RHEA_MIN(end, b->n_bits) - first);
    return drop ? vhdx_bat_set(s->v, e->place, VHDX_NOT_PRESENT, err) : 0;
}

/* Where the file system cannot do it, the space is lost, and nothing else. */
static void shrink_punch(const struct shrink *s)
{
    const struct vhdx *v = s->v;
    uint64_t n = RHEA_MIN(s->dropped.n_bits, v->blocks.file_end / VHDX_MIB);
    for (uint64_t at = bitmap_find(&s->dropped, 0, true); at < n;) {
        uint64_t end = at;
        while (end < n && bitmap_get(&s->dropped, end) &&
               !bitmap_get(&s->kept, end) &&
               !vhdx_is_taken(v, end * VHDX_MIB, VHDX_MIB))
            end++;
        if (end > at)
            rhea_storage_zero(v->base.storage, at * VHDX_MIB,
                              (end - at) * VHDX_MIB, true, NULL);
        at = bitmap_find(&s->dropped, RHEA_MAX(end, at + 1), true);
    }
}

/* The last block up to its end, or that of the disk as it was. */
static int shrink_tail(const struct shrink *s, uint64_t old,
                       struct rhea_error *err)
{
    struct vhdx *v = s->v;
    uint64_t end = RHEA_MIN(align_up(s->size, v->metadata.block_size), old);
    for (uint64_t at = s->size; at < end;) {
        struct rhea_extent x = {0};
        int ret = vhdx_map(&v->blocks, at, end - at, &x, err);
        if (!ret && x.kind == RHEA_EXTENT_DATA)
            ret =
                rhea_storage_zero(v->base.storage, x.host, x.length, true, err);
        if (ret)
            return ret;
        at += x.length;
    }
    return 0;
}

static int shrink_run(struct shrink *s, struct rhea_error *err)
{
    struct vhdx *v = s->v;
    uint64_t old = v->base.size;
    int ret = vhdx_begin(v, true, err);
    if (!ret)
        ret = shrink_put_size(s, err);
    if (!ret)
        ret = vhdx_bat_walk(v, shrink_entry, s, err);
    if (!ret)
        ret = table_write_back(&v->tables, err);
    /* What lies behind the new end is not seen any more, but is there. */
    if (!ret)
        ret = vhdx_log_close(v, err);
    if (!ret)
        ret = shrink_tail(s, old, err);
    v->base.size = v->blocks.size = v->metadata.size = s->size;
    if (!ret)
        ret = vhdx_cut_off(v, err);
    if (!ret)
        shrink_punch(s);
    return ret;
}

int vhdx_shrink(struct vhdx *v, uint64_t size, struct rhea_error *err)
{
    struct shrink s = {
        .v = v, .size = size, .blocks = div_up(size, v->metadata.block_size)};
    RHEA_LOCKED(&v->blocks.lock);
    int ret = blocks_change_begin(&v->blocks, err);
    if (ret)
        return ret;
    ret = shrink_init(&s, err);
    if (!ret)
        ret = blocks_change_end(&v->blocks, shrink_run(&s, err), err);
    shrink_finish(&s);
    return ret;
}
