/* SPDX-License-Identifier: MIT */
/*
 * Opening one image: its storage, its lock, its format.
 *
 * Locks. A reader uses "consistent read" and shares everything but writing and
 * resizing; a writer uses all three and shares only reading and writes that
 * change nothing. That is what QEMU does for every format but raw. Raw gets no
 * exception here: a copy of a file that a guest writes to is no copy of
 * anything. The lock is taken before the first byte is read.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "image/internal.h"
#include "image/opening.h"

enum {
    PROBE_BYTES = 4096,
    PROBE_TAIL_BYTES = 512,
    /* What is said of an image and not of one that its bytes come from. */
    OPEN_TOP_FLAGS = RHEA_IMAGE_NO_BACKING | RHEA_IMAGE_NO_IO |
                     RHEA_IMAGE_CHECK | RHEA_IMAGE_COPY_ON_READ,
};

/* Some formats are told by their end only. */
static int probe_tail(struct rhea_storage *storage, uint64_t size,
                      const struct rhea_format_ops **ops,
                      struct rhea_error *err)
{
    uint8_t tail[PROBE_TAIL_BYTES];
    size_t len = (size_t)RHEA_MIN(size, sizeof(tail));
    int best = 0;
    int ret = rhea_storage_read(storage, tail, len, size - len, err);
    for (size_t i = 0; !ret && rhea_formats[i]; i++) {
        const struct rhea_format_ops *f = rhea_formats[i];
        int score = f->probe_tail ? f->probe_tail(tail, len, size) : 0;
        if (score > best) {
            *ops = f;
            best = score;
        }
    }
    return ret;
}

/* The format that the beginning of STORAGE looks like. */
static int open_probe(struct rhea_storage *storage,
                      const struct rhea_format_ops **ops,
                      struct rhea_error *err)
{
    uint8_t head[PROBE_BYTES];
    uint64_t size;
    int ret = rhea_storage_size(storage, &size, err);
    if (ret)
        return ret;
    size_t len = (size_t)RHEA_MIN(size, sizeof(head));
    ret = rhea_storage_read(storage, head, len, 0, err);
    if (ret)
        return ret;
    *ops = rhea_format_probe(head, len);
    if (*ops && strcmp((*ops)->name, "raw") == 0)
        ret = probe_tail(storage, size, ops, err);
    if (ret)
        return ret;
    return *ops ? 0
                : rhea_error_set(err, EINVAL, "'%s' is of no known format",
                                 storage->path ? storage->path : "");
}

int image_lock(struct rhea_storage *storage, unsigned flags,
               struct rhea_error *err)
{
    unsigned perm = RHEA_LOCK_READ;
    unsigned shared = RHEA_LOCK_READ | RHEA_LOCK_UNCHANGED;
    if (flags & RHEA_IMAGE_NO_LOCK)
        return 0;
    if (flags & RHEA_IMAGE_WRITE)
        perm |= RHEA_LOCK_WRITE | RHEA_LOCK_RESIZE;
    if (flags & RHEA_IMAGE_EXCLUSIVE)
        shared = 0;
    return rhea_storage_lock(storage, perm, shared, err);
}

struct rhea_image *image_new(const char *name, unsigned flags,
                             struct rhea_error *err)
{
    struct rhea_image *image = calloc(1, sizeof(*image));
    if (image) {
        image->filename = strdup(name);
        image->flags = flags;
    }
    if (!image || !image->filename) {
        free(image);
        rhea_error_set(err, ENOMEM, "out of memory");
        return NULL;
    }
    return image;
}

void image_identify(struct rhea_image *image)
{
    uint64_t disk_size;
    image->has_identity = rhea_file_stat(image->storage, &disk_size,
                                         &image->device, &image->inode) == 0;
}

/* IMAGE is one more link below TOP; is it one that is there already? */
static int open_check_chain(const struct rhea_image *top,
                            const struct rhea_image *image,
                            struct rhea_error *err)
{
    unsigned depth = 1;
    for (; top; top = top->backing, depth++) {
        if (image->has_identity && top->has_identity &&
            image->device == top->device && image->inode == top->inode)
            return rhea_error_set(err, ELOOP,
                                  "the backing chain loops: '%s' is its own "
                                  "backing file",
                                  top->filename);
    }
    if (depth > RHEA_CHAIN_MAX)
        return rhea_error_set(err, ELOOP,
                              "the backing chain has more than %d images",
                              RHEA_CHAIN_MAX);
    return 0;
}

