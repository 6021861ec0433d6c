/* SPDX-License-Identifier: MIT */
#include "storage/fault.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "storage/internal.h"

#define SECTOR 512
#define N_CLASSES 6

struct fault {
    struct storage_wrapper wrapper;
    struct fault_plan plan;
    pthread_mutex_t lock; /* of what follows */
    uint64_t calls[N_CLASSES];
    uint64_t matched; /* calls of plan.classes */
    uint64_t hits;
    uint64_t limit; /* of the size */
};

/* Count a call; whether it is to fail. */
static bool fault_due(struct fault *f, unsigned class)
{
    RHEA_LOCKED(&f->lock);
    f->calls[log2_u64(class)]++;
    if (!(f->plan.classes & class) || f->plan.at == 0)
        return false;
    f->matched++;
    if (f->matched != f->plan.at &&
        !(f->plan.forever && f->matched > f->plan.at))
        return false;
    f->hits++;
    return true;
}

static int fault_fail(struct fault *f, const char *verb, uint64_t offset,
                      uint64_t len, struct rhea_error *err)
{
    return rhea_error_errno(err, f->plan.code,
                            "could not %s %" PRIu64 " bytes at offset %" PRIu64
                            " of '%s' (injected)",
                            verb, len, offset, storage_name(&f->wrapper.head));
}

/* Whether the storage may have END bytes. */
static int fault_check_growth(struct fault *f, const char *verb,
                              uint64_t offset, uint64_t len,
                              struct rhea_error *err)
{
    if (!f->plan.limit_growth || offset + len <= f->limit)
        return 0;
    pthread_mutex_lock(&f->lock);
    f->hits++;
    pthread_mutex_unlock(&f->lock);
    return rhea_error_errno(err, ENOSPC,
                            "could not %s %" PRIu64 " bytes at offset %" PRIu64
                            " of '%s' (injected)",
                            verb, len, offset, storage_name(&f->wrapper.head));
}

/* The first half of a range, up to a sector's end, perhaps nothing. */
static uint64_t fault_half(uint64_t offset, uint64_t len)
{
    uint64_t end = align_down(offset + len / 2, SECTOR);
    return end > offset ? end - offset : 0;
}

/* Whether reads see a storage that has shrunk by now. */
static bool fault_shrunk(struct fault *f)
{
    RHEA_LOCKED(&f->lock);
    return f->plan.shrink_at &&
           f->calls[log2_u64(FAULT_READ)] >= f->plan.shrink_at;
}

static int64_t fault_pread(struct rhea_storage *s, void *buf, size_t len,
                           uint64_t offset, struct rhea_error *err)
{
    struct fault *f = (struct fault *)s;
    struct rhea_storage *inner = f->wrapper.inner;
    if (fault_due(f, FAULT_READ))
        return fault_fail(f, "read", offset, len, err);
    if (fault_shrunk(f)) {
        uint64_t end = f->plan.shrink_to;
        if (offset >= end)
            return 0;
        len = (size_t)RHEA_MIN((uint64_t)len, end - offset);
    }
    if (f->plan.short_reads && len > 1)
        len /= 2;
    return inner->ops->pread(inner, buf, len, offset, err);
}

static int fault_pwrite(struct rhea_storage *s, const void *buf, size_t len,
                        uint64_t offset, struct rhea_error *err)
{
    struct fault *f = (struct fault *)s;
    struct rhea_storage *inner = f->wrapper.inner;
    bool due = fault_due(f, FAULT_WRITE);
    int ret = fault_check_growth(f, "write", offset, len, err);
    if (ret)
        return ret;
    if (!due)
        return inner->ops->pwrite(inner, buf, len, offset, err);
    size_t half = (size_t)fault_half(offset, len);
    if (f->plan.half_done && half)
        inner->ops->pwrite(inner, buf, half, offset, NULL);
    return fault_fail(f, "write", offset, len, err);
}

static int fault_zero(struct rhea_storage *s, uint64_t offset, uint64_t len,
                      bool punch, struct rhea_error *err)
{
    struct fault *f = (struct fault *)s;
    struct rhea_storage *inner = f->wrapper.inner;
    bool due = fault_due(f, FAULT_ZERO);
    int ret = fault_check_growth(f, "zero", offset, len, err);
    if (ret)
        return ret;
    if (!due)
        return inner->ops->zero(inner, offset, len, punch, err);
    uint64_t half = fault_half(offset, len);
    if (f->plan.half_done && half)
        inner->ops->zero(inner, offset, half, punch, NULL);
    return fault_fail(f, "zero", offset, len, err);
}

