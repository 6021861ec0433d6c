/* SPDX-License-Identifier: MIT */
/*
 * Persistent bitmaps of images. What makes new bits out of others (clear,
 * merge) is here, so that a format need but load and store them.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "image/internal.h"

enum { GRANULARITY_MIN = 4096, GRANULARITY_MAX = 65536 };

/* All bits of one bitmap. */
struct bits {
    uint8_t *bytes;
    size_t n_bytes;
    uint64_t n; /* bits */
    uint64_t granularity;
};

static int bitmap_fail(const struct rhea_image *image, int result,
                       struct rhea_error *err)
{
    if (result < 0)
        rhea_error_prefix(err, "'%s'", image->filename);
    return result;
}

static int bitmap_check_op(const struct rhea_image *image, bool has, bool write,
                           struct rhea_error *err)
{
    if (!has)
        return rhea_error_set(err, ENOTSUP,
                              "'%s': images of format %s cannot hold bitmaps",
                              image->filename, image->format->ops->name);
    if (write && !(image->flags & RHEA_IMAGE_WRITE))
        return rhea_error_set(err, EACCES, "'%s' is open for reading only",
                              image->filename);
    return 0;
}

int rhea_image_bitmap_list(struct rhea_image *image, struct rhea_bitmap **list,
                           size_t *n, struct rhea_error *err)
{
    const struct rhea_format_ops *ops = image->format->ops;
    int ret = bitmap_check_op(image, ops->bitmap_list, false, err);

    *list = NULL;
    *n = 0;
    if (ret == 0)
        ret = bitmap_fail(image, ops->bitmap_list(image->format, list, n, err),
                          err);
    return ret;
}

int rhea_image_bitmap_add(struct rhea_image *image,
                          const struct rhea_bitmap *what,
                          struct rhea_error *err)
{
    const struct rhea_format_ops *ops = image->format->ops;
    struct rhea_bitmap with = *what;
    struct rhea_format_info info;
    int ret = bitmap_check_op(image, ops->bitmap_add, true, err);

    if (ret < 0)
        return ret;
    if (!with.granularity) {
        rhea_image_info(image, &info);
        with.granularity = RHEA_MIN(
            RHEA_MAX(info.cluster_size, GRANULARITY_MIN), GRANULARITY_MAX);
        /* Not every format's clusters are a power of 2. */
        while (!is_power_of_2(with.granularity))
            with.granularity &= with.granularity - 1;
    }
    return bitmap_fail(image, ops->bitmap_add(image->format, &with, err), err);
}

int rhea_image_bitmap_remove(struct rhea_image *image, const char *name,
                             struct rhea_error *err)
{
    const struct rhea_format_ops *ops = image->format->ops;
    int ret = bitmap_check_op(image, ops->bitmap_remove, true, err);

    return ret < 0
               ? ret
               : bitmap_fail(image,
                             ops->bitmap_remove(image->format, name, err), err);
}

int rhea_image_bitmap_enable(struct rhea_image *image, const char *name,
                             bool enabled, struct rhea_error *err)
{
    const struct rhea_format_ops *ops = image->format->ops;
    int ret = bitmap_check_op(image, ops->bitmap_enable, true, err);

    return ret < 0 ? ret
                   : bitmap_fail(
                         image,
                         ops->bitmap_enable(image->format, name, enabled, err),
                         err);
}

/* Room for the bits of bitmap NAME, all zero. */
static int bitmap_alloc(struct rhea_image *image, const char *name,
                        struct bits *bits, struct rhea_error *err)
{
    struct rhea_bitmap *list;
    size_t n, i;
    int ret = rhea_image_bitmap_list(image, &list, &n, err);

    *bits = (struct bits){0};
    if (ret < 0)
        return ret;
    for (i = 0; i < n && strcmp(list[i].name, name); i++)
        continue;
    if (i < n)
        bits->granularity = list[i].granularity;
    rhea_bitmaps_free(list, n);
    if (i == n)
        return rhea_error_set(err, ENOENT, "'%s' has no bitmap '%s'",
                              image->filename, name);
    bits->n = div_up(rhea_image_size(image), bits->granularity);
    bits->n_bytes = (size_t)div_up(bits->n, 8);
    bits->bytes = calloc(1, bits->n_bytes + 1);
    if (!bits->bytes)
        return rhea_error_set(err, ENOMEM, "out of memory for a bitmap");
    return 0;
}

