/* SPDX-License-Identifier: MIT */
#include "storage/memory.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "storage/internal.h"
#include "storage/memory_pages.h"

static void memory_read_locked(struct memory *m, uint8_t *buf, size_t len,
                               uint64_t offset)
{
    size_t done = 0;
    while (done < len) {
        uint64_t at = offset + done;
        size_t skip = (size_t)(at % MEMORY_PAGE);
        size_t n = RHEA_MIN(len - done, MEMORY_PAGE - skip);
        const struct page *page = memory_find_page(m, at);
        if (page)
            memcpy(buf + done, page->data + skip, n);
        else
            memset(buf + done, 0, n);
        done += n;
    }
}

static int64_t memory_pread(struct rhea_storage *s, void *buf, size_t len,
                            uint64_t offset, struct rhea_error *err)
{
    struct memory *m = (struct memory *)s;
    (void)err;
    pthread_rwlock_rdlock(&m->lock);
    uint64_t size = m->size;
    len = offset < size ? (size_t)RHEA_MIN((uint64_t)len, size - offset) : 0;
    memory_read_locked(m, buf, len, offset);
    pthread_rwlock_unlock(&m->lock);
    return (int64_t)len;
}

static int memory_check_limit(const struct memory *m, uint64_t end,
                              struct rhea_error *err)
{
    if (end <= m->limit)
        return 0;
    return rhea_error_set(
        err, ENOSPC, "no space: '%s' may have %" PRIu64 " bytes, not %" PRIu64,
        storage_name(&m->head), m->limit, end);
}

static int memory_pwrite(struct rhea_storage *s, const void *buf, size_t len,
                         uint64_t offset, struct rhea_error *err)
{
    struct memory *m = (struct memory *)s;
    int ret = memory_check_limit(m, offset + len, err);
    if (ret)
        return ret;

    pthread_rwlock_wrlock(&m->lock);
    size_t done = 0;
    while (done < len) {
        uint64_t at = offset + done;
        size_t skip = (size_t)(at % MEMORY_PAGE);
        size_t n = RHEA_MIN(len - done, MEMORY_PAGE - skip);
        struct page *page = memory_own_page(m, at);
        if (!page) {
            ret = rhea_error_set(err, ENOMEM, "out of memory");
            break;
        }
        memcpy(page->data + skip, (const uint8_t *)buf + done, n);
        done += n;
    }
    if (done)
        m->size = RHEA_MAX(m->size, offset + done);
    pthread_rwlock_unlock(&m->lock);
    return ret;
}

static int memory_flush(struct rhea_storage *s, struct rhea_error *err)
{
    (void)s;
    (void)err;
    return 0;
}

static int memory_size(struct rhea_storage *s, uint64_t *size,
                       struct rhea_error *err)
{
    struct memory *m = (struct memory *)s;
    (void)err;
    pthread_rwlock_rdlock(&m->lock);
    *size = m->size;
    pthread_rwlock_unlock(&m->lock);
    return 0;
}

/* Zero part of a page that exists; absent ones already read as zeroes. */
static int memory_zero_part(struct memory *m, uint64_t offset, size_t len,
                            struct rhea_error *err)
{
    if (!memory_find_page(m, offset))
        return 0;
    struct page *page = memory_own_page(m, offset);
    if (!page)
        return rhea_error_set(err, ENOMEM, "out of memory");
    memset(page->data + offset % MEMORY_PAGE, 0, len);
    return 0;
}

/* Bytes past the size are zeroes at all times, so that growing shows them. */
static int memory_zero_locked(struct memory *m, uint64_t offset, uint64_t len,
                              struct rhea_error *err)
{
    uint64_t end = offset + len;
    uint64_t body = align_up(offset, MEMORY_PAGE);
    uint64_t tail = align_down(end, MEMORY_PAGE);
    int ret = 0;
    if (body > tail)
        return memory_zero_part(m, offset, (size_t)len, err);
    if (body > offset)
        ret = memory_zero_part(m, offset, (size_t)(body - offset), err);
    if (!ret && end > tail)
        ret = memory_zero_part(m, tail, (size_t)(end - tail), err);
    if (!ret && tail > body && !memory_drop_pages(m, body, tail))
        ret = rhea_error_set(err, ENOMEM, "out of memory");
    return ret;
}

static int memory_truncate(struct rhea_storage *s, uint64_t size,
                           struct rhea_error *err)
{
    struct memory *m = (struct memory *)s;
    int ret = memory_check_limit(m, size, err);
    if (ret)
        return ret;
    pthread_rwlock_wrlock(&m->lock);
    /* To the last page's end, so that it can be dropped as a whole. */
    if (size < m->size)
        ret = memory_zero_locked(m, size, align_up(m->size, MEMORY_PAGE) - size,
                                 err);
    if (!ret)
        m->size = size;
    pthread_rwlock_unlock(&m->lock);
    return ret;
}

