/* SPDX-License-Identifier: MIT */
/*
 * New, empty extents.
 *
 * Order of writes: the file grows and gets its tables, and the descriptor where
 * it is inside; flush; the header; flush. Before the header the file is no
 * extent.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/prealloc.h"
#include "format/vmdk/create.h"
#include "format/vmdk/header.h"
#include "format/vmdk/sesparse.h"
#include "format/vmdk/stream.h"

enum { NEW_PIECE = 64 << 10 }; /* of a grain directory, written at once */

/* Where the parts of a hosted extent are, in sectors. */
struct new_layout {
    uint64_t n_tables, directory_sectors, table_sectors;
    uint64_t descriptor, redundant, directory, overhead;
};

static struct new_layout new_layout(uint64_t size, bool inside)
{
    struct new_layout l = {
        .n_tables = div_up(size, (uint64_t)NEW_GRAIN_SECTORS * VMDK_SECTOR *
                                     NEW_TABLE_ENTRIES),
        .table_sectors = NEW_TABLE_ENTRIES * sizeof(uint32_t) / VMDK_SECTOR,
        .descriptor = inside ? NEW_DESCRIPTOR_SECTOR : 0,
    };
    uint64_t at = NEW_DESCRIPTOR_SECTOR + (inside ? DESCRIPTOR_SECTORS : 0);
    l.directory_sectors = div_up(l.n_tables * sizeof(uint32_t), VMDK_SECTOR);
    uint64_t copy = l.directory_sectors + l.n_tables * l.table_sectors;
    l.redundant = at;
    l.directory = at + copy;
    l.overhead = align_up(at + 2 * copy, NEW_GRAIN_SECTORS);
    return l;
}

/* A directory whose tables follow it. */
static int new_directory(struct rhea_storage *storage,
                         const struct new_layout *l, uint64_t at,
                         struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *piece = malloc(NEW_PIECE);
    if (!piece)
        return rhea_error_set(err, ENOMEM, "out of memory");
    uint64_t table = at + l->directory_sectors, done = 0;
    while (done < l->n_tables) {
        size_t n =
            (size_t)RHEA_MIN(l->n_tables - done, NEW_PIECE / sizeof(uint32_t));
        for (size_t i = 0; i < n; i++)
            store_le32(piece + i * sizeof(uint32_t),
                       (uint32_t)(table + (done + i) * l->table_sectors));
        int ret =
            rhea_storage_write(storage, piece, n * sizeof(uint32_t),
                               at * VMDK_SECTOR + done * sizeof(uint32_t), err);
        if (ret)
            return ret;
        done += n;
    }
    return 0;
}

/* All of a hosted header but the places of tables. */
static void vmdk_hosted_header(uint8_t *p, const struct new_image *n,
                               uint64_t size)
{
    memset(p, 0, HOSTED_HEADER_BYTES);
    uint32_t flags = HOSTED_F_NEWLINES;
    if (n->zero_grains)
        flags |= HOSTED_F_ZERO_GRAINS;
    if (n->type->compressed)
        flags |= HOSTED_F_COMPRESSED | HOSTED_F_MARKERS;
    else
        flags |= HOSTED_F_REDUNDANT;
    store_le32(p + HOSTED_H_MAGIC, HOSTED_MAGIC);
    /* ESXi refuses streams of less than version 3; zeroed grains came with
     * version 2. */
    store_le32(p + HOSTED_H_VERSION, n->type->compressed ? 3
                                     : n->zero_grains    ? 2
                                                         : 1);
    store_le32(p + HOSTED_H_FLAGS, flags);
    store_le64(p + HOSTED_H_CAPACITY, size / VMDK_SECTOR);
    store_le64(p + HOSTED_H_GRAIN_SIZE, NEW_GRAIN_SECTORS);
    store_le32(p + HOSTED_H_TABLE_ENTRIES, NEW_TABLE_ENTRIES);
    memcpy(p + HOSTED_H_NEWLINES, HOSTED_NEWLINES, sizeof(HOSTED_NEWLINES) - 1);
    store_le16(p + HOSTED_H_COMPRESSION,
               n->type->compressed ? HOSTED_DEFLATE : 0);
}

/* The header, once all else is durable. */
static int new_finish(struct rhea_storage *storage, const uint8_t *p,
                      size_t len, struct rhea_error *err)
{
    int ret = rhea_storage_flush(storage, err);
    if (!ret)
        ret = rhea_storage_write(storage, p, len, 0, err);
    if (!ret)
        ret = rhea_storage_flush(storage, err);
    return ret;
}

static int new_text(struct rhea_storage *storage, const char *text,
                    struct rhea_error *err)
{
    return text ? rhea_storage_write(storage, text, strlen(text),
                                     NEW_DESCRIPTOR_SECTOR * VMDK_SECTOR, err)
                : 0;
}

static int new_hosted(struct rhea_storage *storage, const struct new_image *n,
                      uint64_t size, const char *text, struct rhea_error *err)
{
    uint8_t p[HOSTED_HEADER_BYTES];
    struct new_layout l = new_layout(size, text);
    vmdk_hosted_header(p, n, size);
    store_le64(p + HOSTED_H_DESCRIPTOR, l.descriptor);
    store_le64(p + HOSTED_H_DESCRIPTOR_SIZE, text ? DESCRIPTOR_SECTORS : 0);
    store_le64(p + HOSTED_H_REDUNDANT, l.redundant);
    store_le64(p + HOSTED_H_DIRECTORY, l.directory);
    store_le64(p + HOSTED_H_OVERHEAD, l.overhead);
    int ret = rhea_storage_truncate(storage, l.overhead * VMDK_SECTOR, err);
    if (!ret)
        ret = new_directory(storage, &l, l.redundant, err);
    if (!ret)
        ret = new_directory(storage, &l, l.directory, err);
    if (!ret)
        ret = new_text(storage, text, err);
    return ret ? ret : new_finish(storage, p, sizeof(p), err);
}

