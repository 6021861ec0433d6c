/* SPDX-License-Identifier: MIT */
/*
 * The file that an image keeps its guest's bytes in, apart from its own.
 *
 * Which one it is the image says itself, unless an option data-file.* does.
 * An image is not always to be trusted: its name is that of a local file and
 * nothing else, whatever it begins with. It is relative to the image's folder;
 * where no such file is there, to the current folder, as QEMU has it. The
 * file's contents are never looked at to find out what it is.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "image/internal.h"

char *image_data_file_path(const char *image, const char *name)
{
    const char *slash = strrchr(image, '/');
    char *path = NULL;
    if (!slash || *name == '/')
        return strdup(name);
    if (asprintf(&path, "%.*s/%s", (int)(slash - image), image, name) < 0)
        return NULL;
    return path;
}

/* The options by which a name that stands in an image is opened. */
static int data_file_from_name(const struct rhea_image *image, const char *name,
                               struct storage_options *options,
                               struct rhea_error *err)
{
    const char *folder = image->description.folder;
    if (!folder)
        folder = image->file_description.folder;
    RHEA_AUTO_FREE char *path =
        image_data_file_path(folder ? folder : "", name);
    if (!path)
        return rhea_error_set(err, ENOMEM, "out of memory");
    if (access(path, F_OK) < 0 && access(name, F_OK) == 0) {
        free(path);
        path = strdup(name);
        if (!path)
            return rhea_error_set(err, ENOMEM, "out of memory");
    }
    return storage_options_set(options, "filename", path, STORAGE_OPTION_STRING,
                               err);
}

int image_open_data_file(void *opaque, const char *default_name,
                         struct rhea_storage **out, struct rhea_error *err)
{
    struct image_data_file *how = opaque;
    struct rhea_image *image = how->image;
    struct storage_options options = {0};
    struct rhea_storage *storage = NULL;
    int ret = node_take_child(&image->options, "data-file", &options, err);
    if (!ret && options.n == 0 && !default_name)
        ret = rhea_error_set(err, EINVAL,
                             "its data is in another file, but it does not say "
                             "in which: option data-file.filename has to");
    bool named = storage_options_peek(&options, "filename") ||
                 storage_options_peek(&options, "file.filename") ||
                 storage_options_peek(&options, "driver");
    if (!ret && !named && default_name)
        ret = data_file_from_name(image, default_name, &options, err);
    if (!ret)
        ret = node_open_storage(&storage, &image->data_description, NULL,
                                &options, image->flags, how->opening, err);
    if (!ret)
        ret = image_lock(storage, image->flags, err);
    storage_options_finish(&options);
    if (ret) {
        rhea_storage_close(storage);
        return rhea_error_prefix(err, "its data file"), ret;
    }
    image->data_file = storage;
    *out = storage;
    return 0;
}
