/* SPDX-License-Identifier: MIT */
/*
 * Larger tables for a hosted extent, where those of a new extent are: in front
 * of the grains, each directory with its tables behind it. VMware's programs
 * have never been seen to make others.
 *
 * Order of writes:
 *   1. grains that are where tables will be get a place at the end of the file:
 *      copied; flush; their entries; flush;
 *   2. a directory with all tables is written behind all grains; flush; the
 *      header, one sector, leads there, for both copies; flush;
 *   3. both copies are written in front, over the old ones, which nobody needs
 *      any more; flush; the header leads to them; flush;
 *   4. what is behind the grains is cut off.
 * So the header leads to whole tables at any time. After a crash those at the
 * end are as good as others, and what nobody refers to is a leak.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/copy.h"
#include "format/vmdk/header.h"
#include "format/vmdk/resize.h"

/* Of a directory, written at once. */
enum { PIECE_BYTES = 64 << 10, PIECE_ENTRIES = PIECE_BYTES / 4 };

/* Bytes. */
struct relayout {
    struct vmdk_extent *x;
    uint64_t n_tables;
    uint64_t table_bytes, directory_bytes; /* whole sectors */
    uint64_t start, overhead;              /* of the metadata in front */
};

int vmdk_header_load(struct vmdk_extent *x, uint8_t *p, struct rhea_error *err)
{
    return rhea_storage_read(x->file, p, HOSTED_HEADER_BYTES, 0, err);
}

int vmdk_header_store(struct vmdk_extent *x, const uint8_t *p,
                      struct rhea_error *err)
{
    int ret = rhea_storage_flush(x->file, err);
    if (!ret)
        ret = rhea_storage_write(x->file, p, HOSTED_HEADER_BYTES, 0, err);
    return ret ? ret : rhea_storage_flush(x->file, err);
}

/* One directory and its tables. */
static uint64_t relayout_copy_bytes(const struct relayout *r)
{
    return r->directory_bytes + r->n_tables * r->table_bytes;
}

static int relayout_plan(struct relayout *r, uint64_t size,
                         struct rhea_error *err)
{
    const struct vmdk_header *h = &r->x->h;
    uint64_t all, first = RHEA_MIN(h->directory,
                                   h->redundant ? h->redundant : UINT64_MAX);
    r->n_tables = div_up(size, h->grain_size * h->table_entries);
    r->table_bytes =
        align_up((uint64_t)h->table_entries * h->entry_size, VMDK_SECTOR);
    r->start = h->descriptor ? h->descriptor + h->descriptor_size : VMDK_SECTOR;
    r->start = align_up(r->start, VMDK_SECTOR);
    if (h->one_directory)
        return rhea_error_set(err, EIO,
                              "one of the extent's two grain directories is "
                              "lost; 'check -r all' repairs that");
    if (first < r->start)
        return rhea_error_set(err, ENOTSUP,
                              "the extent has its descriptor behind its grain "
                              "directory; convert the image to resize it");
    if (!mul_u64(r->n_tables, h->entry_size, &r->directory_bytes) ||
        r->directory_bytes > INT64_MAX / 4 ||
        !mul_u64(r->n_tables, r->table_bytes, &all) || all > INT64_MAX / 4)
        return vmdk_sparse_limit(r->x, INT64_MAX, err);
    r->directory_bytes = align_up(r->directory_bytes, VMDK_SECTOR);
    r->overhead = r->start + relayout_copy_bytes(r) * (h->redundant ? 2 : 1);
    r->overhead =
        align_up(r->overhead, RHEA_MAX(h->grain_size, (uint64_t)VMDK_SECTOR));
    r->overhead = RHEA_MAX(r->overhead, h->overhead);
    return vmdk_sparse_limit(
        r->x, r->x->blocks.file_end + r->overhead + relayout_copy_bytes(r),
        err);
}

/* --- 1. Grains --- */

/* GRAIN, at HOST, is in the way. */
static int relayout_move(struct relayout *r, uint64_t grain, uint64_t host,
                         struct rhea_error *err)
{
    struct vmdk_extent *x = r->x;
    uint64_t to = 0;
    int ret = vmdk_sparse_limit(x, x->blocks.file_end + x->h.grain_size, err);
    if (!ret)
        ret = blocks_extend(&x->blocks, x->h.grain_size, &to, err);
    if (!ret)
        ret = copy_range(x->file, host, to, x->h.grain_size, true, err);
    if (!ret)
        ret = blocks_grow(&x->blocks, err);
    x->file_size = RHEA_MAX(x->file_size, x->blocks.file_end);
    return ret ? ret
               : vmdk_sparse_set(x, grain, 1, (uint32_t)(to / VMDK_SECTOR), 0,
                                 err);
}

/* Those of a run of COUNT grains from HOST on. *LEFT: as many have room where
 * tables will be, unless some share theirs. */
static int relayout_move_run(struct relayout *r, uint64_t grain, uint64_t count,
                             uint64_t host, uint64_t *left,
                             struct rhea_error *err)
{
    int ret = 0;
    for (; !ret && count-- && host < r->overhead; grain++) {
        if (!*left)
            return rhea_error_set(err, EIO,
                                  "grains of the extent share their place; "
                                  "'check -r all' repairs that");
        --*left;
        ret = relayout_move(r, grain, host, err);
        host += r->x->h.grain_size;
    }
    return ret;
}

