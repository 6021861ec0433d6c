/* SPDX-License-Identifier: MIT */
/*
 * The bytes of a raw image as a storage: a part of another storage, which
 * begins at an offset and either has a fixed size or goes on to the end and can
 * grow. It goes around the raw format, whose size is in whole sectors.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "image/internal.h"
#include "image/node.h"

struct slice {
    struct rhea_storage head;
    struct rhea_image *image; /* raw; it owns the storage below */
    struct rhea_storage *below;
    uint64_t start, size; /* size UINT64_MAX: to the end */
};

static bool slice_holds(const struct slice *s, uint64_t offset, uint64_t len)
{
    return range_inside(offset, len, RHEA_MIN(s->size, INT64_MAX - s->start));
}

static int slice_past(const struct slice *s, const char *verb, uint64_t offset,
                      uint64_t len, struct rhea_error *err)
{
    return rhea_error_set(err, ENOSPC,
                          "cannot %s %" PRIu64 " bytes at offset %" PRIu64
                          " of a part of '%s' that has %" PRIu64,
                          verb, len, offset, s->image->filename, s->size);
}

static int slice_size(struct rhea_storage *storage, uint64_t *size,
                      struct rhea_error *err)
{
    struct slice *s = (struct slice *)storage;
    *size = s->size;
    if (s->size != UINT64_MAX)
        return 0;
    int ret = rhea_storage_size(s->below, size, err);
    if (!ret)
        *size = *size > s->start ? *size - s->start : 0;
    return ret;
}

static int64_t slice_pread(struct rhea_storage *storage, void *buf, size_t len,
                           uint64_t offset, struct rhea_error *err)
{
    struct slice *s = (struct slice *)storage;
    uint64_t end;
    int ret = slice_size(storage, &end, err);
    if (ret || offset >= end)
        return ret;
    len = (size_t)RHEA_MIN(len, end - offset);
    rhea_storage_event(s->below, "read_aio");
    return s->below->ops->pread(s->below, buf, len, s->start + offset, err);
}

static int slice_pwrite(struct rhea_storage *storage, const void *buf,
                        size_t len, uint64_t offset, struct rhea_error *err)
{
    struct slice *s = (struct slice *)storage;
    if (!slice_holds(s, offset, len))
        return slice_past(s, "write", offset, len, err);
    rhea_storage_event(s->below, "write_aio");
    return rhea_storage_write(s->below, buf, len, s->start + offset, err);
}

static int slice_flush(struct rhea_storage *storage, struct rhea_error *err)
{
    return rhea_storage_flush(((struct slice *)storage)->below, err);
}

static int slice_truncate(struct rhea_storage *storage, uint64_t size,
                          struct rhea_error *err)
{
    struct slice *s = (struct slice *)storage;
    if (s->size == size)
        return 0;
    if (s->size != UINT64_MAX || !slice_holds(s, size, 0))
        return rhea_error_set(err, EOPNOTSUPP,
                              "a part of '%s' that has %" PRIu64
                              " bytes cannot be resized",
                              s->image->filename, s->size);
    return rhea_storage_truncate(s->below, s->start + size, err);
}

static int slice_zero(struct rhea_storage *storage, uint64_t offset,
                      uint64_t len, bool punch, struct rhea_error *err)
{
    struct slice *s = (struct slice *)storage;
    if (!slice_holds(s, offset, len))
        return slice_past(s, "zero", offset, len, err);
    return rhea_storage_zero(s->below, s->start + offset, len, punch, err);
}

static int slice_discard(struct rhea_storage *storage, uint64_t offset,
                         uint64_t len, struct rhea_error *err)
{
    struct slice *s = (struct slice *)storage;
    if (!slice_holds(s, offset, len))
        return slice_past(s, "discard", offset, len, err);
    return rhea_storage_discard(s->below, s->start + offset, len, err);
}

static int slice_allocate(struct rhea_storage *storage, uint64_t offset,
                          uint64_t len, struct rhea_error *err)
{
    struct slice *s = (struct slice *)storage;
    if (!slice_holds(s, offset, len))
        return slice_past(s, "reserve", offset, len, err);
    return rhea_storage_allocate(s->below, s->start + offset, len, err);
}

static int slice_extent(struct rhea_storage *storage, uint64_t offset,
                        uint64_t len, bool *hole, uint64_t *run,
                        struct rhea_error *err)
{
    struct slice *s = (struct slice *)storage;
    return rhea_storage_extent(s->below, s->start + offset, len, hole, run,
                               err);
}

static void slice_prefetch(struct rhea_storage *storage, uint64_t offset,
                           uint64_t len)
{
    struct slice *s = (struct slice *)storage;
    if (slice_holds(s, offset, len))
        rhea_storage_prefetch(s->below, s->start + offset, len);
}

static void slice_writeback(struct rhea_storage *storage, uint64_t offset,
                            uint64_t len)
{
    struct slice *s = (struct slice *)storage;
    if (slice_holds(s, offset, len))
        rhea_storage_writeback(s->below, s->start + offset, len);
}

static int slice_lock(struct rhea_storage *storage, unsigned perm,
                      unsigned shared, struct rhea_error *err)
{
    return rhea_storage_lock(((struct slice *)storage)->below, perm, shared,
                             err);
}

static struct rhea_storage *slice_inner(const struct rhea_storage *storage)
{
    return ((const struct slice *)storage)->below;
}

static void slice_close(struct rhea_storage *storage)
{
    struct slice *s = (struct slice *)storage;
    rhea_image_close(s->image, NULL);
    free(storage->path);
    free(s);
}

static const struct rhea_storage_ops slice_ops = {
    .name = "slice",
    .pread = slice_pread,
    .pwrite = slice_pwrite,
    .flush = slice_flush,
    .size = slice_size,
    .truncate = slice_truncate,
    .zero = slice_zero,
    .discard = slice_discard,
    .allocate = slice_allocate,
    .extent = slice_extent,
    .prefetch = slice_prefetch,
    .writeback = slice_writeback,
    .lock = slice_lock,
    .inner = slice_inner,
    .close = slice_close,
};

int slice_open(struct rhea_storage **out, struct rhea_image *image,
               struct rhea_error *err)
{
    struct slice *s = calloc(1, sizeof(*s));
    char *path = strdup(image->filename);
    int ret = 0;
    if (!s || !path) {
        ret = rhea_error_set(err, ENOMEM, "out of memory");
    } else {
        s->size = UINT64_MAX;
        ret = storage_options_size(&image->options, "offset", &s->start, err);
        if (!ret)
            ret = storage_options_size(&image->options, "size", &s->size, err);
    }
    if (ret) {
        free(s);
        free(path);
        rhea_image_close(image, NULL);
        return ret;
    }
    s->head.ops = &slice_ops;
    s->head.path = path;
    s->head.writable = image->flags & RHEA_IMAGE_WRITE;
    s->image = image;
    s->below = image->storage;
    *out = &s->head;
    return 0;
}
