/* SPDX-License-Identifier: MIT */
/* QED images in memory, for the tests of the driver. */
#ifndef QED_LIB_H
#define QED_LIB_H

#include <rhea/format.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "lib/test.h"
#include "storage/memory.h"

static struct rhea_error err;

static inline const struct rhea_format_ops *qed_ops(void)
{
    return rhea_format_find("qed");
}

/* A new, empty image. */
static inline struct rhea_storage *qed_make(uint64_t size, const char *cluster,
                                            const char *table,
                                            const char *backing)
{
    struct rhea_storage *s;
    const struct rhea_option options[] = {{"cluster_size", cluster},
                                          {"table_size", table}};
    const struct rhea_create how = {.size = size,
                                    .backing_file = backing,
                                    .options = options,
                                    .n_options = 2};
    if (!CHECK_OK(rhea_memory_open(&s, INT64_MAX, &err), &err) ||
        !CHECK_OK(qed_ops()->create(s, &how, &err), &err))
        exit(99);
    return s;
}

static inline struct rhea_format *qed_open_ok(struct rhea_storage *s,
                                              unsigned flags)
{
    struct rhea_format *f = NULL;
    if (!CHECK_OK(rhea_format_open_over(qed_ops(), &f, s, flags, &err), &err))
        exit(99);
    return f;
}

static inline void qed_close_ok(struct rhea_format *f)
{
    CHECK_OK(f->ops->close(f, &err), &err);
}

static inline void put_le64(struct rhea_storage *s, uint64_t offset,
                            uint64_t value)
{
    uint8_t bytes[8];
    store_le64(bytes, value);
    CHECK_OK(rhea_storage_write(s, bytes, 8, offset, &err), &err);
}

static inline void put_le32(struct rhea_storage *s, uint64_t offset,
                            uint32_t value)
{
    uint8_t bytes[4];
    store_le32(bytes, value);
    CHECK_OK(rhea_storage_write(s, bytes, 4, offset, &err), &err);
}

static inline uint64_t get_le64(struct rhea_storage *s, uint64_t offset)
{
    uint8_t bytes[8] = {0};
    CHECK_OK(rhea_storage_read(s, bytes, 8, offset, &err), &err);
    return load_le64(bytes);
}

/* Guest bytes, as an image without a backing file has them. */
static inline int qed_read(struct rhea_format *f, uint8_t *buf, size_t len,
                           uint64_t offset)
{
    while (len) {
        struct rhea_extent x;
        int ret = f->ops->map(f, offset, len, &x, &err);
        if (ret)
            return ret;
        size_t n = (size_t)RHEA_MIN(len, x.length);
        if (x.kind == RHEA_EXTENT_DATA)
            ret = rhea_storage_read(x.storage, buf, n, x.host, &err);
        else
            memset(buf, 0, n);
        if (ret)
            return ret;
        buf += n;
        offset += n;
        len -= n;
    }
    return 0;
}

static inline struct rhea_check qed_checked(struct rhea_format *f, unsigned fix)
{
    struct rhea_check check = {0};
    CHECK_OK(f->ops->check(f, fix, &check, &err), &err);
    return check;
}

#endif
