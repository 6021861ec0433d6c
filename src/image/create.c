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
#include "image/blank.h"
#include "image/internal.h"
#include "image/node.h"

/* What is to be made. */
struct creation {
    const struct rhea_format_ops *ops;
    const struct storage_driver *driver; /* of the file; NULL: not known */
    const char *filename;
    bool local; /* a file by its path */
    struct rhea_create how;
    struct storage_options file; /* creation options that are not the format's,
                                    but the file's */
};

static bool create_has_option(const struct rhea_format_ops *ops,
                              const char *name)
{
    return option_is_listed(ops->create_options, name);
}

/* Move those options into c->how that are members of it, and the file's to
 * c->file; keep the rest. OPTIONS has room for all. */
static int create_take_options(struct creation *c, struct rhea_option *options,
                               struct rhea_error *err)
{
    const struct rhea_format_ops *ops = c->ops;
    struct rhea_create *how = &c->how;
    size_t kept = 0;
    for (size_t i = 0; i < how->n_options; i++) {
        const struct rhea_option *o = &how->options[i];
        int ret = 0;
        if (!create_has_option(ops, o->name) && c->driver &&
            option_is_listed(c->driver->create_options, o->name))
            ret = storage_options_set(&c->file, o->name, o->value,
                                      STORAGE_OPTION_STRING, err);
        else if (!create_has_option(ops, o->name))
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

/* Look at the backing file: it opens, it is not the new file, its size. It
 * stays open as *OUT, also on failure. */
static int create_look_below(const char *path, struct rhea_create *how,
                             struct rhea_image **out, struct rhea_error *err)
{
    RHEA_AUTO_FREE char *name = image_name_combine(path, how->backing_file);
    if (!name)
        return rhea_error_set(err, ENOMEM, "out of memory");
    struct rhea_image *below;
    int ret = rhea_image_open(&below, name, how->backing_format,
                              RHEA_IMAGE_NO_IO, err);
    if (ret) {
        rhea_error_prefix(err, "backing file of '%s'", path);
        return ret;
    }
    *out = below;
    how->parent = below->format;
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
    return ret;
}

/* The same without a promise, for a format that records its parent's identity:
 * where it cannot be opened, the format decides. */
static void create_try_below(const char *path, struct rhea_create *how,
                             struct rhea_image **out)
{
    RHEA_AUTO_FREE char *name = image_name_combine(path, how->backing_file);
    if (name &&
        rhea_image_open(out, name, how->backing_format,
                        RHEA_IMAGE_NO_IO | RHEA_IMAGE_NO_BACKING, NULL) == 0)
        how->parent = (*out)->format;
}

static const char *create_last_part(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static int create_prepare(struct creation *c, const char *path,
                          struct rhea_option *options, bool unsafe,
                          struct rhea_image **below, struct rhea_error *err)
{
    const struct rhea_format_ops *ops = c->ops;
    struct rhea_create *how = &c->how;
    int ret = create_take_options(c, options, err);
    if (!ret && c->driver && c->driver->prepare_new)
        ret = c->driver->prepare_new(NULL, &c->file, err);
    if (ret)
        return ret;
    if (how->backing_file && !create_has_option(ops, "backing_file"))
        return rhea_error_set(
            err, EINVAL, "a %s image cannot have a backing file", ops->name);
    if (how->backing_file && !unsafe)
        ret = create_look_below(path, how, below, err);
    else if (how->backing_file && ops->check_parent)
        create_try_below(path, how, below);
    if (ret)
        return ret;
    if (how->size == UINT64_MAX)
        return rhea_error_set(err, EINVAL, "the image's size must be stated");
    if (how->size > (INT64_MAX & ~(uint64_t)511))
        return rhea_error_set(err, EFBIG, "the image's size is too large");
    how->size = align_up(how->size, 512);
    how->name = create_last_part(path);
    struct image_files *files = image_files_new(path, RHEA_IMAGE_WRITE, err);
    if (!files)
        return -ENOMEM;
    how->files = &files->ops;
    ret = image_rehearse_create(ops, how, err);
    how->files = NULL;
    image_files_close(files, false);
    return ret;
}

static int create_on_file(const struct creation *c,
                          struct rhea_storage *storage, struct rhea_error *err)
{
    int ret = rhea_storage_truncate(storage, 0, err);
    if (!ret && c->driver && c->driver->prepare_new)
        ret = c->driver->prepare_new(storage, &c->file, err);
    return ret ? ret : c->ops->create(storage, &c->how, err);
}

/* What the device began with must not be taken for the new image's header. */
static int create_on_device(const struct rhea_format_ops *ops,
                            struct rhea_storage *storage,
                            const struct rhea_create *how,
                            struct rhea_error *err)
{
    static const uint8_t sector[512];
    struct blank blank;
    uint64_t size;
    /* Its clusters are added at the end of the file, which a device has not. */
    if (strcmp(ops->name, "qed") == 0)
        return rhea_error_set(err, ENOTSUP,
                              "a qed image needs a file that can grow");
    int ret = rhea_storage_size(storage, &size, err);
    if (!ret && size)
        ret = rhea_storage_write(
            storage, sector, (size_t)RHEA_MIN(size, sizeof(sector)), 0, err);
    blank_init(&blank, storage, strcmp(ops->name, "raw") == 0);
    return ret ? ret : ops->create(&blank.head, how, err);
}

/* The lock is held before the first byte is lost. */
static int create_write(const struct creation *c, const char *filename,
                        struct rhea_error *err)
{
    struct rhea_storage *storage;
    struct storage_options options = {0};
    struct node_opening opening = {0};
    struct node_description description = {0};
    int ret = node_open_storage(&storage, &description, filename, &options,
                                RHEA_IMAGE_WRITE | NODE_CREATE, &opening, err);
    storage_options_finish(&options);
    node_description_finish(&description);
    if (ret)
        return ret;
    ret = rhea_storage_lock(
        storage, RHEA_LOCK_READ | RHEA_LOCK_WRITE | RHEA_LOCK_RESIZE, 0, err);
    bool locked = !ret;
    if (!ret)
        ret = rhea_file_is_regular(storage)
                  ? create_on_file(c, storage, err)
                  : create_on_device(c->ops, storage, &c->how, err);
    rhea_storage_close(storage);
    return !ret || locked ? ret : -EBUSY;
}

/* The value of option data_file; NULL: it is not given, or not known. */
static const char *create_data_name(const struct rhea_format_ops *ops,
                                    const struct rhea_create *how)
{
    const char *name = NULL;
    for (size_t i = 0; i < how->n_options; i++)
        if (strcmp(how->options[i].name, "data_file") == 0 &&
            *how->options[i].value)
            name = how->options[i].value;
    return create_has_option(ops, "data_file") ? name : NULL;
}

/*
 * Open the file that the new image keeps its data in, or make it: what it holds
 * is the guest's already, so it is not emptied. *MADE: it was not there.
 */
static int create_open_data(const char *path, const char *name,
                            struct rhea_storage **out, char **data_path,
                            bool *made, struct rhea_error *err)
{
    struct stat image, data;
    *data_path = image_data_file_path(path, name);
    if (!*data_path)
        return rhea_error_set(err, ENOMEM, "out of memory");
    *made = stat(*data_path, &data) < 0;
    if (!*made && stat(path, &image) == 0 && image.st_dev == data.st_dev &&
        image.st_ino == data.st_ino)
        return rhea_error_set(err, EINVAL,
                              "an image cannot be its own data file");
    int ret = rhea_file_open(
        out, *data_path, RHEA_FILE_WRITE | (*made ? RHEA_FILE_CREATE : 0), err);
    if (ret)
        return ret;
    ret = rhea_storage_lock(
        *out, RHEA_LOCK_READ | RHEA_LOCK_WRITE | RHEA_LOCK_RESIZE, 0, err);
    if (ret) {
        rhea_storage_close(*out);
        *out = NULL;
    }
    return ret;
}

/* All but the data file is prepared. */
static int create_with_data(struct creation *c, const char *filename,
                            const char *path, struct rhea_error *err)
{
    RHEA_AUTO_FREE char *data_path = NULL;
    const char *name = create_data_name(c->ops, &c->how);
    struct rhea_storage *data = NULL;
    bool made = false;
    int ret =
        name ? create_open_data(path, name, &data, &data_path, &made, err) : 0;
    if (ret) {
        if (made && data_path)
            unlink(data_path);
        return rhea_error_prefix(err, "data file"), ret;
    }
    c->how.data_file = data ? data : c->how.data_file;
    ret = create_write(c, filename, err);
    rhea_storage_close(data);
    if (ret && made)
        unlink(data_path);
    return ret;
}

/* The path at which FILENAME makes a file, malloc'd; for what is no local file
 * it is only a name. */
static int create_locate(struct creation *c, char **path,
                         struct rhea_error *err)
{
    const char *filename = c->filename;
    size_t protocol = storage_name_protocol(filename);
    if (node_name_is_json(filename))
        return rhea_error_set(err, ENOTSUP,
                              "a new image needs the name of a file, not "
                              "json:{...}");
    c->driver =
        protocol ? storage_driver_of_name(filename) : &storage_driver_file;
    c->local = c->driver == &storage_driver_file;
    *path = strdup(c->local ? filename + protocol : filename);
    return *path ? 0 : rhea_error_set(err, ENOMEM, "out of memory");
}

/* The folder that is the image, and in *FILE its file that is written. *MADE:
 * the folder was not there. */
static int create_bundle(const struct rhea_format_ops *ops, const char *path,
                         char **file, bool *made, struct rhea_error *err)
{
    char *inside = NULL;
    *made = mkdir(path, 0777) == 0;
    if (!*made && errno != EEXIST)
        return rhea_error_errno(err, errno, "cannot make the folder");
    if (asprintf(&inside, "%s/%s", path, ops->bundle_file) < 0)
        return rhea_error_set(err, ENOMEM, "out of memory");
    free(*file);
    *file = inside;
    return 0;
}

/* Below PATH, which is all prepared. What was not there before does not stay
 * behind half made. */
static int create_at(struct creation *c, const char *path,
                     struct rhea_error *err)
{
    RHEA_AUTO_FREE char *file = strdup(path);
    const struct rhea_format_ops *ops = c->ops;
    bool local = c->local;
    bool bundle = ops->create_is_bundle && ops->create_is_bundle(&c->how);
    bool folder_made = false;
    int ret = file ? 0 : rhea_error_set(err, ENOMEM, "out of memory");
    if (!ret && bundle)
        ret = local ? create_bundle(ops, path, &file, &folder_made, err)
                    : rhea_error_set(err, ENOTSUP,
                                     "such an image is a folder, and can only "
                                     "be made where there are folders");
    struct image_files *files =
        ret ? NULL : image_files_new(file, RHEA_IMAGE_WRITE, err);
    if (!files) {
        if (folder_made)
            rmdir(path);
        return ret ? ret : -ENOMEM;
    }
    c->how.name = create_last_part(file);
    c->how.files = &files->ops;
    bool existed = !local || access(file, F_OK) == 0;
    ret = create_with_data(c, bundle ? file : c->filename, file, err);
    if (ret && ret != -EBUSY && !existed)
        unlink(file);
    image_files_close(files, ret != 0);
    if (ret && folder_made)
        rmdir(path);
    return ret;
}

int rhea_image_create(const char *filename, const char *format,
                      const struct rhea_create *how, bool unsafe,
                      struct rhea_error *err)
{
    RHEA_AUTO_FREE char *path = NULL;
    struct creation c = {.ops = image_format_find(format, err),
                         .filename = filename,
                         .how = *how};
    if (!c.ops)
        return -EINVAL;
    if (!c.ops->create)
        return rhea_error_set(err, ENOTSUP, "cannot create %s images",
                              c.ops->name);
    int ret = create_locate(&c, &path, err);
    if (ret)
        return ret;

    RHEA_AUTO_FREE struct rhea_option *options =
        calloc(how->n_options + 1, sizeof(*options));
    if (!options)
        return rhea_error_set(err, ENOMEM, "out of memory");
    struct rhea_image *below = NULL;
    ret = create_prepare(&c, path, options, unsafe, &below, err);
    bool prepared = !ret;
    if (!ret)
        ret = create_at(&c, path, err);
    rhea_image_close(below, NULL);
    storage_options_finish(&c.file);
    if (ret && prepared && err && !strstr(err->text, path))
        rhea_error_prefix(err, "could not create '%s'", path);
    return ret;
}
