/* SPDX-License-Identifier: MIT */
/*
 * Opening and closing an image and its backing chain.
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
#include "image/path.h"

enum { PROBE_BYTES = 4096 };

int image_probe(struct rhea_storage *storage,
                const struct rhea_format_ops **ops, struct rhea_error *err)
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
    return *ops ? 0
                : rhea_error_set(err, EINVAL, "'%s' is of no known format",
                                 storage->path ? storage->path : "");
}

static int open_lock(struct rhea_storage *storage, unsigned flags,
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

static int open_storage(struct rhea_storage **out, const char *path,
                        unsigned flags, struct rhea_error *err)
{
    unsigned how = (flags & RHEA_IMAGE_WRITE ? RHEA_FILE_WRITE : 0) |
                   (flags & RHEA_IMAGE_DIRECT ? RHEA_FILE_DIRECT : 0);
    if ((flags & RHEA_IMAGE_WRITE) && (flags & RHEA_IMAGE_NO_LOCK))
        return rhea_error_set(err, EINVAL,
                              "an image cannot be written to without a lock");
    return rhea_file_open(out, path, how, err);
}

/* The format of an open storage, over which IMAGE then stands. */
static int open_format(struct rhea_image *image, const char *format,
                       struct rhea_error *err)
{
    const struct rhea_format_ops *ops;
    int ret = 0;
    if (format) {
        ops = image_format_find(format, err);
        if (!ops)
            return -EINVAL;
    } else {
        ret = image_probe(image->storage, &ops, err);
        if (ret)
            return ret;
    }

    unsigned flags = (image->flags & RHEA_IMAGE_WRITE ? RHEA_FORMAT_WRITE : 0) |
                     (image->flags & RHEA_IMAGE_CHECK ? RHEA_FORMAT_CHECK : 0) |
                     (image->flags & RHEA_IMAGE_NO_IO ? RHEA_FORMAT_NO_IO : 0);
    struct rhea_format_open how = {.storage = image->storage, .flags = flags};
    ret = ops->open(&image->format, &how, err);
    if (ret)
        return rhea_error_prefix(err, "could not open '%s' as %s",
                                 image->filename, ops->name),
               ret;
    image->is_raw = ops == rhea_format_find("raw");
    image->guessed_raw = image->is_raw && !format;
    return 0;
}

