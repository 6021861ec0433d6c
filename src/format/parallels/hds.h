/* SPDX-License-Identifier: MIT */
/*
 * One file of a Parallels disk that grows (".hds"); see hds.c for the format.
 *
 * Locking: BLOCKS.LOCK guards the table, the header and the extension. It is
 * held over table I/O and flushes, never over guest data.
 */
#ifndef RHEA_FORMAT_PARALLELS_HDS_H
#define RHEA_FORMAT_PARALLELS_HDS_H

#include <rhea/format.h>

#include "base/bitmap.h"
#include "base/uuid.h"
#include "format/blocks.h"
#include "format/table.h"

#define HDS_MAGIC "WithoutFreeSpace"     /* entries count sectors */
#define HDS_MAGIC_EXT "WithouFreSpacExt" /* entries count clusters */

enum {
    HDS_SECTOR = 512,
    HDS_VERSION = 2,
    HDS_DEFAULT_CLUSTER = 1 << 20,
    /* QEMU's limits: clusters of almost 2 GiB, tables likewise. */
    HDS_MAX_TRACKS = INT32_MAX / 513,
    HDS_MAX_ENTRIES = INT32_MAX / 4,
    HDS_PAGE = 64 << 10,
    HDS_CACHE_BYTES = 4 << 20, /* maps 1 TiB of default clusters */
    HDS_HEADS = 16,
    HDS_TRACK = 32, /* sectors, as the geometry has it */
};

/* Byte offsets of the header's fields. */
enum {
    HDS_H_VERSION = 16,
    HDS_H_HEADS = 20,
    HDS_H_CYLINDERS = 24,
    HDS_H_TRACKS = 28, /* sectors of a cluster */
    HDS_H_ENTRIES = 32,
    HDS_H_SECTORS = 36,
    HDS_H_IN_USE = 44,
    HDS_H_DATA_OFF = 48,
    HDS_H_FLAGS = 52,
    HDS_H_EXT_OFF = 56,
    HDS_HEADER = 64, /* where the table begins */
};

/* Values of the header's field "in use". Parallels Desktop leaves "pd22" and
 * the like there, which mean that nobody uses it. */
enum {
    HDS_CLOSED_OLD = 0,      /* by who knows nothing of the extension */
    HDS_CLOSED = 0x312e3276, /* "v2.1": the extension is up to date */
    HDS_IN_USE = 0x746f6e59,
};

enum { HDS_FLAG_EMPTY = 1 };

/* A dirty bitmap of the extension. */
struct hds_bitmap {
    uint8_t id[UUID_BYTES];
    uint32_t granularity; /* sectors, a power of two */
    uint32_t l1_size;
    uint64_t *l1;  /* where its bits are in the file: 0 and 1 stand for clusters
                      of such bits, else an offset in sectors */
    uint8_t *bits; /* while they are in memory: least significant first, zeroes
                      behind the last one */
};

/* The format extension: a cluster with bitmaps, and what is not known here. */
struct hds_extension {
    uint64_t offset; /* in the file, bytes; 0: there is none */
    bool stale;      /* it was left behind by who knows nothing of it */
    bool dead;       /* stale and broken: only its offset is in the header */
    bool changed;    /* what the file has, if anything, is not what is here */
    bool broken;     /* it is no extension, or a part of it does not hold */
    bool necessary;  /* has what must be understood, and is not */
    bool unknown;    /* has what is not known, and may use clusters */
    char why[200];   /* it is broken */
    struct hds_bitmap *bitmaps;
    size_t n_bitmaps;
    uint8_t *kept; /* features that are not known and are to be left alone */
    size_t kept_bytes;
    /* Clusters that it had in the file and does not need any more, sorted; an
     * odd one is in use nevertheless. */
    uint64_t *spare;
    size_t n_spare;
};

/* Clusters of the file that nobody uses; see hds_gaps.c. */
struct hds_gaps {
    bool known;         /* what follows has been found out */
    struct bitmap used; /* a bit for a place, see hds_places; those past its end
                           are not looked at */
    uint64_t next;      /* none is free before this one */
    uint64_t end;       /* of the last cluster that begins in the file */
    bool shared;        /* a place has two users: the image is damaged */
};

extern const struct rhea_format_ops rhea_format_parallels;

