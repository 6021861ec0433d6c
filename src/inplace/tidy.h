/* SPDX-License-Identifier: MIT */
/*
 * Tidying: an image of the target format has gaps, which the source's tables
 * left, and a tail, the tables that were staged behind the source. Clusters
 * from the end are moved into the gaps until there are none, then the file is
 * cut off. It works from what is on disk alone, so finishing after a crash is
 * the same as doing it the first time.
 *
 * A scan finds what is in use. Then it goes in rounds, each of which chooses
 * moves and applies them:
 *
 *   copy      clusters, and tables with their new pointers, into gaps: nothing
 *             refers to those yet
 *   flush
 *   switch    pointers in tables that stay, and in the header: each in one
 *             sector, each from one copy to an equal one, so that any subset
 *             of these writes is a sound image
 *   flush
 *
 * When no cluster is left at or past the final end, reference counts past it
 * become 0 (a leaked cluster becomes a free one), flush. When every
 * pointer is seen to lie before the end, the file is cut.
 */
#ifndef RHEA_INPLACE_TIDY_H
#define RHEA_INPLACE_TIDY_H

#include "base/bitmap.h"
#include "inplace/layout.h"

/* One object on its way: a cluster, or a table of several. In clusters. */
struct move {
    uint64_t from, to;
    uint32_t count;
    bool plain; /* its bytes hold no pointers */
};

struct tidy {
    struct rhea_storage *storage;
    const struct rhea_progress *progress;
    struct layout layout;

    /* Of the last scan, kept up to date by every round. */
    uint64_t file_size;         /* and what was written behind it since */
    uint64_t file_clusters;     /* whole or begun */
    struct bitmap used, tables; /* clusters in use; those that are header or
                                   tables */
    uint64_t *l1;               /* values, in the machine's byte order */
    uint64_t *highest;    /* of each L2 table: no host offset in it is larger */
    uint64_t *reftable;   /* likewise; NULL without reference counts */
    uint64_t refblocks;   /* entries of reftable */
    uint64_t n_used, end; /* clusters in use; end of the last one */
    uint64_t n_final;     /* in use once surplus reference counts are gone */
    uint64_t shrinks_to;  /* what the refcount table has then, which n_final is
                             without; 0: it does not shrink */

    /* Of this round, sorted by `from`. */
    struct move *moves;
    size_t n_moves, max_moves;
    bool data_moves; /* some L2 entries change */

    uint64_t waiting; /* bytes written that the disk was not yet given */
    uint8_t *buffer;  /* TIDY_BUFFER bytes */
};

#define TIDY_BUFFER ((size_t)1 << 20)
#define TIDY_MOVES_MAX ((size_t)1 << 18) /* a round's, 8 MiB of memory */

/* Safe to finish after failure. */
int tidy_init(struct tidy *t, struct rhea_storage *storage,
              const struct layout_ops *ops,
              const struct rhea_progress *progress, struct rhea_error *err);
void tidy_finish(struct tidy *t);

/* Read what is in the file, zeroes past file_size. What was in it and is no
 * longer there is an error: it must not become zeroes. */
int tidy_read(struct tidy *t, void *buf, size_t len, uint64_t offset,
              struct rhea_error *err);
int tidy_write(struct tidy *t, const void *buf, size_t len, uint64_t offset,
               struct rhea_error *err);
int tidy_zero(struct tidy *t, uint64_t offset, uint64_t len, bool punch,
              struct rhea_error *err);

/* Load the layout and everything that is in use. -ENOTSUP as layout_ops.load;
 * -EINVAL where the image is not sound. */
int tidy_scan(struct tidy *t, struct rhea_error *err);

/* The size the file has when nothing is left to be done after this scan. */
uint64_t tidy_final_size(const struct tidy *t);
/* Whether the scan left something to be done. Sets *DONE. */
int tidy_is_done(struct tidy *t, bool *done, struct rhea_error *err);

/* How many clusters are not where they can stay: past n_used, or past n_final
 * and a part of a table of several. */
uint64_t tidy_left(const struct tidy *t);
/* At most how many clusters behind the last one will hold something on the way
 * to having none left. */
uint64_t tidy_aside(const struct tidy *t);
/* Choose moves for a round; only where some clusters are left. */
int tidy_choose(struct tidy *t, struct rhea_error *err);
/* Where the object whose first cluster is FROM goes; FROM when it stays. */
uint64_t tidy_target(const struct tidy *t, uint64_t from);

/* Carry the round's moves out. */
int tidy_apply(struct tidy *t, struct rhea_error *err);

/* Copy N objects whose bytes do not change. */
int tidy_copy(struct tidy *t, const struct move *moves, size_t n,
              struct rhea_error *err);
/* Whether that is worth it, and leaves the file as long as it is. */
bool tidy_copy_pays(const struct tidy *t, const struct move *moves, size_t n);

/* Reference counts (layouts that have them). */
/* Set those of the moves' destinations to 1 where they are not. */
int tidy_claim(struct tidy *t, struct rhea_error *err);
/* What n_final and shrinks_to are, from n_used. */
uint64_t tidy_counts_final(const struct tidy *t, uint64_t *shrinks_to);
/* Whether any count past the end, or a block or table only for those, is left.
 */
int tidy_counts_done(struct tidy *t, bool *done, struct rhea_error *err);
/* Clear them. *AGAIN: that made gaps, so it takes more rounds. */
int tidy_clear_counts(struct tidy *t, bool *again, struct rhea_error *err);

/* All of it, until nothing is left. */
int tidy_run(struct tidy *t, struct rhea_error *err);

/* The whole of table L2 number INDEX, slice by slice: FN may change the
 * entries; what it does with them is its own business. */
typedef int tidy_slice_fn(struct tidy *t, void *opaque, uint64_t host,
                          uint8_t *entries, uint64_t n, struct rhea_error *err);
int tidy_each_slice(struct tidy *t, uint64_t index, tidy_slice_fn *fn,
                    void *opaque, struct rhea_error *err);

#endif
