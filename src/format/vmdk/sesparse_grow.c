/* SPDX-License-Identifier: MIT */
/*
 * A larger SESparse extent, laid out as one that was made so large: its areas
 * one behind the other, at multiples of 1 MiB, in front of the grains. Grains
 * are numbered from where their area begins, so that where the others get in
 * their way the numbers of all change.
 *
 * Order of writes:
 *   1. entries that the last table has behind the end become 0; flush;
 *   2. grains that are where other areas will be get a copy at the end of the
 *      file; directory, tables and maps, with the new numbers, are written
 *      behind the area of grains, where nobody puts any; flush;
 *   3. the first header, one sector, leads there; flush;
 *   4. the same areas are written in front, over what nobody needs any more;
 *      flush; the header leads to them; flush;
 *   5. what is behind the grains is cut off.
 * Where all has room where it is, what areas have behind the old end becomes
 * zeroes, and nothing else is done. In either case the header still says the
 * old capacity, and so nobody looks behind it; that follows (resize.c).
 *
 * A crash between 3 and 4 leaves an extent with its areas behind the grains,
 * which reads and is written to as any other; the next time that it grows they
 * go to the front.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/copy.h"
#include "format/vmdk/header.h"
#include "format/vmdk/resize.h"
#include "format/vmdk/sesparse.h"

/* Of an area in front of grains; what a disk of 64 TiB needs is 128 GiB. */
#define AREA_MAX ((uint64_t)1 << 40)

struct sesparse_grow {
    struct vmdk_extent *x;
    uint64_t needs[SESPARSE_PARTS];
    struct vmdk_area front[SESPARSE_PARTS], beside[SESPARSE_PARTS];
    uint64_t shift;    /* by how much the numbers of grains become smaller */
    uint64_t n_places; /* for grains, then */
    uint64_t first;    /* of those that grains move to, by the new numbers */
    uint64_t moved;    /* how many are in use */
};

static uint64_t part_end(const struct vmdk_area *a)
{
    return a->at + a->size;
}

/* --- Where all is to be --- */

static bool grow_fits(const struct sesparse_grow *g)
{
    for (unsigned i = PART_DIRECTORY; i < PART_GRAINS; i++)
        if (g->x->h.parts[i].size < g->needs[i])
            return false;
    return true;
}

/* How many areas of those that grow are behind the grains. */
static unsigned grow_behind(const struct vmdk_extent *x)
{
    unsigned n = 0;
    for (unsigned i = PART_DIRECTORY; i < PART_GRAINS; i++)
        n += x->h.parts[i].at > x->h.parts[PART_GRAINS].at;
    return n;
}

/* Areas that grow, one behind the other from AT on; returns where they end. */
static uint64_t grow_lay_out(const struct sesparse_grow *g,
                             struct vmdk_area parts[SESPARSE_PARTS],
                             uint64_t at)
{
    for (unsigned i = PART_DIRECTORY; i < PART_GRAINS; i++) {
        parts[i].at = align_up(at, SESPARSE_AREA_BYTES);
        parts[i].size =
            align_up(RHEA_MAX(g->needs[i], parts[i].size), SESPARSE_AREA_BYTES);
        at = part_end(&parts[i]);
    }
    return at;
}

static int grow_layout_unknown(struct rhea_error *err)
{
    return rhea_error_set(err, ENOTSUP,
                          "the extent (SESparse) is not laid out as ESXi does; "
                          "convert the image to resize it");
}

/* What nobody makes, and what arithmetic has no need to care for. */
static int grow_check_parts(const struct vmdk_extent *x, struct rhea_error *err)
{
    const struct vmdk_area *parts = x->h.parts;
    unsigned behind = grow_behind(x);
    bool good = behind == 0 || behind == PART_GRAINS - PART_DIRECTORY;
    for (unsigned i = 0; i < PART_GRAINS; i++) {
        good &= parts[i].size <= AREA_MAX;
        good &= i >= PART_DIRECTORY || parts[i].at < parts[PART_GRAINS].at;
    }
    good &= x->file_size <= INT64_MAX - (16 * AREA_MAX + SESPARSE_SIZE_MAX);
    return good ? 0 : grow_layout_unknown(err);
}

