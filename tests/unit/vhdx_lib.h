/* SPDX-License-Identifier: MIT */
/* VHDX images in memory. */
#ifndef VHDX_LIB_H
#define VHDX_LIB_H

#include "base/cleanup.h"
#include "format/vhdx/vhdx.h"
#include "image_lib.h"

static inline const struct rhea_format_ops *vhdx_ops(void)
{
    return rhea_format_find("vhdx");
}

/* OPTIONS: "name=value name=value". PARENT NULL: none. */
static inline struct rhea_storage *vhdx_make(uint64_t size, const char *options,
                                             struct rhea_format *parent)
{
    const struct rhea_create how = {
        .size = size,
        .backing_file = parent ? "base.vhdx" : NULL,
        .parent = parent,
    };
    return image_make(vhdx_ops(), how, options);
}

static inline struct rhea_format *vhdx_open_ok(struct rhea_storage *s,
                                               unsigned flags)
{
    return image_open_ok(vhdx_ops(), s, flags);
}

/* A child of an image with the same options. */
static inline struct rhea_storage *
vhdx_make_child(uint64_t size, const char *base_options, const char *options)
{
    struct rhea_storage *base = vhdx_make(size, base_options, NULL);
    struct rhea_format *parent = vhdx_open_ok(base, 0);
    struct rhea_storage *s = vhdx_make(size, options, parent);
    image_close_ok(parent);
    rhea_storage_close(base);
    return s;
}

#endif
