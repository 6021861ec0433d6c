/* SPDX-License-Identifier: MIT */
/*
 * Writing SESparse extents. New grains go to the end of the file.
 *
 * ESXi puts changes of tables and maps into a journal first, whose form is not
 * public. This needs none, for its order leaves at any moment an extent that is
 * whole, with a journal that has nothing to be replayed. It adds to that of
 * blocks.h:
 *   1. before the first change the image gets a new content id; flush. What the
 *      journal still has of changes that are in their place becomes zeroes, so
 *      that nobody replays them over later ones; flush;
 *   2. new grains at the end of the file, or in places that are free and become
 *      zeroes (sesparse_room.c); a grain table that is new becomes
 *      zeroes, and the header says that its place is taken;
 *   3. flush; the free bitmap and the back map, in any order;
 *   4. flush; entries of grain tables and of the directory, in any order: a new
 *      table without its entry is missed by nobody, one without entries is all
 *      zeroes.
 * After a crash there may be grains that are marked and nobody's, of which the
 * check tells, and a place for a table that is lost until no other is left.
 *
 * Tables of images that are made here stand in the guest's order, so that the
 * back map says the same by whichever of the two numbers ESXi counts.
 */
#include "format/vmdk/sesparse.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"

enum {
    MAPS_PAGE = 16 << 10,
    MAPS_CACHE = 2 << 20,
    /* Of the bitmap's end, by which it is seen in which order its bits are. */
    BITS_LOOKED_AT = 8 << 10,
};

/* A table's page is about to be written to the file. */
static int sesparse_write_tables(void *opaque, struct table *t,
                                 struct rhea_error *err)
{
    struct vmdk_extent *x = opaque;
    int ret = table_write_back(&x->se->maps, err);
    return ret ? ret : table_write_plain(t, err);
}

void sesparse_count_places(struct vmdk_extent *x)
{
    const struct vmdk_header *h = &x->h;
    uint64_t n = RHEA_MIN(h->parts[PART_BITMAP].size * 8,
                          h->parts[PART_BACK_MAP].size / sizeof(uint64_t));
    if (h->parts[PART_GRAINS].size)
        n = RHEA_MIN(n, h->parts[PART_GRAINS].size / h->grain_size);
    x->se->n_places = n;
}

int sesparse_init(struct vmdk_extent *x, struct rhea_error *err)
{
    const struct table_how how = {
        .page_bytes = MAPS_PAGE,
        .cache_bytes = MAPS_CACHE,
    };
    struct sesparse *se = calloc(1, sizeof(*se));
    if (!se)
        return rhea_error_set(err, ENOMEM, "out of memory");
    x->se = se;
    sesparse_count_places(x);
    x->table.write = sesparse_write_tables;
    x->table.opaque = x;
    return table_init(&se->maps, x->file, &how, err);
}

void sesparse_finish(struct vmdk_extent *x)
{
    if (x->se) {
        table_finish(&x->se->maps);
        bitmap_finish(&x->se->used);
    }
    free(x->se);
    x->se = NULL;
}

uint64_t sesparse_file_end(const struct vmdk_extent *x)
{
    uint64_t size = x->h.grain_size, from = x->h.parts[PART_GRAINS].at;
    return x->file_size <= from
               ? from
               : from + div_up(x->file_size - from, size) * size;
}

/* Areas are behind the grains where growing was cut short. */
uint64_t sesparse_least_end(const struct vmdk_extent *x)
{
    uint64_t end = x->h.parts[PART_GRAINS].at;
    for (unsigned i = 0; i < PART_GRAINS; i++)
        end = RHEA_MAX(end, x->h.parts[i].at + x->h.parts[i].size);
    return end;
}

/* --- Entries and bits, in the cache --- */

int sesparse_put(struct table *t, uint64_t at, uint64_t count,
                 enum sesparse_kind kind, uint64_t number, uint64_t step,
                 struct rhea_error *err)
{
    while (count) {
        uint32_t n;
        uint8_t *p;
        int ret = table_overwrite(t, at, count * sizeof(uint64_t), &p, &n, err);
        if (ret)
            return ret;
        for (uint32_t i = 0; i < n; i += sizeof(uint64_t), number += step)
            store_le64(p + i, sesparse_entry(kind, number));
        at += n;
        count -= n / sizeof(uint64_t);
    }
    return 0;
}

