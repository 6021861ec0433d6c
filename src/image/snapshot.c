/* SPDX-License-Identifier: MIT */
/* Internal snapshots of an image, and its VM state. */
#include <errno.h>

#include "image/internal.h"

/* Whether OP can be called. */
static int snapshot_can(const struct rhea_image *image, bool has_op, bool write,
                        struct rhea_error *err)
{
    if (!has_op)
        return rhea_error_set(err, ENOTSUP,
                              "'%s': %s images have no internal snapshots",
                              image->filename, image->format->ops->name);
    if (write && !(image->flags & RHEA_IMAGE_WRITE))
        return rhea_error_set(err, EBADF, "'%s' is open read-only",
                              image->filename);
    return 0;
}

static int snapshot_result(const struct rhea_image *image, int result,
                           struct rhea_error *err)
{
    if (result < 0)
        rhea_error_prefix(err, "'%s'", image->filename);
    return result;
}

int rhea_image_snapshot_list(struct rhea_image *image,
                             struct rhea_snapshot **list, size_t *n,
                             struct rhea_error *err)
{
    struct rhea_format *f = image->format;

    *list = NULL;
    *n = 0;
    if (!f->ops->snapshot_list)
        return 0;
    return snapshot_result(image, f->ops->snapshot_list(f, list, n, err), err);
}

int rhea_image_snapshot_create(struct rhea_image *image,
                               const struct rhea_snapshot *what,
                               struct rhea_error *err)
{
    struct rhea_format *f = image->format;
    int r = snapshot_can(image, f->ops->snapshot_create, true, err);

    if (r < 0)
        return r;
    return snapshot_result(image, f->ops->snapshot_create(f, what, err), err);
}

int rhea_image_snapshot_apply(struct rhea_image *image, const char *which,
                              struct rhea_error *err)
{
    struct rhea_format *f = image->format;
    int r = snapshot_can(image, f->ops->snapshot_apply, true, err);

    if (r < 0)
        return r;
    return snapshot_result(image, f->ops->snapshot_apply(f, which, err), err);
}

int rhea_image_snapshot_delete(struct rhea_image *image, const char *which,
                               struct rhea_error *err)
{
    struct rhea_format *f = image->format;
    int r = snapshot_can(image, f->ops->snapshot_delete, true, err);

    if (r < 0)
        return r;
    return snapshot_result(image, f->ops->snapshot_delete(f, which, err), err);
}

int rhea_image_load_snapshot(struct rhea_image *image, const char *which,
                             struct rhea_error *err)
{
    struct rhea_format *f = image->format;
    int r = snapshot_can(image, f->ops->snapshot_load, false, err);

    if (r < 0)
        return r;
    return snapshot_result(image, f->ops->snapshot_load(f, which, err), err);
}

int rhea_image_vm_state_read(struct rhea_image *image, uint64_t offset,
                             void *buf, size_t len, struct rhea_error *err)
{
    struct rhea_format *f = image->format;
    int r = snapshot_can(image, f->ops->vm_state_read, false, err);

    if (r < 0)
        return r;
    return snapshot_result(
        image, f->ops->vm_state_read(f, offset, buf, len, err), err);
}

int rhea_image_vm_state_write(struct rhea_image *image, uint64_t offset,
                              const void *buf, size_t len,
                              struct rhea_error *err)
{
    struct rhea_format *f = image->format;
    int r = snapshot_can(image, f->ops->vm_state_write, true, err);

    if (r < 0)
        return r;
    return snapshot_result(
        image, f->ops->vm_state_write(f, offset, buf, len, err), err);
}
