/* SPDX-License-Identifier: MIT */
/*
 * Another parent, or none, and emptying a child.
 *
 * Order of writes. A new parent locator goes to free space of the metadata;
 * then one entry of the log has the table's entry that leads to it, the file's
 * parameters and, where a disk becomes a child and its BAT has no room for
 * sector bitmaps, the place of a larger one. A child that is to be one no more
 * first has its blocks completed: the sectors that it does not have are zeroed
 * in their places, where nobody reads them yet; then its blocks say that they
 * are whole; then it has no bitmaps; then it has no parent. Emptying a child
 * gives up its blocks, then its bitmaps. Each step is durable before the next
 * begins. Last, when the log is not in use, the file is cut off.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/vhdx/vhdx.h"

/* --- The blocks of a child --- */

/* The new entry of a block, from its old one. */
typedef int backing_entry_fn(struct vhdx *v, uint64_t block, uint64_t *entry,
                             struct rhea_error *err);

static int backing_entries(struct vhdx *v, backing_entry_fn *fn, bool bitmaps,
                           struct rhea_error *err)
{
    uint64_t step = bitmaps ? UINT64_C(1) << v->ratio_bits : 1;
    uint64_t blocks = vhdx_blocks(v);
    int ret = 0;
    for (uint64_t block = 0; block < blocks && !ret; block += step) {
        uint64_t place =
            bitmaps ? vhdx_bitmap_place(v, block) : vhdx_bat_place(v, block);
        uint64_t entry, old;
        /* The last bitmap has no entry where there are none. */
        if (place >= v->bat_region.offset + v->bat_region.length)
            break;
        ret = vhdx_bat_get(v, place, &old, err);
        entry = old;
        if (!ret)
            ret = fn(v, block, &entry, err);
        if (!ret && entry != old)
            ret = vhdx_bat_set(v, place, entry, err);
    }
    return ret ? ret : table_write_back(&v->tables, err);
}

static int backing_drop(struct vhdx *v, uint64_t block, uint64_t *entry,
                        struct rhea_error *err)
{
    (void)v;
    (void)block;
    (void)err;
    *entry = VHDX_NOT_PRESENT;
    return 0;
}

/* Sectors that a partially present block does not have become zeroes. */
static int backing_complete(struct vhdx *v, uint64_t block, uint64_t *entry,
                            struct rhea_error *err)
{
    uint64_t at = block << v->block_bits;
    uint64_t end = RHEA_MIN(at + v->metadata.block_size, v->base.size);
    uint64_t state = *entry & VHDX_BAT_STATE;
    if (state == VHDX_NOT_PRESENT)
        *entry = VHDX_ZERO;
    if (state != VHDX_PARTIALLY_PRESENT)
        return 0;
    while (at < end) {
        struct rhea_extent x;
        int ret = vhdx_map(&v->blocks, at, end - at, &x, err);
        if (!ret && x.kind != RHEA_EXTENT_DATA)
            ret = rhea_storage_zero(v->base.storage, x.host, x.length, false,
                                    err);
        if (ret)
            return ret;
        at += x.length;
    }
    *entry = (*entry & VHDX_BAT_OFFSET) | VHDX_FULLY_PRESENT;
    return 0;
}

/* --- The parent locator --- */

/* A change of the metadata under way. */
struct backing {
    struct vhdx *v;
    uint8_t *locator; /* NULL: there is to be no parent */
    size_t locator_length;
    struct vhdx_metadata metadata; /* new */
    struct vhdx_range bat;
    uint8_t *table;
    struct vhdx_edit edit;
};

/* Where an item of LENGTH bytes has room in the metadata region; 0: nowhere. */
static uint32_t backing_find_room(const struct backing *b, size_t length)
{
    unsigned n = load_le16(b->table + VHDX_M_COUNT);
    uint64_t at = VHDX_M_TABLE_BYTES;
    for (unsigned i = 0; i < n;) {
        const uint8_t *e = b->table + VHDX_M_ENTRIES + i * VHDX_ME_BYTES;
        uint64_t begin = load_le32(e + VHDX_ME_OFFSET);
        uint64_t end = begin + load_le32(e + VHDX_ME_LENGTH);
        i++;
        if (begin < at + length && at < end) {
            at = align_up(end, 8);
            i = 0; /* those before might be in the way now */
        }
    }
    return at + length <= b->v->metadata_region.length ? (uint32_t)at : 0;
}

/* The table's entry of the locator; N: there is none. */
static unsigned backing_find_entry(const struct backing *b, unsigned n)
{
    unsigned i = 0;
    for (; i < n; i++) {
        const uint8_t *e = b->table + VHDX_M_ENTRIES + i * VHDX_ME_BYTES;
        if (uuid_equal(e, vhdx_item_guids[VHDX_ITEM_LOCATOR]) &&
            !(load_le32(e + VHDX_ME_FLAGS) & VHDX_ME_USER))
            break;
    }
    return i;
}