int sesparse_mark(struct vmdk_extent *x, uint64_t place, uint64_t count,
                  bool taken, struct rhea_error *err)
{
    const uint64_t page_bits = (uint64_t)MAPS_PAGE * 8;
    uint64_t end = place + count;
    while (place < end) {
        uint64_t at = x->h.parts[PART_BITMAP].at + place / 8;
        uint64_t bits = page_bits - (at % MAPS_PAGE * 8 + place % 8);
        uint64_t n = RHEA_MIN(end - place, bits), first = place % 8;
        uint8_t *p;
        int ret = table_change(&x->se->maps, at, (uint32_t)div_up(first + n, 8),
                               &p, err);
        if (ret)
            return ret;
        for (uint64_t i = first; i < first + n; i++) {
            uint8_t bit = (uint8_t)(1u << i % 8);
            p[i / 8] = taken ? p[i / 8] | bit : p[i / 8] & (uint8_t)~bit;
        }
        place += n;
    }
    return 0;
}

uint64_t sesparse_owner_entry(const struct vmdk_extent *x, uint64_t index,
                              uint64_t table, uint64_t at)
{
    uint64_t number = x->se->owner == SESPARSE_BY_INDEX
                          ? index
                          : sesparse_table_number(x, table);
    return sesparse_entry(SESPARSE_UNMAPPED, number * x->h.table_entries + at);
}

/* --- What an image tells of itself --- */

int sesparse_back(struct vmdk_extent *x, uint64_t place, uint64_t *entry,
                  struct rhea_error *err)
{
    const uint8_t *p;
    uint32_t len;
    int ret = table_get(&x->se->maps,
                        x->h.parts[PART_BACK_MAP].at + place * sizeof(*entry),
                        &p, &len, err);
    if (!ret)
        *entry = load_le64(p);
    return ret;
}

/* By which number the back map knows table INDEX, which is number NUMBER; what
 * is not told leaves *OWNER alone. */
static int look_at_owner(struct vmdk_extent *x, uint64_t index, uint64_t number,
                         enum sesparse_owner *owner, struct rhea_error *err)
{
    for (uint64_t i = 0; i < SESPARSE_TABLE_ENTRIES; i++) {
        const uint8_t *p;
        uint32_t len;
        uint64_t back;
        int ret = table_get(&x->table,
                            sesparse_table_at(x, number) + i * sizeof(back), &p,
                            &len, err);
        if (ret)
            return ret;
        uint64_t place = sesparse_number(load_le64(p));
        if (load_le64(p) >> 60 != SESPARSE_GRAIN || place >= x->se->n_places)
            continue;
        ret = sesparse_back(x, place, &back, err);
        if (ret)
            return ret;
        bool by_place =
            back == sesparse_entry(SESPARSE_UNMAPPED,
                                   number * SESPARSE_TABLE_ENTRIES + i);
        bool by_index =
            back == sesparse_entry(SESPARSE_UNMAPPED,
                                   index * SESPARSE_TABLE_ENTRIES + i);
        if (by_place || by_index) {
            *owner = by_place ? SESPARSE_BY_PLACE : SESPARSE_BY_INDEX;
            return 0;
        }
    }
    return 0;
}

int sesparse_look(struct vmdk_extent *x, struct sesparse_found *found,
                  struct rhea_error *err)
{
    bool maps = !sesparse_why_not(&x->h);
    *found = (struct sesparse_found){.owner = SESPARSE_SAME};
    for (uint64_t i = 0, skip; i < x->h.n_tables; i += skip) {
        uint64_t table;
        bool good;
        skip = vmdk_directory_hole(x, x->h.directory, i);
        if (skip)
            continue;
        skip = 1;
        int ret =
            vmdk_directory_entry(x, x->h.directory, i, &table, &good, err);
        if (ret)
            return ret;
        found->bad |= !good;
        if (!good || !table)
            continue;
        uint64_t number = sesparse_table_number(x, table);
        found->end = RHEA_MAX(found->end, number + 1);
        if (number == i || found->owner == SESPARSE_BY_PLACE ||
            found->owner == SESPARSE_BY_INDEX)
            continue;
        found->owner = SESPARSE_NOBODY_KNOWS;
        if (maps)
            ret = look_at_owner(x, i, number, &found->owner, err);
        if (ret)
            return ret;
    }
    return 0;
}