static int fault_flush(struct rhea_storage *s, struct rhea_error *err)
{
    struct fault *f = (struct fault *)s;
    struct rhea_storage *inner = f->wrapper.inner;
    if (fault_due(f, FAULT_FLUSH))
        return rhea_error_errno(err, f->plan.code,
                                "could not flush '%s' (injected)",
                                storage_name(s));
    return inner->ops->flush(inner, err);
}

static int fault_size(struct rhea_storage *s, uint64_t *size,
                      struct rhea_error *err)
{
    struct fault *f = (struct fault *)s;
    int ret = storage_wrapper_size(s, size, err);
    if (!ret && fault_shrunk(f))
        *size = RHEA_MIN(*size, f->plan.shrink_to);
    return ret;
}

static int fault_truncate(struct rhea_storage *s, uint64_t size,
                          struct rhea_error *err)
{
    struct fault *f = (struct fault *)s;
    struct rhea_storage *inner = f->wrapper.inner;
    if (fault_due(f, FAULT_TRUNCATE))
        return rhea_error_errno(err, f->plan.code,
                                "could not resize '%s' to %" PRIu64
                                " bytes (injected)",
                                storage_name(s), size);
    int ret = fault_check_growth(f, "resize to", size, 0, err);
    return ret ? ret : inner->ops->truncate(inner, size, err);
}

static int fault_allocate(struct rhea_storage *s, uint64_t offset, uint64_t len,
                          struct rhea_error *err)
{
    struct fault *f = (struct fault *)s;
    struct rhea_storage *inner = f->wrapper.inner;
    if (fault_due(f, FAULT_ALLOCATE))
        return fault_fail(f, "reserve", offset, len, err);
    int ret = fault_check_growth(f, "reserve", offset, len, err);
    return ret ? ret : inner->ops->allocate(inner, offset, len, err);
}

static void fault_close(struct rhea_storage *s)
{
    struct fault *f = (struct fault *)s;
    pthread_mutex_destroy(&f->lock);
    storage_unwrap(&f->wrapper);
}

int fault_open(struct rhea_storage **out, struct rhea_storage *inner,
               const struct fault_plan *plan, struct rhea_error *err)
{
    uint64_t size = 0;
    int ret = plan->limit_growth ? rhea_storage_size(inner, &size, err) : 0;
    if (ret)
        return ret;
    struct fault *f = calloc(1, sizeof(*f));
    if (!f)
        return rhea_error_set(err, ENOMEM, "out of memory");
    ret = storage_wrap(&f->wrapper, &fault_storage_ops, inner, err);
    if (ret) {
        free(f);
        return ret;
    }
    f->plan = *plan;
    if (!add_u64(size, plan->budget, &f->limit))
        f->limit = UINT64_MAX;
    pthread_mutex_init(&f->lock, NULL);
    *out = &f->wrapper.head;
    return 0;
}

uint64_t fault_calls(const struct rhea_storage *s, unsigned classes)
{
    struct fault *f = (struct fault *)s;
    uint64_t n = 0;
    RHEA_LOCKED(&f->lock);
    for (unsigned i = 0; i < N_CLASSES; i++)
        n += classes & (1u << i) ? f->calls[i] : 0;
    return n;
}

uint64_t fault_hits(const struct rhea_storage *s)
{
    struct fault *f = (struct fault *)s;
    RHEA_LOCKED(&f->lock);
    return f->hits;
}

const struct rhea_storage_ops fault_storage_ops = {
    .name = "fault injector",
    .pread = fault_pread,
    .pwrite = fault_pwrite,
    .flush = fault_flush,
    .size = fault_size,
    .truncate = fault_truncate,
    .zero = fault_zero,
    .allocate = fault_allocate,
    .clone = storage_clone_by_copy,
    .extent = storage_wrapper_extent,
    .lock = storage_wrapper_lock,
    .inner = storage_wrapper_inner,
    .close = fault_close,
};
