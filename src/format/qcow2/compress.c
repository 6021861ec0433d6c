/* SPDX-License-Identifier: MIT */
/*
 * Writing compressed clusters, one after the other without gaps, so that
 * several share a host cluster, each with a reference of its own, and one may
 * go on in the next cluster if that follows.
 */
#include <errno.h>
#include <inttypes.h>

#include <libdeflate.h>
#include <zstd.h>

#include "format/qcow2/qcow2.h"

/*
 * Speed and size: never larger than by zlib's own default level with the 4 KiB
 * window that QEMU writes by, in less than half the time.
 *
 * libdeflate's distances go up to 32 KiB. That asks nothing more of readers:
 * one decodes a cluster as a whole (no part of it can be found otherwise) into
 * one buffer, and so finds what is referred to in its own output, whatever
 * window it has set up (QEMU: 4 KiB, by zlib, which takes no offence). The
 * format's description names no window.
 */
#define COMPRESS_LEVEL 5

/* What compressing takes, kept from one cluster to the next. */
struct qcow2_compressor {
    struct qcow2_compressor *next; /* of those idle */
    struct libdeflate_compressor *deflate;
    ZSTD_CCtx *zstd;
    uint8_t out[]; /* a cluster */
};

static void compress_free(struct qcow2_compressor *c)
{
    libdeflate_free_compressor(c->deflate);
    ZSTD_freeCCtx(c->zstd);
    free(c);
}

void qcow2_compressors_finish(struct qcow2 *q)
{
    while (q->z.idle) {
        struct qcow2_compressor *next = q->z.idle->next;

        compress_free(q->z.idle);
        q->z.idle = next;
    }
}

static struct qcow2_compressor *compress_new(const struct qcow2 *q)
{
    struct qcow2_compressor *c = malloc(sizeof(*c) + q->cluster_size);

    if (!c)
        return NULL;
    *c = (struct qcow2_compressor){0};
    if (q->compression)
        c->zstd = ZSTD_createCCtx();
    else
        c->deflate = libdeflate_alloc_compressor(COMPRESS_LEVEL);
    if (c->zstd || c->deflate)
        return c;
    free(c);
    return NULL;
}

/* There are as many as threads that ever compressed at the same time. */
static struct qcow2_compressor *compress_take(struct qcow2 *q)
{
    struct qcow2_compressor *c;

    pthread_mutex_lock(&q->z.lock);
    c = q->z.idle;
    if (c)
        q->z.idle = c->next;
    pthread_mutex_unlock(&q->z.lock);
    return c ? c : compress_new(q);
}

static void compress_give_back(struct qcow2 *q, struct qcow2_compressor *c)
{
    RHEA_LOCKED(&q->z.lock);
    c->next = q->z.idle;
    q->z.idle = c;
}

/* The compressed length, 0 where it is not less than a cluster. */
static size_t compress_cluster(const struct qcow2 *q,
                               struct qcow2_compressor *c, const void *in)
{
    size_t max = q->cluster_size - 1, n;

    if (!q->compression)
        return libdeflate_deflate_compress(c->deflate, in, q->cluster_size,
                                           c->out, max);
    n = ZSTD_compressCCtx(c->zstd, c->out, max, in, q->cluster_size,
                          ZSTD_CLEVEL_DEFAULT);
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
    if (r == 0)
        r = qcow2_bitmaps_touch(q, offset, offset + q->cluster_size, err);
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

static int compress_store(struct qcow2 *q, struct qcow2_compressor *c,
                          uint64_t offset, const void *buf, size_t len,
                          struct rhea_error *err)
{
    struct qcow2_flight flight;
    uint64_t host;
    size_t n = compress_cluster(q, c, buf);
    int r;

    if (!n)
        return qcow2_write(&q->f, offset, buf, len, err);
    r = compress_plan(q, offset, n, &host, &flight, err);
    if (r < 0)
        return r;
    if (!host)
        return qcow2_write(&q->f, offset, buf, len, err);
    rhea_storage_event(q->f.storage, "write_compressed");
    r = rhea_storage_write(q->f.storage, c->out, n, host, err);
    return compress_finish(q, offset, host, n, r, &flight, err);
}

static int compress_write(struct qcow2 *q, uint64_t offset, const void *buf,
                          size_t len, struct rhea_error *err)
{
    struct qcow2_compressor *c = compress_take(q);
    int r;

    if (!c)
        return rhea_error_set(err, ENOMEM, "out of memory");
    r = compress_store(q, c, offset, buf, len, err);
    compress_give_back(q, c);
    return r;
}

int qcow2_write_compressed(struct rhea_format *f, uint64_t offset,
                           const void *buf, size_t len, struct rhea_error *err)
{
    struct qcow2 *q = qcow2_of(f);
    RHEA_AUTO_FREE uint8_t *padded = NULL;

    if (q->crypt_method)
        return rhea_error_set(err, ENOTSUP,
                              "an encrypted image cannot hold compressed data");
    if (qcow2_external(q))
        return rhea_error_set(err, ENOTSUP,
                              "an image with a data file cannot be "
                              "compressed");
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
