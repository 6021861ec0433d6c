/* SPDX-License-Identifier: MIT */
#include "format/deflate.h"

#include <libdeflate.h>
#include <stdlib.h>
#include <zlib.h>

#include "base/cleanup.h"

/* Never larger than by zlib's own default level, which QEMU takes, in less than
 * half the time. */
enum { DEFLATE_LEVEL = 5 };

struct deflate_encoder {
    struct deflate_encoder *next; /* of those idle */
    struct libdeflate_compressor *deflate;
};

void deflate_pool_init(struct deflate_pool *pool)
{
    pthread_mutex_init(&pool->lock, NULL);
    pool->idle = NULL;
}

static void encoder_free(struct deflate_encoder *e)
{
    libdeflate_free_compressor(e->deflate);
    free(e);
}

void deflate_pool_finish(struct deflate_pool *pool)
{
    while (pool->idle) {
        struct deflate_encoder *next = pool->idle->next;
        encoder_free(pool->idle);
        pool->idle = next;
    }
    pthread_mutex_destroy(&pool->lock);
}

/* There are as many as threads that ever encoded at the same time. */
static struct deflate_encoder *encoder_take(struct deflate_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    struct deflate_encoder *e = pool->idle;
    if (e)
        pool->idle = e->next;
    pthread_mutex_unlock(&pool->lock);
    if (e)
        return e;
    e = calloc(1, sizeof(*e));
    if (e)
        e->deflate = libdeflate_alloc_compressor(DEFLATE_LEVEL);
    if (e && e->deflate)
        return e;
    free(e);
    return NULL;
}

size_t deflate_encode(struct deflate_pool *pool, const void *in, size_t len,
                      void *out, size_t max)
{
    struct deflate_encoder *e = encoder_take(pool);
    if (!e)
        return 0;
    size_t n = libdeflate_deflate_compress(e->deflate, in, len, out, max);
    RHEA_LOCKED(&pool->lock);
    e->next = pool->idle;
    pool->idle = e;
    return n;
}

/* The slow way, which also takes a stream that is cut off. */
static bool decode_cut(const uint8_t *in, size_t in_len, uint8_t *out,
                       size_t out_len)
{
    z_stream z = {.next_in = (Bytef *)(uintptr_t)in,
                  .avail_in = (uInt)in_len,
                  .next_out = out,
                  .avail_out = (uInt)out_len};
    if (inflateInit2(&z, -15) != Z_OK)
        return false;
    int r = inflate(&z, Z_FINISH);
    inflateEnd(&z);
    return (r == Z_STREAM_END || r == Z_BUF_ERROR) && z.avail_out == 0;
}

bool deflate_decode(const uint8_t *in, size_t in_len, uint8_t *out,
                    size_t out_len)
{
    struct libdeflate_decompressor *d = libdeflate_alloc_decompressor();
    if (!d)
        return decode_cut(in, in_len, out, out_len);
    enum libdeflate_result r = libdeflate_deflate_decompress_ex(
        d, in, in_len, out, out_len, NULL, NULL);
    libdeflate_free_decompressor(d);
    return r == LIBDEFLATE_SUCCESS || decode_cut(in, in_len, out, out_len);
}
