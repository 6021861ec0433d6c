/* SPDX-License-Identifier: MIT */
/* Compressing grains, by as many threads as like to. */
#include <errno.h>
#include <libdeflate.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/vmdk/header.h"
#include "format/vmdk/stream.h"

/* No larger than by zlib's default level, which is QEMU's, in half the time. */
enum { PACK_LEVEL = 6 };

/* Kept from one grain to the next. */
struct vmdk_compressor {
    struct vmdk_compressor *next; /* of those idle */
    struct libdeflate_compressor *deflate;
};

static void pack_free(struct vmdk_compressor *c)
{
    libdeflate_free_compressor(c->deflate);
    free(c);
}

void pack_finish(struct vmdk *v)
{
    while (v->idle) {
        struct vmdk_compressor *next = v->idle->next;
        pack_free(v->idle);
        v->idle = next;
    }
}

static struct vmdk_compressor *pack_new(void)
{
    struct vmdk_compressor *c = calloc(1, sizeof(*c));
    if (c)
        c->deflate = libdeflate_alloc_compressor(PACK_LEVEL);
    if (c && c->deflate)
        return c;
    free(c);
    return NULL;
}

/* There are as many as threads that ever compressed at the same time. */
static struct vmdk_compressor *pack_take(struct vmdk *v)
{
    pthread_mutex_lock(&v->lock);
    struct vmdk_compressor *c = v->idle;
    if (c)
        v->idle = c->next;
    pthread_mutex_unlock(&v->lock);
    return c ? c : pack_new();
}

static void pack_give_back(struct vmdk *v, struct vmdk_compressor *c)
{
    RHEA_LOCKED(&v->lock);
    c->next = v->idle;
    v->idle = c;
}

/* What cannot be compressed grows by 5 bytes for each 64 KiB, and a few. */
size_t pack_max(uint64_t grain_size)
{
    size_t bytes = MARKER_GRAIN_BYTES +
                   libdeflate_zlib_compress_bound(NULL, (size_t)grain_size);
    return (size_t)align_up(bytes, VMDK_SECTOR);
}

static int pack_whole(struct vmdk *v, uint64_t sector, const void *buf,
                      uint64_t grain_size, uint8_t *packed, size_t *n,
                      struct rhea_error *err)
{
    size_t room = pack_max(grain_size) - MARKER_GRAIN_BYTES;
    struct vmdk_compressor *c = pack_take(v);
    if (!c)
        return rhea_error_set(err, ENOMEM, "out of memory");
    size_t size = libdeflate_zlib_compress(c->deflate, buf, (size_t)grain_size,
                                           packed + MARKER_GRAIN_BYTES, room);
    pack_give_back(v, c);
    if (!size)
        return rhea_error_set(err, EIO, "a grain could not be compressed");
    store_le64(packed + MARKER_SECTORS, sector);
    store_le32(packed + MARKER_SIZE, (uint32_t)size);
    size_t end = MARKER_GRAIN_BYTES + size;
    *n = (size_t)align_up(end, VMDK_SECTOR);
    memset(packed + end, 0, *n - end);
    return 0;
}

/* The image's last grain is filled up: 7-Zip wants it whole. */
int pack_grain(struct vmdk *v, uint64_t sector, const void *buf, size_t len,
               uint64_t grain_size, uint8_t *packed, size_t *n,
               struct rhea_error *err)
{
    if (len == grain_size)
        return pack_whole(v, sector, buf, grain_size, packed, n, err);
    RHEA_AUTO_FREE uint8_t *whole = calloc(1, (size_t)grain_size);
    if (!whole)
        return rhea_error_set(err, ENOMEM, "out of memory");
    memcpy(whole, buf, len);
    return pack_whole(v, sector, whole, grain_size, packed, n, err);
}