/* The options that are neither a child's nor common to all nodes. OUT has room
 * for all. */
static size_t open_own_options(struct rhea_image *image,
                               struct rhea_option *out)
{
    static const char *const children[] = {"file", "backing", "data-file"};
    size_t n = 0;
    for (size_t i = 0; i < image->options.n; i++) {
        struct storage_option *o = &image->options.items[i];
        bool is_child = false;
        for (size_t c = 0; c < RHEA_ARRAY_SIZE(children); c++) {
            size_t len = strlen(children[c]);
            is_child |= strncmp(o->name, children[c], len) == 0 &&
                        (o->name[len] == '.' || !o->name[len]);
        }
        if (o->used || is_child)
            continue;
        o->used = true;
        out[n++] = (struct rhea_option){o->name, o->value};
    }
    return n;
}

/* Options of a child that IMAGE does not have. */
static int open_check_children(struct rhea_image *image, struct rhea_error *err)
{
    /* A check is of this image, too, but takes what others take. */
    bool below = (image->flags & RHEA_IMAGE_NO_BACKING) &&
                 (image->flags & RHEA_IMAGE_NO_IO);
    const char *backing = storage_options_peek(&image->options, "backing");
    const char *wrong = NULL;
    for (size_t i = 0; i < image->options.n && !wrong; i++) {
        const char *name = image->options.items[i].name;
        if ((strncmp(name, "data-file.", 10) == 0 && !image->data_file &&
             !(image->flags & RHEA_IMAGE_NO_IO)) ||
            (strncmp(name, "backing.", 8) == 0 &&
             (below || !image->format->ops->set_backing)))
            wrong = name;
    }
    if (wrong)
        return rhea_error_set(err, EINVAL,
                              below ? "option %s: only this image is looked "
                                      "at, not what is below it"
                                    : "option %s: the image has no such part",
                              wrong);
    if (backing && *backing)
        return rhea_error_set(err, EINVAL,
                              "option backing=%.100s: there is no node of that "
                              "name",
                              backing);
    return 0;
}

/* The format of an open storage, over which IMAGE then stands. FORMAT NULL: to
 * be found out. */
int image_open_format(struct rhea_image *image, const char *format,
                      struct node_opening *opening, struct rhea_error *err)
{
    const struct rhea_format_ops *ops;
    int ret = 0;
    if (format) {
        ops = image_format_find(format, err);
        ret = ops ? 0 : -EINVAL;
    } else {
        ret = open_probe(image->storage, &ops, err);
    }
    if (ret)
        return ret;

    RHEA_AUTO_FREE struct rhea_option *options =
        calloc(image->options.n + 1, sizeof(*options));
    if (!options)
        return rhea_error_set(err, ENOMEM, "out of memory");
    const char *folder = image->description.folder;
    image->files = image_files_new(
        folder ? folder : image->file_description.folder, image->flags, err);
    if (!image->files)
        return -ENOMEM;
    struct image_data_file data_file = {image, opening};
    unsigned flags = (image->flags & RHEA_IMAGE_WRITE ? RHEA_FORMAT_WRITE : 0) |
                     (image->flags & RHEA_IMAGE_CHECK ? RHEA_FORMAT_CHECK : 0) |
                     (image->flags & RHEA_IMAGE_NO_IO ? RHEA_FORMAT_NO_IO : 0);
    struct rhea_format_open how = {
        .storage = image->storage,
        .flags = flags,
        .options = options,
        .n_options = image->is_protocol ? 0 : open_own_options(image, options),
        .open_data_file = image_open_data_file,
        .opaque = &data_file,
        .files = &image->files->ops,
    };
    ret = ops->open(&image->format, &how, err);
    if (!ret && !image->is_protocol)
        ret = open_check_children(image, err);
    if (ret)
        return rhea_error_prefix(err, "could not open '%s' as %s",
                                 image->filename, ops->name),
               ret;
    image->is_raw = ops == rhea_format_find("raw");
    image->is_plain_raw = image->is_raw && how.n_options == 0;
    image->guessed_raw = image->is_raw && !format;
    if (!image->driver)
        image->driver = ops->name;
    return 0;
}