static struct rhea_image *image_new(const char *name, unsigned flags,
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

static void image_identify(struct rhea_image *image)
{
    uint64_t disk_size;
    image->has_identity = rhea_file_stat(image->storage, &disk_size,
                                         &image->device, &image->inode) == 0;
}

/* IMAGE is one more link below TOP; is it one that is there already? */
static int chain_check(const struct rhea_image *top,
                       const struct rhea_image *image, struct rhea_error *err)
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

/* One file, without what is below it. TOP: the chain it is to be added to. */
static int open_file(struct rhea_image **out, const char *name,
                     const char *format, unsigned flags,
                     const struct rhea_image *top, struct rhea_error *err)
{
    RHEA_AUTO_FREE char *path = NULL;
    int ret = image_name_path(name, &path, err);
    if (ret)
        return ret;
    struct rhea_image *image = image_new(path, flags, err);
    if (!image)
        return -ENOMEM;

    ret = open_storage(&image->storage, path, flags, err);
    if (!ret) {
        image_identify(image);
        ret = chain_check(top, image, err);
    }
    if (!ret)
        ret = open_lock(image->storage, flags, err);
    if (!ret)
        ret = open_format(image, format, err);
    if (ret) {
        rhea_image_close(image, NULL);
        return ret;
    }
    *out = image;
    return 0;
}

/* Open what is below the last image of TOP's chain. *DONE: nothing is. */
static int open_below(struct rhea_image *top, struct rhea_image *last,
                      bool *done, struct rhea_error *err)
{
    struct rhea_format_info info;
    last->format->ops->info(last->format, &info);
    *done = !info.backing_file;
    if (*done)
        return 0;

    RHEA_AUTO_FREE char *name =
        image_name_combine(last->filename, info.backing_file);
    if (!name)
        return rhea_error_set(err, ENOMEM, "out of memory");
    unsigned flags = top->flags & (RHEA_IMAGE_NO_LOCK | RHEA_IMAGE_DIRECT |
                                   RHEA_IMAGE_NO_IO);
    int ret =
        open_file(&last->backing, name, info.backing_format, flags, top, err);
    if (ret)
        return rhea_error_prefix(err, "backing file of '%s'", last->filename),
               ret;
    last->format->below_opaque = last->backing;
    last->format->below = image_read_below;
    return 0;
}

static int open_chain(struct rhea_image *top, struct rhea_error *err)
{
    bool done = top->flags & RHEA_IMAGE_NO_BACKING;
    if (done) {
        struct rhea_format_info info;
        rhea_image_info(top, &info);
        top->blind = info.backing_file;
    }
    int ret = 0;
    for (struct rhea_image *last = top; !ret && !done; last = last->backing)
        ret = open_below(top, last, &done, err);
    return ret;
}

int rhea_image_open(struct rhea_image **out, const char *filename,
                    const char *format, unsigned flags, struct rhea_error *err)
{
    struct rhea_image *image;
    int ret = open_file(&image, filename, format, flags, NULL, err);
    if (ret)
        return ret;
    ret = open_chain(image, err);
    if (ret) {
        rhea_image_close(image, NULL);
        return ret;
    }
    *out = image;
    return 0;
}

int rhea_image_open_storage(struct rhea_image **out,
                            struct rhea_storage *storage, const char *name,
                            const char *format, unsigned flags,
                            struct rhea_error *err)
{
    struct rhea_image *image = image_new(name, flags, err);
    if (!image) {
        rhea_storage_close(storage);
        return -ENOMEM;
    }
    image->storage = storage;
    image_identify(image);
    int ret = open_format(image, format, err);
    if (!ret)
        ret = open_chain(image, err);
    if (ret) {
        rhea_image_close(image, NULL);
        return ret;
    }
    *out = image;
    return 0;
}

/* A second time the file of IMAGE, which is open for reading. */
static int reopen_file(struct rhea_image **out, struct rhea_image *image,
                       struct rhea_error *err)
{
    struct rhea_image *again =
        image_new(image->filename, image->flags | RHEA_IMAGE_WRITE, err);
    if (!again)
        return -ENOMEM;
    int ret = open_storage(&again->storage, image->filename, again->flags, err);
    if (!ret) {
        image_identify(again);
        if (again->has_identity != image->has_identity ||
            again->device != image->device || again->inode != image->inode)
            ret =
                rhea_error_set(err, ESTALE, "'%s' was replaced by another file",
                               image->filename);
    }
    if (!ret)
        ret = open_lock(again->storage, again->flags, err);
    if (!ret)
        ret = open_format(again, image->format->ops->name, err);
    if (ret) {
        rhea_image_close(again, NULL);
        return ret;
    }
    *out = again;
    return 0;
}

int rhea_image_allow_write(struct rhea_image *image, struct rhea_error *err)
{
    struct rhea_image *again;
    if (image->flags & RHEA_IMAGE_WRITE)
        return 0;
    /* Our own lock must not be in the way of the new one. */
    bool locked = !(image->flags & RHEA_IMAGE_NO_LOCK);
    int ret = locked ? rhea_storage_lock(image->storage, RHEA_LOCK_READ,
                                         RHEA_LOCK_ALL, err)
                     : 0;
    if (ret)
        return ret;
    ret = reopen_file(&again, image, err);
    if (ret) {
        open_lock(image->storage, image->flags, NULL);
        return ret;
    }

    struct rhea_storage *storage = image->storage;
    struct rhea_format *format = image->format;
    image->storage = again->storage;
    image->format = again->format;
    image->flags = again->flags;
    image->format->below = format->below;
    image->format->below_opaque = format->below_opaque;
    again->storage = storage;
    again->format = format;
    return rhea_image_close(again, err);
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
        rhea_storage_close(image->storage);
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
    return image->backing;
}

void rhea_image_info(struct rhea_image *image, struct rhea_format_info *info)
{
    memset(info, 0, sizeof(*info));
    image->format->ops->info(image->format, info);
}

char *rhea_image_backing_path(const struct rhea_image *image)
{
    struct rhea_format_info info;
    image->format->ops->info(image->format, &info);
    if (!info.backing_file)
        return NULL;
    return image_resolve_path(image->filename, info.backing_file);
}
