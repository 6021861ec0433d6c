/* SPDX-License-Identifier: MIT */
/* qcow2 images in memory, for the tests of the driver. */
#ifndef QCOW2_LIB_H
#define QCOW2_LIB_H

#include <rhea/format.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "lib/test.h"
#include "storage/memory.h"

static struct rhea_error err;

static inline const struct rhea_format_ops *qcow2_ops(void)
{
    return rhea_format_find("qcow2");
}

/* A new, empty image. OPTIONS: "name=value name=value". */
static inline struct rhea_storage *
qcow2_make(uint64_t size, const char *options, const char *backing)
{
    struct rhea_option list[8];
    struct rhea_create how = {
        .size = size, .backing_file = backing, .options = list};
    struct rhea_storage *s;
    char text[256], *at = text;

    snprintf(text, sizeof(text), "%s", options);
    while (*at && how.n_options < RHEA_ARRAY_SIZE(list)) {
        char *value = strchr(at, '='), *end = strchrnul(at, ' ');
        if (!CHECK(value && value < end))
            exit(99);
        list[how.n_options++] = (struct rhea_option){at, value + 1};
        *value = 0;
        at = end + (*end == ' ');
        *end = 0;
    }
    if (!CHECK_OK(rhea_memory_open(&s, INT64_MAX, &err), &err) ||
        !CHECK_OK(qcow2_ops()->create(s, &how, &err), &err))
        exit(99);
    return s;
}

static inline struct rhea_format *qcow2_open_ok(struct rhea_storage *s,
                                                unsigned flags)
{
    struct rhea_format *f = NULL;
    if (!CHECK_OK(rhea_format_open_over(qcow2_ops(), &f, s, flags, &err), &err))
        exit(99);
    return f;
}

static inline void qcow2_close_ok(struct rhea_format *f)
{
    CHECK_OK(f->ops->close(f, &err), &err);
}

static inline void put_be64(struct rhea_storage *s, uint64_t offset,
                            uint64_t value)
{
    uint8_t bytes[8];
    store_be64(bytes, value);
    CHECK_OK(rhea_storage_write(s, bytes, 8, offset, &err), &err);
}

static inline void put_be32(struct rhea_storage *s, uint64_t offset,
                            uint32_t value)
{
    uint8_t bytes[4];
    store_be32(bytes, value);
    CHECK_OK(rhea_storage_write(s, bytes, 4, offset, &err), &err);
}

static inline uint64_t get_be64(struct rhea_storage *s, uint64_t offset)
{
    uint8_t bytes[8] = {0};
    CHECK_OK(rhea_storage_read(s, bytes, 8, offset, &err), &err);
    return load_be64(bytes);
}

static inline struct rhea_check qcow2_checked(struct rhea_format *f,
                                              unsigned fix)
{
    struct rhea_check check = {0};
    CHECK_OK(f->ops->check(f, fix, &check, &err), &err);
    return check;
}

/* Guest bytes; what is unallocated is BELOW. */
static inline int qcow2_read_over(struct rhea_format *f, uint8_t *buf,
                                  size_t len, uint64_t offset, int below)
{
    while (len) {
        struct rhea_extent x;
        int ret = f->ops->map(f, offset, len, &x, &err);
        if (ret)
            return ret;
        size_t n = (size_t)RHEA_MIN(len, x.length);
        memset(buf, x.kind == RHEA_EXTENT_UNALLOCATED ? below : 0, n);
        if (x.kind == RHEA_EXTENT_DATA)
            ret = rhea_storage_read_padded(x.storage, buf, n, x.host, &err);
        else if (x.kind == RHEA_EXTENT_COMPRESSED)
            ret = f->ops->read(f, offset, buf, n, &err);
        if (ret)
            return ret;
        buf += n;
        offset += n;
        len -= n;
    }
    return 0;
}

#endif
