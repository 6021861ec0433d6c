/* SPDX-License-Identifier: MIT */
/* Which image of a chain a name means, and what may become its next. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "image/internal.h"
#include "image/path.h"

static bool below_is_file(const struct rhea_image *image, const char *path)
{
    struct stat st;

    return image->has_identity && stat(path, &st) == 0 &&
           st.st_dev == image->device && st.st_ino == image->inode;
}

/* Whether NAME, written into the header of OVERLAY, leads to IMAGE. */
static bool below_is_named(const struct rhea_image *overlay,
                           const struct rhea_image *image, const char *name)
{
    const char *folder = overlay->description.folder;
    RHEA_AUTO_FREE char *path = image_resolve_path(folder ? folder : "", name);

    return path && below_is_file(image, path);
}

struct rhea_image *rhea_image_find_backing(struct rhea_image *image,
                                           const char *name)
{
    struct rhea_image *overlay, *below;

    for (overlay = image; (below = overlay->backing); overlay = below) {
        struct rhea_format_info info;

        rhea_image_info(overlay, &info);
        if (info.backing_file && !strcmp(info.backing_file, name))
            return below;
        if (below_is_named(overlay, below, name))
            return below;
    }
    return NULL;
}

int rhea_image_open_below(struct rhea_image **out, struct rhea_image *image,
                          const char *file, const char *format, unsigned flags,
                          struct rhea_error *err)
{
    const char *folder = image->description.folder;
    RHEA_AUTO_FREE char *name = image_name_below(image, file, err);
    RHEA_AUTO_FREE char *path = image_resolve_path(folder ? folder : "", file);
    struct rhea_image *below, *i;

    if (!name)
        return -EINVAL;
    if (!path)
        return rhea_error_set(err, ENOMEM, "out of memory");
    /* Looked at first, for our own lock would say that it is in use. */
    if (below_is_file(image, path))
        return rhea_error_set(err, ELOOP,
                              "an image cannot be its own backing file");
    int ret = rhea_image_open(&below, name, format, flags, err);
    if (ret)
        return ret;
    for (i = below; i; i = i->backing) {
        if (!i->has_identity || !image->has_identity ||
            i->device != image->device || i->inode != image->inode)
            continue;
        rhea_image_close(below, NULL);
        return rhea_error_set(err, ELOOP,
                              "'%s' is in the backing chain of '%s' itself",
                              image->filename, name);
    }
    *out = below;
    return 0;
}