/* For SIZE guest bytes. The places of bits of one byte stay so. */
static int grow_plan(struct sesparse_grow *g, uint64_t size,
                     struct rhea_error *err)
{
    struct vmdk_extent *x = g->x;
    const struct vmdk_area *old = x->h.parts, *grains = &old[PART_GRAINS];
    uint64_t base = VMDK_SECTOR;
    int ret = grow_check_parts(x, err);
    if (ret)
        return ret;
    sesparse_needs(size, g->needs);
    memcpy(g->front, old, sizeof(g->front));
    memcpy(g->beside, old, sizeof(g->beside));
    for (unsigned i = 0; i < PART_DIRECTORY; i++)
        base = RHEA_MAX(base, part_end(&old[i]));
    uint64_t end = RHEA_MAX(grow_lay_out(g, g->front, base), grains->at);
    struct vmdk_area *new = &g->front[PART_GRAINS];
    new->at = grains->at + align_up(end - grains->at, SESPARSE_AREA_BYTES);
    new->size = g->needs[PART_GRAINS];
    g->shift = (new->at - grains->at) / x->h.grain_size;
    g->n_places = new->size / x->h.grain_size;
    grow_lay_out(g, g->beside, RHEA_MAX(part_end(new), sesparse_file_end(x)));
    g->beside[PART_GRAINS] = *new;
    return 0;
}

/* --- Entries --- */

static int grow_full(struct rhea_error *err)
{
    return rhea_error_set(err, ENOSPC,
                          "the extent (SESparse) has no room to move grains "
                          "to: 'check -r leaks' may find some");
}

/* The grain at PLACE, whose back map has BACK, is in the way; *TO: its place
 * from now on. */
static int grow_move(struct sesparse_grow *g, uint64_t place, uint64_t back,
                     uint64_t *to, struct rhea_error *err)
{
    struct vmdk_extent *x = g->x;
    uint64_t size = x->h.grain_size;
    if (g->first + g->moved >= g->n_places)
        return grow_full(err);
    *to = g->first + g->moved++;
    int ret = sesparse_put(&x->se->maps,
                           g->beside[PART_BACK_MAP].at + *to * sizeof(uint64_t),
                           1, SESPARSE_UNMAPPED, sesparse_number(back), 0, err);
    return ret ? ret
               : copy_range(x->file, x->h.parts[PART_GRAINS].at + place * size,
                            g->beside[PART_GRAINS].at + *to * size, size, false,
                            err);
}

/* Whether PLACE, of a grain that was unmapped, is kept for it. */
static int grow_is_kept(struct sesparse_grow *g, uint64_t place, uint64_t back,
                        bool *kept, struct rhea_error *err)
{
    struct vmdk_extent *x = g->x;
    uint64_t owner = 0;
    const uint8_t *p;
    uint32_t len;
    *kept = false;
    if (place >= x->se->n_places)
        return 0;
    int ret = table_get(&x->se->maps, x->h.parts[PART_BITMAP].at + place / 8,
                        &p, &len, err);
    if (ret || !(*p >> place % 8 & 1))
        return ret;
    ret = sesparse_back(x, place, &owner, err);
    *kept = owner == back;
    return ret;
}

/* *ENTRY, which the back map knows as BACK, by the new numbers. */
static int grow_entry(struct sesparse_grow *g, uint64_t *entry, uint64_t back,
                      struct rhea_error *err)
{
    enum sesparse_kind kind = *entry >> 60;
    uint64_t place = sesparse_number(*entry);
    bool kept = kind == SESPARSE_GRAIN;
    int ret = 0;
    if (kind != SESPARSE_GRAIN && kind != SESPARSE_UNMAPPED)
        return 0;
    if (place >= g->shift) {
        *entry = sesparse_entry(kind, place - g->shift);
        return 0;
    }
    if (!kept)
        ret = grow_is_kept(g, place, back, &kept, err);
    if (!ret && kept)
        ret = grow_move(g, place, back, &place, err);
    /* Either reads as zeroes. */
    *entry =
        kept ? sesparse_entry(kind, place) : sesparse_entry(SESPARSE_ZERO, 0);
    return ret;
}

