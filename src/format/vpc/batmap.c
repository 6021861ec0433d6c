/* SPDX-License-Identifier: MIT */
/*
 * XenServer's addition: a map with a bit for each block whose bitmap is all
 * ones, so that its programs need not read that. Its header stands in the
 * sector behind the block allocation table, and its bits where that says
 * (blktap's vhd.h). What says of no block that it is full is always true; so
 * blocks of ours are never added, and none has to be taken out but when the
 * image is emptied.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/vpc/vpc.h"

enum {
    BATMAP_OFFSET = 8,
    BATMAP_SECTORS = 16,
    BATMAP_VERSION = 20,
    BATMAP_CHECKSUM = 24,
};
#define BATMAP_COOKIE UINT64_C(0x74646261746d6170) /* "tdbatmap" */

/* Where the map cannot be, there is none. */
int vpc_batmap_find(const struct vpc *v, bool *found, struct vpc_range *header,
                    struct vpc_range *bits, struct rhea_error *err)
{
    uint8_t h[VPC_SECTOR];
    uint64_t at = vpc_bat_end(v);
    *found = false;
    if (!vpc_creator_is(v->footer, "tap") ||
        !range_inside(at, sizeof(h), v->found.file_size))
        return 0;
    int ret = rhea_storage_read(v->base.storage, h, sizeof(h), at, err);
    if (ret || load_be64(h) != BATMAP_COOKIE)
        return ret;
    uint64_t offset = load_be64(h + BATMAP_OFFSET);
    uint64_t length = (uint64_t)load_be32(h + BATMAP_SECTORS) * VPC_SECTOR;
    *found = is_aligned(offset, VPC_SECTOR) && offset >= at + VPC_SECTOR &&
             range_inside(offset, length, v->found.file_size);
    *header = (struct vpc_range){at, at + VPC_SECTOR};
    *bits = (struct vpc_range){offset, offset + length};
    return 0;
}

/* At least one sector of bits. */
static uint64_t batmap_sectors(uint64_t blocks)
{
    return RHEA_MAX(div_up(blocks, VPC_SECTOR * 8), (uint64_t)1);
}

uint64_t vpc_batmap_bytes(uint64_t blocks)
{
    return (1 + batmap_sectors(blocks)) * VPC_SECTOR;
}

int vpc_batmap_write(struct rhea_storage *storage, uint64_t at, uint64_t blocks,
                     struct rhea_error *err)
{
    uint64_t length = vpc_batmap_bytes(blocks);
    RHEA_AUTO_FREE uint8_t *bytes = calloc(1, (size_t)length);
    if (!bytes)
        return rhea_error_set(err, ENOMEM, "out of memory");
    store_be64(bytes, BATMAP_COOKIE);
    store_be64(bytes + BATMAP_OFFSET, at + VPC_SECTOR);
    store_be32(bytes + BATMAP_SECTORS, (uint32_t)batmap_sectors(blocks));
    store_be32(bytes + BATMAP_VERSION, 0x00010002);
    /* The complement of the sum of the map's bytes, all of which are 0. */
    store_be32(bytes + BATMAP_CHECKSUM, UINT32_MAX);
    return rhea_storage_write(storage, bytes, (size_t)length, at, err);
}

/* The header's sum goes first, so that a crash between leaves a map that is not
 * believed. */
int vpc_batmap_clear(struct vpc *v, struct rhea_error *err)
{
    struct vpc_range header, bits;
    uint8_t h[VPC_SECTOR];
    bool found;
    int ret = vpc_batmap_find(v, &found, &header, &bits, err);
    if (ret || !found)
        return ret;
    ret = rhea_storage_read(v->base.storage, h, sizeof(h), header.start, err);
    store_be32(h + BATMAP_CHECKSUM, UINT32_MAX);
    if (!ret)
        ret = rhea_storage_write(v->base.storage, h, sizeof(h), header.start,
                                 err);
    if (!ret)
        ret = rhea_storage_flush(v->base.storage, err);
    if (!ret && bits.end > bits.start)
        ret = rhea_storage_zero(v->base.storage, bits.start,
                                bits.end - bits.start, false, err);
    return ret ? ret : rhea_storage_flush(v->base.storage, err);
}
