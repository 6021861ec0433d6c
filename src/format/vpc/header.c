/* SPDX-License-Identifier: MIT */
/*
 * The header of dynamic and differencing images, and where all that is no block
 * lies in the file.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format/vpc/vpc.h"

uint32_t vpc_bitmap_bytes(uint32_t block_size)
{
    return (uint32_t)align_up(div_up(block_size, VPC_SECTOR * 8), VPC_SECTOR);
}

/* A header of another major version would be another format. */
static int header_check_kind(struct vpc *v, struct rhea_error *err)
{
    const uint8_t *h = v->header;
    if (load_be64(h) != VPC_HEADER_COOKIE)
        return rhea_error_set(err, EINVAL,
                              "there is no dynamic disk header at offset "
                              "%" PRIu64 ", where the footer says it is",
                              v->header_at);
    v->header_was_wrong = !vpc_header_is_good(h);
    if (v->header_was_wrong && !v->lenient)
        return rhea_error_set(err, EINVAL,
                              "the dynamic disk header is damaged: its "
                              "checksum is wrong ('check' tells more)");
    if (load_be32(h + VPC_H_VERSION) >> 16 > 1)
        return rhea_error_set(err, ENOTSUP,
                              "the dynamic disk header is of version %u.%u, "
                              "and only 1.x is known",
                              load_be16(h + VPC_H_VERSION),
                              load_be16(h + VPC_H_VERSION + 2));
    return 0;
}

static int header_check_blocks(struct vpc *v, struct rhea_error *err)
{
    if (!is_power_of_2(v->block_size) || v->block_size < VPC_SECTOR)
        return rhea_error_set(err, EINVAL,
                              "the dynamic disk header says that blocks have "
                              "%" PRIu32 " bytes, which is no power of 2 from "
                              "%d on",
                              v->block_size, VPC_SECTOR);
    if (vpc_blocks(v) > v->entries)
        return rhea_error_set(err, EINVAL,
                              "the block allocation table has %" PRIu32
                              " entries, fewer than the %" PRIu64
                              " blocks of the disk",
                              v->entries, vpc_blocks(v));
    return 0;
}

/* The table may not be where a footer or the header is. */
static int header_check_table(const struct vpc *v, struct rhea_error *err)
{
    uint64_t length = (uint64_t)v->entries * 4;
    bool overlaps = v->bat < VPC_FOOTER ||
                    (v->bat < v->header_at + VPC_HEADER &&
                     (length > v->header_at || v->bat > v->header_at - length));
    if (!is_aligned(v->bat, VPC_SECTOR) || overlaps ||
        !range_inside(v->bat, length, v->found.file_size))
        return rhea_error_set(err, EINVAL,
                              "the block allocation table, %" PRIu64
                              " bytes at offset %" PRIu64
                              ", does not lie behind the header and in the "
                              "file",
                              length, v->bat);
    return 0;
}

static void header_add_part(struct vpc *v, uint64_t start, uint64_t end)
{
    if (start < end)
        v->parts[v->n_parts++] = (struct vpc_range){start, end};
}

static int header_list_parts(struct vpc *v, struct rhea_error *err)
{
    struct vpc_range header, bits;
    bool found;
    v->n_parts = 0;
    header_add_part(v, 0, VPC_FOOTER);
    header_add_part(v, v->header_at, v->header_at + VPC_HEADER);
    header_add_part(v, v->bat, vpc_bat_end(v));
    for (unsigned i = 0; i < VPC_LOCATORS; i++) {
        uint64_t offset, space;
        uint32_t length;
        if (vpc_locator_range(v, i, &offset, &space, &length))
            header_add_part(v, offset, offset + space);
    }
    int ret = vpc_batmap_find(v, &found, &header, &bits, err);
    if (!ret && found) {
        header_add_part(v, header.start, header.end);
        header_add_part(v, bits.start, bits.end);
    }
    return ret;
}

int vpc_header_read(struct vpc *v, struct rhea_error *err)
{
    v->header_at = load_be64(v->footer + VPC_F_HEADER_AT);
    if (v->header_at < VPC_FOOTER || !is_aligned(v->header_at, VPC_SECTOR) ||
        !range_inside(v->header_at, VPC_HEADER, v->found.file_size))
        return rhea_error_set(err, EINVAL,
                              "the footer says that the dynamic disk header is "
                              "at offset %" PRIu64 ", where none can be",
                              v->header_at);
    int ret = rhea_storage_read(v->base.storage, v->header, VPC_HEADER,
                                v->header_at, err);
    if (!ret)
        ret = header_check_kind(v, err);
    if (ret)
        return ret;
    v->bat = load_be64(v->header + VPC_H_BAT);
    v->entries = load_be32(v->header + VPC_H_ENTRIES);
    v->block_size = load_be32(v->header + VPC_H_BLOCK_SIZE);
    ret = header_check_blocks(v, err);
    if (!ret)
        ret = header_check_table(v, err);
    if (ret)
        return ret;
    v->bitmap_bytes = vpc_bitmap_bytes(v->block_size);
    /* XenServer's first tools numbered bits as their processor does. */
    v->bits_reversed = vpc_creator_is(v->footer, "tap") &&
                       load_be32(v->footer + VPC_F_CREATOR_VERSION) == 1;
    return header_list_parts(v, err);
}

uint64_t vpc_bat_end(const struct vpc *v)
{
    return align_up(v->bat + (uint64_t)v->entries * 4, VPC_SECTOR);
}

bool vpc_is_used(const struct vpc *v, uint64_t start, uint64_t end)
{
    for (unsigned i = 0; i < v->n_parts; i++)
        if (start < v->parts[i].end && v->parts[i].start < end)
            return true;
    return false;
}

uint64_t vpc_parts_end(const struct vpc *v)
{
    uint64_t end = 0;
    for (unsigned i = 0; i < v->n_parts; i++)
        end = RHEA_MAX(end, v->parts[i].end);
    return align_up(end, VPC_SECTOR);
}

/* A block that begins with a page of the host's is written without reading
 * around it, and is given back whole; Hyper-V does the same. Small ones would
 * leave too much unused between them. */
uint64_t vpc_place_data(uint64_t end, uint32_t block_size,
                        uint32_t bitmap_bytes)
{
    const uint32_t page = 4096;
    uint64_t data = end + bitmap_bytes;
    return block_size >= 256 * page ? align_up(data, page) : data;
}

uint64_t vpc_place_end(uint64_t end, uint64_t n, uint32_t block_size,
                       uint32_t bitmap_bytes)
{
    if (!n)
        return end;
    end = vpc_place_data(end, block_size, bitmap_bytes) + block_size;
    uint64_t next = vpc_place_data(end, block_size, bitmap_bytes) + block_size;
    return end + (n - 1) * (next - end);
}
