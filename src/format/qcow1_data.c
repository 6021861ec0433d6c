/* SPDX-License-Identifier: MIT */
/*
 * Guest data that is stored in another form: compressed by raw deflate, one
 * cluster for itself, at any byte of the file; or encrypted by sectors.
 * Compressed data is not encrypted, even in an encrypted image; no program is
 * known to write such, and this one does not.
 *
 * What was stored compressed never changes, and its place is not used again. So
 * it is read without a lock, and a write to a part of its cluster moves that to
 * a place of its own (blocks.h).
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/qcow1.h"

/* --- Reading --- */

/* All of the cluster that is stored at P. */
static int data_unpack(struct qcow1 *q, struct qcow1_packed p, uint8_t *out,
                       struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *in = malloc(p.length);
    if (!in)
        return rhea_error_set(err, ENOMEM, "out of memory");
    rhea_storage_event(q->base.storage, "read_compressed");
    int ret = rhea_storage_read(q->base.storage, in, p.length, p.host, err);
    if (ret)
        return ret;
    if (!deflate_decode(in, p.length, out, q->cluster_size))
        return rhea_error_set(err, EIO,
                              "the compressed cluster at offset %" PRIu64
                              " of the file cannot be decompressed: it is "
                              "damaged",
                              p.host);
    return 0;
}

static int data_read_packed(struct qcow1 *q, const struct rhea_extent *x,
                            uint64_t offset, void *buf, size_t len,
                            struct rhea_error *err)
{
    struct qcow1_packed p = {x->host, x->stored_length};
    if (len == q->cluster_size)
        return data_unpack(q, p, buf, err);
    RHEA_AUTO_FREE uint8_t *cluster = malloc(q->cluster_size);
    if (!cluster)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret = data_unpack(q, p, cluster, err);
    if (!ret)
        memcpy(buf, cluster + (offset & (q->cluster_size - 1)), len);
    return ret;
}

static int data_read_extent(struct qcow1 *q, const struct rhea_extent *x,
                            uint64_t offset, void *buf, size_t len,
                            struct rhea_error *err)
{
    struct rhea_format *f = &q->base;
    struct sector_place place = {x->storage, x->host, offset};
    switch (x->kind) {
    case RHEA_EXTENT_COMPRESSED:
        return data_read_packed(q, x, offset, buf, len, err);
    case RHEA_EXTENT_ENCRYPTED:
        if (!q->aes)
            return rhea_error_set(err, EACCES,
                                  "the image is encrypted, and was opened "
                                  "without its passphrase");
        return sector_crypt_read(&q->crypt, place, buf, len, err);
    case RHEA_EXTENT_DATA:
        return rhea_storage_read_padded(x->storage, buf, len, x->host, err);
    default:
        memset(buf, 0, len);
        return f->below ? f->below(f->below_opaque, offset, buf, len, err) : 0;
    }
}

/* What the caller has looked up may have been written anew since. */
int qcow1_read(struct rhea_format *f, uint64_t offset, void *buf, size_t len,
               struct rhea_error *err)
{
    struct qcow1 *q = qcow1_of(f);
    uint8_t *at = buf;
    while (len) {
        struct rhea_extent x;
        int ret = blocks_map(&q->blocks, offset, len, &x, err);
        if (ret)
            return ret;
        size_t n = (size_t)RHEA_MIN(len, x.length);
        ret = data_read_extent(q, &x, offset, at, n, err);
        if (ret)
            return ret;
        offset += n;
        at += n;
        len -= n;
    }
    return 0;
}

/* --- Writing compressed --- */

/* One compressed cluster on its way. */
struct packing {
    uint64_t cluster, host;
    size_t length;
    struct blocks_flight flight;
};

static uint64_t packing_entry(const struct qcow1 *q, const struct packing *p)
{
    return QCOW1_COMPRESSED | (uint64_t)p->length << (63 - q->cluster_bits) |
           p->host;
}

/* A place for it; *HOST is 0 where it cannot be stored compressed, for one
 * cluster that is there already, or a file that is too long. With the lock
 * held. */
static int packing_place(struct qcow1 *q, struct packing *p,
                         struct rhea_error *err)
{
    struct blocks *b = &q->blocks;
    uint64_t entry, limit = UINT64_C(1) << (63 - q->cluster_bits);
    p->host = 0;
    do {
        int ret = qcow1_entry_get(q, p->cluster, &entry, err);
        if (ret || entry)
            return ret;
    } while (!blocks_flight_begin(b, &p->flight, p->cluster, p->cluster));
    int ret = blocks_begin(b, err);
    if (!ret)
        ret = qcow1_need_table(q, p->cluster, err);
    if (!ret && p->length < limit && b->file_end < limit - p->length)
        ret = blocks_extend(b, p->length, &p->host, err);
    if (ret || !p->host)
        blocks_flight_end(b, &p->flight);
    return ret;
}

/* It is in the file. With the lock held. */
static int packing_link(struct qcow1 *q, const struct packing *p,
                        struct rhea_error *err)
{
    q->blocks.grown = RHEA_MAX(q->blocks.grown, p->host + p->length);
    return qcow1_l2_set(q, p->cluster, 1, packing_entry(q, p), 0, err);
}

static int data_store(struct qcow1 *q, struct packing *p, const uint8_t *packed,
                      struct rhea_error *err)
{
    pthread_mutex_lock(&q->blocks.lock);
    int ret = packing_place(q, p, err);
    pthread_mutex_unlock(&q->blocks.lock);
    if (ret || !p->host)
        return ret;
    rhea_storage_event(q->base.storage, "write_compressed");
    ret = rhea_storage_write(q->base.storage, packed, p->length, p->host, err);
    RHEA_LOCKED(&q->blocks.lock);
    if (!ret)
        ret = packing_link(q, p, err);
    blocks_flight_end(&q->blocks, &p->flight);
    return ret;
}

static int data_check_cluster(const struct qcow1 *q, uint64_t offset,
                              size_t len, struct rhea_error *err)
{
    if (!q->blocks.writable)
        return rhea_error_set(err, EACCES,
                              "the image is open for reading only");
    if (q->crypt_method)
        return rhea_error_set(err, ENOTSUP,
                              "an encrypted image cannot hold compressed data");
    if (!is_aligned(offset, q->cluster_size) || offset >= q->base.size ||
        len != RHEA_MIN(q->cluster_size, q->base.size - offset))
        return rhea_error_set(err, EINVAL,
                              "%zu bytes at guest offset %" PRIu64
                              " are not a cluster",
                              len, offset);
    return 0;
}

int qcow1_write_compressed(struct rhea_format *f, uint64_t offset,
                           const void *buf, size_t len, struct rhea_error *err)
{
    struct qcow1 *q = qcow1_of(f);
    int ret = data_check_cluster(q, offset, len, err);
    if (ret)
        return ret;
    /* The last one is completed with zeroes. */
    RHEA_AUTO_FREE uint8_t *room = calloc(2, q->cluster_size);
    if (!room)
        return rhea_error_set(err, ENOMEM, "out of memory");
    const void *whole = buf;
    if (len < q->cluster_size)
        whole = memcpy(room + q->cluster_size, buf, len);
    struct packing p = {
        .cluster = offset >> q->cluster_bits,
        .length = deflate_encode(&q->deflate, whole, q->cluster_size, room,
                                 q->cluster_size - 1),
    };
    if (p.length) {
        ret = data_store(q, &p, room, err);
        if (ret || p.host)
            return ret;
    }
    return blocks_write(&q->blocks, offset, buf, len, err);
}
