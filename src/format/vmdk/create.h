/* SPDX-License-Identifier: MIT */
/* New images. */
#ifndef RHEA_FORMAT_VMDK_CREATE_H
#define RHEA_FORMAT_VMDK_CREATE_H

#include "format/vmdk/vmdk.h"

enum {
    NEW_GRAIN_SECTORS = 128,
    NEW_TABLE_ENTRIES = 512,
    NEW_DESCRIPTOR_SECTOR = 1,
    /* Of streams, as VMware's own; grains begin there. */
    NEW_STREAM_OVERHEAD = 128,
};

/* A type of image. */
struct new_type {
    const char *name; /* as option subformat, and in the descriptor */
    const char *line; /* type of its extents, in the descriptor */
    char letter;      /* "NAME-s001.vmdk"; 0: not split */
    const char *tail; /* "NAME-flat.vmdk"; NULL: the extent has the descriptor
                         inside, or LETTER says it */
    enum vmdk_kind kind;
    bool compressed;
};

/* By that name; NULL: there is none. */
const struct new_type *new_find_type(const char *name);

/* What is asked for. */
struct new_image {
    const struct new_type *type;
    const char *adapter, *hw_version, *tools_version, *preallocation;
    bool zero_grains;
    uint64_t size;
    uint32_t cid, parent_cid;
    const char *parent; /* NULL: none */
    const char *name;   /* of the image's own file */
};

/* The extent number INDEX, from 0, has how many bytes, and in which file;
 * NAME malloc'd. */
uint64_t new_extent_size(const struct new_image *n, unsigned index);
unsigned new_n_extents(const struct new_image *n);
char *new_extent_name(const struct new_image *n, unsigned index);
/* Whether an image of that type can be of that size. */
int new_check_size(const struct new_image *n, struct rhea_error *err);

/* create_text.c: the descriptor, malloc'd. */
int new_descriptor(const struct new_image *n, char **text,
                   struct rhea_error *err);
/* The cylinders and so on that adapters of that type tell the guest of. */
struct new_geometry {
    uint64_t cylinders;
    unsigned heads, sectors;
};
struct new_geometry new_geometry(const char *adapter, uint64_t size);

/* create_extent.c: an empty extent of SIZE guest bytes, durable. TEXT: the
 * descriptor inside; NULL: none. MEASURE of the same: the bytes that the file
 * has then. */
int new_extent(struct rhea_storage *storage, const struct new_image *n,
               uint64_t size, const char *text, struct rhea_error *err);
int new_extent_check(const struct new_image *n, uint64_t size,
                     struct rhea_error *err);
uint64_t new_extent_overhead(const struct new_image *n, uint64_t size,
                             bool inside);

/* --- create.c --- */
extern const struct rhea_option_help vmdk_create_options[];
int vmdk_create(struct rhea_storage *storage, const struct rhea_create *how,
                struct rhea_error *err);
/* One option into N; *COMPAT6: it was that one, which is on. */
int new_take_option(const struct rhea_option *o, struct new_image *n,
                    bool *compat6, struct rhea_error *err);
/* Parse options into N, except what files there are. */
int new_take_options(struct new_image *n, const struct rhea_option *options,
                     size_t n_options, struct rhea_error *err);

#endif
