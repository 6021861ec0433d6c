/* SPDX-License-Identifier: MIT */
/*
 * The footer of 512 bytes that makes a file a VHD: the last of the file and, in
 * dynamic and differencing images, the first 512 too, as a copy. Before Virtual
 * PC 2004 the one at the end lacked its last byte, which is 0.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format/vpc/vpc.h"

/* 2000-01-01 in seconds since 1970. */
#define VPC_EPOCH INT64_C(946684800)

/* The complement of the sum of all bytes but the four at AT, which hold it. */
static uint32_t footer_sum(const uint8_t *bytes, size_t len, size_t at)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < len; i++)
        if (i < at || i >= at + 4)
            sum += bytes[i];
    return ~sum;
}

bool vpc_creator_is(const uint8_t footer[VPC_FOOTER], const char *creator)
{
    return memcmp(footer + VPC_F_CREATOR, creator, 4) == 0;
}

/* Early versions of XenServer's tools marked an image as hidden and left the
 * checksum as it was. */
static bool footer_was_hidden(const uint8_t footer[VPC_FOOTER], uint32_t sum)
{
    uint32_t version = load_be32(footer + VPC_F_CREATOR_VERSION);
    return vpc_creator_is(footer, "tap") && footer[VPC_F_HIDDEN] &&
           (version == 0x00000001 || version == 0x00010001) &&
           load_be32(footer + VPC_F_CHECKSUM) == sum + footer[VPC_F_HIDDEN];
}

bool vpc_footer_is_good(const uint8_t footer[VPC_FOOTER])
{
    uint32_t sum = footer_sum(footer, VPC_FOOTER, VPC_F_CHECKSUM);
    if (load_be64(footer) != VPC_COOKIE)
        return false;
    return load_be32(footer + VPC_F_CHECKSUM) == sum ||
           footer_was_hidden(footer, sum);
}

void vpc_footer_seal(uint8_t footer[VPC_FOOTER])
{
    store_be32(footer + VPC_F_CHECKSUM,
               footer_sum(footer, VPC_FOOTER, VPC_F_CHECKSUM));
}

bool vpc_header_is_good(const uint8_t header[VPC_HEADER])
{
    return load_be64(header) == VPC_HEADER_COOKIE &&
           load_be32(header + VPC_H_CHECKSUM) ==
               footer_sum(header, VPC_HEADER, VPC_H_CHECKSUM);
}

void vpc_header_seal(uint8_t header[VPC_HEADER])
{
    store_be32(header + VPC_H_CHECKSUM,
               footer_sum(header, VPC_HEADER, VPC_H_CHECKSUM));
}

static int footer_read(struct rhea_storage *storage, uint64_t at,
                       uint32_t length, struct vpc_copy *copy,
                       struct rhea_error *err)
{
    *copy = (struct vpc_copy){.at = at, .length = length};
    int ret = rhea_storage_read(storage, copy->bytes, length, at, err);
    if (ret)
        return ret;
    if (vpc_footer_is_good(copy->bytes))
        copy->state = VPC_GOOD;
    else if (load_be64(copy->bytes) == VPC_COOKIE)
        copy->state = VPC_DAMAGED;
    return 0;
}

static enum vpc_type footer_type(const struct vpc_copy *copy)
{
    return load_be32(copy->bytes + VPC_F_TYPE);
}

/* The footer at the end counts. Its copy does only where a copy can be: what a
 * fixed image begins with is the guest's. */
static const struct vpc_copy *footer_choose(const struct vpc_found *found)
{
    if (found->tail.state == VPC_GOOD)
        return &found->tail;
    if (found->head.state == VPC_GOOD && footer_type(&found->head) != VPC_FIXED)
        return &found->head;
    return NULL;
}

int vpc_footer_find(struct rhea_storage *storage, struct vpc_found *found,
                    struct rhea_error *err)
{
    *found = (struct vpc_found){0};
    uint64_t size;
    int ret = rhea_storage_size(storage, &size, err);
    if (ret)
        return ret;
    found->file_size = size;
    if (size >= VPC_FOOTER) {
        ret = footer_read(storage, 0, VPC_FOOTER, &found->head, err);
        if (!ret)
            ret = footer_read(storage, size - VPC_FOOTER, VPC_FOOTER,
                              &found->tail, err);
    }
    if (!ret && size % VPC_SECTOR == VPC_SHORT_FOOTER &&
        found->tail.state == VPC_ABSENT)
        ret = footer_read(storage, size - VPC_SHORT_FOOTER, VPC_SHORT_FOOTER,
                          &found->tail, err);
    found->best = ret ? NULL : footer_choose(found);
    if (ret || found->best || found->tail.state == VPC_DAMAGED)
        return ret;
    ret = vpc_footer_search(storage, size, &found->tail, err);
    found->best = ret ? NULL : footer_choose(found);
    return ret;
}

uint32_t vpc_time(int64_t seconds)
{
    if (seconds <= VPC_EPOCH)
        return 0;
    return (uint32_t)RHEA_MIN(seconds - VPC_EPOCH, (int64_t)UINT32_MAX);
}

uint32_t vpc_time_now(void)
{
    return vpc_time(time(NULL));
}

void vpc_time_text(uint32_t seconds, char text[24])
{
    time_t t = VPC_EPOCH + seconds;
    struct tm tm;
    gmtime_r(&t, &tm);
    strftime(text, 24, "%Y-%m-%dT%H:%M:%SZ", &tm);
}
