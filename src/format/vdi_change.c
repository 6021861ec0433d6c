/* SPDX-License-Identifier: MIT */
/*
 * Changes of a whole image: its size, and emptying it.
 *
 * Order of writes. Growing: what would show between the old end and the new one
 * is zeroed first. New entries go behind the table, where nobody looks yet;
 * flush; then the header's sector, which has all that changes; flush. Where the
 * blocks leave no room behind the table, the first ones move to the end of the
 * file by the usual order (copy, count, flush, entries, flush). In their place
 * a whole new table is written, with numbers that count from the new first
 * block; flush; and the header's sector switches to it.
 *
 * Emptying: the table; flush; the header with a count of 0; flush; the file's
 * end is cut off. Each entry that reaches the file is right by itself, and the
 * count is too high meanwhile, never too low.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/prealloc.h"
#include "format/vdi.h"

enum { ENTRY = sizeof(uint32_t), PIECE = 64 << 10 /* entries */ };

/* What an entry becomes, for change_table. */
typedef uint32_t change_fn(void *opaque, uint32_t index, uint32_t entry);

/* Write N entries from FIRST on of a table at TABLE, each as FN makes it of
 * what the present table has (VDI_FREE behind its end). Past the cache. */
static int change_table(struct vdi *v, uint64_t table, uint32_t first,
                        uint32_t n, change_fn *fn, void *opaque,
                        struct rhea_error *err)
{
    RHEA_AUTO_FREE uint32_t *entries = malloc(PIECE * ENTRY);
    if (!entries)
        return rhea_error_set(err, ENOMEM, "out of memory");
    while (n) {
        uint32_t some = RHEA_MIN(n, PIECE), old = 0;
        int ret = 0;
        if (first < v->head.blocks) {
            old = RHEA_MIN(some, v->head.blocks - first);
            ret =
                rhea_storage_read(v->base.storage, entries, old * ENTRY,
                                  v->head.table + (uint64_t)first * ENTRY, err);
        }
        for (uint32_t i = 0; i < some; i++)
            entries[i] = htole32(fn(opaque, first + i,
                                    i < old ? le32toh(entries[i]) : VDI_FREE));
        if (!ret)
            ret = rhea_storage_write(v->base.storage, entries, some * ENTRY,
                                     table + (uint64_t)first * ENTRY, err);
        if (ret)
            return ret;
        first += some;
        n -= some;
    }
    return 0;
}

/* --- Dropping blocks --- */

static uint32_t change_free(void *opaque, uint32_t index, uint32_t entry)
{
    (void)opaque;
    (void)index;
    (void)entry;
    return VDI_FREE;
}

int vdi_free_entries(struct vdi *v, uint32_t first, struct rhea_error *err)
{
    table_drop(&v->table);
    int ret = change_table(v, v->head.table, first, v->head.blocks - first,
                           change_free, NULL, err);
    return ret ? ret : rhea_storage_flush(v->base.storage, err);
}

/* With the lock held; nothing is in flight or dirty. */
static int change_empty(struct vdi *v, struct rhea_error *err)
{
    struct rhea_storage *storage = v->base.storage;
    int ret = vdi_free_entries(v, 0, err);
    v->head.count = 0;
    if (!ret)
        ret = vdi_head_write(&v->head, storage, err);
    if (!ret)
        ret = rhea_storage_flush(storage, err);
    if (!ret)
        ret = rhea_storage_truncate(storage, v->head.data, err);
    if (ret)
        return ret;
    v->file_size = v->head.data;
    return vdi_open_write(v, err);
}

int vdi_make_empty(struct rhea_format *f, struct rhea_error *err)
{
    struct vdi *v = (struct vdi *)f;
    RHEA_LOCKED(&v->blocks.lock);
    if (v->head.type == VDI_FIXED)
        return rhea_error_set(err, ENOTSUP,
                              "a fixed VDI image cannot be emptied");
    int ret = blocks_change_begin(&v->blocks, err);
    if (!ret)
        ret = blocks_begin(&v->blocks, err);
    return ret ? ret : blocks_change_end(&v->blocks, change_empty(v, err), err);
}

/* --- Growing --- */

struct grow {
    uint64_t size;
    uint32_t old, blocks; /* of the guest, before and after */
    uint32_t shift;       /* numbers become less by this much */
    bool fixed;
    uint32_t next;    /* the entry that is added next; if fixed, a number */
    const char *mode; /* of preallocation */
};

static int grow_check(const struct vdi *v, const struct rhea_resize *how,
                      struct grow *g, struct rhea_error *err)
{
    uint64_t blocks = div_up(how->size, v->head.block_size);
    *g = (struct grow){
        .size = how->size,
        .old = v->head.blocks,
        .fixed = v->head.type == VDI_FIXED,
        .mode = how->preallocation ? how->preallocation : "off",
    };
    if (how->size < v->base.size && !how->shrink)
        return rhea_error_set(err, EINVAL,
                              "the image would lose what lies behind its new "
                              "end");
    if (how->size % VDI_SECTOR)
        return rhea_error_set(
            err, EINVAL, "the size must be a multiple of %d bytes", VDI_SECTOR);
    if (!g->fixed && strcmp(g->mode, "off") != 0)
        return rhea_error_set(err, ENOTSUP,
                              "only a fixed VDI image can be preallocated, not "
                              "a %s one",
                              vdi_type_name(v->head.type));
    if (how->size > INT64_MAX || blocks >= VDI_ZERO / ENTRY)
        return rhea_error_set(err, EFBIG,
                              "%" PRIu64 " bytes are more than a VDI image "
                              "with blocks of %" PRIu32 " bytes can hold",
                              how->size, v->head.block_size);
    g->blocks = (uint32_t)RHEA_MAX(blocks, v->head.blocks);
    return g->fixed ? prealloc_check(g->mode, err) : 0;
}

