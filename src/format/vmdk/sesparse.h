/* SPDX-License-Identifier: MIT */
/*
 * SESparse, what ESXi's snapshots are kept in. VMware has not described it;
 * docs/formats/vmdk.md says from where each fact is, and what is not known.
 *
 * An entry of a table has its kind in the upper four bits and a number of 60
 * bits, the lowest 12 of which stand above the others. A grain's place is the
 * area of grains and that number of grains. The free bitmap has a bit for each
 * place, 1 where it is taken, and the back map an entry, which says whose it
 * is: the number of a grain table and of the entry in it.
 *
 * With the extent's lock held, unless it says otherwise.
 */
#ifndef RHEA_FORMAT_VMDK_SESPARSE_H
#define RHEA_FORMAT_VMDK_SESPARSE_H

#include "base/bitmap.h"
#include "base/byteorder.h"
#include "format/vmdk/sparse.h"

enum {
    /* What ESXi makes and QEMU reads; others are not written to. */
    SESPARSE_GRAIN_BYTES = 4096,
    SESPARSE_TABLE_ENTRIES = 4096,
    SESPARSE_TABLE_BYTES = SESPARSE_TABLE_ENTRIES * 8,
    SESPARSE_AREA_BYTES = 1 << 20, /* areas begin at multiples of this */
};

enum sesparse_kind {
    SESPARSE_NONE = 0,
    SESPARSE_UNMAPPED = 1, /* of a directory and of the back map: a table */
    SESPARSE_ZERO = 2,
    SESPARSE_GRAIN = 3,
};

static inline uint64_t sesparse_number(uint64_t entry)
{
    return (entry >> 48 & 0xfff) | (entry & 0xffffffffffff) << 12;
}

static inline uint64_t sesparse_entry(enum sesparse_kind kind, uint64_t number)
{
    return (uint64_t)kind << 60 | (number & 0xfff) << 48 | number >> 12;
}

/* By what the back map numbers grain tables. */
enum sesparse_owner {
    SESPARSE_SAME, /* each has its own entry of the directory as its place */
    SESPARSE_BY_PLACE,
    SESPARSE_BY_INDEX, /* in the directory */
    SESPARSE_NOBODY_KNOWS,
};

/* VMware's limit is 62 TiB. */
#define SESPARSE_SIZE_MAX ((uint64_t)64 << 40)

struct sesparse {
    struct table maps; /* the free bitmap and the back map */
    enum sesparse_owner owner;
    uint64_t n_places;  /* for grains, that both maps know of */
    uint64_t assigned;  /* all entries of the directory before have tables */
    uint64_t begin;     /* places before were in the file before the first
                           change */
    struct bitmap used; /* of those, what nothing is to be put into; made when
                           there is no room behind them */
    uint64_t next;      /* where to look for room */
};

static inline uint64_t sesparse_place_of(const struct vmdk_extent *x,
                                         uint64_t host)
{
    return (host - x->h.parts[PART_GRAINS].at) / x->h.grain_size;
}

static inline uint64_t sesparse_table_at(const struct vmdk_extent *x,
                                         uint64_t number)
{
    return x->h.parts[PART_TABLES].at + number * SESPARSE_TABLE_BYTES;
}

static inline uint64_t sesparse_table_number(const struct vmdk_extent *x,
                                             uint64_t table)
{
    return (table - x->h.parts[PART_TABLES].at) /
           ((uint64_t)x->h.table_entries * x->h.entry_size);
}

/* What a pass over the grain directory finds. */
struct sesparse_found {
    enum sesparse_owner owner;
    uint64_t end; /* behind the last table that is used, in tables */
    bool bad;     /* there are entries that cannot be right */
};

/* --- sesparse_header.c --- */
/* P: the first sector. */
int sesparse_header(struct rhea_storage *file, uint64_t file_size,
                    const uint8_t *p, struct vmdk_header *h,
                    struct rhea_error *err);
/* Why nothing can be written to such an extent; NULL: it can be. */
const char *sesparse_why_not(const struct vmdk_header *h);
/* Let the header say where the next grain table goes. */
int sesparse_set_free(struct vmdk_extent *x, uint64_t table,
                      struct rhea_error *err);

/* --- sesparse.c --- */
extern const struct blocks_ops sesparse_ops;
/* Without the lock; X has its header and file size. */
int sesparse_init(struct vmdk_extent *x, struct rhea_error *err);
void sesparse_finish(struct vmdk_extent *x);
/* The first place that the file has not, as an offset. */
uint64_t sesparse_file_end(const struct vmdk_extent *x);
/* The file is to be no shorter, whatever grains it has. */
uint64_t sesparse_least_end(const struct vmdk_extent *x);
/* After areas have changed: for how many grains there are places. */
void sesparse_count_places(struct vmdk_extent *x);
/* What the back map says of PLACE. */
int sesparse_back(struct vmdk_extent *x, uint64_t place, uint64_t *entry,
                  struct rhea_error *err);
/* What the journal has of changes that are in their place becomes zeroes,
 * durable. */
int sesparse_blank_journal(struct vmdk_extent *x, struct rhea_error *err);
/* How tables are numbered, and what else a look at the directory tells. */
int sesparse_look(struct vmdk_extent *x, struct sesparse_found *found,
                  struct rhea_error *err);
/* What the back map is to say of the grain of entry AT of table INDEX, which is
 * at TABLE of the file. */
uint64_t sesparse_owner_entry(const struct vmdk_extent *x, uint64_t index,
                              uint64_t table, uint64_t at);
/* COUNT entries at AT, of kind KIND, NUMBER and then STEP more each. */
int sesparse_put(struct table *t, uint64_t at, uint64_t count,
                 enum sesparse_kind kind, uint64_t number, uint64_t step,
                 struct rhea_error *err);
/* Whether places from PLACE on, COUNT, are taken, in the cache. */
int sesparse_mark(struct vmdk_extent *x, uint64_t place, uint64_t count,
                  bool taken, struct rhea_error *err);
/* The guest sees what is below. Without the lock. */
int sesparse_empty(struct vmdk_extent *x, struct rhea_error *err);

/* --- sesparse_new.c; without an extent --- */
/* An empty one for SIZE guest bytes, durable. */
int sesparse_new(struct rhea_storage *storage, uint64_t size,
                 struct rhea_error *err);
/* The bytes that its file has. */
uint64_t sesparse_new_overhead(uint64_t size);
/* How many bytes each area needs for a disk that is full; 0 for those that do
 * not depend on it. */
void sesparse_needs(uint64_t size, uint64_t bytes[SESPARSE_PARTS]);

/* --- sesparse_grow.c --- */
/* As vmdk_sparse_grow has it, in a change of the whole extent. */
int sesparse_grow(struct vmdk_extent *x, uint64_t size, struct rhea_error *err);

/* --- sesparse_room.c --- */
/* The number of a grain table that the directory does not lead to. */
int sesparse_find_table(struct vmdk_extent *x, uint64_t *number,
                        struct rhea_error *err);
/* All that was handed out is in the tables, and the file ends where it does. */
void sesparse_forget_room(struct vmdk_extent *x);
/* Places inside of the file that hold nobody's grain, at most *COUNT and at
 * least 1, from *PLACE on; they are zeroes then. */
int sesparse_find_room(struct vmdk_extent *x, uint64_t *place, uint64_t *count,
                       struct rhea_error *err);

/* --- sesparse_check.c --- */
int sesparse_check(struct vmdk_extent *x, unsigned fix,
                   struct rhea_check *check, struct rhea_error *err);

#endif
