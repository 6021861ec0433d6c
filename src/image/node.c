/* SPDX-License-Identifier: MIT */
/* Opening storages as names and options ask for them. */
#include "image/node.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "image/internal.h"

/* All nodes of one opening together: what a chain of images may have, with
 * some storages below each. */
enum { NODES_MAX = 4 * RHEA_CHAIN_MAX };

static int common_flag(struct storage_options *options, const char *name,
                       unsigned flag, unsigned *flags, struct rhea_error *err)
{
    bool on = *flags & flag;
    int ret = storage_options_bool(options, name, &on, err);
    *flags = (*flags & ~flag) | (on ? flag : 0);
    return ret;
}

static int common_read_only(struct storage_options *options,
                            struct node_common *common, struct rhea_error *err)
{
    bool automatic = false, read_only = false;
    int ret = storage_options_bool(options, "auto-read-only", &automatic, err);
    if (!ret)
        ret = storage_options_bool(options, "read-only", &read_only, err);
    if (!ret && read_only && (common->flags & RHEA_IMAGE_WRITE))
        ret = rhea_error_set(err, EACCES,
                             "it is to be written to, but option "
                             "read-only is on");
    return ret;
}

/* Discarding is decided by who writes: rhea-img always lets go of what it
 * need not keep. So the option is only looked at. */
static int common_discard(struct storage_options *options, bool *unmap,
                          struct rhea_error *err)
{
    static const char *const words[] = {"unmap", "on", "ignore", "off"};
    const char *value = storage_options_get(options, "discard");
    *unmap = false;
    for (size_t i = 0; value && i < RHEA_ARRAY_SIZE(words); i++) {
        if (strcmp(words[i], value) == 0) {
            *unmap = i < 2;
            return 0;
        }
    }
    return value ? rhea_error_set(err, EINVAL,
                                  "option discard is 'unmap' or 'ignore', not "
                                  "'%s'",
                                  value)
                 : 0;
}

static int common_detect_zeroes(struct storage_options *options,
                                struct node_common *common, bool unmap,
                                struct rhea_error *err)
{
    static const char *const words[] = {"off", "on", "unmap"};
    const char *value = storage_options_get(options, "detect-zeroes");
    common->detect_zeroes = NODE_ZEROES_OFF;
    if (!value)
        return 0;
    for (unsigned i = 0; i < RHEA_ARRAY_SIZE(words); i++) {
        if (strcmp(words[i], value) != 0)
            continue;
        common->detect_zeroes = i;
        if (i == NODE_ZEROES_UNMAP && !unmap)
            return rhea_error_set(err, EINVAL,
                                  "option detect-zeroes=unmap "
                                  "needs discard=unmap");
        return 0;
    }
    return rhea_error_set(err, EINVAL,
                          "option detect-zeroes is 'off', 'on' or 'unmap', not "
                          "'%s'",
                          value);
}

int node_take_common(struct storage_options *options,
                     struct node_common *common, struct rhea_error *err)
{
    bool unmap, write_cache = true;
    storage_options_get(options, "driver");
    storage_options_get(options, "node-name");
    int ret = common_flag(options, "cache.direct", RHEA_IMAGE_DIRECT,
                          &common->flags, err);
    if (!ret)
        ret = common_flag(options, "cache.no-flush", RHEA_IMAGE_NO_FLUSH,
                          &common->flags, err);
    /* Whether each write is followed by a flush; the programs flush at the
     * end. */
    if (!ret)
        ret =
            storage_options_bool(options, "cache.writeback", &write_cache, err);
    if (!ret)
        ret = common_flag(options, "force-share", RHEA_IMAGE_NO_LOCK,
                          &common->flags, err);
    if (!ret)
        ret = common_read_only(options, common, err);
    if (!ret)
        ret = common_discard(options, &unmap, err);
    if (!ret)
        ret = common_detect_zeroes(options, common, unmap, err);
    return ret;
}

int node_take_child(const struct storage_options *from, const char *child,
                    struct storage_options *options, struct rhea_error *err)
{
    char prefix[64];
    const char *reference = storage_options_peek(from, child);
    if (reference)
        return rhea_error_set(err, EINVAL,
                              "option %s=%.100s: there is no node of that "
                              "name, only %s.driver, %s.filename and such can "
                              "be given",
                              child, reference, child, child);
    snprintf(prefix, sizeof(prefix), "%s.", child);
    return storage_options_extract(from, prefix, options, err);
}

