/* SPDX-License-Identifier: MIT */
/* VHD images in memory. */
#ifndef VPC_LIB_H
#define VPC_LIB_H

#include "image_lib.h"

static inline const struct rhea_format_ops *vpc_ops(void)
{
    return rhea_format_find("vpc");
}

static inline struct rhea_storage *
vpc_make_options(uint64_t size, const char *options, struct rhea_format *parent)
{
    const struct rhea_create how = {
        .size = size,
        .backing_file = parent ? "base.vhd" : NULL,
        .backing_format = parent ? "vpc" : NULL,
        .parent = parent,
    };
    return image_make(vpc_ops(), how, options);
}

/* With blocks of 4 KiB. */
static const char vpc_small[] = "block_size=4k force_size=on";

static inline struct rhea_storage *vpc_make(uint64_t size)
{
    return vpc_make_options(size, vpc_small, NULL);
}

static inline struct rhea_storage *vpc_make_fixed(uint64_t size)
{
    return vpc_make_options(size, "subformat=fixed force_size=on", NULL);
}

/* A child of an image that is gone then. */
static inline struct rhea_storage *vpc_make_child(uint64_t size)
{
    struct rhea_storage *base = vpc_make(size);
    struct rhea_format *parent = image_open_ok(vpc_ops(), base, 0);
    struct rhea_storage *s = vpc_make_options(size, vpc_small, parent);
    image_close_ok(parent);
    rhea_storage_close(base);
    return s;
}

#endif
