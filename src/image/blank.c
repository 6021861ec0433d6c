/* SPDX-License-Identifier: MIT */
/*
 * A device as an empty file, for a new image to be written to. A device cannot
 * be emptied and keeps its size; what was on it must not show as part of the
 * new image. So the end of what was written is kept here, and where a format
 * leaves a gap behind it, which in a file would read as zeroes, zeroes are
 * written. A raw image keeps what the device holds: there it is the contents.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "image/blank.h"

static struct blank *blank_of(struct rhea_storage *s)
{
    return (struct blank *)s;
}

/* From now on the file reaches to END. */
static int blank_grow(struct blank *b, uint64_t from, uint64_t end,
                      struct rhea_error *err)
{
    uint64_t room;
    int ret = rhea_storage_size(b->device, &room, err);
    if (!ret && end > room)
        ret = rhea_error_set(err, ENOSPC,
                             "the device '%s' has %" PRIu64
                             " bytes, and %" PRIu64 " are needed",
                             b->head.path ? b->head.path : "", room, end);
    if (!ret && from > b->end && !b->keep)
        ret = rhea_storage_zero(b->device, b->end, from - b->end, false, err);
    if (!ret)
        b->end = RHEA_MAX(b->end, end);
    return ret;
}

static int64_t blank_pread(struct rhea_storage *s, void *buf, size_t len,
                           uint64_t offset, struct rhea_error *err)
{
    struct blank *b = blank_of(s);
    if (offset >= b->end)
        return 0;
    len = (size_t)RHEA_MIN(len, b->end - offset);
    int ret = rhea_storage_read(b->device, buf, len, offset, err);
    return ret ? ret : (int64_t)len;
}

static int blank_pwrite(struct rhea_storage *s, const void *buf, size_t len,
                        uint64_t offset, struct rhea_error *err)
{
    struct blank *b = blank_of(s);
    int ret = blank_grow(b, offset, offset + len, err);
    return ret ? ret : rhea_storage_write(b->device, buf, len, offset, err);
}

static int blank_flush(struct rhea_storage *s, struct rhea_error *err)
{
    return rhea_storage_flush(blank_of(s)->device, err);
}

static int blank_size(struct rhea_storage *s, uint64_t *size,
                      struct rhea_error *err)
{
    (void)err;
    *size = blank_of(s)->end;
    return 0;
}

static int blank_truncate(struct rhea_storage *s, uint64_t size,
                          struct rhea_error *err)
{
    struct blank *b = blank_of(s);
    int ret = blank_grow(b, size, size, err);
    if (!ret)
        b->end = size;
    return ret;
}

static int blank_zero(struct rhea_storage *s, uint64_t offset, uint64_t len,
                      bool punch, struct rhea_error *err)
{
    struct blank *b = blank_of(s);
    int ret = blank_grow(b, offset, offset + len, err);
    return ret ? ret : rhea_storage_zero(b->device, offset, len, punch, err);
}

static int blank_allocate(struct rhea_storage *s, uint64_t offset, uint64_t len,
                          struct rhea_error *err)
{
    return blank_grow(blank_of(s), offset + len, offset + len, err);
}

static void blank_close(struct rhea_storage *s)
{
    (void)s; /* lives in its user's frame */
}

static const struct rhea_storage_ops blank_ops = {
    .name = "blank",
    .pread = blank_pread,
    .pwrite = blank_pwrite,
    .flush = blank_flush,
    .size = blank_size,
    .truncate = blank_truncate,
    .zero = blank_zero,
    .allocate = blank_allocate,
    .close = blank_close,
};

void blank_init(struct blank *b, struct rhea_storage *device, bool keep)
{
    *b = (struct blank){
        .head = {.ops = &blank_ops, .path = device->path, .writable = true},
        .device = device,
        .keep = keep,
    };
}
