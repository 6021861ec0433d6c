/* SPDX-License-Identifier: MIT */
/*
 * Writing sparse extents whose grains are as they are: the hosted ones and
 * ESX's. New grains go to the end of the file.
 *
 * Order of writes, which adds to that of blocks.h:
 *   1. before the first change, the image gets a new content id; flush; the
 *      extent's header says that it was not closed; flush;
 *   2. new grains, and new grain tables as zeroes, at the end of the file;
 *   3. COWD: the header says where the next grain goes, for who writes there
 *      must not write over what an entry leads to;
 *   4. flush; the entries of the grain tables, in both copies, and those of
 *      grain directories for new tables. Any of them may be in the file without
 *      the others: a table that nothing leads to is not missed, and one that
 *      has no entries yet is all zeroes;
 *   5. on closing, after a flush, the header says that the extent was closed.
 * After a crash both copies may differ, in what had not been flushed. Readers
 * go by the first one.
 */
#include "format/vmdk/sparse.h"

#include <errno.h>
#include <inttypes.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format/vmdk/header.h"
#include "format/vmdk/stream.h"

int vmdk_sparse_mark(struct vmdk_extent *x, bool unclean,
                     struct rhea_error *err)
{
    uint8_t mark[sizeof(uint32_t)];
    store_le32(mark, unclean);
    bool cowd = x->kind == VMDK_COWD;
    int ret = rhea_storage_write(x->file, mark, cowd ? sizeof(mark) : 1,
                                 cowd ? COWD_H_UNCLEAN : HOSTED_H_UNCLEAN, err);
    if (!ret)
        ret = rhea_storage_flush(x->file, err);
    x->h.unclean = ret || unclean;
    return ret;
}

static int sparse_begin(struct blocks *b, struct rhea_error *err)
{
    struct vmdk_extent *x = vmdk_extent_of(b);
    int ret = vmdk_renew_identity(&x->image->base, err);
    if (ret || x->h.unclean)
        return ret;
    ret = vmdk_sparse_mark(x, true, err);
    x->marked = !ret;
    return ret;
}

/* Whatever was flushed is there. Marks that others left stay. */
int vmdk_sparse_close(struct vmdk_extent *x, struct rhea_error *err)
{
    struct blocks *b = &x->blocks;
    if (!b->writable || !b->grown)
        return 0;
    int ret = blocks_flush(b, err);
    return ret || !x->marked ? ret : vmdk_sparse_mark(x, false, err);
}

/* --- Room --- */

/* The grain tables INDEX, both copies; 0: there is none that can be used. */
static int sparse_tables(struct vmdk_extent *x, uint64_t index,
                         uint64_t tables[2], struct rhea_error *err)
{
    tables[1] = 0;
    int ret = vmdk_table_find(x, index, false, &tables[0], err);
    if (!ret && x->h.redundant)
        ret = vmdk_table_find(x, index, true, &tables[1], err);
    return ret;
}

int vmdk_sparse_set_directory(struct vmdk_extent *x, bool redundant,
                              uint64_t index, uint64_t table,
                              struct rhea_error *err)
{
    uint64_t directory = redundant ? x->h.redundant : x->h.directory;
    uint8_t *p;
    int ret = table_change(&x->table, directory + index * sizeof(uint32_t),
                           sizeof(uint32_t), &p, err);
    if (!ret)
        store_le32(p, (uint32_t)(table / VMDK_SECTOR));
    return ret;
}

int vmdk_sparse_limit(const struct vmdk_extent *x, uint64_t end,
                      struct rhea_error *err)
{
    if (end / VMDK_SECTOR <= UINT32_MAX)
        return 0;
    return rhea_error_set(err, EFBIG,
                          "the extent '%.300s' would have more than 2 TiB, "
                          "which its tables cannot tell of",
                          x->file->path ? x->file->path : "");
}

/* Grains stay where multiples of their size are. */
static int sparse_extend(struct vmdk_extent *x, uint64_t bytes, uint64_t *host,
                         struct rhea_error *err)
{
    uint64_t size = x->h.grain_size;
    bytes = div_up(bytes, size) * size;
    int ret = vmdk_sparse_limit(x, x->blocks.file_end + bytes, err);
    if (!ret)
        ret = blocks_extend(&x->blocks, bytes, host, err);
    x->file_size = RHEA_MAX(x->file_size, x->blocks.file_end);
    return ret;
}

/* A table, and its copy where there is one, at the end of the file. */
static int sparse_add_table(struct vmdk_extent *x, uint64_t index,
                            struct rhea_error *err)
{
    uint64_t bytes = (uint64_t)x->h.table_entries * sizeof(uint32_t), host;
    bytes = align_up(bytes, VMDK_SECTOR);
    int ret = sparse_extend(x, x->h.redundant ? 2 * bytes : bytes, &host, err);
    if (!ret)
        ret = blocks_grow(&x->blocks, err);
    if (!ret)
        ret = vmdk_sparse_set_directory(x, false, index, host, err);
    if (!ret && x->h.redundant)
        ret = vmdk_sparse_set_directory(x, true, index, host + bytes, err);
    return ret;
}

