/* SPDX-License-Identifier: MIT */
/* VDI images in memory. Since they find their parents by searching a folder,
 * there is one with a single file in it. */
#ifndef VDI_LIB_H
#define VDI_LIB_H

#include <rhea/format.h>

#include "lib/test.h"
#include "storage/memory.h"

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

static inline struct rhea_storage *
vdi_make_options(uint64_t size, const struct rhea_option *options, size_t n,
                 struct rhea_format *parent)
{
    struct rhea_error e;
    struct rhea_storage *s;
    const struct rhea_create how = {
        .size = size,
        .backing_file = parent ? "base.vdi" : NULL,
        .options = options,
        .n_options = n,
        .files = &vdi_files,
        .parent = parent,
    };
    if (!CHECK_OK(rhea_memory_open(&s, INT64_MAX, &e), &e) ||
        !CHECK_OK(vdi_ops()->create(s, &how, &e), &e))
        exit(99);
    return s;
}

/* With blocks of 4 KiB. */
static inline struct rhea_storage *vdi_make(uint64_t size)
{
    const struct rhea_option options[] = {{"block_size", "4k"}};
    return vdi_make_options(size, options, 1, NULL);
}

/* A child of what the folder has, which is made where there is none. */
static inline struct rhea_storage *vdi_make_child(uint64_t size)
{
    const struct rhea_option options[] = {{"block_size", "4k"}};
    struct rhea_error e;
    struct rhea_format *parent;
    if (!vdi_base)
        vdi_base = vdi_make(size);
    if (!CHECK_OK(rhea_format_open_over(vdi_ops(), &parent, vdi_base, 0, &e),
                  &e))
        exit(99);
    struct rhea_storage *s = vdi_make_options(size, options, 1, parent);
    CHECK_OK(parent->ops->close(parent, &e), &e);
    return s;
}

#endif
