/* SPDX-License-Identifier: MIT */
/*
 * Dynamic and differencing images: what blocks.c leaves to this format. A VHD
 * has no log, and its footer has to be the last thing in a file that grows.
 *
 * Order of writes, by which a crash between any two of them loses nothing that
 * was flushed:
 *   1. Before the first change (vpc_settle): the footer, in most cases with a
 *      new time stamp, goes to the end of the blocks, over nothing that is in
 * use; flush; its copy at the beginning; flush; the file is cut off behind the
 *      footer. From then on all between blocks and footer is zeroes.
 *   2. The file grows in steps of RESERVE_BLOCKS (vpc_reserve): the footer is
 *      written at the new end; flush; the old one is overwritten with zeroes.
 *      So the file ends with a footer at all times, if the file system keeps
 *      the order in which data reach the file and its size; if not, the copy at
 *      the beginning is good.
 *   3. A new block's data are written; flush; its bitmap and its entry in the
 *      table are written, in any order: without the other, each means that the
 *      block, or its sector, is not there. The bitmap's place holds zeroes.
 *   4. Closing writes the footer at the end of the blocks, where zeroes were;
 *      flush; cuts the file off behind it.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format/vpc/vpc.h"

/* That the file grows by, at least; 32 MiB as a rule. */
enum { RESERVE_BLOCKS = 16 };

static struct vpc *dynamic_of(struct blocks *b)
{
    return vpc_of(b->format);
}

/* --- Lookup --- */

/* Where the data of BLOCK are, by its ENTRY; *LENGTH is how much of them the
 * file has. */
static int dynamic_locate(const struct vpc *v, uint64_t block, uint32_t entry,
                          uint64_t *data, uint64_t *length,
                          struct rhea_error *err)
{
    uint64_t start = (uint64_t)entry * VPC_SECTOR;
    *data = start + v->bitmap_bytes;
    *length = *data < v->footer_at ? v->footer_at - *data : 0;
    *length = RHEA_MIN(*length, v->block_size);
    if (vpc_is_used(v, start, *data + v->block_size))
        return rhea_error_set(err, EIO,
                              "the table says that block %" PRIu64
                              " is at offset %" PRIu64
                              ", where no block can be ('check' tells more)",
                              block, start);
    if (!*length || (v->blocks.writable && *length < v->block_size))
        return rhea_error_set(err, EIO,
                              "block %" PRIu64 " is at offset %" PRIu64
                              ", and the file ends at %" PRIu64
                              ": it has been cut off",
                              block, start, v->footer_at);
    return 0;
}

static int dynamic_map_block(struct vpc *v, uint64_t offset, uint64_t len,
                             uint32_t entry, struct rhea_extent *x,
                             struct rhea_error *err)
{
    uint64_t within = offset & (v->block_size - 1);
    uint64_t data, length;
    uint32_t run;
    bool set = false;
    int ret =
        dynamic_locate(v, offset / v->block_size, entry, &data, &length, err);
    if (!ret && within >= length)
        ret = rhea_error_set(err, EIO,
                             "block %" PRIu64 " has been cut off at the end of "
                             "the file",
                             offset / v->block_size);
    if (ret)
        return ret;
    len = RHEA_MIN(len, length - within);
    ret = vpc_bitmap_get(
        v, data - v->bitmap_bytes, (uint32_t)(within / VPC_SECTOR),
        (uint32_t)(div_up(within + len, VPC_SECTOR) - within / VPC_SECTOR),
        &set, &run, err);
    len = RHEA_MIN(len, (uint64_t)run * VPC_SECTOR - within % VPC_SECTOR);
    *x = (struct rhea_extent){
        .kind = set                           ? RHEA_EXTENT_DATA
                : v->type == VPC_DIFFERENCING ? RHEA_EXTENT_UNALLOCATED
                                              : RHEA_EXTENT_ZERO,
        .length = len,
        .has_host = true,
        .host = data + within,
        .stored_length = len,
        .storage = v->base.storage,
    };
    return ret;
}

static int dynamic_map(struct blocks *b, uint64_t offset, uint64_t len,
                       struct rhea_extent *x, struct rhea_error *err)
{
    struct vpc *v = dynamic_of(b);
    uint64_t block = offset / v->block_size;
    uint32_t entry = VPC_UNUSED;
    int ret = vpc_bat_get(v, block, &entry, err);
    if (ret)
        return ret;
    uint64_t left = v->block_size - (offset & (v->block_size - 1));
    if (entry != VPC_UNUSED)
        return dynamic_map_block(v, offset, RHEA_MIN(len, left), entry, x, err);