static int sparse_need_table(struct vmdk_extent *x, uint64_t index,
                             struct rhea_error *err)
{
    uint64_t tables[2];
    int ret = sparse_tables(x, index, tables, err);
    return ret || tables[0] || tables[1] ? ret
                                         : sparse_add_table(x, index, err);
}

/* How many of COUNT blocks from BLOCK on are in one table. */
static uint64_t sparse_in_table(const struct vmdk_extent *x, uint64_t block,
                                uint64_t count)
{
    return RHEA_MIN(count, x->h.table_entries - block % x->h.table_entries);
}

static int sparse_place(struct blocks *b, uint64_t block, uint64_t *count,
                        uint64_t *host, struct rhea_error *err)
{
    struct vmdk_extent *x = vmdk_extent_of(b);
    *count = sparse_in_table(x, block, *count);
    int ret = sparse_need_table(x, block / x->h.table_entries, err);
    return ret ? ret : sparse_extend(x, *count * x->h.grain_size, host, err);
}

/* --- Entries --- */

/* COUNT entries from AT of the file on become ENTRY, and from there on by STEP
 * more. */
static int sparse_set_entries(struct vmdk_extent *x, uint64_t at,
                              uint64_t count, uint32_t entry, uint32_t step,
                              struct rhea_error *err)
{
    while (count) {
        uint64_t page_left = x->table.page_bytes - at % x->table.page_bytes;
        uint64_t n = RHEA_MIN(count, page_left / sizeof(uint32_t));
        uint8_t *p;
        int ret = table_change(&x->table, at, (uint32_t)(n * sizeof(uint32_t)),
                               &p, err);
        if (ret)
            return ret;
        for (uint64_t i = 0; i < n; i++, entry += step)
            store_le32(p + i * sizeof(uint32_t), entry);
        at += n * sizeof(uint32_t);
        count -= n;
    }
    return 0;
}

/* The same of grains from BLOCK on, which are in one table, in both copies. */
int vmdk_sparse_set(struct vmdk_extent *x, uint64_t block, uint64_t count,
                    uint32_t entry, uint32_t step, struct rhea_error *err)
{
    uint64_t tables[2];
    uint64_t at = block % x->h.table_entries * sizeof(uint32_t);
    int ret = sparse_tables(x, block / x->h.table_entries, tables, err);
    vmdk_forget_holes(x);
    for (unsigned i = 0; !ret && i < 2; i++)
        if (tables[i])
            ret =
                sparse_set_entries(x, tables[i] + at, count, entry, step, err);
    return ret;
}

static int sparse_link(struct blocks *b, const struct blocks_piece *piece,
                       struct rhea_error *err)
{
    struct vmdk_extent *x = vmdk_extent_of(b);
    uint32_t step = (uint32_t)(x->h.grain_size / VMDK_SECTOR);
    return vmdk_sparse_set(x, piece->block, piece->count,
                           (uint32_t)(piece->host / VMDK_SECTOR), step, err);
}

static int sparse_zero(struct blocks *b, uint64_t block, uint64_t *count,
                       struct rhea_error *err)
{
    struct vmdk_extent *x = vmdk_extent_of(b);
    *count = sparse_in_table(x, block, *count);
    int ret = sparse_need_table(x, block / x->h.table_entries, err);
    return ret ? ret : vmdk_sparse_set(x, block, *count, VMDK_GTE_ZERO, 0, err);
}

static int sparse_write_back(struct blocks *b, struct rhea_error *err)
{
    struct vmdk_extent *x = vmdk_extent_of(b);
    uint64_t next = b->file_end / VMDK_SECTOR;
    if (x->h.compressed)
        return vmdk_stream_finish(x, err);
    if (x->kind == VMDK_COWD && x->table.n_dirty && next != x->h.free_sector) {
        uint8_t p[sizeof(uint32_t)];
        store_le32(p, (uint32_t)next);
        int ret =
            rhea_storage_write(x->file, p, sizeof(p), COWD_H_FREE_SECTOR, err);
        if (ret)
            return ret;
        x->h.free_sector = next;
    }
    return table_write_back(&x->table, err);
}

const struct blocks_ops vmdk_sparse_ops = {
    .map = vmdk_sparse_map,
    .begin = sparse_begin,
    .place = sparse_place,
    .link = sparse_link,
    .write_back = sparse_write_back,
};

const struct blocks_ops vmdk_zeroed_ops = {
    .map = vmdk_sparse_map,
    .begin = sparse_begin,
    .place = sparse_place,
    .link = sparse_link,
    .zero = sparse_zero,
    .write_back = sparse_write_back,
};
