/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "convert/source.h"

enum {
    SOURCE_SECTOR = 512, /* images are padded to a multiple of it */
    /* Runs shorter than this are read rather than asked about: a hole is
     * found by two system calls, and reading costs no more. */
    SOURCE_MIN_HOLE = 64 << 10,
};

bool convert_same_file(struct rhea_image *a, struct rhea_image *b)
{
    uint64_t size, device_a, inode_a, device_b, inode_b;

    return rhea_image_format(a)->ops == rhea_image_format(b)->ops &&
           !rhea_file_stat(rhea_image_storage(a), &size, &device_a, &inode_a) &&
           !rhea_file_stat(rhea_image_storage(b), &size, &device_b, &inode_b) &&
           device_a == device_b && inode_a == inode_b;
}

/* Find the target's backing image in the source's chain. */
static void source_find_shared(struct convert_source *s)
{
    struct rhea_image *image = s->parts[0].image;
    uint64_t limit = UINT64_MAX;
    unsigned depth = 0;

    while ((image = rhea_image_backing(image))) {
        depth++;
        if (convert_same_file(image, s->backing)) {
            s->shared_depth = depth;
            s->shared_limit = limit;
            return;
        }
        limit = RHEA_MIN(limit, rhea_image_size(image));
    }
}

static bool source_is_raw(struct rhea_image *image)
{
    return !strcmp(rhea_image_format(image)->ops->name, "raw");
}

/*
 * Preallocated clusters are data to their format and holes to the file system.
 * Asking for holes pays only in files that have many: whose blocks are less
 * than nine tenths of their size. Raw images ask by themselves.
 */
static bool source_is_sparse(struct rhea_image *image)
{
    struct rhea_storage *storage = rhea_image_storage(image);
    uint64_t size, disk_size, device, inode;

    if (source_is_raw(image))
        return false;
    return !rhea_storage_size(storage, &size, NULL) &&
           !rhea_file_stat(storage, &disk_size, &device, &inode) &&
           disk_size < size / 10 * 9;
}

static int source_init_part(struct convert_part *part, struct rhea_image *image,
                            uint64_t start, struct rhea_error *err)
{
    struct rhea_image *i;
    size_t depth = 1;

    part->image = image;
    part->start = start;
    if (rhea_image_size(image) > INT64_MAX - SOURCE_SECTOR ||
        !add_u64(start, align_up(rhea_image_size(image), SOURCE_SECTOR),
                 &part->end) ||
        part->end > INT64_MAX)
        return rhea_error_set(err, EFBIG, "the images are too large together");

    for (i = rhea_image_backing(image); i; i = rhea_image_backing(i))
        depth++;
    part->sparse_file = calloc(depth, sizeof(*part->sparse_file));
    if (!part->sparse_file)
        return rhea_error_set(err, ENOMEM, "out of memory");
    depth = 0;
    for (i = image; i; i = rhea_image_backing(i))
        part->sparse_file[depth++] = source_is_sparse(i);
    return 0;
}

int convert_source_init(struct convert_source *s,
                        struct rhea_image *const *images, size_t n_images,
                        struct rhea_image *backing, struct rhea_error *err)
{
    int ret;
    size_t i;

    memset(s, 0, sizeof(*s));
    s->backing = backing;
    s->parts = calloc(n_images, sizeof(*s->parts));
    if (!s->parts)
        return rhea_error_set(err, ENOMEM, "out of memory");
    s->n_parts = n_images;
    for (i = 0; i < n_images; i++) {
        ret = source_init_part(&s->parts[i], images[i], s->size, err);
        if (ret < 0) {
            convert_source_finish(s);
            return ret;
        }
        s->size = s->parts[i].end;
    }
    if (backing && n_images == 1)
        source_find_shared(s);
    return 0;
}

void convert_source_finish(struct convert_source *s)
{
    size_t i;

    for (i = 0; s->parts && i < s->n_parts; i++)
        free(s->parts[i].sparse_file);
    free(s->parts);
    memset(s, 0, sizeof(*s));
}

static struct convert_part *source_part(struct convert_source *s,
                                        uint64_t offset)
{
    struct convert_part *part = s->parts;

    while (offset >= part->end)
        part++;
    return part;
}

/* Whether the target's backing image has zeroes here; clips RUN. */
static int source_backing_is_zero(struct convert_source *s, uint64_t offset,
                                  uint64_t *run, bool *zero,
                                  struct rhea_error *err)
{
    uint64_t size = rhea_image_size(s->backing);
    struct rhea_image_extent e;
    int ret;

    if (offset >= size) {
        *zero = true;
        return 0;
    }
    *run = RHEA_MIN(*run, size - offset);
    ret = rhea_image_map(s->backing, offset, *run, &e, err);
    if (ret < 0)
        return ret;
    *run = RHEA_MIN(*run, e.extent.length);
    *zero = e.extent.kind == RHEA_EXTENT_UNALLOCATED ||
            e.extent.kind == RHEA_EXTENT_ZERO;
    return 0;
}

/* Class an extent where the target has a backing image. */
static int source_class(struct convert_source *s, uint64_t offset,
                        const struct rhea_image_extent *e,
                        enum convert_kind *kind, uint64_t *run,
                        struct rhea_error *err)
{
    bool nowhere = e->extent.kind == RHEA_EXTENT_UNALLOCATED;
    bool zero = nowhere || e->extent.kind == RHEA_EXTENT_ZERO;
    bool below;
    int ret;