static int memory_zero(struct rhea_storage *s, uint64_t offset, uint64_t len,
                       bool punch, struct rhea_error *err)
{
    struct memory *m = (struct memory *)s;
    int ret = memory_check_limit(m, offset + len, err);
    (void)punch;
    if (ret)
        return ret;
    pthread_rwlock_wrlock(&m->lock);
    ret = memory_zero_locked(m, offset, len, err);
    if (!ret)
        m->size = RHEA_MAX(m->size, offset + len);
    pthread_rwlock_unlock(&m->lock);
    return ret;
}

static int memory_allocate(struct rhea_storage *s, uint64_t offset,
                           uint64_t len, struct rhea_error *err)
{
    struct memory *m = (struct memory *)s;
    int ret = memory_check_limit(m, offset + len, err);
    if (ret)
        return ret;
    pthread_rwlock_wrlock(&m->lock);
    m->size = RHEA_MAX(m->size, offset + len);
    pthread_rwlock_unlock(&m->lock);
    return 0;
}

static int memory_extent(struct rhea_storage *s, uint64_t offset, uint64_t len,
                         bool *hole, uint64_t *run, struct rhea_error *err)
{
    struct memory *m = (struct memory *)s;
    (void)err;
    pthread_rwlock_rdlock(&m->lock);
    uint64_t end = offset + len;
    *hole = !memory_find_page(m, offset);
    uint64_t at =
        *hole ? memory_next_page(m, offset) : memory_next_gap(m, offset, end);
    *run = RHEA_MIN(at, end) - offset;
    pthread_rwlock_unlock(&m->lock);
    return 0;
}

static void memory_close(struct rhea_storage *s)
{
    struct memory *m = (struct memory *)s;
    memory_free_regions(m);
    pthread_rwlock_destroy(&m->lock);
    free(s->path);
    free(m);
}

static struct memory *memory_new(uint64_t limit, struct rhea_error *err)
{
    struct memory *m = calloc(1, sizeof(*m));
    if (!m) {
        rhea_error_set(err, ENOMEM, "out of memory");
        return NULL;
    }
    m->head.ops = &memory_storage_ops;
    m->head.writable = true;
    m->limit = limit;
    pthread_rwlock_init(&m->lock, NULL);
    return m;
}

int rhea_memory_open(struct rhea_storage **out, uint64_t limit,
                     struct rhea_error *err)
{
    struct memory *m = memory_new(limit, err);
    if (!m)
        return -ENOMEM;
    *out = &m->head;
    return 0;
}

int memory_clone(struct rhea_storage **out, struct rhea_storage *s,
                 struct rhea_error *err)
{
    struct memory *m = (struct memory *)s;
    struct memory *copy = memory_new(m->limit, err);
    if (!copy)
        return -ENOMEM;
    pthread_rwlock_wrlock(&m->lock);
    copy->size = m->size;
    bool ok = memory_share_regions(copy, m);
    pthread_rwlock_unlock(&m->lock);
    if (!ok) {
        memory_close(&copy->head);
        return rhea_error_set(err, ENOMEM, "out of memory");
    }
    *out = &copy->head;
    return 0;
}

/* Copy SIZE bytes, holes skipped. */
static int memory_fill(struct rhea_storage *to, struct rhea_storage *from,
                       uint64_t size, struct rhea_error *err)
{
    uint8_t buf[16 * MEMORY_PAGE];
    uint64_t run;
    for (uint64_t at = 0; at < size; at += run) {
        bool hole;
        int ret = rhea_storage_extent(from, at, size - at, &hole, &run, err);
        if (!ret && !hole) {
            run = RHEA_MIN(run, (uint64_t)sizeof(buf));
            ret = rhea_storage_read(from, buf, (size_t)run, at, err);
            if (!ret)
                ret = rhea_storage_write(to, buf, (size_t)run, at, err);
        }
        if (ret)
            return ret;
    }
    return 0;
}

int memory_snapshot(struct rhea_storage **out, struct rhea_storage *from,
                    struct rhea_error *err)
{
    if (from->ops == &memory_storage_ops)
        return memory_clone(out, from, err);
    uint64_t size;
    int ret = rhea_storage_size(from, &size, err);
    if (ret)
        return ret;
    struct memory *copy = memory_new(INT64_MAX, err);
    if (!copy)
        return -ENOMEM;
    ret = memory_fill(&copy->head, from, size, err);
    if (!ret)
        ret = memory_truncate(&copy->head, size, err);
    if (ret)
        memory_close(&copy->head);
    else
        *out = &copy->head;
    return ret;
}

const struct rhea_storage_ops memory_storage_ops = {
    .name = "memory",
    .pread = memory_pread,
    .pwrite = memory_pwrite,
    .flush = memory_flush,
    .size = memory_size,
    .truncate = memory_truncate,
    .zero = memory_zero,
    .allocate = memory_allocate,
    .clone = storage_clone_by_copy,
    .extent = memory_extent,
    .close = memory_close,
};
