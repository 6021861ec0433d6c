/* SPDX-License-Identifier: MIT */
/*
 * Commit: what an image and those between it and BASE have is written into
 * BASE.
 *
 * What the guest sees through the top image is the same at every moment: all
 * that is written into BASE is what the images above it have, and so hide. The
 * order is: BASE's identity, if its format has one, and the record of it in the
 * image above; BASE's size, its data, BASE is flushed; only then is the top
 * image emptied. After a crash the same command does all of it again.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <rhea/convert.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "convert/rate.h"
#include "convert/source.h"

enum { COMMIT_PIECE = 2 << 20, COMMIT_ALIGN = 4096 };

struct commit {
    struct rhea_image *top, *base;
    const struct rhea_commit_options *options;
    struct rate rate;
    unsigned char *buf;
};

static bool commit_stopped(void *opaque)
{
    const struct commit *c = opaque;

    return rhea_progress_cancelled(c->options->progress);
}

static int commit_data(struct commit *c, uint64_t offset, uint64_t length,
                       struct rhea_error *err)
{
    uint64_t end = offset + length;
    int ret = 0;

    while (offset < end && ret == 0) {
        size_t n = (size_t)RHEA_MIN(COMMIT_PIECE - offset % COMMIT_PIECE,
                                    end - offset);

        rate_wait(&c->rate, n, commit_stopped, c);
        if (commit_stopped(c))
            return rhea_error_set(err, ECANCELED, "stopped");
        ret = rhea_image_read(c->top, c->buf, n, offset, err);
        if (ret < 0)
            return convert_blame(ret, c->top, err);
        ret = rhea_image_write(c->base, c->buf, n, offset, err);
        offset += n;
        rhea_progress_report(c->options->progress, "committing", offset,
                             rhea_image_size(c->top));
    }
    return convert_blame(ret, c->base, err);
}

/* One run; moves *OFFSET past it. */
static int commit_run(struct commit *c, uint64_t *offset,
                      struct rhea_error *err)
{
    uint64_t at = *offset, length;
    struct rhea_image_extent e;
    int ret = rhea_image_map_above(c->top, c->base, at,
                                   rhea_image_size(c->top) - at, &e, err);

    if (ret < 0)
        return convert_blame(ret, c->top, err);
    length = e.extent.length;
    *offset += length;
    if (e.image == c->base)
        return 0;
    if (e.extent.kind != RHEA_EXTENT_ZERO &&
        e.extent.kind != RHEA_EXTENT_UNALLOCATED)
        return commit_data(c, at, length, err);
    ret = rhea_image_write_zeroes(c->base, at, length, true, err);
    return convert_blame(ret, c->base, err);
}

static int commit_copy(struct commit *c, struct rhea_error *err)
{
    uint64_t size = rhea_image_size(c->top), offset = 0;
    struct rhea_resize grow = {.size = size};
    int ret = 0;

    if (rhea_image_size(c->base) < size)
        ret = rhea_image_resize(c->base, &grow, err);
    while (ret == 0 && offset < size) {
        if (commit_stopped(c))
            return rhea_error_set(err, ECANCELED, "stopped");
        ret = commit_run(c, &offset, err);
        rhea_progress_report(c->options->progress, "committing", offset, size);
    }
    if (ret == 0)
        ret = convert_blame(rhea_image_flush(c->base, err), c->base, err);
    return ret;
}

/* The image directly above BASE in the chain of TOP; NULL: BASE is not in it.
 */
static struct rhea_image *commit_overlay(struct rhea_image *top,
                                         struct rhea_image *base)
{
    while (top && rhea_image_backing(top) != base)
        top = rhea_image_backing(top);
    return top;
}

int rhea_convert_commit(struct rhea_image *top, struct rhea_image *base,
                        const struct rhea_commit_options *options,
                        struct rhea_error *err)
{
    struct commit c = {.top = top, .base = base, .options = options};
    struct rhea_format *format = rhea_image_format(top);
    int ret;

    struct rhea_image *overlay = commit_overlay(top, base);

    if (!overlay)
        return rhea_error_set(err, EINVAL, "%s is not a backing image of %s",
                              rhea_image_filename(base),
                              rhea_image_filename(top));
    c.buf = aligned_alloc(COMMIT_ALIGN, COMMIT_PIECE);
    if (!c.buf)
        return rhea_error_set(err, ENOMEM, "out of memory");
    rate_init(&c.rate, options->rate);
    ret = rhea_image_renew_backing(overlay, err);
    if (ret == 0)
        ret = commit_copy(&c, err);
    free(c.buf);
    if (ret == 0 && options->empty && format->ops->make_empty)
        ret = convert_blame(format->ops->make_empty(format, err), top, err);
    return ret;
}
