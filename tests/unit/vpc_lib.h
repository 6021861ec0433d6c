/* SPDX-License-Identifier: MIT */
/* VHD images in memory. */
#ifndef VPC_LIB_H
#define VPC_LIB_H

#include <rhea/format.h>

#include "lib/test.h"
#include "storage/memory.h"

static inline const struct rhea_format_ops *vpc_ops(void)
{
    return rhea_format_find("vpc");
}

static inline struct rhea_storage *
vpc_make_options(uint64_t size, const struct rhea_option *options, size_t n,
                 struct rhea_format *parent)
{
    struct rhea_error e;
    struct rhea_storage *s;
    const struct rhea_create how = {
        .size = size,
        .backing_file = parent ? "base.vhd" : NULL,
        .backing_format = parent ? "vpc" : NULL,
        .options = options,
        .n_options = n,
        .parent = parent,
    };
    if (!CHECK_OK(rhea_memory_open(&s, INT64_MAX, &e), &e) ||
        !CHECK_OK(vpc_ops()->create(s, &how, &e), &e))
        exit(99);
    return s;
}

static const struct rhea_option vpc_small[] = {{"block_size", "4k"},
                                               {"force_size", "on"}};

/* With blocks of 4 KiB. */
static inline struct rhea_storage *vpc_make(uint64_t size)
{
    return vpc_make_options(size, vpc_small, 2, NULL);
}

static inline struct rhea_storage *vpc_make_fixed(uint64_t size)
{
    const struct rhea_option options[] = {{"subformat", "fixed"},
                                          {"force_size", "on"}};
    return vpc_make_options(size, options, 2, NULL);
}

/* A child of an image that is gone then. */
static inline struct rhea_storage *vpc_make_child(uint64_t size)
{
    struct rhea_error e;
    struct rhea_storage *base = vpc_make(size);
    struct rhea_format *parent;
    if (!CHECK_OK(rhea_format_open_over(vpc_ops(), &parent, base, 0, &e), &e))
        exit(99);
    struct rhea_storage *s = vpc_make_options(size, vpc_small, 2, parent);
    CHECK_OK(parent->ops->close(parent, &e), &e);
    rhea_storage_close(base);
    return s;
}

#endif