static int grow_table(struct sesparse_grow *g, uint64_t index, uint64_t table,
                      uint8_t *buf, struct rhea_error *err)
{
    struct vmdk_extent *x = g->x;
    uint64_t to = table - x->h.parts[PART_TABLES].at;
    int ret = rhea_storage_read_padded(x->file, buf, SESPARSE_TABLE_BYTES,
                                       table, err);
    for (uint64_t i = 0; !ret && i < SESPARSE_TABLE_ENTRIES; i++) {
        uint64_t entry = load_le64(buf + i * sizeof(entry));
        if (!entry)
            continue;
        ret = grow_entry(g, &entry, sesparse_owner_entry(x, index, table, i),
                         err);
        store_le64(buf + i * sizeof(entry), entry);
    }
    return ret ? ret
               : rhea_storage_write(x->file, buf, SESPARSE_TABLE_BYTES,
                                    g->beside[PART_TABLES].at + to, err);
}

static int grow_tables(struct sesparse_grow *g, struct rhea_error *err)
{
    struct vmdk_extent *x = g->x;
    RHEA_AUTO_FREE uint8_t *buf = malloc(SESPARSE_TABLE_BYTES);
    if (!buf)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret = 0;
    for (uint64_t i = 0, skip; !ret && i < x->h.n_tables; i += skip) {
        uint64_t table;
        skip = vmdk_directory_hole(x, x->h.directory, i);
        if (skip)
            continue;
        skip = 1;
        ret = vmdk_table_find(x, i, false, &table, err);
        if (!ret && table && !vmdk_is_hole(x, table, SESPARSE_TABLE_BYTES))
            ret = grow_table(g, i, table, buf, err);
    }
    return ret;
}

/* --- Areas --- */

/* LEN bytes of PART from FROM on, those that are beside begin with them. */
static int grow_copy(struct sesparse_grow *g, unsigned part, uint64_t from,
                     uint64_t len, struct rhea_error *err)
{
    struct rhea_storage *file = g->x->file;
    return copy_range(file, g->x->h.parts[part].at + from, g->beside[part].at,
                      len, true, err);
}

/* Bits that tell of no place, or of those that grains have moved to. */
static int grow_bits(struct sesparse_grow *g, uint64_t n,
                     struct rhea_error *err)
{
    struct vmdk_extent *x = g->x;
    const struct vmdk_area was = x->h.parts[PART_BITMAP];
    uint64_t end = n > g->shift ? n - g->shift : 0;
    x->h.parts[PART_BITMAP] = g->beside[PART_BITMAP];
    int ret = sesparse_mark(x, end, align_up(end, 8) - end, false, err);
    if (!ret)
        ret = sesparse_mark(x, g->first, g->moved, true, err);
    x->h.parts[PART_BITMAP] = was;
    return ret ? ret : table_write_back(&x->se->maps, err);
}

/* Behind the last place whose bit is set. */
static int grow_last(struct vmdk_extent *x, uint64_t *end,
                     struct rhea_error *err)
{
    uint64_t from = x->h.parts[PART_BITMAP].at;
    uint64_t bytes = div_up(x->se->n_places, 8);
    *end = 0;
    for (uint64_t at = 0; at < bytes;) {
        const uint8_t *p;
        uint32_t len;
        at += table_zero_run(&x->se->maps, from + at, bytes - at);
        if (at >= bytes)
            break;
        int ret = table_get(&x->se->maps, from + at, &p, &len, err);
        if (ret)
            return ret;
        len = (uint32_t)RHEA_MIN((uint64_t)len, bytes - at);
        for (uint32_t i = 0; i < len; i++)
            if (p[i])
                *end = RHEA_MIN(8 * (at + i + 1), x->se->n_places);
        at += len;
    }
    return 0;
}