static int bitmap_load(struct rhea_image *image, const char *name,
                       struct bits *bits, struct rhea_error *err)
{
    const struct rhea_format_ops *ops = image->format->ops;
    int ret = bitmap_check_op(image, ops->bitmap_load, false, err);

    if (ret == 0)
        ret = bitmap_alloc(image, name, bits, err);
    if (ret == 0)
        ret = bitmap_fail(image,
                          ops->bitmap_load(image->format, name, bits->bytes,
                                           bits->n_bytes, err),
                          err);
    return ret;
}

static int bitmap_store(struct rhea_image *image, const char *name,
                        const struct bits *bits, struct rhea_error *err)
{
    const struct rhea_format_ops *ops = image->format->ops;
    int ret = bitmap_check_op(image, ops->bitmap_store, true, err);

    return ret < 0
               ? ret
               : bitmap_fail(image,
                             ops->bitmap_store(image->format, name, bits->bytes,
                                               bits->n_bytes, err),
                             err);
}

int rhea_image_bitmap_clear(struct rhea_image *image, const char *name,
                            struct rhea_error *err)
{
    struct bits bits = {0};
    int ret = bitmap_alloc(image, name, &bits, err);

    if (ret == 0)
        ret = bitmap_store(image, name, &bits, err);
    free(bits.bytes);
    return ret;
}

static bool bits_get(const struct bits *bits, uint64_t i)
{
    return bits->bytes[i / 8] >> (i % 8) & 1;
}

/* The first bit from I on that is VALUE, or the end. */
static uint64_t bits_find(const struct bits *bits, uint64_t i, bool value)
{
    uint8_t skip = value ? 0 : 0xff;

    while (i < bits->n) {
        if (i % 8 == 0 && bits->bytes[i / 8] == skip)
            i += 8;
        else if (bits_get(bits, i) == value)
            return i;
        else
            i++;
    }
    return bits->n;
}

static void bits_set(struct bits *bits, uint64_t i, uint64_t end)
{
    for (; i < end && i % 8; i++)
        bits->bytes[i / 8] |= (uint8_t)(1U << i % 8);
    if (end - i >= 8) {
        memset(bits->bytes + i / 8, 0xff, (size_t)(end - i) / 8);
        i += align_down(end - i, 8);
    }
    for (; i < end; i++)
        bits->bytes[i / 8] |= (uint8_t)(1U << i % 8);
}

/* Set in TO whatever touches a byte that is set in FROM. */
static void bits_merge(struct bits *to, const struct bits *from, uint64_t size)
{
    uint64_t at = 0;

    while ((at = bits_find(from, at, true)) < from->n) {
        uint64_t end = bits_find(from, at, false);
        uint64_t last = RHEA_MIN(end * from->granularity, size);

        bits_set(to, at * from->granularity / to->granularity,
                 div_up(last, to->granularity));
        at = end;
    }
}

int rhea_image_bitmap_merge(struct rhea_image *image, const char *name,
                            struct rhea_image *source, const char *source_name,
                            struct rhea_error *err)
{
    struct bits to = {0}, from = {0};
    int ret = bitmap_load(image, name, &to, err);

    if (ret == 0)
        ret = bitmap_load(source, source_name, &from, err);
    if (ret == 0 && rhea_image_size(image) != rhea_image_size(source))
        ret = rhea_error_set(err, EINVAL,
                             "bitmaps can be merged where disks have the same "
                             "size: '%s' has %" PRIu64 " bytes, '%s' %" PRIu64,
                             image->filename, rhea_image_size(image),
                             source->filename, rhea_image_size(source));
    if (ret == 0) {
        bits_merge(&to, &from, rhea_image_size(image));
        ret = bitmap_store(image, name, &to, err);
    }
    free(to.bytes);
    free(from.bytes);
    return ret;
}

int rhea_image_bitmap_copy(struct rhea_image *image, struct rhea_image *source,
                           const struct rhea_bitmap *what,
                           struct rhea_error *err)
{
    int ret = rhea_image_bitmap_add(image, what, err);

    if (ret < 0)
        return ret;
    ret = rhea_image_bitmap_merge(image, what->name, source, what->name, err);
    if (ret < 0)
        (void)rhea_image_bitmap_remove(image, what->name, NULL);
    return ret;
}
