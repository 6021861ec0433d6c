/* SPDX-License-Identifier: MIT */
#include "storage/record.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "storage/internal.h"

struct record {
    struct storage_wrapper wrapper;
    pthread_mutex_t lock; /* held over a change, so that the log is in order */
    struct record_log *log;
};

/* The log's next op, which counts only once n_ops does; NULL: no memory. */
static struct record_op *record_prepare(struct record_log *log,
                                        enum record_kind kind, uint64_t offset,
                                        uint64_t length, const void *data,
                                        struct rhea_error *err)
{
    if (log->n_ops == log->ops_size) {
        size_t size = log->ops_size ? log->ops_size * 2 : 64;
        struct record_op *ops = reallocarray(log->ops, size, sizeof(*ops));
        if (!ops)
            goto no_memory;
        log->ops = ops;
        log->ops_size = size;
    }
    struct record_op *op = &log->ops[log->n_ops];
    *op = (struct record_op){.kind = kind, .offset = offset, .length = length};
    if (data) {
        op->data = malloc((size_t)length);
        if (!op->data)
            goto no_memory;
        memcpy(op->data, data, (size_t)length);
    }
    return op;

no_memory:
    rhea_error_set(err, ENOMEM, "out of memory for the log of writes");
    return NULL;
}

static void record_commit(struct record_log *log)
{
    struct record_op *op = &log->ops[log->n_ops++];
    if (op->data)
        log->bytes += op->length;
}

static int64_t record_pread(struct rhea_storage *s, void *buf, size_t len,
                            uint64_t offset, struct rhea_error *err)
{
    struct record *r = (struct record *)s;
    return r->wrapper.inner->ops->pread(r->wrapper.inner, buf, len, offset,
                                        err);
}

static int record_pwrite(struct rhea_storage *s, const void *buf, size_t len,
                         uint64_t offset, struct rhea_error *err)
{
    struct record *r = (struct record *)s;
    struct rhea_storage *inner = r->wrapper.inner;
    RHEA_LOCKED(&r->lock);
    if (!record_prepare(r->log, RECORD_WRITE, offset, len, buf, err))
        return -ENOMEM;
    record_commit(r->log);
    return inner->ops->pwrite(inner, buf, len, offset, err);
}

static int record_zero(struct rhea_storage *s, uint64_t offset, uint64_t len,
                       bool punch, struct rhea_error *err)
{
    struct record *r = (struct record *)s;
    struct rhea_storage *inner = r->wrapper.inner;
    RHEA_LOCKED(&r->lock);
    if (!record_prepare(r->log, RECORD_ZERO, offset, len, NULL, err))
        return -ENOMEM;
    record_commit(r->log);
    return inner->ops->zero(inner, offset, len, punch, err);
}

static int record_flush(struct rhea_storage *s, struct rhea_error *err)
{
    struct record *r = (struct record *)s;
    struct rhea_storage *inner = r->wrapper.inner;
    RHEA_LOCKED(&r->lock);
    if (!record_prepare(r->log, RECORD_FLUSH, 0, 0, NULL, err))
        return -ENOMEM;
    int ret = inner->ops->flush(inner, err);
    if (!ret)
        record_commit(r->log);
    return ret;
}

static int record_truncate(struct rhea_storage *s, uint64_t size,
                           struct rhea_error *err)
{
    struct record *r = (struct record *)s;
    struct rhea_storage *inner = r->wrapper.inner;
    RHEA_LOCKED(&r->lock);
    if (!record_prepare(r->log, RECORD_TRUNCATE, size, 0, NULL, err))
        return -ENOMEM;
    int ret = inner->ops->truncate(inner, size, err);
    if (!ret)
        record_commit(r->log);
    return ret;
}

static int record_allocate(struct rhea_storage *s, uint64_t offset,
                           uint64_t len, struct rhea_error *err)
{
    struct record *r = (struct record *)s;
    struct rhea_storage *inner = r->wrapper.inner;
    RHEA_LOCKED(&r->lock);
    if (!record_prepare(r->log, RECORD_ALLOCATE, offset, len, NULL, err))
        return -ENOMEM;
    int ret = inner->ops->allocate(inner, offset, len, err);
    if (!ret)
        record_commit(r->log);
    return ret;
}

static void record_close(struct rhea_storage *s)
{
    struct record *r = (struct record *)s;
    pthread_mutex_destroy(&r->lock);
    storage_unwrap(&r->wrapper);
}

int record_open(struct rhea_storage **out, struct rhea_storage *inner,
                struct record_log *log, struct rhea_error *err)
{
    struct record *r = calloc(1, sizeof(*r));
    if (!r)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret = storage_wrap(&r->wrapper, &record_storage_ops, inner, err);
    if (ret) {
        free(r);
        return ret;
    }
    pthread_mutex_init(&r->lock, NULL);
    r->log = log;
    *out = &r->wrapper.head;
    return 0;
}

const struct rhea_storage_ops record_storage_ops = {
    .name = "recorder",
    .pread = record_pread,
    .pwrite = record_pwrite,
    .flush = record_flush,
    .size = storage_wrapper_size,
    .truncate = record_truncate,
    .zero = record_zero,
    .allocate = record_allocate,
    .clone = storage_clone_by_copy,
    .extent = storage_wrapper_extent,
    .lock = storage_wrapper_lock,
    .inner = storage_wrapper_inner,
    .close = record_close,
};
