/* SPDX-License-Identifier: MIT */
/*
 * Zeroes that stay. A format need not do anything where it is asked to zero
 * what reads as zeroes already, and so may leave it to a backing image that is
 * about to be another one.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "convert/source.h"

enum { WRITE_PIECE = 1 << 20 };

static int write_zero_bytes(struct rhea_image *image, uint64_t offset,
                            uint64_t len, void **zeroes, struct rhea_error *err)
{
    int ret = 0;

    if (!*zeroes)
        *zeroes = calloc(1, WRITE_PIECE);
    if (!*zeroes)
        return rhea_error_set(err, ENOMEM, "out of memory");
    while (len && ret == 0) {
        size_t n = (size_t)RHEA_MIN(len, (uint64_t)WRITE_PIECE);

        ret = rhea_image_write(image, *zeroes, n, offset, err);
        offset += n;
        len -= n;
    }
    return ret;
}

int convert_write_zeroes(struct rhea_image *image, uint64_t offset,
                         uint64_t len, struct rhea_error *err)
{
    struct rhea_format *format = rhea_image_format(image);
    RHEA_AUTO_FREE void *zeroes = NULL;
    struct rhea_extent x;
    int ret = rhea_image_write_zeroes(image, offset, len, true, err);

    for (; len && ret == 0; offset += x.length, len -= x.length) {
        ret = format->ops->map(format, offset, len, &x, err);
        if (ret == 0 && x.kind == RHEA_EXTENT_UNALLOCATED)
            ret = write_zero_bytes(image, offset, x.length, &zeroes, err);
    }
    return ret;
}
