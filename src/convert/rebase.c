/* SPDX-License-Identifier: MIT */
/*
 * Rebase: another backing image, and the same contents.
 *
 * Where the image leaves its bytes to its backing image, the old and the new
 * one are compared, and what differs is written into the image. All of that is
 * durable before the header names the new backing file; until then the image
 * only holds copies of what its old backing image shows, and after that of
 * what the new one does not. So the guest's bytes are the same at every moment.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <rhea/convert.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "convert/source.h"
#include "convert/zero.h"

enum { REBASE_PIECE = 2 << 20, REBASE_ALIGN = 4096, REBASE_SECTOR = 512 };

struct rebase {
    struct rhea_image *image;
    struct rhea_image *old, *new; /* NULL: none, zeroes */
    struct rhea_image *shared;    /* the same as NEW in OLD's chain, or NULL */
    const struct rhea_rebase_options *options;
    unsigned unit; /* what is compared, and written, in one piece; bytes */
    unsigned char *a, *b;
};

/* Where a byte below the image comes from. */
struct rebase_source {
    bool zero;
    struct rhea_storage *storage; /* plain data at HOST of it, or NULL */
    struct rhea_image *image;
    uint64_t host;
};

static int rebase_look(struct rhea_image *image, uint64_t offset,
                       uint64_t *length, struct rebase_source *source,
                       struct rhea_error *err)
{
    struct rhea_image_extent e;
    int ret;

    *source = (struct rebase_source){.zero = true};
    if (!image || offset >= rhea_image_size(image))
        return 0;
    *length = RHEA_MIN(*length, rhea_image_size(image) - offset);
    ret = rhea_image_map(image, offset, *length, &e, err);
    if (ret < 0)
        return convert_blame(ret, image, err);
    *length = RHEA_MIN(*length, e.extent.length);
    source->zero = e.extent.kind == RHEA_EXTENT_ZERO ||
                   e.extent.kind == RHEA_EXTENT_UNALLOCATED;
    if (e.extent.kind == RHEA_EXTENT_DATA) {
        source->storage = e.extent.storage;
        source->image = e.image;
        source->host = e.extent.host;
    }
    return 0;
}

static bool rebase_same_place(const struct rebase_source *a,
                              const struct rebase_source *b)
{
    return a->storage && b->storage && a->host == b->host &&
           a->storage == rhea_image_storage(a->image) &&
           b->storage == rhea_image_storage(b->image) &&
           convert_same_file(a->image, b->image);
}

/* Whether the tables alone tell that nothing changes from OFFSET on, and for
 * how many of *LENGTH bytes that answer holds. */
static int rebase_is_same(const struct rebase *r, uint64_t offset,
                          uint64_t *length, bool *same, struct rhea_error *err)
{
    struct rebase_source old, new;
    int ret;

    *same = false;
    if (r->shared && offset < rhea_image_size(r->old)) {
        struct rhea_image_extent e;

        *length = RHEA_MIN(*length, rhea_image_size(r->old) - offset);
        ret = rhea_image_map_above(r->old, r->shared, offset, *length, &e, err);
        if (ret < 0)
            return convert_blame(ret, r->old, err);
        *length = RHEA_MIN(*length, e.extent.length);
        *same = e.image == r->shared;
        if (*same)
            return 0;
    }
    ret = rebase_look(r->old, offset, length, &old, err);
    if (ret == 0)
        ret = rebase_look(r->new, offset, length, &new, err);
    if (ret == 0)
        *same = (old.zero && new.zero) || rebase_same_place(&old, &new);
    return ret;
}

/* Read from below; past its end there are zeroes. */
static int rebase_read(struct rhea_image *image, unsigned char *buf,
                       uint64_t offset, size_t len, struct rhea_error *err)
{
    uint64_t size = image ? rhea_image_size(image) : 0;
    size_t inside = offset < size ? (size_t)RHEA_MIN(len, size - offset) : 0;
    int ret = 0;

    memset(buf + inside, 0, len - inside);
    if (inside)
        ret = rhea_image_read(image, buf, inside, offset, err);
    return ret < 0 ? convert_blame(ret, image, err) : ret;
}

/* Zeroes are left out where they are many, or where the old backing image has
 * ended; between other data they are written like it, as qemu-img does. */
static bool rebase_zero_pays(const struct rebase *r, uint64_t offset,
                             size_t len)
{
    return len == REBASE_PIECE || !r->old || offset >= rhea_image_size(r->old);
}

/* LEN bytes of OLD's at A, whole units. */
static int rebase_write(const struct rebase *r, const unsigned char *a,
                        uint64_t offset, size_t len, struct rhea_error *err)
{
    struct rhea_format *format = rhea_image_format(r->image);
    int ret = 0;

    if (zero_is(a, len) && rebase_zero_pays(r, offset, len))
        return convert_write_zeroes(r->image, offset, len, err);
    while (len && ret == 0) {
        size_t n = RHEA_MIN(len, r->unit);

        /* Only whole clusters can be compressed. */
        if (!r->options->compress || offset % r->unit ||
            (n < r->unit && offset + n < rhea_image_size(r->image)))
            return rhea_image_write(r->image, a, len, offset, err);
        ret = format->ops->write_compressed(format, offset, a, n, err);
        a += n;
        offset += n;
        len -= n;
    }
    return ret;
}

/* How a unit differs. */
enum rebase_kind { REBASE_SAME, REBASE_ZERO, REBASE_DATA };

static enum rebase_kind rebase_class(const struct rebase *r, size_t at,
                                     size_t len)
{
    size_t n = RHEA_MIN(len - at, r->unit);

    if (!memcmp(r->a + at, r->b + at, n))
        return REBASE_SAME;
    return zero_is(r->a + at, n) ? REBASE_ZERO : REBASE_DATA;
}