/* That a bit of the free bitmap is the lowest of its byte that is not taken by
 * the bits before is not told anywhere, only how everybody keeps bitmaps. Where
 * bytes are filled in part, the back map shows whether it is so. */
static int look_at_bits(struct vmdk_extent *x, bool *backwards,
                        struct rhea_error *err)
{
    uint64_t end = div_up(
        RHEA_MIN(sesparse_place_of(x, sesparse_file_end(x)), x->se->n_places),
        8);
    uint64_t wrong[2] = {0};
    for (uint64_t i = end - RHEA_MIN(end, (uint64_t)BITS_LOOKED_AT); i < end;
         i++) {
        const uint8_t *p;
        uint32_t len;
        int ret = table_get(&x->se->maps, x->h.parts[PART_BITMAP].at + i, &p,
                            &len, err);
        uint8_t bits = ret ? 0 : *p;
        for (unsigned bit = 0; bit < 8 && bits && bits != 0xff && !ret; bit++) {
            uint64_t back = 0;
            if (i * 8 + bit < x->se->n_places)
                ret = sesparse_back(x, i * 8 + bit, &back, err);
            if (ret || back)
                continue;
            wrong[0] += bits >> bit & 1;
            wrong[1] += bits >> (7 - bit) & 1;
        }
        if (ret)
            return ret;
    }
    *backwards = wrong[0] && !wrong[1];
    return 0;
}

/* Whether all that is not known for sure is so in this extent. */
static int sesparse_learn(struct vmdk_extent *x, struct rhea_error *err)
{
    struct sesparse_found found;
    bool backwards = false;
    int ret = sesparse_look(x, &found, err);
    if (!ret)
        ret = look_at_bits(x, &backwards, err);
    if (ret)
        return ret;
    if (found.bad || found.end > x->h.free_table ||
        x->h.free_table > x->h.parts[PART_TABLES].size / SESPARSE_TABLE_BYTES)
        return rhea_error_set(err, EIO,
                              "the extent (SESparse) is damaged: its grain "
                              "directory cannot be right. A check may repair "
                              "it, and before that nothing is written");
    if (found.owner == SESPARSE_NOBODY_KNOWS || backwards)
        return rhea_error_set(err, ENOTSUP,
                              "the extent (SESparse) cannot be written to: how "
                              "its %s counts cannot be told",
                              backwards ? "free bitmap" : "back map");
    x->se->owner = found.owner;
    return 0;
}

/* --- Changes --- */

int sesparse_blank_journal(struct vmdk_extent *x, struct rhea_error *err)
{
    const struct vmdk_area *journal = &x->h.parts[PART_JOURNAL];
    bool hole = false;
    uint64_t run = 0;
    if (journal->at < x->file_size &&
        rhea_storage_extent(x->file, journal->at, journal->size, &hole, &run,
                            NULL))
        hole = false;
    if (journal->at >= x->file_size || (hole && run >= journal->size))
        return 0;
    int ret = rhea_storage_zero(x->file, journal->at, journal->size, true, err);
    return ret ? ret : rhea_storage_flush(x->file, err);
}

static int sesparse_begin(struct blocks *b, struct rhea_error *err)
{
    struct vmdk_extent *x = vmdk_extent_of(b);
    int ret = sesparse_learn(x, err);
    sesparse_forget_room(x);
    if (!ret)
        ret = vmdk_renew_identity(&x->image->base, err);
    return ret ? ret : sesparse_blank_journal(x, err);
}

/* Whether the grain table at AT of the file is all zeroes. */
static int table_is_zero(struct vmdk_extent *x, uint64_t at, bool *zero,
                         struct rhea_error *err)
{
    uint64_t end = at + SESPARSE_TABLE_BYTES;
    for (*zero = true; *zero && at < end;) {
        const uint8_t *p;
        uint32_t len;
        int ret = table_get(&x->table, at, &p, &len, err);
        if (ret)
            return ret;
        len = (uint32_t)RHEA_MIN((uint64_t)len, end - at);
        *zero = *p == 0 && memcmp(p, p + 1, len - 1) == 0;
        at += len;
    }
    return 0;
}

/* Tables number FROM and up to TO become zeroes, written when this returns.
 * Nothing leads to them. They go through the cache, which may have pages in
 * which they stand beside the directory. */
