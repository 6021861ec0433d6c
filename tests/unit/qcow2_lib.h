/* SPDX-License-Identifier: MIT */
/* qcow2 images in memory, for the tests of the driver. */
#ifndef QCOW2_LIB_H
#define QCOW2_LIB_H

#include "image_lib.h"

static inline const struct rhea_format_ops *qcow2_ops(void)
{
    return rhea_format_find("qcow2");
}

/* A new, empty image. OPTIONS: "name=value name=value". */
static inline struct rhea_storage *
qcow2_make(uint64_t size, const char *options, const char *backing)
{
    const struct rhea_create how = {.size = size, .backing_file = backing};
    return image_make(qcow2_ops(), how, options);
}

static inline struct rhea_format *qcow2_open_ok(struct rhea_storage *s,
                                                unsigned flags)
{
    return image_open_ok(qcow2_ops(), s, flags);
}

#endif
