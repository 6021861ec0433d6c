/* SPDX-License-Identifier: MIT */
/*
 * Blocks move from the end of the file into room that nobody uses, so that the
 * end can be cut off. VHD has no list of free places, and new blocks go to the
 * end of the file; what lies free in the middle would be lost otherwise.
 *
 * Order of writes: copies of all blocks that move, in places that no entry
 * leads to; flush; the entries, each of which leads to the same bytes as
 * before; flush. What a crash leaves is room that nobody uses.
 *
 * It needs a bit for each sector of the file and 24 bytes for each block, and
 * leaves files of more than 512 GiB or 2^20 blocks as they are.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/bitmap.h"
#include "base/byteorder.h"
#include "base/checked.h"
#include "format/copy.h"
#include "format/vpc/vpc.h"

enum { CLOSE_UP_SECTORS = 1 << 30, CLOSE_UP_BLOCKS = 1 << 20 };

struct close_up {
    struct vpc *v;
    uint64_t block_sectors; /* with the bitmap */
    struct bitmap used;     /* sectors of the file */
    uint64_t low;           /* no room for a block is before this one */
    struct place {
        uint64_t sector, block;
    } * places; /* of all blocks, later of those that move */
    size_t n, room;
    uint64_t *rooms; /* sectors where these go */
};

static int close_up_add(struct close_up *c, uint64_t block, uint64_t sector,
                        struct rhea_error *err)
{
    if (c->n == c->room) {
        size_t room = c->room ? 2 * c->room : 1024;
        struct place *p = reallocarray(c->places, room, sizeof(*p));
        if (!p)
            return rhea_error_set(err, ENOMEM, "out of memory");
        c->places = p;
        c->room = room;
    }
    c->places[c->n++] = (struct place){sector, block};
    return 0;
}

/* -E2BIG: what is there had better be left as it is. */
static int close_up_entry(void *opaque, uint64_t block, uint64_t count,
                          uint32_t entry, struct rhea_error *err)
{
    struct close_up *c = opaque;
    const struct vpc *v = c->v;
    uint64_t start = (uint64_t)entry * VPC_SECTOR;
    uint64_t end = start + c->block_sectors * VPC_SECTOR;
    if (count > 1 || c->n == CLOSE_UP_BLOCKS || end > v->footer_at ||
        vpc_is_used(v, start, end) ||
        bitmap_any(&c->used, entry, c->block_sectors))
        return -E2BIG;
    bitmap_set(&c->used, entry, c->block_sectors);
    return close_up_add(c, block, entry, err);
}

/* What is where. */
static int close_up_look(struct close_up *c, struct rhea_error *err)
{
    const struct vpc *v = c->v;
    uint64_t n = v->footer_at / VPC_SECTOR;
    uint64_t next = load_be64(v->header + VPC_H_NEXT);
    if (n > CLOSE_UP_SECTORS ||
        (next != VPC_NO_OFFSET && next != UINT32_MAX && next != 0))
        return -E2BIG;
    int ret = bitmap_init(&c->used, n, err);
    if (ret)
        return ret;
    for (unsigned i = 0; i < v->n_parts; i++) {
        uint64_t from = RHEA_MIN(v->parts[i].start / VPC_SECTOR, n);
        uint64_t to = RHEA_MIN(div_up(v->parts[i].end, VPC_SECTOR), n);
        bitmap_set(&c->used, from, to - from);
    }
    return vpc_bat_scan(v, close_up_entry, c, err);
}

static int place_compare(const void *a, const void *b)
{
    const struct place *x = a, *y = b;
    return x->sector > y->sector ? -1 : x->sector < y->sector;
}

static int place_compare_block(const void *a, const void *b)
{
    const struct place *x = a, *y = b;
    return x->block < y->block ? -1 : x->block > y->block;
}

/* The first room for a block; false: there is none. */
static bool close_up_find(struct close_up *c, uint64_t *sector)
{
    const struct vpc *v = c->v;
    while (c->low < c->used.n_bits) {
        uint64_t from = bitmap_find(&c->used, c->low, false);
        uint64_t to = bitmap_find(&c->used, from, true);
        c->low = to;
        if (to - from < c->block_sectors)
            continue;
        uint64_t data =
            vpc_place_data(from * VPC_SECTOR, v->block_size, v->bitmap_bytes);
        uint64_t best = (data - v->bitmap_bytes) / VPC_SECTOR;
        *sector = best + c->block_sectors <= to ? best : from;
        c->low = *sector + c->block_sectors;
        return true;
    }
    return false;
}

/* The last blocks are c->places from now on, and C->ROOMS has where they go, in
 * the guest's order. All of that lies before all of these. */
static void close_up_choose(struct close_up *c)
{
    size_t n = 0;
    if (!c->n)
        return;
    qsort(c->places, c->n, sizeof(*c->places), place_compare);
    while (n < c->n && close_up_find(c, &c->rooms[n]) &&
           c->rooms[n] < c->places[n].sector)
        n++;
    c->n = n;
    qsort(c->places, n, sizeof(*c->places), place_compare_block);
}

static int close_up_copy(const struct close_up *c, struct rhea_error *err)
{
    int ret = 0;
    for (size_t i = 0; i < c->n && !ret; i++)
        ret = copy_range(c->v->base.storage, c->places[i].sector * VPC_SECTOR,
                         c->rooms[i] * VPC_SECTOR,
                         c->block_sectors * VPC_SECTOR, false, err);
    return ret || !c->n ? ret : rhea_storage_flush(c->v->base.storage, err);
}

static int close_up_move(struct close_up *c, struct rhea_error *err)
{
    c->rooms = calloc(RHEA_MAX(c->n, (size_t)1), sizeof(*c->rooms));
    if (!c->rooms)
        return rhea_error_set(err, ENOMEM, "out of memory");
    close_up_choose(c);
    return close_up_copy(c, err);
}

static int close_up_link(struct close_up *c, struct rhea_error *err)
{
    struct vpc *v = c->v;
    int ret = 0;
    /* It may have looked where blocks are now. */
    table_drop(&v->table);
    for (size_t i = 0; i < c->n && !ret; i++)
        ret = vpc_bat_set(v, c->places[i].block, (uint32_t)c->rooms[i], err);
    if (!ret)
        ret = table_write_back(&v->table, err);
    return ret || !c->n ? ret : rhea_storage_flush(v->base.storage, err);
}

int vpc_close_up(struct vpc *v, bool *done, struct rhea_error *err)
{
    struct close_up c = {
        .v = v,
        .block_sectors =
            (v->bitmap_bytes + (uint64_t)v->block_size) / VPC_SECTOR,
    };
    int ret = close_up_look(&c, err);
    *done = !ret;
    if (!ret)
        ret = close_up_move(&c, err);
    if (!ret)
        ret = close_up_link(&c, err);
    bitmap_finish(&c.used);
    free(c.places);
    free(c.rooms);
    return ret == -E2BIG ? 0 : ret;
}
