/* SPDX-License-Identifier: MIT */
/*
 * Errors: an entry that leads to nothing becomes free, and its data is lost
 * already. Where two entries share a block, or one has too high a number, it is
 * copied to a block that nobody uses: the guest sees the same. Where copies
 * would be out of proportion (copy.h), as only in a file made for it, blocks
 * stay shared.
 *
 * Leaks: blocks from the end of the file move into those that nobody uses, and
 * the end is cut off. Then there are as many blocks as the header counts, as in
 * all files that VirtualBox and QEMU write.
 *
 * Order of writes: the header, with a count past all blocks, also those to come
 * (table_write in vdi_table.c), and the copies; flush; the entries; flush; the
 * header with a lower count; flush; the file's end. So each entry leads to a
 * whole block at any time, and no count is ever too low.
 */
#include <errno.h>

#include "base/checked.h"
#include "format/copy.h"
#include "format/vdi_check.h"

/* A block that nobody uses; it counts as used from now on. */
static int repair_take(struct vdi_checker *c, uint32_t *number,
                       struct rhea_error *err)
{
    struct vdi *v = c->v;
    uint64_t found = bitmap_find(&c->used, c->next_free, false);
    if (found >= v->head.blocks)
        return rhea_error_set(err, ENOSPC,
                              "no block is free to copy another one to");
    bitmap_set(&c->used, found, 1);
    c->next_free = found + 1;
    *number = (uint32_t)found;
    v->count = RHEA_MAX(v->count, *number + 1);
    return 0;
}

/* Lead INDEX, which now leads to block FROM, to a copy of it. */
static int repair_move(struct vdi_checker *c, uint32_t index, uint32_t from,
                       struct rhea_error *err)
{
    uint32_t to = 0;
    int ret = repair_take(c, &to, err);
    if (!ret)
        ret = vdi_copy_block(c->v, from, to, err);
    return ret ? ret : vdi_entry_set(c->v, index, to, err);
}

typedef int repair_fn(struct vdi_checker *c, void *opaque, uint32_t index,
                      uint32_t number, struct rhea_error *err);

/* FN for each entry that leads to a block; then all of it is durable. What lies
 * outside of the file does so until then, however it grows. */
static int repair_table(struct vdi_checker *c, repair_fn *fn, void *opaque,
                        struct rhea_error *err)
{
    struct vdi *v = c->v;
    c->next_free = 0;
    for (uint32_t i = 0; i < v->head.blocks; i++) {
        uint32_t number;
        int ret = vdi_entry_get(v, i, &number, err);
        if (!ret && vdi_is_block(number))
            ret = fn(c, opaque, i, number, err);
        if (ret)
            return ret;
    }
    int ret = table_write_back(&v->table, err);
    if (!ret)
        ret = rhea_storage_flush(v->base.storage, err);
    return ret ? ret : rhea_storage_size(v->base.storage, &v->file_size, err);
}

/* OPAQUE: the blocks that an entry before led to. */
static int repair_error(struct vdi_checker *c, void *opaque, uint32_t index,
                        uint32_t number, struct rhea_error *err)
{
    struct bitmap *seen = opaque;
    struct vdi *v = c->v;
    if (!vdi_is_inside(v, index, number))
        return vdi_entry_set(v, index, VDI_FREE, err);
    bool again = bitmap_get(seen, number);
    bitmap_set(seen, number, 1);
    if (again && c->n_shared_left)
        return 0;
    if (!again && number < v->head.blocks)
        return 0;
    if (!again)
        bitmap_clear(&c->used, number, 1);
    return repair_move(c, index, number, err);
}

static int repair_write_head(struct vdi *v, uint32_t count,
                             struct rhea_error *err)
{
    v->count = v->head.count = count;
    int ret = vdi_head_write(&v->head, v->base.storage, err);
    return ret ? ret : rhea_storage_flush(v->base.storage, err);
}

int vdi_repair_errors(struct vdi_checker *c, struct rhea_error *err)
{
    struct vdi *v = c->v;
    struct bitmap seen = {0};
    struct copy_budget budget;
    int ret = copy_budget_init(&budget, v->base.storage, err);
    if (ret)
        return ret;
    if (c->n_shared > RHEA_MIN(budget.length, budget.data) / v->stride)
        c->n_shared_left = c->n_shared;
    ret = bitmap_init(&seen, c->used.n_bits, err);
    uint64_t count = RHEA_MAX(v->head.count, bitmap_end(&c->used));
    if (!ret)
        ret = repair_write_head(v, (uint32_t)count, err);
    if (!ret)
        ret = repair_table(c, repair_error, &seen, err);
    bitmap_finish(&seen);
    /* What it counted too much. */
    count = RHEA_MAX(RHEA_MIN(v->count, v->head.blocks), bitmap_end(&c->used));
    return ret ? ret : repair_write_head(v, (uint32_t)count, err);
}

/* OPAQUE: how many blocks are used. */
static int repair_gap(struct vdi_checker *c, void *opaque, uint32_t index,
                      uint32_t number, struct rhea_error *err)
{
    const uint64_t *n_used = opaque;
    if (number < *n_used)
        return 0;
    bitmap_clear(&c->used, number, 1);
    return repair_move(c, index, number, err);
}

int vdi_repair_leaks(struct vdi_checker *c, struct rhea_error *err)
{
    struct vdi *v = c->v;
    uint64_t n_used = bitmap_count(&c->used, 0, c->used.n_bits);
    int ret = 0;
    v->count = v->head.count;
    if (bitmap_end(&c->used) > n_used)
        ret = repair_table(c, repair_gap, &n_used, err);
    if (!ret)
        ret = repair_write_head(v, (uint32_t)n_used, err);
    /* The last block may be there in part. */
    uint64_t end = vdi_end(v, n_used);
    if (!ret && v->file_size > end)
        ret = rhea_storage_truncate(v->base.storage, end, err);
    if (!ret)
        ret = rhea_storage_flush(v->base.storage, err);
    if (!ret)
        v->file_size = RHEA_MIN(v->file_size, end);
    return ret;
}