/* Step 2. */
static int grow_beside(struct sesparse_grow *g, struct rhea_error *err)
{
    struct vmdk_extent *x = g->x;
    uint64_t n = x->se->n_places, left = n - RHEA_MIN(n, g->shift);
    uint64_t from = g->shift * sizeof(uint64_t);
    int ret = grow_last(x, &g->first, err);
    g->first -= RHEA_MIN(g->first, g->shift);
    if (!ret)
        ret = rhea_storage_truncate(x->file,
                                    part_end(&g->beside[PART_BACK_MAP]), err);
    if (!ret)
        ret = grow_copy(g, PART_DIRECTORY, 0, x->h.n_tables * sizeof(uint64_t),
                        err);
    if (!ret && left)
        ret = grow_copy(g, PART_BITMAP, g->shift / 8, div_up(left, 8), err);
    if (!ret && left)
        ret = grow_copy(g, PART_BACK_MAP, from, left * sizeof(uint64_t), err);
    if (!ret)
        ret = grow_tables(g, err);
    if (!ret)
        ret = grow_bits(g, n, err);
    /* What is longer than it has to be is in nobody's way. */
    if (ret)
        rhea_storage_truncate(x->file, x->blocks.file_end, NULL);
    return ret;
}

static void grow_put(uint8_t *p, const struct vmdk_area parts[SESPARSE_PARTS])
{
    for (unsigned i = 0; i < SESPARSE_PARTS; i++) {
        uint8_t *area = p + SESPARSE_H_PARTS + 16 * (size_t)i;
        store_le64(area, parts[i].at / VMDK_SECTOR);
        store_le64(area + 8, parts[i].size / VMDK_SECTOR);
    }
}

/* The header, on the disk and in memory, leads to PARTS. */
static int grow_lead_to(struct sesparse_grow *g,
                        const struct vmdk_area parts[SESPARSE_PARTS],
                        struct rhea_error *err)
{
    struct vmdk_extent *x = g->x;
    uint8_t p[SESPARSE_HEADER_BYTES];
    int ret = vmdk_header_load(x, p, err);
    if (ret)
        return ret;
    grow_put(p, parts);
    ret = vmdk_header_store(x, p, err);
    if (ret)
        return ret;
    memcpy(x->h.parts, parts, sizeof(x->h.parts));
    x->h.directory = parts[PART_DIRECTORY].at;
    x->h.overhead = parts[PART_GRAINS].at;
    table_drop(&x->table);
    table_drop(&x->se->maps);
    vmdk_forget_holes(x);
    return rhea_storage_size(x->file, &x->file_size, err);
}

/* Step 5. */
static int grow_cut(struct vmdk_extent *x, struct rhea_error *err)
{
    uint64_t places;
    int ret = grow_last(x, &places, err);
    if (ret)
        return ret;
    x->file_size =
        x->h.parts[PART_GRAINS].at + places * (uint64_t)x->h.grain_size;
    x->blocks.file_end = x->blocks.grown = x->file_size;
    return rhea_storage_truncate(x->file, x->file_size, err);
}

/* Steps 4 and 5. */
static int grow_front(struct sesparse_grow *g, struct rhea_error *err)
{
    struct vmdk_extent *x = g->x;
    uint64_t from = g->front[PART_DIRECTORY].at;
    uint64_t to = part_end(&g->front[PART_BACK_MAP]);
    int ret = rhea_storage_zero(x->file, from, to - from, true, err);
    for (unsigned i = PART_DIRECTORY; !ret && i < PART_GRAINS; i++)
        ret = copy_range(x->file, x->h.parts[i].at, g->front[i].at,
                         x->h.parts[i].size, true, err);
    if (!ret)
        ret = grow_lead_to(g, g->front, err);
    return ret ? ret : grow_cut(x, err);
}

static int grow_to_front(struct vmdk_extent *x, struct rhea_error *err)
{
    struct sesparse_grow g = {.x = x};
    if (!grow_behind(x))
        return 0;
    int ret = grow_plan(&g, x->h.capacity, err);
    if (!ret && g.shift)
        ret = grow_layout_unknown(err);
    if (!ret)
        ret = grow_front(&g, err);
    sesparse_count_places(x);
    return ret;
}

