/* SPDX-License-Identifier: MIT */
/* Images with what is below them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "image/internal.h"
#include "image/opening.h"
#include "image/path.h"

/* What is below LAST is to be opened as OPTIONS, and as *NAME where that is not
 * NULL. *DONE: nothing is below. */
static int chain_look_below(struct rhea_image *last, char **name,
                            struct storage_options *options, bool *done,
                            struct rhea_error *err)
{
    const char *reference = storage_options_get(&last->options, "backing");
    struct rhea_format_info info;
    rhea_image_info(last, &info);
    *name = NULL;
    /* Null or empty: none, whatever the image says. */
    *done = reference != NULL;
    if (*done)
        return 0;
    int ret = storage_options_extract(&last->options, "backing.", options, err);
    if (ret)
        return ret;
    last->backing_overridden = options->n;
    if (node_options_name_file(options))
        return 0;
    *done = !info.backing_file;
    if (*done && options->n)
        return rhea_error_set(err, EINVAL,
                              "option backing.%s: '%s' has no backing file",
                              options->items[0].name, last->filename);
    if (*done)
        return 0;
    *name = image_name_below(last, info.backing_file, err);
    if (!*name)
        return -EINVAL;
    if (info.backing_format && !storage_options_peek(options, "driver"))
        ret = storage_options_set(options, "driver", info.backing_format,
                                  STORAGE_OPTION_STRING, err);
    return ret;
}

static int chain_check_parent(struct rhea_image *image, struct rhea_error *err)
{
    const struct rhea_format_ops *ops = image->format->ops;
    int ret = ops->check_parent ? ops->check_parent(image->format,
                                                    image->backing->format, err)
                                : 0;
    return ret ? rhea_error_prefix(err, "'%s' and its parent '%s'",
                                   image->filename, image->backing->filename),
           ret : 0;
}

static int chain_open_below(struct rhea_image *top, struct rhea_image *last,
                            bool *done, struct node_opening *opening,
                            struct rhea_error *err)
{
    struct storage_options options = {0};
    RHEA_AUTO_FREE char *name = NULL;
    unsigned flags = top->flags & (RHEA_IMAGE_NO_LOCK | RHEA_IMAGE_DIRECT |
                                   RHEA_IMAGE_NO_IO);
    int ret = chain_look_below(last, &name, &options, done, err);
    if (!ret && !*done)
        ret = image_open_one(&last->backing, name, &options, flags, top,
                             opening, err);
    storage_options_finish(&options);
    if (ret)
        return rhea_error_prefix(err, "backing file of '%s'", last->filename),
               ret;
    if (*done)
        return 0;
    last->format->below_opaque = last->backing;
    last->format->below = image_read_below;
    return chain_check_parent(last, err);
}

/* Whether what is below IMAGE, by options, is what IMAGE itself says. */
static bool chain_is_as_named(const struct rhea_image *image,
                              const struct rhea_format_info *info)
{
    const struct rhea_image *below = image->backing;
    RHEA_AUTO_FREE char *path = rhea_image_backing_path(image);
    return below && path && strcmp(path, below->filename) == 0 &&
           (!info->backing_format ||
            strcmp(info->backing_format, below->driver) == 0);
}

/* Where the user has put another image below, or none, the name has to say so.
 * From the end of the chain, for a name includes those below. */
static int chain_describe(struct rhea_image *image, unsigned depth,
                          struct rhea_error *err)
{
    struct node_description *d = &image->description;
    int ret = 0;
    if (depth > RHEA_CHAIN_MAX)
        return 0;
    if (image->backing)
        ret = chain_describe(image->backing, depth + 1, err);
    bool none = storage_options_peek(&image->options, "backing");
    struct rhea_format_info info;
    rhea_image_info(image, &info);
    if (ret || image->is_protocol ||
        !(image->backing_overridden || (none && info.backing_file)) ||
        chain_is_as_named(image, &info))
        return ret;
    ret = node_describe_child(
        d, "backing", image->backing ? &image->backing->description : NULL,
        err);
    free(d->plain);
    d->plain = NULL;
    return ret ? ret : image_rename(image, err);
}

/* All that is below TOP. */
static int chain_open(struct rhea_image *top, struct node_opening *opening,
                      struct rhea_error *err)
{
    bool done = top->flags & RHEA_IMAGE_NO_BACKING;
    if (done) {
        struct rhea_format_info info;
        rhea_image_info(top, &info);
        top->blind = info.backing_file;
        return 0;
    }
    int ret = 0;
    for (struct rhea_image *last = top; !ret && !done; last = last->backing)
        ret = chain_open_below(top, last, &done, opening, err);
    return ret ? ret : chain_describe(top, 0, err);
}

int node_open_image(struct rhea_image **out, const char *name,
                    struct storage_options *options, unsigned flags,
                    struct node_opening *opening, struct rhea_error *err)
{
    struct rhea_image *image;
    int ret = 0;
    if (name && node_name_is_json(name)) {
        ret = node_parse_json(name, options, err);
        name = NULL;
    }
    const char *driver = storage_options_peek(options, "driver");
    if (!ret && driver && image_filter_find(driver))
        return image_filter_open(out, name, options, flags, opening, err);
    if (!ret)
        ret = image_open_one(&image, name, options, flags, NULL, opening, err);
    if (ret)
        return ret;
    ret = chain_open(image, opening, err);
    if (!ret && flags & RHEA_IMAGE_COPY_ON_READ)
        ret = image_filter_add(image, IMAGE_FILTER_COPY_ON_READ, err);
    if (ret) {
        rhea_image_close(image, NULL);
        return ret;
    }
    *out = image;
    return 0;
}

