/* SPDX-License-Identifier: MIT */
/*
 * New SESparse extents, as ESXi lays them out: each area begins at a multiple
 * of 1 MiB, and has room for a disk that is full.
 *
 * Order of writes: the file grows; the header that changes, and the journal's;
 * flush; the first header; flush. Before that the file is no extent.
 */
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format/vmdk/create.h"
#include "format/vmdk/header.h"
#include "format/vmdk/sesparse.h"

enum {
    AREA_SECTORS = SESPARSE_AREA_BYTES / VMDK_SECTOR,
    JOURNAL_HEADER_SECTORS = 2,
};

void sesparse_needs(uint64_t size, uint64_t bytes[SESPARSE_PARTS])
{
    uint64_t grains = div_up(size, SESPARSE_GRAIN_BYTES);
    uint64_t tables = div_up(grains, SESPARSE_TABLE_ENTRIES);
    memset(bytes, 0, SESPARSE_PARTS * sizeof(*bytes));
    bytes[PART_DIRECTORY] = tables * sizeof(uint64_t);
    bytes[PART_TABLES] = tables * SESPARSE_TABLE_BYTES;
    bytes[PART_BITMAP] = div_up(grains, 8);
    bytes[PART_BACK_MAP] = grains * sizeof(uint64_t);
    bytes[PART_GRAINS] = grains * SESPARSE_GRAIN_BYTES;
}

static void new_parts(uint64_t size, struct vmdk_area parts[SESPARSE_PARTS])
{
    uint64_t bytes[SESPARSE_PARTS], at = AREA_SECTORS;
    sesparse_needs(size, bytes);
    bytes[PART_JOURNAL] = 1;
    parts[PART_VOLATILE] = (struct vmdk_area){1, 1};
    parts[PART_JOURNAL_HEADER] = (struct vmdk_area){2, JOURNAL_HEADER_SECTORS};
    for (unsigned i = PART_JOURNAL; i < PART_GRAINS; i++) {
        parts[i].at = at;
        parts[i].size = align_up(div_up(bytes[i], VMDK_SECTOR), AREA_SECTORS);
        at += parts[i].size;
    }
    parts[PART_GRAINS] =
        (struct vmdk_area){at, bytes[PART_GRAINS] / VMDK_SECTOR};
}

uint64_t sesparse_new_overhead(uint64_t size)
{
    struct vmdk_area parts[SESPARSE_PARTS];
    new_parts(size, parts);
    return parts[PART_GRAINS].at * VMDK_SECTOR;
}

static void new_header(uint8_t *p, uint64_t size,
                       const struct vmdk_area parts[SESPARSE_PARTS])
{
    store_le64(p + SESPARSE_H_MAGIC, SESPARSE_MAGIC);
    store_le64(p + SESPARSE_H_VERSION,
               (uint64_t)SESPARSE_VERSION_MAJOR << 32 | SESPARSE_VERSION_MINOR);
    store_le64(p + SESPARSE_H_CAPACITY, size / VMDK_SECTOR);
    store_le64(p + SESPARSE_H_GRAIN_SIZE, SESPARSE_GRAIN_BYTES / VMDK_SECTOR);
    store_le64(p + SESPARSE_H_TABLE_SIZE, SESPARSE_TABLE_BYTES / VMDK_SECTOR);
    for (unsigned i = 0; i < SESPARSE_PARTS; i++) {
        store_le64(p + SESPARSE_H_PARTS + 16 * (size_t)i, parts[i].at);
        store_le64(p + SESPARSE_H_PARTS + 16 * (size_t)i + 8, parts[i].size);
    }
}

int sesparse_new(struct rhea_storage *storage, uint64_t size,
                 struct rhea_error *err)
{
    struct vmdk_area parts[SESPARSE_PARTS];
    uint8_t first[SESPARSE_HEADER_BYTES] = {0};
    uint8_t others[(1 + JOURNAL_HEADER_SECTORS) * VMDK_SECTOR] = {0};
    uint8_t *journal = others + VMDK_SECTOR;
    new_parts(size, parts);
    new_header(first, size, parts);
    store_le64(others + SESPARSE_V_MAGIC, SESPARSE_VOLATILE_MAGIC);
    store_le64(journal + SESPARSE_J_MAGIC, SESPARSE_JOURNAL_MAGIC);
    store_le64(journal + SESPARSE_J_ONE, 1);
    int ret = rhea_storage_truncate(storage,
                                    parts[PART_GRAINS].at * VMDK_SECTOR, err);
    if (!ret)
        ret = rhea_storage_write(storage, others, sizeof(others),
                                 parts[PART_VOLATILE].at * VMDK_SECTOR, err);
    if (!ret)
        ret = rhea_storage_flush(storage, err);
    if (!ret)
        ret = rhea_storage_write(storage, first, sizeof(first), 0, err);
    return ret ? ret : rhea_storage_flush(storage, err);
}