static int backing_edit_table(struct backing *b, unsigned index, unsigned n,
                              struct rhea_error *err)
{
    uint64_t table = b->v->metadata_region.offset;
    size_t at = VHDX_M_ENTRIES + index * VHDX_ME_BYTES;
    store_le16(b->table + VHDX_M_COUNT, (uint16_t)n);
    int ret = vhdx_edit_bytes(&b->edit, table, b->table, VHDX_M_ENTRIES, err);
    return ret ? ret
               : vhdx_edit_bytes(&b->edit, table + at, b->table + at,
                                 VHDX_ME_BYTES, err);
}

/* The last entry takes the place of the one that goes. */
static int backing_edit_remove(struct backing *b, struct rhea_error *err)
{
    unsigned n = load_le16(b->table + VHDX_M_COUNT);
    unsigned i = backing_find_entry(b, n);
    b->metadata.items[VHDX_ITEM_LOCATOR].length = 0;
    if (i == n)
        return 0;
    memmove(b->table + VHDX_M_ENTRIES + i * VHDX_ME_BYTES,
            b->table + VHDX_M_ENTRIES + (n - 1) * VHDX_ME_BYTES, VHDX_ME_BYTES);
    return backing_edit_table(b, i, n - 1, err);
}

/* The locator itself, and what leads to it. */
static int backing_edit_locator(struct backing *b, struct rhea_error *err)
{
    struct vhdx *v = b->v;
    struct vhdx_edit item = {.v = v};
    unsigned n = load_le16(b->table + VHDX_M_COUNT);
    unsigned i = backing_find_entry(b, n);
    uint32_t at = backing_find_room(b, b->locator_length);
    if (!at || (i == n && n == VHDX_M_MAX))
        return rhea_error_set(err, ENOSPC,
                              "the metadata of this VHDX image have no room "
                              "for the parent's name");
    struct vhdx_range place = {v->metadata_region.offset + at,
                               b->locator_length};
    int ret = vhdx_edit_bytes(&item, place.offset, b->locator,
                              b->locator_length, err);
    if (!ret)
        ret = vhdx_edit_write(&item, false, err);
    vhdx_edit_finish(&item);
    if (ret)
        return ret;
    uint8_t *e = b->table + VHDX_M_ENTRIES + i * VHDX_ME_BYTES;
    memset(e, 0, VHDX_ME_BYTES);
    memcpy(e, vhdx_item_guids[VHDX_ITEM_LOCATOR], UUID_BYTES);
    store_le32(e + VHDX_ME_OFFSET, at);
    store_le32(e + VHDX_ME_LENGTH, (uint32_t)b->locator_length);
    store_le32(e + VHDX_ME_FLAGS, VHDX_ME_REQUIRED);
    b->metadata.items[VHDX_ITEM_LOCATOR] = place;
    return backing_edit_table(b, i, RHEA_MAX(n, i + 1), err);
}

static int backing_edit_flags(struct backing *b, struct rhea_error *err)
{
    uint8_t flags[4];
    if (b->metadata.flags == b->v->metadata.flags)
        return 0;
    store_le32(flags, b->metadata.flags);
    return vhdx_edit_bytes(&b->edit,
                           b->v->metadata.items[VHDX_ITEM_PARAMETERS].offset +
                               VHDX_P_FLAGS,
                           flags, sizeof(flags), err);
}

static int backing_switch(struct backing *b, struct rhea_error *err)
{
    struct vhdx *v = b->v;
    b->table = malloc(VHDX_M_TABLE_BYTES);
    if (!b->table)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret =
        rhea_storage_read_padded(v->base.storage, b->table, VHDX_M_TABLE_BYTES,
                                 v->metadata_region.offset, err);
    if (!ret)
        ret = b->locator ? backing_edit_locator(b, err)
                         : backing_edit_remove(b, err);
    if (!ret)
        ret = backing_edit_flags(b, err);
    if (!ret)
        ret = vhdx_bat_make_room(v, &b->metadata, &b->bat, &b->edit, err);
    return ret ? ret : vhdx_edit_write(&b->edit, true, err);
}

static int backing_find_end(void *opaque, const struct vhdx_entry *e,
                            struct rhea_error *err)
{
    struct vhdx *v = opaque;
    (void)err;
    if (e->entry & VHDX_BAT_OFFSET)
        v->scan_end = RHEA_MAX(v->scan_end, (e->entry & VHDX_BAT_OFFSET) +
                                                vhdx_entry_length(v, e));
    return 0;
}

/* Cut off what nothing uses behind the last block. Where that cannot be done,
 * it is a leak. */
