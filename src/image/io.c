/* SPDX-License-Identifier: MIT */
/* The guest's bytes, through the chain. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "image/internal.h"

enum { ZERO_BYTES = 1 << 20, SECTOR = 512 };

static int io_check_range(const struct rhea_image *image, const char *verb,
                          uint64_t offset, uint64_t len, struct rhea_error *err)
{
    if (range_inside(offset, len, rhea_image_size(image)))
        return 0;
    return rhea_error_set(err, EINVAL,
                          "cannot %s %" PRIu64 " bytes at offset %" PRIu64
                          " of '%s': it ends at %" PRIu64,
                          verb, len, offset, image->filename,
                          rhea_image_size(image));
}

static int io_check_write(const struct rhea_image *image, uint64_t offset,
                          uint64_t len, struct rhea_error *err)
{
    if (!(image->flags & RHEA_IMAGE_WRITE) || !image->format->ops->write)
        return rhea_error_set(err, EACCES, "'%s' is open for reading only",
                              image->filename);
    if (image->blind)
        return rhea_error_set(err, EPERM,
                              "'%s' cannot be written to without its backing "
                              "file",
                              image->filename);
    return io_check_range(image, "write", offset, len, err);
}

static int io_map(struct rhea_image *image, uint64_t offset, uint64_t len,
                  bool hold, struct rhea_extent *x, struct rhea_error *err)
{
    struct rhea_format *f = image->format;
    int ret = (hold ? f->ops->map_hold : f->ops->map)(f, offset, len, x, err);
    if (ret)
        rhea_error_prefix(err, "'%s'", image->filename);
    return ret;
}

/* A run of LEN bytes that is mapped alike. */
static int io_read_extent(struct rhea_image *image, const struct rhea_extent *x,
                          uint8_t *buf, size_t len, uint64_t offset,
                          struct rhea_error *err)
{
    switch (x->kind) {
    case RHEA_EXTENT_DATA:
        rhea_storage_event(image->storage, "read_aio");
        /* An image's last cluster may be short of the file's end. */
        return rhea_storage_read_padded(x->storage, buf, len, x->host, err);
    case RHEA_EXTENT_COMPRESSED:
    case RHEA_EXTENT_ENCRYPTED:
        return image->format->ops->read(image->format, offset, buf, len, err);
    case RHEA_EXTENT_UNALLOCATED:
        if (!image->backing)
            break;
        rhea_storage_event(image->storage, "read_backing_aio");
        return image_read_below(image->backing, offset, buf, len, err);
    case RHEA_EXTENT_ZERO:
        break;
    }
    memset(buf, 0, len);
    return 0;
}

int image_read_plain(struct rhea_image *image, uint8_t *buf, size_t len,
                     uint64_t offset, struct rhea_error *err)
{
    /* A raw file's holes need not be looked for to be read. */
    if (image->is_plain_raw) {
        rhea_storage_event(image->storage, "read_aio");
        return rhea_storage_read_padded(image->storage, buf, len, offset, err);
    }
    /* Others may give clusters back while we read them. */
    const struct rhea_format_ops *ops = image->format->ops;
    bool hold = ops->map_hold && (image->flags & RHEA_IMAGE_WRITE);
    while (len) {
        struct rhea_extent x;
        int ret = io_map(image, offset, len, hold, &x, err);
        if (ret)
            return ret;
        size_t n = (size_t)RHEA_MIN(len, x.length);
        ret = io_read_extent(image, &x, buf, n, offset, err);
        if (hold && x.kind == RHEA_EXTENT_DATA)
            ops->release(image->format);
        if (ret)
            return ret;
        buf += n;
        offset += n;
        len -= n;
    }
    return 0;
}

