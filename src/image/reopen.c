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

/* Let others write to all files of IMAGE. */
static int reopen_yield(struct rhea_image *image, struct rhea_error *err)
{
    int ret = 0;
    if (image->flags & RHEA_IMAGE_NO_LOCK)
        return 0;
    ret = rhea_storage_lock(image->storage, RHEA_LOCK_READ, RHEA_LOCK_ALL, err);
    for (size_t i = 0; !ret && i < image->files->n_opened; i++)
        ret = rhea_storage_lock(image->files->opened[i], RHEA_LOCK_READ,
                                RHEA_LOCK_ALL, err);
    return ret;
}

static void reopen_take_back(struct rhea_image *image)
{
    image_lock(image->storage, image->flags, NULL);
    for (size_t i = 0; i < image->files->n_opened; i++)
        image_lock(image->files->opened[i], image->flags, NULL);
}

int rhea_image_allow_write(struct rhea_image *image, struct rhea_error *err)
{
    if (image->flags & RHEA_IMAGE_WRITE)
        return 0;
    /* Our own locks must not be in the way of the new ones. */
    int ret = reopen_yield(image, err);
    struct rhea_image *again = ret ? NULL : reopen_file(image, &ret, err);
    if (!again) {
        reopen_take_back(image);
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
