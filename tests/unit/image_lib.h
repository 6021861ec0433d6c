/* SPDX-License-Identifier: MIT */
/* Images of any format in memory, for the tests of their drivers. */
#ifndef IMAGE_LIB_H
#define IMAGE_LIB_H

#include <rhea/format.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "lib/test.h"
#include "storage/memory.h"

static struct rhea_error err;

/* A new, empty image, of which HOW says all but the options: "name=value
 * name=value". */
static inline struct rhea_storage *image_make(const struct rhea_format_ops *ops,
                                              struct rhea_create how,
                                              const char *options)
{
    struct rhea_option list[8];
    struct rhea_storage *s;
    char text[256], *at = text;

    snprintf(text, sizeof(text), "%s", options);
    how.options = list;
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
        !CHECK_OK(ops->create(s, &how, &err), &err))
        exit(99);
    return s;
}

static inline struct rhea_format *
image_open_ok(const struct rhea_format_ops *ops, struct rhea_storage *s,
              unsigned flags)
{
    struct rhea_format *f = NULL;
    if (!CHECK_OK(rhea_format_open_over(ops, &f, s, flags, &err), &err))
        exit(99);
    return f;
}

static inline void image_close_ok(struct rhea_format *f)
{
    CHECK_OK(f->ops->close(f, &err), &err);
}

static inline struct rhea_check image_checked(struct rhea_format *f,
                                              unsigned fix)
{
    struct rhea_check check = {0};
    CHECK_OK(f->ops->check(f, fix, &check, &err), &err);
    return check;
}

/* Guest bytes; what is unallocated is BELOW. */
static inline int image_read(struct rhea_format *f, uint8_t *buf, size_t len,
                             uint64_t offset, int below)
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

/* --- Fields -------------------------------------------------------------- */

static inline void put_bytes(struct rhea_storage *s, uint64_t offset,
                             const void *bytes, size_t len)
{
    CHECK_OK(rhea_storage_write(s, bytes, len, offset, &err), &err);
}

static inline void put_be64(struct rhea_storage *s, uint64_t offset,
                            uint64_t value)
{
    uint8_t bytes[8];
    store_be64(bytes, value);
    put_bytes(s, offset, bytes, sizeof(bytes));
}

static inline void put_be32(struct rhea_storage *s, uint64_t offset,
                            uint32_t value)
{
    uint8_t bytes[4];
    store_be32(bytes, value);
    put_bytes(s, offset, bytes, sizeof(bytes));
}

static inline void put_le64(struct rhea_storage *s, uint64_t offset,
                            uint64_t value)
{
    uint8_t bytes[8];
    store_le64(bytes, value);
    put_bytes(s, offset, bytes, sizeof(bytes));
}

static inline void put_le32(struct rhea_storage *s, uint64_t offset,
                            uint32_t value)
{
    uint8_t bytes[4];
    store_le32(bytes, value);
    put_bytes(s, offset, bytes, sizeof(bytes));
}

static inline uint64_t get_be64(struct rhea_storage *s, uint64_t offset)
{
    uint8_t bytes[8] = {0};
    CHECK_OK(rhea_storage_read(s, bytes, sizeof(bytes), offset, &err), &err);
    return load_be64(bytes);
}

static inline uint64_t get_le64(struct rhea_storage *s, uint64_t offset)
{
    uint8_t bytes[8] = {0};
    CHECK_OK(rhea_storage_read(s, bytes, sizeof(bytes), offset, &err), &err);
    return load_le64(bytes);
}

#endif
