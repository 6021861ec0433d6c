/* SPDX-License-Identifier: MIT */
/* What the files for sparse extents share. With the extent's lock held,
 * unless they say otherwise. */
#ifndef RHEA_FORMAT_VMDK_SPARSE_H
#define RHEA_FORMAT_VMDK_SPARSE_H

#include <stddef.h>

#include "format/vmdk/vmdk.h"

static inline struct vmdk_extent *vmdk_extent_of(struct blocks *b)
{
    return (struct vmdk_extent *)((char *)b -
                                  offsetof(struct vmdk_extent, blocks));
}

/* Whether the file has room for a grain table there. */
bool vmdk_table_fits(const struct vmdk_extent *x, uint64_t table);
/* Grain table INDEX, 0: there is none, of the one directory or its copy. */
int vmdk_table_find(struct vmdk_extent *x, uint64_t index, bool redundant,
                    uint64_t *table, struct rhea_error *err);

/* The second notes zeroes in tables. */
extern const struct blocks_ops vmdk_sparse_ops, vmdk_zeroed_ops;
/* Without the lock, on closing. */
int vmdk_sparse_close(struct vmdk_extent *x, struct rhea_error *err);

#endif
