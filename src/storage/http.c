/* SPDX-License-Identifier: MIT */
/*
 * A file of an HTTP or FTP server, for reading. Short reads are widened to
 * whole blocks of readahead bytes, of which a few are kept; long ones go
 * straight to the caller.
 */
#include "storage/http.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"

static struct http *http_of(struct rhea_storage *s)
{
    return (struct http *)s;
}

static struct http_block *http_find(struct http *h, uint64_t number)
{
    for (unsigned i = 0; i < HTTP_BLOCKS; i++)
        if (h->blocks[i].used && h->blocks[i].number == number)
            return &h->blocks[i];
    return NULL;
}

static bool http_read_cached(struct http *h, uint64_t number, size_t in,
                             void *buf, size_t len)
{
    struct http_block *block;

    RHEA_LOCKED(&h->lock);
    block = http_find(h, number);
    if (!block)
        return false;
    block->used = ++h->clock;
    memcpy(buf, block->data + in, len);
    return true;
}

/* Keep DATA, which it takes over, in place of what was used longest ago. */
static void http_keep(struct http *h, uint64_t number, char *data)
{
    struct http_block *oldest = &h->blocks[0];

    RHEA_LOCKED(&h->lock);
    for (unsigned i = 1; i < HTTP_BLOCKS; i++)
        if (h->blocks[i].used < oldest->used)
            oldest = &h->blocks[i];
    if (http_find(h, number)) { /* another thread was faster */
        free(data);
        return;
    }
    free(oldest->data);
    *oldest = (struct http_block){number, ++h->clock, data};
}

/* A part of one block. */
static int http_read_part(struct http *h, void *buf, size_t len,
                          uint64_t offset, struct rhea_error *err)
{
    uint64_t number = offset / h->block, start = number * h->block;
    size_t size = (size_t)RHEA_MIN(h->block, h->size - start);
    RHEA_AUTO_FREE char *data = NULL;
    int ret;

    if (http_read_cached(h, number, offset - start, buf, len))
        return 0;
    data = malloc(size);
    if (!data)
        return rhea_error_set(err, ENOMEM, "out of memory");
    ret = http_fetch(h, data, size, start, err);
    if (ret < 0)
        return ret;
    memcpy(buf, data + (offset - start), len);
    http_keep(h, number, rhea_steal(data));
    return 0;
}

static int64_t http_read(struct rhea_storage *s, void *buf, size_t len,
                         uint64_t offset, struct rhea_error *err)
{
    struct http *h = http_of(s);
    size_t done = 0;

    if (offset >= h->size)
        return 0;
    len = (size_t)RHEA_MIN(len, h->size - offset);
    if (len >= h->block) {
        int ret = http_fetch(h, buf, len, offset, err);

        return ret < 0 ? ret : (int64_t)len;
    }
    while (done < len) {
        uint64_t at = offset + done;
        size_t part = RHEA_MIN(len - done, h->block - at % h->block);
        int ret = http_read_part(h, (char *)buf + done, part, at, err);

        if (ret < 0)
            return ret;
        done += part;
    }
    return (int64_t)len;
}

/* Never called: the storage is not writable. */
static int http_refuse(struct rhea_storage *s, struct rhea_error *err)
{
    return rhea_error_set(err, EACCES, "'%s' can only be read",
                          storage_name(s));
}

static int http_write(struct rhea_storage *s, const void *buf, size_t len,
                      uint64_t offset, struct rhea_error *err)
{
    (void)buf;
    (void)len;
    (void)offset;
    return http_refuse(s, err);
}

static int http_truncate(struct rhea_storage *s, uint64_t size,
                         struct rhea_error *err)
{
    (void)size;
    return http_refuse(s, err);
}

static int http_zero(struct rhea_storage *s, uint64_t offset, uint64_t len,
                     bool punch, struct rhea_error *err)
{
    (void)offset;
    (void)len;
    (void)punch;
    return http_refuse(s, err);
}

static int http_allocate(struct rhea_storage *s, uint64_t offset, uint64_t len,
                         struct rhea_error *err)
{
    (void)offset;
    (void)len;
    return http_refuse(s, err);
}

static int http_size(struct rhea_storage *s, uint64_t *size,
                     struct rhea_error *err)
{
    (void)err;
    *size = http_of(s)->size;
    return 0;
}

static void http_free_secret(char *secret)
{
    if (secret)
        explicit_bzero(secret, strlen(secret));
    free(secret);
}

static void http_close(struct rhea_storage *s)
{
    struct http *h = http_of(s);

    while (h->n_spare)
        h->lib->easy_cleanup(h->spare[--h->n_spare]);
    for (unsigned i = 0; i < HTTP_BLOCKS; i++)
        free(h->blocks[i].data);
    pthread_mutex_destroy(&h->lock);
    free(h->url);
    free(h->username);
    free(h->proxy_username);
    http_free_secret(h->cookie);
    http_free_secret(h->password);
    http_free_secret(h->proxy_password);
    free(s->path);
    free(h);
}

const struct rhea_storage_ops http_storage_ops = {
    .name = "http",
    .pread = http_read,
    .pwrite = http_write,
    .flush = http_refuse,
    .size = http_size,
    .truncate = http_truncate,
    .zero = http_zero,
    .allocate = http_allocate,
    .close = http_close,
};
