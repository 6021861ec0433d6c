/* SPDX-License-Identifier: MIT */
/*
 * Another size of the disk, for which it grows; see shrink.c for the other way.
 *
 * Order of writes: what the guest must not see of its last block is zeroed; the
 * entries of new blocks are set where no reader looks yet, in a larger BAT at
 * the end of the file where the old one has no room; a fixed disk's new blocks
 * are added. Then one entry of the log has the size and, if need be, the BAT's
 * new place, behind a flush.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/prealloc.h"
#include "format/vhdx/vhdx.h"

enum { PIECE_ENTRIES = 8 << 10, PIECE_BYTES = PIECE_ENTRIES * 8 };

static int resize_check(const struct vhdx *v, const struct rhea_resize *how,
                        struct rhea_error *err)
{
    const char *mode = how->preallocation ? how->preallocation : "off";
    bool fixed = v->metadata.flags & VHDX_P_FIXED;
    int ret = prealloc_check(mode, err);
    if (ret)
        return ret;
    if (strcmp(mode, "off") != 0 && (!fixed || strcmp(mode, "metadata") == 0))
        return rhea_error_set(err, ENOTSUP,
                              "preallocation=%s is not possible with this VHDX "
                              "image",
                              mode);
    if (how->size < v->base.size && !how->shrink)
        return rhea_error_set(err, EINVAL,
                              "the image would lose what lies behind its new "
                              "end");
    if (how->size % v->metadata.logical_sector)
        return rhea_error_set(err, EINVAL,
                              "the size must be a multiple of the image's "
                              "sectors, %" PRIu32 " bytes",
                              v->metadata.logical_sector);
    if (how->size > VHDX_MAX_SIZE)
        return rhea_error_set(err, EFBIG,
                              "a VHDX image holds at most 64 TiB, not %" PRIu64
                              " bytes",
                              how->size);
    return 0;
}

/* A resize under way. */
struct resize {
    struct vhdx *v;
    const struct rhea_resize *how;
    struct vhdx_metadata metadata; /* new */
    struct vhdx_range bat;
    struct vhdx_edit edit;
    uint64_t blocks; /* where a fixed disk's new ones are */
};

/* What lies between the old end and that of the last block, as zeroes. */
static int resize_tail(struct vhdx *v, uint64_t old, uint64_t new,
                       bool hide_below, struct rhea_error *err)
{
    uint64_t end = RHEA_MIN(align_up(old, v->metadata.block_size), new);
    return blocks_hide(&v->blocks, old, end, hide_below, err);
}

static uint64_t resize_entry(const struct resize *r, uint64_t block,
                             uint64_t first)
{
    if (r->v->metadata.flags & VHDX_P_FIXED && !vhdx_is_child(r->v))
        return (r->blocks + ((block - first) << r->v->block_bits)) |
               VHDX_FULLY_PRESENT;
    return vhdx_is_child(r->v) && !r->how->hide_below ? VHDX_NOT_PRESENT
                                                      : VHDX_ZERO;
}

/* Whether the chunk of a block is new, so that its bitmap's entry has to be
 * set: a child's old last one may have a bitmap. */
static bool resize_is_new_chunk(const struct resize *r, uint64_t block,
                                uint64_t first)
{
    unsigned bits = r->v->ratio_bits;
    return !vhdx_is_child(r->v) || !first ||
           block >> bits != (first - 1) >> bits;
}

/* The entry of the last chunk's bitmap, which only a child has. */
static int resize_last_bitmap(const struct resize *r, uint64_t first,
                              uint64_t until, struct rhea_error *err)
{
    static const uint8_t none[sizeof(uint64_t)];
    struct vhdx *v = r->v;
    uint64_t ratio = UINT64_C(1) << v->ratio_bits;
    if (!vhdx_is_child(v) || first == until ||
        !resize_is_new_chunk(r, until - 1, first))
        return 0;
    uint64_t index = (until - 1) / ratio * (ratio + 1) + ratio;
    return rhea_storage_write(v->base.storage, none, sizeof(none),
                              r->bat.offset + index * sizeof(none), err);
}

/* Entries of the blocks behind the old last one, and of the bitmaps between
 * them. */