int image_read_below(void *opaque, uint64_t offset, void *buf, size_t len,
                     struct rhea_error *err)
{
    struct rhea_image *image = opaque;
    uint64_t size = rhea_image_size(image);
    size_t inside = offset < size ? (size_t)RHEA_MIN(len, size - offset) : 0;
    memset((uint8_t *)buf + inside, 0, len - inside);
    return image_read_plain(image, buf, inside, offset, err);
}

int rhea_image_read(struct rhea_image *image, void *buf, size_t len,
                    uint64_t offset, struct rhea_error *err)
{
    int ret = io_check_range(image, "read", offset, len, err);
    if (!ret && image->filters & IMAGE_FILTER_COPY_ON_READ)
        return image_filter_read(image, buf, len, offset, err);
    return ret ? ret : image_read_plain(image, buf, len, offset, err);
}

/*
 * A guest that may write the first sector of a raw image could make it look
 * like another format, and the next program that guesses would open whatever
 * backing file the guest has named there. So where raw was a guess, such a
 * write is refused (as in QEMU); where somebody said raw, it is the guest's
 * right.
 */
static int image_guard_raw(struct rhea_image *image, const uint8_t *buf,
                           size_t len, uint64_t offset, struct rhea_error *err)
{
    if (!image->guessed_raw || offset >= SECTOR || len == 0)
        return 0;
    uint8_t head[4 * SECTOR];
    int ret =
        rhea_storage_read_padded(image->storage, head, sizeof(head), 0, err);
    if (ret)
        return ret;
    memcpy(head + offset, buf, RHEA_MIN(len, sizeof(head) - (size_t)offset));
    if (rhea_format_probe(head, sizeof(head)) == image->format->ops)
        return 0;
    return rhea_error_set(err, EPERM,
                          "refused to write the beginning of '%s': it would "
                          "look like another format; state its format, raw, "
                          "to allow this",
                          image->filename);
}

bool image_is_zero(const uint8_t *buf, size_t len)
{
    return buf[0] == 0 && memcmp(buf, buf + 1, len - 1) == 0;
}

/* Around a write that a filter must not come between. */
static void io_begin(struct rhea_image *image)
{
    if (image->filters)
        pthread_rwlock_rdlock(&image->order);
}

static int io_end(struct rhea_image *image, int ret)
{
    if (image->filters)
        pthread_rwlock_unlock(&image->order);
    return ret;
}

static int io_write(struct rhea_image *image, const void *buf, size_t len,
                    uint64_t offset, struct rhea_error *err)
{
    const struct rhea_format_ops *ops = image->format->ops;
    io_begin(image);
    return io_end(image, ops->write(image->format, offset, buf, len, err));
}

static int io_write_zeroes(struct rhea_image *image, uint64_t offset,
                           uint64_t len, bool unmap, struct rhea_error *err)
{
    const struct rhea_format_ops *ops = image->format->ops;
    io_begin(image);
    return io_end(image,
                  ops->write_zeroes(image->format, offset, len, unmap, err));
}

int rhea_image_write(struct rhea_image *image, const void *buf, size_t len,
                     uint64_t offset, struct rhea_error *err)
{
    const struct rhea_format_ops *ops = image->format->ops;
    int ret = io_check_write(image, offset, len, err);
    if (ret)
        return ret;
    ret = image_guard_raw(image, buf, len, offset, err);
    if (ret || len == 0)
        return ret;
    if (image->detect_zeroes != NODE_ZEROES_OFF && ops->write_zeroes &&
        image_is_zero(buf, len))
        return io_write_zeroes(image, offset, len,
                               image->detect_zeroes == NODE_ZEROES_UNMAP, err);
    if (image->filters & IMAGE_FILTER_COMPRESS)
        return image_filter_write(image, buf, len, offset, err);
    return io_write(image, buf, len, offset, err);
}