    *kind = zero ? CONVERT_ZERO : CONVERT_DATA;
    if (!nowhere && e->depth == 0)
        return 0;

    if (s->shared_depth) {
        /* An image between the top and the shared ones that is shorter than
         * them hides what they hold past its end. */
        if (offset >= s->shared_limit)
            return 0;
        *run = RHEA_MIN(*run, s->shared_limit - offset);
        if (nowhere || e->depth >= s->shared_depth)
            *kind = CONVERT_BACKING;
        return 0;
    }

    ret = source_backing_is_zero(s, offset, run, &below, err);
    if (ret < 0)
        return ret;
    if (zero && below)
        *kind = CONVERT_BACKING;
    else if (!zero && !below)
        *kind = CONVERT_COMPARE;
    return 0;
}

int convert_find_hole(const struct rhea_extent *e, bool *hole, uint64_t *run,
                      struct rhea_error *err)
{
    uint64_t size, length;
    int ret;

    *hole = false;
    if (e->kind != RHEA_EXTENT_DATA || *run < SOURCE_MIN_HOLE || !e->storage)
        return 0;
    ret = rhea_storage_size(e->storage, &size, err);
    if (ret < 0 || e->host >= size)
        return ret;
    length = RHEA_MIN(*run, size - e->host);
    ret = rhea_storage_extent(e->storage, e->host, length, hole, &length, err);
    if (ret == 0)
        *run = RHEA_MIN(*run, length);
    return ret;
}

/* Turn data that the file system knows to be a hole into zeroes. */
static int source_find_hole(struct convert_part *part,
                            const struct rhea_image_extent *e,
                            enum convert_kind *kind, uint64_t *run,
                            struct rhea_error *err)
{
    bool hole;
    int ret;

    if (!part->sparse_file[e->depth])
        return 0;
    ret = convert_find_hole(&e->extent, &hole, run, err);
    if (hole)
        *kind = CONVERT_ZERO;
    return ret;
}

int convert_blame(int ret, struct rhea_image *image, struct rhea_error *err)
{
    const char *name = rhea_image_filename(image);

    if (ret < 0 && err && !strstr(err->text, name))
        rhea_error_prefix(err, "%s", name);
    return ret;
}

int convert_source_map(struct convert_source *s, uint64_t offset, uint64_t len,
                       struct convert_run *run, struct rhea_error *err)
{
    struct convert_part *part = source_part(s, offset);
    uint64_t size = rhea_image_size(part->image);
    struct rhea_image_extent e;
    int ret;

    *run = (struct convert_run){
        .kind = CONVERT_ZERO,
        .length = RHEA_MIN(len, part->end - offset),
    };
    offset -= part->start;
    if (offset >= size)
        return 0;

    ret = rhea_image_map(part->image, offset,
                         RHEA_MIN(run->length, size - offset), &e, err);
    if (ret < 0)
        return convert_blame(ret, part->image, err);
    run->length = RHEA_MIN(run->length, e.extent.length);
    if (s->backing) {
        ret = source_class(s, offset, &e, &run->kind, &run->length, err);
    } else if (e.extent.kind == RHEA_EXTENT_DATA ||
               e.extent.kind == RHEA_EXTENT_COMPRESSED ||
               e.extent.kind == RHEA_EXTENT_ENCRYPTED) {
        run->kind = CONVERT_DATA;
    }
    /* Of zeroes only raw holds the bytes, too. */
    if (e.extent.kind == RHEA_EXTENT_DATA ||
        (e.extent.has_host && source_is_raw(e.image))) {
        run->storage = e.extent.storage;
        run->host = e.extent.host;
    }
    if (ret == 0 && run->kind == CONVERT_DATA &&
        e.extent.kind == RHEA_EXTENT_DATA)
        ret = source_find_hole(part, &e, &run->kind, &run->length, err);
    return convert_blame(ret, part->image, err);
}

/* Read as much of [offset, offset + len) as IMAGE has; zeroes after that. */
static int source_read_padded(struct rhea_image *image, unsigned char *buf,
                              size_t len, uint64_t offset,
                              struct rhea_error *err)
{
    uint64_t size = rhea_image_size(image);
    size_t inside = offset < size ? RHEA_MIN(len, size - offset) : 0;

    memset(buf + inside, 0, len - inside);
    return inside ? rhea_image_read(image, buf, inside, offset, err) : 0;
}

int convert_source_read(struct convert_source *s, void *buf, size_t len,
                        uint64_t offset, struct rhea_error *err)
{
    unsigned char *p = buf;

    while (len) {
        struct convert_part *part = source_part(s, offset);
        size_t n = RHEA_MIN(len, part->end - offset);
        int ret =
            source_read_padded(part->image, p, n, offset - part->start, err);

        if (ret < 0)
            return convert_blame(ret, part->image, err);
        p += n;
        offset += n;
        len -= n;
    }
    return 0;
}

int convert_source_read_backing(struct convert_source *s, void *buf, size_t len,
                                uint64_t offset, struct rhea_error *err)
{
    return source_read_padded(s->backing, buf, len, offset, err);
}
