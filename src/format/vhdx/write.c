/* SPDX-License-Identifier: MIT */
/*
 * The guest's writes: what blocks.c leaves to VHDX.
 *
 * The order is that of blocks.h, with the log in its place (log_write.c), and
 * before all else new GUIDs in the headers (2.2.2). New blocks go into gaps of
 * the file first (gaps.c). A block of a child that is
 * not written whole becomes "partially present": its chunk gets a sector bitmap
 * where it has none, the block's bits are set, and then the entry of the block.
 */
#include <errno.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format/vhdx/vhdx.h"

/* The most blocks that become zeroes while the lock is held. */
enum { ZERO_BLOCKS = 1 << 16 };

int vhdx_bat_set(struct vhdx *v, uint64_t place, uint64_t entry,
                 struct rhea_error *err)
{
    uint8_t *bytes;
    int ret = table_change(&v->tables, place, sizeof(entry), &bytes, err);
    if (!ret)
        store_le64(bytes, entry);
    return ret;
}

static int write_begin(struct blocks *b, struct rhea_error *err)
{
    return vhdx_begin((struct vhdx *)b->format, true, err);
}

/* --- Sector bitmaps --- */

static int bits_need_bitmap(struct vhdx *v, uint64_t block,
                            struct rhea_error *err)
{
    uint64_t entry, host;
    uint64_t place = vhdx_bitmap_place(v, block);
    int ret = vhdx_bat_get(v, place, &entry, err);
    if (ret || (entry & VHDX_BAT_STATE) == VHDX_FULLY_PRESENT)
        return ret;
    ret = blocks_extend(&v->blocks, VHDX_BITMAP_BYTES, &host, err);
    if (!ret)
        ret = blocks_grow(&v->blocks, err);
    return ret ? ret : vhdx_bat_set(v, place, host | VHDX_FULLY_PRESENT, err);
}

/* N bits, of which the first is BIT of the bytes. */
static void bits_fill(uint8_t *bytes, uint64_t bit, uint64_t n, bool value)
{
    for (uint64_t i = 0; i < n;) {
        uint64_t at = bit + i;
        if (at % 8 == 0 && n - i >= 8) {
            bytes[at / 8] = value ? 0xff : 0;
            i += 8;
            continue;
        }
        uint8_t mask = (uint8_t)(1 << at % 8);
        bytes[at / 8] =
            (uint8_t)(value ? bytes[at / 8] | mask : bytes[at / 8] & ~mask);
        i++;
    }
}

/* The bits of N sectors from SECTOR of a block on, whose bits begin at PLACE.
 */
static int bits_set(struct vhdx *v, uint64_t place, uint64_t sector, uint64_t n,
                    bool value, struct rhea_error *err)
{
    uint32_t page = v->tables.page_bytes;
    while (n) {
        uint64_t at = place + sector / 8;
        uint64_t left = (page - at % page) * 8 - sector % 8;
        uint64_t some = RHEA_MIN(n, left);
        uint8_t *bytes;
        int ret =
            table_change(&v->tables, at, (uint32_t)div_up(sector % 8 + some, 8),
                         &bytes, err);
        if (ret)
            return ret;
        bits_fill(bytes, sector % 8, some, value);
        sector += some;
        n -= some;
    }
    return 0;
}

/* Whether all sectors of a block are there. */
static int bits_all(struct vhdx *v, uint64_t place, uint64_t n, bool *all,
                    struct rhea_error *err)
{
    *all = true;
    for (uint64_t at = 0; at < n / 8 && *all;) {
        const uint8_t *bytes;
        uint32_t len;
        int ret = table_get(&v->tables, place + at, &bytes, &len, err);
        if (ret)
            return ret;
        for (uint32_t i = 0; i < len && at < n / 8 && *all; i++, at++)
            *all = bytes[i] == 0xff;
    }
    return 0;
}

/* --- Blocks --- */

