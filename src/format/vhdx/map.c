/* SPDX-License-Identifier: MIT */
/*
 * Where the guest's bytes are: the BAT (2.5) and the sector bitmaps (2.4).
 *
 * In the BAT the entries of a chunk's blocks are followed by that of its sector
 * bitmap. A chunk is as many blocks as have 2^23 sectors. What "undefined" and
 * "unmapped" blocks read as is the reader's choice; here it is zeroes.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format/vhdx/vhdx.h"

/* The most BAT entries one lookup joins: it holds the lock, and the next lookup
 * goes on where this one stopped. */
enum { MAP_ENTRIES = 1 << 20 };

enum { ENTRY_BYTES = 8 };

unsigned vhdx_ratio_bits(const struct vhdx_metadata *m)
{
    return log2_u64(VHDX_BITMAP_SECTORS) + log2_u64(m->logical_sector) -
           log2_u64(m->block_size);
}

uint64_t vhdx_bat_entries(const struct vhdx_metadata *m, bool child)
{
    uint64_t blocks = div_up(m->size, m->block_size);
    unsigned ratio_bits = vhdx_ratio_bits(m);
    if (!blocks)
        return 0;
    uint64_t chunks = ((blocks - 1) >> ratio_bits) + 1;
    return child ? chunks * ((UINT64_C(1) << ratio_bits) + 1)
                 : blocks + chunks - 1;
}

uint64_t vhdx_blocks(const struct vhdx *v)
{
    return div_up(v->base.size, v->metadata.block_size);
}

uint64_t vhdx_bat_place(const struct vhdx *v, uint64_t block)
{
    return v->bat_region.offset +
           (block + (block >> v->ratio_bits)) * ENTRY_BYTES;
}

uint64_t vhdx_bitmap_place(const struct vhdx *v, uint64_t block)
{
    uint64_t per_chunk = (UINT64_C(1) << v->ratio_bits) + 1;
    uint64_t chunk = block >> v->ratio_bits;
    return v->bat_region.offset +
           (chunk * per_chunk + per_chunk - 1) * ENTRY_BYTES;
}

/* Entries of blocks from BLOCK on, as they are in the file, up to the end of a
 * page or a chunk; *N is how many, at most what it was. */
static int map_entries(struct vhdx *v, uint64_t block, const uint8_t **entries,
                       uint64_t *n, struct rhea_error *err)
{
    uint32_t len;
    uint64_t chunk = UINT64_C(1) << v->ratio_bits;
    int ret =
        table_get(&v->tables, vhdx_bat_place(v, block), entries, &len, err);
    *n = RHEA_MIN(*n, chunk - (block & (chunk - 1)));
    if (!ret)
        *n = RHEA_MIN(*n, len / ENTRY_BYTES);
    return ret;
}

int vhdx_bat_get(struct vhdx *v, uint64_t place, uint64_t *entry,
                 struct rhea_error *err)
{
    const uint8_t *bytes;
    uint32_t len;
    int ret = table_get(&v->tables, place, &bytes, &len, err);
    if (!ret)
        *entry = load_le64(bytes);
    return ret;
}

static bool map_is_present(uint64_t entry)
{
    uint64_t state = entry & VHDX_BAT_STATE;
    return state == VHDX_FULLY_PRESENT || state == VHDX_PARTIALLY_PRESENT;
}

/* What a block of that state is, where it has no place. */
static int map_absent_kind(uint64_t state, enum rhea_extent_kind *kind)
{
    switch (state) {
    case VHDX_NOT_PRESENT:
        *kind = RHEA_EXTENT_UNALLOCATED;
        return 0;
    case VHDX_ZERO:
    case VHDX_UNDEFINED:
    case VHDX_UNMAPPED:
    case VHDX_UNMAPPED_OLD:
        *kind = RHEA_EXTENT_ZERO;
        return 0;
    default:
        return -EIO;
    }
}