/* The directory, empty, and what follows it are where the first grain will
 * be. */
static int new_stream(struct rhea_storage *storage, const struct new_image *n,
                      uint64_t size, const char *text, struct rhea_error *err)
{
    uint8_t p[HOSTED_HEADER_BYTES];
    uint64_t at, end;
    struct new_layout l = new_layout(size, true);
    vmdk_hosted_header(p, n, size);
    store_le64(p + HOSTED_H_DESCRIPTOR, NEW_DESCRIPTOR_SECTOR);
    store_le64(p + HOSTED_H_DESCRIPTOR_SIZE, DESCRIPTOR_SECTORS);
    store_le64(p + HOSTED_H_DIRECTORY, HOSTED_AT_END);
    store_le64(p + HOSTED_H_OVERHEAD, NEW_STREAM_OVERHEAD);
    RHEA_AUTO_FREE uint8_t *directory =
        calloc(l.directory_sectors, VMDK_SECTOR);
    if (!directory)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret =
        rhea_storage_truncate(storage, NEW_STREAM_OVERHEAD * VMDK_SECTOR, err);
    if (!ret)
        ret = stream_write_tail(storage, p, directory, l.directory_sectors,
                                NEW_STREAM_OVERHEAD * VMDK_SECTOR, &at, &end,
                                err);
    if (!ret)
        ret = new_text(storage, text, err);
    return ret ? ret : new_finish(storage, p, sizeof(p), err);
}

/* Grains of a sector, as ESX makes them; tables come with the first of them. */
static int new_cowd(struct rhea_storage *storage, uint64_t size,
                    struct rhea_error *err)
{
    uint8_t p[COWD_HEADER_BYTES] = {0};
    uint64_t n_tables =
        div_up(size, (uint64_t)VMDK_SECTOR * VMDK_COWD_TABLE_ENTRIES);
    uint64_t end = COWD_HEADER_BYTES / VMDK_SECTOR +
                   div_up(n_tables * sizeof(uint32_t), VMDK_SECTOR);
    store_le32(p + COWD_H_MAGIC, COWD_MAGIC);
    store_le32(p + COWD_H_VERSION, 1);
    store_le32(p + COWD_H_FLAGS, COWD_FLAGS);
    store_le32(p + COWD_H_CAPACITY, (uint32_t)(size / VMDK_SECTOR));
    store_le32(p + COWD_H_GRAIN_SIZE, 1);
    store_le32(p + COWD_H_DIRECTORY, COWD_HEADER_BYTES / VMDK_SECTOR);
    store_le32(p + COWD_H_N_TABLES, (uint32_t)n_tables);
    store_le32(p + COWD_H_FREE_SECTOR, (uint32_t)end);
    int ret = rhea_storage_truncate(storage, end * VMDK_SECTOR, err);
    return ret ? ret : new_finish(storage, p, sizeof(p), err);
}

int new_extent(struct rhea_storage *storage, const struct new_image *n,
               uint64_t size, const char *text, struct rhea_error *err)
{
    if (n->type->kind == VMDK_COWD)
        return new_cowd(storage, size, err);
    if (n->type->kind == VMDK_SESPARSE)
        return sesparse_new(storage, size, err);
    if (n->type->kind == VMDK_HOSTED)
        return n->type->compressed ? new_stream(storage, n, size, text, err)
                                   : new_hosted(storage, n, size, text, err);
    int ret = rhea_storage_truncate(storage, 0, err);
    if (!ret && strcmp(n->preallocation, "full") == 0)
        ret = prealloc_fill(storage, 0, size, err);
    else if (!ret)
        ret = prealloc_space(storage, n->preallocation, 0, size, err);
    return ret ? ret : rhea_storage_flush(storage, err);
}

uint64_t new_extent_overhead(const struct new_image *n, uint64_t size,
                             bool inside)
{
    struct new_layout l = new_layout(size, inside);
    switch (n->type->kind) {
    case VMDK_HOSTED:
        return n->type->compressed ? NEW_STREAM_OVERHEAD * VMDK_SECTOR
                                   : l.overhead * VMDK_SECTOR;
    case VMDK_SESPARSE:
        return sesparse_new_overhead(size);
    case VMDK_COWD:
        return COWD_HEADER_BYTES +
               align_up(div_up(size, (uint64_t)VMDK_SECTOR *
                                         VMDK_COWD_TABLE_ENTRIES) *
                            sizeof(uint32_t),
                        VMDK_SECTOR);
    default:
        return 0;
    }
}

/* Sectors of a sparse extent's file are numbered by 32 bits, but for those of
 * SESparse. */
static bool new_extent_fits(enum vmdk_kind kind, uint64_t size)
{
    if (kind == VMDK_SESPARSE)
        return size <= SESPARSE_SIZE_MAX;
    return (kind == VMDK_COWD ? size / VMDK_SECTOR
                              : new_layout(size, true).overhead) < UINT32_MAX;
}

int new_extent_check(const struct new_image *n, uint64_t size,
                     struct rhea_error *err)
{
    if (!vmdk_is_sparse(n->type->kind) || new_extent_fits(n->type->kind, size))
        return 0;
    return rhea_error_set(err, EFBIG,
                          "%" PRIu64 " bytes are more than an image of type %s "
                          "can have",
                          n->size, n->type->name);
}
