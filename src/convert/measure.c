/* SPDX-License-Identifier: MIT */
/* What a conversion would need, without making it. */
#include <rhea/convert.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/option.h"
#include "storage/driver.h"

struct measure_source {
    struct rhea_image *image;
    bool all; /* whatever it holds */
};

static int measure_next(void *opaque, uint64_t offset, bool *data,
                        uint64_t *length, struct rhea_error *err)
{
    const struct measure_source *s = opaque;
    struct rhea_image_extent x;
    uint64_t left = rhea_image_size(s->image) - offset;
    int ret;

    if (s->all) {
        *data = true;
        *length = left;
        return 0;
    }
    ret = rhea_image_map(s->image, offset, left, &x, err);
    if (ret < 0)
        return ret;
    *data = x.extent.kind != RHEA_EXTENT_ZERO &&
            x.extent.kind != RHEA_EXTENT_UNALLOCATED;
    *length = x.extent.length;
    return 0;
}

/* The options that the format takes at creation, without those that every
 * format has. */
static int measure_take_options(struct rhea_measure *what,
                                struct measure_source *source,
                                const struct rhea_format_ops *ops,
                                struct rhea_option *kept,
                                const struct rhea_option *options, size_t n,
                                struct rhea_error *err)
{
    size_t n_kept = 0;

    for (size_t i = 0; i < n; i++) {
        const char *name = options[i].name;
        uint64_t size;
        int ret = 0;

        /* What a file may be told changes no size. */
        if (option_is_listed(storage_create_options(""), name))
            continue;
        if (!option_is_listed(ops->create_options, name))
            ret = option_unknown(&options[i], ops->name, err);
        else if (!strcmp(name, "backing_file"))
            source->all = true;
        else if (!strcmp(name, "size"))
            ret = option_size(&options[i],
                              what->size == UINT64_MAX ? &what->size : &size,
                              err);
        else if (strcmp(name, "backing_fmt") != 0)
            kept[n_kept++] = options[i];
        if (ret)
            return ret;
    }
    what->options = kept;
    what->n_options = n_kept;
    return 0;
}

/* Bitmaps that SOURCE has; *NONE stands for "it could have some". */
static int measure_bitmaps(struct rhea_image *source, struct rhea_measure *what,
                           struct rhea_bitmap **bitmaps,
                           const struct rhea_bitmap *none,
                           struct rhea_error *err)
{
    struct rhea_format *f = rhea_image_format(source);
    struct rhea_facts facts = {0};
    const struct rhea_fact *compat;
    int ret = 0;

    if (!f->ops->bitmap_list || !f->ops->facts)
        return 0;
    /* Version 2 of qcow2 has none. */
    ret = f->ops->facts(f, &facts, err);
    compat = rhea_facts_find(&facts, "compat");
    if (ret == 0 &&
        !(compat && compat->string && !strcmp(compat->string, "0.10"))) {
        ret = f->ops->bitmap_list(f, bitmaps, &what->n_bitmaps, err);
        what->bitmaps = *bitmaps ? *bitmaps : none;
    }
    rhea_facts_free(&facts);
    return ret;
}

int rhea_convert_measure(struct rhea_image *source, uint64_t size,
                         const char *format, const struct rhea_option *options,
                         size_t n, struct rhea_measured *out,
                         struct rhea_error *err)
{
    const struct rhea_format_ops *ops = rhea_format_find(format);
    RHEA_AUTO_FREE struct rhea_option *kept = calloc(n + 1, sizeof(*kept));
    struct measure_source from = {.image = source};
    const struct rhea_bitmap none = {0};
    struct rhea_bitmap *bitmaps = NULL;
    struct rhea_measure what = {.size = source ? rhea_image_size(source) : size,
                                .opaque = &from};
    int ret;

    if (!kept)
        return rhea_error_set(err, ENOMEM, "out of memory");
    if (!ops)
        return rhea_error_set(err, EINVAL, "there is no format '%s'", format);
    if (!ops->measure)
        return rhea_error_set(err, ENOTSUP,
                              "the size of %s images cannot be measured",
                              ops->name);
    ret = measure_take_options(&what, &from, ops, kept, options, n, err);
    if (ret < 0)
        return ret;
    if (what.size > (INT64_MAX & ~(uint64_t)511))
        return rhea_error_set(err, EFBIG, "no image can be that large");
    what.size = align_up(what.size, 512);
    if (source) {
        what.next = measure_next;
        ret = measure_bitmaps(source, &what, &bitmaps, &none, err);
    }
    if (ret == 0)
        ret = ops->measure(&what, out, err);
    rhea_bitmaps_free(bitmaps, what.n_bitmaps);
    return ret;
}