static int map_damaged(const struct vhdx *v, uint64_t block, uint64_t entry,
                       const char *why, struct rhea_error *err)
{
    return rhea_error_set(err, EIO,
                          "the image is damaged: guest offset %" PRIu64
                          " has entry 0x%" PRIx64
                          " in the block allocation table, %s",
                          block << v->block_bits, entry, why);
}

/* COUNT blocks from BLOCK on, whose places follow that in ENTRY, are inside the
 * file and are no tables. The last block need not be there behind the disk's
 * end. */
static int map_check_place(const struct vhdx *v, uint64_t block, uint64_t count,
                           uint64_t entry, struct rhea_error *err)
{
    uint64_t host = entry & VHDX_BAT_OFFSET;
    uint64_t length = RHEA_MIN(count << v->block_bits,
                               v->base.size - (block << v->block_bits));
    if (!range_inside(host, length, v->blocks.file_end))
        return map_damaged(v, block, entry,
                           "which leads past the end of the file", err);
    if (vhdx_is_taken(v, host, length))
        return map_damaged(v, block, entry, "which leads to tables", err);
    return 0;
}

/* The next entries are like ENTRY, or go on where it ends. */
struct map_run {
    uint64_t block, want, count, entry, step;
};

static void map_count(struct map_run *run, const uint8_t *entries, uint64_t n,
                      bool has_place)
{
    for (uint64_t i = 0; i < n; i++) {
        uint64_t e = load_le64(entries + i * ENTRY_BYTES);
        if (!has_place)
            e &= VHDX_BAT_STATE;
        if (e != run->entry + run->count * run->step)
            break;
        run->count++;
    }
}

/* Blocks that are alike from run->block on, at most run->want of them. */
static int map_run(struct vhdx *v, struct map_run *run, struct rhea_error *err)
{
    const uint8_t *entries;
    uint64_t n = run->want;
    int ret = map_entries(v, run->block, &entries, &n, err);
    if (ret)
        return ret;
    uint64_t first = load_le64(entries);
    bool has_place = map_is_present(first);
    run->entry = has_place ? first : first & VHDX_BAT_STATE;
    run->step = has_place ? v->metadata.block_size : 0;
    run->count = 0;
    if ((first & VHDX_BAT_STATE) == VHDX_PARTIALLY_PRESENT) {
        run->count = 1;
        return 0;
    }
    uint64_t end = RHEA_MIN(run->want, (uint64_t)MAP_ENTRIES);
    for (;;) {
        uint64_t before = run->count;
        map_count(run, entries, n, has_place);
        if (run->count < before + n || run->count >= end)
            return 0;
        n = run->want - run->count;
        /* A fault further on is the next lookup's. */
        if (map_entries(v, run->block + run->count, &entries, &n, NULL))
            return 0;
    }
}

/* --- Blocks of which only some sectors are present --- */

int vhdx_bits_place(struct vhdx *v, uint64_t block, uint64_t *place,
                    struct rhea_error *err)
{
    uint64_t entry;
    int ret = vhdx_bat_get(v, vhdx_bitmap_place(v, block), &entry, err);
    if (ret)
        return ret;
    uint64_t host = entry & VHDX_BAT_OFFSET;
    if ((entry & VHDX_BAT_STATE) != VHDX_FULLY_PRESENT ||
        !range_inside(host, VHDX_BITMAP_BYTES, v->blocks.file_end) ||
        vhdx_is_taken(v, host, VHDX_BITMAP_BYTES))
        return rhea_error_set(err, EIO,
                              "the image is damaged: there is no sector bitmap "
                              "for guest offset %" PRIu64,
                              block << v->block_bits);
    uint64_t in_chunk = block & ((UINT64_C(1) << v->ratio_bits) - 1);
    *place =
        host + (in_chunk << v->block_bits) / v->metadata.logical_sector / 8;
    return 0;
}

/* How many of N bits at BIT of the bytes are like the first, which is *VALUE.
 */
