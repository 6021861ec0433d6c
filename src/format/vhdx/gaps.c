/* SPDX-License-Identifier: MIT */
/*
 * Places of the file that nobody uses: what a smaller disk has left behind, or
 * a BAT that has moved, or a program that takes its space in advance. The
 * guest's new blocks go there before the file grows. (Sector bitmaps, of which
 * there is one for some thousand blocks, always go to its end.)
 *
 * Nothing in the file says which they are (2.1), so that the whole BAT is
 * looked through, once, when the first new block is asked for. In use is what
 * the header section, the log and all regions take, and what any entry of the
 * BAT names, whatever its state, for a block may keep its place while it has no
 * data (2.5.1.1). That includes entries behind the disk's end, which nobody
 * follows: a crash while the disk was made smaller leaves some, and whoever
 * makes it larger again might.
 *
 * Order of writes: before the BAT is looked through it is written back, and the
 * log is closed, so that no replay writes to where a table has been. A place is
 * emptied, then written to; the block's entry follows behind a flush, through
 * the log. A place that becomes free is not used before the BAT without it is
 * durable: whatever frees some closes the log and has them looked for anew.
 */
#include "base/byteorder.h"
#include "base/checked.h"
#include "format/vhdx/vhdx.h"

/* The most MiB that are tracked, the largest disk: 8 MiB of memory. */
enum { GAPS_MAX = 1 << 26 };

void vhdx_gaps_forget(struct vhdx *v)
{
    bitmap_finish(&v->gaps.used);
    v->gaps = (struct vhdx_gaps){0};
}

static void gaps_use(struct vhdx *v, uint64_t offset, uint64_t length)
{
    struct bitmap *used = &v->gaps.used;
    uint64_t first = offset / VHDX_MIB;
    if (first < used->n_bits)
        bitmap_set(used, first,
                   RHEA_MIN(div_up(length, VHDX_MIB), used->n_bits - first));
}

/* All of its entries, in use or not. */
static int gaps_walk_bat(struct vhdx *v, struct rhea_error *err)
{
    uint64_t n = v->bat_region.length / sizeof(uint64_t);
    uint64_t per_chunk = (UINT64_C(1) << v->ratio_bits) + 1;
    for (uint64_t i = 0; i < n;) {
        uint64_t at = v->bat_region.offset + i * sizeof(uint64_t);
        uint64_t left = (n - i) * sizeof(uint64_t);
        const uint8_t *bytes;
        uint32_t len;
        i += table_zero_run(&v->tables, at, left) / sizeof(uint64_t);
        if (i == n)
            break;
        at = v->bat_region.offset + i * sizeof(uint64_t);
        int ret = table_get(&v->tables, at, &bytes, &len, err);
        if (ret)
            return ret;
        for (const uint8_t *p = bytes; p + 8 <= bytes + len && i < n;
             p += 8, i++) {
            uint64_t host = load_le64(p) & VHDX_BAT_OFFSET;
            bool is_bitmap = i % per_chunk == per_chunk - 1;
            if (host)
                gaps_use(v, host,
                         is_bitmap ? VHDX_BITMAP_BYTES
                                   : v->metadata.block_size);
        }
    }
    return 0;
}

static int gaps_find(struct vhdx *v, struct rhea_error *err)
{
    struct vhdx_gaps *g = &v->gaps;
    uint64_t end = v->blocks.file_end / VHDX_MIB;
    int ret = table_write_back(&v->tables, err);
    if (!ret)
        ret = vhdx_log_close(v, err);
    g->known = !ret;
    /* A file of more just grows. */
    if (ret || end > GAPS_MAX || bitmap_init(&g->used, end, NULL))
        return ret;
    gaps_use(v, 0, VHDX_SECTION_END);
    for (size_t i = 0; i < v->n_taken; i++)
        gaps_use(v, v->taken[i].offset, v->taken[i].length);
    return gaps_walk_bat(v, err);
}

/* The next run of free MiB that has room for a block: [*AT, *AT + *N). */
static bool gaps_next(struct vhdx_gaps *g, uint64_t per_block, uint64_t *at,
                      uint64_t *n)
{
    uint64_t end = g->used.n_bits;
    while (g->next < end) {
        *at = bitmap_find(&g->used, g->next, false);
        if (*at >= end)
            break;
        *n = bitmap_find(&g->used, *at, true) - *at;
        if (*n >= per_block)
            return true;
        g->next = *at + *n;
    }
    g->next = end;
    return false;
}

int vhdx_gap_take(struct vhdx *v, uint64_t *count, uint64_t *host,
                  struct rhea_error *err)
{
    struct vhdx_gaps *g = &v->gaps;
    uint64_t per_block = v->metadata.block_size / VHDX_MIB, at, n;
    int ret = g->known ? 0 : gaps_find(v, err);
    if (ret) {
        vhdx_gaps_forget(v);
        return ret;
    }
    if (!gaps_next(g, per_block, &at, &n)) {
        *count = 0;
        return 0;
    }
    *count = RHEA_MIN(*count, n / per_block);
    *host = at * VHDX_MIB;
    /* A fixed disk keeps its space. */
    ret = rhea_storage_zero(v->base.storage, *host, *count << v->block_bits,
                            !(v->metadata.flags & VHDX_P_FIXED), err);
    if (ret)
        return ret;
    bitmap_set(&g->used, at, *count * per_block);
    g->next = at + *count * per_block;
    return 0;
}
