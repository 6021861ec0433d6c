/* SPDX-License-Identifier: MIT */
/*
 * Reading compressed clusters (the spec, "Compressed Clusters Descriptor"):
 * raw deflate or zstd frames. The stored length is known by sectors only, so
 * bytes after the compressed data are to be expected.
 */
#include <errno.h>
#include <inttypes.h>

#include <zstd.h>

#include "format/deflate.h"
#include "format/qcow2/qcow2.h"

/* Frame by frame into OUT itself, so that no frame can ask for a window. */
static bool decompress_zstd(const uint8_t *in, size_t in_len, uint8_t *out,
                            size_t out_len)
{
    ZSTD_DCtx *d = ZSTD_createDCtx();
    bool good = d != NULL;

    while (good && out_len) {
        size_t frame = ZSTD_findFrameCompressedSize(in, in_len);
        size_t n;

        good = !ZSTD_isError(frame);
        if (!good)
            break;
        n = ZSTD_decompressDCtx(d, out, out_len, in, frame);
        good = !ZSTD_isError(n) && frame;
        if (good) {
            in += frame;
            in_len -= frame;
            out += n;
            out_len -= n;
        }
    }
    ZSTD_freeDCtx(d);
    return good;
}

/* Read and decode the whole cluster stored at HOST into OUT. */
static int decompress_cluster(struct qcow2 *q, uint64_t host, uint64_t length,
                              uint8_t *out, struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *in = malloc(length);
    bool good;
    int r;

    if (!in)
        return rhea_error_set(err, ENOMEM, "out of memory");
    rhea_storage_event(q->f.storage, "read_compressed");
    /* The last sector may be cut short by the end of the file. */
    r = rhea_storage_read_padded(q->f.storage, in, length, host, err);
    if (r < 0)
        return r;
    good = q->compression ? decompress_zstd(in, length, out, q->cluster_size)
                          : deflate_decode(in, length, out, q->cluster_size);
    return good ? 0
                : rhea_error_set(err, EIO,
                                 "the compressed cluster at 0x%" PRIx64
                                 " cannot be decompressed: it is damaged",
                                 host);
}

static bool decompress_find(struct qcow2 *q, uint64_t host, size_t in,
                            void *buf, size_t len)
{
    RHEA_LOCKED(&q->z.lock);
    for (unsigned i = 0; i < q->z.n_slots; i++) {
        struct qcow2_decompressed *slot = &q->z.slot[i];

        if (slot->data && slot->host == host) {
            memcpy(buf, slot->data + in, len);
            slot->age = ++q->z.clock;
            return true;
        }
    }
    return false;
}

/* Keep DATA, which it takes over, in place of what was used longest ago. */
static void decompress_keep(struct qcow2 *q, uint64_t host, uint8_t *data)
{
    struct qcow2_decompressed *oldest = &q->z.slot[0];

    RHEA_LOCKED(&q->z.lock);
    for (unsigned i = 1; i < q->z.n_slots; i++)
        if (q->z.slot[i].age < oldest->age)
            oldest = &q->z.slot[i];
    free(oldest->data);
    *oldest = (struct qcow2_decompressed){host, ++q->z.clock, data};
}

void qcow2_z_forget(struct qcow2 *q)
{
    RHEA_LOCKED(&q->z.lock);
    for (unsigned i = 0; i < QCOW2_Z_CACHE; i++) {
        free(q->z.slot[i].data);
        q->z.slot[i] = (struct qcow2_decompressed){0};
    }
}

static int decompress_part(struct qcow2 *q, uint64_t entry, size_t in,
                           void *buf, size_t len, struct rhea_error *err)
{
    uint64_t host, length;
    RHEA_AUTO_FREE uint8_t *data = NULL;
    int r;

    qcow2_compressed_place(q, entry, &host, &length);
    if (len == q->cluster_size)
        return decompress_cluster(q, host, length, buf, err);
    if (decompress_find(q, host, in, buf, len))
        return 0;
    data = malloc(q->cluster_size);
    if (!data)
        return rhea_error_set(err, ENOMEM, "out of memory");
    r = decompress_cluster(q, host, length, data, err);
    if (r < 0)
        return r;
    memcpy(buf, data + in, len);
    decompress_keep(q, host, rhea_steal(data));
    return 0;
}

/* Look up the entry; if it is compressed, what it points to stays as it is
 * until q->data is let go. */
static int decompress_lookup(struct qcow2 *q, uint64_t offset,
                             struct qcow2_entry *e, struct rhea_error *err)
{
    struct qcow2_slice *slice;
    unsigned index;
    int r;

    RHEA_LOCKED(&q->lock);
    *e = (struct qcow2_entry){0};
    r = qcow2_l2_get(q, offset, &slice, &index, err);
    if (r < 0 || !slice)
        return r;
    *e = qcow2_entry_get(q, slice, index);
    r = qcow2_entry_check(q, offset, *e, err);
    if (r == 0 && e->entry & QCOW2_COMPRESSED)
        pthread_rwlock_rdlock(&q->data);
    return r;
}

int qcow2_read(struct rhea_format *f, uint64_t offset, void *buf, size_t len,
               struct rhea_error *err)
{
    struct qcow2 *q = qcow2_of(f);
    size_t in = offset & (q->cluster_size - 1);
    struct qcow2_entry e = {0};
    int r;

    if (offset >= f->size || len > f->size - offset ||
        (len > q->cluster_size - in && !q->crypt_method))
        return rhea_error_set(err, EINVAL,
                              "%zu bytes at guest offset 0x%" PRIx64
                              " are not inside one cluster",
                              len, offset);
    r = qcow2_data_refuse(q, err);
    if (r == 0)
        r = decompress_lookup(q, offset, &e, err);
    if (r < 0)
        return r;
    /* It may have been written anew since the caller looked. */
    if (!(e.entry & QCOW2_COMPRESSED))
        return q->crypt_method ? qcow2_crypt_read(q, offset, buf, len, err)
                               : qcow2_read_guest(q, offset, buf, len, err);
    /* Of an encrypted image: compressed since the caller looked. */
    if (len > q->cluster_size - in) {
        pthread_rwlock_unlock(&q->data);
        return qcow2_read_guest(q, offset, buf, len, err);
    }
    r = decompress_part(q, e.entry, in, buf, len, err);
    pthread_rwlock_unlock(&q->data);
    return r;
}
