/* SPDX-License-Identifier: MIT */
/* VHDX images in memory. */
#ifndef VHDX_LIB_H
#define VHDX_LIB_H

#include <rhea/format.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/vhdx/vhdx.h"
#include "lib/test.h"
#include "storage/memory.h"

static inline const struct rhea_format_ops *vhdx_ops(void)
{
    return rhea_format_find("vhdx");
}

/* OPTIONS: "name=value name=value". PARENT NULL: none. */
static inline struct rhea_storage *vhdx_make(uint64_t size, const char *options,
                                             struct rhea_format *parent)
{
    struct rhea_error e;
    struct rhea_storage *s;
    struct rhea_option list[8];
    size_t n = 0;
    char text[256], *save = NULL;
    snprintf(text, sizeof(text), "%s", options);
    for (char *p = strtok_r(text, " ", &save); p;
         p = strtok_r(NULL, " ", &save)) {
        char *equals = strchr(p, '=');
        *equals = 0;
        list[n++] = (struct rhea_option){p, equals + 1};
    }
    const struct rhea_create how = {
        .size = size,
        .options = list,
        .n_options = n,
        .backing_file = parent ? "base.vhdx" : NULL,
        .parent = parent,
    };
    if (!CHECK_OK(rhea_memory_open(&s, INT64_MAX, &e), &e) ||
        !CHECK_OK(vhdx_ops()->create(s, &how, &e), &e))
        exit(99);
    return s;
}

static inline struct rhea_format *vhdx_open_ok(struct rhea_storage *s,
                                               unsigned flags)
{
    struct rhea_error e;
    struct rhea_format *f = NULL;
    if (!CHECK_OK(rhea_format_open_over(vhdx_ops(), &f, s, flags, &e), &e))
        exit(99);
    return f;
}

static inline void vhdx_close_ok(struct rhea_format *f)
{
    struct rhea_error e;
    CHECK_OK(f->ops->close(f, &e), &e);
}

static inline struct rhea_check vhdx_checked(struct rhea_format *f,
                                             unsigned fix)
{
    struct rhea_error e;
    struct rhea_check check = {0};
    CHECK_OK(f->ops->check(f, fix, &check, &e), &e);
    return check;
}

/* A child of an image with the same options. */
static inline struct rhea_storage *
vhdx_make_child(uint64_t size, const char *base_options, const char *options)
{
    struct rhea_storage *base = vhdx_make(size, base_options, NULL);
    struct rhea_format *parent = vhdx_open_ok(base, 0);
    struct rhea_storage *s = vhdx_make(size, options, parent);
    vhdx_close_ok(parent);
    rhea_storage_close(base);
    return s;
}

static inline void put_bytes(struct rhea_storage *s, uint64_t offset,
                             const void *bytes, size_t len)
{
    struct rhea_error e;
    CHECK_OK(rhea_storage_write(s, bytes, len, offset, &e), &e);
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

static inline uint64_t get_le64(struct rhea_storage *s, uint64_t offset)
{
    struct rhea_error e;
    uint8_t bytes[8] = {0};
    CHECK_OK(rhea_storage_read(s, bytes, 8, offset, &e), &e);
    return load_le64(bytes);
}

/* Guest bytes; what is unallocated is BELOW. */
static inline int vhdx_read(struct rhea_format *f, uint8_t *buf, size_t len,
                            uint64_t offset, uint8_t below)
{
    struct rhea_error e;
    while (len) {
        struct rhea_extent x;
        int ret = f->ops->map(f, offset, len, &x, &e);
        if (ret)
            return ret;
        size_t n = (size_t)RHEA_MIN(len, x.length);
        if (x.kind == RHEA_EXTENT_DATA)
            ret = rhea_storage_read(x.storage, buf, n, x.host, &e);
        else
            memset(buf, x.kind == RHEA_EXTENT_UNALLOCATED ? below : 0, n);
        if (ret)
            return ret;
        buf += n;
        offset += n;
        len -= n;
    }
    return 0;
}

#endif
