/* SPDX-License-Identifier: MIT */
/* Changes of a whole image: size, options, backing file, emptying it. */
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>

#include "base/checked.h"
#include "image/internal.h"

/* Whether IMAGE may be changed, by an operation that its format HAS or not. */
static int change_check(const struct rhea_image *image, bool has,
                        const char *what, struct rhea_error *err)
{
    if (!(image->flags & RHEA_IMAGE_WRITE))
        return rhea_error_set(err, EACCES, "'%s' is open for reading only",
                              image->filename);
    if (!has)
        return rhea_error_set(err, ENOTSUP,
                              "'%s' is a %s image, which cannot "
                              "be %s",
                              image->filename, image->format->ops->name, what);
    return 0;
}

static int change_done(const struct rhea_image *image, int ret,
                       struct rhea_error *err)
{
    if (ret < 0)
        rhea_error_prefix(err, "'%s'", image->filename);
    return ret;
}

/* Whether a repair would keep what there is. */
static int check_first(struct rhea_image *image,
                       const struct rhea_progress *progress,
                       struct rhea_error *err)
{
    struct rhea_check found = {.progress = progress};
    int ret = image->format->ops->check(image->format, 0, &found, err);

    if (ret == -ECANCELED)
        return ret;
    /* What keeps it from being checked, the repair may mend. */
    if (ret || found.lost < 2 || found.lost / 3 < found.allocated_clusters)
        return 0;
    return rhea_error_set(
        err, EINVAL,
        "of %" PRIu64 " clusters %" PRIu64 " would be where none can be. More "
        "likely the image's header is damaged, or a part of the file is "
        "missing: nothing was repaired. What can be read, 'convert --salvage' "
        "copies",
        found.lost + found.allocated_clusters, found.lost);
}

int rhea_image_check(struct rhea_image *image, unsigned fix,
                     struct rhea_check *check, struct rhea_error *err)
{
    const struct rhea_format_ops *ops = image->format->ops;

    if (!ops->check)
        return rhea_error_set(err, ENOTSUP,
                              "'%s' is a %s image, which cannot be checked",
                              image->filename, ops->name);
    int ret = 0;

    if (fix & RHEA_FIX_ERRORS && ops->counts_lost)
        ret = check_first(image, check->progress, err);
    return ret ? ret : ops->check(image->format, fix, check, err);
}

int rhea_image_resize(struct rhea_image *image, const struct rhea_resize *how,
                      struct rhea_error *err)
{
    const struct rhea_format_ops *ops = image->format->ops;
    struct rhea_resize own = *how;
    uint64_t old = rhea_image_size(image);
    int ret = change_check(image, ops->resize, "resized", err);

    if (ret)
        return ret;
    if (own.size > (INT64_MAX & ~(uint64_t)511))
        return rhea_error_set(err, EFBIG,
                              "'%s' cannot be made %" PRIu64 " bytes large",
                              image->filename, own.size);
    if (own.size < old && !own.shrink)
        return rhea_error_set(err, EINVAL,
                              "'%s' would lose what lies behind %" PRIu64
                              " bytes; this must be asked for",
                              image->filename, own.size);
    if (image->backing && rhea_image_size(image->backing) > old)
        own.hide_below = true;
    return change_done(image, ops->resize(image->format, &own, err), err);
}

int rhea_image_amend(struct rhea_image *image,
                     const struct rhea_option *options, size_t n, bool force,
                     const struct rhea_progress *progress,
                     struct rhea_error *err)
{
    const struct rhea_format_ops *ops = image->format->ops;
    int ret = change_check(image, ops->amend, "amended", err);

    if (ret)
        return ret;
    return change_done(
        image, ops->amend(image->format, options, n, force, progress, err),
        err);
}

int rhea_image_set_backing(struct rhea_image *image, const char *file,
                           const char *format, struct rhea_error *err)
{
    const struct rhea_format_ops *ops = image->format->ops;
    struct rhea_image *parent = NULL;
    int ret = change_check(image, ops->set_backing,
                           "given another backing file", err);

    if (ret)
        return ret;
    /* Only its identity is asked for. Where it cannot be opened, the format
     * decides whether it can do without. */
    if (file && *file && ops->check_parent)
        rhea_image_open_below(&parent, image, file, format,
                              RHEA_IMAGE_NO_IO | RHEA_IMAGE_NO_BACKING, NULL);
    ret = ops->set_backing(image->format, file, format,
                           parent ? parent->format : NULL, err);
    rhea_image_close(parent, NULL);
    return change_done(image, ret, err);
}

int rhea_image_renew_backing(struct rhea_image *overlay, struct rhea_error *err)
{
    struct rhea_image *base = overlay->backing;
    const struct rhea_format_ops *ops = overlay->format->ops;
    struct rhea_format_info info;

    if (!base || !base->format->ops->renew_identity || !ops->check_parent)
        return 0;
    int ret = change_check(base, true, "written to", err);
    if (!ret)
        ret = rhea_image_allow_write(overlay, err);
    if (ret)
        return ret;
    ret = base->format->ops->renew_identity(base->format, err);
    if (ret)
        return change_done(base, ret, err);
    rhea_image_info(overlay, &info);
    return change_done(overlay,
                       ops->set_backing(overlay->format, info.backing_file,
                                        info.backing_format, base->format, err),
                       err);
}

int rhea_image_make_empty(struct rhea_image *image, struct rhea_error *err)
{
    const struct rhea_format_ops *ops = image->format->ops;
    int ret = change_check(image, ops->make_empty, "emptied", err);

    if (ret)
        return ret;
    return change_done(image, ops->make_empty(image->format, err), err);
}
