/* SPDX-License-Identifier: MIT */
/* What the files for sparse extents share. With the extent's lock held,
 * unless they say otherwise. */
#ifndef RHEA_FORMAT_VMDK_SPARSE_H
#define RHEA_FORMAT_VMDK_SPARSE_H

#include <stddef.h>

#include "format/vmdk/vmdk.h"

static inline struct vmdk_extent *vmdk_extent_of(struct blocks *b)
{
    return (void *)((char *)b - offsetof(struct vmdk_extent, blocks));
}

/* What an entry of a grain table says. */
struct vmdk_grain {
    enum rhea_extent_kind kind;
    uint64_t host;
    bool has_host;
};
/* False: it can mean nothing. */
bool vmdk_grain_decode(const struct vmdk_extent *x, const uint8_t *p,
                       struct vmdk_grain *g);
/* Whether BYTES of the file at AT are a hole. */
bool vmdk_is_hole(struct vmdk_extent *x, uint64_t at, uint64_t bytes);
/* After tables were written to. */
void vmdk_forget_holes(struct vmdk_extent *x);
/* Entry INDEX of the directory at DIRECTORY: *TABLE is 0 where there is none;
 * not *GOOD: it cannot be right. */
int vmdk_directory_entry(struct vmdk_extent *x, uint64_t directory,
                         uint64_t index, uint64_t *table, bool *good,
                         struct rhea_error *err);
/* Whether the header's numbers, by which the directory is so long, go with
 * where its first entries lead: a sector more for it is a table less. */
int vmdk_check_directory(struct vmdk_extent *x, struct rhea_error *err);
/* How many entries of the directory at DIRECTORY, from INDEX on, are in a hole
 * of the file. Of one of many GiB, which a header claims as easily, that is
 * nearly all. The cache may only have entries that were set to 0. */
uint64_t vmdk_directory_hole(struct vmdk_extent *x, uint64_t directory,
                             uint64_t index);
/* Whether the file has room for a grain table there. */
bool vmdk_table_fits(const struct vmdk_extent *x, uint64_t table);
/* Grain table INDEX, 0: there is none, of the one directory or its copy. */
int vmdk_table_find(struct vmdk_extent *x, uint64_t index, bool redundant,
                    uint64_t *table, struct rhea_error *err);
/* The one that is read: the first copy or, where that is none, the other. */
int vmdk_map_table(struct vmdk_extent *x, uint64_t index, uint64_t *table,
                   struct rhea_error *err);
/* How many tables from INDEX on, 0 where that is not known, there are not in
 * any copy, for their entries are in holes of the file. A header claims
 * directories of many GiB as easily as small ones. */
uint64_t vmdk_no_tables(struct vmdk_extent *x, uint64_t index);
/* Where to go on, from guest offset AT of X, after those. */
uint64_t vmdk_skip_tables(struct vmdk_extent *x, uint64_t at);

/* The second notes zeroes in tables. */
extern const struct blocks_ops vmdk_sparse_ops, vmdk_zeroed_ops;
/* Where grain table INDEX is, in the cache. */
int vmdk_sparse_set_directory(struct vmdk_extent *x, bool redundant,
                              uint64_t index, uint64_t table,
                              struct rhea_error *err);
/* COUNT entries of grains from BLOCK on, which are in one table, become ENTRY
 * and from there on by STEP more, in both copies, in the cache. */
int vmdk_sparse_set(struct vmdk_extent *x, uint64_t block, uint64_t count,
                    uint32_t entry, uint32_t step, struct rhea_error *err);
/* Whether entries can tell of what is before offset END of the file. */
int vmdk_sparse_limit(const struct vmdk_extent *x, uint64_t end,
                      struct rhea_error *err);
/* Let the header say that the extent was not closed, or that it was. */
int vmdk_sparse_mark(struct vmdk_extent *x, bool unclean,
                     struct rhea_error *err);
/* Without the lock, on closing. */
int vmdk_sparse_close(struct vmdk_extent *x, struct rhea_error *err);

#endif