int rhea_image_open(struct rhea_image **out, const char *filename,
                    const char *format, unsigned flags, struct rhea_error *err)
{
    struct storage_options options = {0};
    struct node_opening opening = {0};
    int ret = format ? storage_options_set(&options, "driver", format,
                                           STORAGE_OPTION_STRING, err)
                     : 0;
    if (!ret)
        ret = node_open_image(out, filename, &options, flags, &opening, err);
    storage_options_finish(&options);
    return ret;
}

int rhea_image_open_named(struct rhea_image **out, const char *filename,
                          const struct rhea_option *options, size_t n,
                          unsigned flags, struct rhea_error *err)
{
    struct storage_options own = {0};
    struct node_opening opening = {0};
    int ret = 0;
    for (size_t i = 0; !ret && i < n; i++)
        ret = storage_options_set(&own, options[i].name, options[i].value,
                                  STORAGE_OPTION_STRING, err);
    if (!ret)
        ret = node_open_image(out, filename, &own, flags, &opening, err);
    storage_options_finish(&own);
    return ret;
}

int rhea_image_open_options(struct rhea_image **out,
                            const struct rhea_option *options, size_t n,
                            unsigned flags, struct rhea_error *err)
{
    return rhea_image_open_named(out, NULL, options, n, flags, err);
}

int rhea_image_open_storage(struct rhea_image **out,
                            struct rhea_storage *storage, const char *name,
                            const char *format, unsigned flags,
                            struct rhea_error *err)
{
    struct node_opening opening = {0};
    struct rhea_image *image = image_new(name, flags, err);
    if (!image) {
        rhea_storage_close(storage);
        return -ENOMEM;
    }
    image->storage = storage;
    image->asked = strdup(name);
    image->description.plain = strdup(name);
    image->description.folder = strdup(name);
    image_identify(image);
    int ret = 0;
    if (!image->asked || !image->description.plain ||
        !image->description.folder)
        ret = rhea_error_set(err, ENOMEM, "out of memory");
    if (!ret)
        ret = image_open_format(image, format, &opening, err);
    if (!ret)
        ret = chain_open(image, &opening, err);
    if (ret) {
        rhea_image_close(image, NULL);
        return ret;
    }
    *out = image;
    return 0;
}

int rhea_image_close(struct rhea_image *image, struct rhea_error *err)
{
    int ret = 0;
    while (image) {
        struct rhea_image *backing = image->backing;
        if (image->format) {
            int closed =
                image->format->ops->close(image->format, ret ? NULL : err);
            ret = ret ? ret : closed;
        }
        image_files_close(image->files, false);
        rhea_storage_close(image->data_file);
        rhea_storage_close(image->storage);
        node_description_finish(&image->description);
        node_description_finish(&image->file_description);
        node_description_finish(&image->data_description);
        storage_options_finish(&image->options);
        if (image->filters)
            pthread_rwlock_destroy(&image->order);
        free(image->asked);
        free(image->filename);
        free(image);
        image = backing;
    }
    return ret;
}

uint64_t rhea_image_size(const struct rhea_image *image)
{
    return image->format->size;
}

const char *rhea_image_filename(const struct rhea_image *image)
{
    return image->filename;
}

const char *rhea_image_driver(const struct rhea_image *image)
{
    return image->driver;
}

const char *rhea_image_child_driver(const struct rhea_image *image,
                                    const char *child)
{
    const struct node_description *d =
        strcmp(child, "file") == 0        ? &image->file_description
        : strcmp(child, "data-file") == 0 ? &image->data_description
                                          : NULL;
    if (!d)
        return strcmp(child, "backing") == 0 && image->backing
                   ? image->backing->driver
                   : NULL;
    return d->full ? json_string_value(json_object_get(d->full, "driver"))
                   : NULL;
}

struct rhea_format *rhea_image_format(struct rhea_image *image)
{
    return image->format;
}

struct rhea_storage *rhea_image_storage(struct rhea_image *image)
{
    return image->storage;
}

struct rhea_image *rhea_image_backing(struct rhea_image *image)
{
    return image_mapped(image)->backing;
}

void rhea_image_info(struct rhea_image *image, struct rhea_format_info *info)
{
    memset(info, 0, sizeof(*info));
    image->format->ops->info(image->format, info);
}

int rhea_image_disk_size(const struct rhea_image *image, uint64_t *size)
{
    uint64_t device, inode, one;
    int ret = rhea_file_stat(image->storage, size, &device, &inode);
    if (!ret && image->data_file &&
        rhea_file_stat(image->data_file, &one, &device, &inode) == 0)
        *size += one;
    for (size_t i = 0; !ret && i < image->files->n_opened; i++) {
        ret = rhea_file_stat(image->files->opened[i], &one, &device, &inode);
        *size += ret ? 0 : one;
    }
    return ret;
}

char *rhea_image_backing_path(const struct rhea_image *image)
{
    struct rhea_format_info info;
    image->format->ops->info(image->format, &info);
    if (!info.backing_file)
        return NULL;
    const char *folder = image->description.folder;
    if (!folder && *info.backing_file != '/' &&
        !storage_name_protocol(info.backing_file))
        return NULL;
    return image_resolve_path(folder ? folder : "", info.backing_file);
}