/* Guest bytes [from, to) of a block were written, which is then to be found at
 * HOST; FRESH: the others are not there. *ENTRY is its new one. */
static int link_partial(struct vhdx *v, uint64_t block, uint64_t from,
                        uint64_t to, bool fresh, uint64_t host, uint64_t *entry,
                        struct rhea_error *err)
{
    uint32_t unit = v->metadata.logical_sector;
    uint64_t sectors = v->metadata.block_size / unit;
    uint64_t place;
    bool all = false;
    int ret = bits_need_bitmap(v, block, err);
    if (!ret)
        ret = vhdx_bits_place(v, block, &place, err);
    if (!ret && fresh)
        ret = bits_set(v, place, 0, sectors, false, err);
    if (!ret)
        ret =
            bits_set(v, place, from / unit, div_up(to - from, unit), true, err);
    if (!ret)
        ret = bits_all(v, place, sectors, &all, err);
    *entry = host | (all ? VHDX_FULLY_PRESENT : VHDX_PARTIALLY_PRESENT);
    return ret;
}

static int link_block(struct vhdx *v, const struct blocks_piece *p,
                      uint64_t index, struct rhea_error *err)
{
    uint64_t block = p->block + index;
    uint64_t start = block << v->block_bits;
    uint64_t end = RHEA_MIN(start + v->metadata.block_size, v->base.size);
    uint64_t from = RHEA_MAX(p->offset, start);
    uint64_t to = RHEA_MIN(p->offset + p->len, end);
    uint64_t host = p->host + (index << v->block_bits);
    uint64_t entry, place = vhdx_bat_place(v, block);
    int ret = vhdx_bat_get(v, place, &entry, err);
    if (ret)
        return ret;
    /* Around what is written into other blocks there are zeroes. */
    uint64_t state = entry & VHDX_BAT_STATE;
    bool partial =
        vhdx_is_child(v) &&
        (state == VHDX_NOT_PRESENT || state == VHDX_PARTIALLY_PRESENT) &&
        (from > start || to < end);
    entry = host | VHDX_FULLY_PRESENT;
    if (partial)
        ret = link_partial(v, block, from - start, to - start, p->fresh, host,
                           &entry, err);
    return ret ? ret : vhdx_bat_set(v, place, entry, err);
}

static int write_place(struct blocks *b, uint64_t block, uint64_t *count,
                       uint64_t *host, struct rhea_error *err)
{
    struct vhdx *v = (struct vhdx *)b->format;
    uint64_t gap = *count;
    (void)block;
    int ret = vhdx_gap_take(v, &gap, host, err);
    if (ret || gap) {
        *count = gap;
        return ret;
    }
    return blocks_extend(b, *count << v->block_bits, host, err);
}

static int write_link(struct blocks *b, const struct blocks_piece *piece,
                      struct rhea_error *err)
{
    int ret = 0;
    for (uint64_t i = 0; i < piece->count && !ret; i++)
        ret = link_block((struct vhdx *)b->format, piece, i, err);
    return ret;
}

static int write_zero(struct blocks *b, uint64_t block, uint64_t *count,
                      struct rhea_error *err)
{
    struct vhdx *v = (struct vhdx *)b->format;
    int ret = 0;
    *count = RHEA_MIN(*count, (uint64_t)ZERO_BLOCKS);
    for (uint64_t i = 0; i < *count && !ret; i++)
        ret = vhdx_bat_set(v, vhdx_bat_place(v, block + i), VHDX_ZERO, err);
    return ret;
}

static int write_back(struct blocks *b, struct rhea_error *err)
{
    return table_write_back(&((struct vhdx *)b->format)->tables, err);
}

const struct blocks_ops vhdx_blocks_ops = {
    .map = vhdx_map,
    .begin = write_begin,
    .place = write_place,
    .link = write_link,
    .zero = write_zero,
    .write_back = write_back,
};
