/* SPDX-License-Identifier: MIT */
/* The calls the rest of the project makes: they check the arguments, so that
 * the kinds of storage need not. */
#include <errno.h>
#include <inttypes.h>
#include <rhea/storage.h>
#include <string.h>

#include "base/checked.h"
#include "storage/internal.h"

/* Offsets are those of lseek: signed 64 bits. */
static int storage_check_range(const struct rhea_storage *s, const char *verb,
                               uint64_t offset, uint64_t len,
                               struct rhea_error *err)
{
    if (range_inside(offset, len, INT64_MAX))
        return 0;
    return rhea_error_set(err, EFBIG,
                          "cannot %s %" PRIu64 " bytes at offset %" PRIu64
                          " of '%s': no file is that large",
                          verb, len, offset, storage_name(s));
}

static int storage_check_writable(const struct rhea_storage *s,
                                  const char *verb, struct rhea_error *err)
{
    if (s->writable)
        return 0;
    return rhea_error_set(err, EACCES,
                          "cannot %s '%s': it is open for reading only", verb,
                          storage_name(s));
}

static int storage_check_change(const struct rhea_storage *s, const char *verb,
                                uint64_t offset, uint64_t len,
                                struct rhea_error *err)
{
    int ret = storage_check_writable(s, verb, err);
    return ret ? ret : storage_check_range(s, verb, offset, len, err);
}

/* Read what there is; *GOT is less than LEN only at the end. */
static int storage_read_some(struct rhea_storage *s, void *buf, size_t len,
                             uint64_t offset, size_t *got,
                             struct rhea_error *err)
{
    *got = 0;
    while (*got < len) {
        int64_t n = s->ops->pread(s, (uint8_t *)buf + *got, len - *got,
                                  offset + *got, err);
        if (n < 0)
            return (int)n;
        if (n == 0)
            break;
        *got += (size_t)n;
    }
    return 0;
}

int rhea_storage_read(struct rhea_storage *s, void *buf, size_t len,
                      uint64_t offset, struct rhea_error *err)
{
    size_t got = 0;
    if (range_inside(offset, len, INT64_MAX)) {
        int ret = storage_read_some(s, buf, len, offset, &got, err);
        if (ret < 0)
            return ret;
    }
    if (got < len)
        return rhea_error_set(err, EIO,
                              "cannot read %zu bytes at offset %" PRIu64
                              " of '%s': past the end of the file",
                              len, offset, storage_name(s));
    return 0;
}

int rhea_storage_read_padded(struct rhea_storage *s, void *buf, size_t len,
                             uint64_t offset, struct rhea_error *err)
{
    size_t got;
    int ret = storage_check_range(s, "read", offset, len, err);
    if (!ret)
        ret = storage_read_some(s, buf, len, offset, &got, err);
    if (!ret && got < len)
        memset((uint8_t *)buf + got, 0, len - got);
    return ret;
}

int rhea_storage_write(struct rhea_storage *s, const void *buf, size_t len,
                       uint64_t offset, struct rhea_error *err)
{
    int ret = storage_check_change(s, "write", offset, len, err);
    if (ret || len == 0)
        return ret;
    return s->ops->pwrite(s, buf, len, offset, err);
}

int rhea_storage_flush(struct rhea_storage *s, struct rhea_error *err)
{
    return s->writable ? s->ops->flush(s, err) : 0;
}

int rhea_storage_size(struct rhea_storage *s, uint64_t *size,
                      struct rhea_error *err)
{
    return s->ops->size(s, size, err);
}

int rhea_storage_truncate(struct rhea_storage *s, uint64_t size,
                          struct rhea_error *err)
{
    int ret = storage_check_writable(s, "resize", err);
    if (ret)
        return ret;
    if (size > INT64_MAX)
        return rhea_error_set(err, EFBIG,
                              "cannot resize '%s' to %" PRIu64
                              " bytes: no file is that large",
                              storage_name(s), size);
    return s->ops->truncate(s, size, err);
}

int rhea_storage_zero(struct rhea_storage *s, uint64_t offset, uint64_t len,
                      bool punch, struct rhea_error *err)
{
    int ret = storage_check_change(s, "zero", offset, len, err);
    if (ret || len == 0)
        return ret;
    return s->ops->zero(s, offset, len, punch, err);
}

int rhea_storage_discard(struct rhea_storage *s, uint64_t offset, uint64_t len,
                         struct rhea_error *err)
{
    int ret = storage_check_change(s, "discard", offset, len, err);
    if (ret || len == 0)
        return ret;
    return s->ops->discard ? s->ops->discard(s, offset, len, err)
                           : s->ops->zero(s, offset, len, true, err);
}

int rhea_storage_allocate(struct rhea_storage *s, uint64_t offset, uint64_t len,
                          struct rhea_error *err)
{
    int ret = storage_check_change(s, "reserve", offset, len, err);
    if (ret || len == 0)
        return ret;
    return s->ops->allocate(s, offset, len, err);
}

int rhea_storage_clone(struct rhea_storage *s, uint64_t offset,
                       struct rhea_storage *from, uint64_t from_offset,
                       uint64_t len, struct rhea_error *err)
{
    int ret = storage_check_change(s, "clone", offset, len, err);
    if (!ret)
        ret = storage_check_range(from, "clone", from_offset, len, err);
    if (ret)
        return ret;
    if (!s->ops->clone)
        return rhea_error_set(err, ENOTSUP,
                              "'%s' cannot share blocks with other files",
                              storage_name(s));
    return s->ops->clone(s, offset, from, from_offset, len, err);
}

int rhea_storage_extent(struct rhea_storage *s, uint64_t offset, uint64_t len,
                        bool *hole, uint64_t *run, struct rhea_error *err)
{
    *hole = false;
    *run = len;
    int ret = storage_check_range(s, "look at", offset, len, err);
    if (ret || len == 0 || !s->ops->extent)
        return ret;
    return s->ops->extent(s, offset, len, hole, run, err);
}

int rhea_storage_lock(struct rhea_storage *s, unsigned perm, unsigned shared,
                      struct rhea_error *err)
{
    if (!s->ops->lock)
        return 0;
    return s->ops->lock(s, perm & RHEA_LOCK_ALL, shared & RHEA_LOCK_ALL, err);
}

void rhea_storage_prefetch(struct rhea_storage *s, uint64_t offset,
                           uint64_t len)
{
    if (s->ops->prefetch && len && range_inside(offset, len, INT64_MAX))
        s->ops->prefetch(s, offset, len);
}

void rhea_storage_writeback(struct rhea_storage *s, uint64_t offset,
                            uint64_t len)
{
    if (s->ops->writeback && len && range_inside(offset, len, INT64_MAX))
        s->ops->writeback(s, offset, len);
}

void rhea_storage_close(struct rhea_storage *s)
{
    if (s)
        s->ops->close(s);
}