    uint64_t count = div_up(offset + len, v->block_size) - block;
    ret = vpc_bat_unused(v, block, &count, err);
    *x = (struct rhea_extent){
        .kind = v->type == VPC_DIFFERENCING ? RHEA_EXTENT_UNALLOCATED
                                            : RHEA_EXTENT_ZERO,
        .length = RHEA_MIN(len, left + (count - 1) * v->block_size),
        .storage = v->base.storage,
    };
    return ret;
}

struct find_end {
    const struct vpc *v;
    uint64_t end;
};

static int find_end_entry(void *opaque, uint64_t block, uint64_t count,
                          uint32_t entry, struct rhea_error *err)
{
    struct find_end *f = opaque;
    uint64_t end =
        (uint64_t)entry * VPC_SECTOR + f->v->bitmap_bytes + f->v->block_size;
    (void)block;
    (void)count;
    (void)err;
    f->end = RHEA_MAX(f->end, end);
    return 0;
}

int vpc_find_data_end(struct vpc *v, struct rhea_error *err)
{
    struct find_end f = {v, vpc_parts_end(v)};
    uint64_t next = load_be64(v->header + VPC_H_NEXT);
    int ret = vpc_bat_scan(v, find_end_entry, &f, err);
    /* The header leads on to what nobody knows: all there is stays. */
    if (next != VPC_NO_OFFSET && next != UINT32_MAX && next != 0)
        f.end = RHEA_MAX(f.end, v->footer_at);
    v->data_end = align_up(f.end, VPC_SECTOR);
    return ret;
}

/* --- The footers --- */

static int dynamic_put_footer(struct vpc *v, uint64_t at,
                              struct rhea_error *err)
{
    int ret =
        rhea_storage_write(v->base.storage, v->footer, VPC_FOOTER, at, err);
    if (ret)
        return ret;
    ret = rhea_storage_flush(v->base.storage, err);
    /* After that nothing is known of what was written. */
    v->blocks.failed |= ret != 0;
    return ret;
}

/* What a check goes by, when nothing is opened anew. */
static void dynamic_note_footers(struct vpc *v)
{
    struct vpc_copy copy = {.state = VPC_GOOD, .length = VPC_FOOTER};
    memcpy(copy.bytes, v->footer, VPC_FOOTER);
    v->found.head = v->found.tail = copy;
    v->found.tail.at = v->footer_at;
    v->found.best = &v->found.tail;
}

int vpc_write_footers(struct vpc *v, struct rhea_error *err)
{
    int ret = dynamic_put_footer(v, v->footer_at, err);
    if (!ret)
        ret = dynamic_put_footer(v, 0, err);
    if (!ret)
        dynamic_note_footers(v);
    return ret;
}

static void dynamic_set_footer_at(struct vpc *v, uint64_t at)
{
    v->footer_at = v->found.tail.at = at;
    v->found.file_size = v->blocks.file_end = at + VPC_FOOTER;
    if (v->blocks.grown)
        v->blocks.grown = v->blocks.file_end;
}

int vpc_trim(struct vpc *v, struct rhea_error *err)
{
    if (v->footer_at <= v->data_end || !rhea_file_is_regular(v->base.storage))
        return 0;
    int ret = dynamic_put_footer(v, v->data_end, err);
    if (!ret)
        ret = rhea_storage_truncate(v->base.storage, v->data_end + VPC_FOOTER,
                                    err);
    if (!ret)
        dynamic_set_footer_at(v, v->data_end);
    return ret;
}

/* What has a size that is what it is keeps its footer at the end. */
static int settle_on_device(struct vpc *v, struct rhea_error *err)
{
    uint64_t size = align_down(v->found.file_size, VPC_SECTOR);
    if (v->data_end + VPC_FOOTER > size)
        return rhea_error_set(err, ENOSPC,
                              "there is no room for the footer: the image "
                              "needs %" PRIu64 " bytes",
                              v->data_end + VPC_FOOTER);
    v->footer_at = size - VPC_FOOTER;
    int ret = v->footer_at > v->data_end
                  ? rhea_storage_zero(v->base.storage, v->data_end,
                                      v->footer_at - v->data_end, false, err)
                  : 0;
    return ret ? ret : vpc_write_footers(v, err);
}

/* On a full disk there may be no room for a footer at the end of the blocks
 * but where unused room behind them takes it; the old footer is not touched. */