struct hds {
    struct rhea_format base;
    struct blocks blocks;
    struct table table;
    bool extended;         /* entries count clusters */
    uint32_t cluster_size; /* any multiple of a sector */
    uint32_t unit;         /* what an entry counts, bytes */
    uint32_t entries;
    uint64_t table_end;  /* bytes in the file */
    uint64_t data_start; /* no cluster lies before this */
    uint64_t grid; /* clusters lie at this plus a multiple of their size; below
                      that size */
    bool wrong_start; /* the header's own idea of it cannot be */
    bool wrong_count; /* nor can its idea of the table's length */
    bool unclean;     /* somebody who uses it, or has crashed */
    bool empty_flag;
    uint32_t closed; /* what in_use is to be once it is closed */
    bool marked;     /* the header says that it is in use by us */
    bool dropped;    /* entries, or an extension: the file may end in unused
                        places */
    struct hds_extension ext;
    struct hds_gaps gaps;
};

/* --- hds.c --- */
/* OUT becomes a struct hds. CHILD: something may lie below. */
int hds_open(struct rhea_format **out, const struct rhea_format_open *how,
             bool child, struct rhea_error *err);
/* Options of opening. */
int hds_take_options(const struct rhea_format_open *how,
                     struct rhea_error *err);
static inline struct hds *hds_of(struct rhea_format *f)
{
    return (struct hds *)f;
}
/* Whether a cluster of the guest's can be at HOST of the file. */
bool hds_host_valid(const struct hds *h, uint64_t host);
/* The first offset from OFFSET on at which a cluster can begin. */
uint64_t hds_grid_up(const struct hds *h, uint64_t offset);
/* For a check of an old image; anew where data_start has changed. */
int hds_find_grid(struct hds *h, struct rhea_error *err);
/* The offset of an entry's cluster in the file. */
static inline uint64_t hds_host(const struct hds *h, uint32_t entry)
{
    return (uint64_t)entry * h->unit;
}
/* The field's place and its value in the header, through the table's cache. */
int hds_header_set(struct hds *h, unsigned at, uint32_t value,
                   struct rhea_error *err);
int hds_header_set64(struct hds *h, unsigned at, uint64_t value,
                     struct rhea_error *err);
/* All is written back and the image marked as closed, until the next change.
 * With the lock held. */
int hds_settle(struct hds *h, struct rhea_error *err);

/* As the members of struct rhea_format_ops of the same name. */
int hds_close(struct rhea_format *f, struct rhea_error *err);
void hds_info(struct rhea_format *f, struct rhea_format_info *info);
int hds_facts(struct rhea_format *f, struct rhea_facts *facts,
              struct rhea_error *err);
/* The list of bitmaps of F, a file or a bundle, where there are any. */
int hds_facts_bitmaps(struct rhea_facts *facts, struct rhea_format *f,
                      struct rhea_error *err);
int hds_map(struct rhea_format *f, uint64_t offset, uint64_t len,
            struct rhea_extent *extent, struct rhea_error *err);
int hds_write(struct rhea_format *f, uint64_t offset, const void *buf,
              size_t len, struct rhea_error *err);
int hds_clone(struct rhea_format *f, uint64_t offset, struct rhea_storage *from,
              uint64_t from_offset, uint64_t len, struct rhea_error *err);
int hds_write_zeroes(struct rhea_format *f, uint64_t offset, uint64_t len,
                     bool unmap, struct rhea_error *err);
int hds_flush(struct rhea_format *f, struct rhea_error *err);

/* --- hds_table.c; with the lock held --- */
extern const struct blocks_ops hds_blocks_ops;
/* The entries from INDEX on, little endian, *N of them, at most WANT; NULL: *N
 * are 0. Valid until the next call. */
int hds_entries(struct hds *h, uint64_t index, uint64_t want,
                const uint8_t **entries, uint64_t *n, struct rhea_error *err);
int hds_entry_set(struct hds *h, uint64_t index, uint32_t entry,
                  struct rhea_error *err);
/* Call FN for each entry that is not 0, from FROM on. */
typedef int hds_entry_fn(void *opaque, uint64_t index, uint32_t entry,
                         struct rhea_error *err);
int hds_each_entry(struct hds *h, uint64_t from, hds_entry_fn *fn, void *opaque,
                   struct rhea_error *err);
/* Write back what is cached; flush. */
int hds_write_back(struct hds *h, struct rhea_error *err);

/* A place for *COUNT clusters that follow each other at the end of the file. */
int hds_place_at_end(struct hds *h, uint64_t count, uint64_t *host,
                     struct rhea_error *err);

/* --- hds_gaps.c; with the lock held --- */
/* The file in places of a cluster's size, numbered from its start on: which one
 * the cluster at HOST begins in, and how many it touches. */
void hds_places(const struct hds *h, uint64_t host, uint64_t *first,
                uint64_t *count);
