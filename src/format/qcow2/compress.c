/* SPDX-License-Identifier: MIT */
/*
 * Writing compressed clusters, one after the other without gaps, so that
 * several share a host cluster, each with a reference of its own, and one may
 * go on in the next cluster if that follows.
 */
#include <errno.h>
#include <inttypes.h>

#include <zlib.h>
#include <zstd.h>

#include "format/qcow2/qcow2.h"

/* Other readers decode with a window of 4 KiB, and so it must be no larger. */
#define COMPRESS_WINDOW_BITS 12

static size_t compress_deflate(const void *in, size_t len, uint8_t *out,
                               size_t max)
{
    z_stream z = {.next_in = (Bytef *)(uintptr_t)in,
                  .avail_in = (uInt)len,
                  .next_out = out,
                  .avail_out = (uInt)max};
    int r;

    if (deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED,
                     -COMPRESS_WINDOW_BITS, 9, Z_DEFAULT_STRATEGY) != Z_OK)
        return 0;
    r = deflate(&z, Z_FINISH);
    deflateEnd(&z);
    return r == Z_STREAM_END ? max - z.avail_out : 0;
}

/* The compressed length, 0 where it is not less than a cluster. */
static size_t compress_cluster(const struct qcow2 *q, const void *in,
                               uint8_t *out)
{
    size_t max = q->cluster_size - 1, n;

    if (!q->compression)
        return compress_deflate(in, q->cluster_size, out, max);
    n = ZSTD_compress(out, max, in, q->cluster_size, ZSTD_CLEVEL_DEFAULT);
    return ZSTD_isError(n) ? 0 : n;
}

/* Whether the cluster in which the last one ended can take another. */
static bool compress_can_share(struct qcow2 *q, uint64_t cluster)
{
    uint64_t refcount;

    return qcow2_refcount_get(q, cluster, &refcount, NULL) == 0 && refcount &&
           refcount < q->refcount_max;
}

/* LENGTH bytes with a reference to each cluster they touch. */
static int compress_alloc(struct qcow2 *q, uint64_t length, uint64_t *host,
                          struct rhea_error *err)
{
    uint64_t at = q->z_next, cluster = at >> q->cluster_bits, new, got;
    uint64_t room = at ? q->cluster_size - (at & (q->cluster_size - 1)) : 0;
    bool share = room && compress_can_share(q, cluster), fresh;
    int r;

    if (share && room >= length) {
        r = qcow2_refcount_add(q, cluster, 1, 1, err);
        *host = at;
    } else {
        r = qcow2_alloc(q, 1, &new, &got, &fresh, err);
        if (r < 0)
            return r;
        *host = new << q->cluster_bits;
        if (share && new == cluster + 1) {
            r = qcow2_refcount_add(q, cluster, 1, 1, err);
            *host = at;
        }
    }
    if (r < 0)
        return r;
    q->z_next = *host + length;
    if (is_aligned(q->z_next, q->cluster_size))
        q->z_next = 0;
    return 0;
}

static uint64_t compress_entry(const struct qcow2 *q, uint64_t host,
                               uint64_t length)
{
    uint64_t more = (host + length - 1) / 512 - host / 512;

    return QCOW2_COMPRESSED | more << q->z_shift | host;
}

/* Reserve a place for the cluster at OFFSET; *HOST is 0 where it cannot be
 * stored compressed. */
static int compress_plan(struct qcow2 *q, uint64_t offset, uint64_t length,
                         uint64_t *host, struct qcow2_flight *flight,
                         struct rhea_error *err)
{
    struct qcow2_slice *slice;
    struct qcow2_entry e;
    unsigned index;
    int r;

    RHEA_LOCKED(&q->lock);
    *host = 0;
    r = qcow2_write_begin(q, err);
    if (r < 0)
        return r;
    qcow2_flight_wait(q, offset, offset + q->cluster_size);
    r = qcow2_l2_get_writable(q, offset, &slice, &index, err);
    if (r < 0)
        return r;
    e = qcow2_entry_get(q, slice, index);
    if (e.entry || e.bitmap)
        return 0;
    r = compress_alloc(q, length, host, err);
    if (r < 0)
        return r;
    if (*host + length > RHEA_MIN(QCOW2_MAX_HOST, 1ULL << q->z_shift)) {
        e.entry = compress_entry(q, *host, length);
        *host = 0;
        return qcow2_entry_release(q, e, false, err);
    }
    qcow2_flight_begin(q, flight, offset, offset + q->cluster_size);
    return 0;
}

static int compress_finish(struct qcow2 *q, uint64_t offset, uint64_t host,
                           uint64_t length, int result,
                           struct qcow2_flight *flight, struct rhea_error *err)
{
    struct qcow2_entry e = {compress_entry(q, host, length), 0};
    struct qcow2_slice *slice;
    unsigned index;
    int r = result;

    RHEA_LOCKED(&q->lock);
    if (r == 0)
        r = qcow2_l2_get_writable(q, offset, &slice, &index, err);
    if (r == 0)
        qcow2_entry_set(q, slice, index, e);
    else
        (void)qcow2_entry_release(q, e, false, NULL);
    qcow2_flight_end(q, flight);
    return r;
}

static int compress_write(struct qcow2 *q, uint64_t offset, const void *buf,
                          size_t len, struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *out = malloc(q->cluster_size);
    struct qcow2_flight flight;
    uint64_t host;
    size_t n;
    int r;

    if (!out)
        return rhea_error_set(err, ENOMEM, "out of memory");
    n = compress_cluster(q, buf, out);
    if (!n)
        return qcow2_write(&q->f, offset, buf, len, err);
    r = compress_plan(q, offset, n, &host, &flight, err);
    if (r < 0)
        return r;
    if (!host)
        return qcow2_write(&q->f, offset, buf, len, err);
    r = rhea_storage_write(q->f.storage, out, n, host, err);
    return compress_finish(q, offset, host, n, r, &flight, err);
}

int qcow2_write_compressed(struct rhea_format *f, uint64_t offset,
                           const void *buf, size_t len, struct rhea_error *err)
{
    struct qcow2 *q = qcow2_of(f);
    RHEA_AUTO_FREE uint8_t *padded = NULL;

    if (!is_aligned(offset, q->cluster_size) || offset >= f->size ||
        len != RHEA_MIN(q->cluster_size, f->size - offset))
        return rhea_error_set(err, EINVAL,
                              "%zu bytes at guest offset 0x%" PRIx64
                              " are not a cluster",
                              len, offset);
    if (len == q->cluster_size)
        return compress_write(q, offset, buf, len, err);
    padded = calloc(1, q->cluster_size);
    if (!padded)
        return rhea_error_set(err, ENOMEM, "out of memory");
    memcpy(padded, buf, len);
    return compress_write(q, offset, padded, len, err);
}
