/* SPDX-License-Identifier: MIT */
/*
 * Filters: nodes in front of an image, their child "file", whose bytes are that
 * image's but are got or kept in another way.
 *
 *   copy-on-read  what is read from below the image is copied into it
 *   compress      what is written is compressed, where it is new
 *
 * A filter is put on the image that is its child, which from then on is called
 * as the filter is.
 *
 * What is copied, or read to be compressed with what is written, must not come
 * after a write that it did not see: see the lock `order`.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "image/internal.h"
#include "image/opening.h"

#define FILTER_PIECE (1U << 20) /* bytes that are copied at a time */

static const struct {
    const char *driver;
    unsigned filter;
} filters[] = {
    {"copy-on-read", IMAGE_FILTER_COPY_ON_READ},
    {"compress", IMAGE_FILTER_COMPRESS},
};

unsigned image_filter_find(const char *driver)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(filters); i++)
        if (strcmp(filters[i].driver, driver) == 0)
            return filters[i].filter;
    return 0;
}

int image_filter_add(struct rhea_image *image, unsigned filter,
                     struct rhea_error *err)
{
    if (filter == IMAGE_FILTER_COMPRESS &&
        !image->format->ops->write_compressed)
        return rhea_error_set(err, ENOTSUP,
                              "%s images have no compressed clusters",
                              image->driver);
    if (filter == IMAGE_FILTER_COPY_ON_READ &&
        !(image->flags & RHEA_IMAGE_WRITE))
        return rhea_error_set(err, EACCES,
                              "what is read cannot be copied into '%s', which "
                              "is open for reading only",
                              image->filename);
    if (!image->filters)
        pthread_rwlock_init(&image->order, NULL);
    image->filters |= filter;
    return 0;
}

/* IMAGE is called as filter DRIVER over it. */
static int filter_describe(struct rhea_image *image, const char *driver,
                           struct rhea_error *err)
{
    const struct storage_options none = {0};
    struct node_description d = {0};
    bool others;
    int ret = node_describe(&d, driver, &none, NULL, &others, err);
    if (!ret)
        ret = node_describe_child(&d, "file", &image->description, err);
    if (ret) {
        node_description_finish(&d);
        return ret;
    }
    d.folder = rhea_steal(image->description.folder);
    node_description_finish(&image->description);
    image->description = d;
    return image_rename(image, err);
}

static int filter_put_on(struct rhea_image *image, const char *name,
                         struct rhea_error *err)
{
    int ret = image_filter_add(image, image_filter_find(name), err);
    if (!ret)
        ret = filter_describe(image, name, err);
    for (size_t i = 0; !ret && i < RHEA_ARRAY_SIZE(filters); i++)
        if (strcmp(filters[i].driver, name) == 0)
            image->driver = filters[i].driver;
    return ret;
}

int image_filter_open(struct rhea_image **out, const char *name,
                      struct storage_options *options, unsigned flags,
                      struct node_opening *opening, struct rhea_error *err)
{
    struct node_common common = {.flags = flags};
    struct storage_options child = {0};
    struct rhea_image *image = NULL;
    int ret = node_enter(opening, err);
    if (ret)
        return ret;
    ret = node_take_common(options, &common, err);
    if (!ret)
        ret = node_take_child(options, "file", &child, err);
    const char *unused = storage_options_unused(options);
    const char *driver = storage_options_peek(options, "driver");
    if (!ret && unused)
        ret = rhea_error_set(err, EINVAL, "driver %s has no option '%s'",
                             driver, unused);
    if (!ret)
        ret = node_open_image(&image,
                              node_options_name_file(&child) ? NULL : name,
                              &child, common.flags, opening, err);
    storage_options_finish(&child);
    if (!ret)
        ret = filter_put_on(image, driver, err);
    if (!ret && common.detect_zeroes != NODE_ZEROES_OFF)
        image->detect_zeroes = common.detect_zeroes;
    node_leave(opening);
    if (ret) {
        rhea_image_close(image, NULL);
        return ret;
    }
    *out = image;
    return 0;
}

/* What the image itself, whatever is below it, has at OFFSET. */
static int filter_map(struct rhea_image *image, uint64_t offset, uint64_t len,
                      struct rhea_extent *x, struct rhea_error *err)
{
    struct rhea_image_extent found;
    int ret = rhea_image_map_above(image, rhea_image_backing(image), offset,
                                   len, &found, err);
    *x = found.extent;
    /* What is left to the backing image. */
    if (!ret && found.depth)
        x->kind = RHEA_EXTENT_UNALLOCATED;
    return ret;
}

static uint64_t filter_unit(struct rhea_image *image)
{
    struct rhea_format_info info;
    rhea_image_info(image_mapped(image), &info);
    return RHEA_MAX(info.cluster_size, 1);
}

