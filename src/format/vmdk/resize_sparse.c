/* SPDX-License-Identifier: MIT */
/*
 * The size of a sparse extent.
 *
 * Order of writes when it grows: entries that its last table has behind the old
 * end are dropped; flush; the tables become larger (relayout.c; SESparse:
 * sesparse_grow.c; COWD: a larger directory at the end of the file, flush, the
 * header's first sector); what would show between the old end and the new one
 * is zeroed; flush. All that is behind the end that the header and the
 * descriptor say, which follow then. When it shrinks, they say so already:
 * entries behind the end are dropped; flush; grains fill the places
 * (compact.c).
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/copy.h"
#include "format/vmdk/header.h"
#include "format/vmdk/resize.h"
#include "format/vmdk/sesparse.h"

/* --- Entries behind the end --- */

/* COUNT of them from GRAIN on, which are in one table. */
static int sparse_drop(struct vmdk_extent *x, uint64_t grain, uint64_t count,
                       struct rhea_error *err)
{
    uint64_t table, size = x->h.entry_size;
    int ret = vmdk_map_table(x, grain / x->h.table_entries, &table, err);
    if (ret || !table ||
        vmdk_is_hole(x, table + grain % x->h.table_entries * size,
                     count * size))
        return ret;
    return vmdk_sparse_set(x, grain, count, VMDK_GTE_NONE, 0, err);
}

static int sparse_drop_behind(struct vmdk_extent *x, uint64_t size,
                              struct rhea_error *err)
{
    uint64_t grain = div_up(size, x->h.grain_size);
    uint64_t end = x->h.n_tables * x->h.table_entries;
    int ret = 0;
    while (!ret && grain < end) {
        uint64_t n = x->h.table_entries - grain % x->h.table_entries;
        ret = sparse_drop(x, grain, n, err);
        grain = vmdk_skip_tables(x, (grain + n) * x->h.grain_size) /
                x->h.grain_size;
    }
    return ret ? ret : table_write_back(&x->table, err);
}

/* --- COWD --- */

static int cowd_store(struct vmdk_extent *x, const uint8_t *sector,
                      struct rhea_error *err)
{
    int ret = rhea_storage_flush(x->file, err);
    if (!ret)
        ret = rhea_storage_write(x->file, sector, VMDK_SECTOR, 0, err);
    return ret ? ret : rhea_storage_flush(x->file, err);
}

/* Room for the directory behind all else, with the present one's entries. */
static int cowd_move_directory(struct vmdk_extent *x, uint64_t n,
                               uint64_t *directory, struct rhea_error *err)
{
    struct blocks *b = &x->blocks;
    uint64_t bytes = align_up(n * sizeof(uint32_t), x->h.grain_size);
    int ret = vmdk_sparse_limit(x, b->file_end + bytes, err);
    if (!ret)
        ret = blocks_extend(b, bytes, directory, err);
    if (!ret)
        ret = blocks_grow(b, err);
    x->file_size = RHEA_MAX(x->file_size, b->file_end);
    return ret ? ret
               : copy_range(x->file, x->h.directory, *directory,
                            x->h.n_tables * sizeof(uint32_t), true, err);
}

/* The directory has N entries. Of its last sector, what no table needs yet is
 * no grain's. */
static int cowd_grow_directory(struct vmdk_extent *x, uint64_t n,
                               struct rhea_error *err)
{
    uint8_t p[VMDK_SECTOR];
    uint64_t directory = x->h.directory, old = x->h.n_tables;
    uint64_t end = align_up(directory + old * sizeof(uint32_t), VMDK_SECTOR);
    int ret;
    if (n <= old)
        return 0;
    if (directory + n * sizeof(uint32_t) <= end)
        ret = rhea_storage_zero(x->file, directory + old * sizeof(uint32_t),
                                (n - old) * sizeof(uint32_t), false, err);
    else
        ret = cowd_move_directory(x, n, &directory, err);
    if (!ret)
        ret = rhea_storage_read(x->file, p, sizeof(p), 0, err);
    if (ret)
        return ret;
    store_le32(p + COWD_H_DIRECTORY, (uint32_t)(directory / VMDK_SECTOR));
    store_le32(p + COWD_H_N_TABLES,
               (uint32_t)RHEA_MAX(n, load_le32(p + COWD_H_N_TABLES)));
    x->h.free_sector = x->blocks.file_end / VMDK_SECTOR;
    store_le32(p + COWD_H_FREE_SECTOR, (uint32_t)x->h.free_sector);
    ret = cowd_store(x, p, err);
    x->h.directory = directory;
    x->h.n_tables = n;
    x->h.overhead = vmdk_cowd_overhead(directory, n);
    table_drop(&x->table);
    vmdk_forget_holes(x);
    return ret;
}