/* Compare LEN bytes that the image leaves to its backing image. */
static int rebase_piece(const struct rebase *r, uint64_t offset, size_t len,
                        struct rhea_error *err)
{
    size_t at, next;
    int ret = rebase_read(r->old, r->a, offset, len, err);

    if (ret == 0)
        ret = rebase_read(r->new, r->b, offset, len, err);
    for (at = 0; at < len && ret == 0; at = next) {
        enum rebase_kind kind = rebase_class(r, at, len);

        next = at + r->unit;
        while (next < len && rebase_class(r, next, len) == kind)
            next += r->unit;
        next = RHEA_MIN(next, len);
        if (kind != REBASE_SAME)
            ret = convert_blame(
                rebase_write(r, r->a + at, offset + at, next - at, err),
                r->image, err);
    }
    return ret;
}

/* A run that the image leaves to its backing image; whole units, but at the
 * image's end. *LENGTH becomes what was dealt with. */
static int rebase_run(const struct rebase *r, uint64_t offset, uint64_t *length,
                      struct rhea_error *err)
{
    uint64_t alike, whole;
    bool same;
    int ret;

    /* After subclusters that are the image's own: up to the next unit. */
    if (offset % r->unit)
        *length = RHEA_MIN(*length, r->unit - offset % r->unit);
    alike = *length;
    ret = rebase_is_same(r, offset, &alike, &same, err);
    if (ret < 0)
        return ret;
    whole = alike == *length ? alike : alike - alike % r->unit;
    if (same && whole) {
        *length = whole;
        return 0;
    }
    *length = RHEA_MIN(*length, RHEA_MAX(whole, (uint64_t)r->unit));
    *length = RHEA_MIN(*length, (uint64_t)REBASE_PIECE);
    return rebase_piece(r, offset, (size_t)*length, err);
}

static int rebase_walk(const struct rebase *r, struct rhea_error *err)
{
    struct rhea_format *format = rhea_image_format(r->image);
    uint64_t size = rhea_image_size(r->image), offset = 0;
    int ret = 0;

    while (offset < size && ret == 0) {
        struct rhea_extent x;

        if (rhea_progress_cancelled(r->options->progress))
            return rhea_error_set(err, ECANCELED, "stopped");
        ret = format->ops->map(format, offset, size - offset, &x, err);
        if (ret < 0)
            return convert_blame(ret, r->image, err);
        if (x.kind == RHEA_EXTENT_UNALLOCATED)
            ret = rebase_run(r, offset, &x.length, err);
        offset += x.length;
        rhea_progress_report(r->options->progress, "rebasing", offset, size);
    }
    return ret;
}

/* The pieces in which the image allocates: subclusters, or clusters; whole
 * clusters where they are to be compressed. */
static int rebase_choose_unit(struct rebase *r, struct rhea_error *err)
{
    struct rhea_format *format = rhea_image_format(r->image);
    struct rhea_facts facts = {0};
    const struct rhea_fact *extended;
    struct rhea_format_info info;
    int ret = 0;

    rhea_image_info(r->image, &info);
    r->unit = info.cluster_size ? info.cluster_size : REBASE_SECTOR;
    if (r->options->compress) {
        if (!format->ops->write_compressed || r->unit > REBASE_PIECE)
            ret = rhea_error_set(err, ENOTSUP,
                                 "%s images cannot hold compressed data",
                                 format->ops->name);
        return ret;
    }
    if (format->ops->facts)
        ret = format->ops->facts(format, &facts, err);
    extended = rhea_facts_find(&facts, "extended-l2");
    if (ret == 0 && extended && extended->number)
        r->unit /= 32;
    rhea_facts_free(&facts);
    /* Larger clusters are filled up with the same bytes from below. */
    r->unit = RHEA_MIN(r->unit, (unsigned)REBASE_PIECE);
    return ret;
}

static void rebase_find_shared(struct rebase *r)
{
    struct rhea_image *i = r->new ? r->old : NULL;

    while (i && !convert_same_file(i, r->new))
        i = rhea_image_backing(i);
    r->shared = i;
}

static int rebase_copy(struct rebase *r, struct rhea_error *err)
{
    int ret = rebase_choose_unit(r, err);

    if (ret < 0)
        return ret;
    rebase_find_shared(r);
    r->a = aligned_alloc(REBASE_ALIGN, REBASE_PIECE);
    r->b = aligned_alloc(REBASE_ALIGN, REBASE_PIECE);
    ret = r->a && r->b ? rebase_walk(r, err)
                       : rhea_error_set(err, ENOMEM, "out of memory");
    free(r->a);
    free(r->b);
    if (ret == 0)
        ret = convert_blame(rhea_image_flush(r->image, err), r->image, err);
    return ret;
}

int rhea_convert_rebase(struct rhea_image *image, struct rhea_image *backing,
                        const struct rhea_rebase_options *options,
                        struct rhea_error *err)
{
    struct rhea_format *format = rhea_image_format(image);
    struct rebase r = {
        .image = image,
        .old = rhea_image_backing(image),
        .new = backing,
        .options = options,
    };
    int ret = 0;

    if (!format->ops->set_backing)
        return rhea_error_set(err, ENOTSUP,
                              "%s: %s images cannot change their backing file",
                              rhea_image_filename(image), format->ops->name);
    if (!options->unsafe)
        ret = rebase_copy(&r, err);
    if (ret == 0)
        ret =
            rhea_image_set_backing(image, options->file, options->format, err);
    return ret;
}
