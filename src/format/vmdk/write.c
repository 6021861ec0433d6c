/* SPDX-License-Identifier: MIT */
/*
 * The guest's writes, extent by extent. Flat extents are written in place, once
 * the image has a new content id.
 */
#include <errno.h>
#include <inttypes.h>

#include "base/checked.h"
#include "format/vmdk/sparse.h"
#include "format/vmdk/stream.h"

/* The part of [OFFSET, OFFSET + *LEN) in the first extent that has any; *AT is
 * relative to that. */
static int write_find(struct vmdk *v, uint64_t offset, uint64_t *len,
                      struct vmdk_extent **x, uint64_t *at,
                      struct rhea_error *err)
{
    if (!range_inside(offset, *len, v->base.size))
        return rhea_error_set(err, EINVAL,
                              "cannot write %" PRIu64
                              " bytes at guest offset %" PRIu64
                              ": past the end of the image",
                              *len, offset);
    *x = vmdk_find_extent(v, offset);
    *at = offset - (*x)->start;
    *len = RHEA_MIN(*len, (*x)->size - *at);
    if (!(*x)->writable || !(*x)->file)
        return rhea_error_set(err, EACCES,
                              "guest offset %" PRIu64 " is in an extent that "
                              "can only be read",
                              offset);
    return 0;
}

int vmdk_write(struct rhea_format *f, uint64_t offset, const void *buf,
               size_t len, struct rhea_error *err)
{
    struct vmdk *v = vmdk_of(f);
    const uint8_t *p = buf;
    int ret = 0;
    while (!ret && len) {
        struct vmdk_extent *x;
        uint64_t n = len, at;
        ret = write_find(v, offset, &n, &x, &at, err);
        if (ret)
            return ret;
        if (x->h.compressed)
            ret = vmdk_stream_write(x, at, p, (size_t)n, err);
        else if (x->has_blocks)
            ret = blocks_write(&x->blocks, at, p, (size_t)n, err);
        else
            ret = vmdk_renew_identity(f, err);
        if (!ret && !x->has_blocks) {
            rhea_storage_event(x->file, "write_aio");
            ret = rhea_storage_write(x->file, p, (size_t)n, x->flat_offset + at,
                                     err);
        }
        p += n;
        offset += n;
        len -= (size_t)n;
    }
    return ret;
}

int vmdk_write_zeroes(struct rhea_format *f, uint64_t offset, uint64_t len,
                      bool unmap, struct rhea_error *err)
{
    struct vmdk *v = vmdk_of(f);
    int ret = 0;
    while (!ret && len) {
        struct vmdk_extent *x;
        uint64_t n = len, at;
        ret = write_find(v, offset, &n, &x, &at, err);
        if (ret)
            return ret;
        if (x->h.compressed)
            ret = vmdk_stream_write_zeroes(x, at, n, err);
        else if (x->has_blocks)
            ret = blocks_write_zeroes(&x->blocks, at, n, unmap, err);
        else
            ret = vmdk_renew_identity(f, err);
        if (!ret && !x->has_blocks)
            ret =
                rhea_storage_zero(x->file, x->flat_offset + at, n, unmap, err);
        offset += n;
        len -= n;
    }
    return ret;
}

/* What has a place and is not needed becomes a hole of the file. */
int vmdk_discard(struct rhea_format *f, uint64_t offset, uint64_t len,
                 struct rhea_error *err)
{
    int ret = 0;
    while (!ret && len) {
        struct rhea_extent e;
        ret = vmdk_map(f, offset, len, &e, err);
        if (ret)
            return ret;
        if (e.kind == RHEA_EXTENT_DATA)
            ret = vmdk_write_zeroes(f, offset, e.length, true, err);
        offset += e.length;
        len -= e.length;
    }
    return ret;
}

int vmdk_flush(struct rhea_format *f, struct rhea_error *err)
{
    struct vmdk *v = vmdk_of(f);
    int ret = 0;
    for (size_t i = 0; !ret && i < v->n_extents; i++) {
        struct vmdk_extent *x = &v->extents[i];
        if (!x->writable)
            continue;
        if (x->has_blocks)
            ret = blocks_flush(&x->blocks, err);
        else if (x->kind == VMDK_FLAT)
            ret = rhea_storage_flush(x->file, err);
    }
    return ret;
}