/* The storage below IMAGE, and what it is called. */
static int open_storage(struct rhea_image *image, struct node_opening *opening,
                        struct rhea_error *err)
{
    struct storage_options options = {0};
    int ret = image->is_protocol
                  ? storage_options_extract(&image->options, "", &options, err)
                  : node_take_child(&image->options, "file", &options, err);
    if (!ret && !image->asked && options.n == 0)
        ret = rhea_error_set(err, EINVAL,
                             "which file? There is no option "
                             "file.filename");
    RHEA_AUTO_FREE char *bundle =
        image->asked ? image_bundle_file(image->asked) : NULL;
    if (!ret)
        ret = node_open_storage(&image->storage, &image->file_description,
                                bundle ? bundle : image->asked, &options,
                                image->flags & ~OPEN_TOP_FLAGS, opening, err);
    storage_options_finish(&options);
    if (ret)
        return ret;
    char *name = node_description_name(&image->file_description);
    if (!name)
        return rhea_error_set(err, ENOMEM, "out of memory");
    free(image->filename);
    image->filename = name;
    return 0;
}

/* Now that all is open: how IMAGE is called. */
static int open_describe(struct rhea_image *image, struct rhea_error *err)
{
    struct node_description *d = &image->description;
    const struct node_description *file = &image->file_description;
    bool others;
    if (image->is_protocol)
        return node_description_copy(d, file, err);
    int ret = node_describe(d, image->driver, &image->options,
                            image->format->ops->strong_options, &others, err);
    if (!ret)
        ret = node_describe_child(d, "file", file, err);
    if (!ret && image->data_file)
        ret =
            node_describe_child(d, "data-file", &image->data_description, err);
    if (ret)
        return ret;
    if (file->is_protocol && file->plain && !others)
        d->plain = strdup(file->plain);
    d->folder = file->folder ? strdup(file->folder) : NULL;
    return 0;
}

int image_rename(struct rhea_image *image, struct rhea_error *err)
{
    char *name = node_description_name(&image->description);
    if (!name)
        return rhea_error_set(err, ENOMEM, "out of memory");
    free(image->filename);
    image->filename = name;
    return 0;
}

/* What IMAGE is to be, by its options. */
static int open_sort_out(struct rhea_image *image, const char **format,
                         struct rhea_error *err)
{
    if (image->asked && node_name_is_json(image->asked)) {
        int ret = node_parse_json(image->asked, &image->options, err);
        if (ret)
            return ret;
        free(image->asked);
        image->asked = NULL;
    }
    *format = storage_options_peek(&image->options, "driver");
    const struct storage_driver *driver =
        *format ? storage_driver_find(*format) : NULL;
    if (*format && !driver && !image_format_find(*format, err))
        return -EINVAL;
    if (driver && !rhea_format_find(*format)) {
        image->is_protocol = true;
        image->driver = driver->name;
        *format = "raw";
        return 0;
    }
    struct node_common common = {.flags = image->flags};
    int ret = node_take_common(&image->options, &common, err);
    image->flags = common.flags;
    image->detect_zeroes = common.detect_zeroes;
    return ret;
}

int image_open_one(struct rhea_image **out, const char *name,
                   const struct storage_options *options, unsigned flags,
                   const struct rhea_image *top, struct node_opening *opening,
                   struct rhea_error *err)
{
    const char *format = NULL;
    if ((flags & RHEA_IMAGE_WRITE) && (flags & RHEA_IMAGE_NO_LOCK))
        return rhea_error_set(err, EINVAL,
                              "an image cannot be written to without a lock");
    int ret = node_enter(opening, err);
    if (ret)
        return ret;
    struct rhea_image *image = image_new(name ? name : "image", flags, err);
    if (!image) {
        node_leave(opening);
        return -ENOMEM;
    }
    if (name && !(image->asked = strdup(name)))
        ret = rhea_error_set(err, ENOMEM, "out of memory");
    if (!ret)
        ret = storage_options_copy(options, &image->options, err);
    if (!ret)
        ret = open_sort_out(image, &format, err);
    if (!ret)
        ret = open_storage(image, opening, err);
    if (!ret) {
        image_identify(image);
        ret = open_check_chain(top, image, err);
    }
    if (!ret && image->is_protocol)
        image->through = nested_image(image->storage);
    if (!ret)
        ret = image_lock(image->storage, image->flags, err);
    if (!ret)
        ret = image_open_format(image, format, opening, err);
    if (!ret)
        ret = open_describe(image, err);
    if (!ret)
        ret = image_rename(image, err);
    node_leave(opening);
    if (ret) {
        rhea_image_close(image, NULL);
        return ret;
    }
    *out = image;
    return 0;
}