int vhdx_cut_off(struct vhdx *v, struct rhea_error *err)
{
    vhdx_gaps_forget(v);
    v->scan_end = VHDX_SECTION_END;
    for (size_t i = 0; i < v->n_taken; i++)
        v->scan_end =
            RHEA_MAX(v->scan_end, v->taken[i].offset + v->taken[i].length);
    int ret = vhdx_bat_walk(v, backing_find_end, v, err);
    if (!ret)
        ret = vhdx_log_close(v, err);
    if (!ret && v->scan_end < v->blocks.file_end &&
        rhea_storage_truncate(v->base.storage, v->scan_end, NULL) == 0) {
        v->blocks.file_end = v->scan_end;
        v->blocks.grown = 0;
    }
    return ret;
}

/* --- All of it --- */

static int backing_change(struct backing *b, struct rhea_error *err)
{
    struct vhdx *v = b->v;
    int ret = vhdx_begin(v, false, err);
    if (!ret && !b->locator && vhdx_is_child(v))
        ret = backing_entries(v, backing_complete, false, err);
    if (!ret && !(b->locator && vhdx_is_child(v)))
        ret = backing_entries(v, backing_drop, true, err);
    if (!ret)
        ret = backing_switch(b, err);
    return ret;
}

static int backing_check_parent(const struct vhdx *v,
                                const struct rhea_format *parent,
                                struct rhea_error *err)
{
    const struct vhdx *p = (const struct vhdx *)parent;
    if (!parent)
        return rhea_error_set(err, EINVAL,
                              "the backing file has to be there: its identity "
                              "is recorded in a VHDX image");
    if (parent->ops != &rhea_format_vhdx)
        return rhea_error_set(err, ENOTSUP,
                              "the backing file of a VHDX image is a VHDX "
                              "image, not a %s image",
                              parent->ops->name);
    if (p->metadata.logical_sector != v->metadata.logical_sector)
        return rhea_error_set(err, EINVAL,
                              "the backing file has sectors of %" PRIu32
                              " bytes, the image of %" PRIu32,
                              p->metadata.logical_sector,
                              v->metadata.logical_sector);
    return 0;
}

/* In memory what was changed in the file. NAME is taken. */
static int backing_take(struct backing *b, char *name, struct rhea_error *err)
{
    struct vhdx *v = b->v;
    vhdx_bat_moved(v, &b->bat);
    v->metadata = b->metadata;
    vhdx_locator_finish(&v->locator);
    free(v->parent);
    v->parent = name;
    table_drop(&v->tables);
    return b->locator ? vhdx_locator_parse(&v->locator, b->locator,
                                           b->locator_length, err)
                      : 0;
}

int vhdx_set_backing(struct rhea_format *f, const char *file,
                     const char *format, struct rhea_format *parent,
                     struct rhea_error *err)
{
    (void)format; /* there is only one that can be */
    struct vhdx *v = (struct vhdx *)f;
    struct backing b = {.v = v, .edit = {.v = v}, .bat = v->bat_region};
    file = file && *file ? file : NULL;
    int ret = file ? backing_check_parent(v, parent, err) : 0;
    RHEA_AUTO_FREE char *name = file ? strdup(file) : NULL;
    if (!ret && file && !name)
        ret = rhea_error_set(err, ENOMEM, "out of memory");
    if (!ret && file)
        ret =
            vhdx_locator_build(file, ((struct vhdx *)parent)->header.data_write,
                               &b.locator, &b.locator_length, err);
    if (ret)
        return ret;
    RHEA_LOCKED(&v->blocks.lock);
    b.metadata = v->metadata;
    b.metadata.flags &= ~(uint32_t)VHDX_P_PARENT;
    if (file)
        b.metadata.flags =
            (b.metadata.flags | VHDX_P_PARENT) & ~(uint32_t)VHDX_P_FIXED;
    bool was_child = vhdx_is_child(v);
    ret = blocks_change_begin(&v->blocks, err);
    if (!ret)
        ret = blocks_change_end(&v->blocks, backing_change(&b, err), err);
    if (!ret)
        ret = backing_take(&b, rhea_steal(name), err);
    /* The last bitmap may be last in the file. */
    if (!ret && !file && was_child)
        ret = blocks_change_end(&v->blocks, vhdx_cut_off(v, err), err);
    vhdx_edit_finish(&b.edit);
    free(b.table);
    free(b.locator);
    return ret;
}

int vhdx_make_empty(struct rhea_format *f, struct rhea_error *err)
{
    struct vhdx *v = (struct vhdx *)f;
    RHEA_LOCKED(&v->blocks.lock);
    int ret = blocks_change_begin(&v->blocks, err);
    if (ret)
        return ret;
    ret = vhdx_begin(v, false, err);
    if (!ret)
        ret = backing_entries(v, backing_drop, false, err);
    if (!ret && vhdx_is_child(v))
        ret = backing_entries(v, backing_drop, true, err);
    if (!ret)
        ret = vhdx_cut_off(v, err);
    return blocks_change_end(&v->blocks, ret, err);
}
