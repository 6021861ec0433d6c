/* SPDX-License-Identifier: MIT */
/* Opening an image of a chain once more, to write to it. */
#include <errno.h>
#include <stdlib.h>

#include "image/internal.h"
#include "image/opening.h"

/* A second time the file of IMAGE, which is open for reading. */
static struct rhea_image *reopen_file(struct rhea_image *image, int *failed,
                                      struct rhea_error *err)
{
    struct node_opening opening = {0};
    struct rhea_image *again = NULL;
    unsigned flags = image->flags | RHEA_IMAGE_WRITE;
    /* What it was found to be the first time it has to be now. */
    int ret = storage_options_set(&image->options, "driver", image->driver,
                                  STORAGE_OPTION_STRING, err);
    if (!ret)
        ret = image_open_one(&again, image->asked, &image->options, flags, NULL,
                             &opening, err);
    *failed = ret;
    if (ret)
        return NULL;
    if (again->has_identity == image->has_identity &&
        again->device == image->device && again->inode == image->inode)
        return again;
    rhea_image_close(again, NULL);
    *failed = rhea_error_set(err, ESTALE, "'%s' was replaced by another file",
                             image->filename);
    return NULL;
}

int rhea_image_allow_write(struct rhea_image *image, struct rhea_error *err)
{
    if (image->flags & RHEA_IMAGE_WRITE)
        return 0;
    /* Our own lock must not be in the way of the new one. */
    bool locked = !(image->flags & RHEA_IMAGE_NO_LOCK);
    int ret = locked ? rhea_storage_lock(image->storage, RHEA_LOCK_READ,
                                         RHEA_LOCK_ALL, err)
                     : 0;
    if (ret)
        return ret;
    struct rhea_image *again = reopen_file(image, &ret, err);
    if (!again) {
        image_lock(image->storage, image->flags, NULL);
        return ret;
    }

    struct rhea_storage *storage = image->storage;
    struct rhea_storage *data_file = image->data_file;
    struct image_files *files = image->files;
    struct rhea_format *format = image->format;
    image->storage = again->storage;
    image->data_file = again->data_file;
    image->files = again->files;
    image->format = again->format;
    image->flags = again->flags;
    image->format->below = format->below;
    image->format->below_opaque = format->below_opaque;
    again->storage = storage;
    again->data_file = data_file;
    again->files = files;
    again->format = format;
    return rhea_image_close(again, err);
}
