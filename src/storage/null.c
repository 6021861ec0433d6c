/* SPDX-License-Identifier: MIT */
/* Nothing: reads give zeroes, writes are forgotten. For measuring what is in
 * front of it, and in tests. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "storage/driver.h"
#include "storage/internal.h"

#define NULL_SIZE (1ULL << 30)

struct null {
    struct rhea_storage head;
    uint64_t size;
    bool hole; /* says that it reads as zeroes */
};

static int64_t null_pread(struct rhea_storage *s, void *buf, size_t len,
                          uint64_t offset, struct rhea_error *err)
{
    const struct null *n = (const struct null *)s;
    size_t inside =
        offset < n->size ? (size_t)RHEA_MIN(len, n->size - offset) : 0;

    (void)err;
    memset(buf, 0, inside);
    return (int64_t)inside;
}

static int null_check(const struct null *n, uint64_t offset, uint64_t len,
                      struct rhea_error *err)
{
    return range_inside(offset, len, n->size)
               ? 0
               : rhea_error_set(err, ENOSPC, "'%s' cannot grow",
                                storage_name(&n->head));
}

static int null_pwrite(struct rhea_storage *s, const void *buf, size_t len,
                       uint64_t offset, struct rhea_error *err)
{
    (void)buf;
    return null_check((const struct null *)s, offset, len, err);
}

static int null_flush(struct rhea_storage *s, struct rhea_error *err)
{
    (void)s;
    (void)err;
    return 0;
}

static int null_size(struct rhea_storage *s, uint64_t *size,
                     struct rhea_error *err)
{
    (void)err;
    *size = ((const struct null *)s)->size;
    return 0;
}

static int null_truncate(struct rhea_storage *s, uint64_t size,
                         struct rhea_error *err)
{
    const struct null *n = (const struct null *)s;

    return size == n->size
               ? 0
               : rhea_error_set(err, EOPNOTSUPP, "'%s' cannot be resized",
                                storage_name(s));
}

static int null_zero(struct rhea_storage *s, uint64_t offset, uint64_t len,
                     bool punch, struct rhea_error *err)
{
    (void)punch;
    return null_check((const struct null *)s, offset, len, err);
}

static int null_allocate(struct rhea_storage *s, uint64_t offset, uint64_t len,
                         struct rhea_error *err)
{
    return null_check((const struct null *)s, offset, len, err);
}

static int null_extent(struct rhea_storage *s, uint64_t offset, uint64_t len,
                       bool *hole, uint64_t *run, struct rhea_error *err)
{
    const struct null *n = (const struct null *)s;

    (void)offset;
    (void)err;
    *hole = n->hole;
    *run = len;
    return 0;
}

static void null_close(struct rhea_storage *s)
{
    free(s->path);
    free(s);
}

static const struct rhea_storage_ops null_storage_ops = {
    .name = "null",
    .pread = null_pread,
    .pwrite = null_pwrite,
    .flush = null_flush,
    .size = null_size,
    .truncate = null_truncate,
    .zero = null_zero,
    .allocate = null_allocate,
    .extent = null_extent,
    .close = null_close,
};

static int null_open(struct rhea_storage **out, const struct storage_open *how,
                     struct rhea_error *err)
{
    const struct storage_options *o = how->options;
    struct null *n = calloc(1, sizeof(*n));
    uint64_t latency = 0;
    int ret;

    if (!n)
        return rhea_error_set(err, ENOMEM, "out of memory");
    n->head.ops = &null_storage_ops;
    n->head.writable = how->flags & RHEA_FILE_WRITE;
    n->size = NULL_SIZE;
    (void)storage_options_get(o, "filename");
    ret = storage_options_size(o, "size", &n->size, err);
    if (ret == 0)
        ret = storage_options_bool(o, "read-zeroes", &n->hole, err);
    if (ret == 0)
        ret = storage_options_size(o, "latency-ns", &latency, err);
    if (ret == 0 && n->size > INT64_MAX)
        ret = rhea_error_set(err, EFBIG, "no file is that large");
    if (ret == 0 && latency)
        ret =
            rhea_error_set(err, ENOTSUP, "option latency-ns is not supported");
    if (ret < 0) {
        free(n);
        return ret;
    }
    *out = &n->head;
    return 0;
}

static int null_parse_name(const char *name, const char *driver,
                           struct rhea_error *err)
{
    size_t len = storage_name_protocol(name);

    return strcmp(name + len, "//") == 0
               ? 0
               : rhea_error_set(err, EINVAL,
                                "the name is %s:// and no more; its size is an "
                                "option",
                                driver);
}

static int null_parse_co(const char *name, struct storage_options *options,
                         struct rhea_error *err)
{
    (void)options;
    return null_parse_name(name, "null-co", err);
}

static int null_parse_aio(const char *name, struct storage_options *options,
                          struct rhea_error *err)
{
    (void)options;
    return null_parse_name(name, "null-aio", err);
}

static bool null_is_plain(const struct storage_options *o)
{
    return !storage_options_peek(o, "size") &&
           !storage_options_peek(o, "read-zeroes") &&
           !storage_options_peek(o, "latency-ns");
}

static char *null_plain_co(const struct storage_options *o, const char *child)
{
    (void)child;
    return null_is_plain(o) ? strdup("null-co://") : NULL;
}

static char *null_plain_aio(const struct storage_options *o, const char *child)
{
    (void)child;
    return null_is_plain(o) ? strdup("null-aio://") : NULL;
}

static const char *const null_strong[] = {"size", "read-zeroes", NULL};

const struct storage_driver storage_driver_null_co = {
    .name = "null-co",
    .protocols = (const char *const[]){"null-co", NULL},
    .parse = null_parse_co,
    .open = null_open,
    .plain_name = null_plain_co,
    .strong_options = null_strong,
    .can_create = true,
};

const struct storage_driver storage_driver_null_aio = {
    .name = "null-aio",
    .protocols = (const char *const[]){"null-aio", NULL},
    .parse = null_parse_aio,
    .open = null_open,
    .plain_name = null_plain_aio,
    .strong_options = null_strong,
    .can_create = true,
};