static int settle_in_file(struct vpc *v, struct rhea_error *err)
{
    const uint64_t page = 4096;
    uint64_t end = v->found.file_size;
    uint64_t from = align_up(v->data_end + VPC_FOOTER, page);
    uint64_t to = end > VPC_FOOTER ? align_down(end - VPC_FOOTER, page) : 0;
    v->footer_at = v->data_end;
    int ret = vpc_write_footers(v, err);
    if (ret != -ENOSPC || from >= to ||
        rhea_storage_zero(v->base.storage, from, to - from, true, NULL))
        return ret;
    return vpc_write_footers(v, err);
}

int vpc_settle(struct vpc *v, struct rhea_error *err)
{
    struct rhea_storage *storage = v->base.storage;
    bool regular = rhea_file_is_regular(storage);
    int ret = 0;
    if (v->settled)
        return 0;
    if (!regular) {
        ret = settle_on_device(v, err);
    } else {
        ret = settle_in_file(v, err);
        if (!ret && v->footer_at + VPC_FOOTER != v->blocks.file_end)
            ret =
                rhea_storage_truncate(storage, v->footer_at + VPC_FOOTER, err);
    }
    if (ret)
        return ret;
    if (regular)
        dynamic_set_footer_at(v, v->footer_at);
    v->settled = true;
    return 0;
}

static int dynamic_begin(struct blocks *b, struct rhea_error *err)
{
    struct vpc *v = dynamic_of(b);
    bool was_settled = v->settled;
    vpc_stamp(v);
    int ret = was_settled ? vpc_write_footers(v, err) : vpc_settle(v, err);
    v->begun = !ret;
    return ret;
}

/* --- New blocks --- */

int vpc_reserve(struct vpc *v, uint64_t end, struct rhea_error *err)
{
    static const uint8_t zeroes[VPC_FOOTER];
    uint64_t old = v->footer_at;
    if (end <= old)
        return 0;
    uint64_t at =
        align_up(end, VPC_SECTOR) + (uint64_t)RESERVE_BLOCKS * v->block_size;
    int ret = dynamic_put_footer(v, at, err);
    if (!ret)
        ret = rhea_storage_write(v->base.storage, zeroes, VPC_FOOTER, old, err);
    if (!ret)
        dynamic_set_footer_at(v, at);
    return ret;
}

static int dynamic_place(struct blocks *b, uint64_t block, uint64_t *count,
                         uint64_t *host, struct rhea_error *err)
{
    struct vpc *v = dynamic_of(b);
    uint64_t data = vpc_place_data(v->data_end, v->block_size, v->bitmap_bytes);
    (void)block;
    if ((data - v->bitmap_bytes) / VPC_SECTOR >= VPC_UNUSED)
        return rhea_error_set(err, EFBIG,
                              "the image file has reached 2 TiB, and a VHD has "
                              "no blocks beyond");
    int ret = vpc_reserve(v, data + v->block_size, err);
    if (ret)
        return ret;
    v->data_end = data + v->block_size;
    *count = 1;
    *host = data;
    return 0;
}

/* In a dynamic image all of a block is there once it has its place, zeroes
 * where nothing was written: no write to it has to change its bitmap again, and
 * programs that take no notice of bitmaps see the same. */
static int dynamic_link(struct blocks *b, const struct blocks_piece *piece,
                        struct rhea_error *err)
{
    struct vpc *v = dynamic_of(b);
    uint64_t bitmap = piece->host - v->bitmap_bytes;
    uint64_t within = piece->offset - piece->block * v->block_size;
    bool child = v->type == VPC_DIFFERENCING;
    int ret = 0;
    if (piece->fresh)
        ret = vpc_bitmap_fill(v, bitmap, child ? 0 : 0xff, err);
    if (!ret && (child || !piece->fresh))
        ret = vpc_bitmap_set(v, bitmap, (uint32_t)(within / VPC_SECTOR),
                             (uint32_t)div_up(piece->len, VPC_SECTOR), err);
    if (!ret && piece->fresh)
        ret =
            vpc_bat_set(v, piece->block, (uint32_t)(bitmap / VPC_SECTOR), err);
    return ret;
}

static int dynamic_write_back(struct blocks *b, struct rhea_error *err)
{
    return table_write_back(&dynamic_of(b)->table, err);
}

const struct blocks_ops vpc_blocks_ops = {
    .map = dynamic_map,
    .begin = dynamic_begin,
    .place = dynamic_place,
    .link = dynamic_link,
    .write_back = dynamic_write_back,
};