bool node_options_name_file(const struct storage_options *options)
{
    return storage_options_peek(options, "filename") ||
           storage_options_peek(options, "file.filename") ||
           storage_options_peek(options, "file.driver");
}

/* A storage while it is opened, for its driver to open its child. */
struct node_parent {
    const struct storage_options *options;
    unsigned flags;
    struct node_opening *opening;
    struct node_child {
        char name[32];
        struct node_description description;
    } * children;
    size_t n_children;
};

/* One more child of that name; NULL: out of memory. */
static struct node_child *parent_add(struct node_parent *parent,
                                     const char *name)
{
    size_t size = (parent->n_children + 1) * sizeof(*parent->children);
    struct node_child *more = realloc(parent->children, size);
    if (!more)
        return NULL;
    parent->children = more;
    more += parent->n_children++;
    memset(more, 0, sizeof(*more));
    snprintf(more->name, sizeof(more->name), "%s", name);
    return more;
}

static void parent_finish(struct node_parent *parent)
{
    for (size_t i = 0; i < parent->n_children; i++)
        node_description_finish(&parent->children[i].description);
    free(parent->children);
}

static int parent_open_child(void *opaque, const char *child, const char *name,
                             struct rhea_storage **out, struct rhea_error *err)
{
    struct node_parent *parent = opaque;
    struct storage_options options = {0};
    int ret = node_take_child(parent->options, child, &options, err);
    if (node_options_name_file(&options))
        name = NULL;
    if (!ret && options.n == 0 && !name)
        ret = rhea_error_set(err, EINVAL, "there is no option %s.filename",
                             child);
    struct node_child *c = ret ? NULL : parent_add(parent, child);
    if (c)
        ret = node_open_storage(out, &c->description, name, &options,
                                parent->flags, parent->opening, err);
    else if (!ret)
        ret = rhea_error_set(err, ENOMEM, "out of memory");
    storage_options_finish(&options);
    return ret;
}

static int node_describe_storage(struct node_description *d,
                                 const struct storage_driver *driver,
                                 const struct storage_options *options,
                                 const struct node_parent *parent,
                                 struct rhea_error *err)
{
    bool others;
    int ret = node_describe(d, driver->name, options, driver->strong_options,
                            &others, err);
    for (size_t i = 0; !ret && i < parent->n_children; i++)
        ret = node_describe_child(d, parent->children[i].name,
                                  &parent->children[i].description, err);
    if (ret)
        return ret;
    d->is_protocol = true;
    static const struct node_description none;
    const struct node_description *child =
        parent->n_children ? &parent->children[0].description : &none;
    if (driver->plain_name)
        d->plain = driver->plain_name(options, child->plain);
    const char *folder = driver->is_filter   ? child->folder
                         : driver->no_folder ? NULL
                                             : d->plain;
    d->folder = folder ? strdup(folder) : NULL;
    return 0;
}

static int node_open_driver(struct rhea_storage **out,
                            struct node_description *d,
                            const struct storage_driver *driver,
                            struct storage_options *options, unsigned flags,
                            struct node_opening *opening,
                            struct rhea_error *err)
{
    struct node_common common = {.flags = flags};
    int ret = node_take_common(options, &common, err);
    if (ret)
        return ret;
    struct node_parent parent = {
        .options = options, .flags = common.flags, .opening = opening};
    unsigned how_flags =
        (common.flags & RHEA_IMAGE_WRITE ? RHEA_FILE_WRITE : 0) |
        (common.flags & RHEA_IMAGE_DIRECT ? RHEA_FILE_DIRECT : 0) |
        (common.flags & RHEA_IMAGE_NO_FLUSH ? RHEA_FILE_NO_FLUSH : 0) |
        (flags & NODE_CREATE && driver->can_create ? RHEA_FILE_CREATE : 0);
    struct storage_open how = {
        .options = options,
        .flags = how_flags,
        .open_child = parent_open_child,
        .opaque = &parent,
    };
    struct rhea_storage *storage = NULL;
    ret = driver->open(&storage, &how, err);
    const char *unused = storage_options_unused(options);
    if (!ret && unused)
        ret = rhea_error_set(err, EINVAL, "driver %s has no option '%s'",
                             driver->name, unused);
    if (!ret)
        ret = node_describe_storage(d, driver, options, &parent, err);
    parent_finish(&parent);
    if (ret) {
        rhea_storage_close(storage);
        node_description_finish(d);
        return ret;
    }
    *out = storage;
    return 0;
}