/* What an area has behind the first USED bytes is nobody's. */
static int grow_clear(struct vmdk_extent *x, unsigned part, uint64_t used,
                      struct rhea_error *err)
{
    const struct vmdk_area *a = &x->h.parts[part];
    return used < a->size ? rhea_storage_zero(x->file, a->at + used,
                                              a->size - used, true, err)
                          : 0;
}

static int grow_in_place(struct sesparse_grow *g, struct rhea_error *err)
{
    struct vmdk_extent *x = g->x;
    uint64_t n = x->se->n_places, size = x->h.grain_size;
    int ret = sesparse_mark(x, n, align_up(n, 8) - n, false, err);
    if (!ret)
        ret = table_write_back(&x->se->maps, err);
    table_drop(&x->table);
    table_drop(&x->se->maps);
    vmdk_forget_holes(x);
    if (!ret)
        ret = grow_clear(x, PART_DIRECTORY, x->h.n_tables * sizeof(uint64_t),
                         err);
    if (!ret)
        ret = grow_clear(x, PART_BITMAP, div_up(n, 8), err);
    if (!ret)
        ret = grow_clear(x, PART_BACK_MAP, n * sizeof(uint64_t), err);
    x->h.parts[PART_GRAINS].size = g->n_places * size;
    return ret;
}

/* --- All of it --- */

/* Its numbers are about to change: nothing may be wrong with them. */
static int grow_check(struct vmdk_extent *x, uint64_t size,
                      struct rhea_error *err)
{
    struct rhea_check check = {0};
    if (size > SESPARSE_SIZE_MAX)
        return rhea_error_set(err, EFBIG,
                              "an extent of type SESparse has at most 64 TiB");
    int ret = sesparse_check(x, 0, &check, err);
    if (!ret && check.corruptions + check.errors)
        ret = rhea_error_set(err, EIO,
                             "the extent (SESparse) is damaged (%" PRIu64
                             " errors); repair it with 'check -r all'",
                             check.corruptions + check.errors);
    return ret;
}

/* Entries behind the end, of which nobody knows. */
static int grow_drop_behind(struct vmdk_extent *x, struct rhea_error *err)
{
    uint64_t n = x->h.table_entries, end = x->h.n_tables * n, count;
    int ret = 0;
    for (uint64_t at = div_up(x->size, x->h.grain_size); !ret && at < end;
         at += count) {
        uint64_t table, skip = at % n * sizeof(uint64_t);
        count = n - at % n;
        ret = vmdk_table_find(x, at / n, false, &table, err);
        if (!ret && table &&
            !vmdk_is_hole(x, table + skip, count * sizeof(uint64_t)))
            ret = sesparse_put(&x->table, table + skip, count, SESPARSE_NONE, 0,
                               0, err);
    }
    return ret ? ret : table_write_back(&x->table, err);
}

static int grow_run(struct sesparse_grow *g, uint64_t size,
                    struct rhea_error *err)
{
    int ret = grow_to_front(g->x, err);
    if (!ret)
        ret = grow_plan(g, size, err);
    if (ret)
        return ret;
    if (grow_fits(g))
        return grow_in_place(g, err);
    ret = grow_beside(g, err);
    if (!ret)
        ret = grow_lead_to(g, g->beside, err);
    return ret ? ret : grow_front(g, err);
}

int sesparse_grow(struct vmdk_extent *x, uint64_t size, struct rhea_error *err)
{
    struct sesparse_grow g = {.x = x};
    size = RHEA_MAX(size, x->h.capacity);
    int ret = grow_check(x, size, err);
    if (!ret)
        ret = grow_drop_behind(x, err);
    if (!ret)
        ret = grow_run(&g, size, err);
    if (ret)
        return ret;
    x->h.n_tables =
        div_up(size, x->h.grain_size * (uint64_t)x->h.table_entries);
    sesparse_count_places(x);
    sesparse_forget_room(x);
    return 0;
}