/* Whether the new table has its place behind the old one; else in *SHIFT how
 * many blocks it takes. */
static int grow_choose_place(const struct vdi *v, struct grow *g,
                             struct rhea_error *err)
{
    const struct vdi_head *h = &v->head;
    uint64_t bytes = (uint64_t)g->blocks * ENTRY;
    if (g->blocks == g->old || h->table + bytes <= h->data)
        return 0;
    if (!h->at->data)
        return rhea_error_set(err, ENOTSUP,
                              "a VDI image of version 0 cannot get a larger "
                              "table; convert it to a new one");
    uint64_t shift = div_up(align_up(bytes, VDI_SECTOR), v->stride);
    if (vdi_end(v, shift) > UINT32_MAX)
        return rhea_error_set(err, EFBIG,
                              "the table would be larger than a VDI header can "
                              "say");
    g->shift = (uint32_t)shift;
    return 0;
}

/* Move the blocks that are in the way of a table to the file's end. */
static int grow_move_blocks(struct vdi *v, uint32_t shift,
                            struct rhea_error *err)
{
    v->count = RHEA_MAX(v->count, shift);
    for (uint32_t i = 0; i < v->head.blocks; i++) {
        uint32_t number;
        int ret = vdi_entry_get(v, i, &number, err);
        if (!ret && number >= shift)
            continue;
        if (!ret)
            ret = vdi_copy_block(v, number, v->count, err);
        if (!ret)
            ret = vdi_entry_set(v, i, v->count++, err);
        if (ret)
            return ret;
    }
    int ret = table_write_back(&v->table, err);
    return ret ? ret : rhea_storage_flush(v->base.storage, err);
}

static uint32_t grow_entry(void *opaque, uint32_t index, uint32_t entry)
{
    struct grow *g = opaque;
    if (index < g->old)
        return vdi_is_block(entry) ? entry - g->shift : entry;
    return g->fixed ? g->next++ : g->next;
}

static int grow_table(struct vdi *v, struct grow *g, struct vdi_head *h,
                      struct rhea_error *err)
{
    struct rhea_storage *storage = v->base.storage;
    uint32_t added = g->blocks - g->old;
    int ret = g->shift ? grow_move_blocks(v, g->shift, err) : 0;
    *h = v->head;
    h->count = v->count - g->shift;
    if (g->shift) {
        h->table = h->data;
        h->data += g->shift * v->stride;
    }
    if (g->fixed) {
        g->next = h->count;
        h->count += added;
    }
    uint64_t end = h->data + h->count * v->stride;
    if (!ret && g->fixed && added)
        ret = prealloc_space(storage, g->mode, h->data + g->next * v->stride,
                             end, err);
    if (!ret)
        ret = change_table(v, h->table, g->shift ? 0 : g->old,
                           g->shift ? g->blocks : added, grow_entry, g, err);
    return ret ? ret : rhea_storage_flush(storage, err);
}

/* With the lock held. Everything is prepared for the new size but the table. */
static int grow_run(struct vdi *v, struct grow *g, struct rhea_error *err)
{
    struct vdi_head h = v->head;
    int ret = blocks_change_begin(&v->blocks, err);
    /* What an unfinished change has left is cut off. */
    if (!ret)
        ret = blocks_begin(&v->blocks, err);
    if (!ret)
        ret = grow_table(v, g, &h, err);
    h.disk_size = g->size;
    h.blocks = g->blocks;
    if (!ret)
        ret = vdi_head_write(&h, v->base.storage, err);
    ret = blocks_change_end(&v->blocks, ret, err);
    if (ret)
        return ret;
    v->head = h;
    v->count = h.count;
    table_finish(&v->table);
    ret = vdi_table_init(v, err);
    if (!ret)
        ret = rhea_storage_size(v->base.storage, &v->file_size, err);
    return ret ? ret : vdi_open_write(v, err);
}

/* What must not show between the old end and the new one, as far as the table
 * goes already: what it has there, and what is below. The size is the new one
 * in memory. */
static int grow_zero(struct vdi *v, uint64_t old, bool hide_below,
                     struct rhea_error *err)
{
    uint64_t end = (uint64_t)v->head.blocks * v->head.block_size;
    return blocks_hide(&v->blocks, old, RHEA_MIN(end, v->base.size), hide_below,
                       err);
}

static void grow_set_size(struct vdi *v, uint64_t size)
{
    pthread_mutex_lock(&v->blocks.lock);
    v->base.size = v->blocks.size = size;
    pthread_mutex_unlock(&v->blocks.lock);
}

int vdi_resize(struct rhea_format *f, const struct rhea_resize *how,
               struct rhea_error *err)
{
    struct vdi *v = (struct vdi *)f;
    struct grow g;
    uint64_t old = f->size;
    int ret = grow_check(v, how, &g, err);
    if (!ret)
        ret = grow_choose_place(v, &g, err);
    if (!ret && !v->blocks.writable)
        ret = rhea_error_set(err, EACCES, "the image is open for reading only");
    if (ret || how->size == old)
        return ret;
    if (how->size < old)
        return vdi_shrink(v, how->size, err);
    g.next = how->hide_below ? VDI_ZERO : VDI_FREE;
    grow_set_size(v, how->size);
    ret = grow_zero(v, old, how->hide_below, err);
    if (!ret) {
        RHEA_LOCKED(&v->blocks.lock);
        ret = grow_run(v, &g, err);
    }
    if (ret)
        grow_set_size(v, old);
    return ret;
}