int rhea_image_clone(struct rhea_image *image, uint64_t offset,
                     struct rhea_storage *from, uint64_t from_offset,
                     uint64_t len, struct rhea_error *err)
{
    const struct rhea_format_ops *ops = image->format->ops;
    int ret = io_check_write(image, offset, len, err);
    if (ret)
        return ret;
    /* What looks at the bytes that are written. */
    if (!ops->clone || image->guessed_raw ||
        image->detect_zeroes != NODE_ZEROES_OFF ||
        image->filters & IMAGE_FILTER_COMPRESS)
        return rhea_error_set(err, ENOTSUP, "'%s' shares no blocks with others",
                              image->filename);
    io_begin(image);
    return io_end(
        image, ops->clone(image->format, offset, from, from_offset, len, err));
}

static int io_write_zero_bytes(struct rhea_image *image, uint64_t offset,
                               uint64_t len, struct rhea_error *err)
{
    size_t piece = (size_t)RHEA_MIN(len, ZERO_BYTES);
    RHEA_AUTO_FREE void *zeroes = calloc(1, piece ? piece : 1);
    if (!zeroes)
        return rhea_error_set(err, ENOMEM, "out of memory");
    while (len) {
        size_t n = (size_t)RHEA_MIN(len, piece);
        int ret = rhea_image_write(image, zeroes, n, offset, err);
        if (ret)
            return ret;
        offset += n;
        len -= n;
    }
    return 0;
}

int rhea_image_write_zeroes(struct rhea_image *image, uint64_t offset,
                            uint64_t len, bool unmap, struct rhea_error *err)
{
    const struct rhea_format_ops *ops = image->format->ops;
    int ret = io_check_write(image, offset, len, err);
    if (ret)
        return ret;
    if (len == 0)
        return 0;
    if (!ops->write_zeroes)
        return io_write_zero_bytes(image, offset, len, err);
    return io_write_zeroes(image, offset, len, unmap, err);
}

int rhea_image_discard(struct rhea_image *image, uint64_t offset, uint64_t len,
                       struct rhea_error *err)
{
    const struct rhea_format_ops *ops = image->format->ops;
    int ret = io_check_write(image, offset, len, err);
    if (ret || len == 0 || !ops->discard)
        return ret;
    io_begin(image);
    return io_end(image, ops->discard(image->format, offset, len, err));
}

int rhea_image_flush(struct rhea_image *image, struct rhea_error *err)
{
    if (!(image->flags & RHEA_IMAGE_WRITE))
        return 0;
    rhea_storage_event(image->storage, "flush_to_os");
    if (image->format->ops->flush)
        return image->format->ops->flush(image->format, err);
    return rhea_storage_flush(image->storage, err);
}

int rhea_image_map_above(struct rhea_image *image, struct rhea_image *end,
                         uint64_t offset, uint64_t len,
                         struct rhea_image_extent *extent,
                         struct rhea_error *err)
{
    int ret = io_check_range(image, "map", offset, len, err);
    if (ret)
        return ret;
    if (len == 0)
        return rhea_error_set(err, EINVAL, "cannot map 0 bytes of '%s'",
                              image->filename);
    for (unsigned depth = 0;; depth++) {
        if (image != end)
            image = image_mapped(image);
        *extent = (struct rhea_image_extent){
            .extent = {.kind = RHEA_EXTENT_UNALLOCATED, .length = len},
            .depth = depth,
            .image = image,
        };
        if (image == end)
            return 0;
        ret = io_map(image, offset, len, false, &extent->extent, err);
        if (ret)
            return ret;
        struct rhea_image *below = image->backing;
        if (extent->extent.kind != RHEA_EXTENT_UNALLOCATED || !below ||
            offset >= rhea_image_size(below))
            return 0;
        /* A shorter backing image ends the run, too. */
        len = RHEA_MIN(extent->extent.length, rhea_image_size(below) - offset);
        image = below;
    }
}

int rhea_image_map(struct rhea_image *image, uint64_t offset, uint64_t len,
                   struct rhea_image_extent *extent, struct rhea_error *err)
{
    return rhea_image_map_above(image, NULL, offset, len, extent, err);
}