/* The driver of a file by its path alone. */
static const struct storage_driver *node_driver_of_path(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISBLK(st.st_mode)
               ? &storage_driver_host_device
               : &storage_driver_file;
}

static const struct storage_driver *node_driver_of_name(const char *name,
                                                        struct rhea_error *err)
{
    size_t protocol = storage_name_protocol(name);
    const struct storage_driver *driver = storage_driver_of_name(name);
    if (!protocol)
        return node_driver_of_path(name);
    if (driver == &storage_driver_file)
        return node_driver_of_path(name + protocol);
    if (!driver)
        rhea_error_set(err, ENOTSUP,
                       "'%.200s': there is no protocol '%.*s' (for a file of "
                       "that name write './%.200s')",
                       name, (int)RHEA_MIN(protocol, (size_t)50) - 1, name,
                       name);
    return driver;
}

/* The driver that is asked for, with NAME turned into options of it. */
static int node_find_driver(const struct storage_driver **out, const char *name,
                            struct storage_options *options,
                            struct rhea_error *err)
{
    const char *asked = storage_options_peek(options, "driver");
    const char *filename = storage_options_peek(options, "filename");
    const struct storage_driver *driver;
    if (name && filename)
        return rhea_error_set(err, EINVAL,
                              "a file name and option filename are given, it "
                              "can only be one of them");
    if (asked)
        driver = storage_driver_find(asked);
    else if (name)
        driver = node_driver_of_name(name, err);
    else if (filename)
        driver = node_driver_of_path(filename);
    else
        return rhea_error_set(err, EINVAL,
                              "which file? There is neither a "
                              "driver nor a file name");
    if (!driver && asked)
        rhea_error_set(err, EINVAL, "there is no driver '%.100s'", asked);
    if (!driver)
        return asked ? -EINVAL : -ENOTSUP;
    *out = driver;
    if (!name)
        return 0;
    return driver->parse ? driver->parse(name, options, err)
                         : storage_options_set(options, "filename", name,
                                               STORAGE_OPTION_STRING, err);
}

/* An image in the place of a storage. */
static int node_open_nested(struct rhea_storage **out,
                            struct node_description *d, const char *name,
                            struct storage_options *options, unsigned flags,
                            struct node_opening *opening,
                            struct rhea_error *err)
{
    struct rhea_image *image;
    int ret = node_open_image(&image, name, options, flags, opening, err);
    if (!ret)
        ret = node_description_copy(d, &image->description, err);
    else
        return ret;
    if (ret) {
        rhea_image_close(image, NULL);
        return ret;
    }
    return nested_open(out, image, err);
}

int node_enter(struct node_opening *opening, struct rhea_error *err)
{
    if (opening->depth >= NODE_DEPTH_MAX)
        return rhea_error_set(err, ELOOP,
                              "more than %d storages and formats stand on each "
                              "other",
                              NODE_DEPTH_MAX);
    if (opening->nodes >= NODES_MAX)
        return rhea_error_set(err, ELOOP,
                              "the image is made up of more than %d files and "
                              "formats",
                              NODES_MAX);
    opening->depth++;
    opening->nodes++;
    return 0;
}

void node_leave(struct node_opening *opening)
{
    opening->depth--;
}

int node_open_storage(struct rhea_storage **out, struct node_description *d,
                      const char *name, struct storage_options *options,
                      unsigned flags, struct node_opening *opening,
                      struct rhea_error *err)
{
    const struct storage_driver *driver = NULL;
    int ret = node_enter(opening, err);
    if (ret)
        return ret;
    if (name && node_name_is_json(name)) {
        ret = node_parse_json(name, options, err);
        name = NULL;
    }
    const char *asked = storage_options_peek(options, "driver");
    if (!ret && asked &&
        (rhea_format_find(asked) || image_filter_find(asked))) {
        ret = node_open_nested(out, d, name, options, flags, opening, err);
    } else {
        if (!ret)
            ret = node_find_driver(&driver, name, options, err);
        if (!ret)
            ret =
                node_open_driver(out, d, driver, options, flags, opening, err);
    }
    node_leave(opening);
    return ret;
}
