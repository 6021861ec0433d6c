/* SPDX-License-Identifier: MIT */
/* VDI images in memory. Since they find their parents by searching a folder,
 * there is one with a single file in it. */
#ifndef VDI_LIB_H
#define VDI_LIB_H

#include "image_lib.h"

static inline const struct rhea_format_ops *vdi_ops(void)
{
    return rhea_format_find("vdi");
}

/* The folder's file, "base.vdi"; NULL: none. */
static struct rhea_storage *vdi_base;

static inline int
vdi_search(void *opaque,
           int (*accept)(void *accept_opaque, struct rhea_storage *file),
           void *accept_opaque, char **out, struct rhea_error *e)
{
    (void)opaque;
    (void)e;
    int ret = vdi_base ? accept(accept_opaque, vdi_base) : 0;
    *out = ret == 1 ? strdup("base.vdi") : NULL;
    return ret < 0 ? ret : 0;
}

static const struct rhea_files vdi_files = {.search = vdi_search};

/* With blocks of 4 KiB. */
static inline struct rhea_storage *vdi_make_over(uint64_t size,
                                                 struct rhea_format *parent)
{
    const struct rhea_create how = {
        .size = size,
        .backing_file = parent ? "base.vdi" : NULL,
        .files = &vdi_files,
        .parent = parent,
    };
    return image_make(vdi_ops(), how, "block_size=4k");
}

static inline struct rhea_storage *vdi_make(uint64_t size)
{
    return vdi_make_over(size, NULL);
}

/* A child of what the folder has, which is made where there is none. */
static inline struct rhea_storage *vdi_make_child(uint64_t size)
{
    if (!vdi_base)
        vdi_base = vdi_make(size);
    struct rhea_format *parent = image_open_ok(vdi_ops(), vdi_base, 0);
    struct rhea_storage *s = vdi_make_over(size, parent);
    image_close_ok(parent);
    return s;
}

#endif
