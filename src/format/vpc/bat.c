/* SPDX-License-Identifier: MIT */
/* The block allocation table, and the bitmaps in front of blocks. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/vpc/vpc.h"

enum { SCAN_BYTES = 64 << 10 };

int vpc_bat_get(struct vpc *v, uint64_t block, uint32_t *entry,
                struct rhea_error *err)
{
    const uint8_t *bytes;
    uint32_t len;
    int ret = table_get(&v->table, v->bat + block * 4, &bytes, &len, err);
    if (!ret)
        *entry = load_be32(bytes);
    return ret;
}

int vpc_bat_set(struct vpc *v, uint64_t block, uint32_t entry,
                struct rhea_error *err)
{
    uint8_t *bytes;
    int ret = table_change(&v->table, v->bat + block * 4, 4, &bytes, err);
    if (!ret)
        store_be32(bytes, entry);
    return ret;
}

int vpc_bat_unused(struct vpc *v, uint64_t block, uint64_t *count,
                   struct rhea_error *err)
{
    const uint8_t *bytes;
    uint32_t len;
    uint64_t n = 0;
    int ret = table_get(&v->table, v->bat + block * 4, &bytes, &len, err);
    if (ret)
        return ret;
    while (n < *count && n < len / 4 && load_be32(bytes + 4 * n) == VPC_UNUSED)
        n++;
    *count = n;
    return 0;
}

int vpc_bat_scan(const struct vpc *v, vpc_scan_fn *fn, void *opaque,
                 struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *buf = malloc(SCAN_BYTES);
    uint64_t length = (uint64_t)v->entries * 4;
    if (!buf)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (uint64_t at = 0; at < length;) {
        bool hole = false;
        uint64_t run = length - at;
        /* What is not there reads as entries of 0, all alike. */
        if (rhea_storage_extent(v->base.storage, v->bat + at, run, &hole, &run,
                                NULL))
            hole = false;
        run = align_down(run, 4);
        if (hole && run >= SCAN_BYTES) {
            int ret = fn(opaque, at / 4, run / 4, 0, err);
            if (ret)
                return ret;
            at += run;
            continue;
        }
        size_t n = (size_t)RHEA_MIN(length - at, SCAN_BYTES);
        int ret = rhea_storage_read(v->base.storage, buf, n, v->bat + at, err);
        for (size_t i = 0; i < n && !ret; i += 4)
            if (load_be32(buf + i) != VPC_UNUSED)
                ret = fn(opaque, (at + i) / 4, 1, load_be32(buf + i), err);
        if (ret)
            return ret;
        at += n;
    }
    return 0;
}

/* --- Bitmaps --- */

static uint8_t bitmap_mask(const struct vpc *v, uint32_t sector)
{
    unsigned bit = (unsigned)(sector % 8);
    return (uint8_t)(1U << (v->bits_reversed ? bit : 7 - bit));
}

/* How many bits from FIRST on, at most COUNT, in bytes from that of FIRST on,
 * are SET. */
static uint32_t bitmap_run(const struct vpc *v, const uint8_t *bytes,
                           uint32_t first, uint32_t count, bool set)
{
    uint8_t whole = set ? 0xff : 0;
    uint32_t n = 0, base = first / 8;
    while (n < count) {
        uint32_t sector = first + n;
        uint8_t byte = bytes[sector / 8 - base];
        if (sector % 8 == 0 && byte == whole)
            n += 8;
        else if (!(byte & bitmap_mask(v, sector)) == !set)
            n++;
        else
            break;
    }
    return RHEA_MIN(n, count);
}

int vpc_bitmap_get(struct vpc *v, uint64_t bitmap, uint32_t first,
                   uint32_t count, bool *set, uint32_t *run,
                   struct rhea_error *err)
{
    for (*run = 0; *run < count;) {
        const uint8_t *bytes;
        uint32_t len, sector = first + *run;
        int ret = table_get(&v->table, bitmap + sector / 8, &bytes, &len, err);
        if (ret)
            return ret;
        if (*run == 0)
            *set = bytes[0] & bitmap_mask(v, sector);
        uint32_t here = RHEA_MIN(
            count - *run,
            (uint32_t)RHEA_MIN((uint64_t)len * 8, UINT32_MAX) - sector % 8);
        uint32_t n = bitmap_run(v, bytes, sector, here, *set);
        *run += n;
        if (n < here)
            break;
    }
    return 0;
}

int vpc_bitmap_set(struct vpc *v, uint64_t bitmap, uint32_t first,
                   uint32_t count, struct rhea_error *err)
{
    while (count) {
        const uint8_t *old;
        uint8_t *bytes;
        uint32_t len, n;
        int ret = table_get(&v->table, bitmap + first / 8, &old, &len, err);
        if (ret)
            return ret;
        n = RHEA_MIN(count, len * 8 - first % 8);
        ret = table_change(&v->table, bitmap + first / 8,
                           (uint32_t)div_up(first % 8 + n, 8), &bytes, err);
        if (ret)
            return ret;
        for (uint32_t i = 0; i < n;) {
            uint32_t sector = first + i;
            uint32_t byte = sector / 8 - first / 8;
            bool whole = sector % 8 == 0 && n - i >= 8;
            bytes[byte] |= whole ? 0xff : bitmap_mask(v, sector);
            i += whole ? 8 : 1;
        }
        first += n;
        count -= n;
    }
    return 0;
}

int vpc_bitmap_fill(struct vpc *v, uint64_t bitmap, uint8_t byte,
                    struct rhea_error *err)
{
    for (uint32_t at = 0; at < v->bitmap_bytes;) {
        uint8_t *bytes;
        uint32_t len;
        int ret = table_overwrite(&v->table, bitmap + at, v->bitmap_bytes - at,
                                  &bytes, &len, err);
        if (ret)
            return ret;
        memset(bytes, byte, len);
        at += len;
    }
    return 0;
}
