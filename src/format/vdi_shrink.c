/* SPDX-License-Identifier: MIT */
/*
 * A smaller disk. Order of writes:
 *   1. the header with the new size; flush. From then on nobody looks behind
 *      it, though the table goes on;
 *   2. what the last block has behind the disk's end becomes zeroes, so that it
 *      does not come back when the disk grows again, by whatever program;
 *   3. the entries of the blocks behind it become free; flush;
 *   4. blocks from the end of the file move into those that nobody uses any
 *      more (vdi_repair.c), and the end is cut off, as VirtualBox wants no more
 *      blocks in the file than the table has entries;
 *   5. the header with the new number of entries; flush.
 * A crash in between leaves at worst blocks that nobody uses, and a table that
 * is longer than the disk needs. The file has whole blocks when this begins
 * (blocks_begin), so that none of those that go seems to be cut off meanwhile.
 */
#include "base/bitmap.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/vdi_check.h"

static int shrink_write_head(struct vdi *v, struct rhea_error *err)
{
    int ret = vdi_head_write(&v->head, v->base.storage, err);
    return ret ? ret : rhea_storage_flush(v->base.storage, err);
}

static int shrink_tail(struct vdi *v, uint64_t size, struct rhea_error *err)
{
    uint32_t entry, skip = (uint32_t)(size % v->head.block_size);
    if (!skip)
        return 0;
    int ret =
        vdi_entry_get(v, (uint32_t)(size / v->head.block_size), &entry, err);
    if (ret || !vdi_is_block(entry))
        return ret;
    return rhea_storage_zero(v->base.storage, vdi_host(v, entry) + skip,
                             v->head.block_size - skip, true, err);
}

/* No block lies behind one that nobody uses. */
static int shrink_close_up(struct vdi *v, struct rhea_error *err)
{
    struct vdi_checker c = {.v = v};
    int ret = rhea_storage_size(v->base.storage, &v->file_size, err);
    /* Looks which blocks are used. */
    if (!ret)
        ret = vdi_open_write(v, err);
    if (ret)
        return ret;
    c.used = v->used;
    v->used = (struct bitmap){0};
    ret = vdi_repair_leaks(&c, err);
    bitmap_finish(&c.used);
    return ret;
}

/* With the lock held. */
static int shrink_run(struct vdi *v, uint64_t size, struct rhea_error *err)
{
    uint32_t blocks = (uint32_t)div_up(size, v->head.block_size);
    int ret = blocks_begin(&v->blocks, err);
    if (ret)
        return ret;
    v->head.disk_size = size;
    ret = shrink_write_head(v, err);
    if (!ret)
        ret = shrink_tail(v, size, err);
    v->base.size = v->blocks.size = size;
    if (!ret)
        ret = vdi_free_entries(v, blocks, err);
    if (!ret)
        ret = shrink_close_up(v, err);
    /* In version 0, how long the table is decides where the blocks are. */
    if (v->head.at->data)
        v->head.blocks = blocks;
    if (!ret)
        ret = shrink_write_head(v, err);
    return ret ? ret : vdi_open_write(v, err);
}

int vdi_shrink(struct vdi *v, uint64_t size, struct rhea_error *err)
{
    RHEA_LOCKED(&v->blocks.lock);
    int ret = blocks_change_begin(&v->blocks, err);
    if (ret)
        return ret;
    return blocks_change_end(&v->blocks, shrink_run(v, size, err), err);
}
