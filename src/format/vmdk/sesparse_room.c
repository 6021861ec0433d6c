/* SPDX-License-Identifier: MIT */
/*
 * Room inside of an SESparse extent, for the rare case that there is none at
 * the end of the file: ESXi makes the file longer before it needs to, and gives
 * places back in the middle of it.
 *
 * A place is taken only where the free bitmap says that it is free and no table
 * leads to it, not even by an entry of a grain that was unmapped.
 */
#include <errno.h>

#include "base/checked.h"
#include "format/vmdk/sesparse.h"

void sesparse_forget_room(struct vmdk_extent *x)
{
    struct sesparse *se = x->se;
    bitmap_finish(&se->used);
    se->used = (struct bitmap){0};
    se->next = 0;
    se->begin = sesparse_place_of(x, sesparse_file_end(x));
}

/* All numbers of places that grain table NUMBER has. */
static int room_mark_table(struct vmdk_extent *x, uint64_t table,
                           struct rhea_error *err)
{
    uint64_t end = table + SESPARSE_TABLE_BYTES;
    if (vmdk_is_hole(x, table, SESPARSE_TABLE_BYTES))
        return 0;
    while (table < end) {
        const uint8_t *p;
        uint32_t len;
        int ret = table_get(&x->table, table, &p, &len, err);
        if (ret)
            return ret;
        len = (uint32_t)RHEA_MIN((uint64_t)len, end - table);
        for (uint32_t i = 0; i + sizeof(uint64_t) <= len;
             i += sizeof(uint64_t)) {
            uint64_t entry = load_le64(p + i), place = sesparse_number(entry);
            if ((entry >> 60 == SESPARSE_GRAIN ||
                 entry >> 60 == SESPARSE_UNMAPPED) &&
                place < x->se->used.n_bits)
                bitmap_set(&x->se->used, place, 1);
        }
        table += len;
    }
    return 0;
}

/* What the free bitmap says, by bytes of it. */
static int room_mark_bits(struct vmdk_extent *x, struct rhea_error *err)
{
    uint64_t at = x->h.parts[PART_BITMAP].at;
    for (uint64_t place = 0; place < x->se->used.n_bits;) {
        const uint8_t *p;
        uint32_t len;
        int ret = table_get(&x->se->maps, at + place / 8, &p, &len, err);
        if (ret)
            return ret;
        uint64_t end = RHEA_MIN(x->se->used.n_bits, place + (uint64_t)len * 8);
        for (uint64_t first = place; place < end; place++)
            if (p[(place - first) / 8] >> place % 8 & 1)
                bitmap_set(&x->se->used, place, 1);
    }
    return 0;
}

/* What was handed out since the first change is behind BEGIN, and is left out:
 * it may not be in a table yet. */
static int room_look(struct vmdk_extent *x, struct rhea_error *err)
{
    int ret =
        bitmap_init(&x->se->used, RHEA_MIN(x->se->begin, x->se->n_places), err);
    if (!ret)
        ret = room_mark_bits(x, err);
    for (uint64_t i = 0; !ret && i < x->h.n_tables; i++) {
        uint64_t table;
        ret = vmdk_table_find(x, i, false, &table, err);
        if (!ret && table)
            ret = room_mark_table(x, table, err);
    }
    if (ret) {
        bitmap_finish(&x->se->used);
        x->se->used = (struct bitmap){0};
    }
    return ret;
}

int sesparse_find_room(struct vmdk_extent *x, uint64_t *place, uint64_t *count,
                       struct rhea_error *err)
{
    struct sesparse *se = x->se;
    int ret = se->used.words ? 0 : room_look(x, err);
    if (ret)
        return ret;
    *place = bitmap_find(&se->used, se->next, false);
    if (*place >= se->used.n_bits)
        return rhea_error_set(err, ENOSPC,
                              "the extent '%.200s' has no room for another "
                              "grain: a check that repairs leaks may find "
                              "some, and converting it does",
                              x->file->path ? x->file->path : "");
    uint64_t end =
        RHEA_MIN(bitmap_find(&se->used, *place, true), se->used.n_bits);
    *count = RHEA_MIN(*count, end - *place);
    bitmap_set(&se->used, *place, *count);
    se->next = *place + *count;
    return rhea_storage_zero(
        x->file, x->h.parts[PART_GRAINS].at + *place * x->h.grain_size,
        *count * x->h.grain_size, true, err);
}

int sesparse_find_table(struct vmdk_extent *x, uint64_t *number,
                        struct rhea_error *err)
{
    struct bitmap used = {0};
    uint64_t n = x->h.parts[PART_TABLES].size / SESPARSE_TABLE_BYTES;
    int ret = bitmap_init(&used, n, err);
    for (uint64_t i = 0; !ret && i < x->h.n_tables; i++) {
        uint64_t table;
        ret = vmdk_table_find(x, i, false, &table, err);
        if (!ret && table)
            bitmap_set(&used, sesparse_table_number(x, table), 1);
    }
    *number = ret ? 0 : bitmap_find(&used, 0, false);
    bitmap_finish(&used);
    return ret || *number < n
               ? ret
               : rhea_error_set(err, ENOSPC,
                                "the extent (SESparse) has no room for another "
                                "grain table");
}