/* --- Growing --- */

void vmdk_sparse_put_size(const struct vmdk_extent *x, uint8_t *p,
                          uint64_t size)
{
    if (x->kind == VMDK_COWD) {
        store_le32(p + COWD_H_CAPACITY, (uint32_t)(size / VMDK_SECTOR));
    } else if (x->kind == VMDK_SESPARSE) {
        store_le64(p + SESPARSE_H_CAPACITY, size / VMDK_SECTOR);
        store_le64(p + SESPARSE_H_PARTS + 16 * PART_GRAINS + 8,
                   x->h.parts[PART_GRAINS].size / VMDK_SECTOR);
    } else {
        store_le64(p + HOSTED_H_CAPACITY, size / VMDK_SECTOR);
    }
}

static int grow_check(const struct vmdk_extent *x, uint64_t size,
                      struct rhea_error *err)
{
    uint64_t n = div_up(size, x->h.grain_size * x->h.table_entries);
    if (x->kind == VMDK_COWD &&
        (size / VMDK_SECTOR >= UINT32_MAX || n > UINT32_MAX / sizeof(uint32_t)))
        return rhea_error_set(err, EFBIG,
                              "an extent of type VMFSSPARSE has less than 2 "
                              "TiB");
    return 0;
}

/* With the lock held. */
static int grow_tables(struct vmdk_extent *x, uint64_t size,
                       struct rhea_error *err)
{
    uint64_t n = div_up(size, x->h.grain_size * x->h.table_entries);
    int ret = blocks_change_begin(&x->blocks, err);
    if (!ret)
        ret = blocks_begin(&x->blocks, err);
    if (ret)
        return ret;
    if (x->kind == VMDK_SESPARSE)
        return blocks_change_end(&x->blocks, sesparse_grow(x, size, err), err);
    ret = sparse_drop_behind(x, x->size, err);
    if (!ret && x->kind == VMDK_COWD)
        ret = cowd_grow_directory(x, n, err);
    else if (!ret && n > x->h.n_tables)
        ret = vmdk_relayout(x, size, err);
    return blocks_change_end(&x->blocks, ret, err);
}

int vmdk_sparse_grow(struct vmdk_extent *x, uint64_t size, bool hide_below,
                     struct rhea_error *err)
{
    uint64_t old = x->size;
    int ret = grow_check(x, size, err);
    if (!ret) {
        RHEA_LOCKED(&x->blocks.lock);
        ret = grow_tables(x, size, err);
        if (!ret)
            x->size = x->blocks.size = size;
    }
    if (!ret)
        ret = blocks_hide(&x->blocks, old, size, hide_below, err);
    if (ret)
        x->size = x->blocks.size = old;
    return ret;
}

/* --- Shrinking --- */

int vmdk_sparse_shrink(struct vmdk_extent *x, struct rhea_error *err)
{
    RHEA_LOCKED(&x->blocks.lock);
    x->h.n_tables = div_up(x->size, x->h.grain_size * x->h.table_entries);
    int ret = blocks_change_begin(&x->blocks, err);
    if (!ret)
        ret = blocks_begin(&x->blocks, err);
    if (ret)
        return ret;
    ret = sparse_drop_behind(x, x->size, err);
    if (!ret)
        ret = rhea_storage_flush(x->file, err);
    table_drop(&x->table);
    vmdk_forget_holes(x);
    if (!ret && x->kind == VMDK_HOSTED)
        ret = vmdk_compact(x, err);
    return blocks_change_end(&x->blocks, ret, err);
}
