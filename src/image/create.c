/* SPDX-License-Identifier: MIT */
/*
 * Creating images. All that can be refused is refused before the file is
 * touched: it may exist and hold something.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/option.h"
#include "image/internal.h"

static bool create_has_option(const struct rhea_format_ops *ops,
                              const char *name)
{
    for (const struct rhea_option_help *h = ops->create_options; h && h->name;
         h++)
        if (strcmp(h->name, name) == 0)
            return true;
    return false;
}

/* Move those options into HOW that are members of it, keep the rest. OPTIONS
 * has room for all. */
static int create_take_options(const struct rhea_format_ops *ops,
                               struct rhea_create *how,
                               struct rhea_option *options,
                               struct rhea_error *err)
{
    size_t kept = 0;
    for (size_t i = 0; i < how->n_options; i++) {
        const struct rhea_option *o = &how->options[i];
        int ret = 0;
        if (!create_has_option(ops, o->name))
            ret = option_unknown(o, ops->name, err);
        else if (strcmp(o->name, "size") == 0)
            ret = how->size == UINT64_MAX ? option_size(o, &how->size, err) : 0;
        else if (strcmp(o->name, "backing_file") == 0)
            how->backing_file =
                how->backing_file ? how->backing_file : o->value;
        else if (strcmp(o->name, "backing_fmt") == 0)
            how->backing_format =
                how->backing_format ? how->backing_format : o->value;
        else
            options[kept++] = *o;
        if (ret)
            return ret;
    }
    how->options = options;
    how->n_options = kept;
    if (how->backing_file && !*how->backing_file)
        how->backing_file = NULL;
    if (!how->backing_file)
        how->backing_format = NULL;
    return 0;
}

/* Whether PATH, if it exists, is one of the files of IMAGE's chain. */
static bool create_is_in_chain(const char *path, const struct rhea_image *image)
{
    struct stat st;
    if (stat(path, &st))
        return false;
    for (; image; image = image->backing)
        if (image->has_identity && image->device == st.st_dev &&
            image->inode == st.st_ino)
            return true;
    return false;
}

/* Look at the backing file: it opens, it is not the new file, its size. */
static int create_look_below(const char *path, struct rhea_create *how,
                             struct rhea_error *err)
{
    RHEA_AUTO_FREE char *name = image_name_combine(path, how->backing_file);
    if (!name)
        return rhea_error_set(err, ENOMEM, "out of memory");
    struct rhea_image *below;
    int ret = rhea_image_open(&below, name, how->backing_format, 0, err);
    if (ret) {
        rhea_error_prefix(err, "backing file of '%s'", path);
        return ret;
    }
    if (create_is_in_chain(path, below))
        ret = rhea_error_set(err, EINVAL,
                             "'%s' cannot be created over its own backing "
                             "chain",
                             path);
    else if (!how->backing_format)
        ret = rhea_error_set(err, EINVAL,
                             "the format of the backing file '%s' must be "
                             "stated (it looks like %s)",
                             how->backing_file, below->format->ops->name);
    else if (how->size == UINT64_MAX)
        how->size = rhea_image_size(below);
    rhea_image_close(below, NULL);
    return ret;
}

static int create_prepare(const struct rhea_format_ops *ops, const char *path,
                          struct rhea_create *how, struct rhea_option *options,
                          bool unsafe, struct rhea_error *err)
{
    int ret = create_take_options(ops, how, options, err);
    if (ret)
        return ret;
    if (how->backing_file && !create_has_option(ops, "backing_file"))
        return rhea_error_set(
            err, EINVAL, "a %s image cannot have a backing file", ops->name);
    if (how->backing_file && !unsafe)
        ret = create_look_below(path, how, err);
    if (ret)
        return ret;
    if (how->size == UINT64_MAX)
        return rhea_error_set(err, EINVAL, "the image's size must be stated");
    if (how->size > (INT64_MAX & ~(uint64_t)511))
        return rhea_error_set(err, EFBIG, "the image's size is too large");
    how->size = align_up(how->size, 512);
    return image_rehearse_create(ops, how, err);
}

/* The lock is held before the first byte is lost. */
static int create_write(const struct rhea_format_ops *ops, const char *path,
                        const struct rhea_create *how, struct rhea_error *err)
{
    struct rhea_storage *storage;
    int ret =
        rhea_file_open(&storage, path, RHEA_FILE_WRITE | RHEA_FILE_CREATE, err);
    if (ret)
        return ret;
    ret = rhea_storage_lock(
        storage, RHEA_LOCK_READ | RHEA_LOCK_WRITE | RHEA_LOCK_RESIZE, 0, err);
    bool locked = !ret;
    if (!ret && rhea_file_is_regular(storage))
        ret = rhea_storage_truncate(storage, 0, err);
    if (!ret)
        ret = ops->create(storage, how, err);
    rhea_storage_close(storage);
    return !ret || locked ? ret : -EBUSY;
}

int rhea_image_create(const char *filename, const char *format,
                      const struct rhea_create *how, bool unsafe,
                      struct rhea_error *err)
{
    RHEA_AUTO_FREE char *path = NULL;
    const struct rhea_format_ops *ops = image_format_find(format, err);
    if (!ops)
        return -EINVAL;
    if (!ops->create)
        return rhea_error_set(err, ENOTSUP, "cannot create %s images",
                              ops->name);
    int ret = image_name_path(filename, &path, err);
    if (ret)
        return ret;

    struct rhea_create own = *how;
    RHEA_AUTO_FREE struct rhea_option *options =
        calloc(how->n_options + 1, sizeof(*options));
    if (!options)
        return rhea_error_set(err, ENOMEM, "out of memory");
    ret = create_prepare(ops, path, &own, options, unsafe, err);
    if (ret)
        return ret;

    bool existed = access(path, F_OK) == 0;
    ret = create_write(ops, path, &own, err);
    /* What was not there before does not stay behind half made. */
    if (ret && ret != -EBUSY && !existed)
        unlink(path);
    if (ret && err && !strstr(err->text, path))
        rhea_error_prefix(err, "could not create '%s'", path);
    return ret;
}
