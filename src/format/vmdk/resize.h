/* SPDX-License-Identifier: MIT */
/* What the files for resizing share. */
#ifndef RHEA_FORMAT_VMDK_RESIZE_H
#define RHEA_FORMAT_VMDK_RESIZE_H

#include "format/vmdk/sparse.h"

struct resize {
    struct vmdk *v;
    const struct rhea_resize *how;
    const char *mode; /* of preallocation */
    uint64_t size;    /* of the disk, from then on */
    size_t last;      /* the extent in which the disk ends then, of those that
                         are there */
    uint64_t last_size;
    uint64_t split; /* extents are no larger; UINT64_MAX: as may be */
    /* New ones behind it. */
    char *lines; /* of the descriptor, malloc'd; NULL: none */
    size_t n_more;
};

static inline struct vmdk_extent *vmdk_resize_last(const struct resize *r)
{
    return &r->v->extents[r->last];
}

/* resize_more.c: make the extents that have to follow the last one, in memory
 * behind those that the image has. */
int vmdk_resize_more(struct resize *r, struct rhea_error *err);
/* They belong to the image from now on, or not KEEP: their files go. */
void vmdk_resize_finish_more(struct resize *r, bool keep);

/* relayout.c: the tables of X, a hosted extent, as a new extent of SIZE guest
 * bytes has them, in front of the grains, those that are new empty. The header
 * still says the old size. With the lock, in a change of the whole extent. */
int vmdk_relayout(struct vmdk_extent *x, uint64_t size, struct rhea_error *err);
/* The header of X on the disk, as it is. */
int vmdk_header_load(struct vmdk_extent *x, uint8_t *p, struct rhea_error *err);
int vmdk_header_store(struct vmdk_extent *x, const uint8_t *p,
                      struct rhea_error *err);

/* resize_sparse.c: all is prepared for X to be SIZE bytes large, but that its
 * header, on the disk, and the descriptor say the old size; in memory it has
 * the new one. */
int vmdk_sparse_grow(struct vmdk_extent *x, uint64_t size, bool hide_below,
                     struct rhea_error *err);
/* P, its header, which has HOSTED_HEADER_BYTES, with the new size. */
void vmdk_sparse_put_size(const struct vmdk_extent *x, uint8_t *p,
                          uint64_t size);
/* What is behind the end that X has now is given back. */
int vmdk_sparse_shrink(struct vmdk_extent *x, struct rhea_error *err);

/* compact.c: grains from the end of the file fill places that nobody uses, and
 * the file is cut off. Nothing where X has a corruption. With the lock, in a
 * change of the whole extent. */
int vmdk_compact(struct vmdk_extent *x, struct rhea_error *err);

#endif