static uint64_t bits_alike(const uint8_t *bytes, uint64_t bit, uint64_t n,
                           bool *value)
{
    uint64_t i = 0;
    *value = bytes[bit / 8] >> (bit % 8) & 1;
    uint8_t whole = *value ? 0xff : 0;
    while (i < n) {
        uint64_t at = bit + i;
        if (at % 8 == 0 && n - i >= 8 && bytes[at / 8] == whole)
            i += 8;
        else if ((bytes[at / 8] >> (at % 8) & 1) == *value)
            i++;
        else
            break;
    }
    return i;
}

/* Sectors of a partially present block from SECTOR on that are alike, at most
 * WANT: *COUNT of them, *PRESENT or not. */
static int map_bits(struct vhdx *v, uint64_t block, uint64_t sector,
                    uint64_t want, uint64_t *count, bool *present,
                    struct rhea_error *err)
{
    uint64_t place;
    int ret = vhdx_bits_place(v, block, &place, err);
    *count = 0;
    while (!ret && *count < want) {
        const uint8_t *bytes;
        uint32_t len;
        bool value;
        uint64_t at = sector + *count;
        ret = table_get(&v->tables, place + at / 8, &bytes, &len, err);
        if (ret)
            break;
        uint64_t n = RHEA_MIN(want - *count, (uint64_t)len * 8 - at % 8);
        uint64_t alike = bits_alike(bytes, at % 8, n, &value);
        if (*count == 0)
            *present = value;
        if (value != *present)
            break;
        *count += alike;
        if (alike < n)
            break;
    }
    return ret;
}

static void map_set_host(const struct vhdx *v, struct rhea_extent *x,
                         uint64_t host)
{
    x->has_host = true;
    x->host = host;
    x->stored_length = x->length;
    x->storage = v->image;
}

static int map_partial(struct vhdx *v, const struct map_run *run, uint64_t skip,
                       uint64_t len, struct rhea_extent *x,
                       struct rhea_error *err)
{
    uint32_t unit = v->metadata.logical_sector;
    uint64_t sector = skip / unit;
    uint64_t end = RHEA_MIN(skip + len, (uint64_t)v->metadata.block_size);
    uint64_t count;
    bool present = false;
    if (!vhdx_is_child(v))
        return map_damaged(v, run->block, run->entry,
                           "which only a child can have", err);
    int ret = map_bits(v, run->block, sector, div_up(end, unit) - sector,
                       &count, &present, err);
    if (ret)
        return ret;
    uint64_t until = RHEA_MIN(end, (sector + count) * unit);
    *x = (struct rhea_extent){
        .kind = present ? RHEA_EXTENT_DATA : RHEA_EXTENT_UNALLOCATED,
        .length = until - skip,
    };
    map_set_host(v, x, (run->entry & VHDX_BAT_OFFSET) + skip);
    return 0;
}

int vhdx_map(struct blocks *b, uint64_t offset, uint64_t len,
             struct rhea_extent *x, struct rhea_error *err)
{
    struct vhdx *v = (struct vhdx *)b->format;
    uint64_t skip = offset & (v->metadata.block_size - 1);
    struct map_run run = {.block = offset >> v->block_bits};
    run.want = ((offset + len - 1) >> v->block_bits) - run.block + 1;
    int ret = map_run(v, &run, err);
    if (!ret && map_is_present(run.entry)) {
        /* What is wrong further on is the next lookup's. */
        if (map_check_place(v, run.block, run.count, run.entry, NULL))
            run.count = 1;
        ret = map_check_place(v, run.block, run.count, run.entry, err);
    }
    if (ret)
        return ret;
    uint64_t state = run.entry & VHDX_BAT_STATE;
    if (state == VHDX_PARTIALLY_PRESENT)
        return map_partial(v, &run, skip, len, x, err);