/* Copy up a run that is mapped alike, or as much of it as BUF holds. *LEN is
 * what it has become. */
static int filter_copy_run(struct rhea_image *image, uint8_t *buf,
                           uint64_t offset, uint64_t *len,
                           struct rhea_error *err)
{
    const struct rhea_format_ops *ops = image->format->ops;
    struct rhea_image_extent x;
    int ret = rhea_image_map(image, offset, *len, &x, err);
    if (ret)
        return ret;
    bool zero = x.extent.kind == RHEA_EXTENT_ZERO ||
                x.extent.kind == RHEA_EXTENT_UNALLOCATED;
    *len = x.extent.length;
    if (!zero) {
        *len = RHEA_MIN(*len, FILTER_PIECE);
        ret = image_read_plain(image, buf, *len, offset, err);
        zero = !ret && image_is_zero(buf, *len);
    }
    if (ret)
        return ret;
    rhea_storage_event(image->storage, "cor_write");
    if (zero && ops->write_zeroes)
        return ops->write_zeroes(image->format, offset, *len, false, err);
    *len = RHEA_MIN(*len, FILTER_PIECE);
    if (zero)
        memset(buf, 0, *len);
    return ops->write(image->format, offset, buf, *len, err);
}

/* Copy what the image lacks of the clusters that [AT, END) touches. */
static int filter_copy_up(struct rhea_image *image, uint64_t at, uint64_t end,
                          struct rhea_error *err)
{
    uint64_t unit = filter_unit(image), size = rhea_image_size(image);
    RHEA_AUTO_FREE uint8_t *buf = malloc(FILTER_PIECE);
    int ret = 0;
    if (!buf)
        return rhea_error_set(err, ENOMEM, "out of memory");
    at = align_down(at, unit);
    end = RHEA_MIN(align_up(end, unit), size);
    pthread_rwlock_wrlock(&image->order);
    while (!ret && at < end) {
        struct rhea_extent x;
        ret = filter_map(image, at, end - at, &x, err);
        uint64_t len = x.length;
        if (!ret && x.kind == RHEA_EXTENT_UNALLOCATED)
            ret = filter_copy_run(image, buf, at, &len, err);
        at += len;
    }
    pthread_rwlock_unlock(&image->order);
    return ret;
}

int image_filter_read(struct rhea_image *image, uint8_t *buf, size_t len,
                      uint64_t offset, struct rhea_error *err)
{
    while (len) {
        struct rhea_extent x;
        int ret = filter_map(image, offset, len, &x, err);
        if (ret)
            return ret;
        size_t n = (size_t)RHEA_MIN(len, x.length);
        if (x.kind == RHEA_EXTENT_UNALLOCATED && !image->blind)
            ret = filter_copy_up(image, offset, offset + n, err);
        if (!ret)
            ret = image_read_plain(image, buf, n, offset, err);
        if (ret)
            return ret;
        buf += n;
        offset += n;
        len -= n;
    }
    return 0;
}

/* Write LEN bytes, all in the cluster at START, which BUF has room for. */
static int filter_compress(struct rhea_image *image, uint8_t *cluster,
                           uint64_t start, uint64_t unit, const uint8_t *buf,
                           size_t len, uint64_t offset, struct rhea_error *err)
{
    struct rhea_format *f = image->format;
    size_t whole = (size_t)RHEA_MIN(unit, f->size - start);
    struct rhea_extent x;
    int ret = filter_map(image, start, whole, &x, err);
    if (ret)
        return ret;
    /* A cluster that has a place keeps it. */
    if (x.kind != RHEA_EXTENT_UNALLOCATED || x.length < whole || x.has_host)
        return f->ops->write(f, offset, buf, len, err);
    if (len < whole)
        ret = image_read_plain(image, cluster, whole, start, err);
    if (ret)
        return ret;
    memcpy(cluster + (offset - start), buf, len);
    return f->ops->write_compressed(f, start, cluster, whole, err);
}

int image_filter_write(struct rhea_image *image, const uint8_t *buf, size_t len,
                       uint64_t offset, struct rhea_error *err)
{
    uint64_t unit = filter_unit(image);
    RHEA_AUTO_FREE uint8_t *cluster = malloc(unit);
    int ret = 0;
    if (!cluster)
        return rhea_error_set(err, ENOMEM, "out of memory");
    pthread_rwlock_wrlock(&image->order);
    while (!ret && len) {
        uint64_t start = align_down(offset, unit);
        size_t n = (size_t)RHEA_MIN(len, start + unit - offset);
        ret = filter_compress(image, cluster, start, unit, buf, n, offset, err);
        buf += n;
        offset += n;
        len -= n;
    }
    pthread_rwlock_unlock(&image->order);
    return ret;
}