/* The next place for clusters that nobody uses: of at most *COUNT, which is 0
 * where there is none. It is empty. */
int hds_gap_take(struct hds *h, uint64_t *count, uint64_t *host,
                 struct rhea_error *err);
/* As the member of struct rhea_format_ops. Takes the lock. */
int hds_discard(struct rhea_format *f, uint64_t offset, uint64_t len,
                struct rhea_error *err);
/* The table is about to be changed as a whole. */
void hds_gaps_forget(struct hds *h);
/* Cut off what nobody uses at the end of the file. The table is durable, and
 * nobody else uses the image: a write that has begun could still go there. */
int hds_cut_end(struct hds *h, struct rhea_error *err);

/* --- hds_create.c --- */
struct hds_layout {
    uint64_t size, cluster_size;
    bool extended;
};
/* Fill in the header of a new image; *END is how large its file is. */
int hds_lay_out(const struct hds_layout *layout, uint8_t header[HDS_HEADER],
                uint64_t *end, struct rhea_error *err);
/* Write it into STORAGE, which is empty. */
int hds_create(struct rhea_storage *storage, const struct hds_layout *layout,
               struct rhea_error *err);

/* --- hds_check.c --- */
int hds_check(struct rhea_format *f, unsigned fix, struct rhea_check *check,
              struct rhea_error *err);
/* Whether anything is wrong with its table, apart from leaks. With the lock
 * held. */
int hds_check_table(struct hds *h, uint64_t *faults, struct rhea_error *err);

/* --- hds_resize.c --- */
int hds_resize(struct rhea_format *f, const struct rhea_resize *how,
               struct rhea_error *err);

/* --- hds_extension.c; with the lock held --- */
/* Read it, where the header at HEADER has one. What is wrong with it is noted,
 * not returned. */
int hds_extension_read(struct hds *h, const uint8_t header[HDS_HEADER],
                       struct rhea_error *err);
void hds_extension_finish(struct hds_extension *ext);
/* Why the image cannot be written to because of it. */
int hds_extension_check_write(const struct hds *h, struct rhea_error *err);
/* The clusters it uses. */
typedef int hds_cluster_fn(void *opaque, uint64_t host, struct rhea_error *err);
int hds_extension_each(const struct hds *h, hds_cluster_fn *fn, void *opaque,
                       struct rhea_error *err);
/* --- hds_extension_write.c; with the lock held --- */
/* Before the first change: all bits are in memory from now on, and the header
 * in the cache leads to none. One that is stale stays. */
int hds_extension_begin(struct hds *h, struct rhea_error *err);
/* Where it has changed, write it to clusters of its own, and say so in the
 * header in the cache. */
int hds_extension_write(struct hds *h, struct rhea_error *err);
/* Cut off what it does not need any more at the end of the file. Behind the
 * flush of a header that does not lead to it. */
int hds_extension_trim(struct hds *h, struct rhea_error *err);
/* Whether there is room for a description of MORE bytes. */
int hds_extension_check_room(const struct hds *h, uint32_t more,
                             struct rhea_error *err);

/* --- hds_bitmap.c --- */
/* Bits of what is about to be written to. Takes the lock. */
void hds_bitmaps_mark(struct hds *h, uint64_t offset, uint64_t len);
/* Read the bits of B into memory. With the lock held. */
int hds_bitmap_read(struct hds *h, struct hds_bitmap *b,
                    struct rhea_error *err);
uint64_t hds_bitmap_bits(const struct hds *h, uint32_t granularity);
uint64_t hds_bitmap_bytes(const struct hds *h, const struct hds_bitmap *b);
/* The number of clusters that so many bits take. */
uint64_t hds_bitmap_clusters(const struct hds *h, uint64_t bits);
int hds_bitmap_list(struct rhea_format *f, struct rhea_bitmap **list, size_t *n,
                    struct rhea_error *err);
int hds_bitmap_add(struct rhea_format *f, const struct rhea_bitmap *what,
                   struct rhea_error *err);
/* The same with bits, N bytes of them, at once. */
int hds_bitmap_add_bits(struct rhea_format *f, const struct rhea_bitmap *what,
                        const uint8_t *bits, size_t n, struct rhea_error *err);
int hds_bitmap_remove(struct rhea_format *f, const char *name,
                      struct rhea_error *err);
int hds_bitmap_load(struct rhea_format *f, const char *name, uint8_t *bits,
                    size_t n, struct rhea_error *err);
int hds_bitmap_store(struct rhea_format *f, const char *name,
                     const uint8_t *bits, size_t n, struct rhea_error *err);

#endif