static int sesparse_clear_tables(struct vmdk_extent *x, uint64_t from,
                                 uint64_t to, struct rhea_error *err)
{
    bool changed = false;
    for (uint64_t i = from; i < to; i++) {
        uint64_t at = sesparse_table_at(x, i);
        bool zero = true;
        if (vmdk_is_hole(x, at, SESPARSE_TABLE_BYTES))
            continue;
        int ret = table_is_zero(x, at, &zero, err);
        if (!ret && !zero)
            ret = sesparse_put(&x->table, at, SESPARSE_TABLE_ENTRIES,
                               SESPARSE_NONE, 0, 0, err);
        if (ret)
            return ret;
        changed |= !zero;
    }
    return changed ? table_write_back(&x->table, err) : 0;
}

/* Directory entries from FROM to TO lead to tables from number NUMBER on. */
static int sesparse_assign(struct vmdk_extent *x, uint64_t from, uint64_t to,
                           uint64_t number, struct rhea_error *err)
{
    int ret = sesparse_clear_tables(x, number, number + (to - from), err);
    vmdk_forget_holes(x);
    return ret ? ret
               : sesparse_put(&x->table,
                              x->h.directory + from * sizeof(uint64_t),
                              to - from, SESPARSE_UNMAPPED,
                              number * SESPARSE_TABLE_ENTRIES,
                              SESPARSE_TABLE_ENTRIES, err);
}

/* Tables in the directory's order: all up to INDEX, so that as many places are
 * left as entries without a table. */
static int sesparse_assign_same(struct vmdk_extent *x, uint64_t index,
                                struct rhea_error *err)
{
    uint64_t end =
        RHEA_MIN(RHEA_MAX(x->h.free_table, index + 1), x->h.n_tables);
    uint64_t from = x->se->assigned;
    int ret = end > x->h.free_table ? sesparse_set_free(x, end, err) : 0;
    for (uint64_t i = from; !ret && i <= end; i++) {
        uint64_t table = 1;
        if (i < end)
            ret = vmdk_table_find(x, i, false, &table, err);
        if (ret || !table)
            continue;
        if (from < i)
            ret = sesparse_assign(x, from, i, from, err);
        from = i + 1;
    }
    if (!ret)
        x->se->assigned = end;
    return ret;
}

/* *TABLE is where grain table INDEX is, in the cache. */
static int sesparse_need_table(struct vmdk_extent *x, uint64_t index,
                               uint64_t *table, struct rhea_error *err)
{
    int ret = vmdk_table_find(x, index, false, table, err);
    if (ret || *table)
        return ret;
    if (x->se->owner == SESPARSE_SAME) {
        ret = sesparse_assign_same(x, index, err);
        *table = sesparse_table_at(x, index);
        return ret;
    }
    uint64_t number = x->h.free_table;
    if (number < x->h.parts[PART_TABLES].size / SESPARSE_TABLE_BYTES)
        ret = sesparse_set_free(x, number + 1, err);
    else
        ret = sesparse_find_table(x, &number, err);
    *table = sesparse_table_at(x, number);
    return ret ? ret : sesparse_assign(x, index, index + 1, number, err);
}

/* How many of COUNT blocks from BLOCK on are in one table. */
static uint64_t sesparse_in_table(const struct vmdk_extent *x, uint64_t block,
                                  uint64_t count)
{
    return RHEA_MIN(count, x->h.table_entries - block % x->h.table_entries);
}

static int sesparse_place(struct blocks *b, uint64_t block, uint64_t *count,
                          uint64_t *host, struct rhea_error *err)
{
    struct vmdk_extent *x = vmdk_extent_of(b);
    uint64_t table, place = sesparse_place_of(x, b->file_end);
    *count = sesparse_in_table(x, block, *count);
    int ret = sesparse_need_table(x, block / x->h.table_entries, &table, err);
    if (ret)
        return ret;
    if (place >= x->se->n_places) {
        ret = sesparse_find_room(x, &place, count, err);
        *host = x->h.parts[PART_GRAINS].at + place * x->h.grain_size;
        return ret;
    }
    *count = RHEA_MIN(*count, x->se->n_places - place);
    ret = blocks_extend(b, *count * x->h.grain_size, host, err);
    x->file_size = RHEA_MAX(x->file_size, b->file_end);
    return ret;
}

