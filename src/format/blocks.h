/* SPDX-License-Identifier: MIT */
/*
 * Guest blocks that get their place in a file one by one, as they are first
 * written to, and keep it. What QED, VDI, VHD, VHDX, VMDK and others have in
 * common; a format that uses it supplies its tables (struct blocks_ops).
 *
 * A block of BLOCK_SIZE guest bytes has one place of as many bytes. A UNIT is
 * the smallest part of a block that can be told to be there: the block itself,
 * or a sector where the format keeps a bitmap of them for each block. Whether a
 * unit is there, ops->map tells:
 *   DATA, ENCRYPTED          it is, at HOST
 *   UNALLOCATED, ZERO        it is not, and its block has no place
 *   the same, with has_host  its block has a place, and the unit's part of it
 *                            holds nothing of worth
 *   COMPRESSED               it is, but to be written to its block needs a
 *                            place, and what it held comes by the format's read
 *
 * Order of writes, for whoever crashes between any two of them:
 *   1. ops->begin, once, before all else: it may mark the image as in use;
 *   2. new blocks are written where the file had ended: the guest's bytes, what
 *      lies below around them up to the next unit; the file grows to hold them
 *      whole;
 *   3. ops->link sets their entries, in a cache (table.h) that is written only
 *      after a flush.
 * So at each moment an entry in the file is what it was or leads to bytes that
 * are durable. What a crash loses is what was not flushed; what it leaves is,
 * at worst, blocks at the end of the file that nothing refers to.
 *
 * Two writes must not both give a block its place, nor complete the same unit:
 * a write in flight is on a list, and who wants one of its blocks waits until
 * it has landed. Guest bytes are moved without the lock.
 */
#ifndef RHEA_FORMAT_BLOCKS_H
#define RHEA_FORMAT_BLOCKS_H

#include <pthread.h>
#include <rhea/format.h>

struct blocks;

/* For rhea_format_info.part_size: a new block is written piece by piece, with
 * holes in between as fine as file systems have them. */
enum { BLOCKS_PART = 4096 };

/* A part of the image that has just been written. */
struct blocks_piece {
    uint64_t block, count; /* guest blocks, of which the places follow each
                              other */
    uint64_t host;         /* the first one's place */
    bool fresh;            /* they had none before */
    uint64_t offset, len;  /* the guest bytes that are there now: whole units,
                              the last one perhaps cut off by the image's end */
};

/* What a format supplies. All are called with the lock held; guest offsets are
 * relative to b->start. */
struct blocks_ops {
    /* As rhea_format_ops.map, with the meaning above. OFFSET lies inside. */
    int (*map)(struct blocks *b, uint64_t offset, uint64_t len,
               struct rhea_extent *extent, struct rhea_error *err);
    /* Something is about to be changed, for the first time, be it a byte that
     * has its place: durable when it returns. NULL: nothing to do. */
    int (*begin)(struct blocks *b, struct rhea_error *err);
    /* Places for *COUNT blocks from BLOCK on, of which none has one; fewer are
     * fine, at least 1. They follow each other from *HOST on, and lie where the
     * file had ended: blocks_extend. Also whatever table their entries need.
     * NULL: right at the end of the file. */
    int (*place)(struct blocks *b, uint64_t block, uint64_t *count,
                 uint64_t *host, struct rhea_error *err);
    /* Let the tables know, in the cache. */
    int (*link)(struct blocks *b, const struct blocks_piece *piece,
                struct rhea_error *err);
    /* Blocks that have no place read as zeroes from now on, whatever is below;
     * *COUNT may be made smaller. NULL: the format cannot say so. */
    int (*zero)(struct blocks *b, uint64_t block, uint64_t *count,
                struct rhea_error *err);
    /* Write back what is cached; see the order above. */
    int (*write_back)(struct blocks *b, struct rhea_error *err);
    /* Without the lock: put guest bytes at HOST in the form in which they are
     * kept there (encrypted), so that zeroes are no zeroes in the file. NULL:
     * as they are. */
    int (*put)(struct blocks *b, uint64_t offset, uint64_t host,
               const void *buf, size_t len, struct rhea_error *err);
};

/* Guest blocks that a write has begun on and not yet linked. */
struct blocks_flight {
    uint64_t first, last;
    struct blocks_flight *next;
};

/*
 * The format sets all down to WRITABLE between blocks_init and the first use.
 * LOCK guards the rest, and the format's own tables.
 */
struct blocks {
    const struct blocks_ops *ops;
    struct rhea_format *format;   /* knows what is below */
    struct rhea_storage *storage; /* of the blocks */
    uint64_t start;               /* guest offset of the first block, bytes */
    uint64_t size;                /* guest bytes */
    uint32_t block_size, unit;    /* unit divides block_size; any numbers */
    uint64_t file_end; /* what is handed out so far: the next place. The file
                          holds nothing of worth past it */
    bool child;        /* something may be below, so that zeroes must be said */
    bool writable;

    pthread_mutex_t lock;
    pthread_cond_t landed;
    struct blocks_flight *flights;
    uint64_t grown; /* the file is known to reach this far; 0 before the first
                       change */
    bool failed;    /* a table write or a flush failed: no more writes */
};

void blocks_init(struct blocks *b, const struct blocks_ops *ops,
                 struct rhea_format *format);
void blocks_finish(struct blocks *b);

/* As the members of struct rhea_format_ops of the same name; offsets are
 * relative to b->start, and in the extent too. */
int blocks_map(struct blocks *b, uint64_t offset, uint64_t len,
               struct rhea_extent *extent, struct rhea_error *err);
int blocks_write(struct blocks *b, uint64_t offset, const void *buf, size_t len,
                 struct rhea_error *err);
int blocks_clone(struct blocks *b, uint64_t offset, struct rhea_storage *from,
                 uint64_t from_offset, uint64_t len, struct rhea_error *err);
int blocks_write_zeroes(struct blocks *b, uint64_t offset, uint64_t len,
                        bool unmap, struct rhea_error *err);
/* For an image that grows: what the tables have between FROM and END already,
 * which nobody could see, reads as zeroes from now on; with HIDE_BELOW what is
 * below does, too. SIZE is the new one already. */
int blocks_hide(struct blocks *b, uint64_t from, uint64_t end, bool hide_below,
                struct rhea_error *err);
int blocks_flush(struct blocks *b, struct rhea_error *err);

/* The rest with the lock held. */

/* Hand out BYTES at the end of the file; for ops->place, and for tables. */
int blocks_extend(struct blocks *b, uint64_t bytes, uint64_t *host,
                  struct rhea_error *err);
/* The file reaches as far as what was handed out; what was not written to is
 * zeroes. For new tables. */
int blocks_grow(struct blocks *b, struct rhea_error *err);
/* Before the first change of a table: ops->begin, and what the file holds past
 * file_end is cut off. */
int blocks_begin(struct blocks *b, struct rhea_error *err);
/* Around a change of the whole image: nothing is in flight, all is durable
 * before, and what was changed after. RET is how the change went. */
int blocks_change_begin(struct blocks *b, struct rhea_error *err);
int blocks_change_end(struct blocks *b, int ret, struct rhea_error *err);
/* Around a write that the format does by itself, such as of compressed data, so
 * that nobody else gives the same blocks a place. False: it had to wait, and
 * what the map says may be another thing now. FLIGHT is the caller's. */
bool blocks_flight_begin(struct blocks *b, struct blocks_flight *flight,
                         uint64_t first, uint64_t last);
void blocks_flight_end(struct blocks *b, struct blocks_flight *flight);

#endif