static int resize_entries(const struct resize *r, struct rhea_error *err)
{
    struct vhdx *v = r->v;
    uint64_t first = vhdx_blocks(v);
    uint64_t until = div_up(r->metadata.size, r->metadata.block_size);
    uint64_t ratio = UINT64_C(1) << v->ratio_bits;
    RHEA_AUTO_FREE uint8_t *b = malloc(PIECE_BYTES);
    if (!b)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret = 0;
    for (uint64_t block = first; block < until && !ret;) {
        uint64_t place =
            r->bat.offset + (block + block / ratio) * sizeof(uint64_t);
        size_t n = 0;
        /* Up to the chunk's end, with its bitmap's entry. */
        do
            store_le64(b + n++ * sizeof(uint64_t),
                       resize_entry(r, block, first));
        while (++block < until && block % ratio && n < PIECE_ENTRIES - 1);
        if (block % ratio == 0 && block < until &&
            resize_is_new_chunk(r, block - 1, first))
            store_le64(b + n++ * sizeof(uint64_t), 0);
        ret = rhea_storage_write(v->base.storage, b, n * sizeof(uint64_t),
                                 place, err);
    }
    return ret ? ret : resize_last_bitmap(r, first, until, err);
}

static int resize_add_blocks(struct resize *r, struct rhea_error *err)
{
    struct vhdx *v = r->v;
    const char *mode = r->how->preallocation ? r->how->preallocation : "off";
    uint64_t n =
        div_up(r->metadata.size, r->metadata.block_size) - vhdx_blocks(v);
    if (!(v->metadata.flags & VHDX_P_FIXED) || vhdx_is_child(v) || !n)
        return 0;
    int ret = blocks_extend(&v->blocks, n << v->block_bits, &r->blocks, err);
    return ret ? ret
               : prealloc_space(v->base.storage, mode, r->blocks,
                                v->blocks.file_end, err);
}

/* With the lock held. */
static int resize_switch(struct resize *r, struct rhea_error *err)
{
    struct vhdx *v = r->v;
    uint8_t size[8];
    int ret = blocks_change_begin(&v->blocks, err);
    if (ret)
        return ret;
    /* Entries are changed past the cache. */
    table_drop(&v->tables);
    ret = vhdx_bat_make_room(v, &r->metadata, &r->bat, &r->edit, err);
    if (!ret)
        ret = resize_add_blocks(r, err);
    if (!ret)
        ret = resize_entries(r, err);
    store_le64(size, r->metadata.size);
    if (!ret)
        ret =
            vhdx_edit_bytes(&r->edit, v->metadata.items[VHDX_ITEM_SIZE].offset,
                            size, sizeof(size), err);
    if (!ret)
        ret = vhdx_edit_write(&r->edit, true, err);
    return blocks_change_end(&v->blocks, ret, err);
}

int vhdx_resize(struct rhea_format *f, const struct rhea_resize *how,
                struct rhea_error *err)
{
    struct vhdx *v = (struct vhdx *)f;
    struct resize r = {.v = v, .how = how, .edit = {.v = v}};
    uint64_t old = f->size;
    int ret = resize_check(v, how, err);
    if (ret || how->size == old)
        return ret;
    if (how->size < old)
        return vhdx_shrink(v, how->size, err);
    pthread_mutex_lock(&v->blocks.lock);
    ret =
        !v->blocks.writable
            ? rhea_error_set(err, EACCES, "the image is open for reading only")
            : blocks_begin(&v->blocks, err);
    r.metadata = v->metadata;
    r.metadata.size = how->size;
    pthread_mutex_unlock(&v->blocks.lock);
    /* The last block, as it will be, is there already. */
    uint64_t end = RHEA_MIN(align_up(old, v->metadata.block_size), how->size);
    f->size = v->blocks.size = end;
    if (!ret)
        ret = resize_tail(v, old, how->size, how->hide_below, err);
    if (!ret) {
        RHEA_LOCKED(&v->blocks.lock);
        ret = resize_switch(&r, err);
    }
    vhdx_edit_finish(&r.edit);
    if (!ret) {
        v->metadata = r.metadata;
        vhdx_bat_moved(v, &r.bat);
    }
    f->size = v->blocks.size = ret ? old : how->size;
    return ret;
}