static int relayout_move_grains(struct relayout *r, struct rhea_error *err)
{
    struct vmdk_extent *x = r->x;
    uint64_t size = x->h.grain_size;
    uint64_t left = (r->overhead - x->h.overhead) / size + 1;
    int ret = 0;
    if (r->overhead == x->h.overhead)
        return 0;
    for (uint64_t at = 0; !ret && at < x->size;) {
        struct rhea_extent e = {0};
        ret = x->blocks.ops->map(&x->blocks, at, x->size - at, &e, err);
        if (!ret && e.kind == RHEA_EXTENT_DATA)
            ret = relayout_move_run(r, at / size, div_up(e.length, size),
                                    e.host, &left, err);
        at = vmdk_skip_tables(x, at + e.length);
    }
    return ret ? ret : table_write_back(&x->table, err);
}

/* --- 2, 3. Tables --- */

static int relayout_directory(const struct relayout *r, uint64_t at,
                              struct rhea_error *err)
{
    uint64_t table = at + r->directory_bytes;
    RHEA_AUTO_FREE uint8_t *piece = malloc(PIECE_BYTES);
    if (!piece)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (uint64_t done = 0, n; done < r->n_tables; done += n) {
        n = RHEA_MIN(r->n_tables - done, (uint64_t)PIECE_ENTRIES);
        for (uint64_t i = 0; i < n; i++)
            store_le32(piece + i * sizeof(uint32_t),
                       (uint32_t)((table + (done + i) * r->table_bytes) /
                                  VMDK_SECTOR));
        int ret =
            rhea_storage_write(r->x->file, piece, (size_t)n * sizeof(uint32_t),
                               at + done * sizeof(uint32_t), err);
        if (ret)
            return ret;
    }
    return 0;
}

/* A directory at AT, where zeroes are, with the tables that are used now. */
static int relayout_copy(const struct relayout *r, uint64_t at,
                         struct rhea_error *err)
{
    struct vmdk_extent *x = r->x;
    uint64_t bytes = (uint64_t)x->h.table_entries * x->h.entry_size;
    int ret = relayout_directory(r, at, err);
    at += r->directory_bytes;
    uint64_t n = RHEA_MIN(x->h.n_tables, r->n_tables);
    for (uint64_t i = 0; !ret && i < n; i++) {
        uint64_t table, none = vmdk_no_tables(x, i);
        if (none) {
            i += none - 1;
            continue;
        }
        ret = vmdk_map_table(x, i, &table, err);
        if (!ret && table)
            ret = copy_range(x->file, table, at + i * r->table_bytes, bytes,
                             true, err);
    }
    return ret;
}

/* The header leads to directories there. */
static int relayout_lead_to(struct relayout *r, uint64_t redundant,
                            uint64_t directory, struct rhea_error *err)
{
    struct vmdk_header *h = &r->x->h;
    uint8_t p[HOSTED_HEADER_BYTES];
    int ret = vmdk_header_load(r->x, p, err);
    if (ret)
        return ret;
    if (h->redundant)
        store_le64(p + HOSTED_H_REDUNDANT, redundant / VMDK_SECTOR);
    store_le64(p + HOSTED_H_DIRECTORY, directory / VMDK_SECTOR);
    store_le64(p + HOSTED_H_OVERHEAD, r->overhead / VMDK_SECTOR);
    ret = vmdk_header_store(r->x, p, err);
    if (ret)
        return ret;
    h->redundant = h->redundant ? redundant : 0;
    h->directory = directory;
    h->overhead = r->overhead;
    table_drop(&r->x->table);
    vmdk_forget_holes(r->x);
    return 0;
}

static int relayout_front(struct relayout *r, struct rhea_error *err)
{
    struct rhea_storage *file = r->x->file;
    uint64_t directory = r->start;
    int ret =
        rhea_storage_zero(file, r->start, r->overhead - r->start, false, err);
    if (r->x->h.redundant)
        directory += relayout_copy_bytes(r);
    if (!ret)
        ret = relayout_copy(r, r->start, err);
    if (!ret && directory != r->start)
        ret = relayout_copy(r, directory, err);
    return ret ? ret : relayout_lead_to(r, r->start, directory, err);
}

int vmdk_relayout(struct vmdk_extent *x, uint64_t size, struct rhea_error *err)
{
    struct relayout r = {.x = x};
    struct blocks *b = &x->blocks;
    uint64_t beside;
    int ret = relayout_plan(&r, size, err);
    if (ret)
        return ret;
    /* A file that is shorter than its tables will be. */
    b->file_end = RHEA_MAX(b->file_end, r.overhead);
    ret = relayout_move_grains(&r, err);
    if (!ret)
        ret = blocks_extend(b, relayout_copy_bytes(&r), &beside, err);
    if (!ret)
        ret = blocks_grow(b, err);
    if (ret)
        return ret;
    x->file_size = RHEA_MAX(x->file_size, b->file_end);
    ret = relayout_copy(&r, beside, err);
    if (!ret)
        ret = relayout_lead_to(&r, beside, beside, err);
    if (!ret)
        ret = relayout_front(&r, err);
    if (!ret)
        ret = rhea_storage_truncate(x->file, beside, err);
    if (ret)
        return ret;
    b->file_end = b->grown = x->file_size = beside;
    x->h.n_tables = RHEA_MAX(r.n_tables, x->h.n_tables);
    return 0;
}