    *x = (struct rhea_extent){
        .kind = RHEA_EXTENT_DATA,
        .length = RHEA_MIN(len, (run.count << v->block_bits) - skip),
    };
    if (state == VHDX_FULLY_PRESENT)
        map_set_host(v, x, (run.entry & VHDX_BAT_OFFSET) + skip);
    else if (map_absent_kind(state, &x->kind))
        return map_damaged(v, run.block, run.entry, "which means nothing", err);
    return 0;
}

/* --- All entries --- */

uint64_t vhdx_entry_length(const struct vhdx *v, const struct vhdx_entry *e)
{
    return e->is_bitmap ? VHDX_BITMAP_BYTES : v->metadata.block_size;
}

uint64_t vhdx_entry_used(const struct vhdx *v, const struct vhdx_entry *e)
{
    uint64_t length = vhdx_entry_length(v, e);
    return e->is_bitmap
               ? length
               : RHEA_MIN(length, v->base.size - (e->block << v->block_bits));
}

/* A piece of them: others are read meanwhile. */
enum { WALK_ENTRIES = 512 };

struct bat_walk {
    struct vhdx *v;
    vhdx_entry_fn *fn;
    void *opaque;
    uint8_t piece[WALK_ENTRIES * ENTRY_BYTES];
};

static int walk_piece(struct bat_walk *w, uint64_t block, uint64_t n, bool *any,
                      struct rhea_error *err)
{
    int ret = 0;
    *any = false;
    for (uint64_t i = 0; i < n && !ret; i++) {
        struct vhdx_entry e = {
            .entry = load_le64(w->piece + i * ENTRY_BYTES),
            .block = block + i,
        };
        if (!e.entry)
            continue;
        *any = true;
        e.place = vhdx_bat_place(w->v, e.block);
        ret = w->fn(w->opaque, &e, err);
    }
    return ret;
}

/* Blocks from BLOCK on, at most N, of one chunk; *DONE is how many. */
static int walk_blocks(struct bat_walk *w, uint64_t block, uint64_t n,
                       uint64_t *done, struct rhea_error *err)
{
    const uint8_t *entries;
    bool any = false;
    uint64_t left = n;
    int ret = map_entries(w->v, block, &entries, &n, err);
    if (ret)
        return ret;
    *done = RHEA_MIN(n, (uint64_t)WALK_ENTRIES);
    memcpy(w->piece, entries, *done * ENTRY_BYTES);
    ret = walk_piece(w, block, *done, &any, err);
    /* Large BATs have large holes. */
    if (!ret && !any && *done < left)
        *done +=
            table_zero_run(&w->v->tables, vhdx_bat_place(w->v, block + *done),
                           (left - *done) * ENTRY_BYTES) /
            ENTRY_BYTES;
    return ret;
}

static int walk_bitmap(struct bat_walk *w, uint64_t block,
                       struct rhea_error *err)
{
    struct vhdx_entry e = {
        .place = vhdx_bitmap_place(w->v, block),
        .block = block,
        .is_bitmap = true,
    };
    int ret = vhdx_bat_get(w->v, e.place, &e.entry, err);
    return ret || !e.entry ? ret : w->fn(w->opaque, &e, err);
}

int vhdx_bat_walk(struct vhdx *v, vhdx_entry_fn *fn, void *opaque,
                  struct rhea_error *err)
{
    struct bat_walk w = {.v = v, .fn = fn, .opaque = opaque};
    uint64_t blocks = vhdx_blocks(v), chunk = UINT64_C(1) << v->ratio_bits;
    int ret = 0;
    for (uint64_t begin = 0; begin < blocks && !ret; begin += chunk) {
        uint64_t end = RHEA_MIN(begin + chunk, blocks), done = 0;
        for (uint64_t at = begin; at < end && !ret; at += done)
            ret = walk_blocks(&w, at, end - at, &done, err);
        /* The last one has no entry where there are no bitmaps. */
        if (!ret && (vhdx_is_child(v) || end < blocks))
            ret = walk_bitmap(&w, begin, err);
    }
    return ret;
}
