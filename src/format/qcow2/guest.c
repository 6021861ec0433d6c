/* SPDX-License-Identifier: MIT */
/* Guest bytes as this image and what lies below it have them, for copying
 * what a write leaves alone. */
#include <errno.h>

#include "format/qcow2/qcow2.h"

static int guest_read_extent(struct qcow2 *q, const struct rhea_extent *x,
                             uint64_t offset, void *buf, size_t len,
                             struct rhea_error *err)
{
    switch (x->kind) {
    case RHEA_EXTENT_DATA:
        return rhea_storage_read_padded(x->storage, buf, len, x->host, err);
    case RHEA_EXTENT_COMPRESSED:
    case RHEA_EXTENT_ENCRYPTED:
        return qcow2_read(&q->f, offset, buf, len, err);
    case RHEA_EXTENT_UNALLOCATED:
        if (q->f.below)
            return q->f.below(q->f.below_opaque, offset, buf, len, err);
        __attribute__((fallthrough));
    case RHEA_EXTENT_ZERO:
    default:
        memset(buf, 0, len);
        return 0;
    }
}

static bool guest_is_zero(const struct qcow2 *q, const struct rhea_extent *x)
{
    return x->kind == RHEA_EXTENT_ZERO ||
           (x->kind == RHEA_EXTENT_UNALLOCATED && !q->f.below);
}

int qcow2_guest_zero(struct qcow2 *q, uint64_t offset, uint64_t len, bool *zero,
                     struct rhea_error *err)
{
    uint64_t end = RHEA_MIN(offset + len, q->f.size);

    *zero = true;
    while (*zero && offset < end) {
        struct rhea_extent x;
        int r = qcow2_map(&q->f, offset, end - offset, &x, err);

        if (r < 0)
            return r;
        *zero = guest_is_zero(q, &x);
        offset += x.length;
    }
    return 0;
}

int qcow2_read_guest(struct qcow2 *q, uint64_t offset, void *buf, size_t len,
                     struct rhea_error *err)
{
    uint8_t *at = buf;

    while (len) {
        struct rhea_extent x;
        size_t n;
        int r;

        if (offset >= q->f.size) {
            memset(at, 0, len);
            return 0;
        }
        r = qcow2_map(&q->f, offset, len, &x, err);
        if (r < 0)
            return r;
        n = (size_t)x.length;
        r = guest_read_extent(q, &x, offset, at, n, err);
        if (r < 0)
            return r;
        at += n;
        offset += n;
        len -= n;
    }
    return 0;
}