/* COUNT entries of grains from BLOCK on, which are in one table. */
static int sesparse_set(struct vmdk_extent *x, uint64_t block, uint64_t count,
                        enum sesparse_kind kind, uint64_t number, uint64_t step,
                        struct rhea_error *err)
{
    uint64_t table, at = block % x->h.table_entries;
    int ret = sesparse_need_table(x, block / x->h.table_entries, &table, err);
    vmdk_forget_holes(x);
    return ret ? ret
               : sesparse_put(&x->table, table + at * sizeof(uint64_t), count,
                              kind, number, step, err);
}

static int sesparse_link(struct blocks *b, const struct blocks_piece *piece,
                         struct rhea_error *err)
{
    struct vmdk_extent *x = vmdk_extent_of(b);
    uint64_t index = piece->block / x->h.table_entries, table;
    uint64_t place = sesparse_place_of(x, piece->host);
    int ret = sesparse_need_table(x, index, &table, err);
    if (ret)
        return ret;
    uint64_t owner = sesparse_owner_entry(x, index, table,
                                          piece->block % x->h.table_entries);
    ret = sesparse_put(
        &x->se->maps, x->h.parts[PART_BACK_MAP].at + place * sizeof(uint64_t),
        piece->count, SESPARSE_UNMAPPED, sesparse_number(owner), 1, err);
    if (!ret)
        ret = sesparse_mark(x, place, piece->count, true, err);
    return ret ? ret
               : sesparse_set(x, piece->block, piece->count, SESPARSE_GRAIN,
                              place, 1, err);
}

static int sesparse_zero(struct blocks *b, uint64_t block, uint64_t *count,
                         struct rhea_error *err)
{
    struct vmdk_extent *x = vmdk_extent_of(b);
    *count = sesparse_in_table(x, block, *count);
    return sesparse_set(x, block, *count, SESPARSE_ZERO, 0, 0, err);
}

static int sesparse_write_back(struct blocks *b, struct rhea_error *err)
{
    struct vmdk_extent *x = vmdk_extent_of(b);
    int ret = table_write_back(&x->se->maps, err);
    return ret ? ret : table_write_back(&x->table, err);
}

const struct blocks_ops sesparse_ops = {
    .map = vmdk_sparse_map,
    .begin = sesparse_begin,
    .place = sesparse_place,
    .link = sesparse_link,
    .zero = sesparse_zero,
    .write_back = sesparse_write_back,
};

/* --- Emptying --- */

/* An area of metadata, or the front of it, becomes zeroes. */
static int sesparse_wipe(struct vmdk_extent *x, enum sesparse_part part,
                         uint64_t len, struct rhea_error *err)
{
    uint64_t at = x->h.parts[part].at;
    len = RHEA_MIN(len, x->h.parts[part].size);
    len = at < x->file_size ? RHEA_MIN(len, x->file_size - at) : 0;
    return len ? rhea_storage_zero(x->file, at, len, true, err) : 0;
}

/*
 * Order of writes: the grain tables become zeroes, flush; so do the maps,
 * flush; the file is cut off. What the tables led to is in the parent already,
 * so that whatever of it survives a crash, the guest sees the same.
 */
static int empty_parts(struct vmdk_extent *x, struct rhea_error *err)
{
    struct blocks *b = &x->blocks;
    uint64_t end = sesparse_least_end(x);
    int ret = sesparse_wipe(x, PART_TABLES,
                            x->h.free_table * SESPARSE_TABLE_BYTES, err);
    if (!ret)
        ret = rhea_storage_flush(x->file, err);
    if (!ret)
        ret = sesparse_wipe(x, PART_BITMAP, UINT64_MAX, err);
    if (!ret)
        ret = sesparse_wipe(x, PART_BACK_MAP, UINT64_MAX, err);
    if (!ret)
        ret = rhea_storage_flush(x->file, err);
    if (!ret)
        ret = rhea_storage_truncate(x->file, end, err);
    if (!ret) {
        x->file_size = end;
        b->file_end = sesparse_file_end(x);
        b->grown = RHEA_MIN(end, b->file_end);
    }
    sesparse_forget_room(x);
    return ret;
}

int sesparse_empty(struct vmdk_extent *x, struct rhea_error *err)
{
    struct blocks *b = &x->blocks;
    RHEA_LOCKED(&b->lock);
    int ret = blocks_change_begin(b, err);
    if (ret)
        return ret;
    ret = blocks_begin(b, err);
    if (!ret)
        ret = empty_parts(x, err);
    table_drop(&x->table);
    table_drop(&x->se->maps);
    vmdk_forget_holes(x);
    return blocks_change_end(b, ret, err);
}
